package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// Bad input: one clear line, the right code, nothing half done.
func TestBadInput(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		dead := h.SharedRoot(harness.SharedRootOptions{ID: "dead"})
		dead.Delete()
		h.WriteFile(h.Path("malformed.json"), `{"type":"MESOS","volumes":[{`, 0o644)
		v := mesosVolume("local", "v", "/a", "RW")
		for _, x := range []struct {
			name  string
			code  wire.Code
			stdin string
			args  []string
			word  string // in the message
		}{
			{"no such file", wire.NoInput, "", []string{"prepare", "--container", "x", h.Path("none.json")}, "none.json"},
			{"malformed file", wire.InvalidRequest, "", []string{"prepare", "--container", "x", h.Path("malformed.json")}, ""},
			{"malformed stdin", wire.InvalidRequest, "{", []string{"prepare", "--container", "x"}, ""},
			{"misspelt mode", wire.InvalidRequest, containerInfo(mesosVolume("local", "v", "/a", "RWX")), []string{"prepare", "--container", "x", "--format", "mesos"}, "RWX"},
			{"the same volume twice", wire.DuplicateVolume, containerInfo(v, mesosVolume("local", "v", "/b", "RO")), []string{"prepare", "--container", "x"}, "v"},
			{"two volumes at one path", wire.InvalidRequest, containerInfo(v, mesosVolume("local", "w", "/a", "RO")), []string{"prepare", "--container", "x"}, "/a"},
			{"bad id", wire.InvalidRequest, containerInfo(v), []string{"prepare", "--container", "../x"}, "../x"},
			{"bad owner", wire.InvalidRequest, containerInfo(v), []string{"prepare", "--container", "x", "--owner", "a/b"}, "a/b"},
			{"never prepared", wire.NotFound, "", []string{"isolate", "--container", "x", "--pid", c.PIDString()}, "x"},
			{"a pid that is gone", wire.NamespaceGone, "", []string{"attach", "--container", "x", "--pid", dead.PIDString(), "-v", "v:/a"}, dead.PIDString()},
			{"a bad name of a local volume", wire.InvalidRequest, "", []string{"volume", "create", "a/b"}, ""},
			{"rm of no volume", wire.VolumeNotFound, "", []string{"volume", "rm", "none"}, "none"},
			{"no container", wire.Usage, "", []string{"prepare"}, ""},
			{"no such command", wire.Usage, "", []string{"frobnicate"}, "frobnicate"},
			{"no such flag", wire.Usage, "", []string{"status", "--frobnicate"}, "frobnicate"},
			{"detach of what is not attached", wire.NotFound, "", []string{"detach", "--container", "x", "--path", "/a"}, ""},
		} {
			t.Run(x.name, func(t *testing.T) {
				h := h.For(t)
				r := h.PolicyIn(x.stdin, append(x.args, "-o", "json")...)
				if msg := r.Fails(t, x.code); !strings.Contains(msg, x.word) {
					t.Errorf("the message does not say %q: %s", x.word, msg)
				}
				if r.Stdout != "" {
					t.Errorf("stdout: %q", r.Stdout)
				}
				wantNothingLeft(t, h)
				// For people: one line that begins with the program's name.
				r = h.PolicyIn(x.stdin, append(x.args, "-o", "table")...).Exits(t, x.code.Exit())
				if lines := strings.Split(strings.TrimSpace(r.Stderr), "\n"); !strings.HasPrefix(lines[0], "bindgate: cannot ") ||
					len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[1], "hint: ") {
					t.Errorf("stderr: %s", r.Stderr)
				}
			})
		}
	})
}

// Every wrong job of tests/formats, and some that only a driver's rules make wrong: one line and a hint at most, and nothing is called, mounted or written,
// although every volume of it is allowed, and a driver is there.
func TestRefusedJobDoesNothing(t *testing.T) {
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(checkout, "tests/formats/bad-*"))
	if err != nil || len(files) < 200 {
		t.Fatalf("%d vectors: %v", len(files), err)
	}
	jobs := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		jobs[filepath.Base(file)] = string(data)
	}
	good := mesosVolume("rexray", "good", "/good", "RW")
	local := func(name, key, value string) string {
		return strings.Replace(mesosVolume("local", name, "/a", "RW"), `"name":"`+name+`"`, `"name":"`+name+`","driver_options":{"parameter":[{"key":"`+key+`","value":"`+value+`"}]}`, 1)
	}
	for _, bad := range []string{mesosVolume("local", "../etc", "/a", "RW"), local("v", "mode", "7777"), local("v", "size", "5"), local("v", "uid", "-1")} {
		jobs["bad-mesos-local "+bad] = containerInfo(good, bad)
	}
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("rexray")
		h.Policy("status").OK(t) // makes its folders
		before := h.Tree(h.Journal())
		for name, job := range jobs {
			format := strings.Split(name, "-")[1]
			args := []string{"prepare", "--container", "c", "--directory", "/tmp", "-o", "table"}
			if format != "any" {
				args = append(args, "--format", format)
			}
			r := h.PolicyIn(job, args...)
			first, hint, _ := strings.Cut(strings.TrimSuffix(r.Stderr, "\n"), "\n")
			if r.Exit != 65 || r.Stdout != "" || !strings.HasPrefix(first, "bindgate: cannot ") || hint != "" && (!strings.HasPrefix(hint, "hint: ") || strings.Contains(hint, "\n")) {
				t.Errorf("%s: %v", name, r)
			}
			if strings.HasPrefix(name, "bad-mesos-local") && !strings.Contains(first, "cannot use volumes[1]") {
				t.Errorf("%s: the field is not named: %s", name, first)
			}
		}
		if calls := p.Calls(); len(calls) > 0 {
			t.Errorf("the driver was asked %v", calls)
		}
		if d := harness.Diff(before, h.Tree(h.Journal())); d != "" {
			t.Errorf("the journal has changed:\n%s", d)
		}
		wantNothingLeft(t, h)
	})
}

func TestRules(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		c := h.Container(harness.ContainerOptions{ID: "team-a-1"})
		try := func(args ...string) harness.Result {
			return h.Policy(append([]string{"attach", "-o", "json", "--container", c.ID, "--pid", c.PIDString()}, args...)...)
		}
		p := h.Plugin("asked")
		r := try("--mount", "driver=asked,name=v,target=/data")
		r.Fails(t, wire.Denied)
		if !strings.Contains(r.Stderr, "[[rule]]") {
			t.Errorf("the rule that would allow it is not shown: %s", r.Stderr)
		}
		if calls := p.Calls(); len(calls) != 0 {
			t.Errorf("a driver was asked for a volume that is denied: %v", calls)
		}
		h.PolicyTOML(harness.DefaultPolicyTOML + `
[[rule]]
volume = "secret"
action = "deny"
[[rule]]
driver = "local"
containers = ["team-a-*"]
modes = ["ro"]
action = "allow"
`)
		try("-v", "v:/data:rw").Fails(t, wire.Denied)
		try("-v", "secret:/data:ro").Fails(t, wire.Denied)
		try("-v", "v:/data:ro").OK(t)
		wantMounted(t, c, "/data", 1)
	})
}

func wantMounted(t *testing.T, c *harness.Container, path string, n int) {
	t.Helper()
	if m := c.Mountinfo(path); len(m) != n {
		t.Errorf("%s: %d mounts, want %d: %q", path, len(m), n, m)
	}
}

func TestCaller(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		// Root is given up, not used.
		h.PolicyAs(harness.User{}, "", "volume", "create", "v").OK(t)
		for _, line := range h.Tree(h.Journal()) {
			if f := strings.Fields(line); f[2] != "64801:64801" {
				t.Errorf("not the policy user's: %s", line)
			}
		}
		h.PolicyAs(harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID}, "", "status", "-o", "json").Fails(t, wire.Denied)

		// Who is not in the group cannot start the helper; who is in it and is no caller is refused by it.
		request := boundary.Encode(&wire.Request{Op: wire.OpListVolumes})
		cmd := h.Command(harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID}, h.HelperPath())
		if err := cmd.Run(); err == nil || !os.IsPermission(err) {
			t.Errorf("an outsider starts the helper: %v", err)
		}
		r := h.HelperRaw(harness.User{UID: harness.OutsiderUID, GID: harness.PolicyGID}, request)
		if reply, err := boundary.DecodeReply([]byte(r.Stdout)); err != nil || reply.Err == nil || reply.Err.Code != wire.Denied || r.Exit != 77 {
			t.Errorf("one who is no caller: %v", r)
		}
		if reply := h.Helper(&wire.Request{Op: wire.OpListVolumes}); reply.Err != nil || len(reply.Blocks) != 1 || reply.Blocks[0].Get("name") != "v" {
			t.Errorf("the policy user: %+v", reply)
		}
	})
}

func TestHelperTakesNoArgumentAndNoEnvironment(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		user := harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
		cmd := h.Command(user, h.HelperPath(), "--help")
		h.Do(cmd).Exits(t, 64)
		cmd = h.Command(user, h.HelperPath())
		cmd.Env = []string{"A=b"}
		h.Do(cmd).Exits(t, 64)
		h.HelperRaw(user, nil).Exits(t, 65)
		h.HelperRaw(user, []byte("bindgate=1\x00op=frobnicate\x00end=\x00")).Exits(t, 65)
	})
}

func TestConfigurationMustBeRoots(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		file := h.Path("etc/bindgate/helper.toml")
		good := h.ReadFile(file)
		request := &wire.Request{Op: wire.OpListVolumes}
		refused := func(why string) {
			t.Helper()
			if reply := h.Helper(request); reply.Err == nil || reply.Err.Code != wire.Config {
				t.Errorf("%s: %+v", why, reply)
			}
			h.HelperTOML(good)
		}
		h.HelperTOML(good + "\n[frobnicate]\nx = 1\n")
		refused("unknown key")
		if err := os.Chmod(file, 0o664); err != nil {
			t.Fatal(err)
		}
		refused("group-writable")
		if err := os.Chown(file, harness.PolicyUID, 0); err != nil {
			t.Fatal(err)
		}
		refused("not root's")
		if err := os.Chown(file, 0, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(file), 0o777); err != nil {
			t.Fatal(err)
		}
		refused("in a folder that others can write to")
		if err := os.Chmod(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if reply := h.Helper(request); reply.Err != nil {
			t.Errorf("as it should be: %+v", reply)
		}
	})
}

func TestAuditLog(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		attach(t, h, c, "-v", "v:/data")
		h.Policy("attach", "--container", "c2", "--pid", c.PIDString(), "-v", "w:/etc").Exits(t, 77)
		log := h.ReadFile(h.AuditLog())
		if n := strings.Count(log, "\n"); n < 3 {
			t.Errorf("%d lines, want intent, outcome and refusal:\n%s", n, log)
		}
		for line := range strings.Lines(log) {
			if !json.Valid([]byte(line)) {
				t.Errorf("not JSON: %s", line)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(h.AuditLog(), &st); err != nil || st.Mode&0o7777 != 0o640 || st.Uid != 0 {
			t.Errorf("%v %04o %d", err, st.Mode&0o7777, st.Uid)
		}
	})
}

func TestCommands(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})

		var v volumeCmdDoc
		h.Policy("volume", "create", "v", "--opt", "uid=1000", "--opt", "gid=1001", "--opt", "mode=0750", "-o", "json").OK(t).JSON(t, &v)
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(h.Volumes(), "v"), &st); err != nil || st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o7777 != 0o750 {
			t.Errorf("%v %d:%d %04o", err, st.Uid, st.Gid, st.Mode&0o7777)
		}
		v = volumeCmdDoc{}
		h.Policy("volume", "path", "v", "-o", "json").OK(t).JSON(t, &v)
		if v.Mountpoint != filepath.Join(h.Volumes(), "v") {
			t.Errorf("path: %+v", v)
		}
		v = volumeCmdDoc{}
		h.Policy("volume", "inspect", "v", "-o", "json").OK(t).JSON(t, &v)
		if v.Name != "v" || v.Driver != "local" {
			t.Errorf("inspect: %+v", v)
		}
		var ls struct {
			Schema   string           `json:"schema"`
			Volumes  []map[string]any `json:"volumes"`
			Warnings []string         `json:"warnings"`
		}
		h.Policy("volume", "ls", "-o", "json").OK(t).JSON(t, &ls)
		if len(ls.Volumes) != 1 || ls.Volumes[0]["name"] != "v" {
			t.Errorf("ls: %+v", ls)
		}

		// No volumes: nothing to do.
		var p prepareDoc
		h.PolicyIn(containerInfo(), "prepare", "--container", "empty", "-o", "json").OK(t).JSON(t, &p)
		if p.Volumes == nil || len(p.Volumes) != 0 {
			t.Errorf("prepare of nothing: %+v", p)
		}
		h.Policy("cleanup", "--container", "empty").OK(t)

		// The agent makes the mounts itself.
		p = prepareDoc{}
		h.Policy("prepare", "--container", "b", "--mounts-by", "agent", "-v", "v:/data:ro", "-o", "json").OK(t).JSON(t, &p)
		if len(p.Mounts) != 1 || p.Mounts[0].Source != filepath.Join(h.Volumes(), "v") || p.Mounts[0].Target != "/data" || len(p.Mounts[0].Options) == 0 {
			t.Errorf("prepare --mounts-by agent: %+v", p)
		}
		h.Policy("bind", "--container", "b", "--pid", c.PIDString()).OK(t)
		if d := status(t, h, "--container", "b"); len(d.Containers) != 1 || !d.Containers[0].Alive || d.Containers[0].PID != c.Pid() {
			t.Errorf("status of the bound one: %+v", d)
		}
		h.Policy("volume", "rm", "v", "-o", "json").Fails(t, wire.Busy)

		// Owners do not see each other's containers of one id.
		attach(t, h, c, "--owner", "one", "-v", "o1:/one")
		attach(t, h, c, "--owner", "two", "-v", "o2:/two")
		h.Policy("detach", "--owner", "one", "--container", "c", "--path", "/one").OK(t)
		wantMounted(t, c, "/one", 0)
		wantMounted(t, c, "/two", 1)

		if out := h.Policy("--version").OK(t).Stdout; !strings.Contains(out, "test") {
			t.Errorf("--version: %q", out)
		}
		for _, shell := range []string{"bash", "zsh", "fish"} {
			if out := h.Policy("completion", shell).OK(t).Stdout; !strings.Contains(out, "bindgate") {
				t.Errorf("completion %s: %q", shell, out)
			}
		}
	})
}

func TestDetachLeavesWhatIsInUse(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c", Privileged: true})
		attach(t, h, c, "-v", "v:/data")
		c.Sh("mount -t tmpfs tmpfs /data").OK(t)
		h.Policy("detach", "--container", "c", "--path", "/data", "-o", "json").Fails(t, wire.Busy)
		wantMounted(t, c, "/data", 2)
		c.Sh("umount /data").OK(t)
		h.Policy("detach", "--container", "c", "--path", "/data").OK(t)
		wantMounted(t, c, "/data", 0)
	})
}

// Under load the helper's runtime needs a thread more than it started with: its system call filter has to let it have one.
func TestManyRequestsAtOnce(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Policy("volume", "create", "v").OK(t)
		request := boundary.Encode(&wire.Request{Op: wire.OpListVolumes})
		results := make(chan harness.Result)
		const n = 200
		for range n {
			go func() { results <- h.HelperRaw(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, request) }()
		}
		for range n {
			r := <-results
			if reply, err := boundary.DecodeReply([]byte(r.Stdout)); err != nil || reply.Err != nil || len(reply.Blocks) != 1 || r.Exit != 0 {
				t.Errorf("%v", r)
			}
		}
	})
}
