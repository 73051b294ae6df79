package privops

import "golang.org/x/sys/unix"

const (
	threadFlags = 0
	auditArch   = unix.AUDIT_ARCH_AARCH64
	fstatat     = unix.SYS_FSTATAT
)

// archAllowed are the system calls that only this architecture has.
var archAllowed []struct {
	nr  int
	why string
}
