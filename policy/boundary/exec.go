package boundary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

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

// output makes the helper's descriptor 1, a socket, and our end of it. The files that the caller holds are sent to the helper, which never reads there: they lie in its socket, open, until it ends.
func output(ctx context.Context) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "reply"), os.NewFile(uintptr(fds[1]), "output")
	if files, _ := ctx.Value(holding{}).([]*os.File); len(files) > 0 {
		var rights []int
		for _, f := range files {
			rights = append(rights, int(f.Fd()))
		}
		err = unix.Sendmsg(fds[0], []byte{0}, unix.UnixRights(rights...), nil, 0)
	}
	if err = errors.Join(err, unix.Shutdown(fds[0], unix.SHUT_WR)); err != nil {
		ours.Close()
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// exec starts the setuid helper: its name as the only argument, no environment at all (it refuses one, T02), / as working directory.
func (h *Helper) exec(ctx context.Context, request []byte) ([]byte, func() string, error) {
	ours, theirs, err := output(ctx)
	if err != nil {
		return nil, nil, wire.Errorf(wire.System, "helper", "cannot make a socket for the helper's reply: %v", err)
	}
	stdout, stderr := &bounded{max: wire.MaxReply}, &bounded{max: maxStderr}
	cmd := &exec.Cmd{
		Path: h.Path, Args: []string{h.Path}, Env: []string{}, Dir: "/",
		Stdin: bytes.NewReader(request), Stdout: theirs, Stderr: stderr,
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, nil, unreachable("start", h.Path, err)
	}
	ended := make(chan error, 1)
	go func() {
		io.Copy(stdout, ours)
		ours.Close()
		ended <- cmd.Wait()
	}()
	select {
	case <-ctx.Done(): // the goroutine stays to reap it
		return nil, nil, ctx.Err()
	case err := <-ended:
		how := func() string {
			said := strings.Join(strings.Fields(string(stderr.data)), " ")
			if said == "" {
				said = "nothing on stderr"
			}
			if err == nil {
				return fmt.Sprintf("exit status 0, %s", said)
			}
			return fmt.Sprintf("%v, %s", err, said)
		}
		return stdout.data, how, nil
	}
}
