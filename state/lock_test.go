package state

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bindgate/bindgate/wire"
)

// TestMain: started again with this variable, the test binary is another process that holds or takes a lock.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BINDGATE_TEST_LOCK"); dir != "" {
		other(dir)
		return
	}
	os.Exit(m.Run())
}

// other obeys lines on its standard input: "count FILE N" adds one to a number N times under the lock; anything else ends it, holding the lock of key 3.
func other(dir string) {
	s, err := Open(dir, bootID, false)
	if err != nil {
		panic(err)
	}
	var file string
	var n int
	line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	if _, err := fmt.Sscanf(line, "count %s %d", &file, &n); err == nil {
		for range n {
			if err := count(s, file); err != nil {
				panic(err)
			}
		}
		fmt.Println("done")
		return
	}
	if _, err := s.Lock(context.Background(), 3); err != nil {
		panic(err)
	}
	fmt.Println("locked")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0) // without unlocking
}

func count(s *Store, file string) error {
	lock, err := s.Lock(context.Background(), 3)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(string(data))
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strconv.Itoa(n+1)), 0o600)
}

type process struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start starts another process and gives it a line.
func start(t *testing.T, dir, line string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("/proc/self/exe")}
	p.Env, p.Stderr = append(os.Environ(), "BINDGATE_TEST_LOCK="+dir), os.Stderr
	in, err := p.StdinPipe()
	must(t, err)
	out, err := p.StdoutPipe()
	must(t, err)
	must(t, p.Start())
	t.Cleanup(func() { p.Process.Kill(); p.Wait() })
	p.in, p.out = in, bufio.NewReader(out)
	fmt.Fprintln(in, line)
	return p
}

func (p *process) says(t *testing.T, want string) {
	t.Helper()
	if line, err := p.out.ReadString('\n'); strings.TrimSpace(line) != want {
		t.Fatalf("%q, %v, want %q", line, err, want)
	}
}

func TestLockHoldsAgainstAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	p := start(t, dir, "hold")
	p.says(t, "locked")

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := s.Lock(ctx, 3)
	if is(t, err, wire.Timeout); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	_, err = s.Lock(ctx, 2) // the lowest bit of a key is not looked at
	is(t, err, wire.Timeout)
	if lock, err := s.Lock(ctx, 4); err != nil {
		t.Errorf("another key: %v", err)
	} else {
		lock.Unlock()
	}
	taken := make(chan error)
	go func() {
		lock, err := s.Lock(context.Background(), 3)
		if err == nil {
			lock.Unlock()
		}
		taken <- err
	}()
	select {
	case err := <-taken:
		t.Fatalf("it was got while it was held: %v", err)
	default:
	}
	must(t, p.Process.Kill()) // T05: it goes with its holder, however that ends
	must(t, <-taken)
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("locks leave files: %q", got)
	}
}

func TestLockedWorkOfManyProcessesIsNeverLost(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/n"
	must(t, os.WriteFile(file, []byte("0"), 0o600))
	var all []*process
	for range 4 {
		all = append(all, start(t, dir, "count "+file+" 50"))
	}
	for _, p := range all {
		p.says(t, "done")
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "200" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestLockHoldsAgainstAnotherGoroutine(t *testing.T) {
	s := open(t, t.TempDir())
	var inside, most atomic.Int32
	n := 0
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 25 {
				lock, err := s.Lock(context.Background(), 7)
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), inside.Add(1)))
				n++
				inside.Add(-1)
				lock.Unlock()
			}
		})
	}
	all.Wait()
	if n != 400 || most.Load() != 1 {
		t.Errorf("%d, %d at once", n, most.Load())
	}
}

func TestLockThatWasGivenUpIsNotHeldLater(t *testing.T) {
	s := open(t, t.TempDir())
	first, err := s.Lock(t.Context(), 7)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 5 {
		_, err := s.Lock(ctx, 7)
		if is(t, err, wire.Timeout); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	first.Unlock() // now those that gave up get it, and must let it go
	second, err := s.Lock(t.Context(), 7)
	must(t, err)
	second.Unlock()
}

func TestFreeLockIsGotWithoutWaiting(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, key := range []uint64{0, 1 << 1, math.MaxUint64, math.MaxInt64, 1 << 63, Key("volume", "v")} {
		lock, err := s.Lock(ctx, key)
		if err != nil {
			t.Errorf("%d: %v", key, err)
			continue
		}
		lock.Unlock()
	}
}

func TestLockFileThatIsALinkIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	must(t, os.Symlink("/etc/passwd", dir+"/.lock"))
	if _, err := s.Lock(t.Context(), 1); err == nil {
		t.Error("it was followed")
	}
}

func TestKeysOfDifferentPartsDiffer(t *testing.T) {
	seen := map[uint64]string{}
	for _, parts := range [][]string{{"a", "b"}, {"ab"}, {"a", "", "b"}, {"", "a", "b"}, {"b", "a"}, {"a"}, {}, {"", ""}, {"volume", "a"}, {"container", "a"}} {
		k := Key(parts...) >> 1
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %s have one key", parts, other)
		}
		seen[k] = strings.Join(parts, "|")
	}
	if k := Key("a", "b"); k != Key("a", "b") {
		t.Error("a key is always the same")
	}
}
