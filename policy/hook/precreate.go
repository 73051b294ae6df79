package hook

import (
	"context"
	"os"
	"regexp"
	"sync"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// Precreate makes the volumes of a container available on the host, for podman to mount them, and returns the list that Splice takes: a request as the helper's,
// since that form admits nothing but mounts; nil if the container names no volumes. The container's id is in its cgroups path, since podman's precreate hook gets
// config.json and no state.
//
// What only the kernel can do safely in a running container, or podman not at all, is refused: a subpath, which the container can replace by a symlink before podman
// follows it, and idmap. Errors: those of spec.FromOCI and lifecycle.Prepare, invalid_request.
func Precreate(ctx context.Context, iso *lifecycle.Isolator, config []byte, dvdiEnv bool) (*wire.Request, error) {
	b, err := readBundle(config)
	if err != nil {
		return nil, err
	}
	j, err := job(config, b.Annotations, dvdiEnv)
	if err != nil || len(j.Volumes) == 0 {
		return nil, err
	}
	for _, v := range j.Volumes {
		switch {
		case v.Subpath != "":
			return nil, bad("cannot use %s: a precreate hook attaches whole volumes, and it has a subpath", v.Field).WithHint("use the hook createRuntime alone")
		case v.IDMap:
			return nil, bad("cannot use %s: a precreate hook cannot map ids", v.Field).WithHint("use the hook createRuntime alone")
		}
	}
	id, err := podmanID(b.Linux.CgroupsPath)
	if err != nil {
		return nil, err
	}
	r := lifecycle.Request{Container: id, Job: j, MountsBy: lifecycle.ByAgent}
	p, err := iso.Prepare(ctx, r)
	if isConflict(err) {
		p, err = again(ctx, iso, r, err)
	}
	if err != nil {
		return nil, err
	}
	list := &wire.Request{Op: wire.OpAttach, Owner: iso.Owner(), Container: id, PID: os.Getppid()} // there is no process yet; the form wants one
	for i, v := range j.Volumes {
		if v.Scope == spec.ScopeContainer {
			list.Mounts = append(list.Mounts, wire.Mount{Path: v.ContainerPath, Source: p.Volumes[i].Mountpoint, Mode: v.Mode, NoExec: v.NoExec})
		}
	}
	return list, nil
}

var podmanCgroup = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?:^|[/:])libpod[-:](?:payload-)?([0-9a-f]{64})(?:\.scope)?$`)
})

// podmanID takes a container's id out of its cgroups path: PARENT/libpod-ID, or SLICE:libpod:ID with systemd.
func podmanID(cgroup string) (string, error) {
	m := podmanCgroup().FindStringSubmatch(cgroup)
	if m == nil {
		return "", bad("cannot tell the container's id: linux.cgroupsPath is %q, not one of podman's", cgroup).WithHint("use the hook createRuntime alone")
	}
	return m[1], nil
}
