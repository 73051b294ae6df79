package privops

import _ "embed"

//go:embed seccomp_amd64.bpf
var filter string // struct sock_filter, little-endian
