package privops

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
)

// Rules are the parts of helper.toml that say where in a container a volume may land. The paths are clean and absolute.
type Rules struct {
	Deny      []wire.Path // these exact paths
	DenyUnder []wire.Path // these and all below
	HostPaths []wire.Path // for a container that shares the host's root: only these and below
}

// A Place is where mountpoints are resolved: the target's root, and for relative paths its sandbox directory.
type Place struct {
	target *namespace.Target
	root   int      // O_PATH descriptor of the root that paths are scoped to
	rootID uint64   // unique id of its mount
	prefix []string // of the root in the target's namespace, before the pivot
	ns     uint64

	sandbox     int // O_PATH descriptor of the sandbox directory as the container sees it; -1: none
	sandboxID   uint64
	sandboxPath []string
}

// NewPlace resolves what a request says of the target's file system, everything through its pinned root (DESIGN section 4).
//
// rootfs, if it is not empty, is the root filesystem of a container that has not pivoted: beneath an allowed root, a mountpoint in the target's namespace, while
// the process still has the host's root. sandbox, if it is not negative, is a descriptor of the host's sandbox directory; the container must have that
// same directory at sandboxPath. Errors: target_forbidden, target_missing.
func NewPlace(t *namespace.Target, rootfs wire.Path, sandbox int, sandboxPath wire.Path) (*Place, error) {
	p := &Place{target: t, root: t.Root, rootID: t.RootMount, ns: t.NS.ID, sandbox: -1}
	if len(rootfs.Components) > 0 {
		if !t.SharesHostRoot {
			return nil, wire.Errorf(wire.TargetForbidden, "target", "cannot use the rootfs %s: pid %d has a root of its own already", rootfs, t.PID).
				WithHint("a rootfs is named only before the container pivots")
		}
		if err := p.pinRootfs(rootfs); err != nil {
			return nil, err
		}
	}
	if sandbox < 0 {
		return p, nil
	}
	fd, err := unix.Openat2(p.root, strings.Join(sandboxPath.Components, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, wire.Errorf(wire.TargetMissing, "target", "cannot find the sandbox directory %s in the container: %v", sandboxPath, err).
			WithHint("mount it there before, or name the place with --sandbox-directory")
	}
	var here, host unix.Stat_t
	if unix.Fstat(fd, &here) != nil || unix.Fstat(sandbox, &host) != nil || here.Dev != host.Dev || here.Ino != host.Ino {
		unix.Close(fd)
		return nil, wire.Errorf(wire.TargetForbidden, "target", "cannot use %s in the container as its sandbox: it is not the directory that was named", sandboxPath)
	}
	if p.sandboxID, _, err = namespace.MountOf(fd); err != nil {
		unix.Close(fd)
		return nil, wire.Errorf(wire.System, "target", "cannot examine the sandbox directory %s: %v", sandboxPath, err)
	}
	p.sandbox, p.sandboxPath = fd, sandboxPath.Components
	return p, nil
}

func (p *Place) pinRootfs(rootfs wire.Path) error {
	refuse := func(why any) error {
		return wire.Errorf(wire.TargetForbidden, "target", "cannot use the rootfs %s: %v", rootfs, why)
	}
	fd, err := unix.Openat2(p.target.Root, strings.Join(rootfs.Components, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return refuse(err)
	}
	id, stx, err := namespace.MountOf(fd)
	m, merr := namespace.StatMount(id, p.ns)
	parent, perr := namespace.StatMount(m.Parent, p.ns)
	switch {
	case err != nil || merr != nil || perr != nil:
		err = refuse("its mount cannot be examined")
	case stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0:
		err = refuse("it is not a mountpoint in the container's namespace")
	case m.Dev != parent.Dev: // an inherited mount of somebody else's root, not one that the runtime bound onto itself
		err = refuse("it is not bound onto itself, as a runtime does for the container that it starts")
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	p.root, p.rootID, p.prefix = fd, id, rootfs.Components
	return nil
}

// A Mountpoint is a place in a container, resolved once: what exists of it is a descriptor, what does not are names without a slash.
type Mountpoint struct {
	place   *Place
	fd      int      // the mountpoint, or while names are missing the deepest directory that exists
	names   []string // its resolved path from the root of the place
	missing []string // the last of names, to be made
	made    int      // how many of them were made
	dir     bool     // make a directory, or else a file
	inVol   bool     // it lies in another volume of the same request
}

// Path returns the resolved path as a process of the container sees it.
func (m *Mountpoint) Path() string {
	return wire.Path{Absolute: true, Components: m.names}.String()
}

// Prefix returns the path of the root that Path begins at in the target's namespace: "" but before the pivot.
func (m *Mountpoint) Prefix() string {
	if m.place.prefix == nil {
		return ""
	}
	return "/" + strings.Join(m.place.prefix, "/")
}

// Missing returns how many of the last components of Path are missing.
func (m *Mountpoint) Missing() int { return len(m.missing) }

// Made returns how many components were made.
func (m *Mountpoint) Made() int { return m.made }

// maxLinks is the kernel's own limit of symlinks in one resolution (path_resolution(7)).
const maxLinks = 40

// Resolve resolves path in the place without making anything. The walk is done name by name, each opened in the one before it without following links;
// a link is read and its text walked from the right place, so that no link, absolute or not, leads out of the root (T16), and the names of the result are known
// to the rules. A ".." in a link starts again from the root with the shortened list of names, so it never asks the kernel for a parent (T18).
// Errors: target_missing, target_forbidden, invalid_request.
func (p *Place) Resolve(path wire.Path, dir bool, rules *Rules) (m *Mountpoint, err error) {
	err = p.asContainerRoot(func() (err error) {
		m, err = p.walk(path, dir, rules)
		return err
	})
	return m, err
}

func (p *Place) walk(path wire.Path, dir bool, rules *Rules) (*Mountpoint, error) {
	m := &Mountpoint{place: p, dir: dir}
	start, names := p.root, []string(nil)
	if !path.Absolute {
		if p.sandbox < 0 {
			return nil, wire.Errorf(wire.InvalidRequest, "target", "cannot use the relative path %s: no sandbox directory was named", path).WithHint("name it with --directory")
		}
		start, names = p.sandbox, p.sandboxPath
	}
	if len(path.Components) == 0 {
		return nil, forbidden(path, "it is the root itself")
	}
	hostRules := p.target.SharesHostRoot && p.prefix == nil
	// inside says whether a walk may look at names: a container that shares the host's root must not learn from the error what there is elsewhere (T21, T31).
	inside := func(names []string) bool {
		at := wire.Path{Absolute: true, Components: names}
		if !path.Absolute {
			return related(wire.Path{Absolute: true, Components: p.sandboxPath}, at)
		}
		return !hostRules || slices.ContainsFunc(rules.HostPaths, func(h wire.Path) bool { return related(h, at) })
	}
	outside := forbidden(path, "it leads to a place that is not allowed")
	if hostRules && path.Absolute {
		outside = forbidden(path, "the container shares the host's root, and the path is not under targets.host_paths of helper.toml")
		if !slices.ContainsFunc(rules.HostPaths, func(h wire.Path) bool { return h.Contains(path) }) {
			return nil, outside
		}
	}

	cur, err := dup(start)
	if err != nil {
		return nil, wire.Errorf(wire.System, "target", "cannot resolve %s: %v", path, err)
	}
	m.fd = cur
	fail := func(err error) (*Mountpoint, error) {
		m.Close()
		return nil, err
	}
	mount := uint64(0)
	todo := slices.Clone(path.Components)
	links, fromLink := 0, 0 // fromLink: how many of todo came out of a link
	for {
		id, _, err := namespace.MountOf(m.fd)
		if err != nil {
			return fail(atFault(path, names, err))
		}
		if id != mount {
			what, err := namespace.StatMount(id, p.ns)
			if err != nil {
				return fail(atFault(path, names, err))
			}
			if why := refusedType(what.Type); why != "" {
				return fail(forbidden(path, "/"+strings.Join(names, "/")+" is on a "+what.Type+" filesystem, "+why))
			}
			mount = id
		}
		if len(todo) == 0 {
			break
		}
		name := todo[0]
		if name == ".." {
			todo = append(slices.Clone(names[:max(len(names)-1, 0)]), todo[1:]...)
			names, fromLink = nil, max(fromLink-1, 0)+max(len(names)-1, 0)
			if err := m.reopen(p.root); err != nil {
				return fail(atFault(path, names, err))
			}
			if links++; links > maxLinks {
				return fail(atFault(path, names, unix.ELOOP))
			}
			continue
		}
		at := append(slices.Clone(names), name)
		if !inside(at) {
			return fail(outside)
		}
		next, err := unix.Openat(m.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) && fromLink == 0 && !slices.Contains(todo, "..") {
			m.missing = todo
			names = append(names, todo...)
			break
		} else if errors.Is(err, unix.ENOENT) {
			return fail(wire.Errorf(wire.TargetMissing, "target", "cannot resolve %s in the container: a link on the way leads to /%s, which does not exist", path, strings.Join(at, "/")))
		} else if err != nil {
			return fail(atFault(path, at, err))
		}
		todo, fromLink = todo[1:], max(fromLink-1, 0)
		text, err := readlink(next)
		if err == nil { // a link
			unix.Close(next)
			if links++; links > maxLinks {
				return fail(atFault(path, at, unix.ELOOP))
			}
			if strings.HasPrefix(text, "/") {
				names = nil
				if err := m.reopen(p.root); err != nil {
					return fail(atFault(path, at, err))
				}
			}
			target := slices.DeleteFunc(strings.Split(text, "/"), func(c string) bool { return c == "" || c == "." })
			todo, fromLink = append(target, todo...), fromLink+len(target)
			continue
		}
		unix.Close(m.fd)
		m.fd, names = next, at
	}
	m.names = names
	return m.judge(path, rules, hostRules, outside)
}

// judge applies the rules to a resolved path.
func (m *Mountpoint) judge(path wire.Path, rules *Rules, hostRules bool, outside error) (*Mountpoint, error) {
	p, full := m.place, wire.Path{Absolute: true, Components: m.names}
	err := error(nil)
	var st unix.Stat_t
	switch {
	case !path.Absolute && (len(m.names) <= len(p.sandboxPath) || !(wire.Path{Absolute: true, Components: p.sandboxPath}).Contains(full)):
		err = outside // a link in the sandbox must not lead out of it
	case hostRules && path.Absolute && !slices.ContainsFunc(rules.HostPaths, func(h wire.Path) bool { return h.Contains(full) }):
		err = outside
	case len(m.names) == 0:
		err = forbidden(path, "it is the root itself")
	case slices.ContainsFunc(rules.Deny, func(d wire.Path) bool { return d.Contains(full) && full.Contains(d) }),
		slices.ContainsFunc(rules.DenyUnder, func(d wire.Path) bool { return d.Contains(full) }):
		err = forbidden(path, full.String()+" is in a deny list of helper.toml")
	case len(m.missing) > 0 && hostRules && path.Absolute:
		err = wire.Errorf(wire.TargetMissing, "target", "cannot attach at %s: it does not exist, and the container shares the host's root, where nothing is made", path).
			WithHint("create it on the host, or use a relative path, which is made in the sandbox")
	case len(m.missing) > 0:
		err = m.mayMake(path)
	case unix.Fstat(m.fd, &st) != nil:
		err = wire.Errorf(wire.System, "target", "cannot stat %s in the container", path)
	default:
		err = fits(path.String(), st.Mode, m.dir)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// moveInto resolves the mountpoint again, since it lies in another volume of the same request, where it must exist. That volume is not attached yet: the tree that will be is
// looked at, so all is known before anything is visible.
func (m *Mountpoint) moveInto(outer *Mountpoint, tree int) error {
	rest := strings.Join(m.names[len(outer.names):], "/")
	fd, err := unix.Openat2(tree, rest, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveDown})
	if err != nil {
		return wire.Errorf(wire.TargetMissing, "target", "cannot attach at %s: it lies in the volume at %s, where %s does not exist or is a link (%v)", m.Path(), outer.Path(), rest, err)
	}
	unix.Close(m.fd)
	m.fd, m.missing, m.inVol = fd, nil, true
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return wire.Errorf(wire.System, "target", "cannot stat %s: %v", m.Path(), err)
	}
	return fits(m.Path(), st.Mode, m.dir)
}

// mayMake checks that what is missing may be made where it is missing: on the container's root mount, its sandbox mount or a tmpfs. Any other mount in a
// container is somebody else's files, bind-mounted in.
func (m *Mountpoint) mayMake(path wire.Path) error {
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return wire.Errorf(wire.System, "target", "cannot stat a folder of %s: %v", path, err)
	}
	here := m.names[:len(m.names)-len(m.missing)+m.made]
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return atFault(path, here, unix.ENOTDIR)
	}
	id, _, err := namespace.MountOf(m.fd)
	if err != nil {
		return atFault(path, here, err)
	}
	if id == m.place.rootID || m.place.sandbox >= 0 && id == m.place.sandboxID {
		return nil
	}
	if on, err := namespace.StatMount(id, m.place.ns); err != nil || on.Type != "tmpfs" {
		return wire.Errorf(wire.TargetForbidden, "target", "cannot create %s in the container: /%s is another mount, in which nothing is made", path, strings.Join(here, "/")).
			WithHint("create the path in what is mounted there")
	}
	return nil
}

// Make makes the missing components, 0755 and owned by the container's root, as the container's root itself would: with its file system ids, so that the kernel's
// own checks apply and there is never a moment with another owner (FACTS 3). A component that somebody else made meanwhile is used if it is a
// directory on the same mount, and not counted. Errors: target_forbidden, system.
func (m *Mountpoint) Make() error {
	return m.place.asContainerRoot(func() error {
		path := wire.Path{Absolute: true, Components: m.names}
		for len(m.missing) > m.made {
			if err := m.mayMake(path); err != nil {
				return err
			}
			i := len(m.names) - len(m.missing) + m.made
			if err := m.makeNext(m.names[i], i == len(m.names)-1); err != nil {
				return atFault(path, m.names[:i+1], err)
			}
			m.made++
		}
		return nil
	})
}

func (m *Mountpoint) makeNext(name string, last bool) error {
	var err error
	if m.dir || !last {
		if err = unix.Mkdirat(m.fd, name, 0o755); err == unix.EEXIST {
			err = nil
		}
	} else {
		var fd int
		if fd, err = unix.Openat(m.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return err
	}
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if m.dir || !last {
		flags |= unix.O_DIRECTORY
	}
	next, err := unix.Openat(m.fd, name, flags, 0)
	if err != nil {
		return err
	}
	unix.Close(m.fd)
	m.fd = next
	return nil
}

// Check verifies, right before the attach, that the pinned mountpoint is still what its path means in the container: one that was moved out of the root or
// deleted meanwhile is refused (T18).
func (m *Mountpoint) Check() error {
	if m.inVol {
		return nil
	}
	return m.place.asContainerRoot(func() error {
		path := "/" + strings.Join(m.names, "/")
		fd, err := unix.Openat2(m.place.root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
		if err == nil {
			defer unix.Close(fd)
			var a, b unix.Stat_t
			m1, _, e1 := namespace.MountOf(fd)
			m2, _, e2 := namespace.MountOf(m.fd)
			if errors.Join(e1, e2, unix.Fstat(fd, &a), unix.Fstat(m.fd, &b)) == nil && m1 == m2 && a.Dev == b.Dev && a.Ino == b.Ino {
				return fits(path, b.Mode, m.dir)
			}
		}
		return wire.Errorf(wire.TargetForbidden, "attach", "cannot attach at %s: the container changed the path meanwhile", path)
	})
}

// Unmake removes what Make made, the deepest first, as long as it is empty.
func (m *Mountpoint) Unmake() {
	m.place.asContainerRoot(func() error {
		RemoveMade(m.place.root, m.names, m.made)
		return nil
	})
	m.made = 0
}

// RemoveMade removes the last n of names beneath the directory root if they are empty, the deepest first, until one is not. No link is followed. It reports whether
// all are gone.
func RemoveMade(root int, names []string, n int) bool {
	for ; n > 0; n, names = n-1, names[:len(names)-1] {
		last := len(names) - 1
		dir, err := unix.Openat2(root, "./"+strings.Join(names[:last], "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: resolveDown})
		if err != nil {
			return errors.Is(err, unix.ENOENT)
		}
		var st unix.Stat_t
		if err = unix.Fstatat(dir, names[last], &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			switch {
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				err = unix.Unlinkat(dir, names[last], unix.AT_REMOVEDIR)
			case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0:
				err = unix.Unlinkat(dir, names[last], 0)
			default:
				err = unix.ENOTEMPTY
			}
		}
		unix.Close(dir)
		if err != nil && err != unix.ENOENT {
			return false
		}
	}
	return true
}

// Close closes the mountpoint's descriptor.
func (m *Mountpoint) Close() {
	if m.fd > 0 {
		unix.Close(m.fd)
	}
	m.fd = -1
}

func (m *Mountpoint) reopen(root int) error {
	fd, err := dup(root)
	if err == nil {
		unix.Close(m.fd)
		m.fd = fd
	}
	return err
}

// asContainerRoot runs f with the file system ids of the container's root user. They belong to the thread; the capabilities that override permissions go with
// fsuid 0 and come back with it (capabilities(7)).
func (p *Place) asContainerRoot(f func() error) error {
	return AsContainerRoot(p.target.UID, p.target.GID, f)
}

// AsContainerRoot runs f with the calling thread's file system ids set to uid and gid.
func AsContainerRoot(uid, gid int, f func() error) error {
	unix.SetfsgidRetGid(gid)
	unix.SetfsuidRetUid(uid)
	defer func() {
		unix.SetfsuidRetUid(0)
		unix.SetfsgidRetGid(0)
	}()
	if now, _ := unix.SetfsuidRetUid(-1); now != uid { // these calls report no errors; asking with -1 tells
		return wire.Errorf(wire.System, "target", "cannot take on the file system uid %d", uid)
	}
	if now, _ := unix.SetfsgidRetGid(-1); now != gid {
		return wire.Errorf(wire.System, "target", "cannot take on the file system gid %d", gid)
	}
	return f()
}

func dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) }

// readlink returns the text of the link that fd, opened with O_PATH and O_NOFOLLOW, refers to; an error if it is none.
func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// related reports whether one path is or contains the other: at lies below the allowed path, or on the way to it.
func related(allowed, at wire.Path) bool { return allowed.Contains(at) || at.Contains(allowed) }

func fits(path string, mode uint32, dir bool) error {
	isDir := mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case dir && !isDir:
		return wire.Errorf(wire.InvalidRequest, "target", "cannot attach at %s: the volume is a directory, and that is none", path)
	case !dir && mode&unix.S_IFMT != unix.S_IFREG:
		return wire.Errorf(wire.InvalidRequest, "target", "cannot attach at %s: the volume is a single file, and that is none", path)
	}
	return nil
}

// refusedType says why nothing is attached on or under a filesystem of this type; "" if it may be.
func refusedType(fstype string) string {
	switch {
	case fstype == "proc", fstype == "sysfs", fstype == "cgroup", fstype == "cgroup2", fstype == "devtmpfs":
		return "where programs believe what the kernel says"
	case isFUSE(fstype):
		return "which could hang whoever looks"
	}
	return ""
}

func forbidden(path wire.Path, why string) error {
	return wire.Errorf(wire.TargetForbidden, "target", "cannot attach at %s in the container: %s", path, why)
}

// atFault reports an errno with the component that it happened at.
func atFault(path wire.Path, at []string, err error) error {
	e := wire.Errorf(wire.System, "target", "cannot reach %s in the container: /%s: %v", path, strings.Join(at, "/"), err).Because(err)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		e.Code, e.Message = wire.InvalidRequest, "cannot create "+path.String()+" in the container: /"+strings.Join(at, "/")+" is not a directory"
	case errors.Is(err, unix.ELOOP):
		e.Code = wire.TargetForbidden
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Code = wire.TargetForbidden
		e.Hint = "create the path in the container's image, or choose another one"
	}
	return e
}
