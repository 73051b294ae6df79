package privops

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
)

// A Recorded mount is what the ledger knows of an attachment, enough to find that very mount again and to remove what was made for it.
type Recorded struct {
	ID       uint64   // unique id
	Target   string   // container_path, for messages
	Names    []string // resolved path, from the root that the container had then
	Prefix   []string // of that root in the namespace, before the pivot
	Made     int      // how many of the last names were to be made
	UID, GID int      // file system ids of the container's root
}

// Unused checks that nobody uses the mounts of list in the namespace that the calling thread has entered: that the container mounted nothing on or below them but what is in list too, and that
// no process has anything open there. The error is busy.
func Unused(h *namespace.Host, ns namespace.NS, list []*Recorded) error {
	for _, r := range list {
		m, err := namespace.StatMount(r.ID, 0)
		if err != nil {
			continue // it is not there
		}
		below, err := namespace.ListMounts(m.ID, 0, 0, namespace.MaxMounts)
		for _, id := range below {
			if err != nil || !slices.ContainsFunc(list, func(o *Recorded) bool { return o.ID == id }) {
				return r.busy("the container mounted something on it or below it")
			}
		}
		if holders := h.Holders(ns, m); len(holders) > 0 {
			return r.busy("it is in use by %s", strings.Join(holders, ", "))
		}
	}
	return nil
}

func (r *Recorded) busy(format string, args ...any) error {
	return wire.Errorf(wire.Busy, "detach", "cannot detach %s: "+format, append([]any{r.Target}, args...)...).WithHint("end what uses it, or detach with --lazy")
}

// Detach unmounts a recorded mount in the namespace that the calling thread has entered, and removes what was made for it. Only the mount with the recorded id goes (T27). If the container mounted
// something over it the error is busy; lazy takes what was mounted on it along. One that is not there any more is no error.
func (r *Recorded) Detach(h *namespace.Host, lazy bool) error {
	m, err := namespace.StatMount(r.ID, 0)
	if err != nil { // never came to be, or the container unmounted it itself
		r.unmake("")
		return nil
	}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, m.Point, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
		if err != nil {
			return r.busy("the container covered or moved it (it was at %s): %v", m.Point, err)
		}
		id, _, err := namespace.MountOf(fd)
		if err == nil && id != r.ID && !(lazy && liesOn(id, r.ID)) {
			err = r.busy("the container mounted something over it (at %s)", m.Point)
		}
		if err == nil {
			if e := unmount(h.Proc, fd); e != nil {
				err = wire.Errorf(wire.System, "detach", "cannot unmount %s: %v", r.Target, e)
			}
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
		if id == r.ID {
			r.unmake(m.Point)
			return nil
		}
	}
}

// Statfs returns the size of a mount's filesystem. The calling thread is left in the namespace.
func Statfs(ns namespace.NS, m namespace.Mount) (fs unix.Statfs_t, err error) {
	if err = ns.Enter(); err != nil {
		return fs, err
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, m.Point, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return fs, err
	}
	defer unix.Close(fd)
	if id, _, err := namespace.MountOf(fd); err != nil || id != m.ID {
		return fs, unix.EBUSY
	}
	return fs, unix.Fstatfs(fd, &fs)
}

// liesOn reports whether the mount id was mounted on the mount base, directly or not: then it goes along with base anyway.
func liesOn(id, base uint64) bool {
	for range 64 {
		m, err := namespace.StatMount(id, 0)
		if err != nil || m.Parent == m.ID {
			return false
		}
		if id = m.Parent; id == base {
			return true
		}
	}
	return false
}

// unmake removes what was made, where the mount was last seen if its path still ends as it did, or else where it was to be.
func (r *Recorded) unmake(point string) {
	if r.Made == 0 {
		return
	}
	candidates := [][]string{r.Names, append(append([]string{}, r.Prefix...), r.Names...)}
	if point != "" {
		at := strings.Split(strings.Trim(point, "/"), "/")
		if !strings.HasSuffix("/"+strings.Join(at, "/"), "/"+strings.Join(r.Names, "/")) {
			return // moved: the place is the container's own
		}
		candidates = [][]string{at}
	}
	AsContainerRoot(r.UID, r.GID, func() error {
		root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(root)
		for _, names := range candidates {
			RemoveMade(root, names, r.Made)
		}
		return nil
	})
}

// unmount detaches the very mount that fd is on, whatever lies above it: the kernel is given the descriptor, through our procfs, not a path. What is mounted below goes along (MNT_DETACH, umount2(2)).
func unmount(proc, fd int) error {
	if err := unix.Fchdir(proc); err != nil {
		return err
	}
	return unix.Unmount("self/fd/"+strconv.Itoa(fd), unix.MNT_DETACH)
}
