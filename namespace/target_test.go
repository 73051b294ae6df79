package namespace

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// procfs is a host whose procfs is a folder with these files.
func procfs(t *testing.T, files map[string]string) *Host {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/7", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(dir+"/7/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &Host{Proc: fd}
}

func TestStartTimeIsNotWhatACommandSays(t *testing.T) {
	rest := " S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %START% 2 3 4 5\n"
	for name, c := range map[string]struct {
		stat string
		want string
	}{
		"a plain command":          {"7 (sh)" + rest, "4711"},
		"spaces and parentheses":   {"7 (a) S 1 2 (b)" + rest, "4711"},
		"a command that lies":      {"7 () S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99 )" + rest, "4711"},
		"a newline in the command": {"7 (a\n)" + rest, "4711"},
		"cut before it":            {"7 (sh) S 1 7 7 0 -1", "-"},
		"no command":               {"7 sh S", "-"},
		"empty":                    {"", "-"},
		"a negative one":           {"7 (sh)" + strings.Replace(rest, "%START%", "-1", 1), "-1"},
		"one that is no number":    {"7 (sh)" + strings.Replace(rest, "%START%", "x", 1), "x"},
	} {
		h := procfs(t, map[string]string{"stat": strings.ReplaceAll(c.stat, "%START%", "4711")})
		if got := h.startTime("7/"); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := procfs(t, nil).startTime("7/"); got != "-" {
		t.Errorf("not there: %q", got)
	}
}

func TestMappedRoot(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want int
		code wire.Code
	}{
		"mapped":                {"         0     100000      65536\n", 100000, ""},
		"to the host's root":    {"0 0 4294967295\n", 0, ""},
		"in the second line":    {"1 100001 65535\n0 1000 1\n", 1000, ""},
		"not mapped":            {"1 100000 65536\n", 0, wire.TargetForbidden},
		"nothing is mapped":     {"", 0, wire.TargetForbidden},
		"only a uid like 0":     {"00 1 1\n10 0 1\n", 0, wire.TargetForbidden},
		"a line of two fields":  {"0 1\n", 0, wire.TargetForbidden},
		"a line of four":        {"0 1 1 1\n", 0, wire.TargetForbidden},
		"to an id that is none": {"0 x 1\n", 0, wire.System},
		"to a negative id":      {"0 -1 1\n", 0, wire.System},
		"to an id over 32 bits": {"0 4294967296 1\n", 0, wire.System},
	} {
		h, got := procfs(t, map[string]string{"uid_map": c.text}), 0
		err := Try(func() { got = (&Target{PID: 7, dir: "7/"}).mappedRoot(h, "uid_map") })
		if got != c.want || c.code == "" && err != nil || c.code != "" && (err == nil || wire.AsError(err).Code != c.code) {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	err := Try(func() { (&Target{PID: 7, dir: "7/"}).mappedRoot(procfs(t, nil), "uid_map") })
	if err == nil || wire.AsError(err).Code != wire.System {
		t.Errorf("not there: %v", err)
	}
}

func TestReadIsBounded(t *testing.T) {
	h := procfs(t, map[string]string{"cgroup": strings.Repeat("x", 1<<20)})
	if s, err := h.Read("7/cgroup"); err != nil || len(s) != 1<<18 {
		t.Errorf("%d bytes, %v", len(s), err)
	}
}

func TestPinRefusesWhatIsNoProcess(t *testing.T) {
	h := procfs(t, nil)
	for _, pid := range []int{0, -1, 1 << 30} {
		err := Try(func() { h.Pin(pid, 0, []string{"/docker"}) })
		if err == nil || wire.AsError(err).Code != wire.NamespaceGone {
			t.Errorf("%d: %v", pid, err)
		}
	}
}

func TestHostIsOnlyARealProcfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root may look at pid 1's namespaces")
	}
	h := (*Host)(nil)
	if err := Try(func() { h = OpenHost(os.Getppid(), -1) }); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(h.Proc)
	if len(h.BootID) != 36 || len(h.mounts) < 2 || h.root.Ino == 0 {
		t.Errorf("%+v", h)
	}
	// T12: ourselves, pid 1 and the first kernel thread, where it can be named, are in the host's mount namespace, whatever the rules say.
	for _, pid := range []int{os.Getpid(), 1, 2} {
		err := Try(func() { h.Pin(pid, 0, []string{"/docker"}) })
		if err == nil || wire.AsError(err).Code != wire.NamespaceHost && (pid != 2 || wire.AsError(err).Code != wire.NamespaceGone) {
			t.Errorf("%d: %v", pid, err)
		}
	}
}

// A namespace is found by its id as long as it exists: by handle, or on kernels without those by going from one to the next; also one in which no process is, which only a descriptor holds.
func TestNamespaceIsFoundByItsID(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root may make mount namespaces")
	}
	h := (*Host)(nil)
	if err := Try(func() { h = OpenHost(os.Getppid(), -1) }); err != nil {
		t.Fatal(err)
	}
	var all []NS
	for range 5 {
		made := make(chan NS)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends
			defer close(made)
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return
			}
			fd, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			id, e := mountNSID(fd)
			var st unix.Stat_t
			if err == nil && e == nil && unix.Fstat(fd, &st) == nil && unix.Setns(h.NS.FD, unix.CLONE_NEWNS) == nil { // from here on only the descriptor holds it
				made <- NS{fd, id, st.Ino}
			}
		}()
		ns, ok := <-made
		if !ok {
			t.Fatal("cannot make a mount namespace")
		}
		all = append(all, ns)
	}
	for _, ns := range all {
		for name, open := range map[string]func() (int, error){
			"by handle": func() (int, error) {
				got, ok := h.OpenNS(ns.ID, ns.Inode)
				return got.FD, map[bool]error{false: unix.ENOENT}[ok]
			},
			"on foot": func() (int, error) { return h.walkTo(ns.ID) },
		} {
			fd, err := open()
			if id, e := mountNSID(fd); err != nil || e != nil || id != ns.ID {
				t.Errorf("%s: the namespace %d: %d, %v, %v", name, ns.ID, id, err, e)
			}
			unix.Close(fd)
		}
	}
	for _, ns := range all {
		unix.Close(ns.FD)
	}
	for _, ns := range all {
		if fd, err := h.walkTo(ns.ID); err != unix.ENOENT {
			t.Errorf("on foot: one that has ended: %d, %v", fd, err)
		}
		if got, ok := h.OpenNS(ns.ID, ns.Inode); ok {
			t.Errorf("by handle: one that has ended: %+v", got)
		}
	}
	if fd, err := h.walkTo(1); err != unix.ENOENT {
		t.Errorf("one before the first: %d, %v", fd, err)
	}
}
