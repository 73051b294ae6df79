package namespace

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// A Target is a container's process with all that matters of it pinned. Its descriptors stay what they are whatever the process does next: it may enter
// another namespace, chroot or die, and its pid may be another's (T14, T15).
type Target struct {
	PID            int
	pidfd          int
	NS             NS
	Root           int    // O_PATH descriptor of the process' root directory, on a mount of NS
	RootMount      uint64 // unique id of that mount
	UserNS         int    // the user namespace that owns NS; -1 if it is the host's
	UID, GID       int    // the container's root user, as the host sees it
	SharesHostRoot bool
}

// An NS is a mount namespace: a descriptor of it, and its names. The 64-bit id is never used again in this boot; the inode number is needed to open
// the namespace by handle.
type NS struct {
	FD    int
	ID    uint64
	Inode uint64
}

// Pin pins the process pid and checks that it is one to attach into: alive (a zombie is dead), started at start (clock ticks; 0 for any), in a mount
// namespace that is not the host's or the caller's, in a user namespace that owns that mount namespace, and in cgroups that match rules (paths of
// whole components, host's view). Errors: namespace_gone, namespace_host, target_forbidden, unsupported_kernel, system.
func (h *Host) Pin(pid int, start uint64, rules []string) (*Target, error) {
	// The pidfd comes first: as long as it says alive at the end, /proc/PID was this process all the time.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, gone(pid, "there is no such process")
	}
	t := &Target{PID: pid, pidfd: pidfd, UserNS: -1}
	fail := func(err error) (*Target, error) {
		if t.ended() {
			err = gone(pid, "it has ended")
		}
		t.Close()
		return nil, err
	}
	if err := t.pinNamespaces(h); err != nil {
		return fail(err)
	}
	dir := strconv.Itoa(pid) + "/"
	cgroups, err := h.read(dir + "cgroup")
	if err != nil {
		return fail(wire.Errorf(wire.System, "target", "cannot read the cgroups of pid %d: %v", pid, err))
	}
	if !h.cgroupOK {
		return fail(wire.Errorf(wire.Config, "target", "cannot judge the cgroups of pid %d: bindgate-helper was started in a cgroup namespace that is not the host's", pid))
	}
	if !MatchCgroups(cgroups, rules) {
		return fail(wire.Errorf(wire.TargetForbidden, "target", "cannot attach into pid %d: no rule in targets.cgroups of helper.toml matches its cgroups", pid).
			WithHint("see /proc/%d/cgroup; root can add the common path of your containers to targets.cgroups", pid))
	}
	if err := t.pinRoot(h); err != nil {
		return fail(err)
	}
	if start != 0 {
		if now, err := h.startTime(pid); err != nil || now != start {
			return fail(gone(pid, "its start time is another: the pid was used again"))
		}
	}
	if t.ended() {
		return fail(nil)
	}
	return t, nil
}

func (t *Target) pinNamespaces(h *Host) (err error) {
	const hint = "this needs Linux 6.12 or later"
	t.NS.FD, err = unix.IoctlRetInt(t.pidfd, unix.PIDFD_GET_MNT_NAMESPACE)
	if err == unix.ENOTTY || err == unix.EINVAL {
		return wire.Errorf(wire.UnsupportedKernel, "target", "cannot ask a pidfd for its namespaces: the kernel lacks PIDFD_GET_MNT_NAMESPACE").WithHint(hint)
	} else if err != nil {
		return wire.Errorf(wire.NamespaceHost, "target", "cannot open the mount namespace of pid %d: %v", t.PID, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(t.NS.FD, &st); err != nil {
		return wire.Errorf(wire.System, "target", "cannot stat the mount namespace of pid %d: %v", t.PID, err)
	}
	t.NS.Inode = st.Ino
	for _, ino := range h.mounts {
		if ino == st.Ino {
			return wire.Errorf(wire.NamespaceHost, "target", "cannot attach into pid %d: it is in the host's mount namespace or the caller's, not in one of its own", t.PID)
		}
	}
	if t.NS.ID, err = mountNSID(t.NS.FD); err != nil {
		return wire.Errorf(wire.UnsupportedKernel, "target", "cannot name a mount namespace: the kernel lacks NS_GET_MNTNS_ID").WithHint(hint)
	}

	owner, err := unix.IoctlRetInt(t.NS.FD, unix.NS_GET_USERNS)
	if err != nil {
		return wire.Errorf(wire.System, "target", "cannot find the user namespace that owns the mount namespace of pid %d: %v", t.PID, err)
	}
	var own, proc, ours unix.Stat_t
	if err = unix.Fstat(owner, &own); err == nil {
		err = h.stat(strconv.Itoa(t.PID)+"/ns/user", &proc)
	}
	if err == nil {
		err = h.stat("self/ns/user", &ours)
	}
	if err != nil {
		unix.Close(owner)
		return wire.Errorf(wire.System, "target", "cannot compare user namespaces of pid %d: %v", t.PID, err)
	}
	if own.Ino == ours.Ino {
		unix.Close(owner)
	} else {
		t.UserNS = owner
	}
	// Its ids are looked up in the process' user namespace, so that one must be the owner (T42).
	if own.Ino != proc.Ino {
		return wire.Errorf(wire.TargetForbidden, "target", "cannot attach into pid %d: its user namespace is not the one that owns its mount namespace", t.PID).
			WithHint("name the container's first process")
	}
	return nil
}

func (t *Target) pinRoot(h *Host) (err error) {
	dir := strconv.Itoa(t.PID) + "/"
	if t.Root, err = unix.Openat(h.Proc, dir+"root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return wire.Errorf(wire.System, "target", "cannot open the root directory of pid %d: %v", t.PID, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(t.Root, &st); err != nil {
		return wire.Errorf(wire.System, "target", "cannot stat the root directory of pid %d: %v", t.PID, err)
	}
	t.SharesHostRoot = identityOf(&st) == h.root
	if t.RootMount, _, err = MountOf(t.Root); err != nil {
		return wire.Errorf(wire.UnsupportedKernel, "target", "cannot name a mount: the kernel lacks STATX_MNT_ID_UNIQUE").WithHint("this needs Linux 6.12 or later")
	}
	// The process may have entered another namespace since its own was pinned: then its root is not in the pinned one (T15).
	if _, err := StatMount(t.RootMount, t.NS.ID); err == unix.ENOSYS {
		return wire.Errorf(wire.UnsupportedKernel, "target", "cannot describe a mount: the kernel lacks statmount").WithHint("this needs Linux 6.12 or later")
	} else if err != nil {
		return gone(t.PID, "it changed its mount namespace meanwhile")
	}
	if t.UserNS < 0 {
		return nil
	}
	for _, x := range []struct {
		file string
		id   *int
	}{{"uid_map", &t.UID}, {"gid_map", &t.GID}} {
		ids, err := h.read(dir + x.file)
		if err != nil {
			return wire.Errorf(wire.System, "target", "cannot read %s of pid %d: %v", x.file, t.PID, err)
		}
		id, ok := mappedRoot(ids)
		if !ok {
			return wire.Errorf(wire.TargetForbidden, "target", "cannot attach into pid %d: its user namespace has no root user (%s maps no 0)", t.PID, x.file)
		}
		*x.id = id
	}
	return nil
}

// Close closes the target's descriptors.
func (t *Target) Close() {
	for _, fd := range []int{t.pidfd, t.NS.FD, t.Root, t.UserNS} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// ended reports whether the process has ended; a zombie has.
func (t *Target) ended() bool {
	p := []unix.PollFd{{Fd: int32(t.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return n != 0 || err != nil
		}
	}
}

func gone(pid int, why string) error {
	return wire.Errorf(wire.NamespaceGone, "target", "cannot find the container's process, pid %d: %s", pid, why)
}

// startTime returns field 22 of /proc/PID/stat: clock ticks since boot. The command before it may hold spaces and parentheses.
func (h *Host) startTime(pid int) (uint64, error) {
	stat, err := h.read(strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, unix.EINVAL
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// mappedRoot returns the outside id of the inside id 0 in the text of a uid_map (user_namespaces(7)).
func mappedRoot(text string) (int, bool) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "0" {
			id, err := strconv.ParseUint(f[1], 10, 32)
			return int(id), err == nil
		}
	}
	return 0, false
}

// MatchCgroups decides a target rule from the text of /proc/PID/cgroup (cgroups(7)): in at least one hierarchy, and in every hierarchy where the process
// is not at the root, its path is one of rules or lies below one, by whole components. A process at the root of them all matches nothing (T41).
func MatchCgroups(text string, rules []string) bool {
	matched := false
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			return false
		}
		if f[2] == "/" {
			continue
		}
		path, err := wire.ParsePath(f[2])
		if err != nil || !path.Absolute || !matchAny(path, rules) { // a ".." is a cgroup outside our view
			return false
		}
		matched = true
	}
	return matched
}

func matchAny(path wire.Path, rules []string) bool {
	for _, r := range rules {
		if rule, err := wire.ParsePath(r); err == nil && len(rule.Components) > 0 && rule.Contains(path) {
			return true
		}
	}
	return false
}
