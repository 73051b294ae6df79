package power

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// A tracer records with ptrace(2) what a command and the helpers that it starts do to some folders.
type tracer struct {
	t       *testing.T
	h       *harness.Host
	folders []string
	record  func(event) // called by one thread, in the order in which the calls end
}

// begun is a call that has been entered and not left: what has to be known of it from before it is done.
type begun struct {
	nr   uint64
	args [6]uint64
	path string // that it is about, or "": not in our folders
	to   string
	text string // of a symlink
}

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h.
type syscallInfo struct {
	op   uint8
	_    [3]byte
	_    uint32
	_, _ uint64
	data [8]uint64 // entry: nr, args; exit: result, whether it is an error
}

const (
	infoEntry, infoExit = 1, 2
	wnothread           = 0x20000000 // only what this thread traces: others wait for their children themselves
)

// run runs the installed bindgate as the policy user, traced, to its end.
func (tr *tracer) run(args ...string) (exit int) {
	tr.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // a tracer is a thread; it ends with this goroutine
		var err error
		exit, err = tr.trace(append([]string{tr.h.Bindgate()}, args...))
		done <- err
	}()
	if err := <-done; err != nil {
		tr.t.Fatalf("cannot trace %v: %v", args, err)
	}
	return exit
}

func (tr *tracer) trace(args []string) (int, error) {
	// Traced as root from before the exec on, so that the helper keeps its privilege.
	cmd := tr.h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, "/bin/sh", append([]string{"-c", `kill -STOP $$; exec "$@"`, "sh"}, args...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, syscall.WUNTRACED, nil); err != nil {
		return 0, err
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, options, 0, 0); e != 0 {
		return 0, e
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		return 0, err
	}
	calls := map[int]*begun{} // by thread
	for {
		tid, err := syscall.Wait4(-1, &ws, syscall.WALL|wnothread, nil)
		if err == syscall.EINTR {
			continue
		} else if err == syscall.ECHILD {
			return 0, fmt.Errorf("it ended unseen")
		} else if err != nil {
			return 0, err
		}
		if ws.Exited() || ws.Signaled() {
			delete(calls, tid)
			if tid == pid {
				// What it left behind, a helper, is not traced any more: there is none unless it was killed.
				if ws.Signaled() {
					return 128 + int(ws.Signal()), nil
				}
				return ws.ExitStatus(), nil
			}
			continue
		}
		signal := 0
		switch event := int(ws) >> 16; {
		case event != 0:
		case ws.StopSignal() == syscall.SIGTRAP|0x80:
			if err := tr.stop(tid, calls); err != nil && err != unix.ESRCH {
				return 0, err
			}
		case ws.StopSignal() != syscall.SIGTRAP:
			signal = int(ws.StopSignal())
		}
		if err := syscall.PtraceSyscall(tid, signal); err != nil && err != unix.ESRCH {
			return 0, err
		}
	}
}

// stop is a thread at the entry or the exit of a call.
func (tr *tracer) stop(tid int, calls map[int]*begun) error {
	var info syscallInfo
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); e != 0 {
		return e
	}
	switch info.op {
	case infoEntry:
		b := &begun{nr: info.data[0]}
		copy(b.args[:], info.data[1:7])
		tr.enter(tid, b)
		calls[tid] = b
	case infoExit:
		if b := calls[tid]; b != nil {
			delete(calls, tid)
			if result := int64(info.data[0]); info.data[1]&0xff == 0 {
				tr.leave(tid, b, result)
			}
		}
	}
	return nil
}

// enter notes what a call is about, which it may no longer be possible to tell when it is done.
func (tr *tracer) enter(tid int, b *begun) {
	switch b.nr {
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_WRITEV:
		b.path = tr.fd(tid, b.args[0])
	case unix.SYS_OPENAT, unix.SYS_OPENAT2:
		b.path = tr.at(tid, b.args[0], b.args[1])
		if _, err := os.Lstat(b.path); err == nil || b.path == "" {
			b.path = "" // it is there: nothing is created
		}
	case unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_MKNODAT:
		b.path = tr.at(tid, b.args[0], b.args[1])
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		b.path, b.to = tr.at(tid, b.args[0], b.args[1]), tr.at(tid, b.args[2], b.args[3])
	case unix.SYS_SYMLINKAT:
		b.text, b.path = tr.text(tid, b.args[0]), tr.at(tid, b.args[1], b.args[2])
	}
}

// leave records a call that succeeded.
func (tr *tracer) leave(tid int, b *begun, result int64) {
	if b.path == "" && b.to == "" {
		return
	}
	dir, name := filepath.Dir(b.path), filepath.Base(b.path)
	switch b.nr {
	case unix.SYS_WRITE:
		if result > 0 {
			tr.record(event{kind: write, dir: dir, name: name, data: tr.memory(tid, b.args[1], int(result))})
		}
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		if info, err := os.Lstat(b.path); err == nil && info.IsDir() {
			tr.record(event{kind: syncDir, dir: b.path})
		} else {
			tr.record(event{kind: syncFile, dir: dir, name: name})
		}
	case unix.SYS_OPENAT, unix.SYS_OPENAT2:
		if _, err := os.Lstat(b.path); err == nil {
			tr.record(event{kind: create, dir: dir, name: name})
		}
	case unix.SYS_MKDIRAT:
		tr.record(event{kind: mkdir, dir: dir, name: name})
	case unix.SYS_UNLINKAT:
		tr.record(event{kind: unlink, dir: dir, name: name})
	case unix.SYS_SYMLINKAT:
		tr.record(event{kind: symlink, dir: dir, name: name, data: []byte(b.text)})
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		tr.record(event{kind: rename, dir: dir, name: name, to: filepath.Base(b.to)})
		if filepath.Dir(b.to) != dir {
			tr.record(event{kind: unknown, name: fmt.Sprintf("a rename from %s to %s", b.path, b.to)})
		}
	default:
		tr.record(event{kind: unknown, name: fmt.Sprintf("system call %d on %s", b.nr, b.path)})
	}
}

// fd is the path of an open file in our folders, "" for others.
func (tr *tracer) fd(tid int, fd uint64) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)))
	return tr.ours(path)
}

// at is the path that is named relative to an open folder.
func (tr *tracer) at(tid int, dirfd, addr uint64) string {
	path := tr.text(tid, addr)
	if !filepath.IsAbs(path) {
		dir := fmt.Sprintf("/proc/%d/fd/%d", tid, int32(dirfd))
		if int32(dirfd) == unix.AT_FDCWD {
			dir = fmt.Sprintf("/proc/%d/cwd", tid)
		}
		base, err := os.Readlink(dir)
		if err != nil {
			return ""
		}
		path = filepath.Join(base, path)
	}
	return tr.ours(path)
}

func (tr *tracer) ours(path string) string {
	for _, f := range tr.folders {
		if path == f || strings.HasPrefix(path, f+"/") {
			return path
		}
	}
	return ""
}

func (tr *tracer) memory(tid int, addr uint64, n int) []byte {
	buf := make([]byte, n)
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		tr.t.Error(err)
		return nil
	}
	defer f.Close()
	if n, err = f.ReadAt(buf, int64(addr)); err != nil && n == 0 {
		tr.t.Error(err)
	}
	return buf[:n]
}

// text reads a string that ends with a NUL.
func (tr *tracer) text(tid int, addr uint64) string {
	var b []byte
	for len(b) < 4096 {
		word := make([]byte, 8)
		if n, err := syscall.PtracePeekData(tid, uintptr(addr)+uintptr(len(b)), word); err != nil || n == 0 {
			return ""
		}
		for range 8 {
			var c byte
			if c, word = word[0], word[1:]; c == 0 {
				return string(b)
			}
			b = append(b, c)
		}
	}
	return ""
}
