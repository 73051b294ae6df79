package privops

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

type SourceRoot struct { // one allowed folder of helper.toml, opened
	FD                           int  // O_PATH
	Sealed                       bool // a folder above it is root's and lets nobody else through
	RequireMountpoint, AllowFUSE bool // what helper.toml says
	Ours                         bool // the local driver's folder, in which nobody mounts
}

// A Source is a directory or file to attach, pinned by its descriptor. It is sealed: no user of the host can reach what a container writes into it, such as a setuid file, or its mount takes the bits away (FACTS 15).
type Source struct {
	SourceRoot        // that it lies in; but FD is its own, and Sealed says that a folder above it seals it, and so the mounts in it
	Path       string // as asked, for messages and records
	IsDir      bool
	mounts     int // how many lie in it on the host; -1: not counted
}

func (s *Source) forbid(cond bool, hint namespace.Hint, format string, args ...any) {
	hint.DieIf(cond, wire.SourceForbidden, "source", "cannot use the source %s: "+format, append([]any{s.Path}, args...)...)
}

// PinSource opens path beneath root, and subpath beneath that, name by name, each in the one before it, so that one that is exchanged meanwhile is either found or not, never followed (T09). A mount on the way is asked
// for its type before anything is looked up in it, so that no FUSE server can hang us (T11). The result is a directory, or a regular file with link count 1 (T44). Dies of source_forbidden whatever the reason.
func PinSource(root SourceRoot, asked string, path, subpath []string) *Source {
	s := &Source{SourceRoot: root, Path: asked, mounts: -1}
	s.forbid(len(path) == 0, "", "it is the allowed folder itself, not something in it")
	all, on, stx, st, err := slices.Concat(path, subpath), namespace.Mount{}, unix.Statx_t{}, unix.Stat_t{}, error(nil)
	for i := 0; ; i++ {
		on, stx, err = mountOn(s.FD, 0)
		s.forbid(err != nil, "", "its mount cannot be examined: %v", err)
		s.forbid(isFUSE(on.Type) && !s.AllowFUSE, "root can set allow_fuse = true for this [[source]] in helper.toml", "it is on a %s filesystem", on.Type)
		s.forbid(i == len(path) && s.RequireMountpoint && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0, "", "nothing is mounted there, and its [[source]] has require_mountpoint")
		err = unix.Fstat(s.FD, &st)
		if s.forbid(err != nil, "", "%v", err); i == len(all) {
			break
		}
		s.Sealed = s.Sealed || st.Uid == 0 && st.Mode&0o011 == 0 // not even the group: with an ACL its bits are the mask
		next, err := unix.Openat2(s.FD, all[i], &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: down})
		s.forbid(err != nil, "", "%s: %v", strings.Join(all[:i+1], "/"), err)
		unix.Close(s.FD)
		s.FD = next
	}
	s.IsDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	s.forbid(!s.IsDir && st.Mode&unix.S_IFMT != unix.S_IFREG, "", "it is neither a directory nor a regular file")
	s.forbid(!s.IsDir && st.Nlink != 1, "", "it is a file with %d links, so it has a name elsewhere too", st.Nlink)
	s.forbid(!s.Sealed && !strips(on), "chmod 0700 a folder of root's above it, or mount it with nosuid,nodev: otherwise a setuid file that a container writes there is setuid on the host", "it is not sealed: users of the host can reach it, and its mount lacks nosuid or nodev")
	if !s.Ours {
		s.mounts = MountsIn(on.ID, 0, strings.TrimRight(asked, "/")+strings.Join(append([]string{""}, subpath...), "/")+"/")
	}
	return s
}

// An Attachment is one volume on its way into a container: where from, where to, how, and once it is staged the detached tree that will be moved.
type Attachment struct {
	Mount            *wire.Mount // as asked
	Source           *Source
	Point            *Mountpoint
	Attr             uint64      // MOUNT_ATTR_* to set on every mount of the tree
	ID               uint64      // unique id of the tree's root mount; it keeps it when it is moved (FACTS 1)
	outer            *Attachment // the volume of the same request in which this one lands
	tree             int         // detached mount
	Locked, attached bool        // its attributes are locked; it was moved onto its place
}

// Order sorts the volumes of a request by depth and finds for each the one that it lands in. Two at one place die of invalid_request.
func Order(list []*Attachment) {
	slices.SortStableFunc(list, func(a, b *Attachment) int { return len(a.Point.names) - len(b.Point.names) })
	for i, a := range list {
		for _, b := range list[:i] {
			if n := len(b.Point.names); slices.Equal(b.Point.names, a.Point.names[:n]) {
				namespace.DieIf(n == len(a.Point.names), wire.InvalidRequest, "target", "cannot attach two volumes at %s (%s and %s)", a.Point.Path(), b.Mount.Path, a.Mount.Path)
				a.outer = b
			}
		}
	}
}

// Clone makes a detached copy of the source with all that is mounted in it, and idmaps it, which has to be done before a mount is anywhere. Dies of source_forbidden, and of target_forbidden for an idmap that cannot be.
func (a *Attachment) Clone(t *namespace.Target) {
	a.tree = namespace.Must(unix.OpenTree(a.Source.FD, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH))(wire.SourceForbidden, "tree", "cannot clone the mount of %s", a.Source.Path)
	// From here on nothing is mounted in it any more because it was mounted in the source.
	namespace.Check(unix.MountSetattr(a.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}), wire.System, "tree", "cannot make the clone of %s private", a.Source.Path)
	unix.Close(a.Source.FD) // a table of more than 256 descriptors stalls as it grows (FACTS 16)
	if a.Mount.IDMap {
		namespace.Hint("leave idmap out").DieIf(t.UserNS < 0, wire.TargetForbidden, "tree", "cannot map the ids of %s: the container has no user namespace of its own", a.Source.Path)
		err := unix.MountSetattr(a.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(t.UserNS)})
		namespace.Check(err, wire.SourceForbidden, "tree", "cannot map the ids of %s: its filesystem or a mount in it cannot be idmapped", a.Source.Path)
	}
}

// Stage gives every tree its final attributes where nobody can see it, and locks them. A container's root with SYS_ADMIN can remount what was moved in: rw, suid, dev; but not a mount that was copied into a mount
// namespace of a less privileged user namespace, whose attributes are locked, as those of its clones are (mount_namespaces(7), "Restrictions on mount namespaces"). So the trees pass through one (cloneTrees).
// A volume that lands in another one of list, which is in the order of Order, is then resolved in that one's tree. The next Enter leaves the staging namespace. Dies of source_forbidden, unsupported_kernel, system.
func Stage(list []*Attachment, ns namespace.NS, lock bool) {
	ns.Enter()
	top := stagingRoot()
	slots, names := make([]int, len(list)), make([][5]byte, len(list)) // the names as C strings: the child must not allocate
	for i, a := range list {
		a.stage(top, strconv.Itoa(i))
		slots[i] = a.tree
		copy(names[i][:4], strconv.Itoa(i))
	}
	e := cloneTrees(slots, names, lock)
	namespace.Hint("locking needs user namespaces: see user.max_user_namespaces and user.max_mnt_namespaces").DieIf(e != 0, wire.UnsupportedKernel, "lock", "cannot lock the attributes: %v", e)
	for _, a := range list {
		id, _, err := namespace.MountOf(a.tree)
		namespace.Check(err, wire.System, "stage", "cannot name the detached mount of %s", a.Source.Path)
		if a.ID, a.Locked = id, lock; a.outer != nil {
			a.Point.moveInto(a.outer.Point, a.outer.tree)
		}
	}
}

// stagingRoot takes the thread into a private copy of the mount namespace that it is in, the container's (a copy of the host's would cost by the number of its mounts), and makes its root there an empty tmpfs.
func stagingRoot() int {
	const why = "cannot make a staging namespace"
	check := func(err error) { namespace.Check(err, wire.System, "stage", why) }
	check(unix.Unshare(unix.CLONE_NEWNS))
	check(unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})) // what follows must not propagate to the container's own mounts
	fs := namespace.Must(unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC))(wire.System, "stage", why)
	check(unix.FsconfigCreate(fs))
	top := namespace.Must(unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0))(wire.System, "stage", why)
	check(unix.MoveMount(top, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH))
	check(unix.Fchdir(top))
	check(unix.Chroot(".")) // else the child below is refused: the kernel takes us for chrooted
	return top
}

// stage moves the tree onto a name in that tmpfs, where it looks at every mount in it: what is checked is what will be attached, so nothing can be mounted in between (T45). Then it sets the attributes on all (T23).
func (a *Attachment) stage(top int, name string) {
	check := func(err error) { namespace.Check(err, wire.System, "stage", "cannot stage %s", a.Source.Path) }
	if a.Source.IsDir {
		check(unix.Mkdirat(top, name, 0o700))
	} else {
		check(unix.Mknodat(top, name, unix.S_IFREG|0o600, 0))
	}
	check(unix.MoveMount(a.tree, "", top, name, unix.MOVE_MOUNT_F_EMPTY_PATH))
	id, _, err := namespace.MountOf(a.tree)
	check(err)
	below, err := namespace.ListMounts(id, 0, 0) // what else is mounted in the source
	a.Source.forbid(a.Source.mounts >= 0 && a.Source.mounts != len(below), "", "of the %d mounts in it %d could be cloned (one may be unbindable), so that what the others cover would show", a.Source.mounts, len(below))
	a.Source.forbid(err != nil || len(below) == namespace.MaxMounts, "", "the mounts in it cannot be listed, or are %d or more", namespace.MaxMounts)
	for _, sub := range below {
		m, err := namespace.StatMount(sub, 0)
		check(err)
		a.Source.forbid(isFUSE(m.Type) && !a.Source.AllowFUSE, "root can set allow_fuse = true for its [[source]] in helper.toml", "a %s filesystem is mounted in it", m.Type)
		a.Source.forbid(!a.Source.Sealed && !strips(m), "", "a mount in it lacks nosuid or nodev, so it is not sealed")
	}
	check(unix.MountSetattr(a.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: a.Attr}))
}

// cloneTrees replaces each descriptor in slots, a tree staged under its name in the working directory, by a detached clone of it, which with lock a child makes, who sees only copies whose attributes are locked.
func cloneTrees(slots []int, names [][5]byte, lock bool) syscall.Errno {
	if !lock {
		return cloneInto(slots, names)
	}
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	childErrno = unix.EINTR // what one says that is killed
	errno := cloneInChild(slots, names)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return cmp.Or(errno, childErrno)
}

// cloneInChild has a child in a fresh user and mount namespace make the clones. It shares our memory and descriptors and runs on this thread's stack while this thread waits (docs/adr/0013). It makes raw system
// calls only, with all signals blocked, since the runtime's other threads do not exist in it, and grows no stack; it has no exit signal, so that no disposition that the caller left us can reap it. The child
// writes to this frame and below, so it stays in this function for good, and we leave it at once, as syscall.forkAndExecInChild does.
//
//go:norace
//go:noinline
func cloneInChild(slots []int, names [][5]byte) syscall.Errno {
	pid, errno := vfork(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_VFORK|unix.CLONE_FILES|unix.CLONE_NEWUSER|unix.CLONE_NEWNS)
	if errno != 0 || pid != 0 {
		return errno
	}
	childErrno = cloneInto(slots, names)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

var childErrno syscall.Errno // what the child leaves in the memory that it shares with us; its exit status comes later, and nobody needs to wait for that (docs/adr/0016)

// vfork makes clone(2), whose number is trap, with flags that include CLONE_VM and CLONE_VFORK: the child runs on the caller's stack until it exits.
//
//go:noescape
func vfork(trap, flags uintptr) (pid uintptr, errno syscall.Errno)

//go:norace
//go:nosplit
func cloneInto(slots []int, names [][5]byte) syscall.Errno {
	dirfd := unix.AT_FDCWD
	for i, slot := range slots {
		const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE
		fd, _, e := syscall.RawSyscall(unix.SYS_OPEN_TREE, uintptr(dirfd), uintptr(unsafe.Pointer(&names[i])), flags)
		if e == 0 {
			_, _, e = syscall.RawSyscall(unix.SYS_DUP3, fd, uintptr(slot), unix.O_CLOEXEC)
			syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		}
		if e != 0 {
			return e
		}
	}
	return 0
}

// Attach moves the tree onto its mountpoint in the mount namespace that the calling thread has entered. It refuses one that the container changed, and one whose mount propagates to others (T22). Undo takes it back.
func (a *Attachment) Attach(allowShared bool) {
	point, path := a.Point, a.Point.Path()
	if p := point.place; a.outer == nil { // what was pinned must still be what the path means: one that was moved out of the root or deleted meanwhile is refused (T18)
		AsRoot(p.target.UID, p.target.GID, func() {
			fd, err := Open(p.root, point.names, p.target.NS.ID, false)
			now, _, e1 := namespace.MountOf(fd)
			was, _, e2 := namespace.MountOf(point.fd)
			namespace.DieIf(cmp.Or(err, e1, e2) != nil || now != was || RootID(fd) != RootID(point.fd), wire.TargetForbidden, "attach", "cannot attach at %s: the container changed the path meanwhile", path)
			unix.Close(fd)
			point.judge()
		})
	}
	on, _, err := mountOn(point.fd, 0)
	namespace.DieIf(err != nil, wire.TargetForbidden, "attach", "cannot attach at %s: it is not in the container's mount namespace", path)
	namespace.Hint("make it private or slave in the container (runc: rootfsPropagation), or set targets.allow_shared_propagation").DieIf(on.Propagation&unix.MS_SHARED != 0 && !allowShared, wire.PropagationShared, "attach", "cannot attach at %s: the mount there is shared, so the volume would show in other namespaces too", path)
	namespace.Check(unix.MoveMount(a.tree, "", point.fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH), wire.System, "attach", "cannot attach at %s", path)
	a.attached = true
	// The kernel follows to what is mounted on the place at that very moment. If the container was quick enough to mount something, the parent is another than the one that was judged.
	now, err := namespace.StatMount(a.ID, 0)
	namespace.DieIf(err != nil || now.Parent != on.ID, wire.TargetForbidden, "attach", "cannot attach at %s: the container mounted something there meanwhile", path)
}

func (a *Attachment) Release() { unix.Close(a.tree); unix.Close(a.Point.fd) } // what would keep the volume busy while the caller takes its time to read the reply

// Undo takes an attachment back: the mount first, then what was made for it. It writes nothing and so cannot fail for want of space.
func (a *Attachment) Undo(h *namespace.Host, removal Removal) {
	if a.attached {
		unmount(h, a.tree)
	}
	r := a.Point.Record()
	r.Path, r.Made = absolute(a.Point.here()).String(), a.Point.made
	RemoveMade(a.Point.place.root, &r, removal)
}

// MountsIn counts the mounts below the mount id (^0: all, LSMT_ROOT of listmount(2)), in the namespace with the id ns (0: the calling thread's), whose path begins with prefix; countMounts those that is says are meant.
func MountsIn(id, ns uint64, prefix string) int {
	return countMounts(id, ns, func(m namespace.Mount) bool { return strings.HasPrefix(m.Point+"/", prefix) })
}

func countMounts(id, ns uint64, is func(namespace.Mount) bool) (count int) {
	for last, n := uint64(0), namespace.MaxMounts; n == namespace.MaxMounts; {
		ids := namespace.Must(namespace.ListMounts(id, last, ns))(wire.System, "mounts", "cannot list the host's mounts")
		n = len(ids)
		for _, last = range ids {
			if m, err := namespace.StatMount(last, ns); err == nil && is(m) {
				count++
			}
		}
	}
	return count
}

func strips(m namespace.Mount) bool { return m.Attr&nosuidNodev == nosuidNodev }
func isFUSE(t string) bool          { return t == "fuse" || t == "fuseblk" || strings.HasPrefix(t, "fuse.") }
