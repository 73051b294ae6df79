package namespace

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// A Target is a container's process with all that matters of it pinned. Its descriptors stay what they are whatever the process does next: it may enter another namespace, chroot or die, and its pid
// may be another's (T14, T15).
type Target struct {
	PID            int
	NS             NS
	HostNS         uint64 // id of the host's mount namespace, which NS is not
	Root           int    // O_PATH descriptor of the process' root directory, on a mount of NS
	RootMount      uint64 // unique id of that mount
	UserNS         int    // the user namespace that owns NS; -1 if it is the host's
	UID, GID       int    // the container's root user, as the host sees it
	SharesHostRoot bool
	dir            string // its folder in procfs
	pidfd          int
}

// An NS is a mount namespace: a descriptor of it, and its names. The 64-bit id is never used again in this boot; the inode number is needed to open it by handle.
type NS struct {
	FD        int
	ID, Inode uint64
}

const newKernel = "bindgate needs Linux 6.12 or later"

// Pin pins the process pid and checks that it is one to attach into: alive (a zombie is dead), started at start (clock ticks; 0 for any), in a mount namespace that is not the host's or the caller's, in
// the user namespace that owns it, and in cgroups that match rules (paths of whole components, host's view). Dies of namespace_gone, namespace_host, target_forbidden, unsupported_kernel, system.
func (h *Host) Pin(pid int, start uint64, rules []string) *Target {
	// The pidfd comes first: as long as it says alive at the end, /proc/PID was this process all the time.
	t := &Target{PID: pid, HostNS: h.NS.ID, UserNS: -1, dir: strconv.Itoa(pid) + "/"}
	t.pidfd = Must(unix.PidfdOpen(pid, 0))(wire.NamespaceGone, "target", "cannot find the container's process, pid %d", pid)
	err := Try(func() {
		t.pinNamespaces(h)
		t.matchCgroups(h, rules)
		t.pinRoot(h)
		t.gone(start != 0 && start != h.startTime(t.dir), "it started at another time, so the pid was used again")
	})
	t.gone(ended(t.pidfd), "it has ended")
	Pass(err)
	return t
}

// ended reports whether a process has ended; a zombie has.
func ended(pidfd int) bool {
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR { // the runtime's own signals
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	}
	return n != 0 || err != nil
}

func (t *Target) gone(cond bool, why string) {
	DieIf(cond, wire.NamespaceGone, "target", "cannot find the container's process, pid %d: %s", t.PID, why)
}

func (t *Target) pinNamespaces(h *Host) {
	fd, err := unix.IoctlRetInt(t.pidfd, unix.PIDFD_GET_MNT_NAMESPACE)
	Hint(newKernel).DieIf(err == unix.ENOTTY || err == unix.EINVAL, wire.UnsupportedKernel, "target", "cannot ask a pidfd for its namespaces: the kernel lacks PIDFD_GET_MNT_NAMESPACE")
	Check(err, map[bool]wire.Code{true: wire.NamespaceGone, false: wire.NamespaceHost}[err == unix.ESRCH], "target", "cannot open the mount namespace of pid %d", t.PID)
	var mnt, owner unix.Stat_t
	Check(unix.Fstat(fd, &mnt), wire.System, "target", "cannot stat the mount namespace of pid %d", t.PID)
	DieIf(slices.Contains(h.mounts, mnt.Ino), wire.NamespaceHost, "target", "cannot attach into pid %d: it is in the host's mount namespace or the caller's, not in one of its own", t.PID)
	t.NS = NS{fd, Must(mountNSID(fd))(wire.UnsupportedKernel, "target", "cannot name a mount namespace (NS_GET_MNTNS_ID)"), mnt.Ino}

	t.UserNS = Must(unix.IoctlRetInt(fd, unix.NS_GET_USERNS))(wire.System, "target", "cannot find the owner of the mount namespace of pid %d", t.PID)
	Check(unix.Fstat(t.UserNS, &owner), wire.System, "target", "cannot stat the user namespace of pid %d", t.PID)
	its := Must(h.stat(t.dir+"ns/user"))(wire.System, "target", "cannot stat the user namespace of pid %d", t.PID)
	ours := Must(h.stat("self/ns/user"))(wire.System, "target", "cannot stat our user namespace")
	// The ids are looked up in the process' user namespace, so that one must be the owner (T42).
	Hint("name the container's first process").DieIf(owner.Ino != its.Ino, wire.TargetForbidden, "target", "cannot attach into pid %d: its user namespace is not the one that owns its mount namespace", t.PID)
	if owner.Ino == ours.Ino {
		t.UserNS = -1
	}
}

func (t *Target) matchCgroups(h *Host, rules []string) {
	DieIf(!h.cgroupOK, wire.Config, "target", "cannot judge the cgroups of pid %d: bindgate-helper was started in a cgroup namespace that is not the host's", t.PID)
	Hint("see its /proc/PID/cgroup; root can add the common path of your containers to targets.cgroups").DieIf(!MatchCgroups(Must(h.Read(t.dir+"cgroup"))(wire.System, "target", "cannot read the cgroups of pid %d", t.PID), rules), wire.TargetForbidden, "target", "cannot attach into pid %d: no rule in targets.cgroups of helper.toml matches its cgroups", t.PID)
}

func (t *Target) pinRoot(h *Host) {
	var st unix.Stat_t
	var err error
	t.Root = Must(unix.Openat(h.Proc, t.dir+"root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))(wire.System, "target", "cannot open the root directory of pid %d", t.PID)
	Check(unix.Fstat(t.Root, &st), wire.System, "target", "cannot stat the root directory of pid %d", t.PID)
	t.SharesHostRoot = st.Dev == h.root.Dev && st.Ino == h.root.Ino
	var on Mount
	var stx unix.Statx_t
	if t.RootMount, stx, err = MountOf(t.Root); err == nil {
		on, err = StatMount(t.RootMount, t.NS.ID)
	}
	Hint(newKernel).DieIf(err == unix.ENOSYS || err == unix.ENOTSUP, wire.UnsupportedKernel, "target", "cannot name a mount: the kernel lacks statmount or STATX_MNT_ID_UNIQUE")
	t.gone(err != nil, "it changed its mount namespace meanwhile") // then its root is not in the one that was pinned before (T15)
	// A process that is chrooted into a folder would make the names that the rules know mean others (T21).
	Hint("name the container's first process; a process that is only chrooted is no container").DieIf(stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || on.Point != "/", wire.TargetForbidden, "target", "cannot attach into pid %d: its root is not that of its mount namespace", t.PID)
	if t.UserNS >= 0 {
		t.UID, t.GID = t.mappedRoot(h, "uid_map"), t.mappedRoot(h, "gid_map")
	}
}

// mappedRoot returns the outside id of the inside id 0 (user_namespaces(7)).
func (t *Target) mappedRoot(h *Host, file string) int {
	for line := range strings.Lines(Must(h.Read(t.dir+file))(wire.System, "target", "cannot read %s of pid %d", file, t.PID)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "0" {
			return int(Must(strconv.ParseUint(f[1], 10, 32))(wire.System, "target", "cannot read %s of pid %d", file, t.PID))
		}
	}
	panic(wire.Errorf(wire.TargetForbidden, "target", "cannot attach into pid %d: its user namespace has no root user (%s maps no 0)", t.PID, file))
}

// startTime returns field 22 of /proc/PID/stat: clock ticks since boot; 0 if it cannot be told. The command before it may hold spaces and parentheses.
func (h *Host) startTime(dir string) uint64 {
	stat, _ := h.Read(dir + "stat")
	if f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]); len(f) > 19 {
		if n, err := strconv.ParseUint(f[19], 10, 64); err == nil {
			return n
		}
	}
	return 0
}

// MatchCgroups decides a target rule from the text of /proc/PID/cgroup (cgroups(7)): in at least one hierarchy, and in every hierarchy where the process is not at the root, its path is one of rules or
// lies below one, by whole components. A process at the root of them all matches nothing, and a ".." is a cgroup outside our view (T41).
func MatchCgroups(text string, rules []string) bool {
	matched, elsewhere := 0, 0
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		path, err := wire.ParsePath(f[len(f)-1])
		if len(f) == 3 && err == nil && slices.ContainsFunc(wire.ParsePaths(rules), func(r wire.Path) bool { return len(r.Components) > 0 && r.Contains(path) }) {
			matched++
		} else if len(f) != 3 || f[2] != "/" {
			elsewhere++
		}
	}
	return matched > 0 && elsewhere == 0
}

// Enter moves the calling thread, which must be locked and is never to be unlocked again, into the mount namespace. Its root and working directory become the namespace's root (setns(2)), so from here
// on a path means the container's.
func (ns NS) Enter() {
	Check(unix.Unshare(unix.CLONE_FS), wire.System, "enter", "cannot unshare the thread's root and working directory") // threads share them, and setns refuses that
	Check(unix.Setns(ns.FD, unix.CLONE_NEWNS), wire.System, "enter", "cannot enter the mount namespace %d", ns.ID)
}

// OpenNS opens a mount namespace by its id and inode number, also one whose first process is dead, as long as it exists.
func (h *Host) OpenNS(id, inode uint64) (NS, bool) {
	handle := make([]byte, 16) // struct nsfs_file_handle of linux/nsfs.h
	binary.NativeEndian.PutUint64(handle, id)
	binary.NativeEndian.PutUint32(handle[8:], unix.CLONE_NEWNS)
	binary.NativeEndian.PutUint32(handle[12:], uint32(inode))
	const fileidNSFS, fdNSFSRoot = 0xf1, -10003 // linux/exportfs.h, linux/fcntl.h
	fd, err := unix.OpenByHandleAt(fdNSFSRoot, unix.NewFileHandle(fileidNSFS, handle), unix.O_RDONLY|unix.O_CLOEXEC)
	if err == unix.EOPNOTSUPP || err == unix.EBADF || err == unix.EINVAL { // before Linux 6.18
		fd, err = h.walkTo(id)
	}
	if err != unix.ESTALE && err != unix.ENOENT { // those two say that it has ended
		Check(err, wire.System, "enter", "cannot open the mount namespace %d", id)
	}
	return NS{fd, id, inode}, err == nil
}

// walkTo opens a mount namespace by going there from ours, one after the other: the kernel keeps them in the order of their ids.
func (h *Host) walkTo(id uint64) (int, error) {
	const next, prev = 0x8010b70b, 0x8010b70c // NS_MNT_GET_NEXT, NS_MNT_GET_PREV of linux/nsfs.h
	way := map[bool]uint{true: next, false: prev}[h.NS.ID < id]
	fd, err := unix.Openat(h.Proc, "self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for at := h.NS.ID; err == nil && at != id; {
		was := fd
		if fd, err = unix.IoctlRetInt(was, way); err == nil {
			at, err = mountNSID(fd)
		}
		unix.Close(was)
		if err == nil && at != id && (at < id) != (way == next) { // passed: it has ended
			unix.Close(fd)
			err = unix.ENOENT
		}
	}
	return fd, err
}

func mountNSID(fd int) (id uint64, err error) {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&id))); e != 0 {
		return 0, e
	}
	return id, nil
}
