// Package e2e tests what DESIGN.md promises through the installed programs: the policy program as the policy user, the setuid helper, real containers
// and real plugins.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// The documents that the commands print; a key that is not here fails the test that decodes one.
type (
	volumeDoc struct {
		Driver        string `json:"driver"`
		Name          string `json:"name"`
		Mode          string `json:"mode"`
		ContainerPath string `json:"container_path"`
		Mountpoint    string `json:"mountpoint"`
		Scope         string `json:"scope"`
		Created       bool   `json:"created"`
	}
	prepareDoc struct {
		Schema    string      `json:"schema"`
		Container string      `json:"container"`
		Owner     string      `json:"owner"`
		Volumes   []volumeDoc `json:"volumes"`
		Skipped   []struct {
			Index int    `json:"index"`
			Type  string `json:"type"`
		} `json:"skipped"`
		Mounts []struct {
			Source  string   `json:"source"`
			Target  string   `json:"target"`
			Options []string `json:"options"`
		} `json:"mounts"`
		Warnings []string `json:"warnings"`
	}
	mountDoc struct {
		Driver        string `json:"driver"`
		Name          string `json:"name"`
		Mode          string `json:"mode"`
		ContainerPath string `json:"container_path"`
		Target        string `json:"target"`
		Source        string `json:"source"`
		MountID       uint64 `json:"mount_id"`
		Created       int    `json:"created"`
		Locked        bool   `json:"locked"`
	}
	isolateDoc struct {
		Schema    string     `json:"schema"`
		Container string     `json:"container"`
		PID       int        `json:"pid"`
		Mounts    []mountDoc `json:"mounts"`
		Warnings  []string   `json:"warnings"`
	}
	cleanupDoc struct {
		Schema    string           `json:"schema"`
		Container string           `json:"container"`
		Known     bool             `json:"known"`
		Detached  []map[string]any `json:"detached"`
		Unmounted []struct {
			Driver string `json:"driver"`
			Name   string `json:"name"`
		} `json:"unmounted"`
		Pending []struct {
			Driver  string `json:"driver"`
			Name    string `json:"name"`
			Since   string `json:"since"`
			Error   string `json:"error"`
			Holders []struct {
				PID  int    `json:"pid"`
				Comm string `json:"comm"`
			} `json:"holders"`
		} `json:"pending"`
		Warnings []string `json:"warnings"`
	}
	statusDoc struct {
		Schema     string `json:"schema"`
		Containers []struct {
			Container string            `json:"container"`
			Owner     string            `json:"owner"`
			PID       int               `json:"pid"`
			Alive     bool              `json:"alive"`
			Phase     string            `json:"phase"`
			Labels    map[string]string `json:"labels"`
			Volumes   []map[string]any  `json:"volumes"`
			Mounts    []map[string]any  `json:"mounts"`
			Parent    string            `json:"parent"`
		} `json:"containers"`
		Volumes []struct {
			Driver     string   `json:"driver"`
			Name       string   `json:"name"`
			Mountpoint string   `json:"mountpoint"`
			Containers []string `json:"containers"`
		} `json:"volumes"`
		Warnings []string `json:"warnings"`
	}
	volumeCmdDoc struct {
		Schema     string            `json:"schema"`
		Driver     string            `json:"driver"`
		Name       string            `json:"name"`
		Mountpoint string            `json:"mountpoint"`
		Options    map[string]string `json:"options"`
		Created    any               `json:"created"`
		Warnings   []string          `json:"warnings"`
	}
)

const schema = "bindgate/v1"

func status(t *testing.T, h *harness.Host, args ...string) (d statusDoc) {
	t.Helper()
	h.Policy(append([]string{"status", "-o", "json"}, args...)...).OK(t).JSON(t, &d)
	if d.Schema != schema {
		t.Errorf("schema %q", d.Schema)
	}
	return d
}

func attach(t *testing.T, h *harness.Host, c *harness.Container, args ...string) (d isolateDoc) {
	t.Helper()
	h.Policy(append([]string{"attach", "-o", "json", "--container", c.ID, "--pid", c.PIDString()}, args...)...).OK(t).JSON(t, &d)
	return d
}

func cleanup(t *testing.T, h *harness.Host, id string, args ...string) (d cleanupDoc) {
	t.Helper()
	h.Policy(append([]string{"cleanup", "-o", "json", "--container", id}, args...)...).OK(t).JSON(t, &d)
	return d
}

// wantNothingLeft fails the test unless no record, no ledger entry and no reference is left.
func wantNothingLeft(t *testing.T, h *harness.Host) {
	t.Helper()
	if d := status(t, h); len(d.Containers) > 0 || len(d.Volumes) > 0 {
		t.Errorf("status still shows %+v", d)
	}
	for _, dir := range []string{h.Journal(), h.Ledger()} {
		for _, line := range h.Tree(dir) {
			// The ledger's folder also keeps how many refusals each caller had, for the audit log's rate limit.
			name := filepath.Base(strings.Fields(line)[0])
			if strings.HasSuffix(name, ".rec") && !strings.HasPrefix(name, "refused+") {
				t.Errorf("left: %s", line)
			}
		}
	}
}

func mesosVolume(driver, name, path, mode string) string {
	return fmt.Sprintf(`{"container_path":%q,"mode":%q,"source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":%q,"name":%q}}}`, path, mode, driver, name)
}

func containerInfo(volumes ...string) string {
	return `{"type":"MESOS","volumes":[` + strings.Join(volumes, ",") + `]}`
}

// TestMainJob is the job of the first demo: three containers, two volumes, from Mesos' ContainerInfo.
func TestMainJob(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		before := h.Mountinfo()
		var created volumeCmdDoc
		h.Policy("volume", "create", "-o", "json", "myvolume").OK(t).JSON(t, &created)
		if created.Schema != schema || created.Driver != "local" || created.Name != "myvolume" || created.Created != true {
			t.Errorf("volume create: %+v", created)
		}

		// The first writes.
		job := h.Path("job1.json")
		h.WriteFile(job, containerInfo(mesosVolume("local", "myvolume", "/tmp/myvolume", "RW")), 0o644)
		c1 := h.Container(harness.ContainerOptions{ID: "c1"})
		var p prepareDoc
		h.Policy("prepare", "-o", "json", "--container", "c1", job).OK(t).JSON(t, &p)
		if p.Schema != schema || p.Container != "c1" || p.Owner != "default" || len(p.Volumes) != 1 || len(p.Skipped) != 0 || p.Mounts != nil {
			t.Errorf("prepare: %+v", p)
		} else if v := p.Volumes[0]; v.Driver != "local" || v.Name != "myvolume" || v.Mode != "rw" || v.ContainerPath != "/tmp/myvolume" || v.Created ||
			v.Mountpoint != filepath.Join(h.Volumes(), "myvolume") {
			t.Errorf("prepare: %+v", v)
		}
		var i isolateDoc
		h.Policy("isolate", "-o", "json", "--container", "c1", "--pid", c1.PIDString()).OK(t).JSON(t, &i)
		if i.Schema != schema || i.Container != "c1" || i.PID != c1.Pid() || len(i.Mounts) != 1 {
			t.Errorf("isolate: %+v", i)
		} else if m := i.Mounts[0]; m.Driver != "local" || m.Name != "myvolume" || m.Mode != "rw" || m.ContainerPath != "/tmp/myvolume" ||
			m.Target != "/tmp/myvolume" || m.MountID == 0 || m.Created != 1 || !m.Locked {
			t.Errorf("isolate: %+v", m)
		}
		c1.Sh("echo hello > /tmp/myvolume/myfile").OK(t)
		if m := c1.Mountinfo("/tmp/myvolume"); len(m) != 1 || !strings.Contains(m[0], " rw,nosuid,nodev") {
			t.Errorf("mounted as %q", m)
		}
		// Again for the same process: no change.
		h.Policy("isolate", "-o", "json", "--container", "c1", "--pid", c1.PIDString()).OK(t)
		if m := c1.Mountinfo("/tmp/myvolume"); len(m) != 1 {
			t.Errorf("isolate twice mounted twice: %q", m)
		}

		// The second reads.
		c2 := h.Container(harness.ContainerOptions{ID: "c2"})
		h.PolicyIn(containerInfo(mesosVolume("local", "myvolume", "/tmp/myvolume", "RO")), "prepare", "--container", "c2").OK(t)
		h.Policy("isolate", "--container", "c2", "--pid", c2.PIDString()).OK(t)
		if got := c2.Sh("ls /tmp/myvolume; cat /tmp/myvolume/myfile").OK(t).Stdout; got != "myfile\nhello\n" {
			t.Errorf("the second container sees %q", got)
		}
		if r := c2.Sh("echo no > /tmp/myvolume/myfile"); r.Exit == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("the second container writes: %v", r)
		}

		// The third shares the host's root.
		h.Policy("volume", "create", "second").OK(t)
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "c3"), 0o755)
		existing := h.Mkdir(filepath.Join(h.HostPaths(), "existing"), 0o755)
		c3 := h.SharedRoot(harness.SharedRootOptions{ID: "c3"})
		missing := filepath.Join(h.HostPaths(), "missing")
		h.PolicyIn(containerInfo(mesosVolume("local", "myvolume", "data", "RO"), mesosVolume("local", "second", missing, "RW")),
			"prepare", "--container", "c3", "--directory", sandbox).OK(t)
		if msg := h.Policy("isolate", "-o", "json", "--container", "c3", "--pid", c3.PIDString()).Fails(t, "target_missing"); !strings.Contains(msg, "missing") {
			t.Errorf("target_missing says %q", msg)
		}
		if m := append(c3.Mountinfo(sandbox), c3.Mountinfo(h.HostPaths())...); len(m) > 0 {
			t.Errorf("half of it was attached: %q", m)
		}
		if _, err := os.Lstat(filepath.Join(sandbox, "data")); err == nil {
			t.Error("the directory made for the volume that was undone is still there")
		}
		cleanup(t, h, "c3", "--force")
		h.PolicyIn(containerInfo(mesosVolume("local", "myvolume", "data", "RO"), mesosVolume("local", "second", existing, "RW")),
			"prepare", "--container", "c3", "--directory", sandbox).OK(t)
		h.Policy("isolate", "--container", "c3", "--pid", c3.PIDString()).OK(t)
		if got := c3.Sh("cat " + sandbox + "/data/myfile; echo written > " + existing + "/file").OK(t).Stdout; got != "hello\n" {
			t.Errorf("the third container sees %q", got)
		}
		if entries, _ := os.ReadDir(existing); len(entries) != 0 {
			t.Errorf("the host sees %v", entries)
		}

		d := status(t, h)
		if len(d.Containers) != 3 || len(d.Volumes) != 2 {
			t.Errorf("status: want three containers and two volumes: %+v", d)
		}
		for _, c := range d.Containers {
			if !c.Alive || c.Owner != "default" || c.PID == 0 {
				t.Errorf("status: %+v", c)
			}
		}

		// Nothing of this shows on the host.
		if diff := harness.Diff(before, h.Mountinfo()); diff != "" {
			t.Errorf("the host's mounts changed:\n%s", diff)
		}

		// The containers end; the last cleanup lets the volume go.
		h.Policy("cleanup", "-o", "json", "--container", "c1").Fails(t, "busy")
		c1.Delete()
		if d := cleanup(t, h, "c1"); !d.Known || len(d.Unmounted) != 0 || len(d.Pending) != 0 {
			t.Errorf("cleanup c1: %+v", d)
		}
		c2.Delete()
		if d := cleanup(t, h, "c2"); !d.Known || len(d.Unmounted) != 0 {
			t.Errorf("cleanup c2: %+v", d)
		}
		c3.Delete()
		if d := cleanup(t, h, "c3"); !d.Known || len(d.Unmounted) != 2 {
			t.Errorf("cleanup c3: %+v", d)
		}
		if d := cleanup(t, h, "c3"); d.Known {
			t.Errorf("cleanup of an unknown container: %+v", d)
		}
		wantNothingLeft(t, h)
		if got := h.ReadFile(filepath.Join(h.Volumes(), "myvolume", "myfile")); got != "hello\n" {
			t.Errorf("the volume holds %q", got)
		}
		h.Policy("volume", "rm", "myvolume").OK(t)
		h.Policy("volume", "rm", "second").OK(t)
		if left, _ := os.ReadDir(h.Volumes()); len(left) != 0 {
			t.Errorf("left volumes: %v", left)
		}
	})
}
