package lifecycle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// A process is who a container's first process is. A pid alone is used again; with the start time, the pidfd's inode and the boot it is not.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start,omitempty"` // in clock ticks; 0 where /proc does not tell us
	Inode uint64 `json:"inode,omitempty"` // of its pidfd
	Boot  string `json:"boot"`
}

// identify says who a living process is. Errors: invalid_request for what is no process, namespace_gone for one that has ended.
func (iso *Isolator) identify(pid int) (*process, error) {
	p, fd, err := iso.pin(pid)
	if err == nil {
		unix.Close(fd)
	}
	return p, err
}

// pin is identify with the process' pidfd, which is not blocking, so that the runtime's poller can wait on it.
func (iso *Isolator) pin(pid int) (*process, int, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	switch {
	case pid <= 0 || errors.Is(err, unix.EINVAL):
		return nil, -1, wire.Errorf(wire.InvalidRequest, "process", "cannot use pid %d: it is not a process", pid)
	case errors.Is(err, unix.ESRCH):
		return nil, -1, gone(pid)
	case err != nil:
		return nil, -1, wire.Errorf(wire.System, "process", "cannot open process %d: %v", pid, err)
	}
	p := &process{PID: pid, Start: startTime(pid), Boot: iso.boot}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, -1, wire.Errorf(wire.System, "process", "cannot stat the pidfd of process %d: %v", pid, err)
	}
	p.Inode = st.Ino
	if ended(fd) { // asked last: what was read before belongs to this process
		unix.Close(fd)
		return nil, -1, gone(pid)
	}
	return p, fd, nil
}

func gone(pid int) error {
	return wire.Errorf(wire.NamespaceGone, "process", "cannot use process %d: it has ended", pid)
}

// alive reports whether the very process is still running. Only what is known to be dead is not: where the question fails, the volumes of a living container
// would be taken from it.
func (iso *Isolator) alive(p *process) bool {
	alive, err := iso.lives(p)
	return alive || err != nil
}

// lives is alive, and says if it cannot be told: no descriptor is left, no memory. A zombie is dead: in a poststop hook the first process often still is one.
func (iso *Isolator) lives(p *process) (bool, error) {
	if p == nil || p.Boot != iso.boot {
		return false, nil
	}
	now, err := iso.identify(p.PID)
	switch {
	case err == nil:
		return p.same(now), nil
	case isCode(err, wire.NamespaceGone, wire.InvalidRequest):
		return false, nil
	}
	return false, err
}

// same reports whether both are one process. A start time that could not be read on one side says nothing.
func (p *process) same(q *process) bool {
	return p.PID == q.PID && p.Boot == q.Boot && p.Inode == q.Inode && (p.Start == q.Start || p.Start == 0 || q.Start == 0)
}

// ended polls a pidfd: readable once the process is a zombie or reaped.
func ended(fd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// startTime reads field 22 of proc_pid_stat(5). The command, field 2, may hold anything but ends at the last parenthesis.
func startTime(pid int) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(data, ')')
	if err != nil || i < 0 {
		return 0
	}
	fields := bytes.Fields(data[i+1:]) // from field 3 on
	if len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[19]), 10, 64)
	return n
}
