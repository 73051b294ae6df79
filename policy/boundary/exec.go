package boundary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// maxStderr bounds what is kept of the helper's stderr. A helper that works writes nothing there; the Go runtime does when it crashes.
const maxStderr = 4096

type holding struct{}

// Holding returns a context for calls that keep files open until the helper has ended, whatever becomes of this process: the locks under which the helper is asked. Were they ours alone, a helper that we
// left behind when we were killed would go on without them, and attach what the next process has just made sure is not attached. Over the socket nothing can be kept: systemd starts that helper.
func Holding(ctx context.Context, files ...*os.File) context.Context {
	return context.WithValue(ctx, holding{}, files)
}

// A process is a setuid helper that was started, and waits for its request.
type process struct {
	cmd     *exec.Cmd
	request *os.File // the writing end of its descriptor 0
	reply   *os.File // our end of the socket that is its descriptor 1
	stderr  *bounded
	since   time.Time
}

// start starts the setuid helper: its name as the only argument, no environment at all (it refuses one, T02), / as working directory.
func (h *Helper) start() (*process, error) {
	fail := func(err error) (*process, error) {
		return nil, wire.Errorf(wire.System, "helper", "cannot make a pipe and a socket for the helper: %v", err)
	}
	input, request, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer input.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		request.Close()
		return fail(err)
	}
	output := os.NewFile(uintptr(fds[1]), "output")
	defer output.Close()
	p := &process{request: request, reply: os.NewFile(uintptr(fds[0]), "reply"), stderr: &bounded{max: maxStderr}, since: time.Now()}
	p.cmd = &exec.Cmd{Path: h.Path, Args: []string{h.Path}, Env: []string{}, Dir: "/", Stdin: input, Stdout: output, Stderr: p.stderr}
	if err := p.cmd.Start(); err != nil {
		request.Close()
		p.reply.Close()
		return nil, unreachable("start", h.Path, err)
	}
	return p, nil
}

// ask sends the request and returns the reply. The files that the caller holds are sent first: they lie in the helper's socket, where it never reads, open until it ends.
func (p *process) ask(ctx context.Context, request []byte) ([]byte, func() string, error) {
	var err error
	if files, _ := ctx.Value(holding{}).([]*os.File); len(files) > 0 {
		var rights []int
		for _, f := range files {
			rights = append(rights, int(f.Fd()))
		}
		err = unix.Sendmsg(int(p.reply.Fd()), []byte{0}, unix.UnixRights(rights...), nil, unix.MSG_NOSIGNAL)
	}
	if err != nil && err != unix.EPIPE { // or else it has ended already, and cannot act
		p.dismiss()
		return nil, nil, wire.Errorf(wire.System, "helper", "cannot give the helper the lock to hold: %v", err)
	}
	unix.Shutdown(int(p.reply.Fd()), unix.SHUT_WR)
	answered := make(chan outcome, 1)
	go p.read(answered)
	go func() {
		p.request.Write(request) // whatever comes of that, what the helper says counts: it may refuse before it has read all
		p.request.Close()
	}()
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case a := <-answered:
		if a.lost != nil {
			return nil, nil, wire.Errorf(wire.System, "helper", "cannot read the helper's reply: %v", a.lost)
		}
		how := func() string {
			said := strings.Join(strings.Fields(string(p.stderr.data)), " ")
			if said == "" {
				said = "nothing on stderr"
			}
			if a.err == nil {
				return fmt.Sprintf("exit status 0, %s", said)
			}
			return fmt.Sprintf("%v, %s", a.err, said)
		}
		return a.reply, how, nil
	}
}

// An outcome is what a helper said, and if that is not whole how it ended.
type outcome struct {
	reply []byte
	err   error
	lost  error // the reply could not be read
}

// read reads the reply to its end, and reaps the helper: whoever started us may be told of what we leave behind (crun is, and misses the end of a hook then).
func (p *process) read(answered chan<- outcome) {
	reply := bounded{max: wire.MaxReply}
	_, lost := io.Copy(&reply, p.reply)
	if errors.Is(lost, unix.ECONNRESET) { // that is of the lock, which lay in its socket unread
		lost = nil
	}
	p.reply.Close()
	answered <- outcome{reply.data, p.cmd.Wait(), lost}
}

// dismiss ends a helper that there is no request for, with one that changes nothing and that is not worth a line in the audit log, and waits for its end.
func (p *process) dismiss() {
	p.request.Write(Encode(&wire.Request{Op: wire.OpQuery, Owner: "default", Container: "none"}))
	p.request.Close()
	p.read(make(chan outcome, 1))
}

type ready struct{}

// Ready starts a helper for the next attach that is asked for with the context it returns, so that it comes up while something else is done: its start is most of what an attach takes. One that waited for
// longer than readyFor is not used, since its own deadline runs. Call cancel when there will be no attach any more.
func (h *Helper) Ready(ctx context.Context) (_ context.Context, cancel func()) {
	if h.Transport == config.TransportSocket {
		return ctx, func() {}
	}
	waiting := make(chan *process, 1)
	go func() {
		defer close(waiting)
		if p, err := h.start(); err == nil { // Call says why not
			waiting <- p
		}
	}()
	return context.WithValue(ctx, ready{}, waiting), func() {
		if p, ok := <-waiting; ok {
			p.dismiss()
		}
	}
}

// readyFor is less than half of the time that the helper waits for its request (DESIGN section 5, step 6).
const readyFor = 4 * time.Second

// exec asks a setuid helper: one that is ready, or a new one.
func (h *Helper) exec(ctx context.Context, r *wire.Request) ([]byte, func() string, error) {
	var p *process
	if waiting, ok := ctx.Value(ready{}).(chan *process); ok && r.Op == wire.OpAttach {
		if p = <-waiting; p != nil && time.Since(p.since) >= readyFor {
			p.dismiss()
			p = nil
		}
	}
	if p == nil {
		var err error
		if p, err = h.start(); err != nil {
			return nil, nil, err
		}
	}
	return p.ask(ctx, Encode(r))
}
