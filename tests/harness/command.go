package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/wire"
)

// A Result is what a command that has ended said.
type Result struct {
	Command        string
	Stdout, Stderr string
	Exit           int // 128 + N if signal N ended it
}

func (r Result) String() string {
	return fmt.Sprintf("%s\nexit %d\nstdout: %q\nstderr: %s", r.Command, r.Exit, r.Stdout, r.Stderr)
}

// OK fails the test unless the command exited 0, and returns the result.
func (r Result) OK(t testing.TB) Result {
	t.Helper()
	return r.Exits(t, 0)
}

// Exits fails the test unless the command exited with code, and returns the result.
func (r Result) Exits(t testing.TB, code int) Result {
	t.Helper()
	if r.Exit != code {
		t.Fatalf("want exit %d: %v", code, r)
	}
	return r
}

// JSON decodes stdout, one document, into v, and fails the test if it has keys that v has not.
func (r Result) JSON(t testing.TB, v any) Result {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(r.Stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil || d.More() {
		t.Fatalf("stdout is not the document expected (%v): %v", err, r)
	}
	return r
}

// Fails fails the test unless the command refused with this error code, in the exit status and in the document on stderr (the command ran with
// -o json), and returns the message.
func (r Result) Fails(t testing.TB, code wire.Code) string {
	t.Helper()
	r.Exits(t, code.Exit())
	var doc struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(r.Stderr), &doc); err != nil || doc.Error.Code != string(code) {
		t.Fatalf("want the error code %s on stderr (%v): %v", code, err, r)
	}
	if doc.Error.Message == "" || strings.Contains(doc.Error.Message, "\n") {
		t.Fatalf("want a message of one line: %v", r)
	}
	return doc.Error.Message
}

// A User is whom a command runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Command returns a command that is run as user, with nothing in its environment, in /, and with no file open but 0, 1 and 2.
func (h *Host) Command(user User, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: user.Groups}}
	return cmd
}

// Do runs a command and waits for its end.
func (h *Host) Do(cmd *exec.Cmd) Result {
	h.t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	r := Result{Command: strings.Join(cmd.Args, " ")}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		ws := exit.Sys().(syscall.WaitStatus)
		r.Exit = ws.ExitStatus()
		if ws.Signaled() {
			r.Exit = 128 + int(ws.Signal())
		}
	default:
		h.t.Fatalf("harness: cannot run %s: %v", r.Command, err)
	}
	r.Stdout, r.Stderr = stdout.String(), stderr.String()
	return r
}

// Sh runs a shell script on the host, as root.
func (h *Host) Sh(script string) Result {
	h.t.Helper()
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Dir = "/"
	return h.Do(cmd)
}

var policyUser = User{UID: PolicyUID, GID: PolicyGID}

// Policy runs the installed bindgate as the policy user. Stdin is empty.
func (h *Host) Policy(args ...string) Result {
	h.t.Helper()
	return h.PolicyAs(policyUser, "", args...)
}

// PolicyIn is Policy with something on stdin.
func (h *Host) PolicyIn(stdin string, args ...string) Result {
	h.t.Helper()
	return h.PolicyAs(policyUser, stdin, args...)
}

// PolicyAs runs the installed bindgate as somebody: as root (the zero User), which it gives up, or as one whom it refuses.
func (h *Host) PolicyAs(user User, stdin string, args ...string) Result {
	h.t.Helper()
	cmd := h.Command(user, h.Bindgate(), args...)
	cmd.Stdin = strings.NewReader(stdin)
	return h.Do(cmd)
}

// HelperRaw runs the installed setuid helper as somebody, with these bytes on its stdin.
func (h *Host) HelperRaw(user User, request []byte) Result {
	h.t.Helper()
	cmd := h.Command(user, h.HelperPath())
	cmd.Stdin = bytes.NewReader(request)
	return h.Do(cmd)
}

// Helper sends the installed setuid helper a request as the policy user, and returns its decoded reply. It fails the test if the reply is none, or if
// the exit status is not that of its error code.
func (h *Host) Helper(request *wire.Request) *wire.Reply {
	h.t.Helper()
	r := h.HelperRaw(policyUser, boundary.Encode(request))
	reply, err := boundary.DecodeReply([]byte(r.Stdout))
	if err != nil {
		h.t.Fatalf("%v: %v", err, r)
	}
	want := 0
	if reply.Err != nil {
		want = reply.Err.Code.Exit()
	}
	r.Exits(h.t, want)
	return reply
}
