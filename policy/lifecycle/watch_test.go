package lifecycle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bindgate/bindgate/wire"
)

// watching runs a Watch and follows what it reports.
type watching struct {
	t     *testing.T
	state chan WatchState
	end   context.CancelFunc
	err   chan error
	once  sync.Once
}

func startWatch(t *testing.T, iso *Isolator, o WatchOptions) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watching{t: t, state: make(chan WatchState, 10000), end: cancel, err: make(chan error, 1)}
	if o.Interval == 0 {
		o.Interval = time.Hour // nothing here is to be done by it
	}
	o.Report = func(s WatchState) { w.state <- s }
	go func() { w.err <- iso.Watch(ctx, o) }()
	t.Cleanup(w.stop)
	w.until("the first recover", func(s WatchState) bool { return s.Last != nil })
	return w
}

// until waits for a report that says so.
func (w *watching) until(what string, is func(WatchState) bool) WatchState {
	w.t.Helper()
	end := patience(w.t).Done()
	for {
		select {
		case s := <-w.state:
			if is(s) {
				return s
			}
		case err := <-w.err:
			w.t.Fatalf("the watch ended before %s: %v", what, err)
		case <-end:
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// stop ends the watch.
func (w *watching) stop() {
	w.once.Do(func() {
		w.end()
		if err := <-w.err; err != nil {
			w.t.Errorf("the watch: %v", err)
		}
	})
}

func cleaned(n int) func(WatchState) bool {
	return func(s WatchState) bool { return s.Cleaned["ok"] >= n }
}

func TestWatchCleansUpEachContainerAsItEnds(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b", "c")
	iso := w.open(t, "")
	before, dead := newChild(t), newChild(t)
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "dead", "b:/b"), dead.PID))
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "before", "a:/a"), before.PID))
	dead.end(t)
	watch := startWatch(t, w.open(t, ""), WatchOptions{})
	if m := w.mounted(t); len(m) != 1 {
		t.Errorf("what was dead at the start is still mounted: %v", m)
	}
	after := newChild(t) // it learns of it
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "after", "a:/a", "c:/c")))
	ok[*Isolated](t)(iso.Isolate(t.Context(), "after", after.PID))
	watch.until("both to be watched", func(s WatchState) bool { return s.Containers == 2 })
	before.end(t)
	watch.until("the first to be cleaned up", cleaned(1))
	if m := w.mounted(t); len(m) != 2 {
		t.Errorf("mounted: %v", m)
	}
	after.end(t)
	s := watch.until("the second to be cleaned up", cleaned(2))
	if s.Containers != 0 || len(s.Cleaned) != 1 || s.Recovers["ok"] != 1 {
		t.Errorf("%+v", s)
	}
	w.empty(t)
}

func TestWatchOfManyThatEndAtOnce(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	watch := startWatch(t, w.open(t, ""), WatchOptions{})
	second := startWatch(t, w.open(t, ""), WatchOptions{}) // they do not get into each other's way
	fds := len(openFiles(t))
	var all []*child
	for i := range 30 {
		c := newChild(t)
		ok[*Isolated](t)(iso.Attach(t.Context(), request(t, fmt.Sprint("c", i), "shared:/a", fmt.Sprint("own", i, ":/b")), c.PID))
		all = append(all, c)
	}
	for _, x := range []*watching{watch, second} {
		x.until("all to be watched", func(s WatchState) bool { return s.Containers == 30 })
	}
	var wait sync.WaitGroup
	for _, c := range all {
		wait.Go(func() { c.cmd.Process.Kill() })
	}
	wait.Wait()
	for _, x := range []*watching{watch, second} {
		x.until("none to be watched", func(s WatchState) bool { return s.Containers == 0 })
	}
	watch.stop()
	second.stop()
	w.empty(t)
	if n := len(w.calls("unmount")); n != 31 {
		t.Errorf("%d volumes were unmounted %d times", 31, n)
	}
	for _, c := range all { // os/exec has a pidfd for each
		c.cmd.Wait()
	}
	if now := openFiles(t); len(now) > fds {
		t.Errorf("%d descriptors are open, %d were: %v", len(now), fds, now)
	}
}

// openFiles are the descriptors of this process that are no child's.
func openFiles(t *testing.T) (list []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && (strings.Contains(to, "pidfd") || strings.Contains(to, "inotify") || strings.Contains(to, ".lock")) {
			list = append(list, to)
		}
	}
	return list
}

// A container that was cleaned up and prepared again, under the same id, between the end of its process and our turn, is another one.
func TestWatchLeavesAContainerAloneThatWasPreparedAgain(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	old, now := newChild(t), newChild(t)
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), old.PID))
	c, err := iso.readContainer(reference{"default", "web"})
	if err != nil {
		t.Fatal(err)
	}
	if out := ok[*Cleaned](t)(iso.cleanupEnded(t.Context(), "web", c.Process)); out.Known {
		t.Error("one that is alive is cleaned up")
	}
	old.end(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	if out := ok[*Cleaned](t)(iso.cleanupEnded(t.Context(), "web", c.Process)); out.Known {
		t.Error("one that is prepared is cleaned up")
	}
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", now.PID))
	now.end(t)
	if out := ok[*Cleaned](t)(iso.cleanupEnded(t.Context(), "web", c.Process)); out.Known {
		t.Error("one of another process is cleaned up")
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.empty(t)
}

func TestWatchTouchesOnlyItsOwner(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	mine, theirs := w.open(t, ""), w.open(t, "other")
	watch := startWatch(t, w.open(t, ""), WatchOptions{})
	c, d := newChild(t), newChild(t)
	ok[*Isolated](t)(theirs.Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
	ok[*Isolated](t)(mine.Attach(t.Context(), request(t, "web", "b:/b"), d.PID))
	watch.until("its own to be watched", func(s WatchState) bool { return s.Containers == 1 })
	c.end(t)
	d.end(t)
	watch.until("its own to be cleaned up", cleaned(1))
	watch.stop()
	if s := ok[*Status](t)(mine.Status(t.Context(), StatusQuery{})); len(s.Containers) != 1 || s.Containers[0].Owner != "other" {
		t.Errorf("%+v", s.Containers)
	}
	ok[*Recovered](t)(theirs.Recover(t.Context(), RecoverOptions{}))
	w.empty(t)
}

func TestWatchCleansUpNestedContainersFirst(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	pod, inner := newChild(t), newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "pod", "a:/a")))
	r := request(t, "inner", "b:/b")
	r.Parent = "pod"
	ok[*Prepared](t)(iso.Prepare(t.Context(), r))
	ok[*Isolated](t)(iso.Isolate(t.Context(), "pod", pod.PID))
	ok[*Isolated](t)(iso.Isolate(t.Context(), "inner", inner.PID))
	watch := startWatch(t, w.open(t, ""), WatchOptions{})
	pod.end(t)
	watch.until("the pod's end to be seen", func(s WatchState) bool { return s.Containers == 1 })
	inner.end(t)
	s := watch.until("both to be cleaned up", cleaned(2))
	if s.Recovers["ok"] != 1 || len(s.Recovers) != 1 {
		t.Errorf("it took a recover: %+v", s)
	}
	w.empty(t)
}

func TestWatchTriesAgainWhatFailed(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	c := newChild(t)
	ok[*Isolated](t)(w.open(t, "").Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
	w.on("unmount", refused1)
	watch := startWatch(t, w.open(t, ""), WatchOptions{})
	c.end(t)
	s := watch.until("the failure", func(s WatchState) bool { return len(s.Cleaned) == 1 })
	if s.Cleaned["pending"] != 1 {
		t.Errorf("%+v", s)
	}
	watch.until("a recover that fails too", func(s WatchState) bool { return s.Recovers["pending"] == 1 })
	w.off()
	s = watch.until("one that does not", func(s WatchState) bool { return s.Recovers["ok"] == 2 })
	if s.LastErr != nil || len(s.Last.Cleaned) != 1 || !s.LastGood.Equal(s.LastBegan) {
		t.Errorf("%+v", s.Last)
	}
	w.empty(t)
}

func TestWatchFinishesWhatIsUnderWay(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	c := newChild(t)
	ok[*Isolated](t)(w.open(t, "").Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
	asked, answer := make(chan bool), make(chan bool)
	w.on("unmount", func(string) error {
		close(asked)
		<-answer
		return nil
	})
	watch := startWatch(t, w.open(t, ""), WatchOptions{})
	c.end(t)
	<-asked
	watch.end()
	select {
	case err := <-watch.err:
		t.Errorf("it has ended, with a driver's call under way: %v", err)
		watch.err <- nil
	case <-time.After(300 * time.Millisecond): // long enough for one that does not wait
	}
	close(answer)
	watch.stop()
	w.empty(t)
}

// What does not end is given up, and left to the next.
func TestWatchGivesUpADriverThatDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	c := newChild(t)
	ok[*Isolated](t)(w.open(t, "").Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
	asked, answer := make(chan bool), make(chan bool)
	w.on("unmount", func(string) error {
		close(asked)
		<-answer
		return nil
	})
	iso := w.open(t, "")
	iso.grace = time.Millisecond
	watch := startWatch(t, iso, WatchOptions{})
	c.end(t)
	<-asked
	watch.stop()
	w.off()
	close(answer)
	// It may have been carried out meanwhile, or not; the next finds out.
	out, err := w.open(t, "").Recover(t.Context(), RecoverOptions{})
	if err != nil || !slices.Equal(out.Cleaned, []string{"web"}) {
		t.Errorf("%+v, %v", out, err)
	}
	if m := w.mounted(t); len(m) > 0 {
		t.Errorf("mounted: %v", m)
	}
}

func TestWatchEndsIfTheJournalGoesAway(t *testing.T) {
	w := newWorld(t)
	watch := startWatch(t, w.open(t, ""), WatchOptions{})
	if err := os.RemoveAll(filepath.Join(w.policy.State.Dir, "containers")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-watch.err:
		want(t, err, wire.System, "gone")
		watch.err <- nil
	case <-patience(t).Done():
		t.Fatal("it goes on")
	}
}

// oneWatch is a watch without its loop, to be led step by step.
func oneWatch(t *testing.T, iso *Isolator) *watch {
	w := &watch{iso: iso, o: WatchOptions{Interval: time.Hour}, work: t.Context(), followed: map[string]*followed{}, holders: map[int]*followed{},
		ended: make(chan *followed), done: make(chan func()), stop: make(chan struct{}), next: time.NewTimer(time.Hour),
		state: WatchState{Cleaned: map[string]int{}, Recovers: map[string]int{}}}
	t.Cleanup(func() { close(w.stop); w.wait.Wait() })
	return w
}

// More records than the kernel keeps events of: those are lost, and made up for.
func TestWatchMakesUpForLostEvents(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c := newChild(t)
	watch := oneWatch(t, iso)
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
	watch.record(recordEvent{missed: true})
	if watch.followed["web"] == nil || !watch.recovering {
		t.Errorf("%+v", watch)
	}
	(<-watch.done)()
	c.end(t)
	watch.end(<-watch.ended)
	(<-watch.done)()
	w.empty(t)
}

// The end of a process that held a mount is an event, not a matter of time.
func TestWatchTriesAgainWhenAHolderEnds(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c, holder, early := newChild(t), newChild(t), newChild(t)
	watch := oneWatch(t, iso)
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
	w.on("helper detach", func(string) error { return wire.Errorf(wire.Busy, "detach", "cannot detach /a: it is in use") })
	w.holders = holder.String()
	c.end(t)
	watch.look("web", true)
	(<-watch.done)()
	if watch.state.Cleaned["busy"] != 1 || watch.holders[holder.PID] == nil || time.Until(watch.due) > retryFirst {
		t.Fatalf("%+v", watch)
	}
	watch.due = time.Now().Add(time.Hour)
	holder.end(t)
	w.off()
	watch.end(<-watch.ended)
	if !watch.recovering {
		t.Error("its end changes nothing")
	}
	// One that has ended by then is none to wait for; one that is there is followed once.
	early.end(t)
	watch.watchHolders(&Cleaned{Pending: []Pending{{Holders: []Holder{{early.PID, ""}}}}})
	if watch.holders[early.PID] != nil || !watch.soon {
		t.Error("a process that has ended is waited for, or nothing comes of it")
	}
	(<-watch.done)()
	if watch.state.Recovers["ok"] != 1 || time.Until(watch.due) > retryFirst {
		t.Errorf("%+v", watch.state)
	}
	w.empty(t)
}
