// Package privops holds the privileged operations of bindgate-helper. Every privileged system call is here or in package namespace. Nothing here reads a configuration file or decides who may ask; it is told, and
// holds what it is told against what the kernel says. All of it runs on one locked thread, since namespaces, file system ids and capabilities belong to a thread, and serves one request: the end closes descriptors.
package privops

import (
	"embed"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// What each kind of operation needs, bit n for capability n. SECURITY.md says for each capability which line uses it.
const (
	mountCaps  uint64 = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_DAC_OVERRIDE
	volumeCaps uint64 = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID
	allCaps           = mountCaps | volumeCaps
)

// capset is capset(2) for the calling thread, or for all threads, with permitted and effective set alike and nothing inheritable.
func capset(c uint64, call func(nr, a, b, c uintptr) (uintptr, uintptr, syscall.Errno)) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: uint32(c), Permitted: uint32(c)}, {Effective: uint32(c >> 32), Permitted: uint32(c >> 32)}}
	_, _, e := call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	return map[bool]error{true: e}[e != 0]
}

// filters hold seccomp.list, which says what they let through, and why, as struct sock_filter, compiled beforehand, since that would cost more than all else at the start. A test compiles it again.
//
//go:embed seccomp_amd64.bpf seccomp_arm64.bpf
var filters embed.FS

// Reduce takes from the process what no operation needs, for good: the bounding and ambient set of this thread, the other capabilities of every thread, new privileges, the system calls that are not in the filter.
// Then it reads back, thread by thread, that all of it holds (T36). Dies of config where the privilege was not there to begin with, of system, and of internal if the system did not do what it said.
func Reduce(h *namespace.Host) {
	check := func(what string, err error) {
		namespace.Hint("bindgate-helper needs root's capabilities at its start: is it in a container, or under systemd with a CapabilityBoundingSet that lacks some?").DieIf(err == unix.EPERM, wire.Config, "capabilities", "cannot %s: %v", what, err)
		namespace.Check(err, wire.System, "capabilities", "cannot %s", what)
	}
	for n := 0; n <= unix.CAP_LAST_CAP; n++ { // on this thread: the others have nothing to exec, by no_new_privs and the filter
		check("empty the bounding set", unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0))
	}
	check("empty the ambient set", unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
	check("drop capabilities", capset(allCaps, syscall.AllThreadsSyscall))
	check("set no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	filter, _ := filters.ReadFile("seccomp_" + runtime.GOARCH + ".bpf") // or else the next line panics, which ends the run
	fprog := unix.SockFprog{Len: uint16(len(filter) / unix.SizeofSockFilter), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	tid, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog))) // copies no_new_privs to every thread
	check("install the system call filter", map[bool]error{true: e}[e != 0])
	namespace.DieIf(tid != 0, wire.System, "capabilities", "cannot install the system call filter on the thread %d", tid)
	tasks := h.List("self/task")
	namespace.DieIf(len(tasks) == 0, wire.System, "capabilities", "cannot read back the status of the threads")
	for _, tid := range tasks { // by its own number: names below self/task are names below ours, and cost whoever reaps us milliseconds (docs/adr/0016)
		if status, err := h.Read(tid + "/status"); err != unix.ENOENT && err != unix.ESRCH { // or else a thread that ended
			check("read back the status of a thread", err)
			namespace.Pass(CheckStatus(status, tid == strconv.Itoa(unix.Gettid())))
		}
	}
}

// CheckStatus checks the text of a thread's status (proc_pid_status(5)): uids, capabilities, no_new_privs and filter are as Reduce wants them. Only the working thread's bounding set is emptied.
func CheckStatus(status string, working bool) error {
	want := fmt.Sprintf("Uid:\t0\t0\t0\t0\n,CapInh:\t%016x\n,CapPrm:\t%016x\n,CapEff:\t%016x\n,CapAmb:\t%016x\n,NoNewPrivs:\t1\n,Seccomp:\t2\n", 0, allCaps, allCaps, 0)
	for w := range strings.SplitSeq(want+map[bool]string{true: ",CapBnd:\t0000000000000000\n"}[working], ",") {
		if !strings.Contains(status, "\n"+w) {
			return wire.Errorf(wire.Internal, "capabilities", "cannot go on with privilege: a thread does not have %q", w)
		}
	}
	return nil
}

// Confine leaves the calling thread what op needs, without the capabilities of less.
func Confine(op string, less uint64) {
	c := mountCaps &^ less
	if op == wire.OpCreateVolume || op == wire.OpRemoveVolume || op == wire.OpListVolumes {
		c = volumeCaps
	}
	namespace.Check(capset(c, syscall.RawSyscall), wire.System, "capabilities", "cannot drop the capabilities that %s does not need", op)
	var now [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &now[0])
	namespace.DieIf(err != nil || uint64(now[0].Permitted)|uint64(now[1].Permitted)<<32 != c, wire.Internal, "capabilities", "cannot go on with privilege: the thread kept what %s does not need", op)
}

func Relinquish() { capset(0, syscall.RawSyscall) } // drops every capability of the calling thread: the last step
