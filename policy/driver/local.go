package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/bindgate/bindgate/wire"
)

// A Helper passes one request to bindgate-helper and returns its reply. It fails with a *wire.Error when the helper could not be asked; an error that
// the helper answered may be in the reply or be returned.
type Helper func(ctx context.Context, req *wire.Request) (*wire.Reply, error)

// Local is the built-in driver local: folders that belong to root, made and removed by the helper. They are always available, so Mount only looks the
// volume up and Unmount does nothing.
//
// Names are those of Docker's local driver, and of one character (wire.CheckVolumeName). Errors are the helper's; one of its not_found is volume_not_found.
type Local struct {
	helper Helper
}

var _ Driver = (*Local)(nil)

// NewLocal returns the driver local, working through h.
func NewLocal(h Helper) *Local { return &Local{h} }

// Create makes the volume; one that exists is left as it is. Options: mode (octal, at most 3777), uid and gid of its folder. Another option, or a value
// that is no such number, is invalid_request.
func (d *Local) Create(ctx context.Context, name string, opts map[string]string) error {
	t := localTask("create", "create", name)
	req, err := t.create(name, opts)
	if err == nil {
		_, err = d.ask(ctx, t, req)
	}
	return err
}

// Check says whether Create would take the name and the options, without asking anybody. Errors: invalid_request.
func (d *Local) Check(name string, opts map[string]string) error {
	if err := wire.CheckVolumeName(name); err != nil {
		return err
	}
	_, err := localTask("create", "create", name).create(name, opts)
	return err
}

// create makes the helper's request of a new volume.
func (t task) create(name string, opts map[string]string) (*wire.Request, error) {
	req := &wire.Request{Op: wire.OpCreateVolume, Name: name}
	for _, k := range slices.Sorted(maps.Keys(opts)) { // sorted, so that of two mistakes the same one is reported each time
		v := opts[k]
		var err error
		switch k {
		case "mode":
			req.Mode, err = t.number(k, v, 8, 0o3777)
		case "uid":
			req.UID, err = t.number(k, v, 10, 1<<32-2)
		case "gid":
			req.GID, err = t.number(k, v, 10, 1<<32-2)
		default:
			err = t.fail(wire.InvalidRequest, "it has no option %s; there are mode, uid and gid", show(k))
		}
		if err != nil {
			return nil, err
		}
	}
	return req, nil
}

// number parses an option as strictly as the helper parses its request: digits only, and no leading zero but in octal.
func (t task) number(key, v string, base int, max uint64) (*uint32, error) {
	n, err := strconv.ParseUint(v, base, 32)
	if err != nil || n > max || base == 10 && len(v) > 1 && v[0] == '0' {
		return nil, t.fail(wire.InvalidRequest, "its option %s is %s, which is not a number from 0 to %s (base %d)", key, show(v),
			strconv.FormatUint(max, base), base)
	}
	n32 := uint32(n)
	return &n32, nil
}

// Get returns the volume, with its mode, uid and gid as options.
func (d *Local) Get(ctx context.Context, name string) (Volume, error) {
	return d.find(ctx, localTask("get", "look up", name), name)
}

// List returns all local volumes.
func (d *Local) List(ctx context.Context) ([]Volume, error) {
	return d.list(ctx, task{"list", "list the local volumes"}, &wire.Request{Op: wire.OpListVolumes})
}

// Path returns the volume's folder.
func (d *Local) Path(ctx context.Context, name string) (string, error) {
	v, err := d.find(ctx, localTask("path", "find the path of", name), name)
	return v.Mountpoint, err
}

// Mount returns the volume's folder.
func (d *Local) Mount(ctx context.Context, name, _ string) (string, error) {
	v, err := d.find(ctx, localTask("mount", "mount", name), name)
	return v.Mountpoint, err
}

// Unmount does nothing.
func (d *Local) Unmount(context.Context, string, string) error { return nil }

// Remove deletes the volume and what it holds.
func (d *Local) Remove(ctx context.Context, name string) error {
	_, err := d.ask(ctx, localTask("remove", "remove", name), &wire.Request{Op: wire.OpRemoveVolume, Name: name})
	return err
}

// Capabilities returns ScopeLocal.
func (d *Local) Capabilities(context.Context) (Capabilities, error) {
	return Capabilities{Scope: ScopeLocal}, nil
}

func localTask(stage, verb, name string) task {
	return task{stage, fmt.Sprintf("%s local volume %s", verb, show(name))}
}

func (d *Local) find(ctx context.Context, t task, name string) (Volume, error) {
	all, err := d.list(ctx, t, &wire.Request{Op: wire.OpListVolumes, Name: name})
	if err != nil {
		return Volume{}, err
	}
	i := slices.IndexFunc(all, func(v Volume) bool { return v.Name == name })
	if i < 0 {
		return Volume{}, t.fail(wire.VolumeNotFound, "there is none of that name")
	}
	return all[i], nil
}

func (d *Local) list(ctx context.Context, t task, req *wire.Request) ([]Volume, error) {
	blocks, err := d.ask(ctx, t, req)
	if err != nil {
		return nil, err
	}
	all := make([]Volume, 0, len(blocks))
	for _, b := range blocks {
		v := Volume{Name: b.Get("name"), Mountpoint: b.Get("mount"), Options: map[string]string{}}
		if v.Name == "" || v.Mountpoint == "" {
			return nil, t.fail(wire.Internal, "the helper's reply has a volume without name or mountpoint")
		}
		for _, k := range []string{"mode", "uid", "gid"} {
			if x, ok := b.Lookup(k); ok {
				v.Options[k] = x
			}
		}
		if s, err := strconv.ParseInt(b.Get("time"), 10, 64); err == nil {
			v.CreatedAt = time.Unix(s, 0).UTC().Format(time.RFC3339)
		}
		all = append(all, v)
	}
	return all, nil
}

// ask checks the name, which the helper would refuse too, and gives the helper's errors our stage.
func (d *Local) ask(ctx context.Context, t task, req *wire.Request) ([]wire.Fields, error) {
	if t.stage != "list" {
		if err := wire.CheckVolumeName(req.Name); err != nil {
			return nil, t.wrap(err)
		}
	}
	reply, err := d.helper(ctx, req)
	if err == nil && reply.Err != nil {
		err = reply.Err
	}
	if err != nil {
		return nil, t.wrap(err)
	}
	return reply.Blocks, nil
}

// wrap gives an error of the helper the stage of the call.
func (t task) wrap(err error) *wire.Error {
	e := *wire.AsError(err)
	e.Stage = t.stage
	if e.Code == wire.NotFound {
		e.Code = wire.VolumeNotFound
	}
	return &e
}
