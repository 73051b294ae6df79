package doctor

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// rexray is the driver that these tests are about: a rule names it, so it is wanted.
const rule = `
[[rule]]
driver = "rexray"
action = "allow"
[driver.rexray.timeouts]
call = "1s"
`

func driverHost(t *testing.T, h *harness.Host) {
	h.PolicyTOML(harness.DefaultPolicyTOML + rule)
}

// one returns the one finding of a check.
func (rep report) one(t *testing.T, name string) check {
	t.Helper()
	found := rep.find(name)
	if len(found) != 1 {
		t.Fatalf("%d findings of %s: %+v", len(found), name, rep.Checks)
	}
	return found[0]
}

// listener is a plugin's socket with somebody behind it who answers like this, or not at all.
func listener(t *testing.T, h *harness.Host, answer string) {
	t.Helper()
	path := h.Sockets() + "/rexray.sock"
	l, err := net.Listen("unix", path)
	must(t, err)
	must(t, os.Chmod(path, 0o666))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if answer == "" {
				t.Cleanup(func() { c.Close() })
				continue
			}
			buf := make([]byte, 4096)
			c.Read(buf)
			c.Write([]byte(answer))
			c.Close()
		}
	}()
}

func TestDrivers(t *testing.T) {
	for _, x := range []struct {
		name  string
		do    func(t *testing.T, h *harness.Host)
		code  string
		exit  int
		says  string
		state string
	}{
		{name: "not there", do: func(*testing.T, *harness.Host) {}, code: "driver_unavailable", exit: 69, says: "no socket or spec"},
		{name: "killed", do: func(t *testing.T, h *harness.Host) { h.Plugin("rexray").Kill() }, code: "driver_unavailable", exit: 69, says: "rexray"},
		{name: "does not answer", do: func(t *testing.T, h *harness.Host) { listener(t, h, "") }, code: "timeout", exit: 75, says: "no answer"},
		{name: "no plugin", do: func(t *testing.T, h *harness.Host) { listener(t, h, "HTTP/1.0 200 OK\r\n\r\n<html>") }, code: "driver_error", exit: 69, says: "rexray"},
		{name: "no volume driver", do: func(t *testing.T, h *harness.Host) {
			listener(t, h, "HTTP/1.0 200 OK\r\n\r\n{\"Implements\":[\"NetworkDriver\"]}")
		}, code: "driver_error", exit: 69, says: "is no volume driver"},
		{name: "cannot list", do: func(t *testing.T, h *harness.Host) { h.Plugin("rexray", "-fail", "List:=the array is on fire") }, code: "driver_error", exit: 69, says: "the array is on fire"},
		{name: "bad spec", do: func(t *testing.T, h *harness.Host) {
			h.WriteFile(h.Specs()+"/rexray.json", `{"Addr":"https://127.0.0.1:1","TLSConfig":{}}`, 0o644)
		}, code: "config", exit: 78, says: "CAFile"},
	} {
		t.Run(x.name, func(t *testing.T) {
			harness.Run(t, func(h *harness.Host) {
				driverHost(t, h)
				x.do(t, h)
				for _, user := range either {
					rep, r := doctor(t, h, user)
					r.Exits(t, x.exit)
					rep.only(t, "driver.rexray")
					if c := rep.one(t, "driver.rexray"); c.Code != x.code || !strings.Contains(c.Message, x.says) {
						t.Errorf("%+v", c)
					}
				}
				// One that no rule allows to anybody may be as broken as it likes.
				h.PolicyTOML(harness.DefaultPolicyTOML + "[[rule]]\ndriver = \"local\"\naction = \"allow\"\n[timeouts]\ncall = \"1s\"\n[driver.local.timeouts]\ncall = \"1m\"\n")
				rep, r := doctor(t, h, root)
				r.OK(t)
				if found := rep.find("driver.rexray"); x.name != "not there" && (len(found) != 1 || found[0].State != "warning") {
					t.Errorf("%+v", found)
				}
			})
		})
	}
}

// A driver's volumes are what the policy user sees, whoever started doctor.
func TestDriversAreAskedAsThePolicyUser(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		driverHost(t, h)
		p := h.Plugin("rexray")
		must(t, os.Chmod(p.Socket, 0o600)) // root could
		rep, r := doctor(t, h, root)
		r.Exits(t, 69)
		rep.one(t, "driver.rexray")
		if calls := p.Calls(); len(calls) > 0 {
			t.Errorf("it was asked: %v", calls)
		}
	})
}

// The commands that doctor prints grant exactly the way to the socket: for one that is there, and, those that make it last, for one that comes later.
func TestGrants(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		driverHost(t, h)
		p := h.Plugin("rexray")
		must(t, os.Chown(p.Socket, 0, 0))
		must(t, os.Chmod(p.Socket, 0o600))
		must(t, os.Chmod(h.Sockets(), 0o700))
		// Root sees what is behind the closed folder, and all that is missing.
		rep, r := doctor(t, h, root)
		r.Exits(t, 69)
		c := rep.one(t, "driver.rexray")
		want := []string{"setfacl -m u:bindgate-test:x " + h.Sockets(), "setfacl -m u:bindgate-test:rw " + p.Socket}
		if !slices.Equal(c.Fix, want) {
			t.Errorf("the fix is %q, want %q", c.Fix, want)
		}
		// The policy user sees the first step.
		rep, _ = doctor(t, h, policy)
		if c := rep.one(t, "driver.rexray"); !slices.Equal(c.Fix, want[:1]) {
			t.Errorf("as the policy user the fix is %q", c.Fix)
		}
		mend(t, h, c)
		rep, _ = doctor(t, h, root)
		if found := rep.find("driver.rexray"); len(found) > 0 {
			t.Errorf("still: %+v", found)
		}
		// When the plugin starts again its socket is a new one.
		p.Stop()
		h.Sh("setfacl -b " + h.Sockets()).OK(t)
		h.Mount("tmpfs", "/etc/tmpfiles.d", "tmpfs", 0, "")
		_, lasting, _ := strings.Cut(c.Hint, "to make it last: ")
		h.Sh(lasting).OK(t)
		unix.Umask(0o022)
		p.Start()
		must(t, os.Chown(p.Socket, 0, 0))
		must(t, os.Chmod(p.Socket, 0o660)) // as Docker's plugin library does
		rep, r = doctor(t, h, policy)
		if found := rep.find("driver.rexray"); len(found) > 0 {
			t.Errorf("after the plugin started again: %+v", found)
		}
		r.OK(t)
	})
}

// A socket that a group may use: be in it.
func TestGrantsByGroup(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		driverHost(t, h)
		p := h.Plugin("rexray")
		must(t, os.Chown(p.Socket, 0, harness.OutsiderGID))
		for _, user := range either {
			rep, r := doctor(t, h, user)
			r.Exits(t, 69)
			c := rep.one(t, "driver.rexray")
			if !slices.Equal(c.Fix, []string{"usermod -aG bindgate-outsider bindgate-test"}) || !strings.Contains(c.Hint, `groups = ["bindgate-outsider"]`) {
				t.Errorf("%+v", c)
			}
		}
		h.PolicyTOML("groups = [\"bindgate-outsider\"]\n" + h.ReadFile(h.Path("etc/bindgate/policy.toml")))
		_, r := doctor(t, h, root)
		r.OK(t)
		_, r = doctor(t, h, harness.User{UID: policy.UID, GID: policy.GID, Groups: []uint32{harness.OutsiderGID}})
		r.OK(t)
	})
}

// A folder that may not be listed may hold drivers.
func TestClosedFolder(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		must(t, os.Chmod(h.Sockets(), 0o700))
		rep, r := doctor(t, h, policy)
		r.OK(t)
		c := rep.one(t, "driver.folders")
		if c.State != "warning" {
			t.Errorf("%+v", c)
		}
		mend(t, h, c)
		_, r = doctor(t, h, policy)
		r.OK(t)
	})
}
