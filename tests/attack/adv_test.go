package attack

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// advSuffix returns what makes prefix hash to sum (64-bit FNV-1a), in letters and digits: the hash is not made to withstand that. Eight blocks after which its last byte is what it was before add up
// like numbers, so that it takes lists of sums instead of a search (Wagner, A Generalized Birthday Problem).
func advSuffix(t *testing.T, prefix string, sum uint64) string {
	const alnum, prime, size, n, bits = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 0x100000001b3, 8, 1 << 15, 14
	inverse := uint64(1)
	for range 6 {
		inverse *= 2 - prime*inverse
	}
	start := uint64(14695981039346656037)
	for i := range len(prefix) {
		start = (start ^ uint64(prefix[i])) * prime
	}
	random := uint64(88172645463325252)
	pick := func() byte {
		random ^= random << 13
		random ^= random >> 7
		random ^= random << 17
		return alnum[random>>20%uint64(len(alnum))]
	}
	tail, before := "", sum
	for tail = ""; tail == "" || byte(before) != byte(start); {
		b := []byte{pick(), pick(), pick(), pick()}
		tail, before = string(b), sum
		for i := len(b) - 1; i >= 0; i-- {
			before = before*inverse ^ uint64(b[i])
		}
	}
	power := func(e int) (p uint64) {
		for p = 1; e > 0; e-- {
			p *= prime
		}
		return p
	}
	type item struct{ value, from uint64 }
	var texts [8][]string
	var lists [8][]item
	want := before - start*power(8*size)
	for j := range lists {
		for len(lists[j]) < n {
			b, h := make([]byte, size), start
			for i := range size - 1 {
				b[i] = pick()
				h = (h ^ uint64(b[i])) * prime
			}
			if b[size-1] = byte(h) ^ byte(start*inverse); strings.IndexByte(alnum, b[size-1]) < 0 {
				continue
			}
			h = (h ^ uint64(b[size-1])) * prime
			v := (h - start*power(size)) * power(size*(7-j))
			if len(lists[j]) == 0 {
				want -= v & 0xff
			}
			lists[j], texts[j] = append(lists[j], item{v >> 8, uint64(len(texts[j]))}), append(texts[j], string(b))
		}
	}
	if want&0xff != 0 {
		t.Fatal("cannot add up")
	}
	for i := range lists[7] {
		lists[7][i].value -= want >> 8
	}
	join := func(a, b []item, shift, low int) (out []item) {
		mask, by := uint64(1)<<low-1, map[uint64][]item{}
		for _, x := range a {
			by[-x.value&mask] = append(by[-x.value&mask], x)
		}
		for _, y := range b {
			for _, x := range by[y.value&mask] {
				out = append(out, item{x.value + y.value, x.from<<shift | y.from})
			}
		}
		return out
	}
	var four [4][]item
	for i := range four {
		four[i] = join(lists[2*i], lists[2*i+1], 15, bits)
	}
	left, right := join(four[0], four[1], 30, 2*bits), join(four[2], four[3], 30, 2*bits)
	by := map[uint64]item{}
	for _, x := range left {
		by[-x.value&(1<<56-1)] = x
	}
	for _, y := range right {
		if x, ok := by[y.value&(1<<56-1)]; ok {
			s := ""
			for j := range 8 {
				s += texts[j][[2]item{x, y}[j/4].from>>(15*(3-j%4))&(n-1)]
			}
			return s + tail
		}
	}
	t.Fatal("found nothing")
	return ""
}

// A container's id is the caller's to choose, and names a lock. One whose lock is that of a mount namespace, too, would have the helper wait for itself while nobody else can attach or detach there.
func TestAdv_AnIDThatNamesANamespacesLock(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		fd, err := unix.Open("/proc/"+c.PIDString()+"/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		volCheck(t, err)
		ns, err := advNamespace(fd)
		volCheck(t, err)
		prefix := "by+" + strconv.Itoa(harness.PolicyUID) + "+o+"
		id := advSuffix(t, prefix, advHash(strconv.FormatUint(ns, 10)))
		if advHash(prefix+id) != advHash(strconv.FormatUint(ns, 10)) {
			t.Fatal("the attack does not work on the naive way")
		}
		madeOK(t, h, madeAttach(c, id, "/data", v))
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: id})
		if state.Key(prefix+id) == state.Key(strconv.FormatUint(ns, 10)) {
			t.Error("the two locks are one")
		}
	})
}

// Nor one whose lock is that of another uid's container, or of a volume: whoever holds it, for as long as a container of his lets it hang, would keep the other waiting.
func TestAdv_AnIDThatNamesAnothersLock(t *testing.T) {
	prefix := "by+" + strconv.Itoa(harness.PolicyUID) + "+o+"
	for _, other := range []string{"by+0+default+web-1", "volume+precious", "refused+0"} {
		name := prefix + advSuffix(t, prefix, advHash(other))
		if advHash(name) != advHash(other) {
			t.Fatal("the attack does not work on the naive way")
		}
		if state.Key(name) == state.Key(other) {
			t.Errorf("%s has the lock of %s", name, other)
		}
	}
}

// A helper that a container hangs holds the lock of that container's record, for as long as it hangs. A sweep waits for it a while, goes on with the others, and says what it left.
func TestAdv_SweepBesideALockThatIsHeld(t *testing.T) {
	t.Parallel() // it waits most of the time
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		var hung *harness.Container
		var dead []*harness.Container // one of them is swept after the hung one, in whichever order
		for _, id := range []string{"dead-1", "hung", "dead-2"} {
			c := h.Container(harness.ContainerOptions{ID: id})
			madeOK(t, h, madeAttach(c, id, "/data", v))
			if id == "hung" {
				hung = c
			} else {
				dead = append(dead, c)
			}
		}
		held := func(c *harness.Container) *os.File {
			ns, err := unix.Open("/proc/"+c.PIDString()+"/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			volCheck(t, err)
			defer unix.Close(ns)
			id, err := advNamespace(ns)
			volCheck(t, err)
			f, err := os.OpenFile(filepath.Join(h.Ledger(), ".lock"), os.O_RDWR, 0)
			volCheck(t, err)
			volCheck(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(state.Key(strconv.FormatUint(id, 10)) >> 1), Len: 1}))
			return f
		}
		lock := held(hung)
		defer lock.Close()
		for _, c := range dead {
			c.Delete()
		}
		reply := h.Helper(&wire.Request{Op: wire.OpSweep, Owner: "o"})
		if reply.Err == nil || reply.Err.Code != wire.Timeout {
			t.Errorf("it does not say that a record was left: %+v", reply)
		}
		lock.Close()
		if reply := madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"}); len(reply.Blocks) > 0 {
			t.Errorf("the record of another was left too: %v", reply.Blocks)
		}
		if len(hung.Mountinfo("/data")) != 1 {
			t.Error("the living container lost its volume")
		}
	})
}

// The kernel takes a mount away with the folder that it is on, also one that root made on the host, over a mountpoint that was made in a sandbox.
func TestAdv_HostMountsOnWhatWasMade(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		mounted := func(at string) bool {
			var st, up unix.Stat_t
			volCheck(t, unix.Stat(at, &st))
			volCheck(t, unix.Stat(filepath.Dir(at), &up))
			return st.Dev != up.Dev
		}
		naive := h.Mkdir(filepath.Join(sandbox, "naive"), 0o755)
		h.Mount("tmpfs", naive, "tmpfs", 0, "")
		c.Sh("umount " + naive + " 2>/dev/null; rmdir " + naive).OK(t)
		if _, err := os.Lstat(naive); err == nil {
			t.Fatal("the attack does not work on the naive way")
		}
		for _, on := range []string{"a", "a/b"} {
			r := madeAttach(c, "c", "a/b/c", v)
			r.Directory = sandbox
			madeOK(t, h, r)
			h.Mount("tmpfs", filepath.Join(sandbox, on), "tmpfs", 0, "")
			madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c"})
			if !mounted(filepath.Join(sandbox, on)) {
				t.Errorf("the host lost what it had mounted on %s", on)
			}
			volCheck(t, unix.Unmount(filepath.Join(sandbox, on), 0))
			volCheck(t, os.RemoveAll(filepath.Join(sandbox, "a")))
		}
	})
}

// The root of a user namespace may be the host's uid 0; over files of ids that it does not map it has no power all the same, and the helper lends it none.
func TestAdv_RootOfAUserNamespaceThatIsTheHosts(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c", Mapping: &harness.Mapping{Size: 100}, Prepare: func(root string) {
			volCheck(t, os.Mkdir(filepath.Join(root, "theirs"), 0o755))
			volCheck(t, os.Chown(filepath.Join(root, "theirs"), 1234, 1234))
		}})
		if r := c.Sh("mkdir /theirs/own"); r.Exit == 0 {
			t.Fatal("the container's root could have made it itself")
		}
		naive := filepath.Join(c.Root, "theirs", "naive") // by uid 0, as its root is mapped
		volCheck(t, os.Mkdir(naive, 0o755))
		volCheck(t, os.Remove(naive))
		if r := h.Helper(madeAttach(c, "c", "/theirs/new", v)); r.Err == nil || r.Err.Code != wire.TargetForbidden {
			t.Errorf("%+v", r)
		}
		if _, err := os.Lstat(filepath.Join(c.Root, "theirs", "new")); err == nil {
			t.Error("a folder was made where the container's root may make none")
		}
		madeOK(t, h, madeAttach(c, "c", "/ours/new", v))
	})
}

// Root may detach what others attached, but not at random: where two uids have a container of one id it is told so.
func TestAdv_RootIsToldOfTwoContainersOfOneID(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.HelperTOML("[callers]\nuids = [0, " + strconv.Itoa(harness.OutsiderUID) + "]\n" + harness.DefaultHelperTOML)
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		a, b := h.Container(harness.ContainerOptions{ID: "a"}), h.Container(harness.ContainerOptions{ID: "b"})
		callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(madeAttach(a, "web", "/data", v))))
		callerSucceeded(t, h.HelperRaw(harness.User{UID: harness.OutsiderUID, GID: harness.PolicyGID}, boundary.Encode(madeAttach(b, "web", "/data", v))))
		callerRefused(t, h.HelperRaw(harness.User{}, boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: "o", Container: "web"})), wire.Conflict)
		if len(a.Mountinfo("/data")) != 1 || len(b.Mountinfo("/data")) != 1 {
			t.Error("one lost its volume")
		}
	})
}

// Root's detach waits for an attach that the container's own uid has under way: it takes that uid's lock, not root's.
func TestAdv_RootsDetachWaitsForTheAttach(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		madeOK(t, h, madeAttach(c, "web", "/data", v))
		store, err := state.Open(h.Ledger(), "", false)
		srcCheck(t, err)
		defer store.Close()
		lock, err := (&state.Ledger{Store: store}).LockEntry(state.Whose{UID: harness.PolicyUID, Owner: "o", Container: "web"}) // as an attach holds it to its end
		srcCheck(t, err)
		cmd := h.Command(harness.User{}, h.HelperPath())
		cmd.Stdin = bytes.NewReader(boundary.Encode(&wire.Request{Op: wire.OpDetach, Owner: "o", Container: "web"}))
		srcCheck(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for !volWaits(cmd.Process.Pid) {
			select {
			case err := <-ended:
				t.Fatalf("it did not wait: %v", err)
			default:
				runtime.Gosched()
			}
		}
		if len(c.Mountinfo("/data")) != 1 {
			t.Error("the volume was detached under the attach")
		}
		lock.Unlock()
		srcCheck(t, <-ended)
		srcUnmounted(t, c, "/data")
	})
}

// Two containers see one sandbox under two names. What was made for the first under one is the second's mountpoint under the other, and not to be removed under it.
func TestAdv_OneFolderUnderTwoNames(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		a := h.SharedRoot(harness.SharedRootOptions{ID: "a"})
		b := h.Container(harness.ContainerOptions{ID: "b", Edit: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, boxMount("/mnt/mesos/sandbox", "bind", sandbox, "bind"))
		}})
		r := madeAttach(a, "a", "data", v)
		r.Directory = sandbox
		madeOK(t, h, r)
		madeOK(t, h, madeAttach(b, "b", "/mnt/mesos/sandbox/data", v))
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "a"})
		if len(b.Mountinfo("/mnt/mesos/sandbox/data")) != 1 {
			t.Error("the second container lost its volume")
		}
	})
}

// The same for an attach that fails after it made a folder, on which somebody else attached meanwhile.
func TestAdv_UndoOfWhatAnotherUses(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		a := h.Container(harness.ContainerOptions{ID: "a"})
		b := h.Container(harness.ContainerOptions{ID: "b", Edit: func(s *specs.Spec) { s.Root.Path = a.Root }})
		long := strings.Repeat("/a", 30)
		late, moved := filepath.Join(a.Root, "late"), filepath.Join(a.Root, "moved")
		h.Mkdir(late+long+"/a", 0o755)
		r := madeAttach(a, "a", "/x", v)
		for i := range 60 {
			r.Mounts = append(r.Mounts, wire.Mount{Path: "/m" + strconv.Itoa(i) + long, Source: v, Mode: "rw"})
		}
		r.Mounts = append(r.Mounts, wire.Mount{Path: "/late" + long + "/a", Source: v, Mode: "rw"})
		raced := 0
		for range 20 {
			done := make(chan *wire.Reply)
			go func() { done <- h.Helper(r) }()
			for {
				if _, err := os.Lstat(filepath.Join(a.Root, "x")); err == nil {
					break
				}
			}
			volCheck(t, os.Rename(late, moved))
			two := h.Helper(madeAttach(b, "b", "/x", v))
			one := <-done
			volCheck(t, os.Rename(moved, late))
			if one.Err == nil {
				madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "a", Lazy: true})
			}
			if two.Err == nil {
				if raced++; len(b.Mountinfo("/x")) != 1 {
					t.Error("the second container lost its volume")
				}
				madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "b", Lazy: true})
			}
			os.RemoveAll(filepath.Join(a.Root, "x"))
		}
		if raced == 0 {
			t.Error("nobody attached in between")
		}
	})
}

// A path of two thousand components that are not there would be as many folders and entries of the ledger, for each of 256 volumes of a namespace: /run has room for a few of those.
func TestAdv_APathOfManyMissingComponents(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		r := h.Helper(madeAttach(c, "c", strings.Repeat("/a", 2000), v))
		if n := len(h.Tree(h.Ledger())); n > 100 {
			t.Errorf("one attach has %d entries in the ledger: %v", n, r.Err)
		}
		if r.Err == nil || r.Err.Code != wire.TargetForbidden {
			t.Errorf("%+v", r.Err)
		}
	})
}

// A container that unmounts what it was given, again and again, under ever another id, leaves nothing in the ledger that a sweep does not find.
func TestAdv_EntriesOfWhatTheContainerUnmounted(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c", Privileged: true})
		madeOK(t, h, madeAttach(c, "stays", "/stays", v))
		for i := range 5 {
			madeOK(t, h, madeAttach(c, "id"+strconv.Itoa(i), "/x/data"+strconv.Itoa(i), v))
			c.Sh("umount /x/data" + strconv.Itoa(i)).OK(t)
		}
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		for _, name := range h.Tree(h.Ledger()) {
			if strings.Contains(name, "+id") {
				t.Errorf("left: %s", name)
			}
		}
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "stays"})
	})
}

// Whoever lets the helper be killed while it counts a refusal leaves a temporary file, which a sweep removes.
func TestAdv_TemporaryFilesOfRefusals(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		name := filepath.Join(h.Ledger(), ".refused+"+strconv.Itoa(harness.PolicyUID)+".rec4711")
		h.WriteFile(name, "torn", 0o600)
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		if _, err := os.Lstat(name); err == nil {
			t.Error("it is still there")
		}
	})
}

// A container that mounts its sandbox over what was made for another volume has the folders of the two taken for one row. Nothing of that ends a sweep.
func TestAdv_SandboxOverWhatWasMade(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		sandbox := h.Mkdir(filepath.Join(h.Sandboxes(), "job"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c", Privileged: true, Edit: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, boxMount("/job", "bind", sandbox, "bind"))
		}})
		madeOK(t, h, madeAttach(c, "c", "/mnt/mesos/sandbox/q", v))
		fd := -1
		volCheck(t, boxEnter(t, c.Pid(), func() (err error) {
			if fd, err = unix.Open("/mnt/mesos/sandbox", unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
				err = unix.Mount("/job", "/mnt/mesos/sandbox", "", unix.MS_BIND, "")
			}
			return err
		}))
		r := madeAttach(c, "c", "data", v)
		r.Directory = sandbox
		madeOK(t, h, r)
		volCheck(t, boxEnter(t, c.Pid(), func() error {
			if err := unix.Fchdir(fd); err != nil {
				return err
			}
			return unix.Unmount("q", unix.MNT_DETACH)
		}))
		volCheck(t, unix.Close(fd))
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		c.Kill()
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		for _, name := range h.Tree(h.Ledger()) {
			if strings.HasSuffix(name, ".rec") || strings.Contains(name, "+") {
				t.Errorf("left: %s", name)
			}
		}
		if _, err := os.Lstat(filepath.Join(sandbox, "data")); err == nil {
			t.Error("the folder that was made is left")
		}
	})
}

// A namespace whose record cannot even be moved aside keeps no other from being swept.
func TestAdv_OneNamespaceThatFailsASweep(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c", Privileged: true})
		madeOK(t, h, madeAttach(c, "c", "/x", v))
		c.Sh("umount /x").OK(t)
		h.WriteFile(filepath.Join(h.Ledger(), "corrupt"), "in the way", 0o600)
		for i := range 8 {
			h.WriteFile(filepath.Join(h.Ledger(), "471"+strconv.Itoa(i)+".rec"), "torn", 0o600)
		}
		if r := h.Helper(&wire.Request{Op: wire.OpSweep, Owner: "o"}); r.Err == nil || r.Err.Code != wire.System {
			t.Errorf("%+v", r.Err)
		}
		if _, err := os.Lstat(filepath.Join(c.Root, "x")); err == nil {
			t.Error("what was made for the container is still there")
		}
	})
}

// A FUSE server on the root of a container, which the kernel asks whether we may go on in there, never hears of us: or else one container could hold up the sweep of all.
func TestAdv_FUSEOnTheRoot(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c", Privileged: true})
		madeOK(t, h, madeAttach(c, "c", "/data", v))
		madeOK(t, h, madeAttach(c, "c", "/gone", v))
		c.Sh("umount /gone").OK(t)
		fd, asked := srcServe(t, h, false).fd, make(chan uint32, 4096)
		go func() { // it fails all but its start, where another would let those wait who ask
			buf := make([]byte, 1<<17)
			for {
				n, err := unix.Read(fd, buf)
				if err == unix.ENODEV {
					return
				} else if err != nil || n < 40 {
					continue
				}
				out, op := make([]byte, 16), binary.NativeEndian.Uint32(buf[4:])
				if op == fuseInit {
					out = make([]byte, 16+64)
					binary.NativeEndian.PutUint32(out[16:], 7)
					binary.NativeEndian.PutUint32(out[20:], 31)
				} else {
					asked <- op
					binary.NativeEndian.PutUint32(out[4:], uint32(0xffffffff-uint32(unix.EIO)+1))
				}
				binary.NativeEndian.PutUint32(out, uint32(len(out)))
				copy(out[8:16], buf[8:16])
				unix.Write(fd, out)
			}
		}()
		volCheck(t, boxEnter(t, c.Pid(), func() error {
			return unix.Mount("fuse", "/", "fuse", unix.MS_NOSUID|unix.MS_NODEV, "fd="+strconv.Itoa(fd)+",rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions")
		}))
		boxEnter(t, c.Pid(), func() error {
			_, err := unix.Open(".", unix.O_PATH, 0)
			return err
		})
		if len(asked) == 0 {
			t.Fatal("the attack does not work on the naive way")
		}
		for len(asked) > 0 {
			<-asked
		}
		madeOK(t, h, &wire.Request{Op: wire.OpSweep, Owner: "o"})
		if r := h.Helper(&wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c"}); r.Err == nil || r.Err.Code != wire.Busy {
			t.Errorf("detach: %+v", r.Err)
		}
		if len(asked) > 0 {
			t.Errorf("the server was asked %d times, first the question %d", len(asked), <-asked)
		}
		c.Kill()
	})
}

func advNamespace(fd int) (id uint64, err error) {
	buf := make([]byte, 8)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&buf[0]))); e != 0 {
		return 0, e
	}
	return binary.NativeEndian.Uint64(buf), nil
}

// The caller's umask has no say in the modes of what the helper makes.
func TestAdv_UmaskOfTheCaller(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		v := h.Mkdir(filepath.Join(h.Sources(), "v"), 0o755)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		for i, umask := range []int{0, 0o777} {
			name := "x" + strconv.Itoa(i)
			old := unix.Umask(umask)
			naive := filepath.Join(c.Root, "naive"+name)
			volCheck(t, os.Mkdir(naive, 0o777))
			attach, create := h.Helper(madeAttach(c, "c", "/"+name+"/data", v)), h.Helper(&wire.Request{Op: wire.OpCreateVolume, Name: name})
			unix.Umask(old)
			if attach.Err != nil || create.Err != nil {
				t.Fatalf("umask %o: %+v, %+v", umask, attach.Err, create.Err)
			}
			for path, want := range map[string]os.FileMode{filepath.Join(c.Root, name): 0o755, filepath.Join(h.Volumes(), name): 0o755, h.AuditLog(): 0o640, naive: os.FileMode(0o777 &^ umask)} {
				info, err := os.Lstat(path)
				volCheck(t, err)
				if info.Mode().Perm() != want {
					t.Errorf("umask %o: %s has mode %o, want %o", umask, path, info.Mode().Perm(), want)
				}
			}
		}
		madeOK(t, h, &wire.Request{Op: wire.OpDetach, Owner: "o", Container: "c"})
	})
}

func advHash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
