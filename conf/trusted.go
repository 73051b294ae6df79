package conf

import (
	"cmp"
	"io"
	"os"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// OpenTrusted opens an absolute path that only root can have put there: every folder above its last component is root's, not writable by others, and no component is a symlink, so that nobody else can
// make the name mean something else (T08, T29). The last component is opened with the given flags and may be anybody's; RootOwned checks it where it must be root's too. private says that a folder above
// it lets nobody but root through: not even the group, whose bits are the mask where there is an ACL. Errors have the code config; for a component that is not there they also match unix.ENOENT.
func OpenTrusted(path string, flags int) (fd int, private bool, err error) {
	p, err := wire.ParsePath(path)
	fd, e := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil || e != nil || !p.Absolute {
		return -1, false, wire.Errorf(wire.Config, "config", "cannot use the path %s: it must be absolute, without \"..\"", path).Because(cmp.Or(err, e))
	}
	for i, name := range p.Components {
		at, how, above := wire.Path{Absolute: true, Components: p.Components[:i]}, unix.O_PATH|unix.O_DIRECTORY, fd
		st, err := RootOwned(above, at.String())
		private = private || st.Mode&0o011 == 0
		if i == len(p.Components)-1 {
			how = flags | unix.O_NONBLOCK // a FIFO must not hold us up
		}
		if err == nil {
			if fd, e = unix.Openat(above, name, how|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); e != nil {
				err = wire.Errorf(wire.Config, "config", "cannot open %s: %s in %s: %v (a symlink on the way is not followed)", path, name, at, e).Because(e)
			}
		}
		if unix.Close(above); err != nil {
			return -1, false, err
		}
	}
	return fd, private, nil
}

// RootOwned checks that what fd refers to belongs to root and is not writable by group or others, and returns its status. path is for the message; the code is config, or system.
func RootOwned(fd int, path string) (st unix.Stat_t, err error) {
	if e := unix.Fstat(fd, &st); e != nil {
		err = wire.Errorf(wire.System, "config", "cannot examine %s: %v", path, e).Because(e)
	} else if st.Uid != 0 || st.Mode&0o022 != 0 {
		err = wire.Errorf(wire.Config, "config", "cannot trust %s: it is owned by uid %d with mode %04o", path, st.Uid, st.Mode&0o7777).WithHint("chown root %s && chmod go-w %s", path, path)
	}
	return st, err
}

// Load reads a configuration file into v and refuses keys that v does not have: regular, root's, not writable by others, link count 1, as every folder above it.
func Load(path string, v any) error {
	fd, _, err := OpenTrusted(path, unix.O_RDONLY)
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	st, e := RootOwned(fd, path)
	if err = cmp.Or(err, e); err != nil {
		return err
	} else if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size > 1<<20 {
		return wire.Errorf(wire.Config, "config", "cannot trust %s: it must be a regular file of at most %d bytes with link count 1", path, 1<<20)
	}
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return wire.Errorf(wire.System, "config", "cannot read %s: %v", path, err)
	}
	return Parse(path, data, v)
}

// Parse is Load without the file.
func Parse(name string, data []byte, v any) error {
	md, err := toml.Decode(string(data), v)
	if err != nil {
		return wire.Errorf(wire.Config, "config", "cannot read %s: %s", name, strings.SplitN(err.Error(), "\n", 2)[0])
	} else if unknown := md.Undecoded(); len(unknown) > 0 {
		return wire.Errorf(wire.Config, "config", "cannot use the key %s in %s: there is no such key", unknown[0], name)
	}
	return nil
}

// Bad refuses a value, as wire.Config.
func Bad(key string, value any, want string) error {
	return wire.Errorf(wire.Config, "config", "cannot use %s = %v: it must be %s", key, value, want)
}
