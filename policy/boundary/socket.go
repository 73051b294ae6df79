package boundary

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/bindgate/bindgate/wire"
)

// dial asks the helper that systemd starts for each connection. The end of the request is the end of our writing, as it is on a pipe.
func (h *Helper) dial(ctx context.Context, r *wire.Request) ([]byte, func() string, error) {
	how := func() string { return "the socket " + h.Socket + " was closed" }
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", h.Socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, nil, unreachable("connect to", h.Socket, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	u := c.(*net.UnixConn)
	_, err = u.Write(Encode(r))
	if err == nil {
		err = u.CloseWrite()
	}
	// Whatever came of writing, what the helper said counts: it may have refused before it read all.
	data, rerr := io.ReadAll(io.LimitReader(u, wire.MaxReply+1))
	switch {
	case errors.Is(rerr, os.ErrDeadlineExceeded), len(data) == 0 && ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case len(data) == 0 && errors.Join(err, rerr) != nil:
		return nil, nil, wire.Errorf(wire.System, "helper", "cannot ask the helper at %s: %v", h.Socket, errors.Join(err, rerr))
	}
	return data, how, nil
}
