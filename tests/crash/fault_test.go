//go:build crash

package crash

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// doing are the calls by which the helper changes something for a container. After one that failed it makes none any more.
var doing = []int{unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_SYMLINKAT, unix.SYS_FSOPEN}

// fault makes each call of a program fail in turn, with each of the errors that it can have. The command ends with a status of the contract and an error that
// names the stage, or all the same with what it was to do; and what it has done is undone, or reported as left.
func (s *sweep) fault() {
	s.ready()
	before := s.lines()
	done := s.h.Policy(s.args(s.verb)...).OK(s.t)
	success := s.lines()
	s.settled(s.verb+", undisturbed", outcome{Result: done})
	s.changed = 0

	tried := map[syscall.Errno]int{}
	for n, i, alone := 1, 0, 0; alone < ended; {
		s.ready()
		var at call
		var errno syscall.Errno
		var more []string          // what the helper did after the failure
		firsts := map[[2]int]int{} // by process and call: the thread that made it first
		o := s.tr.run(command{user: s.user, args: s.args(s.verb), watch: s.watch, judge: func(c call) act {
			list := c.errors()
			first := firsts[[2]int{c.pid, c.nr}]
			if first == 0 {
				firsts[[2]int{c.pid, c.nr}] = c.tid
			}
			switch c.nr {
			case unix.SYS_SETGROUPS, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_CAPSET:
				// The runtime makes it on all threads once it went well on the first, and ends the process if they do not agree.
				if first != 0 && first != c.tid {
					list = nil
				}
			case unix.SYS_EPOLL_CTL: // the runtime's poller begins with a descriptor of its own
				if first == 0 {
					list = nil
				}
			}
			switch {
			case at.n > 0:
				if c.pid == at.pid && c.by == helper && slices.Contains(doing, c.nr) {
					more = append(more, c.String())
				}
			case c.n == n && i >= len(list):
				n, i = n+1, 0
			case c.n >= n:
				n, at, errno = c.n, c, list[min(i, len(list)-1)]
				tried[errno]++
				return act{fail: errno}
			}
			return act{}
		}})
		what := "no failure"
		if at.n == 0 {
			alone++
		} else {
			s.points++
			alone = 0
			what = fmt.Sprintf("%s, %v fails with %v", s.verb, at, errno)
			i++
		}
		s.quiet()
		switch now := s.judge(what, o, before, success, more); {
		case slices.Equal(now, before):
			s.before = s.fingerprint() // written anew, but the same
		case o.Exit == 0 && slices.Equal(now, success):
			s.changed++
			s.finish(s.failing(what, now, o))
		default:
			s.settled(what, o)
		}
	}
	s.t.Logf("%s: with %v", s.verb, tried)
}

// judge looks at how a run ended of which one call failed, and returns what state it left.
func (s *sweep) judge(what string, o outcome, before, success, more []string) (now []string) {
	s.t.Helper()
	now = s.lines()
	fail := s.failing(what, now, o)
	if o.hung {
		fail("it does not end")
		return now
	}
	if o.Exit == 0 {
		if !slices.Equal(lasting(now), lasting(success)) {
			fail("it ended well, and the state is not that of a success", success...)
		}
		return now
	}
	var doc struct {
		Error struct {
			Code  wire.Code
			Stage string
			Left  []any
		}
	}
	_, text, _ := strings.Cut("\n"+o.Stderr, "\n{")
	if err := json.Unmarshal([]byte("{"+text), &doc); err != nil || doc.Error.Code.Exit() != o.Exit || doc.Error.Stage == "" {
		fail(fmt.Sprintf("its error is none of the contract's, or names no stage (%v)", err))
	}
	if doc.Error.Code == wire.Internal {
		fail("a failure is taken for a bug")
	}
	if len(more) > 0 {
		fail("the helper went on after the failure", more...)
	}
	if slices.Contains([]string{"prepare", "isolate", "attach"}, s.verb) && !slices.Equal(lasting(now), lasting(before)) && len(doc.Error.Left) == 0 {
		fail("it failed, nothing is reported as left, and the state is not as before", before...)
	}
	return now
}

// lasting leaves out what may stay in the helper's ledger until the next recover: it names a mount of which the kernel knows that it is not there.
func lasting(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return strings.HasPrefix(line, "ledger has") || strings.HasPrefix(line, "index entry")
	})
}

func TestFaultPolicy(t *testing.T) { sweeps(t, policy, (*sweep).fault) }

func TestFaultHelper(t *testing.T) { sweeps(t, helper, (*sweep).fault) }
