//go:build runtimes

// Package runtimes tests bindgate in the hands of the real programs that invoke it, or whose containers it attaches to: podman, crun, a Docker engine. They are Debian's packages, unpacked by
// fetch and laid over /usr and /etc of each test's host; their storage and sockets lie in the host's tree. make test-runtimes runs them.
package runtimes

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// run is harness.Run with the engines installed. Every volume is allowed, and so are the cgroup, the sources and the root filesystems of the engines.
func run(t *testing.T, f func(t *testing.T, h *harness.Host)) {
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(checkout, "bin/runtimes")
	if _, err := os.Stat(filepath.Join(tree, "unpacked")); err != nil {
		t.Fatalf("%v; run: make test-runtimes", err)
	}
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.HelperTOML(strings.Replace(harness.DefaultHelperTOML, "rootfs_roots = [", "rootfs_roots = [\""+h.Path("podman")+"\", ", 1) + "[mounts]\nallow_idmap = true\n")
		t.Cleanup(func() { removeCgroups(t, h) })
		f(t, h)
	}, harness.Packages(tree))
}

// removeCgroups removes what engines leave of theirs: podman the cgroup of its monitors.
func removeCgroups(t *testing.T, h *harness.Host) {
	all, _ := filepath.Glob("/sys/fs/cgroup/*" + h.Cgroup())
	for _, top := range append(all, "/sys/fs/cgroup"+h.Cgroup()) {
		var dirs []string
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != top {
				dirs = append([]string{path}, dirs...)
			}
			return nil
		})
		for _, d := range dirs {
			procs, _ := os.ReadFile(filepath.Join(d, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(procs)) { // a monitor ends a moment after its container
				n, _ := strconv.Atoi(pid)
				if fd, err := unix.PidfdOpen(n, 0); err == nil {
					unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000)
					unix.Close(fd)
				}
			}
			os.Remove(d)
		}
	}
}

// An engine runs containers.
type engine struct {
	t    *testing.T
	h    *harness.Host
	name string   // of its program
	env  []string // how the program finds what is the host's
}

// do runs the engine's program as root.
func (e *engine) do(args ...string) harness.Result {
	e.t.Helper()
	cmd := exec.Command(e.name, args...)
	cmd.Env, cmd.Dir = e.env, "/"
	return e.h.Do(cmd)
}

// run starts a container that waits to be killed, and returns its id. try is run for one that may fail.
func (e *engine) run(args ...string) string {
	e.t.Helper()
	return strings.TrimSpace(e.try(args...).OK(e.t).Stdout)
}

func (e *engine) try(args ...string) harness.Result {
	e.t.Helper()
	all := []string{"run", "--detach", "--network=none", "--cgroup-parent=" + e.h.Cgroup()}
	return e.do(append(append(all, args...), "busybox", "sleep", "2147483647")...)
}

// remove kills containers and removes them.
func (e *engine) remove(names ...string) {
	e.t.Helper()
	args := []string{"rm", "--force"}
	if e.name == "podman" {
		args = append(args, "--time=0")
	}
	e.do(append(args, names...)...).OK(e.t)
}

func (e *engine) sh(container, script string) harness.Result {
	e.t.Helper()
	return e.do("exec", container, "/bin/sh", "-c", script)
}

func (e *engine) pid(container string) string {
	e.t.Helper()
	return strings.TrimSpace(e.do("inspect", "--format", "{{.State.Pid}}", container).OK(e.t).Stdout)
}

// bindgate runs it as root with the engine's environment, as an operator would.
func (e *engine) bindgate(args ...string) harness.Result {
	e.t.Helper()
	return e.bindgateIn("", args...)
}

func (e *engine) bindgateIn(stdin string, args ...string) harness.Result {
	e.t.Helper()
	cmd := e.h.Command(harness.User{}, e.h.Bindgate(), args...)
	cmd.Env, cmd.Stdin = e.env, strings.NewReader(stdin)
	return e.h.Do(cmd)
}

// image makes a tar of a root filesystem with busybox in it.
func image(h *harness.Host) string {
	root, tar := h.Path("image"), h.Path("image.tar")
	h.Rootfs(root, 0)
	h.Sh("tar -C " + root + " -cf " + tar + " . && rm -rf " + root)
	return tar
}

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// podman configures podman to run containers with a runtime, runc or crun, and with the hooks that packaging/oci has: hooks.d, and the folders named in more. Each has storage of its own: a podman that is
// still cleaning up after a container shuts the storage's folder to the next one's user namespace.
func podman(t *testing.T, h *harness.Host, runtime string, more ...string) *engine {
	t.Helper()
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	top, err := os.MkdirTemp(h.Mkdir(h.Path("podman"), 0o755), runtime+"-")
	if err != nil {
		t.Fatal(err)
	}
	h.Mkdir(top, 0o755)
	hooks := []string{}
	for _, dir := range append([]string{"hooks.d"}, more...) {
		files, _ := filepath.Glob(filepath.Join(checkout, "packaging/oci", dir, "*.json"))
		if len(files) == 0 {
			t.Fatalf("packaging/oci/%s is empty", dir)
		}
		hooks = append(hooks, h.Mkdir(filepath.Join(top, "oci", dir), 0o755))
		for _, f := range files {
			text := strings.ReplaceAll(h.ReadFile(f), "@PREFIX@/bin/bindgate", h.Bindgate())
			h.WriteFile(filepath.Join(top, "oci", dir, filepath.Base(f)), text, 0o644)
		}
	}
	dirs, _ := json.Marshal(hooks)
	h.WriteFile(top+"/containers.conf", fmt.Sprintf("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = %q\nhooks_dir = %s\ntmp_dir = %q\nstatic_dir = %q\nvolume_path = %q\n", runtime, dirs,
		top+"/tmp", top+"/libpod", top+"/volumes"), 0o644)
	h.WriteFile(top+"/storage.conf", fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", top+"/root", top+"/run"), 0o644)
	e := &engine{t: t, h: h, name: "podman", env: []string{path, "HOME=/root", "CONTAINERS_CONF=" + top + "/containers.conf", "CONTAINERS_STORAGE_CONF=" + top + "/storage.conf"}}
	t.Cleanup(func() {
		e.do("rm", "--all", "--force", "--time=0")
		h.Sh("umount -q " + top + "/root || true; rm -rf " + top)
	})
	e.do("import", "--quiet", image(h), "busybox").OK(t)
	return e
}

// docker starts a Docker engine, with containerd and all.
func docker(t *testing.T, h *harness.Host) *engine {
	t.Helper()
	dir := h.Mkdir(h.Path("docker"), 0o755)
	h.WriteFile(dir+"/daemon.json", "{}", 0o644)
	h.Mount("docker", "/etc/docker", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755") // engines up to 20.10 write a key there
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	socket := dir + "/docker.sock"
	cmd := exec.Command("dockerd", "--config-file="+dir+"/daemon.json", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none", "--storage-driver=vfs",
		"--data-root="+dir+"/root", "--exec-root="+dir+"/exec", "--pidfile="+dir+"/pid", "--host=unix://"+socket, "--shutdown-timeout=0")
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{path}, "/", log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, h: h, name: "docker", env: []string{path, "HOME=/root", "DOCKER_HOST=unix://" + socket}}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		for id := range strings.FieldsSeq(e.do("ps", "--all", "--quiet").Stdout) {
			e.do("rm", "--force", id)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Log(h.ReadFile(dir + "/log"))
		}
		h.Sh("rm -rf " + dir)
	})
	await(t, dir, socket, ended)
	e.do("import", image(h), "busybox").OK(t)
	return e
}

// await waits until the engine answers on its socket, or has ended.
func await(t *testing.T, dir, socket string, ended <-chan error) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	there := make(chan bool)
	go func() {
		defer close(there)
		events := make([]byte, 4096)
		for {
			if _, err := os.Stat(socket); err == nil {
				return
			}
			if _, err := f.Read(events); err != nil {
				return
			}
		}
	}()
	select {
	case <-there:
	case err := <-ended:
		log, _ := os.ReadFile(dir + "/log")
		t.Fatalf("the Docker engine ended: %v\n%s", err, log)
	case <-time.After(time.Minute):
		t.Fatal("the Docker engine does not start")
	}
}

// The documents, as far as they are looked at.
type attached struct {
	PID    int `json:"pid"`
	Mounts []struct {
		Target  string `json:"target"`
		Created int    `json:"created"`
		Locked  bool   `json:"locked"`
	} `json:"mounts"`
	Warnings []string `json:"warnings"`
}

type containers struct {
	Containers []struct {
		Container, Owner, Phase string
		PID                     int
		Alive                   bool
	}
	Volumes []any
}

func decode[T any](t *testing.T, r harness.Result) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.OK(t).Stdout), &v); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	return v
}

func status(t *testing.T, h *harness.Host) containers {
	t.Helper()
	return decode[containers](t, h.Policy("status", "-o", "json"))
}

func wantNothingLeft(t *testing.T, h *harness.Host) {
	t.Helper()
	if d := status(t, h); len(d.Containers) > 0 || len(d.Volumes) > 0 {
		t.Errorf("status still shows %+v", d)
	}
	for _, line := range h.Tree(h.Ledger()) {
		if name := filepath.Base(strings.Fields(line)[0]); strings.HasSuffix(name, ".rec") && !strings.HasPrefix(name, "refused+") {
			t.Errorf("left in the ledger: %s", line)
		}
	}
}
