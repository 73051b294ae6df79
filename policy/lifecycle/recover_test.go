package lifecycle

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bindgate/bindgate/wire"
)

// fleet prepares one container of each kind. The child processes live as long as the test.
func fleet(t *testing.T, w *world) (iso *Isolator, live *child) {
	t.Helper()
	w.create(t, "live", "dead", "waits", "cut")
	iso = w.open(t, "")
	live = newChild(t)
	dead := newChild(t)
	for id, pid := range map[string]int{"live": live.PID, "dead": dead.PID, "waits": 0} {
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, id, id+":/a")))
		if pid != 0 {
			ok[*Isolated](t)(iso.Isolate(t.Context(), id, pid))
		}
	}
	dead.end(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "cut", "cut:/a")))
	c, err := iso.readContainer(reference{"default", "cut"})
	if err != nil {
		t.Fatal(err)
	}
	c.Phase = phasePreparing // as a crash before the last step leaves it
	if err := iso.writeContainer(c); err != nil {
		t.Fatal(err)
	}
	return iso, live
}

func TestRecoverDecidesAboutEachContainer(t *testing.T) {
	for name, x := range map[string]struct {
		o                                  RecoverOptions
		kept, cleaned, rolledBack, orphans string
	}{
		"without known, the processes decide":      {RecoverOptions{}, "live waits", "dead", "cut", ""},
		"known are kept even if dead":              {RecoverOptions{HasKnown: true, Known: []string{"dead", "live"}}, "dead live", "waits", "cut", ""},
		"an unlisted live one is an orphan":        {RecoverOptions{HasKnown: true, Known: []string{"waits"}}, "live waits", "dead", "cut", "live"},
		"force cleans the unlisted live one":       {RecoverOptions{HasKnown: true, Force: true}, "", "dead live waits", "cut", ""},
		"an empty list is a list":                  {RecoverOptions{HasKnown: true}, "live", "dead waits", "cut", "live"},
		"force without known leaves the live ones": {RecoverOptions{Force: true}, "live waits", "dead", "cut", ""},
		"known may name what is not there":         {RecoverOptions{HasKnown: true, Known: []string{"live", "other", "waits", "dead", "cut"}}, "cut dead live waits", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			iso, live := fleet(t, w)
			out := ok[*Recovered](t)(iso.Recover(t.Context(), x.o))
			for _, l := range []struct {
				what      string
				got, want any
			}{{"kept", out.Kept, x.kept}, {"cleaned", out.Cleaned, x.cleaned}, {"rolled back", out.RolledBack, x.rolledBack}, {"orphans", out.Orphans, x.orphans},
				{"corrupt", out.Corrupt, ""}, {"errors", out.Errors, ""}} {
				if got := strings.Join(l.got.([]string), " "); got != l.want {
					t.Errorf("%s: %q, want %q", l.what, got, l.want)
				}
			}
			if n := len(strings.Fields(x.kept)); len(w.mounted(t)) != n {
				t.Errorf("%d kept, mounted: %v", n, w.mounted(t))
			}
			again := ok[*Recovered](t)(iso.Recover(t.Context(), x.o))
			if len(again.Cleaned)+len(again.RolledBack)+len(again.Unmounted) != 0 || strings.Join(again.Kept, " ") != x.kept {
				t.Errorf("a second recover: %+v", again)
			}
			live.end(t)
			ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{HasKnown: true}))
			w.empty(t)
		})
	}
}

func TestRecoverRefusesAnIDThatIsNone(t *testing.T) {
	w := newWorld(t)
	want(t, second(w.open(t, "").Recover(t.Context(), RecoverOptions{HasKnown: true, Known: []string{"a/b"}})), wire.InvalidRequest)
}

func TestRecoverAfterAReboot(t *testing.T) {
	w := newWorld(t)
	_, _ = fleet(t, w)
	w.boot = "boot-2"
	for _, l := range w.ledger() { // on /run
		os.Remove(filepath.Join(w.dir, "ledger", l.Owner+"@"+l.Container))
	}
	out := ok[*Recovered](t)(w.open(t, "").Recover(t.Context(), RecoverOptions{}))
	equal(t, "cleaned", out.Cleaned, []string{"dead", "live", "waits"})
	equal(t, "rolled back", out.RolledBack, []string{"cut"})
	w.empty(t)
}

func TestRecoverCleansChildrenFirst(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	parent := ""
	for _, id := range []string{"a", "b", "c", "d"} { // each nested in the one before
		r := request(t, id)
		r.Parent = parent
		ok[*Prepared](t)(iso.Prepare(t.Context(), r))
		parent = id
	}
	out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{HasKnown: true}))
	equal(t, "cleaned", out.Cleaned, []string{"a", "b", "c", "d"})
	w.empty(t)
}

func TestRecoverWithoutDriversAsksNone(t *testing.T) {
	w := newWorld(t)
	iso, live := fleet(t, w)
	calls := len(w.calls("mount", "unmount", "get", "path"))
	out, err := iso.Recover(t.Context(), RecoverOptions{NoDrivers: true})
	want(t, err, wire.Pending)
	if n := len(w.calls("mount", "unmount", "get", "path")); n != calls {
		t.Errorf("drivers were asked: %v", w.calls()[calls:])
	}
	if len(out.Pending) != 2 {
		t.Errorf("%+v", out.Pending)
	}
	live.end(t)
	out = ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{HasKnown: true}))
	if len(out.Unmounted) != 4 {
		t.Errorf("%+v", out)
	}
	w.empty(t)
}

func TestRecoverMovesCorruptRecordsAsideAndCarriesOn(t *testing.T) {
	spoil := map[string]func([]byte) []byte{
		"empty":       func([]byte) []byte { return nil },
		"truncated":   func(b []byte) []byte { return b[:len(b)/2] },
		"a bit flips": func(b []byte) []byte { b[len(b)-3] ^= 1; return b },
		"foreign":     func([]byte) []byte { return []byte("hello\n") },
	}
	for name, do := range spoil {
		for _, dir := range []string{"containers", "volumes"} {
			t.Run(dir+" "+name, func(t *testing.T) {
				w := newWorld(t)
				w.create(t, "a", "b")
				iso := w.open(t, "")
				ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "bad", "a:/a")))
				ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "good", "b:/b")))
				file := filepath.Join(w.policy.State.Dir, dir, map[string]string{"containers": "default@bad", "volumes": volumeID{"fake", "a"}.key()}[dir]+".rec")
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, do(data), 0o600); err != nil {
					t.Fatal(err)
				}
				s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
				if len(s.Warnings) != 1 {
					t.Errorf("status warns %v", s.Warnings)
				}
				e := want(t, second(iso.Cleanup(t.Context(), "bad", CleanupOptions{})), wire.StateCorrupt, "bindgate recover")
				if e.Exit() != 78 {
					t.Error(e.Exit())
				}
				out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
				if len(out.Corrupt) != 1 || !strings.Contains(out.Corrupt[0], "/corrupt/") {
					t.Errorf("%+v", out)
				}
				ok[*Cleaned](t)(iso.Cleanup(t.Context(), "bad", CleanupOptions{}))
				ok[*Cleaned](t)(iso.Cleanup(t.Context(), "good", CleanupOptions{}))
				w.empty(t)
				if n := len(w.calls("unmount")); n != 2 {
					t.Errorf("unmounts: %v", w.calls("unmount"))
				}
			})
		}
	}
}

// Whoever reads them: a record of which a byte is missing or a bit is wrong is never believed, and never more than a warning.
func TestNoPartOfARecordIsBelieved(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c := newChild(t)
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
	for name, read := range map[string]func() error{
		"containers/default@web":                   func() error { return second(iso.readContainer(reference{"default", "web"})) },
		"volumes/" + (volumeID{"fake", "a"}).key(): func() error { return second(iso.readVolume(volumeID{"fake", "a"})) },
	} {
		file := filepath.Join(w.policy.State.Dir, name+".rec")
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		try := func(what string, data []byte) {
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := read(); !isCode(err, wire.StateCorrupt) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		for n := range good {
			try(fmt.Sprint("torn at byte ", n), good[:n])
			if n%16 == 0 { // as a whole
				if s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{})); len(s.Warnings) != 1 || len(s.Containers)+len(s.Volumes) != 1 {
					t.Errorf("%s, torn at byte %d: %+v", name, n, s)
				}
			}
			for bit := range 8 {
				bad := slices.Clone(good)
				bad[n] ^= 1 << bit
				try(fmt.Sprintf("byte %d, bit %d", n, bit), bad)
			}
		}
		for _, text := range []string{"", "null", "[]", "{}", "{\"volumes\":[null],\"owner\":\"default\",\"container\":\"web\"}", "{\"driver\":\"fake\",\"name\":\"a\",\"holds\":[null]}",
			"{\"volumes\":7}", "{\"holds\":\"x\"}", strings.Repeat("[", 100000)} { // with a right checksum
			store := iso.containers
			if strings.HasPrefix(name, "volumes") {
				store = iso.volumes
			}
			if err := store.Write(filepath.Base(name), []byte(text)); err != nil {
				t.Fatal(err)
			}
			if err := read(); !isCode(err, wire.StateCorrupt) {
				t.Errorf("%s, %.60s: %v", name, text, err)
			}
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.end(t)
	ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	w.empty(t)
}

// A container that somebody is at work on is not repaired behind his back.
func TestRecoverRestoresAReferenceUnderItsContainersLock(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	if err := iso.volumes.Remove((volumeID{"fake", "a"}).key()); err != nil {
		t.Fatal(err)
	}
	unlock, err := iso.lockContainers(t.Context(), reference{"default", "web"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	out, err := iso.Recover(ctx, RecoverOptions{})
	want(t, err, wire.Timeout, "--timeout")
	if out == nil || len(out.Errors) == 0 {
		t.Errorf("%+v", out)
	}
	if v := ok[*volumeRecord](t)(iso.readVolume(volumeID{"fake", "a"})); len(v.Holds) != 0 {
		t.Errorf("%+v", v)
	}
	unlock()
	ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	if out := ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{})); len(out.Unmounted) != 1 {
		t.Errorf("%+v", out)
	}
	w.empty(t)
}

func TestRecoverOfALostJournalReportsWhatLives(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), newChild(t).PID))
	iso.Close()
	if err := os.RemoveAll(filepath.Join(w.policy.State.Dir)); err != nil {
		t.Fatal(err)
	}
	iso = w.open(t, "")
	out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	equal(t, "orphans", out.Orphans, []string{"web"})
	if len(w.ledger()) != 1 {
		t.Error("a living container was detached")
	}
	ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{Force: true}))
	if len(w.ledger()) != 0 {
		t.Errorf("%v", w.ledger())
	}
}

func TestRecoverWithoutTheHelperSaysSoAndDoesTheRest(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.on("helper", func(string) error { return wire.Errorf(wire.Config, "helper", "cannot start the helper: not setuid") })
	out, err := iso.Recover(t.Context(), RecoverOptions{HasKnown: true})
	want(t, err, wire.Config, "not setuid")
	equal(t, "cleaned", out.Cleaned, []string{"web"})
	if len(out.Errors) == 0 {
		t.Errorf("%+v", out)
	}
	w.empty(t)
}

func TestRecoverSweepsTemporaryFiles(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	mine := []string{"containers/.default@web.rec123", "containers/.default@web.rec77", "volumes/.aa.rec9"}
	for _, f := range append(mine, "containers/.other@web.rec123") {
		if err := os.WriteFile(filepath.Join(w.policy.State.Dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	for _, f := range mine {
		if _, err := os.Stat(filepath.Join(w.policy.State.Dir, f)); err == nil {
			t.Errorf("%s is left", f)
		}
	}
	if _, err := os.Stat(filepath.Join(w.policy.State.Dir, "containers/.other@web.rec123")); err != nil {
		t.Error("another owner's was swept")
	}
}

func TestRecoverHandlesManyAtOnce(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	for i := range 40 {
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, fmt.Sprintf("c%02d", i), fmt.Sprintf("v%d:/a", i%7), fmt.Sprintf("w%d:/b", i))))
	}
	out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{HasKnown: true}))
	if len(out.Cleaned) != 40 || len(out.Unmounted) != 47 {
		t.Errorf("%d cleaned, %d unmounted", len(out.Cleaned), len(out.Unmounted))
	}
	w.empty(t)
}

// The crash tests run one verb in a process of its own, which ends without warning at a call of the driver or the helper: before it is done, or after it was done
// and before the answer. Then recover must bring everything together, whatever the verb was.

const crashEnv = "LIFECYCLE_CRASH"

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		crash(os.Getenv(crashEnv))
	}
	os.Exit(m.Run())
}

// The exit status of the process that crashed as told, and of one that came to its end.
const crashed, survived = 42, 0

// crash is the process: DIR VERB PID POINT, where POINT is the number of the call at which it ends, negative for after it was done.
func crash(how string) {
	f := strings.Fields(how)
	w := openWorld(f[0])
	pid, _ := strconv.Atoi(f[2])
	point, _ := strconv.Atoi(f[3])
	var n, m atomic.Int64
	w.before = func(string) error {
		if n.Add(1) == int64(point) {
			os.Exit(crashed)
		}
		return nil
	}
	w.after = func(string) error {
		if -m.Add(1) == int64(point) {
			os.Exit(crashed)
		}
		return nil
	}
	iso, err := w.isolator("")
	if err == nil {
		err = verbs[f[1]].run(iso, pid)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(survived)
}

// verbs are what may crash, and what comes before it.
var verbs = map[string]struct {
	setup, run func(*Isolator, int) error
}{
	"prepare": {nil, func(iso *Isolator, _ int) error { return second(iso.Prepare(background, crashRequest("web"))) }},
	"isolate": {func(iso *Isolator, _ int) error { return second(iso.Prepare(background, crashRequest("web"))) },
		func(iso *Isolator, pid int) error { return second(iso.Isolate(background, "web", pid)) }},
	"attach": {nil, func(iso *Isolator, pid int) error { return second(iso.Attach(background, crashRequest("web"), pid)) }},
	"detach": {func(iso *Isolator, pid int) error { return second(iso.Attach(background, crashRequest("web"), pid)) },
		func(iso *Isolator, _ int) error {
			return second(iso.Detach(background, "web", Which{All: true}, false))
		}},
	"cleanup": {func(iso *Isolator, pid int) error { return second(iso.Attach(background, crashRequest("web"), pid)) },
		func(iso *Isolator, _ int) error {
			return second(iso.Cleanup(background, "web", CleanupOptions{Force: true}))
		}},
	"recover": {func(iso *Isolator, pid int) error { return second(iso.Attach(background, crashRequest("web"), pid)) },
		func(iso *Isolator, _ int) error {
			return second(iso.Recover(background, RecoverOptions{HasKnown: true, Force: true}))
		}},
	"volumemount":   {nil, func(iso *Isolator, _ int) error { return second(iso.VolumeMount(background, "fake", "a", nil, false)) }},
	"volumeunmount": {func(iso *Isolator, _ int) error { return second(iso.VolumeMount(background, "fake", "a", nil, false)) }, func(iso *Isolator, _ int) error { return second(iso.VolumeUnmount(background, "fake", "a")) }},
}

func TestCrashAtAnyCallIsRecoveredFrom(t *testing.T) {
	for verb, v := range verbs {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			for _, sign := range []int{1, -1} {
				for n := 1; ; n++ {
					w := newWorld(t)
					c := newChild(t)
					if v.setup != nil {
						if err := v.setup(w.open(t, ""), c.PID); err != nil {
							t.Fatal(err)
						}
					}
					cmd := exec.Command("/proc/self/exe")
					cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d", crashEnv, w.dir, verb, c.PID, sign*n))
					out, err := cmd.CombinedOutput()
					if code := cmd.ProcessState.ExitCode(); code == survived {
						if n < 2 {
							t.Fatalf("%s made no call at which it could crash", verb)
						}
						break
					} else if code != crashed {
						t.Fatalf("%v: %s", err, out)
					}
					consistentAfterCrash(t, w, c, fmt.Sprintf("%s, call %d", verb, sign*n))
				}
			}
		})
	}
}

// consistentAfterCrash recovers as an agent would that starts again, with the container's process alive, and then dead.
func consistentAfterCrash(t *testing.T, w *world, c *child, point string) {
	t.Helper()
	iso := w.open(t, "")
	// Others do not have to wait for a recover: what they need of what is left is there for them, mounted.
	p, err := iso.Prepare(t.Context(), crashRequest("next"))
	if err != nil {
		t.Fatalf("%s: %v", point, err)
	}
	for _, v := range p.Volumes {
		if _, err := os.Stat(v.Mountpoint); err != nil {
			t.Errorf("%s: volume %s is not mounted for the next container: %v", point, v.Name, err)
		}
	}
	if _, err := iso.Recover(t.Context(), RecoverOptions{}); err != nil {
		t.Errorf("%s: %v", point, err)
	}
	agree(t, w, iso, point)
	// The agent may go on with it: a second try of the same must not be held up by what is left of the first.
	c.end(t)
	if _, err := iso.VolumeUnmount(t.Context(), "fake", "a"); err != nil && !isCode(err, wire.NotFound) {
		t.Errorf("%s: %v", point, err)
	}
	if _, err := iso.Recover(t.Context(), RecoverOptions{HasKnown: true}); err != nil {
		doubted(t, err)
		expire(t, iso)
		if _, err := iso.Recover(t.Context(), RecoverOptions{HasKnown: true}); err != nil {
			t.Errorf("%s: %v", point, err)
		}
	}
	w.empty(t)
	if t.Failed() {
		t.Fatalf("after a crash at %s: calls\n%s", point, strings.Join(w.calls(), "\n"))
	}
}

// agree checks that journal, driver and ledger say the same.
func agree(t *testing.T, w *world, iso *Isolator, point string) {
	t.Helper()
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	users, attached := 0, 0
	for _, v := range s.Volumes {
		if len(v.Containers) == 0 && !v.Mounted {
			t.Errorf("%s: volume %s is used by nobody", point, v.Name)
		}
		users++
	}
	for _, c := range s.Containers {
		attached += len(c.Mounts)
		if len(c.Mounts) != len(c.Volumes) && c.Phase == "isolated" || c.Phase != "isolated" && c.Phase != "prepared" {
			t.Errorf("%s: %+v", point, c)
		}
	}
	if m := w.mounted(t); len(m) != users {
		t.Errorf("%s: %d volumes are in use, the driver has %v", point, users, m)
	}
	ledger := 0
	for _, l := range w.ledger() {
		ledger += len(l.Mounts)
	}
	if ledger != attached {
		t.Errorf("%s: %d mounts in the journal, %d in the ledger", point, attached, ledger)
	}
}

func TestPrepareAgainAfterACrashNeedsNoRecover(t *testing.T) {
	for _, phase := range []string{phasePreparing, phaseCleaning} {
		w := newWorld(t)
		w.create(t, "a", "b")
		iso := w.open(t, "")
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
		c, err := iso.readContainer(reference{"default", "web"})
		if err != nil {
			t.Fatal(err)
		}
		c.Phase = phase
		if err := iso.writeContainer(c); err != nil {
			t.Fatal(err)
		}
		want(t, second(iso.Isolate(t.Context(), "web", os.Getpid())), wire.Conflict)
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "b:/b")))
		ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
		w.empty(t)
	}
}

func TestIsolateAgainAfterACrashNeedsNoRecover(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	child := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", child.PID))
	c, err := iso.readContainer(reference{"default", "web"})
	if err != nil {
		t.Fatal(err)
	}
	c.Phase, c.Volumes[0].Attached = phaseIsolating, nil // the answer of the helper never came
	if err := iso.writeContainer(c); err != nil {
		t.Fatal(err)
	}
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", child.PID))
	if l := w.ledger(); len(l) != 1 || len(l[0].Mounts) != 1 {
		t.Errorf("%+v", l)
	}
}

func TestRecoverFinishesACleanupEvenOfAKnownContainer(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.on("unmount", refused1)
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Pending)
	w.off()
	out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{HasKnown: true, Known: []string{"web"}}))
	equal(t, "cleaned", out.Cleaned, []string{"web"})
	w.empty(t)
}

func TestRecoverSeesWhatWasAttachedAfterItAskedTheHelper(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso, other := w.open(t, ""), w.open(t, "")
	child := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.after = func(call string) error {
		if strings.HasPrefix(call, "helper query") {
			ok[*Isolated](t)(other.Isolate(t.Context(), "web", child.PID))
			child.end(t)
		}
		return nil
	}
	out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{HasKnown: true}))
	equal(t, "cleaned", out.Cleaned, []string{"web"})
	w.empty(t)
}
