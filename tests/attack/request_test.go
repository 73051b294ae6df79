package attack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// callerRaw makes a request of fields as they are.
func callerRaw(fields ...string) []byte {
	return []byte("bindgate=1\x00" + strings.Join(fields, "\x00") + "\x00end=\x00")
}

// callerMaxRSS is the most memory that the helper may have used (DESIGN section 11 says 12 MiB for a run; a request adds its own size and little more).
const callerMaxRSS = 16 << 10 // KiB

// T07: requests that are no requests.
func TestT07_MalformedRequests(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		// A careless parser reads the last of repeated keys where a careless check read the first, and takes what it does not know for nothing.
		naive := func(data []byte) (checked, used map[string]string) {
			checked, used = map[string]string{}, map[string]string{}
			for _, f := range bytes.Split(data, []byte{0}) {
				key, value, _ := strings.Cut(string(f), "=")
				if _, ok := checked[key]; !ok {
					checked[key] = value
				}
				used[key] = value
			}
			return checked, used
		}
		if checked, used := naive(callerRaw("op=create-volume", "name=allowed", "name=../../etc")); checked["name"] != "allowed" || used["name"] != "../../etc" {
			t.Fatalf("the naive way is not open to this attack: %v %v", checked, used)
		}

		mib := strings.Repeat("x", wire.MaxRequest)
		attach := []string{"op=attach", "owner=o", "container=c", "pid=1"}
		mount := []string{"mount=/a", "source=/run/x", "mode=ro"}
		with := func(lists ...[]string) []byte { return callerRaw(slices.Concat(lists...)...) }
		requests := map[string][]byte{
			"empty":                         nil,
			"one NUL":                       {0},
			"a megabyte of NULs":            make([]byte, wire.MaxRequest),
			"not ours":                      []byte(`{"op":"attach"}`),
			"another version":               []byte("bindgate=2\x00op=list-volumes\x00end=\x00"),
			"no version":                    []byte("op=list-volumes\x00end=\x00"),
			"version twice":                 callerRaw("bindgate=1", "op=list-volumes"),
			"no op":                         callerRaw("name=v"),
			"op later":                      callerRaw("name=v", "op=create-volume"),
			"op twice":                      callerRaw("op=list-volumes", "op=create-volume", "name=v"),
			"unknown op":                    callerRaw("op=frobnicate", "name=v"),
			"no end":                        []byte("bindgate=1\x00op=create-volume\x00name=v\x00"),
			"end with a value":              []byte("bindgate=1\x00op=create-volume\x00name=v\x00end=1\x00"),
			"a field after end":             append(callerCreate("v"), "name=w\x00"...),
			"a byte after end":              append(callerCreate("v"), 'x'),
			"a NUL after end":               append(callerCreate("v"), 0),
			"a second request after end":    append(callerCreate("v"), callerCreate("w")...),
			"last NUL missing":              bytes.TrimSuffix(callerCreate("v"), []byte{0}),
			"key without =":                 callerRaw("op=create-volume", "name=v", "lazy"),
			"empty key":                     callerRaw("op=create-volume", "name=v", "=x"),
			"empty field":                   callerRaw("op=create-volume", "name=v", ""),
			"repeated key":                  callerRaw("op=create-volume", "name=v", "name=w"),
			"unknown key":                   callerRaw("op=create-volume", "name=v", "force=1"),
			"key of another op":             callerRaw("op=create-volume", "name=v", "lazy=1"),
			"capital key":                   callerRaw("op=create-volume", "NAME=v"),
			"key with a space":              callerRaw("op=create-volume", "name =v"),
			"long key":                      callerRaw("op=create-volume", "name=v", strings.Repeat("k", 33)+"=1"),
			"missing key":                   callerRaw("op=create-volume"),
			"mount where none is":           callerRaw("op=create-volume", "name=v", "mount=/a"),
			"attach without mount":          with(attach),
			"repeated key in a block":       with(attach, mount, []string{"mode=rw"}),
			"unknown key in a block":        with(attach, mount, []string{"suid=1"}),
			"missing key in a block":        with(attach, mount[:2]),
			"key of the head in a block":    with(attach, mount, []string{"pid=1"}),
			"over a megabyte":               callerRaw("op=create-volume", "name="+mib),
			"over a megabyte without a NUL": []byte("bindgate=1\x00op=" + mib),
			"control byte":                  callerRaw("op=create-volume", "name=v\x01"),
			"newline":                       callerRaw("op=create-volume", "name=v\nw"),
			"escape":                        with(attach, []string{"mount=/a\x1b[2J", "source=/run/x", "mode=ro"}),
			"C1 control":                    with(attach, []string{"mount=/a\u009b2J", "source=/run/x", "mode=ro"}),
			"DEL":                           with(attach, []string{"mount=/a\x7f", "source=/run/x", "mode=ro"}),
			"invalid UTF-8":                 with(attach, []string{"mount=/a\xff", "source=/run/x", "mode=ro"}),
			"overlong UTF-8":                with(attach, []string{"mount=/a\xc0\xaf..", "source=/run/x", "mode=ro"}),
			"surrogate":                     with(attach, []string{"mount=/a\xed\xa0\x80", "source=/run/x", "mode=ro"}),
			"mode of a mount":               with(attach, []string{"mount=/a", "source=/run/x", "mode=rwx"}),
			"flag that is not 1":            with(attach, mount, []string{"noexec=true"}),
			"relative source":               with(attach, []string{"mount=/a", "source=run/x", "mode=ro"}),
			"source with ..":                with(attach, []string{"mount=/a", "source=/run/../etc", "mode=ro"}),
			"absolute subpath":              with(attach, mount, []string{"subpath=/etc"}),
			"subpath with ..":               with(attach, mount, []string{"subpath=a/../../etc"}),
			"subpath that is none":          with(attach, mount, []string{"subpath=./"}),
			"path over 4095 bytes":          with(attach, []string{"mount=/" + strings.Repeat("a/", 2048), "source=/run/x", "mode=ro"}),
			"component over 255 bytes":      with(attach, []string{"mount=/" + strings.Repeat("a", 256), "source=/run/x", "mode=ro"}),
			"volume mode with setuid":       callerRaw("op=create-volume", "name=v", "mode=4755"),
			"volume mode in decimal":        callerRaw("op=create-volume", "name=v", "mode=789"),
			"volume uid -1":                 callerRaw("op=create-volume", "name=v", "uid=-1"),
			"volume uid 2^32-1":             callerRaw("op=create-volume", "name=v", "uid=4294967295"),
			"volume gid 2^64":               callerRaw("op=create-volume", "name=v", "gid=18446744073709551616"),
			"volume name ..":                callerRaw("op=create-volume", "name=.."),
			"volume name with a slash":      callerRaw("op=create-volume", "name=a/b"),
			"volume name of the helper's":   callerRaw("op=create-volume", "name=.gone-v"),
			"volume name over 255 bytes":    callerRaw("op=create-volume", "name="+strings.Repeat("v", 256)),
			"33 keys":                       callerRaw("op=create-volume", "name=v", strings.Repeat("a=\x00", 40)+"b="),
		}
		for _, pid := range []string{"", "0", "-1", "+1", " 1", "1 ", "01", "0x1", "1e3", "4194305", "4294967297", "18446744073709551617", "99999999999999999999999", "１", "nan"} {
			requests["pid "+strconv.Quote(pid)] = with([]string{"op=attach", "owner=o", "container=c", "pid=" + pid}, mount)
		}
		for _, start := range []string{"0", "-1", "9223372036854775808", "18446744073709551616"} {
			requests["start "+start] = with(attach, []string{"start=" + start}, mount)
		}
		for name, data := range requests {
			r := h.HelperRaw(callerPolicy, data)
			e := callerRefused(t, r, wire.InvalidRequest)
			if e.Stage != "request" || len(r.Stdout) > 1000 {
				t.Errorf("%s: %v", name, r)
			}
		}
		// As many blocks as a megabyte holds, and a few too many.
		for _, n := range []int{wire.MaxBlocks + 1, 140_000} {
			data := with(attach, slices.Repeat([]string{"mount="}, n))
			callerRefused(t, h.HelperRaw(callerPolicy, data), wire.LimitExceeded)
			requests[strconv.Itoa(n)+" blocks"] = data
		}
		// A million would be over a megabyte, and more than that is not read: a source that never ends is cut off.
		cmd := h.Command(callerPolicy, h.HelperPath())
		zero, err := os.Open("/dev/zero")
		callerCheck(t, err)
		defer zero.Close()
		cmd.Stdin = zero
		callerRefused(t, h.Do(cmd), wire.InvalidRequest)
		for _, stdin := range []string{"/dev/null", "/", "/proc/self/mem"} { // things that are no pipe
			f, err := os.Open(stdin)
			callerCheck(t, err)
			cmd := h.Command(callerPolicy, h.HelperPath())
			cmd.Stdin = f
			callerRefused(t, h.Do(cmd), wire.InvalidRequest)
			f.Close()
		}

		if entries, err := os.ReadDir(h.Volumes()); err != nil || len(entries) > 0 {
			t.Errorf("volumes were made: %v %v", entries, err)
		}
		if records := callerLedger(t, h); len(records) > 0 {
			t.Errorf("records were made: %v", records)
		}
		for _, name := range []string{"empty", "a megabyte of NULs", "over a megabyte", "over a megabyte without a NUL", "1025 blocks", "140000 blocks", "33 keys"} {
			callerMemory(t, h, name, requests[name])
		}
		lines := callerAudit(t, h)
		if len(lines) == 0 || len(lines) > len(requests) {
			t.Errorf("%d audit lines", len(lines))
		}
		for _, l := range lines {
			if l["event"] == "done" || l["event"] == "intent" {
				t.Errorf("something was done: %v", l)
			}
		}
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("v")))
	})
}

// callerMemory sends a request that is refused, and looks how much memory that took while the helper waits for somebody to read its reply.
func callerMemory(t *testing.T, h *harness.Host, name string, request []byte) {
	t.Helper()
	callerForget(h)
	audited := callerWatch(t, h.AuditLog(), unix.IN_MODIFY)
	read, write := callerPipe(t, true)
	cmd := h.Command(callerPolicy, h.HelperPath())
	cmd.Stdin, cmd.Stdout = bytes.NewReader(request), write
	callerCheck(t, cmd.Start())
	audited()
	_, after, _ := strings.Cut(h.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)), "VmHWM:")
	if kib, err := strconv.Atoi(strings.Fields(after)[0]); err != nil || kib > callerMaxRSS {
		t.Errorf("%s: the helper took %d KiB (%v)", name, kib, err)
	}
	write.Close()
	_, err := io.Copy(io.Discard, read)
	callerCheck(t, err)
	if cmd.Wait() == nil {
		t.Errorf("%s: it was done", name)
	}
}

// callerForget makes the helper forget how many failures it wrote down, so that the limit of lines in a time does not come into a test.
func callerForget(h *harness.Host) {
	os.Remove(filepath.Join(h.Ledger(), "refused+"+strconv.Itoa(harness.PolicyUID)+".rec"))
}

// T28: ids that name a file elsewhere, or one file twice.
func TestT28_IdsAreFileNames(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		// One file per id, named by joining, leaves the folder; escaped with one character, two ids have one file.
		folder := h.Mkdir(h.Path("etc", "records"), 0o755)
		callerCheck(t, os.WriteFile(filepath.Join(folder, "../planted"), []byte("record"), 0o600))
		escape := strings.NewReplacer("/", "_", ":", "_")
		if _, err := os.Lstat(h.Path("etc", "planted")); err != nil || escape.Replace("a/b") != escape.Replace("a:b") {
			t.Fatalf("the naive way is not open to this attack: %v", err)
		}

		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		before := h.Tree(h.Path("run"))
		bad := []string{"", "../x", "..", ".", "a/b", "/", "/etc/x", ".hidden", "-x", "_x", ":x", "a b", "a+b", "a%2fb", "a\\b", "a\nb", "a\rb", "a\tb", "a\x1b[2J", "é", "a\u2028b", "a\x00b", "by+0+x+y",
			strings.Repeat("a", 129), strings.Repeat("a", 300), "a*", "a?", "~", "$(id)", "a;b", "a'b", "a\"b", "\u202ea", "a\xff"}
		mounts := []wire.Mount{{Path: filepath.Join(h.HostPaths(), "at"), Source: filepath.Join(h.Volumes(), "data"), Mode: wire.ModeRO}}
		at := h.Mkdir(mounts[0].Path, 0o755)
		for _, id := range bad {
			for _, key := range []string{"container", "owner"} {
				if key == "container" && id == "" {
					id = "\x00" // the encoder leaves an empty one out
				}
				value := map[string]string{"container": "c", "owner": "o"}
				value[key] = id
				for _, request := range [][]byte{
					callerRaw("op=attach", "owner="+value["owner"], "container="+value["container"], "pid="+c.PIDString(), "mount="+at, "source="+mounts[0].Source, "mode=ro"),
					callerRaw("op=detach", "owner="+value["owner"], "container="+value["container"]),
					callerRaw("op=query", "owner="+value["owner"], "container="+value["container"]),
				} {
					callerRefused(t, h.HelperRaw(callerPolicy, request), wire.InvalidRequest)
				}
			}
			callerRefused(t, h.HelperRaw(callerPolicy, callerRaw("op=sweep", "owner="+id)), wire.InvalidRequest)
			if len(id) != 129 { // that is a volume's name
				callerRefused(t, h.HelperRaw(callerPolicy, callerRaw("op=remove-volume", "name="+id)), wire.InvalidRequest)
			}
		}
		owner := strings.Repeat("o", 33)
		callerRefused(t, h.HelperRaw(callerPolicy, callerRaw("op=sweep", "owner="+owner)), wire.InvalidRequest)
		for _, d := range strings.Split(harness.Diff(before, h.Tree(h.Path("run"))), "\n") {
			if d != "" && !strings.Contains(d, "/ledger/refused+") && !strings.Contains(d, "/ledger/.lock ") {
				t.Errorf("made: %s", d)
			}
		}

		// Owners and ids that look alike have an entry each, and nobody sees or detaches another's.
		type name struct{ owner, id string }
		names := []name{{"o", "a.b"}, {"o", "a:b"}, {"o", "a_b"}, {"o", "a-b"}, {"o", "A.b"}, {"o", "ab"}, {"o.a", "b"}, {"o", "a..b"}, {"o:a", "b"}, {"oa", "b"}, {"o", strings.Repeat("a", 128)},
			{strings.Repeat("o", 32), strings.Repeat("a", 128)}, {"o", "1.rec"}, {"o", "1"}, {"1", "1"}, {"refused", "1"}, {"corrupt", "corrupt"}, {"0", "0"}}
		path := func(i int) string { return h.Mkdir(filepath.Join(h.HostPaths(), "m"+strconv.Itoa(i)), 0o755) }
		for i, n := range names {
			request := &wire.Request{Op: wire.OpAttach, Owner: n.owner, Container: n.id, PID: c.Pid(), Mounts: []wire.Mount{{Path: path(i), Source: mounts[0].Source, Mode: wire.ModeRO}}}
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(request)))
		}
		entries := 0
		all, err := os.ReadDir(h.Ledger())
		callerCheck(t, err)
		for _, e := range all {
			if strings.HasPrefix(e.Name(), "by+") {
				entries++
			}
		}
		if records := callerLedger(t, h); len(records) != 1 || entries != len(names) {
			t.Errorf("%d entries and records %v for %d names in one namespace", entries, records, len(names))
		}
		for i, n := range names {
			query := &wire.Request{Op: wire.OpQuery, Owner: n.owner, Container: n.id}
			if reply := callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(query))); len(reply.Blocks) != 1 || reply.Blocks[0].Get("mount") != path(i) {
				t.Errorf("%v sees %v", n, reply.Blocks)
			}
		}
		for i, n := range names {
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: n.owner, Container: n.id})))
			for j := range names {
				want := 1
				if j <= i {
					want = 0
				}
				if len(c.Mountinfo(path(j))) != want {
					t.Fatalf("after the detach of %v: %q", n, c.Mountinfo(path(j)))
				}
			}
		}
		if records := callerLedger(t, h); len(records) != 0 {
			t.Errorf("left: %v", records)
		}
	})
}

// T30: lines and escapes in what is logged.
func TestT30_LogInjection(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		forged := `{"time":"2000-01-01T00:00:00Z","event":"done","uid":"0","op":"attach","forged":"yes"}`
		naive := fmt.Sprintf("refused source=%s\n", "/x\n"+forged)
		if lines := strings.Split(naive, "\n"); !json.Valid([]byte(lines[1])) {
			t.Fatal("the naive way is not open to this attack")
		}

		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		evil := []string{"x\n" + forged, "x\r\n" + forged, "x\x1b[2J\x1b]0;owned\a", `x","event":"done`, `x\","a":"`, "x\u2028y", "x\u202ey", "x\u009b2Jy", "x\xffy", "x\xe2\x28y", "\ud7ff\U0010ffff", "x<script>&amp;", "é語"}
		var want int
		decisions := func(n int) {
			t.Helper()
			want += n
			if got := len(callerAudit(t, h)); got != want {
				t.Fatalf("%d audit lines, want %d", got, want)
			}
		}
		want = len(callerAudit(t, h))
		for _, e := range evil {
			for _, request := range [][]byte{
				callerRaw("op=attach", "owner=o", "container="+e, "pid="+c.PIDString(), "mount="+at, "source=/x", "mode=ro"),
				callerRaw("op=" + e),
				callerRaw("op=create-volume", "name="+e),
				callerRaw("op=attach", "owner=o", "container=c", "pid="+c.PIDString(), "mount="+at, "source=/"+strings.ReplaceAll(e, "/", "_"), "mode=ro"),
				callerRaw("op=attach", "owner=o", "container=c", "pid="+c.PIDString(), "mount=/"+strings.ReplaceAll(e, "/", "_"), "source="+filepath.Join(h.Volumes(), "data"), "mode=ro"),
				callerRaw("op=attach", "owner=o", "container=c", "pid="+c.PIDString(), "rootfs=/"+strings.ReplaceAll(e, "/", "_"), "mount=/a", "source="+filepath.Join(h.Volumes(), "data"), "mode=ro"),
			} {
				callerForget(h)
				if reply := callerReply(t, h.HelperRaw(callerPolicy, request)); reply.Err == nil {
					t.Errorf("%q was done", request)
				}
				decisions(1)
			}
		}
		// A source that is there under such a name is attached, and the log says so in one line each: intent and outcome.
		for i, e := range []string{`x","event":"done`, "x\u2028y", "x\u202ey", "é語 \U0001f4a9", `a\b`} {
			source := h.Mkdir(filepath.Join(h.Sources(), e), 0o755)
			target := h.Mkdir(filepath.Join(h.HostPaths(), strconv.Itoa(i)+e), 0o755)
			request := &wire.Request{Op: wire.OpAttach, Owner: "o", Container: "c", PID: c.Pid(), Mounts: []wire.Mount{{Path: target, Source: source, Mode: wire.ModeRO}}}
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(request)))
			decisions(2)
			lines := callerAudit(t, h)
			for j, key := range []string{"intent", "done"} {
				l := lines[len(lines)-2+j]
				mounts, _ := l["mounts"].([]any)
				if l["event"] != key || len(mounts) != 1 || mounts[0].(map[string]any)["target"] != target {
					t.Errorf("%s: %v", key, l)
				}
			}
		}
		// The caller's own name is its to choose, any bytes that a file may have.
		for i, e := range []string{"x\n" + strings.ReplaceAll(forged, "/", "_"), "x\x1b[2J\xff", `x","event":"done`} {
			path := filepath.Join(h.Mkdir(h.Path("attacker"+strconv.Itoa(i)), 0o755), e)
			callerCheck(t, os.Rename(callerCopy(t, h, "evil"+strconv.Itoa(i), 0o755), path))
			cmd := h.Command(callerPolicy, path)
			cmd.Args = []string{"caller-child", h.HelperPath()}
			callerSucceeded(t, callerRun(h, cmd, callerCreate("by-"+strconv.Itoa(i))))
			decisions(1)
			lines := callerAudit(t, h)
			if exe := lines[len(lines)-1]["exe"]; exe != strings.ToValidUTF8(path, "\ufffd") {
				t.Errorf("exe is %q, want %q", exe, path)
			}
		}
		for _, l := range callerAudit(t, h) {
			if l["forged"] != nil || l["uid"] != strconv.Itoa(harness.PolicyUID) {
				t.Errorf("forged: %v", l)
			}
		}
		// A flood of refusals is not a flood of lines: they are counted.
		callerForget(h)
		const flood = 100
		for range flood {
			callerRefused(t, h.HelperRaw(callerPolicy, callerRaw("op=attach", "owner=o", "container=c", "pid="+c.PIDString(), "mount="+at, "source=/x", "mode=ro")), wire.SourceForbidden)
		}
		if n := len(callerAudit(t, h)) - want; n < 1 || n > flood/2 {
			t.Errorf("%d audit lines of %d refusals", n, flood)
		}
		var st unix.Stat_t
		if err := unix.Stat(h.AuditLog(), &st); err != nil || st.Mode&0o7777 != 0o640 || st.Uid != 0 {
			t.Errorf("the audit log: %v %04o %d", err, st.Mode&0o7777, st.Uid)
		}
		callerLedger(t, h)
	})
}

// callerChild runs the helper as its child, with its own stdin and stdout.
func callerChild(arg string) {
	cmd := exec.Command(arg)
	cmd.Env, cmd.Stdin, cmd.Stdout = []string{}, os.Stdin, os.Stdout
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	callerDie(err, "run")
}

// T32: floods.
func TestT32_Floods(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.HelperTOML(harness.DefaultHelperTOML + "[limits]\nmounts_per_request = 4\nmounts_per_namespace = 6\n")
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		c, d := h.SharedRoot(harness.SharedRootOptions{ID: "c"}), h.SharedRoot(harness.SharedRootOptions{ID: "d"})
		path := func(i int) string { return h.Mkdir(filepath.Join(h.HostPaths(), "m"+strconv.Itoa(i)), 0o755) }
		request := func(c *harness.Container, id string, from, n int) []byte {
			r := &wire.Request{Op: wire.OpAttach, Owner: "default", Container: id, PID: c.Pid()}
			for i := range n {
				r.Mounts = append(r.Mounts, wire.Mount{Path: path(from + i), Source: filepath.Join(h.Volumes(), "data"), Mode: wire.ModeRO})
			}
			return boundary.Encode(r)
		}
		mounted := func(c *harness.Container) int { return len(c.Mountinfo(h.HostPaths())) }

		// Without a limit a container takes as many mounts as it is asked to (the kernel's own limit is the machine's).
		for i := range 100 {
			h.Do(exec.Command("nsenter", "--target", d.PIDString(), "--mount", "--", "mount", "--bind", path(i), path(i))).OK(t)
		}
		if n := mounted(d); n != 100 {
			t.Fatalf("the naive way is not open to this attack: %d", n)
		}

		// All or nothing, whatever ids are used.
		callerRefused(t, h.HelperRaw(callerPolicy, request(c, "c", 0, 5)), wire.LimitExceeded)
		callerAudited(t, h, "event", "refused", "code", "limit_exceeded", "stage", "request")
		callerSucceeded(t, h.HelperRaw(callerPolicy, request(c, "c", 0, 4)))
		callerRefused(t, h.HelperRaw(callerPolicy, request(c, "other", 4, 3)), wire.LimitExceeded)
		callerAudited(t, h, "event", "refused", "code", "limit_exceeded", "stage", "ledger")
		callerSucceeded(t, h.HelperRaw(callerPolicy, request(c, "other", 4, 2)))
		callerRefused(t, h.HelperRaw(callerPolicy, request(c, "c3", 6, 1)), wire.LimitExceeded)
		if n := mounted(c); n != 6 {
			t.Errorf("%d mounts, want 6", n)
		}
		for _, id := range []string{"c", "other"} {
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: "default", Container: id})))
		}

		// A thousand at once, for one place in one container, while another is served.
		const flood, parallel = 1000, 50
		outcomes, lock, work := map[string]int{}, sync.Mutex{}, make(chan int)
		var group sync.WaitGroup
		for range parallel {
			group.Add(1)
			go func() {
				defer group.Done()
				for i := range work {
					data := request(c, "id"+strconv.Itoa(i%10), i%8, 1)
					if i%5 == 0 {
						data = boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: "default", Container: "id" + strconv.Itoa(i/5%10), Lazy: true})
					} else if i%5 == 1 {
						data = callerRaw("op=attach", "owner=o", "container=c", "pid=1", "mount=/a", "source=/x", "mode=ro")
					}
					cmd := h.Command(callerPolicy, h.HelperPath())
					var out bytes.Buffer
					cmd.Stdin, cmd.Stdout = bytes.NewReader(data), &out
					cmd.Run()
					o := callerOutcome(harness.Result{Stdout: out.String(), Exit: cmd.ProcessState.ExitCode()})
					if cmd.ProcessState.ExitCode() == 71 { // none is expected: tell which
						o += " " + strings.ReplaceAll(out.String(), "\x00", " ")
					}
					lock.Lock()
					outcomes[o]++
					lock.Unlock()
				}
			}()
		}
		for i := range flood {
			work <- i
			if i%250 == 100 { // in the middle of it
				callerSucceeded(t, h.HelperRaw(callerPolicy, request(d, "d", 200, 1)))
				callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: "default", Container: "d"})))
			}
		}
		close(work)
		group.Wait()
		t.Logf("outcomes: %v", outcomes)
		for o := range outcomes {
			if !slices.Contains([]string{"exit 0", "exit 65 conflict", "exit 77 limit_exceeded", "exit 77 source_forbidden", "exit 77 target_forbidden", "exit 77 namespace_host", "exit 75 timeout", "exit 75 busy"}, o) {
				t.Errorf("outcome %s", o)
			}
		}
		if n := mounted(c); n > 6 {
			t.Errorf("%d mounts, the limit is 6", n)
		}
		// Nothing leaks: what is recorded is what is mounted, and it can be detached.
		blocks := callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpQuery, Owner: "default"}))).Blocks
		alive := 0
		for _, b := range blocks {
			if b.Get("alive") == "1" {
				alive++
			}
		}
		if alive != mounted(c) {
			t.Errorf("%d on record, %d mounted", alive, mounted(c))
		}
		for i := range 10 {
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: "default", Container: "id" + strconv.Itoa(i)})))
		}
		callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpSweep, Owner: "default"})))
		if records := callerLedger(t, h); len(records) > 0 || mounted(c) > 0 {
			t.Errorf("left: records %v, %d mounts", records, mounted(c))
		}
		if out := h.Sh("ps -o comm | grep bindgate-helpe || true").Stdout; out != "" {
			t.Errorf("left running: %s", out)
		}
		lines := len(callerAudit(t, h))
		if lines > 2*flood {
			t.Errorf("%d audit lines of %d requests", lines, flood)
		}
	})
}

// The limit is of the namespace: it holds whatever uids, owners, containers and processes of it are named.
func TestT32_LimitWhateverIDsAreUsed(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		const limit = 6
		h.HelperTOML(fmt.Sprintf("[callers]\nuids = [0, %d]\n%s[limits]\nmounts_per_namespace = %d\n", harness.OutsiderUID, harness.DefaultHelperTOML, limit))
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		c := h.Container(harness.ContainerOptions{ID: "c"})
		second := exec.Command("nsenter", "--target", c.PIDString(), "--mount", "--", "/bin/sh", "-c", "echo entered; exec sleep 2147483647") // another process of the same namespace
		out, err := second.StdoutPipe()
		callerCheck(t, err)
		callerCheck(t, second.Start())
		t.Cleanup(func() { second.Process.Kill(); second.Wait() })
		_, err = out.Read(make([]byte, 1))
		callerCheck(t, err)
		h.EnterCgroup(second.Process.Pid, c.Cgroup)
		before := len(c.Mountinfo("/"))
		users := []harness.User{callerPolicy, {}, {UID: harness.OutsiderUID, GID: harness.PolicyGID}}
		attach := func(i int) harness.Result {
			pid := c.Pid()
			if i%2 == 1 {
				pid = second.Process.Pid
			}
			return h.HelperRaw(users[i%3], boundary.Encode(&wire.Request{Op: wire.OpAttach, Owner: "o" + strconv.Itoa(i), Container: "c" + strconv.Itoa(i), PID: pid,
				Mounts: []wire.Mount{{Path: "/m" + strconv.Itoa(i), Source: filepath.Join(h.Volumes(), "data"), Mode: wire.ModeRO}}}))
		}
		for i := range limit {
			callerSucceeded(t, attach(i))
		}
		for i := range limit { // by a limit for each id there would be room for all but one
			if n := len(callerSucceeded(t, h.HelperRaw(users[i%3], boundary.Encode(&wire.Request{Op: wire.OpQuery, Owner: "o" + strconv.Itoa(i), Container: "c" + strconv.Itoa(i)}))).Blocks); n != 1 {
				t.Fatalf("c%d has %d volumes on record", i, n)
			}
		}
		for i := limit; i < 3*limit; i++ {
			callerRefused(t, attach(i), wire.LimitExceeded)
		}
		if n := len(c.Mountinfo("/")) - before; n != limit {
			t.Errorf("%d volumes are attached", n)
		}
		callerSucceeded(t, h.HelperRaw(users[0], boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: "o0", Container: "c0"})))
		callerSucceeded(t, attach(limit))
		callerRefused(t, attach(limit+1), wire.LimitExceeded)
	})
}

// A ledger of ten thousand records: a container is served as if it were alone, and what it cannot find is told at once.
func TestT32_LargeLedger(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(callerAttach(h, c, "data", at))))
		callerFillLedger(t, h, 10_000)
		callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(callerDetach(c))))
		callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(callerAttach(h, c, "data", at))))
		query := callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpQuery, Owner: "default", Container: "c"})))
		if len(query.Blocks) != 1 {
			t.Errorf("query: %v", query.Blocks)
		}
		query = callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpQuery, Owner: "default"})))
		if len(query.Blocks) != 1 {
			t.Errorf("query of all: %d", len(query.Blocks))
		}
		// Root finds it although it did not attach it.
		callerSucceeded(t, h.HelperRaw(harness.User{}, boundary.Encode(callerDetach(c))))
		callerRefused(t, h.HelperRaw(callerPolicy, callerRaw("op=detach", "owner=default", "container=c", "mount="+at)), wire.NotFound)
		callerRefused(t, h.HelperRaw(callerPolicy, callerRaw("op=remove-volume", "name=none")), wire.VolumeNotFound)
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerRaw("op=remove-volume", "name=data")))
		// All of them are of namespaces that are gone, and another's: they are looked at, and stay.
		callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpSweep, Owner: "default"})))
		if n := len(callerLedger(t, h)); n != 10_000 {
			t.Errorf("%d records", n)
		}
	})
}
