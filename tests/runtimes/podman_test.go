//go:build runtimes

package runtimes

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// each runs a test with podman over runc and over crun.
func each(t *testing.T, f func(t *testing.T, h *harness.Host, runtime string)) {
	run(t, func(t *testing.T, h *harness.Host) {
		for _, runtime := range []string{"runc", "crun"} {
			t.Run(runtime, func(t *testing.T) { f(t, h.For(t), runtime) })
		}
	})
}

// annotation is a flag for podman 4, which splits what is not in double quotes at commas.
func annotation(n int, volume string) string {
	return `--annotation="io.bindgate.volume.` + strconv.Itoa(n) + "=" + volume + `"`
}

func TestPodmanHook(t *testing.T) {
	each(t, func(t *testing.T, h *harness.Host, runtime string) {
		p := podman(t, h, runtime)
		plug := h.Plugin("plug-" + runtime)
		before := h.Mountinfo()
		id := p.run("--name=web", annotation(0, "driver=plug-"+runtime+",name=v,target=/data/v"), annotation(1, "driver=local,name=conf,target=/conf,readonly"))
		other := p.run("--name=other")
		p.sh("web", "echo x > /data/v/file && ! touch /conf/x").OK(t)
		if got := h.ReadFile(filepath.Join(plug.Root, "data/v/file")); got != "x\n" {
			t.Errorf("the volume holds %q", got)
		}
		if r := p.sh("other", "grep -e /data/v -e /conf /proc/self/mountinfo"); r.Exit != 1 {
			t.Errorf("another container sees %v", r)
		}
		if now := strings.Join(h.Mountinfo(), "\n"); strings.Contains(harness.Diff(before, h.Mountinfo()), "/data/v") {
			t.Errorf("the host sees it: %s", now)
		}
		d := status(t, h)
		if len(d.Containers) != 1 || d.Containers[0].Container != id || d.Containers[0].Owner != "oci" || strconv.Itoa(d.Containers[0].PID) != p.pid("web") {
			t.Errorf("status: %+v", d)
		}
		// A second life of the same container.
		p.do("stop", "--time=0", "web").OK(t)
		if d := status(t, h); len(d.Containers) != 0 {
			t.Errorf("after stop: %+v", d)
		}
		p.do("start", "web").OK(t)
		p.sh("web", "grep x /data/v/file").OK(t)
		p.remove("web", other)
		wantNothingLeft(t, h)
		if m, u := len(plug.Calls("Mount")), len(plug.Calls("Unmount")); m != 2 || u != 2 {
			t.Errorf("%d mounts, %d unmounts", m, u)
		}
	})
}

// TestPodmanHookFails: runc shows what the hook says. crun does not, but for the file that its own annotation names.
func TestPodmanHookFails(t *testing.T) {
	each(t, func(t *testing.T, h *harness.Host, runtime string) {
		p := podman(t, h, runtime)
		says := h.Path("podman", "says")
		r := p.try(annotation(0, "driver=absent,name=v,target=/data"), "--annotation=run.oci.hooks.stderr="+says)
		text := r.Stderr
		if runtime == "crun" {
			text += h.ReadFile(says)
		}
		if r.Exit == 0 || !strings.Contains(text, "bindgate: cannot ") || !strings.Contains(text, "absent") {
			t.Errorf("%v\n%s", r, text)
		}
		p.do("rm", "--all", "--force", "--time=0").OK(t)
		wantNothingLeft(t, h)
	})
}

// TestPodmanPoststopThatNeverCame: the hook had attached the volumes, and then the runtime found no program to start. It calls no poststop.
func TestPodmanPoststopThatNeverCame(t *testing.T) {
	each(t, func(t *testing.T, h *harness.Host, runtime string) {
		p := podman(t, h, runtime)
		if r := p.do("run", "--network=none", "--cgroup-parent="+h.Cgroup(), annotation(0, "driver=local,name=v,target=/data"), "busybox", "/no/such/program"); r.Exit == 0 {
			t.Fatalf("it started: %v", r)
		}
		id := p.run("--name=kept", annotation(0, "driver=local,name=v,target=/data"))
		h.Policy("recover", "--owner", "oci", "--known", p.do("ps", "--all", "--quiet", "--no-trunc", "--filter=name=kept").OK(t).Stdout).OK(t)
		if d := status(t, h); len(d.Containers) != 1 || d.Containers[0].Container != id {
			t.Errorf("after recover: %+v", d)
		}
		p.do("rm", "--all", "--force", "--time=0").OK(t)
		wantNothingLeft(t, h)
	})
}

// TestPodmanUserNamespace: --userns=auto and a range that is named; through the hook and attached later.
func TestPodmanUserNamespace(t *testing.T) {
	each(t, func(t *testing.T, h *harness.Host, runtime string) {
		for name, flags := range map[string][]string{"auto": {"--userns=auto:size=65536"}, "range": {"--uidmap=0:700000:65536", "--gidmap=0:700000:65536"}} {
			t.Run(name, func(t *testing.T) {
				h := h.For(t)
				p := podman(t, h, runtime)
				volume := runtime + "-" + name
				h.Policy("volume", "create", "--opt", "mode=1777", volume+"-plain").OK(t)
				// With all capabilities, so that only the lock keeps it from changing attributes.
				p.run(append(flags, "--name=c", "--cap-add=all", annotation(0, "driver=local,name="+volume+",target=/new/mapped,idmap"), annotation(1, "driver=local,name="+volume+"-plain,target=/new/plain"))...)
				p.sh("c", "touch /new/mapped/file /new/plain/file && chown 1000:1000 /new/mapped/file").OK(t)
				if got := p.sh("c", "stat -c %u:%g /new /new/mapped /new/mapped/file /new/plain/file").OK(t).Stdout; got != "0:0\n0:0\n1000:1000\n0:0\n" {
					t.Errorf("the container sees %q", got)
				}
				base := strings.Fields(p.sh("c", "cat /proc/self/uid_map").OK(t).Stdout)[1]
				for file, want := range map[string]string{volume: "1000", volume + "-plain": base} {
					var st unix.Stat_t
					if err := unix.Stat(filepath.Join(h.Volumes(), file, "file"), &st); err != nil || strconv.Itoa(int(st.Uid)) != want || want == "0" {
						t.Errorf("on the host the file in %s is %d's, want %s (%v)", file, st.Uid, want, err)
					}
				}
				h.Policy("volume", "create", "--opt", "mode=1777", volume+"-ro").OK(t)
				d := decode[attached](t, h.Policy("attach", "-o", "json", "--owner", "oci", "--container", p.do("inspect", "--format", "{{.Id}}", "c").OK(t).Stdout[:64], "--pid", p.pid("c"), "-v", volume+"-ro:/later:ro"))
				if len(d.Mounts) != 1 || !d.Mounts[0].Locked {
					t.Errorf("attach: %+v", d)
				}
				for at, how := range map[string]string{"/new/mapped": "suid", "/new/plain": "dev", "/later": "rw"} {
					if r := p.sh("c", "mount -o remount,bind,"+how+" "+at); r.Exit == 0 || !strings.Contains(r.Stderr, "ermission") {
						t.Errorf("remount %s of %s: %v", how, at, r)
					}
				}
				p.remove("c")
				wantNothingLeft(t, h)
			})
		}
	})
}
