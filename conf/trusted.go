package conf

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// OpenTrusted opens an absolute path that only root can have put there: every folder above its last component is root's, not writable by others, and
// no component is a symlink, so that nobody else can make the name mean something else (T08, T29). The last component is opened with the given flags
// and may be anybody's; RootOwned checks it where it must be root's too. The descriptor is close-on-exec.
//
// Errors have the code config; for a component that is not there they also match unix.ENOENT.
func OpenTrusted(path string, flags int) (fd int, private bool, err error) {
	p, err := wire.ParsePath(path)
	if err != nil || !p.Absolute {
		return -1, false, wire.Errorf(wire.Config, "config", "cannot use the path %s: it must be absolute, without \"..\"", path)
	}
	fd, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, wire.Errorf(wire.System, "config", "cannot open /: %v", err)
	}
	at := "/"
	for i, name := range p.Components {
		var st unix.Stat_t
		if err := errors.Join(RootOwned(fd, at), unix.Fstat(fd, &st)); err != nil {
			unix.Close(fd)
			return -1, false, err
		}
		private = private || st.Mode&0o011 == 0
		how := unix.O_PATH | unix.O_DIRECTORY
		if i == len(p.Components)-1 {
			how = flags | unix.O_NONBLOCK // a FIFO must not hold us up
		}
		next, err := unix.Openat(fd, name, how|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		at = wire.Path{Absolute: true, Components: p.Components[:i+1]}.String()
		if err != nil {
			return -1, false, wire.Errorf(wire.Config, "config", "cannot open %s: %v%s", at, err, symlinkNote(err)).Because(err)
		}
		fd = next
	}
	return fd, private, nil
}

func symlinkNote(err error) string {
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return " (a symlink on the way is not followed)"
	}
	return ""
}

// RootOwned checks that what fd refers to belongs to root and is not writable by group or others. path is for the message; the code is config.
func RootOwned(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return wire.Errorf(wire.System, "config", "cannot stat %s: %v", path, err)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return wire.Errorf(wire.Config, "config", "cannot trust %s: it is owned by uid %d with mode %04o", path, st.Uid, st.Mode&0o7777).
			WithHint("chown root %s && chmod go-w %s", path, path)
	}
	return nil
}

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// readTrusted reads a whole configuration file: regular, root's, not writable by others, link count 1, as every folder above it.
func readTrusted(path string) ([]byte, error) {
	fd, _, err := OpenTrusted(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := RootOwned(fd, path); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, wire.Errorf(wire.System, "config", "cannot stat %s: %v", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size > maxFile {
		return nil, wire.Errorf(wire.Config, "config", "cannot trust %s: it must be a regular file of at most %d bytes with link count 1", path, maxFile)
	}
	data := make([]byte, st.Size)
	for n := 0; n < len(data); {
		k, err := unix.Read(fd, data[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || k == 0 {
			return nil, wire.Errorf(wire.System, "config", "cannot read %s: it ended after %d of %d bytes: %v", path, n, len(data), err)
		}
		n += k
	}
	return data, nil
}
