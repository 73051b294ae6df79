package privops

import (
	"slices"
	"strings"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// A SourceRoot is one allowed folder of helper.toml, opened.
type SourceRoot struct {
	FD                           int  // O_PATH descriptor
	Sealed                       bool // a folder above it is root's and lets nobody else through
	RequireMountpoint, AllowFUSE bool // what helper.toml says
	Ours                         bool // the local driver's folder, in which nobody mounts
}

// A Source is a directory or file to attach, pinned: from here on it is only its descriptor. It is sealed: a container that writes a setuid file into the volume must not thereby have one on the host
// (FACTS 15), so no user of the host may reach it, or its mount on the host takes the bits away.
type Source struct {
	fd                 int
	Path               string // as asked, for messages and records
	IsDir              bool
	private, allowFUSE bool // sealed by a folder above it, and so are the mounts in it; what its [[source]] says
	mounts             int  // how many mounts lie in it on the host; -1: not counted
}

func (s *Source) forbid(cond bool, hint namespace.Hint, format string, args ...any) {
	hint.DieIf(cond, wire.SourceForbidden, "source", "cannot use the source %s: "+format, append([]any{s.Path}, args...)...)
}

// PinSource opens path beneath root, and subpath beneath that, one component at a time: each is opened in the one before it, so a component that is exchanged meanwhile is either found or not, never
// followed (T09). A mount on the way is asked for its type before anything is looked up in it, so a FUSE server cannot hang us where it is not allowed (T11). The result is a directory, or a regular file
// with link count 1 (T44). Dies of source_forbidden whatever the reason.
func PinSource(root SourceRoot, asked string, path, subpath []string) *Source {
	s := &Source{fd: root.FD, Path: asked, private: root.Sealed, allowFUSE: root.AllowFUSE, mounts: -1}
	s.forbid(len(path) == 0, "", "it is the allowed folder itself, not something in it")
	all, mount, st := slices.Concat(path, subpath), namespace.Mount{}, unix.Stat_t{}
	for i := 0; ; i++ {
		id, stx, err := namespace.MountOf(s.fd)
		if err == nil && id != mount.ID {
			mount, err = namespace.StatMount(id, 0)
		}
		s.forbid(err != nil, "", "its mount cannot be examined: %v", err)
		s.forbid(isFUSE(mount.Type) && !root.AllowFUSE, "root can set allow_fuse = true for this [[source]] in helper.toml", "it is on a %s filesystem", mount.Type)
		s.forbid(i == len(path) && root.RequireMountpoint && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0, "", "nothing is mounted there, and its [[source]] has require_mountpoint")
		err = unix.Fstat(s.fd, &st)
		if s.forbid(err != nil, "", "%v", err); i == len(all) {
			break
		}
		s.private = s.private || st.Uid == 0 && st.Mode&0o011 == 0 // not even the group: with an ACL its bits are the mask
		next, err := unix.Openat2(s.fd, all[i], &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: down})
		s.forbid(err != nil, "", "%s: %v", strings.Join(all[:i+1], "/"), err)
		unix.Close(s.fd)
		s.fd = next
	}
	s.IsDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	s.forbid(!s.IsDir && st.Mode&unix.S_IFMT != unix.S_IFREG, "", "it is neither a directory nor a regular file")
	s.forbid(!s.IsDir && st.Nlink != 1, "", "it is a file with %d links, so it has a name elsewhere too", st.Nlink)
	s.forbid(!s.private && !strips(mount), "chmod 0700 a folder of root's above it, or mount it with nosuid,nodev: otherwise a setuid file that a container writes there is setuid on the host", "it is not sealed: users of the host can reach it, and its mount lacks nosuid or nodev")
	if !root.Ours {
		s.mounts = MountsIn(mount.ID, 0, strings.TrimRight(asked, "/")+strings.Join(append([]string{""}, subpath...), "/")+"/")
	}
	return s
}

// MountsIn counts the mounts below the mount id (^0: all, LSMT_ROOT of listmount(2)), in the namespace with the id ns (0: the calling thread's), whose path begins with prefix; countMounts those that is says are meant.
func MountsIn(id, ns uint64, prefix string) int {
	return countMounts(id, ns, func(m namespace.Mount) bool { return strings.HasPrefix(m.Point+"/", prefix) })
}

func countMounts(id, ns uint64, is func(namespace.Mount) bool) (count int) {
	for last, n := uint64(0), namespace.MaxMounts; n == namespace.MaxMounts; {
		ids, err := namespace.ListMounts(id, last, ns)
		namespace.Check(err, wire.System, "mounts", "cannot list the host's mounts")
		n = len(ids)
		for _, last = range ids {
			if m, err := namespace.StatMount(last, ns); err == nil && is(m) {
				count++
			}
		}
	}
	return count
}

// strips reports whether a mount takes setuid bits and device nodes away.
func strips(m namespace.Mount) bool {
	const both = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	return m.Attr&both == both
}

func isFUSE(fstype string) bool {
	return fstype == "fuse" || fstype == "fuseblk" || strings.HasPrefix(fstype, "fuse.")
}
