package namespace

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holders returns "pid (command)" of the processes in a mount namespace that have something open on the mount m, or their working directory or root in it. It is the best that
// can be had without stopping them: a mapping of a closed file is not seen, and what is opened meanwhile neither.
func (h *Host) Holders(ns NS, m Mount) []string {
	dir, err := unix.Openat(h.Proc, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	var found []string
	for _, pid := range readNames(dir) {
		var st unix.Stat_t
		if pid[0] < '1' || pid[0] > '9' || h.stat(pid+"/ns/mnt", &st) != nil || st.Ino != ns.Inode || !h.holds(pid, m) {
			continue
		}
		comm, _ := h.read(pid + "/comm")
		found = append(found, pid+" ("+strings.TrimSpace(comm)+")")
	}
	return found
}

func (h *Host) holds(pid string, m Mount) bool {
	for _, link := range []string{"/cwd", "/root", "/exe"} {
		var stx unix.Statx_t
		if unix.Statx(h.Proc, pid+link, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID_UNIQUE, &stx) == nil && stx.Mnt_id == m.ID {
			return true
		}
	}
	dir, err := unix.Openat(h.Proc, pid+"/fdinfo", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	want := "\nmnt_id:\t" + strconv.FormatUint(uint64(m.OldID), 10) + "\n"
	for _, fd := range readNames(dir) {
		if info, err := h.read(pid + "/fdinfo/" + fd); err == nil && strings.Contains("\n"+info, want) {
			return true
		}
	}
	return false
}

// readNames returns the names in an open directory and closes it.
func readNames(dir int) (names []string) {
	defer unix.Close(dir)
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err == unix.EINTR {
			continue
		} else if err != nil || n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
