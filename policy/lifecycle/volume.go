package lifecycle

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// VolumeInfo is the result of VolumeCreate, VolumeInspect, VolumePath, VolumeMount, VolumeUnmount and VolumeRemove, of which each fills in what it knows.
type VolumeInfo struct {
	Schema     string            `json:"schema"`
	Driver     string            `json:"driver"`
	Name       string            `json:"name"`
	Mountpoint string            `json:"mountpoint"`
	Options    map[string]string `json:"options,omitzero"`
	Created    any               `json:"created,omitempty"` // VolumeCreate, VolumeMount: a bool, it did not exist before; VolumeInspect: when, if the driver tells
	Status     map[string]any    `json:"status,omitempty"`
	Containers []string          `json:"containers,omitempty"` // who uses it
	Warnings   []string          `json:"warnings,omitempty"`
}

// VolumeList is the result of VolumeList.
type VolumeList struct {
	Schema   string       `json:"schema"`
	Volumes  []VolumeItem `json:"volumes"`
	Warnings []string     `json:"warnings,omitempty"`
}

// A VolumeItem is one line of it.
type VolumeItem struct {
	Driver     string   `json:"driver"`
	Name       string   `json:"name"`
	Mountpoint string   `json:"mountpoint"`
	Containers []string `json:"containers"`
}

// VolumeCreate makes a volume. One that exists already stays as it is; Created says so.
func (iso *Isolator) VolumeCreate(ctx context.Context, driverName, name string, opts map[string]string) (*VolumeInfo, error) {
	id := volumeID{driverName, name}
	if err := iso.checkVolume(id, opts); err != nil {
		return nil, failure(err)
	}
	return iso.withVolume(ctx, "create", id, wire.ModeRW, func(drv driver.Driver, info *VolumeInfo) error {
		created := false
		v, err := iso.get(ctx, drv, id)
		if isCode(err, wire.VolumeNotFound) {
			if err = iso.create(ctx, drv, id, opts); err == nil {
				created = true
				if v, err = iso.get(ctx, drv, id); isCode(err, wire.VolumeNotFound) { // of a plugin that lacks Get and List
					err = nil
				}
			}
		} else if err == nil && len(opts) > 0 {
			info.Warnings = append(info.Warnings, "the volume exists already; its options were not changed")
		}
		info.Created = created
		if err != nil {
			return err
		}
		info.describe(v)
		for key, value := range opts {
			if _, ok := info.Options[key]; !ok && created {
				info.Options[key] = value
			}
		}
		return nil
	})
}

// VolumeInspect returns what the driver says of a volume, and which containers use it.
func (iso *Isolator) VolumeInspect(ctx context.Context, driverName, name string) (*VolumeInfo, error) {
	id := volumeID{driverName, name}
	return iso.look(ctx, "inspect", id, func(drv driver.Driver, info *VolumeInfo) error {
		v, err := iso.get(ctx, drv, id)
		if err != nil {
			return err
		}
		info.describe(v)
		if v.CreatedAt != "" {
			info.Created = v.CreatedAt
		}
		if rec, err := iso.readVolume(id); err == nil {
			info.Containers = containersOf(rec.inUse())
		} else {
			info.Warnings = append(info.Warnings, err.Error())
		}
		return nil
	})
}

// VolumePath returns where a volume is on the host, "" for nowhere at present.
func (iso *Isolator) VolumePath(ctx context.Context, driverName, name string) (*VolumeInfo, error) {
	id := volumeID{driverName, name}
	return iso.look(ctx, "find the path of", id, func(drv driver.Driver, info *VolumeInfo) (err error) {
		info.Mountpoint, err = within(ctx, iso.policy.For(driverName).Call, "path", "find the path of volume "+id.String(),
			func(ctx context.Context) (string, error) { return drv.Path(ctx, name) })
		return err
	})
}

// VolumeMount makes a volume available on the host for its own sake, creating it if need be, and leaves a reference: no container's cleanup unmounts it
// before VolumeUnmount. Again it changes nothing.
func (iso *Isolator) VolumeMount(ctx context.Context, driverName, name string, opts map[string]string, explicit bool) (*VolumeInfo, error) {
	id := volumeID{driverName, name}
	doing := "mount volume " + id.String()
	if err := iso.checkVolume(id, opts); err != nil {
		return nil, failure(err)
	}
	if err := iso.permit(use{volumeID: id, Owner: iso.owner, Mode: wire.ModeRW}); err != nil {
		return nil, cannot(doing, err)
	}
	e := &entry{volumeID: id, Options: opts}
	ref := reference{Owner: iso.owner}
	if err := iso.acquire(ctx, ref, e, explicit); err != nil {
		return nil, cannot(doing, err)
	}
	if ctx.Err() != nil {
		undo, cancel := iso.undoing(ctx)
		defer cancel()
		_, _, err := iso.release(undo, ref, id, manner{})
		failed := cannot(doing, stopped(ctx, "mount", doing))
		if err == nil {
			failed.Undone = []Step{{Driver: driverName, Name: name, Stage: "mount"}}
		}
		return nil, failed
	}
	return &VolumeInfo{Schema: Schema, Driver: driverName, Name: name, Mountpoint: e.Mountpoint, Created: e.Created}, nil
}

// VolumeUnmount drops the reference of VolumeMount, and has the driver unmount if no container uses the volume. What one has, one may give back, whatever
// the rules say by now.
//
// Errors: not_found if VolumeMount left none; pending if the driver could not.
func (iso *Isolator) VolumeUnmount(ctx context.Context, driverName, name string) (*Cleaned, error) {
	id := volumeID{driverName, name}
	doing := "unmount volume " + id.String()
	if err := iso.checkVolume(id, nil); err != nil {
		return nil, failure(err)
	}
	ref := reference{Owner: iso.owner}
	v, err := iso.readVolume(id)
	if err != nil {
		return nil, cannot(doing, err)
	}
	mine := slices.Contains(v.inUse(), ref) || slices.ContainsFunc(v.Holds, func(h *hold) bool { return h.State == mountPending && h.Owner == iso.owner })
	if !mine {
		if err := iso.permitLook(id); err != nil { // before it is told who uses it
			return nil, cannot(doing, err)
		}
		err := wire.Errorf(wire.NotFound, "record", "owner %s has not mounted it", iso.owner)
		if refs := v.inUse(); len(refs) > 0 {
			err = err.WithHint("it is in use by %s", names(refs))
		}
		return nil, cannot(doing, err)
	}
	out := newCleaned("", true)
	unmounted, pending, err := iso.release(ctx, ref, id, manner{})
	if err != nil {
		return nil, cannot(doing, err)
	}
	if unmounted {
		out.Unmounted = append(out.Unmounted, VolumeRef(id))
	}
	if pending != nil {
		out.Pending = append(out.Pending, *pending)
	}
	return out, pendingError(doing, out)
}

// VolumeRemove deletes a volume and what it holds.
//
// Errors: denied where volume.remove_disable is set, busy while anybody uses it, of any owner.
func (iso *Isolator) VolumeRemove(ctx context.Context, driverName, name string) (*VolumeInfo, error) {
	id := volumeID{driverName, name}
	return iso.withVolume(ctx, "remove", id, wire.ModeRW, func(drv driver.Driver, info *VolumeInfo) error {
		if iso.policy.Volume.RemoveDisable {
			return wire.Errorf(wire.Denied, "remove", "volume.remove_disable is set in policy.toml")
		}
		v, err := iso.readVolume(id)
		if err != nil {
			return err
		}
		for _, h := range slices.Clone(v.Holds) {
			if h.Refs = iso.others(ctx, h, reference{}, id); len(h.Refs) > 0 {
				return wire.Errorf(wire.Busy, "remove", "it is in use by %s", names(h.Refs))
			}
			if _, pending, err := iso.unmount(ctx, v, h, manner{}); err != nil {
				return err
			} else if pending != nil {
				return wire.Errorf(wire.Pending, "unmount", "it is still to be unmounted, and that failed: %s", pending.Error)
			}
		}
		_, err = within(ctx, iso.policy.For(driverName).Call, "remove", "remove volume "+id.String(), func(ctx context.Context) (struct{}, error) {
			return struct{}{}, drv.Remove(ctx, name)
		})
		return err
	})
}

// VolumeList lists the volumes of the named drivers that the rules let the owner see. A driver that cannot be asked is a warning, unless it is the only one.
func (iso *Isolator) VolumeList(ctx context.Context, drivers ...string) (*VolumeList, error) {
	out := &VolumeList{Schema: Schema, Volumes: []VolumeItem{}}
	if len(drivers) == 0 {
		var unreadable []*wire.Error
		drivers, unreadable = iso.survey()
		for _, err := range unreadable { // of a folder that the policy user may not enter nothing is known
			out.Warnings = append(out.Warnings, err.Message+" ("+err.Hint+")")
		}
	}
	lists, errs := make([][]driver.Volume, len(drivers)), make([]error, len(drivers))
	var wg sync.WaitGroup
	for i, d := range drivers {
		wg.Go(func() {
			drv, err := iso.driver(d)
			if err == nil {
				lists[i], err = within(ctx, iso.policy.For(d).Call, "list", "list the volumes of driver "+d, drv.List)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for i, d := range drivers {
		if errs[i] != nil {
			if len(drivers) == 1 {
				return nil, failure(errs[i])
			}
			out.Warnings = append(out.Warnings, errs[i].Error())
		}
		for _, v := range lists[i] {
			id := volumeID{d, v.Name}
			if iso.permitLook(id) != nil {
				continue
			}
			item := VolumeItem{Driver: d, Name: v.Name, Mountpoint: v.Mountpoint, Containers: []string{}}
			if rec, err := iso.readVolume(id); err == nil {
				item.Containers = containersOf(rec.inUse())
				for _, h := range rec.Holds {
					item.Mountpoint = cmp.Or(item.Mountpoint, h.Mountpoint)
				}
			}
			out.Volumes = append(out.Volumes, item)
		}
	}
	sortIDs(out.Volumes, func(v VolumeItem) volumeID { return volumeID{v.Driver, v.Name} })
	return out, nil
}

// Filter keeps the volumes that a filter names: driver, name (in which * matches anything) or used (true or false).
func (l *VolumeList) Filter(key, value string) error {
	var keep func(VolumeItem) bool
	switch {
	case key == "driver":
		keep = func(v VolumeItem) bool { return glob(value, v.Driver) }
	case key == "name":
		keep = func(v VolumeItem) bool { return glob(value, v.Name) }
	case key == "used" && (value == "true" || value == "false"):
		keep = func(v VolumeItem) bool { return (len(v.Containers) > 0) == (value == "true") }
	default:
		return failure(wire.Errorf(wire.Usage, "request", "cannot filter by %s=%s: the filters are driver=, name=, used=true and used=false", key, value))
	}
	l.Volumes = slices.DeleteFunc(l.Volumes, func(v VolumeItem) bool { return !keep(v) })
	return nil
}

// survey returns the names of the drivers that there are: local, those of policy.toml, and the plugins that are found; and why a folder of plugins cannot be
// looked through. None of them is asked.
func (iso *Isolator) survey() (names []string, unreadable []*wire.Error) {
	names = []string{localDriver, iso.policy.Volume.DefaultDriver}
	for d := range iso.policy.Drivers {
		names = append(names, d)
	}
	found, unreadable := driver.Survey(driver.Options{SocketDirs: iso.policy.Plugins.SocketDirs, SpecDirs: iso.policy.Plugins.SpecDirs})
	for _, l := range found {
		names = append(names, l.Driver)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(s string) bool { return s == "" }), unreadable
}

// withVolume does something to a volume under its lock, if the rules allow its use in the mode.
func (iso *Isolator) withVolume(ctx context.Context, verb string, id volumeID, mode string, do func(driver.Driver, *VolumeInfo) error) (*VolumeInfo, error) {
	return iso.volume(ctx, verb, id, true, func() error { return iso.permit(use{volumeID: id, Owner: iso.owner, Mode: mode}) }, do)
}

// look does something that changes nothing, without the lock.
func (iso *Isolator) look(ctx context.Context, verb string, id volumeID, do func(driver.Driver, *VolumeInfo) error) (*VolumeInfo, error) {
	return iso.volume(ctx, verb, id, false, func() error { return iso.permitLook(id) }, do)
}

func (iso *Isolator) volume(ctx context.Context, verb string, id volumeID, lock bool, permit func() error, do func(driver.Driver, *VolumeInfo) error) (*VolumeInfo, error) {
	doing := verb + " volume " + id.String()
	info := &VolumeInfo{Schema: Schema, Driver: id.Driver, Name: id.Name}
	if err := iso.checkVolume(id, nil); err != nil {
		return nil, failure(err)
	}
	err := permit()
	if err == nil && lock {
		var unlock func()
		if unlock, err = iso.lockVolume(ctx, id); err == nil {
			defer unlock()
		}
	}
	var drv driver.Driver
	if err == nil {
		drv, err = iso.driver(id.Driver)
	}
	if err == nil {
		err = do(drv, info)
	}
	if err != nil {
		return nil, cannot(doing, err)
	}
	return info, nil
}

// checkVolume checks a volume's identity, and the options of one that may be made, as a job's are checked. Only then may it stand in a message.
func (iso *Isolator) checkVolume(id volumeID, opts map[string]string) error {
	return iso.checkJob(&spec.Job{Volumes: []spec.Volume{{Driver: id.Driver, Name: id.Name, Options: opts, Mode: wire.ModeRW, Scope: spec.ScopeHost, Field: "the volume"}}})
}

func (iso *Isolator) get(ctx context.Context, drv driver.Driver, id volumeID) (driver.Volume, error) {
	return within(ctx, iso.policy.For(id.Driver).Call, "get", "look up volume "+id.String(), func(ctx context.Context) (driver.Volume, error) {
		return drv.Get(ctx, id.Name)
	})
}

func (i *VolumeInfo) describe(v driver.Volume) {
	i.Mountpoint, i.Status = v.Mountpoint, v.Status
	i.Options = map[string]string{}
	for key, value := range v.Options {
		i.Options[key] = value
	}
}

// containersOf returns the ids in a list of references.
func containersOf(refs []reference) []string {
	ids := []string{}
	for _, r := range refs {
		if r.Container != "" {
			ids = append(ids, r.Container)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func names(refs []reference) string {
	s := ""
	for i, r := range refs {
		if i > 0 {
			s += ", "
		}
		s += r.String()
	}
	return s
}
