//go:build crash

// Package crash kills both programs at every system call that they make, and makes every one of these calls fail, in every verb; and looks whether the
// journal, the ledger, the kernel and the driver agree afterwards (T33, T34).
//
// A command is run under ptrace(2) again and again; each time it is interrupted one call later, until it ends by itself. What is skipped is a rule, not a
// sample: the calls before main.main, which are the start of the Go runtime and of packages, those of the runtime in between (ofRuntime), and in all verbs but
// one the helper's before it knows what it is asked (counter). A process that is killed after a call and one that is killed before its next one leave the same
// behind, so the sweep kills before each call, and has killed after each.
//
// If all that a verb may change is the same byte for byte as before it, nothing is to be recovered, and the next run begins from there. Else recover is called,
// the records are compared with what is so, and the container gets its volumes and is cleaned up as if nothing had been; once for each kind of state: those
// that differ in nothing but ids, times and the like are one. A point that left a state of a new kind is tried a second time, and before recover another
// container uses the same volumes and is done with them. Then the world is brought back to where the verb is called, and the next run begins.
package crash

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

var verbs = []string{"prepare", "isolate", "attach", "detach", "cleanup", "recover"}

// sweeps runs a sweep for each verb, with one volume and with three, each in a host of its own and as many at once as go test -parallel says. With three
// volumes bindgate is started as root, and becomes the policy user.
func sweeps(t *testing.T, watch string, sweep func(s *sweep), verbs ...string) {
	for _, verb := range verbs {
		for name, vols := range map[string][]volume{"one": onePlugin, "three": three} {
			user := policyUser
			if name == "three" {
				user = rootUser
			} else if watch == helper {
				vols = oneLocal // so that prepare asks the helper too
			}
			t.Run(verb+"-"+name, func(t *testing.T) {
				t.Parallel()
				defer pinned(t)()
				harness.Run(t, func(h *harness.Host) {
					s := newSweep(newWorld(t, h, user, vols), verb, watch)
					sweep(s)
					s.wipe()
					s.report()
				}, harness.OwnNetwork()) // quiet looks at its sockets
			})
		}
	}
}

// sweepsOn counts by processor how many sweeps run there.
var (
	sweepsLock sync.Mutex
	sweepsOn   = map[int]int{}
)

// pinned puts a sweep's host on one processor, the one with the fewest, until what it returns is called: to wake another one for each call costs more than all
// the rest. The host inherits it from the thread that starts it.
func pinned(t *testing.T) func() {
	runtime.LockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	sweepsLock.Lock()
	defer sweepsLock.Unlock()
	cpu := -1
	for i := range len(all) * 64 {
		if all.IsSet(i) && (cpu < 0 || sweepsOn[i] < sweepsOn[cpu]) {
			cpu = i
		}
	}
	sweepsOn[cpu]++
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	return func() {
		sweepsLock.Lock()
		defer sweepsLock.Unlock()
		sweepsOn[cpu]--
		unix.SchedSetaffinity(0, &all)
		runtime.UnlockOSThread()
	}
}

// A sweep is all runs of one verb in one world.
type sweep struct {
	*world
	verb, watch string
	start       *snapshot          // the state in which the verb is called
	begun       *state             // and what it says
	startD      *harness.Container // and the second container then
	clean       []string
	sound       map[string]bool // kinds of states from which all went well
	shared      map[string]bool // and of those in which another container used the volumes before recover
	points      int             // runs that were interrupted
	changed     int             // of these, how many left something changed
	failures    int
}

func newSweep(w *world, verb, watch string) *sweep {
	s := &sweep{world: w, verb: verb, watch: watch, sound: map[string]bool{}, shared: map[string]bool{}}
	s.clean = w.lines()
	s.begin()
	return s
}

func (s *sweep) report() {
	s.t.Logf("%s: %d points in %s, %d of which left something changed, in %d ways", s.verb, s.points, s.watch, s.changed, len(s.sound))
}

// begin brings the world from nothing to where the verb is called.
func (s *sweep) begin() {
	s.base(s.verb)
	s.mark()
}

// mark has the world as it is be that in which the verb is called.
func (s *sweep) mark() { s.start, s.startD, s.begun = s.capture(), s.d, s.state() }

// settled looks at what a run has left: first as it is, then after recover; and begins anew. what names the point. It returns the kind of state that it was,
// "" for none: nothing had changed.
func (s *sweep) settled(what string, o outcome) string {
	s.t.Helper()
	return s.settledAfter(what, o, nil)
}

// settledAfter is settled where something else, with, happens before recover.
func (s *sweep) settledAfter(what string, o outcome, with func(fail func(string, ...string))) string {
	s.t.Helper()
	s.quiet()
	left := s.capture()
	if left.exact == s.start.exact {
		return ""
	}
	s.changed++
	sound := s.sound
	if with != nil {
		sound = s.shared
		what += ", then shared"
		s.changed--
	}
	s.try(sound, left, what, o, func(fail func(string, ...string)) {
		if with != nil {
			with(fail)
		}
		if r := s.h.Policy(s.args("recover")...); r.Exit != 0 {
			fail("recover fails", r.String())
		}
		if list := s.disagreements(); len(list) > 0 {
			fail("after recover", list...)
		}
		s.again(fail)
	})
	return left.kind
}

// try calls check for a state that a run left, unless it went well with one of that kind, and begins anew.
func (s *sweep) try(sound map[string]bool, left *snapshot, what string, o outcome, check func(fail func(string, ...string))) {
	s.t.Helper()
	if !sound[left.kind] {
		failures := s.failures
		check(s.failing(what, s.lines(), o))
		if sound[left.kind] = s.failures == failures; s.failures > failures {
			delete(sound, left.kind)
			s.wipe() // so that one failure is not every later point's
		}
	}
	s.restore()
}

// share has another container use the volumes and be done with them: what it is given is mounted.
func (s *sweep) share(fail func(string, ...string)) {
	if r := s.h.Policy(append([]string{"prepare", "-o", "json", "--container", "e"}, s.mountFlags(s.vols)...)...); r.Exit != 0 {
		fail("another container does not get the volumes", r.String())
	}
	now := s.state()
	for _, v := range s.vols {
		if v.driver == "plugin" && !slices.Contains(now.onHost, v.name) {
			fail("another container is given "+v.name+", which is not mounted", now.lines()...)
		}
	}
	if r := s.h.Policy("cleanup", "-o", "json", "--container", "e"); r.Exit != 0 {
		fail("another container cannot give the volumes back", r.String())
	}
}

// failing returns what reports a failure: after a run that left this state.
func (s *sweep) failing(what string, left []string, o outcome) func(why string, list ...string) {
	return func(why string, list ...string) {
		s.t.Helper()
		s.t.Errorf("%s: %s:\n\t%s\nit was left as:\n\t%s\n%v", what, why, strings.Join(list, "\n\t"), strings.Join(left, "\n\t"), o.Result)
		if s.failures++; s.failures > tooMany {
			s.t.Fatal("too many failures")
		}
	}
}

// again gives the container its volumes, whatever it has by now, and cleans it up: nothing is left then.
func (s *sweep) again(fail func(string, ...string)) {
	do := func(verb string) {
		if r := s.h.Policy(s.args(verb)...); r.Exit != 0 {
			fail(verb+" fails after recover", r.String())
		}
	}
	c, known := s.state().containers["c"]
	if known && len(c.Volumes) < len(s.vols) {
		do("cleanup")
		known = false
	}
	switch {
	case known && c.Phase == "isolated":
	case known:
		do("isolate")
	case s.verb == "attach":
		do("attach")
	default:
		do("prepare")
		do("isolate")
	}
	now := s.state()
	for _, v := range s.vols {
		if !slices.Contains(now.mounts, v.path) {
			fail("nothing is attached at "+v.path, now.lines()...)
		}
	}
	s.finish(fail)
}

// finish cleans the container up: nothing is left then.
func (s *sweep) finish(fail func(string, ...string)) {
	if r := s.h.Policy(s.args("cleanup")...); r.Exit != 0 {
		fail("cleanup fails", r.String())
	}
	s.endD()
	if left := s.lines(); !slices.Equal(left, s.clean) {
		fail("after cleanup something is left", left...)
	}
}

// tooMany is when a sweep is given up.
const tooMany = 1000

// ended is how many runs in a row have to end by themselves before a sweep is done: counts differ by a few from run to run.
const ended = 3

// counter returns what numbers the calls of one run that are points of the sweep, from 1, and says 0 of others. The helper's start, until it reads its request,
// is the same whatever it is asked, and has touched nothing: it is swept in isolate alone.
func (s *sweep) counter() func(call) int {
	asked, n := map[int]bool{}, 0
	return func(c call) int {
		if c.nr == unix.SYS_READ && c.args[0] == 0 {
			asked[c.pid] = true
		}
		if c.by == helper && s.verb != "isolate" && !asked[c.pid] {
			return 0
		}
		n++
		return n
	}
}

// kill kills a program before each of its calls in turn.
func (s *sweep) kill() {
	var with func(func(string, ...string)) // the second time
	for n, alone := 1, 0; alone < ended; n++ {
		var at call
		counts := s.counter()
		o := s.tr.run(command{user: s.user, args: s.args(s.verb), watch: s.watch, judge: func(c call) act {
			if counts(c) == n {
				at = c
				return act{kill: s.watch}
			}
			return act{}
		}})
		switch {
		case at.n == 0:
			alone++
		case with == nil:
			s.points++
			alone = 0
		}
		what := s.verb + ", killed before " + at.String()
		if o.hung {
			s.t.Fatalf("%s: it does not end", what)
		}
		kind := s.settledAfter(what, o, with)
		if again := with != nil; !again && s.sound[kind] && !s.shared[kind] {
			with = s.share
			n--
		} else {
			with = nil
		}
	}
}

func TestKillPolicy(t *testing.T) { sweeps(t, policy, (*sweep).kill, verbs...) }

func TestKillHelper(t *testing.T) { sweeps(t, helper, (*sweep).kill, verbs...) }
