package attack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// volOp asks the helper for an operation on a local volume.
func volOp(h *harness.Host, op, name string) *wire.Reply {
	return h.Helper(&wire.Request{Op: op, Name: name})
}

func volCheck(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// volFill puts into a volume what a job could: links out of it, names that a shell or a terminal would trip over, a tree deeper than there are descriptors, folders of others.
func volFill(t *testing.T, dir, outside string) {
	t.Helper()
	volCheck(t, os.Symlink(outside, filepath.Join(dir, "link")))
	volCheck(t, os.Symlink("/", filepath.Join(dir, "root")))
	volCheck(t, os.Link(filepath.Join(outside, "keep"), filepath.Join(dir, "hard")))
	for _, name := range []string{"-rf", "a\nb", "\x1b[2J", strings.Repeat("n", 255), ".moved-1", ".moved-2", "...", "\xff\xfe", " "} {
		volCheck(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		volCheck(t, os.WriteFile(filepath.Join(dir, name, name), []byte("x"), 0o000))
	}
	sticky := filepath.Join(dir, "sticky")
	volCheck(t, os.MkdirAll(filepath.Join(sticky, "of another/closed"), 0o700))
	volCheck(t, os.Chown(filepath.Join(sticky, "of another"), 12345, 12345))
	volCheck(t, os.Chmod(filepath.Join(sticky, "of another"), 0))
	volCheck(t, os.Chmod(sticky, os.ModeSticky|0o777))
	volCheck(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))

	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	volCheck(t, err)
	for range 3000 {
		volCheck(t, unix.Mkdirat(at, "deep", 0o700))
		next, err := unix.Openat(at, "deep", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		volCheck(t, err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
}

func TestLocalVolume_RemovalStaysInside(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		outside := h.Mkdir(h.Path("outside"), 0o755)
		h.WriteFile(filepath.Join(outside, "keep"), "x", 0o644)
		before := h.Tree(outside)

		// The naive way removes what is mounted in the tree before it meets the mount.
		naive := h.Mkdir(h.Path("naive"), 0o755)
		h.Mount("tmpfs", h.Mkdir(filepath.Join(naive, "mnt"), 0o755), "tmpfs", 0, "")
		h.WriteFile(filepath.Join(naive, "mnt/file"), "x", 0o644)
		if err := os.RemoveAll(naive); err == nil {
			t.Fatal("the naive way removed a mountpoint")
		}
		if _, err := os.Stat(filepath.Join(naive, "mnt/file")); err == nil {
			t.Fatal("the attack does not work on the naive way")
		}

		if r := volOp(h, wire.OpCreateVolume, "v"); r.Err != nil {
			t.Fatal(r.Err)
		}
		dir := filepath.Join(h.Volumes(), "v")
		volFill(t, dir, outside)
		mounted := h.Mkdir(filepath.Join(dir, "sub/mnt"), 0o755)
		volCheck(t, unix.Mount("tmpfs", mounted, "tmpfs", 0, ""))
		h.WriteFile(filepath.Join(mounted, "file"), "x", 0o644)
		if r := volOp(h, wire.OpRemoveVolume, "v"); r.Err == nil || r.Err.Code != wire.Busy {
			t.Errorf("with a mount in it: %+v", r)
		}
		for _, f := range []string{"sub/mnt/file", "deep", "link", "-rf/-rf"} {
			if _, err := os.Lstat(filepath.Join(dir, f)); err != nil {
				t.Errorf("a removal that was refused removed %s: %v", f, err)
			}
		}
		volCheck(t, unix.Unmount(mounted, 0))

		c := h.Container(harness.ContainerOptions{ID: "c"})
		attach := &wire.Request{Op: wire.OpAttach, Owner: "o", Container: "c", PID: c.Pid(), Mounts: []wire.Mount{{Path: "/data", Source: dir, Mode: wire.ModeRW, Subpath: "sub"}}}
		if r := h.Helper(attach); r.Err != nil {
			t.Fatal(r.Err)
		}
		if r := volOp(h, wire.OpRemoveVolume, "v"); r.Err == nil || r.Err.Code != wire.Busy {
			t.Errorf("with a part of it attached: %+v", r)
		}
		if r := h.Helper(&wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c"}); r.Err != nil {
			t.Fatal(r.Err)
		}
		few := h.Command(callerPolicy, "/usr/bin/prlimit", "--nofile=256:256", h.HelperPath()) // descriptors than the tree is deep
		if r := callerRun(h, few, boundary.Encode(&wire.Request{Op: wire.OpRemoveVolume, Name: "v"})); r.Exit != 0 {
			t.Errorf("remove: %v", r)
		}
		if left := h.Tree(h.Volumes()); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
		if d := harness.Diff(before, h.Tree(outside)); strings.ReplaceAll(d, "nlink", "") != "" && d != "" {
			t.Errorf("what lies outside of the volume changed:\n%s", d)
		}

		// A removal that was cut off goes on; a creation that was leaves nothing.
		volCheck(t, os.MkdirAll(filepath.Join(h.Volumes(), ".gone-w/half/removed"), 0o700))
		volCheck(t, os.Mkdir(filepath.Join(h.Volumes(), ".new-w"), 0o700))
		if r := volOp(h, wire.OpCreateVolume, "w"); r.Err != nil {
			t.Errorf("create after a crash: %+v", r.Err)
		}
		if r := volOp(h, wire.OpRemoveVolume, "w"); r.Err != nil {
			t.Errorf("remove after a crash: %+v", r.Err)
		}
		if left := h.Tree(h.Volumes()); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
		if r := volOp(h, wire.OpRemoveVolume, "w"); r.Err == nil || r.Err.Code != wire.VolumeNotFound {
			t.Errorf("remove of none: %+v", r)
		}
	})
}

// Files that the container's root writes through an idmapped mount are root's in the volume; without it they are the mapped user's, and where the filesystem cannot the attach is refused.
func TestIdmap_FilesAreOwnedAsTheContainerExpects(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.HelperTOML(harness.DefaultHelperTOML + "[mounts]\nallow_idmap = true\n")
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o777)
		volCheck(t, os.Chmod(v, 0o777))
		ramfs := h.Mkdir(filepath.Join(h.Sources(), "ramfs"), 0o755)
		h.Mount("none", ramfs, "ramfs", unix.MS_NOSUID|unix.MS_NODEV, "")
		c := h.Container(harness.ContainerOptions{ID: "c", Mapping: &harness.Mapping{HostID: 100000, Size: 65536}})
		attach := func(path, source string, idmap bool) *wire.Reply {
			return h.Helper(&wire.Request{Op: wire.OpAttach, Owner: "o", Container: "c", PID: c.Pid(), Mounts: []wire.Mount{{Path: path, Source: source, Mode: wire.ModeRW, IDMap: idmap}}})
		}
		for path, want := range map[string]uint32{"/plain": 100000, "/mapped": 0} {
			if r := attach(path, v, path == "/mapped"); r.Err != nil {
				t.Fatalf("%s: %+v", path, r.Err)
			}
			file := strings.TrimPrefix(path, "/")
			c.Sh("touch " + path + "/" + file).OK(t)
			var st unix.Stat_t
			volCheck(t, unix.Stat(filepath.Join(v, file), &st))
			if st.Uid != want {
				t.Errorf("%s: the file is uid %d's in the volume, want %d", path, st.Uid, want)
			}
		}
		if r := attach("/ramfs", ramfs, true); r.Err == nil || r.Err.Code != wire.SourceForbidden || !strings.Contains(r.Err.Message, "idmapped") {
			t.Errorf("a filesystem that cannot be idmapped: %+v", r)
		}
		if lines := c.Mountinfo("/ramfs"); len(lines) != 0 {
			t.Errorf("attached all the same: %v", lines)
		}
	})
}

// A volume that somebody removes while another helper is about to attach it: what is pinned by then would be emptied under the container. Whatever the helper had done by then, either the volume
// is gone and was not attached, or it is attached, whole, and was not removed.
func TestAdv_RemovalBesideAnAttach(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		dir := filepath.Join(h.Volumes(), "v")
		fill := func() {
			if r := volOp(h, wire.OpCreateVolume, "v"); r.Err != nil {
				t.Fatal(r.Err)
			}
			h.WriteFile(filepath.Join(dir, "file"), "x", 0o644)
		}

		// The naive way attaches what it pinned.
		fill()
		tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		volCheck(t, err)
		gone, naive := filepath.Join(h.Volumes(), "gone"), h.Mkdir(h.Path("naive"), 0o755)
		volCheck(t, os.Rename(dir, gone)) // in the middle of a removal: nothing is on record yet, so nothing speaks against it
		volCheck(t, unix.MoveMount(tree, "", unix.AT_FDCWD, naive, unix.MOVE_MOUNT_F_EMPTY_PATH))
		volCheck(t, os.RemoveAll(gone))
		if _, err := os.Stat(filepath.Join(naive, "file")); err == nil {
			t.Fatal("the attack does not work on the naive way")
		}
		volCheck(t, errors.Join(unix.Close(tree), unix.Unmount(naive, 0)))

		c := h.Container(harness.ContainerOptions{ID: "c"})
		attach := &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c", PID: c.Pid(), Mounts: []wire.Mount{{Path: "/data", Source: dir, Mode: wire.ModeRW}}}
		var removal *wire.Reply
		outcomes := srcSweep(t, h, func() *wire.Request { fill(); removal = nil; return attach }, func([]int) { removal = volOp(h, wire.OpRemoveVolume, "v") }, func() {
			attached := len(h.Helper(&wire.Request{Op: wire.OpQuery, Owner: "default", Container: "c"}).Blocks) > 0
			_, seen := os.Stat(c.Path("/data/file"))
			_, kept := os.Stat(filepath.Join(dir, "file"))
			switch {
			case removal == nil:
			case attached && (seen != nil || kept != nil || removal.Err == nil || removal.Err.Code != wire.Busy):
				t.Errorf("attached: %v, %v; removal: %+v", seen, kept, removal.Err)
			case !attached && (kept == nil || removal.Err != nil):
				t.Errorf("not attached: %v; removal: %+v", kept, removal.Err)
			}
		}, wire.SourceForbidden)
		if outcomes["ok"] < 2 || outcomes[string(wire.SourceForbidden)] == 0 {
			t.Errorf("one of the two never came first: %v", outcomes)
		}

		// So it is where the walk to the mountpoint takes that long that memory is collected, and what nobody refers to is closed.
		deep := strings.Repeat("/d", 1200)
		c.Exec("/bin/sh", "-c", "mkdir -p "+deep)
		fill()
		attach.Mounts[0].Path, removal = deep, nil
		trace := srcStep(t, h, attach, func(made []int) (enough bool) {
			if enough = len(made) > 1200 && made[len(made)-1] == unix.SYS_UNSHARE; enough {
				removal = volOp(h, wire.OpRemoveVolume, "v")
			}
			return enough
		})
		if trace.Reply.Err != nil || removal == nil || removal.Err == nil || removal.Err.Code != wire.Busy {
			t.Errorf("attach: %+v; removal beside it: %+v", trace.Reply.Err, removal)
		}
	})
}

// volWaits says whether a thread of a process waits for a lock.
func volWaits(pid int) bool {
	calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, name := range calls {
		data, _ := os.ReadFile(name)
		if f := strings.Fields(string(data)); len(f) > 2 && f[0] == strconv.Itoa(unix.SYS_FCNTL) && f[2] == fmt.Sprintf("0x%x", unix.F_OFD_SETLKW) {
			return true
		}
	}
	return false
}
