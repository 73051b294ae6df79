package privops

import (
	"cmp"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arch is what differs: the architecture as the filter sees it, what the runtime adds when it makes a thread, and the number of fstatat.
var arch = map[string]struct {
	audit, thread uint32
	fstatat       int
}{"amd64": {unix.AUDIT_ARCH_X86_64, unix.CLONE_SETTLS, 262}, "arm64": {unix.AUDIT_ARCH_AARCH64, 0, 79}}[runtime.GOARCH]

// The system calls that may be made after step 5, each with who needs it. Everything else answers ENOSYS, since a later Go runtime may probe for what this one does not know; what only an
// attacker would want kills the process. SECURITY.md lists the privileged ones; a test compares.
var allowed = []struct {
	nr  int
	why string
}{
	// the Go runtime
	{unix.SYS_FUTEX, "runtime: locks"}, {unix.SYS_NANOSLEEP, "runtime: usleep"}, {unix.SYS_SCHED_YIELD, "runtime: osyield"}, {unix.SYS_RESTART_SYSCALL, "kernel: after a stop"},
	{unix.SYS_MMAP, "runtime: heap"}, {unix.SYS_MUNMAP, "runtime: heap"}, {unix.SYS_MADVISE, "runtime: heap"}, {unix.SYS_MPROTECT, "runtime: heap"},
	{unix.SYS_RT_SIGACTION, "runtime: signals"}, {unix.SYS_RT_SIGPROCMASK, "runtime: signals; stage: none for the child"}, {unix.SYS_RT_SIGRETURN, "runtime: signals"},
	{unix.SYS_SIGALTSTACK, "runtime: signals"}, {unix.SYS_TGKILL, "runtime: preemption"}, {unix.SYS_GETPID, "runtime: preemption"}, {unix.SYS_GETTID, "runtime: threads"},
	{unix.SYS_EPOLL_CREATE1, "runtime: poller"}, {unix.SYS_EPOLL_CTL, "runtime: poller"}, {unix.SYS_EPOLL_PWAIT, "runtime: poller"}, {unix.SYS_EVENTFD2, "runtime: poller"},
	{unix.SYS_EXIT, "runtime: threads"}, {unix.SYS_EXIT_GROUP, "the end"}, {unix.SYS_GETRANDOM, "runtime: maps"}, {unix.SYS_CLOCK_GETTIME, "runtime: without vDSO"},
	// files
	{unix.SYS_READ, "request, configuration, procfs, records"}, {unix.SYS_WRITE, "reply, records, audit"}, {unix.SYS_CLOSE, "files"}, {unix.SYS_OPENAT, "files"},
	{unix.SYS_OPENAT2, "sources, roots: resolution in the kernel"}, {unix.SYS_FSTAT, "files"}, {arch.fstatat, "files"}, {unix.SYS_STATX, "unique mount ids"}, {unix.SYS_FCNTL, "locks, duplicates"},
	{unix.SYS_FSYNC, "records"}, {unix.SYS_GETDENTS64, "volumes, records, tasks, holders"}, {unix.SYS_LSEEK, "os.File: directories"}, {unix.SYS_READLINKAT, "links in containers; ledger index"},
	{unix.SYS_MKDIRAT, "mountpoints, volumes"}, {unix.SYS_MKNODAT, "mountpoints that are files"}, {unix.SYS_UNLINKAT, "what was made"}, {unix.SYS_RENAMEAT, "records"}, {unix.SYS_RENAMEAT2, "volumes"}, {unix.SYS_SYMLINKAT, "ledger index"},
	{unix.SYS_FCHMOD, "volumes"}, {unix.SYS_FCHOWN, "volumes"}, {unix.SYS_FSTATFS, "query: sizes"}, {unix.SYS_PPOLL, "deadline, liveness"},
	// privileged
	{unix.SYS_PIDFD_OPEN, "target"}, {unix.SYS_SETNS, "enter"}, {unix.SYS_UNSHARE, "enter, stage"}, {unix.SYS_STATMOUNT, "mounts by id"}, {unix.SYS_LISTMOUNT, "mounts by id"},
	{unix.SYS_OPEN_BY_HANDLE_AT, "a namespace by its id; without CAP_DAC_READ_SEARCH it opens no file"}, {unix.SYS_OPEN_TREE, "attach"}, {unix.SYS_MOUNT_SETATTR, "attach"},
	{unix.SYS_MOVE_MOUNT, "attach"}, {unix.SYS_FSOPEN, "stage: tmpfs"}, {unix.SYS_FSCONFIG, "stage: tmpfs"}, {unix.SYS_FSMOUNT, "stage: tmpfs"}, {unix.SYS_FCHDIR, "stage, unmount"},
	{unix.SYS_CHROOT, "stage"}, {unix.SYS_DUP3, "stage: the child"}, {unix.SYS_WAIT4, "stage: the child"}, {unix.SYS_UMOUNT2, "detach, undo"}, {unix.SYS_SETFSUID, "as the container's root"},
	{unix.SYS_SETFSGID, "as the container's root"}, {unix.SYS_CAPSET, "drop more"}, {unix.SYS_CAPGET, "read it back"},
}

// deadly are the system calls that nothing here could mean.
var deadly = []int{unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ADD_KEY,
	unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_PIVOT_ROOT, unix.SYS_SETDOMAINNAME, unix.SYS_SETHOSTNAME, unix.SYS_IO_URING_SETUP, unix.SYS_PIDFD_GETFD}

// The only arguments that these two are allowed with.
var (
	cloneFlags = []uint32{
		unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD | arch.thread, // runtime: a thread
		unix.CLONE_VFORK | unix.CLONE_FILES | unix.CLONE_NEWUSER | unix.CLONE_NEWNS,                                                  // stage: the child
	}
	ioctls = []uint32{unix.PIDFD_GET_MNT_NAMESPACE, unix.NS_GET_USERNS, unix.NS_GET_MNTNS_ID}
)

// filterSyscalls installs the filter on all threads (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC).
func filterSyscalls() error {
	prog := program()
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	tid, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if e == 0 && tid == 0 {
		return nil
	}
	return cmp.Or(e, unix.ESRCH) // a thread that could not be synchronised
}

// program builds the filter: a binary search over the numbers, since the kernel runs it once for every number when it is installed and a list would cost more than all else here.
func program() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	const load, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_RET | unix.BPF_K
	const jeq, jge = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	const nr, architecture, arg0, arg1 = 0, 4, 16, 24 // struct seccomp_data, low halves
	const yes, no, kill = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), unix.SECCOMP_RET_KILL_PROCESS
	only := func(offset uint32, values []uint32) []unix.SockFilter {
		out := []unix.SockFilter{stmt(load, offset)}
		for i, v := range values {
			out = append(out, unix.SockFilter{Code: jeq, Jt: uint8(len(values) - i), K: v})
		}
		return append(out, stmt(ret, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)), stmt(ret, yes))
	}

	verdict := map[uint32][]unix.SockFilter{unix.SYS_CLONE: only(arg0, cloneFlags), unix.SYS_IOCTL: only(arg1, ioctls)}
	for _, c := range allowed {
		verdict[uint32(c.nr)] = []unix.SockFilter{stmt(ret, yes)}
	}
	for _, n := range deadly {
		verdict[uint32(n)] = []unix.SockFilter{stmt(ret, kill)}
	}
	type leaf struct {
		from uint32 // numbers from here up to the next leaf's
		code []unix.SockFilter
	}
	var leaves []leaf
	for n := range uint32(1024) {
		code := verdict[n]
		if code == nil {
			code = []unix.SockFilter{stmt(ret, no)}
		}
		if len(leaves) == 0 || !slices.Equal(leaves[len(leaves)-1].code, code) {
			leaves = append(leaves, leaf{n, code})
		}
	}
	leaves = append(leaves, leaf{1 << 30, []unix.SockFilter{stmt(ret, kill)}}) // x32 numbers
	var search func([]leaf) []unix.SockFilter
	search = func(l []leaf) []unix.SockFilter {
		if len(l) == 1 {
			return l[0].code
		}
		half := len(l) / 2
		low, high := search(l[:half]), search(l[half:])
		return slices.Concat([]unix.SockFilter{{Code: jge, Jt: uint8(len(low)), K: l[half].from}}, low, high)
	}
	head := []unix.SockFilter{stmt(load, architecture), {Code: jeq, Jt: 1, K: arch.audit}, stmt(ret, kill), stmt(load, nr)}
	return append(head, search(leaves)...)
}
