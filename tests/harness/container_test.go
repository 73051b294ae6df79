package harness_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestContainer(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		sandbox := h.Mkdir(filepath.Join(h.Path("sandboxes"), "s1"), 0o755)
		for _, o := range []harness.ContainerOptions{
			{ID: "plain"},
			{ID: "privileged", Privileged: true},
			{ID: "userns", Mapping: &harness.Mapping{HostID: 200000, Size: 65536}},
			{ID: "sandbox", Sandbox: sandbox},
		} {
			c := h.Container(o)
			c.Sh("test $(id -u) = 0 && echo hello > /root/file && cat /root/file").OK(t)
			if got := h.ReadFile(filepath.Join(c.Root, "root/file")); got != "hello\n" {
				t.Errorf("%s: the host sees %q", o.ID, got)
			}
			mine, _ := os.Readlink("/proc/self/ns/mnt")
			theirs, err := os.Readlink(filepath.Join("/proc", c.PIDString(), "ns/mnt"))
			if mine == theirs || err != nil {
				t.Errorf("%s: mount namespaces %s and %s (%v)", o.ID, mine, theirs, err)
			}
			if o.Sandbox != "" {
				c.Sh("touch /mnt/mesos/sandbox/there").OK(t)
				if _, err := os.Stat(filepath.Join(sandbox, "there")); err != nil {
					t.Error(err)
				}
			}
			cgroups := h.ReadFile(filepath.Join("/proc", c.PIDString(), "cgroup"))
			matched := 0
			for line := range strings.Lines(cgroups) {
				path := strings.SplitN(strings.TrimSpace(line), ":", 3)[2]
				if path == c.Cgroup {
					matched++
				} else if path != "/" {
					t.Errorf("%s: %s is not in %s", o.ID, line, c.Cgroup)
				}
			}
			if matched == 0 || !strings.HasPrefix(c.Cgroup, harness.CgroupRule+"/") {
				t.Errorf("%s: no cgroup of %s is %s", o.ID, cgroups, c.Cgroup)
			}
			c.Kill()
			if stat, err := os.ReadFile(filepath.Join("/proc", c.PIDString(), "stat")); err == nil && !strings.Contains(string(stat), ") Z") {
				t.Errorf("%s: still runs: %s", o.ID, stat)
			}
			c.Delete()
			if _, err := os.Stat(c.Bundle); err == nil {
				t.Errorf("%s: the bundle is still there", o.ID)
			}
		}
	}, harness.Bare())
}

func TestContainerCreatedThenStarted(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		c := h.Container(harness.ContainerOptions{ID: "two-steps", CreateOnly: true})
		if state := h.Do(c.Runc("state", c.ID)).OK(t).Stdout; !strings.Contains(state, `"status": "created"`) {
			t.Errorf("state %s", state)
		}
		c.Start()
		c.Sh("true").OK(t)
	}, harness.Bare())
}

func TestSharedRoot(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		c := h.SharedRoot(harness.SharedRootOptions{ID: "shared"})
		h.WriteFile(h.Path("file"), "of the host", 0o644)
		if got := c.Exec("cat", h.Path("file")).OK(t).Stdout; got != "of the host" {
			t.Errorf("got %q", got)
		}
		var mine, theirs unix.Stat_t
		if err := unix.Stat("/proc/self/ns/mnt", &mine); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat("/proc/"+c.PIDString()+"/ns/mnt", &theirs); err != nil || mine.Ino == theirs.Ino {
			t.Errorf("it has the host's mount namespace (%v)", err)
		}
		matched := 0
		for line := range strings.Lines(h.ReadFile("/proc/" + c.PIDString() + "/cgroup")) {
			path := strings.SplitN(strings.TrimSpace(line), ":", 3)[2]
			if path == c.Cgroup {
				matched++
			} else if path != "/" {
				t.Errorf("%q is not in %s", line, c.Cgroup)
			}
		}
		if matched == 0 {
			t.Errorf("it is in no cgroup %s", c.Cgroup)
		}
	}, harness.Bare())
}

func TestPlugin(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		for _, d := range []string{h.Sources(), h.Sockets()} {
			h.Mkdir(d, 0o755)
		}
		p := h.Plugin("test")
		if info, err := os.Stat(p.Socket); err != nil || info.Mode()&os.ModeSocket == 0 {
			t.Errorf("%v, %v", info, err)
		}
		p.Kill()
		if _, err := os.Lstat(p.Socket); err != nil {
			t.Errorf("a plugin that was killed leaves its socket: %v", err)
		}
		p.Start()
		p.Stop()
	}, harness.Bare())
}
