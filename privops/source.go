package privops

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
)

// A SourceRoot is one allowed folder of helper.toml, opened.
type SourceRoot struct {
	FD                int  // O_PATH descriptor
	Sealed            bool // a folder above it is root's and not searchable by others
	RequireMountpoint bool
	AllowFUSE         bool
}

// A Source is a directory or file to attach, pinned: from here on it is only its descriptor.
type Source struct {
	fd    int
	Path  string // as asked, for messages and the audit
	IsDir bool
	// How it is sealed. A container that writes a setuid file into the volume must not thereby have one on the host (FACTS 15): no user of the host
	// may reach it, or its mount on the host takes the bits away.
	sealedByFolder bool
	allowFUSE      bool
}

// resolveDown is openat2's rule for one step into a source: no symlink, no magic link, never up.
const resolveDown = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// PinSource opens path beneath root, and subpath beneath that, one component at a time: each is opened in the one before it, so a component that is
// exchanged meanwhile is either found or not, never followed (T09). A mount on the way is asked for its type before anything is looked up in it, so a
// FUSE server cannot hang us where it is not allowed (T11). The result is a directory, or a regular file with link count 1 (T44), and it is sealed.
// The error is source_forbidden whatever the reason.
func PinSource(root SourceRoot, asked string, path, subpath []string) (*Source, error) {
	s := &Source{Path: asked, sealedByFolder: root.Sealed, allowFUSE: root.AllowFUSE}
	forbidden := func(format string, args ...any) *wire.Error {
		e := wire.Errorf(wire.SourceForbidden, "source", "cannot use the source %s: "+format, append([]any{asked}, args...)...)
		return e
	}
	cur, err := unix.FcntlInt(uintptr(root.FD), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, forbidden("%v", err)
	}
	s.fd = cur
	fail := func(e *wire.Error) (*Source, error) {
		s.Close()
		return nil, e
	}
	if len(path) == 0 {
		return fail(forbidden("it is the allowed folder itself, not something in it"))
	}
	mount := uint64(0)
	all := append(append([]string{}, path...), subpath...)
	for i := 0; ; i++ {
		id, stx, err := namespace.MountOf(s.fd)
		if err != nil {
			return fail(forbidden("%v", err))
		}
		if id != mount {
			m, err := namespace.StatMount(id, 0)
			if err != nil {
				return fail(forbidden("its mount cannot be examined: %v", err))
			}
			if isFUSE(m.Type) && !root.AllowFUSE {
				return fail(forbidden("it is on a %s filesystem", m.Type).WithHint("root can set allow_fuse = true for this [[source]] in helper.toml"))
			}
			mount = id
		}
		if i == len(path) && root.RequireMountpoint && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
			return fail(forbidden("nothing is mounted there, and its [[source]] has require_mountpoint"))
		}
		if i == len(all) {
			s.IsDir = stx.Mode&unix.S_IFMT == unix.S_IFDIR
			break
		}
		var st unix.Stat_t
		if err := unix.Fstat(s.fd, &st); err != nil {
			return fail(forbidden("%v", err))
		}
		s.sealedByFolder = s.sealedByFolder || Seals(&st)
		next, err := unix.Openat2(s.fd, all[i], &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveDown})
		if err != nil {
			return fail(forbidden("%s: %v", strings.Join(all[:i+1], "/"), err))
		}
		unix.Close(s.fd)
		s.fd = next
	}
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		return fail(forbidden("%v", err))
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		if st.Nlink != 1 {
			return fail(forbidden("it is a file with %d links, so it has a name elsewhere too", st.Nlink))
		}
	default:
		return fail(forbidden("it is neither a directory nor a regular file"))
	}
	if m, err := namespace.StatMount(mount, 0); !s.sealedByFolder && (err != nil || !sealed(m)) {
		return fail(forbidden("it is not sealed: users of the host can reach it, and its mount lacks nosuid or nodev").
			WithHint("chmod 0700 a folder of root's above it, or mount it with nosuid,nodev: otherwise a setuid file that a container writes there is setuid on the host"))
	}
	return s, nil
}

// OpenBeneath opens the directory names beneath another, following no link. With no names it is that directory itself.
func OpenBeneath(dir int, names []string) (int, error) {
	return unix.Openat2(dir, "./"+strings.Join(names, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolveDown})
}

// Seals reports whether a folder keeps everybody but root from what lies below it. The group's bit counts even for group 0, since with a POSIX ACL it
// is the mask.
func Seals(st *unix.Stat_t) bool {
	return st.Uid == 0 && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o011 == 0
}

// sealed reports whether a mount takes setuid bits and device nodes away.
func sealed(m namespace.Mount) bool {
	const both = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	return m.Attr&both == both
}

func isFUSE(fstype string) bool {
	return fstype == "fuse" || fstype == "fuseblk" || strings.HasPrefix(fstype, "fuse.")
}

// Close closes the source's descriptor.
func (s *Source) Close() { unix.Close(s.fd) }
