// Package inherited takes the caller's environment away before packages believe it that are initialised before main: toml opened the file that TZ named, as root (T02). It comes before them since it imports nothing that
// they need (Go specification, "Program initialization"). It also has the kernel map the pages of heap and stack in one call: faults are a tenth of a run where they are dear (docs/performance.md).
package inherited

import "syscall"
import "unsafe"

func init() {
	syscall.Clearenv()
	syscall.Setenv("TZ", "") // UTC: not even /etc/localtime is read
	var here byte
	syscall.Madvise(unsafe.Slice((*byte)(unsafe.Pointer(uintptr(unsafe.Pointer(&here))&^0xfff)), 1<<19), 23) // MADV_POPULATE_WRITE; where it fails nothing is lost
}
