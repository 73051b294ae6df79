//go:build runtimes

package runtimes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// TestRunningContainers attaches to and detaches from containers that three runtimes run.
func TestRunningContainers(t *testing.T) {
	run(t, func(t *testing.T, h *harness.Host) {
		t.Run("docker", func(t *testing.T) { h := h.For(t); running(t, h, docker(t, h)) })
		t.Run("podman", func(t *testing.T) { h := h.For(t); running(t, h, podman(t, h, "crun")) })
	})
}

func running(t *testing.T, h *harness.Host, e *engine) {
	e.run("--name=one")
	e.run("--name=two")
	plug, files := h.Plugin("plug-"+e.name), h.Plugin("files-"+e.name, "-file")
	h.Policy("volume", "create", "local").OK(t)
	h.WriteFile(filepath.Join(h.Volumes(), "local", "read"), "me\n", 0o644)
	h.Mkdir(filepath.Join(plug.Root, "data/v/sub/below"), 0o777)
	before := h.Mountinfo()

	to := []string{"--container", "one", "--runtime", e.name, "--name", "one"}
	d := decode[attached](t, e.bindgate(append([]string{"attach", "-o", "json"}, append(to, "--mount", "driver=plug-"+e.name+",name=v,target=/made/here,subpath=sub",
		"--mount", "driver=files-"+e.name+",name=f,target=/made/file", "-v", "local:/made/ro:ro")...)...))
	if len(d.Mounts) != 3 || e.pid("one") == "0" || len(d.Warnings) != 0 {
		t.Errorf("attach: %+v", d)
	}
	e.sh("one", "test -d /made/here/below && touch /made/here/new && echo text > /made/file && grep me /made/ro/read && ! touch /made/ro/x").OK(t)
	if got := h.ReadFile(filepath.Join(files.Root, "data/f")); got != "text\n" {
		t.Errorf("the file holds %q", got)
	}
	if _, err := os.Stat(filepath.Join(plug.Root, "data/v/sub/new")); err != nil {
		t.Error(err)
	}
	if r := e.sh("two", "ls -d /made"); r.Exit == 0 {
		t.Error("another container sees it")
	}
	if diff := harness.Diff(before, h.Mountinfo()); diff != "" {
		t.Errorf("the host sees it:\n%s", diff)
	}
	// Another container of the same volume, attached and detached, changes nothing for the first.
	e.bindgate("attach", "--container", "two", "--runtime", e.name, "--name", "two", "-v", "local:/x").OK(t)
	e.bindgate("detach", "--container", "two", "--all").OK(t)
	e.sh("one", "cat /made/ro/read").OK(t)

	// In use: it says by whom.
	e.do("exec", "--detach", "--workdir=/made/here", "one", "sleep", "1234").OK(t)
	msg := e.bindgate("detach", "-o", "json", "--container", "one", "--path", "/made/here").Fails(t, wire.Busy)
	if !strings.Contains(msg, "sleep") {
		t.Errorf("busy says %q", msg)
	}
	e.bindgate("detach", "--container", "one", "--path", "/made/here", "--lazy").OK(t)
	e.bindgate("detach", "--container", "one", "--driver", "local", "--name", "local").OK(t)
	e.bindgate("detach", "--container", "one", "--all").OK(t)
	e.sh("one", "! grep /made /proc/self/mountinfo && ! ls -d /made/file").OK(t)
	wantNothingLeft(t, h)
	if m, u := len(plug.Calls("Mount")), len(plug.Calls("Unmount")); m != 1 || u != 1 {
		t.Errorf("%d mounts and %d unmounts", m, u)
	}

	for name, x := range map[string]struct {
		args []string
		code wire.Code
	}{
		"a name that is not known":    {[]string{"--runtime", e.name, "--name", "none"}, wire.NotFound},
		"one that does not run":       {[]string{"--runtime", e.name, "--name", "stopped"}, wire.NotFound},
		"no name":                     {[]string{"--runtime", e.name, "--name", "--all"}, wire.Usage},
		"a path":                      {[]string{"--runtime", e.name, "--name", "../images"}, wire.Usage},
		"another runtime":             {[]string{"--runtime", "rkt", "--name", "one"}, wire.Usage},
		"a runtime that is not there": {[]string{"--runtime", "runc", "--name", "one"}, wire.NotFound},
	} {
		if name == "one that does not run" {
			e.do("create", "--name=stopped", "busybox", "true").OK(t)
		}
		t.Run(name, func(t *testing.T) {
			e.bindgate(append([]string{"attach", "-o", "json", "--container", "x", "-v", "v:/v"}, x.args...)...).Fails(t, x.code)
		})
	}
	// The engine is asked with the caller's rights, which the policy user has none of.
	cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), append([]string{"attach", "-o", "json", "-v", "local:/v"}, to...)...)
	cmd.Env = e.env
	if r := h.Do(cmd); r.Exit != wire.System.Exit() && r.Exit != wire.NotFound.Exit() {
		t.Errorf("the policy user asks %s: %v", e.name, r)
	}
	e.remove("one", "two", "stopped")
}

// TestDockerContainerizerJob is a job of Mesos' Docker containerizer: its container runs already, named after the task, and its volumes are in the parameters that docker run would have got.
func TestDockerContainerizerJob(t *testing.T) {
	run(t, func(t *testing.T, h *harness.Host) {
		e, plug := docker(t, h), h.Plugin("plug")
		h.Mkdir("/run/docker/plugins", 0o755)
		if err := os.Symlink(plug.Socket, "/run/docker/plugins/plug.sock"); err != nil {
			t.Fatal(err)
		}
		const id = "5a9dd6ec-5a1a-4a17-93bb-8cf5fc9ea4b9-S0.7b1f6a48"
		task := e.run("--name=mesos-" + id)
		engines := e.run("--name=beside", "--volume-driver=plug", "--volume=shared:/data")
		job := `{"type":"DOCKER","docker":{"image":"busybox","parameters":[{"key":"volume-driver","value":"plug"},{"key":"volume","value":"shared:/data:ro"},{"key":"volume","value":"own:/own"}]}}`
		d := decode[attached](t, e.bindgateIn(job, "attach", "-o", "json", "--container", "task", "--runtime", "docker", "--name", id))
		if len(d.Mounts) != 2 || len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "plug/shared") || !strings.Contains(d.Warnings[0], "beside") {
			t.Errorf("attach: %+v", d)
		}
		e.sh(task, "touch /own/file && ! touch /data/file").OK(t)
		e.sh(engines, "touch /data/file").OK(t)
		e.sh(task, "test -e /data/file").OK(t)
		// By its whole id, and by its name, it is the same container.
		for _, name := range []string{task, "mesos-" + id} {
			if r := e.bindgate("attach", "-o", "json", "--container", "task", "--runtime", "docker", "--name", name, "--driver", "plug", "-v", "own:/again"); r.Exit != wire.DuplicateVolume.Exit() {
				t.Errorf("%s: %v", name, r)
			}
		}
		// The plugin counts ids, so that each of the two has its own.
		e.remove(task)
		h.Policy("recover").OK(t)
		wantNothingLeft(t, h)
		e.sh(engines, "test -e /data/file").OK(t)
		e.remove(engines)
		if m, u := len(plug.Calls("Mount")), len(plug.Calls("Unmount")); m != 3 || u != 3 {
			t.Errorf("%d mounts, %d unmounts: %v", m, u, plug.Calls())
		}
	})
}

// TestRuncByName finds a container of runc's default folder.
func TestRuncByName(t *testing.T) {
	run(t, func(t *testing.T, h *harness.Host) {
		c := h.Container(harness.ContainerOptions{ID: "c"})
		if err := os.Symlink(h.Path("runc"), "/run/runc"); err != nil {
			t.Fatal(err)
		}
		e := &engine{t: t, h: h, name: "runc", env: []string{path}}
		d := decode[attached](t, e.bindgate("attach", "-o", "json", "--container", "c", "--runtime", "runc", "--name", "c", "-v", "v:/v"))
		if d.PID != c.Pid() {
			t.Errorf("attached to %d, want %d", d.PID, c.Pid())
		}
		c.Sh("touch /v/file").OK(t)
		h.Policy("detach", "--container", "c", "--all").OK(t)
		wantNothingLeft(t, h)
	})
}
