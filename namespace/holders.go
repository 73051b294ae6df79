package namespace

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// Holders returns "pid (command)" of the processes in a mount namespace that have something open on the mount m, or their working directory or root in it. It is the best that can be had without
// stopping them: a mapping of a closed file is not seen, and what is opened meanwhile neither.
func (h *Host) Holders(ns NS, m Mount) (found []string) {
	for _, pid := range h.List(".") {
		st, err := h.stat(pid + "/ns/mnt")
		if pid[0] <= '9' && pid != strconv.Itoa(os.Getpid()) && err == nil && st.Ino == ns.Inode && h.holds(pid, m) {
			comm, _ := h.Read(pid + "/comm")
			found = append(found, pid+" ("+wire.Printable(strings.TrimSpace(comm))+")")
		}
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
	for _, fd := range h.List(pid + "/fdinfo") {
		if info, err := h.Read(pid + "/fdinfo/" + fd); err == nil && strings.Contains("\n"+info, "\nmnt_id:\t"+strconv.FormatUint(uint64(m.OldID), 10)+"\n") {
			return true
		}
	}
	return false
}

// List returns the names in a directory of procfs.
func (h *Host) List(path string) []string {
	fd, err := unix.Openat(h.Proc, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	return names
}
