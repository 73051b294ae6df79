package namespace

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Mount is what the kernel says of one mount (statmount(2)), asked by unique id, so without looking anything up by path and without touching the filesystem: a FUSE server is not asked (T11).
type Mount struct {
	ID, Parent  uint64 // STATX_MNT_ID_UNIQUE
	OldID       uint32 // the reused id of /proc/PID/fdinfo
	Attr        uint64 // MOUNT_ATTR_*
	Propagation uint64 // MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_UNBINDABLE
	Type        string // of the filesystem, as in /proc/filesystems
	Dev         uint64 // of the filesystem, as major<<32 | minor
	Point       string // where it lies, seen from the root of the namespace that was asked
}

// mntIDReq is struct mnt_id_req of linux/mount.h: its size, in 32 bits before 32 spare ones (we are built for little-endian machines only), mnt_id, param, mnt_ns_id.
type mntIDReq [4]uint64

const (
	MaxMounts                       = 4096 // how many mounts of a tree bindgate looks at; a larger tree is refused
	statmountPoint, statmountFSType = 0x10, 0x20
	statmountWanted                 = 0x1 | 0x2 | statmountPoint | statmountFSType // SB_BASIC, MNT_BASIC
	statmountHeader                 = 512                                          // bytes before the strings
)

// What the kernel answers into: a run asks some twenty times, and each fresh buffer is pages that it has to fault in. One thread works, so each has one user.
var scratch, listed = [statmountHeader + unix.PathMax]byte{}, [MaxMounts]uint64{}

// StatMount describes the mount with this unique id in the namespace with this id; 0 is the calling thread's. ENOENT: there is no such mount in it.
func StatMount(id, nsID uint64) (Mount, error) {
	req := mntIDReq{unix.MNT_ID_REQ_SIZE_VER1, id, statmountWanted, nsID}
	if _, _, e := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&scratch)), unsafe.Sizeof(scratch), 0, 0, 0); e != 0 {
		return Mount{}, e
	}
	return parseMount(scratch[:]), nil
}

// parseMount takes struct statmount of linux/mount.h apart, by offset.
func parseMount(buf []byte) Mount {
	ne := binary.NativeEndian
	text := func(mask uint64, at int) (s []byte) {
		if start := statmountHeader + int(ne.Uint32(buf[at:])); ne.Uint64(buf[8:])&mask != 0 && start < len(buf) {
			s, _, _ = bytes.Cut(buf[start:], []byte{0})
		}
		return s
	}
	return Mount{ID: ne.Uint64(buf[40:]), Parent: ne.Uint64(buf[48:]), OldID: ne.Uint32(buf[56:]), Attr: ne.Uint64(buf[64:]), Propagation: ne.Uint64(buf[72:]),
		Type: string(text(statmountFSType, 36)), Dev: uint64(ne.Uint32(buf[16:]))<<32 | uint64(ne.Uint32(buf[20:])), Point: string(text(statmountPoint, 108))}
}

// Mounted reports whether the mount with this unique id is in the namespace with this id. Only the kernel's word that it is not counts as no.
func Mounted(id, nsID uint64) bool { _, err := StatMount(id, nsID); return err != unix.ENOENT }

// ListMounts returns the unique ids of at most MaxMounts mounts below the mount id, at any depth, that come after the id last, in the namespace with this id; 0 is the calling thread's.
func ListMounts(id, last, nsID uint64) ([]uint64, error) {
	req := mntIDReq{unix.MNT_ID_REQ_SIZE_VER1, id, last, nsID}
	n, _, e := unix.Syscall6(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&listed)), MaxMounts, 0, 0, 0)
	if e != 0 {
		return nil, e
	}
	return slices.Clone(listed[:n]), nil
}

// MountOf returns the unique id of the mount that a descriptor is on, its type and its inode, without making a remote filesystem answer.
func MountOf(fd int) (id uint64, stx unix.Statx_t, err error) {
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID_UNIQUE|unix.STATX_TYPE|unix.STATX_INO, &stx)
	if err == nil && stx.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		err = unix.ENOTSUP
	}
	return stx.Mnt_id, stx, err
}
