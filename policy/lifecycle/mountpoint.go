package lifecycle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// isMount reports whether a path is a mountpoint on the host. The kernel says so without asking the filesystem; where a folder above may not be searched by
// us, the list of mounts does.
func isMount(path string) bool { return isMountSince(path, math.MaxUint64) }

// isMountSince is isMount for a path on which something was probably mounted after the mount with the unique id newest was the newest: where the list of
// mounts has to say, its end is looked at first, since all of it is long on a host with thousands (docs/adr/0016).
func isMountSince(path string, newest uint64) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	if err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	if errors.Is(err, unix.ENOENT) {
		return false
	}
	for ids := listMounts(newest, 0); len(ids) > 0; ids = listMounts(newest, 0) {
		for _, id := range ids {
			if mountpointOf(id) == path {
				return true
			}
		}
		newest = ids[len(ids)-1]
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	return err == nil && len(mounts) > 0
}

// newestMount returns the unique id of the newest mount of our mount namespace; where the kernel cannot say, one that none is newer than.
func newestMount() uint64 {
	const reverse = 1 // LISTMOUNT_REVERSE
	if ids := listMounts(0, reverse); len(ids) > 0 {
		return ids[0]
	}
	return math.MaxUint64
}

// mntIDReq is struct mnt_id_req of linux/mount.h, version 0.
type mntIDReq struct {
	size, spare  uint32
	mntID, param uint64
}

// listMounts returns the unique ids of some mounts of our mount namespace that come after last (listmount(2)).
func listMounts(last uint64, flags uintptr) []uint64 {
	var ids [64]uint64
	req := mntIDReq{size: uint32(unsafe.Sizeof(mntIDReq{})), mntID: math.MaxUint64, param: last} // LSMT_ROOT
	n, _, e := unix.Syscall6(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&ids)), uintptr(len(ids)), flags, 0, 0)
	if e != 0 {
		return nil
	}
	return ids[:n]
}

// mountpointOf returns where a mount of our mount namespace lies, "" if that cannot be told (statmount(2)).
func mountpointOf(id uint64) string {
	const header, point = 512, 0x10 // struct statmount without its strings; STATMOUNT_MNT_POINT
	var buf [header + unix.PathMax]byte
	req := mntIDReq{size: uint32(unsafe.Sizeof(mntIDReq{})), mntID: id, param: point}
	if _, _, e := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&buf)), uintptr(len(buf)), 0, 0, 0); e != 0 {
		return ""
	}
	at := header + int(binary.NativeEndian.Uint32(buf[108:]))
	if binary.NativeEndian.Uint64(buf[8:])&point == 0 || at >= len(buf) {
		return ""
	}
	path, _, _ := bytes.Cut(buf[at:], []byte{0})
	return string(path)
}
