//go:build crash

package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// orphan kills the policy process while the helper that it started is at each of its calls in turn, and calls recover before the helper goes on. Whichever of the
// two comes first, what they leave agrees: a helper whose caller is gone does not attach behind the back of a recover that is done.
func (s *sweep) orphan() {
	for n, alone := 1, 0; alone < ended; n++ {
		var at call
		counts := s.counter()
		var recovered chan harness.Result
		o := s.tr.run(command{user: s.user, args: s.args(s.verb), watch: helper,
			judge: func(c call) act {
				if c.child {
					return act{} // the helper's own; it waits for it
				}
				if counts(c) == n {
					at = c
					return act{kill: policy, last: true}
				}
				return act{}
			},
			orphaned: func() {
				recovered = make(chan harness.Result, 1)
				go func() { recovered <- s.h.Policy(s.args("recover")...) }()
				for len(recovered) == 0 {
					if s.lockWaitedFor() {
						return
					}
					yield()
				}
			},
		})
		what := fmt.Sprintf("%s, recovered before %v, whose caller was killed", s.verb, at)
		if o.hung {
			s.t.Fatalf("%s: it does not end", what)
		}
		if recovered == nil { // nobody was killed
			alone++
			s.settled(what, o)
			continue
		}
		alone = 0
		s.points++
		o.Result = <-recovered
		s.quiet()
		if left := s.capture(); left.exact != s.start.exact {
			fail := s.failing(what, s.lines(), o)
			if o.Exit != 0 {
				fail("recover fails")
			}
			if list := s.disagreements(); len(list) > 0 {
				fail("after that recover", list...)
			}
		}
		s.settled(what, o)
	}
}

// lockWaitedFor reports whether somebody waits for a lock of ours: in /proc/locks, a waiter's line has an arrow (proc_locks(5)).
func (s *sweep) lockWaitedFor() bool {
	locks, err := os.ReadFile("/proc/locks")
	s.check(err)
	for _, dir := range []string{s.h.Ledger(), s.h.Journal() + "/containers", s.h.Journal() + "/volumes"} {
		var st unix.Stat_t
		s.check(unix.Stat(filepath.Join(dir, ".lock"), &st))
		file := fmt.Sprintf(" %02x:%02x:%d ", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "->") && strings.Contains(line, file) {
				return true
			}
		}
	}
	return false
}

func TestOrphanedHelper(t *testing.T) {
	sweeps(t, helper, (*sweep).orphan, "isolate", "attach", "detach", "cleanup")
}
