package main

import (
	"cmp"
	"errors"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/bindgate/bindgate/conf"
	_ "github.com/bindgate/bindgate/helper/inherited"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// How long the request may take to arrive, a sweep may wait for locks, and all may take: less than the policy process waits. The last is the kernel's own deadline, for what the others cannot interrupt.
const readDeadline, lockDeadline, runDeadline, killDeadline = 10 * time.Second, 10 * time.Second, 25 * time.Second, 28 * time.Second

// startClean takes back what the caller chose (T02 to T05). Dies of usage, system.
func startClean() {
	// Raw, since package signal ignores all of them only with a thread that listens. What the runtime needs stays: faults, SIGURG, which is ignored by default, and 33, for a system call on all threads.
	keep := []syscall.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS, unix.SIGABRT, unix.SIGURG, 33}
	ignore := struct{ handler, flags, restorer, mask uintptr }{handler: 1} // SIG_IGN
	for n := syscall.Signal(1); n <= 64; n++ {
		if !slices.Contains(keep, n) {
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0)
		}
	}
	ignore.handler = 0 // SIG_DFL: the timer below ends us
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGALRM), uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0)
	for resource, min := range map[int]uint64{unix.RLIMIT_FSIZE: unix.RLIM_INFINITY, unix.RLIMIT_CPU: unix.RLIM_INFINITY, unix.RLIMIT_DATA: unix.RLIM_INFINITY, unix.RLIMIT_AS: unix.RLIM_INFINITY,
		unix.RLIMIT_RTTIME: unix.RLIM_INFINITY, unix.RLIMIT_NOFILE: 256, unix.RLIMIT_SIGPENDING: 64, unix.RLIMIT_CORE: 0} { // those of time and memory would end us where the caller likes
		var l unix.Rlimit
		err := unix.Getrlimit(resource, &l)
		if l.Cur = l.Max; l.Max < min || min == 0 { // raising a hard limit needs CAP_SYS_RESOURCE, which root may lack
			l.Cur, l.Max = min, min
		}
		namespace.Check(cmp.Or(err, unix.Setrlimit(resource, &l)), wire.System, "start", "cannot run with the resource limit %d (see getrlimit(2)) that the caller set", resource)
	}
	// A system call on all threads is made by signals, and waited for: the caller's queue must have room (it may be full below any limit), and the kernel ends us whatever happens.
	const queueProbe = 34 // a signal that nobody else uses
	mask := uint64(1 << (queueProbe - 1))
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0)
	namespace.Check(unix.Tgkill(os.Getpid(), unix.Gettid(), queueProbe), wire.System, "start", "cannot queue a signal: the caller's limit of pending signals is used up")
	mask = 0
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0)
	unix.Setitimer(unix.ItimerReal, unix.Itimerval{Value: unix.NsecToTimeval(int64(killDeadline))}) // instead of the caller's, which survives exec; the signals of the others are ignored
	namespace.DieIf(len(os.Args) > 1, wire.Usage, "start", "cannot take arguments: one request on descriptor 0 is all")
	passed, err := os.ReadFile("/proc/self/environ")                                                                                          // the kernel's word: the runtime of a setuid program adds to the environment that it tells
	namespace.DieIf(os.Getuid() != 0 && (err != nil || len(passed) > 0), wire.Usage, "start", "cannot take an environment: it must be empty") // root's, such as systemd's, is gone already
	unix.Umask(0o022)
	namespace.Check(unix.Chdir("/"), wire.System, "start", "cannot chdir to /")
	for _, e := range namespace.Must(os.ReadDir("/proc/self/fd"))(wire.System, "start", "cannot list the descriptors that the caller left open") { // what the runtime opened is close-on-exec; what the caller left us cannot be
		fd, _ := strconv.Atoi(e.Name())
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); fd > 2 && err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}

// startDeadline ends the run when it takes too long. What came before has a deadline of its own or asks no filesystem of the caller's; a timer has a thread, which each call on all threads would stop.
func (s *session) startDeadline() {
	time.AfterFunc(time.Until(s.started.Add(runDeadline)), func() { // like a crash at this instruction: what is recorded is finished or undone by the next sweep
		runtime.LockOSThread()
		privops.Relinquish() // this is another thread than the one that works
		if s.finished.Load() {
			os.Exit(wire.Timeout.Exit())
		}
		os.Exit(s.finish(nil, wire.Errorf(wire.Timeout, "deadline", "cannot finish within %v: a filesystem does not answer", runDeadline).WithHint("bindgate recover finishes or undoes what was begun")))
	})
}

// becomeRoot notes the caller, and becomes uid 0 in all ids, so that it cannot signal or stop us. Peer credentials count only if root started us on our own socket: others can be passed as descriptor 0 (FACTS 13).
func (s *session) becomeRoot() {
	s.callerUID, s.callerGID, s.callerPID, s.peer = uint32(os.Getuid()), uint32(os.Getgid()), os.Getppid(), -1
	nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	hint := map[bool]namespace.Hint{true: "the caller has no_new_privs, so the setuid bit has no effect: set helper.transport = \"socket\" in policy.toml", false: "it must be root's with mode 4750, on a filesystem without nosuid"}
	hint[nnp == 1].DieIf(os.Geteuid() != 0, wire.Config, "start", "cannot act: bindgate-helper runs without privilege, as uid %d", os.Geteuid())
	name, _ := unix.Getsockname(0)
	if own, ok := name.(*unix.SockaddrUnix); s.callerUID == 0 && ok && own.Name == conf.HelperSocket() {
		peer := namespace.Must(unix.GetsockoptUcred(0, unix.SOL_SOCKET, unix.SO_PEERCRED))(wire.System, "start", "cannot tell who is at the other end of the socket")
		s.peer = namespace.Must(unix.GetsockoptInt(0, unix.SOL_SOCKET, unix.SO_PEERPIDFD))(wire.NamespaceGone, "start", "cannot pin who is at the other end of the socket")
		s.callerUID, s.callerGID, s.callerPID = peer.Uid, peer.Gid, int(peer.Pid)
	}
	_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0) // by this thread alone: it is the one that opens and makes files
	_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0)
	err := unix.Setresuid(0, 0, 0)
	namespace.DieIf(e1 != 0 || e2 != 0 || err != nil, wire.System, "start", "cannot become uid 0 in all ids: %v, %v, %v", e1, e2, err)
	namespace.Check(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0), wire.System, "start", "cannot become undumpable")
	d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	namespace.DieIf(err != nil || d != 0, wire.Internal, "start", "cannot go on: the kernel says that dumpable is %d", d)
}

// open opens the ledger and the audit log as descriptors: after a container was entered, paths are the container's.
func (s *session) open() {
	fd, _, err := conf.OpenTrusted(conf.LedgerDir(), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) { // the first run of a boot, without systemd-tmpfiles
		unix.Mkdir(conf.RunDir(), 0o755)
		unix.Mkdir(conf.LedgerDir(), 0o700)
		fd, _, err = conf.OpenTrusted(conf.LedgerDir(), unix.O_PATH|unix.O_DIRECTORY)
	}
	namespace.Pass(err)
	must(conf.RootOwned(fd, conf.LedgerDir()))
	own, e1 := os.Stat(conf.HelperPath()) // another name of this program would stay setuid when this one is replaced (T29)
	exe, e2 := os.Stat("/proc/self/exe")
	namespace.DieIf(e1 != nil || e2 != nil || !os.SameFile(own, exe) || own.Sys().(*syscall.Stat_t).Nlink != 1, wire.Config, "start", "cannot run under another name than %s, or with more than one", conf.HelperPath())
	s.ledger = &state.Ledger{Store: must(state.Open(conf.LedgerDir(), s.host.BootID, false))} // by name again: as was just checked, only root can make it mean another folder
	s.openAudit()
}

// readRequest reads descriptor 0 to its end. Dies of timeout, invalid_request.
func readRequest() *wire.Request {
	data, buf, end := []byte(nil), make([]byte, 1<<13), time.Now().Add(readDeadline)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: 0, Events: unix.POLLIN}}, max(0, int(time.Until(end).Milliseconds())))
		namespace.DieIf(err == nil && n == 0, wire.Timeout, "request", "cannot read the request: it did not arrive within %v", readDeadline)
		if err == nil {
			n, err = unix.Read(0, buf)
		}
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		namespace.Check(err, wire.InvalidRequest, "request", "cannot read the request")
		if data = append(data, buf[:n]...); n == 0 || len(data) > wire.MaxRequest {
			return must(wire.DecodeRequest(data))
		}
	}
}

// held goes on with a lock that was waited for. A caller that is gone by then has nothing more done for it: the next one may be at work on the same already, and does not know of us. Dies of timeout.
func (s *session) held(l *state.Lock, err error) *state.Lock {
	namespace.Pass(err)
	n, _ := unix.Poll([]unix.PollFd{{Fd: 1}}, 0) // nothing is asked for but POLLERR and POLLHUP: nobody reads the reply
	namespace.DieIf(n > 0, wire.Timeout, "caller", "cannot go on: the caller has ended")
	return l
}

// authorise admits the policy user and the uids that helper.toml names, each to its own containers. The setuid bit's group is not enough (T01). Dies of denied.
func (s *session) authorise() {
	uid, ok := idOf("/etc/passwd", conf.User())
	namespace.DieIf(!slices.Contains(s.config.Callers.UIDs, s.callerUID) && (!ok || uid != s.callerUID), wire.Denied, "caller", "cannot serve uid %d: only the user %s may call, and the uids in callers.uids of helper.toml", s.callerUID, conf.User())
	s.whose = state.Whose{UID: s.callerUID, Owner: s.request.Owner, Container: s.request.Container}
}

// idOf returns the id of a name in /etc/passwd or /etc/group: the third field in both (passwd(5), group(5)).
func idOf(file, name string) (uint32, bool) {
	data, _ := os.ReadFile(file)
	for line := range strings.Lines(string(data)) {
		if f := strings.Split(line, ":"); f[0] == name && len(f) > 3 {
			id, err := strconv.ParseUint(f[2], 10, 32)
			return uint32(id), err == nil
		}
	}
	return 0, false
}

// finish writes down the outcome, writes the reply and returns the exit status of its class. A caller that does not read is waited for until the deadline; that one is gone changes nothing.
func (s *session) finish(blocks []wire.Fields, err error) int {
	if s.finished.Swap(true) {
		select {} // the deadline was first, and ends the process
	}
	s.outcome(s.request, blocks, err)
	reply, status := &wire.Reply{Blocks: blocks}, 0
	if err != nil {
		reply.Err, status = wire.AsError(err), wire.AsError(err).Code.Exit()
	}
	for data := reply.Encode(); len(data) > 0; {
		n, err := unix.Write(1, data) // not os.Stdout, which dies of a broken pipe
		if err == unix.EAGAIN {
			unix.Poll([]unix.PollFd{{Fd: 1, Events: unix.POLLOUT}}, -1)
		} else if err != nil && err != unix.EINTR {
			break
		}
		data = data[max(n, 0):]
	}
	unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil) // the child that locked attributes, if it has ended by now; else init does, once we have
	return status
}
