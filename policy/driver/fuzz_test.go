package driver

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

// oneLine checks an error that was made of what somebody else wrote.
func oneLine(t *testing.T, err error, codes ...wire.Code) {
	t.Helper()
	e := wire.AsError(err)
	if !slices.Contains(codes, e.Code) {
		t.Errorf("%s: %v", e.Code, e)
	}
	if !utf8.ValidString(e.Message) || strings.ContainsFunc(e.Message, func(r rune) bool { return unicode.IsControl(r) }) || len(e.Message) > 4096 {
		t.Errorf("not one line: %q", e.Message)
	}
}

// FuzzAnswer: whatever bytes come back from a plugin, a value that can be used or one printable line.
func FuzzAnswer(f *testing.F) {
	for _, body := range []string{"", "{}", `{"Mountpoint":"/m"}`, `{"Mountpoint":"../x"}`, `{"Err":"no such volume"}`, `{"Err":{}}`, `{"Volume":{"Name":"w","Mountpoint":"/m//v","CreatedAt":"x\u001b","Status":{"a":[1]}}}`,
		`{"Volumes":[null,{"Name":""}]}`, `{"Volumes":[{"Name":"v","Mountpoint":"/"}]}`, `{"Capabilities":{"Scope":"global"}}`, `{"Capabilities":{"Scope":1}}`, "null", "[]", "<html>", "\x1b[2J\xff"} {
		for _, head := range []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 500 X\r\n\r\n", "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", "HTTP/1.1 302 F\r\nLocation: http://x/\r\n\r\n", "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", ""} {
			f.Add([]byte(head + body))
		}
	}
	dir := f.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "d.sock"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	var answer atomic.Pointer[[]byte]
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				c.Write(*answer.Load())
			}
			c.Close()
		}
	}()
	ctx := context.Background()
	f.Fuzz(func(t *testing.T, data []byte) {
		answer.Store(&data)
		p, err := NewPlugin("d", Options{SocketDirs: []string{dir}, SpecDirs: []string{}, MaxAnswer: 1 << 16})
		if err != nil {
			t.Fatal(err)
		}
		path := func(s string, err error) {
			t.Helper()
			if q, e := wire.ParsePath(s); err == nil && s != "" && (e != nil || !q.Absolute || len(q.Components) == 0 || q.String() != s || !printable(s)) {
				t.Errorf("a path that is none: %q", s)
			}
		}
		volume := func(v Volume, err error) {
			t.Helper()
			path(v.Mountpoint, err)
			if err == nil && (v.Name == "" || !printable(v.Name) || !printable(v.CreatedAt)) {
				t.Errorf("%+v", v)
			}
		}
		for name, ask := range map[string]func() error{
			"activate": func() error { return p.Remove(ctx, "v") },
			"mount":    func() error { m, err := p.Mount(ctx, "v", "id"); path(m, err); return err },
			"path":     func() error { m, err := p.Path(ctx, "v"); path(m, err); return err },
			"unmount":  func() error { return p.Unmount(ctx, "v", "id") },
			"get":      func() error { v, err := p.Get(ctx, "v"); volume(v, err); return err },
			"list": func() error {
				all, err := p.List(ctx)
				for _, v := range all {
					volume(v, err)
				}
				return err
			},
			"capabilities": func() error { _, err := p.Capabilities(ctx); return err },
		} {
			p.activated = "unix://" + filepath.Join(dir, "d.sock")
			if name == "activate" {
				p.activated = ""
			}
			if err := ask(); err != nil {
				oneLine(t, err, wire.DriverError, wire.VolumeNotFound)
			} else if name == "activate" && !strings.Contains(string(data), "VolumeDriver") {
				t.Errorf("activated by %q", data)
			}
		}
	})
}

// FuzzSpec: whatever a spec file holds, a place to connect to or one printable line; TLS is verified unless it says otherwise in so many words.
func FuzzSpec(f *testing.F) {
	for _, s := range []string{"unix:///run/x.sock", "tcp://h:1\n", "https://h", "http://[::1]:80/x", "unix://", " \t", "tcp://h:99999", "npipe:////./x",
		`{"Name":"d","Addr":"tcp://h:1"}`, `{"Addr":"https://h:1","TLSConfig":{"InsecureSkipVerify":true}}`, `{"Addr":"https://h","TLSConfig":{"CAFile":"/nope"}}`,
		`{"Addr":"tcp://h:1","TLSConfig":{}}`, `{"Addr":"unix:///x","TLSConfig":{}}`, "\x1b[2J", "unix:///a\x00b", "unix:///%1b"} {
		f.Add(false, s)
		f.Add(true, s)
	}
	f.Fuzz(func(t *testing.T, json bool, content string) {
		ext := map[bool]string{false: ".spec", true: ".json"}[json]
		dir := folder(t)
		write(t, dir+"/d"+ext, content)
		l := Discover("d", Options{SocketDirs: []string{}, SpecDirs: []string{dir}})
		if l.Err != nil {
			oneLine(t, l.Err, wire.Config, wire.DriverUnavailable)
			return
		}
		if l.network != "unix" && l.network != "tcp" || l.dial == "" || l.network == "unix" && !filepath.IsAbs(l.dial) {
			t.Errorf("%q: %+v", content, l)
		}
		if l.tls != nil && (l.tls.InsecureSkipVerify && !strings.Contains(strings.ToLower(content), "insecureskipverify") || !l.tls.InsecureSkipVerify && l.tls.ServerName == "") {
			t.Errorf("%q: unverified: %+v", content, l.tls)
		}
	})
}
