// Package doctor breaks one thing after the other in an installed tree, and sees bindgate doctor say so: with the right class, and with commands that mend
// exactly that.
package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "without" {
		without(os.Args[1:])
	}
	harness.Main(m)
}

// without NR ERRNO ARG... -- PROGRAM ARG...: runs a program for which a system call fails like that, as on a kernel that lacks it: always, or only with
// one of these second arguments. Only root can, without no_new_privs.
func without(args []string) {
	die := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "without:", err)
			os.Exit(127)
		}
	}
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 0, 32)
		die(err)
		return uint32(n)
	}
	const load, ret, jeq = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_RET | unix.BPF_K, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	nr, errno := number(args[0]), number(args[1])
	args = args[2:]
	refuse := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | errno}
	allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	prog := []unix.SockFilter{{Code: load}, {Code: jeq, Jt: 1, K: nr}, allow}
	if args[0] == "--" {
		prog = append(prog, refuse)
	} else {
		prog = append(prog, unix.SockFilter{Code: load, K: 24}) // the low half of the second argument
		for args[0] != "--" {
			prog = append(prog, unix.SockFilter{Code: jeq, Jf: 1, K: number(args[0])}, refuse)
			args = args[1:]
		}
		prog = append(prog, allow)
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	runtime.LockOSThread() // a filter is a thread's, and execve(2) keeps that of the thread that calls it
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
	if e != 0 {
		die(e)
	}
	die(unix.Exec(args[1], args[1:], []string{}))
}

// report is what doctor prints.
type report struct {
	Schema string
	Root   bool
	Checks []check
}

type check struct {
	Check, State, Code, Message, Hint string
	Fix                               []string
}

// who runs doctor.
var (
	root   = harness.User{}
	policy = harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
)

// parse reads what doctor printed, and checks that the exit status follows from it.
func parse(t *testing.T, r harness.Result) (rep report) {
	t.Helper()
	r.JSON(t, &rep)
	if rep.Schema != "bindgate/v1" {
		t.Errorf("schema %q", rep.Schema)
	}
	failed := 0
	for _, c := range rep.Checks {
		if c.Message == "" || (c.Code != "") != (c.State == "failed") {
			t.Errorf("%+v", c)
		}
		if c.State == "failed" {
			failed++
		}
	}
	if (failed > 0) != (r.Exit != 0) {
		t.Errorf("%d failed, and exit %d", failed, r.Exit)
	}
	return rep
}

// doctor runs it.
func doctor(t *testing.T, h *harness.Host, user harness.User, args ...string) (report, harness.Result) {
	t.Helper()
	r := h.PolicyAs(user, "", append([]string{"doctor", "-o", "json"}, args...)...)
	return parse(t, r), r
}

// healthy fails the test unless nothing is wrong.
func healthy(t *testing.T, h *harness.Host) {
	t.Helper()
	for _, user := range []harness.User{root, policy} {
		rep, r := doctor(t, h, user)
		r.OK(t)
		for _, c := range rep.Checks {
			if c.State != "ok" && c.State != "unknown" || c.State == "unknown" && rep.Root {
				t.Errorf("uid %d: %+v", user.UID, c)
			}
		}
	}
}

// find returns the checks of a name that are not ok.
func (rep report) find(name string) (list []check) {
	for _, c := range rep.Checks {
		if c.Check == name && c.State != "ok" {
			list = append(list, c)
		}
	}
	return list
}

// only fails the test if something else failed than these.
func (rep report) only(t *testing.T, names ...string) {
	t.Helper()
	for _, c := range rep.Checks {
		if c.State == "failed" && !strings.Contains(" "+strings.Join(names, " ")+" ", " "+c.Check+" ") {
			t.Errorf("%s failed too: %s", c.Check, c.Message)
		}
	}
}

// mend runs the commands of a check, as root, with bindgate in the path.
func mend(t *testing.T, h *harness.Host, c check) {
	t.Helper()
	if len(c.Fix) == 0 {
		t.Errorf("%s has no fix", c.Check)
	}
	for _, command := range c.Fix {
		h.Sh("PATH=" + h.Path("prefix/bin") + ":/usr/sbin:/sbin:$PATH; " + command).OK(t)
	}
}
