//go:build crash

// Package crash kills both programs at every system call that they make, and makes every one of these calls fail, in every verb; and looks whether the
// journal, the ledger, the kernel and the driver agree afterwards (T33, T34).
//
// A command is run under ptrace(2) again and again; each time it is interrupted one call later, until it ends by itself. What is skipped is a rule, not a
// sample: the calls before main.main, which are the start of the Go runtime and of packages, and those of the runtime in between (ofRuntime). A process that
// is killed after a call and one that is killed before its next one leave the same behind, so the sweep kills before each call, and has killed after each.
//
// If all that a verb may change is the same byte for byte as before it, nothing is to be recovered, and the next run begins from there. Else recover is called,
// the records are compared with what is so, and the container gets its volumes and is cleaned up as if nothing had been.
package crash

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

var verbs = []string{"prepare", "isolate", "attach", "detach", "cleanup", "recover"}

// sweeps runs a sweep for each verb, with one volume and with three, each in a host of its own and as many at once as go test -parallel says. With three
// volumes bindgate is started as root, and becomes the policy user.
func sweeps(t *testing.T, watch string, sweep func(s *sweep)) {
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
				harness.Run(t, func(h *harness.Host) {
					s := newSweep(newWorld(t, h, user, vols), verb, watch)
					sweep(s)
					s.report()
				})
			})
		}
	}
}

// A sweep is all runs of one verb in one world.
type sweep struct {
	*world
	verb, watch string
	before      uint64 // fingerprint of the state in which the verb is called; 0: it is to be made
	clean       []string
	points      int // runs that were interrupted
	changed     int // of these, how many left something changed
	failures    int
}

func newSweep(w *world, verb, watch string) *sweep {
	s := &sweep{world: w, verb: verb, watch: watch}
	s.clean = w.lines()
	return s
}

func (s *sweep) report() {
	s.t.Logf("%s: %d points in %s, %d of which left something changed", s.verb, s.points, s.watch, s.changed)
}

// ready brings the world to where the verb is called.
func (s *sweep) ready() {
	if s.before == 0 {
		s.base(s.verb)
		s.before = s.fingerprint()
	}
}

// settled looks at what a run has left: first as it is, then after recover; and begins anew. what names the point.
func (s *sweep) settled(what string, o outcome) {
	s.t.Helper()
	s.quiet()
	if s.fingerprint() == s.before {
		return
	}
	s.changed++
	fail := s.failing(what, s.lines(), o)
	if r := s.h.Policy(s.args("recover")...); r.Exit != 0 {
		fail("recover fails", r.String())
	}
	if list := s.disagreements(); len(list) > 0 {
		fail("after recover", list...)
	}
	s.again(fail)
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
		s.reset()
	}
	s.removeVolumes()
	s.before = 0
}

// reset takes everything away, so that one failure is not every later point's.
func (s *sweep) reset() {
	s.h.Sh("rm -rf " + s.h.Journal() + "/*/.[a-z]*rec* " + s.h.Journal() + "/*/*.rec " + s.h.Ledger() + "/* " + s.h.Ledger() + "/.[0-9]*")
	for _, m := range slices.Backward(s.state().mounts) {
		s.h.Sh("nsenter -t " + s.c.PIDString() + " -m umount -l " + m)
	}
	s.h.Sh("rm -rf " + s.c.Root + "/srv " + s.c.Root + "/tmp/* " + s.sandbox() + "/*")
	s.p.Kill()
	for _, name := range s.state().onHost {
		unix.Unmount(s.p.Root+"/mnt/"+name, unix.MNT_DETACH)
	}
	s.check(unix.Truncate(s.h.Path("tmp", "plugin-plugin.log"), 0))
	s.p.Start()
	s.endD()
}

// tooMany is when a sweep is given up.
const tooMany = 1000

// ended is how many runs in a row have to end by themselves before a sweep is done: counts differ by a few from run to run.
const ended = 3

// kill kills a program before each of its calls in turn.
func (s *sweep) kill() {
	for n, alone := 1, 0; alone < ended; n++ {
		s.ready()
		var at call
		o := s.tr.run(command{user: s.user, args: s.args(s.verb), watch: s.watch, judge: func(c call) act {
			if c.n == n {
				at = c
				return act{kill: s.watch}
			}
			return act{}
		}})
		if at.n == 0 {
			alone++
		} else {
			s.points++
			alone = 0
		}
		what := s.verb + ", killed before " + at.String()
		if o.hung {
			s.t.Fatalf("%s: it does not end", what)
		}
		s.settled(what, o)
	}
}

func TestKillPolicy(t *testing.T) { sweeps(t, policy, (*sweep).kill) }

func TestKillHelper(t *testing.T) { sweeps(t, helper, (*sweep).kill) }
