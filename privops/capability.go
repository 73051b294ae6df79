package privops

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// Caps is a set of capabilities, bit n for capability n.
type Caps uint64

func caps(list ...int) (c Caps) {
	for _, n := range list {
		c |= 1 << n
	}
	return c
}

// What each operation needs. SECURITY.md says for each capability which line uses it.
var (
	attachCaps = caps(unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_DAC_OVERRIDE)
	volumeCaps = caps(unix.CAP_SYS_ADMIN, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID)
	opCaps     = map[string]Caps{
		wire.OpAttach: attachCaps, wire.OpDetach: attachCaps, wire.OpSweep: attachCaps | volumeCaps, wire.OpQuery: attachCaps,
		wire.OpCreateVolume: volumeCaps, wire.OpRemoveVolume: volumeCaps, wire.OpListVolumes: volumeCaps,
	}
	allCaps = attachCaps | volumeCaps
)

// capset is capset(2) for the calling thread, or for all threads, with permitted and effective set alike and nothing inheritable.
func capset(c Caps, all bool) syscall.Errno {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: uint32(c), Permitted: uint32(c)}, {Effective: uint32(c >> 32), Permitted: uint32(c >> 32)}}
	call := syscall.RawSyscall
	if all {
		call = syscall.AllThreadsSyscall
	}
	_, _, e := call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	return e
}

// Reduce takes from the process what no operation needs, for good: the bounding set and the ambient set of this thread are emptied, every thread keeps only the capabilities that
// some operation needs, no_new_privs is set, and no thread may make a system call that is not in the filter. Then it reads back, thread by thread, that all of it holds (T36): a call
// that reports success and did nothing is found. Errors: config where the privilege was not there to begin with, system.
func Reduce(proc int) error {
	// One prctl a bit, on this thread only: the others never run what needs a bounding set, since no_new_privs and the filter leave nothing to exec.
	for n := 0; n <= unix.CAP_LAST_CAP; n++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
			return reduceFailed("empty the bounding set", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return reduceFailed("empty the ambient set", err)
	}
	if e := capset(allCaps, true); e != 0 {
		return reduceFailed("drop capabilities", e)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return reduceFailed("set no_new_privs", err)
	}
	if err := filterSyscalls(); err != nil { // copies no_new_privs to every thread
		return reduceFailed("install the system call filter", err)
	}
	return verify(proc)
}

func reduceFailed(what string, err error) error {
	e := wire.Errorf(wire.System, "capabilities", "cannot %s: %v", what, err)
	if err == unix.EPERM {
		e.Code = wire.Config
		e.Hint = "bindgate-helper needs root's capabilities at its start: is it run in a container, or under systemd with a CapabilityBoundingSet that lacks some?"
	}
	return e
}

// Confine leaves the calling thread what op needs.
func Confine(op string) error {
	if e := capset(opCaps[op], false); e != 0 {
		return wire.Errorf(wire.System, "capabilities", "cannot drop the capabilities that %s does not need: %v", op, e)
	}
	return nil
}

// Relinquish drops every capability of the calling thread. It is the last step.
func Relinquish() { capset(0, false) }

// verify reads every thread's status.
func verify(proc int) error {
	dir, err := unix.Openat(proc, "self/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return reduceFailed("read back the threads' status", err)
	}
	f := os.NewFile(uintptr(dir), "task")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return reduceFailed("read back the threads' status", err)
	}
	self := strconv.Itoa(unix.Gettid())
	buf := make([]byte, 8192)
	for _, tid := range names {
		fd, err := unix.Openat(dir, tid+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue // a thread that ended
		}
		n := 0
		if err == nil {
			n, err = unix.Read(fd, buf)
			unix.Close(fd)
		}
		if err != nil {
			return reduceFailed("read back the status of a thread", err)
		}
		if err := CheckStatus(string(buf[:n]), tid == self); err != nil {
			return err
		}
	}
	return nil
}

// CheckStatus checks the text of a thread's status (proc_pid_status(5)): uids, capabilities, no_new_privs and filter are as Reduce wants them. Only the working thread's bounding set is
// emptied. The error has the code internal: the system said that it did what it did not.
func CheckStatus(status string, working bool) error {
	want := map[string]string{"Uid": "0\t0\t0\t0", "CapInh": hex(0), "CapPrm": hex(allCaps), "CapEff": hex(allCaps), "CapAmb": hex(0), "NoNewPrivs": "1", "Seccomp": "2"}
	if working {
		want["CapBnd"] = hex(0)
	}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if w, ok := want[key]; ok {
			if strings.TrimSpace(value) != w {
				return wire.Errorf(wire.Internal, "capabilities", "cannot go on with privilege: %s of a thread is %q, not %q", key, strings.TrimSpace(value), w)
			}
			delete(want, key)
		}
	}
	if len(want) > 0 {
		return wire.Errorf(wire.Internal, "capabilities", "cannot go on with privilege: the status of a thread lacks %d of the lines that tell about it", len(want))
	}
	return nil
}

func hex(c Caps) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[15-i] = digits[c>>(4*i)&0xf]
	}
	return string(b[:])
}
