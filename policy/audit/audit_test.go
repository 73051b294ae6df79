package audit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bindgate/bindgate/wire"
)

func line(container string) string {
	return `{"time":"2026-01-02T03:04:05.6Z","event":"refused","uid":"0","container":"` + container + `","code":"denied"}` + "\n"
}

func write(t *testing.T, path, data string, how int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|how, 0o600)
	if err == nil {
		_, err = f.WriteString(data)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// follower reads a log until it has seen some containers.
type follower struct {
	t    *testing.T
	log  *Log
	seen []string
}

func follow(t *testing.T, path string) *follower {
	t.Helper()
	log, err := Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Close)
	f := &follower{t: t, log: log}
	f.read()
	return f
}

func (f *follower) read() {
	f.t.Helper()
	if err := f.log.Read(func(e *Entry) error { f.seen = append(f.seen, e.Container); return nil }); err != nil {
		f.t.Fatal(err)
	}
}

func (f *follower) wants(containers ...string) {
	f.t.Helper()
	for len(f.seen) < len(containers) {
		if err := f.log.Wait(f.t.Context()); err != nil {
			f.t.Fatal(err)
		}
		f.read()
	}
	if !slices.Equal(f.seen, containers) {
		f.t.Fatalf("%q, want %q", f.seen, containers)
	}
	f.seen = nil
}

func TestFollowing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	f := follow(t, path) // that is not there yet
	write(t, path, line("a")+line("b"), os.O_CREATE|os.O_APPEND)
	f.wants("a", "b")

	whole := line("c")
	write(t, path, whole[:20], os.O_APPEND) // half a line is waited for
	if err := f.log.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.read()
	write(t, path, whole[20:]+line("d"), os.O_APPEND)
	f.wants("c", "d")

	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, path+".1", line("late"), os.O_APPEND) // by a helper that had it open
	write(t, path, line("new"), os.O_CREATE|os.O_APPEND)
	f.wants("late", "new")
	write(t, path+".1", line("later"), os.O_APPEND)
	f.wants("later")

	write(t, path+".next", line("moved"), os.O_CREATE)
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
	f.wants("moved")
	write(t, path, line("x"), os.O_TRUNC) // copytruncate
	f.wants("x")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, line("again"), os.O_CREATE)
	f.wants("again")
	if f.log.Torn != 0 {
		t.Errorf("%d torn", f.log.Torn)
	}

	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); ; {
		if err = f.log.Wait(t.Context()); err == nil {
			continue
		}
		if wire.AsError(err).Code != wire.System || !strings.Contains(err.Error(), "moved or removed") {
			t.Error(err)
		}
		break
	}
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	f := follow(t, filepath.Join(t.TempDir(), "log"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.log.Wait(ctx) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A helper that is killed, or has no room, leaves the front of a line; a crash of the machine leaves zeroes. What is around them is read.
func TestTornLines(t *testing.T) {
	for name, c := range map[string]struct {
		data string
		torn int
	}{
		"front of a line":          {line("a") + line("x")[:30] + "\n" + line("b"), 1},
		"two lines in one":         {line("a") + line("x")[:30] + line("y") + line("b"), 1},
		"zeroes":                   {line("a") + strings.Repeat("\x00", 4096) + "\n" + line("b"), 1},
		"no object":                {line("a") + "[]\n7\nnull\n\"x\"\n" + line("b"), 4},
		"no time, no event":        {line("a") + "{}\n{\"time\":\"2026-01-02T03:04:05Z\"}\n{\"event\":\"done\"}\n" + line("b"), 3},
		"of another type":          {line("a") + `{"time":"2026-01-02T03:04:05Z","event":"done","uid":7}` + "\n" + line("b"), 1},
		"empty lines are none":     {line("a") + "\n\n" + line("b"), 0},
		"unknown keys are allowed": {line("a") + line("b")[:1] + `"new":{},` + line("b")[1:], 0},
		"too long":                 {line("a") + strings.Repeat("x", maxLine+1) + "\n" + line("b"), 1},
		"no end":                   {line("a") + line("b") + line("c")[:40], 1},
	} {
		t.Run(name, func(t *testing.T) {
			log := Stream(strings.NewReader(c.data))
			var seen []string
			if err := log.Read(func(e *Entry) error { seen = append(seen, e.Container); return nil }); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(seen, []string{"a", "b"}) || log.Torn != c.torn {
				t.Errorf("%q, %d torn", seen, log.Torn)
			}
		})
	}
}

func TestWhatIsNoLog(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir+"/missing/log", false); wire.AsError(err).Code != wire.NoInput {
		t.Error(err)
	}
	if err := os.Symlink("/etc/passwd", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir+"/link", false); err == nil {
		t.Error("a symlink was followed")
	}
	if err := os.Mkdir(dir+"/folder", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir+"/folder", false); wire.AsError(err).Code != wire.NoInput {
		t.Error(err)
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte(line("a") + line("b")))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","event":"done","mounts":[{"target":"/x","mount_id":"7"}]}` + "\n{\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		log := Stream(strings.NewReader(string(data)))
		n := 0
		if err := log.Read(func(e *Entry) error {
			n++
			if e.Event == "" || e.Time.Equal(time.Time{}) {
				t.Errorf("%+v", e)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(data), "\n") + 1; n+log.Torn > lines {
			t.Errorf("%d entries and %d torn of %d lines", n, log.Torn, lines)
		}
	})
}
