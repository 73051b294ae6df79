package conf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// trustedDir makes a folder that is root's, 0755, as is every folder above it: the temporary folders of a test are in one that others can write to.
func trustedDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("only root can make files that are root's")
	}
	dir, err := os.MkdirTemp("/opt", "bindgate-conf-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm()&0o022 != 0 || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Skipf("%s is not root's alone on this machine", d)
		}
	}
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put makes a file of this mode, whatever the umask.
func put(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
	must(t, os.Chmod(path, mode))
	return path
}

func mkdir(t *testing.T, path string, mode os.FileMode) string {
	t.Helper()
	must(t, os.Mkdir(path, 0o755))
	must(t, os.Chmod(path, mode))
	return path
}

const good = "[mounts]\nnoexec = true\n"

// T08: what the helper believes is root's alone, and so is every folder above it.
func TestLoadRefuses(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, dir string) string{
		"a file that the group can write": func(t *testing.T, d string) string { return put(t, d+"/f", good, 0o664) },
		"a file that others can write":    func(t *testing.T, d string) string { return put(t, d+"/f", good, 0o646) },
		"a setuid file others can write":  func(t *testing.T, d string) string { return put(t, d+"/f", good, 0o4666) },
		"a file of another user": func(t *testing.T, d string) string {
			must(t, os.Chown(put(t, d+"/f", good, 0o644), 12345, 0))
			return d + "/f"
		},
		"a symlink to a good file": func(t *testing.T, d string) string {
			put(t, d+"/g", good, 0o644)
			must(t, os.Symlink("g", d+"/f"))
			return d + "/f"
		},
		"a dangling symlink": func(t *testing.T, d string) string {
			must(t, os.Symlink("nowhere", d+"/f"))
			return d + "/f"
		},
		"a FIFO": func(t *testing.T, d string) string {
			must(t, unix.Mkfifo(d+"/f", 0o644))
			return d + "/f"
		},
		"a directory": func(t *testing.T, d string) string { return mkdir(t, d+"/f", 0o755) },
		"a socket": func(t *testing.T, d string) string {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: d + "/f"}))
			must(t, os.Chmod(d+"/f", 0o644))
			return d + "/f"
		},
		"a device": func(t *testing.T, d string) string {
			if err := unix.Mknod(d+"/f", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))); err != nil {
				t.Fatal(err)
			}
			return d + "/f"
		},
		"a file with a hard link": func(t *testing.T, d string) string {
			put(t, d+"/f", good, 0o644)
			must(t, os.Link(d+"/f", d+"/g"))
			return d + "/f"
		},
		"a file over a mebibyte":               func(t *testing.T, d string) string { return put(t, d+"/f", strings.Repeat("#", 1<<20+1), 0o644) },
		"a file with an unknown key":           func(t *testing.T, d string) string { return put(t, d+"/f", "nonsense = 1\n", 0o644) },
		"a file that is not there":             func(t *testing.T, d string) string { return d + "/f" },
		"a file below a file":                  func(t *testing.T, d string) string { return put(t, d+"/f", good, 0o644) + "/g" },
		"a file with a slash at its end":       func(t *testing.T, d string) string { return put(t, d+"/f", good, 0o644) + "/g/.." },
		"in a folder that the group can write": func(t *testing.T, d string) string { return put(t, mkdir(t, d+"/s", 0o775)+"/f", good, 0o644) },
		"in a folder that others can write":    func(t *testing.T, d string) string { return put(t, mkdir(t, d+"/s", 0o757)+"/f", good, 0o644) },
		"in a sticky folder": func(t *testing.T, d string) string {
			return put(t, mkdir(t, d+"/s", 0o777|os.ModeSticky)+"/f", good, 0o644)
		},
		"in a folder of another user": func(t *testing.T, d string) string {
			put(t, mkdir(t, d+"/s", 0o755)+"/f", good, 0o644)
			must(t, os.Chown(d+"/s", 12345, 0))
			return d + "/s/f"
		},
		"two below a folder that others can write": func(t *testing.T, d string) string {
			mkdir(t, d+"/s", 0o777)
			return put(t, mkdir(t, d+"/s/t", 0o755)+"/f", good, 0o644)
		},
		"through a symlink to a folder": func(t *testing.T, d string) string {
			put(t, mkdir(t, d+"/s", 0o755)+"/f", good, 0o644)
			must(t, os.Symlink("s", d+"/l"))
			return d + "/l/f"
		},
		"through an absolute symlink to a folder": func(t *testing.T, d string) string {
			put(t, mkdir(t, d+"/s", 0o755)+"/f", good, 0o644)
			must(t, os.Symlink(d+"/s", d+"/l"))
			return d + "/l/f"
		},
		"through dot dot": func(t *testing.T, d string) string {
			mkdir(t, d+"/s", 0o755)
			put(t, d+"/f", good, 0o644)
			return d + "/s/../f"
		},
		"by a relative path": func(t *testing.T, d string) string {
			put(t, d+"/f", good, 0o644)
			t.Chdir(d)
			return "f"
		},
		"by an empty path": func(t *testing.T, d string) string { return "" },
		"the root":         func(t *testing.T, d string) string { return "/" },
	} {
		t.Run(name, func(t *testing.T) {
			path := make(t, trustedDir(t))
			h := DefaultHelper()
			if err := Load(path, h); !refused(err) {
				t.Errorf("%v", err)
			}
			if h.Mounts.NoExec {
				t.Error("it was read all the same")
			}
		})
	}
}

func TestLoadTakes(t *testing.T) {
	dir := trustedDir(t)
	for name, path := range map[string]string{
		"a plain file":                 put(t, dir+"/f", good, 0o644),
		"one that only root may read":  put(t, dir+"/g", good, 0o400),
		"one in a private folder":      put(t, mkdir(t, dir+"/private", 0o700)+"/f", good, 0o600),
		"one with repeated slashes":    dir + "//./f",
		"one of exactly one mebibyte":  put(t, dir+"/h", good+strings.Repeat("#", 1<<20-len(good)), 0o644),
		"one of another group":         put(t, dir+"/i", good, 0o640),
		"one in a folder of mode 0711": put(t, mkdir(t, dir+"/x", 0o711)+"/f", good, 0o644),
	} {
		if strings.HasSuffix(path, "/i") {
			must(t, os.Chown(path, 0, 12345))
		}
		h := DefaultHelper()
		if err := Load(path, h); err != nil || !h.Mounts.NoExec {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenTrustedSaysWhatIsMissing(t *testing.T) {
	dir := trustedDir(t)
	for _, path := range []string{dir + "/no", dir + "/no/such/file"} {
		if fd, _, err := OpenTrusted(path, unix.O_PATH); fd != -1 || !errors.Is(err, unix.ENOENT) || !refused(err) {
			t.Errorf("%s: %d, %v", path, fd, err)
		}
	}
	mkdir(t, dir+"/s", 0o777)
	if _, _, err := OpenTrusted(dir+"/s/no", unix.O_PATH); errors.Is(err, unix.ENOENT) || !strings.Contains(wire.AsError(err).Hint, "chmod go-w "+dir+"/s") {
		t.Errorf("a folder that cannot be trusted is named before what is missing in it, with its remedy: %v", err)
	}
}

func TestOpenTrustedLeavesTheLastComponentToTheCaller(t *testing.T) {
	dir := trustedDir(t)
	mkdir(t, dir+"/plugin", 0o777)
	must(t, os.Chown(dir+"/plugin", 12345, 12345))
	fd, private, err := OpenTrusted(dir+"/plugin", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil || private {
		t.Fatalf("%v, private %v", err, private)
	}
	defer unix.Close(fd)
	if _, err := RootOwned(fd, dir+"/plugin"); !refused(err) || !strings.Contains(err.Error(), "uid 12345 with mode 0777") {
		t.Errorf("%v", err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("it is not close-on-exec: %v", err)
	}
	if _, _, err := OpenTrusted(dir+"/plugin/x", unix.O_PATH); !refused(err) {
		t.Errorf("below it: %v", err)
	}
}

// private is what seals a source: it must not be said of a folder that anybody but root can get through.
func TestPrivateIsOnlyWhatNobodyElseGetsThrough(t *testing.T) {
	for mode, want := range map[os.FileMode]bool{0o700: true, 0o500: true, 0o740: true, 0o704: true, 0o744: true, 0o000: true, 0o710: false, 0o701: false, 0o711: false, 0o750: false, 0o755: false, 0o751: false} {
		dir := trustedDir(t)
		mkdir(t, dir+"/s", 0o755)
		mkdir(t, dir+"/s/v", 0o755)
		must(t, os.Chmod(dir+"/s", mode))
		fd, private, err := OpenTrusted(dir+"/s/v", unix.O_PATH|unix.O_DIRECTORY)
		if err != nil || private != want {
			t.Errorf("above: %04o: private is %v, %v", mode, private, err)
		}
		unix.Close(fd)
		// Of the last component itself nothing is said: it may be anybody's.
		if fd, private, err = OpenTrusted(dir+"/s", unix.O_PATH|unix.O_DIRECTORY); err != nil || private {
			t.Errorf("itself: %04o: private is %v, %v", mode, private, err)
		}
		unix.Close(fd)
	}
}

func TestOpenTrustedOpensTheRoot(t *testing.T) {
	fd, private, err := OpenTrusted("/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil || private {
		t.Fatalf("%v, private %v", err, private)
	}
	unix.Close(fd)
}

func TestOpenTrustedLeaksNoDescriptor(t *testing.T) {
	dir := trustedDir(t)
	mkdir(t, dir+"/open", 0o777)
	put(t, dir+"/f", good, 0o644)
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(fds)
	}
	before := count()
	for _, path := range []string{dir + "/no", dir + "/no/x", dir + "/open/x", dir + "/f/x", dir + "/f"} {
		if fd, _, err := OpenTrusted(path, unix.O_PATH); err == nil {
			unix.Close(fd)
		}
		Load(path, DefaultHelper())
	}
	if n := count(); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}
