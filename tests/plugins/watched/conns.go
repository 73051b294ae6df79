package watched

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// conns are the connections of a plugin. A caller that is killed may leave a request that nobody has read yet; were an Unmount by the next caller carried out before it, the two would end in the wrong order, which
// no caller could see.
type conns struct {
	mu   sync.Mutex
	open map[*conn]bool
}

// A conn is one connection. closed is closed when the server is done with it, which it is once a caller that is gone has nothing more to be read.
type conn struct {
	net.Conn
	of     *conns
	pid    int // of the caller
	closed chan struct{}
	once   sync.Once
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.of.mu.Lock()
		delete(c.of.open, c)
		c.of.mu.Unlock()
		close(c.closed)
	})
	return c.Conn.Close()
}

// gone reports whether the caller is: whether it has closed its side, or ended.
func (c *conn) gone() bool {
	raw, err := c.Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return true
	}
	hup := false
	raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, _ := unix.Poll(p, 0)
		hup = n > 0 && p[0].Revents&unix.POLLHUP != 0
	})
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return hup || err != nil || strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X")
}

type listener struct {
	net.Listener
	of *conns
}

func (cs *conns) track(l net.Listener) net.Listener {
	cs.open = map[*conn]bool{}
	return &listener{l, cs}
}

func (l *listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, of: l.of, closed: make(chan struct{})}
	if raw, err := inner.(*net.UnixConn).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				c.pid = int(cred.Pid)
			}
		})
	}
	l.of.mu.Lock()
	l.of.open[c] = true
	l.of.mu.Unlock()
	return c, nil
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// awaitEarlier waits until everything is done that callers asked which are gone. The request is that of ctx; if its own caller is gone it waits for nobody, so nobody waits in a circle.
func (cs *conns) awaitEarlier(socket string, ctx context.Context) {
	own, _ := ctx.Value(connKey{}).(*conn)
	if own == nil || own.gone() {
		return
	}
	// Connections are accepted in order: once one of our own was served, those before it are known.
	if fence, err := net.Dial("unix", socket); err == nil {
		fmt.Fprint(fence, "POST /Plugin.Activate HTTP/1.0\r\n\r\n")
		fence.Read(make([]byte, 1))
		fence.Close()
	}
	cs.mu.Lock()
	var gone []*conn
	for c := range cs.open {
		if c != own && c.gone() {
			gone = append(gone, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range gone {
		<-c.closed
	}
}
