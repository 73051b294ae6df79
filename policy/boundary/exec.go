package boundary

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// maxStderr bounds what is kept of the helper's stderr. A helper that works writes nothing there; the Go runtime does when it crashes.
const maxStderr = 4096

// exec starts the setuid helper: its name as the only argument, no environment at all (it refuses one, T02), / as working directory.
func (h *Helper) exec(ctx context.Context, request []byte) ([]byte, func() string, error) {
	stdout, stderr := &bounded{max: wire.MaxReply}, &bounded{max: maxStderr}
	cmd := &exec.Cmd{
		Path: h.Path, Args: []string{h.Path}, Env: []string{}, Dir: "/",
		Stdin: bytes.NewReader(request), Stdout: stdout, Stderr: stderr,
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, unreachable("start", h.Path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
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
