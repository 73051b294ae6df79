//go:build crash

package crash

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// ofRuntime says whether a call is the Go runtime's own. It makes them at its own times, so that counting them would make a number mean another call in each
// run; they change nothing outside the process; and where one fails the runtime ends the process, which is like a kill.
func ofRuntime(c call) bool {
	switch c.nr {
	case unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_RESTART_SYSCALL, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MPROTECT, unix.SYS_RT_SIGACTION,
		unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_EXIT,
		unix.SYS_GETRANDOM, unix.SYS_CLOCK_GETTIME, unix.SYS_SCHED_GETAFFINITY, unix.SYS_PREAD64: // pread: of the cgroup's CPU limit
		return true
	case unix.SYS_CLONE:
		return c.args[0]&unix.CLONE_THREAD != 0
	case unix.SYS_PRCTL:
		return c.args[0] == unix.PR_SET_VMA
	case unix.SYS_TGKILL:
		return c.args[2] == uint64(unix.SIGURG) || c.args[2] == 33 // preemption; a call that is made on all threads
	case unix.SYS_READ, unix.SYS_WRITE: // its poller is woken
		if c.args[2] == 8 {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.pid, c.args[0]))
			return to == "anon_inode:[eventfd]"
		}
	}
	return false
}

const (
	eagain = unix.EAGAIN
	ebusy  = unix.EBUSY
	eintr  = unix.EINTR
	eio    = unix.EIO
	emfile = unix.EMFILE
	enolck = unix.ENOLCK
	enomem = unix.ENOMEM
	enospc = unix.ENOSPC
	eperm  = unix.EPERM
)

// A syscallInfo row: a system call's name, and the errors that it can have whatever its arguments are: of the disk, of memory, of a limit, of a signal, of
// somebody else's use. One that has none, like umask(2), cannot fail.
var table = map[int]struct {
	name string
	errs []syscall.Errno
}{
	unix.SYS_READ:              {"read", errs(eio, eintr)},
	unix.SYS_WRITE:             {"write", errs(enospc, eio, eintr)},
	unix.SYS_CLOSE:             {"close", errs(eio, eintr)},
	unix.SYS_LSEEK:             {"lseek", errs(eio)},
	unix.SYS_OPENAT:            {"openat", errs(emfile, enomem, eio)},
	unix.SYS_OPENAT2:           {"openat2", errs(emfile, enomem, eio)},
	unix.SYS_FSTAT:             {"fstat", errs(eio, enomem)},
	fstatat:                    {"fstatat", errs(eio, enomem)},
	unix.SYS_STATX:             {"statx", errs(eio, enomem)},
	unix.SYS_FSTATFS:           {"fstatfs", errs(eio, enomem)},
	unix.SYS_GETDENTS64:        {"getdents64", errs(eio, enomem)},
	unix.SYS_READLINKAT:        {"readlinkat", errs(eio, enomem)},
	unix.SYS_FACCESSAT:         {"faccessat", errs(eio, enomem)},
	unix.SYS_FACCESSAT2:        {"faccessat2", errs(eio, enomem)},
	unix.SYS_CHDIR:             {"chdir", errs(eio, enomem)},
	unix.SYS_FCHDIR:            {"fchdir", errs(eio, enomem)},
	unix.SYS_CHROOT:            {"chroot", errs(eio, enomem)},
	unix.SYS_MKDIRAT:           {"mkdirat", errs(enospc, eio, enomem)},
	unix.SYS_MKNODAT:           {"mknodat", errs(enospc, eio, enomem)},
	unix.SYS_SYMLINKAT:         {"symlinkat", errs(enospc, eio, enomem)},
	unix.SYS_RENAMEAT:          {"renameat", errs(enospc, eio, enomem, ebusy)},
	unix.SYS_RENAMEAT2:         {"renameat2", errs(enospc, eio, enomem, ebusy)},
	unix.SYS_UNLINKAT:          {"unlinkat", errs(eio, enomem, ebusy)},
	unix.SYS_FCHMOD:            {"fchmod", errs(enospc, eio)},
	unix.SYS_FCHMODAT:          {"fchmodat", errs(enospc, eio)},
	unix.SYS_FCHOWN:            {"fchown", errs(enospc, eio)},
	unix.SYS_FCHOWNAT:          {"fchownat", errs(enospc, eio)},
	unix.SYS_FSYNC:             {"fsync", errs(eio, enospc)},
	unix.SYS_FTRUNCATE:         {"ftruncate", errs(eio, eintr)},
	unix.SYS_SOCKET:            {"socket", errs(emfile, enomem)},
	unix.SYS_CONNECT:           {"connect", errs(eagain, enomem)},
	unix.SYS_GETSOCKNAME:       {"getsockname", errs(enomem)},
	unix.SYS_GETPEERNAME:       {"getpeername", errs(enomem)},
	unix.SYS_SETSOCKOPT:        {"setsockopt", errs(enomem)},
	unix.SYS_GETSOCKOPT:        {"getsockopt", errs(enomem)},
	unix.SYS_PIPE2:             {"pipe2", errs(emfile, unix.ENFILE)},
	unix.SYS_EPOLL_CTL:         {"epoll_ctl", errs(enomem, enospc)},
	unix.SYS_PPOLL:             {"ppoll", errs(eintr, enomem)},
	unix.SYS_CLONE:             {"clone", errs(eagain, enomem)},
	unix.SYS_CLONE3:            {"clone3", errs(eagain, enomem)},
	unix.SYS_EXECVE:            {"execve", errs(enomem, eio, emfile)},
	unix.SYS_DUP3:              {"dup3", errs(ebusy, eintr, emfile)},
	unix.SYS_WAIT4:             {"wait4", errs(eintr)},
	unix.SYS_WAITID:            {"waitid", errs(eintr)},
	unix.SYS_TGKILL:            {"tgkill", errs(eagain)},
	unix.SYS_PIDFD_OPEN:        {"pidfd_open", errs(emfile, enomem)},
	unix.SYS_PIDFD_SEND_SIGNAL: {"pidfd_send_signal", errs(eagain)},
	unix.SYS_IOCTL:             {"ioctl", errs(emfile, enomem)},
	unix.SYS_SETNS:             {"setns", errs(enomem)},
	unix.SYS_UNSHARE:           {"unshare", errs(enomem, enospc)},
	unix.SYS_OPEN_TREE:         {"open_tree", errs(emfile, enomem)},
	unix.SYS_MOUNT_SETATTR:     {"mount_setattr", errs(ebusy, enomem)},
	unix.SYS_MOVE_MOUNT:        {"move_mount", errs(ebusy, enomem, enospc)},
	unix.SYS_FSOPEN:            {"fsopen", errs(emfile, enomem)},
	unix.SYS_FSCONFIG:          {"fsconfig", errs(ebusy, enomem)},
	unix.SYS_FSMOUNT:           {"fsmount", errs(emfile, enomem)},
	unix.SYS_UMOUNT2:           {"umount2", errs(ebusy, enomem)},
	unix.SYS_STATMOUNT:         {"statmount", errs(enomem)},
	unix.SYS_LISTMOUNT:         {"listmount", errs(enomem)},
	unix.SYS_OPEN_BY_HANDLE_AT: {"open_by_handle_at", errs(emfile, enomem)},
	unix.SYS_CAPSET:            {"capset", errs(eperm)},
	unix.SYS_PRCTL:             {"prctl", errs(eperm)},
	unix.SYS_SECCOMP:           {"seccomp", errs(enomem)},
	unix.SYS_SETGROUPS:         {"setgroups", errs(enomem, eperm)},
	unix.SYS_SETRESUID:         {"setresuid", errs(eagain, eperm)},
	unix.SYS_SETRESGID:         {"setresgid", errs(eperm)},
	unix.SYS_PRLIMIT64:         {"prlimit64", errs(eperm)},
	unix.SYS_SETITIMER:         {"setitimer", nil},
	unix.SYS_FCNTL:             {"fcntl", nil}, // see errors
	unix.SYS_UMASK:             {"umask", nil},
	unix.SYS_CAPGET:            {"capget", nil},
	unix.SYS_SETFSUID:          {"setfsuid", nil},
	unix.SYS_SETFSGID:          {"setfsgid", nil},
	unix.SYS_GETUID:            {"getuid", nil},
	unix.SYS_GETEUID:           {"geteuid", nil},
	unix.SYS_GETGID:            {"getgid", nil},
	unix.SYS_GETEGID:           {"getegid", nil},
	unix.SYS_GETPPID:           {"getppid", nil},
	unix.SYS_GETRESUID:         {"getresuid", nil},
	unix.SYS_GETRESGID:         {"getresgid", nil},
	unix.SYS_GETGROUPS:         {"getgroups", nil},
	unix.SYS_UNAME:             {"uname", nil},
	unix.SYS_SHUTDOWN:          {"shutdown", nil},
	unix.SYS_SETUID:            {"setuid", nil}, // of verify in policy/cli, which is to fail
	unix.SYS_EXIT_GROUP:        {"exit_group", nil},
}

func errs(list ...syscall.Errno) []syscall.Errno { return list }

// errors are the errors that a call can have.
func (c call) errors() []syscall.Errno {
	switch {
	case c.nr == unix.SYS_WRITE && c.by == helper && c.args[0] == 1: // the reply, on a pipe
		return errs(eintr, eagain)
	case c.nr == unix.SYS_FCNTL && slices.Contains([]uint64{unix.F_DUPFD_CLOEXEC, unix.F_DUPFD}, c.args[1]):
		return errs(emfile)
	case c.nr == unix.SYS_FCNTL && c.args[1] == unix.F_OFD_SETLK:
		return errs(enolck, eintr)
	case c.nr == unix.SYS_FCNTL && c.args[1] == unix.F_OFD_SETLKW:
		return errs(enolck, eintr)
	case c.nr == unix.SYS_EPOLL_CTL && c.args[1] != unix.EPOLL_CTL_ADD, c.nr == unix.SYS_PRCTL && (c.args[0] == unix.PR_GET_DUMPABLE || c.args[0] == unix.PR_GET_NO_NEW_PRIVS):
		return nil
	}
	return table[c.nr].errs
}

func (c call) String() string {
	if c.n == 0 {
		return "no call"
	}
	name := table[c.nr].name
	if name == "" {
		name = fmt.Sprintf("system call %d", c.nr)
	}
	return fmt.Sprintf("%s's call %d, %s", c.by, c.n, name)
}
