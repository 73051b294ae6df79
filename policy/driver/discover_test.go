package driver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bindgate/bindgate/wire"
)

func decode(t *testing.T, data string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(data), into); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
}

func TestDiscoveryOrder(t *testing.T) {
	dir := folder(t)
	o := Options{SocketDirs: []string{dir + "/s1", dir + "/s2"}, SpecDirs: []string{dir + "/p1", dir + "/p2"}}
	// In the order of precedence: each is found once those before it are gone.
	order := []string{"s1/d.sock", "s1/d/d.sock", "s2/d.sock", "s2/d/d.sock",
		"p1/d.spec", "p1/d/d.spec", "p1/d.json", "p1/d/d.json", "p2/d.spec", "p2/d/d.spec", "p2/d.json", "p2/d/d.json"}
	address := func(place string) string {
		switch {
		case strings.HasSuffix(place, ".sock"):
			return "unix://" + dir + "/" + place
		default:
			return "tcp://" + strings.NewReplacer("/", ".").Replace(place) + ":1"
		}
	}
	for _, place := range order {
		switch a := address(place); {
		case strings.HasSuffix(place, ".sock"):
			stale(t, dir+"/"+place)
		case strings.HasSuffix(place, ".spec"):
			write(t, dir+"/"+place, " "+a+"\n")
		default:
			write(t, dir+"/"+place, fmt.Sprintf(`{"Name":"whatever","Addr":%q}`, a))
		}
	}
	// A file that is no socket is not one for its name.
	write(t, dir+"/s1/regular.sock", "")
	for _, place := range order {
		l := Discover("d", o)
		if l.Err != nil || l.File != dir+"/"+place || l.Address != address(place) {
			t.Errorf("got %q at %q (%v), want %q at %q", l.Address, l.File, l.Err, address(place), place)
		}
		if err := os.Remove(dir + "/" + place); err != nil {
			t.Fatal(err)
		}
	}
	wants(t, Discover("d", o).Err, wire.DriverUnavailable, "discover", dir+"/s1", dir+"/s2", dir+"/p1", dir+"/p2")
	wants(t, Discover("regular", o).Err, wire.DriverUnavailable, "discover", dir+"/s1")

	stale(t, dir+"/s1/d.sock")
	o.Address = "unix:///elsewhere.sock"
	if l := Discover("d", o); l.Err != nil || l.Address != o.Address || l.File != "" {
		t.Errorf("with an address: %+v", l)
	}
}

func TestDefaultFolders(t *testing.T) {
	e := Discover("bindgate-test-no-such-driver", Options{}).Err
	if e == nil || len(Discover("bindgate-test-no-such-driver", Options{}).Unreachable) > 0 {
		t.Fatal("the host's folders are not all there to be seen")
	}
	wants(t, e, wire.DriverUnavailable, "discover", "/run/docker/plugins, /etc/docker/plugins, /usr/lib/docker/plugins")
}

// T38: a name that is a path is refused although a socket is there.
func TestDriverNames(t *testing.T) {
	dir := folder(t)
	for _, place := range []string{"/x.sock", "/s/a/b.sock", "/s/.sock", "/s/...sock", "/s/-d.sock", "/s/a\nb.sock"} {
		stale(t, dir+place)
	}
	o := Options{SocketDirs: []string{dir + "/s"}, SpecDirs: []string{}}
	for _, name := range []string{"../x", "a/b", "../s/a/b", "", ".", "..", "-d", "a\nb", "a\x00", "a b", "ü", strings.Repeat("d", 129)} {
		wants(t, Discover(name, o).Err, wire.InvalidRequest, "discover", "driver's name")
		for _, address := range []string{"", "unix:///x.sock"} {
			o := o
			o.Address = address
			if _, err := NewPlugin(name, o); err == nil {
				t.Errorf("%q is a driver", name)
			} else {
				wants(t, err, wire.InvalidRequest, "discover")
			}
		}
	}
	stale(t, dir+"/s/rexray.io_1-a:b.sock")
	if l := Discover("rexray.io_1-a:b", o); l.Err != nil {
		t.Error(l.Err)
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct{ address, dial, refused string }{
		{"unix:///run/x.sock", "/run/x.sock", ""},
		{"tcp://h:1", "h:1", ""},
		{"http://h", "h:80", ""},
		{"http://h:81/ignored", "h:81", ""},
		{"https://h", "h:443", ""},
		{"tcp://[::1]:2", "[::1]:2", ""},
		{"unix://run/x.sock", "", "absolute path"},
		{"unix://", "", "absolute path"},
		{"unix:x.sock", "", "absolute path"},
		{"unix:///" + strings.Repeat("x", 107), "", "longer than a socket's"},
		{"tcp://h", "", "a host and a port"},
		{"tcp://h:0", "", "a host and a port"},
		{"tcp://h:65536", "", "a host and a port"},
		{"tcp://:1", "", "a host and a port"},
		{"http://me:secret@h", "", "a host and a port"},
		{"/run/x.sock", "", "does not begin with"},
		{"npipe:////./pipe/x", "", "does not begin with"},
		{"h:1", "", "does not begin with"},
		{"", "", "does not begin with"},
		{"tcp://h:1\ntcp://h:2", "", "is not a URL"},
		{"\x00", "", "is not a URL"},
	} {
		dir := folder(t)
		write(t, dir+"/d.spec", c.address)
		l := Discover("d", Options{SocketDirs: []string{}, SpecDirs: []string{dir}})
		switch {
		case c.refused == "" && (l.Err != nil || l.dial != c.dial):
			t.Errorf("%q: dials %q, %v", c.address, l.dial, l.Err)
		case c.refused != "":
			wants(t, l.Err, wire.Config, "discover", c.refused, dir+"/d.spec")
		}
		if c.address == "" {
			continue
		}
		if _, err := NewPlugin("d", Options{Address: c.address}); c.refused != "" {
			wants(t, err, wire.Config, "discover", c.refused, "policy.toml")
		} else if err != nil {
			t.Error(err)
		}
	}
}

func TestBadSpecs(t *testing.T) {
	for _, c := range []struct{ name, ext, content, says string }{
		{"no JSON", ".json", "tcp://h:1", "cannot be read"},
		{"an endless spec", ".spec", strings.Repeat(" ", 100_000), "over 65536 bytes"},
		{"no address", ".json", `{"Name":"d"}`, "does not begin with"},
		{"https without TLSConfig", ".json", `{"Addr":"https://h"}`, "without a CAFile"},
		{"https without CAFile", ".json", `{"Addr":"https://h","TLSConfig":{"CertFile":"c","KeyFile":"k"}}`, "without a CAFile"},
		{"tcp with an empty TLSConfig", ".json", `{"Addr":"tcp://h:1","TLSConfig":{}}`, "without a CAFile"},
		{"http with a TLSConfig", ".json", `{"Addr":"http://h","TLSConfig":{"CAFile":"c"}}`, "does without"},
		{"a socket with a TLSConfig", ".json", `{"Addr":"unix:///x","TLSConfig":{"CAFile":"c"}}`, "does without"},
		{"a CAFile that is not there", ".json", `{"Addr":"https://h","TLSConfig":{"CAFile":"/none"}}`, "no such file"},
		{"a CAFile that is none", ".json", `{"Addr":"https://h","TLSConfig":{"CAFile":"/dev/null"}}`, "holds no certificate"},
		{"half a client certificate", ".json", `{"Addr":"https://h","TLSConfig":{"InsecureSkipVerify":true,"CertFile":"/dev/null"}}`, "client certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t)
			write(t, dir+"/d"+c.ext, c.content)
			_, err := plugin(t, Options{SocketDirs: []string{}, SpecDirs: []string{dir}}).List(t.Context())
			wants(t, err, wire.Config, "discover", c.says)
		})
	}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{}
	a.cert, a.key = a.issue(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) issue(t *testing.T, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func save(t *testing.T, path string, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	t.Helper()
	write(t, path+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	if key == nil {
		return
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func TestTLS(t *testing.T) {
	dir, ca, stranger := folder(t), newAuthority(t), newAuthority(t)
	cert, key := ca.issue(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	client, clientKey := ca.issue(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	save(t, dir+"/ca", ca.cert, nil)
	save(t, dir+"/stranger", stranger.cert, nil)
	save(t, dir+"/client", client, clientKey)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)

	for _, c := range []struct {
		name, scheme, host, config string // a .json with config, or a .spec without
		code                       wire.Code
		says                       string
	}{
		{"both verified", "https", "127.0.0.1", `{"CAFile":"DIR/ca.crt","CertFile":"DIR/client.crt","KeyFile":"DIR/client.key"}`, "", ""},
		{"tcp with a TLSConfig is TLS", "tcp", "127.0.0.1", `{"CAFile":"DIR/ca.crt","CertFile":"DIR/client.crt","KeyFile":"DIR/client.key"}`, "", ""},
		{"unverified on demand", "https", "127.0.0.1", `{"InsecureSkipVerify":true,"CertFile":"DIR/client.crt","KeyFile":"DIR/client.key"}`, "", ""},
		{"a stranger's certificate", "https", "127.0.0.1", `{"CAFile":"DIR/stranger.crt","CertFile":"DIR/client.crt","KeyFile":"DIR/client.key"}`,
			wire.DriverUnavailable, "unknown authority"},
		{"another host's certificate", "https", "localhost", `{"CAFile":"DIR/ca.crt","CertFile":"DIR/client.crt","KeyFile":"DIR/client.key"}`,
			wire.DriverUnavailable, "localhost"},
		{"the system's authorities for a spec", "https", "127.0.0.1", "", wire.DriverUnavailable, "unknown authority"},
		{"without a client certificate", "https", "127.0.0.1", `{"CAFile":"DIR/ca.crt"}`, wire.DriverError, "certificate required"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := &server{answers: map[string]http.HandlerFunc{"Plugin.Activate": text(200, activated), "Path": text(200, `{"Mountpoint":"/r/v"}`)}}
			h := &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0)}
			go h.Serve(tls.NewListener(l, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
				Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}))
			defer h.Close()

			specs := folder(t)
			address := fmt.Sprintf("%s://%s:%d", c.scheme, c.host, l.Addr().(*net.TCPAddr).Port)
			if c.config == "" {
				write(t, specs+"/d.spec", address)
			} else {
				write(t, specs+"/d.json", strings.ReplaceAll(fmt.Sprintf(`{"Name":"d","Addr":%q,"TLSConfig":%s}`, address, c.config), "DIR", dir))
			}
			path, err := plugin(t, Options{SocketDirs: []string{}, SpecDirs: []string{specs}}).Path(t.Context(), "v")
			if c.code == "" {
				if err != nil || path != "/r/v" {
					t.Errorf("got %q, %v", path, err)
				}
				return
			}
			wants(t, err, c.code, "activate", c.says)
			if len(s.asked) > 0 {
				t.Errorf("asked all the same: %q", s.asked)
			}
		})
	}
}

// What may not be reached is said together with the command that grants it.
func TestPermissions(t *testing.T) {
	for _, c := range []struct {
		name, forbid string
		mode         os.FileMode
		message      string
		hints        []string
	}{
		{"a socket of root alone", "run/s/d.sock", 0o700, "may not use DIR/run/s/d.sock", []string{":rw DIR/run/s/d.sock"}},
		{"a folder that is closed", "run/s", 0o700, "may not enter the folder DIR/run/s", []string{":x DIR/run/s"}},
		{"one further up", "run", 0o700, "may not enter the folder DIR/run", []string{":x DIR/run"}},
		{"a spec of root alone", "p/only.spec", 0o600, "may not use DIR/p/only.spec", []string{":r DIR/p/only.spec"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t)
			serve(t, listen(t, dir+"/run/s/d.sock"), &server{})
			write(t, dir+"/p/only.spec", "tcp://h:1")
			o := Options{SocketDirs: []string{dir + "/run/s"}, SpecDirs: []string{dir + "/p"}}
			name := "d"
			if strings.HasPrefix(c.forbid, "p/") {
				name = "only"
			}
			if l := Discover(name, o); l.Err != nil {
				t.Fatalf("cannot be found at all: %v", l.Err)
			}
			mode := c.mode
			if os.Geteuid() != 0 {
				mode = 0
			}
			if err := os.Chmod(dir+"/"+c.forbid, mode); err != nil {
				t.Fatal(err)
			}
			defer os.Chmod(dir+"/"+c.forbid, 0o700)
			p, err := NewPlugin(name, o)
			if err != nil {
				t.Fatal(err)
			}
			var found Location
			var survey []Location
			var unreadable []*wire.Error
			asNobody(t, func() {
				found = Discover(name, o)
				survey, unreadable = Survey(o)
				_, err = p.List(t.Context())
			})
			message := strings.ReplaceAll(c.message, "DIR", dir)
			for _, err := range []error{found.Err, err} {
				e := wants(t, err, wire.DriverUnavailable, "discover", message)
				for _, h := range c.hints {
					if !strings.Contains(e.Hint, "setfacl -m u:") || !strings.HasSuffix(e.Hint, strings.ReplaceAll(h, "DIR", dir)) {
						t.Errorf("hint %q lacks %q", e.Hint, h)
					}
				}
			}
			said := fmt.Sprint(unreadable)
			for _, l := range survey {
				said += fmt.Sprint(l.Err, l.Unreachable)
			}
			if !strings.Contains(said, message) {
				t.Errorf("the survey does not say %q: %s", message, said)
			}
		})
	}
}

// A socket folder that is closed does not keep a driver from being found by its spec.
func TestSpecBehindClosedFolder(t *testing.T) {
	dir := folder(t)
	write(t, dir+"/p/d.spec", "tcp://h:1")
	if err := os.MkdirAll(dir+"/run/s", 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if err := os.Chmod(dir+"/run/s", 0); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(dir+"/run/s", 0o700)
	}
	asNobody(t, func() {
		l := Discover("d", Options{SocketDirs: []string{dir + "/run/s"}, SpecDirs: []string{dir + "/p"}})
		if l.Err != nil || l.Address != "tcp://h:1" || len(l.Unreachable) != 1 {
			t.Errorf("got %+v", l)
		}
	})
}

func TestGroupHint(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root can give a socket to a group")
	}
	dir := folder(t)
	stale(t, dir+"/d.sock")
	const daemon = 1
	if err := os.Chown(dir+"/d.sock", 0, daemon); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/d.sock", 0o660); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		l := Discover("d", Options{SocketDirs: []string{dir}})
		if e := wants(t, l.Err, wire.DriverUnavailable, "discover"); !strings.HasSuffix(e.Hint, `; or add "daemon" to groups in policy.toml`) {
			t.Errorf("hint: %q", e.Hint)
		}
	})
}

func TestSurvey(t *testing.T) {
	dir := folder(t)
	o := Options{SocketDirs: []string{dir + "/s", dir + "/none"}, SpecDirs: []string{dir + "/p"}, Address: "unix:///ignored"}
	stale(t, dir+"/s/b.sock")
	stale(t, dir+"/s/c/c.sock")
	stale(t, dir+"/s/c/other.sock")
	write(t, dir+"/s/README", "")
	write(t, dir+"/p/a.spec", "tcp://h:1")
	write(t, dir+"/p/b.spec", "tcp://h:1")
	write(t, dir+"/p/e/e.json", "bad")
	drivers, unreadable := Survey(o)
	var got []string
	for _, l := range drivers {
		got = append(got, fmt.Sprintf("%s %s %v", l.Driver, strings.TrimPrefix(l.File, dir), l.Err != nil))
	}
	if want := "a /p/a.spec false, b /s/b.sock false, c /s/c/c.sock false, e /p/e/e.json true"; strings.Join(got, ", ") != want || len(unreadable) != 0 {
		t.Errorf("got %s (%v), want %s", strings.Join(got, ", "), unreadable, want)
	}
}
