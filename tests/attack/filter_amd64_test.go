package attack

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// The filter admits nothing but what is used: each system call that privops/seccomp.list admits for the work itself, and not for the Go runtime, is made by the working thread in one of the operations.
func TestT36_FilterAdmitsOnlyWhatIsUsed(t *testing.T) {
	numbers := map[string]int{"read": unix.SYS_READ, "write": unix.SYS_WRITE, "close": unix.SYS_CLOSE, "openat": unix.SYS_OPENAT, "openat2": unix.SYS_OPENAT2, "fstat": unix.SYS_FSTAT,
		"newfstatat": unix.SYS_NEWFSTATAT, "statx": unix.SYS_STATX, "fcntl": unix.SYS_FCNTL, "fsync": unix.SYS_FSYNC, "getdents64": unix.SYS_GETDENTS64, "lseek": unix.SYS_LSEEK,
		"readlinkat": unix.SYS_READLINKAT, "mkdirat": unix.SYS_MKDIRAT, "mknodat": unix.SYS_MKNODAT, "unlinkat": unix.SYS_UNLINKAT, "renameat": unix.SYS_RENAMEAT, "renameat2": unix.SYS_RENAMEAT2,
		"symlinkat": unix.SYS_SYMLINKAT, "fchmod": unix.SYS_FCHMOD, "fchown": unix.SYS_FCHOWN, "fstatfs": unix.SYS_FSTATFS, "ppoll": unix.SYS_PPOLL, "pidfd_open": unix.SYS_PIDFD_OPEN,
		"ioctl": unix.SYS_IOCTL, "setns": unix.SYS_SETNS, "unshare": unix.SYS_UNSHARE, "statmount": unix.SYS_STATMOUNT, "listmount": unix.SYS_LISTMOUNT, "open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT,
		"open_tree": unix.SYS_OPEN_TREE, "mount_setattr": unix.SYS_MOUNT_SETATTR, "move_mount": unix.SYS_MOVE_MOUNT, "fsopen": unix.SYS_FSOPEN, "fsconfig": unix.SYS_FSCONFIG, "fsmount": unix.SYS_FSMOUNT,
		"fchdir": unix.SYS_FCHDIR, "chroot": unix.SYS_CHROOT, "clone": unix.SYS_CLONE, "dup3": unix.SYS_DUP3, "wait4": unix.SYS_WAIT4, "umount2": unix.SYS_UMOUNT2, "setfsuid": unix.SYS_SETFSUID,
		"setfsgid": unix.SYS_SETFSGID, "capset": unix.SYS_CAPSET, "capget": unix.SYS_CAPGET}
	checkout, err := harness.Checkout()
	srcCheck(t, err)
	list, err := os.ReadFile(filepath.Join(checkout, "privops/seccomp.list"))
	srcCheck(t, err)
	_, ours, _ := strings.Cut(string(list), "\n# files\n")
	admitted := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^allow (?:\*|amd64) ([a-z0-9_]+)`).FindAllStringSubmatch(ours, -1) {
		admitted[m[1]] = true
	}
	if names := slices.Sorted(maps.Keys(admitted)); !slices.Equal(names, slices.Sorted(maps.Keys(numbers))) {
		t.Fatalf("the list and this test know other system calls:\n%v\n%v", names, slices.Sorted(maps.Keys(numbers)))
	}

	harness.Run(t, func(h *harness.Host) {
		h.HelperTOML(harness.DefaultHelperTOML + "[mounts]\nlock = \"userns\"\n") // without a child, what it does is done by the thread itself
		made := map[int]bool{}
		do := func(r *wire.Request) *wire.Reply {
			trace := srcStep(t, h, r, func([]int) bool { return false })
			for _, n := range trace.All {
				made[n] = true
			}
			if trace.Reply.Err != nil {
				t.Fatalf("%s: %s: %s", r.Op, trace.Reply.Err.Code, trace.Reply.Err.Message)
			}
			return trace.Reply
		}
		dir, file := srcVolume(h, "v"), filepath.Join(srcVolume(h, "f"), "file")
		plain := h.Container(harness.ContainerOptions{ID: "c"})
		mapped := h.Container(harness.ContainerOptions{ID: "mapped", Mapping: &harness.Mapping{HostID: 100000, Size: 65536}})
		for _, c := range []*harness.Container{plain, mapped} {
			r := srcRequest(c.Pid(), dir, "/new/dir")
			r.Mounts = append(r.Mounts, wire.Mount{Path: "/new/file", Source: file, Mode: wire.ModeRO})
			do(r)
			do(&wire.Request{Op: wire.OpQuery, Owner: "default", Container: "c"})
			do(&wire.Request{Op: wire.OpDetach, Owner: "default", Container: "c"})
		}
		do(srcRequest(mapped.Pid(), dir, "/new"))
		mapped.Delete()
		do(&wire.Request{Op: wire.OpSweep, Owner: "default"})
		do(&wire.Request{Op: wire.OpCreateVolume, Name: "local"})
		h.Mkdir(filepath.Join(h.Volumes(), "local/deep/deeper"), 0o755)
		do(&wire.Request{Op: wire.OpListVolumes})
		do(&wire.Request{Op: wire.OpRemoveVolume, Name: "local"})
		for name, n := range numbers {
			if !made[n] {
				t.Errorf("nothing makes the system call %s", name)
			}
		}
	})
}
