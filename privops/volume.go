package privops

import (
	"slices"
	"strconv"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// Volumes is the folder of the local driver's volumes, root's, 0700. A volume is a directory in it under its own name; a dot before a name says that it is being made or removed. Callers hold the lock of the name.
type Volumes struct {
	FD    int
	Path  string
	moved int // by purge, so far
}

// Get describes the volume name as the reply does (docs/wire.md); nil if there is none.
func (v *Volumes) Get(name string) wire.Fields {
	var stx unix.Statx_t
	if unix.Statx(v.FD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx) != nil || stx.Mode&unix.S_IFMT != unix.S_IFDIR || wire.CheckVolumeName(name) != nil {
		return nil
	}
	return wire.Pairs("mount", v.Path+"/"+name, "name", name, "mode", strconv.FormatUint(uint64(stx.Mode)&0o7777, 8), "uid", stx.Uid, "gid", stx.Gid, "time", stx.Btime.Sec)
}

func (v *Volumes) List() (list []wire.Fields) {
	for _, name := range namespace.Must(namespace.Entries(v.FD, 1<<16))(wire.System, "volume", "cannot list %s", v.Path) {
		list = append(list, v.Get(name))
	}
	return slices.DeleteFunc(list, func(f wire.Fields) bool { return f == nil })
}

// Create makes the volume name with this owner and mode, whole or not at all, and reports whether it did: one that exists is left as it is. Dies of system.
func (v *Volumes) Create(name string, mode, uid, gid uint32) bool {
	if v.Get(name) != nil {
		return false
	}
	check := func(err error) { namespace.Check(err, wire.System, "volume", "cannot create volume %s", name) }
	made := ".new-" + name
	defer unix.Unlinkat(v.FD, made, unix.AT_REMOVEDIR)              // unless it got its name
	if err := unix.Mkdirat(v.FD, made, 0o700); err != unix.EEXIST { // a crash left it
		check(err)
	}
	fd, err := unix.Openat(v.FD, made, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	check(err)
	check(unix.Fchown(fd, int(uid), int(gid)))
	check(unix.Fchmod(fd, mode))
	check(unix.Renameat2(v.FD, made, v.FD, name, unix.RENAME_NOREPLACE))
	check(unix.Fsync(v.FD))
	return true
}

// Remove takes the name away, in one step, then empties the directory, following no link and crossing no mount. Interrupted, it goes on when called again. Dies of volume_not_found, busy (a mount in it), system.
func (v *Volumes) Remove(name string) {
	id, _, err := namespace.MountOf(v.FD)
	mounted := err == nil && MountsIn(id, 0, v.Path+"/"+name+"/") > 0 // before anything is removed
	check := func(err error) {
		namespace.Hint("see findmnt").DieIf(mounted || err == unix.EBUSY || err == unix.EXDEV, wire.Busy, "volume", "cannot remove the local volume %s: something is mounted in it", name)
		namespace.Check(err, wire.System, "volume", "cannot remove the local volume %s", name)
	}
	check(err)
	gone := ".gone-" + name
	left := v.purge(v.FD, gone, true) // of a removal that was interrupted
	err = unix.Renameat2(v.FD, name, v.FD, gone, unix.RENAME_NOREPLACE)
	namespace.DieIf(err == unix.ENOENT && left == unix.ENOENT, wire.VolumeNotFound, "volume", "cannot remove the local volume %s: there is none", name)
	check(map[bool]error{true: left}[left != unix.ENOENT])
	if err != unix.ENOENT {
		check(err)
		check(v.purge(v.FD, gone, true))
	}
}

// purge empties and removes the directory name in dir. A tree may be deeper than there are descriptors: a directory below one of the top's that is not empty is moved up to the top, then dir, and emptied there.
func (v *Volumes) purge(dir int, name string, top bool) error {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: down | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for names := []string{""}; err == nil && len(names) > 0; {
		names, err = namespace.Entries(fd, 1<<16)
		for i := 0; i < len(names) && err == nil; i++ {
			if err = unix.Unlinkat(fd, names[i], 0); err == unix.EISDIR && top {
				err = v.purge(fd, names[i], false)
			} else if err == unix.EISDIR {
				err = unix.Unlinkat(fd, names[i], unix.AT_REMOVEDIR)
				for err == unix.ENOTEMPTY || err == unix.EEXIST {
					v.moved++
					err = unix.Renameat2(fd, names[i], dir, ".moved-"+strconv.Itoa(v.moved), unix.RENAME_NOREPLACE)
				}
			}
		}
	}
	if err == nil {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	return err
}
