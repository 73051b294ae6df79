package main

import (
	"errors"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

const (
	readDeadline = 10 * time.Second // for the whole request to arrive
	runDeadline  = 25 * time.Second // for everything; shorter than the policy process waits
	minFiles     = 64               // descriptors that a run needs beside two a mount
)

// startClean takes back what the caller chose (T02 to T05). Errors: usage, system.
func startClean() error {
	// Raw, since package signal knows no way to ignore all of them without a thread that listens. What the runtime itself needs stays: faults, SIGURG, whose default is to be ignored, and 33, with which it makes a system call on all threads.
	var ignore struct{ handler, flags, restorer, mask uintptr }
	ignore.handler = 1 // SIG_IGN
	for n := syscall.Signal(1); n <= 64; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS, unix.SIGABRT, unix.SIGURG, unix.SIGCHLD, 33:
		default:
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0)
		}
	}
	for _, timer := range []unix.ItimerWhich{unix.ItimerReal, unix.ItimerVirtual, unix.ItimerProf} { // they survive exec
		unix.Setitimer(timer, unix.Itimerval{})
	}
	if len(os.Args) > 1 {
		return wire.Errorf(wire.Usage, "start", "cannot take arguments: one request on descriptor 0 is all")
	}
	if os.Getuid() != 0 && hasEnvironment() {
		return wire.Errorf(wire.Usage, "start", "cannot take an environment: it must be empty")
	}
	os.Clearenv() // systemd always sets some
	unix.Umask(0o022)
	if err := unix.Chdir("/"); err != nil {
		return wire.Errorf(wire.System, "start", "cannot chdir to /: %v", err)
	}
	if err := unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return wire.Errorf(wire.UnsupportedKernel, "start", "cannot mark descriptors close-on-exec: the kernel lacks close_range: %v", err)
	}
	for _, x := range []struct {
		resource int
		name     string
		min      uint64
	}{{unix.RLIMIT_FSIZE, "FSIZE", unix.RLIM_INFINITY}, {unix.RLIMIT_NOFILE, "NOFILE", minFiles}} {
		var l unix.Rlimit
		if err := unix.Getrlimit(x.resource, &l); err != nil {
			return wire.Errorf(wire.System, "start", "cannot read the limit %s: %v", x.name, err)
		}
		if l.Cur = l.Max; l.Max < x.min { // raising a hard limit needs CAP_SYS_RESOURCE, which root may lack
			l.Cur, l.Max = x.min, x.min
		}
		if err := unix.Setrlimit(x.resource, &l); err != nil {
			return wire.Errorf(wire.System, "start", "cannot run with the resource limit %s that the caller set: %v", x.name, err).WithHint("start bindgate without it (ulimit)")
		}
	}
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	time.AfterFunc(runDeadline, func() { // like a crash at this instruction: what is recorded is finished or undone by the next sweep
		if finished.Load() {
			os.Exit(wire.Timeout.Exit())
		}
		err := wire.Errorf(wire.Timeout, "deadline", "cannot finish within %v: a filesystem does not answer", runDeadline).WithHint("bindgate recover finishes or undoes what was begun")
		os.Exit(finish(nil, err))
	})
	return nil
}

// hasEnvironment reports whether the caller passed an environment. The runtime of a setuid program adds GOTRACEBACK=none itself, or makes the caller's value that, so where this is all the kernel is asked.
func hasEnvironment() bool {
	if env := os.Environ(); !slices.Equal(env, []string{"GOTRACEBACK=none"}) {
		return len(env) > 0
	}
	fd, err := unix.Open("/proc/self/environ", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, make([]byte, 1))
	return n != 0 || err != nil
}

// A caller is who started us, or who is at the other end of our own socket.
type caller struct {
	uid, gid uint32
	pid      int
	socket   bool
}

// becomeRoot notes the caller and becomes uid 0 in all three ids, so that the caller, which had our real uid, can neither signal nor stop us. Peer credentials count only if root started us, since
// anybody may have connected to somebody's socket and pass it as descriptor 0 (FACTS 13). Errors: config if the setuid bit had no effect.
func becomeRoot() (caller, error) {
	c := caller{uid: uint32(os.Getuid()), gid: uint32(os.Getgid()), pid: os.Getppid()}
	if os.Geteuid() != 0 {
		e := wire.Errorf(wire.Config, "start", "cannot act: bindgate-helper runs without privilege, as uid %d", os.Geteuid())
		if nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); nnp == 1 {
			return c, e.WithHint("the caller has no_new_privs, so the setuid bit has no effect: set helper.transport = \"socket\" in policy.toml")
		}
		return c, e.WithHint("it must be owned by root with mode 4750, on a filesystem without nosuid: see bindgate doctor")
	}
	if c.uid == 0 {
		if peer, err := unix.GetsockoptUcred(0, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			c = caller{uid: peer.Uid, gid: peer.Gid, pid: int(peer.Pid), socket: true}
		}
	}
	// Groups belong to this thread alone here: it is the one that opens and makes files.
	_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
	_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0)
	if err := unix.Setresuid(0, 0, 0); e1 != 0 || e2 != 0 || err != nil {
		return c, wire.Errorf(wire.System, "start", "cannot become uid 0 in all ids: %v %v %v", e1, e2, err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return c, wire.Errorf(wire.System, "start", "cannot become undumpable: %v", err)
	}
	if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || d != 0 || os.Getuid() != 0 {
		return c, wire.Errorf(wire.Internal, "start", "cannot go on: the kernel says that dumpable is %d and the uid %d", d, os.Getuid())
	}
	return c, nil
}

// open opens the ledger and the audit log as descriptors: after a container was entered, paths are the container's.
func (s *session) open() error {
	if s.caller.socket {
		if err := s.host.RefuseCaller(s.caller.pid); err != nil {
			return err
		}
	}
	fd, _, err := conf.OpenTrusted(conf.LedgerDir(), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) { // the first run of a boot, without systemd-tmpfiles
		unix.Mkdir(conf.RunDir(), 0o755)
		unix.Mkdir(conf.LedgerDir(), 0o700)
		fd, _, err = conf.OpenTrusted(conf.LedgerDir(), unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := conf.RootOwned(fd, conf.LedgerDir()); err != nil {
		return err
	}
	// By name again: only root can make it mean another folder, as was just checked.
	store, err := state.Open(conf.LedgerDir(), s.host.BootID, false)
	if err != nil {
		return err
	}
	s.ledger = &state.Ledger{Store: store}
	s.audit, err = openAudit(s)
	return err
}

// readRequest reads descriptor 0 to its end. Errors: timeout, invalid_request.
func readRequest() (*wire.Request, error) {
	end := time.Now().Add(readDeadline)
	data := make([]byte, 0, 4096)
	for {
		p := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(time.Until(end).Milliseconds()))
		if err == unix.EINTR {
			continue
		} else if err != nil || n == 0 {
			return nil, wire.Errorf(wire.Timeout, "request", "cannot read the request: it did not arrive within %v", readDeadline)
		}
		data = slices.Grow(data, 4096)
		n, err = unix.Read(0, data[len(data):cap(data)])
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		} else if err != nil {
			return nil, wire.Errorf(wire.InvalidRequest, "request", "cannot read the request: %v", err)
		} else if n == 0 {
			break
		}
		if data = data[:len(data)+n]; len(data) > wire.MaxRequest {
			return nil, wire.Errorf(wire.InvalidRequest, "request", "cannot read the request: over %d bytes", wire.MaxRequest)
		}
	}
	return wire.DecodeRequest(data)
}

// authorise admits the policy user and the uids that helper.toml names. The setuid bit's group is not enough (T01). The error is denied.
func (s *session) authorise() error {
	if slices.Contains(s.config.Callers.UIDs, s.caller.uid) {
		return nil
	}
	if u, err := user.Lookup(conf.User()); err == nil && u.Uid == strconv.FormatUint(uint64(s.caller.uid), 10) {
		return nil
	}
	return wire.Errorf(wire.Denied, "caller", "cannot serve uid %d: only the user %s may call, and the uids in callers.uids of helper.toml", s.caller.uid, conf.User())
}

var finished atomic.Bool

// finish writes the reply and returns the exit status of its class. A caller that does not read is waited for until the deadline.
func finish(blocks []wire.Fields, err error) int {
	if finished.Swap(true) {
		select {} // the deadline was first, and ends the process
	}
	reply, status := &wire.Reply{Blocks: blocks}, 0
	if err != nil {
		reply.Err = wire.AsError(err)
		status = reply.Err.Code.Exit()
	}
	for data := reply.Encode(); len(data) > 0; {
		n, err := unix.Write(1, data) // not os.Stdout, which dies of a broken pipe
		if err == unix.EAGAIN {
			unix.Poll([]unix.PollFd{{Fd: 1, Events: unix.POLLOUT}}, -1)
		} else if err != nil && err != unix.EINTR {
			break // the work is done and recorded, whether the caller listens or not
		}
		data = data[max(n, 0):]
	}
	return status
}
