package privops

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// Rules are the parts of helper.toml that say where in a container a volume may land: not on these exact paths; not on or below these; and if it shares the host's root only on or below these.
type Rules struct{ Deny, DenyUnder, HostPaths []wire.Path }

// A Place is where mountpoints are resolved: the target's root, and for relative paths its sandbox directory.
type Place struct {
	target                      *namespace.Target
	rules                       *Rules
	root, sandbox               int    // O_PATH descriptors of the root that paths are scoped to, and of the sandbox directory as the container sees it; -1: none
	rootMount, sandMount, tmpfs uint64 // unique ids of their mounts; device of a tmpfs that is not mounted on the host
	id, prefix                  string // RootID of the root; its path in the target's namespace, before the pivot
	onHost                      bool   // the root is the host's
	sandboxPath                 wire.Path
}

const down = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS // how openat2 takes a step: to what lies below, and never over a link
const nosuidNodev = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV                        // what takes setuid bits and device nodes away
const maxLinks, maxMissing = 40, 32                                                       // the kernel's limit of symlinks in one resolution (path_resolution(7)); of components made: each has an entry in the ledger, paths room for 2,047

// Open opens names beneath the directory dir, as a handle only. It goes name by name, follows no link, and asks each mount that it comes to for its type before it looks anything up in it: a FUSE server is
// never asked, since it could hang whoever does (EREMOTE, T45); with fuse, what is opened may be the root of its mount. ns is the id of the mount namespace that all of it is in; 0 is the calling thread's.
func Open(dir int, names []string, ns uint64, fuse bool) (int, error) {
	fd, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 3) // to open "." would ask whether we may
	for i := 0; err == nil; i++ {
		on, next := namespace.Mount{}, -1
		if on, _, err = mountOn(fd, ns); err == nil && isFUSE(on.Type) && !(fuse && i == len(names)) {
			err = unix.EREMOTE
		} else if err == nil && i == len(names) {
			return fd, nil
		} else if err == nil {
			next, err = unix.Openat2(fd, names[i], &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: down})
		}
		unix.Close(fd)
		fd = next
	}
	return -1, err
}

func mountOn(fd int, ns uint64) (m namespace.Mount, stx unix.Statx_t, err error) {
	id, stx, err := namespace.MountOf(fd)
	if err == nil {
		m, err = namespace.StatMount(id, ns)
	}
	return m, stx, err
}

// NewPlace is the target's pinned root, or, if rootfs is not empty, that of a container that has not pivoted: a mountpoint seen through that root, and the same directory as host (DESIGN section 4). Dies of target_forbidden.
func NewPlace(t *namespace.Target, rules *Rules, rootfs wire.Path, host int) *Place {
	p := &Place{target: t, rules: rules, root: t.Root, rootMount: t.RootMount, id: RootID(t.Root), sandbox: -1, onHost: t.SharesHostRoot && len(rootfs.Components) == 0}
	if len(rootfs.Components) == 0 {
		return p
	}
	refuse := func(cond bool, why string) {
		namespace.Hint("a rootfs is named only between the runtime's mounts and the pivot (createRuntime)").DieIf(cond, wire.TargetForbidden, "target", "cannot use the rootfs %s: %s", rootfs, why)
	}
	refuse(!t.SharesHostRoot, "the process has a root of its own already")
	fd, err := Open(t.Root, rootfs.Components, t.NS.ID, false)
	m, stx, e1 := mountOn(fd, t.NS.ID)
	parent, e2 := namespace.StatMount(m.Parent, t.NS.ID)
	_, there, e3 := namespace.MountOf(host)
	inherited := there.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 && parent.Point != m.Point // the host's own mount, and none on it
	err = cmp.Or(err, e1, e2, e3)
	refuse(err != nil, fmt.Sprint(err))
	refuse(stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0, "it is not a mountpoint in the container's namespace")
	refuse(inherited || m.Dev != parent.Dev || RootID(fd) != RootID(host), "it is not bound onto itself, as a runtime does for the container that it starts") // somebody else's root, or another directory
	p.root, p.rootMount, p.id, p.prefix = fd, m.ID, RootID(fd), rootfs.String()
	return p
}

// UseSandbox names the sandbox directory: host is a descriptor of it on the host; the container must have that same directory at path. Dies of target_missing, target_forbidden.
func (p *Place) UseSandbox(host int, path wire.Path) {
	fd, err := Open(p.root, path.Components, p.target.NS.ID, false)
	id, _, e := namespace.MountOf(fd)
	namespace.Hint("mount it there before, or name the place with --sandbox-directory").DieIf(cmp.Or(err, e) != nil, wire.TargetMissing, "target", "cannot find the sandbox directory %s in the container: %v", path, cmp.Or(err, e))
	namespace.DieIf(RootID(fd) != RootID(host), wire.TargetForbidden, "target", "cannot use %s in the container as its sandbox: it is not the directory that was named", path)
	p.sandbox, p.sandMount, p.sandboxPath = fd, id, path
}

// A Mountpoint is a place in a container, resolved once: what exists of it is a descriptor, what does not are names without a slash.
type Mountpoint struct {
	place         *Place
	asked         wire.Path
	fd            int      // the mountpoint, or while names are missing the deepest directory that exists
	names         []string // its resolved path from the root of the place
	missing, made int      // how many of the last of names are ours to make; how many of those are made by now
	base          string   // RootID of the deepest directory that was there, or that somebody else made
	dir           bool     // it is to be a directory, or else a file
}

// Path returns the resolved path as a process of the container sees it, ID the RootID of the mountpoint, here the part of the path that exists, InSandbox the part below the sandbox directory.
func (m *Mountpoint) Path() string   { return absolute(m.names).String() }
func (m *Mountpoint) ID() string     { return RootID(m.fd) }
func (m *Mountpoint) here() []string { return m.names[:len(m.names)-m.missing+m.made] }
func (m *Mountpoint) InSandbox() string {
	return strings.Join(m.names[len(m.place.sandboxPath.Components):], "/")
}

// Record returns, without asking the kernel, what the ledger keeps of the mountpoint. Made are those of the last components that were missing when it was resolved, and once they are made those that nobody else had made meanwhile.
func (m *Mountpoint) Record() wire.Recorded {
	return wire.Recorded{Path: m.Path(), Prefix: m.place.prefix, Root: m.place.id, Base: m.base, Made: m.missing, RootUID: m.place.target.UID, RootGID: m.place.target.GID}
}

// Resolve resolves path without making anything: name by name, each opened in the one before it, following no link. A link is read and its text walked from the right place, so that none leads out of the root (T16), and
// the rules are told the names of the result. A ".." in it starts again from the root with fewer names, so the kernel is never asked for a parent (T18). Dies of target_missing, target_forbidden, invalid_request.
func (p *Place) Resolve(path wire.Path, dir bool) *Mountpoint {
	m := &Mountpoint{place: p, asked: path, fd: p.root, dir: dir}
	if p.target.UserNS >= 0 && p.target.UID == 0 { // with fsuid 0 would go what overrides permissions; the root of a user namespace has no power over files of ids that it does not map
		Confine(wire.OpAttach, 1<<unix.CAP_DAC_OVERRIDE)
	}
	AsRoot(p.target.UID, p.target.GID, m.walk)
	full := absolute(m.names)
	exact := func(d wire.Path) bool { return d.String() == full.String() || d.String() == path.String() }
	m.forbid(len(m.names) == 0 || !path.Absolute && len(m.names) <= len(p.sandboxPath.Components), "it is the root itself")
	m.within(full, false)
	m.forbid(slices.ContainsFunc(p.rules.DenyUnder, func(d wire.Path) bool { return d.Contains(full) }) || slices.ContainsFunc(p.rules.Deny, exact), "%s is in a deny list of helper.toml", full)
	namespace.Hint("create it on the host, or use a relative path, which is made in the sandbox").DieIf(m.missing > 0 && p.onHost && path.Absolute, wire.TargetMissing, "target", "cannot attach at %s: it does not exist, and the container shares the host's root, where nothing is made", path)
	m.forbid(m.missing > maxMissing, "more than %d of its components do not exist", maxMissing)
	m.base = RootID(m.fd)
	m.judge()
	return m
}

// within refuses what a link in the sandbox leads out to, and on the host's root what is not under host_paths, or on the way to them: no error shall tell what there is elsewhere (T21, T31).
func (m *Mountpoint) within(at wire.Path, onTheWay bool) {
	roots, why := []wire.Path{m.place.sandboxPath}, "it leads out of the sandbox directory"
	if m.asked.Absolute {
		roots, why = m.place.rules.HostPaths, "the container shares the host's root, and the path is not under targets.host_paths of helper.toml"
	}
	m.forbid((m.place.onHost || !m.asked.Absolute) && !slices.ContainsFunc(roots, func(r wire.Path) bool { return r.Contains(at) || onTheWay && at.Contains(r) }), why)
}

func (m *Mountpoint) walk() {
	p, todo := m.place, m.asked.Components
	if !m.asked.Absolute {
		namespace.Hint("name it with --directory").DieIf(p.sandbox < 0, wire.InvalidRequest, "target", "cannot use the relative path %s: no sandbox directory was named", m.asked)
		m.fd, m.names = p.sandbox, p.sandboxPath.Components
	}
	links, own := 0, len(todo) // own: how many of todo, the last ones, are of the path as asked; those before them came out of a link
	var link []string          // which one: the first, if it led to others. An error does not tell what one says, since it may lie in somebody's volume
	for m.judgeMount(m.fd, m.names); len(todo) > 0; {
		m.forbid(links > maxLinks, "more than %d links lead to it", maxLinks)
		if todo[0] == ".." {
			todo, links = slices.Concat(m.names[:max(len(m.names)-1, 0)], todo[1:]), links+1
			m.moveTo(p.root, nil)
			continue
		}
		at := append(slices.Clone(m.names), todo[0])
		m.within(absolute(at), true)
		next, err := unix.Openat(m.fd, todo[0], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if own == len(todo) {
			if link = at; err == unix.ENOENT {
				m.missing, m.names = len(todo), slices.Concat(m.names, todo)
				return
			}
		}
		namespace.DieIf(err == unix.ENOENT, wire.TargetMissing, "target", "cannot resolve %s in the container: the link %s leads to what does not exist", m.asked, absolute(link))
		m.fault(link, err)
		m.judgeMount(next, at) // before it is asked anything else
		todo = todo[1:]
		own = min(own, len(todo))
		text := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(next, "", text)
		if err != nil { // no link
			m.moveTo(next, at)
			continue
		}
		unix.Close(next)
		if text[0] == '/' {
			m.moveTo(p.root, nil)
		}
		todo, links = append(components(string(text[:n])), todo...), links+1
	}
}

// judgeMount refuses what lies on a filesystem on and under which nothing is attached: where programs believe what the kernel says, and where a server could hang whoever looks.
func (m *Mountpoint) judgeMount(fd int, at []string) {
	on, _, err := mountOn(fd, m.place.target.NS.ID)
	m.fault(at, err)
	m.forbid(isFUSE(on.Type) || slices.Contains([]string{"proc", "sysfs", "cgroup", "cgroup2", "devtmpfs"}, on.Type), "%s is on a %s filesystem", absolute(at), on.Type)
}

// moveTo goes on at fd, which is what names lead to. What is walked past is closed, since a path has up to 2,048 components.
func (m *Mountpoint) moveTo(fd int, names []string) {
	if m.fd != m.place.root && m.fd != m.place.sandbox {
		unix.Close(m.fd)
	}
	m.fd, m.names = fd, names
}

// moveInto resolves the mountpoint again in the tree of another volume of the request, in which it lies and must exist: so all is known before anything is visible.
func (m *Mountpoint) moveInto(outer *Mountpoint, tree int) {
	rest := strings.Join(m.names[len(outer.names):], "/")
	fd, err := unix.Openat2(tree, rest, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: down}) // judged already, mount by mount
	namespace.Check(err, wire.TargetMissing, "target", "cannot attach at %s: it lies in the volume at %s, where %s does not exist or is a link", m.Path(), outer.Path(), rest)
	m.moveTo(fd, m.names)
	m.missing = 0
	m.judge()
}

// judge checks what exists of the path: its kind, and if something is to be made in it that it is on the container's root mount, its sandbox mount, or a tmpfs that the host has mounted nowhere (docs/adr/0017).
func (m *Mountpoint) judge() {
	p, here, kind, what := m.place, m.here(), uint16(unix.S_IFREG), "single file, as the volume is"
	if m.dir || m.made < m.missing {
		kind, what = unix.S_IFDIR, "directory"
	}
	id, stx, err := namespace.MountOf(m.fd)
	m.fault(here, err)
	namespace.DieIf(stx.Mode&unix.S_IFMT != kind, wire.InvalidRequest, "target", "cannot attach at %s in the container: %s is not a %s", m.asked, absolute(here), what)
	if m.made == m.missing {
		return
	}
	on, err := namespace.StatMount(id, p.target.NS.ID)
	m.fault(here, err)
	other := id != p.rootMount && id != p.sandMount
	if other && on.Type == "tmpfs" && (on.Dev == p.tmpfs || countMounts(^uint64(0), p.target.HostNS, func(h namespace.Mount) bool { return h.Dev == on.Dev }) == 0) {
		p.tmpfs, other = on.Dev, false
	}
	namespace.Hint("create the path in what is mounted there").DieIf(other, wire.TargetForbidden, "target", "cannot create %s in the container: %s is another mount, in which nothing is made", m.asked, absolute(here))
}

// Make makes the missing components, 0755, with the file system ids of the container's root: the kernel's own checks apply, and there is never another owner (FACTS 3). It uses a directory that was made meanwhile.
func (m *Mountpoint) Make(made func(folder string)) {
	for m.made < m.missing {
		dir, at, next := m.dir || m.made+1 < m.missing, m.names[:len(m.here())+1], -1
		var there, err error
		AsRoot(m.place.target.UID, m.place.target.GID, func() {
			m.judge()
			if name := at[len(at)-1]; !dir {
				m.fault(at, unix.Mknodat(m.fd, name, unix.S_IFREG|0o644, 0))
			} else if there = unix.Mkdirat(m.fd, name, 0o755); there != unix.EEXIST {
				m.fault(at, there)
			}
			next, err = unix.Openat(m.fd, at[len(at)-1], map[bool]int{true: unix.O_DIRECTORY}[dir]|unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if m.made++; there != nil { // the container made it, or another volume of the request: what is ours begins after it
			m.missing, m.made = m.missing-m.made, 0
		}
		m.fault(at, err) // what was made is counted by now, so that it is removed again
		if m.moveTo(next, m.names); there != nil {
			m.base = RootID(next)
		} else {
			made(RootID(next))
		}
	}
}

// A Removal calls remove for a folder, named as RootID says, if that is still ours alone, and returns what it returned.
type Removal func(folder string, remove func() error) error

// Sure dies of system if an error, such as the ledger's own, leaves it open whether what was made is there: it stays on record then, to be tried again.
func Sure(err error, path string) {
	_, ledger := errors.AsType[*wire.Error](err)
	namespace.DieIf(ledger || slices.Contains([]error{unix.EIO, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EBUSY}, err), wire.System, "detach", "cannot remove what was made at %s: %v", path, err)
}

// RemoveMade removes what was made for r beneath the directory root, as the container's root user, the deepest first, until one is not empty. It must lie in the very directory r.Base and on its mount.
func RemoveMade(root int, r *wire.Recorded, removal Removal) {
	names, top, err := components(r.Path), -1, error(nil)
	first := max(0, len(names)-r.Made) // of a record that cannot be, none is in base
	as := func(f func()) { AsRoot(r.RootUID, r.RootGID, f) }
	as(func() { top, err = Open(root, names[:first], 0, false) })
	if err == nil && RootID(top) != r.Base {
		err = unix.ESTALE
	}
	for i := len(names) - 1; i >= first && (err == nil || err == unix.ENOENT); i-- {
		dir, fd, how := -1, -1, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: down | unix.RESOLVE_NO_XDEV}
		as(func() {
			if dir, err = unix.Openat2(top, "./"+strings.Join(names[first:i], "/"), how); err == nil {
				fd, err = unix.Openat2(dir, names[i], how)
			}
		})
		if err == nil {
			err = removal(RootID(fd), func() error { return removeEmpty(r, dir, names[i]) })
		}
		unix.Close(fd) // not before: its inode number would be free for another folder, which has an entry under it
		unix.Close(dir)
	}
	unix.Close(top)
	Sure(err, r.Path)
}

func removeEmpty(r *wire.Recorded, dir int, name string) (err error) {
	AsRoot(r.RootUID, r.RootGID, func() {
		var st unix.Stat_t
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		if err == unix.ENOTDIR && unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
			err = unix.Unlinkat(dir, name, 0)
		}
	})
	return err
}

// AsRoot runs f with the calling thread's file system ids set to those of the container's root user. The capabilities that override permissions go with fsuid 0 and come back with it (capabilities(7)).
func AsRoot(uid, gid int, f func()) {
	oldGID, _ := unix.SetfsgidRetGid(gid)
	oldUID, _ := unix.SetfsuidRetUid(uid)
	defer unix.SetfsgidRetGid(oldGID)
	defer unix.SetfsuidRetUid(oldUID)
	u, _ := unix.SetfsuidRetUid(-1) // these calls report no errors; asking with -1 tells
	g, _ := unix.SetfsgidRetGid(-1)
	namespace.DieIf(u != uid || g != gid, wire.System, "target", "cannot take on the file system ids %d:%d", uid, gid)
	f()
}

func absolute(names []string) wire.Path { return wire.Path{Absolute: true, Components: names} }
func components(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(c string) bool { return c == "" || c == "." })
}

// RootID names a directory or file, to know it again. Dies of system.
func RootID(fd int) string {
	var st unix.Stat_t
	namespace.Check(unix.Fstat(fd, &st), wire.System, "target", "cannot examine a directory of the container")
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

func (m *Mountpoint) forbid(cond bool, format string, args ...any) {
	namespace.DieIf(cond, wire.TargetForbidden, "target", "cannot attach at %s in the container: "+format, append([]any{m.asked}, args...)...)
}

// fault ends the operation if err is not nil, naming the component that it happened at.
func (m *Mountpoint) fault(at []string, err error) {
	code, hint := wire.System, namespace.Hint("")
	if slices.Contains([]error{unix.ELOOP, unix.EROFS, unix.EACCES, unix.EPERM, unix.ENOENT}, err) {
		code, hint = wire.TargetForbidden, "create the path in the container's image, or choose another one"
	} else if err == unix.ENOTDIR || err == unix.EEXIST {
		code = wire.InvalidRequest
	}
	hint.DieIf(err != nil, code, "target", "cannot reach or create %s in the container: %s: %v", m.asked, absolute(at), err)
}
