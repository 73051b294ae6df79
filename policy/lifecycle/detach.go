package lifecycle

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bindgate/bindgate/wire"
)

// Which says which volumes to detach: those at a path, one volume, or all.
type Which struct {
	Path         string // container_path as the job said it, or as it is in the container
	Driver, Name string
	All          bool
}

// Detach takes volumes out of a running container and lets them go, as Cleanup does for all. lazy does it although somebody uses them. Of a container that
// is not known there is nothing to detach: Known is false.
//
// Errors: not_found if the container has no such volume; busy, with who holds what in Pending; pending if a driver could not unmount.
func (iso *Isolator) Detach(ctx context.Context, container string, which Which, lazy bool) (*Cleaned, error) {
	doing := "detach from container " + container
	if err := wire.CheckID("container", container); err != nil {
		return nil, cannot(doing, err)
	}
	unlock, err := iso.lockContainers(ctx, reference{iso.owner, container})
	if err != nil {
		return nil, cannot(doing, err)
	}
	var gone *containerRecord
	defer func() {
		unlock()
		iso.leave(ctx, gone) // whoever needs its parent's lock too takes them in an order of their own
	}()
	c, err := iso.readContainer(reference{iso.owner, container})
	if err != nil {
		return nil, cannot(doing, err)
	}
	if c == nil {
		if which.All {
			return newCleaned(container, false), nil
		}
		return nil, cannot(doing, wire.Errorf(wire.NotFound, "record", "owner %s has no such container", iso.owner))
	}
	out := newCleaned(container, true)
	entries := c.choose(which)
	if len(entries) == 0 && !which.All {
		return nil, cannot(doing, wire.Errorf(wire.NotFound, "record", "it has no volume %s", which))
	}
	if err := iso.letGoOf(ctx, c, entries, cleanHow{force: lazy}, out); err != nil {
		return out, cannot(doing, err)
	}
	if c.Implicit && len(c.Volumes) == 0 && len(iso.children(c)) == 0 {
		if err := iso.dropContainer(c); err != nil {
			return out, cannot(doing, err)
		}
		gone = c
	}
	return out, pendingError(doing, out)
}

func (w Which) String() string {
	if w.Path != "" {
		return "at " + w.Path
	}
	return w.Driver + "/" + w.Name
}

func (c *containerRecord) choose(w Which) []*entry {
	var list []*entry
	for _, e := range c.Volumes {
		at := e.ContainerPath != "" && (clean(e.ContainerPath) == clean(w.Path) || c.place(e) == clean(w.Path))
		if w.All || w.Path != "" && at || w.Path == "" && e.Driver == w.Driver && e.Name == w.Name {
			list = append(list, e)
		}
	}
	return list
}

// letGoOf takes entries out of the container and lets their volumes go, and journals it. What could not be done is in out.Pending, its entries stay in the
// record. The error is one that is worse than that.
func (iso *Isolator) letGoOf(ctx context.Context, c *containerRecord, entries []*entry, how cleanHow, out *Cleaned) error {
	inside := iso.attachable(c, entries)
	for _, e := range entries {
		e.Pending = true
	}
	if err := iso.writeContainer(c); err != nil { // the intent: a crash from here on is finished by recover
		return err
	}
	if how.forget || len(inside) > 0 && !how.detached { // that a container is forgotten is for the audit log
		gone, err := iso.detach(ctx, c, inside, how)
		if err != nil {
			out.Pending = append(out.Pending, iso.heldBy(ctx, c, inside, err)...)
			if werr := iso.writeContainer(c); werr != nil {
				iso.log.Error("cannot journal a failed detach", "container", c.Container, "error", werr)
			}
			if isCode(err, wire.Busy, wire.Timeout) {
				return pendingBecause(err, out)
			}
			return err
		}
		out.Detached = append(out.Detached, gone...)
	}
	if left := iso.strayed(ctx, c, inside, out.Detached, how); len(left) > 0 && !how.forget {
		out.Pending = append(out.Pending, left...)
		if err := iso.writeContainer(c); err != nil {
			return err
		}
		return pendingBecause(strayedError(left), out)
	}
	type outcome struct {
		unmounted bool
		pending   *Pending
		err       error
	}
	outcomes := make([]outcome, len(entries))
	var wg sync.WaitGroup
	for i, e := range entries {
		wg.Go(func() {
			o := &outcomes[i]
			o.unmounted, o.pending, o.err = iso.release(ctx, c.ref(), e.volumeID, how.manner)
		})
	}
	wg.Wait()
	var causes []Cause
	kept := map[*entry]bool{}
	for i, e := range entries {
		o := outcomes[i]
		e.Attached, e.Pending, e.Since = nil, o.err != nil, time.Time{}
		switch {
		case o.err != nil:
			kept[e] = true
			causes = append(causes, cause(e.volumeID, time.Time{}, o.err))
		case o.pending != nil:
			kept[e] = how.last
			out.Pending = append(out.Pending, *o.pending)
		case o.unmounted:
			out.Unmounted = append(out.Unmounted, VolumeRef{e.Driver, e.Name})
		}
	}
	sortIDs(out.Unmounted, func(v VolumeRef) volumeID { return volumeID(v) })
	sortIDs(out.Pending, func(p Pending) volumeID { return volumeID{p.Driver, p.Name} })
	c.Volumes = slices.DeleteFunc(c.Volumes, func(e *entry) bool { return slices.Contains(entries, e) && !kept[e] })
	if how.last && len(c.Volumes) == 0 {
		return nil
	}
	if err := iso.writeContainer(c); err != nil {
		return err
	}
	if len(causes) > 0 {
		return several("let its volumes go", causes)
	}
	return nil
}

// attachable are the entries that the helper may have attached. In a container whose agent made its mounts itself, those are the ones that Attach added.
func (iso *Isolator) attachable(c *containerRecord, entries []*entry) []*entry {
	if c.Process == nil || c.Process.Boot != iso.boot { // no mount outlives its boot
		return nil
	}
	var list []*entry
	for _, e := range containerEntries(entries) {
		if e.Attached != nil || e.Pending || c.Phase == phaseIsolating {
			list = append(list, e)
		}
	}
	return list
}

// detach asks the helper to take the entries out of the container. That it knows nothing of one is as good.
func (iso *Isolator) detach(ctx context.Context, c *containerRecord, entries []*entry, how cleanHow) ([]Detached, error) {
	r := &wire.Request{Op: wire.OpDetach, Owner: c.Owner, Container: c.Container, Lazy: how.force, Forget: how.forget}
	if len(entries) < len(containerEntries(c.Volumes)) { // no mount= means all
		for _, e := range entries {
			r.Mounts = append(r.Mounts, wire.Mount{Path: e.ContainerPath})
		}
	}
	reply, err := iso.ask(ctx, r)
	switch {
	case isCode(err, wire.NotFound) && len(r.Mounts) > 1: // of one of them, so it has left all as they are
		var gone []Detached
		for _, e := range entries {
			d, err := iso.detach(ctx, c, []*entry{e}, how)
			if err != nil {
				return gone, err
			}
			gone = append(gone, d...)
		}
		return gone, nil
	case isCode(err, wire.NotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	var gone []Detached
	for _, b := range reply.Blocks {
		d := Detached{ContainerPath: b.Get("mount")}
		for _, e := range entries {
			if clean(e.ContainerPath) == clean(d.ContainerPath) {
				d.Driver, d.Name, d.ContainerPath = e.Driver, e.Name, e.ContainerPath
			}
		}
		gone = append(gone, d)
	}
	return gone, nil
}

// clean is the clean form of a container path, by which the helper knows it.
func clean(path string) string {
	if p, err := wire.ParsePath(path); err == nil {
		return p.String()
	}
	return path
}

// detachAll takes out whatever the helper knows of a container.
func (iso *Isolator) detachAll(ctx context.Context, c *containerRecord) error {
	_, err := iso.detach(ctx, c, containerEntries(c.Volumes), cleanHow{})
	return err
}

// heldBy says of each entry that the helper could not detach since when, and who holds it. Those that are attached still are no longer to be detached, since that
// was refused; of others, and where the helper cannot be asked, it is for a later cleanup or recover to see.
func (iso *Isolator) heldBy(ctx context.Context, c *containerRecord, entries []*entry, why error) []Pending {
	holders := map[string][]Holder{}
	reply, err := iso.ask(ctx, &wire.Request{Op: wire.OpQuery, Owner: c.Owner, Container: c.Container})
	if err == nil {
		for _, b := range reply.Blocks {
			holders[clean(b.Get("mount"))] = holdersOf(b)
		}
	}
	var list []Pending
	for _, e := range entries {
		h, there := holders[clean(e.ContainerPath)]
		if err == nil && !there {
			continue
		}
		if there && e.Attached != nil && c.Phase != phaseCleaning && !unknown(why) {
			e.Pending, e.Since = false, time.Time{}
		}
		if h == nil {
			h = []Holder{}
		}
		if e.Since.IsZero() {
			e.Since = time.Now().UTC()
		}
		list = append(list, Pending{Driver: e.Driver, Name: e.Name, Since: e.Since, Error: why.Error(), Holders: h})
	}
	return list
}

func holdersOf(b wire.Fields) []Holder {
	list := []Holder{}
	for line := range strings.Lines(b.Get("holders")) {
		pid, comm, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if n, err := strconv.Atoi(pid); err == nil {
			list = append(list, Holder{n, strings.TrimSuffix(strings.TrimPrefix(comm, "("), ")")})
		}
	}
	return list
}

// pendingError is the error that goes with a result in which something is pending.
func pendingError(doing string, out *Cleaned) error {
	if len(out.Pending) == 0 {
		return nil
	}
	var causes []Cause
	for _, p := range out.Pending {
		says := p.Error
		if w := who(p.Holders); w != "" && !strings.Contains(says, p.Holders[0].String()) {
			says += " (" + w + ")"
		}
		causes = append(causes, Cause{Driver: p.Driver, Name: p.Name, Stage: "unmount", Code: wire.Pending, Message: says})
	}
	e := several(doing, causes)
	e.Hint = "the next cleanup or recover tries again"
	return e
}

// pendingBecause is err, with who holds the mounts.
func pendingBecause(err error, out *Cleaned) error {
	e := *failure(err)
	var all []Holder
	for _, p := range out.Pending {
		for _, h := range p.Holders {
			if !slices.Contains(all, h) {
				all = append(all, h)
			}
		}
	}
	if w := who(all); w != "" && !strings.Contains(e.Message, all[0].String()) {
		e.Message += " (" + w + ")"
	}
	return &e
}
