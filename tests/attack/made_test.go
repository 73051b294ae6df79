package attack

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

func madeAttach(c *harness.Container, id, path, source string) *wire.Request {
	return &wire.Request{Op: wire.OpAttach, Owner: "o", Container: id, PID: c.Pid(), Mounts: []wire.Mount{{Path: path, Source: source, Mode: wire.ModeRW}}}
}

func madeOK(t *testing.T, h *harness.Host, r *wire.Request) *wire.Reply {
	t.Helper()
	reply := h.Helper(r)
	if reply.Err != nil {
		t.Fatalf("%s: %+v", r.Op, reply.Err)
	}
	return reply
}

// The kernel takes mounts away with the directory that they are on, in every mount namespace but the one that removes it. Two containers share a sandbox: the end of the first must not take the second's
// volume along.
func TestMade_InASharedSandbox(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := filepath.Join(h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755))
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		a, b := h.SharedRoot(harness.SharedRootOptions{ID: "a"}), h.SharedRoot(harness.SharedRootOptions{ID: "b"})
		at := filepath.Join(sandbox, "data")

		// The naive way: make, mount in two namespaces, unmount in one, remove.
		volCheck(t, os.Mkdir(at, 0o755))
		for _, c := range []*harness.Container{a, b} {
			volCheck(t, srcBind(c.Pid(), v, at))
		}
		volCheck(t, srcUnbind(a.Pid(), at))
		volCheck(t, unix.Rmdir(at))
		if len(b.Mountinfo(at)) != 0 {
			t.Fatal("the attack does not work on the naive way")
		}

		for _, c := range []*harness.Container{a, b} { // the first makes the folder
			r := madeAttach(c, c.ID, "data", v)
			r.Directory = sandbox
			madeOK(t, h, r)
		}
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "a"})
		if len(b.Mountinfo(at)) != 1 {
			t.Error("the second container lost its volume")
		}
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "b"})
		if len(b.Mountinfo(at)) != 0 {
			t.Error("it is still attached")
		}
	})
}

// What was made for a mount that the container took away itself is not what lies at the same names in another volume that covers the place now.
func TestMade_NotInAVolumeThatCoversIt(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		one, two := h.Mkdir(filepath.Join(h.Sources(), "one"), 0o755), h.Mkdir(filepath.Join(h.Sources(), "two"), 0o755)
		theirs := h.Mkdir(filepath.Join(two, "b"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c", Privileged: true})
		madeOK(t, h, madeAttach(c, "c", "/a/b", one))
		c.Sh("umount /a/b").OK(t)
		madeOK(t, h, madeAttach(c, "c", "/a", two))
		if _, err := os.Stat(theirs); err != nil {
			t.Errorf("attach removed a folder of the volume: %v", err)
		}
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c"})
		if _, err := os.Stat(theirs); err != nil {
			t.Errorf("detach removed a folder of the volume: %v", err)
		}
	})
}

// A mount in the source that cannot be cloned would show what it covers, however the source is spelt.
func TestMade_CoveredFilesHoweverTheSourceIsSpelt(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		h.WriteFile(filepath.Join(h.Mkdir(filepath.Join(v, "sub"), 0o755), "secret"), "x", 0o644)
		h.Mount("tmpfs", filepath.Join(v, "sub"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "")
		volCheck(t, unix.Mount("", filepath.Join(v, "sub"), "", unix.MS_UNBINDABLE, ""))
		c := h.Container(harness.ContainerOptions{ID: "c"})
		for _, source := range []string{v, h.Sources() + "//v", h.Sources() + "/./v", v + "/"} {
			if r := h.Helper(madeAttach(c, "c", "/data", source)); r.Err == nil || r.Err.Code != wire.SourceForbidden {
				t.Errorf("%s: %+v", source, r)
			}
		}
	})
}

// A crash while a record was written leaves a temporary file and the container's entry: a sweep removes both and does not wait for itself.
func TestMade_SweepAfterACrashInAWrite(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		madeOK(t, h, madeAttach(c, "c", "/data", v))
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c"})
		for i := range 2 {
			h.WriteFile(filepath.Join(h.Ledger(), ".4711.rec12"+strconv.Itoa(i)), "torn", 0o600)
		}
		volCheck(t, os.Symlink("4711", filepath.Join(h.Ledger(), "by+"+strconv.Itoa(harness.PolicyUID)+"+o+dead")))
		for range 2 { // two files of one record: the second goes with the next sweep at the latest
			madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		}
		for _, name := range h.Tree(h.Ledger()) {
			if strings.Contains(name, "4711") || strings.Contains(name, "dead") {
				t.Errorf("left: %s", name)
			}
		}
	})
}

// The same for two containers on one root filesystem, and for a folder on the way to the first's volume: the second mounts onto what was made for the first.
func TestMade_InASharedRootFilesystem(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		a := h.Container(harness.ContainerOptions{ID: "a"})
		b := h.Container(harness.ContainerOptions{ID: "b", Edit: func(s *specs.Spec) { s.Root.Path = a.Root }})
		for _, second := range []string{"/x/data", "/x"} {
			madeOK(t, h, madeAttach(a, "a", "/x/data", v))
			madeOK(t, h, madeAttach(b, "b", second, v))
			madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "a"})
			if len(b.Mountinfo(second)) != 1 {
				t.Errorf("the second container lost its volume at %s", second)
			}
			madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "b"})
			madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"}) // what was nobody's any more
			if left := h.Tree(h.Ledger()); len(left) > 2 {            // the folder and its lock
				t.Errorf("the ledger keeps %q", left)
			}
			volCheck(t, os.RemoveAll(filepath.Join(a.Root, "x"))) // nobody's: left
		}
	})
}

// What is made for one volume and serves a second goes with the last of the two, in whatever order and request they came and go; what the container made in between stays.
func TestMade_GoesWithTheLastThatNeedsIt(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		detach := func(path string) {
			madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c", Mounts: []wire.Mount{{Path: path}}})
		}
		before := h.Tree(c.Root)
		for name, paths := range map[string][2]string{"siblings": {"/x/y/a", "/x/y/b"}, "one below": {"/x/a", "/x/y/b"}, "cousins": {"/x/y/a", "/x/z/b"}} {
			for order := range 2 {
				madeOK(t, h, madeAttach(c, "c", paths[0], v))
				madeOK(t, h, madeAttach(c, "c", paths[1], v))
				detach(paths[order])
				detach(paths[1-order])
				if d := harness.Diff(before, h.Tree(c.Root)); d != "" {
					t.Errorf("%s, order %d: left:\n%s", name, order, d)
				}
			}
		}
		madeOK(t, h, &wire.Request{Op: wire.OpAttach, Owner: "o", Container: "c", PID: c.Pid(),
			Mounts: []wire.Mount{{Path: "/x/a", Source: v, Mode: "rw"}, {Path: "/x/b", Source: v, Mode: "rw"}}})
		detach("/x/a")
		detach("/x/b")
		if d := harness.Diff(before, h.Tree(c.Root)); d != "" {
			t.Errorf("one request: left:\n%s", d)
		}
		madeOK(t, h, madeAttach(c, "c", "/x/a", v))
		c.Sh("mkdir /x/own").OK(t)
		madeOK(t, h, madeAttach(c, "c", "/x/own/b", v))
		detach("/x/a")
		detach("/x/own/b")
		if _, err := os.Stat(filepath.Join(c.Root, "x/own")); err != nil {
			t.Error("the container's own folder was removed")
		}
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		if left := h.Tree(h.Ledger()); len(left) > 2 {
			t.Errorf("the ledger keeps %q", left)
		}
	})
}
