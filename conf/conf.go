// Package conf holds helper.toml: its keys, defaults and validation; how a TOML file of the installation is read, and who may own it (policy.toml's keys are in policy/config); and the paths that are
// compiled into both binaries. The helper believes no path from argv or the environment.
package conf

import (
	"cmp"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// Set by the linker (-X) from the make variables of the same names.
var prefix, sysconfdir, localstatedir, rundir, user, version = "/usr/local", "/etc", "/var", "/run", "bindgate", "dev"

// User is the name of the policy user, the one who may call the setuid helper besides helper.toml's callers; Version is what both binaries were built as; the others are the paths of the installation.
func User() string         { return user }
func Version() string      { return version }
func HelperPath() string   { return prefix + "/libexec/bindgate/bindgate-helper" }
func HelperTOML() string   { return sysconfdir + "/bindgate/helper.toml" }
func PolicyTOML() string   { return sysconfdir + "/bindgate/policy.toml" }
func RunDir() string       { return rundir + "/bindgate" }
func LedgerDir() string    { return rundir + "/bindgate/ledger" }             // the helper's records; root's, 0700
func HelperSocket() string { return rundir + "/bindgate/helper.sock" }        // where systemd listens for the socket transport
func JournalDir() string   { return localstatedir + "/lib/bindgate/journal" } // the policy process' records; its user's, 0700
func VolumesDir() string   { return localstatedir + "/lib/bindgate/volumes" } // the local driver's volumes; root's, 0700
func AuditFile() string    { return localstatedir + "/log/bindgate/audit.jsonl" }
func Own() []string { // nobody's volume: what is in them is ours
	return []string{RunDir(), JournalDir(), sysconfdir + "/bindgate", prefix + "/libexec/bindgate", localstatedir + "/log/bindgate"}
}

// Helper is helper.toml: what the privileged side allows, whoever asks. It is root's alone.
type Helper struct {
	Callers struct {
		UIDs []uint32 `toml:"uids"`
	} `toml:"callers"` // who may call, besides the policy user
	Sources []Source `toml:"source"`
	Targets struct {
		Cgroups                []string `toml:"cgroups"`       // host's view; whole components
		HostPaths              []string `toml:"host_paths"`    // for containers that share the host's root
		RootfsRoots            []string `toml:"rootfs_roots"`  // where a rootfs may lie before the pivot
		SandboxRoots           []string `toml:"sandbox_roots"` // where a sandbox directory may lie
		Deny                   []string `toml:"deny"`          // these exact paths in a container
		DenyUnder              []string `toml:"deny_under"`    // these and all below
		AllowSharedPropagation bool     `toml:"allow_shared_propagation"`
	} `toml:"targets"`
	Mounts struct {
		AllowSUID  bool   `toml:"allow_suid"`
		AllowDev   bool   `toml:"allow_dev"`
		NoExec     bool   `toml:"noexec"`
		AllowIDMap bool   `toml:"allow_idmap"`
		Lock       string `toml:"lock"` // LockAlways or LockUserns
	} `toml:"mounts"`
	Limits struct {
		MountsPerRequest   int `toml:"mounts_per_request"`   // 1 to 1024
		MountsPerNamespace int `toml:"mounts_per_namespace"` // 1 to 10000
	} `toml:"limits"`
	Audit struct {
		File string `toml:"file"`
	} `toml:"audit"`
}

// A Source is a folder beneath which volumes lie. Every folder above it is root's.
type Source struct {
	Path              string `toml:"path"`
	RequireMountpoint bool   `toml:"require_mountpoint"` // what is attached must be the root of a mount
	AllowFUSE         bool   `toml:"allow_fuse"`
}

const LockAlways, LockUserns = "always", "userns" // of mounts.lock: the attributes of every attach, or only of those into containers in a user namespace of their own

// DefaultHelper returns the configuration of an empty helper.toml: no source, no target rule, so nothing can be attached.
func DefaultHelper() *Helper {
	h := &Helper{}
	h.Targets.Deny = []string{"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/boot", "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/sudoers", "/etc/ld.so.preload"}
	h.Targets.DenyUnder = []string{"/proc", "/sys", "/dev", "/boot", "/etc/pam.d", "/etc/sudoers.d", "/etc/ssh"}
	h.Callers.UIDs, h.Mounts.Lock, h.Audit.File, h.Limits.MountsPerRequest, h.Limits.MountsPerNamespace = []uint32{0}, LockAlways, AuditFile(), 64, 256
	return h
}

// LoadHelper reads and validates helper.toml. It is refused (config) if it or a folder above it is not root's alone, holds an unknown key or a value out of range. ParseHelper is it without the file.
func LoadHelper() (*Helper, error) {
	h := DefaultHelper()
	return h, cmp.Or(Load(HelperTOML(), h), h.validate())
}

func ParseHelper(data []byte) (*Helper, error) {
	h := DefaultHelper()
	return h, cmp.Or(Parse("helper.toml", data, h), h.validate())
}

func (h *Helper) validate() error {
	t, l := &h.Targets, h.Limits
	paths := slices.Concat(t.Cgroups, t.HostPaths, t.RootfsRoots, t.SandboxRoots, t.Deny, t.DenyUnder, []string{h.Audit.File})
	for _, s := range h.Sources {
		paths = append(paths, s.Path)
	}
	for _, p := range paths {
		if q, err := wire.ParsePath(p); err != nil || q.String() != p || !q.Absolute || len(q.Components) == 0 {
			return Bad("a path", p, "clean and absolute, not /")
		}
	}
	if h.Mounts.Lock != LockAlways && h.Mounts.Lock != LockUserns {
		return Bad("mounts.lock", h.Mounts.Lock, "always or userns")
	} else if l.MountsPerRequest < 1 || l.MountsPerRequest > wire.MaxBlocks || l.MountsPerNamespace < 1 || l.MountsPerNamespace > 10000 {
		return Bad("limits.mounts_per_request and mounts_per_namespace", l, "1 to 1024 and 1 to 10000")
	}
	return nil
}

// OpenTrusted opens an absolute path of which nobody but root can change the meaning: every folder above its last component is root's alone to write, and no component is a symlink (T08, T29). The last may be
// anybody's. private: a folder above it lets only root through, not even the group, whose bits are the mask of an ACL. Errors have the code config, and match unix.ENOENT for a component that is not there.
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

func Parse(name string, data []byte, v any) error { // is Load without the file
	md, err := toml.Decode(string(data), v)
	if err != nil {
		return wire.Errorf(wire.Config, "config", "cannot read %s: %s", name, strings.SplitN(err.Error(), "\n", 2)[0])
	} else if unknown := md.Undecoded(); len(unknown) > 0 {
		return wire.Errorf(wire.Config, "config", "cannot use the key %s in %s: there is no such key", unknown[0], name)
	}
	return nil
}

func Bad(key string, value any, want string) error { // refuses a value, as wire.Config
	return wire.Errorf(wire.Config, "config", "cannot use %s = %v: it must be %s", key, value, want)
}
