package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// The container's side of the attacks: containers with the program tests/attack/box in them, requests to the installed helper as the policy user, and
// what tells whether something happened on the host.

var (
	boxPolicy   = harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
	boxOutsider = harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID, Groups: []uint32{harness.PolicyGID}}
)

func boxBinary() string {
	checkout, _ := harness.Checkout()
	return filepath.Join(checkout, "bin", "test", "attackbox")
}

// boxBuild builds the program, static since containers have only busybox, as the owner of the checkout.
var boxBuild = sync.OnceValue(func() error {
	checkout, err := harness.Checkout()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(checkout, &st); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", boxBinary(), "./tests/attack/box")
	cmd.Dir = checkout
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if int(st.Uid) != os.Getuid() {
		cmd.Env = append(cmd.Env, "TMPDIR=/tmp", "HOME="+filepath.Dir(checkout))
		for _, dir := range []string{filepath.Join(checkout, "bin"), filepath.Dir(boxBinary())} {
			if os.Mkdir(dir, 0o755) == nil {
				os.Chown(dir, int(st.Uid), int(st.Gid))
			}
		}
		cmd.Env = append(cmd.Env, "GOCACHE="+filepath.Join(checkout, "bin", "test", "cache"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the box: %w\n%s", err, out)
	}
	return nil
})

// A boxHost is a host with the program in it, and a source to attach: a directory with a file.
type boxHost struct {
	*harness.Host
	t      *testing.T
	Box    string // host path of the program
	Source string
	n      int
	racer  *boxProc // what races against the helper
}

func boxRun(t *testing.T, f func(t *testing.T, h *boxHost), options ...harness.Option) {
	t.Helper()
	if _, err := os.Stat("/run/bindgate-test"); err != nil { // outside of the host
		if err := boxBuild(); err != nil {
			t.Fatal(err)
		}
	}
	harness.Run(t, func(h *harness.Host) {
		b := &boxHost{Host: h, t: t, Box: h.Path("box")}
		b.copyBox(b.Box)
		b.Source = h.Mkdir(filepath.Join(h.Sources(), "volume"), 0o755)
		h.WriteFile(filepath.Join(b.Source, "file"), "of the volume", 0o644)
		f(t, b)
	}, options...)
}

func (h *boxHost) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *boxHost) copyBox(to string) {
	h.t.Helper()
	h.CopyFile(boxBinary(), to, 0o755)
}

// A boxProc is the program, running somewhere.
type boxProc struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	pid int // as its pid namespace counts
}

func (h *boxHost) start(cmd *exec.Cmd) *boxProc {
	h.t.Helper()
	in, err := cmd.StdinPipe()
	h.must(err)
	out, err := cmd.StdoutPipe()
	h.must(err)
	cmd.Stderr = os.Stderr
	p := &boxProc{t: h.t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	h.must(cmd.Start())
	h.t.Cleanup(p.end)
	line, _ := p.out.ReadString('\n')
	if _, err := fmt.Sscanf(line, "ready %d", &p.pid); err != nil {
		h.t.Fatalf("the box does not start: %q", line)
	}
	return p
}

// end ends the program by the end of its input, and waits for it.
func (p *boxProc) end() {
	p.in.Close()
	p.cmd.Wait()
}

// kill kills it; what it forked lives on until end.
func (p *boxProc) kill() {
	p.cmd.Process.Kill()
	p.cmd.Process.Wait()
}

func (p *boxProc) ask(command string) string {
	p.t.Helper()
	fmt.Fprintln(p.in, command)
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("box: %s: %v", command, err)
	}
	return strings.TrimSpace(line)
}

// do sends a command that must work, and returns its answer.
func (p *boxProc) do(command string) string {
	p.t.Helper()
	answer, ok := strings.CutPrefix(p.ask(command)+" ", "ok ")
	if !ok {
		p.t.Fatalf("box: %s: %s", command, answer)
	}
	return strings.TrimSpace(answer)
}

// against starts a race in the program that goes on while a helper is at work on a request, and pauses in between: it has the host's processors to itself
// only where there is something to win.
func (h *boxHost) against(p *boxProc, race string) {
	h.t.Helper()
	p.do("hold")
	p.do(race)
	h.racer = p
}

// over ends it, and returns how many rounds it made.
func (h *boxHost) over() int {
	h.t.Helper()
	p := h.racer
	h.racer = nil
	return p.rounds()
}

// Helper is the harness's, against the race.
func (h *boxHost) Helper(r *wire.Request) *wire.Reply {
	h.t.Helper()
	if h.racer == nil {
		return h.Host.Helper(r)
	}
	cmd := h.Command(boxPolicy, h.HelperPath())
	in, err := cmd.StdinPipe()
	h.must(err)
	var out strings.Builder
	cmd.Stdout = &out
	waiting := boxWaiting(h.t, h.Host)
	h.must(cmd.Start())
	waiting(cmd.Process.Pid)
	h.racer.do("go")
	_, err = in.Write(boundary.Encode(r))
	h.must(errors.Join(err, in.Close()))
	cmd.Wait()
	h.racer.do("hold")
	reply, err := boundary.DecodeReply([]byte(out.String()))
	h.must(err)
	want := 0
	if reply.Err != nil {
		want = reply.Err.Code.Exit()
	}
	if cmd.ProcessState.ExitCode() != want {
		h.t.Fatalf("want exit %d: %v: %q", want, cmd.ProcessState, out.String())
	}
	return reply
}

// boxWaiting returns what waits until a helper, started after this call, has opened what it needs and waits for its request, or has ended.
func boxWaiting(t *testing.T, h *harness.Host) (wait func(pid int)) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	opened, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	must(err)
	_, err = unix.InotifyAddWatch(opened, filepath.Dir(h.AuditLog()), unix.IN_OPEN) // the last that it opens before it drops its capabilities
	must(err)
	return func(pid int) {
		t.Helper()
		defer unix.Close(opened)
		ended, err := unix.PidfdOpen(pid, 0)
		must(err)
		defer unix.Close(ended)
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(opened), Events: unix.POLLIN}, {Fd: int32(ended), Events: unix.POLLIN}}, -1)
		}
		must(err)
	}
}

// rounds ends the races and returns how many rounds they made.
func (p *boxProc) rounds() int {
	p.t.Helper()
	var n int
	fmt.Sscan(p.do("stop"), &n)
	return n
}

// A boxContainer is a container and the hostile process in it.
type boxContainer struct {
	*harness.Container
	*boxProc
	target int // pid of its first process
}

// run starts a container of runc's with the program in it.
func (h *boxHost) run(o harness.ContainerOptions) *boxContainer {
	h.t.Helper()
	prepare := o.Prepare
	o.Prepare = func(root string) {
		h.copyBox(filepath.Join(root, "box"))
		if prepare != nil {
			prepare(root)
		}
	}
	c := h.Container(o)
	return &boxContainer{c, h.start(c.Runc("exec", c.ID, "/box")), c.Pid()}
}

// process starts the program as the first process of a mount namespace of its own, with private mounts, in the host's cgroup: a container without a
// runtime. With userns it does so as an ordinary user, who becomes root of a user namespace.
func (h *boxHost) process(user harness.User, userns bool) *boxContainer {
	h.t.Helper()
	args := []string{"--mount", "--propagation", "private", h.Box}
	if userns {
		args = append([]string{"--user", "--map-root-user"}, args...)
	}
	cmd := h.Command(user, "unshare", args...)
	p := h.start(cmd)
	h.EnterCgroup(cmd.Process.Pid, h.Cgroup())
	return &boxContainer{nil, p, cmd.Process.Pid}
}

// request is an attach of the source at a path, read-only.
func (h *boxHost) request(pid int, path string) *wire.Request {
	h.n++
	return &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c" + strconv.Itoa(pid), PID: pid,
		Mounts: []wire.Mount{{Path: path, Source: h.Source, Mode: wire.ModeRO}}}
}

func (h *boxHost) attach(pid int, path string) *wire.Reply {
	h.t.Helper()
	return h.Helper(h.request(pid, path))
}

// attached is attach that must work; it returns the mount's unique id.
func (h *boxHost) attached(pid int, path string) uint64 {
	h.t.Helper()
	return h.id(h.attach(pid, path))
}

func (h *boxHost) id(r *wire.Reply) uint64 {
	h.t.Helper()
	boxOK(h.t, r)
	id, err := strconv.ParseUint(r.Blocks[0].Get("id"), 10, 64)
	h.must(err)
	return id
}

// detach detaches the paths, or all, of what was attached to the process.
func (h *boxHost) detach(pid int, lazy bool, paths ...string) *wire.Reply {
	h.t.Helper()
	r := &wire.Request{Op: wire.OpDetach, Owner: "default", Container: "c" + strconv.Itoa(pid), Lazy: lazy}
	for _, p := range paths {
		r.Mounts = append(r.Mounts, wire.Mount{Path: p})
	}
	return h.Helper(r)
}

// as sends a request as somebody else.
func (h *boxHost) as(user harness.User, r *wire.Request) *wire.Reply {
	h.t.Helper()
	res := h.HelperRaw(user, boundary.Encode(r))
	reply, err := boundary.DecodeReply([]byte(res.Stdout))
	h.must(err)
	want := 0
	if reply.Err != nil {
		want = reply.Err.Code.Exit()
	}
	res.Exits(h.t, want)
	return reply
}

// boxCode returns the error code of a reply, or "ok".
func boxCode(r *wire.Reply) string {
	if r.Err != nil {
		return string(r.Err.Code)
	}
	return "ok"
}

func boxOK(t *testing.T, r *wire.Reply) {
	t.Helper()
	if r.Err != nil {
		t.Fatalf("refused: %s %s: %s", r.Err.Code, r.Err.Stage, r.Err.Message)
	}
}

// boxRefused fails the test unless the reply is a refusal with one of the codes and a message of one printable line, and returns the message.
func boxRefused(t *testing.T, what string, r *wire.Reply, codes ...wire.Code) string {
	t.Helper()
	if r.Err == nil {
		t.Errorf("%s: done: %v", what, r.Blocks)
		return ""
	}
	if !slices.Contains(codes, r.Err.Code) {
		t.Errorf("%s: %s, want %v: %s", what, r.Err.Code, codes, r.Err.Message)
	}
	if strings.ContainsFunc(r.Err.Message, func(c rune) bool { return c < 0x20 || c >= 0x7f && c < 0xa0 }) {
		t.Errorf("%s: the message holds control characters: %q", what, r.Err.Message)
	}
	return r.Err.Message
}

// A boxCount counts the outcomes of a race.
type boxCount map[string]int

func (c boxCount) add(r *wire.Reply) bool {
	c[boxCode(r)]++
	return r.Err == nil
}

// only fails the test if there were others than the allowed outcomes, or if one that must occur did not.
func (c boxCount) only(t *testing.T, must []string, allowed ...string) {
	t.Helper()
	t.Logf("outcomes: %v", c)
	for what, n := range c {
		if !slices.Contains(allowed, what) && !slices.Contains(must, what) {
			t.Errorf("%d times %s, allowed are %v %v", n, what, must, allowed)
		}
	}
	for _, what := range must {
		if c[what] == 0 {
			t.Errorf("never %s: the race did not race: %v", what, c)
		}
	}
}

// boxEnter runs f on a thread in the mount namespace of a process, as a careless implementation would. The thread ends with it.
func boxEnter(t *testing.T, pid int, f func() error) error {
	t.Helper()
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ns)
	done := make(chan error)
	var enter func()
	enter = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // not the first thread: it does not end, and is what others see of us
			defer runtime.UnlockOSThread()
			entered := make(chan bool)
			go func() { defer close(entered); enter() }()
			<-entered
			return
		}
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNS)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}
	go enter()
	return <-done
}

// boxNaive attaches a tree as FACTS 1 does, with the right attributes and without locking them.
func (h *boxHost) naive(pid int, source, target string, attr uint64) {
	h.t.Helper()
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	h.must(err)
	defer unix.Close(tree)
	h.must(unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr, Propagation: unix.MS_PRIVATE}))
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	h.must(err)
	defer unix.Close(root)
	h.must(boxEnter(h.t, pid, func() error {
		return unix.MoveMount(tree, "", root, strings.TrimPrefix(target, "/"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	}))
}

// at returns the mountinfo lines of a process for exactly a path of its root.
func (h *boxHost) at(pid int, path string) (lines []string) {
	h.t.Helper()
	for line := range strings.Lines(h.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))) {
		if strings.Fields(line)[4] == path {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func (h *boxHost) wantAt(pid int, path string, n int) {
	h.t.Helper()
	if lines := h.at(pid, path); len(lines) != n {
		h.t.Errorf("%d mounts at %s, want %d: %q", len(lines), path, n, lines)
	}
}

// boxWatch tells of everything that is made, removed, moved or chmodded in folders of the host, even if it was undone since: a comparison before and after
// would not see it.
type boxWatch struct {
	t  *testing.T
	fd int
}

func (h *boxHost) watch(dirs ...string) *boxWatch {
	h.t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	h.must(err)
	h.t.Cleanup(func() { unix.Close(fd) })
	for _, d := range dirs {
		_, err := unix.InotifyAddWatch(fd, d, unix.IN_CREATE|unix.IN_DELETE|unix.IN_ATTRIB|unix.IN_MODIFY|unix.IN_MOVE|unix.IN_DELETE_SELF)
		h.must(err)
	}
	return &boxWatch{h.t, fd}
}

// events returns what happened since the last call, at most a few hundred.
func (w *boxWatch) events() (all []string) {
	buf := make([]byte, 1<<16)
	n, err := unix.Read(w.fd, buf)
	if err == unix.EAGAIN {
		return nil
	} else if err != nil {
		w.t.Fatal(err)
	}
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+int(e.Len)]), "\x00")
		all = append(all, fmt.Sprintf("%#x %s", e.Mask, name))
		b = b[unix.SizeofInotifyEvent+int(e.Len):]
	}
	return all
}

// quiet fails the test if anything happened.
func (w *boxWatch) quiet() {
	w.t.Helper()
	if e := w.events(); len(e) > 0 {
		w.t.Errorf("the host's files were touched: %q", e)
	}
}

// untouched runs f and fails the test if it changed a file in one of the folders or one of the host's mounts.
func (h *boxHost) untouched(f func(), dirs ...string) {
	h.t.Helper()
	snapshot := func() (all []string) {
		for _, d := range dirs {
			all = append(all, h.Tree(d)...)
		}
		return append(all, h.Mountinfo()...)
	}
	before := snapshot()
	f()
	if d := harness.Diff(before, snapshot()); d != "" {
		h.t.Errorf("the host has changed:\n%s", d)
	}
}

func boxMount(destination, fstype, source string, options ...string) specs.Mount {
	return specs.Mount{Destination: destination, Type: fstype, Source: source, Options: options}
}
