package doctor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// A feature is one thing that the helper asks of the kernel. Its probe works without privilege: a call that the kernel knows is refused (EPERM) or finds
// fault with its arguments, one that it does not know is ENOSYS.
type feature struct {
	name, since string
	probe       func() error
	why         string
}

// absent is what a kernel says that does not know a call, a flag or an ioctl.
func absent(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOPROTOOPT)
}

// call is a system call. What its arguments point to stays where it is (go doc compile, uintptrescapes).
//
//go:uintptrescapes
func call(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
		return e
	}
	return nil
}

const none = ^uintptr(0) // no descriptor

var features = []feature{
	{"openat2", "5.6", func() error {
		fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
		if err == nil {
			unix.Close(fd)
		}
		return err
	}, "resolves sources and roots"},
	{"pidfd_open", "5.3", func() error { return call(unix.SYS_PIDFD_OPEN, 0, 0) }, "pins the container's process"},
	{"PIDFD_GET_MNT_NAMESPACE", "6.11", func() error {
		pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
		if err != nil {
			return err
		}
		defer unix.Close(pidfd)
		fd, err := unix.IoctlRetInt(pidfd, unix.PIDFD_GET_MNT_NAMESPACE)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}, "pins its mount namespace"},
	{"NS_GET_MNTNS_ID", "6.11", func() error {
		fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var id uint64
		return call(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&id)))
	}, "names mount namespaces in the ledger"},
	{"STATX_MNT_ID_UNIQUE", "6.8", func() error {
		_, err := mountID("/")
		return err
	}, "names mounts in the ledger"},
	{"statmount", "6.8", func() error {
		id, err := mountID("/")
		if absent(err) {
			return nil // said by the check above
		}
		req := [4]uint64{32, id, 1, 0} // struct mnt_id_req, version 1, STATMOUNT_SB_BASIC; namespaces came with it (6.11)
		var buf [512]byte
		return call(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&buf)), uintptr(len(buf)), 0)
	}, "finds a mount again"},
	{"listmount", "6.8", func() error {
		req := [4]uint64{32, ^uint64(0), 0, 0} // LSMT_ROOT
		var ids [1]uint64
		return call(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&ids)), 1, 0)
	}, "finds mounts below one"},
	{"open_tree", "5.2", func() error { return call(unix.SYS_OPEN_TREE, none, 0, unix.OPEN_TREE_CLONE) }, "makes a detached copy of the source"},
	{"mount_setattr", "5.12", func() error { return call(unix.SYS_MOUNT_SETATTR, none, 0, 0, 0, 0) }, "sets its attributes before anyone sees it"},
	{"move_mount", "5.2", func() error { return call(unix.SYS_MOVE_MOUNT, none, 0, none, 0, 0) }, "attaches it"},
	{"fsopen", "5.2", func() error { return call(unix.SYS_FSOPEN, 0, 0) }, "makes the tmpfs where attributes are locked"},
	{"NS_MNT_GET_NEXT", "6.12", func() error {
		fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		next, err := unix.IoctlRetInt(fd, 0x8010b70b) // of linux/nsfs.h
		if err == nil {
			unix.Close(next)
		}
		return err
	}, "opens a mount namespace whose first process is dead, where there are no handles of namespaces (before 6.18)"},
	{"user namespaces", "3.8", func() error {
		if _, err := os.Stat("/proc/self/ns/user"); err != nil {
			return unix.ENOSYS
		}
		if text, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(text)) == "0" {
			return unix.ENOSYS
		}
		return nil
	}, "locks the attributes of mounts"},
	{"seccomp", "4.14", func() error {
		action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
		return call(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	}, "leaves the helper only the system calls that it needs"},
}

// mountID returns the unique id of the mount that a path is on.
func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		return 0, unix.ENOSYS
	}
	return st.Mnt_id, nil
}

// kernel asks for the features one by one.
func (d *Doctor) kernel() {
	var u unix.Utsname
	unix.Uname(&u)
	release := unix.ByteSliceToString(u.Release[:])
	all := features
	if d.policy.Helper.Transport == config.TransportSocket {
		all = append(all[:len(all):len(all)], feature{"SO_PEERPIDFD", "6.5", peerPidfd, "pins the caller at the other end of the socket"})
	}
	for _, f := range all {
		name := "kernel." + strings.ReplaceAll(f.name, " ", "_")
		c := Check{Check: name, State: OK, Message: f.why}
		if err := f.probe(); absent(err) {
			c.State, c.Code = Failed, wire.UnsupportedKernel
			c.Message = fmt.Sprintf("the kernel %s lacks %s, which %s", release, f.name, f.why)
			c.Hint = "it came with Linux " + f.since + "; a container engine's system call filter may hide it, too"
			if f.name == "user namespaces" {
				c.Fix, c.Hint = []string{"sysctl -w user.max_user_namespaces=15000"}, "or set mounts.lock = \"userns\" in helper.toml: then only containers in a user namespace get locked mounts"
			}
		}
		d.add(c)
	}
}

func peerPidfd() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	fd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
