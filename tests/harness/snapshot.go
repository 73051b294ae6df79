package harness

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Mountinfo returns the lines of the host's /proc/self/mountinfo, for Diff.
func (h *Host) Mountinfo() []string {
	h.t.Helper()
	return mountinfo(h.t)
}

func mountinfo(t testing.TB) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// Tree returns one line for each file in a tree: path, type and mode, owner, size, and what it holds (a hash, or a link's target). Times are left out.
// It does not follow links, but does descend into mounts.
func (h *Host) Tree(dir string) []string {
	h.t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %s %d:%d", path, info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(data), sha256.Sum256(data))
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		lines = append(lines, line)
		return nil
	})
	h.check(err)
	return lines
}

// Diff returns the lines that are in one snapshot only, as "-line" and "+line"; "" if there are none.
func Diff(before, after []string) string {
	var b strings.Builder
	for _, line := range before {
		if !slices.Contains(after, line) {
			fmt.Fprintf(&b, "-%s\n", line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			fmt.Fprintf(&b, "+%s\n", line)
		}
	}
	return b.String()
}
