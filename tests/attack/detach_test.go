package attack

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// second lets the outsider call the helper too, for itself.
func (h *boxHost) second() {
	h.HelperTOML("[callers]\nuids = [0, " + strconv.Itoa(harness.OutsiderUID) + "]\n" + harness.DefaultHelperTOML)
}

// T27: only what was attached by the one who asks is detached, and only that very mount.
func TestT27_DetachByIdentity(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		h.second()
		c := h.run(harness.ContainerOptions{ID: "c", Privileged: true})
		other := h.run(harness.ContainerOptions{ID: "other", Privileged: true})
		for _, dir := range []string{"/data", "/own", "/moved", "/copy", "/deep/data", "/deep/other/data"} {
			c.do("mkdir " + dir)
		}
		c.do("tmpfs /own")
		c.do("write /own/mine x")
		own := func() {
			t.Helper()
			if got := c.do("ls /own"); got != "mine" {
				t.Fatalf("the container's own mount is gone: %q", got)
			}
		}
		id := "c" + strconv.Itoa(c.target)

		t.Run("naive", func(t *testing.T) {
			h.attached(c.target, "/data")
			c.do("bind /own /data")
			h.must(boxEnter(t, c.target, func() error { return unix.Unmount("/data", unix.MNT_DETACH) }))
			if got := c.do("ls /data"); got != "file" {
				t.Fatalf("the naive way, by path, does not unmount what the container put there: %q", got)
			}
			boxOK(t, h.detach(c.target, false))
		})
		t.Run("what is not bindgate's", func(t *testing.T) {
			boxRefused(t, "of a container without records", h.detach(c.target, true, "/own"), wire.NotFound)
			h.attached(c.target, "/data")
			for _, path := range []string{"/own", "/proc", "/", "/dev/shm", "/data/..", "data"} {
				boxRefused(t, path, h.detach(c.target, true, path), wire.NotFound, wire.InvalidRequest)
			}
			boxRefused(t, "one of two", h.detach(c.target, true, "/data", "/own"), wire.NotFound)
			h.wantAt(c.target, "/data", 1)
			// The container takes ours away and puts its own there.
			c.do("umount /data")
			c.do("bind /own /data")
			boxOK(t, h.detach(c.target, true, "/data"))
			h.wantAt(c.target, "/data", 1)
			c.do("umount /data")
			own()
		})
		t.Run("another's", func(t *testing.T) {
			h.attached(c.target, "/data")
			h.attached(other.target, "/data")
			ask := func(owner, container string) *wire.Request {
				return &wire.Request{Op: wire.OpDetach, Owner: owner, Container: container, Lazy: true, Mounts: []wire.Mount{{Path: "/data"}}}
			}
			boxRefused(t, "another container's", h.Helper(ask("default", "x"+id)), wire.NotFound)
			boxRefused(t, "another owner's", h.Helper(ask("else", id)), wire.NotFound)
			boxRefused(t, "another uid's", h.as(boxOutsider, ask("default", id)), wire.NotFound, wire.Denied)
			all := ask("default", id)
			all.Mounts = nil
			if r := h.as(boxOutsider, all); r.Err == nil && len(r.Blocks) > 0 {
				t.Errorf("another uid detaches %v", r.Blocks)
			}
			if r := h.as(boxOutsider, &wire.Request{Op: wire.OpQuery, Owner: "default"}); r.Err != nil || len(r.Blocks) > 0 {
				t.Errorf("another uid sees %v %v", r.Err, r.Blocks)
			}
			if r := h.as(boxOutsider, &wire.Request{Op: wire.OpSweep, Owner: "default"}); r.Err != nil || len(r.Blocks) > 0 {
				t.Errorf("another uid sweeps %v %v", r.Err, r.Blocks)
			}
			// The same ids of another uid, of another owner, in the same namespace, are others.
			mine := h.request(c.target, "/outsiders")
			boxOK(t, h.as(boxOutsider, mine))
			boxOK(t, h.detach(c.target, true))
			h.wantAt(c.target, "/data", 0)
			h.wantAt(c.target, "/outsiders", 1)
			h.wantAt(other.target, "/data", 1)
			// Root may.
			if r := h.as(harness.User{}, &wire.Request{Op: wire.OpDetach, Owner: "default", Container: id}); r.Err != nil || len(r.Blocks) != 1 {
				t.Errorf("root: %v %v", r.Err, r.Blocks)
			}
			h.wantAt(c.target, "/outsiders", 0)
			boxOK(t, h.detach(other.target, false))
		})
		t.Run("covered", func(t *testing.T) {
			h.attached(c.target, "/data")
			c.do("bind /own /data")
			boxRefused(t, "covered", h.detach(c.target, false), wire.Busy)
			h.wantAt(c.target, "/data", 2)
			boxOK(t, h.detach(c.target, true))
			h.wantAt(c.target, "/data", 0)
			own()
		})
		t.Run("covered further up", func(t *testing.T) {
			h.attached(c.target, "/deep/data")
			c.do("tmpfs /deep")
			c.do("mkdir /deep/data")
			c.do("bind /own /deep/data")
			for _, lazy := range []bool{false, true} {
				boxRefused(t, "under another mount", h.detach(c.target, lazy), wire.Busy)
				if got := c.do("ls /deep/data"); got != "mine" {
					t.Errorf("the container's own mount is gone: %q", got)
				}
			}
			c.do("umount /deep")
			boxOK(t, h.detach(c.target, false))
			own()
		})
		t.Run("mounted below", func(t *testing.T) {
			h.Mkdir(filepath.Join(h.Source, "sub"), 0o755)
			h.attached(c.target, "/data")
			c.do("bind /own /data/sub")
			boxRefused(t, "below", h.detach(c.target, false), wire.Busy)
			h.wantAt(c.target, "/data/sub", 1)
			boxOK(t, h.detach(c.target, true))
			h.wantAt(c.target, "/data", 0)
			own()
		})
		t.Run("moved", func(t *testing.T) {
			h.attached(c.target, "/data")
			c.do("move /data /moved")
			c.do("bind /own /data")
			boxOK(t, h.detach(c.target, false))
			h.wantAt(c.target, "/moved", 0)
			h.wantAt(c.target, "/data", 1)
			c.do("umount /data")
			own()
		})
		t.Run("moved to a place of the same name", func(t *testing.T) {
			// What was made is /new/data; the container's own folder ends alike, and is not ours to remove.
			h.attached(c.target, "/new/data")
			c.do("mkdir /theirs/new/data")
			c.do("move /new/data /theirs/new/data")
			boxOK(t, h.detach(c.target, false))
			h.wantAt(c.target, "/theirs/new/data", 0)
			if got := c.ask("ls /theirs/new/data"); got != "ok" {
				t.Errorf("a folder that the container made was removed: %s", got)
			}
		})
		t.Run("what was copied elsewhere survives", func(t *testing.T) {
			h.attached(c.target, "/data")
			c.do("bind /data /copy")
			boxOK(t, h.detach(c.target, false))
			h.wantAt(c.target, "/data", 0)
			if got := c.do("ls /copy"); !strings.Contains(got, "file") {
				t.Errorf("the copy holds %q", got)
			}
			c.do("umount /copy")
		})
		t.Run("in use", func(t *testing.T) {
			h.attached(c.target, "/data")
			c.do("cwd /data")
			c.do("comm " + strconv.Quote("hol\x1b[31m\n7"))
			msg := boxRefused(t, "a working directory", h.detach(c.target, false), wire.Busy)
			if !strings.Contains(msg, "hol") {
				t.Errorf("who holds it is not named: %s", msg)
			}
			c.do("cwd /")
			fd := c.do("open /data/file")
			boxRefused(t, "an open file", h.detach(c.target, false), wire.Busy)
			h.wantAt(c.target, "/data", 1)
			if r := h.Helper(&wire.Request{Op: wire.OpQuery, Owner: "default", Container: id}); len(r.Blocks) != 1 || len(strings.Split(r.Blocks[0].Get("holders"), "\n")) != 1 {
				t.Errorf("one process holds it, query says %q", r.Blocks)
			}
			c.do("close " + fd)
			boxOK(t, h.detach(c.target, false))
			h.attached(c.target, "/data")
			fd = c.do("open /data/file")
			boxOK(t, h.detach(c.target, true))
			h.wantAt(c.target, "/data", 0)
			c.do("close " + fd)
		})
		t.Run("one volume of two", func(t *testing.T) {
			r := h.request(c.target, "/data")
			r.Mounts = append(r.Mounts, wire.Mount{Path: "/data/sub", Source: h.Source, Mode: wire.ModeRO})
			boxOK(t, h.Helper(r))
			boxRefused(t, "the outer one", h.detach(c.target, false, "/data"), wire.Busy)
			h.wantAt(c.target, "/data/sub", 1)
			boxOK(t, h.detach(c.target, false, "/data/sub"))
			h.wantAt(c.target, "/data", 1)
			boxOK(t, h.detach(c.target, false))
		})
		h.wantNoRecord()
	})
}

// T27: a lazy detach takes along what the container mounted below, but not what another uid has attached there: that is not the caller's.
func TestT27_AnotherUIDsMountBelow(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		h.second()
		h.Mkdir(filepath.Join(h.Source, "sub"), 0o755)
		c := h.run(harness.ContainerOptions{ID: "c"})
		h.attached(c.target, "/data")
		boxOK(t, h.as(boxOutsider, h.request(c.target, "/data/sub")))
		boxRefused(t, "not lazy", h.detach(c.target, false), wire.Busy)
		boxRefused(t, "lazy, with another uid's attachment below", h.detach(c.target, true), wire.Busy, wire.Denied)
		h.wantAt(c.target, "/data/sub", 1)
	})
}

// T27: the first process of the container is gone, but another one is left in its namespace.
func TestT27_WithoutTheFirstProcess(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		c := h.process(harness.User{}, false)
		path := h.Mkdir(filepath.Join(h.HostPaths(), "data"), 0o755)
		h.attached(c.target, path)
		pid, err := strconv.Atoi(c.do("fork"))
		h.must(err)
		c.boxProc.kill()
		h.wantAt(pid, path, 1)
		boxRefused(t, "the first process is gone", h.attach(c.target, path), wire.NamespaceGone)
		boxOK(t, h.detach(c.target, false))
		h.wantAt(pid, path, 0)
		h.wantNoRecord()
		h.must(unix.Kill(pid, unix.SIGKILL))
	})
}

// What was made is removed in the container that it was made in, whatever its namespace's root is: never what has the same name on the host.
func TestT27_WhatWasMadeIsNotTheHosts(t *testing.T) {
	for _, kind := range []string{"chrooted", "before the pivot"} {
		t.Run(kind, func(t *testing.T) {
			boxRun(t, func(t *testing.T, h *boxHost) {
				root := h.Mkdir(h.Path("bundles/b/rootfs"), 0o755)
				theirs := h.Mkdir(h.Path("empty/folder"), 0o755) // an empty folder of the host's, and an empty file
				h.WriteFile(h.Path("empty/file"), "", 0o644)
				h.WriteFile(h.Path("empty/full"), "x", 0o644)
				c := h.process(harness.User{}, false)
				c.do("bind " + root + " " + root)
				file := filepath.Join(h.Sources(), "single")
				h.WriteFile(file, "x", 0o644)
				r := h.request(c.target, theirs)
				r.Mounts = append(r.Mounts, wire.Mount{Path: h.Path("empty/file"), Source: file, Mode: wire.ModeRO})
				inside := ""
				if kind == "chrooted" {
					c.do("chroot " + root)
				} else {
					r.Rootfs, inside = root, root
				}
				h.untouched(func() {
					if kind == "chrooted" { // the names that the rules know would mean others in it
						boxRefused(t, "a process that is only chrooted", h.Helper(r), wire.TargetForbidden)
						return
					}
					boxOK(t, h.Helper(r))
					c.do("umount " + inside + theirs) // as a crash before the attach would leave it: recorded, and not there
					c.do("umount " + inside + h.Path("empty/file"))
					boxOK(t, h.detach(c.target, false))
				}, h.Path("empty"))
				if _, err := os.Lstat(root + h.Path("empty")); err == nil {
					t.Errorf("what was made is still there: %v", h.Tree(root))
				}
				if kind == "chrooted" {
					return
				}
				// The same with both in place.
				h.untouched(func() {
					boxOK(t, h.Helper(r))
					boxOK(t, h.detach(c.target, false))
				}, h.Path("empty"))
				if left := h.Tree(root); len(left) != 1 {
					t.Errorf("what was made is still there: %v", left)
				}
			})
		})
	}
}

// A container covers the way to a volume with a FUSE filesystem. A request to its server cannot even be killed while the server does not answer, and the lock that
// the helper holds meanwhile is one that sweep waits for, for everybody's containers. So nothing may be looked up in it.
func TestT27_CoveredByFUSE(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		c := h.process(harness.User{}, false)
		path := h.Mkdir(filepath.Join(h.HostPaths(), "a/data"), 0o755)
		h.attached(c.target, path)
		cover := func() { c.do("fuse " + filepath.Dir(path) + " /dev/fuse") }
		cover()
		os.Stat("/proc/" + strconv.Itoa(c.target) + "/root" + path)
		if c.rounds() == 0 {
			t.Fatal("the naive way does not ask the server")
		}
		for _, lazy := range []bool{false, true} {
			boxRefused(t, "covered by FUSE", h.detach(c.target, lazy), wire.Busy, wire.TargetForbidden)
			if n := c.rounds(); n > 0 {
				t.Errorf("detach, lazy %v: the container's FUSE server was asked %d times", lazy, n)
			}
		}
		h.Helper(&wire.Request{Op: wire.OpQuery, Owner: "default", Container: "c" + strconv.Itoa(c.target)})
		if n := c.rounds(); n > 0 {
			t.Errorf("query: the container's FUSE server was asked %d times", n)
		}
		c.do("umount " + filepath.Dir(path))
		boxOK(t, h.detach(c.target, false))
	})
}
