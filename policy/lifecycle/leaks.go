package lifecycle

import (
	"context"
	"fmt"
	"slices"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// A Leak is where records, kernel and drivers do not agree, and nobody is at work on it.
type Leak struct {
	What    string    // which it is of the constants below
	Owner   string    // whose recover mends it
	Code    wire.Code // pending, or state_corrupt
	Message string
}

// Kinds of leaks.
const (
	LeakRecord    = "record"    // a record that cannot be trusted
	LeakPrepare   = "prepare"   // a prepare was cut off
	LeakContainer = "container" // its process has ended, and nobody cleaned up
	LeakMount     = "mount"     // recorded as mounted or attached, and not there
	LeakTaken     = "taken"     // attached for all that the journal knows, and the helper has nothing: its container took it away, and that was noticed
	LeakVolume    = "volume"    // mounted by its driver, and used by nobody
	LeakAttached  = "attached"  // attached by the helper, and not in the journal
)

// Leaks compares the journal with itself, with the mounts of the host and with what the helper has on record for each owner. It changes nothing, asks no
// driver, and waits for no lock: what somebody is at work on is no leak. owners are some more than the journal knows.
func (iso *Isolator) Leaks(ctx context.Context, owners ...string) ([]Leak, error) {
	containers, bad, err := iso.allContainers(ctx)
	if err != nil {
		return nil, cannot("read the records", err)
	}
	volumes, worse, err := iso.allVolumes(ctx)
	if err != nil {
		return nil, cannot("read the records", err)
	}
	var leaks []Leak
	add := func(what, owner string, code wire.Code, format string, args ...any) {
		leaks = append(leaks, Leak{what, owner, code, fmt.Sprintf(format, args...)})
	}
	for _, message := range append(bad, worse...) {
		add(LeakRecord, iso.owner, wire.StateCorrupt, "%s", message)
	}
	for _, c := range containers {
		owners = append(owners, c.Owner)
		c, unlock := iso.still(c)
		switch {
		case c == nil:
		case c.Phase == phasePreparing || c.Phase == phaseIsolating:
			add(LeakPrepare, c.Owner, wire.Pending, "container %s was cut off while %s", c.Container, c.Phase)
		case c.Process != nil && !iso.alive(c.Process) && len(c.Volumes) > 0:
			add(LeakContainer, c.Owner, wire.Pending, "container %s has ended and was not cleaned up", c.Container)
		}
		unlock()
	}
	for _, v := range volumes {
		owners = append(owners, v.owners()...)
		unlock, ok := free(iso.volumes, v.key())
		if !ok {
			continue
		}
		if v, err = iso.readVolume(v.volumeID); err != nil {
			v = &volumeRecord{} // it is among the warnings by the next time
		}
		for _, h := range v.Holds {
			confirmed := slices.ContainsFunc(h.Refs, func(r reference) bool { return iso.confirmed(r, v.volumeID) })
			switch {
			case h.State == mountPending:
				add(LeakVolume, h.Owner, wire.Pending, "volume %s is still to be unmounted: %s", v.volumeID, h.Error)
			case h.State == mountAsked:
				add(LeakVolume, h.Owner, wire.Pending, "volume %s may be mounted: its mount was cut off", v.volumeID)
			case !confirmed:
				add(LeakVolume, h.Owner, wire.Pending, "volume %s is mounted and nobody uses it", v.volumeID)
			case iso.lost(h):
				add(LeakMount, h.Owner, wire.Pending, "volume %s is recorded as mounted at %s, and is not", v.volumeID, h.Mountpoint)
			}
		}
		unlock()
	}
	slices.Sort(owners)
	for _, owner := range slices.Compact(owners) {
		if err := iso.attachedLeaks(ctx, owner, containers, add); err != nil {
			return leaks, cannot("ask the helper what is attached", err)
		}
	}
	return leaks, nil
}

// attachedLeaks compares what the helper has on record for an owner with the kernel and with the journal.
func (iso *Isolator) attachedLeaks(ctx context.Context, owner string, containers []*containerRecord, add func(what, owner string, code wire.Code, format string, args ...any)) error {
	reply, err := iso.ask(ctx, &wire.Request{Op: wire.OpQuery, Owner: owner})
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, b := range reply.Blocks {
		known[b.Get("container")+"\x00"+clean(b.Get("mount"))] = true
	}
	for _, c := range containers {
		if c.Owner != owner {
			continue
		}
		c, unlock := iso.still(c)
		if c != nil && iso.alive(c.Process) {
			for _, e := range c.Volumes {
				if e.Attached != nil && !known[c.Container+"\x00"+clean(e.ContainerPath)] {
					add(LeakTaken, owner, wire.Pending, "%s of container %s is attached for all that the journal knows, and is not", e.ContainerPath, c.Container)
				}
			}
		}
		unlock()
	}
	for _, b := range reply.Blocks {
		id, path := b.Get("container"), b.Get("mount")
		unlock, ok := free(iso.containers, reference{owner, id}.key())
		if !ok {
			continue
		}
		c, err := iso.readContainer(reference{owner, id})
		var e *entry
		if c != nil {
			if i := slices.IndexFunc(c.Volumes, func(e *entry) bool { return clean(e.ContainerPath) == clean(path) }); i >= 0 {
				e = c.Volumes[i]
			}
		}
		switch {
		case err != nil: // it is among the warnings
		case b.Get("alive") != "1":
			if c == nil || iso.alive(c.Process) { // of one that has ended it was said
				add(LeakMount, owner, wire.Pending, "%s of container %s is recorded as attached, and is not", path, id)
			}
		case e == nil:
			add(LeakAttached, owner, wire.StateCorrupt, "%s of container %s is attached, and the journal does not know of it", path, id)
		}
		unlock()
	}
	return nil
}

// still returns a container's record as it is now, locked; nil if it is gone, cannot be read, or somebody is at work on it.
func (iso *Isolator) still(c *containerRecord) (now *containerRecord, unlock func()) {
	unlock, ok := free(iso.containers, c.ref().key())
	if !ok {
		return nil, func() {}
	}
	if now, err := iso.readContainer(c.ref()); err == nil {
		return now, unlock
	}
	return nil, unlock
}

// free locks a record, if nobody else has.
func free(s *state.Store, name string) (unlock func(), ok bool) {
	now, cancel := context.WithCancel(context.Background())
	cancel() // a lock that is not free is not waited for
	l, err := s.Lock(now, state.Key(name))
	if err != nil {
		return nil, false
	}
	return l.Unlock, true
}

// owners are who has something to do with a volume.
func (v *volumeRecord) owners() (list []string) {
	for _, h := range v.Holds {
		list = append(list, h.Owner)
		for _, r := range h.Refs {
			list = append(list, r.Owner)
		}
	}
	return list
}

// MayUse reports whether some rule could allow anybody a volume of this driver.
func (iso *Isolator) MayUse(driver string) bool {
	return slices.ContainsFunc(iso.policy.Rules, func(r config.Rule) bool {
		return r.Action == "allow" && (r.Driver == "" || glob(r.Driver, driver))
	})
}
