package attack

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// T40: the job asks for a volume, a mode or a place that no rule gives it, in every format and by every command.
func TestT40_WhatNoRuleAllowsIsDenied(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		s := polPlugin(t, h, "plugin")
		c := h.Container(harness.ContainerOptions{ID: "web-1"})
		process := []string{"--container", c.ID, "--pid", c.PIDString()}
		run := func(stdin, command string, args ...string) harness.Result {
			return h.PolicyIn(stdin, append(append([]string{command, "-o", "json"}, process...), args...)...)
		}
		mesos := func(name, path, mode string) string {
			return fmt.Sprintf(`{"container_path":%q,"mode":%q,"source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":"plugin","name":%q}}}`, path, mode, name)
		}

		// The naive way: whoever can name a volume gets it.
		h.PolicyTOML(harness.DefaultPolicyTOML + "[[rule]]\naction = \"allow\"\n")
		run("["+mesos("v", "/data", "RW")+"]", "attach").OK(t)
		c.Sh("echo owned > /data/file").OK(t)
		h.Policy("detach", "--container", c.ID, "--all").OK(t)
		s.calls("")

		h.PolicyTOML(harness.DefaultPolicyTOML + `
[[rule]]
volume = "secret*"
action = "deny"
[[rule]]
paths = ["/etc", "/etc/*", "hidden", "hidden/*"]
action = "deny"
[[rule]]
driver = "plugin"
volume = "team-a-*"
containers = ["web-*"]
owners = ["default"]
modes = ["ro"]
paths = ["/data", "/data/*"]
action = "allow"
[[rule]]
volume = "anywhere"
action = "allow"
`)
		sandbox := h.Mkdir(h.Sandboxes()+"/web-1", 0o755)
		for _, x := range []struct {
			name  string
			stdin string
			args  []string
		}{
			{"another team's volume", "[" + mesos("team-b-v", "/data", "RO") + "]", nil},
			{"for writing", "[" + mesos("team-a-v", "/data", "RW") + "]", nil},
			{"elsewhere", "[" + mesos("team-a-v", "/srv", "RO") + "]", nil},
			{"a place that is denied first", "[" + mesos("anywhere", "/etc/x", "RO") + "]", nil},
			{"such a place with two slashes", "[" + mesos("anywhere", "//etc//x", "RO") + "]", nil},
			{"such a place with a dot", "[" + mesos("anywhere", "/etc/./x", "RO") + "]", nil},
			{"such a place with a slash at its end", "[" + mesos("anywhere", "/etc/", "RO") + "]", nil},
			{"such a place in the sandbox", "[" + mesos("anywhere", "./hidden", "RO") + "]", []string{"--directory", sandbox}},
			{"a volume that is denied first", "[" + mesos("secret", "/data", "RO") + "]", nil},
			{"one of two", "[" + mesos("team-a-v", "/data", "RO") + "," + mesos("team-b-v", "/data/b", "RO") + "]", nil},
			{"a name that only begins like one", "[" + mesos("team-a", "/data", "RO") + "]", nil},
			{"another case", "[" + mesos("Team-a-v", "/data", "RO") + "]", nil},
			{"a glob as name", "[" + mesos("*", "/data", "RO") + "]", nil},
			{"another driver", "", []string{"--mount", "driver=other,name=team-a-v,target=/data,readonly"}},
			{"by flag", "", []string{"--driver", "plugin", "-v", "team-a-v:/data"}},
			{"of another owner", "", []string{"--owner", "other", "--driver", "plugin", "-v", "team-a-v:/data:ro"}},
			{"of another container", "", []string{"--container", "db-1", "--driver", "plugin", "-v", "team-a-v:/data:ro"}},
			{"dvdi, which is read-write", "DVDI_VOLUME_NAME=team-a-v\nDVDI_VOLUME_DRIVER=plugin\nDVDI_VOLUME_CONTAINERPATH=/data\n", nil},
			{"dvdi, on the host only", "DVDI_VOLUME_NAME=team-a-v\nDVDI_VOLUME_DRIVER=plugin\n", nil},
			{"marathon", `{"id":"a","env":{},"container":{"volumes":[{"containerPath":"/data","mode":"RW","external":{"name":"team-a-v","provider":"dvdi",
				"options":{"dvdi/driver":"plugin"}}}]}}`, nil},
			{"docker", `{"type":"DOCKER","docker":{"image":"i","parameters":[{"key":"volume-driver","value":"plugin"},{"key":"volume","value":"team-a-v:/data"}]}}`, nil},
			{"oci", `{"ociVersion":"1.2.0","annotations":{"io.bindgate.volume.0":"driver=plugin,name=team-a-v,target=/data"}}`, nil},
		} {
			t.Run(x.name, func(t *testing.T) {
				h := h.For(t)
				for _, command := range []string{"attach", "prepare"} {
					args := x.args
					if command == "attach" {
						args = append([]string{"--pid", c.PIDString()}, args...)
					}
					r := h.PolicyIn(x.stdin, append([]string{command, "-o", "json", "--container", c.ID}, args...)...)
					if r.Fails(t, wire.Denied); !strings.Contains(r.Stderr, "[[rule]]") {
						t.Errorf("the rule that would allow it is not shown: %v", r)
					}
				}
				if calls := s.calls(""); len(calls) > 0 {
					t.Errorf("the plugin was asked: %v", calls)
				}
				if m := c.Mountinfo("/data"); len(m) > 0 {
					t.Errorf("attached: %q", m)
				}
				polNothingLeft(t, h)
			})
		}

		// Around the jobs: what has no container and no path.
		for _, args := range [][]string{{"create", "team-a-v"}, {"inspect", "team-a-v"}, {"path", "team-a-v"}, {"mount", "team-a-v"}, {"unmount", "team-a-v"}, {"rm", "team-a-v"}} {
			h.Policy("volume", args[0], "-o", "json", "--driver", "plugin", args[1]).Fails(t, wire.Denied)
		}
		for _, verb := range []string{"create", "get", "path", "mount", "unmount", "remove"} {
			if r := polDvdcli(h, verb, "--volumedriver=plugin", "--volumename=team-a-v").Exits(t, 1); !strings.Contains(r.Stderr, "[[rule]]") {
				t.Errorf("%v", r)
			}
		}
		if calls := s.calls(""); len(calls) > 0 {
			t.Errorf("the plugin was asked: %v", calls)
		}

		// What a rule does give.
		run("["+mesos("team-a-v", "//data/./x", "RO")+"]", "attach").OK(t)
		h.Policy("detach", "--container", c.ID, "--all").OK(t)
		polNothingLeft(t, h)
	})
}
