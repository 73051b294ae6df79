package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// leakHost is a host with a container that has a local volume at /a and a plugin's at /b.
func leakHost(t *testing.T, h *harness.Host) (*harness.Plugin, *harness.Container) {
	t.Helper()
	h.AllowAll()
	p := h.Plugin("flock", "-bind")
	c := h.Container(harness.ContainerOptions{ID: "c"})
	for _, v := range [][2]string{{"local", "a"}, {"flock", "b"}} {
		h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "--driver", v[0], "-v", v[1]+":/"+v[1]).OK(t)
	}
	healthy(t, h)
	return p, c
}

// records returns the files of a folder's records.
func records(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(dir + "/*.rec")
	must(t, err)
	if len(list) == 0 {
		t.Fatalf("no record in %s", dir)
	}
	return list
}

func remove(t *testing.T, paths []string) {
	t.Helper()
	for _, p := range paths {
		must(t, os.Remove(p))
	}
}

func TestLeaks(t *testing.T) {
	for _, x := range []struct {
		name  string
		do    func(t *testing.T, h *harness.Host, p *harness.Plugin, c *harness.Container)
		check string
		state string // "" is failed
		code  string
		exit  int
		says  []string
		mends bool // by its fix
		fixed bool // by --fix
		as    []harness.User
		clean func(t *testing.T, h *harness.Host, p *harness.Plugin, c *harness.Container) // what is left is taken away
	}{
		{name: "a record is torn", do: func(t *testing.T, h *harness.Host, _ *harness.Plugin, _ *harness.Container) {
			for _, f := range records(t, h.Journal()+"/volumes") {
				must(t, os.Truncate(f, 10))
			}
		}, check: "leak.record", code: "state_corrupt", exit: 78, says: []string{"cannot trust the record"}, mends: true},
		{name: "a prepare was cut off", do: func(t *testing.T, h *harness.Host, p *harness.Plugin, _ *harness.Container) {
			// Killed while the driver mounts, which it does all the same.
			fifo := h.Path("tmp", "fifo")
			must(t, unix.Mkfifo(fifo, 0o600))
			slow := h.Plugin("slow", "-bind", "-hold", "Mount:s="+fifo)
			cmd := h.Command(policy, h.Bindgate(), "prepare", "--container", "cut", "--driver", "slow", "-v", "s:/s")
			must(t, cmd.Start())
			for len(slow.Calls("Mount")) == 0 { // its log is there once it was asked
			}
			must(t, cmd.Process.Signal(syscall.SIGKILL))
			cmd.Wait()
			h.WriteFile(fifo, "go on", 0o600)
			for mounted := false; !mounted; {
				mounted = strings.Contains(strings.Join(h.Mountinfo(), "\n"), slow.Root+"/mnt/s ")
			}
		}, check: "leak.prepare", code: "pending", exit: 75, says: []string{"cut was cut off while preparing"}, mends: true},
		{name: "its container is gone", do: func(t *testing.T, h *harness.Host, _ *harness.Plugin, c *harness.Container) { c.Kill() },
			check: "leak.container", state: "warning", says: []string{"c has ended"}, mends: true},
		{name: "the container unmounted it", do: func(t *testing.T, h *harness.Host, _ *harness.Plugin, c *harness.Container) {
			h.Sh("nsenter -t " + c.PIDString() + " -m umount /a").OK(t)
		}, check: "leak.mount", code: "pending", exit: 75, says: []string{"/a of container c is recorded as attached, and is not"}, fixed: true},
		{name: "the plugin's mount is lost", do: func(t *testing.T, h *harness.Host, p *harness.Plugin, _ *harness.Container) {
			h.Sh("umount " + p.Root + "/mnt/b").OK(t)
		}, check: "leak.mount", code: "pending", exit: 75, says: []string{"flock/b is recorded as mounted at", "and is not"}},
		{name: "a volume without user", do: func(t *testing.T, h *harness.Host, _ *harness.Plugin, c *harness.Container) {
			c.Kill()
			remove(t, records(t, h.Journal()+"/containers"))
		}, check: "leak.volume", code: "pending", exit: 75, says: []string{"/b is mounted and nobody uses it", "/a is mounted and nobody uses it"}, mends: true},
		{name: "an unmount failed", do: func(t *testing.T, h *harness.Host, p *harness.Plugin, _ *harness.Container) {
			other := h.Plugin("bad", "-fail", "Unmount:v=the array is on fire")
			h.Policy("volume", "mount", "--driver", "bad", "v").OK(t)
			h.Policy("volume", "unmount", "--driver", "bad", "v").Exits(t, 75)
			other.Stop()
			h.Plugin("bad")
		}, check: "leak.volume", code: "pending", exit: 75, says: []string{"bad/v is still to be unmounted: ", "the array is on fire"}, mends: true},
		{name: "the journal is lost", do: func(t *testing.T, h *harness.Host, _ *harness.Plugin, _ *harness.Container) {
			remove(t, append(records(t, h.Journal()+"/containers"), records(t, h.Journal()+"/volumes")...))
		}, check: "leak.attached", code: "state_corrupt", exit: 78, says: []string{"/a of container c is attached, and the journal does not know", "/b of container c"}, as: rootOnly,
			clean: func(t *testing.T, h *harness.Host, p *harness.Plugin, c *harness.Container) {
				h.Policy("recover", "--force", "--known", "").OK(t)
				h.Sh("umount " + p.Root + "/mnt/b").OK(t)
			}},
		{name: "a record of the helper's is torn", do: func(t *testing.T, h *harness.Host, _ *harness.Plugin, _ *harness.Container) {
			for _, f := range records(t, h.Ledger()) {
				must(t, os.Truncate(f, 10))
			}
		}, check: "leak.ledger", code: "state_corrupt", exit: 78, says: []string{"cannot trust the record"}, as: rootOnly},
		{name: "the ledger is lost", do: func(t *testing.T, h *harness.Host, _ *harness.Plugin, _ *harness.Container) {
			remove(t, records(t, h.Ledger()))
		}, check: "leak.mounts", code: "state_corrupt", exit: 78, says: []string{"the local volume a is mounted at /a of process", "what lies in a source is mounted at /b of process"}, as: rootOnly},
	} {
		t.Run(x.name, func(t *testing.T) {
			harness.Run(t, func(h *harness.Host) {
				p, c := leakHost(t, h)
				x.do(t, h, p, c)
				as := x.as
				if as == nil {
					as = either
				}
				var found []check
				for _, user := range as {
					rep, r := doctor(t, h, user)
					r.Exits(t, x.exit)
					if found = rep.find(x.check); len(found) == 0 {
						t.Fatalf("uid %d: no %s: %v", user.UID, x.check, r)
					}
					var says []string
					for _, f := range found {
						says = append(says, f.Message)
						if want := x.state; f.Code != x.code && f.State != "warning" || want != "" && f.State != want {
							t.Errorf("uid %d: %+v", user.UID, f)
						}
					}
					for _, w := range x.says {
						if !strings.Contains(strings.Join(says, "\n"), w) {
							t.Errorf("uid %d: it does not say %q, but %q", user.UID, w, says)
						}
					}
				}
				if x.fixed {
					rep, r := doctor(t, h, root, "--fix")
					if f := rep.find(x.check); len(f) != 1 || f[0].State != "fixed" {
						t.Errorf("--fix: %v", r)
					}
					rep, r = doctor(t, h, policy)
					r.OK(t)
					if f := rep.find("leak.taken"); len(f) != 1 || f[0].State != "warning" { // the journal still has it, and that is harmless
						t.Errorf("after --fix: %v", r)
					}
				}
				if x.mends {
					for _, f := range found {
						mend(t, h, f)
					}
					healthyBut(t, h, "")
				}
				if x.clean != nil {
					x.clean(t, h, p, c)
				}
				// Nothing is left: the harness looks at the mounts.
				c.Kill()
				h.Policy("recover")
				unix.Unmount(p.Root+"/mnt/b", unix.MNT_DETACH)
			})
		})
	}
}
