package namespace

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain: started again with this variable, the test binary is in a mount namespace of its own, in which it can mount.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BINDGATE_TEST_MOUNTS"); dir != "" {
		if err := compareWithMountinfo(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The kernel's two ways to tell of its mounts must agree, for every mount of a namespace with binds, submounts, covered mounts, read-only and shared ones and strange names.
func TestStatMountAgreesWithMountinfo(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "BINDGATE_TEST_MOUNTS="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil && os.Geteuid() != 0 && os.IsPermission(err) {
		t.Skipf("no user namespace for an ordinary user: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func compareWithMountinfo(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	for _, name := range []string{"plain", "ro", "shared", "bind", "covered", "with space\tand\nnewline\\", "file"} {
		if err := os.Mkdir(at(name), 0o755); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"t", "plain", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV}, {"t", "ro", "tmpfs", unix.MS_NOEXEC}, {"", "ro", "", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"t", "shared", "tmpfs", 0}, {"", "shared", "", unix.MS_SHARED}, {at("plain"), "bind", "", unix.MS_BIND}, {"t", "covered", "tmpfs", 0}, {"t", "covered", "tmpfs", 0}, {"t", "with space\tand\nnewline\\", "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, at(m.target), m.fstype, m.flags, ""); err != nil {
			return fmt.Errorf("mount %+v: %w", m, err)
		}
	}
	if err := os.Mkdir(at("plain/sub"), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("t", at("plain/sub"), "tmpfs", 0, ""); err != nil {
		return err
	}

	own, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	nsID, err := mountNSID(int(own.Fd()))
	if err != nil || nsID == 0 {
		return fmt.Errorf("mountNSID: %d, %w", nsID, err)
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	rootID, _, err := MountOf(root)
	if err != nil {
		return err
	}
	var old [2][]string // as seen without and with the namespace's id
	for i, ns := range []uint64{0, nsID} {
		ids, err := ListMounts(rootID, 0, ns)
		if err != nil {
			return err
		}
		for i, last := range ids { // what comes after each
			if more, err := ListMounts(rootID, last, ns); err != nil || !slices.Equal(more, ids[i+1:]) {
				return fmt.Errorf("after mount %d: %v, %w; all: %v", last, more, err, ids)
			}
		}
		byID := map[uint64]Mount{}
		for _, id := range append([]uint64{rootID}, ids...) {
			m, err := StatMount(id, ns)
			if err != nil || m.ID != id || !Mounted(id, ns) {
				return fmt.Errorf("mount %d: %+v, %w", id, m, err)
			}
			byID[id] = m
		}
		for id, m := range byID {
			if id != rootID {
				old[i] = append(old[i], describe(m, byID[m.Parent].OldID))
			}
		}
		slices.Sort(old[i])
	}
	rootMount, err := StatMount(rootID, 0)
	if err != nil {
		return err
	}
	want, err := mountinfo(strconv.FormatUint(uint64(rootMount.OldID), 10))
	if err != nil {
		return err
	}
	if len(want) < 9 || !slices.Equal(old[0], want) || !slices.Equal(old[1], want) {
		return fmt.Errorf("statmount:\n%s\nwith the id of the namespace:\n%s\nmountinfo:\n%s", strings.Join(old[0], "\n"), strings.Join(old[1], "\n"), strings.Join(want, "\n"))
	}

	// What is unmounted is known to be gone, and only that.
	fd, err := unix.Open(at("bind"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	id, stx, err := MountOf(fd)
	if err != nil || stx.Ino == 0 {
		return fmt.Errorf("MountOf: %w", err)
	}
	unix.Close(fd)
	if err := unix.Unmount(at("bind"), 0); err != nil {
		return err
	}
	if _, err := StatMount(id, nsID); err != unix.ENOENT || Mounted(id, nsID) || Mounted(id, 0) || !Mounted(rootID, nsID) {
		return fmt.Errorf("after the unmount: %v", err)
	}
	if _, err := StatMount(rootID, nsID+12345); err == nil {
		return fmt.Errorf("a namespace that is not there knows the root")
	}
	if _, err := ListMounts(id, 0, 0); err != unix.ENOENT {
		return fmt.Errorf("mounts below one that is gone: %v", err)
	}
	return nil
}

func describe(m Mount, parent uint32) string {
	var flags []string
	for _, f := range []struct {
		bit  uint64
		name string
	}{{unix.MOUNT_ATTR_RDONLY, "ro"}, {unix.MOUNT_ATTR_NOSUID, "nosuid"}, {unix.MOUNT_ATTR_NODEV, "nodev"}, {unix.MOUNT_ATTR_NOEXEC, "noexec"}} {
		if m.Attr&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	return fmt.Sprintf("%d %d %d:%d %q %v shared=%v %s", m.OldID, parent, m.Dev>>32, uint32(m.Dev), m.Point, flags, m.Propagation&unix.MS_SHARED != 0, m.Type)
}

// mountinfo says the same from proc_pid_mountinfo(5), without the root.
func mountinfo(root string) (list []string, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")
	for line := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if f[0] == root {
			continue
		}
		var flags []string
		for _, name := range []string{"ro", "nosuid", "nodev", "noexec"} {
			if slices.Contains(strings.Split(f[5], ","), name) {
				flags = append(flags, name)
			}
		}
		fstype, _, _ := strings.Cut(strings.Fields(after)[0], ".")
		list = append(list, fmt.Sprintf("%s %s %s %q %v shared=%v %s", f[0], f[1], f[2], plain.Replace(f[4]), flags, strings.Contains(before, " shared:"), fstype))
	}
	slices.Sort(list)
	return list, err
}
