package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// ociHooks are what packaging/oci/hooks.d/bindgate.json has a runtime do.
func ociHooks(h *harness.Host, flags ...string) *specs.Hooks {
	call := []specs.Hook{{Path: h.Bindgate(), Args: append([]string{"bindgate", "hook"}, flags...)}}
	return &specs.Hooks{CreateRuntime: call, Poststop: call}
}

func volumes(list ...string) map[string]string {
	annotations := map[string]string{"org.example.other": "value"}
	for i, v := range list {
		annotations["io.bindgate.volume."+string(rune('0'+i))] = v
	}
	return annotations
}

func TestHookGivesVolumesBeforeTheFirstProcessRuns(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plug")
		before := h.Mountinfo()
		list := volumes("driver=plug,name=v,target=/data/in/v", "driver=local,name=conf,target=/conf,readonly,noexec")
		first := h.Container(harness.ContainerOptions{ID: "first", Hooks: ociHooks(h), Annotations: list, CreateOnly: true,
			Command: []string{"/bin/sh", "-c", "grep -c ' /data/in/v ' /proc/self/mountinfo > /data/in/v/file"}})
		first.Start()
		first.Wait()
		if got := h.ReadFile(filepath.Join(p.Root, "data/v/file")); got != "1\n" {
			t.Errorf("the first process saw %q mounts at its start", got)
		}
		first.Delete()
		wantNothingLeft(t, h)

		c := h.Container(harness.ContainerOptions{ID: "web", Hooks: ociHooks(h), Annotations: list})
		c.Sh("grep 1 /data/in/v/file").OK(t)
		if m := c.Mountinfo("/conf"); len(m) != 1 || !strings.Contains(m[0], " ro,nosuid,nodev,noexec") {
			t.Errorf("mounted as %q", m)
		}
		if r := c.Sh("touch /conf/x"); r.Exit == 0 {
			t.Error("the container writes to what is read-only")
		}
		if diff := harness.Diff(before, h.Mountinfo()); diff != "" {
			t.Errorf("the host's mounts changed:\n%s", diff)
		}
		d := status(t, h)
		if len(d.Containers) != 1 || d.Containers[0].Owner != "oci" || d.Containers[0].Container != "web" || d.Containers[0].PID != c.Pid() || len(d.Containers[0].Mounts) != 2 {
			t.Errorf("status: %+v", d.Containers)
		}
		for _, m := range d.Containers[0].Mounts {
			if m["locked"] != true {
				t.Errorf("not locked: %v", m)
			}
		}
		c.Delete()
		wantNothingLeft(t, h)
		if m, u := p.Calls("Mount"), p.Calls("Unmount"); len(m) != 2 || len(u) != 2 || m[0].ID != u[0].ID || m[1].ID != u[1].ID {
			t.Errorf("the driver was asked %v", p.Calls())
		}
	})
}

func TestHookWithoutVolumesLeavesNoRecord(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		for name, o := range map[string]harness.ContainerOptions{
			"no annotation of ours": {Annotations: map[string]string{"org.example": "x", "io.bindgate": "x"}},
			"a pod's sandbox":       {Annotations: map[string]string{"io.bindgate.volume.0": "driver=local,name=v,target=/v", "io.kubernetes.cri-o.ContainerType": "sandbox"}},
			"DVDI, not allowed":     {Env: []string{"DVDI_VOLUME_NAME=v", "DVDI_VOLUME_DRIVER=local", "DVDI_VOLUME_CONTAINERPATH=/v"}},
		} {
			o.ID, o.Hooks = "none", ociHooks(h)
			c := h.Container(o)
			if d := status(t, h); len(d.Containers) != 0 {
				t.Errorf("%s: %+v", name, d.Containers)
			}
			c.Delete()
		}
	})
}

func TestHookReadsDVDIWhereItIsAllowed(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + "[hook]\ndvdi_env = true\n")
		c := h.Container(harness.ContainerOptions{ID: "c", Hooks: ociHooks(h),
			Env: []string{"DVDI_VOLUME_NAME=v", "DVDI_VOLUME_DRIVER=local", "DVDI_VOLUME_CONTAINERPATH=/v"}})
		c.Sh("touch /v/file").OK(t)
		c.Delete()
		_, r := h.TryContainer(harness.ContainerOptions{ID: "hostonly", Hooks: ociHooks(h), Env: []string{"DVDI_VOLUME_NAME=v", "DVDI_VOLUME_DRIVER=local"}})
		wantStopped(t, h, r, "DVDI_VOLUME_CONTAINERPATH")
	})
}

// wantStopped: the container did not start, runc says why, and nothing is left of it.
func wantStopped(t *testing.T, h *harness.Host, r harness.Result, why string) {
	t.Helper()
	if r.Exit == 0 || !strings.Contains(r.Stderr, why) || !strings.Contains(r.Stderr, "bindgate: cannot ") {
		t.Errorf("want the container stopped for %q: %v", why, r)
	}
	wantNothingLeft(t, h)
	if lists := h.Sh("runc --root " + h.Path("runc") + " list --quiet").OK(t).Stdout; lists != "" {
		t.Errorf("runc still has %q", lists)
	}
}

func TestHookThatFailsStopsTheContainer(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + "[[rule]]\nvolume = \"v*\"\naction = \"allow\"\n")
		p := h.Plugin("plug", "-fail", "Mount:vbroken=the disk is on fire")
		for name, x := range map[string]struct {
			annotations map[string]string
			why         string
		}{
			"denied":           {volumes("driver=local,name=other,target=/data"), "no rule of policy.toml"},
			"driver":           {volumes("driver=plug,name=v,target=/a", "driver=plug,name=vbroken,target=/b"), "the disk is on fire"},
			"target":           {volumes("driver=plug,name=v,target=/a", "driver=local,name=v2,target=/etc"), "deny list of helper.toml"},
			"twice":            {volumes("driver=plug,name=v,target=/a", "driver=plug,name=v,target=/b"), "is already at"},
			"misspelt":         {map[string]string{"io.bindgate.volumes.0": "driver=local,name=v,target=/data"}, "io.bindgate.volumes.0"},
			"relative":         {volumes("driver=local,name=v,target=data"), "no sandbox"},
			"no such driver":   {volumes("driver=absent,name=v,target=/data"), "absent"},
			"nothing of a job": {map[string]string{"io.bindgate.volume.0": ""}, "empty"},
		} {
			hooks := ociHooks(h)
			hooks.Poststop = nil // runc would call it, not every runtime does
			_, r := h.TryContainer(harness.ContainerOptions{ID: strings.ReplaceAll(name, " ", "-"), Hooks: hooks, Annotations: x.annotations})
			t.Run(name, func(t *testing.T) { wantStopped(t, h.For(t), r, x.why) })
		}
		if m, u := len(p.Calls("Mount")), len(p.Calls("Unmount")); m != 3 || u != 2 { // one Mount failed
			t.Errorf("%d mounts and %d unmounts: %v", m, u, p.Calls())
		}
	})
}

func TestHookKeepsItsDeadline(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Plugin("plug", "-delay", "Mount:slow=1h")
		_, r := h.TryContainer(harness.ContainerOptions{ID: "c", Hooks: ociHooks(h, "--timeout", "200ms"), Annotations: volumes("driver=plug,name=slow,target=/data")})
		if r.Exit == 0 || !strings.Contains(r.Stderr, "exit status 75") {
			t.Errorf("want the container stopped by a timeout: %v", r)
		}
	})
}

// TestPoststopThatNeverCame: the runtime's own state is lost with the container, so nobody calls the hook; recover does what it would have done.
func TestPoststopThatNeverCame(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plug")
		hooks := ociHooks(h)
		hooks.Poststop = nil
		c := h.Container(harness.ContainerOptions{ID: "c", Hooks: hooks, Annotations: volumes("driver=plug,name=v,target=/data")})
		c.Delete()
		if d := status(t, h); len(d.Containers) != 1 || d.Containers[0].Alive {
			t.Fatalf("want a dead container: %+v", d.Containers)
		}
		h.Policy("recover", "--owner", "oci").OK(t)
		wantNothingLeft(t, h)
		if len(p.Calls("Unmount")) != 1 {
			t.Errorf("the driver was asked %v", p.Calls())
		}
		// The next container of that id does as well.
		c = h.Container(harness.ContainerOptions{ID: "c", Hooks: hooks, Annotations: volumes("driver=plug,name=v,target=/data")})
		c.Delete()
		c = h.Container(harness.ContainerOptions{ID: "c", Hooks: ociHooks(h), Annotations: volumes("driver=plug,name=w,target=/data")})
		c.Sh("touch /data/x").OK(t)
		c.Delete()
		wantNothingLeft(t, h)
	})
}

func TestHookTwiceForOneProcessChangesNothing(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		hooks := ociHooks(h)
		hooks.CreateRuntime = append(hooks.CreateRuntime, hooks.CreateRuntime[0])
		c := h.Container(harness.ContainerOptions{ID: "c", Hooks: hooks, Annotations: volumes("driver=local,name=v,target=/data")})
		if m := c.Mountinfo("/data"); len(m) != 1 {
			t.Errorf("mounted %q", m)
		}
		// The same id for another container is not the same.
		state := `{"ociVersion":"1.0.2","id":"c","status":"creating","pid":` + h.SharedRoot(harness.SharedRootOptions{ID: "other"}).PIDString() + `,"bundle":"` + c.Bundle + `"}`
		if msg := h.PolicyIn(state, "hook", "-o", "json").Fails(t, wire.Conflict); !strings.Contains(msg, "belongs to process "+c.PIDString()) {
			t.Errorf("it says %q", msg)
		}
		c.Delete()
		wantNothingLeft(t, h)
	})
}

// TestHookReplacesWhatAnEarlierStartLeft: a hook that was killed between prepare and isolate leaves a record that waits for a process. The container that comes next must not get its volumes.
func TestHookReplacesWhatAnEarlierStartLeft(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Policy("prepare", "--owner", "oci", "--container", "c", "-v", "old:/old").OK(t)
		c := h.Container(harness.ContainerOptions{ID: "c", Hooks: ociHooks(h), Annotations: volumes("driver=local,name=v,target=/data")})
		if m, old := c.Mountinfo("/data"), c.Mountinfo("/old"); len(m) != 1 || len(old) != 0 {
			t.Errorf("mounted %q, %q", m, old)
		}
		c.Delete()
		wantNothingLeft(t, h)
	})
}

// TestHookOverTheSocket: config.json was opened before Landlock, which leaves the policy process no other way to it.
func TestHookOverTheSocket(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.PolicyTOML(harness.DefaultPolicyTOML + "[helper]\ntransport = \"socket\"\nsocket = \"" + serveHelper(t, h) + "\"\n[[rule]]\naction = \"allow\"\n")
		c := h.Container(harness.ContainerOptions{ID: "c", Hooks: ociHooks(h), Annotations: volumes("driver=local,name=v,target=/data")})
		c.Sh("touch /data/file").OK(t)
		out := precreate(h, podmanConfig(t, h, volumes("driver=local,name=v,target=/data"))).OK(t).Stdout
		if !strings.Contains(out, filepath.Join(h.Volumes(), "v")) {
			t.Errorf("precreate printed %s", out)
		}
		h.Policy("cleanup", "--owner", "oci", "--container", podmanID).OK(t)
		c.Delete()
		wantNothingLeft(t, h)
	})
}

// TestHookInUserNamespace: the volume is there before the container pivots, its directory is root's of the container, and with idmap so are the files.
func TestHookInUserNamespace(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.HelperTOML(harness.DefaultHelperTOML + "[mounts]\nallow_idmap = true\n")
		h.Policy("volume", "create", "--opt", "mode=1777", "plain").OK(t)
		c := h.Container(harness.ContainerOptions{ID: "c", Hooks: ociHooks(h), Mapping: &harness.Mapping{HostID: 300000, Size: 65536}, Privileged: true,
			Annotations: volumes("driver=local,name=mapped,target=/new/mapped,idmap", "driver=local,name=plain,target=/new/plain")})
		c.Sh("touch /new/mapped/file; touch /new/plain/file; chown 1000:1000 /new/mapped/file").OK(t)
		if got := c.Sh("stat -c '%u:%g' /new /new/mapped /new/mapped/file /new/plain/file").OK(t).Stdout; got != "0:0\n0:0\n1000:1000\n0:0\n" {
			t.Errorf("the container sees %q", got)
		}
		for name, want := range map[string]uint32{"mapped": 1000, "plain": 300000} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(h.Volumes(), name, "file"), &st); err != nil || st.Uid != want {
				t.Errorf("on the host the file in %s is %d's, want %d (%v)", name, st.Uid, want, err)
			}
		}
		for _, how := range []string{"suid", "dev"} {
			if r := c.Sh("mount -o remount,bind," + how + " /new/mapped"); r.Exit == 0 {
				t.Errorf("the container remounts it %s", how)
			}
		}
		c.Delete()
		wantNothingLeft(t, h)
	})
}

func TestHookRefusesWhatIsNoState(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		for name, x := range map[string]struct {
			stdin string
			args  []string
			code  wire.Code
		}{
			"nothing":                {"", nil, wire.InvalidRequest},
			"config.json":            {`{"ociVersion":"1.0.2","process":{},"root":{"path":"rootfs"}}`, nil, wire.InvalidRequest},
			"a stage that is none":   {`{}`, []string{"prestart"}, wire.Usage},
			"a running container":    {`{"id":"c","status":"running","pid":1}`, nil, wire.InvalidRequest},
			"over a mebibyte":        {`{"id":"c","status":"created","pid":1}` + strings.Repeat(" ", 1<<20), nil, wire.InvalidRequest},
			"a bundle that is gone":  {`{"id":"c","status":"created","pid":1,"bundle":"/run/gone"}`, nil, wire.NoInput},
			"precreate, not by root": {`{}`, []string{"precreate"}, wire.Denied},
		} {
			t.Run(name, func(t *testing.T) {
				h := h.For(t)
				h.PolicyIn(x.stdin, append([]string{"hook", "-o", "json"}, x.args...)...).Fails(t, x.code)
			})
		}
		if _, err := os.Stat(h.AuditLog()); err == nil {
			t.Error("the helper was asked")
		}
	})
}
