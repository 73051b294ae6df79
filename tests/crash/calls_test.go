package crash

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ofRuntime says whether a call is the Go runtime's own. It makes them at its own times, so that counting them would make a number mean another call in each
// run; they change nothing outside the process; and one that fails ends the process, as it should.
func ofRuntime(c call) bool {
	switch c.nr {
	case unix.SYS_CLONE:
		return c.args[0]&unix.CLONE_THREAD != 0
	case unix.SYS_PRCTL:
		return c.args[0] == unix.PR_SET_VMA
	case unix.SYS_TGKILL:
		return c.args[2] == uint64(unix.SIGURG) || c.args[2] == 33
	case unix.SYS_EPOLL_CTL:
		return false
	}
	return runtimeCalls[c.nr]
}

var runtimeCalls = set(unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_RESTART_SYSCALL, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MPROTECT,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_PWAIT,
	unix.SYS_EVENTFD2, unix.SYS_EXIT, unix.SYS_GETRANDOM, unix.SYS_CLOCK_GETTIME, unix.SYS_ARCH_PRCTL, unix.SYS_SCHED_GETAFFINITY, unix.SYS_PREAD64)

func set(numbers ...int) map[int]bool {
	m := map[int]bool{}
	for _, n := range numbers {
		m[n] = true
	}
	return m
}

func (c call) String() string {
	return fmt.Sprintf("call %d of %s (system call %d)", c.n, c.by, c.nr)
}
