// Package inherited takes the caller's environment away before any other package can believe it. Some read it when they are initialised, which is before main: package toml
// asks for the local time zone, and so opened the file that TZ named, as root (T02). Packages are initialised as soon as what they import is, by import path (Go specification, "Program initialization"):
// this one imports only syscall, so it comes before time, os and all that need them.
package inherited

import "syscall"

func init() {
	syscall.Clearenv()
	syscall.Setenv("TZ", "") // UTC: not even /etc/localtime is read
}
