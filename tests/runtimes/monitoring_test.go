//go:build runtimes

package runtimes

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// The example alerts are what Prometheus takes, and fire when they should; the metrics are in its format.
func TestMonitoring(t *testing.T) {
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(t *testing.T, h *harness.Host) {
		for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
			cmd := exec.Command("promtool", args...)
			cmd.Dir = filepath.Join(checkout, "examples/monitoring")
			if r := h.Do(cmd).OK(t); !strings.Contains(r.Stdout+r.Stderr, "SUCCESS") {
				t.Error(r)
			}
		}
		file := h.Path("metrics/m.prom")
		h.Sh("install -d -o " + harness.PolicyUser + " " + filepath.Dir(file)).OK(t)
		notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/run/notify", Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer notify.Close()
		if err := os.Chmod("/run/notify", 0o666); err != nil {
			t.Fatal(err)
		}
		watch := h.Command(harness.User{}, h.Bindgate(), "watch", "--metrics", file)
		watch.Env = []string{"NOTIFY_SOCKET=/run/notify"}
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 4096); ; {
			n, err := notify.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(buf[:n]), "READY=1") {
				break
			}
		}
		watch.Process.Signal(unix.SIGTERM)
		if err := watch.Wait(); err != nil {
			t.Fatal(err)
		}
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = strings.NewReader(h.ReadFile(file))
		h.Do(check).OK(t)
	})
}
