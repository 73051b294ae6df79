package privops

import (
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
)

// The child of cloneTrees shares the memory and the stack of its parent. In hundreds of rounds, with a garbage collector that never rests, other threads that come and go, and stacks of every depth, the
// parent finds what it left there, and the clones are what they should be: detached, locked, one for each name.
func TestCloneTreesManyTimes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root can make a mount namespace")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	var stop atomic.Bool
	defer stop.Store(true)
	for range 2 {
		go func() {
			for !stop.Load() {
				runtime.GC()
				done := make(chan []byte)
				go func() { runtime.LockOSThread(); done <- make([]byte, 1<<16) }() // a thread that ends
				<-done
			}
		}()
	}
	work := func() {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		const n, rounds = 4, 200
		top := stagingRoot()
		names, slots := make([][5]byte, n), make([]int, n)
		for i := range n {
			name := strconv.Itoa(i)
			copy(names[i][:4], name)
			if err := unix.Mkdirat(top, name, 0o700); err != nil {
				t.Error(err)
				return
			}
			if err := unix.Mount("tmpfs", name, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
				t.Error(err)
				return
			}
			slots[i], _ = unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		}
		before := map[uint64]bool{}
		for round := range rounds {
			if err := deeper(round%200, func() error {
				if e := cloneTrees(slots, names, true); e != 0 {
					return e
				}
				return nil
			}); err != nil {
				t.Errorf("round %d: %v", round, err)
				return
			}
			for i, fd := range slots {
				id, stx, err := namespace.MountOf(fd)
				if err != nil || before[id] || stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
					t.Errorf("round %d: slot %d is on the mount %d: %v", round, i, id, err)
					return
				}
				before[id] = true
			}
			var mask uint64
			if unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 0, 0, uintptr(unsafe.Pointer(&mask)), 8, 0, 0); mask != 0 {
				t.Errorf("round %d: signals stay blocked: %#x", round, mask)
				return
			}
			unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: what the thread has entered ends with it
		work()
	}()
	<-done
	for { // the last of the children
		if _, err := unix.Wait4(-1, nil, unix.WALL, nil); err != nil && err != unix.EINTR {
			break
		}
	}
}

// deeper calls f with n frames more on the stack.
func deeper(n int, f func() error) error {
	var frame [64]uint64
	for i := range frame {
		frame[i] = uint64(n)
	}
	if n == 0 {
		return f()
	}
	err := deeper(n-1, f)
	for _, v := range frame {
		if v != uint64(n) {
			return unix.EFAULT // somebody wrote here
		}
	}
	return err
}
