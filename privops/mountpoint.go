package privops

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
)

// Rules are the parts of helper.toml that say where in a container a volume may land. The paths are clean and absolute.
type Rules struct {
	Deny, DenyUnder, HostPaths []wire.Path // these exact paths; these and all below; for a container that shares the host's root only these and below
}

// A Place is where mountpoints are resolved: the target's root, and for relative paths its sandbox directory.
type Place struct {
	target      *namespace.Target
	rules       *Rules
	root        int       // O_PATH descriptor of the root that paths are scoped to
	rootMount   uint64    // unique id of its mount
	prefix      wire.Path // of the root in the target's namespace, before the pivot
	onHost      bool      // the root is the host's
	sandbox     int       // O_PATH descriptor of the sandbox directory as the container sees it; -1: none
	sandMount   uint64
	sandboxPath wire.Path
	tmpfs       uint64 // device of one that is not mounted on the host
}

// down is how openat2 takes one step: to what lies below, and never over a link.
const down = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// Open opens names beneath the directory dir, as a handle only. It goes name by name, follows no link, and asks each mount that it comes to for its type before it looks anything up in it: a FUSE server is
// never asked, since it could hang whoever does (EREMOTE, T45); with fuse, what is opened may be the root of its mount. ns is the id of the mount namespace that all of it is in; 0 is the calling thread's.
func Open(dir int, names []string, ns uint64, fuse bool) (int, error) {
	fd, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 3) // to open "." would ask whether we may
	for i := 0; err == nil; i++ {
		id, _, e := namespace.MountOf(fd)
		on, e2 := namespace.StatMount(id, ns)
		if err = cmp.Or(e, e2); err == nil && isFUSE(on.Type) && !(fuse && i == len(names)) {
			err = unix.EREMOTE
		}
		next := -1
		if err == nil && i == len(names) {
			return fd, nil
		} else if err == nil {
			next, err = unix.Openat2(fd, names[i], &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: down})
		}
		unix.Close(fd)
		fd = next
	}
	return -1, err
}

// NewPlace is the root of the target, or, if rootfs is not empty, that of a container that has not pivoted: a mountpoint in the target's namespace, while the process still has the host's root. Everything
// is resolved through the target's pinned root (DESIGN section 4). host is a descriptor of that rootfs on the host: it must be the same directory. Dies of target_forbidden.
func NewPlace(t *namespace.Target, rules *Rules, rootfs wire.Path, host int) *Place {
	p := &Place{target: t, rules: rules, root: t.Root, rootMount: t.RootMount, prefix: rootfs, sandbox: -1, onHost: t.SharesHostRoot && len(rootfs.Components) == 0}
	if len(rootfs.Components) == 0 {
		return p
	}
	refuse := func(cond bool, why string) {
		namespace.Hint("a rootfs is named only between the runtime's mounts and the pivot (createRuntime)").DieIf(cond, wire.TargetForbidden, "target", "cannot use the rootfs %s: %s", rootfs, why)
	}
	refuse(!t.SharesHostRoot, "the process has a root of its own already")
	fd, err := Open(t.Root, rootfs.Components, t.NS.ID, false)
	id, stx, e1 := namespace.MountOf(fd)
	m, e2 := namespace.StatMount(id, t.NS.ID)
	parent, e3 := namespace.StatMount(m.Parent, t.NS.ID)
	_, there, e4 := namespace.MountOf(host)
	inherited := there.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 && parent.Point != m.Point // the host's own mount, and none on it
	err = cmp.Or(err, e1, e2, e3, e4)
	refuse(err != nil, fmt.Sprint(err))
	refuse(stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0, "it is not a mountpoint in the container's namespace")
	refuse(inherited || m.Dev != parent.Dev || !sameFile(fd, host), "it is not bound onto itself, as a runtime does for the container that it starts") // somebody else's root, or another directory
	p.root, p.rootMount = fd, id
	return p
}

// UseSandbox names the sandbox directory: host is a descriptor of it on the host; the container must have that same directory at path. Dies of target_missing, target_forbidden.
func (p *Place) UseSandbox(host int, path wire.Path) {
	fd, err := Open(p.root, path.Components, p.target.NS.ID, false)
	namespace.Hint("mount it there before, or name the place with --sandbox-directory").DieIf(err != nil, wire.TargetMissing, "target", "cannot find the sandbox directory %s in the container: %v", path, err)
	namespace.DieIf(!sameFile(fd, host), wire.TargetForbidden, "target", "cannot use %s in the container as its sandbox: it is not the directory that was named", path)
	p.sandMount, _, err = namespace.MountOf(fd)
	namespace.Check(err, wire.System, "target", "cannot examine the sandbox directory %s", path)
	p.sandbox, p.sandboxPath = fd, path
}

// A Mountpoint is a place in a container, resolved once: what exists of it is a descriptor, what does not are names without a slash.
type Mountpoint struct {
	place         *Place
	fd            int      // the mountpoint, or while names are missing the deepest directory that exists
	names         []string // its resolved path from the root of the place
	missing, made int      // how many of the last of names are ours to make; how many of those are made by now
	base          string   // RootID of the deepest directory that was there, or that somebody else made

	dir   bool // it is to be a directory, or else a file
	inVol bool // it lies in another volume of the same request
}

// Path returns the resolved path as a process of the container sees it.
func (m *Mountpoint) Path() string { return absolute(m.names).String() }

// ID returns the RootID of the mountpoint.
func (m *Mountpoint) ID() string { return RootID(m.fd) }

// Record returns what the ledger keeps of the mountpoint. Made are those of the last components that were missing when it was resolved, and once they are made those that nobody else had made meanwhile.
func (m *Mountpoint) Record() wire.Recorded {
	prefix := strings.TrimSuffix(absolute(m.place.prefix.Components).String(), "/")
	return wire.Recorded{Path: m.Path(), Prefix: prefix, Root: RootID(m.place.root), Base: m.base, Made: m.missing, RootUID: m.place.target.UID, RootGID: m.place.target.GID}
}

// InSandbox returns the part of the path below the sandbox directory.
func (m *Mountpoint) InSandbox() string {
	return strings.Join(m.names[len(m.place.sandboxPath.Components):], "/")
}

// here is the part of the path that exists.
func (m *Mountpoint) here() []string { return m.names[:len(m.names)-m.missing+m.made] }

// maxLinks is the kernel's own limit of symlinks in one resolution (path_resolution(7)).
const maxLinks = 40

// maxMissing is how many components of a path are made: each has an entry in the ledger, and a path has room for 2,047.
const maxMissing = 32

// Resolve resolves path in the place without making anything, for a directory or a file. The walk is done name by name, each opened in the one before it without following links; a link is read and its
// text walked from the right place, so that no link, absolute or not, leads out of the root (T16), and the rules are told the names of the result. A ".." in a link starts again from the root with the
// shortened list of names, so the kernel is never asked for a parent (T18). It runs with the file system ids of the container's root. Dies of target_missing, target_forbidden, invalid_request.
func (p *Place) Resolve(path wire.Path, dir bool) *Mountpoint {
	m := &Mountpoint{place: p, fd: p.root, dir: dir}
	if p.target.UserNS >= 0 && p.target.UID == 0 { // with fsuid 0 would go what overrides permissions; the root of a user namespace has no power over files of ids that it does not map
		Confine(wire.OpAttach, 1<<unix.CAP_DAC_OVERRIDE)
	}
	AsRoot(p.target.UID, p.target.GID, func() { m.walk(path) })
	full := absolute(m.names)
	var st unix.Stat_t
	namespace.Check(unix.Fstat(m.fd, &st), wire.System, "target", "cannot stat %s in the container", path)
	in := func(l []wire.Path) bool {
		return slices.ContainsFunc(l, func(d wire.Path) bool { return d.Contains(full) })
	}
	exact := func(d wire.Path) bool { return d.String() == full.String() || d.String() == path.String() }
	forbid(len(m.names) == 0 || !path.Absolute && len(m.names) <= len(p.sandboxPath.Components), path, "it is the root itself")
	p.outside(!p.allows(path, full) || p.onHost && path.Absolute && !in(p.rules.HostPaths), path)
	forbid(in(p.rules.DenyUnder) || slices.ContainsFunc(p.rules.Deny, exact), path, full.String()+" is in a deny list of helper.toml")
	namespace.Hint("create it on the host, or use a relative path, which is made in the sandbox").DieIf(m.missing > 0 && p.onHost && path.Absolute, wire.TargetMissing, "target", "cannot attach at %s: it does not exist, and the container shares the host's root, where nothing is made", path)
	forbid(m.missing > maxMissing, path, "more than "+strconv.Itoa(maxMissing)+" of its components do not exist")
	if m.base = RootID(m.fd); m.missing > 0 {
		m.mayMake()
	} else {
		fits(path, st.Mode, dir)
	}
	return m
}

// allows says whether a walk may look at names. A container that shares the host's root must not learn from an error what there is elsewhere (T21, T31), and a link in a sandbox must not lead out of it.
func (p *Place) allows(path, at wire.Path) bool {
	related := func(root wire.Path) bool { return root.Contains(at) || at.Contains(root) } // below it, or on the way to it
	if !path.Absolute {
		return related(p.sandboxPath)
	}
	return !p.onHost || slices.ContainsFunc(p.rules.HostPaths, related)
}

func (p *Place) outside(cond bool, path wire.Path) {
	forbid(cond && p.onHost && path.Absolute, path, "the container shares the host's root, and the path is not under targets.host_paths of helper.toml")
	forbid(cond, path, "it leads out of the sandbox directory")
}

func (m *Mountpoint) walk(path wire.Path) {
	p, todo := m.place, slices.Clone(path.Components)
	if !path.Absolute {
		namespace.Hint("name it with --directory").DieIf(p.sandbox < 0, wire.InvalidRequest, "target", "cannot use the relative path %s: no sandbox directory was named", path)
		m.fd, m.names = p.sandbox, p.sandboxPath.Components
	}
	links, linked := 0, 0 // linked: how many of todo came out of a link
	var link []string     // which one: the first, if it led to others. An error does not tell what one says, since it may lie in somebody's volume
	for p.judgeMount(m.fd, path, m.names); len(todo) > 0; {
		if links > maxLinks {
			atFault(path, m.names, unix.ELOOP)
		}
		name := todo[0]
		if name == ".." {
			back := m.names[:max(len(m.names)-1, 0)]
			todo, linked, links = append(slices.Clone(back), todo[1:]...), linked-1+len(back), links+1
			m.restart()
			continue
		}
		at := append(slices.Clone(m.names), name)
		p.outside(!p.allows(path, absolute(at)), path)
		next, err := unix.Openat(m.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if linked == 0 {
			link = at
		}
		if err == unix.ENOENT && linked == 0 {
			m.missing, m.names = len(todo), append(m.names[:len(m.names):len(m.names)], todo...)
			return
		}
		namespace.DieIf(err == unix.ENOENT, wire.TargetMissing, "target", "cannot resolve %s in the container: the link %s leads to what does not exist", path, absolute(link))
		atFault(path, link, err)
		p.judgeMount(next, path, at) // before it is asked anything else
		todo, linked = todo[1:], max(linked-1, 0)
		text := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(next, "", text)
		if err != nil { // no link
			m.moveTo(next)
			m.names = at
			continue
		}
		unix.Close(next)
		if text[0] == '/' {
			m.restart()
		}
		target := slices.DeleteFunc(strings.Split(string(text[:n]), "/"), func(c string) bool { return c == "" || c == "." })
		todo, linked, links = append(target, todo...), linked+len(target), links+1
	}
}

// judgeMount refuses what lies on a filesystem on and under which nothing is attached: where programs believe what the kernel says, and where a server could hang whoever looks.
func (p *Place) judgeMount(fd int, path wire.Path, at []string) {
	id, _, err := namespace.MountOf(fd)
	on, e := namespace.StatMount(id, p.target.NS.ID)
	atFault(path, at, cmp.Or(err, e))
	forbid(isFUSE(on.Type) || slices.Contains([]string{"proc", "sysfs", "cgroup", "cgroup2", "devtmpfs"}, on.Type), path, absolute(at).String()+" is on a "+on.Type+" filesystem")
}

func (m *Mountpoint) restart() { m.moveTo(m.place.root); m.names = nil }

// moveTo goes on at fd. What is walked past is closed, since a path has up to 2,048 components.
func (m *Mountpoint) moveTo(fd int) {
	if m.fd != m.place.root && m.fd != m.place.sandbox {
		unix.Close(m.fd)
	}
	m.fd = fd
}

// moveInto resolves the mountpoint again, since it lies in another volume of the same request, where it must exist. That volume is not attached yet: the tree that will be is looked at, so all is known
// before anything is visible.
func (m *Mountpoint) moveInto(outer *Mountpoint, tree int) {
	rest := m.names[len(outer.names):]
	fd, err := unix.Openat2(tree, strings.Join(rest, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: down}) // judged already, mount by mount
	namespace.DieIf(err != nil, wire.TargetMissing, "target", "cannot attach at %s: it lies in the volume at %s, where %s does not exist or is a link (%v)", m.Path(), outer.Path(), strings.Join(rest, "/"), err)
	m.moveTo(fd)
	m.missing, m.inVol = 0, true
	var st unix.Stat_t
	namespace.Check(unix.Fstat(fd, &st), wire.System, "target", "cannot stat %s", m.Path())
	fits(absolute(m.names), st.Mode, m.dir)
}

// mayMake checks that what is missing may be made where it is missing: on the container's root mount, its sandbox mount, or a tmpfs that is mounted nowhere on the host (docs/adr/0017). Any other mount in a
// container is somebody else's files.
func (m *Mountpoint) mayMake() {
	var st unix.Stat_t
	path, here := absolute(m.names), absolute(m.here())
	id, _, err := namespace.MountOf(m.fd)
	atFault(path, m.here(), cmp.Or(err, unix.Fstat(m.fd, &st)))
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		atFault(path, m.here(), unix.ENOTDIR)
	}
	p := m.place
	if id == p.rootMount || id == p.sandMount {
		return
	}
	on, err := namespace.StatMount(id, p.target.NS.ID)
	if err == nil && on.Type == "tmpfs" && (p.tmpfs == on.Dev || countMounts(^uint64(0), p.target.HostNS, func(m namespace.Mount) bool { return m.Dev == on.Dev }) == 0) {
		p.tmpfs = on.Dev
		return
	}
	namespace.Die(wire.Errorf(wire.TargetForbidden, "target", "cannot create %s in the container: %s is another mount, in which nothing is made", path, here).WithHint("create the path in what is mounted there"))
}

// Make makes the missing components, 0755, as the container's root would: with its file system ids, so that the kernel's own checks apply and there is never a moment with another owner (FACTS 3). A
// directory that somebody else made meanwhile is used. What is made is told to made, as RootID says. Dies of target_forbidden, system.
func (m *Mountpoint) Make(made func(folder string)) {
	AsRoot(m.place.target.UID, m.place.target.GID, func() {
		for m.made < m.missing {
			m.mayMake()
			name, last := m.names[len(m.here())], m.made+1 == m.missing
			flags, err := unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, error(nil)
			if m.dir || !last {
				flags |= unix.O_DIRECTORY
				err = unix.Mkdirat(m.fd, name, 0o755)
			} else {
				err = unix.Mknodat(m.fd, name, unix.S_IFREG|0o644, 0)
			}
			at := m.names[:len(m.here())+1]
			if err != unix.EEXIST || !m.dir && last {
				atFault(absolute(m.names), at, err)
			}
			next, e := unix.Openat(m.fd, name, flags, 0)
			if m.made++; err != nil { // the container, or another volume of the request: what is ours begins after it
				m.missing, m.made = m.missing-m.made, 0
			}
			atFault(absolute(m.names), at, e) // what was made is counted by now, so that it is removed again
			if m.moveTo(next); err != nil {
				m.base = RootID(next)
			} else {
				AsRoot(0, 0, func() { made(RootID(next)) })
			}
		}
	})
}

// Check verifies, right before the attach, that the pinned mountpoint is still what its path means in the container: one that was moved out of the root or deleted meanwhile is refused (T18).
func (m *Mountpoint) Check() {
	if m.inVol {
		return
	}
	AsRoot(m.place.target.UID, m.place.target.GID, func() {
		fd, err := Open(m.place.root, m.names, m.place.target.NS.ID, false)
		a, _, e1 := namespace.MountOf(fd)
		b, stx, e2 := namespace.MountOf(m.fd)
		namespace.DieIf(cmp.Or(err, e1, e2) != nil || a != b || !sameFile(fd, m.fd), wire.TargetForbidden, "attach", "cannot attach at %s: the container changed the path meanwhile", m.Path())
		unix.Close(fd)
		fits(absolute(m.names), uint32(stx.Mode), m.dir)
	})
}

// Unmake removes what Make made.
func (m *Mountpoint) Unmake(removal Removal) {
	r := m.Record()
	r.Path, r.Made = absolute(m.here()).String(), m.made
	RemoveMade(m.place.root, &r, removal)
}

// A Removal calls remove for a folder, named as RootID says, if that is still ours alone, and returns what it returned.
type Removal func(folder string, remove func() error) error

// Sure dies of system if an error, such as the ledger's own, leaves it open whether what was made is there: it stays on record then, to be tried again.
func Sure(err error, path string) {
	_, ledger := errors.AsType[*wire.Error](err)
	unknown := slices.Contains([]error{unix.EIO, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EBUSY}, err)
	namespace.DieIf(ledger || unknown, wire.System, "detach", "cannot remove what was made at %s: %v", path, err)
}

// RemoveMade removes what was made for r beneath the directory root, as the container's root user, if it is empty, the deepest first, until one is not. It must lie in the very directory r.Base and on its
// mount: what covers it now is not ours. No link is followed.
func RemoveMade(root int, r *wire.Recorded, removal Removal) {
	AsRoot(r.RootUID, r.RootGID, func() {
		names := components(r.Path)
		first := max(0, len(names)-r.Made) // of a record that cannot be, none is in base
		top, err := Open(root, names[:first], 0, false)
		if err == nil && RootID(top) != r.Base {
			err = unix.ESTALE
		}
		for i := len(names) - 1; i >= first && (err == nil || err == unix.ENOENT); i-- {
			dir, fd, open := -1, -1, func(at int, path string, flags uint64) (int, error) {
				return unix.Openat2(at, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: down | unix.RESOLVE_NO_XDEV})
			}
			if dir, err = open(top, "./"+strings.Join(names[first:i], "/"), unix.O_DIRECTORY); err == nil {
				fd, err = open(dir, names[i], 0)
			}
			if err == nil {
				AsRoot(0, 0, func() {
					err = removal(RootID(fd), func() (err error) {
						AsRoot(r.RootUID, r.RootGID, func() { err = removeEmpty(dir, names[i]) })
						return err
					})
				})
			}
			unix.Close(fd)
			unix.Close(dir)
		}
		unix.Close(top)
		Sure(err, r.Path)
	})
}

// removeEmpty removes an empty directory or file.
func removeEmpty(dir int, name string) error {
	var st unix.Stat_t
	err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if err == unix.ENOTDIR && unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
		err = unix.Unlinkat(dir, name, 0)
	}
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

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func absolute(names []string) wire.Path { return wire.Path{Absolute: true, Components: names} }

func sameFile(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

func fits(path wire.Path, mode uint32, dir bool) {
	kind := mode & unix.S_IFMT
	namespace.DieIf(dir && kind != unix.S_IFDIR, wire.InvalidRequest, "target", "cannot attach at %s: the volume is a directory, and that is none", path)
	namespace.DieIf(!dir && kind != unix.S_IFREG, wire.InvalidRequest, "target", "cannot attach at %s: the volume is a single file, and that is none", path)
}

func forbid(cond bool, path wire.Path, why string) {
	namespace.DieIf(cond, wire.TargetForbidden, "target", "cannot attach at %s in the container: %s", path, why)
}

// atFault ends the operation if err is not nil, naming the component that it happened at.
func atFault(path wire.Path, at []string, err error) {
	if err == nil {
		return
	}
	e := wire.Errorf(wire.System, "target", "cannot reach or create %s in the container: %s: %v", path, absolute(at), err).Because(err)
	if slices.ContainsFunc([]error{unix.ELOOP, unix.EROFS, unix.EACCES, unix.EPERM, unix.ENOENT}, func(errno error) bool { return errors.Is(err, errno) }) {
		e.Code, e.Hint = wire.TargetForbidden, "create the path in the container's image, or choose another one"
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EEXIST) {
		e.Code = wire.InvalidRequest
	}
	namespace.Die(e)
}
