package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

func TestPluginVolume(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		for _, count := range []string{"calls", "ids", "none"} {
			t.Run(count, func(t *testing.T) {
				h := h.For(t)
				name := "by-" + count
				p := h.Plugin(name, "-count", count, "-bind")
				mount := "driver=" + name + ",name=v,target=/data"
				c1 := h.Container(harness.ContainerOptions{ID: count + "1"})
				c2 := h.Container(harness.ContainerOptions{ID: count + "2"})
				attach(t, h, c1, "--mount", mount)
				attach(t, h, c2, "--mount", mount+",readonly")
				c1.Sh("echo shared > /data/file").OK(t)
				if got := c2.Sh("cat /data/file").OK(t).Stdout; got != "shared\n" {
					t.Errorf("the second sees %q", got)
				}
				if n := len(p.Calls("Mount")); n != 1 {
					t.Errorf("the driver was asked to mount %d times", n)
				}
				c1.Kill()
				cleanup(t, h, c1.ID)
				if n := len(p.Calls("Unmount")); n != 0 {
					t.Errorf("unmounted while the second container uses it")
				}
				c2.Sh("cat /data/file").OK(t)
				c2.Kill()
				d := cleanup(t, h, c2.ID)
				if len(d.Unmounted) != 1 || d.Unmounted[0].Driver != name || d.Unmounted[0].Name != "v" {
					t.Errorf("cleanup: %+v", d)
				}
				mounts, unmounts := p.Calls("Mount"), p.Calls("Unmount")
				if len(mounts) != 1 || len(unmounts) != 1 || mounts[0].ID == "" || mounts[0].ID != unmounts[0].ID {
					t.Errorf("Mount %v, Unmount %v: want one each, with the same id", mounts, unmounts)
				}
				for _, line := range h.Mountinfo() {
					if strings.Contains(line, p.Root) {
						t.Errorf("still mounted: %s", line)
					}
				}
			})
		}
		wantNothingLeft(t, h)
	})
}

func TestPluginSingleFile(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Plugin("files", "-file")
		c := h.Container(harness.ContainerOptions{ID: "c"})
		d := attach(t, h, c, "--mount", "driver=files,name=f,target=/cfg/app.conf", "--mount", "driver=files,name=g,target=/ro.conf,readonly")
		if len(d.Mounts) != 2 || !d.Mounts[0].Locked {
			t.Errorf("attach: %+v", d.Mounts)
		}
		c.Sh("test -f /cfg/app.conf && echo x=1 > /cfg/app.conf && cat /cfg/app.conf && ! echo y > /ro.conf").OK(t)
		if got := h.ReadFile(filepath.Join(h.Sources(), "files/data/f")); got != "x=1\n" {
			t.Errorf("the volume holds %q", got)
		}
		h.Policy("detach", "--container", "c", "--all").OK(t)
		if _, err := os.Lstat(filepath.Join(c.Root, "cfg")); err == nil {
			t.Error("what was created is still there after detach")
		}
	})
}

func TestPluginGone(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("gone")
		c := h.Container(harness.ContainerOptions{ID: "c"})
		attach(t, h, c, "--mount", "driver=gone,name=v,target=/data")
		c.Kill()
		p.Kill()
		rules := h.ReadFile(h.Path("etc/bindgate/policy.toml"))
		h.PolicyTOML(rules + "[timeouts]\ncall = \"1s\"\nunmount = \"1s\"\n")
		var d cleanupDoc
		r := h.Policy("cleanup", "-o", "json", "--container", "c").Exits(t, 75).JSON(t, &d)
		if len(d.Pending) != 1 || d.Pending[0].Driver != "gone" || d.Pending[0].Name != "v" || d.Pending[0].Since == "" {
			t.Errorf("%+v, %v", d, r)
		}
		h.PolicyTOML(rules) // a plugin that is there has the time that it takes
		p.Start()
		h.Policy("cleanup", "-o", "json", "--container", "c").OK(t)
		h.Policy("recover", "-o", "json").OK(t)
		if n := len(p.Calls("Unmount")); n != 1 {
			t.Errorf("unmounted %d times", n)
		}
		wantNothingLeft(t, h)
	})
}

func TestUnknownDriver(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		msg := h.Policy("attach", "-o", "json", "--container", "c", "--pid", c.PIDString(), "--mount", "driver=nobody,name=v,target=/data").
			Fails(t, wire.DriverUnavailable)
		if !strings.Contains(msg, "nobody") {
			t.Errorf("the driver is not named: %s", msg)
		}
		wantNothingLeft(t, h)
	})
}

// A plugin's socket is root's and a group's. Bindgate keeps the groups of policy.toml when it gives up root; who is not in one is told so, and no plugin is
// missing from a list in silence.
func TestPluginOfAGroup(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("nas")
		if err := os.Chown(p.Socket, 0, 64899); err != nil {
			t.Fatal(err)
		}
		create := func(user harness.User) harness.Result {
			return h.PolicyAs(user, "", "volume", "create", "-o", "json", "--driver", "nas", "v")
		}
		root, policy := harness.User{}, harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
		create(root).Fails(t, wire.DriverUnavailable)
		h.PolicyTOML("groups = [\"64899\"]\n" + h.ReadFile(h.Path("etc/bindgate/policy.toml")))
		create(policy).Fails(t, wire.DriverUnavailable) // who is not root cannot join a group
		create(root).OK(t)
		if err := os.Chmod(h.Sockets(), 0o700); err != nil {
			t.Fatal(err)
		}
		var ls lifecycle.VolumeList
		h.PolicyAs(root, "", "volume", "ls", "-o", "json").OK(t).JSON(t, &ls)
		if len(ls.Volumes) != 0 || len(ls.Warnings) != 1 || !strings.Contains(ls.Warnings[0], h.Sockets()) || !strings.Contains(ls.Warnings[0], "setfacl") {
			t.Errorf("%+v", ls)
		}
	})
}
