package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// nomad calls the plugin as Nomad's client does (client/hostvolumemanager of Nomad 1.10): as root, with one argument and these variables alone.
func nomad(t *testing.T, h *harness.Host, op, id string, parameters map[string]string) harness.Result {
	t.Helper()
	plugin := h.Path("nomad/bindgate-nomad")
	if err := os.Symlink(h.Bindgate(), plugin); os.IsNotExist(err) {
		h.Mkdir(h.Path("nomad"), 0o755)
		os.Symlink(h.Bindgate(), plugin)
	}
	cmd := h.Command(harness.User{}, plugin, op)
	text, _ := json.Marshal(parameters)
	cmd.Env = []string{"DHV_OPERATION=" + op}
	if op != "fingerprint" {
		cmd.Env = append(cmd.Env, "DHV_VOLUMES_DIR="+h.Path("nomad/volumes"), "DHV_PLUGIN_DIR="+h.Path("nomad"), "DHV_NODE_POOL=default", "DHV_NAMESPACE=prod",
			"DHV_VOLUME_NAME=db", "DHV_VOLUME_ID="+id, "DHV_NODE_ID=d87c86d7-d22b-f811-c329-09e263995e86", "DHV_PARAMETERS="+string(text))
	}
	switch op {
	case "create":
		cmd.Env = append(cmd.Env, "DHV_CAPACITY_MIN_BYTES=0", "DHV_CAPACITY_MAX_BYTES=0")
	case "delete":
		cmd.Env = append(cmd.Env, "DHV_CREATED_PATH=/somewhere")
	}
	return h.Do(cmd)
}

// created is the path that create prints.
func created(t *testing.T, r harness.Result) string {
	t.Helper()
	var out struct {
		Path  string
		Bytes int64
	}
	r.OK(t).JSON(t, &out)
	if r.Stderr != "" {
		t.Errorf("it warns: %v", r)
	}
	return out.Path
}

const (
	nomadA = "02eb1d8e-945e-50ee-7640-68b92f622870"
	nomadB = "12eb1d8e-945e-50ee-7640-68b92f622871"
)

func TestNomadLocal(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		if r := nomad(t, h, "fingerprint", "", nil).OK(t); r.Stdout != "{\"version\":\"0.0.0\"}\n" {
			t.Error(r)
		}
		// The rules hold.
		if r := nomad(t, h, "create", nomadA, nil).Exits(t, 77); !strings.Contains(r.Stderr, `owners = ["nomad"]`) {
			t.Error(r)
		}
		h.PolicyTOML(harness.DefaultPolicyTOML + "[[rule]]\ndriver = \"local\"\nowners = [\"nomad\"]\naction = \"allow\"\n")
		path := created(t, nomad(t, h, "create", nomadA, map[string]string{"mode": "0750", "uid": "1000"}))
		if path != h.Volumes()+"/"+nomadA {
			t.Errorf("it is at %s", path)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode != unix.S_IFDIR|0o750 || st.Uid != 1000 {
			t.Errorf("%v, mode %o, uid %d", err, st.Mode, st.Uid)
		}
		h.WriteFile(path+"/data", "kept", 0o644)
		for range 2 { // as Nomad's agent does when it starts
			if again := created(t, nomad(t, h, "create", nomadA, map[string]string{"mode": "0750", "uid": "1000"})); again != path {
				t.Errorf("again it is at %s", again)
			}
		}
		if h.ReadFile(path+"/data") != "kept" {
			t.Error("it holds something else")
		}
		if r := h.Policy("status").OK(t); !strings.Contains(r.Stdout, `"nomad_namespace":"prod","nomad_volume":"db"`) {
			t.Error(r)
		}
		// It is in use, and no restart of an agent's lets it go.
		h.Policy("recover", "--owner", "nomad").OK(t)
		h.Policy("volume", "rm", nomadA, "--owner", "nomad", "-o", "json").Fails(t, wire.Busy)
		for range 2 {
			if r := nomad(t, h, "delete", nomadA, nil).OK(t); r.Stderr != "" {
				t.Error(r)
			}
			if _, err := os.Lstat(path); err == nil {
				t.Error("it is still there")
			}
		}
		if r := h.Policy("status").OK(t); strings.Contains(r.Stdout, nomadA) {
			t.Error(r)
		}
	})
}

func TestNomadPlugin(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("rexray", "-bind")
		with := map[string]string{"driver": "rexray", "name": "db", "size": "5"}
		path := created(t, nomad(t, h, "create", nomadA, with))
		if path != p.Root+"/mnt/db" {
			t.Errorf("it is at %s", path)
		}
		created(t, nomad(t, h, "create", nomadA, with))
		if n := len(p.Calls("Mount", "Unmount", "Create")); n != 2 {
			t.Errorf("calls %v", p.Calls())
		}
		// The plugin was restarted and lost it: asked for again, with the same id.
		p.Kill()
		h.Sh("umount " + path).OK(t)
		p.Start()
		created(t, nomad(t, h, "create", nomadA, with))
		m := p.Calls("Mount")
		if len(m) != 2 || m[0].ID != m[1].ID || len(p.Calls("Unmount")) != 0 || !strings.Contains(strings.Join(h.Mountinfo(), "\n"), path+" ") {
			t.Errorf("calls %v", p.Calls())
		}
		// Two of Nomad's name it, and a container has it.
		created(t, nomad(t, h, "create", nomadB, with))
		c := h.Container(harness.ContainerOptions{ID: "c"})
		h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "--driver", "rexray", "-v", "db:/db").OK(t)
		nomad(t, h, "delete", nomadA, with).OK(t)
		h.Policy("detach", "--container", "c", "--all").OK(t)
		if n := len(p.Calls("Unmount")); n != 0 {
			t.Errorf("unmounted while one is left: %v", p.Calls())
		}
		nomad(t, h, "delete", nomadB, with).OK(t)
		nomad(t, h, "delete", nomadB, with).OK(t)
		if len(p.Calls("Unmount")) != 1 || len(p.Calls("Remove")) != 0 { // it was there by its own name
			t.Errorf("calls %v", p.Calls())
		}
		// Another volume under the same id is no create of it.
		created(t, nomad(t, h, "create", nomadA, with))
		nomad(t, h, "create", nomadA, map[string]string{"driver": "rexray", "name": "other"}).Exits(t, 65)
		nomad(t, h, "delete", nomadA, with).OK(t)
	})
}

func TestNomadRefusals(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("rexray", "-fail", "Mount:db=the array is on fire")
		if r := nomad(t, h, "create", nomadA, map[string]string{"driver": "rexray", "name": "db"}).Exits(t, 69); r.Stdout != "" || !strings.Contains(r.Stderr, "the array is on fire") {
			t.Error(r)
		}
		nomad(t, h, "create", "../x", nil).Exits(t, 65)
		nomad(t, h, "create", "", nil).Exits(t, 65)
		nomad(t, h, "delete", "", nil).Exits(t, 65)
		nomad(t, h, "create", nomadA, map[string]string{"explicit_create": "maybe"}).Exits(t, 65)
		if r := nomad(t, h, "create", nomadA, map[string]string{"explicit_create": "true"}).Exits(t, 69); !strings.Contains(r.Stderr, "does not exist") {
			t.Error(r)
		}
		nomad(t, h, "create", nomadA, map[string]string{"colour": "blue"}).Exits(t, 65) // the local driver has no such option
		nomad(t, h, "resize", nomadA, nil).Exits(t, 64)
		if n := len(p.Calls("Unmount")); n != 0 {
			t.Errorf("calls %v", p.Calls())
		}
		if r := h.Policy("status").OK(t); strings.Contains(r.Stdout, nomadA) {
			t.Errorf("something is left: %v", r)
		}
	})
}
