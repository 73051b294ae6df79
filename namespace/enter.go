package namespace

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// Enter moves the calling thread, which must be locked and is never to be unlocked again, into the mount namespace. Its root and working directory become the namespace's root (setns(2)), so from here
// on a path means the container's.
func (ns NS) Enter() {
	Check(unix.Unshare(unix.CLONE_FS), wire.System, "enter", "cannot unshare the thread's root and working directory") // threads share them, and setns refuses that
	Check(unix.Setns(ns.FD, unix.CLONE_NEWNS), wire.System, "enter", "cannot enter the mount namespace %d", ns.ID)
}

// OpenNS opens a mount namespace by its id and inode number, also one whose first process is dead, as long as it exists (nsfs file handles, Linux 6.18).
func OpenNS(id, inode uint64) (NS, bool) {
	handle := make([]byte, 16) // struct nsfs_file_handle of linux/nsfs.h
	binary.NativeEndian.PutUint64(handle, id)
	binary.NativeEndian.PutUint32(handle[8:], unix.CLONE_NEWNS)
	binary.NativeEndian.PutUint32(handle[12:], uint32(inode))
	const fileidNSFS, fdNSFSRoot = 0xf1, -10003 // linux/exportfs.h, linux/fcntl.h
	fd, err := unix.OpenByHandleAt(fdNSFSRoot, unix.NewFileHandle(fileidNSFS, handle), unix.O_RDONLY|unix.O_CLOEXEC)
	DieIf(err == unix.EOPNOTSUPP || err == unix.EBADF || err == unix.EINVAL, wire.Errorf(wire.UnsupportedKernel, "enter", "cannot open a mount namespace by its id: the kernel lacks file handles of namespaces").WithHint("end the container, or use Linux 6.18 or later"))
	return NS{fd, id, inode}, err == nil
}

func mountNSID(fd int) (id uint64, err error) {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&id))); e != 0 {
		return 0, e
	}
	return id, nil
}
