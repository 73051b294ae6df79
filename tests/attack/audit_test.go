package attack

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// auditLines returns the lines of the audit log.
func auditLines(t *testing.T, h *harness.Host) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(h.ReadFile(h.AuditLog())) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines = append(lines, m)
	}
	return lines
}

func auditVolume(t *testing.T, h *harness.Host) (attach, detach *wire.Request, c *harness.Container) {
	t.Helper()
	if r := volOp(h, wire.OpCreateVolume, "v"); r.Err != nil {
		t.Fatal(r.Err)
	}
	c = h.Container(harness.ContainerOptions{ID: "c"})
	return &wire.Request{Op: wire.OpAttach, Owner: "o", Container: "c", PID: c.Pid(), Mounts: []wire.Mount{{Path: "/new/data", Source: filepath.Join(h.Volumes(), "v"), Mode: wire.ModeRO}}},
		&wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c"}, c
}

// What was allowed has a line before and one after, with all that an auditor asks for; what was refused has one, and /dev/log gets them too.
func TestAudit_Lines(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.Mount("tmpfs", "/dev", "tmpfs", 0, "mode=0755")
		volCheck(t, unix.Mknod("/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		syslog, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/dev/log", Net: "unixgram"})
		volCheck(t, err)
		defer syslog.Close()
		attach, detach, _ := auditVolume(t, h)
		reply := h.Helper(attach)
		if reply.Err != nil {
			t.Fatal(reply.Err)
		}
		h.Helper(detach)
		attach.Mounts[0].Source = "/etc"
		h.Helper(attach)

		lines := auditLines(t, h)
		var events []string
		for _, l := range lines {
			events = append(events, l["event"].(string)+" "+l["op"].(string))
			for _, key := range []string{"time", "boot", "uid", "gid", "pid", "exe"} {
				if l[key] == nil {
					t.Errorf("%v lacks %s", l, key)
				}
			}
		}
		if got, want := strings.Join(events, ", "), "done create-volume, intent attach, done attach, intent detach, done detach, refused attach"; got != want {
			t.Fatalf("%s, want %s", got, want)
		}
		for _, intent := range []map[string]any{lines[1], lines[3]} {
			mount := intent["mounts"].([]any)[0].(map[string]any)
			for key, want := range map[string]string{"target": "/new/data", "source": filepath.Join(h.Volumes(), "v"), "mode": "ro", "mount_id": reply.Blocks[0].Get("id")} {
				if mount[key] != want {
					t.Errorf("intent: %s is %v, want %s", key, mount[key], want)
				}
			}
			for _, key := range []string{"owner", "container", "mount_namespace"} {
				if intent[key] == nil {
					t.Errorf("intent lacks %s: %v", key, intent)
				}
			}
		}
		refused := lines[5]
		if refused["code"] != string(wire.SourceForbidden) || refused["stage"] != "source" || !strings.Contains(refused["reason"].(string), "/etc") {
			t.Errorf("refused: %v", refused)
		}
		buf := make([]byte, 1<<16)
		for i, l := range lines {
			n, err := syslog.Read(buf)
			volCheck(t, err)
			text, ok := strings.CutPrefix(string(buf[:n]), "<85>bindgate-helper: ")
			var m map[string]any
			if !ok || json.Unmarshal([]byte(text), &m) != nil || m["time"] != l["time"] {
				t.Errorf("syslog %d: %q", i, buf[:n])
			}
		}
		var st unix.Stat_t
		volCheck(t, unix.Stat(h.AuditLog(), &st))
		if st.Uid != 0 || st.Mode&0o7777 != 0o640 {
			t.Errorf("the audit log is uid %d's, %o", st.Uid, st.Mode)
		}
	})
}

// What cannot be written down is not attached; a detach goes on.
func TestAudit_FullDisk(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		attach, detach, c := auditVolume(t, h)
		if r := h.Helper(attach); r.Err != nil {
			t.Fatal(r.Err)
		}
		log := filepath.Dir(h.AuditLog())
		h.Mount("tmpfs", log, "tmpfs", 0, "size=16k,mode=0755")
		filler, err := os.Create(filepath.Join(log, "filler"))
		volCheck(t, err)
		for err == nil {
			_, err = filler.Write(make([]byte, 4096))
		}
		filler.Close()
		attach.Mounts[0].Path = "/other/place"
		if r := h.Helper(attach); r.Err == nil || r.Err.Code != wire.System || r.Err.Stage != "audit" {
			t.Errorf("an attach that cannot be written down: %+v", r)
		}
		if lines := c.Mountinfo("/other/place"); len(lines) != 0 {
			t.Errorf("attached: %v", lines)
		}
		if _, err := os.Stat(c.Path("/other")); err == nil {
			t.Error("a folder was made")
		}
		if r := h.Helper(detach); r.Err != nil || len(r.Blocks) != 1 {
			t.Errorf("detach: %+v", r)
		}
		if lines := c.Mountinfo("/new/data"); len(lines) != 0 {
			t.Errorf("still attached: %v", lines)
		}
	})
}
