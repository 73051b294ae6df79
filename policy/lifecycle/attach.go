package lifecycle

import (
	"context"
	"slices"

	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// Attach gives a running container more volumes: Prepare and Isolate in one, for the volumes of the request, all of them or none. A container that is not
// known gets a record, which its last Detach drops.
//
// Errors: those of Prepare and Isolate; duplicate_volume for a volume that the container has already.
func (iso *Isolator) Attach(ctx context.Context, r Request, pid int) (*Isolated, error) {
	doing := "attach to container " + r.Container
	c, err := iso.newRecord(r)
	if err == nil {
		err = iso.permitAll(c, c.Volumes)
	}
	if err == nil && r.MountsBy == ByAgent {
		err = wire.Errorf(wire.InvalidRequest, "request", "the agent cannot make these mounts itself").WithHint("detach and attach are the helper's; use prepare and bind")
	}
	if err != nil {
		return nil, cannot(doing, err)
	}
	unlock, err := iso.lockContainers(ctx, family(c)...)
	if err != nil {
		return nil, cannot(doing, err)
	}
	defer unlock()
	p, err := iso.identify(pid)
	if err != nil {
		return nil, cannot(doing, err)
	}
	added := c.Volumes
	if len(containerEntries(added)) > 0 {
		var cancel func()
		ctx, cancel = iso.ready(ctx)
		defer cancel()
	}
	c, err = iso.join(ctx, c, p)
	if err != nil {
		return nil, cannot(doing, err)
	}
	warnings, err := iso.prepare(ctx, doing, c, added, r)
	if err != nil {
		iso.dropIfEmpty(c)
		return nil, err
	}
	err = iso.attachAdded(ctx, doing, c, added, r.Rootfs)
	iso.dropIfEmpty(c)
	if err != nil {
		return nil, err
	}
	return &Isolated{Schema: Schema, Container: c.Container, PID: pid, Mounts: mountsOf(added), Warnings: slices.Concat(r.Job.Warnings, warnings)}, nil
}

// join puts the intent in the journal: the new entries in the running container's record, or a record of their own. It returns the record.
func (iso *Isolator) join(ctx context.Context, c *containerRecord, p *process) (*containerRecord, error) {
	old, err := iso.readContainer(c.ref())
	if err != nil {
		return nil, err
	}
	c.Process = p
	for _, e := range c.Volumes {
		e.Pending = true
	}
	if old == nil || iso.stale(old) {
		c.Phase, c.Implicit = phaseIsolated, true
		return c, iso.replace(ctx, c)
	}
	switch {
	case old.Process == nil:
		return nil, wire.Errorf(wire.Conflict, "record", "it is %s", old.describe()).WithHint("bindgate isolate comes first")
	case !old.Process.same(p):
		return nil, wire.Errorf(wire.Conflict, "record", "it belongs to process %d", old.Process.PID)
	case old.Phase == phaseCleaning || old.Phase == phaseIsolating:
		return nil, wire.Errorf(wire.Conflict, "record", "it is %s", old.describe()).WithHint("isolate or clean it up again first")
	}
	for _, e := range c.Volumes {
		if slices.ContainsFunc(old.Volumes, func(o *entry) bool { return o.volumeID == e.volumeID }) {
			return nil, wire.Errorf(wire.DuplicateVolume, "request", "it has volume %s already", e.volumeID)
		}
		if e.Scope != spec.ScopeHost && slices.ContainsFunc(old.Volumes, func(o *entry) bool { return o.Scope != spec.ScopeHost && old.place(o) == c.place(e) }) {
			return nil, wire.Errorf(wire.InvalidRequest, "request", "it has a volume at %s already", e.ContainerPath)
		}
	}
	old.Volumes = append(old.Volumes, c.Volumes...)
	// Of the places this attach may say more than prepare did, since the container runs now; it may not say other than it did.
	for _, x := range []struct {
		what      string
		was, said *string
	}{{"directory", &old.Directory, &c.Directory}, {"sandbox directory", &old.Sandbox, &c.Sandbox}} {
		if *x.said != "" && *x.was != "" && *x.said != *x.was {
			return nil, wire.Errorf(wire.Conflict, "record", "its %s is %s, not %s", x.what, *x.was, *x.said)
		}
		if *x.was == "" {
			*x.was = *x.said
		}
	}
	if err := iso.writeContainer(old); err != nil {
		old.Volumes = slices.DeleteFunc(old.Volumes, func(e *entry) bool { return slices.Contains(c.Volumes, e) })
		_ = iso.writeContainer(old) // it may be there, if not for good
		return nil, err
	}
	return old, nil
}

// attachAdded attaches the entries that prepare made available, or gives them back.
func (iso *Isolator) attachAdded(ctx context.Context, doing string, c *containerRecord, added []*entry, rootfs string) error {
	entries := containerEntries(added)
	if len(entries) > 0 {
		// What the drivers said is in the volumes' records; the container's says already that the helper may have been asked.
		view := *c
		view.Rootfs = rootfs // what was said earlier was for the time before it pivoted
		if err := iso.attach(ctx, &view, entries); err != nil {
			return iso.undoAttachAdded(ctx, doing, c, added, err, unknown(err))
		}
	}
	for _, e := range added {
		e.Pending = false
	}
	if err := iso.writeContainer(c); err != nil {
		return iso.undoAttachAdded(ctx, doing, c, added, err, true)
	}
	return nil
}

// undoAttachAdded takes the entries out of the container, where the helper may have put them in, and gives them back. What it cannot take out stays, to be
// detached: its volume must not be unmounted while it is in there.
func (iso *Isolator) undoAttachAdded(ctx context.Context, doing string, c *containerRecord, added []*entry, err error, needed bool) error {
	failed := cannot(doing, iso.undoAttach(ctx, c, containerEntries(added), err, needed))
	if !left(failed) {
		failed.Left = made(added)
		return iso.undoPrepare(ctx, failed, c, added, added)
	}
	for _, e := range added {
		e.Pending = true
	}
	if err := iso.writeContainer(c); err != nil {
		iso.log.Error("cannot journal what could not be undone", "container", c.Container, "error", err)
	}
	return failed
}

// dropIfEmpty drops the record that an attach made for nothing: it failed, or there were no volumes.
func (iso *Isolator) dropIfEmpty(c *containerRecord) {
	if !c.Implicit || len(c.Volumes) > 0 || len(iso.children(c)) > 0 {
		return
	}
	if err := iso.dropContainer(c); err != nil {
		iso.log.Error("cannot drop an empty record", "container", c.Container, "error", err)
	}
}
