package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// hostile strings: what a caller may put into an id, a path or a message.
var hostile = []string{"", "a", `"`, `\`, `\"`, `\u0000`, "a\nb", "\r\n", "\x00", "\t\b\f", "\x1b]0;owned\x07", "\x1b[2J", "\x7f", "\u0080", "\u009b1m", "\u00a0", "\u2028\u2029", "é€", "😀", "\U0010ffff", "\ufeff", "\ufffd",
	"\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xed\xb0\x80", "\xf4\x90\x80\x80", "\xe2\x80", "a\xffb\nc", `{"event":"done"}`, "</script>", "%s%n", strings.Repeat("\x1b", 5000), strings.Repeat("é", 5000)}

// checkLine checks that a line is one JSON object in printable ASCII and returns it.
func checkLine(t *testing.T, line string) map[string]any {
	t.Helper()
	body, ok := strings.CutSuffix(line, "\n")
	if !ok || strings.ContainsFunc(body, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		t.Errorf("not one printable line: %q", line)
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Errorf("no JSON: %v: %q", err, line)
	}
	return m
}

// T30: whatever a caller chose, it is one JSON string that says it, in printable ASCII.
func TestQuote(t *testing.T) {
	for _, s := range hostile {
		checkQuote(t, s)
	}
	for r := rune(0); r < 0x3000; r++ {
		checkQuote(t, string(r))
	}
	for b := range 256 {
		checkQuote(t, "a"+string([]byte{byte(b)})+"b")
	}
	for s, want := range map[string]string{"": `""`, "plain text ~": `"plain text ~"`, `a"b\c`: `"a\u0022b\u005cc"`, "\n": `"\u000a"`, "\x7f": `"\u007f"`, "\u009b": `"\u009b"`, "😀": `"\ud83d\ude00"`, "\xff": `"\ufffd"`} {
		if got := quote(s); got != want {
			t.Errorf("%q is %s, want %s", s, got, want)
		}
	}
}

func checkQuote(t *testing.T, s string) {
	t.Helper()
	q := quote(s)
	if strings.ContainsFunc(q, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		t.Errorf("%q is %q: not printable", s, q)
	}
	var again string
	if err := json.Unmarshal([]byte(q), &again); err != nil {
		t.Errorf("%q is %s: %v", s, q, err)
	}
	if want := string([]rune(s)); again != want { // each byte that is not UTF-8 is U+FFFD
		t.Errorf("%q reads as %q", s, again)
	}
	if utf8.ValidString(s) && again != s {
		t.Errorf("%q reads as %q", s, again)
	}
}

func TestObject(t *testing.T) {
	for want, pairs := range map[string][]any{
		`{}`: nil, `{"a":"b"}`: {"a", "b"}, `{"c":"d"}`: {"a", "", "c", "d", "e", "0"}, `{"uid":"0","gid":"0"}`: {"uid", "0", "gid", "0", "pid", "0"}, `{"uid":"","n":"00"}`: {"uid", "", "n", "00"},
	} {
		if got := object(pairs...); got != want {
			t.Errorf("%q: %s, want %s", pairs, got, want)
		}
	}
	for _, k := range hostile {
		for _, v := range hostile {
			checkLine(t, object(k, v, "event", "refused")+"\n")
		}
	}
}

// newSession is a session of uid 1000 with an audit log in a file and a ledger in a folder.
func newSession(t *testing.T) (*session, func() []string) {
	t.Helper()
	file, err := os.OpenFile(t.TempDir()+"/audit.jsonl", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	store, err := state.Open(t.TempDir(), "boot", false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close(); store.Close() })
	s := &session{host: &namespace.Host{BootID: "boot"}, config: conf.DefaultHelper(), ledger: &state.Ledger{Store: store},
		callerUID: 1000, callerGID: 1001, callerPID: 4711, callerExe: "/usr/bin/agent\n", log: int(file.Fd()), syslog: -1}
	return s, func() (lines []string) {
		data, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<30))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			lines = append(lines, line)
		}
		return lines
	}
}

func TestEveryDecisionIsOneLine(t *testing.T) {
	for _, x := range hostile {
		s, lines := newSession(t)
		s.targetNS.Store(77)
		r := &wire.Request{Op: wire.OpAttach, Owner: x, Container: x, Name: x, PID: 7}
		s.intent(r, []state.LedgerMount{{Recorded: wire.Recorded{Prefix: x, Path: x, ID: 1 << 40}, Source: x, Mode: "rw"}, {Recorded: wire.Recorded{Path: "/b", ID: 8}, Source: "/v", Mode: "ro"}})
		s.outcome(r, []wire.Fields{wire.Pairs("mount", x, "target", x, "id", "8")}, nil)
		s.outcome(r, nil, wire.Errorf(wire.Denied, x, "cannot serve %s", x))
		s.outcome(r, nil, errors.New(x))
		s.outcome(nil, nil, wire.Errorf(wire.InvalidRequest, "request", "cannot read %s", x)) // the request could not be read
		got := lines()
		if len(got) != 5 {
			t.Fatalf("%q: %d lines: %q", x, len(got), got)
		}
		for i, event := range []string{"intent", "done", "refused", "failed", "failed"} {
			m := checkLine(t, got[i])
			if m["event"] != event || m["uid"] != "1000" || m["gid"] != "1001" || m["pid"] != "4711" || m["boot"] != "boot" || m["exe"] != "/usr/bin/agent\n" {
				t.Errorf("%s: %v", event, m)
			}
			if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(m["time"])); err != nil {
				t.Error(err)
			}
			if i < 4 && (m["op"] != "attach" || m["target_pid"] != "7" || m["mount_namespace"] != "77") {
				t.Errorf("%s: %v", event, m)
			}
		}
		mounts, _ := checkLine(t, got[0])["mounts"].([]any)
		if len(mounts) != 2 || mounts[0].(map[string]any)["mount_id"] != "1099511627776" || mounts[1].(map[string]any)["source"] != "/v" {
			t.Errorf("%v", mounts)
		}
	}
}

func TestQuestionsThatWereAnsweredAreNotWrittenDown(t *testing.T) {
	s, lines := newSession(t)
	for _, op := range []string{wire.OpQuery, wire.OpListVolumes} {
		s.outcome(&wire.Request{Op: op}, nil, nil)
	}
	s.outcome(&wire.Request{Op: wire.OpListVolumes}, nil, wire.Errorf(wire.VolumeNotFound, "volume", "cannot find")) // what each volume create asks first
	if got := lines(); len(got) != 0 {
		t.Errorf("%q", got)
	}
	s.outcome(&wire.Request{Op: wire.OpQuery}, nil, wire.Errorf(wire.Denied, "caller", "cannot serve"))
	s.outcome(&wire.Request{Op: wire.OpRemoveVolume}, nil, wire.Errorf(wire.VolumeNotFound, "volume", "cannot find"))
	if got := lines(); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

// An attach is refused then (TestAudit_FullDisk).
func TestIntentThatCannotBeWrittenDownIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	pipe := make([]int, 2) // with room for a part of a line only
	if err := unix.Pipe2(pipe, unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	for err == nil {
		_, err = unix.Write(pipe[1], make([]byte, 4096))
	}
	if n, err := unix.Read(pipe[0], make([]byte, 4096)); n != 4096 || err != nil {
		t.Fatal(n, err)
	}
	for name, fd := range map[string]int{"a full disk": int(full.Fd()), "no file": -1, "a disk that is full within the line": pipe[1]} {
		s, _ := newSession(t)
		s.log = fd
		if err := s.intent(&wire.Request{Op: wire.OpAttach, Container: strings.Repeat("c", 6000)}, nil); err == nil {
			t.Error(name)
		}
		s.outcome(&wire.Request{Op: wire.OpDetach}, nil, nil) // a detach goes on
	}
}

func TestSyslogThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	s, lines := newSession(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	s.syslog = fds[0]
	for range 2000 {
		s.outcome(&wire.Request{Op: wire.OpDetach}, nil, nil)
	}
	if got := lines(); len(got) != 2000 {
		t.Errorf("%d lines", len(got))
	}
	buf := make([]byte, 4096)
	n, err := unix.Read(fds[1], buf)
	text, ok := strings.CutPrefix(string(buf[:max(n, 0)]), "<85>bindgate-helper: ")
	if err != nil || !ok {
		t.Fatalf("%q, %v", buf[:max(n, 0)], err)
	}
	checkLine(t, text)
}

// T32: a flood of refusals writes few lines, and says how many it left out; another uid's are not among them.
func TestRefusalsAreLimitedForEachUID(t *testing.T) {
	s, lines := newSession(t)
	refuse := func() {
		s.outcome(&wire.Request{Op: wire.OpAttach}, nil, wire.Errorf(wire.Denied, "caller", "cannot serve"))
	}
	window := func(ago time.Duration, n int) {
		if err := s.ledger.Write("refused+1000", []byte(strconv.FormatInt(time.Now().Add(-ago).Unix(), 10)+" "+strconv.Itoa(n))); err != nil {
			t.Fatal(err)
		}
	}
	window(0, 0)
	for range 100 {
		refuse()
	}
	if got := len(lines()); got < refusalBurst || got > 2*refusalBurst { // two windows, if the clock is at the end of one
		t.Fatalf("%d lines", got)
	}
	s.callerUID = 1001
	before := len(lines())
	if refuse(); len(lines()) != before+1 {
		t.Error("another uid's refusal was left out")
	}
	s.callerUID = 1000

	for name, c := range map[string]struct {
		ago     time.Duration
		n       int
		omitted any
	}{
		"some were left out":     {time.Minute, refusalBurst + 7, "7"},
		"none were left out":     {time.Minute, refusalBurst, nil},
		"one before":             {time.Minute, 1, nil},
		"the clock was set back": {-time.Hour, refusalBurst + 5, "5"},
	} {
		window(c.ago, c.n)
		before := len(lines())
		refuse()
		got := lines()
		if len(got) != before+1 || checkLine(t, got[before])["omitted"] != c.omitted {
			t.Errorf("%s: %q", name, got[before:])
		}
	}
	for _, payload := range []string{"", "x", "1 2 3", "-1 -1", "99999999999999999999 9"} { // a record that says nothing limits nothing
		if err := s.ledger.Write("refused+1000", []byte(payload)); err != nil {
			t.Fatal(err)
		}
		before := len(lines())
		if refuse(); len(lines()) != before+1 && payload != "99999999999999999999 9" {
			t.Errorf("%q: the refusal was left out", payload)
		}
	}
}

func TestLinesOfSeveralWritersDoNotMix(t *testing.T) {
	s, lines := newSession(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				s.outcome(&wire.Request{Op: wire.OpDetach, Container: strings.Repeat("c", 3000)}, nil, nil)
			}
		})
	}
	all.Wait()
	got := lines()
	if len(got) != 400 {
		t.Errorf("%d lines", len(got))
	}
	for _, line := range got {
		checkLine(t, line)
	}
}

// FuzzQuote: always a JSON string in printable ASCII that says the same.
func FuzzQuote(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		checkQuote(t, s)
		m := checkLine(t, object("event", "refused", "reason", s)+"\n")
		if got := m["reason"]; m["event"] != "refused" || s != "" && s != "0" && got != string([]rune(s)) {
			t.Errorf("%q reads as %q", s, got)
		}
	})
}
