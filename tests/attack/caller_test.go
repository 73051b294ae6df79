package attack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

var (
	callerPolicy   = harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
	callerOutsider = harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID}
	callerIntruder = harness.User{UID: harness.OutsiderUID, GID: harness.PolicyGID} // in the group that may start the helper, and no caller
)

// A callerPlan is what an attacker does to itself before it becomes another program by execve: all that a program inherits. It is carried out by a copy
// of the test binary that runs as the attacker.
type callerPlan struct {
	Path   string
	Argv   []string
	Env    []string
	Dir    string
	Close  []int             // descriptors to close
	Fill   int               // descriptors to hold open, from 3 on
	Limits map[int][2]uint64 // soft and hard
	Queue  bool              // fill the user's queue of pending signals
	Burn   time.Duration     // processor time to use up, beside which the limits are set
	Timer  time.Duration     // ITIMER_REAL
	Block  bool              // block every signal
	Ignore bool              // ignore every signal
	UID    int               // root only: become this user, without touching the capabilities of the next program
	Fake   []callerFake      // root only: system calls that will report success and do nothing
	Notify bool              // root only: the calls of Fake are answered by who reads the listener on the socket 3
}

// A callerFake is a system call, or prctl with this first argument.
type callerFake struct{ Nr, Arg int }

const callerAnyArg = -1

// The parts that a copy of the test binary plays, by argv[0]. The setuid ones are the naive stand-ins.
var callerRoles = map[string]func(arg string){
	"caller-exec":     callerExec,
	"caller-terminal": callerTerminal,
	"caller-touch":    callerTouch,
	"caller-race":     callerRace,
	"caller-shared":   callerShared,
	"caller-child":    callerChild,
	"naive-create":    naiveCreate,
	"naive-path":      naivePath,
	"naive-fd":        naiveFD,
	"naive-secret":    naiveSecret,
	"naive-wait":      naiveWait,
	"naive-reply":     naiveReply,
	"naive-record":    naiveRecord,
	"naive-locked":    naiveLocked,
	"naive-capset":    naiveCapset,
}

func init() {
	if role := callerRoles[os.Args[0]]; role != nil {
		arg := ""
		if len(os.Args) > 1 {
			arg = os.Args[1]
		}
		role(arg)
		os.Exit(0)
	}
}

func callerDie(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(99)
	}
}

// callerCopy puts a copy of the test binary into the host, with this mode.
func callerCopy(t *testing.T, h *harness.Host, name string, mode uint32) string {
	t.Helper()
	path := h.Path(name)
	if _, err := os.Lstat(path); err == nil {
		return path
	}
	h.CopyFile("/proc/self/exe", path, mode)
	return path
}

func callerCheck(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// callerRole returns a command in which user plays a role.
func callerRole(t *testing.T, h *harness.Host, user harness.User, role, arg string) *exec.Cmd {
	t.Helper()
	cmd := h.Command(user, callerCopy(t, h, "caller", 0o755))
	cmd.Args = []string{role, arg}
	return cmd
}

// callerNaive returns a command in which user starts a setuid program that is careless.
func callerNaive(t *testing.T, h *harness.Host, user harness.User, role, arg string) *exec.Cmd {
	t.Helper()
	cmd := h.Command(user, callerCopy(t, h, "naive", 0o4755))
	cmd.Args = []string{role, arg}
	return cmd
}

// callerCommand returns a command that carries out a plan as the policy user and becomes the helper, or p.Path.
func callerCommand(t *testing.T, h *harness.Host, p callerPlan) *exec.Cmd {
	t.Helper()
	user := callerPolicy
	if p.UID != 0 {
		user = harness.User{}
	}
	if p.Path == "" {
		p.Path = h.HelperPath()
	}
	if p.Argv == nil {
		p.Argv = []string{p.Path}
	}
	plan, err := json.Marshal(p)
	callerCheck(t, err)
	return callerRole(t, h, user, "caller-exec", string(plan))
}

// callerExec carries out a plan.
func callerExec(arg string) {
	runtime.LockOSThread()
	var p callerPlan
	callerDie(json.Unmarshal([]byte(arg), &p), "plan")
	if p.Dir != "" {
		callerDie(os.Chdir(p.Dir), "chdir")
	}
	for fd := 3; fd < 3+p.Fill; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			callerDie(unix.Dup3(2, fd, 0), "dup3")
		}
	}
	if p.Fill > 0 {
		unix.CloseRange(3+uint(p.Fill), 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	}
	for start := time.Duration(0); start < p.Burn; {
		var ru unix.Rusage
		unix.Getrusage(unix.RUSAGE_SELF, &ru)
		start = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	path, err := syscall.BytePtrFromString(p.Path)
	callerDie(err, "path")
	argv, err := syscall.SlicePtrFromStrings(p.Argv)
	callerDie(err, "argv")
	env, err := syscall.SlicePtrFromStrings(p.Env)
	callerDie(err, "env")
	if p.Fake != nil {
		listener, err := callerFilter(p.Fake, p.Notify)
		callerDie(err, "filter")
		if p.Notify {
			callerDie(unix.Sendmsg(3, []byte{0}, unix.UnixRights(listener), nil, 0), "send the listener")
			unix.Close(3)
			unix.Close(listener)
		}
	}
	if p.UID != 0 {
		for _, c := range [][4]uintptr{{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETREGID, harness.PolicyGID, harness.PolicyGID},
			{unix.SYS_SETREUID, uintptr(p.UID), uintptr(p.UID)}} {
			if _, _, e := unix.RawSyscall(c[0], c[1], c[2], c[3]); e != 0 {
				callerDie(e, "become the caller")
			}
		}
	}
	if p.Queue {
		callerFillQueue()
	}
	if p.Ignore {
		for n := syscall.Signal(1); n <= 64; n++ {
			signal.Ignore(n)
		}
	}
	if p.Timer > 0 {
		tv := unix.NsecToTimeval(int64(p.Timer))
		_, err := unix.Setitimer(unix.ItimerReal, unix.Itimerval{Value: tv, Interval: tv})
		callerDie(err, "setitimer")
	}
	if p.Block {
		all := unix.Sigset_t{}
		for i := range all.Val {
			all.Val[i] = ^all.Val[i]
		}
		callerDie(unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil), "sigmask")
	}
	for _, fd := range p.Close {
		unix.Close(fd)
	}
	for resource, l := range p.Limits {
		callerDie(unix.Prlimit(0, resource, &unix.Rlimit{Cur: l[0], Max: l[1]}, nil), "prlimit")
	}
	// The empty argv, too, is the attacker's to choose.
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
	runtime.KeepAlive(env)
	callerDie(e, "execve "+p.Path)
}

// callerFillQueue leaves no room for another queued signal of this user: a child blocks a real-time signal and is sent it until the kernel refuses.
func callerFillQueue() {
	const rlimitSigpending = 11
	callerDie(unix.Prlimit(0, rlimitSigpending, &unix.Rlimit{Cur: 1000, Max: 1000}, nil), "prlimit")
	all := unix.Sigset_t{}
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	var old unix.Sigset_t
	unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old)
	sleeper := exec.Command("/bin/busybox", "sleep", "1000")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // it ends with us, unless we became somebody who may not kill it
	callerDie(sleeper.Start(), "sleeper")
	unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	info := make([]byte, 128) // siginfo_t: si_signo, si_errno, si_code = SI_QUEUE
	*(*int32)(unsafe.Pointer(&info[8])) = -1
	for {
		if _, _, e := unix.RawSyscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(sleeper.Process.Pid), 40, uintptr(unsafe.Pointer(&info[0]))); e != 0 {
			return
		}
	}
}

// callerFilter installs a seccomp filter, as root can without no_new_privs, so that these calls report success and do nothing, or are answered by a listener.
func callerFilter(fakes []callerFake, notify bool) (listener int, err error) {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	const load, ret, jeq = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_RET | unix.BPF_K, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	verdict, flags := uint32(unix.SECCOMP_RET_ERRNO), uintptr(0) // with errno 0
	if notify {
		verdict, flags = unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	var prog []unix.SockFilter
	for _, f := range fakes {
		prog = append(prog, stmt(load, 0))
		if f.Arg == callerAnyArg {
			prog = append(prog, unix.SockFilter{Code: jeq, Jf: 1, K: uint32(f.Nr)}, stmt(ret, verdict))
		} else {
			prog = append(prog, unix.SockFilter{Code: jeq, Jf: 3, K: uint32(f.Nr)}, stmt(load, 16), unix.SockFilter{Code: jeq, Jf: 1, K: uint32(f.Arg)}, stmt(ret, verdict))
		}
	}
	prog = append(prog, stmt(ret, unix.SECCOMP_RET_ALLOW))
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

// callerEncode is the request to make a local volume: what most attacks here ask for, since it needs no container and leaves a trace.
func callerCreate(name string) []byte {
	return boundary.Encode(&wire.Request{Op: wire.OpCreateVolume, Name: name})
}

// callerHas reports whether there is a local volume.
func callerHas(h *harness.Host, name string) bool {
	_, err := os.Lstat(filepath.Join(h.Volumes(), name))
	return err == nil
}

// callerReply decodes what the helper said, and fails the test if the exit status is not that of the reply's code.
func callerReply(t *testing.T, r harness.Result) *wire.Reply {
	t.Helper()
	reply, err := boundary.DecodeReply([]byte(r.Stdout))
	if err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	want := 0
	if reply.Err != nil {
		want = reply.Err.Code.Exit()
		if strings.ContainsAny(reply.Err.Message, "\n\x1b\x00") || reply.Err.Message == "" {
			t.Errorf("the message is not one clean line: %q", reply.Err.Message)
		}
	}
	r.Exits(t, want)
	return reply
}

// callerRefused fails the test unless the helper refused with this code.
func callerRefused(t *testing.T, r harness.Result, code wire.Code) *wire.Error {
	t.Helper()
	reply := callerReply(t, r)
	if reply.Err == nil || reply.Err.Code != code {
		t.Fatalf("want the code %s: %v", code, r)
	}
	return reply.Err
}

// callerSucceeded fails the test unless the helper did what it was asked.
func callerSucceeded(t *testing.T, r harness.Result) *wire.Reply {
	t.Helper()
	reply := callerReply(t, r)
	if reply.Err != nil {
		t.Fatalf("want success: %v", r)
	}
	return reply
}

// callerAudit returns the lines of the audit log, and fails the test if one is not a JSON object of printable ASCII.
func callerAudit(t *testing.T, h *harness.Host) (lines []map[string]any) {
	t.Helper()
	data, err := os.ReadFile(h.AuditLog())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	callerCheck(t, err)
	for line := range strings.Lines(string(data)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("the audit line is not JSON: %v: %q", err, line)
		}
		if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return r < 0x20 || r >= 0x7f }) {
			t.Fatalf("the audit line holds what is not printable ASCII: %q", line)
		}
		lines = append(lines, m)
	}
	return lines
}

// callerAudited fails the test unless the last audit line has these keys and values, in turn.
func callerAudited(t *testing.T, h *harness.Host, want ...string) {
	t.Helper()
	lines := callerAudit(t, h)
	if len(lines) == 0 {
		t.Fatal("nothing is in the audit log")
	}
	last := lines[len(lines)-1]
	for i := 0; i < len(want); i += 2 {
		if fmt.Sprint(last[want[i]]) != want[i+1] {
			t.Errorf("the audit line has %s=%v, want %s: %v", want[i], last[want[i]], want[i+1], last)
		}
	}
}

// callerLedger fails the test if the ledger holds a file that is no whole record: an empty or half-written one, or a temporary file. It returns the names.
func callerLedger(t *testing.T, h *harness.Host) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(h.Ledger())
	callerCheck(t, err)
	claims := 0
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, "at+"), strings.HasPrefix(name, "sh+"):
			claims++
			continue
		case name == ".lock" || strings.HasPrefix(name, "by+"):
			continue
		case !strings.HasSuffix(name, ".rec") || strings.HasPrefix(name, "."):
			t.Errorf("left in the ledger: %s", name)
			continue
		}
		data, err := os.ReadFile(filepath.Join(h.Ledger(), name))
		callerCheck(t, err)
		head, payload, _ := bytes.Cut(data, []byte("\n"))
		var size int
		if _, after, ok := strings.Cut(string(head), " size="); ok {
			fmt.Sscanf(after, "%d", &size)
		}
		if len(payload) != size || size == 0 {
			t.Errorf("the record %s is not whole: %q", name, data)
		}
		if !strings.HasPrefix(name, "refused+") {
			names = append(names, strings.TrimSuffix(name, ".rec"))
		}
	}
	if claims > 0 && len(names) == 0 {
		t.Errorf("left in the ledger: %d entries of what was made", claims)
	}
	return names
}

// callerAttach is the request to attach a volume of Volumes() to a container.
func callerAttach(h *harness.Host, c *harness.Container, volume, path string) *wire.Request {
	return &wire.Request{Op: wire.OpAttach, Owner: "default", Container: c.ID, PID: c.Pid(),
		Mounts: []wire.Mount{{Path: path, Source: filepath.Join(h.Volumes(), volume), Mode: wire.ModeRW}}}
}

func callerDetach(c *harness.Container) *wire.Request {
	return &wire.Request{Op: wire.OpDetach, Owner: "default", Container: c.ID}
}

// The naive stand-ins below are setuid programs as they are written by those who have not been attacked yet.

// naiveCreate makes a folder for whoever asks.
func naiveCreate(arg string) { callerDie(os.Mkdir(arg, 0o755), "mkdir") }

// naivePath runs a program that it finds by PATH, with its caller's environment, as uid 0.
func naivePath(arg string) {
	callerDie(syscall.Setresuid(0, 0, 0), "setresuid")
	out, err := exec.Command("date").Output()
	callerDie(err, "date")
	os.Stdout.Write(out)
}

// naiveFD opens its record while descriptor 1 is closed, as a program does whose runtime does not repair that, and answers on descriptor 1.
func naiveFD(arg string) {
	unix.Close(1)
	_, err := unix.Open(arg, unix.O_RDWR, 0)
	callerDie(err, "open")
	unix.Write(1, []byte("status=ok"))
}

// naiveSecret opens what only root may read, goes back to being its caller, for safety, and waits.
func naiveSecret(arg string) {
	fd, err := unix.Open(arg, unix.O_RDONLY, 0)
	callerDie(err, "open")
	ruid := unix.Getuid()
	callerDie(syscall.Setresuid(ruid, ruid, ruid), "setresuid")
	callerDie(unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
	fmt.Println("ready", fd)
	io.Copy(io.Discard, os.Stdin)
}

// naiveWait waits for its request.
func naiveWait(arg string) {
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

// naiveReply answers first and records then; the answer kills it if nobody reads it.
func naiveReply(arg string) {
	fmt.Println("status=ok")
	callerDie(os.WriteFile(arg, []byte("record"), 0o600), "record")
}

// naiveRecord writes its record in place.
func naiveRecord(arg string) {
	f, err := os.Create(arg)
	callerDie(err, "create")
	signal.Ignore(unix.SIGXFSZ)
	_, err = f.Write(bytes.Repeat([]byte("record "), 100))
	callerDie(err, "write")
}

// naiveLocked takes its lock and then reads its request.
func naiveLocked(arg string) {
	fd, err := unix.Open(arg, unix.O_RDWR|unix.O_CREAT, 0o600)
	callerDie(err, "open")
	callerDie(unix.Flock(fd, unix.LOCK_EX), "flock")
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

// callerRun is h.Do with something on stdin.
func callerRun(h *harness.Host, cmd *exec.Cmd, stdin []byte) harness.Result {
	cmd.Stdin = bytes.NewReader(stdin)
	return h.Do(cmd)
}

// T01: somebody who may not runs the helper.
func TestT01_OthersCannotUseTheHelper(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		// A setuid program that trusts its mode serves whoever can start it.
		made := h.Path("etc", "made")
		h.Do(callerNaive(t, h, callerOutsider, "naive-create", made)).OK(t)
		if _, err := os.Lstat(made); err != nil {
			t.Fatalf("the naive way is not open to this attack: %v", err)
		}

		// One who is not in the group cannot start it, by no name.
		var execs = map[string]func() error{
			"by name": func() error { return h.Command(callerOutsider, h.HelperPath()).Run() },
			"by a descriptor that root opened": func() error {
				f, err := os.Open(h.HelperPath())
				callerCheck(t, err)
				defer f.Close()
				cmd := h.Command(callerOutsider, "/proc/self/fd/3")
				cmd.ExtraFiles = []*os.File{f}
				return cmd.Run()
			},
		}
		for how, run := range execs {
			if err := run(); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("an outsider starts the helper %s: %v", how, err)
			}
		}
		// A copy is a program without privilege.
		data := h.ReadFile(h.HelperPath())
		h.WriteFile(h.Path("copy"), data, 0o755)
		r := callerRun(h, h.Command(callerOutsider, h.Path("copy")), callerCreate("v"))
		callerRefused(t, r, wire.Config)
		if lines := callerAudit(t, h); len(lines) != 0 {
			t.Errorf("audited without having run: %v", lines)
		}

		// One who is in it and is no caller is refused inside.
		supplementary := harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID, Groups: []uint32{harness.PolicyGID}}
		for name, user := range map[string]harness.User{"group": callerIntruder, "supplementary group": supplementary} {
			r := h.HelperRaw(user, callerCreate("v"))
			callerRefused(t, r, wire.Denied)
			callerAudited(t, h, "event", "refused", "code", "denied", "stage", "caller", "uid", strconv.Itoa(int(user.UID)), "gid", strconv.Itoa(int(user.GID)), "op", "create-volume", "volume", "v")
			if callerHas(h, "v") {
				t.Fatalf("%s: the volume was made", name)
			}
		}

		// Being at one end of a connection to root does not make one root (FACTS 13).
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0) // of root's: its peer credentials say uid 0
		callerCheck(t, err)
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		_, err = ours.Write(callerCreate("v"))
		callerCheck(t, err)
		callerCheck(t, unix.Shutdown(pair[0], unix.SHUT_WR))
		cred, err := unix.GetsockoptUcred(pair[1], unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || cred.Uid != 0 {
			t.Fatalf("the naive way, to ask for the peer, would not say root: %v %v", cred, err)
		}
		cmd := h.Command(callerIntruder, h.HelperPath())
		cmd.Stdin = theirs
		r = h.Do(cmd)
		ours.Close()
		theirs.Close()
		callerRefused(t, r, wire.Denied)
		callerAudited(t, h, "event", "refused", "uid", strconv.Itoa(harness.OutsiderUID))

		if callerHas(h, "v") {
			t.Fatal("the volume was made")
		}
		// Whom root names may.
		h.HelperTOML("[callers]\nuids = [0, " + strconv.Itoa(harness.OutsiderUID) + "]\n" + harness.DefaultHelperTOML)
		callerSucceeded(t, h.HelperRaw(callerIntruder, callerCreate("v")))
		callerAudited(t, h, "event", "done", "uid", strconv.Itoa(harness.OutsiderUID), "op", "create-volume")
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("w")))
		callerLedger(t, h)
	})
}

// T02: arguments and environment are the caller's.
func TestT02_ArgumentsAndEnvironmentAreRefused(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		bin := h.Mkdir(h.Path("attacker"), 0o755)
		h.WriteFile(filepath.Join(bin, "date"), "#!/bin/sh\nid -u\n", 0o755)
		cmd := callerNaive(t, h, callerPolicy, "naive-path", "")
		cmd.Env = []string{"PATH=" + bin + ":/bin:/usr/bin"}
		if out := h.Do(cmd).OK(t).Stdout; out != "0\n" {
			t.Fatalf("the naive way is not open to this attack: the attacker's program ran as %q", out)
		}

		// Whatever else is wrong comes later: the configuration is not even looked at.
		h.HelperTOML("[frobnicate]\n")
		long := strings.Repeat("x", 50_000)
		plans := map[string]callerPlan{
			"an argument":                   {Argv: []string{"x", "--help"}},
			"an empty argument":             {Argv: []string{"x", ""}},
			"many arguments":                {Argv: slices.Repeat([]string{"x"}, 2000)},
			"no argv[0]":                    {Argv: []string{}, Env: []string{"A=b"}},
			"argc 0, and envp read as argv": {Argv: []string{}, Env: []string{"--version"}},
		}
		for _, e := range []string{"A=b", "=", "", "x", "GODEBUG=inittrace=1,gctrace=1,allocfreetrace=1,schedtrace=1", "GODEBUG=execerrdot=0,netdns=cgo+2,asyncpreemptoff=1",
			"GOTRACEBACK=crash", "GOTRACEBACK=none", "GOTRACEBACK=", "GOMEMLIMIT=1", "GOGC=off", "GOMAXPROCS=1", "GOCOVERDIR=/tmp", "LD_PRELOAD=/tmp/x.so", "LD_LIBRARY_PATH=/tmp",
			"LD_AUDIT=/tmp/x.so", "LD_DEBUG=all", "GLIBC_TUNABLES=glibc.malloc.check=3", "TZ=/etc/shadow", "TZ=:/proc/self/mem", "ZONEINFO=/etc/shadow", "PATH=/tmp", "HOME=/tmp", "TMPDIR=/tmp",
			"RES_OPTIONS=debug", "LOCALDOMAIN=x", "LISTEN_FDS=1", "NOTIFY_SOCKET=/tmp/x", "A=" + long} {
			plans["environment "+e[:min(len(e), 40)]] = callerPlan{Env: []string{e}}
			plans["environment twice "+e[:min(len(e), 40)]] = callerPlan{Env: []string{e, e}}
			plans["argument and environment "+e[:min(len(e), 40)]] = callerPlan{Argv: []string{"x", "y"}, Env: []string{e}}
		}
		said := map[bool]string{} // by: whether there was an argument
		for name, p := range plans {
			r := callerRun(h, callerCommand(t, h, p), callerCreate("v"))
			callerRefused(t, r, wire.Usage)
			arguments := len(p.Argv) > 1
			if first, ok := said[arguments]; ok && first != r.Stdout {
				t.Errorf("%s: stdout differs: %q, %q", name, first, r.Stdout)
			}
			said[arguments] = r.Stdout
		}
		if _, err := os.Lstat(h.AuditLog()); err == nil {
			t.Error("the audit log was opened")
		}
		if entries, err := os.ReadDir(h.Ledger()); err != nil || len(entries) > 0 {
			t.Errorf("the ledger was touched: %v %v", entries, err)
		}

		// An empty argv is no reason, and neither is what argv[0] says.
		h.HelperTOML(harness.DefaultHelperTOML)
		for i, argv := range [][]string{{}, {""}, {"--help"}, {"bindgate-helper\n\x1b[2J"}, {long}} {
			name := "v" + strconv.Itoa(i)
			callerSucceeded(t, callerRun(h, callerCommand(t, h, callerPlan{Argv: argv}), callerCreate(name)))
			if !callerHas(h, name) {
				t.Errorf("argv %.40q: no volume", argv)
			}
		}
		// Root's environment is dropped: the same answer, byte by byte.
		request := boundary.Encode(&wire.Request{Op: wire.OpListVolumes})
		var answers []string
		for _, env := range [][]string{{}, {"TZ=/etc/shadow", "GODEBUG=gctrace=1", "GOMEMLIMIT=1", "INVOCATION_ID=1"}} {
			cmd := h.Command(harness.User{}, h.HelperPath())
			cmd.Env = env
			r := callerRun(h, cmd, request)
			callerSucceeded(t, r)
			answers = append(answers, r.Stdout)
		}
		if answers[0] != answers[1] {
			t.Errorf("the environment changes the answer: %q", answers)
		}
	})
}

// callerHeld starts cmd with a request that is not complete, and returns when the helper has begun to read it: it is past step 5 then, and waits. rest
// completes the request.
func callerHeld(t *testing.T, h *harness.Host, cmd *exec.Cmd, request []byte) (rest func()) {
	t.Helper()
	var p [2]int
	callerCheck(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	_, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 4096)
	callerCheck(t, err)
	if len(request) <= 4096 {
		t.Fatalf("a request of %d bytes is not held up by a pipe", len(request))
	}
	_, err = unix.Write(p[1], request[:4096])
	callerCheck(t, err)
	read, write := os.NewFile(uintptr(p[0]), "request"), os.NewFile(uintptr(p[1]), "request")
	cmd.Stdin = read
	callerCheck(t, cmd.Start())
	read.Close()
	for { // there is room when the helper has read
		poll := []unix.PollFd{{Fd: int32(p[1]), Events: unix.POLLOUT}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		}
		if poll[0].Revents&unix.POLLERR != 0 {
			t.Fatalf("it ended before it read its request: %v", cmd.Wait())
		}
		break
	}
	return func() {
		t.Helper()
		_, err := write.Write(request[4096:])
		callerCheck(t, errors.Join(err, write.Close()))
	}
}

// callerLong makes a request longer than a pipe, without changing what it says.
func callerLong(r *wire.Request) []byte {
	r.Directory = "/" + strings.Repeat("./", 2040)
	r.Sandbox = r.Directory
	return boundary.Encode(r)
}

// callerFDs returns what the descriptors of a process refer to, and their flags.
func callerFDs(t *testing.T, h *harness.Host, pid int) (links map[int]string, cloexec map[int]bool) {
	t.Helper()
	links, cloexec = map[int]string{}, map[int]bool{}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	callerCheck(t, err)
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		links[fd], err = os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		callerCheck(t, err)
		_, after, _ := strings.Cut(h.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd)), "flags:\t")
		flags, err := strconv.ParseUint(strings.Fields(after)[0], 8, 64)
		callerCheck(t, err)
		cloexec[fd] = flags&unix.O_CLOEXEC != 0
	}
	return links, cloexec
}

// T03: descriptors are the caller's.
func TestT03_DescriptorsOfTheCaller(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		record := h.Path("etc", "record")
		h.WriteFile(record, "what was recorded", 0o600)
		h.Do(callerNaive(t, h, callerPolicy, "naive-fd", record)).OK(t)
		if got := h.ReadFile(record); got != "status=okrecorded"[:9]+"recorded" && !strings.HasPrefix(got, "status=ok") {
			t.Fatalf("the naive way is not open to this attack: %q", got)
		}

		// Any of 0, 1 and 2 closed: what is opened lands elsewhere, and the answer in no file.
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		for mask := range 8 {
			var closed []int
			for fd := range 3 {
				if mask&(1<<fd) != 0 {
					closed = append(closed, fd)
				}
			}
			for _, request := range []*wire.Request{callerAttach(h, c, "data", at), callerDetach(c)} {
				r := callerRun(h, callerCommand(t, h, callerPlan{Close: closed}), boundary.Encode(request))
				switch {
				case mask&1 != 0: // nothing was asked
					r.Exits(t, wire.InvalidRequest.Exit())
					callerAudited(t, h, "event", "failed", "code", "invalid_request", "stage", "request")
				case mask&2 != 0: // nobody is told
					r.OK(t)
					callerAudited(t, h, "event", "done", "op", request.Op)
				default:
					callerSucceeded(t, r)
				}
				if mask&2 != 0 && r.Stdout != "" {
					t.Errorf("closed %v: %v", closed, r)
				}
				want := 0
				if request.Op == wire.OpAttach && mask&1 == 0 {
					want = 1
				}
				if m := c.Mountinfo(at); len(m) != want {
					t.Fatalf("closed %v, %s: %d mounts, want %d", closed, request.Op, len(m), want)
				}
				callerLedger(t, h)
			}
		}

		// While it waits for its request: 0 to 2 are the caller's or /dev/null, everything else goes with exec, ours is all ours.
		secret, err := os.OpenFile(record, os.O_RDWR, 0) // root's, that the caller was handed and may not open itself
		callerCheck(t, err)
		defer secret.Close()
		before := h.ReadFile(record)
		for _, fill := range []int{0, 100} {
			cmd := callerCommand(t, h, callerPlan{Close: []int{1, 2}, Fill: fill})
			cmd.ExtraFiles = []*os.File{secret, secret, secret}
			rest := callerHeld(t, h, cmd, callerLong(callerAttach(h, c, "data", at)))
			links, cloexec := callerFDs(t, h, cmd.Process.Pid)
			for fd := 1; fd <= 2; fd++ {
				if links[fd] != "/dev/null" {
					t.Errorf("descriptor %d is %s", fd, links[fd])
				}
			}
			for fd, link := range links {
				if fd > 2 && !cloexec[fd] {
					t.Errorf("descriptor %d (%s) would be passed on", fd, link)
				}
			}
			rest()
			callerCheck(t, cmd.Wait())
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(callerDetach(c))))
		}
		if offset, _ := secret.Seek(0, io.SeekCurrent); offset != 0 || h.ReadFile(record) != before {
			t.Errorf("the descriptor that the caller was handed was used: offset %d, %q", offset, h.ReadFile(record))
		}

		// A root directory and working directory shared with another process of the caller's: the kernel takes the setuid bit away.
		r := callerRun(h, callerRole(t, h, callerPolicy, "caller-shared", h.HelperPath()), callerCreate("shared"))
		callerRefused(t, r, wire.Config)
		if callerHas(h, "shared") {
			t.Error("made while the caller could move its root and working directory")
		}

		// So many descriptors that there is no room for ours, at every place where the room can end, also where something was made already.
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "c"), 0o755)
		request := callerAttach(h, c, "data", "made/for/it")
		request.Directory = sandbox
		outcomes := map[string]int{}
		for fill := 256 - 40; fill <= 256; fill++ {
			r := callerRun(h, callerCommand(t, h, callerPlan{Fill: fill - 3, Limits: map[int][2]uint64{unix.RLIMIT_NOFILE: {256, 256}}}), boundary.Encode(request))
			outcomes[callerOutcome(r)]++
			mounted := len(c.Mountinfo(sandbox)) > 0
			if mounted != (r.Exit == 0) {
				t.Errorf("%d descriptors: mounted: %v: %v", fill, mounted, r)
			}
			if records := callerLedger(t, h); len(records) > 0 != mounted {
				t.Errorf("%d descriptors: mounted: %v, records: %v: %v", fill, mounted, records, r)
			}
			if _, err := os.Lstat(filepath.Join(sandbox, "made")); (err == nil) != mounted {
				t.Errorf("%d descriptors: mounted: %v, what was made for it: %v: %v", fill, mounted, err, r)
			}
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpSweep, Owner: "default"})))
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(callerDetach(c))))
			os.RemoveAll(filepath.Join(sandbox, "made"))
		}
		t.Logf("outcomes: %v", outcomes)
		for o := range outcomes {
			if !slices.Contains([]string{"exit 0", "exit 71 system", "exit 71 unsupported_kernel", "exit 77 source_forbidden", "exit 77 target_forbidden", "exit 78 config", "exit 2"}, o) {
				t.Errorf("not a clear refusal: %s", o)
			}
		}
	})
}

// callerShared becomes the helper while its parent shares its root and working directory with it.
func callerShared(arg string) {
	cmd := exec.Command(arg)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = []string{}, os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_FS}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	callerDie(err, "run")
}
