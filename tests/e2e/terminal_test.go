package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// onTerminal runs the installed bindgate with a terminal as its stdout, and returns what it wrote there.
func onTerminal(t *testing.T, h *harness.Host, columns uint16, env []string, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: 24}); err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), args...)
	cmd.Env = env
	cmd.Stdout = slave
	out := make(chan string)
	go func() {
		var all strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			all.Write(buf[:n])
			if err != nil { // EIO once nobody has the other end
				out <- all.String()
				return
			}
		}
	}()
	r := h.Do(cmd)
	slave.Close()
	r.OK(t)
	return strings.ReplaceAll(<-out, "\r\n", "\n")
}

func TestOutputOnATerminal(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		c := h.Container(harness.ContainerOptions{ID: "c"})
		volume := strings.Repeat("long-name-", 10) + "end"
		h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "-v", volume+":/data").OK(t)
		for _, columns := range []uint16{70, 200} {
			out := onTerminal(t, h, columns, nil, "status")
			if !strings.Contains(out, "\x1b[32misolated") || !strings.Contains(out, "end") {
				t.Errorf("%q", out)
			}
			plain := onTerminal(t, h, columns, []string{"NO_COLOR=1"}, "status")
			if strings.Contains(plain, "\x1b") || strings.Contains(plain, volume+":/data") != (columns == 200) {
				t.Errorf("%q", plain)
			}
			for line := range strings.Lines(plain) {
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > int(columns) {
					t.Errorf("%d columns of %d: %q", n, columns, line)
				}
			}
		}
		// A pipe gets JSON, or if it asks for it a table without colors in which nothing is cut.
		if r := h.Policy("status").OK(t); !strings.HasPrefix(r.Stdout, `{"schema"`) {
			t.Error(r)
		}
		if r := h.Policy("status", "-o", "table").OK(t); strings.Contains(r.Stdout, "\x1b") || !strings.Contains(r.Stdout, volume+":/data") {
			t.Error(r)
		}
		if out := onTerminal(t, h, 80, nil, "usage", "--container", "c"); !strings.Contains(out, " %") || !strings.Contains(out, "INODES USED") {
			t.Errorf("%q", out)
		}
		h.Policy("detach", "--container", "c", "--all").OK(t)
	})
}
