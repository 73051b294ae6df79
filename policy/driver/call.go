package driver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/bindgate/bindgate/wire"
)

// accept is the only header that the protocol asks for.
const accept = "application/vnd.docker.plugins.v1.2+json"

// errUnsupported is the answer to an optional call that the plugin lacks.
var errUnsupported = errors.New("the driver does not support it")

// call asks the plugin one question and decodes its answer into out, if that is not nil.
func (p *Plugin) call(ctx context.Context, c call, out any) error {
	l := Discover(p.name, p.opts)
	if l.Err != nil {
		return l.Err
	}
	if err := p.activate(ctx, &l, c.doing); err != nil {
		return err
	}
	return p.post(ctx, &l, c, out)
}

// activate makes sure that a volume driver answers at the address, once in this process. A failure is not remembered.
func (p *Plugin) activate(ctx context.Context, l *Location, doing string) error {
	c := call{task: task{"activate", doing}, method: "Plugin.Activate"}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return c.fail(wire.Timeout, "the driver has not been activated in time")
	}
	if p.activated == l.Address {
		return nil
	}
	var answer struct{ Implements []string }
	if err := p.post(ctx, l, c, &answer); err != nil {
		return err
	}
	if !slices.Contains(answer.Implements, "VolumeDriver") {
		return c.fail(wire.DriverError, "the plugin at %s is no volume driver: it implements %s", l.Address, clean(fmt.Sprintf("%q", answer.Implements)))
	}
	p.activated = l.Address
	return nil
}

// post sends one request on a connection of its own and reads the answer. With a connection that is kept, one could not tell a request that was lost
// from one that the plugin got just before it closed; so none is, and nothing is sent twice. Proxies of the environment, redirects and compression do
// not exist at this level of net/http.
func (p *Plugin) post(ctx context.Context, l *Location, c call, out any) error {
	var body []byte // Plugin.Activate has none
	if c.stage != "activate" {
		var err error
		if body, err = json.Marshal(c.ask); err != nil {
			return c.fail(wire.Internal, "%v", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.host+"/"+c.method, bytes.NewReader(body))
	if err != nil {
		return c.fail(wire.Config, "its address %s cannot be used: %v", show(l.Address), err)
	}
	req.Header.Set("Accept", accept)

	start := time.Now()
	conn, err := p.connect(ctx, l, c.task)
	if err != nil {
		return err
	}
	defer conn.Close()
	transport := &http.Transport{
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	resp, err := transport.RoundTrip(req)
	var data []byte
	if err == nil {
		defer resp.Body.Close()
		data, err = io.ReadAll(io.LimitReader(resp.Body, p.opts.maxAnswer()+1))
	}
	switch took := time.Since(start).Round(time.Millisecond); {
	case err == nil && int64(len(data)) > p.opts.maxAnswer():
		return c.fail(wire.DriverError, "the driver's answer to %s is over %d bytes", c.method, p.opts.maxAnswer())
	case err == nil:
		return c.read(resp.StatusCode, bytes.TrimSpace(data), out)
	case errors.Is(ctx.Err(), context.Canceled):
		return c.fail(wire.Timeout, "interrupted after %v without an answer to %s; the driver may still carry it out", took, c.method)
	case ctx.Err() != nil:
		return c.fail(wire.Timeout, "no answer to %s within %v; the driver may still carry it out", c.method, took).
			WithHint("look at the driver's log; if it is only slow, give it more time in [driver.%s] timeouts of policy.toml", p.name)
	}
	return c.fail(wire.DriverError, "the driver did not answer %s properly: %s", c.method, clean(err.Error()))
}

// read makes sense of an answer. Errors come with any status and in any form, and content types mean nothing: what counts as success is status 200, an
// object, and no Err in it.
func (c call) read(status int, data []byte, out any) error {
	var answer struct{ Err json.RawMessage }
	err := json.Unmarshal(data, &answer)
	text := clean(string(data))
	switch said := errText(answer.Err); {
	case err == nil && said != "":
		return c.said(said)
	case status/100 == 3:
		return c.fail(wire.DriverError, "the driver answered %s with a redirect, which is not followed (status %d)", c.method, status)
	case slices.Contains([]int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented}, status) && !volumeNotFound().MatchString(text):
		if c.optional {
			return errUnsupported
		}
		return c.fail(wire.DriverError, "the driver does not support %s (status %d)", c.method, status)
	case text == "":
		return c.fail(wire.DriverError, "the driver's answer to %s is empty (status %d)", c.method, status)
	case status != http.StatusOK:
		return c.said(fmt.Sprintf("%s (status %d)", text, status))
	case err != nil || data[0] != '{':
		e := c.said(text + " (not a JSON object)")
		if data[0] == '{' {
			e.Cause = nil // an answer that was cut off or garbled is no refusal
		}
		return e
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return c.fail(wire.DriverError, "the driver's answer to %s makes no sense: %s", c.method, clean(err.Error()))
	}
	return nil
}

// errText is the text of an Err field, "" where there is none. One that is no string is an error too.
func errText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return string(raw)
	}
	return s
}

// How drivers say that a volume does not exist. Answers to Get and Path are about nothing else; those to other calls must speak of the volume, so that
// "mount.nfs: not found" stays the failure that it is.
// They are compiled when the first driver says no: at each start they were the largest part of what packages allocate (docs/performance.md).
var (
	notFound = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)not found|no such|not exist|doesn't exist|(not|n't|unable to|failed to) (find|locate)|unknown volume|no volume`)
	})
	volumeNotFound = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)(no such|unknown) volume|\bvolume\b.*(not found|not exist|doesn't exist)|` +
			`(not|n't|unable to|failed to) (find|locate) (the )?volume\b|no volume (found|named|with)`)
	})
)

// said is the error for a driver that answered with one: volume_not_found if that is what it means, else driver_error; ErrRefused in both.
func (c call) said(text string) *wire.Error {
	code, means := wire.DriverError, volumeNotFound
	if c.stage == "get" || c.stage == "path" {
		means = notFound
	}
	if c.ask.Name != "" && means().MatchString(text) {
		code = wire.VolumeNotFound
	}
	return c.fail(code, "the driver says: %s", clean(text)).Because(ErrRefused)
}

// connect connects, again and again as long as nobody answers and ctx lasts. Every failure is driver_unavailable: nothing was sent. It does not wait
// where waiting cannot help: without permission, and when TLS fails.
func (p *Plugin) connect(ctx context.Context, l *Location, t task) (net.Conn, error) {
	start := time.Now()
	var last error
	for n := 0; ; n++ {
		conn, err := (&net.Dialer{}).DialContext(ctx, l.network, l.dial)
		switch {
		case err == nil:
			return l.handshake(ctx, conn, t)
		case errors.Is(err, fs.ErrPermission) && l.network == "unix":
			return nil, noAccess(t, l.dial, "rw", err)
		case ctx.Err() == nil || last == nil:
			last = err
		}
		if ctx.Err() == nil {
			p.pause(ctx, n)
		}
		if ctx.Err() != nil {
			return nil, t.fail(wire.DriverUnavailable, "nobody answers at %s (tried for %v): %s", l.Address,
				time.Since(start).Round(time.Millisecond), clean(last.Error())).
				WithHint("start the plugin; if it is gone for good, remove %s", l.from())
		}
	}
}

// handshake wraps the connection in TLS where the driver is asked over it.
func (l *Location) handshake(ctx context.Context, conn net.Conn, t task) (net.Conn, error) {
	if l.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, l.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, t.fail(wire.DriverUnavailable, "no TLS connection to %s: %s", l.Address, clean(err.Error()))
	}
	return secure, nil
}

// pause waits 10 ms, then twice as long each time, up to a second.
func pause(ctx context.Context, n int) {
	t := time.NewTimer(min(10*time.Millisecond<<min(n, 7), time.Second))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
