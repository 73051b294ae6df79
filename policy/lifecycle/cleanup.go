package lifecycle

import (
	"context"
	"fmt"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// CleanupOptions are the exceptions that Cleanup makes.
type CleanupOptions struct {
	Force  bool // although its process is alive; detaches lazily
	Forget bool // drop the record without asking the drivers: a plugin is gone for good; the helper writes it into the audit log, or nothing is forgotten
}

// Cleanup detaches what is still attached to a container that has ended, drops its references, has the driver unmount the volumes that nobody else uses,
// and drops the record. Of a container that is not known there is nothing to do: Known is false, and no error.
//
// Errors: busy for a container that is alive or has nested containers, or if something still holds a mount; pending, with the result, if a driver could not
// unmount: the next Cleanup or Recover tries again.
func (iso *Isolator) Cleanup(ctx context.Context, container string, o CleanupOptions) (*Cleaned, error) {
	how := cleanHow{force: o.Force, manner: manner{forget: o.Forget}}
	return iso.cleanup(ctx, container, how, func(c *containerRecord) (bool, error) {
		if !o.Force && iso.alive(c.Process) {
			return false, wire.Errorf(wire.Busy, "process", "its process %d is alive", c.Process.PID).WithHint("--force cleans it up all the same")
		}
		return true, nil
	})
}

// cleanupEnded is Cleanup for a container whose process was seen to end. If the record speaks of another process by now, or of none, it was cleaned up and
// prepared again, and is left alone.
func (iso *Isolator) cleanupEnded(ctx context.Context, container string, p *process) (*Cleaned, error) {
	return iso.cleanup(ctx, container, cleanHow{}, func(c *containerRecord) (bool, error) {
		return c.Process != nil && c.Process.same(p) && !iso.alive(c.Process), nil
	})
}

// cleanup cleans a container up if its record, under its lock, says that it may be; if not, and without a record, nothing is known of what is to be cleaned up.
func (iso *Isolator) cleanup(ctx context.Context, container string, how cleanHow, may func(*containerRecord) (bool, error)) (*Cleaned, error) {
	doing := "clean up container " + container
	if err := wire.CheckID("container", container); err != nil {
		return nil, cannot(doing, err)
	}
	unlock, err := iso.lockContainers(ctx, reference{iso.owner, container})
	if err != nil {
		return nil, cannot(doing, err)
	}
	c, err := iso.readContainer(reference{iso.owner, container})
	if err == nil {
		do := false
		if c != nil {
			do, err = may(c)
		}
		if !do && err == nil {
			unlock()
			return newCleaned(container, false), nil
		}
	}
	var out *Cleaned
	if err == nil {
		out, err = iso.clean(ctx, c, how)
	}
	unlock()
	if err == nil {
		iso.leave(ctx, c)
		return out, nil
	}
	return out, cannot(doing, err)
}

// cleanHow says how a container is cleaned up.
type cleanHow struct {
	manner
	force    bool              // detach lazily
	detached bool              // nothing of it is attached, as the helper said
	swept    bool              // the helper has just seen that it is gone, and so dropped its record of it
	seen     func() []sighting // what is mounted in other namespaces, if it was looked up already
	last     bool              // the record goes with its last entry; one whose unmount is pending stays, so that a cleanup of the container tries again
}

// clean cleans a container up, under its lock. Nested containers must be gone.
func (iso *Isolator) clean(ctx context.Context, c *containerRecord, how cleanHow) (*Cleaned, error) {
	if nested := iso.children(c); len(nested) > 0 {
		return nil, wire.Errorf(wire.Busy, "nested", "nested containers are to be cleaned up first: %s", strings.Join(nested, ", "))
	}
	if how.forget {
		iso.log.Warn("a container's record is dropped without asking the drivers", "owner", c.Owner, "container", c.Container, "volumes", fmt.Sprint(c.volumes()))
	}
	out := newCleaned(c.Container, true)
	if c.Phase == phaseIsolating {
		for _, e := range c.Volumes {
			e.Pending = true
		}
	}
	c.Phase, how.last = phaseCleaning, true
	if len(c.Volumes) > 0 || how.forget {
		if err := iso.letGoOf(ctx, c, append([]*entry(nil), c.Volumes...), how, out); err != nil {
			return out, err
		}
	}
	if err := pendingError("let its volumes go", out); err != nil {
		return out, err
	}
	return out, iso.dropContainer(c)
}

// leave takes a container that is gone out of its parent's record. Best effort: the parent looks for itself.
func (iso *Isolator) leave(ctx context.Context, c *containerRecord) {
	if c == nil || c.Parent == "" {
		return
	}
	ref := reference{c.Owner, c.Parent}
	unlock, err := iso.lockContainers(ctx, ref)
	if err != nil {
		return
	}
	defer unlock()
	if parent, err := iso.readContainer(ref); err == nil && parent != nil {
		was := len(parent.Children)
		if parent.Children = iso.children(parent); len(parent.Children) != was {
			_ = iso.writeContainer(parent)
		}
	}
}
