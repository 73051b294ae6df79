package attack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

var (
	srcCaller   = harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
	srcOutsider = harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID}
)

const srcSecret = "not for containers\n"

// srcRequest asks for one volume, rw, in the container "c".
func srcRequest(pid int, source, path string) *wire.Request {
	return &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c", PID: pid, Mounts: []wire.Mount{{Path: path, Source: source, Mode: wire.ModeRW}}}
}

// srcRefused sends a request as the policy user and wants it refused with this code, in the reply and in the exit status.
func srcRefused(t *testing.T, h *harness.Host, r *wire.Request, code wire.Code) *wire.Error {
	t.Helper()
	reply := h.Helper(r)
	if reply.Err == nil {
		t.Errorf("%+v: accepted, want %s", r.Mounts, code)
		srcDetach(t, h, r.Container)
		return &wire.Error{}
	}
	if reply.Err.Code != code {
		t.Errorf("%+v of pid %d: want %s: %s: %s", r.Mounts, r.PID, code, reply.Err.Code, reply.Err.Message)
	}
	return reply.Err
}

// srcAccepted sends a request and wants it done: the test that nothing but the attack is refused.
func srcAccepted(t *testing.T, h *harness.Host, r *wire.Request) *wire.Reply {
	t.Helper()
	reply := h.Helper(r)
	if reply.Err != nil {
		t.Fatalf("%+v of pid %d: %s: %s", r.Mounts, r.PID, reply.Err.Code, reply.Err.Message)
	}
	return reply
}

func srcDetach(t *testing.T, h *harness.Host, container string) {
	t.Helper()
	if reply := h.Helper(&wire.Request{Op: wire.OpDetach, Owner: "default", Container: container, Lazy: true}); reply.Err != nil {
		t.Errorf("detach %s: %s: %s", container, reply.Err.Code, reply.Err.Message)
	}
}

// srcUnmounted wants no mount at path in the container.
func srcUnmounted(t *testing.T, c *harness.Container, path string) {
	t.Helper()
	if m := c.Mountinfo(path); len(m) != 0 {
		t.Errorf("mounted in the container: %q", m)
	}
}

func srcCheck(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// srcOnThread runs f on a thread of its own, which ends with it: f may enter namespaces. It is never the first thread, which is what /proc/self shows.
func srcOnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- srcOnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}

// srcEnter moves the calling thread into the mount namespace of pid.
func srcEnter(pid int) error {
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	return errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(ns, unix.CLONE_NEWNS))
}

// srcBind is the naive attach: whatever path means on the host now goes to whatever path means in the mount namespace of pid now, with no attribute
// changed. How the tree is cloned and what is done to it can be added.
func srcBind(pid int, source, target string, with ...func(tree int) error) error {
	return srcOnThread(func() error {
		tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("open_tree %s: %w", source, err)
		}
		defer unix.Close(tree)
		for _, f := range with {
			if err := f(tree); err != nil {
				return err
			}
		}
		if err := srcEnter(pid); err != nil {
			return err
		}
		if st := (unix.Stat_t{}); unix.Fstat(tree, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			os.MkdirAll(target, 0o755)
		} else if f, err := os.OpenFile(target, os.O_CREATE, 0o644); err == nil {
			f.Close()
		}
		return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS) // as mount(2) follows
	})
}

// srcPrivate keeps what is mounted in a tree, or taken from it, from showing in its source.
func srcPrivate(tree int) error {
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
}

// srcUnbind takes what srcBind mounted away.
func srcUnbind(pid int, target string) error {
	return srcOnThread(func() error { return errors.Join(srcEnter(pid), unix.Unmount(target, unix.MNT_DETACH)) })
}

// A srcTrace is one run of the installed helper as the policy user, stopped before each of the system calls of its working thread from the pidfd_open that
// pins the target to the last: a race that is won at every place, one after the other. Root traces it, which the caller could not do.
type srcTrace struct {
	Reply *wire.Reply
	Exit  int
	Calls []int // numbers of the calls
	All   []int // and of those before the pidfd_open, from the request on

	Staging, Children int // how many of them made a mount namespace, and a child in a user namespace of its own
}

// at is asked before each whether that was enough: the rest then runs without a stop, and is not in Calls.
func srcStep(t *testing.T, h *harness.Host, request *wire.Request, at func(made []int) (enough bool)) srcTrace {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := os.CreateTemp("", "reply")
	srcCheck(t, err)
	defer os.Remove(out.Name())
	defer out.Close()
	in, requests, err := os.Pipe()
	srcCheck(t, err)
	defer requests.Close()
	waiting := boxWaiting(t, h)
	cmd := h.Command(srcCaller, h.HelperPath())
	cmd.Stdin, cmd.Stdout = in, out
	srcCheck(t, cmd.Start())
	in.Close()
	pid := cmd.Process.Pid
	waiting(pid) // what it does before depends on nothing that is attacked, and is most of its calls
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL, 0, 0)
	if e == 0 {
		_, _, e = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, uintptr(pid), 0, 0, 0, 0)
	}
	if e != 0 {
		cmd.Process.Kill()
		t.Fatalf("cannot trace: %v", e)
	}
	_, err = requests.Write(boundary.Encode(request))
	srcCheck(t, err)
	requests.Close()

	r, pinning := srcTrace{}, false
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, 0, nil); err == unix.EINTR {
			continue
		} else if err != nil {
			t.Fatalf("wait4: %v", err)
		}
		if ws.Exited() || ws.Signaled() {
			r.Exit = ws.ExitStatus()
			if ws.Signaled() {
				r.Exit = 128 + int(ws.Signal())
			}
			break
		}
		signal, resume := uintptr(0), uintptr(unix.PTRACE_SYSCALL)
		switch {
		case ws.StopSignal() == unix.SIGTRAP|0x80:
			var info struct { // struct ptrace_syscall_info of linux/ptrace.h
				op   uint8
				_    [3]uint8
				_    uint32
				_, _ uint64
				nr   uint64
				args [6]uint64
				_    uint64
			}
			const getInfo, entry = 0x420e, 1
			unix.RawSyscall6(unix.SYS_PTRACE, getInfo, uintptr(pid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
			if info.op == entry {
				r.All = append(r.All, int(info.nr))
				if pinning = pinning || info.nr == unix.SYS_PIDFD_OPEN; pinning {
					if at(r.Calls) {
						resume = unix.PTRACE_DETACH
					}
					r.Calls = append(r.Calls, int(info.nr))
					if info.nr == unix.SYS_UNSHARE && info.args[0]&unix.CLONE_NEWNS != 0 {
						r.Staging++
					}
					if info.nr == unix.SYS_CLONE && info.args[0]&unix.CLONE_NEWUSER != 0 {
						r.Children++
					}
				}
			}
		case ws.TrapCause() <= 0:
			signal = uintptr(ws.StopSignal())
		}
		unix.RawSyscall6(unix.SYS_PTRACE, resume, uintptr(pid), 0, signal, 0, 0)
	}
	cmd.Process.Release()
	data, err := os.ReadFile(out.Name())
	srcCheck(t, err)
	r.Reply, err = boundary.DecodeReply(data)
	if err != nil {
		t.Fatalf("%v: exit %d: %q", err, r.Exit, data)
	}
	want := 0
	if r.Reply.Err != nil {
		want = r.Reply.Err.Code.Exit()
	}
	if r.Exit != want {
		t.Fatalf("exit %d of a reply with %d", r.Exit, want)
	}
	return r
}

// srcSweep wins the race at every system call of the helper: before the k-th call of the k-th run strike happens, which is told the calls that were made; after the run, judge sees how it ended.
// After the clone, when the source is settled, every eighth call will do. It returns how many runs ended how; an outcome that is not listed fails the test.
func srcSweep(t *testing.T, h *harness.Host, request func() *wire.Request, strike func(made []int), judge func(), listed ...wire.Code) map[string]int {
	t.Helper()
	return srcSweepBy(8, t, h, request, strike, judge, listed...)
}

// srcSweepAll is srcSweep that leaves out no call.
func srcSweepAll(t *testing.T, h *harness.Host, request func() *wire.Request, strike func(made []int), judge func(), listed ...wire.Code) map[string]int {
	t.Helper()
	return srcSweepBy(1, t, h, request, strike, judge, listed...)
}

func srcSweepBy(stride int, t *testing.T, h *harness.Host, request func() *wire.Request, strike func(made []int), judge func(), listed ...wire.Code) map[string]int {
	t.Helper()
	outcomes, runs := map[string]int{}, 0
	for k, step := 0, 1; ; k += step {
		runs++
		struck, r := false, request()
		trace := srcStep(t, h, r, func(made []int) bool {
			if len(made) == k {
				struck = true
				strike(made)
			}
			return struck
		})
		outcome, ok := "ok", trace.Reply.Err == nil
		if !ok {
			outcome = string(trace.Reply.Err.Code)
			for _, code := range listed {
				ok = ok || trace.Reply.Err.Code == code
			}
		}
		if !ok {
			t.Errorf("struck at call %d: %s: %s", k, outcome, trace.Reply.Err.Message)
		}
		outcomes[outcome]++
		judge()
		if trace.Reply.Err == nil {
			srcDetach(t, h, r.Container)
		}
		if !struck {
			t.Logf("struck in %d runs of %d calls: %v", runs, len(trace.Calls), outcomes)
			return outcomes
		}
		if i := slices.Index(trace.Calls, unix.SYS_OPEN_TREE); i >= 0 && k > i+2 {
			step = stride
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

// srcVolume makes a folder with a file in an allowed source and returns its path.
func srcVolume(h *harness.Host, elem ...string) string {
	dir := h.Mkdir(filepath.Join(append([]string{h.Sources()}, elem...)...), 0o755)
	h.WriteFile(filepath.Join(dir, "file"), "of the volume\n", 0o644)
	return dir
}

func TestT09_SourceSymlinkAndSwap(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		secret := h.Mkdir(h.Path("secret"), 0o700)
		h.WriteFile(filepath.Join(secret, "file"), srcSecret, 0o600)
		h.WriteFile(filepath.Join(h.Mkdir(filepath.Join(secret, "v"), 0o700), "file"), srcSecret, 0o600)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		seen := func(path string) string { data, _ := os.ReadFile(c.Path(path + "/file")); return string(data) }

		// Links that are there all the time.
		srcVolume(h, "dir", "v")
		for name, to := range map[string]string{"link": secret, "relative": "../secret", "inside": "dir", "root": "/", "magic": "/proc/self/root", "dir/up": "../.."} {
			srcCheck(t, os.Symlink(to, filepath.Join(h.Sources(), name)))
		}
		// The naive way looks whether the path begins like an allowed one.
		naive := func(source string) error {
			if !strings.HasPrefix(source, h.Sources()+"/") {
				return errors.New("refused")
			}
			return srcBind(c.Pid(), source, "/naive")
		}
		for _, source := range []string{h.Sources() + "/link", h.Sources() + "/link/v", h.Sources() + "/../secret"} {
			srcCheck(t, naive(source))
			if got := seen("/naive"); got != srcSecret {
				t.Fatalf("the attack with %s does not work on the naive way: %q", source, got)
			}
			srcCheck(t, srcUnbind(c.Pid(), "/naive"))
		}
		for _, name := range []string{"link", "link/v", "relative", "inside", "inside/v", "root", "root/etc", "magic", "magic/etc", "dir/up", "dir/up/secret"} {
			srcRefused(t, h, srcRequest(c.Pid(), filepath.Join(h.Sources(), name), "/data"), wire.SourceForbidden)
		}
		for _, path := range []string{"/../secret", "/dir/../../secret", "/dir/..", "/.."} {
			srcRefused(t, h, srcRequest(c.Pid(), h.Sources()+path, "/data"), wire.InvalidRequest)
		}
		for _, sub := range []string{"up", "up/secret", "v/../../..", "..", "../..", "/etc", "", ".", "./", "v/../../../secret"} {
			r := srcRequest(c.Pid(), filepath.Join(h.Sources(), "dir"), "/data")
			r.Mounts[0].Subpath = sub
			code := wire.SourceForbidden
			if sub == "" { // encoded as none
				continue
			} else if p, err := wire.ParsePath(sub); err != nil || p.Absolute || len(p.Components) == 0 {
				code = wire.InvalidRequest
			}
			srcRefused(t, h, r, code)
		}
		srcUnmounted(t, c, "/data")

		// A plugin that owns its part of the source exchanges a component for a link while the helper works.
		plugin := h.Mkdir(filepath.Join(h.Sources(), "plugin"), 0o755)
		srcCheck(t, os.Chown(plugin, harness.OutsiderUID, harness.OutsiderGID))
		source := filepath.Join(plugin, "a", "v")
		srcVolume(h, "plugin", "a", "v")
		link := filepath.Join(plugin, "link")
		srcCheck(t, os.Symlink(secret, link))
		inner := filepath.Join(plugin, "a", "link")
		srcCheck(t, os.Symlink(secret, inner))
		swap := func(a, b string) {
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchange: %v", err)
			}
		}
		// The naive way checks, then uses.
		if real, err := filepath.EvalSymlinks(source); err != nil || real != source {
			t.Fatal(real, err)
		}
		swap(source, inner)
		srcCheck(t, naive(source))
		swap(source, inner)
		if got := seen("/naive"); got != srcSecret {
			t.Fatalf("the swap does not work on the naive way: %q", got)
		}
		srcCheck(t, srcUnbind(c.Pid(), "/naive"))

		for name, pair := range map[string][2]string{"the volume": {source, inner}, "a folder above it": {filepath.Dir(source), link}} {
			t.Run("exchange of "+name, func(t *testing.T) {
				swapped := false
				outcomes := srcSweep(t, h, func() *wire.Request { return srcRequest(c.Pid(), source, "/data") },
					func([]int) { swap(pair[0], pair[1]); swapped = true },
					func() {
						if got := seen("/data"); got != "" && got != "of the volume\n" {
							t.Errorf("the container sees %q", got)
						}
						if swapped {
							swap(pair[0], pair[1])
							swapped = false
						}
					}, wire.SourceForbidden)
				if outcomes["ok"] == 0 || outcomes[string(wire.SourceForbidden)] == 0 {
					t.Errorf("the exchange was never early or never late: %v", outcomes)
				}
			})
		}
		t.Run("exchanged all the time", func(t *testing.T) {
			const rounds = 60
			var swaps atomic.Int64
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						unix.Renameat2(unix.AT_FDCWD, source, unix.AT_FDCWD, inner, unix.RENAME_EXCHANGE)
						swaps.Add(1)
					}
				}
			}()
			outcomes := map[string]int{}
			for range rounds {
				reply := h.Helper(srcRequest(c.Pid(), source, "/data"))
				switch {
				case reply.Err == nil:
					outcomes["ok"]++
					if got, err := os.ReadFile(c.Path("/data/file")); err != nil || string(got) != "of the volume\n" {
						t.Errorf("the container sees %q, %v", got, err)
					}
					srcDetach(t, h, "c")
				case reply.Err.Code == wire.SourceForbidden:
					outcomes["refused"]++
				default:
					t.Errorf("%s: %s", reply.Err.Code, reply.Err.Message)
				}
			}
			close(stop)
			<-stopped
			t.Logf("%d rounds against %d exchanges: %v", rounds, swaps.Load(), outcomes)
			if outcomes["ok"]+outcomes["refused"] != rounds || swaps.Load() < rounds {
				t.Errorf("%v", outcomes)
			}
		})
	})
}

func TestT10_SourceOutsideTheRoots(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		c := h.Container(harness.ContainerOptions{ID: "c"})
		srcVolume(h, "v")
		srcAccepted(t, h, srcRequest(c.Pid(), filepath.Join(h.Sources(), "v"), "/ledger-is-there")) // so that the ledger has a record
		srcDetach(t, h, "c")
		evil := h.Mkdir(h.Sources()+"-evil", 0o700)
		h.WriteFile(filepath.Join(evil, "file"), srcSecret, 0o600)
		special := h.Mkdir(filepath.Join(h.Sources(), "special"), 0o755)
		srcCheck(t, unix.Mknod(filepath.Join(special, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		srcCheck(t, unix.Mknod(filepath.Join(special, "block"), unix.S_IFBLK|0o666, int(unix.Mkdev(7, 0))))
		srcCheck(t, unix.Mkfifo(filepath.Join(special, "fifo"), 0o666))
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		srcCheck(t, err)
		defer unix.Close(s)
		srcCheck(t, unix.Bind(s, &unix.SockaddrUnix{Name: filepath.Join(special, "socket")}))

		// The naive way compares strings, and takes whatever is there.
		srcCheck(t, srcBind(c.Pid(), evil, "/naive"))
		if !strings.HasPrefix(evil, h.Sources()) || c.Sh("cat /naive/file").Stdout != srcSecret {
			t.Fatal("the attack does not work on the naive way")
		}
		srcCheck(t, srcBind(c.Pid(), h.Ledger(), "/naive-ledger"))
		c.Sh("ls -a /naive-ledger | grep -q lock && rm -rf /naive-ledger/* && touch /naive-ledger/forged").OK(t)
		srcCheck(t, os.Remove(filepath.Join(h.Ledger(), "forged")))
		srcCheck(t, srcBind(c.Pid(), filepath.Join(special, "null"), "/naive-null"))
		c.Sh("test -c /naive-null && echo x > /naive-null").OK(t)

		// Roots that hold what is bindgate's own, too, and are sealed by their mounts: it is refused all the same.
		for _, dir := range []string{"run", "var", "etc"} {
			h.Mount(h.Path(dir), h.Path(dir), "", unix.MS_BIND, "")
			srcCheck(t, unix.Mount("", h.Path(dir), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV, ""))
		}
		h.WriteFile(filepath.Join(h.Mkdir(h.Path("var/lib/other"), 0o755), "file"), "of the volume\n", 0o644)
		h.HelperTOML("[[source]]\npath = \"" + h.Path("run") + "\"\n[[source]]\npath = \"" + h.Path("var") + "\"\n[[source]]\npath = \"" + h.Path("etc") + "\"\n[[source]]\npath = \"" + h.Path("absent") + "\"\n" + harness.DefaultHelperTOML)
		for _, source := range []string{"/", "/etc", "/etc/shadow", "/root", "/dev/null", "/dev", "/proc", "/proc/1/root", "/sys", h.Path(), h.Path("tmp"), evil, evil + "/file", h.Sources() + "2",
			h.Sources(), h.Sources() + "/", h.Sources() + "/.", h.Volumes(), // the roots themselves
			h.Path("run"), h.Path("run/bindgate"), h.Ledger(), h.Ledger() + "/.lock", h.Ledger() + "/sub", // the ledger, and what holds it
			h.Path("var"), h.Path("var/lib"), h.Path("var/lib/bindgate"), h.Journal(), h.Journal() + "/x", // the journal
			h.AuditLog(), h.Path("var/log/bindgate"), h.Path("var/log"), h.Path("etc/bindgate"), h.Path("etc/bindgate/helper.toml"), h.Path("etc"),
			h.Path("absent"), h.Path("absent/v"), h.Sources() + "/none", h.Sources() + "/v/file/x",
			special + "/null", special + "/block", special + "/fifo", special + "/socket"} {
			srcRefused(t, h, srcRequest(c.Pid(), source, "/data"), wire.SourceForbidden)
		}
		for _, sub := range []string{"null", "fifo", "socket", "block"} {
			r := srcRequest(c.Pid(), special, "/data")
			r.Mounts[0].Subpath = sub
			srcRefused(t, h, r, wire.SourceForbidden)
		}
		for _, source := range []string{"sources/v", "", "sources"} {
			if source != "" {
				srcRefused(t, h, srcRequest(c.Pid(), source, "/data"), wire.InvalidRequest)
			}
		}
		srcAccepted(t, h, srcRequest(c.Pid(), h.Path("var/lib/other"), "/data"))
		srcDetach(t, h, "c")
		srcUnmounted(t, c, "/data")
		// A local volume that is being made or removed is none: whoever had it attached would keep it through the rename, unseen by remove-volume.
		for _, name := range []string{".new-v", ".gone-v"} {
			h.Mkdir(filepath.Join(h.Volumes(), name), 0o755)
			srcRefused(t, h, srcRequest(c.Pid(), filepath.Join(h.Volumes(), name), "/data"), wire.SourceForbidden)
			srcCheck(t, os.Remove(filepath.Join(h.Volumes(), name)))
		}
		// What decides who may use what is bindgate's own as well.
		srcRefused(t, h, srcRequest(c.Pid(), h.Path("etc/bindgate/policy.toml"), "/data"), wire.SourceForbidden)
	})
}

func TestT23_SubmountsAndCoveredFiles(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		covered := h.Mkdir(filepath.Join(v, "sub"), 0o755)
		h.WriteFile(filepath.Join(covered, "file"), srcSecret, 0o644)
		h.Mount("sub", covered, "tmpfs", 0, "mode=0777")
		h.WriteFile(filepath.Join(covered, "tool"), "#!/bin/sh\n", 0o755)
		srcCheck(t, unix.Mknod(filepath.Join(covered, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		deeper := h.Mkdir(filepath.Join(covered, "deeper"), 0o755)
		h.Mount("deeper", deeper, "tmpfs", 0, "")
		c := h.Container(harness.ContainerOptions{ID: "c", Privileged: true})

		// Naive: the attributes of the one mount, as mount -o remount,bind,ro does; or a clone without what is mounted in it.
		srcCheck(t, srcBind(c.Pid(), v, "/naive", func(tree int) error {
			return errors.Join(srcPrivate(tree),
				unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}))
		}))
		if r := c.Sh("! touch /naive/x 2>/dev/null && touch /naive/sub/x && rm /naive/sub/x && echo x > /naive/sub/null"); r.Exit != 0 {
			t.Fatalf("the submount is not writable on the naive way: %v", r)
		}
		if r := c.Sh("umount -l /naive/sub && cat /naive/sub/file"); r.Stdout != srcSecret {
			t.Fatalf("what is covered does not show on the naive way: %v", r)
		}

		ro := srcRequest(c.Pid(), v, "/data")
		ro.Mounts[0].Mode = wire.ModeRO
		srcAccepted(t, h, ro)
		lines := c.Mountinfo("/data")
		if len(lines) != 3 {
			t.Fatalf("want three mounts: %q", lines)
		}
		for _, line := range lines {
			for _, option := range []string{"ro", "nosuid", "nodev"} {
				if !strings.Contains(","+strings.Fields(line)[5]+",", ","+option+",") {
					t.Errorf("a mount of the tree is not %s: %s", option, line)
				}
			}
			if strings.Contains(line, "shared:") || strings.Contains(line, "master:") {
				t.Errorf("a mount of the tree propagates: %s", line)
			}
		}
		for _, script := range []string{
			"touch /data/x", "touch /data/sub/x", "touch /data/sub/deeper/x", "echo x > /data/sub/null",
			"umount /data/sub/deeper", "umount -l /data/sub", "umount -l /data/sub/deeper",
			"mkdir -p /bind && mount --bind /data /bind",                                // without what is mounted in it
			"mkdir -p /moved && mount --move /data/sub /moved",                          //
			"mount -o remount,bind,rw /data/sub", "mount -o remount,bind,dev /data/sub", //
			"mkdir -p /rbind && mount --rbind /data /rbind && umount /rbind/sub",
			"mkdir -p /rbind && mount -o remount,bind,rw /rbind/sub",
		} {
			if r := c.Sh(script); r.Exit == 0 {
				t.Errorf("the container can: %s", script)
			}
		}
		if r := c.Sh("cat /data/sub/file /rbind/sub/file /bind/sub/file 2>/dev/null"); strings.Contains(r.Stdout, srcSecret) {
			t.Error("the container sees what is covered")
		}
		if got := h.ReadFile(filepath.Join(covered, "tool")); got != "#!/bin/sh\n" {
			t.Errorf("changed: %q", got)
		}
		c.Sh("umount -l /rbind 2>/dev/null; umount -l /data").OK(t) // as a whole: harmless
		srcDetach(t, h, "c")

		// A subpath above the submount, and the submount itself.
		sub := srcRequest(c.Pid(), v, "/data")
		sub.Mounts[0].Mode, sub.Mounts[0].Subpath = wire.ModeRO, "sub"
		srcAccepted(t, h, sub)
		c.Sh("test -f /data/tool && ! touch /data/x && ! touch /data/deeper/x && ! umount /data/deeper").OK(t)
		srcDetach(t, h, "c")

		// A mount that may not be bound is left out of a clone, so what it covers would show.
		t.Run("unbindable", func(t *testing.T) {
			h := h.For(t)
			srcCheck(t, unix.Mount("", covered, "", unix.MS_UNBINDABLE, ""))
			srcCheck(t, srcBind(c.Pid(), v, "/naive2", srcPrivate))
			if got := c.Sh("cat /naive2/sub/file").Stdout; got != srcSecret {
				t.Fatalf("the naive clone does not show what an unbindable mount covers: %q", got)
			}
			if reply := h.Helper(srcRequest(c.Pid(), v, "/data")); reply.Err == nil {
				if got := c.Sh("cat /data/sub/file").Stdout; got == srcSecret {
					t.Error("the container sees what an unbindable mount covers on the host")
				}
				srcDetach(t, h, "c")
			} else if reply.Err.Code != wire.SourceForbidden {
				t.Errorf("%s: %s", reply.Err.Code, reply.Err.Message)
			}
		})
	})
}

func TestT31_SourceOracle(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		srcVolume(h, "v")
		c := h.Container(harness.ContainerOptions{ID: "c"})
		shared := h.SharedRoot(harness.SharedRootOptions{ID: "shared"})
		secret := h.Mkdir(h.Path("secret"), 0o700)
		h.WriteFile(filepath.Join(secret, "there"), srcSecret, 0o600)
		if _, err := h.Command(srcCaller, "/bin/ls", secret).Output(); err == nil {
			t.Fatal("the caller may look by itself")
		}
		pairs := [][2]string{{"/root", "/none"}, {"/etc/shadow", "/etc/shadow-none"}, {secret + "/there", secret + "/none"}, {secret + "/there/x", secret + "/none/x"}, {secret, h.Path("none")},
			{h.Ledger() + "/.lock", h.Ledger() + "/none"}, {h.Journal(), h.Path("var/lib/bindgate/none")}, {"/proc/1/root", "/proc/1/none"}, {"/dev/null", "/dev/none"}, {h.Path("etc/bindgate/helper.toml"), h.Path("etc/bindgate/none")}}
		// The naive way opens first and judges then.
		naive := func(path string) error {
			_, err := os.Stat(path)
			return err
		}
		if naive(pairs[2][0]) == nil == (naive(pairs[2][1]) == nil) {
			t.Fatal("the naive way tells nothing")
		}
		say := func(r *wire.Request, path string) string {
			reply := h.Helper(r)
			if reply.Err == nil {
				t.Fatalf("%s: accepted", path)
			}
			if reply.Err.Code.Exit() != 77 {
				t.Errorf("%s: %s", path, reply.Err.Code)
			}
			return strings.ReplaceAll(fmt.Sprintf("%s|%s|%s|%s", reply.Err.Code, reply.Err.Stage, reply.Err.Message, reply.Err.Hint), path, "PATH")
		}
		for what, ask := range map[string]func(path string) *wire.Request{
			"source":         func(p string) *wire.Request { return srcRequest(c.Pid(), p, "/data") },
			"source slashes": func(p string) *wire.Request { return srcRequest(c.Pid(), p+"//", "/data") },
			"source, shared": func(p string) *wire.Request { return srcRequest(shared.Pid(), p, h.HostPaths()) },
			"subpath": func(p string) *wire.Request {
				r := srcRequest(c.Pid(), p, "/data")
				r.Mounts[0].Subpath = "sub"
				return r
			},
			"target": func(p string) *wire.Request { return srcRequest(shared.Pid(), filepath.Join(h.Sources(), "v"), p) },
			"rootfs": func(p string) *wire.Request {
				r := srcRequest(shared.Pid(), filepath.Join(h.Sources(), "v"), "/data")
				r.Rootfs = p
				return r
			},
			"directory": func(p string) *wire.Request {
				r := srcRequest(c.Pid(), filepath.Join(h.Sources(), "v"), "data")
				r.Directory = p
				return r
			},
			"directory, shared": func(p string) *wire.Request {
				r := srcRequest(shared.Pid(), filepath.Join(h.Sources(), "v"), "data")
				r.Directory = p
				return r
			},
		} {
			for _, pair := range pairs {
				there, missing := say(ask(pair[0]), pair[0]), say(ask(pair[1]), pair[1])
				if there != missing {
					t.Errorf("%s: the answers tell %s from %s:\n%s\n%s", what, pair[0], pair[1], there, missing)
				}
			}
		}
	})
}

func TestT44_HardLinkedFileSource(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		c := h.Container(harness.ContainerOptions{ID: "c"})
		secret := filepath.Join(h.Mkdir(h.Path("elsewhere"), 0o755), "passwords")
		h.WriteFile(secret, srcSecret, 0o600)
		dir := h.Mkdir(filepath.Join(h.Sources(), "files"), 0o755)
		source := filepath.Join(dir, "f")
		srcCheck(t, os.Link(secret, source)) // as its owner could anywhere, and anybody where fs.protected_hardlinks is 0

		srcCheck(t, srcBind(c.Pid(), source, "/naive"))
		c.Sh("grep -q containers /naive && echo changed > /naive").OK(t)
		if got := h.ReadFile(secret); got != "changed\n" {
			t.Fatalf("the attack does not work on the naive way: %q", got)
		}
		h.WriteFile(secret, srcSecret, 0o600)

		srcRefused(t, h, srcRequest(c.Pid(), source, "/data"), wire.SourceForbidden)
		r := srcRequest(c.Pid(), dir, "/data")
		r.Mounts[0].Subpath = "f"
		srcRefused(t, h, r, wire.SourceForbidden)
		srcCheck(t, os.Link(source, filepath.Join(dir, "g")))
		srcRefused(t, h, srcRequest(c.Pid(), source, "/data"), wire.SourceForbidden)
		srcUnmounted(t, c, "/data")
		if got := h.ReadFile(secret); got != srcSecret {
			t.Errorf("changed: %q", got)
		}

		// With one name only it is a volume like any other; and the container can give it no second one.
		srcCheck(t, errors.Join(os.Remove(secret), os.Remove(filepath.Join(dir, "g"))))
		srcAccepted(t, h, srcRequest(c.Pid(), source, "/data"))
		if r := c.Sh("ln /data /tmp/second"); r.Exit == 0 {
			t.Error("the container links the file elsewhere")
		}
		srcDetach(t, h, "c")

		// Linked between the check and the attach: found before, or it is the volume's own file whose second name somebody made.
		other := filepath.Join(dir, "other")
		srcSweep(t, h, func() *wire.Request { return srcRequest(c.Pid(), source, "/data") },
			func([]int) { srcCheck(t, os.Link(source, other)) },
			func() {
				if got, err := os.ReadFile(c.Path("/data")); err == nil && string(got) != srcSecret && len(got) > 0 {
					t.Errorf("another file: %q", got)
				}
				os.Remove(other)
			}, wire.SourceForbidden)
	})
}

// A srcProcess is a process of the test that answers on a pipe.
type srcProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
}

func (p *srcProcess) say(t *testing.T, line string) {
	t.Helper()
	buf := make([]byte, 256)
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	n, err := p.out.Read(buf)
	if err != nil || string(buf[:n]) != "ok\n" {
		t.Fatalf("%s: %q, %v", line, buf[:n], err)
	}
}
