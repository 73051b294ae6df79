package model

import (
	"slices"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/tests/plugins/watched"
)

// Sequences that the model or the soak found, in the shortest form in which they went wrong.
func TestSequencesThatWentWrong(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		w := newWorld(t, h)
		plugin := w.plugins["p"]
		volume := []string{"--mount", "driver=p,name=v,target=" + w.path("p/v")}
		dvdcli := func(verb string) {
			t.Helper()
			h.Do(h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Path("prefix/bin/dvdcli"), verb, "--volumedriver=p", "--volumename=v")).OK(t)
		}
		run := func(args ...string) harness.Result { return h.Policy(args...) }
		with := func(more []string, args ...string) []string { return append(args, more...) }

		for name, f := range map[string]func(t *testing.T, pid string){
			"what attach added to an agent's container is detached before the driver is asked": func(t *testing.T, pid string) {
				run("prepare", "--container", "a", "--mounts-by", "agent", "--mount", "driver=local,name=l,target="+w.path("local/l")).OK(t)
				run("bind", "--container", "a", "--pid", pid).OK(t)
				run(with(volume, "attach", "--container", "a", "--pid", pid)...).OK(t)
				plugin.Before = func(c watched.Call) error {
					if in := w.mounted(w.process("a").Pid()); c.Call == "Unmount" && len(in) > 0 {
						t.Errorf("the driver is told to unmount, and in the container is %v", in)
					}
					return nil
				}
				run("detach", "--container", "a", "--all").OK(t)
				run("cleanup", "--container", "a", "--force").OK(t)
			},
			"a volume that was lost after prepare is mounted again": func(t *testing.T, pid string) {
				run(with(volume, "prepare", "--container", "a")...).OK(t)
				if err := plugin.Lose("v"); err != nil {
					t.Fatal(err)
				}
				run("isolate", "--container", "a", "--pid", pid).OK(t)
				if in := w.mounted(w.process("a").Pid()); !slices.Equal(in, []string{"p/v"}) {
					t.Errorf("in the container is %v", in)
				}
				run("cleanup", "--container", "a", "--force").OK(t)
			},
			"a mount that fails takes away no reference that was there": func(t *testing.T, pid string) {
				run("volume", "mount", "--driver", "p", "v").OK(t)
				if err := plugin.Lose("v"); err != nil {
					t.Fatal(err)
				}
				w.refuse["Mount p/v"] = true
				run("volume", "mount", "--driver", "p", "v").Exits(t, 69)
				run("volume", "unmount", "--driver", "p", "v").OK(t)
			},
			"what its last user could not let go is that one's to try again": func(t *testing.T, pid string) {
				run(with(volume, "attach", "--container", "a", "--pid", pid)...).OK(t)
				dvdcli("mount")
				dvdcli("unmount")
				w.refuse["Unmount p/v"] = true
				run("detach", "--container", "a", "--all").Exits(t, 75)
				run("recover").Exits(t, 75)
				w.refuse["Unmount p/v"] = false
				run("recover").OK(t)
			},
		} {
			w.reset()
			before := plugin.Before
			f(t, w.process("a").PIDString())
			plugin.Before = before
			clear(w.refuse)
			if left := plugin.Holders(); len(left) > 0 {
				t.Errorf("%s: the driver holds %v still", name, left)
			}
			if left := run("status", "-o", "json").OK(t).Stdout; left != `{"schema":"bindgate/v1","containers":[],"volumes":[]}`+"\n" {
				t.Errorf("%s: left is %s", name, left)
			}
		}
	})
}
