package namespace

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// Enter moves the calling thread, which must be locked and is never to be unlocked again, into the mount namespace. Its root and working directory become
// the namespace's root (setns(2)), so from here on a path means the container's.
func (ns NS) Enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // threads share root and cwd, and setns refuses that
		return wire.Errorf(wire.System, "enter", "cannot unshare the thread's root and working directory: %v", err)
	}
	if err := unix.Setns(ns.FD, unix.CLONE_NEWNS); err != nil {
		return wire.Errorf(wire.System, "enter", "cannot enter the mount namespace %d: %v", ns.ID, err)
	}
	return nil
}

// OpenNS opens a mount namespace by its id and inode number, also one whose first process is dead, as long as it exists: by handle (nsfs handles are in
// Linux 6.18), else by walking the list of namespaces. The error is namespace_gone.
func (h *Host) OpenNS(id, inode uint64) (NS, error) {
	// struct nsfs_file_handle of linux/nsfs.h
	handle := make([]byte, 16)
	binary.NativeEndian.PutUint64(handle, id)
	binary.NativeEndian.PutUint32(handle[8:], unix.CLONE_NEWNS)
	binary.NativeEndian.PutUint32(handle[12:], uint32(inode))
	const fileidNSFS, fdNSFSRoot = 0xf1, -10003 // linux/exportfs.h, linux/fcntl.h
	fd, err := unix.OpenByHandleAt(fdNSFSRoot, unix.NewFileHandle(fileidNSFS, handle), unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		if fd, err = h.walkNS(id); err != nil {
			return NS{}, wire.Errorf(wire.NamespaceGone, "enter", "cannot open the mount namespace %d: it has ended", id).Because(err)
		}
	}
	if got, err := mountNSID(fd); err != nil || got != id {
		unix.Close(fd)
		return NS{}, wire.Errorf(wire.NamespaceGone, "enter", "cannot open the mount namespace %d: another one has its place", id)
	}
	return NS{fd, id, inode}, nil
}

// linux/nsfs.h; not in x/sys yet.
const (
	NSMntGetNext = 0x8010b70b
	NSMntGetPrev = 0x8010b70c
)

// walkNS finds a namespace by id from the thread's own one on, in both directions (NS_MNT_GET_NEXT and _PREV, Linux 6.12).
func (h *Host) walkNS(id uint64) (int, error) {
	fd, err := unix.Openat(h.Proc, "thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	own, err := mountNSID(fd)
	step := uint(NSMntGetNext)
	if id < own {
		step = NSMntGetPrev
	}
	for at := own; err == nil && at != id; {
		var info struct {
			size, mounts uint32
			id           uint64
		}
		next, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(step), uintptr(unsafe.Pointer(&info)))
		unix.Close(fd)
		if e != 0 {
			return -1, e
		}
		fd, at = int(next), info.id
		if step == NSMntGetNext && at > id || step == NSMntGetPrev && at < id {
			err = unix.ENOENT
		}
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

func mountNSID(fd int) (id uint64, err error) {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&id))); e != 0 {
		return 0, e
	}
	return id, nil
}
