package conf

import (
	"cmp"
	"slices"

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
const LockAlways, LockUserns = "always", "userns"

// DefaultHelper returns the configuration of an empty helper.toml: no source, no target rule, so nothing can be attached.
func DefaultHelper() *Helper {
	h := &Helper{}
	h.Callers.UIDs = []uint32{0}
	h.Targets.Deny = []string{"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/boot", "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/sudoers", "/etc/ld.so.preload"}
	h.Targets.DenyUnder = []string{"/proc", "/sys", "/dev", "/boot", "/etc/pam.d", "/etc/sudoers.d", "/etc/ssh"}
	h.Mounts.Lock, h.Audit.File = LockAlways, AuditFile()
	h.Limits.MountsPerRequest, h.Limits.MountsPerNamespace = 64, 256
	return h
}

// LoadHelper reads and validates helper.toml. It is refused, with the code config, if it or a folder above it is not root's alone, if it holds an unknown key, or a value out of range.
func LoadHelper() (*Helper, error) {
	h := DefaultHelper()
	return h, cmp.Or(Load(HelperTOML(), h), h.validate())
}

// ParseHelper is LoadHelper without the file.
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
