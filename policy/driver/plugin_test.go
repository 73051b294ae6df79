package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

func TestPluginSpeaksTheProtocol(t *testing.T) {
	s := &server{answers: map[string]http.HandlerFunc{
		"Create":       text(200, `{"Err":""}`),
		"Get":          text(200, `{"Volume":{"Name":"v","Mountpoint":"/r/v/","CreatedAt":"2020-01-02T03:04:05Z","Status":{"a":1}},"Err":""}`),
		"List":         text(200, `{"Volumes":[{"Name":"v"},{"Name":"a b/c","Mountpoint":"/r/w"}]}`),
		"Path":         text(200, `{"Mountpoint":"/r/v"}`),
		"Mount":        text(200, `{"Mountpoint":"/r//v/data","Err":null}`+"\n"),
		"Unmount":      text(200, `{}`),
		"Remove":       text(200, `{}`),
		"Capabilities": text(200, `{"Capabilities":{"Scope":"Global"}}`),
	}}
	p, ctx := served(t, s, "/r"), t.Context()
	check := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %#v, %v; want %#v", what, got, err, want)
		}
	}
	check("Create", nil, nil, p.Create(ctx, "v", map[string]string{"size": "5", "k": "a=b\n"}))
	check("Create", nil, nil, p.Create(ctx, "v", nil))
	v, err := p.Get(ctx, "v")
	check("Get", v, Volume{Name: "v", Mountpoint: "/r/v", CreatedAt: "2020-01-02T03:04:05Z", Status: map[string]any{"a": 1.0}}, err)
	all, err := p.List(ctx)
	check("List", all, []Volume{{Name: "v"}, {Name: "a b/c", Mountpoint: "/r/w"}}, err)
	path, err := p.Path(ctx, "v")
	check("Path", path, "/r/v", err)
	m, err := p.Mount(ctx, "v", "id1")
	check("Mount", m, "/r/v/data", err)
	check("Unmount", nil, nil, p.Unmount(ctx, "v", "id1"))
	check("Remove", nil, nil, p.Remove(ctx, "v"))
	c, err := p.Capabilities(ctx)
	check("Capabilities", c, Capabilities{Scope: "global"}, err)

	want := []string{
		"POST /Plugin.Activate",
		`POST /VolumeDriver.Create {"Name":"v","Opts":{"k":"a=b\n","size":"5"}}`,
		`POST /VolumeDriver.Create {"Name":"v","Opts":{}}`,
		`POST /VolumeDriver.Get {"Name":"v"}`,
		`POST /VolumeDriver.List {}`,
		`POST /VolumeDriver.Path {"Name":"v"}`,
		`POST /VolumeDriver.Mount {"Name":"v","ID":"id1"}`,
		`POST /VolumeDriver.Unmount {"Name":"v","ID":"id1"}`,
		`POST /VolumeDriver.Remove {"Name":"v"}`,
		`POST /VolumeDriver.Capabilities {}`,
	}
	if !slices.Equal(s.asked, want) {
		t.Errorf("asked:\n%s\nwant:\n%s", strings.Join(s.asked, "\n"), strings.Join(want, "\n"))
	}
	for _, h := range s.headers {
		if got := h.Get("Accept"); got != "application/vnd.docker.plugins.v1.2+json" {
			t.Errorf("Accept: %q", got)
		}
	}
}

// T37: whatever the plugin answers to Mount, it is asked once and the error says what was wrong.
func TestMountAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		code   wire.Code
		says   string
	}{
		{"500 with Err", text(500, `{"Err":"disk on fire"}`), wire.DriverError, "the driver says: disk on fire"},
		{"200 with Err", text(200, `{"Mountpoint":"/r/v","Err":"disk on fire"}`), wire.DriverError, "the driver says: disk on fire"},
		{"200 with an Err that is an object", text(200, `{"Mountpoint":"/r/v","Err":{"a":"disk on fire"}}`), wire.DriverError, "disk on fire"},
		{"404 with Err", text(404, `{"Err":"disk on fire"}`), wire.DriverError, "the driver says: disk on fire"},
		{"500 with other JSON", text(500, `{"message":"disk on fire"}`), wire.DriverError, "disk on fire"},
		{"500 with a mountpoint", text(500, `{"Mountpoint":"/r/v"}`), wire.DriverError, "status 500"},
		{"201 with a mountpoint", text(201, `{"Mountpoint":"/r/v"}`), wire.DriverError, "status 201"},
		{"500 in plain text", text(500, "disk on fire\n"), wire.DriverError, "the driver says: disk on fire (status 500)"},
		{"200 in plain text", text(200, "disk on fire"), wire.DriverError, "the driver says: disk on fire (not a JSON object)"},
		{"404 page", text(404, "404 page not found"), wire.DriverError, "does not support VolumeDriver.Mount"},
		{"500 empty", text(500, ""), wire.DriverError, "empty (status 500)"},
		{"200 empty", text(200, " \n"), wire.DriverError, "empty (status 200)"},
		{"null", text(200, "null"), wire.DriverError, "not a JSON object"},
		{"an array", text(200, `["/r/v"]`), wire.DriverError, "not a JSON object"},
		{"a string", text(200, `"/r/v"`), wire.DriverError, "not a JSON object"},
		{"two objects", text(200, `{"Mountpoint":"/r/v"}{}`), wire.DriverError, "not a JSON object"},
		{"half an object", text(200, `{"Mountpoint":"/r/`), wire.DriverError, "not a JSON object"},
		{"a mountpoint of another type", text(200, `{"Mountpoint":["/r/v"]}`), wire.DriverError, "makes no sense"},
		{"binary", text(200, "\x00\x01\xff\xfe"), wire.DriverError, "the driver"},
		{"HTML", text(200, "<!DOCTYPE html>\n<html><body>It works!</body></html>"), wire.DriverError, "<!DOCTYPE html>"},
		{"no mountpoint", text(200, `{}`), wire.DriverError, "without a mountpoint"},
		{"an empty mountpoint", text(200, `{"Mountpoint":""}`), wire.DriverError, "without a mountpoint"},
		{"a relative mountpoint", text(200, `{"Mountpoint":"r/v"}`), wire.DriverError, `"r/v", which is not absolute`},
		{"the host's root", text(200, `{"Mountpoint":"/"}`), wire.DriverError, "the host's root"},
		{"the host's root, longer", text(200, `{"Mountpoint":"//./"}`), wire.DriverError, "the host's root"},
		{"dot dot", text(200, `{"Mountpoint":"/r/../etc"}`), wire.DriverError, "not a usable path"},
		{"a newline", text(200, `{"Mountpoint":"/r/v\n/etc"}`), wire.DriverError, "not a usable path"},
		{"a NUL", text(200, `{"Mountpoint":"/r/v\u0000"}`), wire.DriverError, "not a usable path"},
		{"a path that is too long", text(200, `{"Mountpoint":"/r`+strings.Repeat("/v", 3000)+`"}`), wire.DriverError, "not a usable path"},
		{"a component that is too long", text(200, `{"Mountpoint":"/r/`+strings.Repeat("v", 256)+`"}`), wire.DriverError, "not a usable path"},
		{"a volume that is not there", text(500, `{"Err":"volume v not found"}`), wire.VolumeNotFound, "volume v not found"},
		{"a program that is not there", text(500, `{"Err":"mount.nfs: not found"}`), wire.DriverError, "mount.nfs: not found"},
		{"escapes", text(500, `{"Err":"\u001b[2Jred\r\n\u202elevel  \u0007"}`), wire.DriverError, "says: [2Jred level"},
		{"a long story", text(500, `{"Err":"`+strings.Repeat("é", 100_000)+`"}`), wire.DriverError, "é..."},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &server{answers: map[string]http.HandlerFunc{"Mount": c.answer}}
			m, err := served(t, s).Mount(t.Context(), "v", "id1")
			wants(t, err, c.code, "mount", `cannot mount volume "v" with driver "d": `, c.says)
			if m != "" {
				t.Errorf("and yet it returned %q", m)
			}
			if n := s.calls("VolumeDriver.Mount"); n != 1 {
				t.Errorf("asked %d times, want once", n)
			}
		})
	}
}

// Only who says so in words has not done it.
func TestRefusal(t *testing.T) {
	for answer, refused := range map[string]bool{
		`500 {"Err":"no medium"}`:                    true,
		`200 {"Err":"no medium"}`:                    true,
		`500 {"Err":"volume v not found"}`:           true,
		`500 no medium`:                              true,
		`200 no medium`:                              true,
		`200 {"Mountpoint":"/r/`:                     false,
		`200 {"Mountpoint":"/r/v"}{"Mountpoint":"/"`: false,
		`200 {"Mountpoint":"/"}`:                     false,
		`200 {}`:                                     false,
		`200 `:                                       false,
	} {
		status, body, _ := strings.Cut(answer, " ")
		n, _ := strconv.Atoi(status)
		_, err := served(t, &server{answers: map[string]http.HandlerFunc{"Mount": text(n, body)}}).Mount(t.Context(), "v", "id1")
		if err == nil || errors.Is(err, ErrRefused) != refused {
			t.Errorf("%s: %v: refused %v, want %v", answer, err, !refused, refused)
		}
	}
}

// T37, below HTTP.
func TestBrokenConversation(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(net.Conn)
		says   string
	}{
		{"closes at once", func(net.Conn) {}, "did not answer VolumeDriver.Mount properly"},
		{"does not speak HTTP", func(c net.Conn) { io.WriteString(c, "220 smtp ready\r\n\r\n") }, "did not answer VolumeDriver.Mount properly"},
		{"stops in the body", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{") }, "unexpected EOF"},
		{"an endless body", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n{\"Mountpoint\":\"/")
			endless(t, c)
		}, "over 1048576 bytes"},
		{"an endless body in chunks", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n")
			endless(t, c)
		}, "over 1048576 bytes"},
		{"an announced gigabyte", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
			endless(t, c)
		}, "over 1048576 bytes"},
		{"an endless header", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
			endless(t, c)
		}, "did not answer VolumeDriver.Mount properly"},
		{"endless interim answers", func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n"); err != nil {
					return
				}
			}
		}, "did not answer VolumeDriver.Mount properly"},
		{"gzip that nobody asked for", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00")
		}, "not a JSON object"},
		{"switches protocols", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n{}")
		}, "status 101"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t)
			raw(t, listen(t, dir+"/d.sock"), c.answer)
			_, err := plugin(t, Options{SocketDirs: []string{dir}}).Mount(t.Context(), "v", "id1")
			wants(t, err, wire.DriverError, "mount", c.says)
		})
	}
}

// endless writes until the other side hangs up, which it must do long before a gigabyte has passed.
func endless(t *testing.T, c net.Conn) {
	chunk := []byte(strings.Repeat("x", 64<<10))
	for n := 0; ; n += len(chunk) {
		if _, err := c.Write(chunk); err != nil {
			return
		}
		if n > 64<<20 {
			t.Errorf("took 64 MiB and asked for more")
			return
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		other := &server{answers: map[string]http.HandlerFunc{"Mount": text(200, `{"Mountpoint":"/r/v"}`)}}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		serve(t, l, other)
		s := &server{}
		s.answers = map[string]http.HandlerFunc{"Mount": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+l.Addr().String()+"/VolumeDriver.Mount", status)
		}}
		_, err = served(t, s).Mount(t.Context(), "v", "id1")
		wants(t, err, wire.DriverError, "mount", "redirect", fmt.Sprint(status))
		if len(other.asked) > 0 {
			t.Errorf("%d: it followed: %q", status, other.asked)
		}
	}
}

// A plugin that hangs ends in a timeout that names stage, driver and method.
func TestHang(t *testing.T) {
	for _, c := range []struct{ name, start string }{
		{"before the answer", ""},
		{"in the header", "HTTP/1.1 200 OK\r\n"},
		{"in the body", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, ctx := folder(t), newDeadline(t)
			raw(t, listen(t, dir+"/d.sock"), func(conn net.Conn) {
				io.WriteString(conn, c.start)
				close(ctx.passed)
				conn.Read(make([]byte, 1)) // until the driver hangs up
			})
			err := plugin(t, Options{SocketDirs: []string{dir}}).Unmount(ctx, "v", "id1")
			e := wants(t, err, wire.Timeout, "unmount", `cannot unmount volume "v" with driver "d"`, "no answer to VolumeDriver.Unmount within")
			if !strings.Contains(e.Hint, "[driver.d] timeouts") {
				t.Errorf("hint: %q", e.Hint)
			}
		})
	}
	t.Run("at activation", func(t *testing.T) {
		ctx := newDeadline(t)
		s := &server{answers: map[string]http.HandlerFunc{"Plugin.Activate": func(_ http.ResponseWriter, r *http.Request) {
			close(ctx.passed)
			<-r.Context().Done()
		}}}
		_, err := served(t, s).Mount(ctx, "v", "id1")
		wants(t, err, wire.Timeout, "activate", "no answer to Plugin.Activate")
	})
	t.Run("until we are interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &server{answers: map[string]http.HandlerFunc{"Mount": func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		}}}
		_, err := served(t, s).Mount(ctx, "v", "id1")
		wants(t, err, wire.Timeout, "mount", "interrupted")
	})
}

func TestConnectsAgainUntilSomebodyAnswers(t *testing.T) {
	good := func() *server {
		return &server{answers: map[string]http.HandlerFunc{"Mount": text(200, `{"Mountpoint":"/r/v"}`)}}
	}
	// Each case prepares a place where nobody answers, and returns how to change that.
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, dir string) (o Options, arrive func(*server))
	}{
		{"a stale socket", func(t *testing.T, dir string) (Options, func(*server)) {
			stale(t, dir+"/d.sock")
			return Options{SocketDirs: []string{dir}}, func(s *server) {
				if err := unix.Unlink(dir + "/d.sock"); err != nil {
					t.Error(err)
				}
				serve(t, listen(t, dir+"/d.sock"), s)
			}
		}},
		{"a socket that is not there yet", func(t *testing.T, dir string) (Options, func(*server)) {
			return Options{Address: "unix://" + dir + "/x.sock"}, func(s *server) { serve(t, listen(t, dir+"/x.sock"), s) }
		}},
		{"a spec for a closed port", func(t *testing.T, dir string) (Options, func(*server)) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			write(t, dir+"/d.spec", "tcp://"+l.Addr().String()+"\n")
			return Options{SocketDirs: []string{}, SpecDirs: []string{dir}}, func(s *server) {
				again, err := net.Listen("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				serve(t, again, s)
			}
		}},
		{"a queue that is full, since nobody accepts", func(t *testing.T, dir string) (Options, func(*server)) {
			l := crowded(t, dir+"/d.sock")
			return Options{SocketDirs: []string{dir}}, func(s *server) { serve(t, l, s) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good()
			o, arrive := c.setup(t, folder(t))
			p := plugin(t, o)
			attempts := 0
			p.pause = func(ctx context.Context, n int) {
				if attempts++; n != attempts-1 {
					t.Errorf("pause %d after attempt %d", n, attempts)
				}
				switch {
				case attempts == 3:
					arrive(s)
				case attempts > 3: // the queue takes a moment to empty
					pause(ctx, n)
				}
			}
			if m, err := p.Mount(t.Context(), "v", "id1"); err != nil || m != "/r/v" {
				t.Fatalf("got %q, %v", m, err)
			}
			if attempts < 3 || s.calls("VolumeDriver.Mount") != 1 {
				t.Errorf("%d attempts, asked %q", attempts, s.asked)
			}
		})
		t.Run(c.name+", ever", func(t *testing.T) {
			o, _ := c.setup(t, folder(t))
			p, ctx := plugin(t, o), newDeadline(t)
			p.pause = func(_ context.Context, n int) {
				if n == 5 {
					close(ctx.passed)
				}
			}
			_, err := p.Mount(ctx, "v", "id1")
			e := wants(t, err, wire.DriverUnavailable, "activate", `cannot mount volume "v" with driver "d": nobody answers at`, "tried for")
			if e.Hint == "" {
				t.Error("no hint")
			}
		})
	}
}

// crowded is a listener whose queue is full.
func crowded(t *testing.T, path string) net.Listener {
	l := listen(t, path)
	c, err := l.(*net.UnixListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) })
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		conn, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			return l
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue does not fill")
	return nil
}

func TestUnavailableAtOnce(t *testing.T) {
	dir := folder(t)
	_, err := plugin(t, Options{SocketDirs: []string{dir}, SpecDirs: []string{dir + "/none"}}).Mount(t.Context(), "v", "id1")
	e := wants(t, err, wire.DriverUnavailable, "discover", `cannot use driver "d"`, dir)
	if !strings.Contains(e.Hint, "[driver.d]") {
		t.Errorf("hint: %q", e.Hint)
	}
}

func TestActivation(t *testing.T) {
	t.Run("once, however many ask", func(t *testing.T) {
		s := &server{answers: map[string]http.HandlerFunc{"Unmount": text(200, "{}")}}
		p := served(t, s)
		var group sync.WaitGroup
		for i := range 32 {
			group.Go(func() {
				if err := p.Unmount(t.Context(), fmt.Sprint("v", i), "id1"); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if a, u := s.calls("Plugin.Activate"), s.calls("VolumeDriver.Unmount"); a != 1 || u != 32 {
			t.Errorf("activated %d times for %d calls", a, u)
		}
	})
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		says   string
	}{
		{"another kind of plugin", text(200, `{"Implements":["NetworkDriver","\u001b[0m"]}`), "NetworkDriver"},
		{"nothing", text(200, `{}`), "no volume driver"},
		{"an error", text(500, `{"Err":"not today"}`), "not today"},
		{"a page", text(404, `<html>`), "does not support Plugin.Activate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &server{answers: map[string]http.HandlerFunc{"Plugin.Activate": c.answer, "Unmount": text(200, "{}")}}
			p := served(t, s)
			wants(t, p.Unmount(t.Context(), "v", "id1"), wire.DriverError, "activate", c.says)
			if n := s.calls("VolumeDriver"); n != 0 {
				t.Errorf("called all the same: %q", s.asked)
			}
			s.mu.Lock()
			s.answers["Plugin.Activate"] = text(200, activated)
			s.mu.Unlock()
			if err := p.Unmount(t.Context(), "v", "id1"); err != nil {
				t.Errorf("the failure is remembered: %v", err)
			}
		})
	}
}

func TestOldPlugins(t *testing.T) {
	ctx := t.Context()
	list := text(200, `{"Volumes":[{"Name":"other"},{"Name":"v","Mountpoint":"/r/v"}]}`)
	for _, c := range []struct {
		name    string
		answers map[string]http.HandlerFunc
		volume  string
		want    string
		code    wire.Code // "" for none
	}{
		{"Get falls back to List", map[string]http.HandlerFunc{"List": list}, "v", "/r/v", ""},
		{"and does not find it", map[string]http.HandlerFunc{"List": list}, "w", "", wire.VolumeNotFound},
		{"501 is as good", map[string]http.HandlerFunc{"Get": text(501, "no"), "List": list}, "v", "/r/v", ""},
		{"List fails", map[string]http.HandlerFunc{"List": text(500, `{"Err":"boom"}`)}, "v", "", wire.DriverError},
		{"Path is last", map[string]http.HandlerFunc{"Path": text(200, `{"Mountpoint":"/r/v"}`)}, "v", "/r/v", ""},
		{"without a path", map[string]http.HandlerFunc{"Path": text(200, `{"Mountpoint":""}`)}, "v", "", wire.VolumeNotFound},
		{"Path does not find it", map[string]http.HandlerFunc{"Path": text(200, `{"Err":"v does not exist"}`)}, "v", "", wire.VolumeNotFound},
		{"Path fails", map[string]http.HandlerFunc{"Path": text(200, `{"Err":"boom"}`)}, "v", "", wire.DriverError},
		{"Path is hostile", map[string]http.HandlerFunc{"Path": text(200, `{"Mountpoint":"/"}`)}, "v", "", wire.DriverError},
		{"nothing at all", nil, "v", "", wire.VolumeNotFound},
		{"a 404 that speaks of the volume is an answer", map[string]http.HandlerFunc{"Get": text(404, "volume v not found"), "List": list}, "v", "", wire.VolumeNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := served(t, &server{answers: maps.Clone(c.answers)}).Get(ctx, c.volume)
			if c.code != "" {
				wants(t, err, c.code, "get")
			} else if err != nil || v.Name != c.volume || v.Mountpoint != c.want {
				t.Errorf("got %+v, %v", v, err)
			}
		})
	}
	p := served(t, &server{})
	if c, err := p.Capabilities(ctx); err != nil || c.Scope != ScopeLocal {
		t.Errorf("Capabilities: %v, %v", c, err)
	}
	_, err := p.List(ctx)
	wants(t, err, wire.DriverError, "list", "does not support it")
	_, err = p.Path(ctx, "v")
	wants(t, err, wire.DriverError, "path", "does not support VolumeDriver.Path")
}

func TestCapabilities(t *testing.T) {
	for answer, want := range map[string]string{
		`{"Capabilities":{"Scope":"global"}}`: ScopeGlobal, `{"Capabilities":{"Scope":"local"}}`: ScopeLocal,
		`{"Capabilities":{}}`: ScopeLocal, `{}`: ScopeLocal, `{"Capabilities":{"Scope":"galaxy"}}`: ScopeLocal,
	} {
		c, err := served(t, &server{answers: map[string]http.HandlerFunc{"Capabilities": text(200, answer)}}).Capabilities(t.Context())
		if err != nil || c.Scope != want {
			t.Errorf("%s: got %q, %v", answer, c.Scope, err)
		}
	}
	_, err := served(t, &server{answers: map[string]http.HandlerFunc{"Capabilities": text(500, "boom")}}).Capabilities(t.Context())
	wants(t, err, wire.DriverError, "capabilities", "boom")
}

// What drivers in the field say of a volume that is not there.
func TestVolumeNotFound(t *testing.T) {
	for _, c := range []struct {
		text       string
		get, mount bool // whether it means that, in answer to Get and to Mount
	}{
		{"no such volume", true, true},
		{"volume v not found", true, true},
		{`get v: no such volume`, true, true},
		{"No volume found with the name v", true, true},
		{"Volume v does not exist", true, true},
		{"Could not find volume with given name.", true, true},
		{"Couldn't find volume v", true, true},
		{"Unable to locate volume", true, true},
		{"resource not found", true, false},
		{"v does not exist", true, false},
		{"stat /data/v: no such file or directory", true, false},
		{`exec: "mount.ceph": executable file not found in $PATH`, true, false},
		{"VolumeDriver.Mount: mkfs not found", true, false},
		{"disk on fire", false, false},
		{"volume v is busy", false, false},
	} {
		code := map[bool]wire.Code{true: wire.VolumeNotFound, false: wire.DriverError}
		answer := text(500, fmt.Sprintf(`{"Err":%q}`, c.text))
		p := served(t, &server{answers: map[string]http.HandlerFunc{"Get": answer, "Mount": answer}})
		_, err := p.Get(t.Context(), "v")
		wants(t, err, code[c.get], "get", c.text)
		_, err = p.Mount(t.Context(), "v", "id1")
		wants(t, err, code[c.mount], "mount", c.text)
	}
	for _, answer := range []string{`{}`, `{"Volume":null}`} {
		_, err := served(t, &server{answers: map[string]http.HandlerFunc{"Get": text(200, answer)}}).Get(t.Context(), "v")
		wants(t, err, wire.VolumeNotFound, "get")
	}
}

// T43, and that no other call is believed more than Mount.
func TestRoots(t *testing.T) {
	for _, c := range []struct {
		mountpoint string
		ok         bool
	}{
		{"/var/lib/d/volumes/v", true},
		{"/var/lib/d/volumes/v/data", true},
		{"/mnt/v", true},
		{"/var/lib/d/volumes", false}, // every volume at once
		{"/var/lib/d/volumes/", false},
		{"/var/lib/d/volumesx/v", false},
		{"/var/lib/d", false},
		{"/var/lib/other/volumes/v", false},
		{"/var/lib/d/volumes/../../other/v", false},
		{"/etc", false},
	} {
		volume := fmt.Sprintf(`{"Name":"v","Mountpoint":%q}`, c.mountpoint)
		p := served(t, &server{answers: map[string]http.HandlerFunc{
			"Mount": text(200, volume), "Path": text(200, volume), "Get": text(200, `{"Volume":`+volume+`}`), "List": text(200, `{"Volumes":[`+volume+`]}`),
		}}, "/var/lib/d/volumes", "/mnt/")
		_, mount := p.Mount(t.Context(), "v", "id1")
		_, path := p.Path(t.Context(), "v")
		_, get := p.Get(t.Context(), "v")
		_, list := p.List(t.Context())
		for stage, err := range map[string]error{"mount": mount, "path": path, "get": get, "list": list} {
			switch {
			case c.ok && err != nil:
				t.Errorf("%s: %v", c.mountpoint, err)
			case !c.ok && strings.Contains(c.mountpoint, ".."):
				wants(t, err, wire.DriverError, stage, `"v"`, c.mountpoint)
			case !c.ok:
				wants(t, err, wire.DriverError, stage, `"v"`, c.mountpoint, "/var/lib/d/volumes or /mnt")
			}
		}
	}
	// What is others' is none of its volumes, with roots or without.
	for where, ok := range map[string]bool{"/var/lib/bindgate/volumes/v": false, "/var/lib/bindgate/volumes": false, "/var/lib": false, "/var/lib/bindgate/volumesx": true, "/v": true} {
		p := served(t, &server{answers: map[string]http.HandlerFunc{"Mount": text(200, fmt.Sprintf(`{"Mountpoint":%q}`, where))}})
		p.closed = wire.ParsePaths([]string{"/var/lib/bindgate/volumes"})
		if _, err := p.Mount(t.Context(), "v", "id1"); ok && err != nil {
			t.Error(err)
		} else if !ok {
			wants(t, err, wire.DriverError, "mount", where, "not in /var/lib/bindgate/volumes")
		}
	}
	_, err := NewPlugin("d", Options{Closed: []string{"lib"}})
	wants(t, err, wire.Config, "discover", `"lib"`)
	_, err = NewPlugin("d", Options{Roots: []string{"var/lib"}})
	wants(t, err, wire.Config, "discover", `"var/lib"`)
}

// T39: what JSON cannot carry exactly is refused before the plugin is asked; everything else arrives as it is.
func TestNamesAndOptions(t *testing.T) {
	s := &server{answers: map[string]http.HandlerFunc{"Create": text(200, "{}")}}
	p, ctx := served(t, s), t.Context()
	for what, name := range map[string]string{"empty": "", "newline": "a\nb", "NUL": "a\x00", "escape": "\x1b[0m", "C1": "a\u0085", "not UTF-8": "a\xff", "long": strings.Repeat("v", 4096)} {
		wants(t, p.Create(ctx, name, nil), wire.InvalidRequest, "create", "the volume's name")
		_, err := p.Mount(ctx, name, "id1")
		wants(t, err, wire.InvalidRequest, "mount", "the volume's name")
		_, err = p.Get(ctx, name)
		wants(t, err, wire.InvalidRequest, "get", "the volume's name")
		_, err = p.Path(ctx, name)
		wants(t, err, wire.InvalidRequest, "path", "the volume's name")
		wants(t, p.Unmount(ctx, name, "id1"), wire.InvalidRequest, "unmount", "the volume's name")
		wants(t, p.Remove(ctx, name), wire.InvalidRequest, "remove", "the volume's name")
		wants(t, p.Create(ctx, "v", map[string]string{name: "x"}), wire.InvalidRequest, "create", "option")
		if t.Failed() {
			t.Fatalf("with a name that is %s", what)
		}
	}
	wants(t, p.Create(ctx, "v", map[string]string{"k": "\xff"}), wire.InvalidRequest, "create", `"k"`)
	_, err := p.Mount(ctx, "v", "")
	wants(t, err, wire.InvalidRequest, "mount", "the id")
	if len(s.asked) != 0 {
		t.Fatalf("asked all the same: %q", s.asked)
	}
	for _, name := range []string{"a/b", "../x", "$(reboot)", "a b", `"quoted"`, "<&>", "ü", "k=v", "nfs.example.com/export/home"} {
		got := make(chan string, 1)
		s.mu.Lock()
		s.answers["Create"] = func(w http.ResponseWriter, _ *http.Request) {
			s.mu.Lock()
			got <- s.asked[len(s.asked)-1]
			s.mu.Unlock()
			io.WriteString(w, "{}")
		}
		s.mu.Unlock()
		if err := p.Create(ctx, name, map[string]string{name: name + "\n= "}); err != nil {
			t.Fatal(err)
		}
		var q question
		decode(t, strings.TrimPrefix(<-got, "POST /VolumeDriver.Create "), &q)
		if q.Name != name || len(q.Opts) != 1 || q.Opts[name] != name+"\n= " {
			t.Errorf("%q arrived as %+v", name, q)
		}
	}
}

func TestListsNoUnusableNames(t *testing.T) {
	for _, volume := range []string{`null`, `{}`, `{"Name":""}`, `{"Name":"a\u001b[0m"}`, `{"Name":3}`} {
		_, err := served(t, &server{answers: map[string]http.HandlerFunc{"List": text(200, `{"Volumes":[{"Name":"v"},`+volume+`]}`)}}).List(t.Context())
		wants(t, err, wire.DriverError, "list")
	}
	for _, none := range []string{`{}`, `{"Volumes":null}`, `{"Volumes":[]}`} {
		all, err := served(t, &server{answers: map[string]http.HandlerFunc{"List": text(200, none)}}).List(t.Context())
		if err != nil || all == nil || len(all) != 0 {
			t.Errorf("%s: %#v, %v", none, all, err)
		}
	}
}
