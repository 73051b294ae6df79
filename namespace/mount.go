package namespace

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Mount is what the kernel says of one mount (statmount(2)), asked by unique id, so without looking anything up by path and without touching the
// filesystem: a FUSE server is not asked (T11).
type Mount struct {
	ID, Parent  uint64 // STATX_MNT_ID_UNIQUE
	OldID       uint32 // the reused id of /proc/PID/fdinfo
	Attr        uint64 // MOUNT_ATTR_*
	Propagation uint64 // MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_UNBINDABLE
	Type        string // of the filesystem, as in /proc/filesystems
	Dev         uint64 // of the filesystem, as major<<32 | minor
	Point       string // where it lies, seen from the root of the namespace that was asked
}

// mntIDReq is struct mnt_id_req of linux/mount.h, version 1.
type mntIDReq struct {
	size, spare        uint32
	mntID, param, nsID uint64
}

const (
	statmountPoint, statmountFSType = 0x10, 0x20
	statmountWanted                 = 0x1 | 0x2 | statmountPoint | statmountFSType // SB_BASIC, MNT_BASIC
	statmountHeader                 = 512                                          // bytes before the strings
)

// scratch is what the kernel answers into: a run asks some twenty times, and each fresh buffer is pages that it has to fault in. One thread works, so it has one user.
var scratch [statmountHeader + unix.PathMax]byte

// StatMount describes the mount with this unique id in the namespace with this id; 0 is the calling thread's. ENOENT: there is no such mount in it.
func StatMount(id, nsID uint64) (Mount, error) {
	req := mntIDReq{size: uint32(unsafe.Sizeof(mntIDReq{})), mntID: id, param: statmountWanted, nsID: nsID}
	buf := scratch[:]
	if _, _, e := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0); e != 0 {
		return Mount{}, e
	}
	return parseMount(buf), nil
}

// parseMount takes struct statmount of linux/mount.h apart, by offset.
func parseMount(buf []byte) Mount {
	le := binary.NativeEndian
	m := Mount{Dev: uint64(le.Uint32(buf[16:]))<<32 | uint64(le.Uint32(buf[20:])), ID: le.Uint64(buf[40:]),
		Parent: le.Uint64(buf[48:]), OldID: le.Uint32(buf[56:]), Attr: le.Uint64(buf[64:]), Propagation: le.Uint64(buf[72:])}
	text := func(mask uint64, at int) string {
		start := statmountHeader + int(le.Uint32(buf[at:]))
		if le.Uint64(buf[8:])&mask == 0 || start >= len(buf) {
			return ""
		}
		s, _, _ := bytes.Cut(buf[start:], []byte{0})
		return string(s)
	}
	m.Type, m.Point = text(statmountFSType, 36), text(statmountPoint, 108)
	return m
}

// Mounted reports whether the mount with this unique id is in the namespace with this id. Only the kernel's word that it is not counts as no.
func Mounted(id, nsID uint64) bool {
	_, err := StatMount(id, nsID)
	return err != unix.ENOENT
}

// listed is what the kernel lists into, as scratch is.
var listed [MaxMounts]uint64

// ListMounts returns the unique ids of at most MaxMounts mounts below the mount id, at any depth, that come after the id last, in the namespace with this id; 0 is the calling thread's.
func ListMounts(id, last, nsID uint64) ([]uint64, error) {
	req := mntIDReq{size: uint32(unsafe.Sizeof(mntIDReq{})), mntID: id, param: last, nsID: nsID}
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

// MaxMounts is how many mounts of a tree bindgate looks at; a larger tree is refused.
const MaxMounts = 4096
