package privops

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
)

// An Attachment is one volume on its way into a container: where from, where to, how, and once it is staged the detached tree that will be moved.
type Attachment struct {
	Mount  *wire.Mount // as asked
	Source *Source
	Point  *Mountpoint
	Attr   uint64 // MOUNT_ATTR_* to set on every mount of the tree
	ID     uint64 // unique id of the tree's root mount; it keeps it when it is moved (FACTS 1)
	Locked bool

	outer    *Attachment // the volume of the same request in which this one lands
	tree     int         // detached mount
	attached bool
}

// Order sorts the volumes of a request by depth and finds for each the one that it lands in. Two at one place die of invalid_request.
func Order(list []*Attachment) {
	slices.SortStableFunc(list, func(a, b *Attachment) int { return len(a.Point.names) - len(b.Point.names) })
	for i, a := range list {
		for _, b := range list[:i] {
			switch n := len(b.Point.names); {
			case !slices.Equal(b.Point.names, a.Point.names[:n]):
			case n == len(a.Point.names):
				namespace.Die(wire.Errorf(wire.InvalidRequest, "target", "cannot attach two volumes at %s (%s and %s)", a.Point.Path(), b.Mount.Path, a.Mount.Path))
			default:
				a.outer = b
			}
		}
	}
}

// Clone makes a detached copy of the source with all that is mounted in it, and for an idmapped mount maps it, which has to be done before a mount is anywhere. Dies of source_forbidden, and of
// target_forbidden for an idmap that cannot be.
func (a *Attachment) Clone(t *namespace.Target) {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE | unix.AT_EMPTY_PATH
	a.tree = namespace.Must(unix.OpenTree(a.Source.fd, "", flags))(wire.SourceForbidden, "tree", "cannot clone the mount of %s", a.Source.Path)
	// From here on nothing is mounted in it any more because it was mounted in the source.
	namespace.Check(unix.MountSetattr(a.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}), wire.System, "tree", "cannot make the clone of %s private", a.Source.Path)
	unix.Close(a.Source.fd) // a table of more than 256 descriptors stalls as it grows (FACTS 16)
	if !a.Mount.IDMap {
		return
	}
	namespace.DieIf(t.UserNS < 0, wire.Errorf(wire.TargetForbidden, "tree", "cannot map the ids of %s: the container has no user namespace of its own", a.Source.Path).WithHint("leave idmap out"))
	err := unix.MountSetattr(a.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(t.UserNS)})
	namespace.Check(err, wire.SourceForbidden, "tree", "cannot map the ids of %s: its filesystem or a mount in it cannot be idmapped", a.Source.Path)
}

// Attach moves the tree onto its mountpoint, which was made, in the container's mount namespace, which the calling thread has entered. It refuses a mountpoint that the container changed,
// and one whose mount propagates to others (T22). If it dies, Undo takes back what was done of it.
func (a *Attachment) Attach(allowShared bool) {
	a.Point.Check()
	path := a.Point.Path()
	parent, _, err := namespace.MountOf(a.Point.fd)
	on, e := namespace.StatMount(parent, 0)
	namespace.DieIf(err != nil || e != nil, wire.Errorf(wire.TargetForbidden, "attach", "cannot attach at %s: it is not in the container's mount namespace", path))
	namespace.DieIf(on.Propagation&unix.MS_SHARED != 0 && !allowShared, wire.Errorf(wire.PropagationShared, "attach", "cannot attach at %s: the mount there is shared, so the volume would show in other namespaces too", path).
		WithHint("make it private or slave in the container (runc: rootfsPropagation), or set targets.allow_shared_propagation"))
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	namespace.Check(unix.MoveMount(a.tree, "", a.Point.fd, "", flags), wire.System, "attach", "cannot attach at %s", path)
	a.attached = true
	// The kernel follows to what is mounted on the place at that very moment. If the container was quick enough to mount something, the parent is another than the one that was judged.
	now, err := namespace.StatMount(a.ID, 0)
	namespace.DieIf(err != nil || now.Parent != parent, wire.Errorf(wire.TargetForbidden, "attach", "cannot attach at %s: the container mounted something there meanwhile", path))
}

// Release closes what would keep the attached volume busy while the caller takes its time to read the reply.
func (a *Attachment) Release() { unix.Close(a.tree); unix.Close(a.Point.fd) }

// Undo takes an attachment back: the mount first, then what was made for it. It writes nothing and so cannot fail for want of space.
func (a *Attachment) Undo(h *namespace.Host, removal Removal) {
	if a.attached {
		unmount(h, a.tree)
	}
	a.Point.Unmake(removal)
}
