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
	Outer  *Attachment // the volume of the same request in which this one lands
	Source *Source
	Point  *Mountpoint
	Attr   uint64 // MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC to set on every mount of the tree
	IDMap  bool
	ID     uint64 // unique id of the tree's root mount; it keeps it when it is moved (FACTS 1)
	Locked bool

	tree     int // detached mount
	attached bool
}

// Order sorts the volumes of a request by depth and finds for each the one that it lands in. Two at one place are invalid_request.
func Order(list []*Attachment) error {
	slices.SortStableFunc(list, func(a, b *Attachment) int { return len(a.Point.names) - len(b.Point.names) })
	for i, a := range list {
		for _, b := range list[:i] {
			switch n := len(b.Point.names); {
			case !slices.Equal(b.Point.names, a.Point.names[:n]):
			case n == len(a.Point.names):
				return wire.Errorf(wire.InvalidRequest, "target", "cannot attach two volumes at %s (%s and %s)", a.Point.Path(), b.Mount.Path, a.Mount.Path)
			default:
				a.Outer = b
			}
		}
	}
	return nil
}

// Clone makes a detached copy of the source with all that is mounted in it, and for an idmapped mount maps it, which has to be done before a mount is anywhere.
// Errors: source_forbidden, target_forbidden for an idmap that cannot be.
func (a *Attachment) Clone(t *namespace.Target) (err error) {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE | unix.AT_EMPTY_PATH
	if a.tree, err = unix.OpenTree(a.Source.fd, "", flags); err != nil {
		a.tree = -1
		return wire.Errorf(wire.SourceForbidden, "tree", "cannot clone the mount of %s: %v", a.Source.Path, err)
	}
	if !a.IDMap {
		return nil
	}
	if t.UserNS < 0 {
		return wire.Errorf(wire.TargetForbidden, "tree", "cannot map the ids of %s: the container has no user namespace of its own", a.Source.Path).WithHint("leave idmap out")
	}
	err = unix.MountSetattr(a.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(t.UserNS)})
	if err != nil {
		return wire.Errorf(wire.SourceForbidden, "tree", "cannot map the ids of %s: its filesystem or a mount in it cannot be idmapped: %v", a.Source.Path, err).WithHint("leave idmap out")
	}
	return nil
}

// Attach makes what is missing of the mountpoint and moves the tree onto it, in the container's mount namespace, which the calling thread has entered. It refuses
// a mountpoint that the container changed, and one whose mount propagates to others (T22). On an error this attachment is as before; those before it are
// the caller's to undo.
func (a *Attachment) Attach(proc int, allowShared bool) error {
	if err := a.Point.Make(); err != nil {
		a.Point.Unmake()
		return err
	}
	err := a.move(proc, allowShared)
	if err != nil {
		a.Point.Unmake()
	}
	return err
}

func (a *Attachment) move(proc int, allowShared bool) error {
	if err := a.Point.Check(); err != nil {
		return err
	}
	path := a.Point.Path()
	parent, _, err := namespace.MountOf(a.Point.fd)
	if err != nil {
		return wire.Errorf(wire.System, "attach", "cannot examine the mount of %s in the container: %v", path, err)
	}
	on, err := namespace.StatMount(parent, 0)
	if err != nil {
		return wire.Errorf(wire.TargetForbidden, "attach", "cannot attach at %s: it is not in the container's mount namespace", path)
	}
	if on.Propagation&unix.MS_SHARED != 0 && !allowShared {
		return wire.Errorf(wire.PropagationShared, "attach", "cannot attach at %s: the mount there is shared, so the volume would show in other namespaces too", path).
			WithHint("make it private or slave in the container (runc: rootfsPropagation), or set targets.allow_shared_propagation")
	}
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(a.tree, "", a.Point.fd, "", flags); err != nil {
		return wire.Errorf(wire.System, "attach", "cannot attach at %s: %v", path, err)
	}
	a.attached = true
	// The kernel follows to what is mounted on the place at that very moment. If the container was quick enough to mount something, the parent is another than the one
	// that was judged, so take it back.
	if now, err := namespace.StatMount(a.ID, 0); err != nil || now.Parent != parent {
		a.Undo(proc)
		return wire.Errorf(wire.TargetForbidden, "attach", "cannot attach at %s: the container mounted something there meanwhile", path)
	}
	return nil
}

// Undo takes an attachment back: the mount first, then what was made for it. It needs no memory on disk and cannot fail for want of it.
func (a *Attachment) Undo(proc int) {
	if a.attached {
		unmount(proc, a.tree)
		a.attached = false
	}
	a.Point.Unmake()
}

// Close closes the attachment's descriptors. A tree that was not attached vanishes with its own.
func (a *Attachment) Close() {
	if a.Source != nil {
		a.Source.Close()
	}
	if a.Point != nil {
		a.Point.Close()
	}
	if a.tree > 0 {
		unix.Close(a.tree)
	}
}
