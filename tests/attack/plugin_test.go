package attack

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// A polServer is a volume plugin in the attacker's hands, listening in this process. It behaves where it is not told otherwise.
type polServer struct {
	mountpoint string                      // what Mount answers
	answers    map[string]http.HandlerFunc // by call, without "VolumeDriver."

	mu    sync.Mutex
	asked []polCall
}

// A polCall is what it was asked.
type polCall struct {
	Call string `json:"-"`
	Name string
	ID   string
	Opts map[string]string
}

func (s *polServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := polCall{Call: strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"), "VolumeDriver.")}
	json.NewDecoder(r.Body).Decode(&c)
	s.mu.Lock()
	s.asked = append(s.asked, c)
	answer := s.answers[c.Call]
	s.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
	case c.Call == "Plugin.Activate":
		io.WriteString(w, `{"Implements":["VolumeDriver"]}`)
	case c.Call == "Get":
		json.NewEncoder(w).Encode(map[string]any{"Volume": map[string]string{"Name": c.Name}})
	case c.Call == "Mount":
		json.NewEncoder(w).Encode(map[string]string{"Mountpoint": s.mountpoint})
	default:
		io.WriteString(w, "{}")
	}
}

// answer changes what it answers to a call.
func (s *polServer) answer(call string, f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = map[string]http.HandlerFunc{call: f}
}

// calls returns what it was asked, one kind of call or all, and forgets it.
func (s *polServer) calls(call string) (list []polCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.asked {
		if call == "" || c.Call == call {
			list = append(list, c)
		}
	}
	s.asked = nil
	return list
}

// polListen has a server listen at a socket that the policy user can reach.
func polListen(t *testing.T, socket string, s http.Handler) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	polCheck(t, err)
	polCheck(t, os.Chown(socket, 0, harness.PolicyGID))
	polCheck(t, os.Chmod(socket, 0o660))
	server := &http.Server{Handler: s}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

// polPlugin is a plugin under a name, with a volume folder for "v" that Mount answers.
func polPlugin(t *testing.T, h *harness.Host, name string) *polServer {
	t.Helper()
	s := &polServer{mountpoint: h.Mkdir(filepath.Join(h.Sources(), name, "v"), 0o755)}
	polListen(t, filepath.Join(h.Sockets(), name+".sock"), s)
	return s
}

func polCheck(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func polText(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func polMountpoint(path string) http.HandlerFunc {
	data, _ := json.Marshal(map[string]string{"Mountpoint": path})
	return polText(200, string(data))
}

// polNaive asks a plugin as an ordinary client does: the library's defaults, no deadline, the answer read to its end and believed. At most limit bytes are
// read, to end the experiment.
func polNaive(ctx context.Context, socket, call string, ask polCall, limit int64) (mountpoint string, read int64, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	body, _ := json.Marshal(ask)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/VolumeDriver."+call, strings.NewReader(string(body)))
	if err != nil {
		return "", 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	var data bytes.Buffer
	read, err = io.Copy(&data, io.LimitReader(resp.Body, min(limit, 1<<20)))
	more, _ := io.Copy(io.Discard, io.LimitReader(resp.Body, limit-read)) // an ordinary client keeps this too
	var answer struct{ Mountpoint string }
	json.Unmarshal(data.Bytes(), &answer)
	return answer.Mountpoint, read + more, err
}

// polAttach asks for a plugin's volume v in a container, at /data.
func polAttach(h *harness.Host, c *harness.Container, driver string) harness.Result {
	return h.Policy("attach", "-o", "json", "--container", c.ID, "--pid", c.PIDString(), "--mount", "driver="+driver+",name=v,target=/data")
}

// polReleased fails the test unless nothing is attached, no record is left, and a Mount that the plugin may have carried out was followed by one Unmount
// with its id.
func polReleased(t *testing.T, h *harness.Host, c *harness.Container, s *polServer, unmounted bool) {
	t.Helper()
	s.mu.Lock()
	var mounts, unmounts []string
	for _, a := range s.asked {
		switch a.Call {
		case "Mount":
			mounts = append(mounts, a.ID)
		case "Unmount":
			unmounts = append(unmounts, a.ID)
		}
	}
	s.asked = nil
	s.mu.Unlock()
	if len(mounts) != 1 || mounts[0] == "" || unmounted && !slices.Equal(mounts, unmounts) || !unmounted && len(unmounts) != 0 {
		t.Errorf("Mount with %q, Unmount with %q", mounts, unmounts)
	}
	if m := c.Mountinfo("/data"); len(m) != 0 {
		t.Errorf("attached: %q", m)
	}
	polNothingLeft(t, h)
}

func polNothingLeft(t *testing.T, h *harness.Host) {
	t.Helper()
	var d struct {
		Schema     string `json:"schema"`
		Containers []any  `json:"containers"`
		Volumes    []any  `json:"volumes"`
	}
	h.Policy("status", "-o", "json").OK(t).JSON(t, &d)
	if len(d.Containers)+len(d.Volumes) > 0 {
		t.Errorf("left: %+v", d)
	}
}

// T37: a plugin that hangs, answers garbage, a gigabyte, HTML, a redirect, an error with status 200, and mountpoints of all kinds. A client that believes its
// plugin hangs, grows, is led elsewhere, or mounts the host's own files into a container.
func TestT37_HostilePlugin(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rules := h.ReadFile(h.Path("etc/bindgate/policy.toml"))
		s := polPlugin(t, h, "evil")
		socket := filepath.Join(h.Sockets(), "evil.sock")
		c := h.Container(harness.ContainerOptions{ID: "c"})
		naive := func(limit int64) (string, int64, error) {
			return polNaive(t.Context(), socket, "Mount", polCall{Name: "v", ID: "naive"}, limit)
		}

		t.Run("mountpoint", func(t *testing.T) {
			h := h.For(t)
			// The naive way: what the plugin answers is bind-mounted, and the container reads the host's files.
			h.WriteFile("/run/secret", "the host's", 0o600)
			s.answer("Mount", polMountpoint("/run"))
			where, _, err := naive(1 << 20)
			polCheck(t, err)
			victim := h.SharedRoot(harness.SharedRootOptions{ID: "victim"})
			target := h.Mkdir(filepath.Join(h.HostPaths(), "target"), 0o755)
			h.Do(exec.Command("nsenter", "-t", victim.PIDString(), "-m", "mount", "--bind", where, target)).OK(t)
			if got := victim.Exec("cat", target+"/secret").OK(t).Stdout; got != "the host's" {
				t.Fatalf("the attack does not work: %q", got)
			}
			s.calls("")

			link := filepath.Join(h.Sources(), "evil", "link")
			polCheck(t, os.Symlink("/run", link))
			polCheck(t, unix.Mkfifo(filepath.Join(h.Sources(), "evil", "fifo"), 0o644))
			for _, x := range []struct {
				mountpoint string
				code       wire.Code
			}{
				{"", wire.DriverError},
				{"v", wire.DriverError},
				{"./v", wire.DriverError},
				{"/", wire.DriverError},
				{"//.//", wire.DriverError},
				{h.Sources() + "/../../etc", wire.DriverError},
				{h.Sources() + "/evil/v\n/etc", wire.DriverError},
				{h.Sources() + "/evil/v\x00", wire.DriverError},
				{h.Sources() + strings.Repeat("/v", 3000), wire.DriverError},
				{h.Volumes(), wire.DriverError},        // the local driver's
				{h.Volumes() + "/v", wire.DriverError}, // which a rule may deny the job
				{"/run", wire.DriverError},             // and a folder that they are in
				{h.Journal(), wire.DriverError},
				// Usable paths, as far as this process can know. The helper knows better.
				{"/etc", wire.SourceForbidden},
				{"/proc/1/root", wire.SourceForbidden},
				{h.Ledger(), wire.SourceForbidden},
				{h.Sources(), wire.SourceForbidden},
				{h.Sources() + "/evil/none", wire.SourceForbidden},
				{link, wire.SourceForbidden},
				{link + "/bindgate-test", wire.SourceForbidden},
				{h.Sources() + "/evil/fifo", wire.SourceForbidden},
			} {
				s.answer("Mount", polMountpoint(x.mountpoint))
				if r := polAttach(h, c, "evil"); r.Exit != x.code.Exit() || !strings.Contains(r.Stderr, `"`+string(x.code)+`"`) {
					t.Errorf("mountpoint %q: want %s: %v", x.mountpoint, x.code, r)
				}
				polReleased(t, h, c, s, true)
			}
		})

		t.Run("answer", func(t *testing.T) {
			h := h.For(t)
			// The naive way: an error with status 200 goes unnoticed, if there is a mountpoint too.
			s.answer("Mount", polText(200, `{"Mountpoint":"/run","Err":"not today"}`))
			if where, _, err := naive(1 << 20); err != nil || where != "/run" {
				t.Fatalf("the attack does not work: %q, %v", where, err)
			}
			s.calls("")
			for _, x := range []struct {
				name      string
				answer    http.HandlerFunc
				code      wire.Code
				unmounted bool // it may have mounted, and is asked to unmount
				says      string
			}{
				{"an error with status 200", polText(200, `{"Mountpoint":"`+s.mountpoint+`","Err":"not today"}`), wire.DriverError, false, "not today"},
				{"an error with status 500", polText(500, `{"Err":"not today"}`), wire.DriverError, false, "not today"},
				{"HTML", polText(200, "<html><body>It works!</body></html>"), wire.DriverError, false, "It works!"},
				{"half an answer", polText(200, `{"Mountpoint":"`+s.mountpoint), wire.DriverError, true, "not a JSON object"},
				{"another type", polText(200, `{"Mountpoint":{"path":"/"}}`), wire.DriverError, true, "makes no sense"},
				{"binary", polText(200, "\x7fELF\x02\x01\x01\x00"), wire.DriverError, false, "ELF"},
				{"nothing", polText(200, ""), wire.DriverError, true, "empty"},
				{"escapes", polText(500, `{"Err":"\u001b[2J\u001b]0;owned\u0007\nbindgate: all is well"}`), wire.DriverError, false, "owned"},
				{"hangs up", func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, wire.DriverError, true, "properly"},
				{"a header without end", func(w http.ResponseWriter, _ *http.Request) {
					conn, _, err := w.(http.Hijacker).Hijack()
					for err == nil {
						_, err = conn.Write([]byte("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<16)))
					}
				}, wire.DriverError, true, "properly"},
			} {
				s.answer("Mount", x.answer)
				r := polAttach(h, c, "evil")
				msg := r.Fails(t, x.code)
				if !strings.Contains(msg, x.says) || strings.ContainsAny(msg, "\x1b\x07") {
					t.Errorf("%s: %q", x.name, msg)
				}
				polReleased(t, h, c, s, x.unmounted)
			}
		})

		t.Run("gigabyte", func(t *testing.T) {
			h := h.For(t)
			s.answer("Mount", func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, `{"Mountpoint":"`)
				for block := []byte(strings.Repeat("/v", 1<<19)); ; {
					if _, err := w.Write(block); err != nil {
						return
					}
				}
			})
			const much = 128 << 20
			if _, n, err := naive(much); err != nil || n < much {
				t.Fatalf("the attack does not work: %d bytes, %v", n, err)
			}
			s.calls("")
			cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), "attach", "-o", "json", "--container", "c", "--pid", c.PIDString(),
				"--mount", "driver=evil,name=v,target=/data")
			if msg := h.Do(cmd).Fails(t, wire.DriverError); !strings.Contains(msg, "over 1048576 bytes") {
				t.Error(msg)
			}
			if kib := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss; kib > 64<<10 {
				t.Errorf("bindgate used %d KiB for it", kib)
			}
			polReleased(t, h, c, s, true)
		})

		t.Run("redirect", func(t *testing.T) {
			h := h.For(t)
			// Led to another service of the host that trusts who can connect: the client asks it on the attacker's behalf.
			var stolen []string
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				stolen = append(stolen, r.Method+" "+r.URL.Path)
				polMountpoint("/run")(w, r)
			}))
			defer other.Close()
			client := http.Client{}
			s.answer("Mount", func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, other.URL+"/owned", http.StatusTemporaryRedirect)
			})
			front := httptest.NewServer(s)
			defer front.Close()
			resp, err := client.Post(front.URL+"/VolumeDriver.Mount", "", strings.NewReader("{}"))
			polCheck(t, err)
			resp.Body.Close()
			if !slices.Equal(stolen, []string{"POST /owned"}) {
				t.Fatalf("the attack does not work: %q", stolen)
			}
			stolen = nil
			s.calls("")
			for _, address := range []string{"", front.URL} { // a socket, and where a redirect could lead somewhere
				if address != "" {
					h.PolicyTOML(rules + "[driver.evil]\naddress = \"" + address + "\"\n")
				}
				if msg := polAttach(h, c, "evil").Fails(t, wire.DriverError); !strings.Contains(msg, "redirect") {
					t.Error(msg)
				}
				polReleased(t, h, c, s, true)
			}
			h.PolicyTOML(rules)
			if len(stolen) > 0 {
				t.Errorf("the redirect was followed: %q", stolen)
			}
		})

		t.Run("hang", func(t *testing.T) {
			h := h.For(t)
			limits := rules + "[driver.evil.timeouts]\nmount = \"500ms\"\nunmount = \"500ms\"\n"
			h.PolicyTOML(limits) // what does not hang has the time that it takes
			release := make(chan struct{})
			hang := func(http.ResponseWriter, *http.Request) { <-release }
			s.answer("Mount", hang)
			ctx, cancel := context.WithCancel(t.Context())
			waits := make(chan error, 1)
			go func() {
				_, _, err := polNaive(ctx, socket, "Mount", polCall{Name: "v"}, 1<<20)
				waits <- err
			}()
			r := polAttach(h, c, "evil")
			if msg := r.Fails(t, wire.Timeout); !strings.Contains(msg, "mount volume evil/v") || !strings.Contains(msg, "did not answer within") {
				t.Error(msg)
			}
			select {
			case err := <-waits:
				t.Fatalf("the attack does not work: %v", err)
			default: // the naive client still waits
			}
			cancel()
			<-waits
			// Others are not held up by it, and Get and Activate may hang too.
			h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "-v", "other:/other").OK(t)
			h.Policy("detach", "--container", "c", "--all").OK(t)
			h.PolicyTOML(limits + "call = \"500ms\"\n")
			for _, call := range []string{"Get", "Plugin.Activate"} {
				s.answer(call, hang)
				// In case it did mount, the volume is let go before it is used again. That hangs as well, if activation does.
				polAttach(h, c, "evil").Fails(t, wire.Timeout)
			}
			close(release)
			s.answer("", nil)
			h.PolicyTOML(rules)
			h.Policy("recover", "-o", "json").OK(t)
			s.calls("")
			polNothingLeft(t, h)
			polAttach(h, c, "evil").OK(t)
			h.Policy("detach", "--container", "c", "--all").OK(t)
			polReleased(t, h, c, s, true)
		})
	})
}

// T38: the name of a driver is a path; a .json spec says nothing of a CA.
func TestT38_DriverNamesAndUnverifiedTLS(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})

		t.Run("name", func(t *testing.T) {
			h := h.For(t)
			// The naive way: the name is put between the folder and ".sock".
			s := &polServer{mountpoint: h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)}
			h.Mkdir(h.Path("tmp/a"), 0o755)
			polListen(t, h.Path("tmp/a/evil.sock"), s)
			polCheck(t, os.Symlink(h.Path("tmp/a"), filepath.Join(h.Sockets(), "a")))
			for _, name := range []string{"../tmp/a/evil", "a/evil"} {
				if where, _, err := polNaive(t.Context(), h.Sockets()+"/"+name+".sock", "Mount", polCall{Name: "v"}, 1<<20); err != nil || where == "" {
					t.Fatalf("the attack does not work: %v", err)
				}
			}
			s.calls("")
			for _, name := range []string{"../tmp/a/evil", "a/evil", "./a/evil", h.Path("tmp/a/evil"), "..", ".", "", "-evil", "a\x00b", "a\nb", "a b", "é", "a%2fevil",
				strings.Repeat("a", 129)} {
				job := fmt.Sprintf(`[{"container_path":"/data","mode":"RW","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":%s,"name":"v"}}}]`, polJSON(name))
				h.PolicyIn(job, "attach", "-o", "json", "--container", "c", "--pid", c.PIDString()).Fails(t, wire.InvalidRequest)
				if name == "" || strings.Contains(name, "\x00") {
					continue // on the command line: none, so the default; impossible
				}
				h.Policy("attach", "-o", "json", "--container", "c", "--pid", c.PIDString(), "--driver="+name, "-v", "v:/data").Fails(t, wire.InvalidRequest)
				h.Policy("volume", "path", "-o", "json", "--driver="+name, "v").Fails(t, wire.InvalidRequest)
				polDvdcli(h, "mount", "--volumedriver="+name, "--volumename=v").Exits(t, 1)
			}
			if calls := s.calls(""); len(calls) > 0 {
				t.Errorf("a name that is a path led to a plugin: %v", calls)
			}
			polNothingLeft(t, h)
		})

		t.Run("TLS", func(t *testing.T) {
			h := h.For(t)
			s := &polServer{mountpoint: h.Mkdir(filepath.Join(h.Sources(), "tls", "v"), 0o755)}
			evil := httptest.NewUnstartedServer(s) // whoever answers there, with a certificate of its own
			evil.Config.ErrorLog = log.New(io.Discard, "", 0)
			evil.StartTLS()
			defer evil.Close()
			// The naive way: no CA, so nothing to verify with.
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			resp, err := client.Post(evil.URL+"/VolumeDriver.Mount", "", strings.NewReader(`{"Name":"v"}`))
			polCheck(t, err)
			resp.Body.Close()
			if len(s.calls("Mount")) != 1 {
				t.Fatal("the attack does not work")
			}
			ca := h.Path("ca.pem")
			h.WriteFile(ca, polPEM(evil.Certificate().Raw), 0o644)
			stranger := h.Path("stranger.pem")
			h.WriteFile(stranger, polStranger(t), 0o644)
			for _, x := range []struct {
				tls  string
				code wire.Code // "": it works
			}{
				{``, wire.Config},
				{`,"TLSConfig":null`, wire.Config},
				{`,"TLSConfig":{}`, wire.Config},
				{`,"TLSConfig":{"InsecureSkipVerify":false,"CAFile":""}`, wire.Config},
				{`,"TLSConfig":{"CAFile":"` + h.Path("none.pem") + `"}`, wire.Config},
				{`,"TLSConfig":{"CAFile":"` + h.HelperPath() + `"}`, wire.Config},
				{`,"TLSConfig":{"CAFile":"` + stranger + `"}`, wire.DriverUnavailable},
				{`,"TLSConfig":{"CAFile":"` + ca + `"}`, ""},
				{`,"TLSConfig":{"InsecureSkipVerify":true}`, ""}, // it says so itself
			} {
				h.WriteFile(filepath.Join(h.Specs(), "tls.json"), `{"Name":"tls","Addr":"`+evil.URL+`"`+x.tls+`}`, 0o644)
				r := polAttach(h, c, "tls")
				if x.code == "" {
					r.OK(t)
					h.Policy("detach", "--container", "c", "--all").OK(t)
					polReleased(t, h, c, s, true)
					continue
				}
				if r.Exit != x.code.Exit() || !strings.Contains(r.Stderr, `"`+string(x.code)+`"`) {
					t.Errorf("%s: want %s: %v", x.tls, x.code, r)
				}
				if calls := s.calls(""); len(calls) > 0 {
					t.Errorf("%s: it was asked %v", x.tls, calls)
				}
				polNothingLeft(t, h)
			}
		})
	})
}

func polJSON(s string) string {
	data, _ := json.Marshal(s)
	return string(data)
}

func polDvdcli(h *harness.Host, args ...string) harness.Result {
	return h.Do(h.Command(harness.User{}, h.Path("prefix/bin/dvdcli"), args...))
}

// polStranger is the certificate of somebody else.
func polStranger(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	polCheck(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	polCheck(t, err)
	return polPEM(der)
}

func polPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// T39: names and options with anything in them. Through a shell they run; cut, escaped or split they become something else than was reviewed.
func TestT39_NamesAndOptionsArePassedExactlyOrRefused(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		s := polPlugin(t, h, "plugin")
		owned := h.Path("tmp/owned")

		// The naive way, as mesos-module-dvdi does it: a command for a shell.
		evil := "v;touch " + owned + ";"
		h.Do(exec.Command("/bin/sh", "-c", fmt.Sprintf("true mount --volumedriver=%s --volumename=%s", "plugin", evil)))
		if os.Remove(owned) != nil {
			t.Fatal("the attack does not work")
		}

		// Every name and value is used as name, as an option's value and, where it can be, as its key.
		exact := []string{evil, "$(touch " + owned + ")", "`touch " + owned + "`", "a|touch " + owned, "a/b", "../../etc", "/etc/passwd", "a=b", "a=b=c,d", "a b", " a ", "a'b", `a"b`, `a\nb`,
			"*", "?", "~", "-rf", "--volumename=x", "%2e%2e%2f", "%s%n", "é", "日本", "\u202eabc", "&amp;<b>", "{\"a\":1}", strings.Repeat("n", 1024)}
		for _, name := range exact {
			s.answer("Get", polText(404, `{"Err":"no such volume"}`))
			job := fmt.Sprintf(`[{"container_path":"/data","mode":"RW","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":"plugin","name":%s,
				"driver_options":{"parameter":[{"key":"value","value":%[1]s},{"key":%[1]s,"value":"key"},{"key":"empty","value":""}]}}}}]`, polJSON(name))
			h.PolicyIn(job, "attach", "-o", "json", "--container", "c", "--pid", c.PIDString()).OK(t)
			h.Policy("detach", "--container", "c", "--all").OK(t)
			want := map[string]string{"value": name, name: "key", "empty": ""}
			for _, a := range s.calls("") {
				if a.Call != "Plugin.Activate" && a.Name != name {
					t.Errorf("%s of %q for %q", a.Call, a.Name, name)
				}
				if a.Call == "Create" && !polSame(a.Opts, want) {
					t.Errorf("options %q for %q", a.Opts, want)
				}
			}
			// dvdcli and volume: from the command line.
			if polDvdcli(h, "mount", "--volumedriver=plugin", "--volumename="+name).Exit != 0 || polDvdcli(h, "unmount", "--volumedriver=plugin", "--volumename="+name).Exit != 0 {
				t.Errorf("dvdcli with %q", name)
			}
			h.Policy("volume", "create", "--driver=plugin", "--opt=o="+name, "--", name).OK(t)
			for _, a := range s.calls("Create") {
				if a.Name != name || len(a.Opts) > 0 && a.Opts["o"] != name {
					t.Errorf("Create %+v for %q", a, name)
				}
			}
		}
		// A comma separates dvdcli's options; what has one is put into quotes. The rest of a value is its own.
		polDvdcli(h, "create", "--volumedriver=plugin", "--volumename=v", `--volumeopts=a=b=c,"o=addr=10.0.0.1,rw"`, "--volumeopts=x=$(touch "+owned+")").OK(t)
		if calls := s.calls("Create"); len(calls) != 1 || !polSame(calls[0].Opts, map[string]string{"a": "b=c", "o": "addr=10.0.0.1,rw", "x": "$(touch " + owned + ")"}) {
			t.Errorf("%+v", calls)
		}

		// What cannot be passed exactly, or means nothing, is refused, and the plugin is not asked at all.
		for _, bad := range []string{"", "a\nb", "a\tb", "a\x00b", "\x1b[2J", "a\x7f", "a\u0085b", "a\xffb", strings.Repeat("n", 1025)} {
			quoted := polJSON(bad)
			if strings.Contains(bad, "\xff") {
				quoted = "\"" + bad + "\""
			}
			for _, job := range []string{
				`{"driver":"plugin","name":` + quoted + `}`,
				`{"driver":"plugin","name":"v","driver_options":{"parameter":[{"key":` + quoted + `,"value":"x"}]}}`,
			} {
				job = `[{"container_path":"/data","mode":"RW","source":{"type":"DOCKER_VOLUME","docker_volume":` + job + `}}]`
				h.PolicyIn(job, "attach", "-o", "json", "--container", "c", "--pid", c.PIDString()).Fails(t, wire.InvalidRequest)
			}
			if !strings.Contains(bad, "\x00") {
				h.Policy("volume", "create", "-o", "json", "--driver=plugin", "--opt="+bad+"=x", "v").Fails(t, wire.InvalidRequest)
				polDvdcli(h, "mount", "--volumedriver=plugin", "--volumename=v", "--volumeopts="+bad+"=x").Exits(t, 1)
			}
		}
		if calls := s.calls(""); len(calls) > 0 {
			t.Errorf("the plugin was asked %v", calls)
		}
		if _, err := os.Lstat(owned); err == nil {
			t.Error("a name was run")
		}
		polNothingLeft(t, h)
	})
}

func polSame(a, b map[string]string) bool {
	return fmt.Sprintf("%q", a) == fmt.Sprintf("%q", b) // sorted by key
}

// T43: a plugin returns the mountpoint of another's volume, which the job may not use.
func TestT43_MountpointOfAnotherPlugin(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		rules := harness.DefaultPolicyTOML + "[[rule]]\ndriver = \"evil\"\naction = \"allow\"\n"
		h.PolicyTOML(rules)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		victim, s := polPlugin(t, h, "victim"), polPlugin(t, h, "evil")
		own := s.mountpoint
		h.WriteFile(filepath.Join(victim.mountpoint, "secret"), "the victim's", 0o644)
		polAttach(h, c, "victim").Fails(t, wire.Denied)

		// The naive way: any allowed source is as good as any other.
		s.mountpoint = victim.mountpoint
		polAttach(h, c, "evil").OK(t)
		if got := c.Sh("cat /data/secret").OK(t).Stdout; got != "the victim's" {
			t.Fatalf("the attack does not work: %q", got)
		}
		h.Policy("detach", "--container", "c", "--all").OK(t)
		s.calls("")

		h.PolicyTOML(rules + "[driver.evil]\nroots = [\"" + filepath.Dir(own) + "\"]\n")
		link := filepath.Join(filepath.Dir(own), "link")
		polCheck(t, os.Symlink(victim.mountpoint, link))
		for where, code := range map[string]wire.Code{
			victim.mountpoint:                  wire.DriverError,
			filepath.Dir(own) + "/../victim/v": wire.DriverError,
			filepath.Dir(own):                  wire.DriverError, // the root itself holds every volume
			filepath.Dir(own) + "x/v":          wire.DriverError,
			h.Volumes() + "/v":                 wire.DriverError,
			link:                               wire.SourceForbidden, // where a link leads, the helper sees
		} {
			s.mountpoint = where
			if r := polAttach(h, c, "evil"); r.Exit != code.Exit() || !strings.Contains(r.Stderr, `"`+string(code)+`"`) {
				t.Errorf("%s: want %s: %v", where, code, r)
			}
			polReleased(t, h, c, s, true)
			polDvdcli(h, "mount", "--volumedriver=evil", "--volumename=v").Exits(t, map[wire.Code]int{wire.DriverError: 1}[code])
			polDvdcli(h, "unmount", "--volumedriver=evil", "--volumename=v").OK(t)
			s.calls("")
		}
		s.mountpoint = own
		polAttach(h, c, "evil").OK(t)
		h.Policy("detach", "--container", "c", "--all").OK(t)
		polReleased(t, h, c, s, true)
	})
}
