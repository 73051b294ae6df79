package attack

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// A srcFUSE is a FUSE server that speaks to the kernel by itself (linux/fuse.h). It answers INIT and GETATTR of its root, and notes everything else that it is
// asked: with hold it lets those who ask wait until release, else it fails them. Its names are folders, but for "link", a symlink to /.
type srcFUSE struct {
	fd      int
	asked   chan string // every question that is not the kernel's own; buffered
	hold    bool
	mutex   sync.Mutex
	waiting []uint64 // who is not answered
	done    chan struct{}
}

const (
	fuseLookup, fuseForget, fuseGetattr, fuseReadlink, fuseInit, fuseInterrupt, fuseDestroy, fuseBatchForget = 1, 2, 3, 5, 26, 36, 38, 42
	fuseRoot, fuseLink                                                                                       = 1, 2
)

// srcServe opens a FUSE device and answers it until the last mount of it is gone.
func srcServe(t *testing.T, h *harness.Host, hold bool) *srcFUSE {
	t.Helper()
	device := "/dev/fuse"
	if _, err := os.Stat(device); err != nil { // the host may lack the node though its kernel has FUSE
		device = filepath.Join(h.Path("tmp"), "fuse")
		unix.Mknod(device, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 229)))
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("this test needs FUSE in the kernel: %v", err)
	}
	f := &srcFUSE{fd: fd, asked: make(chan string, 4096), hold: hold, done: make(chan struct{})}
	t.Cleanup(func() {
		f.release()
		select {
		case <-f.done:
		default: // mounted still, or never: its file goes with the process
		}
	})
	return f
}

// mount mounts it on target in the mount namespace that the calling thread is in.
func (f *srcFUSE) mount(target string) error {
	err := unix.Mount("fuse", target, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", f.fd))
	if err == nil {
		go f.serve()
	}
	return err
}

func (f *srcFUSE) serve() {
	defer close(f.done)
	buf := make([]byte, 1<<17)
	le := binary.NativeEndian
	for {
		n, err := unix.Read(f.fd, buf)
		if err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			unix.Close(f.fd)
			return // unmounted
		}
		op, unique, node, body := le.Uint32(buf[4:]), le.Uint64(buf[8:]), le.Uint64(buf[16:]), buf[40:n]
		attr := func(node uint64) []byte { // struct fuse_attr
			a := make([]byte, 88)
			mode := uint32(unix.S_IFDIR | 0o755)
			if node == fuseLink {
				mode = unix.S_IFLNK | 0o777
			}
			le.PutUint64(a, node)
			le.PutUint32(a[60:], mode)
			le.PutUint32(a[64:], 2)
			return a
		}
		switch op {
		case fuseForget, fuseBatchForget, fuseInterrupt:
		case fuseInit:
			out := make([]byte, 64)
			le.PutUint32(out, 7)
			le.PutUint32(out[4:], 31)
			le.PutUint32(out[20:], 1<<12) // max_write
			le.PutUint32(out[24:], 1)
			f.answer(unique, 0, out)
		case fuseDestroy:
			f.answer(unique, 0, nil)
		case fuseLookup:
			name, _, _ := strings.Cut(string(body), "\x00")
			if name == "link" {
				out := make([]byte, 40) // struct fuse_entry_out: valid for ever
				le.PutUint64(out, fuseLink)
				le.PutUint64(out[16:], 1<<30)
				le.PutUint64(out[24:], 1<<30)
				f.answer(unique, 0, append(out, attr(fuseLink)...))
				continue
			}
			f.ask("lookup of "+name, unique)
		case fuseGetattr:
			f.asked <- fmt.Sprintf("getattr of %d", node)
			out := make([]byte, 16)
			f.answer(unique, 0, append(out, attr(node)...))
		case fuseReadlink:
			f.ask("readlink", unique)
		default:
			f.ask(fmt.Sprintf("operation %d", op), unique)
		}
	}
}

func (f *srcFUSE) ask(what string, unique uint64) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.asked <- what // before who asks can go on
	if f.hold {
		f.waiting = append(f.waiting, unique)
	} else {
		f.answer(unique, unix.EIO, nil)
	}
}

// release fails who waits, and who will ask.
func (f *srcFUSE) release() {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.hold = false
	for _, unique := range f.waiting {
		f.answer(unique, unix.EIO, nil)
	}
	f.waiting = nil
}

func (f *srcFUSE) answer(unique uint64, errno unix.Errno, body []byte) {
	out := make([]byte, 16, 16+len(body))
	binary.NativeEndian.PutUint32(out, uint32(16+len(body)))
	binary.NativeEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(out[8:], unique)
	unix.Write(f.fd, append(out, body...))
}

// questions returns what it was asked since the last time.
func (f *srcFUSE) questions() (list []string) {
	for {
		select {
		case q := <-f.asked:
			list = append(list, q)
		default:
			return list
		}
	}
}

// quiet wants it not to have been asked anything.
func (f *srcFUSE) quiet(t *testing.T, what string) {
	t.Helper()
	if q := f.questions(); len(q) > 0 {
		t.Errorf("%s: the FUSE server was asked: %s", what, strings.Join(q, ", "))
	}
}

func TestT11_SourceOnFUSE(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		c := h.Container(harness.ContainerOptions{ID: "c"})
		other := h.Container(harness.ContainerOptions{ID: "other"})
		v := srcVolume(h, "v")
		dir := h.Mkdir(filepath.Join(h.Sources(), "fuse"), 0o755)
		f := srcServe(t, h, true)
		srcCheck(t, f.mount(dir))
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })

		// Naive: whoever looks waits until the server pleases, and holds what he holds.
		naive := make(chan error)
		go func() {
			_, err := os.Lstat(filepath.Join(dir, "volume"))
			naive <- err
		}()
		if q := <-f.asked; q != "lookup of volume" {
			t.Fatal(q)
		}
		select {
		case err := <-naive:
			t.Fatalf("the naive way does not hang: %v", err)
		default:
		}
		f.release()
		if err := <-naive; err == nil {
			t.Fatal("the naive way succeeds")
		}
		f.hold = true
		f.questions()

		// Not allowed: found by the type, without a question.
		for _, source := range []string{dir, dir + "/volume", dir + "/a/b/c"} {
			srcRefused(t, h, srcRequest(c.Pid(), source, "/data"), wire.SourceForbidden)
		}
		above := h.Mkdir(filepath.Join(h.Sources(), "above", "sub"), 0o755)
		srcCheck(t, unix.Mount(dir, above, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(above, unix.MNT_DETACH) })
		r := srcRequest(c.Pid(), filepath.Dir(above), "/data")
		r.Mounts[0].Subpath = "sub/volume"
		srcRefused(t, h, r, wire.SourceForbidden)
		f.quiet(t, "where FUSE is not allowed")

		// Allowed: the helper that asked hangs, and nobody else does; a lock is not held.
		h.HelperTOML("[[source]]\npath = \"" + dir + "\"\nallow_fuse = true\n" + harness.DefaultHelperTOML)
		hung := make(chan harness.Result)
		go func() {
			hung <- h.HelperRaw(srcCaller, boundary.Encode(srcRequest(c.Pid(), dir+"/volume", "/data")))
		}()
		for q := range f.asked {
			if q == "lookup of volume" {
				break
			}
		}
		for _, pid := range []int{other.Pid(), c.Pid()} {
			r := srcRequest(pid, v, "/served")
			r.Container = fmt.Sprint("served", pid)
			srcAccepted(t, h, r)
			srcDetach(t, h, r.Container)
		}
		select {
		case r := <-hung:
			t.Fatalf("it does not hang: %v", r)
		default:
		}
		f.release()
		got := <-hung
		reply, err := boundary.DecodeReply([]byte(got.Stdout))
		if err != nil || reply.Err == nil || reply.Err.Code != wire.SourceForbidden || got.Exit != 77 {
			t.Errorf("after the server failed it: %v", got)
		}
		srcUnmounted(t, c, "/data")
	})
}

// The deadline of a helper that a FUSE server hangs: the reply is there, whole, while the server still holds its thread.
func TestT11_Deadline(t *testing.T) {
	t.Parallel() // it waits most of the time
	harness.Run(t, func(h *harness.Host) {
		c := h.Container(harness.ContainerOptions{ID: "c"})
		dir := h.Mkdir(filepath.Join(h.Sources(), "fuse"), 0o755)
		f := srcServe(t, h, true)
		srcCheck(t, f.mount(dir))
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		h.HelperTOML("[[source]]\npath = \"" + dir + "\"\nallow_fuse = true\n" + harness.DefaultHelperTOML)
		cmd := h.Command(srcCaller, h.HelperPath())
		cmd.Stdin = strings.NewReader(string(boundary.Encode(srcRequest(c.Pid(), dir+"/volume", "/data"))))
		out, err := cmd.StdoutPipe()
		srcCheck(t, err)
		srcCheck(t, cmd.Start())
		var data []byte
		buf := make([]byte, 4096)
		for !strings.HasSuffix(string(data), "end=\x00") {
			n, err := out.Read(buf)
			if data = append(data, buf[:n]...); err != nil {
				break
			}
		}
		if !slices.Contains(f.questions(), "lookup of volume") {
			t.Error("the helper did not ask the server")
		}
		f.release()
		cmd.Wait()
		if reply, err := boundary.DecodeReply(data); err != nil || reply.Err == nil || reply.Err.Code != wire.Timeout || cmd.ProcessState.ExitCode() != 75 {
			t.Errorf("%q, %v", data, cmd.ProcessState)
		}
		if last := slices.MaxFunc(auditLines(t, h), func(a, b map[string]any) int { return strings.Compare(fmt.Sprint(a["time"]), fmt.Sprint(b["time"])) }); last["event"] != "failed" || last["code"] != "timeout" || last["op"] != "attach" {
			t.Errorf("the audit log does not tell of the deadline: %v", last)
		}
		srcUnmounted(t, c, "/data")
	})
}

func TestT45_FUSEInTheTree(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		v := srcVolume(h, "v")
		// inContainer mounts a server's filesystem in the container, as its root could that has the device.
		inContainer := func(t *testing.T, c *harness.Container, f *srcFUSE, target string) {
			t.Helper()
			srcCheck(t, srcOnThread(func() error {
				if err := srcEnter(c.Pid()); err != nil {
					return err
				}
				os.MkdirAll(target, 0o755)
				return f.mount(target)
			}))
			f.questions()
		}

		t.Run("submount of the source", func(t *testing.T) {
			h := h.For(t)
			c := h.Container(harness.ContainerOptions{ID: "source"})
			top := srcVolume(h, "with-fuse")
			deep := h.Mkdir(filepath.Join(top, "a/b/deep"), 0o755)
			f := srcServe(t, h, false)
			srcCheck(t, f.mount(deep))
			t.Cleanup(func() { unix.Unmount(deep, unix.MNT_DETACH) })
			srcCheck(t, srcBind(c.Pid(), top, "/naive", srcPrivate))
			c.Sh("ls /naive/a/b/deep/x; true").OK(t)
			if len(f.questions()) == 0 {
				t.Fatal("the attack does not work on the naive way")
			}
			srcCheck(t, srcUnbind(c.Pid(), "/naive"))
			for _, source := range []string{top, filepath.Dir(deep), deep} {
				srcRefused(t, h, srcRequest(c.Pid(), source, "/data"), wire.SourceForbidden)
			}
			f.quiet(t, "a submount of the source")
		})

		t.Run("mounted in the source meanwhile", func(t *testing.T) {
			h := h.For(t)
			c := h.Container(harness.ContainerOptions{ID: "meanwhile"})
			late := h.Mkdir(filepath.Join(srcVolume(h, "late"), "deep"), 0o755)
			srcSweepAll(t, h, func() *wire.Request { return srcRequest(c.Pid(), filepath.Dir(late), "/data") },
				func([]int) { srcCheck(t, srcServe(t, h, false).mount(late)) },
				func() {
					for _, line := range c.Mountinfo("/data") {
						if strings.Contains(line, " - fuse ") {
							t.Errorf("a FUSE filesystem came along: %s", line)
						}
					}
					unix.Unmount(late, unix.MNT_DETACH)
				}, wire.SourceForbidden)
		})

		t.Run("under the container path", func(t *testing.T) {
			h := h.For(t)
			c := h.Container(harness.ContainerOptions{ID: "target"})
			f := srcServe(t, h, false)
			inContainer(t, c, f, "/mnt/fuse")
			if _, err := os.Lstat(c.Path("/mnt/fuse/data")); err == nil || len(f.questions()) == 0 {
				t.Fatal("the naive way asks nothing")
			}
			for _, path := range []string{"/mnt/fuse", "/mnt/fuse/data", "/mnt/fuse/a/b/c", "/mnt/fuse/link/data"} {
				srcRefused(t, h, srcRequest(c.Pid(), v, path), wire.TargetForbidden)
			}
			c.Sh("ln -s /mnt/fuse /to-fuse; ln -s mnt/fuse/link/x /into-fuse").OK(t)
			for _, path := range []string{"/to-fuse", "/to-fuse/data", "/into-fuse", "/into-fuse/data"} {
				srcRefused(t, h, srcRequest(c.Pid(), v, path), wire.TargetForbidden)
			}
			f.quiet(t, "under the container path")
		})

		t.Run("a link of it bound over the container path", func(t *testing.T) {
			h := h.For(t)
			c := h.Container(harness.ContainerOptions{ID: "bound-link"})
			f := srcServe(t, h, false)
			inContainer(t, c, f, "/mnt/fuse")
			err := srcOnThread(func() error { // the symlink itself is mounted on a file
				if err := srcEnter(c.Pid()); err != nil {
					return err
				}
				link, err := unix.Open("/mnt/fuse/link", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(link)
				tree, err := unix.OpenTree(link, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
				if err != nil {
					return err
				}
				defer unix.Close(tree)
				os.WriteFile("/spot", nil, 0o644)
				return unix.MoveMount(tree, "", unix.AT_FDCWD, "/spot", unix.MOVE_MOUNT_F_EMPTY_PATH)
			})
			f.questions()
			if err != nil {
				t.Logf("this kernel mounts no symlinks: %v", err)
			}
			for _, path := range []string{"/spot", "/spot/data"} {
				if reply := h.Helper(srcRequest(c.Pid(), v, path)); reply.Err == nil {
					t.Errorf("%s: accepted", path)
				}
			}
			f.quiet(t, "a symlink on a FUSE filesystem")
		})

		t.Run("on the way to the sandbox", func(t *testing.T) {
			h := h.For(t)
			sandbox := h.Mkdir(h.Sandboxes()+"/job", 0o755)
			c := h.Container(harness.ContainerOptions{ID: "sandbox", Sandbox: sandbox})
			f := srcServe(t, h, false)
			inContainer(t, c, f, "/mnt/mesos")
			r := srcRequest(c.Pid(), v, "data")
			r.Directory = sandbox
			if reply := h.Helper(r); reply.Err == nil {
				t.Error("accepted")
				srcDetach(t, h, "c")
			}
			f.quiet(t, "the sandbox directory")
		})

		t.Run("on the way to the sandbox on the host", func(t *testing.T) {
			h := h.For(t)
			job := h.Mkdir(h.Sandboxes()+"/user", 0o755)
			h.Mkdir(job+"/run", 0o755)
			c := h.SharedRoot(harness.SharedRootOptions{ID: "host-sandbox"})
			f := srcServe(t, h, false)
			srcCheck(t, f.mount(job)) // as its owner could with fusermount and user_allow_other
			t.Cleanup(func() { unix.Unmount(job, unix.MNT_DETACH) })
			f.questions()
			r := srcRequest(c.Pid(), v, "data")
			r.Directory = job + "/run"
			if reply := h.Helper(r); reply.Err == nil {
				t.Error("accepted")
			}
			f.quiet(t, "the sandbox directory on the host")
		})

		t.Run("on the way to the rootfs", func(t *testing.T) {
			h := h.For(t)
			rootfs := h.Mkdir(h.Bundles()+"/fuse/rootfs", 0o755)
			c := h.SharedRoot(harness.SharedRootOptions{ID: "rootfs"})
			f := srcServe(t, h, false)
			inContainer(t, c, f, h.Bundles()+"/fuse")
			r := srcRequest(c.Pid(), v, "/data")
			r.Rootfs = rootfs
			if reply := h.Helper(r); reply.Err == nil {
				t.Error("accepted")
			}
			f.quiet(t, "the rootfs")
		})

		t.Run("over what is attached", func(t *testing.T) {
			h := h.For(t)
			c := h.Container(harness.ContainerOptions{ID: "detach"})
			srcAccepted(t, h, srcRequest(c.Pid(), v, "/mnt/a/data"))
			f := srcServe(t, h, false)
			inContainer(t, c, f, "/mnt")
			for _, r := range []*wire.Request{{Op: wire.OpQuery, Owner: "default", Container: "c"}, {Op: wire.OpDetach, Owner: "default", Container: "c"},
				{Op: wire.OpDetach, Owner: "default", Container: "c", Lazy: true}, {Op: wire.OpSweep, Owner: "default"}} {
				h.Helper(r)
				f.quiet(t, r.Op)
			}
			srcCheck(t, srcUnbind(c.Pid(), "/mnt"))
			srcDetach(t, h, "c")
			srcUnmounted(t, c, "/mnt/a/data")
		})

		t.Run("over the container path meanwhile", func(t *testing.T) {
			h := h.For(t)
			c := h.Container(harness.ContainerOptions{ID: "race"})
			asked := map[string]int{}
			f := (*srcFUSE)(nil)
			srcSweepAll(t, h, func() *wire.Request { return srcRequest(c.Pid(), v, "/mnt/a/data") },
				func([]int) {
					f = srcServe(t, h, false)
					inContainer(t, c, f, "/mnt")
				},
				func() {
					if f != nil {
						for _, q := range f.questions() {
							asked[q]++
						}
						srcUnbind(c.Pid(), "/mnt")
						f = nil
					}
				}, wire.TargetForbidden, wire.System)
			if len(asked) > 0 {
				t.Errorf("the FUSE server was asked: %v", asked)
			}
		})
	})
}
