// Package inherited takes away what the caller left us before any other package can believe it. Some read the environment when they are initialised, which is before main: package toml asks for the local time
// zone, and so opened the file that TZ named, as root (T02). Packages are initialised as soon as what they import is, by import path (Go specification, "Program initialization"): this one imports only
// syscall, so it comes before time, os and all that need them, and no descriptor above 2 is ours yet.
package inherited

import "syscall"

// Errno is why the descriptors could not be closed (close_range(2)); 0: they are.
var Errno syscall.Errno

func init() {
	const closeRange = 436 // on every architecture
	_, _, Errno = syscall.RawSyscall(closeRange, 3, ^uintptr(0), 0)
	syscall.Clearenv()
	syscall.Setenv("TZ", "") // UTC: not even /etc/localtime is read
}
