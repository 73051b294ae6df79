package lifecycle

import (
	"context"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// Usage is how full the filesystems of a container's volumes are.
type Usage struct {
	Schema    string        `json:"schema"`
	Container string        `json:"container"`
	Owner     string        `json:"owner"`
	Volumes   []VolumeUsage `json:"volumes"`
	Warnings  []string      `json:"warnings,omitempty"`
}

// A VolumeUsage is one volume. The numbers are of its whole filesystem, which it may share; free is what is left for anybody.
type VolumeUsage struct {
	Driver        string   `json:"driver"`
	Name          string   `json:"name"`
	ContainerPath string   `json:"container_path"`
	Alive         bool     `json:"alive"` // it is attached, and the numbers are known
	Bytes         uint64   `json:"bytes"`
	BytesFree     uint64   `json:"bytes_free"`
	Inodes        uint64   `json:"inodes"`
	InodesFree    uint64   `json:"inodes_free"`
	Holders       []Holder `json:"holders"`
}

// Usage asks the helper for the attached volumes, and the filesystem itself for those on the host only. It waits for no lock and no driver.
//
// Errors: not_found for a container without a record.
func (iso *Isolator) Usage(ctx context.Context, container string) (*Usage, error) {
	doing := "tell the usage of container " + container
	if err := wire.CheckID("container", container); err != nil {
		return nil, cannot(doing, err)
	}
	c, err := iso.readContainer(reference{iso.owner, container})
	if err == nil && c == nil {
		err = wire.Errorf(wire.NotFound, "record", "owner %s has no such container", iso.owner)
	}
	if err != nil {
		return nil, cannot(doing, err)
	}
	u := &Usage{Schema: Schema, Container: container, Owner: c.Owner, Volumes: []VolumeUsage{}}
	attached := map[string]wire.Fields{}
	if len(mountsOf(c.Volumes)) > 0 {
		reply, err := iso.ask(ctx, &wire.Request{Op: wire.OpQuery, Owner: c.Owner, Container: container})
		if err != nil {
			return nil, cannot(doing, err)
		}
		for _, b := range reply.Blocks {
			attached[clean(b.Get("mount"))] = b
		}
	}
	for _, e := range c.Volumes {
		v := VolumeUsage{Driver: e.Driver, Name: e.Name, ContainerPath: e.ContainerPath, Holders: []Holder{}}
		if b := attached[clean(e.ContainerPath)]; e.Attached != nil {
			v.read(b)
		} else if e.Mountpoint != "" {
			if err := iso.statfs(ctx, &v, e.source()); err != nil {
				u.Warnings = append(u.Warnings, err.Error())
			}
		}
		u.Volumes = append(u.Volumes, v)
	}
	return u, nil
}

func (v *VolumeUsage) read(b wire.Fields) {
	number := func(key string) uint64 {
		n, _ := strconv.ParseUint(b.Get(key), 10, 64) // left out for a mount that is gone
		return n
	}
	v.Alive = b.Get("alive") == "1"
	v.Bytes, v.BytesFree, v.Inodes, v.InodesFree = number("bytes"), number("bytes_free"), number("inodes"), number("inodes_free")
	v.Holders = holdersOf(b)
}

// statfs asks a filesystem that is on the host only. A dead server can hold it up for ever, so it is not waited for longer than for the helper.
func (iso *Isolator) statfs(ctx context.Context, v *VolumeUsage, path string) error {
	st, err := within(ctx, iso.policy.Timeouts.Helper, "usage", "ask "+path+" how full it is", func(context.Context) (unix.Statfs_t, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			return st, wire.Errorf(wire.System, "usage", "cannot tell how full volume %s/%s is: %v", v.Driver, v.Name, err)
		}
		return st, nil
	})
	if err != nil {
		return err
	}
	size := uint64(st.Frsize)
	v.Alive = true
	v.Bytes, v.BytesFree, v.Inodes, v.InodesFree = st.Blocks*size, st.Bavail*size, st.Files, st.Ffree
	return nil
}
