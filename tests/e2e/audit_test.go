package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

type auditEntry struct {
	Event, Op, Owner, Container, Code, Forget string
	Mounts                                    []struct{ Target, Source, Mode string }
}

type auditDoc struct {
	Schema   string
	Entries  []json.RawMessage
	Warnings []string
}

// entries are those of a document, as "event op container".
func (d auditDoc) entries(t *testing.T) (list []string) {
	t.Helper()
	for _, raw := range d.Entries {
		var e auditEntry
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		list = append(list, e.Event+" "+e.Op+" "+e.Container)
	}
	return list
}

func audit(h *harness.Host, args ...string) harness.Result {
	return h.PolicyAs(harness.User{}, "", append([]string{"audit"}, args...)...)
}

func TestAudit(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		var empty auditDoc
		if audit(h, "-o", "json").OK(t).JSON(t, &empty); len(empty.Entries) != 0 || empty.Schema == "" {
			t.Errorf("before any request: %+v", empty)
		}
		h.Policy("volume", "create", "v").OK(t)
		c := h.Container(harness.ContainerOptions{ID: "web"})
		attach(t, h, c, "-v", "v:/data:ro")
		h.Policy("attach", "--container", "host", "--pid", "1", "-v", "v:/data").Exits(t, wire.NamespaceHost.Exit()) // no container
		cleanup(t, h, "web", "--force")

		want := []string{"done create-volume ", "intent attach web", "done attach web", "refused attach host", "intent detach web", "done detach web"}
		got := func(args ...string) []string {
			var d auditDoc
			audit(h, append(args, "-o", "json")...).OK(t).JSON(t, &d)
			return slices.DeleteFunc(d.entries(t), func(s string) bool { return s == "failed list-volumes " || s == "done detach host" }) // it was looked for before it was made
		}
		wantIDs(t, "all", got(), want...)
		wantIDs(t, "one container", got("--container", "web"), want[1], want[2], want[4], want[5])
		wantIDs(t, "refused", got("--refused"), want[3])
		if other := got("--owner", "nobody"); len(other) != 0 {
			t.Errorf("another owner: %v", other)
		}
		wantIDs(t, "the last", got("--container", "web", "--lines", "1"), want[5])

		// A table begins with what was refused, and shows an attach once, with all that is known of it.
		out := audit(h, "-o", "table").OK(t).Stdout
		refused, done := strings.Index(out, "Refused"), strings.Index(out, "Done")
		if refused != 0 || done < 0 || !strings.Contains(out[:done], "namespace_host") || strings.Contains(out, "intent") ||
			!strings.Contains(out, h.Volumes()+"/v at /data ro") {
			t.Errorf("%s", out)
		}

		// A helper that was killed left an intent; what it or a full disk tore is counted; what was left out is told; what a caller chose speaks to no terminal.
		const front = `{"time":"2026-01-02T03:04:05Z","event":"`
		h.WriteFile(h.Path("tmp/old"), front+`intent","op":"attach","uid":"7","owner":"o","container":"cut","mounts":[{"target":"/x\u001b[31m","source":"/s","mode":"rw","mount_id":"9"}]}`+"\n"+
			front+`refused","op":"attach","uid":"7","code":"denied","omitted":"12"}`+"\n"+`{"time":"20`, 0o640)
		out = audit(h, "-o", "table", h.Path("tmp/old")).OK(t).Stdout
		if !strings.Contains(out, "no end written down") || !strings.Contains(out, `/s at /x\x1b[31m rw`) || strings.Contains(out, "\x1b") {
			t.Errorf("%q", out)
		}
		var old auditDoc
		h.PolicyAs(harness.User{}, h.ReadFile(h.Path("tmp/old")), "audit", "-o", "json", "-").OK(t).JSON(t, &old)
		if len(old.Entries) != 2 || len(old.Warnings) != 2 || !strings.HasPrefix(old.Warnings[0], "12 more") || !strings.HasPrefix(old.Warnings[1], "1 lines") {
			t.Errorf("%+v", old)
		}

		// It is root's: who may not read it is told what to do.
		if r := h.Policy("audit", "-o", "json"); !strings.Contains(r.Fails(t, wire.Denied), h.AuditLog()) {
			t.Error(r)
		}
		audit(h, "-o", "json", h.Path("missing/log")).Fails(t, wire.NoInput)
		audit(h, "-o", "json", "--follow", "-").Fails(t, wire.Usage)
	})
}

// What is followed is seen as it is written, over rotation, by a process that is the policy user by then, confined or not.
func TestAuditIsFollowed(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		socket := serveHelper(t, h)
		for _, transport := range []string{"exec", "socket"} {
			h.PolicyTOML(harness.DefaultPolicyTOML + "[helper]\ntransport = \"" + transport + "\"\nsocket = \"" + socket + "\"\n[[rule]]\naction = \"allow\"\n")
			h.Policy("volume", "create", "first").OK(t)
			cmd := h.Command(harness.User{}, h.Bindgate(), "audit", "--follow", "--lines", "1", "-o", "json")
			pipe, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			stderr := &strings.Builder{}
			cmd.Stderr = stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			out := bufio.NewScanner(pipe)
			wants := func(op, volume string) {
				t.Helper()
				var d struct {
					Schema string
					Entry  struct{ Event, Op, Volume string }
				}
				for d.Entry.Op == "" || d.Entry.Op == "list-volumes" || d.Entry.Event == "intent" { // it is looked for before it is made
					if !out.Scan() {
						cmd.Wait()
						t.Fatalf("%s: ended: %s", transport, stderr)
					}
					err = json.Unmarshal(out.Bytes(), &d)
				}
				if err != nil || d.Schema != "bindgate/v1" || d.Entry.Op != op || d.Entry.Volume != volume {
					t.Fatalf("%s: %s (%v), want %s of %s", transport, out.Bytes(), err, op, volume)
				}
			}
			wants("create-volume", "first")
			if status := threads(t, cmd.Process.Pid); strings.Contains(status, "Uid:\t0") || !strings.Contains(status, "CapEff:\t0000000000000000") {
				t.Errorf("%s: what reads the log has privilege:\n%s", transport, status)
			}
			h.Policy("volume", "create", "second").OK(t)
			wants("create-volume", "second")
			rename := exec.Command("mv", h.AuditLog(), h.AuditLog()+".1")
			h.Do(rename).OK(t)
			h.Policy("volume", "rm", "second").OK(t) // the helper makes a new log
			wants("remove-volume", "second")
			if err := os.Truncate(h.AuditLog(), 0); err != nil {
				t.Fatal(err)
			}
			h.Policy("volume", "rm", "first").OK(t)
			wants("remove-volume", "first")
			cmd.Process.Signal(unix.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v: %s", transport, err, stderr)
			}
		}
	})
}
