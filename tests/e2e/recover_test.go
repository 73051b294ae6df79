package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// What recover does from each state that a crash, a reboot or a fault can leave: with the installed programs, real containers and real plugins.

// place makes a mountpoint on the host for a container that shares its root.
func place(h *harness.Host, name string) string {
	return h.Mkdir(filepath.Join(h.HostPaths(), name), 0o755)
}

func containerRecord(h *harness.Host, id string) string {
	return filepath.Join(h.Journal(), "containers", "default@"+id+".rec")
}

// onlyRecord is the path of the one record in a folder.
func onlyRecord(t *testing.T, dir string) string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "[0-9a-z]*.rec"))
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasPrefix(filepath.Base(f), "refused") })
	if len(files) != 1 {
		t.Fatalf("records in %s: %v", dir, files)
	}
	return files[0]
}

// writeRecord makes a payload the record in a file, with a right checksum, whatever it says. The file's owner stays.
func writeRecord(t *testing.T, file, boot string, payload []byte) {
	t.Helper()
	var st unix.Stat_t
	err := unix.Stat(file, &st)
	if err == nil {
		var store *state.Store
		if store, err = state.Open(filepath.Dir(file), boot, false); err == nil {
			defer store.Close()
			if err = store.Write(strings.TrimSuffix(filepath.Base(file), ".rec"), payload); err == nil {
				err = os.Chown(file, int(st.Uid), int(st.Gid))
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// edit changes what a record of the journal says, as a crash at another instruction would have left it.
func edit(t *testing.T, file string, change func(map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, payload, _ := strings.Cut(string(data), "\n")
	_, boot, _ := strings.Cut(head, "boot=")
	boot, _, _ = strings.Cut(boot, " ")
	record := map[string]any{}
	d := json.NewDecoder(strings.NewReader(payload))
	d.UseNumber()
	if err := d.Decode(&record); err != nil {
		t.Fatal(err)
	}
	change(record)
	edited, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	writeRecord(t, file, boot, edited)
}

// mountsOf are the mounts at or below a path in the mount namespace of a process.
func mountsOf(t *testing.T, h *harness.Host, pid int, path string) (list []string) {
	t.Helper()
	for line := range strings.Lines(h.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))) {
		if at := strings.Fields(line)[4]; at == path || strings.HasPrefix(at, path+"/") {
			list = append(list, line)
		}
	}
	return list
}

// A container whose isolate was cut off: with its mounts made, or none of them; alive, dead, or known to the agent.
func TestRecoverHalfIsolated(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		for _, made := range []bool{true, false} {
			for _, how := range []string{"alive", "dead", "known", "replaced"} {
				id := fmt.Sprint(how, made)
				c := h.SharedRoot(harness.SharedRootOptions{ID: id})
				at := place(h, id)
				h.Policy("prepare", "--container", id, plugin("plugin", "v", at)).OK(t)
				if made {
					h.Policy("isolate", "--container", id, "--pid", c.PIDString()).OK(t)
				}
				edit(t, containerRecord(h, id), func(r map[string]any) {
					r["phase"] = "isolating"
					for _, v := range r["volumes"].([]any) {
						delete(v.(map[string]any), "attached")
					}
					if !made { // the intent names the process already
						boot := strings.TrimSpace(h.ReadFile("/proc/sys/kernel/random/boot_id"))
						fd, err := unix.PidfdOpen(c.Pid(), 0)
						if err != nil {
							t.Fatal(err)
						}
						defer unix.Close(fd)
						var st unix.Stat_t
						unix.Fstat(fd, &st)
						r["process"] = map[string]any{"pid": c.Pid(), "inode": st.Ino, "boot": boot}
					}
				})
				switch how {
				case "alive", "known":
					d := recovered(t, h, 0, map[string][]string{"known": {"--known", id}}[how]...)
					wantIDs(t, id+" kept", d.Kept, id)
					wantIDs(t, id+" orphans", d.Orphans)
					if m := c.Mountinfo(at); len(m) > 0 {
						t.Errorf("%s: half of it is still attached: %v", id, m)
					}
					// It is prepared again, and goes on.
					if s := status(t, h, "--container", id); len(s.Containers) != 1 || s.Containers[0].Phase != "prepared" {
						t.Errorf("%s: %+v", id, s)
					}
					h.Policy("isolate", "--container", id, "--pid", c.PIDString()).OK(t)
					wantMounted(t, c, at, 1)
					c.Kill()
					cleanup(t, h, id)
				case "dead":
					c.Kill()
					wantIDs(t, id, recovered(t, h, 0).Cleaned, id)
				case "replaced":
					c.Kill()
					h.Policy("prepare", "--container", id, plugin("plugin", "v", at)).OK(t)
					cleanup(t, h, id)
				}
				c.Delete()
			}
		}
		wantBalanced(t, h, p)
		wantNothingLeft(t, h)
	})
}

// wantBalanced wants each Mount of a plugin to have had its Unmount, with the same id, and nothing to be mounted.
func wantBalanced(t *testing.T, h *harness.Host, p *harness.Plugin) {
	t.Helper()
	wantBalance(t, h, p, len(p.Calls("Mount")))
}

// The container's first process is dead and its mount namespace alive: it is detached there, before the driver is asked, whoever comes to clean up.
func TestNamespaceThatOutlivesItsInit(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-delay", "Unmount:v=300ms")
		for name, clean := range map[string]func(id string){
			"cleanup": func(id string) { h.Policy("cleanup", "--container", id).OK(t) },
			"recover": func(string) { recovered(t, h, 0) },
			"known":   func(string) { recovered(t, h, 0, "--known", "") },
			"prepare": func(id string) {
				h.Policy("prepare", "--container", id, plugin("plugin", "other", "/v")).OK(t)
				h.Policy("cleanup", "--container", id).OK(t)
			},
			"watch": func(id string) {
				w := watch(t, h, "default", "--interval", "1h")
				awaitNoRecord(t, h, "default@"+id)
				w.stop()
			},
		} {
			for _, own := range []bool{true, false} {
				id := fmt.Sprint(name, own)
				at, c := "/made/v", (*harness.Container)(nil)
				if own {
					c = h.Container(harness.ContainerOptions{ID: id})
				} else {
					at, c = place(h, id), h.SharedRoot(harness.SharedRootOptions{ID: id})
				}
				attach(t, h, c, plugin("plugin", "v", at))
				left := stayIn(t, c, "/")
				if m := mountsOf(t, h, left.Process.Pid, at); len(m) != 1 {
					t.Fatalf("%s: the one that stays sees %v", id, m)
				}
				c.Kill()
				n := len(p.Calls("Unmount"))
				done := make(chan bool)
				go func() { defer close(done); clean(id) }()
				awaitCall(t, h, p, "Unmount", n+1)
				if m := mountsOf(t, h, left.Process.Pid, at); len(m) != 0 {
					t.Errorf("%s: the driver was asked with this still mounted: %v", id, m)
				}
				<-done
				if own {
					if _, err := os.Lstat(filepath.Join(c.Root, "made")); err == nil {
						t.Errorf("%s: what was made for the mount is left", id)
					}
				}
				left.Process.Kill()
				left.Wait()
				c.Delete()
			}
		}
		wantBalanced(t, h, p)
		wantNothingLeft(t, h)
	})
}

// A policy process that was killed while the driver unmounted: it may have, or not.
func TestRecoverWithACallUnderWay(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		for _, count := range []string{"calls", "ids", "none"} {
			p := h.Plugin(count, "-bind", "-count", count, "-delay", "Unmount:v=1s")
			c := h.SharedRoot(harness.SharedRootOptions{ID: count})
			attach(t, h, c, plugin(count, "v", place(h, count)))
			c.Kill()
			cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), "cleanup", "--container", count)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			awaitCall(t, h, p, "Unmount", 1)
			cmd.Process.Kill()
			cmd.Wait()
			wantIDs(t, "cleaned", recovered(t, h, 0).Cleaned, count)
			for _, call := range p.Calls("Unmount") {
				if call.ID != p.Calls("Mount")[0].ID {
					t.Errorf("%s: %v", count, p.Calls())
				}
			}
			for _, line := range h.Mountinfo() {
				if strings.Contains(line, p.Root) {
					t.Errorf("%s: still mounted: %s", count, line)
				}
			}
			wantIDs(t, "cleaned again", recovered(t, h, 0).Cleaned)
		}
		wantNothingLeft(t, h)
	})
}

// The journal, or a part of it, is lost while containers live. What they have stays, is told of, and goes with them.
func TestRecoverOrphans(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "none")
		lose := func(files ...string) {
			t.Helper()
			for _, f := range files {
				if err := os.Remove(f); err != nil {
					t.Fatal(err)
				}
			}
		}
		orphan := h.SharedRoot(harness.SharedRootOptions{ID: "orphan"})
		at := place(h, "orphan")
		attach(t, h, orphan, plugin("plugin", "v", at))
		h.Policy("prepare", "--container", "other", plugin("plugin", "v", "/v")).OK(t)
		lose(containerRecord(h, "orphan"))
		for _, args := range [][]string{nil, {"--known", "orphan,other"}, {"--known", "other"}} {
			d := recovered(t, h, 0, args...)
			wantIDs(t, "orphans", d.Orphans, "orphan")
			wantIDs(t, "kept", d.Kept, "other")
		}
		// A container that shares its volume goes: nobody unmounts under the orphan.
		cleanup(t, h, "other")
		recovered(t, h, 0)
		if n := len(p.Calls("Unmount")); n != 0 {
			t.Fatal("the volume was unmounted under a container that lives")
		}
		if s := status(t, h); len(s.Volumes) != 1 || !slices.Equal(s.Volumes[0].Containers, []string{"orphan"}) {
			t.Errorf("%+v", s)
		}
		orphan.Kill()
		d := recovered(t, h, 0)
		if len(d.Orphans) != 0 || len(d.Unmounted) != 1 {
			t.Errorf("after its end: %+v", d)
		}
		wantBalance(t, h, p, 1)
		wantNothingLeft(t, h)

		// The record of the volume is lost: it is in those of its containers. They share it as before.
		orphan = h.SharedRoot(harness.SharedRootOptions{ID: "orphan2"})
		attach(t, h, orphan, plugin("plugin", "v", at))
		h.Policy("prepare", "--container", "other", plugin("plugin", "v", "/v")).OK(t)
		lose(onlyRecord(t, filepath.Join(h.Journal(), "volumes")))
		wantIDs(t, "kept", recovered(t, h, 0).Kept, "orphan2", "other")
		cleanup(t, h, "other")
		if n := len(p.Calls("Unmount")); n != 1 {
			t.Error("the volume was unmounted under a container that lives")
		}
		orphan.Kill()
		if d := recovered(t, h, 0); len(d.Cleaned) != 1 || len(d.Unmounted) != 1 {
			t.Errorf("%+v", d)
		}
		wantBalance(t, h, p, 2)
		wantNothingLeft(t, h)

		// All is lost; --force takes out what lives.
		orphan = h.SharedRoot(harness.SharedRootOptions{ID: "orphan3"})
		attach(t, h, orphan, "-v", "local:"+at)
		lose(containerRecord(h, "orphan3"), onlyRecord(t, filepath.Join(h.Journal(), "volumes")))
		wantIDs(t, "orphans", recovered(t, h, 0).Orphans, "orphan3")
		wantMounted(t, orphan, at, 1)
		wantIDs(t, "cleaned", recovered(t, h, 0, "--force").Cleaned, "orphan3")
		wantMounted(t, orphan, at, 0)
		wantNothingLeft(t, h)
	})
}

// A reboot: no process, no mount and perhaps no ledger is left, the plugin has forgotten everything, the journal is that of the earlier boot.
func TestRecoverAfterAReboot(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		for i, tmpfs := range []bool{true, false} { // is /run one?
			p := h.Plugin("plugin", "-bind", "-count", "ids")
			var all []*harness.Container
			for _, id := range []string{"attached", "half"} {
				c := h.SharedRoot(harness.SharedRootOptions{ID: fmt.Sprint(id, i)})
				attach(t, h, c, plugin("plugin", "v", place(h, c.ID)), plugin("plugin", "w", place(h, c.ID+"w")))
				all = append(all, c)
			}
			edit(t, containerRecord(h, all[1].ID), func(r map[string]any) { r["phase"] = "isolating" })
			h.Policy("prepare", "--container", fmt.Sprint("waits", i), plugin("plugin", "v", "/v")).OK(t)
			h.Policy("prepare", "--container", fmt.Sprint("cut", i), plugin("plugin", "x", "/v")).OK(t)
			edit(t, containerRecord(h, fmt.Sprint("cut", i)), func(r map[string]any) { r["phase"] = "preparing" })
			h.Policy("prepare", "--container", fmt.Sprint("child", i), "--parent", fmt.Sprint("waits", i), "-v", "v:/v").OK(t)

			for _, c := range all {
				c.Kill()
			}
			p.Kill()
			for _, line := range h.Mountinfo() {
				if at := strings.Fields(line)[4]; strings.Contains(at, p.Root) {
					if err := unix.Unmount(at, 0); err != nil {
						t.Fatal(err)
					}
				}
			}
			if tmpfs {
				entries, _ := os.ReadDir(h.Ledger())
				for _, e := range entries {
					os.Remove(filepath.Join(h.Ledger(), e.Name()))
				}
			}
			boot := h.Path("tmp", fmt.Sprint("boot", i))
			h.WriteFile(boot, fmt.Sprintf("00000000-0000-4000-8000-%012d\n", i), 0o444)
			h.Mount(boot, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, "")
			p.Start()

			d := recovered(t, h, 0)
			wantIDs(t, "cleaned", d.Cleaned, fmt.Sprint("attached", i), fmt.Sprint("child", i), fmt.Sprint("half", i), fmt.Sprint("waits", i))
			wantIDs(t, "rolled back", d.RolledBack, fmt.Sprint("cut", i))
			wantIDs(t, "kept", d.Kept)
			wantIDs(t, "corrupt", d.Corrupt)
			if len(d.Unmounted) != 4 {
				t.Errorf("unmounted: %v", d.Unmounted)
			}
			again := recovered(t, h, 0)
			if len(again.Cleaned)+len(again.RolledBack)+len(again.Unmounted)+len(again.Pending) != 0 {
				t.Errorf("again: %+v", again)
			}
			wantNothingLeft(t, h)
			p.Stop()
		}
	})
}

// Volumes that the driver unmounted by itself, and a driver that was restarted and knows of nothing.
func TestRecoverWhatTheDriverLost(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "ids")
		for _, restarted := range []bool{false, true} {
			dead, alive := h.SharedRoot(harness.SharedRootOptions{ID: "dead"}), h.SharedRoot(harness.SharedRootOptions{ID: "alive"})
			attach(t, h, dead, plugin("plugin", "lost", place(h, "dead")), plugin("plugin", "shared", place(h, "dead2")))
			attach(t, h, alive, plugin("plugin", "shared", place(h, "alive")))
			dead.Kill()
			if restarted {
				p.Stop()
			}
			for _, v := range []string{"lost", "shared"} {
				if err := unix.Unmount(filepath.Join(p.Root, "mnt", v), 0); err != nil {
					t.Fatal(err)
				}
			}
			if restarted {
				p.Start()
			}
			d := recovered(t, h, 0)
			wantIDs(t, "cleaned", d.Cleaned, "dead")
			wantIDs(t, "kept", d.Kept, "alive")
			if len(d.Unmounted) != 1 || d.Unmounted[0].Name != "lost" {
				t.Errorf("%+v", d)
			}
			wantMounted(t, alive, place(h, "alive"), 1) // the container's own mount is none of the driver's
			alive.Kill()
			wantIDs(t, "cleaned", recovered(t, h, 0).Cleaned, "alive")
			wantNothingLeft(t, h)
			dead.Delete()
			alive.Delete()
		}
	})
}

// A driver that is not there, or does not answer: what takes it is kept for the next recover, all else is done, and it takes no longer than asked for.
func TestRecoverWithoutADriver(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rules := h.ReadFile(h.Path("etc/bindgate/policy.toml"))
		good := h.Plugin("good", "-bind")
		for _, how := range []string{"stopped", "killed", "hangs", "hangs, without --timeout"} {
			bad := h.Plugin("bad", "-bind", "-count", "none")
			for i := range 12 { // more than are worked on at once
				h.Policy("prepare", "--container", fmt.Sprint("bad", i), plugin("bad", fmt.Sprint("v", i), "/v")).OK(t)
			}
			for _, id := range []string{"z", "zz"} { // the last ones
				h.Policy("prepare", "--container", id, plugin("good", id, "/v")).OK(t)
			}
			switch how {
			case "stopped":
				bad.Stop()
			case "killed": // its socket is there, and nobody behind it
				bad.Kill()
				h.PolicyTOML(rules + "[timeouts]\nunmount = \"1s\"\n")
			default:
				bad.Kill()
				var delays []string
				for i := range 12 {
					delays = append(delays, "-delay", fmt.Sprintf("Unmount:v%d=1h", i))
				}
				bad = h.Plugin("bad", append(delays, "-bind", "-count", "none")...)
				if how != "hangs" {
					h.PolicyTOML(rules + "[timeouts]\nunmount = \"1s\"\n")
				}
			}
			args := []string{"--known", ""}
			if how == "hangs" {
				args = append(args, "--timeout", "3s")
			}
			n := len(bad.Calls("Unmount"))
			d := recovered(t, h, 75, args...)
			if asked := len(bad.Calls("Unmount")) - n; asked > 8 {
				t.Errorf("%s: a driver that does not answer was asked %d times", how, asked)
			}
			if how != "hangs" { // there the time may be over before the last
				wantIDs(t, how+" cleaned", d.Cleaned, "z", "zz")
				if len(d.Pending) != 12 || d.Pending[0].Driver != "bad" || d.Pending[0].Error == "" {
					t.Errorf("%s: %+v", how, d.Pending)
				}
			} else if len(d.Errors)+len(d.Pending) == 0 {
				t.Errorf("%s: %+v", how, d)
			}
			h.PolicyTOML(rules)
			if d := recovered(t, h, 75, "--no-drivers", "--known", ""); len(d.Pending) != 12 && how != "hangs" {
				t.Errorf("%s, without drivers: %+v", how, d)
			}
			bad.Kill()
			bad = h.Plugin("bad", "-bind", "-count", "none")
			if d := recovered(t, h, 0, "--known", ""); len(d.Cleaned) != 12 && how != "hangs" {
				t.Errorf("%s, back again: %+v", how, d)
			}
			for _, line := range h.Mountinfo() {
				if strings.Contains(line, bad.Root) {
					t.Errorf("%s: still mounted: %s", how, line)
				}
			}
			wantNothingLeft(t, h)
			bad.Stop()
		}
		wantBalanced(t, h, good)
	})
}

// Several recovers at once, beside a prepare and a cleanup: each container is cleaned up once, and none that comes to be is touched.
func TestRecoversAtOnce(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "ids", "-delay", "Mount:new=1s")
		var ids []string
		for i := range 8 {
			id := fmt.Sprint("c", i)
			c := h.SharedRoot(harness.SharedRootOptions{ID: id})
			attach(t, h, c, plugin("plugin", "shared", place(h, id)), plugin("plugin", id, place(h, id+"own")))
			c.Kill()
			ids = append(ids, id)
		}
		var wait sync.WaitGroup
		wait.Go(func() {
			h.Policy("prepare", "--container", "new", plugin("plugin", "new", "/v"), plugin("plugin", "shared", "/s")).OK(t)
		})
		awaitCall(t, h, p, "Get", 1)
		var mu sync.Mutex
		var done []string
		for range 5 {
			wait.Go(func() {
				d := recovered(t, h, 0)
				mu.Lock()
				defer mu.Unlock()
				done = append(done, d.Cleaned...)
				if len(d.RolledBack)+len(d.Orphans) > 0 || slices.Contains(d.Cleaned, "new") {
					t.Errorf("a prepare under way was touched: %+v", d)
				}
			})
		}
		wait.Go(func() {
			if cleanup(t, h, "c0").Known {
				mu.Lock()
				defer mu.Unlock()
				done = append(done, "c0")
			}
		})
		wait.Wait()
		slices.Sort(done)
		if !slices.Equal(done, ids) {
			t.Errorf("cleaned up: %v, want each once", done)
		}
		if s := status(t, h); len(s.Containers) != 1 || s.Containers[0].Phase != "prepared" || len(s.Volumes) != 2 {
			t.Errorf("%+v", s)
		}
		for _, v := range []string{"new", "shared"} {
			awaitMount(t, h, filepath.Join(p.Root, "mnt", v))
		}
		cleanup(t, h, "new")
		wantBalanced(t, h, p)
		wantNothingLeft(t, h)
	})
}

// A failed unmount says who holds the volume, since when, and is tried again; a volume that another uses is not unmounted.
func TestWhoHoldsAVolume(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		policyTOML(h, "[driver.each]\ncounting = \"container\"\n")
		policy := harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
		pending := func(id string) lifecycle.Pending {
			t.Helper()
			var d lifecycle.Cleaned
			h.Policy("cleanup", "-o", "json", "--container", id).Exits(t, 75).JSON(t, &d)
			if len(d.Pending) != 1 || d.Pending[0].Since.IsZero() {
				t.Fatalf("%+v", d)
			}
			return d.Pending[0]
		}
		holds := func(p lifecycle.Pending, pid int, comm string) {
			t.Helper()
			if !slices.Contains(p.Holders, lifecycle.Holder{PID: pid, Comm: comm}) {
				t.Errorf("holders: %v, want %d %s", p.Holders, pid, comm)
			}
		}

		// A process of the policy user's, in another mount namespace, into which the mount was copied.
		p := h.Plugin("plugin", "-bind", "-fail", "Unmount:v=device is busy")
		h.Policy("prepare", "--container", "c", plugin("plugin", "v", "/v")).OK(t)
		copied := h.Command(policy, "unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", "echo ready; exec sleep 1000")
		out, err := copied.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := copied.Start(); err != nil {
			t.Fatal(err)
		}
		defer copied.Wait()
		defer copied.Process.Kill()
		if n, _ := out.Read(make([]byte, 8)); n == 0 {
			t.Fatal("cannot copy the mounts")
		}
		first := pending("c")
		holds(first, copied.Process.Pid, "sleep")
		if len(first.Holders) != 1 || !strings.Contains(first.Error, "device is busy") {
			t.Errorf("%+v", first)
		}
		r := h.Policy("cleanup", "--container", "c").Exits(t, 75)
		if !strings.Contains(r.Stderr, fmt.Sprintf("held by %d (sleep)", copied.Process.Pid)) {
			t.Errorf("%v", r)
		}
		d := recovered(t, h, 75)
		if len(d.Pending) != 1 || !d.Pending[0].Since.Equal(first.Since) {
			t.Errorf("%+v, since %v", d.Pending, first.Since)
		}
		holds(d.Pending[0], copied.Process.Pid, "sleep")
		p.Kill()
		p = h.Plugin("plugin", "-bind", "-count", "none")
		wantIDs(t, "cleaned", recovered(t, h, 0).Cleaned, "c")
		p.Stop()

		// A container of root's, which only the helper sees: each container has a Mount of its own, of one place.
		each := h.Plugin("each", "-bind", "-count", "ids", "-fail", "Unmount:v=device is busy")
		one, two := h.SharedRoot(harness.SharedRootOptions{ID: "one"}), h.SharedRoot(harness.SharedRootOptions{ID: "two"})
		attach(t, h, one, plugin("each", "v", place(h, "one")))
		attach(t, h, two, plugin("each", "v", place(h, "two")))
		one.Kill()
		holds(pending("one"), two.Pid(), "busybox")
		wantMounted(t, two, place(h, "two"), 1)
		each.Kill()
		h.Plugin("each", "-bind", "-count", "none")
		two.Kill()
		if d := recovered(t, h, 0); len(d.Cleaned) != 2 {
			t.Errorf("%+v", d)
		}

		// What the helper cannot detach, since somebody is there: since the first attempt, whichever says it.
		left := h.SharedRoot(harness.SharedRootOptions{ID: "left"})
		at := place(h, "left")
		attach(t, h, left, plugin("each", "v", at))
		holder := stayIn(t, left, at)
		left.Kill()
		first = pending("left")
		holds(first, holder.Process.Pid, "sleep")
		if again := pending("left"); !again.Since.Equal(first.Since) {
			t.Errorf("since %v, then %v", first.Since, again.Since)
		}
		holder.Process.Kill()
		holder.Wait()
		cleanup(t, h, "left")
		wantNothingLeft(t, h)
	})
}

// T35: records that are torn, flipped, foreign, huge, newer or no files at all: never believed, never fatal; moved aside and told of, and the rest goes on.
func TestT35_Records(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "none")
		boot := strings.TrimSpace(h.ReadFile("/proc/sys/kernel/random/boot_id")) // a record of another is no corrupt one (TestRecoverAfterAReboot)
		write := func(f func([]byte) []byte) func(string, []byte) error {
			return func(file string, data []byte) error { return os.WriteFile(file, f(data), 0o600) }
		}
		signed := func(payload []byte) func(string, []byte) error { // with a right checksum
			return func(file string, _ []byte) error { writeRecord(t, file, boot, payload); return nil }
		}
		anew := func(f func(string, []byte) error) func(string, []byte) error {
			return func(file string, data []byte) error {
				if err := os.Remove(file); err != nil {
					return err
				}
				return f(file, data)
			}
		}
		spoil := map[string]func(file string, data []byte) error{
			"empty":             write(func([]byte) []byte { return nil }),
			"a byte":            write(func(b []byte) []byte { return b[:1] }),
			"its first line":    write(func(b []byte) []byte { return b[:bytes.IndexByte(b, '\n')+1] }),
			"half":              write(func(b []byte) []byte { return b[:len(b)/2] }),
			"a byte less":       write(func(b []byte) []byte { return b[:len(b)-1] }),
			"a bit of the head": write(func(b []byte) []byte { b[18] ^= 1; return b }),
			"a bit of the boot": write(func(b []byte) []byte { b[35] ^= 1; return b }),
			"a bit of the rest": write(func(b []byte) []byte { b[len(b)-9] ^= 4; return b }),
			"prose":             write(func([]byte) []byte { return []byte("hello\n") }),
			"a newer schema":    write(func(b []byte) []byte { return bytes.Replace(b, []byte("schema=1 "), []byte("schema=2 "), 1) }),
			"signed nonsense":   signed([]byte("\x00\xff{]")),
			"signed emptiness":  signed(nil),
			"another's name":    signed([]byte(`{"driver":"a","name":"b","owner":"x","container":"y","volumes":[null],"holds":[null]}`)),
			"huge":              func(file string, _ []byte) error { return os.Truncate(file, 100<<20) },
			"another user's":    func(file string, _ []byte) error { return os.Chown(file, 64999, 64999) },
			"with a hard link": func(file string, _ []byte) error {
				return os.Link(file, h.Path("tmp", "link-"+filepath.Base(filepath.Dir(file))))
			},
			"a FIFO":              anew(func(file string, _ []byte) error { return syscall.Mkfifo(file, 0o600) }),
			"a folder":            anew(func(file string, _ []byte) error { return os.Mkdir(file, 0o700) }),
			"a link to /dev/zero": anew(func(file string, _ []byte) error { return os.Symlink("/dev/zero", file) }),
			"a link to a good one": anew(func(file string, data []byte) error {
				return os.Symlink(filepath.Base(file)+".kept", file)
			}),
			"a socket": anew(func(file string, _ []byte) error {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				if err := os.Chdir(filepath.Dir(file)); err != nil { // such an address is short
					return err
				}
				defer os.Chdir("/")
				return unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Base(file)})
			}),
		}
		volumes, good := filepath.Join(h.Journal(), "volumes"), h.SharedRoot(harness.SharedRootOptions{ID: "good"})
		attach(t, h, good, "-v", "good:"+place(h, "good"))
		known := append(records(t, volumes), records(t, h.Ledger())...)
		for name, do := range spoil {
			t.Run(name, func(t *testing.T) { // one record of each kind, of a container of its own
				h := h.For(t)
				type victim struct {
					what, id, at, file string
					c                  *harness.Container
				}
				var bad []victim
				known := known
				for _, what := range []string{"container", "volume", "ledger"} {
					b := victim{what: what, id: "bad-" + what}
					b.c, b.at = h.SharedRoot(harness.SharedRootOptions{ID: b.id}), place(h, b.id)
					attach(t, h, b.c, plugin("plugin", b.id, b.at))
					switch what {
					case "container":
						b.file = containerRecord(h, b.id)
					case "volume":
						b.file = other(t, records(t, volumes), known)
					case "ledger":
						b.file = other(t, records(t, h.Ledger()), known)
					}
					known = append(records(t, volumes), records(t, h.Ledger())...)
					bad = append(bad, b)
				}
				for _, b := range bad {
					data, err := os.ReadFile(b.file)
					if err == nil && name == "a link to a good one" {
						err = os.WriteFile(b.file+".kept", data, 0o600)
						defer os.Remove(b.file + ".kept")
					}
					if err == nil {
						err = do(b.file, data)
					}
					if err != nil {
						t.Fatal(err)
					}
					if st, err := os.Lstat(b.file); err == nil && st.Mode()&fs.ModeSymlink == 0 && name != "another user's" && b.what != "ledger" {
						os.Chown(b.file, harness.PolicyUID, harness.PolicyGID)
					}
				}

				// Every verb answers, and believes none of it.
				h.Policy("status").OK(t)
				for _, b := range bad {
					h.Policy("status", "--container", b.id).OK(t)
					switch b.what {
					case "container":
						h.Policy("cleanup", "-o", "json", "--container", b.id).Fails(t, wire.StateCorrupt)
						h.Policy("prepare", "-o", "json", "--container", b.id, "-v", "x:/x").Fails(t, wire.StateCorrupt)
						h.Policy("isolate", "-o", "json", "--container", b.id, "--pid", b.c.PIDString()).Fails(t, wire.StateCorrupt)
						h.Policy("detach", "-o", "json", "--container", b.id, "--all").Fails(t, wire.StateCorrupt)
						h.Policy("usage", "-o", "json", "--container", b.id).Fails(t, wire.StateCorrupt)
					case "volume":
						h.Policy("prepare", "-o", "json", "--container", "new", plugin("plugin", b.id, "/x")).Fails(t, wire.StateCorrupt)
					case "ledger":
						h.Policy("attach", "-o", "json", "--container", "more", "--pid", b.c.PIDString(), "-v", "more:"+b.at).Fails(t, wire.StateCorrupt)
					}
				}
				h.Policy("usage", "--container", "good").OK(t)

				d := recovered(t, h, 0)
				for _, b := range bad {
					var aside []string
					for _, c := range d.Corrupt {
						if filepath.Dir(c) == filepath.Join(filepath.Dir(b.file), "corrupt") && strings.HasPrefix(filepath.Base(c), strings.TrimSuffix(filepath.Base(b.file), ".rec")) {
							aside = append(aside, c)
						}
					}
					if len(aside) != 1 {
						t.Errorf("corrupt, of %s: %v of %v", b.file, aside, d.Corrupt)
					} else if _, err := os.Lstat(aside[0]); err != nil {
						t.Error(err)
					}
				}
				if len(d.Corrupt) != len(bad) {
					t.Errorf("corrupt: %v", d.Corrupt)
				}
				if !slices.Contains(d.Kept, "good") || len(d.Errors) > 0 || len(d.Unmounted) > 0 {
					t.Errorf("recover: %+v", d)
				}
				if again := recovered(t, h, 0); len(again.Corrupt) > 0 || !slices.Equal(again.Kept, d.Kept) || !slices.Equal(again.Orphans, d.Orphans) {
					t.Errorf("again: %+v", again)
				}
				for _, b := range bad {
					wantMounted(t, b.c, b.at, 1) // it lives, so it keeps what it has
					b.c.Delete()
				}
				recovered(t, h, 0)
				if s := status(t, h); len(s.Containers) != 1 || len(s.Volumes) != 1 || len(s.Warnings) > 0 {
					t.Errorf("left: %+v", s)
				}
				for _, line := range h.Mountinfo() {
					if strings.Contains(line, p.Root) {
						t.Errorf("still mounted: %s", line)
					}
				}
			})
		}
		// Temporary files of a crash, of both.
		for _, f := range []string{filepath.Join(h.Journal(), "containers/.default@x.rec123"), filepath.Join(volumes, ".ab.rec9"), filepath.Join(h.Ledger(), ".77.rec5")} {
			h.WriteFile(f, "x", 0o600)
			recovered(t, h, 0)
			if _, err := os.Lstat(f); err == nil {
				t.Errorf("left: %s", f)
			}
		}
		good.Kill()
		recovered(t, h, 0)
		wantNothingLeft(t, h)
	})
}

// records are the records in a folder.
func records(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "[0-9a-f]*.rec"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// other is the one of list that is not known.
func other(t *testing.T, list, known []string) string {
	t.Helper()
	list = slices.DeleteFunc(list, func(f string) bool { return slices.Contains(known, f) })
	if len(list) != 1 {
		t.Fatalf("records: %v", list)
	}
	return list[0]
}

// A policy process that was killed while the driver mounted, and a driver that answers "not mounted" to the recover after it and mounts only then: what it
// mounted is not left.
func TestRecoverBeforeTheDriverIsDone(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		fifo := h.Path("tmp", "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		p := h.Plugin("plugin", "-bind", "-count", "ids", "-hold", "Mount:v="+fifo)
		cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), "prepare", "--container", "c", plugin("plugin", "v", "/v"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		awaitCall(t, h, p, "Mount", 1)
		cmd.Process.Kill()
		cmd.Wait()
		for range 2 {
			d := recovered(t, h, 75)
			if len(d.Pending) != 1 || d.Pending[0].Name != "v" || d.Pending[0].Since.IsZero() || !strings.Contains(d.Pending[0].Error, "asked again until") {
				t.Errorf("%+v", d)
			}
		}
		h.WriteFile(fifo, "go on", 0o600)
		mnt := filepath.Join(p.Root, "mnt/v")
		awaitMount(t, h, mnt)
		recovered(t, h, 0)
		if strings.Contains(strings.Join(h.Mountinfo(), "\n"), mnt) {
			t.Error("it is mounted still")
		}
		for _, c := range p.Calls("Unmount") {
			if c.ID != p.Calls("Mount")[0].ID {
				t.Errorf("%+v", p.Calls())
			}
		}
		wantNothingLeft(t, h)
	})
}

// The helper's record of a live container was corrupt and is moved aside: nobody can detach its volumes any more. They stay its own until it unmounts them or
// ends, its first process or another; the driver is not told to unmount them before, and who has them is said.
func TestLostLedgerRecord(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		own := h.Container(harness.ContainerOptions{ID: "own"})
		shared := h.SharedRoot(harness.SharedRootOptions{ID: "shared"})
		unmounts := 0
		for c, at := range map[*harness.Container]string{own: "/made/v", shared: place(h, "shared")} {
			attach(t, h, c, plugin("plugin", c.ID, at))
			file := onlyRecord(t, h.Ledger())
			if err := os.Truncate(file, 100); err != nil {
				t.Fatal(err)
			}
			if d := recovered(t, h, 0); len(d.Corrupt) != 1 {
				t.Errorf("%+v", d)
			}
			refused := func(pid int, args ...string) {
				t.Helper()
				r := h.Policy(append(args, "-o", "json", "--container", c.ID)...)
				if message := r.Fails(t, wire.Busy); !strings.Contains(message, "lost its record of it") || !strings.Contains(message, fmt.Sprint(pid)) {
					t.Errorf("%v", r)
				}
				if n := len(p.Calls("Unmount")); n != unmounts {
					t.Errorf("%v: the driver was told to unmount", args)
				}
			}
			refused(c.Pid(), "detach", "--all")
			refused(c.Pid(), "detach", "--all", "--lazy")
			refused(c.Pid(), "detach", "--path", at)
			wantMounted(t, c, at, 1)
			if s := status(t, h); len(s.Containers) != 1 || len(s.Containers[0].Mounts) != 1 {
				t.Errorf("%+v", s)
			}
			recovered(t, h, 0)
			refused(c.Pid(), "cleanup", "--force")
			if c == own {
				h.Sh("nsenter -t " + c.PIDString() + " -m umount " + at).OK(t)
			} else {
				holder := stayIn(t, c, "/")
				c.Kill()
				refused(holder.Process.Pid, "cleanup")
				if d := recovered(t, h, 75); len(d.Pending) != 1 || len(d.Pending[0].Holders) != 1 {
					t.Errorf("%+v", d)
				}
				holder.Process.Kill()
				holder.Wait()
			}
			h.Policy("cleanup", "--container", c.ID, "--force").OK(t)
			unmounts++
			wantNothingLeft(t, h)
			if err := os.RemoveAll(filepath.Join(h.Ledger(), "corrupt")); err != nil {
				t.Fatal(err)
			}
		}
		wantBalanced(t, h, p)
	})
}
