package privops

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// status is what proc_pid_status(5) says of a thread that is as Reduce wants it.
func status(bounding string) string {
	return "Name:\tbindgate-helper\nUmask:\t0022\nState:\tR (running)\nTgid:\t7\nPid:\t7\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t \nThreads:\t6\nSigIgn:\tfffffffe3bfba2a7\n" +
		fmt.Sprintf("CapInh:\t%016x\nCapPrm:\t%016x\nCapEff:\t%016x\nCapBnd:\t%s\nCapAmb:\t%016x\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\nSpeculation_Store_Bypass:\tthread vulnerable\n", 0, uint64(allCaps), uint64(allCaps), bounding, 0)
}

const (
	none = "0000000000000000"
	full = "000001ffffffffff"
)

// T36: a call that reports success and did nothing is found by reading back.
func TestCheckStatus(t *testing.T) {
	for name, s := range map[string]struct {
		text    string
		working bool
	}{
		"the working thread":                        {status(none), true},
		"another thread":                            {status(full), false},
		"another thread with an empty bounding set": {status(none), false},
		"without a newline at the end":              {strings.TrimSuffix(status(none), "\n"), true},
		"with a line that is not known":             {status(none) + "Something_new:\t7\n", true},
	} {
		if err := CheckStatus(s.text, s.working); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	all := fmt.Sprintf("%016x", uint64(allCaps))
	for name, change := range map[string][2]string{
		"the real uid is the caller's":               {"Uid:\t0\t0\t0\t0", "Uid:\t1000\t0\t0\t0"},
		"the effective uid is":                       {"Uid:\t0\t0\t0\t0", "Uid:\t0\t1000\t0\t0"},
		"the saved uid is":                           {"Uid:\t0\t0\t0\t0", "Uid:\t0\t0\t1000\t0"},
		"the file system uid is":                     {"Uid:\t0\t0\t0\t0", "Uid:\t0\t0\t0\t1000"},
		"capset did nothing":                         {"CapEff:\t" + all, "CapEff:\t" + full},
		"capset did nothing to the permitted ones":   {"CapPrm:\t" + all, "CapPrm:\t" + full},
		"capset left one more":                       {"CapEff:\t" + all, fmt.Sprintf("CapEff:\t%016x", uint64(allCaps)|1<<unix.CAP_SYS_MODULE)},
		"capset took one that is needed":             {"CapPrm:\t" + all, fmt.Sprintf("CapPrm:\t%016x", uint64(allCaps)&^(1<<unix.CAP_SYS_ADMIN))},
		"capset took them all":                       {"CapEff:\t" + all, "CapEff:\t" + none},
		"something is inheritable":                   {"CapInh:\t" + none, "CapInh:\t0000000000000001"},
		"something is ambient":                       {"CapAmb:\t" + none, "CapAmb:\t0000000000200000"},
		"the bounding set is full":                   {"CapBnd:\t" + none, "CapBnd:\t" + full},
		"the bounding set has one left":              {"CapBnd:\t" + none, "CapBnd:\t0000000000000001"},
		"the bounding set has one of a later kernel": {"CapBnd:\t" + none, "CapBnd:\t0000020000000000"},
		"no_new_privs is not set":                    {"NoNewPrivs:\t1", "NoNewPrivs:\t0"},
		"there is no filter":                         {"Seccomp:\t2", "Seccomp:\t0"},
		"there is only the strict mode":              {"Seccomp:\t2", "Seccomp:\t1"},
		"a filter is counted but not in force":       {"Seccomp:\t2\nSeccomp_filters:\t1", "Seccomp:\t0\nSeccomp_filters:\t2"},
		"Uid is missing":                             {"Uid:", "Uidx:"},
		"CapEff is missing":                          {"CapEff:", "capeff:"},
		"NoNewPrivs is missing":                      {"NoNewPrivs:\t1\n", ""},
		"Seccomp is missing":                         {"Seccomp:\t2\n", ""},
		"a name claims what is not so":               {"Name:\tbindgate-helper\n", "Name:\tNoNewPrivs:1\\nSeccomp:2\n"},
		"a number has more digits":                   {"CapInh:\t" + none, "CapInh:\t0" + none},
		"a number has fewer":                         {"CapAmb:\t" + none, "CapAmb:\t0"},
	} {
		text := strings.Replace(status(none), change[0], change[1], 1)
		if strings.HasPrefix(name, "a name") {
			text = strings.Replace(strings.Replace(text, "\nNoNewPrivs:\t1", "\nNoNewPrivs:\t0", 1), "\nSeccomp:\t2", "\nSeccomp:\t0", 1)
		}
		if text == status(none) {
			t.Fatalf("%s: nothing was changed", name)
		}
		err := CheckStatus(text, true)
		var e *wire.Error
		if !errors.As(err, &e) || e.Code != wire.Internal || strings.Contains(e.Message, "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if err := CheckStatus(text, false); err == nil && !strings.HasPrefix(name, "the bounding set") {
			t.Errorf("%s, in another thread: it is taken", name)
		}
	}
	text := status(none)
	last := strings.Index(text, "Seccomp:\t2") + len("Seccomp:\t2")
	for n := range last { // the text cut short anywhere before the last that is wanted
		if CheckStatus(text[:n], true) == nil {
			t.Errorf("cut at %d it is taken", n)
		}
	}
}

// This process has not been reduced, as root or not.
func TestCheckStatusOfThisProcess(t *testing.T) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, working := range []bool{false, true} {
		if err := CheckStatus(string(text), working); err == nil {
			t.Error("a process with a test's rights is taken for the helper")
		}
	}
}

// What each kind of operation keeps, by number (linux/capability.h): a capability more must be a decision.
func TestCapabilitiesAreTheFewThatAreNeeded(t *testing.T) {
	const chown, dacOverride, fowner, fsetid, setgid, setuid, sysChroot, sysPtrace, sysAdmin = 0, 1, 3, 4, 6, 7, 18, 19, 21
	for name, c := range map[string]struct {
		got  uint64
		want []int
	}{
		"mount":  {mountCaps, []int{sysAdmin, sysChroot, sysPtrace, setuid, setgid, dacOverride}},
		"volume": {volumeCaps, []int{sysAdmin, chown, dacOverride, fowner, fsetid}},
		"all":    {allCaps, []int{sysAdmin, sysChroot, sysPtrace, setuid, setgid, dacOverride, chown, fowner, fsetid}},
	} {
		var want uint64
		for _, n := range c.want {
			want |= 1 << n
		}
		if c.got != want {
			t.Errorf("%s: %#x, want %#x", name, c.got, want)
		}
	}
}

// FuzzCheckStatus: what is taken has every line that is wanted, with the value that is wanted.
func FuzzCheckStatus(f *testing.F) {
	f.Add(status(none), true)
	f.Add(status(full), false)
	f.Add(status(full), true)
	f.Add("", true)
	f.Add("Uid:\n\n:\nCapEff", false)
	f.Fuzz(func(t *testing.T, text string, working bool) {
		if CheckStatus(text, working) != nil {
			return
		}
		said := map[string][]string{}
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			said[key] = append(said[key], strings.TrimSpace(value))
		}
		for line := range strings.Lines(status(none)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			switch key {
			case "CapBnd":
				if !working {
					continue
				}
			case "Uid", "CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Seccomp":
			default:
				continue
			}
			found := false
			for _, v := range said[key] {
				found = found || v == strings.TrimSpace(value)
			}
			if !found {
				t.Errorf("%q is taken, but its %s is %q", text, key, said[key])
			}
		}
	})
}
