//go:build crash

package crash

import (
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// The two programs, by the names of their files.
const (
	policy = "bindgate"
	helper = "bindgate-helper"
)

// A call is a system call that a traced program is about to make.
type call struct {
	by       string // policy or helper
	n        int    // which of that program's calls it is, from 1: those of all helpers that one command starts are counted together
	nr       int
	args     [6]uint64
	pid, tid int
	child    bool // it is made by a child that has not become another program
}

// An act is what becomes of a call. The zero act lets it be made.
type act struct {
	last bool          // judge need not be asked again
	kill string        // the program to kill with SIGKILL before the call is made
	fail syscall.Errno // the call is not made, and answers this; a close is made all the same, as the kernel does
}

// An outcome is how a traced command ended.
type outcome struct {
	harness.Result
	calls map[string]int // how many each program made
	hung  bool           // it was killed after deadline
}

// A command is what is traced: the installed bindgate.
type command struct {
	user  harness.User
	stdin string
	args  []string
	// watch is the program whose calls judge is asked about, once its main.main was entered and but for those of the Go runtime.
	watch string
	judge func(call) act
	// orphaned is called when the policy process was killed, with the helper that it had started, if any, stopped at its call.
	orphaned func()
}

// deadline is when a traced command is given up: the helper's own deadline is 25 s, and each driver's here is longer than it ever takes.
const deadline = time.Minute

// A tracer runs commands under ptrace(2). All its ptrace and wait calls are made by one thread, which has no children but what it traces, so that it waits
// for nobody else's (__WNOTHREAD).
type tracer struct {
	t    testing.TB
	h    *harness.Host
	main map[string]uint64 // address of main.main
	work chan func()
}

func newTracer(t testing.TB, h *harness.Host) *tracer {
	tr := &tracer{t: t, h: h, main: map[string]uint64{}, work: make(chan func())}
	for name, path := range map[string]string{policy: h.Bindgate(), helper: h.HelperPath()} {
		addr, err := mainOf(path)
		if err != nil {
			t.Fatalf("cannot find main.main of %s: %v", path, err)
		}
		tr.main[name] = addr
	}
	go tr.serve()
	t.Cleanup(func() { close(tr.work) })
	return tr
}

// serve does the tracer's work on a thread that has no children from before: one that has is kept, so that the next try gets another.
func (tr *tracer) serve() {
	runtime.LockOSThread()
	if _, err := unix.Wait4(-1, nil, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil); err != unix.ECHILD {
		next := make(chan struct{})
		go func() {
			defer close(next)
			tr.serve()
		}()
		<-next
		return
	}
	for f := range tr.work {
		f()
	}
}

// mainOf finds main.main in the line table, which the runtime needs and a stripped program therefore has.
func mainOf(path string) (uint64, error) {
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	text, pcln := f.Section(".text"), f.Section(".gopclntab")
	if text == nil || pcln == nil {
		return 0, errors.New("not a Go program")
	}
	data, err := pcln.Data()
	if err != nil {
		return 0, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return 0, err
	}
	fn := table.LookupFunc("main.main")
	if fn == nil {
		return 0, errors.New("no main.main")
	}
	return fn.Entry, nil
}

// run runs a command to its end, and that of the helpers that it starts.
func (tr *tracer) run(c command) outcome {
	tr.t.Helper()
	var o outcome
	var err error
	done := make(chan struct{})
	tr.work <- func() {
		defer close(done)
		o, err = tr.trace(c)
	}
	<-done
	if err != nil {
		tr.t.Fatalf("cannot trace %v: %v", c.args, err)
	}
	return o
}

// A process is one that is traced: a program, or a child of one that has not become another.
type process struct {
	pid     int
	program string
	parent  *process // of a child that has not become another program
	started bool     // main.main was entered
	planted []byte   // what was where the breakpoint is
}

// leader is the process that is the program: a child that has not become another one is a part of its parent.
func (p *process) leader() *process {
	for p.parent != nil {
		p = p.parent
	}
	return p
}

// A session is one run of the tracer.
type session struct {
	*tracer
	command
	outcome
	root    int
	threads map[int]*process // by tid
	fail    map[int]syscall.Errno
	killed  map[string]bool
	done    bool  // judge has said what it had to say: the rest is not watched
	held    []int // threads that wait until orphaned was called
	mu      sync.Mutex
	pids    map[int]bool // of those alive, for the deadline
}

func (tr *tracer) trace(c command) (outcome, error) {
	var files [3]*os.File
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			return outcome{}, err
		}
		files[i] = os.NewFile(uintptr(fd), name)
		defer files[i].Close()
		unix.Fchmod(fd, 0o666)
	}
	if _, err := files[0].WriteString(c.stdin); err != nil {
		return outcome{}, err
	}
	files[0].Seek(0, io.SeekStart)
	cmd := tr.h.Command(c.user, tr.h.Bindgate(), c.args...)
	attr := &syscall.ProcAttr{Dir: cmd.Dir, Env: cmd.Env, Sys: cmd.SysProcAttr, Files: []uintptr{files[0].Fd(), files[1].Fd(), files[2].Fd()}}
	attr.Sys.Ptrace = true // stopped by its exec
	pid, err := syscall.ForkExec(cmd.Path, cmd.Args, attr)
	if err != nil {
		return outcome{}, err
	}
	s := &session{tracer: tr, command: c, root: pid, threads: map[int]*process{}, fail: map[int]syscall.Errno{}, killed: map[string]bool{}, pids: map[int]bool{pid: true}}
	s.outcome.calls = map[string]int{}
	if err := s.seize(); err != nil {
		unix.Kill(pid, unix.SIGKILL)
		return outcome{}, fmt.Errorf("seize: %w", err)
	}
	timer := time.AfterFunc(deadline, s.giveUp)
	defer timer.Stop()
	if err := s.loop(); err != nil {
		return outcome{}, err
	}
	s.Command = strings.Join(cmd.Args, " ")
	for i, to := range []*string{&s.Stdout, &s.Stderr} {
		files[i+1].Seek(0, io.SeekStart)
		data, err := io.ReadAll(files[i+1])
		if err != nil {
			return outcome{}, err
		}
		*to = string(data)
	}
	return s.outcome, nil
}

// seize becomes the tracer by PTRACE_SEIZE, as root. Under the PTRACE_TRACEME with which the child stopped itself, as the policy user, a setuid program that
// it starts would run without its privilege (ptrace(2), FACTS 17).
func (s *session) seize() error {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(s.root, &ws, unix.WALL, nil); err != nil {
		return err
	}
	if !ws.Stopped() {
		return fmt.Errorf("it ended (%#x)", ws)
	}
	if err := ptrace(unix.PTRACE_DETACH, s.root, 0, uintptr(unix.SIGSTOP)); err != nil {
		return err
	}
	if _, err := unix.Wait4(s.root, &ws, unix.WUNTRACED, nil); err != nil {
		return err
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := ptrace(unix.PTRACE_SEIZE, s.root, 0, options); err != nil {
		return err
	}
	p := &process{pid: s.root, program: policy}
	s.threads[s.root] = p
	if _, err := unix.Wait4(s.root, &ws, unix.WALL, nil); err != nil { // the stop again, as the tracer sees it
		return err
	}
	if err := s.plant(p); err != nil {
		return err
	}
	if err := unix.Kill(s.root, unix.SIGCONT); err != nil {
		return err
	}
	return ptrace(unix.PTRACE_SYSCALL, s.root, 0, 0)
}

// giveUp kills all that is traced.
func (s *session) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hung = true
	for pid := range s.pids {
		unix.Kill(pid, unix.SIGKILL)
	}
}

// loop serves stops until nothing is traced any more.
func (s *session) loop() error {
	for {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			return nil
		case err != nil:
			return err
		case ws.Exited() || ws.Signaled():
			s.ended(tid, ws)
			continue
		}
		p, err := s.process(tid)
		if err != nil {
			continue // killed meanwhile: its end comes
		}
		if err := s.stopped(tid, p, ws); err != nil && err != unix.ESRCH {
			return fmt.Errorf("%s, stopped with %#x: %w", p.program, ws, err)
		}
	}
}

func (s *session) ended(tid int, ws unix.WaitStatus) {
	p := s.threads[tid]
	delete(s.threads, tid)
	if p == nil || tid != p.pid {
		return
	}
	s.mu.Lock()
	delete(s.pids, tid)
	s.mu.Unlock()
	if tid == s.root {
		s.Exit = ws.ExitStatus()
		if ws.Signaled() {
			s.Exit = 128 + int(ws.Signal())
		}
		if s.killed[policy] && s.orphaned != nil {
			s.orphaned()
		}
		for _, tid := range s.held {
			s.resume(tid, 0)
		}
		s.held = nil
	}
}

// process returns whose thread tid is, also when it is seen for the first time.
func (s *session) process(tid int) (*process, error) {
	if p := s.threads[tid]; p != nil {
		return p, nil
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return nil, err
	}
	field := func(key string) int {
		_, after, _ := strings.Cut(string(status), "\n"+key+":\t")
		n, _ := strconv.Atoi(strings.SplitN(after, "\n", 2)[0])
		return n
	}
	pid := field("Tgid")
	p := s.threads[pid]
	if p == nil {
		p = &process{pid: pid}
		if p.parent = s.threads[field("PPid")]; p.parent != nil { // else it was killed meanwhile
			p.program = p.parent.program
		}
		s.threads[pid] = p
		s.mu.Lock()
		s.pids[pid] = true
		s.mu.Unlock()
	}
	s.threads[tid] = p
	return p, nil
}

// stopped serves one stop of a thread.
func (s *session) stopped(tid int, p *process, ws unix.WaitStatus) error {
	event := int(ws) >> 16
	switch {
	case event == unix.PTRACE_EVENT_EXEC:
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", tid))
		if err != nil {
			return s.resume(tid, 0)
		}
		p.program, p.parent, p.started = filepath.Base(exe), nil, false
		if s.main[p.program] == 0 {
			return fmt.Errorf("it started %s", exe)
		}
		if err := s.plant(p); err != nil {
			return err
		}
	case event != 0: // a child, or its first stop
	case ws.StopSignal() == unix.SIGTRAP|0x80:
		hold, err := s.call(tid, p)
		if err != nil || hold {
			return err
		}
	case ws.StopSignal() == unix.SIGTRAP && p.planted != nil:
		if err := s.enter(tid, p); err != nil {
			return err
		}
	default:
		return s.resume(tid, uintptr(ws.StopSignal()))
	}
	return s.resume(tid, 0)
}

func (s *session) resume(tid int, signal uintptr) error {
	how := uintptr(unix.PTRACE_CONT)
	if p := s.threads[tid]; p != nil && s.watched(p.leader()) || s.fail[tid] != 0 {
		how = unix.PTRACE_SYSCALL
	}
	return ptrace(how, tid, 0, signal)
}

// watched reports whether a program's calls are looked at: each stop costs more than most calls.
func (s *session) watched(p *process) bool {
	return p.program == s.watch && p.started && !s.killed[p.program] && !s.done
}

// call serves the entry to a system call, and its exit. hold: the thread is not to go on yet.
func (s *session) call(tid int, p *process) (hold bool, err error) {
	var info syscallInfo
	if err := info.get(tid); err != nil {
		return false, err
	}
	switch info.op {
	case unix.PTRACE_SYSCALL_INFO_EXIT:
		errno, ok := s.fail[tid]
		if !ok {
			return false, nil
		}
		delete(s.fail, tid)
		info.data[0], info.data[1] = uint64(-int64(errno)), 1
		return false, info.set(tid)
	case unix.PTRACE_SYSCALL_INFO_ENTRY:
	default:
		return false, nil
	}
	leader := p.leader()
	c := call{by: leader.program, nr: int(info.data[0]), args: [6]uint64(info.data[1:7]), pid: leader.pid, tid: tid, child: p != leader}
	if !s.watched(leader) || ofRuntime(c) {
		return false, nil
	}
	s.calls[c.by]++
	c.n = s.calls[c.by]
	a := s.judge(c)
	s.done = a.last
	if a.fail != 0 {
		s.fail[tid] = a.fail
		if c.nr != unix.SYS_CLOSE {
			info.data[0] = unix.SYS_GETPID // harmless, and in the helper's filter
			return false, info.set(tid)
		}
	}
	if a.kill != "" {
		return s.kill(a.kill, tid, leader)
	}
	return false, nil
}

func (s *session) kill(program string, tid int, at *process) (hold bool, err error) {
	victim := at
	if program == policy {
		victim = s.threads[s.root]
	}
	if victim == nil { // it has ended by itself
		return false, nil
	}
	s.killed[program] = true
	if err := unix.Kill(victim.pid, unix.SIGKILL); err != nil {
		return false, err
	}
	if at != victim { // the helper, which waits to see its caller gone
		s.held = append(s.held, tid)
	}
	return at != victim || s.threads[tid] == victim, nil
}

// The breakpoint instruction, and main.main, where it is planted when a program has begun: what comes before is the start of the Go runtime and of packages.
var trap = map[string][]byte{"amd64": {0xcc}, "arm64": {0x00, 0x00, 0x20, 0xd4}}[runtime.GOARCH]

func (s *session) plant(p *process) error {
	if p.program != s.watch {
		return nil
	}
	at := uintptr(s.main[p.program])
	p.planted = make([]byte, len(trap))
	if _, err := syscall.PtracePeekText(p.pid, at, p.planted); err != nil {
		return fmt.Errorf("peek: %w", err)
	}
	_, err := syscall.PtracePokeText(p.pid, at, trap)
	return err
}

func (s *session) enter(tid int, p *process) error {
	at := s.main[p.program]
	if _, err := syscall.PtracePokeText(tid, uintptr(at), p.planted); err != nil {
		return err
	}
	p.planted, p.started = nil, true
	var r syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	r.SetPC(at)
	if err := syscall.PtraceSetRegs(tid, &r); err != nil {
		return err
	}
	for other, of := range s.threads { // until now they were not watched
		if of == p && other != tid {
			if err := ptrace(unix.PTRACE_INTERRUPT, other, 0, 0); err != nil && err != unix.ESRCH {
				return err
			}
		}
	}
	return nil
}

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h.
type syscallInfo struct {
	op, reserved uint8
	flags        uint16
	arch         uint32
	ip, sp       uint64
	data         [8]uint64 // entry: number, arguments; exit: value, is it an error
}

func (i *syscallInfo) get(tid int) error {
	return ptrace(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(*i), uintptr(unsafe.Pointer(i)))
}

// set changes it (Linux 6.16).
func (i *syscallInfo) set(tid int) error {
	return ptrace(unix.PTRACE_SET_SYSCALL_INFO, tid, unsafe.Sizeof(*i), uintptr(unsafe.Pointer(i)))
}

func ptrace(request uintptr, tid int, addr, data uintptr) error {
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PTRACE, request, uintptr(tid), addr, data, 0, 0); e != 0 {
		return e
	}
	return nil
}
