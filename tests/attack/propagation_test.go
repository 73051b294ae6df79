package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// T22: the target lies under a mount that is shared with the host.
func TestT22_SharedTarget(t *testing.T) {
	t.Parallel()
	boxRun(t, func(t *testing.T, h *boxHost) {
		shared := h.Mkdir(h.Path("shared"), 0o755)
		h.Mount("tmpfs", shared, "tmpfs", 0, "")
		h.Mkdir(shared+"/there", 0o755)
		c := h.run(harness.ContainerOptions{ID: "c", Privileged: true, Mounts: []specs.Mount{
			boxMount("/shared", "bind", shared, "rbind", "rshared", "rw"),
			boxMount("/slave", "bind", shared, "rbind", "rslave", "rw")}, Edit: func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" }})

		// The naive way: what is mounted in the container shows on the host.
		h.naive(c.target, h.Source, "/shared/there", unix.MOUNT_ATTR_RDONLY)
		if len(h.at(os.Getpid(), shared+"/there")) == 0 {
			t.Fatal("the naive way does not propagate")
		}
		h.must(boxEnter(t, c.target, func() error { return unix.Unmount("/shared/there", unix.MNT_DETACH) }))

		c.Sh("mount --make-private /").OK(t)
		watch := h.watch(h.Path(""))
		h.untouched(func() {
			for _, path := range []string{"/shared/there", "/shared/new", "/shared/new/deeper"} {
				code := wire.PropagationShared
				if path != "/shared/there" { // the tmpfs is the host's too: nothing is made there, so it does not come to that
					code = wire.TargetForbidden
				}
				msg := boxRefused(t, path, h.attach(c.target, path), code)
				if !strings.Contains(msg, path) {
					t.Errorf("%s is not named: %s", path, msg)
				}
			}
			// One of several: none is attached, whatever their order.
			r := h.request(c.target, "/private")
			r.Mounts = append(r.Mounts, wire.Mount{Path: "/shared/there", Source: h.Source, Mode: wire.ModeRW}, wire.Mount{Path: "/a", Source: h.Source, Mode: wire.ModeRW})
			boxRefused(t, "one of three", h.Helper(r), wire.PropagationShared)
			for _, path := range []string{"/private", "/a", "/shared/there"} {
				h.wantAt(c.target, path, 0)
			}
		}, shared)

		// A slave gets from the host and gives nothing; a private mount on a shared one is private.
		h.untouched(func() {
			h.attached(c.target, "/slave/there")
			c.do("mkdir /shared/there/x")
			c.do("tmpfs /tmp")
			h.attached(c.target, "/tmp/x")
			boxOK(t, h.detach(c.target, false))
			os.Remove(shared + "/there/x")
		}, shared)
		watch.quiet()

		// The container mounts something shared on the target at the very moment. Whatever the helper says, in the end nothing of it is on the host.
		c.do("mkdir /work/on")
		h.untouched(func() {
			counts := boxCount{}
			h.against(c.boxProc, "cover /shared/there /work/on")
			for range 100 {
				if counts.add(h.attach(c.target, "/work/on")) {
					h.letGo(c, counts)
				}
			}
			if n := h.over(); n == 0 {
				t.Error("the container did not race")
			}
			counts.only(t, nil, "ok", "propagation_shared", "target_forbidden", "target_missing", "system", "detach:busy", "detach:system")
		}, shared)
		h.wantNoRecord()
	})
}

// T22 before the pivot: the rootfs is bound in the runtime's namespace, which may still be shared with the host's.
func TestT22_SharedRootfsBeforeThePivot(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		rootfs := h.Mkdir(h.Path("bundles/b/rootfs"), 0o755)
		h.Mount(rootfs, rootfs, "", unix.MS_BIND, "") // on the host, shared with the container's copy of it
		cmd := h.Command(harness.User{}, "unshare", "--mount", "--propagation", "unchanged", h.Box)
		p := h.start(cmd)
		h.EnterCgroup(cmd.Process.Pid, h.Cgroup())
		p.do("bind " + rootfs + " " + rootfs)
		h.untouched(func() {
			r := h.request(cmd.Process.Pid, "/data")
			r.Rootfs = rootfs
			boxRefused(t, "a shared rootfs", h.Helper(r), wire.PropagationShared)
		}, rootfs)
		p.do("umount " + rootfs)
	})
}

// T26: a container that polls never sees the volume with weaker attributes than asked for.
func TestT26_NoWeakMoment(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		const flags = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
		sub := h.Mkdir(filepath.Join(h.Source, "sub"), 0o755)
		h.Mount("tmpfs", sub, "tmpfs", 0, "")
		c := h.run(harness.ContainerOptions{ID: "c"})
		c.do("mkdir /data/sub")
		poll := func(start func(command string), path string, rounds int, round func()) (seen int, weak bool) {
			t.Helper()
			start(fmt.Sprintf("poll %s %d", path, flags))
			for range rounds {
				round()
			}
			h.racer = nil
			answer := c.do("stop")
			fmt.Sscan(answer, &seen)
			return seen, strings.Contains(answer, "weak")
		}

		// The naive way, with which mount(8) does it: bind, then remount.
		root, err := unix.OpenTree(unix.AT_FDCWD, h.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		h.must(err)
		defer unix.Close(root)
		h.must(boxEnter(t, c.target, func() error {
			h.must(os.Mkdir("/staged", 0o755))
			return unix.MoveMount(root, "", unix.AT_FDCWD, "/staged", unix.MOVE_MOUNT_F_EMPTY_PATH)
		}))
		weak := false
		for tries := 0; !weak; tries++ { // the container looks while it has a processor
			if tries == 50 {
				t.Fatal("the naive way was never seen weak")
			}
			_, weak = poll(func(command string) { c.do(command) }, "/data", 20, func() {
				h.must(boxEnter(t, c.target, func() error {
					h.must(unix.Mount("/staged", "/data", "", unix.MS_BIND|unix.MS_REC, ""))
					h.must(unix.Mount("", "/data", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
					return unix.Unmount("/data", unix.MNT_DETACH)
				}))
			})
		}
		h.must(boxEnter(t, c.target, func() error { return unix.Unmount("/staged", unix.MNT_DETACH) }))

		for _, path := range []string{"/data", "/data/sub"} { // the volume, and what is mounted in it
			seen, weak := poll(func(command string) { h.against(c.boxProc, command) }, path, 150, func() {
				r := h.request(c.target, "/data")
				r.Mounts[0].NoExec = true
				boxOK(t, h.Helper(r))
				boxOK(t, h.detach(c.target, true))
			})
			if weak || seen == 0 {
				t.Errorf("%s: seen weak: %v, in %d mounts that were seen", path, weak, seen)
			}
			t.Logf("%s: seen %d times", path, seen)
		}
	})
}
