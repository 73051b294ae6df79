package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bindgate/bindgate/tests/harness"
)

// Where stderr is systemd's journal (JOURNAL_STREAM says so), what bindgate has to say is there with fields; elsewhere it is text, whatever the variable says.
func TestJournalFields(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Mkdir("/run/systemd/journal", 0o755)
		journal, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/run/systemd/journal/socket", Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer journal.Close()
		if err := os.Chmod("/run/systemd/journal/socket", 0o666); err != nil {
			t.Fatal(err)
		}
		stderr, err := os.Create(h.Path("tmp/stderr"))
		if err != nil {
			t.Fatal(err)
		}
		defer stderr.Close()
		var st syscall.Stat_t
		if err := syscall.Fstat(int(stderr.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		run := func(stream string, args ...string) harness.Result {
			cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), args...)
			cmd.Env, cmd.Stderr = []string{"JOURNAL_STREAM=" + stream}, stderr
			return h.Do(cmd)
		}
		wants := func(fields ...string) {
			t.Helper()
			buf := make([]byte, 1<<16)
			journal.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := journal.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fields {
				if !strings.Contains("\n"+string(buf[:n]), "\n"+f+"\n") {
					t.Errorf("no %s in %q", f, buf[:n])
				}
			}
		}
		ours := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
		h.Policy("prepare", "--container", "web", "-v", "v:/v").OK(t)
		run(ours, "cleanup", "--container", "web", "--forget").OK(t)
		wants("PRIORITY=4", "SYSLOG_IDENTIFIER=bindgate", "BINDGATE_CONTAINER=web", "BINDGATE_OWNER=default")
		run(ours, "detach", "--container", "web", "--path", "/v", "-o", "table").Exits(t, 65)
		wants("PRIORITY=3", "BINDGATE_CODE=not_found", "BINDGATE_STAGE=record")
		if said := h.ReadFile(filepath.Join(h.Path("tmp"), "stderr")); said != "" {
			t.Errorf("stderr has it too: %q", said)
		}
		run("1:1", "detach", "--container", "web", "--path", "/v", "-o", "table").Exits(t, 65)
		if said := h.ReadFile(h.Path("tmp/stderr")); !strings.HasPrefix(said, "bindgate: cannot detach") {
			t.Errorf("stderr: %q", said)
		}
	})
}
