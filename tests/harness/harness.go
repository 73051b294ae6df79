// Package harness gives a test a host of its own: a pid and a mount namespace in which the test is root, with bindgate installed in it as an operator
// would install it, setuid helper included. When the test ends, the host vanishes with everything that was mounted, started or written in it.
//
//	func TestMain(m *testing.M) { harness.Main(m) }
//
//	func TestAttach(t *testing.T) {
//		harness.Run(t, func(h *harness.Host) {
//			h.AllowAll()
//			c := h.Container(harness.ContainerOptions{ID: "c1"})
//			h.Policy("attach", "--container", "c1", "--pid", c.PIDString(), "-v", "data:/data").OK(t)
//			c.Sh("touch /data/file").OK(t)
//		})
//	}
//
// Run starts the test binary anew, for this one test, in the new namespaces; what the test does before Run happens in both processes. In the host /run
// is a fresh tmpfs, as on an ordinary system, and the installed tree lies in it at Root: always the same path, so that the binaries, which have their
// paths compiled in, are linked once for all tests. Mounts are shared, as systemd leaves them, but with nobody outside.
//
// A test fails if something of it outlives it: a process or a mount in its host, a mount outside of it, a cgroup.
//
// Nothing here sleeps: a container's end is awaited on a pidfd, a plugin's start on a pipe.
package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Root is where the installed tree of every host lies. Everything above it is root's alone.
const Root = "/run/bindgate-test"

// The users of a host. They exist only in it. PolicyUser is the one that the installation was built for; Outsider is somebody who may not call the
// helper.
const (
	PolicyUser  = "bindgate-test"
	PolicyUID   = 64801
	PolicyGID   = 64801
	Outsider    = "bindgate-outsider"
	OutsiderUID = 64802
	OutsiderGID = 64802
)

// A Host is what a test runs in. Its methods fail the test when they cannot do what they promise; what a command under test answers is the test's to
// judge.
type Host struct {
	t  testing.TB
	id string // unique among the hosts of this machine: it names the host's cgroup
}

// For returns the host for a subtest: what fails, fails t, and what is started is ended with t.
func (h *Host) For(t testing.TB) *Host {
	g := *h
	g.t = t
	return &g
}

// Path returns a path in the host's tree.
func (h *Host) Path(elem ...string) string { return filepath.Join(append([]string{Root}, elem...)...) }

// Folders of the tree, as an operator's configuration would name them. All are root's, 0755, but for Sources, which is 0700.
func (h *Host) Bindgate() string   { return h.Path("prefix/bin/bindgate") }                     // the policy program
func (h *Host) HelperPath() string { return h.Path("prefix/libexec/bindgate/bindgate-helper") } // the setuid helper
func (h *Host) Journal() string    { return h.Path("var/lib/bindgate/journal") }                //
func (h *Host) Volumes() string    { return h.Path("var/lib/bindgate/volumes") }                // the local driver's
func (h *Host) Ledger() string     { return h.Path("run/bindgate/ledger") }                     //
func (h *Host) AuditLog() string   { return h.Path("var/log/bindgate/audit.jsonl") }            //
func (h *Host) Sources() string    { return h.Path("sources") }                                 // an allowed source, sealed: what plugins mount lies here
func (h *Host) HostPaths() string  { return h.Path("host") }                                    // the allowed host path
func (h *Host) Sandboxes() string  { return h.Path("sandboxes") }                               // the allowed sandbox root
func (h *Host) Bundles() string    { return h.Path("bundles") }                                 // the allowed rootfs root: containers' bundles
func (h *Host) Sockets() string    { return h.Path("plugins") }                                 // where plugins' sockets are looked for
func (h *Host) Specs() string      { return h.Path("specs") }                                   // and their spec files

// Unit is where a unit of systemd, which does not run here, is installed.
func (h *Host) Unit(name string) string { return h.Path("prefix/lib/systemd/system", name) }

// An Option changes the host that Run makes.
type Option func(*request)

// Bare makes a host without bindgate in it.
func Bare() Option { return func(r *request) { r.Bare = true } }

// DiskState puts the state directory (journal and local volumes) on a disk instead of a tmpfs, for tests that care what a sync costs or a crash leaves.
func DiskState() Option { return func(r *request) { r.Disk = true } }

// OwnNetwork gives the host a network namespace of its own, so that /proc/net/unix lists its sockets alone. It has no network.
func OwnNetwork() Option { return func(r *request) { r.Network = true } }

// Packages lays a tree of unpacked Debian packages over the host's /usr and /etc, so that what is in it is installed in the host and nowhere else. What it brings is for container engines
// that take a hybrid tree of cgroups for cgroup v2: in the host the v2 part of one is not mounted.
func Packages(tree string) Option { return func(r *request) { r.Packages = tree } }

// Run runs f in a host of its own and fails t if f fails there, or if it left something.
func Run(t *testing.T, f func(h *Host), options ...Option) {
	t.Helper()
	r := request{Test: t.Name()}
	for _, o := range options {
		o(&r)
	}
	if os.Getenv(roleVar) != roleInside {
		runOutside(t, r)
		return
	}
	if err := json.Unmarshal([]byte(os.Getenv(requestVar)), &r); err != nil {
		t.Fatalf("harness: cannot read %s: %v", requestVar, err)
	}
	if r.Test != t.Name() {
		t.Fatalf("harness: Run for %s inside the host of %s: a host has no hosts", t.Name(), r.Test)
	}
	h := &Host{t: t, id: r.ID}
	isBuilt(r.Built...)
	t.Cleanup(func() { writeReport(report{Ran: true, Skipped: t.Skipped(), Built: isBuilt()}) })
	if !r.Bare {
		h.install()
	}
	before := h.Mountinfo()
	t.Cleanup(func() {
		if d := Diff(before, h.Mountinfo()); d != "" && !t.Failed() && !t.Skipped() {
			t.Errorf("harness: the test changed the host's mounts:\n%s", d)
		}
	})
	f(h)
}

// Mount mounts something in the host until the test ends.
func (h *Host) Mount(source, target, fstype string, flags uintptr, data string) {
	h.t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		h.t.Fatalf("harness: cannot mount %s on %s: %v", source, target, err)
	}
	h.t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
}

// Mkdir makes a folder and those above it, with exactly this mode, and returns its path.
func (h *Host) Mkdir(path string, mode os.FileMode) string {
	h.t.Helper()
	h.check(os.MkdirAll(path, 0o755))
	h.check(os.Chmod(path, mode))
	return path
}

// WriteFile writes a file of root's, with exactly this mode.
func (h *Host) WriteFile(path, content string, mode os.FileMode) {
	h.t.Helper()
	h.check(os.WriteFile(path, []byte(content), mode))
	h.check(os.Chmod(path, mode))
}

// ReadFile returns what is in a file.
func (h *Host) ReadFile(path string) string {
	h.t.Helper()
	data, err := os.ReadFile(path)
	h.check(err)
	return string(data)
}

func (h *Host) check(err error) {
	if err != nil {
		h.t.Helper()
		h.t.Fatalf("harness: %v", err)
	}
}

// report is what the inside tells the outside when it is done: without it, a test that was never run would pass.
type report struct {
	Ran, Skipped bool
	Built        []string // programs that are up to date, so that the next host's test need not look
}

const reportFD = 3

func writeReport(r report) {
	data, _ := json.Marshal(r)
	if _, err := unix.Write(reportFD, data); err != nil {
		fmt.Fprintln(os.Stderr, "harness: cannot report:", err)
	}
}
