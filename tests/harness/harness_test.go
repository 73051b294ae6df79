package harness_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestHostHasNamespacesOfItsOwn(t *testing.T) {
	outside := map[string]string{}
	for _, ns := range []string{"pid", "mnt"} {
		outside[ns], _ = os.Readlink("/proc/self/ns/" + ns) // in the inner process: the host's
	}
	t.Setenv("OUTSIDE_"+strconv.Itoa(os.Getpid()), "")
	if os.Getenv("OUTSIDE_PID") == "" {
		t.Setenv("OUTSIDE_PID", outside["pid"])
		t.Setenv("OUTSIDE_MNT", outside["mnt"])
	}
	harness.Run(t, func(h *harness.Host) {
		if outside["pid"] == os.Getenv("OUTSIDE_PID") || outside["mnt"] == os.Getenv("OUTSIDE_MNT") {
			t.Errorf("inside %v, outside %s %s", outside, os.Getenv("OUTSIDE_PID"), os.Getenv("OUTSIDE_MNT"))
		}
		if os.Getpid() == 1 || os.Getppid() != 1 {
			t.Errorf("pid %d, parent %d: want a child of init", os.Getpid(), os.Getppid())
		}
		if _, err := os.Stat("/proc/1/root"); err != nil {
			t.Errorf("pid 1 cannot be looked at: %v", err)
		}
		for _, path := range []string{"/run", harness.Root} {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o755 || info.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Errorf("%s: %v, %v: want root's, 0755", path, info, err)
			}
		}
		h.Sh("getent passwd " + harness.PolicyUser + " && getent group " + harness.PolicyUser).OK(t)
	}, harness.Bare())
}

func TestOrphansAreReapedAndStatusesAreNotStolen(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		for i := range 50 {
			// The shell ends at once and orphans a child, which says by a pipe when it is about to end.
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/bin/sh", "-c", "(exit 3) & exit 7")
			cmd.ExtraFiles = []*os.File{w}
			err = cmd.Run()
			w.Close()
			if code := cmd.ProcessState.ExitCode(); code != 7 {
				t.Fatalf("round %d: exit %d (%v), want 7", i, code, err)
			}
			r.Read(make([]byte, 1)) // end of file: both are gone
			r.Close()
		}
	}, harness.Bare())
}

func TestSubtestsPassThrough(t *testing.T) {
	for _, name := range []string{"one", "a/b", "with space"} {
		t.Run(name, func(t *testing.T) {
			harness.Run(t, func(h *harness.Host) {
				h.WriteFile(h.Path("only-mine"), name, 0o600)
				t.Run("inner", func(t *testing.T) {
					h := h.For(t)
					if got := h.ReadFile(h.Path("only-mine")); got != name {
						t.Errorf("got %q", got)
					}
				})
			}, harness.Bare())
		})
	}
}

func TestDiskState(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		var run, state unix.Stat_t
		if err := unix.Stat("/run", &run); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(h.Path("var/lib/bindgate"), &state); err != nil || run.Dev == state.Dev {
			t.Errorf("the state directory is on /run's filesystem (%v)", err)
		}
	}, harness.Bare(), harness.DiskState())
}

func TestMountsPropagateInTheHostOnly(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		dir := h.Mkdir(h.Path("m"), 0o755)
		c := h.SharedRoot(harness.SharedRootOptions{ID: "private"})
		h.Mount("tmpfs", dir, "tmpfs", 0, "")
		data := h.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(data) {
			if strings.Contains(line, " "+dir+" ") && !strings.Contains(line, "shared:") {
				t.Errorf("the host's mounts are not shared: %s", line)
			}
		}
		if got := c.Mountinfo(dir); len(got) > 0 {
			t.Errorf("a container with private mounts sees %v", got)
		}
	}, harness.Bare())
}

// The tests below run one of TestWith... by itself, as a user would, and look at the outcome.

func TestFailureInsideFailsTheTest(t *testing.T) {
	wantFailure(t, "TestWithFailure", "it failed on purpose")
}
func TestPanicInsideFailsTheTest(t *testing.T) { wantFailure(t, "TestWithPanic", "on purpose") }
func TestLeakedProcessIsFound(t *testing.T) {
	wantFailure(t, "TestWithProcess", "left processes", "sleep 2147480001")
}
func TestLeakedCgroupIsFound(t *testing.T) { wantFailure(t, "TestWithCgroup", "left cgroups") }
func TestLeakedMountInsideIsFound(t *testing.T) {
	wantFailure(t, "TestWithMount", "changed the host's mounts", "leaked-mount")
}
func TestLeakedMountOutsideIsFound(t *testing.T) {
	wantFailure(t, "TestWithMountOutside", "changed the mounts outside", "leaked-outside")
}
func TestHostInHostIsRefused(t *testing.T) {
	wantFailure(t, "TestWithHostInHost", "a host has no hosts")
}
func TestTimeoutReachesInside(t *testing.T) {
	wantFailureIn(t, "10s", "TestWithEndlessWait", "test timed out after")
}

func TestSkipInsideFailsTheTest(t *testing.T) { wantFailure(t, "TestWithSkip", "skipped itself") }

const aloneVar = "BINDGATE_HARNESS_ALONE"

func wantFailure(t *testing.T, test string, words ...string) {
	t.Helper()
	wantFailureIn(t, "5m", test, words...) // a machine may be busy
}

func wantFailureIn(t *testing.T, timeout, test string, words ...string) {
	t.Helper()
	out, err := runAlone(t, timeout, test)
	if err == nil {
		t.Errorf("%s passed:\n%s", test, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("%s did not say %q:\n%s", test, w, out)
		}
	}
}

func runAlone(t *testing.T, timeout, test string) (string, error) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.timeout="+timeout)
	cmd.Env = append(os.Environ(), aloneVar+"=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func alone(t *testing.T) {
	if os.Getenv(aloneVar) == "" {
		t.Skip("run by another test")
	}
}

func TestWithFailure(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) { t.Error("it failed on purpose") }, harness.Bare())
}

func TestWithPanic(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) { panic("on purpose") }, harness.Bare())
}

func TestWithSkip(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) { t.Skip("on purpose") }, harness.Bare())
}

func TestWithProcess(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) { h.Sh("sleep 2147480001 >/dev/null 2>&1 &").OK(t) }, harness.Bare())
}

func TestWithCgroup(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) {
		cmd := exec.Command("cat")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		h.EnterCgroup(cmd.Process.Pid, h.Cgroup()+"/leaked")
		in.Close()
		cmd.Wait()
	}, harness.Bare())
}

func TestWithMount(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) {
		dir := h.Mkdir(h.Path("leaked-mount"), 0o755)
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}, harness.Bare())
}

// TestWithMountOutside runs in a mount namespace of its own, so that what it leaks on purpose is not left on the machine. The test in the host finds its way
// out by a descriptor of the outer namespace.
func TestWithMountOutside(t *testing.T) {
	alone(t)
	dir := filepath.Join(os.TempDir(), "leaked-outside")
	if os.Getenv("BINDGATE_HARNESS") == "" { // the outer process
		if os.Getenv("OUTER_NS") == "" {
			cmd := exec.Command(os.Args[0], os.Args[1:]...)
			cmd.Env = append(os.Environ(), "OUTER_NS=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return
		}
		dir = t.TempDir()
		fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY, 0) // inherited
		if err != nil {
			t.Fatal(err)
		}
		dir += "/leaked-outside"
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		t.Setenv("OUTER_NS", fmt.Sprintf("%d %s", fd, dir))
	}
	harness.Run(t, func(h *harness.Host) {
		fd, dir, _ := strings.Cut(os.Getenv("OUTER_NS"), " ")
		h.Sh(fmt.Sprintf("nsenter --mount=/proc/1/fd/%s mount -t tmpfs tmpfs %s", fd, dir)).OK(t)
	}, harness.Bare())
}

func TestWithHostInHost(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) {
		t.Run("inner", func(t *testing.T) { harness.Run(t, func(h *harness.Host) {}, harness.Bare()) })
	}, harness.Bare())
}

func TestWithEndlessWait(t *testing.T) {
	alone(t)
	harness.Run(t, func(h *harness.Host) { h.Sh("read x < /dev/zero || exec busybox sleep 2147480002") }, harness.Bare())
}
