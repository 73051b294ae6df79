package driver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// folder is a temporary folder with a name short enough for sockets.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// listen makes a socket that somebody listens on.
func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// stale makes a socket that nobody listens on any more.
func stale(t *testing.T, path string) {
	t.Helper()
	l := listen(t, path)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

// server is a plugin that answers each method as told and notes what it was asked.
type server struct {
	mu      sync.Mutex
	answers map[string]http.HandlerFunc
	asked   []string // method and body
	headers []http.Header
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.asked = append(s.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
	s.headers = append(s.headers, r.Header)
	answer := s.answers[strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"), "VolumeDriver.")]
	s.mu.Unlock()
	if answer == nil {
		http.NotFound(w, r)
		return
	}
	answer(w, r)
}

func (s *server) calls(method string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.asked {
		if strings.HasPrefix(a, "POST /"+method) {
			n++
		}
	}
	return n
}

func text(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

const activated = `{"Implements":["VolumeDriver"]}`

// serve runs s on l until the test ends.
func serve(t *testing.T, l net.Listener, s *server) {
	if s.answers == nil {
		s.answers = map[string]http.HandlerFunc{}
	}
	if s.answers["Plugin.Activate"] == nil {
		s.answers["Plugin.Activate"] = text(200, activated)
	}
	h := &http.Server{Handler: s}
	go h.Serve(l)
	t.Cleanup(func() { h.Close() })
}

// raw is a plugin that is activated properly and then gets each further connection, with the request read, into its hands.
func raw(t *testing.T, l net.Listener, answer func(net.Conn)) {
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				io.Copy(io.Discard, r.Body)
				if r.URL.Path == "/Plugin.Activate" {
					fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(activated), activated)
					return
				}
				answer(conn)
			}()
		}
	}()
}

// plugin is the driver d, with its socket in dir. Waiting to connect fails the test until it is told otherwise.
func plugin(t *testing.T, o Options) *Plugin {
	t.Helper()
	p, err := NewPlugin("d", o)
	if err != nil {
		t.Fatal(err)
	}
	p.pause = func(context.Context, int) { panic("waits to connect") }
	return p
}

// served is the driver d with s behind it.
func served(t *testing.T, s *server, roots ...string) *Plugin {
	t.Helper()
	dir := folder(t)
	serve(t, listen(t, dir+"/d.sock"), s)
	return plugin(t, Options{SocketDirs: []string{dir}, Roots: roots})
}

// wants fails the test unless err is a *wire.Error of that code and stage whose message has every part.
func wants(t *testing.T, err error, code wire.Code, stage string, parts ...string) *wire.Error {
	t.Helper()
	e, ok := err.(*wire.Error)
	if !ok || e == nil {
		t.Fatalf("got %#v, want a *wire.Error %s", err, code)
	}
	if e.Code != code || e.Stage != stage {
		t.Errorf("got %s at stage %s (%s), want %s at %s", e.Code, e.Stage, e.Message, code, stage)
	}
	if !strings.HasPrefix(e.Message, "cannot ") || !printable(e.Message) || len(e.Message) > 2000 {
		t.Errorf("the message is not fit to print: %q", e.Message)
	}
	for _, p := range parts {
		if !strings.Contains(e.Message, p) {
			t.Errorf("the message %q lacks %q", e.Message, p)
		}
	}
	return e
}

// deadline is a context whose deadline is an event: it passes when the channel is closed.
type deadline struct {
	context.Context
	passed chan struct{}
}

func newDeadline(t *testing.T) deadline { return deadline{t.Context(), make(chan struct{})} }

func (d deadline) Done() <-chan struct{} { return d.passed }

func (d deadline) Err() error {
	select {
	case <-d.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// asNobody runs f without the right to pass by file modes, on a thread of its own that ends with it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan error, 1)
	go func() {
		defer close(done)      // also when f fails the test
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		unix.SetfsuidRetUid(65534)
		if now, _ := unix.SetfsuidRetUid(-1); now != 65534 {
			done <- errors.New("setfsuid did nothing")
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
