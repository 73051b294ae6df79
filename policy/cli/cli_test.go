package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// shell runs commands against a journal in a folder of the test, with a driver and a helper of its own.
type shell struct {
	t       *testing.T
	policy  *config.Policy
	driver  *memory
	become  func(*config.Policy) error
	loadErr error
	stdin   string
	name    string // by which the program is called
	lastOp  string
}

func newShell(t *testing.T) *shell {
	s := &shell{t: t, policy: config.DefaultPolicy(), driver: &memory{volumes: map[string]map[string]string{}}, become: func(*config.Policy) error { return nil }}
	s.policy.State.Dir = t.TempDir()
	s.policy.Rules = []config.Rule{{Volume: "secret", Action: "deny"}, {Action: "allow"}}
	s.policy.Plugins.SocketDirs, s.policy.Plugins.SpecDirs = []string{}, []string{}
	return s
}

// result is how one command ended.
type result struct {
	out, err string
	status   int
}

func (s *shell) run(args ...string) result {
	var out, err bytes.Buffer
	a := &app{Streams: Streams{In: strings.NewReader(s.stdin), Out: &out, Err: &err}, name: cmp.Or(s.name, "bindgate"), become: s.become,
		load: func() (*config.Policy, error) { return s.policy, s.loadErr },
		seam: func(o *lifecycle.Options) {
			o.Driver = func(string) (driver.Driver, error) { return s.driver, nil }
			o.Helper = s.helper
		}}
	status := a.run(args)
	return result{out.String(), err.String(), status}
}

func (s *shell) helper(_ context.Context, r *wire.Request) (*wire.Reply, error) {
	s.lastOp = r.Op
	reply := &wire.Reply{}
	for i, m := range r.Mounts {
		reply.Blocks = append(reply.Blocks, wire.Fields{{Key: "mount", Value: m.Path}, {Key: "target", Value: m.Path}, {Key: "id", Value: fmt.Sprint(i + 7)}, {Key: "locked", Value: "1"}})
	}
	return reply, nil
}

// memory is a volume driver.
type memory struct {
	volumes map[string]map[string]string
	status  map[string]any
	fail    error
}

func (m *memory) Create(_ context.Context, name string, opts map[string]string) error {
	m.volumes[name] = opts
	return m.fail
}
func (m *memory) Get(_ context.Context, name string) (driver.Volume, error) {
	opts, ok := m.volumes[name]
	if !ok {
		return driver.Volume{}, wire.Errorf(wire.VolumeNotFound, "get", "cannot look up volume %q: there is none", name)
	}
	return driver.Volume{Name: name, Mountpoint: "/vol/" + name, Options: opts, Status: m.status}, nil
}
func (m *memory) List(context.Context) ([]driver.Volume, error) {
	var list []driver.Volume
	for name := range m.volumes {
		list = append(list, driver.Volume{Name: name, Mountpoint: "/vol/" + name})
	}
	return list, m.fail
}
func (m *memory) Path(_ context.Context, name string) (string, error) { return "/vol/" + name, m.fail }
func (m *memory) Mount(_ context.Context, name, _ string) (string, error) {
	return "/vol/" + name, m.fail
}
func (m *memory) Unmount(context.Context, string, string) error { return m.fail }
func (m *memory) Remove(_ context.Context, name string) error {
	delete(m.volumes, name)
	return m.fail
}
func (m *memory) Capabilities(context.Context) (driver.Capabilities, error) {
	return driver.Capabilities{Scope: driver.ScopeLocal}, nil
}

// ok runs a command that must succeed, with nothing on stderr, and decodes what it printed.
func (s *shell) ok(doc any, args ...string) result {
	s.t.Helper()
	r := s.run(args...)
	if r.status != 0 || r.err != "" {
		s.t.Fatalf("%v: status %d, stderr %s", args, r.status, r.err)
	}
	if doc != nil {
		d := json.NewDecoder(strings.NewReader(r.out))
		if err := d.Decode(doc); err != nil {
			s.t.Fatalf("%v: %v in %s", args, err, r.out)
		}
	}
	return r
}

// fails runs a command that must fail in both forms, and returns the error's JSON.
func (s *shell) fails(code wire.Code, args ...string) lifecycle.Error {
	s.t.Helper()
	r := s.run(append(args, "-o", "json")...)
	var doc struct {
		Schema string          `json:"schema"`
		Error  lifecycle.Error `json:"error"`
	}
	if err := json.Unmarshal([]byte(r.err), &doc); err != nil || doc.Schema != "bindgate/v1" {
		s.t.Fatalf("%v: %v in %q", args, err, r.err)
	}
	if doc.Error.Code != code || r.status != code.Exit() {
		s.t.Errorf("%v: status %d, %+v, want %s", args, r.status, doc.Error, code)
	}
	r = s.run(append(args, "-o", "table")...)
	first, rest, _ := strings.Cut(r.err, "\n")
	if !strings.HasPrefix(first, "bindgate: cannot ") || rest != "" && !strings.HasPrefix(rest, "hint: ") || r.status != code.Exit() {
		s.t.Errorf("%v: status %d, stderr %q", args, r.status, r.err)
	}
	return doc.Error
}

func TestMainJobOnTheCommandLine(t *testing.T) {
	s := newShell(t)
	pid := fmt.Sprint(os.Getpid())
	var v map[string]any
	s.ok(&v, "volume", "create", "--opt", "mode=0750", "--opt", "x=a=b", "myvolume")
	if v["schema"] != "bindgate/v1" || v["driver"] != "local" || v["created"] != true || v["mountpoint"] != "/vol/myvolume" || v["options"].(map[string]any)["x"] != "a=b" {
		t.Errorf("%v", v)
	}
	var p lifecycle.Prepared
	s.ok(&p, "prepare", "--container", "web", "-v", "myvolume:/data:ro", "--label", "a=b")
	if p.Volumes[0].ContainerPath != "/data" || p.Volumes[0].Mode != "ro" || p.Volumes[0].Scope != "container" || p.Owner != "default" {
		t.Errorf("%+v", p)
	}
	var i lifecycle.Isolated
	s.ok(&i, "isolate", "--container", "web", "--pid", pid)
	if i.Mounts[0].MountID != 7 || i.Mounts[0].Source != "/vol/myvolume" {
		t.Errorf("%+v", i)
	}
	s.ok(&i, "attach", "--container", "web", "--pid", pid, "--mount", "driver=d,name=n,target=/n,opt=k=v")
	var st lifecycle.Status
	s.ok(&st, "status")
	if len(st.Containers) != 1 || len(st.Volumes) != 2 || st.Containers[0].Labels["a"] != "b" {
		t.Errorf("%+v", st)
	}
	table := s.ok(nil, "status", "-o", "table").out
	for _, part := range []string{"CONTAINER", "web", "isolated", "myvolume:/data:ro", "n:/n", "USED BY"} {
		if !strings.Contains(table, part) {
			t.Errorf("no %q in\n%s", part, table)
		}
	}
	if strings.Contains(table, "\x1b") {
		t.Errorf("colour where there is no terminal: %q", table)
	}
	s.fails(wire.Busy, "volume", "rm", "myvolume")
	var c lifecycle.Cleaned
	s.ok(&c, "detach", "--container", "web", "--path", "/n")
	s.fails(wire.Busy, "cleanup", "--container", "web")
	s.ok(&c, "cleanup", "--container", "web", "--force")
	if !c.Known || len(c.Unmounted) != 1 {
		t.Errorf("%+v", c)
	}
	s.ok(&c, "cleanup", "--container", "web")
	if c.Known {
		t.Errorf("%+v", c)
	}
	if out := s.ok(nil, "volume", "ls", "--quiet").out; out != "myvolume\nn\n" {
		t.Errorf("%q", out)
	}
	if out := s.ok(nil, "volume", "ls", "--quiet", "--filter", "name=my*", "--filter", "used=false").out; out != "myvolume\n" {
		t.Errorf("%q", out)
	}
	if out := s.ok(nil, "volume", "path", "myvolume", "-o", "table").out; out != "/vol/myvolume\n" {
		t.Errorf("%q", out)
	}
	var r lifecycle.Recovered
	s.ok(&r, "recover", "--known", "")
	s.ok(nil, "volume", "rm", "myvolume")
}

func TestBadCommandLines(t *testing.T) {
	s := newShell(t)
	for name, x := range map[string]struct {
		code wire.Code
		args string
	}{
		"no command":                          {wire.Usage, ""},
		"no such command":                     {wire.Usage, "frobnicate"},
		"no such volume command":              {wire.Usage, "volume frobnicate"},
		"no volume command":                   {wire.Usage, "volume"},
		"no such flag":                        {wire.Usage, "status --frobnicate"},
		"no container":                        {wire.Usage, "prepare"},
		"no pid":                              {wire.Usage, "isolate --container x"},
		"a pid that is no number":             {wire.Usage, "isolate --container x --pid abc"},
		"no volume's name":                    {wire.Usage, "volume create"},
		"two names":                           {wire.Usage, "volume create a b"},
		"detach of nothing":                   {wire.Usage, "detach --container x"},
		"detach of two things":                {wire.Usage, "detach --container x --all --path /a"},
		"detach of half a volume":             {wire.Usage, "detach --container x --name a"},
		"both known":                          {wire.Usage, "recover --known a --known-file f"},
		"a job by flags and by file":          {wire.Usage, "prepare --container x -v a:/a job.json"},
		"a format for flags":                  {wire.Usage, "prepare --container x -v a:/a --format mesos"},
		"options without a volume":            {wire.Usage, "prepare --container x --opt a=b"},
		"an option for no -v":                 {wire.Usage, "prepare --container x --mount name=a,target=/a --opt a=b"},
		"a driver for no -v":                  {wire.Usage, "prepare --container x --mount name=a,target=/a --driver d"},
		"a log level that is none":            {wire.Usage, "status --log-level loud"},
		"a timeout that is none":              {wire.Usage, "status --timeout soon"},
		"a negative timeout":                  {wire.Usage, "status --timeout -1s"},
		"a label that is none":                {wire.Usage, "prepare --container x -v a:/a --label x"},
		"a filter that is none":               {wire.Usage, "volume ls --filter name"},
		"an unknown filter":                   {wire.Usage, "volume ls --filter size=5"},
		"a file that is not there":            {wire.NoInput, "prepare --container x /nonexistent/job.json"},
		"a file that is a folder":             {wire.NoInput, "prepare --container x /"},
		"a known file that is not there":      {wire.NoInput, "recover --known-file /nonexistent"},
		"a volume flag that is malformed":     {wire.InvalidRequest, "prepare --container x -v a"},
		"an option that is malformed":         {wire.InvalidRequest, "volume create a --opt x"},
		"a container id that is a path":       {wire.InvalidRequest, "prepare --container ../x -v a:/a"},
		"an owner that is a path":             {wire.InvalidRequest, "status --owner a/b"},
		"the same volume twice":               {wire.DuplicateVolume, "prepare --container x -v a:/a -v a:/b"},
		"a volume that the rules deny":        {wire.Denied, "prepare --container x -v secret:/a"},
		"a container that was never prepared": {wire.NotFound, "isolate --container x --pid 1"},
		"who makes the mounts, and nobody":    {wire.InvalidRequest, "prepare --container x -v a:/a --mounts-by me"},
		"an agent's mounts at once":           {wire.InvalidRequest, "attach --container x -v a:/a --pid 1 --mounts-by agent"},
		"a check for a container with a path": {wire.InvalidRequest, "policy check --container ../x -v a:/a"},
		"a process that is gone":              {wire.NamespaceGone, "attach --container x -v a:/a --pid 4194305"},
		"an empty job on stdin":               {wire.InvalidRequest, "prepare --container x"},
		"a volume that is not there":          {wire.VolumeNotFound, "volume inspect none"},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.fails(x.code, strings.Fields(x.args)...)
		})
	}
	r := s.run("status", "-o", "yaml")
	if r.status != 64 || r.out != "" {
		t.Errorf("%+v", r)
	}
	if len(s.driver.volumes) > 0 {
		t.Errorf("a refused job created %v", s.driver.volumes)
	}
}

func TestJobIsReadFromStdinOrAFile(t *testing.T) {
	s := newShell(t)
	s.stdin = `[{"container_path":"/data","mode":"RO","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":"rexray","name":"v"}}}]`
	file := filepath.Join(t.TempDir(), "job.json")
	if err := os.WriteFile(file, []byte(s.stdin), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, args := range [][]string{{}, {"-"}, {"--format", "mesos"}, {file}} {
		var p lifecycle.Prepared
		s.ok(&p, append([]string{"prepare", "--container", fmt.Sprint("c", i)}, args...)...)
		if len(p.Volumes) != 1 || p.Volumes[0].Driver != "rexray" || p.Volumes[0].Mode != "ro" {
			t.Errorf("%v: %+v", args, p)
		}
	}
	// With volumes named by flags stdin is not touched.
	s.stdin = "garbage"
	s.ok(nil, "prepare", "--container", "flags", "-v", "a:/a")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s.fails(wire.InvalidRequest, "prepare", "--container", "x", fifo) // nobody writes: it is empty, and nobody waits
}

func TestPendingPrintsBothDocumentAndError(t *testing.T) {
	s := newShell(t)
	s.ok(nil, "prepare", "--container", "web", "-v", "a:/a")
	s.driver.fail = wire.Errorf(wire.DriverError, "unmount", "cannot unmount: the driver says: \x1b[31mbusy")
	r := s.run("cleanup", "--container", "web", "-o", "table")
	if r.status != 75 || !strings.Contains(r.out, "Pending") || !strings.Contains(r.err, "busy") || strings.Contains(r.out+r.err, "\x1b") {
		t.Errorf("%+v", r)
	}
	r = s.run("cleanup", "--container", "web")
	var c lifecycle.Cleaned
	if err := json.Unmarshal([]byte(r.out), &c); err != nil || len(c.Pending) != 1 || r.status != 75 || !strings.Contains(r.err, "bindgate: cannot clean up container web") {
		t.Errorf("%+v", r)
	}
	r = s.run("recover")
	if r.status != 75 || !strings.Contains(r.out, `"pending":[{`) {
		t.Errorf("%+v", r)
	}
	s.driver.fail = nil
	s.ok(nil, "recover")
}

func TestRefusalPrintsTheRuleToPaste(t *testing.T) {
	s := newShell(t)
	s.policy.Rules = nil
	r := s.run("prepare", "--container", "web", "-v", "a:/a")
	if r.status != 77 || !strings.Contains(r.err, "\n[[rule]]\ndriver = \"local\"\nvolume = \"a\"\n") || !strings.HasSuffix(r.err, "action = \"allow\"\n") {
		t.Errorf("%+v", r)
	}
	r = s.run("policy", "check", "-v", "a:/a")
	var c lifecycle.PolicyCheck
	if err := json.Unmarshal([]byte(r.out), &c); err != nil || r.status != 77 || c.Allowed || c.Volumes[0].Rule != 0 {
		t.Errorf("%+v", r)
	}
	s.policy.Rules = []config.Rule{{Action: "allow"}}
	s.ok(&c, "policy", "check", "-v", "a:/a")
}

func TestNobodyButThePolicyUserGoesOn(t *testing.T) {
	s := newShell(t)
	s.become = func(*config.Policy) error { return wire.Errorf(wire.Denied, "user", "cannot run as uid 1") }
	s.stdin = "not read"
	s.fails(wire.Denied, "prepare", "--container", "x")
	s.fails(wire.Denied, "status")
	entries, err := os.ReadDir(s.policy.State.Dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
	s.loadErr = wire.Errorf(wire.Config, "config", "cannot open policy.toml")
	s.fails(wire.Config, "status")
	// What needs no privilege and no configuration asks for none.
	s.ok(nil, "--version")
	s.ok(nil, "completion", "bash")
	s.ok(nil, "prepare", "--help")
}

func TestBecome(t *testing.T) {
	p := config.DefaultPolicy()
	p.User = "no-such-user"
	if err := become(p); wire.AsError(err).Code != wire.Config {
		t.Errorf("%v", err)
	}
	p.User = "root"
	if err := become(p); wire.AsError(err).Code != wire.Config {
		t.Errorf("bindgate would run as root: %v", err)
	}
	if g, err := lookupGroup("12345"); g != 12345 || err != nil {
		t.Errorf("%d, %v", g, err)
	}
	if _, err := lookupGroup("no-such-group"); wire.AsError(err).Code != wire.Config {
		t.Errorf("%v", err)
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	a := &app{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Long == "" || c.Short == "" || !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s lacks a long text or an example", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long, "\n") {
			if len(line) > 165 {
				t.Errorf("%s: a line of %d bytes", c.CommandPath(), len(line))
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(a.root(nil))
}

func TestSignalEndsTheContext(t *testing.T) {
	ctx, signalled, stop := interruptible()
	defer stop()
	if signalled() != nil {
		t.Fatal("signalled before")
	}
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if s := signalled(); s != unix.SIGTERM {
		t.Errorf("%v", s)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 30: "1.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestErrorOfAnyKindHasACode(t *testing.T) {
	if e := new(app).asError(errors.New("x")); e.Code != wire.Usage {
		t.Errorf("%+v", e)
	}
	if e := new(app).asError(fmt.Errorf("wrapped: %w", wire.Errorf(wire.Busy, "s", "cannot"))); e.Code != wire.Busy {
		t.Errorf("%+v", e)
	}
}

// What a job, a driver or a container chose never reaches a terminal as more than printable characters of its line, in a table, a document, an error or a
// warning; and a document says exactly what it was.
func TestNothingSpeaksToTheTerminal(t *testing.T) {
	const evil = "a\x1b]0;owned\x07\x1b[2J\r\nbindgate: \u009b31m\u202egpj\x7f\U000e0041\xff"
	for _, output := range []string{"table", "json"} {
		s := newShell(t)
		s.policy.Drivers = map[string]config.Driver{"fake": {Options: map[string]string{"option " + evil: evil}}}
		s.driver.status = map[string]any{"key " + evil: evil, "nested": map[string]any{evil: []any{evil}}}
		seen := 0
		try := func(args ...string) {
			t.Helper()
			r := s.run(append(args, "-o", output)...)
			for stream, text := range map[string]string{"stdout": r.out, "stderr": r.err} {
				for _, c := range text {
					if !unicode.IsPrint(c) && c != '\n' {
						t.Errorf("%v: %s has %q: %q", args, stream, c, text)
						break
					}
				}
				if strings.Contains(text, "\nbindgate: ") {
					t.Errorf("%v: %s has a forged line: %q", args, stream, text)
				}
				seen += strings.Count(text, "owned")
				if output != "json" || text == "" {
					continue
				}
				var doc any
				if err := json.Unmarshal([]byte(text), &doc); err != nil {
					t.Errorf("%v: %s: %v in %q", args, stream, err, text)
				}
			}
		}
		try("volume", "create", "--driver", "fake", "--opt", "k="+evil, "v")
		try("volume", "inspect", "--driver", "fake", "v")
		try("volume", "ls", "--driver", "fake")
		s.driver.volumes[evil] = nil
		try("volume", "ls", "--driver", "fake")
		try("volume", "ls", "--driver", "fake", "--quiet")
		delete(s.driver.volumes, evil)
		for _, args := range [][]string{{"-v", evil + ":/v"}, {"-v", "v:/" + evil}, {"--driver", evil, "-v", "v:/v"}, {"--format", evil, "-"}, {"--label", evil, "-v", "v:/v"},
			{"--label", "k=" + evil, "--driver", "fake", "-v", "v:/v"}, {evil}, {"--" + evil}, {"--parent", evil, "-"}, {"--rootfs", evil, "-"}} {
			s.stdin = `[{"` + strings.ToValidUTF8(evil, "") + `":1}]`
			try(append([]string{"prepare", "--container", "c"}, args...)...)
		}
		try("prepare", "--container", evil, "-")
		try("status")
		try("status", "--volume", "fake/"+evil)
		try("detach", "--container", "c", "--path", evil)
		try("policy", "check", "-v", "secret:/\u202e")
		try(evil)
		s.driver.fail = wire.Errorf(wire.DriverError, "unmount", "cannot unmount: %s", evil)
		try("cleanup", "--container", "c")
		try("recover")
		try("volume", "rm", "--driver", "fake", "v")
		s.driver.fail = nil
		try("recover")
		if seen < 15 {
			t.Errorf("%s: the text was in %d places only", output, seen)
		}
	}
}

// A hook gets the runtime's whole environment, or what a user of an engine chose.
func TestHookClearsItsEnvironment(t *testing.T) {
	saved := os.Environ()
	defer func() {
		for _, kv := range saved {
			k, v, _ := strings.Cut(kv, "=")
			os.Setenv(k, v)
		}
	}()
	os.Setenv("HTTP_PROXY", "http://192.0.2.1:1")
	s := newShell(t)
	s.stdin = `{"id":"c","status":"stopped"}`
	if r := s.run("hook"); r.status != 0 || r.out != "" || r.err != "" {
		t.Errorf("%+v", r)
	}
	if env := os.Environ(); len(env) != 0 {
		t.Errorf("%q", env)
	}
}

func TestAProcessIsNamedOneWay(t *testing.T) {
	s := newShell(t)
	for _, args := range [][]string{{}, {"--runtime", "docker"}, {"--name", "x"}, {"--pid", "1", "--name", "x"}, {"--pid", "1", "--runtime", "docker", "--name", "x"}, {"--runtime", "rkt", "--name", "x"}} {
		for _, verb := range []string{"isolate", "bind", "attach"} {
			if r := s.run(append([]string{verb, "--container", "c"}, args...)...); r.status != 64 {
				t.Errorf("%s %q: %+v", verb, args, r)
			}
		}
	}
}

// A driver that cannot be asked is a warning in each form, so that nobody takes its volumes for gone.
func TestListWarnsInEachForm(t *testing.T) {
	s := newShell(t)
	s.policy.Drivers = map[string]config.Driver{"nas": {}}
	s.driver.fail = wire.Errorf(wire.DriverUnavailable, "list", "cannot list the volumes: it is down")
	for _, form := range []string{"--quiet", "--output=table"} {
		if r := s.run("volume", "ls", form); r.status != 0 || strings.Count(r.err, "warning: cannot list the volumes: it is down\n") != 2 {
			t.Errorf("%s: %+v", form, r)
		}
	}
	if r := s.ok(nil, "volume", "ls", "--quiet", "--output=json"); strings.Count(r.out, "it is down") != 2 {
		t.Errorf("%+v", r)
	}
}

// Only the command that is asked for is made; it is found under its own name.
func TestACommandAloneIsTheOneOfAll(t *testing.T) {
	all := (&app{}).root(nil).Commands()
	if len(all) < 15 {
		t.Errorf("only %d commands", len(all))
	}
	for _, c := range all {
		if alone := (&app{}).root([]string{c.Name(), "--help"}).Commands(); len(alone) != 1 || alone[0].Use != c.Use {
			t.Errorf("%s alone: %v", c.Name(), alone)
		}
	}
}
