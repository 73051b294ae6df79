package privops

import (
	"cmp"
	"embed"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:embed seccomp_amd64.bpf seccomp_arm64.bpf
var filters embed.FS // struct sock_filter, little-endian

// filterSyscalls installs the filter on all threads (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC). seccomp.list says what it lets through, and why; it is compiled beforehand, since that would cost more here
// than anything else at the start. A test compiles the list again, and runs the result for every number that there is.
func filterSyscalls() error {
	filter, err := filters.ReadFile("seccomp_" + runtime.GOARCH + ".bpf")
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(filter) / unix.SizeofSockFilter), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	tid, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if e == 0 && tid == 0 {
		return nil
	}
	return cmp.Or(e, unix.ESRCH) // a thread that could not be synchronised
}
