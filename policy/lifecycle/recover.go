package lifecycle

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// RecoverOptions say what the agent knows.
type RecoverOptions struct {
	Known     []string // the containers that the agent has; they are kept, even if dead
	HasKnown  bool     // Known is the agent's list, even if it is empty
	Force     bool     // clean up containers that are alive and not in Known
	NoDrivers bool     // ask no driver; what takes one stays pending
}

// Recovered is what Recover found and did. Lists of containers hold ids.
type Recovered struct {
	Schema     string      `json:"schema"`
	Kept       []string    `json:"kept"`
	Cleaned    []string    `json:"cleaned"`
	RolledBack []string    `json:"rolled_back"` // prepare had been cut off
	Orphans    []string    `json:"orphans"`     // alive, and not in Known
	Unmounted  []VolumeRef `json:"unmounted"`
	Pending    []Pending   `json:"pending"`
	Corrupt    []string    `json:"corrupt"` // records that were moved aside, by their new paths
	Errors     []string    `json:"errors"`
}

// Recover brings journal, ledger, kernel and drivers together again after the agent, bindgate or the host was restarted: it finishes or undoes what a crash
// interrupted, cleans up the containers that are gone, children first, and tries again what is pending. Only records of the Isolator's owner are touched. It
// may be called at any time, also while other verbs are at work.
//
// With HasKnown, containers in Known are kept; dead ones that are not are cleaned up; live ones are Orphans unless Force. Without it the identity of their
// processes decides.
//
// Errors: pending, with the result, while something could not be let go; that of the first item in Errors.
func (iso *Isolator) Recover(ctx context.Context, o RecoverOptions) (*Recovered, error) {
	const doing = "recover"
	for _, id := range o.Known {
		if err := wire.CheckID("container", id); err != nil {
			return nil, cannot(doing, err)
		}
	}
	r := &recovery{iso: iso, o: o, how: manner{noDrivers: o.NoDrivers, silent: &sync.Map{}}, seen: sync.OnceValue(func() []sighting { return sightings() }), swept: map[string]bool{}, lost: map[string]bool{}, out: &Recovered{Schema: Schema,
		Kept: []string{}, Cleaned: []string{}, RolledBack: []string{}, Orphans: []string{}, Unmounted: []VolumeRef{}, Pending: []Pending{}, Corrupt: []string{},
		Errors: []string{}}}
	for _, step := range []func(context.Context){r.corrupt, r.read, r.ledger, r.missing, r.containers, r.strangers, r.volumes, r.temporary} {
		if step(ctx); ctx.Err() != nil {
			r.failed(volumeID{}, stopped(ctx, "recover", "look at everything"))
			break
		}
	}
	return r.out, r.verdict(doing)
}

// recovery is one Recover under way.
type recovery struct {
	iso      *Isolator
	o        RecoverOptions
	how      manner
	all      []*containerRecord       // of all owners, as they were at the beginning
	attached map[string][]wire.Fields // by container: what the helper has of it; nil if the helper could not be asked
	swept    map[string]bool          // containers of which the helper dropped what has ended
	lost     map[string]bool          // volumes whose records were corrupt, by key

	seen func() []sighting // once for all containers

	mu     sync.Mutex
	out    *Recovered
	causes []Cause
}

func (r *recovery) add(do func(*Recovered)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do(r.out)
}

func (r *recovery) failed(id volumeID, err error) {
	c := cause(id, time.Time{}, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out.Errors = append(r.out.Errors, c.Message)
	r.causes = append(r.causes, c)
}

// each does something to each, some at a time: drivers differ in speed, and different volumes may be worked on in parallel. When ctx ends it begins no more.
func each[T any](ctx context.Context, list []T, do func(T)) {
	const atOnce = 8
	var wg sync.WaitGroup
	turn := make(chan struct{}, atOnce)
	for _, x := range list {
		turn <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			do(x)
			<-turn
		})
	}
	wg.Wait()
}

// corrupt moves records that cannot be trusted aside: the owner's containers, and any volume's, since whose it is cannot be told.
func (r *recovery) corrupt(ctx context.Context) {
	iso := r.iso
	check := func(s *state.Store, mine func(string) bool, read func(string) error, moved func(string)) {
		names, err := s.List()
		if err != nil {
			r.failed(volumeID{}, err)
		}
		for _, name := range names {
			if !mine(name) {
				continue
			}
			if err := read(name); !isCode(err, wire.StateCorrupt) {
				if err != nil {
					r.failed(volumeID{}, err)
				}
				continue
			}
			lctx, cancel := iso.lockLimit(ctx)
			l, err := s.Lock(lctx, state.Key(name))
			cancel()
			if err != nil {
				r.failed(volumeID{}, err)
				continue
			}
			if isCode(read(name), wire.StateCorrupt) { // nobody has replaced it meanwhile
				to, err := s.MoveAside(name)
				if err != nil {
					r.failed(volumeID{}, err)
				} else {
					r.out.Corrupt = append(r.out.Corrupt, to)
					moved(name)
				}
			}
			l.Unlock()
		}
	}
	check(iso.containers, r.mine, func(name string) error {
		owner, id, _ := strings.Cut(name, "@")
		_, err := iso.readContainer(reference{owner, id})
		return err
	}, func(string) {})
	check(iso.volumes, func(string) bool { return true }, func(name string) error {
		_, err := iso.readVolumeNamed(name)
		return err
	}, func(name string) { r.lost[name] = true })
}

// read reads the containers' records.
func (r *recovery) read(ctx context.Context) {
	all, bad, err := r.iso.allContainers(ctx)
	if err != nil {
		r.failed(volumeID{}, err)
	}
	r.all = all
	r.unreadable(bad)
}

// unreadable reports records that could not be read. Those that are corrupt have been moved aside, or are not the owner's.
func (r *recovery) unreadable(bad []error) {
	for _, err := range bad {
		if !isCode(err, wire.StateCorrupt) {
			r.failed(volumeID{}, err)
		}
	}
}

// mine reports whether a container's record is the owner's.
func (r *recovery) mine(name string) bool { return strings.HasPrefix(name, r.iso.owner+"@") }

// ledger has the helper tidy up, and asks it what is attached, once for all containers: after their records were read, so that of a container whose record is
// still the same it says the truth.
func (r *recovery) ledger(ctx context.Context) {
	reply, err := r.iso.ask(ctx, &wire.Request{Op: wire.OpSweep, Owner: r.iso.owner})
	if err != nil {
		r.failed(volumeID{}, err)
		return
	}
	for _, b := range reply.Blocks {
		if b.Get("corrupt") == "1" {
			r.out.Corrupt = append(r.out.Corrupt, b.Get("mount"))
		} else {
			r.swept[b.Get("container")] = true
		}
	}
	reply, err = r.iso.ask(ctx, &wire.Request{Op: wire.OpQuery, Owner: r.iso.owner})
	if err != nil {
		r.failed(volumeID{}, err)
		return
	}
	r.attached = map[string][]wire.Fields{}
	for _, b := range reply.Blocks {
		id := b.Get("container")
		r.attached[id] = append(r.attached[id], b)
	}
}

// missing makes up for volumes' records that are not there any more, of all owners: who uses a volume, and with which id and mountpoint, is in the containers'
// records too. Of one that was just moved aside nothing else is known; else it is only missed by a container that nobody was letting it go for.
func (r *recovery) missing(ctx context.Context) {
	volumes, bad, err := r.iso.allVolumes(ctx)
	if err != nil {
		r.failed(volumeID{}, err)
		return
	}
	r.unreadable(bad)
	there := map[volumeID]*volumeRecord{}
	for _, v := range volumes {
		there[v.volumeID] = v
	}
	for _, c := range r.all {
		for _, e := range c.Volumes {
			v := there[e.volumeID]
			if e.ID == "" || v != nil && v.find(c.ref(), true) != nil || !r.lost[e.key()] && (e.Pending || c.Phase == phaseCleaning) {
				continue
			}
			if err := r.restore(ctx, c.ref(), e.volumeID); err != nil {
				r.failed(e.volumeID, err)
			}
		}
	}
}

// restore enters a container's reference into the record of a volume, as the container's record has it now.
func (r *recovery) restore(ctx context.Context, ref reference, id volumeID) error {
	iso := r.iso
	release, err := iso.lockContainers(ctx, ref)
	if err != nil {
		return err
	}
	defer release()
	c, err := iso.readContainer(ref)
	if err != nil || c == nil {
		return err
	}
	i := slices.IndexFunc(c.Volumes, func(e *entry) bool { return e.volumeID == id && e.ID != "" })
	if i < 0 || !r.lost[id.key()] && (c.Volumes[i].Pending || c.Phase == phaseCleaning) {
		return nil
	}
	e := c.Volumes[i]
	unlock, err := iso.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := iso.readVolume(id)
	if err != nil || v.find(ref, true) != nil {
		return err
	}
	if i = slices.IndexFunc(v.Holds, func(h *hold) bool { return h.ID == e.ID }); i < 0 {
		h := &hold{ID: e.ID, Owner: c.Owner, State: mountDone, Mountpoint: e.Mountpoint, Boot: c.Boot, WasMount: e.Driver != localDriver && isMount(e.Mountpoint)}
		if c.Phase == phaseCleaning {
			h.State = mountAsked // it may have been let go already
		}
		v.Holds = append(v.Holds, h)
		i = len(v.Holds) - 1
	}
	v.Holds[i].ref(ref)
	return iso.writeVolume(v)
}

// containers decides about the owner's containers, those nested deepest first.
func (r *recovery) containers(ctx context.Context) {
	for _, level := range generations(r.iso.owner, r.all) {
		each(ctx, level, func(c *containerRecord) { r.container(ctx, c) })
	}
}

// generations sorts an owner's containers: those nested deepest first.
func generations(owner string, all []*containerRecord) [][]*containerRecord {
	by := map[string]*containerRecord{}
	for _, c := range all {
		if c.Owner == owner {
			by[c.Container] = c
		}
	}
	var levels [][]*containerRecord
	for _, c := range all {
		if c.Owner != owner {
			continue
		}
		depth := 0
		for p := by[c.Parent]; p != nil && depth < len(by); p = by[p.Parent] {
			depth++
		}
		for len(levels) <= depth {
			levels = append(levels, nil)
		}
		levels[depth] = append(levels[depth], c)
	}
	slices.Reverse(levels)
	return levels
}

// container decides about one container, and does it under its lock.
func (r *recovery) container(ctx context.Context, seen *containerRecord) {
	iso := r.iso
	unlock, err := iso.lockContainers(ctx, seen.ref())
	if err != nil {
		r.failed(volumeID{}, err)
		return
	}
	c, err := iso.readContainer(seen.ref())
	if err != nil || c == nil {
		unlock()
		if err != nil {
			r.failed(volumeID{}, err)
		}
		return
	}
	unchanged := reflect.DeepEqual(c, seen)
	known := r.o.HasKnown && slices.Contains(r.o.Known, c.Container)
	alive, unsure := iso.lives(c.Process)
	waits := c.Process == nil && c.Boot == iso.boot && c.Phase == phasePrepared
	cutOff := c.Process == nil && c.Phase == phasePreparing
	id := c.Container
	switch {
	case c.Phase == phaseCleaning: // its cleanup was cut off, or something of it is pending
		r.clean(ctx, c, alive || unsure != nil, unchanged)
	case known:
		r.repair(ctx, c)
		r.add(func(out *Recovered) { out.Kept = append(out.Kept, id) })
	case cutOff:
		r.clean(ctx, c, false, unchanged)
	case alive && r.o.HasKnown && !r.o.Force:
		r.repair(ctx, c)
		r.add(func(out *Recovered) { out.Kept, out.Orphans = append(out.Kept, id), append(out.Orphans, id) })
	case alive && !r.o.HasKnown, waits && !r.o.HasKnown:
		r.repair(ctx, c)
		r.add(func(out *Recovered) { out.Kept = append(out.Kept, id) })
	case unsure != nil && !(r.o.HasKnown && r.o.Force): // if it is dead it is to be cleaned up: by the next recover
		r.failed(volumeID{}, cannot("see whether container "+id+" is alive", unsure))
		r.add(func(out *Recovered) { out.Kept = append(out.Kept, id) })
	default:
		r.clean(ctx, c, alive || unsure != nil, unchanged)
	}
	unlock()
	if c.Parent != "" {
		iso.leave(ctx, c)
	}
}

// clean cleans a container up, or rolls back its prepare.
func (r *recovery) clean(ctx context.Context, c *containerRecord, force, unchanged bool) {
	cutOff := c.Phase == phasePreparing
	_, has := r.attached[c.Container]
	// A helper that was asked before the crash may still be at work: it is waited for by a detach, but not by the query.
	asked := c.Phase == phaseIsolating || slices.ContainsFunc(c.Volumes, func(e *entry) bool { return e.Pending })
	out, err := r.iso.clean(ctx, c, cleanHow{force: force, detached: r.attached != nil && !has && unchanged && !asked, swept: !has && r.swept[c.Container], seen: r.seen, manner: r.how})
	r.add(func(all *Recovered) {
		if out != nil {
			all.Unmounted = append(all.Unmounted, out.Unmounted...)
			all.Pending = append(all.Pending, out.Pending...)
		}
		switch {
		case err != nil:
		case cutOff:
			all.RolledBack = append(all.RolledBack, c.Container)
		default:
			all.Cleaned = append(all.Cleaned, c.Container)
		}
	})
	if err != nil && !isCode(err, wire.Pending) {
		r.failed(volumeID{}, cannot("clean up container "+c.Container, err))
	}
}

// repair finishes or undoes what a crash left half done of a container that stays.
func (r *recovery) repair(ctx context.Context, c *containerRecord) {
	iso := r.iso
	err := func() error {
		if c.Phase == phaseIsolating { // what was attached is taken out; the agent isolates it again
			if err := iso.detachAll(ctx, c); err != nil {
				return err
			}
			for _, e := range c.Volumes {
				e.Attached = nil
			}
			c.Phase, c.Process = phasePrepared, nil
			return iso.writeContainer(c)
		}
		var half []*entry
		for _, e := range c.Volumes {
			if e.Pending {
				half = append(half, e)
			}
		}
		if len(half) == 0 {
			return nil
		}
		out := newCleaned(c.Container, true)
		err := iso.letGoOf(ctx, c, half, cleanHow{manner: r.how}, out)
		r.add(func(all *Recovered) {
			all.Unmounted = append(all.Unmounted, out.Unmounted...)
			all.Pending = append(all.Pending, out.Pending...)
		})
		if err == nil && c.Implicit && len(c.Volumes) == 0 && len(iso.children(c)) == 0 {
			err = iso.dropContainer(c)
		}
		return err
	}()
	if err != nil {
		r.failed(volumeID{}, cannot("repair container "+c.Container, err))
	}
}

// strangers deals with what the helper has attached for containers without a record: the journal was lost. Those that are alive are orphans; of others the
// helper's sweep has dropped what it had.
func (r *recovery) strangers(ctx context.Context) {
	for id, blocks := range r.attached {
		if slices.ContainsFunc(r.all, func(c *containerRecord) bool { return c.Owner == r.iso.owner && c.Container == id }) {
			continue
		}
		unlock, err := r.iso.lockContainers(ctx, reference{r.iso.owner, id})
		if err != nil {
			r.failed(volumeID{}, err)
			continue
		}
		switch c, err := r.iso.readContainer(reference{r.iso.owner, id}); {
		case err != nil || c != nil: // it came meanwhile
		case !r.o.Force && slices.ContainsFunc(blocks, func(b wire.Fields) bool { return b.Get("alive") == "1" }):
			r.out.Orphans = append(r.out.Orphans, id)
		default:
			if _, err := r.iso.ask(ctx, &wire.Request{Op: wire.OpDetach, Owner: r.iso.owner, Container: id, Lazy: r.o.Force}); err != nil && !isCode(err, wire.NotFound) {
				r.failed(volumeID{}, cannot("clean up container "+id, err))
			} else {
				r.out.Cleaned = append(r.out.Cleaned, id)
			}
		}
		unlock()
	}
}

// volumes drops references that no container confirms, and tries again what is pending, of the owner.
func (r *recovery) volumes(ctx context.Context) {
	volumes, bad, err := r.iso.allVolumes(ctx)
	if err != nil {
		r.failed(volumeID{}, err)
	}
	r.unreadable(bad)
	each(ctx, volumes, func(v *volumeRecord) {
		if err := r.volume(ctx, v.volumeID); err != nil {
			r.failed(v.volumeID, err)
		}
	})
}

func (r *recovery) volume(ctx context.Context, id volumeID) error {
	iso := r.iso
	tried := false
	r.add(func(out *Recovered) {
		tried = slices.ContainsFunc(out.Pending, func(p Pending) bool { return p.Driver == id.Driver && p.Name == id.Name })
	})
	unlock, err := iso.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := iso.readVolume(id)
	if err != nil {
		return err
	}
	for _, h := range slices.Clone(v.Holds) {
		had := len(h.Refs)
		h.Refs = slices.DeleteFunc(h.Refs, func(ref reference) bool {
			own := ref.Container == "" && h.State == mountAsked // its volume mount was cut off
			return ref.Owner == iso.owner && (own || !iso.counts(ctx, h, ref, id))
		})
		came := iso.came(h)
		if came {
			h.State, h.Late = mountDone, time.Time{}
		}
		switch {
		case len(h.Refs) > 0 && len(h.Refs) == had && !came, len(h.Refs) == 0 && h.Owner != iso.owner && had == 0:
		case len(h.Refs) > 0:
			if err := iso.writeVolume(v); err != nil {
				return err
			}
		case !tried: // else it was just now, as part of its container
			unmounted, pending, err := iso.unmount(ctx, v, h, r.how)
			if err != nil {
				return err
			}
			r.add(func(out *Recovered) {
				if unmounted {
					out.Unmounted = append(out.Unmounted, VolumeRef(id))
				}
				if pending != nil {
					out.Pending = append(out.Pending, *pending)
				}
			})
		}
	}
	return nil
}

// temporary removes the temporary files that crashes left, of records that nobody is at work on.
func (r *recovery) temporary(context.Context) {
	sweep := func(s *state.Store, mine func(string) bool) {
		if err := s.SweepTemporary(mine); err != nil {
			r.failed(volumeID{}, err)
		}
	}
	sweep(r.iso.containers, r.mine)
	sweep(r.iso.volumes, func(string) bool { return true })
}

// verdict sorts the result and says whether all is well.
func (r *recovery) verdict(doing string) error {
	for _, list := range [][]string{r.out.Kept, r.out.Cleaned, r.out.RolledBack, r.out.Orphans, r.out.Corrupt} {
		slices.Sort(list)
	}
	sortIDs(r.out.Unmounted, func(v VolumeRef) volumeID { return volumeID(v) })
	sortIDs(r.out.Pending, func(p Pending) volumeID { return volumeID{p.Driver, p.Name} })
	if len(r.causes) > 0 {
		return several(doing, r.causes)
	}
	if len(r.out.Pending) > 0 {
		err := pendingError(doing, &Cleaned{Pending: r.out.Pending})
		var e *Error
		if errors.As(err, &e) {
			e.Hint = "call recover again when the driver can be asked, or bindgate cleanup --forget"
		}
		return err
	}
	return nil
}
