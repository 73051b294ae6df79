package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// locking are the three kinds of containers whose root could change a mount: an ordinary user's, one with a user namespace, and one with all that root has.
var locking = []struct {
	name  string
	start func(h *boxHost) *boxContainer
}{
	{"an ordinary user's", func(h *boxHost) *boxContainer {
		root := h.Mkdir(h.Path("own"), 0o755)
		for _, dir := range []string{"proc", "tmp", "data", "naive"} {
			h.Mkdir(filepath.Join(root, dir), 0o755)
			h.must(os.Chown(filepath.Join(root, dir), harness.OutsiderUID, harness.OutsiderGID))
		}
		h.must(os.Chown(root, harness.OutsiderUID, harness.OutsiderGID))
		c := h.process(harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID}, true)
		c.do("bind " + root + " " + root)
		c.do("bind /proc " + root + "/proc")
		c.do("pivot " + root)
		return c
	}},
	{"with a user namespace", func(h *boxHost) *boxContainer {
		return h.run(harness.ContainerOptions{ID: "userns", Privileged: true, Mapping: &harness.Mapping{HostID: 200000, Size: 65536}})
	}},
	{"privileged", func(h *boxHost) *boxContainer {
		return h.run(harness.ContainerOptions{ID: "privileged", Privileged: true})
	}},
}

// TestT24_LockedAttributes: whatever root in the container tries on a mount, its attributes stay.
func TestT24_LockedAttributes(t *testing.T) {
	for _, kind := range locking {
		t.Run(kind.name, func(t *testing.T) {
			boxRun(t, func(t *testing.T, h *boxHost) {
				// A directory with a mount in it, which covers a file, and a device node; and a single file.
				volume := func(i int) (dir, file string) {
					dir = h.Mkdir(filepath.Join(h.Sources(), fmt.Sprintf("dir%d", i)), 0o777)
					file = filepath.Join(h.Sources(), fmt.Sprintf("file%d", i))
					h.WriteFile(file, "x", 0o666)
					return dir, file
				}
				dir, file := volume(0)
				sub := h.Mkdir(filepath.Join(dir, "sub"), 0o777)
				h.WriteFile(filepath.Join(sub, "covered"), "secret", 0o644)
				h.Mount("tmpfs", sub, "tmpfs", 0, "mode=0777")
				h.must(unix.Mknod(filepath.Join(dir, "node"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
				h.must(unix.Chmod(filepath.Join(dir, "node"), 0o666))
				if fd, err := unix.Open(filepath.Join(dir, "node"), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
					t.Fatalf("the device node cannot be opened on the host either: %v", err)
				} else {
					unix.Close(fd)
				}
				c := kind.start(h)

				// The naive way: the right attributes, not locked.
				c.do("mkdir /naive/dir")
				c.do("write /naive/file x")
				const all = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
				for name, source := range map[string]string{"dir": dir, "file": file} {
					h.naive(c.target, source, "/naive/"+name, all)
					answer := c.do("weaken /naive/" + name)
					for _, bit := range []string{"ro", "nosuid", "nodev", "noexec"} {
						for _, way := range []string{"itself:remount:", "itself:setattr:"} {
							if kind.name == "privileged" && !strings.Contains(answer, name+":"+way+bit) {
								t.Errorf("naive: %s%s does not work, so its refusal would prove nothing: %s", way, bit, answer)
							}
						}
						if !strings.Contains(answer, ":"+bit) {
							t.Errorf("naive: %s cannot be taken away: %s", bit, answer)
						}
					}
					c.do("umount /naive/" + name)
				}

				os.Remove(filepath.Join(dir, "written"))
				os.Remove(filepath.Join(sub, "written"))

				// One mount in a request, then 64: read-only and writable, directories and files.
				for _, n := range []int{1, 64} {
					for _, single := range []bool{false, true} {
						if n == 64 && single {
							continue // the 64 are of both kinds
						}
						r := h.request(c.target, "")
						r.Mounts = nil
						var paths []string
						for i := range n {
							d, f := volume(i)
							m := wire.Mount{Path: "/data/d" + strconv.Itoa(i), Source: d, Mode: wire.ModeRO, NoExec: i%3 == 0}
							if single || i%2 == 1 {
								m.Path, m.Source = "/data/f"+strconv.Itoa(i), f
							}
							if i%4 > 1 {
								m.Mode = wire.ModeRW
							}
							r.Mounts = append(r.Mounts, m)
							paths = append(paths, m.Path)
						}
						reply := h.Helper(r)
						boxOK(t, reply)
						for _, b := range reply.Blocks {
							if b.Get("locked") != "1" {
								t.Errorf("%s is not locked", b.Get("mount"))
							}
						}
						list := strings.Join(paths, " ")
						for _, how := range []string{"weaken", "nested mnt", "nested user"} {
							answer := c.do(how + " " + list)
							var tried, eperm int
							if fmt.Sscanf(answer, "tried=%d eperm=%d", &tried, &eperm); tried < 15*n || eperm < tried/2 {
								t.Errorf("%d mounts, %s: %s", n, how, answer)
							}
							if f := strings.Fields(answer); len(f) > 2 {
								t.Errorf("%d mounts, %s: root of the container changes them: %q", n, how, f[2:])
							}
						}
						boxOK(t, h.detach(c.target, true))
					}
				}
				for _, path := range []string{filepath.Join(dir, "written"), filepath.Join(sub, "written")} {
					if _, err := os.Lstat(path); err == nil {
						t.Errorf("%s was written", path)
					}
				}
			})
		})
	}
}

// However many volumes a request has, directories and files, they pass through one staging namespace, and one child locks them. The naive way, a request for each, makes both for each.
func TestT24_OneStagingNamespaceAndOneChild(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		c := h.Container(harness.ContainerOptions{ID: "c"})
		for what, x := range map[string]struct{ requests, mounts int }{"one volume": {1, 1}, "the naive way": {8, 1}, "64 volumes": {1, 64}} {
			staging, children := 0, 0
			for n := range x.requests {
				r := &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c" + c.PIDString(), PID: c.Pid()}
				for i := range x.mounts {
					source := filepath.Join(h.Sources(), fmt.Sprint("v", i))
					if i%2 == 0 {
						h.Mkdir(source, 0o755)
					} else {
						h.WriteFile(source, "x", 0o644)
					}
					r.Mounts = append(r.Mounts, wire.Mount{Path: fmt.Sprint("/data/", n, "/", i), Source: source, Mode: wire.ModeRO})
				}
				trace := srcStep(t, h.Host, r, func([]int) bool { return false })
				boxOK(t, trace.Reply)
				for _, b := range trace.Reply.Blocks {
					if b.Get("locked") != "1" {
						t.Errorf("%s is not locked", b.Get("mount"))
					}
				}
				staging, children = staging+trace.Staging, children+trace.Children
			}
			boxOK(t, h.detach(c.Pid(), false))
			if staging != x.requests || children != x.requests {
				t.Errorf("%s: %d requests make %d staging namespaces and %d children", what, x.requests, staging, children)
			}
		}
	})
}
