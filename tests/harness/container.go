package harness

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ContainerOptions say what container to start. The zero value, with an ID, is an ordinary one: root in the host's user namespace with the capabilities
// that engines give by default, its own busybox root filesystem, and pid, mount, ipc and uts namespaces of its own.
type ContainerOptions struct {
	ID               string            // its name for runc and in the cgroup's path; unique in the host
	Command          []string          // its first process; the default waits to be killed
	Env              []string          // beside PATH
	Annotations      map[string]string //
	Mapping          *Mapping          // give it a user namespace of its own
	User             *specs.User       // who its first process is; default root
	Mounts           []specs.Mount     // besides /proc, /dev and /sys
	Capabilities     []string          // instead of the default set; an empty, non-nil list is none
	Privileged       bool              // all capabilities, nothing masked or read-only
	ReadonlyRoot     bool              // root filesystem mounted read-only
	Sandbox          string            // host folder, mounted at SandboxDirectory
	SandboxDirectory string            // default /mnt/mesos/sandbox
	Cgroup           string            // its cgroups path; default Host.Cgroup()/ID
	Hooks            *specs.Hooks      //
	Prepare          func(root string) // changes the root filesystem before the container is created
	Edit             func(*specs.Spec) // changes the configuration before it is written
	CreateOnly       bool              // runc create, to be followed by Start
	Runtime          string            // another program with runc's command line, such as crun
}

// A Mapping is a container's user namespace: ids from 0 to Size-1 inside are ids from HostID on.
type Mapping struct{ HostID, Size uint32 }

// A Container is a container that was made by runc, or a process that shares the host's root (SharedRoot). It is killed and removed when the test ends.
type Container struct {
	h      *Host
	ID     string
	Bundle string // host folder with config.json and rootfs
	Root   string // host path of the root filesystem; "/" for one that shares the host's
	Cgroup string
	pid    int
	pidfd  int
	runc   string // the program that made it; "" for one that shares the host's root
	once   *sync.Once
}

var defaultCapabilities = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// allCapabilities are the capabilities that this test has: on some machines root lacks one.
func allCapabilities() (names []string, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	_, after, _ := strings.Cut(string(status), "CapEff:")
	bits, err := strconv.ParseUint(strings.TrimSpace(strings.SplitN(after, "\n", 2)[0]), 16, 64)
	for n, name := range []string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
		"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
		"SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL",
		"SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"} { // in the order of capability.h
		if bits&(1<<n) != 0 {
			names = append(names, "CAP_"+name)
		}
	}
	return names, err
}

// Container starts a container with runc.
func (h *Host) Container(o ContainerOptions) *Container {
	h.t.Helper()
	c, r := h.TryContainer(o)
	if r.Exit != 0 {
		h.t.Fatalf("harness: cannot start the container %s: %v", o.ID, r)
	}
	return c
}

// TryContainer is Container for one that may fail to start. The result is runc's: what it wrote to its log and what it and the container wrote is in Stderr. Of one that failed the bundle stays until the test ends.
func (h *Host) TryContainer(o ContainerOptions) (*Container, Result) {
	h.t.Helper()
	if o.Cgroup == "" {
		o.Cgroup = h.Cgroup() + "/" + o.ID
	}
	bundle := h.Path("bundles", o.ID)
	c := &Container{h: h, ID: o.ID, Bundle: bundle, Root: filepath.Join(bundle, "rootfs"), Cgroup: o.Cgroup, runc: cmp.Or(o.Runtime, "runc"), pidfd: -1, once: new(sync.Once)}
	uid := 0
	if o.Mapping != nil {
		uid = int(o.Mapping.HostID)
	}
	h.Rootfs(c.Root, uid)
	if o.Prepare != nil {
		o.Prepare(c.Root)
	}
	spec := o.spec(c)
	if o.Edit != nil {
		o.Edit(spec)
	}
	data, err := json.MarshalIndent(spec, "", "\t")
	h.check(err)
	h.WriteFile(filepath.Join(bundle, "config.json"), string(data), 0o644)

	verb := []string{"run", "--detach"}
	if o.CreateOnly {
		verb = []string{"create"}
	}
	pidFile := filepath.Join(bundle, "pid")
	logFile := filepath.Join(bundle, "log")
	// The container inherits stdout and stderr and would keep a pipe open: they are files.
	out, err := os.Create(filepath.Join(bundle, "output"))
	h.check(err)
	defer out.Close()
	cmd := c.Runc(append([]string{"--log", logFile}, append(verb, "--bundle", bundle, "--pid-file", pidFile, o.ID)...)...)
	cmd.Stdout, cmd.Stderr = out, out
	h.t.Cleanup(func() { c.Delete() })
	r := h.Do(cmd)
	if r.Exit != 0 {
		log, _ := os.ReadFile(logFile)
		r.Stderr = string(log) + h.ReadFile(out.Name())
		return c, r
	}
	pid, err := strconv.Atoi(h.ReadFile(pidFile))
	h.check(err)
	c.follow(pid)
	return c, r
}

func (o *ContainerOptions) spec(c *Container) *specs.Spec {
	root := &specs.Root{Path: "rootfs", Readonly: o.ReadonlyRoot}
	caps := o.Capabilities
	if caps == nil {
		caps = defaultCapabilities
	}
	if o.Privileged {
		all, err := allCapabilities()
		c.h.check(err)
		caps = all
	}
	s := &specs.Spec{Version: "1.0.2", Root: root, Hostname: "container", Annotations: o.Annotations, Hooks: o.Hooks,
		Process: &specs.Process{Args: o.Command, Cwd: "/", Env: append([]string{"PATH=/bin"}, o.Env...),
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777"}},
		},
		Linux: &specs.Linux{CgroupsPath: o.Cgroup, Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
			{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}}},
	}
	if len(o.Command) == 0 {
		s.Process.Args = []string{"/bin/sleep", "2147483647"}
	}
	if o.User != nil {
		s.Process.User = *o.User
	}
	if !o.Privileged {
		s.Linux.MaskedPaths = []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"}
		s.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	if o.Mapping == nil { // in a user namespace, sysfs needs a network namespace of its own too
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}})
	} else {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		m := []specs.LinuxIDMapping{{HostID: o.Mapping.HostID, Size: o.Mapping.Size}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = m, m
	}
	if o.Sandbox != "" {
		at := o.SandboxDirectory
		if at == "" {
			at = "/mnt/mesos/sandbox"
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: at, Type: "bind", Source: o.Sandbox, Options: []string{"rbind", "rw"}})
	}
	s.Mounts = append(s.Mounts, o.Mounts...)
	return s
}

// applets are the names that busybox answers to.
var applets = sync.OnceValues(func() ([]string, error) {
	out, err := exec.Command("busybox", "--list").Output()
	return strings.Fields(string(out)), err
})

// Rootfs makes a root filesystem with busybox in it, that belongs to uid.
func (h *Host) Rootfs(root string, uid int) {
	h.t.Helper()
	busybox, err := exec.LookPath("busybox")
	h.check(err)
	names, err := applets()
	h.check(err)
	for dir, mode := range map[string]os.FileMode{"": 0o755, "bin": 0o755, "etc": 0o755, "usr": 0o755, "proc": 0o755, "sys": 0o755, "dev": 0o755, "tmp": 0o1777 &^ 0o1000,
		"root": 0o700, "mnt": 0o755, "home": 0o755, "var": 0o755, "run": 0o755} {
		h.Mkdir(filepath.Join(root, dir), mode)
		h.check(os.Lchown(filepath.Join(root, dir), uid, uid))
	}
	h.check(unix.Chmod(filepath.Join(root, "tmp"), 0o1777))
	h.copyFile(busybox, filepath.Join(root, "bin/busybox"), uid, uid, 0o755)
	for _, name := range names {
		if name != "busybox" {
			h.check(os.Symlink("busybox", filepath.Join(root, "bin", name)))
		}
	}
	h.WriteFile(filepath.Join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n", 0o644)
	h.WriteFile(filepath.Join(root, "etc/group"), "root:x:0:\n", 0o644)
}

// SharedRootOptions say what process to start by SharedRoot.
type SharedRootOptions struct {
	ID       string
	NoCgroup bool // leave it in the cgroups of the test
	HostNS   bool // leave it in the host's mount namespace
}

// SharedRoot starts a process in a mount namespace of its own that shares the host's root, in a cgroup of the host's: a container without its own rootfs.
func (h *Host) SharedRoot(o SharedRootOptions) *Container {
	h.t.Helper()
	c := &Container{h: h, ID: o.ID, Root: "/", Cgroup: h.Cgroup() + "/" + o.ID, pidfd: -1, once: new(sync.Once)}
	cmd := exec.Command("busybox", "sleep", "2147483647")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if !o.HostNS {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // its mounts are made private
	}
	h.check(cmd.Start())
	c.follow(cmd.Process.Pid)
	h.t.Cleanup(func() { c.Delete() })
	go cmd.Wait() // so that it is no zombie
	if !o.NoCgroup {
		h.EnterCgroup(c.pid, c.Cgroup)
	}
	return c
}

func (c *Container) follow(pid int) {
	c.h.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	c.h.check(err)
	c.pid, c.pidfd = pid, fd
}

// Pid returns the pid of the container's first process.
func (c *Container) Pid() int { return c.pid }

// PIDString returns it as an argument.
func (c *Container) PIDString() string { return strconv.Itoa(c.pid) }

// Runc returns a command of the runtime for the host's containers, such as Runc("state", c.ID).
func (c *Container) Runc(args ...string) *exec.Cmd {
	return exec.Command(c.runc, append([]string{"--root", c.h.Path(c.runc)}, args...)...)
}

// Start starts a container that was only created.
func (c *Container) Start() {
	c.h.t.Helper()
	c.h.Do(c.Runc("start", c.ID)).OK(c.h.t)
}

// Exec runs a command in the container: as its root, with runc; or in its mount namespace, if it shares the host's root.
func (c *Container) Exec(args ...string) Result {
	c.h.t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--target", c.PIDString(), "--mount", "--"}, args...)...)
	if c.runc != "" {
		cmd = c.Runc(append([]string{"exec", c.ID}, args...)...)
	}
	return c.h.Do(cmd)
}

// Sh runs a shell script in the container.
func (c *Container) Sh(script string) Result {
	c.h.t.Helper()
	return c.Exec("/bin/sh", "-c", script)
}

// Path returns the host path of a path in the container, through its first process. It follows links as the host does.
func (c *Container) Path(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", c.pid), path)
}

// Mountinfo returns the lines of the container's mountinfo that mention a mountpoint at or below path.
func (c *Container) Mountinfo(path string) (lines []string) {
	c.h.t.Helper()
	for line := range strings.Lines(c.h.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.pid))) {
		at := strings.Fields(line)[4]
		if at == path || strings.HasPrefix(at, strings.TrimSuffix(path, "/")+"/") {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

// Kill kills the container's first process and waits for its end. Its mount namespace is gone after this, unless somebody else is in it.
func (c *Container) Kill() {
	c.h.t.Helper()
	if err := unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		c.h.t.Fatalf("harness: cannot kill the container %s: %v", c.ID, err)
	}
	c.Wait()
}

// Wait waits for the container's first process to end.
func (c *Container) Wait() {
	c.h.t.Helper()
	if !waitPidfd(c.pidfd, time.Minute) {
		c.h.t.Fatalf("harness: the container %s does not end", c.ID)
	}
}

// Delete kills the container and removes what is left of it: runc's record of it, its cgroups, its bundle. Called by the test's end too.
func (c *Container) Delete() {
	c.h.t.Helper()
	c.once.Do(func() {
		if c.pidfd >= 0 {
			c.Kill()
			unix.Close(c.pidfd)
			c.pidfd = -1
		}
		if c.runc != "" {
			c.h.Do(c.Runc("delete", "--force", c.ID)).OK(c.h.t)
			c.h.check(os.RemoveAll(c.Bundle))
		}
		c.h.RemoveCgroup(c.Cgroup)
	})
}

// RemoveCgroup removes a cgroup of the host's in which nothing is any more.
func (h *Host) RemoveCgroup(cgroup string) {
	all, err := hierarchies()
	h.check(err)
	for _, y := range all {
		if strings.HasPrefix(cgroup, CgroupRule+"/") {
			os.Remove(filepath.Join(y.mountpoint, cgroup))
		}
	}
}
