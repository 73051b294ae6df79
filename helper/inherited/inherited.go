// Package inherited takes the caller's environment away before any other package can believe it. Some read it when they are initialised, which is before main: package toml asks for the local time zone, and
// so opened the file that TZ named, as root (T02). Packages are initialised as soon as what they import is, by import path (Go specification, "Program initialization"): this one imports only syscall, so it
// comes before time, os and all that need them. It also has the kernel map the pages of heap and stack in one call and not one by one: faults are a tenth of a run where they are dear (docs/performance.md).
package inherited

import "syscall"
import "unsafe"

func init() {
	syscall.Clearenv()
	syscall.Setenv("TZ", "") // UTC: not even /etc/localtime is read
	var here byte
	syscall.Madvise(unsafe.Slice((*byte)(unsafe.Pointer(uintptr(unsafe.Pointer(&here))&^0xfff)), 1<<19), 23) // MADV_POPULATE_WRITE; where it fails nothing is lost
}
