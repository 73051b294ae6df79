package hook

import (
	"context"
	"errors"
	"time"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// undoTime bounds what is undone after a failure: the runtime waits, and kills a hook that takes longer than its timeout. What is left then is for recover.
const undoTime = 20 * time.Second

// CreateRuntime gives the container of a state its volumes before it pivots: all or none, and none is left behind where it fails. A container that names none gets no
// record. Of one whose mounts a precreate hook had the runtime make, only the process is recorded. Again for the same process it changes nothing.
//
// config is the bundle's config.json. Errors: those of spec.FromOCI, lifecycle.Prepare and lifecycle.Isolate. The runtime stops the container for any of them.
func CreateRuntime(ctx context.Context, iso *lifecycle.Isolator, s *State, config []byte, dvdiEnv bool) (warnings []string, err error) {
	j, err := job(config, s.Annotations, dvdiEnv)
	if err != nil || len(j.Volumes) == 0 {
		return nil, err
	}
	b, err := readBundle(config)
	if err != nil {
		return nil, err
	}
	rootfs, err := b.rootfs(s.Bundle)
	if err != nil {
		return nil, err
	}
	r := lifecycle.Request{Container: s.ID, Job: j, Rootfs: rootfs}
	p, err := iso.Prepare(ctx, r)
	if isConflict(err) {
		if b.hasMounts(j) { // a precreate hook was there first
			if _, bound := iso.Bind(ctx, s.ID, s.PID); !isConflict(bound) {
				return nil, bound
			}
		}
		if p, err = again(ctx, iso, r, err); isConflict(err) { // it has a process, which is this one if the hook is called twice
			_, err = iso.Isolate(ctx, s.ID, s.PID)
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	if _, err := iso.Isolate(ctx, s.ID, s.PID); err != nil {
		return nil, undo(ctx, iso, s.ID, err)
	}
	return p.Warnings, nil
}

// again prepares a container whose record was in the way: one that waits for a process is what a start left that did not come as far as this, and goes. Else the
// error is conflict, as before.
func again(ctx context.Context, iso *lifecycle.Isolator, r lifecycle.Request, conflict error) (*lifecycle.Prepared, error) {
	if _, err := iso.Cleanup(ctx, r.Container, lifecycle.CleanupOptions{}); err != nil {
		return nil, conflict
	}
	return iso.Prepare(ctx, r)
}

// undo cleans up a container that does not come into being, and returns why it does not.
func undo(ctx context.Context, iso *lifecycle.Isolator, id string, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	_, err := iso.Cleanup(ctx, id, lifecycle.CleanupOptions{Force: true})
	var e *lifecycle.Error
	if err != nil && errors.As(why, &e) {
		also := *e
		also.Message += "; " + err.Error()
		return &also
	}
	return why
}

// Poststop lets the volumes of a container that has ended go. One that had none is not known, which is no error.
//
// Errors: those of lifecycle.Cleanup. A runtime does no more than warn of them; recover tries again.
func Poststop(ctx context.Context, iso *lifecycle.Isolator, s *State) error {
	if wire.CheckContainer(s.ID) != nil {
		return nil // so it never had a record
	}
	_, err := iso.Cleanup(ctx, s.ID, lifecycle.CleanupOptions{})
	return err
}

func isConflict(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.Conflict
}
