package driver

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// Options says where a plugin is and what is believed of it. The zero Options are Docker's folders and no restriction.
type Options struct {
	SocketDirs []string // nil: /run/docker/plugins
	SpecDirs   []string // nil: /etc/docker/plugins, /usr/lib/docker/plugins
	Address    string   // a unix://, tcp://, http:// or https:// URL that replaces discovery ([driver.NAME] address)
	Roots      []string // folders below which every mountpoint of the driver must lie; none: anywhere ([driver.NAME] roots, T43)
	Closed     []string // folders that no mountpoint of the driver lies in, or above: others' volumes are there
	MaxAnswer  int64    // bytes of an answer that are read; 0: 1 MiB
}

func (o Options) socketDirs() []string {
	if o.SocketDirs == nil {
		return []string{"/run/docker/plugins"}
	}
	return o.SocketDirs
}

func (o Options) specDirs() []string {
	if o.SpecDirs == nil {
		return []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"}
	}
	return o.SpecDirs
}

func (o Options) maxAnswer() int64 {
	if o.MaxAnswer == 0 {
		return 1 << 20
	}
	return o.MaxAnswer
}

// A Location is where a driver was found, or why it was not.
type Location struct {
	Driver      string
	Address     string        // the URL it is asked at
	File        string        // the socket or spec that says so; "" for Options.Address
	Err         *wire.Error   // why it cannot be asked: driver_unavailable, config (a bad spec or address) or invalid_request (a bad name)
	Unreachable []*wire.Error // places that may hold it and may not be looked at
	Reads       []string      // the files that were read to know that: a spec, and for TLS those that it names

	network, dial, host string
	tls                 *tls.Config
}

// spec is what a .json file says.
type spec struct {
	Addr      string
	TLSConfig *struct {
		InsecureSkipVerify        bool
		CAFile, CertFile, KeyFile string
	}
}

// Limits of what discovery reads and dials. maxSocket is sun_path of unix(7) without its NUL.
const (
	maxSpec   = 64 << 10
	maxSocket = 107
)

// Discover says where the driver called name is: at o.Address, or at the first of NAME.sock, NAME/NAME.sock in the socket folders, then NAME.spec,
// NAME/NAME.spec, NAME.json, NAME/NAME.json in each spec folder. It looks at files only; whether somebody answers there shows when the driver is asked.
//
// A name that is not 1 to 128 of [A-Za-z0-9_.:-], or does not begin with a letter or digit, is refused before the filesystem is touched (T38). TLS is
// never silently unverified: a .json for it without CAFile is refused unless it says InsecureSkipVerify itself.
func Discover(name string, o Options) Location {
	l := Location{Driver: name}
	if l.Err = checkDriver(name); l.Err != nil {
		return l
	}
	if o.Address != "" {
		l.use(o.Address)
		return l
	}
	for _, dir := range o.socketDirs() {
		for _, file := range []string{filepath.Join(dir, name+".sock"), filepath.Join(dir, name, name+".sock")} {
			if info := l.look(file); info != nil && info.Mode().Type() == fs.ModeSocket {
				l.File = file
				l.use((&url.URL{Scheme: "unix", Path: file}).String())
				return l
			}
		}
	}
	for _, dir := range o.specDirs() {
		for _, ext := range []string{".spec", ".json"} {
			for _, file := range []string{filepath.Join(dir, name+ext), filepath.Join(dir, name, name+ext)} {
				if l.look(file) != nil {
					l.File = file
					l.read(ext)
					return l
				}
			}
		}
	}
	l.Err = l.task().fail(wire.DriverUnavailable, "there is no socket or spec for it in %s",
		strings.Join(slices.Concat(o.socketDirs(), o.specDirs()), ", ")).
		WithHint("start the plugin, or set the address of [driver.%s] in policy.toml", name)
	if len(l.Unreachable) > 0 {
		l.Err = l.Unreachable[0]
	}
	return l
}

// Survey discovers every driver that the folders of o name, in the order of their names. unreadable says which folders cannot be listed, and why;
// one that is not there is none of them.
func Survey(o Options) (drivers []Location, unreadable []*wire.Error) {
	o.Address = ""
	var names []string
	list := func(dir string, exts ...string) {
		entries, err := os.ReadDir(dir)
		if err != nil && !missing(err) {
			unreadable = append(unreadable, noAccess(task{"discover", "list the drivers in " + dir}, dir, "rx", err))
		}
		for _, e := range entries {
			name := e.Name()
			for _, ext := range exts {
				if n, ok := strings.CutSuffix(name, ext); ok {
					names = append(names, n)
				} else if _, err := os.Stat(filepath.Join(dir, name, name+ext)); err == nil {
					names = append(names, name)
				}
			}
		}
	}
	for _, dir := range o.socketDirs() {
		list(dir, ".sock")
	}
	for _, dir := range o.specDirs() {
		list(dir, ".spec", ".json")
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		drivers = append(drivers, Discover(name, o))
	}
	return drivers, unreadable
}

// checkDriver keeps a driver's name from being a path (T38).
func checkDriver(name string) *wire.Error {
	if err := wire.CheckID("driver's name", name); err != nil {
		e := wire.AsError(err)
		e.Stage = "discover"
		return e
	}
	return nil
}

func (l *Location) task() task {
	return task{"discover", fmt.Sprintf("use driver %q", l.Driver)}
}

// from names what holds the address, for people.
func (l *Location) from() string {
	if l.File == "" {
		return fmt.Sprintf("the address of [driver.%s] in policy.toml", l.Driver)
	}
	return l.File
}

// look stats one place. What cannot be looked at is noted and passed over: /run/docker is often root's alone, and the driver may be elsewhere.
func (l *Location) look(file string) fs.FileInfo {
	info, err := os.Stat(file)
	if err == nil {
		return info
	}
	if !missing(err) {
		e := noAccess(l.task(), file, "rx", err)
		if !slices.ContainsFunc(l.Unreachable, func(x *wire.Error) bool { return *x == *e }) {
			l.Unreachable = append(l.Unreachable, e)
		}
	}
	return nil
}

// read takes the address from the .spec or .json file.
func (l *Location) read(ext string) {
	l.Reads = []string{l.File}
	f, err := os.OpenFile(l.File, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		l.Err = noAccess(l.task(), l.File, "r", err)
		return
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err == nil && len(data) > maxSpec {
		err = fmt.Errorf("it is over %d bytes", maxSpec)
	}
	s := spec{Addr: string(data)}
	if err == nil && ext == ".json" {
		s.Addr = ""
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		l.Err = l.task().fail(wire.Config, "%s cannot be read: %v", l.File, err)
		return
	}
	l.use(strings.TrimSpace(s.Addr))
	if l.Err == nil && ext == ".json" {
		l.secure(s)
	}
}

// use takes the address apart. The path of an http URL is ignored, as Docker does.
func (l *Location) use(address string) {
	bad := func(why string) {
		l.Err = l.task().fail(wire.Config, "the address %s, from %s, %s", show(address), l.from(), why)
	}
	u, err := url.Parse(address)
	if err != nil {
		bad("is not a URL")
		return
	}
	l.Address = address
	switch u.Scheme {
	case "unix":
		l.network, l.dial, l.host = "unix", u.Path, "plugin.localhost"
		switch {
		case u.Host != "" || !filepath.IsAbs(u.Path):
			bad("does not hold an absolute path (unix:///run/...)")
		case len(u.Path) > maxSocket:
			bad(fmt.Sprintf("is longer than a socket's may be (%d bytes)", maxSocket))
		default:
			if err := unix.Faccessat(unix.AT_FDCWD, u.Path, unix.W_OK, unix.AT_EACCESS); errors.Is(err, unix.EACCES) {
				l.Err = noAccess(l.task(), u.Path, "rw", err)
			}
		}
	case "tcp", "http", "https":
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || u.Hostname() == "" || u.User != nil {
			bad("does not hold a host and a port")
			return
		}
		l.network, l.dial, l.host = "tcp", net.JoinHostPort(u.Hostname(), port), u.Host
		if u.Scheme == "https" {
			l.tls = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12} // verified against the system's authorities
		}
	default:
		bad("does not begin with unix://, tcp://, http:// or https://")
	}
}

// secure applies the TLSConfig of a .json file.
func (l *Location) secure(s spec) {
	bad := func(format string, args ...any) {
		l.Err = l.task().fail(wire.Config, "%s %s", l.File, fmt.Sprintf(format, args...))
	}
	c := s.TLSConfig
	switch scheme, _, _ := strings.Cut(s.Addr, ":"); {
	case c == nil && l.tls == nil:
		return
	case scheme == "unix" || scheme == "http":
		bad("has a TLSConfig, and an address of the kind %s, which does without", scheme)
		return
	case c == nil || c.CAFile == "" && !c.InsecureSkipVerify:
		bad("asks for TLS without a CAFile, so nobody would verify the driver")
		l.Err.Hint = "name the CA that signed the driver's certificate as CAFile of its TLSConfig, or set InsecureSkipVerify to true there"
		return
	}
	if l.tls == nil { // tcp, for which Docker would ignore the TLSConfig
		host, _, _ := net.SplitHostPort(l.dial)
		l.tls = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	}
	l.tls.InsecureSkipVerify = c.InsecureSkipVerify
	l.Reads = append(l.Reads, c.CAFile, c.CertFile, c.KeyFile)
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			bad("names a CAFile that cannot be read: %v", err)
			return
		}
		l.tls.RootCAs = x509.NewCertPool()
		if !l.tls.RootCAs.AppendCertsFromPEM(pem) {
			bad("names the CAFile %s, which holds no certificate", c.CAFile)
			return
		}
	}
	if c.CertFile != "" || c.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			bad("names a client certificate that cannot be used: %v", err)
			return
		}
		l.tls.Certificates = []tls.Certificate{cert}
	}
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// noAccess is the error for a path that must be usable with the given permission (as setfacl spells it) and is not. Its hint is the command that grants
// what is missing: to enter a folder above, to use the path itself, or to be in its group.
func noAccess(t task, path, perm string, err error) *wire.Error {
	if !errors.Is(err, fs.ErrPermission) {
		return t.fail(wire.DriverUnavailable, "%v", err)
	}
	who := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(who); err == nil {
		who = u.Username
	}
	if dir := closed(path); dir != "" {
		return t.fail(wire.DriverUnavailable, "%s may not enter the folder %s", who, dir).
			WithHint("as root: setfacl -m u:%s:x %s", who, dir)
	}
	e := t.fail(wire.DriverUnavailable, "%s may not use %s: permission denied", who, path).
		WithHint("as root: setfacl -m u:%s:%s %s", who, perm, path)
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o020 != 0 {
		gid := info.Sys().(*syscall.Stat_t).Gid
		if g, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10)); err == nil && gid != 0 {
			e.Hint += fmt.Sprintf("; or add %q to groups in policy.toml", g.Name)
		}
	}
	return e
}

// closed returns the first folder on the way to path that may not be entered, or "".
func closed(path string) string {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		if _, err := os.Stat(path[:i]); errors.Is(err, fs.ErrPermission) {
			return filepath.Dir(path[:i])
		}
	}
	return ""
}
