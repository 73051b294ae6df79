package hook

import (
	"bytes"
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/wire"
)

// Splice puts the mounts of a list, which the policy process made, into a config.json, and leaves every other byte of it as it is. It is for root: podman does as root
// what the result says, so each mount is checked against helper.toml, as bindgate-helper would.
//
// The runtime follows the path of a source once more, later. So a source is taken only if nobody but root can put something else there: every folder above it is root's, and none
// is a symlink. And it mounts one mount, not a tree, with attributes that are not locked: a source with mounts in it is refused, and with mounts.lock = "always" a container with
// CAP_SYS_ADMIN, which could take the attributes off.
//
// Errors: invalid_request, source_forbidden, target_forbidden, limit_exceeded, config.
func Splice(config []byte, list *wire.Request, h *conf.Helper) ([]byte, error) {
	if err := bounded("config.json", config); err != nil {
		return nil, err
	}
	if n := h.Limits.MountsPerRequest; len(list.Mounts) > n {
		return nil, wire.Errorf(wire.LimitExceeded, "hook", "cannot attach %d volumes at once: mounts_per_request of helper.toml is %d", len(list.Mounts), n)
	}
	if err := checkContainer(config, h); err != nil {
		return nil, err
	}
	var entries [][]byte
	for _, m := range list.Mounts {
		if err := checkTarget(m.Path, h); err != nil {
			return nil, err
		}
		if err := checkSource(&m, h); err != nil {
			return nil, err
		}
		options := []string{"bind", "rprivate", m.Mode, "nosuid", "nodev"}
		if m.NoExec || h.Mounts.NoExec {
			options = append(options, "noexec")
		}
		entry, err := json.Marshal(struct {
			Destination string   `json:"destination"`
			Type        string   `json:"type"`
			Source      string   `json:"source"`
			Options     []string `json:"options"`
		}{path.Clean(m.Path), "bind", path.Clean(m.Source), options})
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return insert(config, entries)
}

// checkContainer applies the target rules: the container's cgroup, and what it could do to the attributes.
func checkContainer(config []byte, h *conf.Helper) error {
	var c struct {
		Process struct {
			Capabilities struct {
				Bounding []string `json:"bounding"`
			} `json:"capabilities"`
		} `json:"process"`
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return bad("cannot read config.json: %v", err)
	}
	cgroup := c.Linux.CgroupsPath
	if part := strings.Split(cgroup, ":"); len(part) == 3 { // SLICE:PREFIX:NAME is systemd's: the scope PREFIX-NAME in SLICE
		cgroup = sliceOf(part[0]) + "/" + part[1] + "-" + part[2] + ".scope"
	}
	at, err := wire.ParsePath(cgroup)
	if err != nil || !at.Absolute || !slices.ContainsFunc(wire.ParsePaths(h.Targets.Cgroups), func(r wire.Path) bool { return r.Contains(at) }) {
		return wire.Errorf(wire.TargetForbidden, "hook", "cannot attach: no rule in targets.cgroups of helper.toml matches the container's cgroup %q", cgroup)
	}
	if h.Mounts.Lock == conf.LockAlways && slices.Contains(c.Process.Capabilities.Bounding, "CAP_SYS_ADMIN") {
		return wire.Errorf(wire.TargetForbidden, "hook", "cannot attach: the container has CAP_SYS_ADMIN, and the attributes of a mount that the runtime makes are not locked").
			WithHint("use the hook createRuntime alone")
	}
	return nil
}

// sliceOf is the cgroup of a systemd slice: a-b.slice lies in a.slice (systemd.slice(5)).
func sliceOf(name string) string {
	base, p := strings.TrimSuffix(name, ".slice"), ""
	if base == "-" { // the root
		return ""
	}
	for i, r := range base + "-" {
		if r == '-' && i > 0 {
			p += "/" + base[:i] + ".slice"
		}
	}
	return p
}

func checkTarget(target string, h *conf.Helper) error {
	forbid := func(why string) error {
		return wire.Errorf(wire.TargetForbidden, "hook", "cannot attach at %s in the container: %s", target, why)
	}
	at, err := wire.ParsePath(target)
	switch {
	case err != nil:
		return err
	case !at.Absolute || len(at.Components) == 0:
		return forbid("a precreate hook takes an absolute path below the root")
	case slices.ContainsFunc(wire.ParsePaths(h.Targets.Deny), func(d wire.Path) bool { return d.String() == at.String() }),
		slices.ContainsFunc(wire.ParsePaths(h.Targets.DenyUnder), func(d wire.Path) bool { return d.Contains(at) }):
		return forbid("it is in a deny list of helper.toml")
	}
	return nil
}

func checkSource(m *wire.Mount, h *conf.Helper) error {
	forbid := func(why string) *wire.Error {
		return wire.Errorf(wire.SourceForbidden, "hook", "cannot use the source %s: %s", m.Source, why)
	}
	if m.Subpath != "" || m.IDMap {
		return forbid("a precreate hook attaches whole volumes, without an idmap")
	}
	asked, err := wire.ParsePath(m.Source)
	if err != nil {
		return err
	}
	var rule *conf.Source
	for i, s := range h.Sources {
		if p := wire.ParsePaths([]string{s.Path})[0]; p.Contains(asked) && len(p.Components) < len(asked.Components) && (rule == nil || len(s.Path) > len(rule.Path)) {
			rule = &h.Sources[i]
		}
	}
	ours := slices.ContainsFunc(wire.ParsePaths(append(conf.Own(), h.Audit.File)), func(own wire.Path) bool { return own.Contains(asked) || asked.Contains(own) })
	if rule == nil || ours {
		return forbid("it is not in an allowed source of helper.toml")
	}
	fd, private, err := conf.OpenTrusted(asked.String(), unix.O_PATH)
	if err != nil {
		return forbid(err.Error()).WithHint("the folders above it must be root's for a precreate hook; createRuntime takes others too")
	}
	defer unix.Close(fd)
	var stx unix.Statx_t
	var fs unix.Statfs_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &stx); err != nil {
		return forbid(err.Error())
	}
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return forbid(err.Error())
	}
	kind := stx.Mode & unix.S_IFMT
	const stripped = unix.ST_NOSUID | unix.ST_NODEV
	switch {
	case kind != unix.S_IFDIR && (kind != unix.S_IFREG || stx.Nlink != 1):
		return forbid("it is neither a directory nor a regular file with link count 1")
	case fs.Type == unix.FUSE_SUPER_MAGIC && !rule.AllowFUSE:
		return forbid("it is on a FUSE filesystem")
	case rule.RequireMountpoint && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return forbid("nothing is mounted there, and its [[source]] has require_mountpoint")
	case !private && fs.Flags&stripped != stripped:
		return forbid("it is not sealed: users of the host can reach it, and its mount lacks nosuid or nodev")
	}
	inside, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.Mountpoint, asked.String()+"/"), false
	})
	if err != nil {
		return wire.Errorf(wire.System, "hook", "cannot read the mounts of the host: %v", err)
	}
	if len(inside) > 0 {
		return forbid("something is mounted in it, at " + inside[0].Mountpoint).WithHint("use the hook createRuntime alone")
	}
	return nil
}

// insert puts entries at the end of the list "mounts" of a config.json.
func insert(config []byte, entries [][]byte) ([]byte, error) {
	if len(entries) == 0 {
		return config, nil
	}
	d := json.NewDecoder(bytes.NewReader(config))
	if t, _ := d.Token(); t != json.Delim('{') || !json.Valid(config) {
		return nil, bad("cannot read config.json: it is no JSON object")
	}
	text := string(bytes.Join(entries, []byte(",")))
	at, put := int(d.InputOffset()), `"mounts":[`+text+`]` // where there is none yet
	if d.More() {
		put += ","
	}
	for found := false; d.More(); {
		key, _ := d.Token()
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, bad("cannot read config.json: %v", err)
		}
		if key != "mounts" {
			continue
		}
		if found || value[0] != '[' { // podman writes neither
			return nil, bad("cannot read config.json: mounts is there twice, or is no list")
		}
		found = true
		at, put = int(d.InputOffset())-1, text
		if len(bytes.TrimSpace(value[1:len(value)-1])) > 0 {
			put = "," + text
		}
	}
	return slices.Concat(config[:at], []byte(put), config[at:]), nil
}
