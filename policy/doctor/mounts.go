package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// mountOf returns the mountpoint that a path lies on.
func mountOf(path string) string {
	at, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return "/"
	}
	best := "/"
	for _, m := range at {
		if len(m.Mountpoint) >= len(best) {
			best = m.Mountpoint
		}
	}
	return best
}

// sources looks at the [[source]]s of helper.toml: whether they are there, and are sealed (a container could otherwise make a setuid file usable on the
// host, so the helper refuses what lies in them).
func (d *Doctor) sources() {
	if d.helper == nil {
		return
	}
	for _, s := range d.helper.Sources {
		const check = "source"
		fd, private, err := conf.OpenTrusted(s.Path, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) {
			d.warn(check, nil, "%s is not there (yet), so nothing can be attached from it", s.Path)
			continue
		}
		if err != nil {
			d.failed(check, err)
			continue
		}
		var st unix.Stat_t
		var fs unix.Statfs_t
		err = errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs))
		unix.Close(fd)
		private = private || st.Uid == 0 && st.Mode&0o011 == 0
		switch {
		case err != nil:
			d.failed(check, wire.Errorf(wire.System, "doctor", "cannot look at %s: %v", s.Path, err))
		case private:
			d.ok(check, "%s is sealed: only root gets through to it", s.Path)
		case fs.Flags&(unix.ST_NOSUID|unix.ST_NODEV) == unix.ST_NOSUID|unix.ST_NODEV:
			d.ok(check, "%s is sealed: it is mounted nosuid and nodev", s.Path)
		default:
			d.warn(check, []string{"chmod go-x " + quote(s.Path)}, "%s is not sealed: others can search it and it is not mounted nosuid,nodev, so only what its drivers mount nosuid,nodev can be attached", s.Path)
		}
	}
}

// A recordedMount is one of the ledger's.
type recordedMount struct{ path, source string }

// ledger reads the helper's records: those that cannot be trusted, whose they are, and what is attached where.
func (d *Doctor) ledger() {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	store, err := state.Open(conf.LedgerDir(), strings.TrimSpace(string(boot)), false)
	d.recorded = map[uint64][]recordedMount{}
	if err != nil {
		if d.hasLedger = missing(err) || errors.Is(err, unix.ENOENT); !d.hasLedger {
			d.failed("leak.ledger", err)
		}
		return
	}
	defer store.Close()
	l := &state.Ledger{Store: store}
	ids, err := l.Namespaces()
	if err != nil {
		d.failed("leak.ledger", err)
		return
	}
	d.hasLedger = true
	bad := 0
	for _, id := range ids {
		record, err := l.ReadNS(id)
		if err != nil {
			bad++
			d.bad("leak.ledger", wire.StateCorrupt, []string{"bindgate recover"}, "%s", wire.AsError(err).Message)
			continue
		}
		for _, m := range record.Mounts {
			d.recorded[record.Inode] = append(d.recorded[record.Inode], recordedMount{m.Path, m.Source})
			if !slices.Contains(d.owners, m.Owner) {
				d.owners = append(d.owners, m.Owner)
			}
		}
	}
	if bad == 0 {
		d.ok("leak.ledger", "%s of mount namespaces, all sound", plural(len(ids), "record"))
	}
}

// A base is a part of a filesystem in which volumes lie.
type base struct {
	major, minor int
	root         string
	below        bool // not itself: it is the folder that holds volumes
	local        bool // the local driver's: nobody else has anything there
}

// bases finds where the sources of helper.toml and what is mounted in them lie, whatever they are mounted on elsewhere.
func (d *Doctor) bases(host []*mountinfo.Info) (list []base) {
	for _, s := range d.helper.Sources {
		at := &mountinfo.Info{}
		for _, m := range host { // in the order in which they were mounted
			switch {
			case under(s.Path, m.Mountpoint) && len(m.Mountpoint) >= len(at.Mountpoint):
				at = m
			case under(m.Mountpoint, s.Path):
				list = append(list, base{major: m.Major, minor: m.Minor, root: m.Root})
			}
		}
		rel, err := filepath.Rel(at.Mountpoint, s.Path)
		if err == nil && at.Mountpoint != "" {
			list = append(list, base{at.Major, at.Minor, filepath.Join(at.Root, rel), true, s.Path == conf.VolumesDir()})
		}
	}
	return list
}

// under reports whether a path is another one or lies below it.
func under(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// strangers looks through the mount namespaces of the host for volumes that no record speaks of: a ledger that was lost, or another program's. A copy that
// a container made of what it has is its own business.
func (d *Doctor) strangers() {
	if d.helper == nil || !d.hasLedger {
		return
	}
	host, err := mountinfo.GetMounts(nil)
	if err != nil {
		d.failed("leak.mounts", wire.Errorf(wire.System, "doctor", "cannot read the list of mounts: %v", err))
		return
	}
	bases := d.bases(host)
	own := inode("/proc/self/ns/mnt")
	first := inode("/proc/1/ns/mnt")
	seen := map[uint64]bool{own: true, first: true}
	type stranger struct {
		pid, cgroup, path, volume string
		local                     bool
	}
	var found []stranger
	has := map[string][]string{} // by cgroup: the sources that its containers have on record
	for _, pid := range pids() {
		ns := inode("/proc/" + pid + "/ns/mnt")
		if ns == 0 || seen[ns] {
			continue
		}
		seen[ns] = true
		text, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		for _, r := range d.recorded[ns] {
			has[string(text)] = append(has[string(text)], filepath.Base(r.source))
		}
		f, err := os.Open("/proc/" + pid + "/mountinfo")
		if err != nil {
			continue
		}
		mounts, err := mountinfo.GetMountsFromReader(f, nil)
		f.Close()
		if err != nil {
			continue
		}
		for _, m := range mounts {
			i := slices.IndexFunc(bases, func(b base) bool {
				return b.major == m.Major && b.minor == m.Minor && under(m.Root, b.root) && !(b.below && m.Root == b.root)
			})
			inSource := slices.ContainsFunc(d.helper.Sources, func(s conf.Source) bool { return under(m.Mountpoint, s.Path) }) // a service's copy of the host's mounts
			onRecord := slices.ContainsFunc(d.recorded[ns], func(r recordedMount) bool { return under(m.Mountpoint, r.path) })
			if i < 0 || inSource || onRecord {
				continue
			}
			volume := strings.SplitN(strings.TrimPrefix(strings.TrimPrefix(m.Root, bases[i].root), "/"), "/", 2)[0]
			found = append(found, stranger{pid, string(text), m.Mountpoint, volume, bases[i].local})
		}
	}
	any := false
	for _, s := range found {
		if slices.Contains(has[s.cgroup], s.volume) {
			continue
		}
		any = true
		comm, _ := os.ReadFile("/proc/" + s.pid + "/comm")
		where := fmt.Sprintf("%s of process %s (%s)", wire.Printable(s.path), s.pid, wire.Printable(strings.TrimSpace(string(comm))))
		if s.local {
			d.add(Check{Check: "leak.mounts", State: Failed, Code: wire.StateCorrupt, Message: fmt.Sprintf("the local volume %s is mounted at %s, and no record says so", wire.Printable(s.volume), where),
				Hint: "bindgate cannot detach it any more; it goes when the container ends"})
		} else {
			d.warn("leak.mounts", nil, "what lies in a source is mounted at %s, and no record says so; another program may have done it, such as a Docker engine with the same driver", where)
		}
	}
	if !any {
		d.ok("leak.mounts", "every volume that is mounted in a container is on record")
	}
}

func inode(path string) uint64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}
