// Package early has the kernel map the pages that the Go heap will grow into with one call, before most other packages are initialised. A command of ours lives for some
// milliseconds and touches some 250 fresh pages of its heap; where a fault is dear, as under a hypervisor, that is a tenth of its life (docs/performance.md). If
// the kernel does not know how, the pages come one by one. A program of whose process nobody but us decides imports it, not a library.
package early

import (
	"syscall"
	"unsafe"
)

func init() {
	const populate = 23 // MADV_POPULATE_WRITE, Linux 5.14
	var here byte       // the stack is in the heap
	syscall.Madvise(unsafe.Slice((*byte)(unsafe.Pointer(uintptr(unsafe.Pointer(&here))&^0xfff)), 1<<20), populate)
}
