//go:build runtimes

package runtimes

import (
	"strconv"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
)

// TestPodmanPrecreate: podman makes the mounts that the hook puts into config.json, and createRuntime tells whose they are.
func TestPodmanPrecreate(t *testing.T) {
	each(t, func(t *testing.T, h *harness.Host, runtime string) {
		p, plug := podman(t, h, runtime, "podman"), h.Plugin("plug-"+runtime, "-bind")
		id := p.run("--name=c", annotation(0, "driver=plug-"+runtime+",name=v,target=/data/v"), annotation(1, "driver=local,name=conf,target=/conf,readonly,noexec"))
		p.sh("c", "touch /data/v/file && ! touch /conf/x").OK(t)
		info := p.sh("c", "grep -E ' /data/v | /conf ' /proc/self/mountinfo").OK(t).Stdout
		if n := strings.Count(info, "nosuid,nodev"); n != 2 || !strings.Contains(info, " /conf ro,nosuid,nodev,noexec") {
			t.Errorf("mounted as\n%s", info)
		}
		if in := p.do("inspect", "c").OK(t).Stdout; !strings.Contains(in, id) {
			t.Errorf("podman knows %s", in)
		}
		d := status(t, h)
		if len(d.Containers) != 1 || d.Containers[0].Container != id || d.Containers[0].Owner != "oci" || d.Containers[0].Phase != "bound" || strconv.Itoa(d.Containers[0].PID) != p.pid("c") {
			t.Errorf("status: %+v", d)
		}
		p.do("restart", "--time=0", "c").OK(t)
		p.sh("c", "test -e /data/v/file").OK(t)
		p.remove("c")
		wantNothingLeft(t, h)
		if m, u := len(plug.Calls("Mount")), len(plug.Calls("Unmount")); m != 2 || u != 2 {
			t.Errorf("%d mounts, %d unmounts", m, u)
		}
		p.run("--name=none")
		p.remove("none")
	})
}

// TestPodmanPrecreateRefuses: podman shows no more than the exit status, and starts nothing.
func TestPodmanPrecreateRefuses(t *testing.T) {
	run(t, func(t *testing.T, h *harness.Host) {
		p := podman(t, h, "crun", "podman")
		h.PolicyTOML(strings.Replace(h.ReadFile(h.Path("etc/bindgate/policy.toml")), "[[rule]]", "[[rule]]\nvolume = \"secret\"\naction = \"deny\"\n[[rule]]", 1))
		for name, x := range map[string]struct {
			volume string
			flags  []string
			exit   string
		}{
			"a rule denies it":                   {"driver=local,name=secret,target=/data", nil, "77"},
			"a denied path":                      {"driver=local,name=v,target=/etc/ssh/x", nil, "77"},
			"a subpath":                          {"driver=local,name=v,target=/data,subpath=a", nil, "65"},
			"an idmap":                           {"driver=local,name=v,target=/data,idmap", nil, "65"},
			"attributes that could be taken off": {"driver=local,name=v,target=/data", []string{"--cap-add=sys_admin"}, "77"},
			"a cgroup that no rule matches":      {"driver=local,name=v,target=/data", []string{"--cgroup-parent=/elsewhere-" + strings.Trim(strings.ReplaceAll(h.Cgroup(), "/", "-"), "-")}, "77"},
		} {
			t.Run(name, func(t *testing.T) {
				r := p.try(append(x.flags, annotation(0, x.volume))...)
				if r.Exit == 0 || !strings.Contains(r.Stderr, "exit status "+x.exit) {
					t.Errorf("want exit status %s: %v", x.exit, r)
				}
				wantNothingLeft(t, h.For(t))
			})
		}
		h.Sh("rmdir /sys/fs/cgroup/*/elsewhere-*" + strings.Trim(strings.ReplaceAll(h.Cgroup(), "/", "-"), "-") + " 2>/dev/null || true")
	})
}
