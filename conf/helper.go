package conf

import (
	"bytes"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/bindgate/bindgate/wire"
)

// Helper is helper.toml: what the privileged side allows, whoever asks. It is root's alone.
type Helper struct {
	Callers struct {
		UIDs []uint32 `toml:"uids"` // who may call, besides the policy user
	} `toml:"callers"`
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

// Values of mounts.lock: lock the attributes of every attach, or only of those into containers in a user namespace of their own.
const (
	LockAlways = "always"
	LockUserns = "userns"
)

// DefaultHelper returns the configuration of an empty helper.toml: no source, no target rule, so nothing can be attached.
func DefaultHelper() *Helper {
	h := &Helper{}
	h.Callers.UIDs = []uint32{0}
	h.Targets.Deny = []string{"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/boot", "/etc/passwd",
		"/etc/shadow", "/etc/group", "/etc/sudoers", "/etc/ld.so.preload"}
	h.Targets.DenyUnder = []string{"/proc", "/sys", "/dev", "/boot", "/etc/pam.d", "/etc/sudoers.d", "/etc/ssh"}
	h.Mounts.Lock = LockAlways
	h.Limits.MountsPerRequest = 64
	h.Limits.MountsPerNamespace = 256
	h.Audit.File = AuditFile()
	return h
}

// LoadHelper reads and validates helper.toml. It is refused, with the code config, if it or a folder above it is not root's alone, if it holds an
// unknown key, or a value out of range.
func LoadHelper() (*Helper, error) {
	data, err := readTrusted(HelperTOML())
	if err != nil {
		return nil, err
	}
	return ParseHelper(data)
}

// ParseHelper is LoadHelper without the file.
func ParseHelper(data []byte) (*Helper, error) {
	h := DefaultHelper()
	if err := decode("helper.toml", data, h); err != nil {
		return nil, err
	}
	lists := [][]string{h.Targets.Cgroups, h.Targets.HostPaths, h.Targets.RootfsRoots, h.Targets.SandboxRoots, h.Targets.Deny, h.Targets.DenyUnder,
		{h.Audit.File}}
	for _, s := range h.Sources {
		lists = append(lists, []string{s.Path})
	}
	for _, list := range lists {
		for _, p := range list {
			q, err := wire.ParsePath(p)
			if err != nil || q.String() != p || !q.Absolute || len(q.Components) == 0 {
				return nil, wire.Errorf(wire.Config, "config", "cannot use %q in helper.toml: it must be a clean absolute path, not /", p)
			}
		}
	}
	if h.Mounts.Lock != LockAlways && h.Mounts.Lock != LockUserns {
		return nil, wire.Errorf(wire.Config, "config", "cannot use lock = %q in helper.toml: it is %q or %q", h.Mounts.Lock, LockAlways, LockUserns)
	}
	if n := h.Limits.MountsPerRequest; n < 1 || n > wire.MaxBlocks {
		return nil, wire.Errorf(wire.Config, "config", "cannot use mounts_per_request = %d in helper.toml: it is 1 to %d", n, wire.MaxBlocks)
	}
	if n := h.Limits.MountsPerNamespace; n < 1 || n > 10000 {
		return nil, wire.Errorf(wire.Config, "config", "cannot use mounts_per_namespace = %d in helper.toml: it is 1 to 10000", n)
	}
	return h, nil
}

// decode fills v from TOML and refuses keys that v does not have.
func decode(name string, data []byte, v any) error {
	md, err := toml.NewDecoder(bytes.NewReader(data)).Decode(v)
	if err != nil {
		why, _, _ := strings.Cut(err.Error(), "\n")
		return wire.Errorf(wire.Config, "config", "cannot read %s: %s", name, why)
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		return wire.Errorf(wire.Config, "config", "cannot use the key %s in %s: there is no such key", unknown[0], name)
	}
	return nil
}
