package attack

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// callerFillLedger writes n records of another caller's containers, whose namespaces are gone.
func callerFillLedger(t *testing.T, h *harness.Host, n int) {
	t.Helper()
	store, err := state.Open(h.Ledger(), strings.TrimSpace(h.ReadFile("/proc/sys/kernel/random/boot_id")), false)
	callerCheck(t, err)
	defer store.Close()
	uid := strconv.Itoa(harness.OutsiderUID)
	for i := range n {
		ns := strconv.Itoa(1<<40 + i)
		m := &wire.Message{Head: wire.Pairs("ns", ns, "inode", "1"), Blocks: []wire.Fields{wire.Pairs("mount", "/a", "uid", uid, "owner", "default", "container", "x"+strconv.Itoa(i),
			"pid", "1", "source", "/x", "mode", "ro", "id", strconv.Itoa(1<<40+i), "path", "/a", "prefix", "", "host", "", "made", "0", "root-uid", "0", "root-gid", "0")}}
		callerCheck(t, store.Write(ns, m.Encode()))
		callerCheck(t, os.Symlink(ns, filepath.Join(h.Ledger(), "by+"+uid+"+default+x"+strconv.Itoa(i))))
	}
}

// T08: helper.toml, or where it lies, is not root's alone.
func TestT08_ConfigurationOfOthers(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		file := h.Path("etc/bindgate/helper.toml")
		dir := filepath.Dir(file)
		good := h.ReadFile(file)
		theirs := strings.ReplaceAll(good, "rootfs_roots", "deny = []\nrootfs_roots") + "[callers]\nuids = [0, 64802]\n"

		// A program that opens it by name and reads it believes whoever could write it.
		callerCheck(t, os.Chown(file, 0, harness.PolicyGID))
		callerCheck(t, os.Chmod(file, 0o664))
		r := callerRun(h, h.Command(callerPolicy, "/bin/busybox", "tee", file), []byte(theirs))
		r.OK(t)
		data, err := os.ReadFile(file)
		callerCheck(t, err)
		if c, err := conf.ParseHelper(data); err != nil || len(c.Callers.UIDs) != 2 || len(c.Targets.Deny) != 0 {
			t.Fatalf("the naive way is not open to this attack: %v %v", c, err)
		}
		attacker := h.Mkdir(h.Path("attacker"), 0o755)
		callerCheck(t, os.Chown(attacker, harness.PolicyUID, harness.PolicyGID))
		evil := filepath.Join(attacker, "helper.toml")
		h.WriteFile(evil, theirs, 0o644)

		reset := func() {
			for _, p := range []string{dir, h.Path("etc")} {
				if st, err := os.Lstat(p); err == nil && st.Mode()&fs.ModeSymlink != 0 {
					callerCheck(t, os.Remove(p))
				}
				callerCheck(t, os.MkdirAll(p, 0o755))
				callerCheck(t, os.Chown(p, 0, 0))
				callerCheck(t, os.Chmod(p, 0o755))
			}
			callerCheck(t, os.RemoveAll(file))
			h.WriteFile(file, good, 0o644)
		}
		reset()
		link := func(err error) { t.Helper(); callerCheck(t, err) }
		for name, spoil := range map[string]func(){
			"group-writable":            func() { link(os.Chmod(file, 0o664)) },
			"writable by all":           func() { link(os.Chmod(file, 0o646)) },
			"not root's":                func() { link(os.Chown(file, harness.PolicyUID, 0)) },
			"not root's, read-only":     func() { link(errors.Join(os.Chown(file, harness.PolicyUID, 0), os.Chmod(file, 0o400))) },
			"an access list":            func() { callerACL(t, file) },
			"a symlink to the caller's": func() { link(errors.Join(os.Remove(file), os.Symlink(evil, file))) },
			"a symlink to root's":       func() { link(errors.Join(os.Rename(file, dir+"/x"), os.Symlink("x", file))) },
			"a dangling symlink":        func() { link(errors.Join(os.Remove(file), os.Symlink("none", file))) },
			"a FIFO":                    func() { link(errors.Join(os.Remove(file), unix.Mkfifo(file, 0o644))) },
			"a directory":               func() { link(errors.Join(os.Remove(file), os.Mkdir(file, 0o755))) },
			"a device": func() {
				link(errors.Join(os.Remove(file), unix.Mknod(file, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5)))))
			},
			"a hard link":                       func() { link(os.Link(file, dir+"/other")) },
			"not there":                         func() { link(os.Remove(file)) },
			"too long":                          func() { link(os.Truncate(file, 2<<20)) },
			"no TOML":                           func() { h.HelperTOML("[[[") },
			"unknown key":                       func() { h.HelperTOML(good + "\nallow_everything = true\n") },
			"unknown key in a table":            func() { h.HelperTOML(good + "[mounts]\nallow_suids = true\n") },
			"unknown table":                     func() { h.HelperTOML(good + "[frobnicate]\nx = 1\n") },
			"a value of the wrong type":         func() { h.HelperTOML(good + "[mounts]\nallow_suid = \"no\"\n") },
			"a negative uid":                    func() { h.HelperTOML(good + "[callers]\nuids = [-1]\n") },
			"a uid that wraps to 0":             func() { h.HelperTOML(good + "[callers]\nuids = [4294967296]\n") },
			"a limit out of range":              func() { h.HelperTOML(good + "[limits]\nmounts_per_request = 0\n") },
			"a relative source":                 func() { h.HelperTOML(good + "[[source]]\npath = \"x\"\n") },
			"/ as a source":                     func() { h.HelperTOML(good + "[[source]]\npath = \"/\"\n") },
			"a source with ..":                  func() { h.HelperTOML(good + "[[source]]\npath = \"/run/../etc\"\n") },
			"another lock":                      func() { h.HelperTOML(good + "[mounts]\nlock = \"never\"\n") },
			"a folder that its group writes to": func() { link(os.Chmod(dir, 0o775)) },
			"a folder with a sticky bit":        func() { link(os.Chmod(dir, 0o777|fs.ModeSticky)) },
			"a folder of another's":             func() { link(os.Chown(dir, harness.PolicyUID, 0)) },
			"a folder above, of another's":      func() { link(os.Chown(h.Path("etc"), harness.PolicyUID, 0)) },
			"a folder above that all write to":  func() { link(os.Chmod(h.Path("etc"), 0o777)) },
			"a symlink for its folder":          func() { link(errors.Join(os.RemoveAll(dir), os.Symlink(attacker, dir))) },
			"the audit log in a folder of another's": func() {
				h.HelperTOML(good + "[audit]\nfile = \"" + attacker + "/audit.jsonl\"\n")
			},
			"the audit log is a folder": func() { h.HelperTOML(good + "[audit]\nfile = \"" + h.Path("etc") + "\"\n") },
		} {
			spoil()
			r := h.HelperRaw(callerPolicy, callerCreate("v"))
			e := callerRefused(t, r, wire.Config)
			t.Logf("%s: %s", name, e.Message)
			if callerHas(h, "v") {
				t.Fatalf("%s: it went on", name)
			}
			// Nor does it serve root.
			callerRefused(t, h.HelperRaw(harness.User{}, callerCreate("v")), wire.Config)
			os.Remove(dir + "/other")
			os.Remove(dir + "/x")
			reset()
		}
		if records := callerLedger(t, h); len(records) > 0 {
			t.Errorf("records: %v", records)
		}
		if entries, _ := os.ReadDir(attacker); len(entries) != 1 {
			t.Errorf("in the attacker's folder: %v", entries)
		}
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("v")))
		callerAudited(t, h, "event", "done", "op", "create-volume")
	})
}

// callerACL gives the policy user write access to a file by an access control list, where the filesystem has them.
func callerACL(t *testing.T, file string) {
	t.Helper()
	le := func(n uint64, size int) (b []byte) {
		for range size {
			b, n = append(b, byte(n)), n>>8
		}
		return b
	}
	acl := le(2, 4) // version; then tag, permissions, id: owner, user, group, mask, others
	for _, e := range [][3]uint64{{0x01, 6, 1<<32 - 1}, {0x02, 6, harness.PolicyUID}, {0x04, 4, 1<<32 - 1}, {0x10, 6, 1<<32 - 1}, {0x20, 4, 1<<32 - 1}} {
		acl = append(append(append(acl, le(e[0], 2)...), le(e[1], 2)...), le(e[2], 4)...)
	}
	if err := unix.Setxattr(file, "system.posix_acl_access", acl, 0); err == unix.EOPNOTSUPP {
		callerCheck(t, os.Chmod(file, 0o664))
	} else {
		callerCheck(t, err)
	}
}

// T29: what is planted in the folders of the state.
func TestT29_PlantedState(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		// A root program that writes a record by name, in a folder where others write too, writes over what a planted link means.
		shared := h.Mkdir(h.Path("etc", "shared"), 0o777)
		victim := h.Path("etc", "victim")
		h.WriteFile(victim, "precious", 0o600)
		h.Do(h.Command(callerPolicy, "/bin/busybox", "ln", "-s", victim, filepath.Join(shared, "1.rec"))).OK(t)
		callerCheck(t, os.WriteFile(filepath.Join(shared, "1.rec"), []byte("record"), 0o600))
		if h.ReadFile(victim) != "record" {
			t.Fatal("the naive way is not open to this attack")
		}
		h.WriteFile(victim, "precious", 0o600)

		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		attach, detach := boundary.Encode(callerAttach(h, c, "data", at)), boundary.Encode(callerDetach(c))
		callerSucceeded(t, h.HelperRaw(callerPolicy, attach))
		record := filepath.Join(h.Ledger(), callerLedger(t, h)[0]+".rec")
		callerSucceeded(t, h.HelperRaw(callerPolicy, detach))

		// Nobody but root can plant anything there.
		before := h.Tree(h.Path("run"))
		for _, dir := range []string{h.Ledger(), filepath.Dir(h.Ledger()), h.Volumes(), filepath.Dir(h.Volumes()), filepath.Dir(h.AuditLog()), h.Path("etc/bindgate"), filepath.Dir(h.HelperPath())} {
			for _, user := range []harness.User{callerPolicy, callerOutsider} {
				for _, script := range []string{"ln -s " + victim + " " + dir + "/x", "ln " + filepath.Join(shared, "1.rec") + " " + dir + "/x", "mkfifo " + dir + "/x", "mkdir " + dir + "/x", "touch " + dir + "/x",
					"mv " + shared + "/1.rec " + dir + "/x", "rm -rf " + dir + "/corrupt", "chmod 777 " + dir, "mv " + dir + " " + dir + ".old"} {
					if r := h.Do(h.Command(user, "/bin/busybox", "sh", "-c", script)); r.Exit == 0 && !strings.HasPrefix(script, "rm ") {
						t.Errorf("uid %d can: %s", user.UID, script)
					}
				}
			}
		}
		if d := harness.Diff(before, h.Tree(h.Path("run"))); d != "" {
			t.Errorf("planted: %s", d)
		}

		// If it could (here root does it): no link is followed, no FIFO waited for, no file with another name believed or written through.
		reader, err := unix.Open(shared, unix.O_RDONLY, 0)
		callerCheck(t, err)
		defer unix.Close(reader)
		plant := map[string]func(path string){
			"symlink":           func(p string) { callerCheck(t, os.Symlink(victim, p)) },
			"dangling symlink":  func(p string) { callerCheck(t, os.Symlink(filepath.Join(shared, "made"), p)) },
			"symlink to itself": func(p string) { callerCheck(t, os.Symlink(filepath.Base(p), p)) },
			"hard link":         func(p string) { callerCheck(t, os.Link(victim, p)) },
			"FIFO":              func(p string) { callerCheck(t, unix.Mkfifo(p, 0o666)) },
			"folder":            func(p string) { callerCheck(t, os.Mkdir(p, 0o700)) },
			"another's file": func(p string) {
				h.WriteFile(p, "", 0o644)
				callerCheck(t, os.Chown(p, harness.PolicyUID, harness.PolicyGID))
			},
		}
		untouched := func(what string) {
			t.Helper()
			if got := h.ReadFile(victim); got != "precious" {
				t.Fatalf("%s: the victim holds %q", what, got)
			}
			if _, err := os.Lstat(filepath.Join(shared, "made")); err == nil {
				t.Fatalf("%s: a file was made through a link", what)
			}
			callerCheck(t, os.Chmod(victim, 0o600))
		}
		for name, put := range plant {
			// As the record that an attach reads first.
			put(record)
			r := h.HelperRaw(callerPolicy, attach)
			reply := callerReply(t, r)
			if reply.Err == nil || reply.Err.Code != wire.StateCorrupt && reply.Err.Code != wire.System {
				t.Errorf("%s for a record: %v", name, r)
			}
			callerAudited(t, h, "event", "failed", "code", string(reply.Err.Code))
			if len(c.Mountinfo(at)) != 0 {
				t.Errorf("%s for a record: attached", name)
			}
			untouched(name + " for a record")
			// It is moved aside, and things go on.
			swept := callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpSweep, Owner: "default"})))
			if len(swept.Blocks) != 1 || swept.Blocks[0].Get("corrupt") != "1" {
				t.Errorf("%s for a record: sweep says %v", name, swept.Blocks)
			}
			callerSucceeded(t, h.HelperRaw(callerPolicy, attach))
			callerSucceeded(t, h.HelperRaw(callerPolicy, detach))
			untouched(name + " moved aside")
			callerCheck(t, os.RemoveAll(filepath.Join(h.Ledger(), "corrupt")))

			// As the container's entry, as the count of refusals: neither is followed, and neither is more than a hint.
			for _, path := range []string{filepath.Join(h.Ledger(), "by+"+strconv.Itoa(harness.PolicyUID)+"+default+c"), filepath.Join(h.Ledger(), "refused+"+strconv.Itoa(harness.PolicyUID)+".rec")} {
				callerCheck(t, os.RemoveAll(path))
				put(path)
				callerReply(t, h.HelperRaw(callerPolicy, callerRaw("op=frobnicate")))
				if r := callerReply(t, h.HelperRaw(callerPolicy, attach)); r.Err == nil {
					callerSucceeded(t, h.HelperRaw(callerPolicy, detach))
				} else if len(c.Mountinfo(at)) != 0 {
					t.Errorf("%s for %s: refused and attached", name, path)
				}
				untouched(name + " for " + path)
				callerCheck(t, os.RemoveAll(path))
			}
			// As the lock.
			lock := filepath.Join(h.Ledger(), ".lock")
			callerCheck(t, os.RemoveAll(lock))
			put(lock)
			if r := callerReply(t, h.HelperRaw(callerPolicy, attach)); r.Err == nil {
				callerSucceeded(t, h.HelperRaw(callerPolicy, detach))
			}
			untouched(name + " for the lock")
			callerCheck(t, os.RemoveAll(lock))
			// As the audit log: what cannot be written down is not done. A log that is another's file, or has another name, is not written to either.
			callerCheck(t, os.RemoveAll(h.AuditLog()))
			put(h.AuditLog())
			reply = callerReply(t, h.HelperRaw(callerPolicy, callerCreate("audited")))
			if name == "hard link" || name == "another's file" {
				t.Logf("%s for the audit log: %v", name, reply.Err)
				h.WriteFile(victim, "precious", 0o600)
			} else if reply.Err == nil || reply.Err.Code != wire.Config || callerHas(h, "audited") {
				t.Errorf("%s for the audit log: %+v", name, reply)
			}
			untouched(name + " for the audit log")
			callerCheck(t, os.RemoveAll(h.AuditLog()))
			callerReply(t, h.HelperRaw(callerPolicy, callerRaw("op=remove-volume", "name=audited")))
			// As a volume: neither listed nor attached nor emptied.
			volume := filepath.Join(h.Volumes(), "planted")
			put(volume)
			list := callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpListVolumes})))
			if len(list.Blocks) != 1 && name != "folder" {
				t.Errorf("%s for a volume: %v", name, list.Blocks)
			}
			if r := callerReply(t, h.HelperRaw(callerPolicy, boundary.Encode(callerAttach(h, c, "planted", at)))); r.Err == nil && name != "folder" && name != "another's file" {
				t.Errorf("%s for a volume: attached", name)
			}
			callerSucceeded(t, h.HelperRaw(callerPolicy, detach))
			callerReply(t, h.HelperRaw(callerPolicy, callerRaw("op=remove-volume", "name=planted")))
			untouched(name + " for a volume")
			callerCheck(t, os.RemoveAll(volume))
			for _, left := range []string{".gone-planted"} {
				callerCheck(t, os.RemoveAll(filepath.Join(h.Volumes(), left)))
			}
		}

		// A folder of state that is not root's alone is not used.
		for _, dir := range []string{h.Ledger(), filepath.Dir(h.Ledger()), h.Volumes(), filepath.Dir(h.Volumes()), filepath.Dir(h.AuditLog())} {
			st, err := os.Stat(dir)
			callerCheck(t, err)
			for what, spoil := range map[string]func() error{"writable by its group": func() error { return os.Chmod(dir, st.Mode()|0o020) }, "another's": func() error { return os.Chown(dir, harness.PolicyUID, 0) },
				"a symlink": func() error {
					return errors.Join(os.Rename(dir, dir+".real"), os.Symlink(filepath.Base(dir)+".real", dir))
				}} {
				callerCheck(t, spoil())
				r := callerReply(t, h.HelperRaw(callerPolicy, callerCreate("w")))
				if r.Err == nil || r.Err.Code != wire.Config || callerHas(h, "w") {
					t.Errorf("%s is %s: %+v", dir, what, r)
				}
				if fi, err := os.Lstat(dir); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
					callerCheck(t, errors.Join(os.Remove(dir), os.Rename(dir+".real", dir)))
				}
				callerCheck(t, errors.Join(os.Chown(dir, 0, 0), os.Chmod(dir, st.Mode())))
			}
		}
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("w")))

		// Another name of the helper, kept by somebody who waits for a hole in it, is not the helper: neither while both are there nor after an upgrade.
		kept := h.Path("kept")
		callerCheck(t, os.Link(h.HelperPath(), kept))
		t.Run("hard link to the helper", func(t *testing.T) {
			h := h.For(t)
			r := callerRun(h, h.Command(callerPolicy, kept), callerCreate("kept"))
			if reply := callerReply(t, r); reply.Err == nil || callerHas(h, "kept") {
				t.Errorf("by its other name: %v", r)
			}
			callerCheck(t, os.Rename(h.HelperPath(), h.HelperPath()+".old"))
			callerCheck(t, os.Remove(h.HelperPath()+".old"))
			r = callerRun(h, h.Command(callerPolicy, kept), callerCreate("kept2"))
			if reply := callerReply(t, r); reply.Err == nil || callerHas(h, "kept2") {
				t.Errorf("by its other name, after an upgrade: %v", r)
			}
		})
	})
}
