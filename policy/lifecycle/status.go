package lifecycle

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// A StatusQuery narrows Status down; the zero value is everything of everybody.
type StatusQuery struct {
	Owner     string // "": all owners
	Container string
	Volume    string // DRIVER/NAME
}

// Status is what is attached where.
type Status struct {
	Schema     string            `json:"schema"`
	Containers []ContainerStatus `json:"containers"`
	Volumes    []VolumeStatus    `json:"volumes"`
	Warnings   []string          `json:"warnings,omitempty"`
}

// A ContainerStatus is one container. Phase is preparing, prepared, isolating, isolated, bound or cleaning.
type ContainerStatus struct {
	Container string            `json:"container"`
	Owner     string            `json:"owner"`
	PID       int               `json:"pid"` // 0: none yet
	Alive     bool              `json:"alive"`
	Phase     string            `json:"phase"`
	Parent    string            `json:"parent,omitempty"`
	Labels    map[string]string `json:"labels"`
	Volumes   []Volume          `json:"volumes"`
	Mounts    []Mount           `json:"mounts"`
}

// A VolumeStatus is one volume in use, or waiting to be unmounted. A reference of volume mount is no container: it shows as Mounted.
type VolumeStatus struct {
	Driver     string   `json:"driver"`
	Name       string   `json:"name"`
	Mountpoint string   `json:"mountpoint"`
	Containers []string `json:"containers"`
	Mounted    bool     `json:"mounted,omitempty"` // by volume mount
	Pending    *Pending `json:"pending,omitempty"`
}

// Status reads the records as they are. It waits for no lock and no driver: a record is an old one or a new one, never half of it. A record that cannot be
// trusted is a warning.
func (iso *Isolator) Status(ctx context.Context, q StatusQuery) (*Status, error) {
	s := &Status{Schema: Schema, Containers: []ContainerStatus{}, Volumes: []VolumeStatus{}}
	driver, name, isVolume := strings.Cut(q.Volume, "/")
	if q.Volume != "" && (!isVolume || driver == "" || name == "") {
		return nil, failure(wire.Errorf(wire.InvalidRequest, "request", "cannot look for the volume %q: it is named DRIVER/NAME", q.Volume))
	}
	id := volumeID{driver, name}
	containers, bad, err := iso.allContainers(ctx)
	if err != nil {
		return nil, cannot("read the records", err)
	}
	shown := map[volumeID]bool{}
	for _, c := range containers {
		has := slices.ContainsFunc(c.Volumes, func(e *entry) bool { return e.volumeID == id })
		if q.Owner != "" && c.Owner != q.Owner || q.Container != "" && c.Container != q.Container || q.Volume != "" && !has {
			continue
		}
		cs := ContainerStatus{Container: c.Container, Owner: c.Owner, Alive: iso.alive(c.Process), Phase: c.Phase, Parent: c.Parent, Labels: c.Labels,
			Volumes: c.volumes(), Mounts: mountsOf(c.Volumes)}
		if c.Process != nil {
			cs.PID = c.Process.PID
		}
		if cs.Labels == nil {
			cs.Labels = map[string]string{}
		}
		s.Containers = append(s.Containers, cs)
		for _, e := range c.Volumes {
			shown[e.volumeID] = true
		}
	}
	volumes, worse, err := iso.allVolumes(ctx)
	if err != nil {
		return nil, cannot("read the records", err)
	}
	for _, err := range append(bad, worse...) {
		s.Warnings = append(s.Warnings, err.Error())
	}
	for _, v := range volumes {
		if q.Volume != "" && v.volumeID != id || q.Container != "" && !shown[v.volumeID] {
			continue
		}
		if vs := v.status(q.Owner); vs != nil {
			s.Volumes = append(s.Volumes, *vs)
		}
	}
	return s, nil
}

// status is how a volume looks to an owner, or to all; nil if it is nothing to him.
func (v *volumeRecord) status(owner string) *VolumeStatus {
	vs := &VolumeStatus{Driver: v.Driver, Name: v.Name, Containers: []string{}}
	concerns := owner == ""
	for _, h := range v.Holds {
		vs.Mountpoint = cmp.Or(vs.Mountpoint, h.Mountpoint)
		concerns = concerns || h.Owner == owner
		for _, r := range h.Refs {
			concerns = concerns || r.Owner == owner
			if r.Container == "" {
				vs.Mounted = true
			} else if owner == "" || r.Owner == owner {
				vs.Containers = append(vs.Containers, r.Container)
			}
		}
		if h.State == mountPending {
			vs.Pending = &Pending{v.Driver, v.Name, h.Since, h.Error, []Holder{}}
		}
	}
	slices.Sort(vs.Containers)
	if !concerns {
		return nil
	}
	return vs
}

// allContainers reads every container's record, sorted by owner and id; bad are the errors of those that it cannot read.
func (iso *Isolator) allContainers(ctx context.Context) (list []*containerRecord, bad []error, err error) {
	names, err := iso.containers.List()
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, nil, stopped(ctx, "state", "read the records")
		}
		owner, id, _ := strings.Cut(name, "@")
		c, err := iso.readContainer(reference{owner, id})
		if err != nil {
			bad = append(bad, err)
		} else if c != nil {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b *containerRecord) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Container, b.Container))
	})
	return list, bad, nil
}

// allVolumes reads every volume's record, sorted; bad as allContainers.
func (iso *Isolator) allVolumes(ctx context.Context) (list []*volumeRecord, bad []error, err error) {
	names, err := iso.volumes.List()
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, nil, stopped(ctx, "state", "read the records")
		}
		v, err := iso.readVolumeNamed(name)
		if err != nil {
			bad = append(bad, err)
		} else if v != nil {
			list = append(list, v)
		}
	}
	sortIDs(list, func(v *volumeRecord) volumeID { return v.volumeID })
	return list, bad, nil
}

// readVolumeNamed reads a volume's record by the name of the record; nil where there is none.
func (iso *Isolator) readVolumeNamed(name string) (*volumeRecord, error) {
	v := &volumeRecord{}
	ok, err := read(iso.volumes, name, v)
	if err != nil || !ok {
		return nil, err
	}
	if v.key() != name || slices.Contains(v.Holds, nil) {
		return nil, wire.Errorf(wire.StateCorrupt, "state", "cannot trust the record volumes/%s: it speaks of %s, or of nothing", name, v.volumeID).
			WithHint("bindgate recover moves it aside")
	}
	return v, nil
}
