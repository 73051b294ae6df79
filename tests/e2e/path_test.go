package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// The four cells of DESIGN's table of container_path, and who owns what is made.

func TestOwnRootfsAbsolute(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		for _, o := range []harness.ContainerOptions{
			{ID: "plain"},
			{ID: "privileged", Privileged: true},
			{ID: "userns", Mapping: &harness.Mapping{HostID: 300000, Size: 65536}},
			{ID: "userns-privileged", Mapping: &harness.Mapping{HostID: 400000, Size: 65536}, Privileged: true},
		} {
			t.Run(o.ID, func(t *testing.T) {
				h := h.For(t)
				c := h.Container(o)
				d := attach(t, h, c, "-v", "v:/made/by/bindgate", "-v", "w:/tmp:ro")
				if len(d.Mounts) != 2 || d.Mounts[0].Created != 3 || d.Mounts[1].Created != 0 {
					t.Errorf("attach: %+v", d.Mounts)
				}
				c.Sh("test -d /made/by/bindgate").OK(t)
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(c.Root, "made/by"), &st); err != nil {
					t.Fatal(err)
				}
				want := uint32(0)
				if o.Mapping != nil {
					want = o.Mapping.HostID
				}
				if st.Uid != want || st.Gid != want || st.Mode&0o7777 != 0o755 {
					t.Errorf("made %d:%d %04o, want root of the container, %d, 0755", st.Uid, st.Gid, st.Mode&0o7777, want)
				}
				for _, at := range []string{"/made/by/bindgate", "/tmp"} {
					for _, how := range []string{"rw", "suid", "dev"} {
						if r := c.Sh("mount -o remount,bind," + how + " " + at); r.Exit == 0 && (how != "rw" || at == "/tmp") {
							t.Errorf("the container remounts %s %s", at, how)
						}
					}
				}
				if r := c.Sh("touch /tmp/x"); r.Exit == 0 {
					t.Error("the container writes to what is read-only")
				}
				c.Delete()
				cleanup(t, h, o.ID)
			})
		}
		wantNothingLeft(t, h)
	})
}

func TestOwnRootfsRelative(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c", Sandbox: sandbox})
		d := attach(t, h, c, "--directory", sandbox, "-v", "v:sub/data")
		if len(d.Mounts) != 1 || d.Mounts[0].Target != "/mnt/mesos/sandbox/sub/data" || d.Mounts[0].Created != 2 {
			t.Errorf("attach: %+v", d.Mounts)
		}
		c.Sh("echo x > /mnt/mesos/sandbox/sub/data/file").OK(t)
		if _, err := os.Stat(filepath.Join(sandbox, "sub/data")); err != nil {
			t.Errorf("it is not created in the sandbox directory: %v", err)
		}
		if _, err := os.Stat(filepath.Join(sandbox, "sub/data/file")); err == nil {
			t.Error("the host sees the volume")
		}
		h.Policy("detach", "--container", "c", "--all").OK(t)
		if _, err := os.Stat(filepath.Join(sandbox, "sub")); err == nil {
			t.Error("what was created is still there after detach")
		}

		other := h.Mkdir(filepath.Join(h.Sandboxes(), "other"), 0o755)
		h.Policy("attach", "-o", "json", "--container", "c2", "--pid", c.PIDString(), "--directory", other, "-v", "v:data").Fails(t, wire.TargetForbidden)
		h.Policy("attach", "-o", "json", "--container", "c3", "--pid", c.PIDString(), "-v", "v:data").Fails(t, wire.InvalidRequest)

		elsewhere := h.Container(harness.ContainerOptions{ID: "elsewhere", Sandbox: sandbox, SandboxDirectory: "/sandbox"})
		d = attach(t, h, elsewhere, "--directory", sandbox, "--sandbox-directory", "/sandbox", "-v", "v:data")
		if len(d.Mounts) != 1 || d.Mounts[0].Target != "/sandbox/data" {
			t.Errorf("attach: %+v", d.Mounts)
		}
	})
}

func TestSharedRootAbsolute(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		existing := h.Mkdir(filepath.Join(h.HostPaths(), "a/b"), 0o755)
		attach(t, h, c, "-v", "v:"+existing)
		h.Policy("detach", "--container", "c", "--path", existing).OK(t)

		try := func(path string, code wire.Code) {
			t.Helper()
			before := h.Tree(h.HostPaths())
			h.Policy("attach", "-o", "json", "--container", "refused", "--pid", c.PIDString(), "-v", "v:"+path).Fails(t, code)
			if d := harness.Diff(before, h.Tree(h.HostPaths())); d != "" {
				t.Errorf("%s: the host's files changed:\n%s", path, d)
			}
		}
		try(filepath.Join(h.HostPaths(), "missing"), wire.TargetMissing)
		for _, path := range []string{"/etc", "/root", "/run", "/var/lib", h.Path("var/lib/bindgate")} {
			try(path, wire.TargetForbidden)
		}
		// A link below an allowed host path that leads out of it.
		if err := os.Symlink("/root", filepath.Join(h.HostPaths(), "link")); err != nil {
			t.Fatal(err)
		}
		try(filepath.Join(h.HostPaths(), "link"), wire.TargetForbidden)

		inHost := h.SharedRoot(harness.SharedRootOptions{ID: "in-host-namespace", HostNS: true})
		h.Policy("attach", "-o", "json", "--container", "h", "--pid", inHost.PIDString(), "-v", "v:"+existing).Fails(t, wire.NamespaceHost)
		outside := h.SharedRoot(harness.SharedRootOptions{ID: "no-cgroup", NoCgroup: true})
		h.Policy("attach", "-o", "json", "--container", "o", "--pid", outside.PIDString(), "-v", "v:"+existing).Fails(t, wire.TargetForbidden)
	})
}

func TestSharedRootRelative(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		d := attach(t, h, c, "--directory", sandbox, "-v", "v:data")
		at := filepath.Join(sandbox, "data")
		if len(d.Mounts) != 1 || d.Mounts[0].Target != at {
			t.Errorf("attach: %+v", d.Mounts)
		}
		c.Sh("echo x > " + at + "/file").OK(t)
		if entries, err := os.ReadDir(at); err != nil || len(entries) != 0 {
			t.Errorf("the host sees %v (%v), want the empty directory", entries, err)
		}
		c.Kill()
		cleanup(t, h, "c")
		if _, err := os.Stat(at); err == nil {
			t.Error("what was created is still there after cleanup")
		}
		h.Policy("attach", "-o", "json", "--container", "x", "--pid", c.PIDString(), "--directory", h.Mkdir(h.Path("elsewhere"), 0o755), "-v", "v:data").
			Exits(t, 71) // the process is gone: that is found first or last, but nothing is attached
	})
}

func TestDeniedPaths(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		for path, code := range map[string]wire.Code{
			"/": wire.InvalidRequest, "/etc": wire.TargetForbidden, "/proc/x": wire.TargetForbidden, "/sys": wire.TargetForbidden, "/dev/x": wire.TargetForbidden,
			"/bin": wire.TargetForbidden, "//etc/": wire.TargetForbidden,
			"a/../b": wire.InvalidRequest, "/a/../../b": wire.InvalidRequest, "/" + strings.Repeat("x", 256): wire.InvalidRequest,
			"/" + strings.Repeat("x/", 2100): wire.InvalidRequest,
		} {
			before := h.Tree(filepath.Join(c.Root, "bin"))
			h.Policy("attach", "-o", "json", "--container", "c", "--pid", c.PIDString(), "--mount", "driver=local,name=v,target="+path).Fails(t, code)
			if d := harness.Diff(before, h.Tree(filepath.Join(c.Root, "bin"))); d != "" {
				t.Errorf("%s: the container's files changed:\n%s", path, d)
			}
		}
	})
}

func TestLinksStayInTheRoot(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c", Prepare: func(root string) {
			for link, to := range map[string]string{"var/run": "/run", "out": "/../../../../run/sub", "loop": "loop"} {
				if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
					t.Fatal(err)
				}
			}
			h.Mkdir(filepath.Join(root, "run/sub"), 0o755)
		}})
		attach(t, h, c, "-v", "v:/var/run/data")
		c.Sh("grep -q ' /run/data ' /proc/self/mountinfo").OK(t)
		attach(t, h, c, "-v", "w:/out/data")
		c.Sh("test -d /run/sub/data").OK(t)
		if _, err := os.Lstat("/run/sub"); err == nil {
			t.Error("it was created on the host")
		}
		if r := h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "-v", "x:/loop/data"); r.Exit == 0 {
			t.Error("a loop of links was followed")
		}
	})
}

func TestSeveralVolumesAndNesting(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		h.Policy("volume", "create", "outer").OK(t)
		h.Mkdir(filepath.Join(h.Volumes(), "outer/inner"), 0o755)
		// Named in the wrong order: the inner one is attached after the outer one all the same.
		d := attach(t, h, c, "-v", "inner:/data/inner", "-v", "outer:/data", "-v", "third:/third:ro")
		if len(d.Mounts) != 3 {
			t.Errorf("attach: %+v", d.Mounts)
		}
		c.Sh("touch /data/a /data/inner/b; ! touch /third/c").OK(t)
		if _, err := os.Stat(filepath.Join(h.Volumes(), "inner/b")); err != nil {
			t.Error(err)
		}
		c.Kill()
		cleanup(t, h, "c")
		wantNothingLeft(t, h)
	})
}

func TestAllOrNothing(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("flaky", "-fail", "Mount:bad=no space in the pool")
		c := h.Container(harness.ContainerOptions{ID: "c"})
		before := h.Tree(filepath.Join(c.Root, "mnt"))
		r := h.Policy("attach", "-o", "json", "--container", "c", "--pid", c.PIDString(), "--mount", "driver=flaky,name=good,target=/mnt/good",
			"--mount", "driver=flaky,name=bad,target=/mnt/bad", "-v", "loc:/mnt/loc")
		r.Fails(t, wire.DriverError)
		if !strings.Contains(r.Stderr, "no space in the pool") {
			t.Errorf("what the driver said is lost: %v", r)
		}
		if d := harness.Diff(before, h.Tree(filepath.Join(c.Root, "mnt"))); d != "" {
			t.Errorf("the container's files changed:\n%s", d)
		}
		mounted, unmounted := p.Calls("Mount"), p.Calls("Unmount")
		balance := map[string]int{}
		for _, x := range mounted {
			if x.Name != "bad" {
				balance[x.Name+" "+x.ID]++
			}
		}
		for _, x := range unmounted {
			balance[x.Name+" "+x.ID]--
		}
		for k, n := range balance {
			if n > 0 {
				t.Errorf("volume %s is still mounted by the driver: %v %v", k, mounted, unmounted)
			}
		}
		// The target of the second is refused by the helper: nothing of the first stays either.
		h.Policy("attach", "-o", "json", "--container", "c", "--pid", c.PIDString(), "-v", "a:/mnt/a", "-v", "b:/etc").Fails(t, wire.TargetForbidden)
		if m := c.Mountinfo("/mnt"); len(m) > 0 {
			t.Errorf("half of it was attached: %q", m)
		}
		if d := harness.Diff(before, h.Tree(filepath.Join(c.Root, "mnt"))); d != "" {
			t.Errorf("the container's files changed:\n%s", d)
		}
		wantNothingLeft(t, h)
	})
}
