package attack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// victim makes a folder of the host's that a container would like to see something made in.
func (h *boxHost) victim() string {
	h.t.Helper()
	dir := h.Mkdir(h.Path("victim"), 0o755)
	h.Mkdir(filepath.Join(dir, "sub"), 0o755)
	h.WriteFile(filepath.Join(dir, "file"), "of the host", 0o600)
	return dir
}

// T16: symlinks in the container, at every component, to everywhere.
func TestT16_SymlinksInTheContainer(t *testing.T) {
	t.Parallel()
	boxRun(t, func(t *testing.T, h *boxHost) {
		victim := h.victim()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		root := c.Path("/")
		link := func(to, at string) {
			t.Helper()
			os.RemoveAll(filepath.Join(c.Root, "w"))
			h.Mkdir(filepath.Join(c.Root, "w", filepath.Dir(at)), 0o755)
			h.must(os.Symlink(to, filepath.Join(c.Root, "w", at)))
		}

		// The naive way: the container's link is followed on the host.
		link(victim, "l")
		h.must(os.MkdirAll(root+"/w/l/naive", 0o755))
		if err := os.Remove(victim + "/naive"); err != nil {
			t.Fatalf("the naive way does not escape: %v", err)
		}

		file := filepath.Join(h.Sources(), "single")
		h.WriteFile(file, "x", 0o644)
		const at = "/w/a/b/c"
		counts := boxCount{}
		watch := h.watch("/", "/etc", victim, victim+"/sub", h.Path(""), h.Bundles(), c.Bundle)
		h.untouched(func() {
			for _, to := range []string{"/", "/etc", "/bin", "..", ".", "../../../../../../../..", "../../../../../../../../.." + victim, victim, victim + "/sub", "/proc/self/root",
				"/proc/1/root", "/proc/self/cwd", "/proc/self/root" + victim, "/proc/self/fd/0", "/dev", "/sys", "/w/a/b", "a", "b", "c"} {
				for _, component := range []string{"a", "a/b", "a/b/c"} {
					for _, source := range []string{h.Source, file} {
						link(to, component)
						before := h.Tree(c.Root)
						r := h.request(c.Pid(), at)
						r.Mounts[0].Source = source
						reply := h.Helper(r)
						what := component + " -> " + to
						if counts.add(reply) {
							target := reply.Blocks[0].Get("target")
							h.wantAt(c.Pid(), target, 1)
							if strings.HasPrefix(target, "/proc") || strings.HasPrefix(target, "/sys") || strings.HasPrefix(target, "/dev") || target == "/etc" || target == "/" {
								t.Errorf("%s: attached at %s", what, target)
							}
							boxOK(t, h.detach(c.Pid(), false))
						} else {
							boxRefused(t, what, reply, wire.TargetForbidden, wire.TargetMissing, wire.InvalidRequest)
							if strings.HasPrefix(to, "/proc") && reply.Err.Code != wire.TargetForbidden {
								t.Errorf("%s: %s", what, reply.Err.Message)
							}
						}
						if d := harness.Diff(before, h.Tree(c.Root)); d != "" {
							t.Errorf("%s: left in the container:\n%s", what, d)
						}
					}
				}
			}
		}, victim, "/etc", h.Sources(), h.Path("etc"))
		watch.quiet()
		counts.only(t, []string{"ok", "target_forbidden", "target_missing", "invalid_request"})
	})
}

// T16 in a sandbox that is the host's: the container has no root of its own, so here every link is one into the host.
func TestT16_SymlinksInASandboxOnTheHost(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		victim := h.victim()
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		h.Mkdir(filepath.Join(h.Sandboxes(), "other"), 0o755)
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		h.must(os.Symlink(victim, sandbox+"/naive"))
		h.must(os.MkdirAll(sandbox+"/naive/made", 0o755))
		if err := os.Remove(victim + "/made"); err != nil {
			t.Fatalf("the naive way does not escape: %v", err)
		}
		watch := h.watch(victim, victim+"/sub", h.HostPaths(), h.Sandboxes(), h.Sandboxes()+"/other")
		h.untouched(func() {
			for _, to := range []string{victim, victim + "/sub", "..", "../other", "../../victim", "/", "/etc", "/proc/self/root" + victim, h.HostPaths(), sandbox + "/../other", h.Sandboxes()} {
				for _, path := range []string{"l", "l/x", "l/x/y"} {
					os.Remove(sandbox + "/l")
					h.must(os.Symlink(to, sandbox+"/l"))
					r := h.request(c.Pid(), path)
					r.Directory = sandbox
					boxRefused(t, path+" -> "+to, h.Helper(r), wire.TargetForbidden)
				}
			}
			os.Remove(sandbox + "/l")
		}, victim, h.HostPaths(), h.Sandboxes())
		watch.quiet()
		// One that stays inside is followed.
		h.must(os.Symlink("there", sandbox+"/l"))
		h.Mkdir(sandbox+"/there", 0o755)
		r := h.request(c.Pid(), "l/x")
		r.Directory = sandbox
		boxOK(t, h.Helper(r))
		h.wantAt(c.Pid(), sandbox+"/there/x", 1)
		boxOK(t, h.detach(c.Pid(), false))
	})
}

// T17: components are exchanged while the helper is at work. The host's folder that the links lead to is watched, so that what is made and taken back is seen
// too.
func TestT17_SwapRaces(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		victim := h.victim()
		c := h.run(harness.ContainerOptions{ID: "c"})
		for _, dir := range []string{"w/real/sub", "w/other/sub", "w/m", "w/make"} {
			h.Mkdir(filepath.Join(c.Root, dir), 0o755)
		}
		h.WriteFile(filepath.Join(c.Root, "w/regular"), "", 0o644)
		for link, to := range map[string]string{"w/absolute": victim, "w/relative": "../../../../../../../../.." + victim, "w/proc": "/proc/self/root" + victim} {
			h.must(os.Symlink(to, filepath.Join(c.Root, link)))
		}

		// The naive way: check each component, then use the path.
		naive := h.watch(victim, victim+"/sub")
		c.do("exchange /w/real /w/absolute")
		escaped := 0
		for i := 0; i < 100000 && escaped == 0; i++ {
			dir := c.Path("/w/real")
			if st, err := os.Lstat(dir); err == nil && st.IsDir() {
				os.MkdirAll(dir+"/sub/naive", 0o755)
			}
			escaped = len(naive.events())
			os.Remove(c.Path("/w/real/sub/naive"))
		}
		c.rounds()
		if escaped == 0 {
			t.Fatal("the naive way was never raced")
		}
		os.Remove(victim + "/sub/naive")
		os.Remove(filepath.Join(c.Root, "w/absolute/sub/naive"))
		os.Remove(filepath.Join(c.Root, "w/real/sub/naive"))

		watch := h.watch(victim, victim+"/sub", h.Path(""), h.Bundles(), c.Bundle)
		core := h.core(c.target, "")
		in := func(path string) string { return filepath.Join(c.Root, path) }
		h.untouched(func() {
			for _, x := range []struct {
				race, path string
				exchanged  [2]string // what is a directory in the beginning, and what it is exchanged for
				left       []string
			}{
				{"exchange /w/real /w/absolute", "/w/real/sub/new", [2]string{"w/real", "w/absolute"}, []string{"w/real/sub/new", "w/absolute/sub/new"}},
				{"exchange /w/other /w/relative", "/w/other/sub/new/deep", [2]string{"w/other", "w/relative"},
					[]string{"w/other/sub/new/deep", "w/other/sub/new", "w/relative/sub/new/deep", "w/relative/sub/new"}},
				{"exchange /w/m /w/proc", "/w/m", [2]string{"w/m", "w/proc"}, nil},
				{"exchange /w/make /w/regular", "/w/make/new", [2]string{"w/make", "w/regular"}, []string{"w/make/new", "w/regular/new"}},
				{"rename /w/other /w/away", "/w/other/sub/new", [2]string{}, []string{"w/other/sub/new", "w/away/sub/new"}},
				{"plant " + victim + " /w/real/new", "/w/real/new/deep", [2]string{}, []string{"w/real/new/deep"}},
				{"remake /w/real/gone", "/w/real/gone/new", [2]string{}, []string{"w/real/gone/new"}},
			} {
				var left []string
				for _, l := range x.left {
					left = append(left, in(l))
				}
				for _, r := range []struct {
					by     string
					rounds int
					start  func()
					round  func(boxCount)
					over   func() int
				}{
					{"the helper's code", 2000, func() { c.do(x.race) }, func(counts boxCount) { core.round(x.path, counts, left...) }, c.rounds},
					{"the installed helper", 150, func() { h.against(c.boxProc, x.race) }, func(counts boxCount) {
						if counts.add(h.attach(c.target, x.path)) {
							h.letGo(c, counts)
						}
					}, h.over},
				} {
					counts := boxCount{}
					r.start()
					for range r.rounds {
						r.round(counts)
					}
					swaps := r.over()
					if x.exchanged[0] != "" { // the other way round after an odd number of exchanges
						if st, err := os.Lstat(in(x.exchanged[0])); err == nil && !st.IsDir() {
							h.must(unix.Renameat2(unix.AT_FDCWD, in(x.exchanged[0]), unix.AT_FDCWD, in(x.exchanged[1]), unix.RENAME_EXCHANGE))
						}
					}
					t.Logf("%s against %s: %d swaps in %d rounds", x.race, r.by, swaps, r.rounds)
					counts.only(t, []string{"ok", "target_forbidden"}, "target_missing", "invalid_request", "system", "detach:busy")
					if swaps < r.rounds {
						t.Errorf("%s: only %d swaps in %d rounds", x.race, swaps, r.rounds)
					}
					watch.quiet()
				}
			}
		}, victim, "/etc", h.HostPaths(), h.Sandboxes(), h.Sources())
		h.wantNoRecord()
	})
}

// letGo detaches what was attached in a race, during which the mount's place may lead elsewhere at that very moment.
func (h *boxHost) letGo(c *boxContainer, counts boxCount) {
	h.t.Helper()
	for range 1000 {
		r := h.detach(c.target, true)
		if r.Err == nil {
			return
		}
		counts["detach:"+boxCode(r)]++
		if r.Err.Code != wire.Busy && r.Err.Code != wire.System {
			h.t.Fatalf("cannot be detached: %s: %s", r.Err.Code, r.Err.Message)
		}
	}
	h.t.Fatalf("cannot be detached any more: %v", counts)
}

// T17 for a container that shares the host's root, in its sandbox.
func TestT17_SwapRacesInASandboxOnTheHost(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		victim := h.victim()
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		h.Mkdir(sandbox+"/real/sub", 0o755)
		h.must(os.Symlink(victim, sandbox+"/link"))
		c := h.process(harness.User{}, false)
		naive := h.watch(victim, victim+"/sub")
		c.do("exchange " + sandbox + "/real " + sandbox + "/link")
		escaped := 0
		for i := 0; i < 100000 && escaped == 0; i++ {
			if st, err := os.Lstat(sandbox + "/real"); err == nil && st.IsDir() {
				os.MkdirAll(sandbox+"/real/sub/naive", 0o755)
			}
			escaped = len(naive.events())
		}
		c.rounds()
		if escaped == 0 {
			t.Fatal("the naive way was never raced")
		}
		for _, dir := range []string{victim, sandbox + "/real", sandbox + "/link"} {
			os.Remove(dir + "/sub/naive")
		}
		watch := h.watch(victim, victim+"/sub", h.Sandboxes())
		counts, core := boxCount{}, h.core(c.target, sandbox)
		c.do("exchange " + sandbox + "/real " + sandbox + "/link")
		h.untouched(func() {
			for range 5000 {
				core.round("real/sub/new", counts, sandbox+"/real/sub/new", sandbox+"/link/sub/new")
			}
		}, victim, "/etc", h.HostPaths())
		c.rounds()
		watch.quiet()
		counts.only(t, []string{"ok", "target_forbidden"}, "system")
		counts = boxCount{}
		h.against(c.boxProc, "exchange "+sandbox+"/real "+sandbox+"/link")
		h.untouched(func() {
			for range 200 {
				r := h.request(c.target, "real/sub/new")
				r.Directory = sandbox
				if counts.add(h.Helper(r)) {
					h.letGo(c, counts)
				}
			}
		}, victim, "/etc", h.HostPaths())
		h.over()
		watch.quiet()
		counts.only(t, []string{"ok", "target_forbidden"}, "detach:busy", "system")
	})
}

// T18: a directory is moved out of the root while it is walked, so that a ".." in it leads to the host; or it is deleted.
func TestT18_MovedOutAndDeleted(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		victim := h.Mkdir(filepath.Join(h.Bundles(), "victim"), 0o755)
		outside := h.Mkdir(h.Path("bundles/c/outside"), 0o755)
		// The container has the folder above its root mounted too, so that it can move things out of its root: their mount does not reach that far.
		c := h.run(harness.ContainerOptions{ID: "c", Mounts: nil, Prepare: func(root string) {
			h.Mkdir(filepath.Join(root, "w/deep/inner"), 0o755)
			h.must(os.Symlink("../../../victim/made", filepath.Join(root, "w/deep/link")))
			h.Mkdir(filepath.Join(root, "victim/made"), 0o755)
			h.Mkdir(filepath.Join(root, "escape"), 0o755)
		}})
		above := func(path string) string { return filepath.Join(c.Bundle, path) }

		// The naive way: the walk asks the kernel for "..", and stops only at the root, which it is not in any more.
		naiveDotDot := func() error {
			fd, err := unix.Open(above("rootfs/w/deep"), unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			h.must(os.Rename(above("rootfs/w/deep"), above("outside/deep")))
			defer os.Rename(above("outside/deep"), above("rootfs/w/deep"))
			var root unix.Stat_t
			h.must(unix.Stat(c.Root, &root))
			for range 3 {
				var st unix.Stat_t
				if err := unix.Fstat(fd, &st); err != nil || st.Ino == root.Ino && st.Dev == root.Dev {
					return errors.New("stopped at the root")
				}
				up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY, 0)
				if err != nil {
					return err
				}
				unix.Dup2(up, fd)
				unix.Close(up)
			}
			return unix.Mkdirat(fd, "victim/naive", 0o755)
		}
		if err := naiveDotDot(); err != nil || os.Remove(victim+"/naive") != nil {
			t.Fatalf("the naive way does not escape: %v", err)
		}

		watch := h.watch(victim, h.Bundles())
		race := h.process(harness.User{}, false) // moves, from outside, what the container would move through the folder above
		inside, moved, core := boxCount{}, 0, h.core(c.target, "")
		h.untouched(func() {
			for path, left := range map[string][]string{"/w/deep/inner/new": {"inner/new"}, "/w/deep/link/new": nil, "/w/deep/x/y/z": {"x/y/z", "x/y", "x"}} {
				var lie []string
				for _, l := range left {
					lie = append(lie, above("rootfs/w/deep/"+l), above("outside/deep/"+l))
				}
				race.do("rename " + above("rootfs/w/deep") + " " + above("outside/deep"))
				for range 1000 {
					core.round(path, inside, lie...)
				}
				moved += race.rounds()
				h.against(race.boxProc, "rename "+above("rootfs/w/deep")+" "+above("outside/deep"))
				for range 60 {
					if inside.add(h.attach(c.target, path)) {
						h.letGo(c, inside)
					}
				}
				moved += h.over()
			}
			// Something was made, and then moved out before it could be removed: it lies in what was moved, which is the container's, and nowhere else.
			left := h.Tree(above("rootfs/w"))
			for _, line := range left {
				if !strings.HasPrefix(line, above("rootfs/w")) {
					t.Errorf("left: %s", line)
				}
			}
			if entries, _ := os.ReadDir(outside); len(entries) != 0 {
				t.Errorf("outside of the root: %v", entries)
			}
		}, victim, "/etc")
		watch.quiet()
		t.Logf("%d moves; left in the container: %v", moved, h.Tree(above("rootfs/w")))
		inside.only(t, []string{"ok", "target_forbidden"}, "system", "target_missing", "invalid_request", "detach:busy")

		gone := boxCount{}
		c.do("remake /w/dead")
		for range 1000 {
			core.round("/w/dead/x/y", gone, filepath.Join(c.Root, "w/dead/x/y"), filepath.Join(c.Root, "w/dead/x"))
		}
		c.rounds()
		h.against(c.boxProc, "remake /w/dead")
		for range 60 {
			if gone.add(h.attach(c.target, "/w/dead/x/y")) {
				h.letGo(c, gone)
			}
		}
		h.over()
		gone.only(t, []string{"ok"}, "target_forbidden", "system", "detach:busy")
		h.wantNoRecord()
	})
}

// wantNoRecord fails the test if the ledger still knows a mount.
func (h *boxHost) wantNoRecord() {
	h.t.Helper()
	for _, line := range h.Tree(h.Ledger()) {
		name := filepath.Base(strings.Fields(line)[0])
		if strings.HasSuffix(name, ".rec") && !strings.HasPrefix(name, "refused+") || strings.HasPrefix(name, "by+") {
			h.t.Errorf("left in the ledger: %s", line)
		}
	}
}

// T19: container paths that no job needs.
func TestT19_ContainerPaths(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		c := h.Container(harness.ContainerOptions{ID: "c", Mounts: nil, Prepare: func(root string) {
			for _, d := range []string{"p2", "s2"} {
				h.Mkdir(filepath.Join(root, d), 0o755)
			}
			h.must(os.Symlink("/proc/self/fd", filepath.Join(root, "fds")))
			h.must(os.Symlink("../dev", filepath.Join(root, "devices")))
		}, Edit: nil})
		// The naive way: joining the path to the host's path of the rootfs leaves it.
		naive := filepath.Join(c.Root, "/../../abc")
		h.must(os.MkdirAll(naive, 0o755))
		if err := os.Remove(filepath.Join(h.Bundles(), "abc")); err != nil {
			t.Fatalf("the naive way does not escape: %v", err)
		}
		h.untouched(func() {
			for _, x := range []struct {
				path string
				code wire.Code
			}{
				{"/../../abc", wire.InvalidRequest}, {"..", wire.InvalidRequest}, {"/..", wire.InvalidRequest}, {"a/../../b", wire.InvalidRequest}, {"/a/..", wire.InvalidRequest},
				{"//", wire.TargetForbidden}, {"/", wire.TargetForbidden}, {"/.", wire.TargetForbidden}, {"/././/", wire.TargetForbidden}, {".", wire.InvalidRequest}, {"a", wire.InvalidRequest},
				{"/" + strings.Repeat("x", 4096), wire.InvalidRequest}, {"/" + strings.Repeat("y/", 2048), wire.InvalidRequest}, {"/" + strings.Repeat("x", 256), wire.InvalidRequest},
				{"/proc", wire.TargetForbidden}, {"/proc/x", wire.TargetForbidden}, {"//proc//x", wire.TargetForbidden}, {"/proc/self/fd/0", wire.TargetForbidden},
				{"/proc/self/root/abc", wire.TargetForbidden}, {"/proc/1/root/abc", wire.TargetForbidden}, {"/proc/self/cwd/abc", wire.TargetForbidden}, {"/sys", wire.TargetForbidden},
				{"/sys/fs/cgroup", wire.TargetForbidden}, {"/dev", wire.TargetForbidden}, {"/dev/shm", wire.TargetForbidden}, {"/dev/shm/x", wire.TargetForbidden}, {"/dev/null", wire.TargetForbidden},
				{"/fds/0/x", wire.TargetForbidden}, {"/devices/shm", wire.TargetForbidden}, {"/devices/x", wire.TargetForbidden}, {"/etc", wire.TargetForbidden}, {"/etc/", wire.TargetForbidden},
				{"/etc/ssh/x", wire.TargetForbidden}, {"/bin", wire.TargetForbidden}, {"/boot/x", wire.TargetForbidden}, {"/etc/passwd", wire.TargetForbidden}, {"", wire.InvalidRequest}, {"/a\nb", wire.InvalidRequest},
				{"/a\x1bb", wire.InvalidRequest}, {"/a\xffb", wire.InvalidRequest},
			} {
				r := h.request(c.Pid(), x.path)
				boxRefused(t, fmt.Sprintf("%.40q", x.path), h.Helper(r), x.code)
				if x.path != "" && x.path[0] != '/' { // with a sandbox it is no better
					r.Directory = h.Mkdir(filepath.Join(h.Sandboxes(), "s"), 0o755)
					boxRefused(t, x.path, h.Helper(r), wire.InvalidRequest, wire.TargetForbidden, wire.TargetMissing)
					os.Remove(r.Directory)
				}
			}
		}, c.Root, h.Bundles(), h.Sandboxes())
		// The longest that are allowed work, and a directory is refused by its filesystem, not its name.
		for _, path := range []string{"/" + strings.Repeat("x", 255), "/" + strings.Repeat("z/", 31) + "z"} {
			r := h.attach(c.Pid(), path)
			if boxOK(t, r); r.Blocks[0].Get("target") != path {
				t.Errorf("attached at %.60s", r.Blocks[0].Get("target"))
			}
			boxOK(t, h.detach(c.Pid(), false))
		}
		p := h.run(harness.ContainerOptions{ID: "p", Privileged: true})
		p.do("mkdir /p2")
		p.do("mkdir /s2")
		p.Sh("mount -t proc p /p2 && mount -t sysfs s /s2 && mkdir /d2 && mount --bind /proc/sys /d2").OK(t)
		for _, path := range []string{"/p2", "/p2/x", "/p2/self/fd/0", "/p2/self/cwd/x", "/s2/x", "/s2", "/d2", "/d2/kernel"} {
			boxRefused(t, path, h.attach(p.target, path), wire.TargetForbidden)
		}
	})
}

// T20: the container's /proc is the container's to make up.
func TestT20_MadeUpProc(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		c := h.run(harness.ContainerOptions{ID: "c", Privileged: true})
		c.Sh(`mkdir /own /data && mount -t tmpfs own /own && echo mine > /own/file
			mount -t tmpfs p /proc && mkdir -p /proc/self/fd /proc/thread-self /proc/1/ns /proc/sys/kernel/random
			i=0; while [ $i -lt 300 ]; do ln -s /own /proc/self/fd/$i; i=$((i+1)); done
			echo made-up > /proc/self/mountinfo; echo made-up > /proc/self/status; echo 0 > /proc/sys/kernel/random/boot_id
			ln -s self/fd /proc/fd; ln -s / /proc/1/root`).OK(t)

		// The naive way: after entering the container, /proc is asked, and believed.
		var seen []byte
		h.must(boxEnter(t, c.target, func() (err error) { seen, err = os.ReadFile("/proc/self/mountinfo"); return err }))
		if string(seen) != "made-up\n" {
			t.Fatalf("the naive way reads %q", seen)
		}
		h.must(boxEnter(t, c.target, func() error { return unix.Unmount("/proc/self/fd/7", unix.MNT_DETACH) }))
		if c.do("ls /own") != "" {
			t.Fatal("the naive way does not unmount what the container made up")
		}
		c.do("tmpfs /own") // runc exec works no more
		c.do("write /own/file mine")

		h.attached(c.target, "/data")
		r := h.request(c.target, "/data") // undone: the second of two fails after the first is in place
		r.Mounts = []wire.Mount{{Path: "/first", Source: h.Source, Mode: wire.ModeRO}, {Path: "/proc/second", Source: h.Source, Mode: wire.ModeRO}}
		boxRefused(t, "on a tmpfs named /proc", h.Helper(r), wire.TargetForbidden)
		boxRefused(t, "/proc/x", h.attach(c.target, "/proc/x"), wire.TargetForbidden)
		if reply := h.Helper(&wire.Request{Op: wire.OpQuery, Owner: "default", Container: fmt.Sprintf("c%d", c.target)}); len(reply.Blocks) != 1 || reply.Blocks[0].Get("alive") != "1" {
			t.Errorf("query: %v", reply.Blocks)
		}
		boxOK(t, h.detach(c.target, false))
		if got := c.do("ls /own"); got != "file" {
			t.Errorf("the container's own mount holds %q", got)
		}
		if got := c.do("ls /data"); got != "" {
			t.Errorf("still attached: %q", got)
		}

		// A caller in a namespace of its own, where /proc is what it likes: there the setuid bit has no effect, and nothing happens.
		request := h.request(c.target, "/data")
		request.Container = "forged"
		h.WriteFile(h.Path("tmp/request"), string(boundary.Encode(request)), 0o644)
		for _, script := range []string{"true", "mount -t tmpfs p /proc; mkdir -p /proc/self/fd"} {
			cmd := h.Command(boxPolicy, "unshare", "-Urm", "/bin/sh", "-c", script+"; exec env -i "+h.HelperPath()+" < "+h.Path("tmp/request"))
			res := h.Do(cmd)
			reply, err := boundary.DecodeReply([]byte(res.Stdout))
			if err != nil || reply.Err == nil || !slices.Contains([]wire.Code{wire.Config, wire.System, wire.NamespaceHost}, reply.Err.Code) || res.Exit != reply.Err.Code.Exit() {
				t.Errorf("in a user namespace: %v", res)
			}
		}
		if got := c.do("ls /data"); got != "" {
			t.Errorf("attached: %q", got)
		}
	})
}

// What cannot be made is refused with the component at fault, and nothing of it is left.
func TestMountpoint_UnhappyPaths(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		file := filepath.Join(h.Sources(), "single")
		h.WriteFile(file, "x", 0o644)
		foreign := h.Mkdir(h.Path("var/lib/bindgate/foreign"), 0o755)                                                                                                            // somebody else's files, on a disk, mounted into the container
		for link, to := range map[string]string{"dangling": "/secret", "to-dangling": "../dangling", "through-file": "/file/secret", "too-long": strings.Repeat("secret", 50)} { // what a volume holds
			h.must(os.Symlink(to, filepath.Join(foreign, link)))
		}
		for _, userns := range []bool{false, true} {
			o := harness.ContainerOptions{ID: fmt.Sprintf("userns-%v", userns), Mounts: []specs.Mount{boxMount("/foreign", "bind", foreign, "rbind", "rw"),
				boxMount("/readonly", "tmpfs", "tmpfs", "ro"), boxMount("/small", "tmpfs", "tmpfs", "nr_inodes=4", "mode=0755")},
				Prepare: func(root string) {
					for link, to := range map[string]string{"dangling": "/nowhere", "dangling-below": "nowhere/deep", "to-dangling": "tmp/../dangling", "loop": "loop", "loop1": "/loop2", "loop2": "loop1",
						"to-file": "file", "back": "../../..", "hostile": "x\n\x1b[31m/y", "var/run": "/run"} {
						h.must(os.Symlink(to, filepath.Join(root, link)))
					}
					h.WriteFile(filepath.Join(root, "file"), "theirs", 0o644)
					h.must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o644))
				}}
			if userns {
				o.Mapping = &harness.Mapping{HostID: 300000, Size: 65536}
				o.Prepare = func(prepare func(string)) func(string) {
					return func(root string) { prepare(root); h.Mkdir(filepath.Join(root, "roots"), 0o755) } // of the host's root, who is nobody in there
				}(o.Prepare)
			}
			c := h.Container(o)
			snapshot := func() []string {
				all := append(h.Tree(c.Root), h.Tree(foreign)...)
				for _, dir := range []string{"/readonly", "/small", "/foreign"} {
					entries, err := os.ReadDir(c.Path(dir))
					h.must(err)
					for _, e := range entries {
						all = append(all, dir+"/"+e.Name())
					}
				}
				return all
			}
			for _, x := range []struct {
				path, source, fault string
				codes               []wire.Code
			}{
				{"/dangling", h.Source, "the link /dangling leads", []wire.Code{wire.TargetMissing}},
				{"/dangling/x/y", h.Source, "the link /dangling leads", []wire.Code{wire.TargetMissing}},
				{"/dangling-below/x", h.Source, "the link /dangling-below leads", []wire.Code{wire.TargetMissing}},
				{"/to-dangling/x", h.Source, "the link /to-dangling leads", []wire.Code{wire.TargetMissing}},
				{"/foreign/dangling/x", h.Source, "the link /foreign/dangling leads", []wire.Code{wire.TargetMissing}},
				{"/foreign/to-dangling", h.Source, "the link /foreign/to-dangling leads", []wire.Code{wire.TargetMissing}},
				{"/foreign/through-file", h.Source, "/foreign/through-file: not a directory", []wire.Code{wire.InvalidRequest}},
				{"/foreign/too-long", h.Source, "/foreign/too-long: file name too long", []wire.Code{wire.System}},
				{"/hostile/x", h.Source, "", []wire.Code{wire.TargetMissing}},
				{"/loop/x", h.Source, "/loop", []wire.Code{wire.TargetForbidden}},
				{"/loop1", h.Source, "/loop", []wire.Code{wire.TargetForbidden}},
				{"/file", h.Source, "/file", []wire.Code{wire.InvalidRequest}},
				{"/file/x/y", h.Source, "/file", []wire.Code{wire.InvalidRequest}},
				{"/to-file/x", h.Source, "/file", []wire.Code{wire.InvalidRequest}},
				{"/fifo", file, "/fifo", []wire.Code{wire.InvalidRequest}},
				{"/tmp", file, "/tmp", []wire.Code{wire.InvalidRequest}},
				{"/back", h.Source, "root itself", []wire.Code{wire.TargetForbidden}},
				{"/foreign/x", h.Source, "/foreign", []wire.Code{wire.TargetForbidden}},
				{"/foreign/x/y", file, "/foreign", []wire.Code{wire.TargetForbidden}},
				{"/readonly/a/b", h.Source, "/readonly/a", []wire.Code{wire.TargetForbidden}},
				{"/small/a/b/c/d/e", h.Source, "/small/a/b/c", []wire.Code{wire.System}},
				{"/small/a/b/c/file", file, "/small/a/b/c", []wire.Code{wire.System}},
				{"/roots/x", h.Source, "/roots/x", []wire.Code{wire.TargetForbidden}},
			} {
				if x.path == "/roots/x" && !userns {
					continue
				}
				before := snapshot()
				r := h.request(c.Pid(), x.path)
				r.Mounts[0].Source = x.source
				// A good one beside it is not attached either, and what was made for it is gone.
				r.Mounts = append(r.Mounts, wire.Mount{Path: "/good/one", Source: h.Source, Mode: wire.ModeRW})
				if msg := boxRefused(t, x.path, h.Helper(r), x.codes...); !strings.Contains(msg, x.fault) || strings.Contains(msg, "secret") || strings.Contains(msg, "nowhere") {
					t.Errorf("%s: the message does not name %s, or tells what a link says: %s", x.path, x.fault, msg)
				}
				if d := harness.Diff(before, snapshot()); d != "" {
					t.Errorf("%s: left:\n%s", x.path, d)
				}
				h.wantAt(c.Pid(), "/good/one", 0)
			}
			h.wantNoRecord()

			// What may be made belongs to the container's root.
			for path, target := range map[string]string{"/var/run/app/data": "/run/app/data", "/made/by/us": "/made/by/us", "/small/a": "/small/a"} {
				reply := h.attach(c.Pid(), path)
				boxOK(t, reply)
				if got := reply.Blocks[0].Get("target"); got != target {
					t.Errorf("%s: attached at %s, want %s", path, got, target)
				}
				var st unix.Stat_t
				h.must(unix.Stat(c.Path(filepath.Dir(target)), &st))
				want := uint32(0)
				if userns {
					want = 300000
				}
				if path != "/small/a" && (st.Uid != want || st.Gid != want || st.Mode&0o7777 != 0o755) {
					t.Errorf("%s: made %d:%d %04o", path, st.Uid, st.Gid, st.Mode&0o7777)
				}
			}
			boxOK(t, h.detach(c.Pid(), false))
			for _, path := range []string{"run/app", "made", "small/a"} {
				if _, err := os.Lstat(filepath.Join(c.Root, path)); err == nil {
					t.Errorf("%s is still there", path)
				}
			}
			c.Delete()
		}
	}, harness.DiskState())
}

// A tmpfs of the host's, bind-mounted writable into a container, is the host's files: nothing is made there. One of the container's own is another matter.
func TestMountpoint_TmpfsOfTheHost(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		shared := h.Mkdir(h.Path("shared"), 0o755)
		h.Mount("tmpfs", shared, "tmpfs", 0, "mode=0777")
		h.Mkdir(filepath.Join(shared, "there"), 0o777)
		for _, userns := range []bool{false, true} {
			o := harness.ContainerOptions{ID: fmt.Sprintf("userns-%v", userns), Privileged: true, Mounts: []specs.Mount{boxMount("/shared", "bind", shared, "rbind", "rw"), boxMount("/own", "tmpfs", "tmpfs")}}
			if userns {
				o.Mapping = &harness.Mapping{HostID: 300000, Size: 65536}
			}
			c := h.Container(o)
			c.Sh("mkdir /alias /shared/naive && mount --bind /shared/there /alias").OK(t)
			if _, err := os.Stat(filepath.Join(shared, "naive")); err != nil { // naively it is the container's root that makes it
				t.Fatal("the attack does not work on the naive way: ", err)
			}
			h.must(os.Remove(filepath.Join(shared, "naive")))
			before := h.Tree(shared)
			for _, path := range []string{"/shared/a/b", "/shared/there/a", "/alias/a"} {
				if msg := boxRefused(t, path, h.attach(c.Pid(), path), wire.TargetForbidden); !strings.Contains(msg, "another mount") {
					t.Errorf("%s: %s", path, msg)
				}
			}
			if d := harness.Diff(before, h.Tree(shared)); d != "" {
				t.Errorf("on the host:\n%s", d)
			}
			boxOK(t, h.attach(c.Pid(), "/shared/there")) // what is there is there
			boxOK(t, h.attach(c.Pid(), "/own/a/b"))
			boxOK(t, h.detach(c.Pid(), false))
			c.Delete()
		}
	})
}

// Before the pivot: which folders may be named as a rootfs, and by whom.
func TestMountpoint_BeforeThePivot(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		victim := h.victim()
		rootfs := h.Mkdir(filepath.Join(h.Bundles(), "b/rootfs"), 0o755)
		h.Mkdir(rootfs+"/tmp", 0o755)
		h.Mkdir(rootfs+"/etc", 0o755)
		h.copyBox(rootfs + "/box")
		plain := h.Mkdir(filepath.Join(h.Bundles(), "plain"), 0o755)
		inherited := h.Mkdir(filepath.Join(h.Bundles(), "inherited"), 0o755)
		h.Mount("tmpfs", inherited, "tmpfs", 0, "")
		elsewhere := h.Mkdir(h.Path("elsewhere"), 0o755)
		h.must(os.Symlink(rootfs, filepath.Join(h.Bundles(), "link")))
		h.must(os.Symlink(victim, rootfs+"/out"))
		h.must(os.Symlink("../../../../../.."+victim, rootfs+"/relative"))

		c := h.process(harness.User{}, false)
		own := h.Container(harness.ContainerOptions{ID: "own"})
		ask := func(pid int, root, path string) *wire.Reply {
			r := h.request(pid, path)
			r.Rootfs = root
			return h.Helper(r)
		}
		watch := h.watch(victim, victim+"/sub", plain, elsewhere, inherited, h.Bundles())
		h.untouched(func() {
			boxRefused(t, "not bound yet", ask(c.target, rootfs, "/data"), wire.TargetForbidden)
			c.do("bind " + rootfs + " " + rootfs)
			c.do("bind " + elsewhere + " " + elsewhere)
			for _, x := range []string{plain, inherited, elsewhere, h.Bundles(), "/", h.Bundles() + "/link", rootfs + "/tmp", h.Bundles() + "/none", h.HostPaths()} {
				boxRefused(t, x, ask(c.target, x, "/data"), wire.TargetForbidden)
			}
			boxRefused(t, "a container with a root of its own", ask(own.Pid(), rootfs, "/data"), wire.TargetForbidden)
			boxRefused(t, "..", ask(c.target, rootfs+"/../../plain", "/data"), wire.InvalidRequest)
			for _, path := range []string{"/", "/etc", "/proc/x", "/dev/x"} {
				boxRefused(t, path, ask(c.target, rootfs, path), wire.TargetForbidden)
			}
			for _, path := range []string{"/out/x", "/relative/x"} {
				boxRefused(t, path, ask(c.target, rootfs, path), wire.TargetMissing)
			}
		}, victim, plain, inherited, elsewhere, rootfs)
		watch.quiet()

		// What is attached survives the pivot under the same id; after it no rootfs can be named.
		id := h.id(ask(c.target, rootfs, "/made/data"))
		c.do("pivot " + rootfs)
		h.wantAt(c.target, "/made/data", 1)
		if got := c.do("ls /made/data"); got != "file" {
			t.Errorf("after the pivot: %q", got)
		}
		boxRefused(t, "after the pivot", ask(c.target, rootfs, "/data"), wire.TargetForbidden)
		boxRefused(t, "after the pivot", ask(c.target, "/tmp", "/data"), wire.TargetForbidden)
		if r := h.detach(c.target, false); r.Err != nil || len(r.Blocks) != 1 || r.Blocks[0].Get("id") != fmt.Sprint(id) {
			t.Errorf("detach: %v %v", r.Err, r.Blocks)
		}
		if _, err := os.Lstat(rootfs + "/made"); err == nil {
			t.Error("what was made is still there")
		}
	})
}

// A folder that the host has bound onto itself is no container's rootfs: a container that shares the host's root inherits the mount, and would get folders
// made in the host's files.
func TestMountpoint_InheritedBindIsNoRootfs(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		folder := h.Mkdir(filepath.Join(h.Bundles(), "hosts"), 0o755)
		h.Mount(folder, folder, "", unix.MS_BIND, "")
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		watch := h.watch(folder)
		h.untouched(func() {
			r := h.request(c.Pid(), "/made/here")
			r.Rootfs = folder
			boxRefused(t, "inherited from the host", h.Helper(r), wire.TargetForbidden)
		}, folder)
		watch.quiet()
	})
}
