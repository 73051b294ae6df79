package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// programs looks at the two binaries: nobody but root may change what root starts.
func (d *Doctor) programs() {
	if self, err := os.Readlink("/proc/self/exe"); err == nil {
		if st, ok := d.trusted("program", self); ok {
			switch {
			case st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
				d.bad("program", wire.Config, []string{"chmod u-s,g-s " + quote(self)}, "%s is setuid or setgid; only the helper may be", self)
			default:
				d.ok("program", "%s, version %s", self, conf.Version())
			}
		}
	}
	if d.policy.Helper.Transport == config.TransportSocket {
		d.helperSocket()
	}
	d.helperProgram()
	d.policyGroup()
}

// trusted stats a file that must be root's, in folders that are root's. ok is false if it is not, which is said.
func (d *Doctor) trusted(check, path string) (st unix.Stat_t, ok bool) {
	fd, _, err := conf.OpenTrusted(path, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		d.bad(check, wire.Config, []string{"make install"}, "%s is not there", path)
		return st, false
	}
	if err == nil {
		defer unix.Close(fd)
		st, err = conf.RootOwned(fd, path)
	}
	if err != nil {
		e := wire.AsError(err)
		c := Check{Check: check, State: Failed, Code: wire.Config, Message: e.Message, Fix: commands(e.Hint)}
		if strings.HasPrefix(e.Message, "cannot trust "+path+":") { // itself, not a folder above
			c.Fix, c.Hint = []string{"make install"}, "whoever could write there may have changed what it does, so it has to be put there anew"
		}
		d.add(c)
	}
	return st, err == nil
}

// helperProgram looks at the setuid helper: what has to hold for it to work, and for nobody else to be able to start or replace it (T01, T29).
func (d *Doctor) helperProgram() {
	path := d.policy.Helper.Path
	st, ok := d.trusted("helper.file", path)
	if !ok {
		return
	}
	gid, group := d.policyGID()
	whole := fmt.Sprintf("chown root:%s %s && chmod 4750 %[2]s", group, quote(path))
	mode := st.Mode & 0o7777
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		d.bad("helper.file", wire.Config, []string{"make install"}, "%s is no regular file", path)
		return
	case path != conf.HelperPath():
		d.bad("helper.file", wire.Config, nil, "[helper] path in policy.toml is %s, and the helper runs as %s only", path, conf.HelperPath())
	default:
		d.ok("helper.file", "%s", path)
	}
	switch {
	case d.policy.Helper.Transport == config.TransportExec && mode&unix.S_ISUID == 0:
		d.bad("helper.mode", wire.Config, []string{whole}, "%s has mode %04o: without the setuid bit it cannot act", path, mode)
	case mode&0o007 != 0 || mode&unix.S_ISGID != 0:
		d.tighten("helper.mode", path, mode&unix.S_ISUID|0o750, "%s has mode %04o: only root and the group %s may start it", path, mode, group)
	case d.policy.Helper.Transport == config.TransportExec && mode&0o050 != 0o050:
		d.bad("helper.mode", wire.Config, []string{whole}, "%s has mode %04o: the group %s cannot start it", path, mode, group)
	default:
		d.ok("helper.mode", "mode %04o", mode)
	}
	if int(st.Gid) != gid && d.policy.Helper.Transport == config.TransportExec {
		d.bad("helper.group", wire.Config, []string{whole}, "%s belongs to the group %d, and the policy user's is %s (%d)", path, st.Gid, group, gid)
	} else {
		d.ok("helper.group", "group %s", group)
	}
	if st.Nlink != 1 {
		d.bad("helper.links", wire.Config, []string{fmt.Sprintf("find %s -xdev -samefile %s", quote(mountOf(path)), quote(path))},
			"%s has %d names: another one would stay setuid when this one is replaced, so the helper refuses to run", path, st.Nlink)
	} else {
		d.ok("helper.links", "link count 1")
	}
	if n, err := unix.Lgetxattr(path, "security.capability", nil); err == nil && n > 0 {
		d.bad("helper.capabilities", wire.Config, []string{"setcap -r " + quote(path)}, "%s has file capabilities, which limit what the setuid bit gives", path)
	} else {
		d.ok("helper.capabilities", "no file capabilities")
	}
	var stfs unix.Statfs_t
	if d.policy.Helper.Transport == config.TransportExec && unix.Statfs(path, &stfs) == nil && stfs.Flags&unix.ST_NOSUID != 0 {
		d.bad("helper.nosuid", wire.Config, []string{"mount -o remount,bind,suid " + quote(mountOf(path))}, "%s lies on a filesystem that is mounted nosuid, so the setuid bit has no effect", path)
	} else {
		d.ok("helper.nosuid", "its filesystem honours the setuid bit")
	}
}

func (d *Doctor) helperSocket() {
	path := d.policy.Helper.Socket
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	unit := []string{"systemctl enable --now bindgate-helper.socket"}
	switch {
	case path != conf.HelperSocket():
		d.bad("helper.socket", wire.Config, nil, "[helper] socket in policy.toml is %s, and the helper knows its callers on %s only", path, conf.HelperSocket())
	case errors.Is(err, fs.ErrNotExist):
		d.bad("helper.socket", wire.Config, unit, "nobody listens at %s: the socket is not there", path)
	case err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		d.bad("helper.socket", wire.Config, unit, "%s is no socket (%v)", path, err)
	default:
		d.ok("helper.socket", "%s", path)
	}
}

// policyGroup looks who else is in the group that may start the helper. The helper asks again who calls (T01), so it is a warning.
func (d *Doctor) policyGroup() {
	gid, group := d.policyGID()
	data, err := os.ReadFile("/etc/group")
	if err != nil {
		d.unknown("group", "cannot read /etc/group: %v", err)
		return
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[2] != strconv.Itoa(gid) {
			continue
		}
		var others, fix []string
		for _, name := range strings.Split(f[3], ",") {
			if name != "" && name != d.policy.User {
				others, fix = append(others, name), append(fix, "gpasswd -d "+quote(name)+" "+quote(group))
			}
		}
		if len(others) > 0 {
			d.warn("group", fix, "%s may start the helper, too (and be refused): only the policy user should be in the group %s", strings.Join(others, ", "), group)
			return
		}
	}
	d.ok("group", "only %s is in the group %s", d.policy.User, group)
}

func (d *Doctor) policyGID() (gid int, name string) {
	u, err := user.Lookup(d.policy.User)
	if err != nil {
		return -1, d.policy.User
	}
	gid, _ = strconv.Atoi(u.Gid)
	if g, err := user.LookupGroupId(u.Gid); err == nil {
		return gid, g.Name
	}
	return gid, u.Gid
}

func (d *Doctor) policyUID() int {
	u, err := user.Lookup(d.policy.User)
	if err != nil {
		return -1
	}
	uid, _ := strconv.Atoi(u.Uid)
	return uid
}

// folders looks at bindgate's own folders: who owns them, and who else gets in.
func (d *Doctor) folders() {
	gid, group := d.policyGID()
	uid := d.policyUID()
	for _, f := range []struct {
		check, path string
		mode        uint32
		uid, gid    int
	}{
		{"folder.run", conf.RunDir(), 0o755, 0, 0},
		{"folder.ledger", conf.LedgerDir(), 0o700, 0, 0},
		{"folder.volumes", conf.VolumesDir(), 0o700, 0, 0},
		{"folder.log", filepath.Dir(d.auditFile()), 0o755, 0, 0},
		{"folder.journal", d.policy.State.Dir, 0o700, uid, gid},
	} {
		owner := "root:root"
		if f.uid != 0 {
			owner = d.policy.User + ":" + group
		}
		make := fmt.Sprintf("install -d -m %04o -o %s -g %s %s", f.mode, strings.Split(owner, ":")[0], strings.Split(owner, ":")[1], quote(f.path))
		open := conf.OpenTrusted
		if f.uid != 0 { // not root's, so it may lie where its owner wants it
			open = func(path string, flags int) (int, bool, error) {
				fd, err := unix.Open(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
				if err != nil {
					err = wire.Errorf(wire.Config, "config", "cannot open %s: %v", path, err).Because(err)
				}
				return fd, false, err
			}
		}
		fd, _, err := open(f.path, unix.O_PATH|unix.O_DIRECTORY)
		switch {
		case errors.Is(err, unix.ENOENT) && strings.HasPrefix(f.path, conf.RunDir()):
			d.ok(f.check, "%s is made by the first request of a boot", f.path)
			continue
		case errors.Is(err, unix.ENOENT) && d.fix && os.Geteuid() == 0 && f.uid >= 0 && d.makeFolder(f.path, f.mode, f.uid, f.gid) == nil:
			d.add(Check{Check: f.check, State: Fixed, Message: f.path + " was not there, and was made"})
			continue
		case errors.Is(err, unix.ENOENT):
			d.bad(f.check, wire.Config, []string{make}, "%s is not there", f.path)
			continue
		case err != nil:
			d.failed(f.check, err)
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		mode := st.Mode & 0o7777
		switch {
		case err != nil:
			d.failed(f.check, wire.Errorf(wire.System, "doctor", "cannot stat %s: %v", f.path, err))
		case int(st.Uid) != f.uid:
			d.bad(f.check, wire.Config, []string{make}, "%s belongs to uid %d instead of %s", f.path, st.Uid, strings.Split(owner, ":")[0])
		case mode&^f.mode != 0:
			d.tighten(f.check, f.path, mode&f.mode, "%s has mode %04o, and nobody needs more than %04o", f.path, mode, f.mode)
		case mode&0o700 != 0o700:
			d.bad(f.check, wire.Config, []string{make}, "%s has mode %04o, and its owner needs all of %04o", f.path, mode, f.mode)
		default:
			d.ok(f.check, "%s: %s, mode %04o", f.path, owner, mode)
		}
	}
}

func (d *Doctor) auditFile() string {
	if d.helper != nil {
		return d.helper.Audit.File
	}
	return conf.AuditFile()
}

// audit looks at the audit log: an attach whose intent cannot be written there is refused.
func (d *Doctor) audit() {
	path := d.auditFile()
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.ok("audit", "%s is made by the first request", path)
	case err != nil:
		d.unknown("audit", "cannot look at %s: %v", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != 0 || st.Nlink != 1:
		d.bad("audit", wire.Config, []string{"mv " + quote(path) + " " + quote(path+".old")}, "%s is no regular file of root's with link count 1, so every attach is refused", path)
	case st.Mode&0o137 != 0:
		d.tighten("audit", path, st.Mode&0o640, "%s has mode %04o, and nobody needs more than 0640", path, st.Mode&0o7777)
	default:
		d.ok("audit", "%s: mode %04o", path, st.Mode&0o7777)
	}
}

// tighten reports permissions that nobody should have, and takes them away where that was asked for. What may have been done with them meanwhile it cannot
// tell: neither is one of these a program or a configuration that somebody could have written.
func (d *Doctor) tighten(check, path string, mode uint32, format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	fix := fmt.Sprintf("chmod %04o %s", mode, quote(path))
	if !d.fix || os.Geteuid() != 0 {
		d.bad(check, wire.Config, []string{fix}, "%s", why)
		return
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Fchmod(fd, mode)
	}
	if err != nil {
		d.bad(check, wire.Config, []string{fix}, "%s, and cannot be changed: %v", why, err)
		return
	}
	d.add(Check{Check: check, State: Fixed, Message: fmt.Sprintf("%s: now it has %04o", why, mode)})
}

// makeFolder makes a folder in one that is root's.
func (d *Doctor) makeFolder(path string, mode uint32, uid, gid int) error {
	parent, _, err := conf.OpenTrusted(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if _, err := conf.RootOwned(parent, filepath.Dir(path)); err != nil {
		return err
	}
	name := filepath.Base(path)
	if err := unix.Mkdirat(parent, name, 0o700); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return errors.Join(unix.Fchown(fd, uid, gid), unix.Fchmod(fd, mode))
}

// quote writes a path for a shell.
func quote(s string) string {
	plain := !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || slices.Contains([]rune("/._-:=,+@%"), r))
	})
	if plain && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
