// Package namespace knows who a target is: the process behind a pid, its mount and user namespace and its root, each pinned by a descriptor, and how
// the calling thread enters a mount namespace. After Pin nothing is looked up by pid or path again.
package namespace

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// A Host is this side of the boundary: the host's procfs, mount namespace and root, as seen before any container is entered.
type Host struct {
	Proc     int      // O_PATH descriptor of the procfs; the only procfs that is ever read (T20)
	BootID   string   // random per boot
	mounts   []uint64 // inodes of the mount namespaces that are nobody's to attach into: ours, pid 1's, the caller's
	root     identity // of pid 1's root directory
	cgroupOK bool     // our cgroup namespace is pid 1's, so that /proc/PID/cgroup is the host's view
}

// identity is what makes a file the same file.
type identity struct{ dev, ino uint64 }

func identityOf(st *unix.Stat_t) identity { return identity{st.Dev, st.Ino} }

// OpenHost pins the host's side. Where pid 1 may not be read even by root, because it has more capabilities than we can have, pid 2 stands for it if it
// is a kernel thread, since those are in the first mount namespace (FACTS 19). Errors: config, namespace_host, system.
func OpenHost() (*Host, error) {
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, wire.Errorf(wire.System, "host", "cannot open /proc: %v", err)
	}
	h := &Host{Proc: fd}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return nil, wire.Errorf(wire.Config, "host", "cannot use /proc: it is not a procfs")
	}
	if self, err := h.readlink("self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return nil, wire.Errorf(wire.Config, "host", "cannot use /proc: it belongs to another pid namespace")
	}
	boot, err := h.read("sys/kernel/random/boot_id")
	if err != nil {
		return nil, wire.Errorf(wire.System, "host", "cannot read the boot id: %v", err)
	}
	h.BootID = strings.TrimSpace(boot)

	first := "1"
	var mnt, root, cgroup, ownMnt, ownCgroup unix.Stat_t
	if err := h.stat("1/ns/mnt", &mnt); errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		if status, err := h.read("2/status"); err == nil && strings.Contains(status, "\nKthread:\t1\n") {
			first = "2"
		}
	}
	for _, x := range []struct {
		path string
		st   *unix.Stat_t
	}{{first + "/ns/mnt", &mnt}, {first + "/root", &root}, {first + "/ns/cgroup", &cgroup}, {"self/ns/mnt", &ownMnt}, {"self/ns/cgroup", &ownCgroup}} {
		if err := h.stat(x.path, x.st); err != nil {
			return nil, wire.Errorf(wire.NamespaceHost, "host", "cannot tell the host's namespaces from others: /proc/%s: %v", x.path, err)
		}
	}
	h.mounts, h.root, h.cgroupOK = []uint64{mnt.Ino, ownMnt.Ino}, identityOf(&root), cgroup.Ino == ownCgroup.Ino
	return h, nil
}

// RefuseCaller adds the mount namespace of a caller that is not our parent, so known by its pid only, to those that are refused.
func (h *Host) RefuseCaller(pid int) error {
	var st unix.Stat_t
	if err := h.stat(strconv.Itoa(pid)+"/ns/mnt", &st); err != nil {
		return wire.Errorf(wire.NamespaceGone, "caller", "cannot find the mount namespace of the caller, pid %d: %v", pid, err)
	}
	h.mounts = append(h.mounts, st.Ino)
	return nil
}

// Exe returns the executable of a process, for the audit log; "" if it cannot be told.
func (h *Host) Exe(pid int) string {
	exe, _ := h.readlink(strconv.Itoa(pid) + "/exe")
	return exe
}

// stat follows the last component: that is how procfs' links to namespaces and roots are asked who they are.
func (h *Host) stat(path string, st *unix.Stat_t) error { return unix.Fstatat(h.Proc, path, st, 0) }

func (h *Host) readlink(path string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(h.Proc, path, buf)
	return string(buf[:max(n, 0)]), err
}

// maxProcFile bounds what is read of one file of procfs.
const maxProcFile = 1 << 18

func (h *Host) read(path string) (string, error) {
	fd, err := unix.Openat(h.Proc, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	for n := 0; ; {
		k, err := unix.Read(fd, buf[n:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", err
		case k == 0:
			return string(buf[:n]), nil
		}
		if n += k; n == len(buf) {
			if n >= maxProcFile {
				return "", unix.EFBIG
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}
