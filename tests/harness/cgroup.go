package harness

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// CgroupRule is the target rule of every host's helper.toml. A host's own cgroup lies beneath it (Host.Cgroup), since cgroups are the machine's and
// other hosts run beside it.
const CgroupRule = "/bindgate-test"

// Cgroup is the host's own cgroup, beneath CgroupRule.
func (h *Host) Cgroup() string { return CgroupRule + "/" + h.id }

// A hierarchy is one tree of cgroups: where it is mounted, and where we are in it.
type hierarchy struct {
	mountpoint  string
	controllers string // as in /proc/PID/cgroup: "" is cgroup v2
	path        string
}

// hierarchies finds every hierarchy that this process is in and that is mounted: those of cgroup v1, of v2, or of both.
func hierarchies() ([]hierarchy, error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for line := range strings.Lines(string(self)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		h := hierarchy{controllers: part[1], path: part[2]}
		for mount := range strings.Lines(string(mounts)) {
			before, after, _ := strings.Cut(mount, " - ")
			f, g := strings.Fields(before), strings.Fields(after)
			if len(f) < 5 || len(g) < 3 || f[3] != "/" {
				continue
			}
			v2 := g[0] == "cgroup2" && h.controllers == ""
			v1 := g[0] == "cgroup" && h.controllers != "" && hasOptions(g[2], h.controllers)
			if v1 || v2 {
				h.mountpoint = f[4]
			}
		}
		if h.mountpoint != "" {
			all = append(all, h)
		}
	}
	return all, nil
}

func hasOptions(options, wanted string) bool {
	for w := range strings.SplitSeq(wanted, ",") {
		if !strings.Contains(","+options+",", ","+w+",") {
			return false
		}
	}
	return true
}

// EnterCgroup puts a process into a cgroup, made where it is missing, in every hierarchy in which this process is not at the root, or in at least
// one: the least that a target rule for it needs.
func (h *Host) EnterCgroup(pid int, cgroup string) {
	h.t.Helper()
	all, err := hierarchies()
	h.check(err)
	if len(all) == 0 {
		h.t.Fatal("harness: no cgroup hierarchy is mounted")
	}
	entered := 0
	for i, y := range all {
		last := i == len(all)-1 && entered == 0
		if y.path == "/" && !last || strings.Contains(y.controllers, "cpuset") && !last {
			continue
		}
		dir := filepath.Join(y.mountpoint, cgroup)
		h.check(os.MkdirAll(dir, 0o755))
		h.check(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
		entered++
	}
}

// removeCgroups removes the cgroups of a host that has ended, and returns those that the host's own cleanup should have removed.
func removeCgroups(t testing.TB, id string) (left []string) {
	all, err := hierarchies()
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	for _, y := range all {
		dir := filepath.Join(y.mountpoint, CgroupRule, id)
		var dirs []string
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- { // children first
			if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("harness: cannot remove a cgroup: %v", err)
			}
			if dirs[i] != dir {
				left = append(left, dirs[i])
			}
		}
	}
	return left
}

// holdCgroups keeps the folder of CgroupRule from being removed while any test binary runs, and returns what to call at the end: the last one removes it.
func holdCgroups() func() {
	fd, err := unix.Open("/sys/fs/cgroup", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil || os.Getuid() != 0 {
		return func() {}
	}
	unix.Flock(fd, unix.LOCK_SH)
	return func() {
		defer unix.Close(fd)
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
			return
		}
		all, _ := hierarchies()
		for _, y := range all {
			os.Remove(filepath.Join(y.mountpoint, CgroupRule))
		}
	}
}
