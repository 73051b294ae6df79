package privops

import "golang.org/x/sys/unix"

const (
	threadFlags = unix.CLONE_SETTLS // the runtime's clone sets the thread pointer
	auditArch   = unix.AUDIT_ARCH_X86_64
	fstatat     = unix.SYS_NEWFSTATAT
)

// archAllowed are the system calls that only this architecture has.
var archAllowed = []struct {
	nr  int
	why string
}{{unix.SYS_POLL, "deadline, liveness"}, {unix.SYS_ARCH_PRCTL, "runtime: thread-local storage"}}
