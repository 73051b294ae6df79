package attack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// srcRun runs a program that prints its effective uid, and tells whether it could be run.
func srcRun(h *harness.Host, user harness.User, path string, args ...string) (euid string, ran bool) {
	out, err := h.Command(user, path, args...).Output()
	return strings.TrimSpace(string(out)), err == nil
}

func TestT25_SetuidFileOnTheHost(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(h *harness.Host) {
		id, err := exec.LookPath("id")
		srcCheck(t, err)
		if id, err = filepath.EvalSymlinks(id); err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(id)
		srcCheck(t, err)
		withID := func(root string) { srcCheck(t, os.WriteFile(filepath.Join(root, "id"), program, 0o755)) }
		const plant = " && cat /id > $d/suid && chmod 4755 $d/suid && mknod $d/null c 1 3 && chmod 666 $d/null && mkdir -p $d/sub && cp $d/suid $d/sub/suid && chmod 4755 $d/sub/suid && chmod 777 $d"
		c := h.Container(harness.ContainerOptions{ID: "c", Prepare: withID})
		users := []harness.User{srcOutsider, srcCaller}

		// Naive: a folder that the host's users can reach, bound as it is.
		open := h.Mkdir(h.Path("open"), 0o755)
		naive := h.Mkdir(filepath.Join(open, "naive"), 0o755)
		srcCheck(t, srcBind(c.Pid(), naive, "/naive", func(tree int) error {
			return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV})
		}))
		c.Sh("d=/naive" + plant).OK(t)
		for _, user := range users {
			if euid, _ := srcRun(h, user, filepath.Join(naive, "suid"), "-u"); euid != "0" {
				t.Fatalf("the attack does not work on the naive way: %q", euid)
			}
		}

		// The volume of a sealed source: the container may plant what it likes.
		v := srcVolume(h, "v")
		local := h.Helper(&wire.Request{Op: wire.OpCreateVolume, Name: "local"})
		if local.Err != nil {
			t.Fatal(local.Err)
		}
		shared := h.SharedRoot(harness.SharedRootOptions{ID: "shared"})
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		srcAccepted(t, h, &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c", PID: c.Pid(), Mounts: []wire.Mount{
			{Path: "/data", Source: v, Mode: wire.ModeRW}, {Path: "/local", Source: filepath.Join(h.Volumes(), "local"), Mode: wire.ModeRW}}})
		r := srcRequest(shared.Pid(), v, at)
		r.Container = "shared"
		srcAccepted(t, h, r)
		c.Sh("d=/data" + plant).OK(t)
		c.Sh("d=/local" + plant).OK(t)
		if st := (unix.Stat_t{}); unix.Stat(filepath.Join(v, "suid"), &st) != nil || st.Mode&0o7777 != 0o4755 || st.Uid != 0 {
			t.Fatalf("the setuid file is not there: %o %d", st.Mode, st.Uid)
		}

		for _, user := range users {
			// A process of his own in the container, through which /proc lets him look.
			pid := fmt.Sprint(srcStayIn(t, h, c, fmt.Sprintf("%d:%d", user.UID, user.GID)))
			through := "/proc/" + pid + "/root"
			if _, ran := srcRun(h, user, "/bin/ls", through+"/data/suid"); !ran {
				t.Fatalf("uid %d does not see the volume through his own process", user.UID)
			}
			paths := []string{v, filepath.Join(h.Volumes(), "local"), at, through + "/data", through + "/local", "/proc/" + pid + "/cwd/data",
				"/proc/" + shared.PIDString() + "/root" + at, "/proc/" + c.PIDString() + "/root/data", "/proc/1/root" + v}
			for _, dir := range paths {
				for _, name := range []string{"/suid", "/sub/suid"} {
					if euid, ran := srcRun(h, user, dir+name, "-u"); ran && euid != fmt.Sprint(user.UID) {
						t.Errorf("uid %d runs %s as uid %s", user.UID, dir+name, euid)
					}
					// Through a user and a mount namespace of his own, bound to where he likes.
					script := `mount --bind "$1" /mnt 2>/dev/null && /mnt -u; cp "$1" /tmp/x 2>/dev/null; exec "$1" -u`
					if euid, ran := srcRun(h, user, "/usr/bin/unshare", "--user", "--mount", "/bin/sh", "-c", script, "sh", dir+name); ran && euid != "65534" {
						t.Errorf("uid %d runs %s in a namespace of his own as uid %s", user.UID, dir+name, euid)
					}
				}
				// By a descriptor instead of a path.
				if euid, ran := srcRun(h, user, "/bin/sh", "-c", `exec 3< "$1" && exec /proc/self/fd/3 -u`, "sh", dir+"/suid"); ran && euid != fmt.Sprint(user.UID) {
					t.Errorf("uid %d runs a descriptor of %s as uid %s", user.UID, dir, euid)
				}
				if err := h.Command(user, "/bin/sh", "-c", `echo x > "$1"`, "sh", dir+"/null").Run(); err == nil {
					t.Errorf("uid %d opens the device node in %s", user.UID, dir)
				}
			}
			// In the namespace itself, as somebody that root let in.
			for _, p := range []struct {
				pid int
				dir string
			}{{shared.Pid(), at}, {c.Pid(), "/data"}} {
				out, err := exec.Command("nsenter", "--target", fmt.Sprint(p.pid), "--mount", "--setuid", fmt.Sprint(user.UID), "--setgid", fmt.Sprint(user.GID), p.dir+"/suid", "-u").Output()
				if got := strings.TrimSpace(string(out)); err == nil && got != fmt.Sprint(user.UID) {
					t.Errorf("in the container uid %d becomes uid %s", user.UID, got)
				}
			}
		}
		// In the container itself it is no better.
		h.Do(c.Runc("exec", "--user", "1000:1000", c.ID, "sh", "-c", `! echo x > /data/null`)).OK(t)
		srcDetach(t, h, "c")
		srcDetach(t, h, "shared")

		// With an idmapped mount a container without host root could do the same: only into what is sealed.
		h.HelperTOML(harness.DefaultHelperTOML + "[mounts]\nallow_idmap = true\n")
		mapped := h.Container(harness.ContainerOptions{ID: "mapped", Mapping: &harness.Mapping{HostID: 300000, Size: 65536}, Prepare: withID})
		m := srcRequest(mapped.Pid(), srcVolume(h, "m"), "/data")
		m.Mounts[0].IDMap = true
		srcAccepted(t, h, m)
		mapped.Sh("d=/data; cat /id > $d/suid && chmod 4755 $d/suid && chmod 777 $d").OK(t)
		if st := (unix.Stat_t{}); unix.Stat(h.Sources()+"/m/suid", &st) != nil || st.Mode&0o7777 != 0o4755 || st.Uid != 0 {
			t.Fatalf("the setuid file is not there: %o %d", st.Mode, st.Uid)
		}
		for _, user := range users {
			if euid, ran := srcRun(h, user, h.Sources()+"/m/suid", "-u"); ran {
				t.Errorf("uid %d runs it as uid %s", user.UID, euid)
			}
		}
		srcDetach(t, h, "c")

		// What is not sealed is refused, whichever way it is not.
		nosuid := func(dir string, flags uintptr) string {
			h.Mount("tmpfs", h.Mkdir(dir, 0o755), "tmpfs", flags, "mode=0755")
			return h.Mkdir(dir+"/v", 0o755)
		}
		group := h.Mkdir(h.Path("group"), 0o710)
		theirs := h.Mkdir(h.Path("theirs"), 0o755)
		h.Mkdir(theirs+"/private/v", 0o755)
		srcCheck(t, os.Chmod(theirs+"/private", 0o700))
		srcCheck(t, os.Chown(theirs+"/private", harness.OutsiderUID, harness.OutsiderGID))
		toml := harness.DefaultHelperTOML
		for _, dir := range []string{open, h.Path("both"), h.Path("only-nosuid"), h.Path("only-nodev"), h.Path("neither"), group, theirs} {
			toml = "[[source]]\npath = \"" + dir + "\"\n" + toml
		}
		h.HelperTOML(toml)
		both := nosuid(h.Path("both"), unix.MS_NOSUID|unix.MS_NODEV)
		for _, x := range []struct {
			source string
			ok     bool
		}{
			{naive, false}, {naive + "/suid", false},
			{h.Mkdir(open+"/private", 0o700), false},   // it may be chmodded by the container itself
			{h.Mkdir(open+"/private/in", 0o755), true}, // a folder of root's that lets nobody through
			{nosuid(h.Path("only-nosuid"), unix.MS_NOSUID), false}, {nosuid(h.Path("only-nodev"), unix.MS_NODEV), false}, {nosuid(h.Path("neither"), 0), false},
			{h.Mkdir(group+"/v", 0o755), false}, {theirs + "/private/v", false}, {both, true},
		} {
			if r := srcRequest(c.Pid(), x.source, "/x"); x.ok {
				srcAccepted(t, h, r)
				srcDetach(t, h, "c")
			} else {
				srcRefused(t, h, r, wire.SourceForbidden)
			}
		}
		// A mount in it that lacks what its own mount has.
		for name, flags := range map[string]uintptr{"dev": unix.MS_NOSUID, "suid": unix.MS_NODEV, "neither": 0} {
			h.Mount("tmpfs", h.Mkdir(filepath.Join(both, name, "deep"), 0o755), "tmpfs", flags, "")
			srcRefused(t, h, srcRequest(c.Pid(), filepath.Join(both, name), "/x"), wire.SourceForbidden)
			srcRefused(t, h, srcRequest(c.Pid(), filepath.Join(both, name, "deep"), "/x"), wire.SourceForbidden)
			sub := srcRequest(c.Pid(), both, "/x")
			sub.Mounts[0].Subpath = name
			srcRefused(t, h, sub, wire.SourceForbidden)
		}
		srcRefused(t, h, srcRequest(c.Pid(), both, "/x"), wire.SourceForbidden)
		h.Mount("tmpfs", h.Mkdir(filepath.Join(both, "good", "deep"), 0o755), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "")
		srcAccepted(t, h, srcRequest(c.Pid(), filepath.Join(both, "good"), "/x"))
		srcDetach(t, h, "c")

		// A mount that comes while the helper works, in a source whose mounts propagate: it is judged, or it is not in the tree.
		t.Run("mounted meanwhile", func(t *testing.T) {
			h := h.For(t)
			late := h.Mkdir(filepath.Join(both, "late", "deep"), 0o755)
			outcomes := srcSweepAll(t, h, func() *wire.Request { return srcRequest(c.Pid(), filepath.Dir(late), "/x") },
				func([]int) { srcCheck(t, unix.Mount("late", late, "tmpfs", 0, "")) },
				func() {
					if lines := c.Mountinfo("/x"); len(lines) > 1 {
						t.Errorf("a mount that is not sealed came along: %q", lines)
					}
					unix.Unmount(late, unix.MNT_DETACH)
				}, wire.SourceForbidden)
			if outcomes["ok"] == 0 || outcomes[string(wire.SourceForbidden)] == 0 {
				t.Errorf("%v", outcomes)
			}
		})
	})
}
