package privops

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

func busy(r *wire.Recorded, cond bool, format string, args ...any) {
	namespace.Hint("end what uses it, or detach with --lazy").DieIf(cond, wire.Busy, "detach", "cannot detach %s: "+format, append([]any{r.Target}, args...)...)
}

// Unused checks that in the thread's namespace no mount of keep, which are others' attachments, lies on those of list; unless lazy also that nothing else does that is not in list, and that nobody uses them. Dies of busy.
func Unused(h *namespace.Host, ns namespace.NS, list []*wire.Recorded, keep []uint64, lazy bool) {
	for _, r := range list {
		m, err := namespace.StatMount(r.ID, 0)
		if err == unix.ENOENT {
			continue
		}
		below, e := namespace.ListMounts(m.ID, 0, 0)
		foreign := func(id uint64) bool {
			return slices.Contains(keep, id) || !lazy && !slices.ContainsFunc(list, func(o *wire.Recorded) bool { return o.ID == id })
		}
		busy(r, err != nil || e != nil || len(below) == namespace.MaxMounts || slices.ContainsFunc(below, foreign), "something else is mounted on it or below it")
		if !lazy {
			holders := h.Holders(ns, m)
			busy(r, len(holders) > 0, "it is in use by %s", strings.Join(holders, ", "))
		}
	}
}

// Detach unmounts in the thread's namespace only the mount with the recorded id (T27), with lazy also what lies on it, which else is busy; one that is not there is no error. Then it removes what was made for it.
func Detach(h *namespace.Host, r *wire.Recorded, lazy bool, removal Removal) {
	m, lost := namespace.StatMount(r.ID, 0)
	namespace.DieIf(lost != nil && lost != unix.ENOENT, wire.Busy, "detach", "cannot find the mount at %s: %v", r.Target, lost)
	for id := uint64(0); lost == nil && id != r.ID; {
		fd, err := openPoint(m.Point, true)
		busy(r, err != nil, "the container covered or moved it (it was at %s): %v", m.Point, err)
		id, _, err = namespace.MountOf(fd)
		above, e := namespace.ListMounts(r.ID, 0, 0)
		busy(r, cmp.Or(err, e) != nil || id != r.ID && !(lazy && slices.Contains(above, id)), "the container mounted something over it (at %s)", m.Point)
		namespace.Check(unmount(h, fd), wire.System, "detach", "cannot unmount %s", r.Target)
		unix.Close(fd)
	}
	unmake(r, m.Point, removal)
}

// unmake removes what was made for the mount in the directory that was the container's root: the namespace's, or before the pivot the rootfs. One that was moved, last seen at point, leaves its place; "" if it is gone.
func unmake(r *wire.Recorded, point string, removal Removal) {
	for _, prefix := range []string{"", r.Prefix} {
		root, err := openPoint(cmp.Or(prefix, "/"), false)
		if err == nil && RootID(root) == r.Root && (point == "" || point == prefix+r.Path) {
			RemoveMade(root, r, removal)
		}
		unix.Close(root)
		Sure(err, r.Path)
	}
}

// openPoint opens an absolute path in the namespace that the calling thread has entered; fuse as for Open.
func openPoint(point string, fuse bool) (int, error) {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil || point == "" {
		return -1, cmp.Or(err, error(unix.ENOENT))
	}
	defer unix.Close(root)
	return Open(root, components(point), 0, fuse)
}

// unmount detaches the very mount that fd is on, whatever lies above it: the kernel is given the descriptor, through our procfs, not a path. What is mounted below goes along (MNT_DETACH).
func unmount(h *namespace.Host, fd int) error {
	if err := unix.Fchdir(h.Proc); err != nil {
		return err
	}
	return unix.Unmount("self/fd/"+strconv.Itoa(fd), unix.MNT_DETACH)
}

// Usage describes, as the reply does (docs/wire.md), the size of the filesystem of a mount in the namespace with this id and inode, if it can be reached, and who uses it. It leaves the thread in the namespace.
func Usage(h *namespace.Host, id, inode uint64, m namespace.Mount) (f wire.Fields) {
	ns, alive := h.OpenNS(id, inode)
	if !alive {
		return nil
	}
	defer unix.Close(ns.FD)
	ns.Enter()
	fd, _ := openPoint(m.Point, false)
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if on, _, err := mountOn(fd, 0); err == nil && on.ID == m.ID && unix.Fstatfs(fd, &fs) == nil {
		f = wire.Pairs("bytes", fs.Blocks*uint64(fs.Bsize), "bytes_free", fs.Bavail*uint64(fs.Bsize), "inodes", fs.Files, "inodes_free", fs.Ffree)
	}
	return append(f, wire.Pairs("holders", strings.Join(h.Holders(ns, m), "\n"))...)
}
