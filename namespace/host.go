// Package namespace knows who a target is: process, mount and user namespace, root, each pinned by a descriptor, and how to enter a mount namespace. After Pin nothing is looked up by pid or path again.
package namespace

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// A Host is this side of the boundary: the host's procfs, mount namespace and root, as seen before any container is entered.
type Host struct {
	NS       NS          // our own mount namespace, to come back to
	Proc     int         // O_PATH descriptor of the procfs, the only one that is ever read (T20)
	BootID   string      // random per boot
	mounts   []uint64    // inodes of the mount namespaces that nobody may attach into: ours, pid 1's, the caller's
	root     unix.Stat_t // of pid 1's root directory
	cgroupOK bool        // our cgroup namespace is pid 1's, so that /proc/PID/cgroup is the host's view
}

// OpenHost pins the host's side, and the mount namespace of the caller: by its pid, and if it is not our parent also a pidfd. Where pid 1 may not be read even by root, because it has more capabilities
// than we can have, pid 2 stands for it if it is a kernel thread, since those are in the first mount namespace (FACTS 19). Dies of config, namespace_host.
func OpenHost(caller, pidfd int) *Host {
	h := &Host{Proc: Must(unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0))(wire.System, "host", "cannot open /proc")}
	var fs unix.Statfs_t
	self, _ := os.Readlink("/proc/self")
	DieIf(unix.Fstatfs(h.Proc, &fs) != nil || fs.Type != unix.PROC_SUPER_MAGIC || self != strconv.Itoa(os.Getpid()), wire.Config, "host", "cannot use /proc: it is not the procfs of our pid namespace")
	h.BootID = strings.TrimSpace(Must(h.Read("sys/kernel/random/boot_id"))(wire.System, "host", "cannot read the boot id"))
	first := "1"
	if _, err := stat(h.Proc, "1/ns/mnt"); err == unix.EACCES || err == unix.EPERM {
		if status, err := h.Read("2/status"); err == nil && strings.Contains(status, "\nKthread:\t1\n") {
			first = "2"
		}
	}
	at := func(path string) unix.Stat_t {
		return Must(stat(h.Proc, path))(wire.NamespaceHost, "host", "cannot tell the host's namespaces from others: /proc/%s", path)
	}
	h.NS.FD = Must(unix.Openat(h.Proc, "self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0))(wire.System, "host", "cannot open our mount namespace")
	h.NS.ID = Must(mountNSID(h.NS.FD))(wire.UnsupportedKernel, "host", "cannot name a mount namespace (NS_GET_MNTNS_ID)")
	h.mounts, h.root = []uint64{at(first + "/ns/mnt").Ino, at("self/ns/mnt").Ino}, at(first+"/root")
	st, err := stat(h.Proc, strconv.Itoa(caller)+"/ns/mnt")
	h.mounts = append(h.mounts, st.Ino) // 0, which is no inode, if our parent has ended, or is in a pid namespace that we cannot see; its mount namespace is ours
	h.cgroupOK = at(first+"/ns/cgroup").Ino == at("self/ns/cgroup").Ino
	DieIf(pidfd >= 0 && (err != nil || ended(pidfd)), wire.NamespaceGone, "host", "cannot serve a caller that has ended")
	return h
}

// stat follows the last component: that is how procfs' links to namespaces and roots are asked who they are. Of "" it is fstat.
func stat(dir int, path string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(dir, path, &st, unix.AT_EMPTY_PATH)
	return st, err
}

// Read reads a file of procfs, of at most 256 KiB.
func (h *Host) Read(path string) (string, error) {
	fd, err := unix.Openat(h.Proc, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	defer unix.Close(fd)
	data, buf := []byte(nil), make([]byte, 4096)
	for n := 1; n > 0 && err == nil && len(data) < 1<<18; data = append(data, buf[:max(n, 0)]...) {
		n, err = unix.Read(fd, buf)
	}
	return string(data), err
}

// Holders returns "pid (command)" of the processes in a mount namespace with a descriptor, working directory, root or program on the mount m. As nobody is stopped, mappings and late opens are missed.
func (h *Host) Holders(ns NS, m Mount) (found []string) {
	for _, pid := range h.List(".") {
		on := func(link string) bool {
			var stx unix.Statx_t
			return unix.Statx(h.Proc, pid+link, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID_UNIQUE, &stx) == nil && stx.Mnt_id == m.ID
		}
		open := func(fd string) bool {
			info, err := h.Read(pid + "/fdinfo/" + fd)
			return err == nil && strings.Contains("\n"+info, "\nmnt_id:\t"+strconv.FormatUint(uint64(m.OldID), 10)+"\n")
		}
		st, err := stat(h.Proc, pid+"/ns/mnt")
		if pid[0] <= '9' && pid != strconv.Itoa(os.Getpid()) && err == nil && st.Ino == ns.Inode && (on("/cwd") || on("/root") || on("/exe") || slices.ContainsFunc(h.List(pid+"/fdinfo"), open)) {
			comm, _ := h.Read(pid + "/comm")
			found = append(found, pid+" ("+wire.Printable(strings.TrimSpace(comm))+")")
		}
	}
	return found
}

func (h *Host) List(path string) []string {
	fd, _ := unix.Openat(h.Proc, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	defer unix.Close(fd)
	names, _ := Entries(fd, 1<<23) // more than there can be processes
	return names
}

// Entries returns the names in a directory from its beginning: some of them, if they are most or more, but none only if there is none.
func Entries(dir, most int) (names []string, err error) {
	_, err = unix.Seek(dir, 0, 0)
	buf := make([]byte, 1<<16)
	for n := 1; n > 0 && err == nil && len(names) < most; _, _, names = unix.ParseDirent(buf[:max(n, 0)], -1, names) {
		n, err = unix.ReadDirent(dir, buf)
	}
	return names, err
}
