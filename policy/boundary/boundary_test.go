package boundary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// The test binary stands in for the helper when it is started as one: under the name of what it shall do, since it gets neither argument nor environment.
func TestMain(m *testing.M) {
	if do := roles[filepath.Base(os.Args[0])]; do != nil && len(os.Args) == 1 {
		do()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func answer(r *wire.Reply) { os.Stdout.Write(r.Encode()) }

var roles = map[string]func(){
	// echo tells what it was started with.
	"echo": func() {
		data, _ := io.ReadAll(os.Stdin)
		r, err := wire.DecodeRequest(data)
		if err != nil {
			answer(&wire.Reply{Err: wire.AsError(err)})
			return
		}
		wd, _ := syscall.Getwd() // not os.Getwd, which believes the environment
		answer(&wire.Reply{Blocks: []wire.Fields{{{Key: "mount", Value: r.Container}, {Key: "env", Value: fmt.Sprint(os.Environ())}, {Key: "args", Value: fmt.Sprint(len(os.Args))}, {Key: "cwd", Value: wd}}}})
	},
	"refuse": func() {
		answer(&wire.Reply{Err: wire.Errorf(wire.SourceForbidden, "source", "cannot use the source").WithHint("chmod")})
		os.Exit(77)
	},
	"crash": func() {
		fmt.Fprintln(os.Stderr, "panic: at the\ndisco"+strings.Repeat("!", 2*maxStderr))
		os.Exit(2)
	},
	"killed":  func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) },
	"garbage": func() { fmt.Print("hello") },
	"half":    func() { os.Stdout.Write((&wire.Reply{}).Encode()[:11]) },
	"limited": func() { os.Stdout.Write(make([]byte, wire.MaxReply+1)) },
	// hang says that it runs, and waits to be released.
	"hang": func() {
		dir := filepath.Dir(os.Args[0])
		f, _ := os.OpenFile(filepath.Join(dir, "began"), os.O_WRONLY, 0)
		f.Close()
		f, _ = os.Open(filepath.Join(dir, "end"))
		io.ReadAll(f)
	},
	// record writes down that it was started, and then what it was asked.
	"record": func() {
		note := func(text string) {
			f, _ := os.OpenFile(filepath.Join(filepath.Dir(os.Args[0]), "log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
			f.WriteString(text + "\n")
			f.Close()
		}
		note("started")
		data, _ := io.ReadAll(os.Stdin)
		r, err := wire.DecodeRequest(data)
		if err != nil {
			note(err.Error())
			return
		}
		note(r.Op)
		answer(&wire.Reply{})
	},
	"deaf": func() { answer(&wire.Reply{}) }, // answers without reading
}

var request = &wire.Request{Op: wire.OpQuery, Owner: "o", Container: "web"}

// as returns a helper whose program plays a role.
func as(t *testing.T, role string) *Helper {
	t.Helper()
	path := filepath.Join(t.TempDir(), role)
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &Helper{Transport: config.TransportExec, Path: path, Timeout: time.Minute}
}

func code(err error) wire.Code { return wire.AsError(err).Code }

func TestHelperIsStartedWithNothing(t *testing.T) {
	t.Setenv("LD_PRELOAD_TEST", "x")
	reply, err := as(t, "echo").Call(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	b := reply.Blocks[0]
	if b.Get("mount") != "web" || b.Get("env") != "[]" || b.Get("args") != "1" || b.Get("cwd") != "/" {
		t.Errorf("%v", b)
	}
}

func TestErrorOfTheHelperIsTheError(t *testing.T) {
	_, err := as(t, "refuse").Call(t.Context(), request)
	if e := wire.AsError(err); e.Code != wire.SourceForbidden || e.Hint != "chmod" || e.Stage != "source" {
		t.Errorf("%+v", e)
	}
}

func TestHelperWithoutAnAnswerIsInternalAndSaysHowItEnded(t *testing.T) {
	for role, part := range map[string]string{"crash": "exit status 2, panic: at the disco!", "killed": "signal: killed", "garbage": "the helper's reply", "half": "(exit status 0, nothing on stderr)"} {
		_, err := as(t, role).Call(t.Context(), request)
		if code(err) != wire.Internal || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", role, err)
		}
		if len(err.Error()) > 2*maxStderr {
			t.Errorf("%s: a message of %d bytes", role, len(err.Error()))
		}
	}
}

func TestReplyIsBounded(t *testing.T) {
	_, err := as(t, "limited").Call(t.Context(), request)
	if code(err) != wire.Internal || !strings.Contains(err.Error(), "over") {
		t.Errorf("%v", err)
	}
}

func TestHelperThatAnswersEarlyIsHeard(t *testing.T) {
	big := &wire.Request{Op: wire.OpAttach, Owner: "o", Container: "web", PID: 1}
	for i := range 600 { // more than a pipe holds
		big.Mounts = append(big.Mounts, wire.Mount{Path: fmt.Sprintf("/%d/%s", i, strings.Repeat("x", 200)), Source: "/s", Mode: "rw"})
	}
	if _, err := as(t, "deaf").Call(t.Context(), big); err != nil {
		t.Error(err)
	}
}

func TestCallIsGivenUp(t *testing.T) {
	h := as(t, "hang")
	dir := filepath.Dir(h.Path)
	for _, name := range []string{"began", "end"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		f, _ := os.Open(filepath.Join(dir, "began"))
		io.ReadAll(f)
		cancel() // it is running
	}()
	if _, err := h.Call(ctx, request); code(err) != wire.Timeout || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("%v", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "end"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := h.Call(ctx, request); code(err) != wire.Timeout { // not started at all
		t.Errorf("%v", err)
	}
	h.Timeout = time.Nanosecond
	if _, err := h.Call(t.Context(), request); code(err) != wire.Timeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// A lock under which the helper was asked is held until it ends, although we gave the call up and our own descriptor is closed.
func TestLocksAreHeldUntilTheHelperHasEnded(t *testing.T) {
	h := as(t, "hang")
	dir := filepath.Dir(h.Path)
	for _, name := range []string{"began", "end"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *os.File {
		f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	held := open()
	if err := unix.FcntlFlock(held.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		f, _ := os.Open(filepath.Join(dir, "began"))
		io.ReadAll(f)
		cancel()
	}()
	if _, err := h.Call(Holding(ctx, held), request); code(err) != wire.Timeout {
		t.Fatalf("%v", err)
	}
	held.Close()
	other := open()
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lock); err != unix.EAGAIN {
		t.Errorf("the helper runs still, and the lock is free: %v", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "end"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLKW, &lock); err != nil { // waits for ever if it is not released
		t.Error(err)
	}
}

// asked waits until a helper that records has written n lines.
func asked(t *testing.T, h *Helper, n int) string {
	t.Helper()
	for {
		data, _ := os.ReadFile(filepath.Join(filepath.Dir(h.Path), "log"))
		if strings.Count(string(data), "\n") >= n {
			return strings.Join(strings.Fields(string(data)), " ")
		}
		if t.Context().Err() != nil {
			t.Fatalf("only %q", data)
		}
		runtime.Gosched()
	}
}

func TestReadyHelperServesOneAttach(t *testing.T) {
	h := as(t, "record")
	attach := &wire.Request{Op: wire.OpAttach, Owner: "o", Container: "web", PID: 7, Mounts: []wire.Mount{{Path: "/a", Source: "/b", Mode: "ro"}}}
	ctx, cancel := h.Ready(t.Context())
	asked(t, h, 1) // it is up before there is a request
	for _, r := range []*wire.Request{attach, request, attach} {
		if _, err := h.Call(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if got, want := asked(t, h, 6), "started attach started query started attach"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A helper that asks for nothing would be one that is refused, with a line in the audit log.
func TestReadyHelperWithoutAnAttachIsAskedSomethingHarmless(t *testing.T) {
	h := as(t, "record")
	_, cancel := h.Ready(t.Context())
	cancel()
	if got, want := asked(t, h, 2), "started query"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestReadyHelperThatCannotBeStartedIsReportedByTheCall(t *testing.T) {
	h := &Helper{Transport: config.TransportExec, Path: filepath.Join(t.TempDir(), "none"), Timeout: time.Minute}
	ctx, cancel := h.Ready(t.Context())
	defer cancel()
	if _, err := h.Call(ctx, &wire.Request{Op: wire.OpAttach}); code(err) != wire.Config {
		t.Errorf("%v", err)
	}
}

// What was started too long ago may end at its own deadline.
func TestHelperThatWaitedTooLongIsNotUsed(t *testing.T) {
	h := as(t, "record")
	p, err := h.start()
	if err != nil {
		t.Fatal(err)
	}
	p.since = p.since.Add(-readyFor)
	waiting := make(chan *process, 1)
	waiting <- p
	close(waiting)
	attach := &wire.Request{Op: wire.OpAttach, Owner: "o", Container: "web", PID: 7, Mounts: []wire.Mount{{Path: "/a", Source: "/b", Mode: "ro"}}}
	if _, err := h.Call(context.WithValue(t.Context(), ready{}, waiting), attach); err != nil {
		t.Fatal(err)
	}
	if got := asked(t, h, 4); strings.Count(got, "started") != 2 || strings.Count(got, "attach") != 1 || strings.Count(got, "query") != 1 {
		t.Errorf("%q", got)
	}
}

func TestHelperThatCannotBeStartedIsConfiguration(t *testing.T) {
	h := &Helper{Transport: config.TransportExec, Path: filepath.Join(t.TempDir(), "none"), Timeout: time.Minute}
	if _, err := h.Call(t.Context(), request); code(err) != wire.Config || !strings.Contains(err.Error(), h.Path) || wire.AsError(err).Hint == "" {
		t.Errorf("%v", err)
	}
	os.WriteFile(h.Path, nil, 0o600)
	if _, err := h.Call(t.Context(), request); code(err) != wire.Config {
		t.Errorf("%v", err)
	}
	h = &Helper{Transport: config.TransportSocket, Socket: h.Path + ".sock", Timeout: time.Minute}
	if _, err := h.Call(t.Context(), request); code(err) != wire.Config || !strings.Contains(err.Error(), h.Socket) {
		t.Errorf("%v", err)
	}
}

// listen serves one connection at a socket.
func listen(t *testing.T, serve func(*net.UnixConn)) *Helper {
	t.Helper()
	h := &Helper{Transport: config.TransportSocket, Socket: filepath.Join(t.TempDir(), "s"), Timeout: time.Minute}
	l, err := net.Listen("unix", h.Socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			serve(c.(*net.UnixConn))
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return h
}

func TestSocketCarriesRequestAndReply(t *testing.T) {
	h := listen(t, func(c *net.UnixConn) {
		data, err := io.ReadAll(c) // ends, since the client shuts down its side
		r, derr := wire.DecodeRequest(data)
		if err != nil || derr != nil {
			t.Error(err, derr)
			return
		}
		c.Write((&wire.Reply{Blocks: []wire.Fields{{{Key: "mount", Value: r.Container}}}}).Encode())
	})
	reply, err := h.Call(t.Context(), request)
	if err != nil || reply.Blocks[0].Get("mount") != "web" {
		t.Errorf("%+v, %v", reply, err)
	}
}

func TestSocketThatSaysNothing(t *testing.T) {
	h := listen(t, func(c *net.UnixConn) { io.ReadAll(c) })
	if _, err := h.Call(t.Context(), request); code(err) != wire.Internal || !strings.Contains(err.Error(), "closed") {
		t.Errorf("%v", err)
	}
}

func TestSocketIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan struct{})
	h := listen(t, func(c *net.UnixConn) {
		cancel() // it was connected
		<-given  // the client ends its writing, so reading does not tell when it goes
	})
	if _, err := h.Call(ctx, request); code(err) != wire.Timeout {
		t.Errorf("%v", err)
	}
	close(given)
}
