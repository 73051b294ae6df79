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

// fault makes each call of a program fail in turn: with one volume once with each of the errors that its kind of call can have; with three, which would be
// two and a half times as many runs, with the next of them: the first openat of a sweep for want of descriptors, the second for want of memory, the third
// because the disk is broken, and so on. The command ends with a status of the contract and an error that names the stage, or all the same with what it was to
// do; and what it has done is undone, or reported as left.
func (s *sweep) fault() {
	each := len(s.vols) == 1
	before := s.lines()
	done := s.h.Policy(s.args(s.verb)...).OK(s.t)
	success := s.lines()
	s.settled(s.verb+", undisturbed", outcome{Result: done})
	s.changed = 0

	failed := map[int]int{} // by the kind of call: how many have failed
	tried := map[syscall.Errno]int{}
	for n, nth, alone := 1, 0, 0; alone < ended; { // nth: which of its errors
		var at call
		last, errors := 0, 0 // the number of at, and how many errors it can have
		counts := s.counter()
		var errno syscall.Errno
		var more []string          // what the helper did after the failure
		firsts := map[[2]int]int{} // by process and call: the thread that made it first
		o := s.tr.run(command{user: s.user, args: s.args(s.verb), watch: s.watch, judge: func(c call) act {
			if at.n > 0 {
				if c.pid == at.pid && slices.Contains(doing, c.nr) {
					more = append(more, c.String())
				}
				return act{}
			}
			list, i := c.errors(), counts(c)
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
			if i < n || len(list) == 0 {
				return act{}
			}
			at, last, errors, errno = c, i, len(list), list[failed[c.nr]%len(list)]
			if failed[c.nr]++; each {
				errno = list[nth%len(list)]
			}
			tried[errno]++
			return act{fail: errno, last: c.by == policy}
		}})
		what := "no failure"
		if at.n == 0 {
			alone++
		} else {
			s.points++
			alone, n, nth = 0, last, nth+1
			if !each || nth >= errors {
				n, nth = last+1, 0
			}
			what = fmt.Sprintf("%s, %v fails with %v", s.verb, at, errno)
		}
		s.quiet()
		switch now := s.judge(what, at, o, before, success, more); {
		case slices.Equal(now, before): // as it was, if written anew
			s.restore()
		case o.Exit == 0 && slices.Equal(now, success):
			s.changed++
			s.try(s.sound, s.capture(), what, o, s.finish)
		default:
			s.settled(what, o)
		}
	}
	s.t.Logf("%s: with %v", s.verb, tried)
}

// judge looks at how a run ended of which one call failed, and returns what state it left.
func (s *sweep) judge(what string, at call, o outcome, before, success, more []string) (now []string) {
	s.t.Helper()
	now = s.lines()
	fail := s.failing(what, now, o)
	if o.hung {
		fail("it does not end")
		return now
	}
	said := at.by == policy && at.nr == unix.SYS_WRITE && at.args[0] == 1 // what could not be said is done all the same
	if o.Exit == 0 || said {
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

func TestFaultPolicy(t *testing.T) { sweeps(t, policy, (*sweep).fault, verbs...) }

func TestFaultHelper(t *testing.T) { sweeps(t, helper, (*sweep).fault, verbs...) }
