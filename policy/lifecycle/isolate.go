package lifecycle

import (
	"context"
	"strconv"

	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// Isolate attaches a prepared container's volumes to its first process' mount namespace, all of them or none. Again for the same process it changes nothing
// and returns the same.
//
// Errors: not_found for a container that was never prepared, conflict for one that belongs to another process, and the helper's: of the target
// (namespace_gone, namespace_host, target_forbidden, target_missing), of a source (source_forbidden), of the kernel.
func (iso *Isolator) Isolate(ctx context.Context, container string, pid int) (*Isolated, error) {
	return iso.start(ctx, "isolate container "+container, container, pid, ByHelper)
}

// Bind tells which process is a container's first when the agent made the mounts itself, as Prepare with ByAgent said. It is Isolate without the helper.
func (iso *Isolator) Bind(ctx context.Context, container string, pid int) (*Isolated, error) {
	return iso.start(ctx, "bind container "+container, container, pid, ByAgent)
}

func (iso *Isolator) start(ctx context.Context, doing, container string, pid int, by string) (*Isolated, error) {
	if err := wire.CheckID("container", container); err != nil {
		return nil, cannot(doing, err)
	}
	unlock, err := iso.lockContainers(ctx, reference{iso.owner, container})
	if err != nil {
		return nil, cannot(doing, err)
	}
	defer unlock()
	c, err := iso.readContainer(reference{iso.owner, container})
	if err == nil && c == nil {
		err = wire.Errorf(wire.NotFound, "record", "owner %s has prepared no such container", iso.owner).WithHint("bindgate prepare comes first")
	}
	if err != nil {
		return nil, cannot(doing, err)
	}
	p, err := iso.identify(pid)
	if err == nil {
		err = iso.maySettle(c, p, by)
	}
	if err != nil {
		return nil, cannot(doing, err)
	}
	if c.Phase != phaseIsolated && c.Phase != phaseBound {
		if err := iso.settle(ctx, c, p, by); err != nil {
			return nil, cannot(doing, err)
		}
	}
	return &Isolated{Schema: Schema, Container: container, PID: pid, Mounts: mountsOf(c.Volumes)}, nil
}

// maySettle says whether a process may become, or is, the container's.
func (iso *Isolator) maySettle(c *containerRecord, p *process, by string) error {
	hint := "if that one has ended: bindgate cleanup --owner " + c.Owner + " --container " + c.Container
	switch {
	case c.Boot != iso.boot || c.Phase == phaseCleaning || c.Phase == phasePreparing:
		return wire.Errorf(wire.Conflict, "record", "it is not prepared but %s", c.describe()).WithHint("bindgate prepare it again")
	case c.Process != nil && !c.Process.same(p) && (c.Phase != phaseIsolating || iso.alive(c.Process)):
		return wire.Errorf(wire.Conflict, "record", "it belongs to process %d", c.Process.PID).WithHint("%s", hint)
	case c.MountsBy != by && by == ByHelper:
		return wire.Errorf(wire.Conflict, "record", "it was prepared for an agent that makes the mounts itself").WithHint("use bindgate bind")
	case c.MountsBy != by && len(containerEntries(c.Volumes)) > 0:
		return wire.Errorf(wire.Conflict, "record", "it was prepared for the helper to make the mounts").WithHint("use bindgate isolate, or prepare with --mounts-by agent")
	}
	return nil
}

// settle gives a prepared container its process.
func (iso *Isolator) settle(ctx context.Context, c *containerRecord, p *process, by string) error {
	if c.Phase == phaseIsolating { // a crash: what was attached by then is not known, so it is taken out first
		if err := iso.detachAll(ctx, c); err != nil {
			return err
		}
	}
	c.Process = p
	entries := containerEntries(c.Volumes)
	var err error
	if by == ByAgent || len(entries) == 0 {
		c.Phase = phaseIsolated
		if by == ByAgent {
			c.Phase = phaseBound
		}
		err = iso.writeContainer(c)
	} else {
		err = iso.attachAll(ctx, c, entries)
	}
	if err == nil {
		return nil
	}
	if !left(err) {
		c.Phase, c.Process = phasePrepared, nil
	}
	if werr := iso.writeContainer(c); werr != nil { // also of a record that was written, and then not known to be on disk
		iso.log.Error("cannot journal a failed isolate", "container", c.Container, "error", werr)
	}
	return err
}

// attachAll attaches a prepared container's volumes, with the intent in the journal first.
func (iso *Isolator) attachAll(ctx context.Context, c *containerRecord, entries []*entry) error {
	ctx, cancel := iso.ready(ctx)
	defer cancel()
	for _, e := range entries {
		if err := iso.keep(ctx, c.ref(), e); err != nil {
			return err
		}
	}
	c.Phase = phaseIsolating
	if err := iso.writeContainer(c); err != nil {
		return err
	}
	if err := iso.attach(ctx, c, entries); err != nil {
		return iso.undoAttach(ctx, c, entries, err, unknown(err))
	}
	c.Phase = phaseIsolated
	if err := iso.writeContainer(c); err != nil {
		return iso.undoAttach(ctx, c, entries, err, true)
	}
	return nil
}

// keep has the driver mount a volume again if it lost it since prepare: the folder where it was would be attached instead, and what the container writes would
// not be in the volume.
func (iso *Isolator) keep(ctx context.Context, ref reference, e *entry) error {
	if e.Driver == localDriver || isMount(e.Mountpoint) {
		return nil
	}
	v, err := iso.readVolume(e.volumeID)
	if err != nil {
		return err
	}
	if h := v.find(ref, true); h == nil || !iso.lost(h) {
		return nil
	}
	return iso.acquire(ctx, ref, e, true)
}

// attach asks the helper to attach the entries, and fills in what it says of them.
func (iso *Isolator) attach(ctx context.Context, c *containerRecord, entries []*entry) error {
	r := &wire.Request{Op: wire.OpAttach, Owner: c.Owner, Container: c.Container, PID: c.Process.PID, Start: c.Process.Start,
		Rootfs: c.Rootfs, Directory: c.Directory, Sandbox: c.Sandbox}
	by := map[string]*entry{}
	for _, e := range entries {
		by[clean(e.ContainerPath)] = e
		r.Mounts = append(r.Mounts, wire.Mount{Path: e.ContainerPath, Source: e.Mountpoint, Subpath: e.Subpath, Mode: e.Mode, NoExec: e.NoExec, IDMap: e.IDMap})
	}
	reply, err := iso.ask(ctx, r)
	if err != nil {
		return err
	}
	for _, b := range reply.Blocks {
		e := by[clean(b.Get("mount"))]
		id, err := strconv.ParseUint(b.Get("id"), 10, 64)
		if e == nil || err != nil {
			return wire.Errorf(wire.Internal, "helper", "cannot understand the helper's reply: it speaks of a mount %q with id %q", b.Get("mount"), b.Get("id"))
		}
		created, _ := strconv.Atoi(b.Get("created")) // left out when none
		e.Attached = &mounted{Target: b.Get("target"), MountID: id, Created: created, Locked: b.Get("locked") == "1"}
		delete(by, clean(b.Get("mount")))
	}
	for path := range by {
		return wire.Errorf(wire.Internal, "helper", "cannot understand the helper's reply: it says nothing of %s", path)
	}
	return nil
}

// unknown reports whether the helper may have attached something although the call failed.
func unknown(err error) bool { return isCode(err, wire.Timeout, wire.Internal, wire.System) }

// undoAttach takes the entries out again, where the helper may have put them in.
func (iso *Isolator) undoAttach(ctx context.Context, c *containerRecord, entries []*entry, err error, needed bool) error {
	failed := *failure(err)
	if needed {
		_, derr := iso.detach(context.WithoutCancel(ctx), c, entries, cleanHow{force: true})
		for _, e := range entries {
			step := Step{Driver: e.Driver, Name: e.Name, Stage: "attach"}
			if derr != nil {
				step.Error = derr.Error()
				failed.Left = append(failed.Left, step)
			} else {
				failed.Undone = append(failed.Undone, step)
			}
		}
		if derr != nil {
			return &failed
		}
	}
	for _, e := range entries {
		e.Attached = nil
	}
	return &failed
}

// left reports whether an error says that something could not be taken back.
func left(err error) bool { return len(failure(err).Left) > 0 }

// containerEntries are the volumes that go into the container.
func containerEntries(entries []*entry) []*entry {
	var list []*entry
	for _, e := range entries {
		if e.Scope != spec.ScopeHost {
			list = append(list, e)
		}
	}
	return list
}
