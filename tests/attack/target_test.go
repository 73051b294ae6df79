package attack

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// srcRole is the variable that makes this binary a process that does as it is told instead of a test.
const srcRole = "BINDGATE_ATTACK_SRC"

func init() {
	switch os.Getenv(srcRole) {
	case "obey":
		srcObey()
	case "threads":
		srcThreads()
	}
}

// srcObey changes its own namespace, root and working directory as it is told on stdin, on its first thread: the one that /proc/PID shows.
func srcObey() {
	runtime.LockOSThread()
	unix.Unshare(unix.CLONE_FS)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.Atoi(arg)
		err := errors.New("no such verb")
		switch verb {
		case "hello":
			err = nil
		case "setns":
			err = unix.Setns(n, unix.CLONE_NEWNS)
		case "chroot":
			err = unix.Chroot(arg)
		case "fchroot":
			if err = unix.Fchdir(n); err == nil {
				err = unix.Chroot(".")
			}
		}
		if err == nil {
			fmt.Println("ok")
		} else {
			fmt.Println(err)
		}
	}
	os.Exit(0)
}

// srcThreads ends its first thread and lives on in another, whose id it tells.
func srcThreads() {
	runtime.LockOSThread()
	told := make(chan bool)
	go func() {
		runtime.LockOSThread()
		fmt.Println(unix.Gettid())
		told <- true
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	<-told
	if os.Getenv("LEADER") == "exit" {
		syscall.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
	}
	select {}
}

// srcStart starts this binary in a role, with files from descriptor 3 on. It ends when the test does.
func srcStart(t *testing.T, role string, flags uintptr, env []string, files ...*os.File) *srcProcess {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append([]string{srcRole + "=" + role}, env...)
	cmd.Dir, cmd.ExtraFiles, cmd.Stderr = "/", files, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
	in, err := cmd.StdinPipe()
	srcCheck(t, err)
	out, err := cmd.StdoutPipe()
	srcCheck(t, err)
	srcCheck(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &srcProcess{cmd, in, out}
}

func srcOpen(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

// srcSleeper starts a process that waits to be killed, as user, unsharing flags. It is in no cgroup that a rule matches.
func srcSleeper(t *testing.T, h *harness.Host, user harness.User, unshare ...string) int {
	t.Helper()
	out, w, err := os.Pipe()
	srcCheck(t, err)
	defer out.Close()
	args := append(unshare, "/bin/sh", "-c", "echo ready; exec sleep 2147483647")
	cmd := h.Command(user, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	srcCheck(t, cmd.Start())
	w.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return cmd.Process.Pid
}

// srcStayIn starts a process in a container, as user, that waits to be killed with it, and returns its pid on the host. It may be started through
// another command, such as unshare.
func srcStayIn(t *testing.T, h *harness.Host, c *harness.Container, user string, through ...string) int {
	t.Helper()
	out, w, err := os.Pipe()
	srcCheck(t, err)
	defer out.Close()
	pidFile := filepath.Join(c.Bundle, "stays")
	cmd := c.Runc("exec", "--detach", "--pid-file", pidFile, "--user", user, c.ID)
	cmd.Args = append(append(cmd.Args, through...), "/bin/sh", "-c", "echo ready; exec sleep 2147483647")
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	h.Do(cmd).OK(t)
	w.Close()
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	pid, err := strconv.Atoi(h.ReadFile(pidFile))
	srcCheck(t, err)
	return pid
}

// srcRaw sends a request whose pid is written as given.
func srcRaw(t *testing.T, h *harness.Host, r *wire.Request, pid string, code wire.Code) {
	t.Helper()
	r.PID = 4242
	res := h.HelperRaw(srcCaller, []byte(strings.Replace(string(boundary.Encode(r)), "pid=4242\x00", "pid="+pid+"\x00", 1)))
	reply, err := boundary.DecodeReply([]byte(res.Stdout))
	if err != nil || reply.Err == nil || reply.Err.Code != code || res.Exit != code.Exit() {
		t.Errorf("pid=%s: want %s: %v", pid, code, res)
	}
}

func TestT12_TargetIsNoContainer(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		before := h.Mountinfo()
		t.Cleanup(func() {
			srcRemoveCgroup(h, h.Cgroup()+"/zombie")
			srcRemoveCgroup(h, h.Cgroup()+"/threads")
		})

		// The naive way enters whatever the pid names: the host.
		inHost := h.SharedRoot(harness.SharedRootOptions{ID: "in-the-host", HostNS: true})
		srcCheck(t, srcBind(inHost.Pid(), v, at))
		if d := harness.Diff(before, h.Mountinfo()); !strings.Contains(d, at) {
			t.Fatalf("the attack does not work on the naive way: %s", d)
		}
		srcCheck(t, unix.Unmount(at, 0))

		gone := h.SharedRoot(harness.SharedRootOptions{ID: "gone"})
		gone.Kill()
		noRule := h.SharedRoot(harness.SharedRootOptions{ID: "no-rule", NoCgroup: true})

		// A zombie, whose namespaces are gone, and whose cgroup is still told.
		zombie := exec.Command("busybox", "sleep", "2147483647")
		zombie.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		srcCheck(t, zombie.Start())
		h.EnterCgroup(zombie.Process.Pid, h.Cgroup()+"/zombie")
		zfd, err := unix.PidfdOpen(zombie.Process.Pid, 0)
		srcCheck(t, err)
		defer unix.Close(zfd)
		srcCheck(t, zombie.Process.Kill())
		unix.Poll([]unix.PollFd{{Fd: int32(zfd), Events: unix.POLLIN}}, -1)

		// A process whose first thread lives, and one whose first thread has ended: another thread's id, and the id of what is half a zombie.
		threads := func(env string) (pid, tid int) {
			p := srcStart(t, "threads", syscall.CLONE_NEWNS, []string{env})
			pid = p.cmd.Process.Pid
			h.EnterCgroup(pid, h.Cgroup()+"/threads")
			line, err := bufio.NewReader(p.out).ReadString('\n')
			srcCheck(t, err)
			tid, err = strconv.Atoi(strings.TrimSpace(line))
			srcCheck(t, err)
			return pid, tid
		}
		_, tid := threads("LEADER=stay")
		half, halfTid := threads("LEADER=exit")
		for state := ""; !strings.HasPrefix(state, "Z"); { // the end of one thread is no event; it is about to come
			stat := h.ReadFile(fmt.Sprintf("/proc/%d/stat", half))
			state = stat[strings.LastIndexByte(stat, ')')+2:]
			runtime.Gosched()
		}

		for what, x := range map[string]struct {
			pid  int
			code wire.Code
		}{
			"a host process that a rule matches": {inHost.Pid(), wire.NamespaceHost},
			"pid 1":                              {1, wire.NamespaceHost},
			"the caller's parent":                {os.Getpid(), wire.NamespaceHost},
			"one that no rule matches":           {noRule.Pid(), wire.TargetForbidden},
			"one that has ended":                 {gone.Pid(), wire.NamespaceGone},
			"a zombie":                           {zombie.Process.Pid, wire.NamespaceGone},
			"a thread":                           {tid, wire.NamespaceGone},
			"a thread of half a zombie":          {halfTid, wire.NamespaceGone},
			"a pid that never was":               {1<<22 - 1, wire.NamespaceGone},
		} {
			t.Run(what, func(t *testing.T) {
				for _, r := range []*wire.Request{srcRequest(x.pid, v, at), {Op: wire.OpAttach, Owner: "o", Container: "c", PID: x.pid, Rootfs: h.Bundles() + "/x", Mounts: []wire.Mount{{Path: "/data", Source: v, Mode: "rw"}}}} {
					srcRefused(t, h.For(t), r, x.code)
				}
			})
		}
		if reply := h.Helper(srcRequest(half, v, at)); reply.Err == nil || reply.Err.Code != wire.NamespaceGone && reply.Err.Code != wire.NamespaceHost {
			t.Errorf("half a zombie: %+v", reply)
		}
		for _, pid := range []string{"0", "-1", "+1", "01", "1 ", " 1", "0x1", "1e1", "4194305", "18446744073709551615", "18446744073709551617", "self", "1/root", ""} {
			srcRaw(t, h, srcRequest(1, v, at), pid, wire.InvalidRequest)
		}
		// Its own pid: a shell that becomes the helper.
		r := srcRequest(4242, v, at)
		text := strings.ReplaceAll(strings.Replace(string(boundary.Encode(r)), "pid=4242", "pid=$$", 1), "\x00", `\000`)
		own := h.Command(srcCaller, "/bin/sh", "-c", `printf "`+text+`" > "$1"; exec env -i "$0" < "$1"`, h.HelperPath(), filepath.Join(h.Path("tmp"), "own"))
		res := h.Do(own).Exits(t, 77)
		if reply, err := boundary.DecodeReply([]byte(res.Stdout)); err != nil || reply.Err.Code != wire.NamespaceHost {
			t.Errorf("its own pid: %v", res)
		}
		if d := harness.Diff(before, h.Mountinfo()); d != "" {
			t.Errorf("the host's mounts changed:\n%s", d)
		}
		srcCheck(t, zombie.Process.Release())
		unix.Wait4(zombie.Process.Pid, nil, 0, nil)
	})
	srcKernelThread(t)
}

// srcKernelThread asks for a kernel thread, which is only in the machine's first pid namespace, so not in a host of the harness. Where that is not ours
// there is none that anybody could name.
func srcKernelThread(t *testing.T) {
	t.Helper()
	pid := 0
	entries, err := os.ReadDir("/proc")
	srcCheck(t, err)
	for _, e := range entries {
		if status, _ := os.ReadFile("/proc/" + e.Name() + "/status"); strings.Contains(string(status), "\nKthread:\t1\n") {
			pid, _ = strconv.Atoi(e.Name())
			break
		}
	}
	if pid == 0 {
		return // in a host, or on a machine that shows none
	}
	checkout, err := harness.Checkout()
	srcCheck(t, err)
	request := filepath.Join(t.TempDir(), "request")
	r := srcRequest(pid, harness.Root+"/sources/v", "/data")
	srcCheck(t, os.WriteFile(request, boundary.Encode(r), 0o644))
	toml := filepath.Join(filepath.Dir(request), "helper.toml")
	srcCheck(t, os.WriteFile(toml, []byte(harness.DefaultHelperTOML), 0o644))
	script := fmt.Sprintf(`set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p %[1]s/etc/bindgate %[1]s/var/log/bindgate %[1]s/run/bindgate/ledger %[1]s/sources/v %[1]s/prefix/libexec/bindgate
chmod 0700 %[1]s/run/bindgate/ledger %[1]s/sources
cp %[2]s %[1]s/etc/bindgate/helper.toml
cp %[3]s/bin/test/bindgate-helper %[1]s/prefix/libexec/bindgate/bindgate-helper
chown 0:%[4]d %[1]s/prefix/libexec/bindgate/bindgate-helper
chmod 4750 %[1]s/prefix/libexec/bindgate/bindgate-helper
cp %[5]s %[1]s/request
chmod 0644 %[1]s/request
cp /etc/passwd %[1]s/passwd
echo '%[6]s:x:%[4]d:%[4]d::/:/bin/false' >> %[1]s/passwd
mount --bind %[1]s/passwd /etc/passwd
cd /
exec setpriv --reuid %[4]d --regid %[4]d --clear-groups env -i %[1]s/prefix/libexec/bindgate/bindgate-helper < %[1]s/request
`, harness.Root, toml, checkout, harness.PolicyUID, request, harness.PolicyUser)
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	reply, derr := boundary.DecodeReply(out)
	if derr != nil || reply.Err == nil || reply.Err.Code != wire.NamespaceHost || cmd.ProcessState.ExitCode() != 77 {
		t.Errorf("the kernel thread %d: %q, %v", pid, out, err)
	}
}

func TestT13_OwnUserNamespace(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		h.WriteFile(filepath.Join(v, "file"), srcSecret, 0o644)
		if _, err := h.Command(srcCaller, "/bin/cat", filepath.Join(v, "file")).Output(); err == nil {
			t.Fatal("the caller reads the volume by itself")
		}
		mine := srcSleeper(t, h, srcCaller, "unshare", "--user", "--map-root-user", "--mount")
		look := func(at string) string {
			out, _ := h.Command(srcCaller, "/bin/cat", fmt.Sprintf("/proc/%d/root%s/file", mine, at)).Output()
			return string(out)
		}
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		srcCheck(t, srcBind(mine, v, at)) // "it is in a mount namespace of its own"
		if look(at) != srcSecret {
			t.Fatal("the attack does not work on the naive way")
		}
		srcCheck(t, srcUnbind(mine, at))

		nested := srcSleeper(t, h, srcCaller, "unshare", "--user", "--map-root-user", "--mount", "unshare", "--user", "--map-root-user", "--mount")
		chrooted := srcSleeper(t, h, srcCaller, "unshare", "--user", "--map-root-user", "--mount", "unshare", "--root=/", "--cgroup")
		for _, pid := range []int{mine, nested, chrooted} {
			for _, r := range []*wire.Request{srcRequest(pid, v, at), srcRequest(pid, v, "/data"), {Op: wire.OpAttach, Owner: "default", Container: "c", PID: pid, Directory: h.Mkdir(h.Sandboxes()+"/s", 0o755),
				Mounts: []wire.Mount{{Path: "data", Source: v, Mode: "ro"}}}} {
				srcRefused(t, h, r, wire.TargetForbidden)
			}
			if look(at) != "" {
				t.Error("the caller sees the volume")
			}
		}

		// In a user namespace of the caller's the setuid bit gives nothing: host root is not mapped there.
		request := filepath.Join(h.Path("tmp"), "request")
		h.WriteFile(request, string(boundary.Encode(srcRequest(mine, v, at))), 0o644)
		cmd := h.Command(srcCaller, "/bin/sh", "-c", `exec unshare --user --map-root-user --mount env -i "$0" < "$1"`, h.HelperPath(), request)
		r := h.Do(cmd)
		if reply, err := boundary.DecodeReply([]byte(r.Stdout)); err != nil || reply.Err == nil || r.Exit == 0 {
			t.Errorf("in a user namespace: %v", r)
		}
		if look(at) != "" {
			t.Error("the caller sees the volume")
		}
	})
}

func TestT14_PidRecycled(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		// try makes a process in a mount namespace of its own that shares the host's root; with this pid, if it is not 0. nil: somebody else has it, such as a thread that a helper made just now.
		try := func(pid int) *exec.Cmd {
			for range 100 {
				if pid != 0 {
					srcCheck(t, os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0))
				}
				cmd := exec.Command("busybox", "sleep", "2147483647")
				cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
				srcCheck(t, cmd.Start())
				if pid == 0 || cmd.Process.Pid == pid {
					return cmd
				}
				cmd.Process.Kill()
				cmd.Wait()
			}
			return nil
		}
		start := func(pid int) *exec.Cmd {
			cmd := try(pid)
			if cmd == nil {
				t.Fatalf("cannot have the pid %d", pid)
			}
			return cmd
		}
		end := func(cmd *exec.Cmd) {
			cmd.Process.Kill()
			cmd.Wait()
		}
		mounted := func(pid int) bool {
			return strings.Contains(h.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)), " "+at+" ")
		}
		const pid = 30000
		t.Cleanup(func() { srcRemoveCgroup(h, h.Cgroup()+"/good") })

		// The naive way asks for the cgroup by pid, then enters by pid.
		good := start(pid)
		h.EnterCgroup(pid, h.Cgroup()+"/good")
		if !namespace.MatchCgroups(h.ReadFile("/proc/30000/cgroup"), []string{harness.CgroupRule}) {
			t.Fatal("no rule matches")
		}
		end(good)
		bad := start(pid)
		srcCheck(t, srcBind(pid, v, at))
		if !mounted(pid) {
			t.Fatal("the attack does not work on the naive way")
		}
		end(bad)

		for _, withStart := range []bool{false, true} {
			t.Run(fmt.Sprintf("start=%v", withStart), func(t *testing.T) {
				var now *exec.Cmd
				recycled := false
				keep := 0 // a descriptor of the good namespace, so that what is attached there can be detached
				outcomes := srcSweep(t, h.For(t), func() *wire.Request {
					now = start(pid)
					h.EnterCgroup(pid, h.Cgroup()+"/good")
					keep, _ = unix.Open("/proc/30000/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
					r := srcRequest(pid, v, at)
					if withStart {
						stat := h.ReadFile("/proc/30000/stat")
						r.Start, _ = strconv.ParseUint(strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])[19], 10, 64)
					}
					return r
				}, func([]int) {
					end(now)
					if now = try(pid); now == nil {
						now = start(0)
						return
					}
					recycled = true
				}, func() {
					if recycled && mounted(pid) {
						t.Error("the volume is attached to the process that has the pid now")
					}
					recycled = false
					end(now)
					unix.Close(keep)
				}, wire.NamespaceGone, wire.TargetForbidden)
				if outcomes["ok"] == 0 || outcomes[string(wire.NamespaceGone)] == 0 || outcomes[string(wire.TargetForbidden)] == 0 {
					t.Errorf("the pid was never recycled before, within or after the lookup: %v", outcomes)
				}
			})
		}
	})
}

func TestT15_TargetMovesMeanwhile(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		jail := func(root string) { h.Mkdir(filepath.Join(root, "jail"), 0o755) }
		a := h.Container(harness.ContainerOptions{ID: "a", Prepare: jail})
		t.Cleanup(func() { srcRemoveCgroup(h, "/bindgate-other") }) // after the container, whose own cleanup comes first
		b := h.Container(harness.ContainerOptions{ID: "b", Cgroup: "/bindgate-other" + h.Cgroup(), Prepare: jail})
		hostDir := h.Mkdir(h.Path("private-of-the-host"), 0o755)
		ns := func(pid int) *os.File { return srcOpen(t, fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY) }
		p := srcStart(t, "obey", 0, nil, ns(a.Pid()), ns(os.Getpid()), ns(b.Pid()), srcOpen(t, hostDir, unix.O_PATH|unix.O_DIRECTORY), srcOpen(t, b.Path("/"), unix.O_PATH|unix.O_DIRECTORY))
		pid := p.cmd.Process.Pid
		p.say(t, "setns 3")
		h.EnterCgroup(pid, a.Cgroup)
		srcRefused(t, h, srcRequest(b.Pid(), v, "/data"), wire.TargetForbidden) // nobody may attach there

		// The naive way looks at the namespace by pid, then makes the mountpoint by pid.
		naive := func(move string) {
			var is, host unix.Stat_t
			srcCheck(t, errors.Join(unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &is), unix.Stat("/proc/self/ns/mnt", &host)))
			if is.Ino == host.Ino {
				t.Fatal("refused")
			}
			p.say(t, move)
			srcCheck(t, os.Mkdir(fmt.Sprintf("/proc/%d/root/made", pid), 0o755))
		}
		naive("fchroot 6")
		srcCheck(t, os.Remove(filepath.Join(hostDir, "made")))
		p.say(t, "setns 3")
		naive("setns 5")
		srcCheck(t, os.Remove(filepath.Join(b.Root, "made")))
		p.say(t, "setns 3")

		hostBefore, mountsBefore := h.Tree(hostDir), h.Mountinfo()
		for name, move := range map[string]string{"into the host's namespace": "setns 4", "into another container's": "setns 5", "root in the host": "fchroot 6", "root in another container": "fchroot 7", "chroot": "chroot /jail"} {
			t.Run(name, func(t *testing.T) {
				outcomes := srcSweep(t, h.For(t), func() *wire.Request { return srcRequest(pid, v, "/made/data") },
					func(made []int) {
						// Who is in another container's namespace before it is pinned is in it.
						if move != "setns 5" || slices.Contains(made, unix.SYS_IOCTL) {
							p.say(t, move)
						}
					},
					func() {
						if d := harness.Diff(hostBefore, h.Tree(hostDir)); d != "" {
							t.Errorf("the host's files changed:\n%s", d)
						}
						if d := harness.Diff(mountsBefore, h.Mountinfo()); d != "" {
							t.Errorf("the host's mounts changed:\n%s", d)
						}
						for _, made := range []string{"/made", hostDir + "/made", b.Root + "/made", b.Root + "/jail/made"} {
							if _, err := os.Lstat(made); err == nil {
								t.Errorf("made outside the container: %s", made)
							}
						}
						srcUnmounted(t, b, "/made")
						p.say(t, "setns 3")
					}, wire.NamespaceGone, wire.NamespaceHost, wire.TargetForbidden)
				if outcomes["ok"] == 0 {
					t.Errorf("never in time: %v", outcomes)
				}
				for _, line := range a.Mountinfo("/") {
					if strings.Contains(line, "/made") {
						t.Errorf("left: %s", line)
					}
				}
			})
		}
	})
}

// srcRemoveCgroup removes a cgroup of the test's own with all below it, in every hierarchy.
func srcRemoveCgroup(h *harness.Host, name string) {
	h.Sh(`for d in /sys/fs/cgroup/*` + name + ` /sys/fs/cgroup` + name + `; do [ -d "$d" ] || continue; find "$d" -depth -type d -exec rmdir {} ';'; done; true`)
}

func TestT21_SharedRootTargets(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		for name, to := range map[string]string{"etc": "/etc", "up": "../..", "run": "/run", "state": h.Path("var/lib/bindgate"), "ledger": "../run/bindgate/ledger", "root": "/", "proc": "/proc/self/root/etc", "good": at} {
			srcCheck(t, os.Symlink(to, filepath.Join(h.HostPaths(), name)))
		}
		// Naive: what looks as if it were allowed is mounted on, as the container's programs will believe.
		fake := h.Mkdir(filepath.Join(h.Sources(), "fake"), 0o755)
		h.WriteFile(filepath.Join(fake, "passwd"), "root::0:0::/:/bin/sh\n", 0o644)
		srcCheck(t, srcBind(c.Pid(), fake, h.HostPaths()+"/etc"))
		if got := c.Exec("cat", "/etc/passwd").Stdout; got != "root::0:0::/:/bin/sh\n" {
			t.Fatalf("the attack does not work on the naive way: %q", got)
		}
		srcCheck(t, srcUnbind(c.Pid(), "/etc"))

		before := h.Mountinfo()
		tree := append(h.Tree(h.HostPaths()), h.Tree(h.Path("etc"))...)
		for _, path := range []string{"/etc", "/etc/", "//etc", "/usr", "/usr/bin", "/root", "/run", "/var/lib", "/home", "/tmp", "/bin/sh", "/new", "/run/new", "/etc/new/dir",
			h.Path(), h.Path("var/lib/bindgate"), h.Journal(), h.Ledger(), h.Path("hos"), h.HostPaths() + "2", h.HostPaths() + "/../etc2",
			h.HostPaths() + "/etc", h.HostPaths() + "/etc/cron.d", h.HostPaths() + "/up", h.HostPaths() + "/up/run", h.HostPaths() + "/run", h.HostPaths() + "/state", h.HostPaths() + "/ledger",
			h.HostPaths() + "/root", h.HostPaths() + "/root/etc", h.HostPaths() + "/proc"} {
			code := wire.TargetForbidden
			if strings.Contains(path, "..") {
				code = wire.InvalidRequest
			}
			srcRefused(t, h, srcRequest(c.Pid(), v, path), code)
		}
		srcRefused(t, h, srcRequest(c.Pid(), v, "/"), wire.TargetForbidden)
		srcRefused(t, h, srcRequest(c.Pid(), v, h.HostPaths()+"/missing"), wire.TargetMissing)

		// Naming a rootfs, or a sandbox, is no way around.
		for _, rootfs := range []string{"/", "/etc", "/run", h.Bundles(), h.Mkdir(h.Bundles()+"/plain", 0o755), h.Mkdir(h.Path("elsewhere"), 0o755)} {
			r := srcRequest(c.Pid(), v, "/data")
			r.Rootfs = rootfs
			srcRefused(t, h, r, wire.TargetForbidden)
		}
		srcCheck(t, os.Symlink("/etc", h.Bundles()+"/link"))
		r := srcRequest(c.Pid(), v, "/data")
		r.Rootfs = h.Bundles() + "/link"
		srcRefused(t, h, r, wire.TargetForbidden)
		sandbox := h.Mkdir(h.Sandboxes()+"/job", 0o777)
		srcCheck(t, errors.Join(os.Symlink("/etc", sandbox+"/etc"), os.Symlink("../../etc", sandbox+"/up"), os.Symlink("/", h.Sandboxes()+"/whole")))
		for _, x := range []struct{ directory, path string }{{sandbox, "etc"}, {sandbox, "etc/cron.d"}, {sandbox, "up"}, {sandbox, "up/bindgate"}, {"/etc", "data"}, {h.Sandboxes(), "data"}, {h.Sandboxes() + "/whole", "etc"}, {h.Path(), "etc"}} {
			r := srcRequest(c.Pid(), v, x.path)
			r.Directory = x.directory
			srcRefused(t, h, r, wire.TargetForbidden)
		}
		srcAccepted(t, h, srcRequest(c.Pid(), v, h.HostPaths()+"/good")) // a link that stays under the host path
		srcDetach(t, h, "c")
		if d := harness.Diff(before, h.Mountinfo()); d != "" {
			t.Errorf("the host's mounts changed:\n%s", d)
		}
		if d := harness.Diff(tree, append(h.Tree(h.HostPaths()), h.Tree(h.Path("etc"))...)); d != "" {
			t.Errorf("the host's files changed:\n%s", d)
		}

		// A process that chroots within the host's root, or binds a folder of the host's over a named rootfs, is not one with a root of its own:
		// nothing is made in the host's folders for it.
		secret := h.Mkdir(h.Path("etc/private"), 0o755)
		t.Run("chroot", func(t *testing.T) {
			h := h.For(t)
			t.Cleanup(func() { srcRemoveCgroup(h, h.Cgroup()+"/chrooted") })
			p := srcStart(t, "obey", syscall.CLONE_NEWNS, nil)
			h.EnterCgroup(p.cmd.Process.Pid, h.Cgroup()+"/chrooted")
			p.say(t, "chroot "+secret)
			srcNotMade(t, h, srcRequest(p.cmd.Process.Pid, v, "/made/data"), secret+"/made")
		})
		t.Run("chroot in a container", func(t *testing.T) { // "/ssh" is /etc/ssh, which deny_under forbids
			h := h.For(t)
			c := h.Container(harness.ContainerOptions{ID: "own"})
			p := srcStart(t, "obey", 0, nil, srcOpen(t, fmt.Sprintf("/proc/%d/ns/mnt", c.Pid()), unix.O_RDONLY))
			p.say(t, "setns 3")
			h.EnterCgroup(p.cmd.Process.Pid, c.Cgroup)
			srcRefused(t, h, srcRequest(p.cmd.Process.Pid, v, "/etc/ssh/made"), wire.TargetForbidden)
			p.say(t, "chroot /etc")
			srcNotMade(t, h, srcRequest(p.cmd.Process.Pid, v, "/ssh/made"), c.Root+"/etc/ssh/made")
			p.say(t, "setns 3")
		})
		t.Run("rootfs bound from elsewhere", func(t *testing.T) {
			h := h.For(t)
			rootfs := h.Mkdir(h.Bundles()+"/fake", 0o755)
			c := h.SharedRoot(harness.SharedRootOptions{ID: "fake"})
			c.Exec("mount", "--bind", secret, rootfs).OK(t)
			r := srcRequest(c.Pid(), v, "/made/data")
			r.Rootfs = rootfs
			srcNotMade(t, h, r, secret+"/made")
		})
	})
}

// srcNotMade wants a request refused, and nothing made.
func srcNotMade(t *testing.T, h *harness.Host, r *wire.Request, made string) {
	t.Helper()
	reply := h.Helper(r)
	if _, err := os.Lstat(made); err == nil {
		t.Errorf("%s was made on the host", made)
	}
	if reply.Err == nil {
		t.Errorf("accepted: %+v", reply.Blocks)
		srcDetach(t, h, r.Container)
	} else if reply.Err.Code != wire.TargetForbidden {
		t.Errorf("%s: %s", reply.Err.Code, reply.Err.Message)
	}
}

func TestT41_CgroupNames(t *testing.T) {
	rules := []string{"/docker", "/kubepods.slice"}
	careless := func(text string) bool { // the naive way: any line, a prefix of the string
		for line := range strings.Lines(text) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) == 3 && (strings.HasPrefix(f[2], "/docker") || f[2] == "/") {
				return true
			}
		}
		return false
	}
	for name, x := range map[string]struct {
		text        string
		match, fool bool
	}{
		"v2":                                  {"0::/docker/abc\n", true, true},
		"v2, the rule itself":                 {"0::/docker\n", true, true},
		"v2, deep":                            {"0::/kubepods.slice/pod1/cri-containerd-1.scope\n", true, false},
		"v1, all":                             {"2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n", true, true},
		"hybrid, v2 at the root":              {"3:cpu:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n", true, true},
		"at the root of all":                  {"3:cpu:/\n1:name=systemd:/\n0::/\n", false, true},
		"at the root of v2":                   {"0::/\n", false, true},
		"longer name":                         {"0::/dockerx\n", false, true},
		"longer name, deep":                   {"0::/dockerx/docker\n", false, true},
		"shorter name":                        {"0::/docke\n", false, false},
		"..":                                  {"0::/docker/../x\n", false, true},
		".. of a cgroup namespace":            {"0::/../docker/abc\n", false, false},
		"../..":                               {"0::/docker/../../docker/abc\n", false, true},
		"in the middle":                       {"0::/user.slice/docker/abc\n", false, false},
		"a name in one v1 hierarchy only":     {"5:pids:/docker/abc\n4:memory:/user.slice\n3:cpu:/user.slice\n1:name=systemd:/user.slice\n", false, true},
		"all but one":                         {"5:pids:/docker/abc\n4:memory:/docker/abc\n3:cpu:/docker/abc\n1:name=systemd:/user.slice\n", false, true},
		"a private hierarchy only":            {"9:name=mine:/docker/abc\n4:memory:/user.slice\n0::/user.slice/user-1000.slice\n", false, true},
		"colons in the name":                  {"0::/x:/docker/abc\n", false, false},
		"colons below the rule":               {"0::/docker/a:b:c\n", true, true},
		"another case":                        {"0::/Docker/abc\n", false, false},
		"relative":                            {"0::docker/abc\n", false, false},
		"no path":                             {"0::\n", false, false},
		"empty":                               {"", false, false},
		"no line":                             {"\n", false, false},
		"two fields":                          {"0:/docker/abc\n", false, false},
		"a broken line after a good one":      {"1:cpu:/docker/abc\nbroken\n", false, true},
		"a good line after a broken one":      {"broken\n1:cpu:/docker/abc\n", false, true},
		"deleted, and so without a container": {"0::/user.slice (deleted)\n", false, false},
	} {
		if got := namespace.MatchCgroups(x.text, rules); got != x.match {
			t.Errorf("%s: %v", name, got)
		}
		if got := careless(x.text); got != x.fool {
			t.Errorf("%s: the naive way says %v", name, got)
		}
		for _, none := range [][]string{nil, {""}, {"/"}, {"/docker/abc/deeper/still"}} {
			if namespace.MatchCgroups(x.text, none) {
				t.Errorf("%s: the rules %q match", name, none)
			}
		}
	}
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		t.Cleanup(func() {
			srcRemoveCgroup(h, harness.CgroupRule+"x")
			srcRemoveCgroup(h, "/bindgate-other")
		})
		id := strings.TrimPrefix(h.Cgroup(), harness.CgroupRule)
		for _, x := range []struct {
			name, cgroup string
			ok           bool
		}{{"in", h.Cgroup() + "/in", true}, {"longer", harness.CgroupRule + "x" + id, false}, {"elsewhere", "/bindgate-other" + id + harness.CgroupRule, false}, {"nowhere", "", false}} {
			p := h.SharedRoot(harness.SharedRootOptions{ID: x.name, NoCgroup: true})
			if x.cgroup != "" {
				h.EnterCgroup(p.Pid(), x.cgroup)
			} else { // at the root of every hierarchy
				h.Sh("for f in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do [ ! -e $f ] || echo " + p.PIDString() + " > $f; done").OK(t)
				for line := range strings.Lines(h.ReadFile("/proc/" + p.PIDString() + "/cgroup")) {
					if !strings.HasSuffix(line, ":/\n") {
						t.Fatalf("not at the root: %q", line)
					}
				}
			}
			if x.ok {
				srcAccepted(t, h, srcRequest(p.Pid(), v, at))
				srcDetach(t, h, "c")
			} else {
				srcRefused(t, h, srcRequest(p.Pid(), v, at), wire.TargetForbidden)
			}
			p.Delete()
		}
		// In one v1 hierarchy only, elsewhere in another; where there is only one hierarchy the two are one.
		p := h.SharedRoot(harness.SharedRootOptions{ID: "split"})
		h.Sh("for d in /sys/fs/cgroup/pids /sys/fs/cgroup/devices /sys/fs/cgroup/unified; do [ ! -d $d ] || { mkdir -p $d/bindgate-other" + id + "; echo " + p.PIDString() + " > $d/bindgate-other" + id + "/cgroup.procs; break; }; done").OK(t)
		text := h.ReadFile("/proc/" + p.PIDString() + "/cgroup")
		if strings.Contains(text, "bindgate-other") && strings.Contains(text, harness.CgroupRule+"/") {
			srcRefused(t, h, srcRequest(p.Pid(), v, at), wire.TargetForbidden)
		} else {
			srcAccepted(t, h, srcRequest(p.Pid(), v, at))
			srcDetach(t, h, "c")
		}
		p.Delete()
	})
}

func TestT42_IdmapNestedUserNamespace(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.HelperTOML(harness.DefaultHelperTOML + "[mounts]\nallow_idmap = true\n")
		const first = 300000
		c := h.Container(harness.ContainerOptions{ID: "c", Mapping: &harness.Mapping{HostID: first, Size: 65536}})
		v := srcVolume(h, "v")
		srcCheck(t, os.Chmod(v, 0o777))
		h.WriteFile(filepath.Join(v, "secret"), srcSecret, 0o600)

		// A user of the container, without privilege in it, makes a user namespace in which he is root.
		nest := func(args ...string) int {
			return srcStayIn(t, h, c, "1000:1000", append([]string{"unshare", "-U", "-r"}, args...)...)
		}
		nested := nest()
		user := func(script string) harness.Result {
			return h.Do(c.Runc("exec", "--user", "1000:1000", c.ID, "sh", "-c", script))
		}

		// The naive way maps by the user namespace of the process that was named: the volume's root is then a user of the container.
		srcCheck(t, srcBind(nested, v, "/naive", srcPrivate, func(tree int) error {
			ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", nested), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(ns)
			return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})
		}))
		if r := user("cat /naive/secret"); r.Stdout != srcSecret {
			t.Fatalf("the attack does not work on the naive way: %v", r)
		}

		idmap := func(pid int) *wire.Request {
			r := srcRequest(pid, v, "/data")
			r.Mounts[0].IDMap = true
			return r
		}
		srcRefused(t, h, idmap(nested), wire.TargetForbidden)
		srcRefused(t, h, srcRequest(nested, v, "/data"), wire.TargetForbidden)
		srcUnmounted(t, c, "/data")

		srcAccepted(t, h, idmap(c.Pid()))
		if r := user("cat /data/secret"); r.Exit == 0 {
			t.Error("a user of the container reads what is root's")
		}
		user("echo x > /data/user").OK(t)
		c.Sh("cat /data/secret && echo x > /data/root").OK(t)
		for name, uid := range map[string]uint32{"user": 1000, "root": 0} {
			var st unix.Stat_t
			srcCheck(t, unix.Stat(filepath.Join(v, name), &st))
			if st.Uid != uid || st.Gid != uid {
				t.Errorf("%s belongs to %d:%d in the volume, want %d", name, st.Uid, st.Gid, uid)
			}
		}
		srcDetach(t, h, "c")

		// One that has a mount namespace of its own too is mapped by that one's owner, and only there; the container does not see it.
		inner := nest("-m")
		if reply := h.Helper(idmap(inner)); reply.Err == nil {
			srcUnmounted(t, c, "/data")
			if r := user("cat /data/secret"); r.Exit == 0 {
				t.Error("a user of the container reads what is root's")
			}
			srcDetach(t, h, "c")
		} else if reply.Err.Code != wire.TargetForbidden {
			t.Errorf("%s: %s", reply.Err.Code, reply.Err.Message)
		}

		// Without a user namespace there is nothing to map by; what is not sealed is not mapped; nobody maps where helper.toml does not allow it.
		plain := h.Container(harness.ContainerOptions{ID: "plain"})
		srcRefused(t, h, idmap(plain.Pid()), wire.TargetForbidden)
		h.HelperTOML(harness.DefaultHelperTOML)
		srcRefused(t, h, idmap(c.Pid()), wire.Denied)
		open := h.Mkdir(h.Path("open"), 0o755)
		h.Mkdir(open+"/v", 0o777)
		h.HelperTOML("[[source]]\npath = \"" + open + "\"\n" + harness.DefaultHelperTOML + "[mounts]\nallow_idmap = true\n")
		r := idmap(c.Pid())
		r.Mounts[0].Source = open + "/v"
		srcRefused(t, h, r, wire.SourceForbidden)
	})
}
