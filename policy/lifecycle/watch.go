package lifecycle

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// WatchOptions say how Watch works; the zero value is usable.
type WatchOptions struct {
	Interval  time.Duration    // from one Recover to the next while all is well; 0: 5 min
	Limit     time.Duration    // of each Cleanup and each Recover; 0: that of its stages
	Heartbeat time.Duration    // Report is called at least this often; 0: when something has changed
	Report    func(WatchState) // called by one goroutine, which waits for it; first when the watch is ready; nil: nobody is told
}

// WatchState is what a watch does and has done.
type WatchState struct {
	Containers int            // whose end is waited for
	Cleaned    map[string]int // how many cleanups after a container's end: "ok", or the code of the error
	Recovers   map[string]int // how many recovers, likewise
	Corrupt    int            // records that they moved aside
	Last       *Recovered     // the last recover's result; nil: none has ended yet
	LastErr    error          // and error
	LastBegan  time.Time      // when it began
	LastTook   time.Duration  // how long it took
	LastGood   time.Time      // when one without error began; zero: none yet
}

// Timing of the second attempts of what failed: from first on, twice as long each time, up to most.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// Watch cleans up each of the owner's containers as it ends, until ctx does. It calls Recover when it starts and from time to time: sooner while something failed
// or is pending, and at once when a process ends that held a mount. What it does is what Cleanup and Recover do, so it may be killed at any time, and other verbs,
// other watches too, may be at work beside it.
//
// It waits for containers' ends on their pidfds and learns of containers from their records, by inotify(7); nothing is polled. When ctx ends, what is under way is
// finished, or given up after Grace and left to the next Recover; then Watch returns nil. Errors: system, if the journal's folder goes away or cannot be watched.
func (iso *Isolator) Watch(ctx context.Context, o WatchOptions) error {
	if o.Interval <= 0 {
		o.Interval = 5 * time.Minute
	}
	if o.Report == nil {
		o.Report = func(WatchState) {}
	}
	records, err := watchFolder(iso.policy.State.Dir)
	if err != nil {
		return failure(err)
	}
	work, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	w := &watch{iso: iso, o: o, work: work, stop: make(chan struct{}), followed: map[string]*followed{}, holders: map[int]*followed{},
		records: make(chan recordEvent), ended: make(chan *followed), done: make(chan func()), state: WatchState{Cleaned: map[string]int{}, Recovers: map[string]int{}}}
	w.wait.Go(func() { w.read(records) })
	defer func() {
		close(w.stop)
		records.Close()
		for _, f := range slices.Concat(slices.Collect(maps.Values(w.followed)), slices.Collect(maps.Values(w.holders))) {
			f.pidfd.Close()
		}
		giveUp()
		w.wait.Wait()
	}()
	w.next = time.NewTimer(o.Interval)
	var beat <-chan time.Time
	if o.Heartbeat > 0 {
		t := time.NewTicker(o.Heartbeat)
		defer t.Stop()
		beat = t.C
	}
	w.list()
	w.report() // ready: whatever ends from now on is seen
	w.recover()
	for {
		select {
		case <-ctx.Done():
			defer time.AfterFunc(iso.grace, giveUp).Stop()
			for w.over = true; w.busy > 0; w.busy-- {
				(<-w.done)()
				w.report()
			}
			return nil
		case e := <-w.records:
			if e.err != nil {
				return failure(e.err)
			}
			w.record(e)
		case f := <-w.ended:
			w.end(f)
		case done := <-w.done:
			w.busy--
			done()
		case <-w.next.C:
			w.recover()
		case <-beat:
		}
		w.report()
	}
}

// watch is one Watch under way. Its fields are the loop's alone; what takes time is done by goroutines that hand back what is to be done with the outcome.
type watch struct {
	iso  *Isolator
	o    WatchOptions
	work context.Context
	stop chan struct{} // closed when the loop has ended
	wait sync.WaitGroup

	records chan recordEvent
	ended   chan *followed
	done    chan func()
	busy    int  // goroutines whose outcome is to come
	over    bool // no more are started

	followed map[string]*followed // by container
	holders  map[int]*followed    // by pid: processes that held a mount when it was to be detached or unmounted

	recovering  bool
	again, soon bool          // there is to be another recover: at once when it has ended, or soon
	next        *time.Timer   // for the next one
	due         time.Time     // when it fires
	retry       time.Duration // how long it was waited after the last one that failed; 0: it did not

	state WatchState
}

// followed is a process whose end is waited for.
type followed struct {
	container string // "": it is a holder
	process   *process
	pidfd     *os.File
}

// report tells what there is to tell. The maps are copied, since whoever is told may keep them.
func (w *watch) report() {
	s := w.state
	s.Containers, s.Cleaned, s.Recovers = len(w.followed), maps.Clone(s.Cleaned), maps.Clone(s.Recovers)
	w.o.Report(s)
}

// do runs something in a goroutine, and what it returns in the loop.
func (w *watch) do(what func(context.Context) func()) {
	if w.over {
		return
	}
	w.busy++
	w.wait.Go(func() {
		ctx, cancel := w.work, context.CancelFunc(func() {})
		if w.o.Limit > 0 {
			ctx, cancel = context.WithTimeout(ctx, w.o.Limit)
		}
		defer cancel()
		then := what(ctx)
		select {
		case w.done <- then:
		case <-w.stop:
		}
	})
}

// list follows all containers that are alive. Those that are not are Recover's.
func (w *watch) list() {
	names, err := w.iso.containers.List()
	if err != nil {
		w.iso.log.Error("cannot list the records", "error", err)
	}
	for _, name := range names {
		if owner, id, _ := strings.Cut(name, "@"); owner == w.iso.owner {
			w.look(id, false)
		}
	}
}

// record deals with a change of a record.
func (w *watch) record(e recordEvent) {
	if e.missed { // some were lost
		w.list()
		w.recover()
		return
	}
	owner, id, _ := strings.Cut(e.name, "@")
	if owner != w.iso.owner {
		return
	}
	w.look(id, true)
}

// look reads a container's record and follows its process, if it has one. A process that has ended already is cleaned up after, if it was not known before.
func (w *watch) look(id string, clean bool) {
	c, err := w.iso.readContainer(reference{w.iso.owner, id})
	if err != nil {
		return // what is known of it stays; Recover reports it
	}
	f := w.followed[id]
	switch {
	case f != nil && c != nil && c.Process != nil && c.Process.same(f.process):
		return
	case f != nil:
		w.forget(f)
	}
	if c == nil || c.Process == nil || c.Phase == phaseCleaning { // somebody is at work on it, or Recover will be
		return
	}
	switch f, err := w.follow(c.Process); {
	case err == nil:
		f.container = id
		w.followed[id] = f
	case !isCode(err, wire.NamespaceGone):
		w.iso.log.Error("cannot wait for a container's end; it is looked for from time to time", "container", id, "error", err)
	case clean:
		w.clean(id, c.Process)
	}
}

// follow waits for a process' end. Errors: namespace_gone if it has ended.
func (w *watch) follow(p *process) (*followed, error) {
	now, fd, err := w.iso.pin(p.PID)
	if err != nil {
		return nil, err
	}
	f := &followed{process: p, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if p.Boot == "" { // a holder: whoever it is now
		f.process = now
	} else if !p.same(now) {
		f.pidfd.Close()
		return nil, gone(p.PID)
	}
	raw, err := f.pidfd.SyscallConn()
	if err != nil {
		f.pidfd.Close()
		return nil, wire.Errorf(wire.System, "process", "cannot wait for process %d: %v", p.PID, err)
	}
	w.wait.Go(func() {
		if raw.Read(func(fd uintptr) bool { return ended(int(fd)) }) != nil {
			return // closed
		}
		select {
		case w.ended <- f:
		case <-w.stop:
		}
	})
	return f, nil
}

// forget stops waiting for a process.
func (w *watch) forget(f *followed) {
	f.pidfd.Close()
	if w.followed[f.container] == f {
		delete(w.followed, f.container)
	}
	if w.holders[f.process.PID] == f {
		delete(w.holders, f.process.PID)
	}
}

// end deals with the end of a process.
func (w *watch) end(f *followed) {
	switch {
	case w.holders[f.process.PID] == f:
		w.forget(f)
		w.recover()
	case w.followed[f.container] == f:
		w.forget(f)
		w.clean(f.container, f.process)
	}
}

// clean cleans a container up.
func (w *watch) clean(id string, p *process) {
	w.do(func(ctx context.Context) func() {
		out, err := w.iso.cleanupEnded(ctx, id, p)
		return func() {
			var stage string
			if e := (*Error)(nil); errors.As(err, &e) {
				stage = e.Stage
			}
			switch {
			case err == nil && !out.Known: // somebody else has
				return
			case err == nil:
				w.iso.log.Info("cleaned up", "container", id, "unmounted", len(out.Unmounted))
			case stage == "nested": // each of those that is cleaned up is taken out of this one's record, of which we get word
				return
			default:
				w.iso.log.Warn("not cleaned up yet", "container", id, "error", err)
				w.watchHolders(out)
				w.recoverSoon()
			}
			w.state.Cleaned[result(err)]++
		}
	})
}

// watchHolders waits for the end of those who hold what could not be let go: then it is tried again.
func (w *watch) watchHolders(out *Cleaned) {
	if out == nil {
		return
	}
	for _, p := range out.Pending {
		for _, h := range p.Holders {
			if w.holders[h.PID] != nil {
				continue
			}
			switch f, err := w.follow(&process{PID: h.PID}); {
			case err == nil:
				w.holders[h.PID] = f
			case isCode(err, wire.NamespaceGone): // meanwhile
				w.recoverSoon()
			}
		}
	}
}

// recover calls Recover, now or as soon as the one under way has ended.
func (w *watch) recover() {
	if w.recovering {
		w.again = true
		return
	}
	w.recovering, w.again, w.soon = true, false, false
	w.next.Stop()
	for _, f := range slices.Collect(maps.Values(w.holders)) { // it will say who still does
		w.forget(f)
	}
	w.do(func(ctx context.Context) func() {
		began := time.Now()
		out, err := w.iso.Recover(ctx, RecoverOptions{})
		took := time.Since(began)
		return func() {
			w.recovering = false
			w.state.Recovers[result(err)]++
			w.state.Last, w.state.LastErr, w.state.LastBegan, w.state.LastTook = out, err, began, took
			if err == nil {
				w.state.LastGood, w.retry = began, 0
				w.recoverIn(w.o.Interval)
			} else {
				w.iso.log.Warn("not all is well", "error", err)
				w.retry = min(max(2*w.retry, retryFirst), retryMost, w.o.Interval)
				w.recoverIn(w.retry)
			}
			if w.soon {
				w.recoverSoon()
			}
			if out != nil {
				w.state.Corrupt += len(out.Corrupt)
				for _, at := range out.Corrupt {
					w.iso.log.Warn("moved a record aside that cannot be trusted", "to", at)
				}
				w.watchHolders(&Cleaned{Pending: out.Pending})
			}
			if w.again {
				w.recover()
			}
		}
	})
}

// recoverIn sets when the next Recover is.
func (w *watch) recoverIn(in time.Duration) {
	w.due = time.Now().Add(in)
	w.next.Reset(in)
}

// recoverSoon has it as early as what failed before allows.
func (w *watch) recoverSoon() {
	in := max(w.retry, retryFirst)
	if w.recovering {
		w.soon = true
	} else if time.Until(w.due) > in {
		w.recoverIn(in)
	}
}

// result is "ok", or the code of an error.
func result(err error) string {
	if err == nil {
		return "ok"
	}
	return string(failure(err).Code)
}

// A recordEvent is what happened in the folder of the containers' records.
type recordEvent struct {
	name   string // of the record
	missed bool   // events were lost
	err    error  // there will be no more
}

// containersDir is the folder of the containers' records, in the journal's.
const containersDir = "containers"

// watchFolder asks for word of each container's record that is written or removed, and of the removal of their folder: that is open, so it does not tell itself.
func watchFolder(journal string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		if _, err = unix.InotifyAddWatch(fd, journal, unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_ONLYDIR); err == nil {
			_, err = unix.InotifyAddWatch(fd, journal+"/"+containersDir, unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ONLYDIR)
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, wire.Errorf(wire.System, "state", "cannot watch the journal's folder %s: %v", journal, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// read hands the events of the folder to the loop until it has ended.
func (w *watch) read(records *os.File) {
	send := func(e recordEvent) (more bool) {
		select {
		case w.records <- e:
			return e.err == nil
		case <-w.stop:
			return false
		}
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := records.Read(buf)
		if err != nil {
			send(recordEvent{err: wire.Errorf(wire.System, "state", "cannot watch the journal's folder any longer: %v", err)})
			return
		}
		for data := buf[:n]; len(data) >= unix.SizeofInotifyEvent; {
			mask, length := binary.NativeEndian.Uint32(data[4:]), binary.NativeEndian.Uint32(data[12:])
			file := string(bytes.TrimRight(data[unix.SizeofInotifyEvent:][:length], "\x00"))
			data = data[unix.SizeofInotifyEvent+length:]
			e := recordEvent{missed: mask&unix.IN_Q_OVERFLOW != 0}
			if mask&unix.IN_IGNORED != 0 || mask&unix.IN_ISDIR != 0 && file == containersDir {
				e.err = wire.Errorf(wire.System, "state", "cannot watch the journal any longer: its folder is gone")
			}
			is := false
			if e.name, is = strings.CutSuffix(file, ".rec"); (is || e.missed || e.err != nil) && !send(e) {
				return
			}
		}
	}
}
