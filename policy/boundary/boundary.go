// Package boundary carries one request to bindgate-helper and its reply back. It is the policy process' whole side of the privilege boundary: it
// decides nothing and checks nothing, since the helper believes nothing it is told anyway.
//
// There are two ways in (DESIGN section 5). Exec starts the setuid program with an empty environment and no argument. Socket connects to where systemd
// starts the same program, for agents that run with no_new_privs.
package boundary

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// A Helper is where bindgate-helper is. The zero Helper is not usable.
type Helper struct {
	Transport string        // config.TransportExec or config.TransportSocket
	Path      string        // of the setuid program
	Socket    string        // of the systemd unit
	Timeout   time.Duration // of one call
}

// New returns the helper that a policy.toml names.
func New(p *config.Policy) *Helper {
	return &Helper{Transport: p.Helper.Transport, Path: p.Helper.Path, Socket: p.Helper.Socket, Timeout: p.Timeouts.Helper}
}

// Call sends one request and returns the reply. An error in the reply is returned as the error, too.
//
// The call ends with the helper's answer, after h.Timeout, or with ctx, whichever is first. The helper cannot be killed from here, so a call that was
// given up may still take effect: its error is timeout, and what it did is in the ledger. Errors of the transport itself are config (the helper is not
// there or may not be started), system, or internal for a helper that ended without an answer.
func (h *Helper) Call(ctx context.Context, r *wire.Request) (*wire.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, abandoned(ctx, r.Op, 0)
	}
	send := h.exec
	if h.Transport == config.TransportSocket {
		send = h.dial
	}
	began := time.Now()
	data, how, err := send(ctx, r)
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return nil, abandoned(ctx, r.Op, time.Since(began))
	case err != nil:
		return nil, err
	case len(data) > wire.MaxReply:
		return nil, wire.Errorf(wire.Internal, "helper", "cannot read the helper's reply to %s: it is over %d bytes", r.Op, wire.MaxReply)
	case len(data) == 0:
		return nil, wire.Errorf(wire.Internal, "helper", "cannot do %s: the helper ended without an answer (%s)", r.Op, how())
	}
	reply, err := DecodeReply(data)
	if err != nil {
		e := *wire.AsError(err)
		e.Message += " (" + how() + ")"
		return nil, &e
	}
	if reply.Err != nil {
		return reply, reply.Err
	}
	return reply, nil
}

func abandoned(ctx context.Context, op string, after time.Duration) error {
	why := fmt.Sprintf("the helper did not answer within %s", after.Round(time.Millisecond))
	if errors.Is(ctx.Err(), context.Canceled) {
		why = "the call was interrupted"
	}
	return wire.Errorf(wire.Timeout, "helper", "cannot do %s: %s", op, why).Because(ctx.Err())
}

// unreachable is the error for a helper that could not be asked at all.
func unreachable(what, path string, err error) error {
	e := wire.Errorf(wire.Config, "helper", "cannot %s %s: %v", what, path, reason(err)).Because(err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return e.WithHint("is bindgate installed there? [helper] in policy.toml says where it is and how it is reached")
	case errors.Is(err, fs.ErrPermission):
		return e.WithHint("it must be reachable for the group of the policy user only: 4750 root:GROUP")
	}
	return e
}

// reason takes the path out of an error, since the message names it.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// bounded keeps the first max bytes of what is written to it and counts the rest as written, so that the writer is not held up. It keeps one byte
// more than max to show that there was more.
type bounded struct {
	data []byte
	max  int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.max + 1 - len(b.data); room > 0 {
		b.data = append(b.data, p[:min(room, len(p))]...)
	}
	return len(p), nil
}
