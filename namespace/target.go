package namespace

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// A Target is a container's process with all that matters of it pinned. Its descriptors stay what they are whatever it does next: enter another namespace, chroot, or die and leave its pid (T14, T15).
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
}

// An NS is a mount namespace: a descriptor of it, and its names. The 64-bit id is never used again in this boot; the inode number is needed to open it by handle.
type NS struct {
	FD        int
	ID, Inode uint64
}

const newKernel, gone = Hint("bindgate needs Linux 6.12 or later"), "cannot find the container's process, pid %d: %s"

// Pin pins the process pid and checks that it is one to attach into: alive (a zombie is dead), started at start (clock ticks; 0 for any), in a mount namespace that is not the host's or the caller's, in
// the user namespace that owns it, and in cgroups that match rules (paths of whole components, host's view). Dies of namespace_gone, namespace_host, target_forbidden, unsupported_kernel, system.
func (h *Host) Pin(pid int, start uint64, rules []string) *Target {
	// The pidfd comes first: as long as it says alive at the end, /proc/PID was this process all the time.
	pidfd := Must(unix.PidfdOpen(pid, 0))(wire.NamespaceGone, "target", "cannot find the container's process, pid %d", pid)
	defer func() { DieIf(ended(pidfd), wire.NamespaceGone, "target", gone, pid, "it has ended") }() // whatever else failed: this is why
	t := &Target{PID: pid, HostNS: h.NS.ID, UserNS: -1, dir: strconv.Itoa(pid) + "/"}
	fd, err := unix.IoctlRetInt(pidfd, unix.PIDFD_GET_MNT_NAMESPACE)
	newKernel.DieIf(err == unix.ENOTTY || err == unix.EINVAL, wire.UnsupportedKernel, "target", "cannot ask a pidfd for its namespaces: the kernel lacks PIDFD_GET_MNT_NAMESPACE")
	Check(err, map[bool]wire.Code{true: wire.NamespaceGone, false: wire.NamespaceHost}[err == unix.ESRCH], "target", "cannot open the mount namespace of pid %d", pid)
	mnt := Must(stat(fd, ""))(wire.System, "target", "cannot stat the mount namespace of pid %d", pid)
	DieIf(slices.Contains(h.mounts, mnt.Ino), wire.NamespaceHost, "target", "cannot attach into pid %d: it is in the host's mount namespace or the caller's, not in one of its own", pid)
	t.NS = NS{fd, Must(mountNSID(fd))(wire.UnsupportedKernel, "target", "cannot name a mount namespace (NS_GET_MNTNS_ID)"), mnt.Ino}
	t.UserNS = Must(unix.IoctlRetInt(fd, unix.NS_GET_USERNS))(wire.System, "target", "cannot find the owner of the mount namespace of pid %d", pid)
	owner := Must(stat(t.UserNS, ""))(wire.System, "target", "cannot stat the user namespace of pid %d", pid)
	its := Must(stat(h.Proc, t.dir+"ns/user"))(wire.System, "target", "cannot stat the user namespace of pid %d", pid)
	ours := Must(stat(h.Proc, "self/ns/user"))(wire.System, "target", "cannot stat our user namespace")
	// The ids are looked up in the process' user namespace, so that one must be the owner (T42).
	Hint("name the container's first process").DieIf(owner.Ino != its.Ino, wire.TargetForbidden, "target", "cannot attach into pid %d: its user namespace is not the one that owns its mount namespace", pid)
	if owner.Ino == ours.Ino {
		t.UserNS = -1
	}
	DieIf(!h.cgroupOK, wire.Config, "target", "cannot judge the cgroups of pid %d: bindgate-helper was started in a cgroup namespace that is not the host's", pid)
	cgroups := Must(h.Read(t.dir+"cgroup"))(wire.System, "target", "cannot read the cgroups of pid %d", pid)
	Hint("see its /proc/PID/cgroup; root can add the common path of your containers to targets.cgroups").DieIf(!MatchCgroups(cgroups, rules), wire.TargetForbidden, "target", "cannot attach into pid %d: no rule in targets.cgroups of helper.toml matches its cgroups", pid)
	t.Root = Must(unix.Openat(h.Proc, t.dir+"root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))(wire.System, "target", "cannot open the root directory of pid %d", pid)
	st := Must(stat(t.Root, ""))(wire.System, "target", "cannot stat the root directory of pid %d", pid)
	t.SharesHostRoot = st.Dev == h.root.Dev && st.Ino == h.root.Ino
	id, stx, e1 := MountOf(t.Root)
	on, e2 := StatMount(id, t.NS.ID)
	t.RootMount, err = id, cmp.Or(e1, e2)
	newKernel.DieIf(err == unix.ENOSYS || err == unix.ENOTSUP, wire.UnsupportedKernel, "target", "cannot name a mount: the kernel lacks statmount or STATX_MNT_ID_UNIQUE")
	DieIf(err != nil, wire.NamespaceGone, "target", gone, pid, "it changed its mount namespace meanwhile") // then its root is not in the one that was pinned before (T15)
	// A process that is chrooted into a folder would make the names that the rules know mean others (T21).
	Hint("name the container's first process; a process that is only chrooted is no container").DieIf(stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || on.Point != "/", wire.TargetForbidden, "target", "cannot attach into pid %d: its root is not that of its mount namespace", pid)
	if t.UserNS >= 0 {
		t.UID, t.GID = t.mappedRoot(h, "uid_map"), t.mappedRoot(h, "gid_map")
	}
	DieIf(start != 0 && strconv.FormatUint(start, 10) != h.startTime(t.dir), wire.NamespaceGone, "target", gone, pid, "it started at another time, so the pid was used again")
	return t
}

func ended(pidfd int) bool { // a zombie has
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR { // the runtime's own signals
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	}
	return n != 0 || err != nil
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

// startTime returns field 22 of /proc/PID/stat: clock ticks since boot; "-" if it cannot be told. The command before it may hold spaces and parentheses.
func (h *Host) startTime(dir string) string {
	text, _ := h.Read(dir + "stat")
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:] + strings.Repeat(" -", 20))[19]
}

// MatchCgroups decides a target rule from the text of /proc/PID/cgroup (cgroups(7)): in at least one hierarchy, and in every hierarchy where the process is not at the root, its path is one of rules or
// lies below one, by whole components. A process at the root of them all matches nothing, and a ".." is a cgroup outside our view (T41).
func MatchCgroups(text string, rules []string) (matched bool) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		path, err := wire.ParsePath(f[len(f)-1])
		under := len(f) == 3 && err == nil && slices.ContainsFunc(wire.ParsePaths(rules), func(r wire.Path) bool { return len(r.Components) > 0 && r.Contains(path) })
		if matched = matched || under; !under && (len(f) != 3 || f[2] != "/") {
			return false
		}
	}
	return matched
}

// Enter moves the calling thread, which is to stay locked, into the mount namespace. Its root and working directory become the namespace's root (setns(2)): from here on a path is the container's.
func (ns NS) Enter() {
	Check(unix.Unshare(unix.CLONE_FS), wire.System, "enter", "cannot unshare the thread's root and working directory") // threads share them, and setns refuses that
	Check(unix.Setns(ns.FD, unix.CLONE_NEWNS), wire.System, "enter", "cannot enter the mount namespace %d", ns.ID)
}

// OpenNS opens a mount namespace by its id and inode number, also one whose first process is dead, as long as it exists.
func (h *Host) OpenNS(id, inode uint64) (NS, bool) {
	ne := binary.NativeEndian
	handle := ne.AppendUint32(ne.AppendUint32(ne.AppendUint64(nil, id), unix.CLONE_NEWNS), uint32(inode))             // struct nsfs_file_handle of linux/nsfs.h
	fd, err := unix.OpenByHandleAt(unix.FD_NSFS_ROOT, unix.NewFileHandle(0xf1, handle), unix.O_RDONLY|unix.O_CLOEXEC) // FILEID_NSFS of linux/exportfs.h
	if err == unix.EOPNOTSUPP || err == unix.EBADF || err == unix.EINVAL {
		fd, err = h.walkTo(id) // before Linux 6.18
	}
	DieIf(err != nil && err != unix.ESTALE && err != unix.ENOENT, wire.System, "enter", "cannot open the mount namespace %d: %v", id, err) // those two say that it has ended
	return NS{fd, id, inode}, err == nil
}

// walkTo opens a mount namespace by going there from ours, one after the other: the kernel keeps them in the order of their ids.
func (h *Host) walkTo(id uint64) (int, error) {
	const next, prev = 0x8010b70b, 0x8010b70c // NS_MNT_GET_NEXT, NS_MNT_GET_PREV of linux/nsfs.h
	way := map[bool]uint{true: next, false: prev}[h.NS.ID < id]
	fd, err := unix.Openat(h.Proc, "self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for at := h.NS.ID; err == nil && at != id; {
		was := fd
		if (at < id) != (way == next) {
			err = unix.ENOENT // passed: it has ended
		} else if fd, err = unix.IoctlRetInt(was, way); err == nil {
			at, err = mountNSID(fd)
		}
		unix.Close(was)
	}
	return fd, err
}

func mountNSID(fd int) (id uint64, err error) {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&id)))
	return id, map[bool]error{true: e}[e != 0]
}
