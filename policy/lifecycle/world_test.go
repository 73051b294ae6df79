package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// A world is what an Isolator works with: a driver and a helper whose state is on disk, so that it outlives the process of a crash test, as a plugin's and
// the kernel's do.
type world struct {
	dir    string
	policy *config.Policy
	boot   string

	mu sync.Mutex
	// before is called at the beginning of each call to driver or helper; an error is the call's answer. after is called when it has been done.
	before, after func(call string) error
	busy          map[string]bool // volumes whose driver is being called
	overlap       []string        // calls that came while another for the same volume was under way
	holders       string          // of every mount, as the helper says it
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := openWorld(t.TempDir())
	for _, d := range []string{"journal", "volumes", "mounted", "ledger"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func openWorld(dir string) *world {
	w := &world{dir: dir, policy: config.DefaultPolicy(), boot: "boot-1", busy: map[string]bool{}, holders: "42 (nginx worker)\n43 (sh)"}
	w.policy.State.Dir = filepath.Join(dir, "journal")
	w.policy.Volume.DefaultDriver = "fake"
	w.policy.Plugins.SocketDirs, w.policy.Plugins.SpecDirs = []string{}, []string{}
	w.policy.Rules = []config.Rule{{Action: "allow"}}
	w.policy.Drivers = map[string]config.Driver{}
	return w
}

// open opens an Isolator for an owner, as a process of its own would.
func (w *world) open(t *testing.T, owner string) *Isolator {
	t.Helper()
	iso, err := w.isolator(owner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { iso.Close() })
	return iso
}

func (w *world) isolator(owner string) (*Isolator, error) {
	return Open(Options{Policy: w.policy, Owner: owner, BootID: w.boot, Helper: w.helper, Driver: func(name string) (driver.Driver, error) {
		if strings.HasPrefix(name, "no-") {
			return nil, wire.Errorf(wire.DriverUnavailable, "discover", "cannot find driver %q: nothing answers under that name", name)
		}
		return &fakeDriver{w, name}, nil
	}})
}

// step logs a call and intercepts it.
func (w *world) step(call string) error {
	w.mu.Lock()
	f, err := os.OpenFile(filepath.Join(w.dir, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(f, call)
		err = f.Close()
	}
	before := w.before
	w.mu.Unlock()
	if err != nil || before == nil {
		return err
	}
	return before(call)
}

func (w *world) done(call string) error {
	w.mu.Lock()
	after := w.after
	w.mu.Unlock()
	if after != nil {
		return after(call)
	}
	return nil
}

// calls returns the calls so far that begin with one of the prefixes; all without any.
func (w *world) calls(prefixes ...string) []string {
	data, _ := os.ReadFile(filepath.Join(w.dir, "calls"))
	list := []string{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
			list = append(list, line)
		}
	}
	return list
}

// fakeDriver is a volume driver that counts ids: a volume is mounted while it has one.
type fakeDriver struct {
	w    *world
	name string
}

func (d *fakeDriver) volume(name string) string {
	return filepath.Join(d.w.dir, "volumes", d.name+"@"+name)
}
func (d *fakeDriver) mounts(name string) string {
	return filepath.Join(d.w.dir, "mounted", d.name+"@"+name)
}

// call runs one call: logged, intercepted, and checked not to overlap with another for the same volume.
func (d *fakeDriver) call(op, name, id string, do func() error) error {
	key, line := d.name+"/"+name, strings.TrimSpace(op+" "+d.name+"/"+name+" "+id)
	d.w.mu.Lock()
	if d.w.busy[key] {
		d.w.overlap = append(d.w.overlap, line)
	}
	d.w.busy[key] = true
	d.w.mu.Unlock()
	defer func() {
		d.w.mu.Lock()
		d.w.busy[key] = false
		d.w.mu.Unlock()
	}()
	if err := d.w.step(line); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return d.w.done(line)
}

func (d *fakeDriver) Create(_ context.Context, name string, opts map[string]string) error {
	return d.call("create", name, "", func() error {
		data, _ := json.Marshal(opts)
		tmp := filepath.Join(d.w.dir, d.name+"-"+name) // whole or not at all, whatever crashes
		if err := os.WriteFile(tmp, data, 0o600); err != nil {
			return err
		}
		return os.Rename(tmp, d.volume(name))
	})
}

func (d *fakeDriver) Get(_ context.Context, name string) (driver.Volume, error) {
	v := driver.Volume{Name: name}
	return v, d.call("get", name, "", func() error {
		data, err := os.ReadFile(d.volume(name))
		if errors.Is(err, fs.ErrNotExist) {
			return wire.Errorf(wire.VolumeNotFound, "get", "cannot look up volume %q: the driver knows no such volume", name)
		}
		return json.Unmarshal(data, &v.Options)
	})
}

func (d *fakeDriver) List(context.Context) ([]driver.Volume, error) {
	list := []driver.Volume{}
	return list, d.call("list", "", "", func() error {
		entries, err := os.ReadDir(filepath.Join(d.w.dir, "volumes"))
		for _, e := range entries {
			if name, ok := strings.CutPrefix(e.Name(), d.name+"@"); ok {
				list = append(list, driver.Volume{Name: name})
			}
		}
		return err
	})
}

func (d *fakeDriver) Path(_ context.Context, name string) (string, error) {
	where := ""
	return where, d.call("path", name, "", func() error { return nil })
}

func (d *fakeDriver) Mount(_ context.Context, name, id string) (string, error) {
	return d.mounts(name), d.call("mount", name, id, func() error {
		if _, err := os.Stat(d.volume(name)); err != nil {
			return wire.Errorf(wire.VolumeNotFound, "mount", "cannot mount volume %q: the driver knows no such volume", name)
		}
		if err := os.MkdirAll(d.mounts(name), 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(d.mounts(name), id), nil, 0o600)
	})
}

func (d *fakeDriver) Unmount(_ context.Context, name, id string) error {
	return d.call("unmount", name, id, func() error {
		if os.Remove(filepath.Join(d.mounts(name), id)) != nil {
			return wire.Errorf(wire.DriverError, "unmount", "cannot unmount volume %q: not mounted with this id", name).Because(driver.ErrRefused)
		}
		os.Remove(d.mounts(name)) // with the last id
		return nil
	})
}

func (d *fakeDriver) Remove(_ context.Context, name string) error {
	return d.call("remove", name, "", func() error { return os.Remove(d.volume(name)) })
}

func (d *fakeDriver) Capabilities(context.Context) (driver.Capabilities, error) {
	return driver.Capabilities{Scope: driver.ScopeLocal}, nil
}

// mounted returns the ids with which volumes are mounted, as DRIVER@NAME/ID.
func (w *world) mounted(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(w.dir, "mounted", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		list[i], _ = filepath.Rel(filepath.Join(w.dir, "mounted"), list[i])
	}
	return list
}

// helper is the privileged side: attaching writes a ledger, and believes everything.
func (w *world) helper(ctx context.Context, r *wire.Request) (*wire.Reply, error) {
	// What lifecycle sends must be a request that the helper would accept.
	if _, err := wire.DecodeRequest(boundary.Encode(r)); err != nil {
		return nil, wire.Errorf(wire.Internal, "test", "malformed request: %v", err)
	}
	call := strings.TrimSpace("helper " + r.Op + " " + r.Owner + " " + r.Container)
	for _, m := range r.Mounts {
		call += " " + m.Path
	}
	if r.Lazy {
		call += " lazy"
	}
	if r.Forget {
		call += " forget"
	}
	if err := w.step(call); err != nil {
		return nil, err
	}
	reply := &wire.Reply{}
	w.mu.Lock()
	err := w.privileged(r, reply)
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := w.done(call); err != nil {
		return nil, err
	}
	return boundary.DecodeReply(reply.Encode())
}

type ledgerEntry struct {
	Owner, Container string
	PID              int
	Mounts           []wire.Mount
}

func (w *world) privileged(r *wire.Request, reply *wire.Reply) error {
	file := filepath.Join(w.dir, "ledger", r.Owner+"@"+r.Container)
	l := ledgerEntry{}
	if data, err := os.ReadFile(file); err == nil {
		json.Unmarshal(data, &l)
	}
	save := func() error {
		if len(l.Mounts) == 0 {
			os.Remove(file)
			return nil
		}
		data, _ := json.Marshal(l)
		if err := os.WriteFile(w.dir+"/ledger.tmp", data, 0o600); err != nil {
			return err
		}
		return os.Rename(w.dir+"/ledger.tmp", file)
	}
	switch r.Op {
	case wire.OpAttach:
		l.Owner, l.Container, l.PID = r.Owner, r.Container, r.PID
		for i, m := range r.Mounts {
			l.Mounts = append(l.Mounts, m)
			reply.Blocks = append(reply.Blocks, wire.Fields{{Key: "mount", Value: m.Path}, {Key: "target", Value: m.Path}, {Key: "id", Value: fmt.Sprint(1000 + i)},
				{Key: "locked", Value: "1"}, {Key: "created", Value: "2"}})
		}
		return save()
	case wire.OpDetach:
		if len(l.Mounts) == 0 {
			return wire.Errorf(wire.NotFound, "ledger", "cannot detach from container %s: nothing is attached", r.Container)
		}
		l.Mounts = slices.DeleteFunc(l.Mounts, func(m wire.Mount) bool {
			gone := len(r.Mounts) == 0 || slices.ContainsFunc(r.Mounts, func(x wire.Mount) bool { return x.Path == m.Path })
			if gone {
				reply.Blocks = append(reply.Blocks, wire.Fields{{Key: "mount", Value: m.Path}, {Key: "id", Value: "1000"}})
			}
			return gone
		})
		return save()
	case wire.OpQuery:
		for _, l := range w.ledger() {
			if l.Owner != r.Owner || r.Container != "" && l.Container != r.Container {
				continue
			}
			for _, m := range l.Mounts {
				reply.Blocks = append(reply.Blocks, wire.Fields{{Key: "mount", Value: m.Path}, {Key: "owner", Value: l.Owner}, {Key: "container", Value: l.Container},
					{Key: "alive", Value: "1"}, {Key: "bytes", Value: "4096"}, {Key: "bytes_free", Value: "1024"}, {Key: "inodes", Value: "10"},
					{Key: "inodes_free", Value: "5"}, {Key: "holders", Value: w.holders}, {Key: "source", Value: m.Source}})
			}
		}
	}
	return nil
}

func (w *world) ledger() []ledgerEntry {
	files, _ := filepath.Glob(filepath.Join(w.dir, "ledger", "*"))
	var list []ledgerEntry
	for _, f := range files {
		data, _ := os.ReadFile(f)
		var l ledgerEntry
		json.Unmarshal(data, &l)
		list = append(list, l)
	}
	return list
}

// create makes volumes of the driver fake, which a job would make otherwise.
func (w *world) create(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := os.WriteFile((&fakeDriver{w, "fake"}).volume(n), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// on sets what happens at the beginning of calls that begin with prefix.
func (w *world) on(prefix string, do func(call string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = func(call string) error {
		if strings.HasPrefix(call, prefix) {
			return do(call)
		}
		return nil
	}
}

func (w *world) off() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before, w.after = nil, nil
}

// job is a job of volumes written as NAME:PATH[:ro], of the driver fake unless DRIVER/ stands before.
func job(t *testing.T, volumes ...string) *spec.Job {
	t.Helper()
	j := &spec.Job{}
	for _, s := range volumes {
		drv := "fake"
		if d, rest, ok := strings.Cut(s, "//"); ok {
			drv, s = d, rest
		}
		v, err := spec.ParseVolumeFlag(s, drv)
		if err != nil {
			t.Fatal(err)
		}
		j.Volumes = append(j.Volumes, v)
	}
	return j
}

func request(t *testing.T, container string, volumes ...string) Request {
	t.Helper()
	return Request{Container: container, Job: job(t, volumes...)}
}

// want checks an error's code and that its message holds the given parts.
func want(t *testing.T, err error, code wire.Code, parts ...string) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error with code %s", err, code)
	}
	if e.Code != code {
		t.Fatalf("code %s, want %s: %s", e.Code, code, e.Message)
	}
	if !strings.HasPrefix(e.Message, "cannot ") {
		t.Errorf("message %q does not say what cannot be done", e.Message)
	}
	for _, p := range parts {
		if !strings.Contains(e.Message+"\n"+e.Hint, p) {
			t.Errorf("message %q, hint %q: want %q in it", e.Message, e.Hint, p)
		}
	}
	return e
}

func ok[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// empty checks that nothing is left: no record, no mount, no ledger.
func (w *world) empty(t *testing.T) {
	t.Helper()
	iso := w.open(t, DefaultOwner)
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if len(s.Containers)+len(s.Volumes)+len(s.Warnings) > 0 {
		t.Errorf("records are left: %+v", s)
	}
	if m := w.mounted(t); len(m) > 0 {
		t.Errorf("the driver still has %v", m)
	}
	if l := w.ledger(); len(l) > 0 {
		t.Errorf("the ledger still has %v", l)
	}
	for _, dir := range []string{"containers", "volumes"} {
		entries, err := os.ReadDir(filepath.Join(w.policy.State.Dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != ".lock" && e.Name() != "corrupt" {
				t.Errorf("a file is left: %s/%s", dir, e.Name())
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.overlap) > 0 {
		t.Errorf("calls for one volume overlapped: %v", w.overlap)
	}
}

// child starts a process that lives until the test ends it.
type child struct {
	PID   int
	cmd   *exec.Cmd
	stdin interface{ Close() error }
}

func newChild(t *testing.T) *child {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd.Process.Pid, cmd, in}
	t.Cleanup(func() { cmd.Process.Kill(); in.Close(); cmd.Wait() })
	return c
}

// String is the process as the helper speaks of one.
func (c *child) String() string { return fmt.Sprintf("%d (cat)", c.PID) }

// end ends the process without reaping it: it is a zombie when end returns.
func (c *child) end(t *testing.T) {
	t.Helper()
	fd, err := unix.PidfdOpen(c.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c.cmd.Process.Kill()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n == 1 {
			return
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// patience is a context that ends when a test has waited too long for something that should have come.
func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// background is a context for the crash tests' processes, which have no test.
var background = context.Background()

func crashRequest(id string) Request {
	r := Request{Container: id, Job: &spec.Job{}}
	for _, name := range []string{"a", "b"} {
		r.Job.Volumes = append(r.Job.Volumes, spec.Volume{Driver: "fake", Name: name, ContainerPath: "/" + name, Mode: "rw", Scope: spec.ScopeContainer})
	}
	return r
}
