package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// The policy process that a plugin, or a job, has taken over: it has no capability, not even those that it was started with, and where the helper is reached
// over a socket no_new_privs, which comes with the files that Landlock leaves it (policy/cli has the test of what these are). What it needs still works.
func TestPolicyProcessIsConfined(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		socket := serveHelper(t, h)
		policy := harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
		for _, transport := range []string{"exec", "socket"} {
			nnp := map[string]string{"exec": "0", "socket": "1"}[transport]
			h.PolicyTOML(harness.DefaultPolicyTOML + "[helper]\ntransport = \"" + transport + "\"\nsocket = \"" + socket + "\"\n[[rule]]\naction = \"allow\"\n")
			fifo := h.Path("tmp", "fifo-"+transport)
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			p := h.Plugin("slow-"+transport, "-hold", "Mount:v="+fifo)
			n := 0
			for _, user := range []harness.User{policy, {}} { // root, whose capabilities go with the uid
				cmd := h.Command(user, h.Bindgate(), "volume", "mount", "--driver", p.Name, "v")
				cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}
				stderr := &strings.Builder{}
				cmd.Stderr = stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				n++
				awaitCall(t, h, p, "Mount", n)
				status := threads(t, cmd.Process.Pid)
				h.WriteFile(fifo, "go on", 0o600)
				for _, line := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000",
					"NoNewPrivs:\t" + nnp, fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", harness.PolicyUID)} {
					if n := strings.Count(status, line+"\n"); n != strings.Count(status, "Name:\t") {
						t.Errorf("%s as %d: only %d threads have %q:\n%s", transport, user.UID, n, line, status)
					}
				}
				if err := cmd.Wait(); err != nil {
					t.Errorf("%s as %d: %v\n%s", transport, user.UID, err, stderr)
				}
				h.Policy("volume", "unmount", "--driver", p.Name, "v").OK(t)
				h.Policy("volume", "create", "made-"+transport).OK(t) // it still works, helper included
				h.Policy("volume", "rm", "made-"+transport).OK(t)
			}
		}
		// What it needs is open to it: a job's file, a list of containers, drivers' folders.
		h.WriteFile(h.Path("tmp/job"), `[{"container_path":"/v","mode":"RW","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":"local","name":"v"}}}]`, 0o644)
		h.WriteFile(h.Path("tmp/known"), "c", 0o644)
		h.Policy("prepare", "--container", "c", h.Path("tmp/job")).OK(t)
		if r := h.Policy("volume", "ls").OK(t); !strings.Contains(r.Stdout, `"name":"v"`) || strings.Contains(r.Stdout, "warnings") {
			t.Errorf("ls: %v", r)
		}
		if r := h.Policy("recover", "--known-file", h.Path("tmp/known")).OK(t); !strings.Contains(r.Stdout, `"kept":["c"]`) {
			t.Errorf("recover: %v", r)
		}
		h.Policy("cleanup", "--container", "c").OK(t)
		// Of a watch, its metrics.
		w := watch(t, h, "default")
		c := h.Container(harness.ContainerOptions{ID: "d"})
		h.Policy("attach", "--container", "d", "--pid", c.PIDString(), "-v", "v:/v").OK(t)
		w.awaitMetric("bindgate_containers_watched", 1)
		c.Kill()
		w.awaitMetric("bindgate_containers_watched", 0)
		w.stop()
	})
}

// threads returns the status of each thread of a process.
func threads(t *testing.T, pid int) (all string) {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("the process has %d threads: %v", len(threads), err)
	}
	for _, e := range threads {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, e.Name()))
		if err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		all += string(data)
	}
	return all
}

// serveHelper does what systemd does for a socket unit with Accept=yes, until the test ends, and returns the socket's path.
func serveHelper(t *testing.T, h *harness.Host) string {
	t.Helper()
	path := h.Path("run/bindgate/helper.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		err = errors.Join(os.Chown(path, 0, harness.PolicyGID), os.Chmod(path, 0o660))
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan bool)
	go func() {
		defer close(ended)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			f, err := c.File()
			c.Close()
			if err != nil {
				return
			}
			cmd := exec.Command(h.HelperPath())
			cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = []string{"LISTEN_FDS=1"}, f, f, os.Stderr
			cmd.Run()
			f.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return path
}
