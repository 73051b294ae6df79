package privops

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
)

// Volumes is the folder of the local driver's volumes: root's, 0700, so that the policy process can neither read nor change what jobs store. A volume is a directory in it under its own name. A
// name with a dot before it cannot be a volume's: those are volumes being made or removed. Callers hold the lock of the volume's name.
type Volumes struct {
	FD   int    // descriptor of the folder
	Path string // of the folder
}

// A Volume is one local volume.
type Volume struct {
	Name     string
	Path     string
	Mode     uint32 // permission bits
	UID, GID uint32
	Born     int64 // Unix time in seconds
}

// Get returns the volume name. The error is volume_not_found.
func (v *Volumes) Get(name string) (Volume, error) {
	var stx unix.Statx_t
	err := unix.Statx(v.FD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx)
	if err != nil || stx.Mode&unix.S_IFMT != unix.S_IFDIR {
		return Volume{}, wire.Errorf(wire.VolumeNotFound, "volume", "cannot find the local volume %s", name)
	}
	born := stx.Btime.Sec
	if stx.Mask&unix.STATX_BTIME == 0 {
		born = stx.Ctime.Sec
	}
	return Volume{name, v.Path + "/" + name, uint32(stx.Mode) & 0o7777, stx.Uid, stx.Gid, born}, nil
}

// List returns all volumes.
func (v *Volumes) List() ([]Volume, error) {
	names, err := entries(v.FD)
	var list []Volume
	for _, name := range names {
		if wire.CheckVolumeName(name) == nil {
			if vol, err := v.Get(name); err == nil {
				list = append(list, vol)
			}
		}
	}
	return list, err
}

// Create makes the volume name with this owner and mode, whole or not at all, and reports whether it did: one that exists is left as it is. Errors: system.
func (v *Volumes) Create(name string, mode, uid, gid uint32) (Volume, bool, error) {
	if vol, err := v.Get(name); err == nil {
		return vol, false, nil
	}
	failed := func(what string, err error) (Volume, bool, error) {
		unix.Unlinkat(v.FD, ".new-"+name, unix.AT_REMOVEDIR)
		return Volume{}, false, wire.Errorf(wire.System, "volume", "cannot create the local volume %s: %s: %v", name, what, err)
	}
	if err := unix.Mkdirat(v.FD, ".new-"+name, 0o700); err != nil && err != unix.EEXIST { // a crash left it
		return failed("mkdir", err)
	}
	fd, err := unix.Openat(v.FD, ".new-"+name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
		return failed("chown", err)
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return failed("chmod", err)
	}
	if err := unix.Renameat2(v.FD, ".new-"+name, v.FD, name, unix.RENAME_NOREPLACE); err != nil {
		return failed("rename", err)
	}
	if err := unix.Fsync(v.FD); err != nil {
		return failed("sync", err)
	}
	vol, err := v.Get(name)
	return vol, true, err
}

// Remove removes the volume name and all in it. It first takes the name away, in one step, then empties the directory, following no link and crossing no mount. Interrupted, it goes on when called
// again. Errors: volume_not_found, busy if something is mounted on it or in it, system.
func (v *Volumes) Remove(name string) error {
	if err := v.refuseMounted(name); err != nil {
		return err
	}
	gone := ".gone-" + name
	found := false
	for {
		switch err := v.purge(gone); {
		case err == nil:
			found = true
		case !errors.Is(err, unix.ENOENT):
			return removeFailed(name, err)
		}
		switch err := unix.Renameat2(v.FD, name, v.FD, gone, unix.RENAME_NOREPLACE); {
		case err == unix.ENOENT && found:
			return nil
		case err == unix.ENOENT:
			return wire.Errorf(wire.VolumeNotFound, "volume", "cannot remove the local volume %s: there is none", name)
		case err != nil:
			return removeFailed(name, err)
		}
	}
}

func removeFailed(name string, err error) error {
	e := wire.Errorf(wire.System, "volume", "cannot remove the local volume %s: %v", name, err)
	if err == unix.EBUSY || err == unix.EXDEV {
		e.Code, e.Hint = wire.Busy, "something is mounted in it: see findmnt"
	}
	return e
}

// refuseMounted looks for mounts on or in the volume, so that nothing is removed before one is met.
func (v *Volumes) refuseMounted(name string) error {
	id, _, err := namespace.MountOf(v.FD)
	if err != nil {
		return removeFailed(name, err)
	}
	for last := uint64(0); ; {
		ids, err := namespace.ListMounts(id, last, 0, namespace.MaxMounts)
		if err != nil {
			return removeFailed(name, err)
		}
		for _, last = range ids {
			if m, err := namespace.StatMount(last, 0); err == nil && strings.HasPrefix(m.Point+"/", v.Path+"/"+name+"/") {
				return removeFailed(name, unix.EBUSY)
			}
		}
		if len(ids) < namespace.MaxMounts {
			return nil
		}
	}
}

// purge empties and removes the directory top. The tree may be deeper than there are descriptors: a directory that is not empty is moved up to top, under a new name, and
// emptied there, so no more than two are open at a time.
func (v *Volumes) purge(top string) error {
	t, err := openDown(v.FD, top)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	moved := 0
	for {
		names, err := entries(t)
		if err != nil || len(names) == 0 {
			if err == nil {
				err = unix.Unlinkat(v.FD, top, unix.AT_REMOVEDIR)
			}
			return err
		}
		for _, name := range names {
			if err := v.empty(t, name, &moved); err != nil {
				return err
			}
		}
	}
}

// empty removes name in t, moving what is in its directories up to t.
func (v *Volumes) empty(t int, name string, moved *int) error {
	err := unix.Unlinkat(t, name, 0)
	if err != unix.EISDIR {
		return err
	}
	dir, err := openDown(t, name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	for {
		names, err := entries(dir)
		if err != nil || len(names) == 0 {
			if err == nil {
				err = unix.Unlinkat(t, name, unix.AT_REMOVEDIR)
			}
			return err
		}
		for _, n := range names {
			err := unix.Unlinkat(dir, n, 0)
			if err == unix.EISDIR {
				err = unix.Unlinkat(dir, n, unix.AT_REMOVEDIR)
			}
			for err == unix.ENOTEMPTY || err == unix.EEXIST {
				*moved++
				err = unix.Renameat2(dir, n, t, ".moved-"+strconv.Itoa(*moved), unix.RENAME_NOREPLACE)
			}
			if err != nil {
				return err
			}
		}
	}
}

func openDown(dir int, name string) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolveDown | unix.RESOLVE_NO_XDEV})
}

// entries returns the names in a directory from its beginning: some of them, if they are many, but none only if there is none.
func entries(dir int) (names []string, err error) {
	if _, err := unix.Seek(dir, 0, 0); err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	for len(names) < 1<<16 {
		n, err := unix.ReadDirent(dir, buf)
		if err == unix.EINTR {
			continue
		} else if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	return names, nil
}
