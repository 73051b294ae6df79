package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/wire"
)

// acquire makes a volume available on the host for ref and fills in the entry's ID, Mountpoint and Created. ref's container has a record on disk that
// names the volume already. explicit says that the volume must exist.
//
// It returns nil, too, when ctx was interrupted and the driver's answer came all the same: the caller looks at ctx and releases.
func (iso *Isolator) acquire(ctx context.Context, ref reference, e *entry, explicit bool) error {
	unlock, err := iso.lockVolume(ctx, e.volumeID)
	if err != nil {
		return err
	}
	defer unlock()
	drv, err := iso.driver(e.Driver)
	if err != nil {
		return err
	}
	v, err := iso.readVolume(e.volumeID)
	if err != nil {
		return err
	}
	own := iso.policy.Drivers[e.Driver].Counting == config.CountContainer
	h := v.find(ref, own)
	if h != nil {
		if h, err = iso.revive(ctx, drv, v, h); err != nil {
			return err
		}
	}
	switch {
	case h == nil:
		if e.Created, err = iso.ensure(ctx, drv, e, explicit); err != nil {
			return err
		}
		h = &hold{ID: newID(), State: mountAsked, Own: own}
		v.Holds = append(v.Holds, h)
		err = iso.mount(ctx, drv, v, h, ref)
	case h.State == mountDone:
		h.ref(ref)
		h.Owner = ref.Owner
		err = iso.writeVolume(v)
	default: // it was lost: asked for again with the same id
		err = iso.mount(ctx, drv, v, h, ref)
	}
	if err == nil {
		e.ID, e.Mountpoint = h.ID, h.Mountpoint
	}
	return err
}

// revive says what an earlier Mount is good for. It returns a hold that is mounted, or one that is to be asked for again, or nil: it was let go.
func (iso *Isolator) revive(ctx context.Context, drv driver.Driver, v *volumeRecord, h *hold) (*hold, error) {
	switch {
	case h.State == mountDone && !iso.lost(h):
		return h, nil
	case iso.came(h):
		h.State, h.Late = mountDone, time.Time{}
		return h, nil
	case h.State == mountPending && !h.Unsure && !iso.lost(h):
		// The driver refused to unmount it, so it is mounted: a new user cancels the unmount.
		h.State, h.Since, h.Error = mountDone, time.Time{}, ""
		return h, nil
	case h.State == mountDone:
		h.State = mountAsked
		return h, nil
	}
	// A crash or a deadline left it open whether it is mounted. Asking for it to be mounted once more could leave a driver that counts one too many; let it go
	// first.
	still, err := iso.letGo(ctx, drv, v.volumeID, h, false)
	switch {
	case err != nil && !still:
		return nil, err // nobody knows, and nobody can be asked
	case still:
		h.State, h.Since, h.Error, h.Unsure = mountDone, time.Time{}, "", false
		return h, nil
	case len(h.Refs) > 0: // of containers whose prepare was cut off
		if h.Doubt {
			old := *h
			v.Holds = append(v.Holds, &old)
			v.settle(&old)
		}
		h.ID, h.State, h.Unsure, h.Mountpoint, h.WasMount, h.Doubt = newID(), mountAsked, false, "", false, false
		return h, nil
	}
	v.settle(h)
	return nil, nil
}

// ensure makes sure that the volume exists: Get, else Create.
func (iso *Isolator) ensure(ctx context.Context, drv driver.Driver, e *entry, explicit bool) (created bool, err error) {
	_, err = within(ctx, iso.policy.For(e.Driver).Call, "get", "look up volume "+e.String(), func(ctx context.Context) (driver.Volume, error) {
		return drv.Get(ctx, e.Name)
	})
	if !isCode(err, wire.VolumeNotFound) {
		return false, err
	}
	if explicit || iso.policy.Volume.ExplicitCreate || iso.policy.Drivers[e.Driver].ExplicitCreate {
		return false, wire.Errorf(wire.VolumeNotFound, "get", "cannot use volume %s: it does not exist, and is to be created explicitly", e.volumeID).
			WithHint("bindgate volume create --driver %s %s", e.Driver, e.Name)
	}
	if err := iso.create(ctx, drv, e.volumeID, e.Options); err != nil {
		return false, err
	}
	return true, nil
}

// create asks the driver for a new volume, with the options of policy.toml that opts does not name.
func (iso *Isolator) create(ctx context.Context, drv driver.Driver, v volumeID, opts map[string]string) error {
	all := map[string]string{}
	for _, from := range []map[string]string{iso.policy.Drivers[v.Driver].Options, opts} {
		for key, value := range from {
			all[key] = value
		}
	}
	_, err := within(ctx, iso.policy.For(v.Driver).Call, "create", "create volume "+v.String(), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, drv.Create(ctx, v.Name, all)
	})
	return err
}

// mount journals the intent, asks the driver, and journals the mountpoint. Under the volume's lock.
func (iso *Isolator) mount(ctx context.Context, drv driver.Driver, v *volumeRecord, h *hold, ref reference) error {
	others, had := len(h.Refs) > 0, slices.Contains(h.Refs, ref)
	h.ref(ref)
	h.State, h.Owner, h.Boot, h.Late = mountAsked, ref.Owner, iso.boot, time.Now().UTC().Add(iso.policy.For(v.Driver).Mount)
	asked, newest, mountpoint := false, newestMount(), ""
	err := iso.writeVolume(v)
	if err == nil {
		asked = true
		mountpoint, err = iso.askMount(ctx, drv, v.volumeID, h.ID)
	}
	h.Late = time.Time{}
	if err == nil {
		h.State, h.Mountpoint, h.Unsure = mountDone, mountpoint, false
		h.WasMount = v.Driver != localDriver && isMountSince(mountpoint, newest)
		if err = iso.writeVolume(v); err == nil {
			return nil
		}
	}
	// It failed. What it may have left behind is let go, or remembered.
	if !had {
		h.unref(ref)
	}
	if others { // of which each still has what it had: a mount that was lost, or one that was cut off
		if h.Mountpoint != "" {
			h.State = mountDone
		}
		if isCode(err, wire.Timeout) {
			h.Late = time.Now().UTC().Add(iso.policy.For(v.Driver).Unmount)
		}
		return errors.Join(err, iso.writeVolume(v))
	}
	undo, cancel := iso.undoing(ctx)
	defer cancel()
	switch {
	case !asked || untouched(err) || refused(err):
		v.drop(h)
	case isCode(err, wire.Timeout):
		now := time.Now().UTC()
		h.State, h.Unsure, h.Since, h.Error, h.Late = mountPending, true, now, err.Error(), now.Add(iso.policy.For(v.Driver).Unmount)
	default:
		if still, uerr := iso.letGo(undo, drv, v.volumeID, h, h.State == mountDone); still || uerr != nil {
			h.State, h.Since, h.Error = mountPending, time.Now().UTC(), fmt.Sprint(uerr)
			h.Unsure = !still
		} else {
			v.drop(h)
		}
	}
	if werr := iso.writeVolume(v); werr != nil {
		iso.log.Error("cannot journal a failed mount", "volume", v.String(), "error", werr)
	}
	return err
}

// undoing is the context in which what was done under ctx is undone: without an end of its own, since the drivers' deadlines are one, unless somebody waits for
// no longer than some time, or no longer at all. Then it ends with that, but not before the grace. What is not undone by then is pending.
func (iso *Isolator) undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	undo, soon := context.WithoutCancel(ctx), time.Now().Add(iso.grace)
	end, limited := ctx.Deadline()
	switch {
	case errors.Is(ctx.Err(), context.Canceled), limited && end.Before(soon):
		return context.WithDeadline(undo, soon)
	case limited:
		return context.WithDeadline(undo, end)
	}
	return context.WithCancel(undo)
}

// untouched reports whether the driver never got the call.
func untouched(err error) bool {
	w := wire.AsError(err)
	return w.Stage == "discover" || w.Stage == "activate" || isCode(err, wire.InvalidRequest, wire.Config, wire.DriverUnavailable)
}

// refused reports whether the driver said in so many words that it did not do it, unlike one that answered with nonsense and may have. It must not be asked
// to unmount then: one that counts calls would take it for somebody else's.
func refused(err error) bool {
	return isCode(err, wire.VolumeNotFound) || errors.Is(err, driver.ErrRefused)
}

// askMount asks the driver to mount, under the deadline of this stage. The driver's own context lasts longer: a mount that it completes after the deadline is
// unmounted as soon as it says so, if we are still running, and by Recover otherwise. After an interrupt the answer is waited for a little, because a mount
// that is known can be undone at once.
func (iso *Isolator) askMount(ctx context.Context, drv driver.Driver, v volumeID, id string) (string, error) {
	t := iso.policy.For(v.Driver)
	long, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.Mount+t.Unmount)
	type answer struct {
		mountpoint string
		err        error
	}
	answered := make(chan answer, 1)
	began := time.Now()
	go func() {
		m, err := drv.Mount(long, v.Name, id)
		answered <- answer{m, err}
	}()
	stage, done := context.WithTimeout(ctx, t.Mount)
	defer done()
	select {
	case a := <-answered:
		cancel()
		return a.mountpoint, a.err
	case <-stage.Done():
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		grace := time.NewTimer(iso.grace)
		defer grace.Stop()
		select {
		case a := <-answered:
			cancel()
			return a.mountpoint, a.err
		case <-grace.C:
		}
	}
	go func() {
		defer cancel()
		if a := <-answered; a.err == nil || untouched(a.err) {
			iso.late(drv, v, id, a.err == nil)
		}
	}()
	return "", late(ctx, "mount", "mount volume "+v.String(), time.Since(began)).
		WithHint("the driver may still carry it out; then the volume is unmounted by the next prepare of it, cleanup or recover")
}

// late deals with a mount that ended after it was given up.
func (iso *Isolator) late(drv driver.Driver, id volumeID, hid string, mounted bool) {
	ctx := context.Background()
	unlock, err := iso.lockVolume(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	v, err := iso.readVolume(id)
	if err != nil {
		return
	}
	for _, h := range v.Holds {
		if h.ID != hid || h.State != mountPending || len(h.Refs) > 0 {
			continue
		}
		if mounted {
			if still, err := iso.letGo(ctx, drv, id, h, true); still || err != nil {
				return // it stays pending
			}
		}
		v.drop(h)
		if err := iso.writeVolume(v); err != nil {
			iso.log.Error("cannot journal a late unmount", "volume", id.String(), "error", err)
		}
		iso.log.Info("let go of a volume that was mounted after its deadline", "volume", id.String())
		return
	}
}

// How release lets a volume go.
type manner struct {
	forget    bool      // drop the record, do not ask the driver
	noDrivers bool      // do not ask the driver now: leave it pending
	silent    *sync.Map // drivers that did not answer, by name: they are not asked again; nil: every driver is asked
}

func (how manner) isSilent(driver string) bool {
	if how.silent == nil {
		return false
	}
	_, is := how.silent.Load(driver)
	return is
}

func (how manner) setSilent(driver string) {
	if how.silent != nil {
		how.silent.Store(driver, true)
	}
}

// release takes ref away from a volume and lets the volume go if nobody else uses it. pending says that the driver could not. The error is one of the
// journal: then the reference may still be there.
func (iso *Isolator) release(ctx context.Context, ref reference, id volumeID, how manner) (unmounted bool, pending *Pending, err error) {
	unlock, err := iso.lockVolume(ctx, id)
	if err != nil {
		return false, nil, err
	}
	defer unlock()
	v, err := iso.readVolume(id)
	if err != nil {
		return false, nil, err
	}
	h := v.find(ref, true)
	switch {
	case h == nil:
		// Given back before; but if that left the driver's unmount open, and it was asked for on our behalf, now is the time to try again.
		return iso.retry(ctx, v, ref.Owner, how)
	case how.forget:
		h.unref(ref)
	default:
		h.Refs = iso.others(ctx, h, ref, id)
	}
	if len(h.Refs) == 0 {
		h.Owner = ref.Owner // whose recover tries again what fails now
		return iso.unmount(ctx, v, h, how)
	}
	return false, nil, iso.writeVolume(v)
}

// others are the references beside ref that count.
func (iso *Isolator) others(ctx context.Context, h *hold, ref reference, id volumeID) []reference {
	var refs []reference
	for _, r := range h.Refs {
		if r != ref && iso.counts(ctx, h, r, id) {
			refs = append(refs, r)
		}
	}
	return refs
}

// counts reports whether a reference is one: its container's record confirms it or, where that was lost, the helper has the volume attached to the container.
func (iso *Isolator) counts(ctx context.Context, h *hold, ref reference, id volumeID) bool {
	if iso.confirmed(ref, id) {
		return true
	}
	if h.Mountpoint == "" {
		return false
	}
	reply, err := iso.ask(ctx, &wire.Request{Op: wire.OpQuery, Owner: ref.Owner, Container: ref.Container})
	return err != nil || slices.ContainsFunc(reply.Blocks, func(b wire.Fields) bool {
		return b.Get("alive") == "1" && beneath(h.Mountpoint, b.Get("source"))
	})
}

// retry tries again to unmount what an owner has pending of one volume.
func (iso *Isolator) retry(ctx context.Context, v *volumeRecord, owner string, how manner) (unmounted bool, pending *Pending, err error) {
	for _, h := range append([]*hold(nil), v.Holds...) {
		if len(h.Refs) > 0 || h.Owner != owner {
			continue
		}
		done, p, err := iso.unmount(ctx, v, h, how)
		if err != nil {
			return unmounted, pending, err
		}
		unmounted = unmounted || done
		if p != nil {
			pending = p
		}
	}
	return unmounted, pending, nil
}

// unmount asks the driver to let go of a hold that nobody refers to, and journals it. Under the volume's lock.
func (iso *Isolator) unmount(ctx context.Context, v *volumeRecord, h *hold, how manner) (bool, *Pending, error) {
	if how.forget {
		v.drop(h)
		return false, nil, iso.writeVolume(v)
	}
	waits := func(err error, holders ...Holder) (bool, *Pending, error) {
		if h.Since.IsZero() {
			h.Since = time.Now().UTC()
		}
		h.Error = err.Error()
		p := &Pending{Driver: v.Driver, Name: v.Name, Since: h.Since, Error: h.Error, Holders: append([]Holder{}, holders...)}
		return false, p, iso.writeVolume(v)
	}
	if h.Doubt && slices.ContainsFunc(v.Holds, func(o *hold) bool { return !o.Doubt }) { // one that counts nothing would take the volume from them
		return false, nil, nil
	}
	// Else a crash or a deadline came between question and answer, or a Mount that was given up may still come.
	sure := (h.State == mountDone || h.State == mountPending && !h.Unsure) && h.Late.IsZero()
	h.State, h.Unsure = mountPending, !sure
	if how.noDrivers {
		return waits(errors.New("the driver was not asked (--no-drivers)"))
	}
	if how.isSilent(v.Driver) {
		return waits(errors.New("the driver was not asked: it did not answer for another volume"))
	}
	drv, err := iso.driver(v.Driver)
	if err != nil {
		return waits(err)
	}
	h.Unsure = true
	if err := iso.writeVolume(v); err != nil { // a crash from here on finds that it counts as no reference, and may be unmounted or not
		return false, nil, err
	}
	still, err := iso.letGo(ctx, drv, v.volumeID, h, sure)
	if still || err != nil {
		h.Unsure = !still && !(sure && untouched(err))
		if isCode(err, wire.DriverUnavailable) || isCode(err, wire.Timeout) && ctx.Err() == nil {
			how.setSilent(v.Driver)
		}
		if untouched(err) {
			return waits(err)
		}
		return waits(err, iso.volumeHolders(ctx, h.Mountpoint)...)
	}
	if v.settle(h); h.Doubt {
		return waits(errors.New(h.Error))
	}
	return true, nil, iso.writeVolume(v)
}

// letGo asks the driver once to unmount. (false, nil): it is not mounted. (true, err): it still is, since the driver refused. (false, err): nobody knows.
//
// A driver that answers with an error is believed that it failed, unless there was nothing to do: the mountpoint was a mount and is none now; or it is none and
// the driver says so, as one does that was restarted and has forgotten; or it is not sure that it was mounted, and the driver has no mount for it to show. The
// last two are in doubt, as h.Doubt says, while a Mount that nobody waits for may still be carried out.
func (iso *Isolator) letGo(ctx context.Context, drv driver.Driver, v volumeID, h *hold, sure bool) (still bool, err error) {
	t := iso.policy.For(v.Driver)
	h.Doubt = false
	_, err = within(ctx, t.Unmount, "unmount", "unmount volume "+v.String(), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, drv.Unmount(ctx, v.Name, h.ID)
	})
	switch {
	case err == nil, isCode(err, wire.VolumeNotFound):
		return false, nil
	case !isCode(err, wire.DriverError):
		return false, err
	case iso.lost(h), notMounted().MatchString(err.Error()) && !isMount(h.Mountpoint):
		h.Doubt = !sure && iso.mayCome(h)
		return false, nil
	case sure:
		return true, err
	}
	where, perr := within(ctx, t.Call, "path", "find the path of volume "+v.String(), func(ctx context.Context) (string, error) {
		return drv.Path(ctx, v.Name)
	})
	if perr == nil && where != "" && isMount(where) {
		return true, err
	}
	h.Doubt = iso.mayCome(h)
	return false, nil
}

// mayCome reports whether a Mount that nobody waits for any more may still be carried out: its caller was killed, or gave it up.
func (iso *Isolator) mayCome(h *hold) bool { return h.Boot == iso.boot && time.Now().Before(h.Late) }

// notMounted is how drivers say that there is nothing to unmount.
var notMounted = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(not|n't) (currently |been )?mounted|no such mount|\bnot a mount ?point`)
})

// lost reports whether what a driver mounted is not mounted any more: the plugin or the host was restarted.
func (iso *Isolator) lost(h *hold) bool {
	return h.Boot != iso.boot || h.WasMount && !isMount(h.Mountpoint)
}

// came reports whether a volume that was lost, and asked for again by one who was killed before he heard the answer, is mounted: then those who refer to it have
// it, and it must not be let go under them.
func (iso *Isolator) came(h *hold) bool {
	return h.State == mountAsked && len(h.Refs) > 0 && h.WasMount && !iso.lost(h)
}

// within runs one call of a driver under its stage's deadline. A driver that does not heed its context is left to itself.
func within[T any](ctx context.Context, limit time.Duration, stage, doing string, call func(context.Context) (T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, stopped(ctx, stage, doing)
	}
	sctx, cancel := context.WithTimeout(ctx, limit)
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	began := time.Now()
	go func() {
		defer cancel()
		v, err := call(sctx)
		answered <- answer{v, err}
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-sctx.Done():
	}
	select { // a driver that heeds it says more about it
	case a := <-answered:
		return a.value, a.err
	case <-time.After(100 * time.Millisecond):
	}
	return none, late(ctx, stage, doing, time.Since(began))
}

// late is the error for a driver that did not answer in time.
func late(ctx context.Context, stage, doing string, after time.Duration) *wire.Error {
	if ctx.Err() != nil {
		return stopped(ctx, stage, doing)
	}
	return wire.Errorf(wire.Timeout, stage, "cannot %s: the driver did not answer within %v", doing, after.Round(time.Millisecond)).
		Because(context.DeadlineExceeded)
}
