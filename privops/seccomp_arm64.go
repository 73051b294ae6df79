package privops

import _ "embed"

//go:embed seccomp_arm64.bpf
var filter string // struct sock_filter, little-endian
