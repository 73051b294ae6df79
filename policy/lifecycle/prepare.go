package lifecycle

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// A Request is what a container is to get. Job is required; everything else but Container may be empty.
type Request struct {
	Container      string
	Job            *spec.Job
	Parent         string // the container in which this one is nested
	Rootfs         string // host path of its root filesystem, for an attach before it pivots
	Directory      string // host path of its sandbox directory, for relative container paths
	Sandbox        string // where it sees that; "": wire.DefaultSandbox
	Labels         map[string]string
	MountsBy       string // ByHelper or ByAgent; "": ByHelper
	ExplicitCreate bool   // every volume must exist
}

// Prepare makes a container's volumes available on the host, all of them or none, before the container exists. The record of an earlier container of that
// id is cleaned up first if its process is gone.
//
// Errors: invalid_request, duplicate_volume, denied before any driver is asked; conflict for an id in use; those of the drivers, in Causes.
func (iso *Isolator) Prepare(ctx context.Context, r Request) (*Prepared, error) {
	doing := "prepare container " + r.Container
	c, err := iso.newRecord(r)
	if err == nil {
		err = iso.permitAll(c, c.Volumes)
	}
	if err != nil {
		return nil, cannot(doing, err)
	}
	unlock, err := iso.lockContainers(ctx, family(c)...)
	if err != nil {
		return nil, cannot(doing, err)
	}
	defer unlock()
	if err := iso.replace(ctx, c); err != nil {
		return nil, cannot(doing, err)
	}
	warnings, err := iso.prepare(ctx, doing, c, c.Volumes, r)
	if err != nil {
		return nil, err
	}
	c.Phase = phasePrepared
	if err := iso.writeContainer(c); err != nil {
		return nil, iso.undoPrepare(ctx, cannot(doing, err), c, c.Volumes, c.Volumes)
	}
	p := &Prepared{Schema: Schema, Container: c.Container, Owner: c.Owner, Volumes: c.volumes(), Skipped: r.Job.Skipped,
		Warnings: slices.Concat(r.Job.Warnings, warnings)}
	if p.Skipped == nil {
		p.Skipped = []spec.Skipped{}
	}
	if c.MountsBy == ByAgent {
		p.Mounts = agentMounts(c)
	}
	return p, nil
}

// newRecord checks a request by itself and makes the container's record of it.
func (iso *Isolator) newRecord(r Request) (*containerRecord, error) {
	if r.MountsBy == "" {
		r.MountsBy = ByHelper
	}
	if r.Job == nil {
		r.Job = &spec.Job{}
	}
	bad := func(format string, args ...any) error {
		return wire.Errorf(wire.InvalidRequest, "request", format, args...)
	}
	if err := wire.CheckID("container", r.Container); err != nil {
		return nil, err
	}
	if r.Parent != "" {
		if err := wire.CheckID("parent", r.Parent); err != nil {
			return nil, err
		}
		if r.Parent == r.Container {
			return nil, bad("a container cannot be its own parent")
		}
	}
	for what, path := range map[string]string{"rootfs": r.Rootfs, "directory": r.Directory, "sandbox directory": r.Sandbox} {
		if path == "" {
			continue
		}
		if p, err := wire.ParsePath(path); err != nil {
			return nil, err
		} else if !p.Absolute {
			return nil, bad("the %s %q is not an absolute path", what, path)
		} else if wire.Printable(path) != path { // the helper would refuse it, when all is mounted
			return nil, bad("the %s %q holds control characters or is not UTF-8", what, path)
		}
	}
	for key, value := range r.Labels {
		if wire.Printable(key+value) != key+value {
			return nil, bad("the label %q=%q holds control characters or is not UTF-8", key, value)
		}
	}
	if r.MountsBy != ByHelper && r.MountsBy != ByAgent {
		return nil, bad("mounts are made by %q or %q, not by %q", ByHelper, ByAgent, r.MountsBy)
	}
	if err := iso.checkJob(r.Job); err != nil {
		return nil, err
	}
	c := &containerRecord{Owner: iso.owner, Container: r.Container, Phase: phasePreparing, Boot: iso.boot, Since: time.Now().UTC(), Parent: r.Parent,
		Labels: map[string]string{}, Rootfs: r.Rootfs, Directory: r.Directory, Sandbox: r.Sandbox, MountsBy: r.MountsBy, Volumes: []*entry{}}
	for _, labels := range []map[string]string{r.Job.Labels, r.Labels} {
		for key, value := range labels {
			c.Labels[key] = value
		}
	}
	for _, v := range r.Job.Volumes {
		c.Volumes = append(c.Volumes, entryOf(v))
	}
	return c, c.checkPaths()
}

// checkJob checks a job by itself: what no driver has to be asked for.
func (iso *Isolator) checkJob(j *spec.Job) error {
	if err := j.Validate(); err != nil {
		return err
	}
	for _, v := range j.Volumes {
		if v.Driver != localDriver {
			continue
		}
		d, err := iso.driver(v.Driver)
		if local, ok := d.(*driver.Local); ok && err == nil {
			err = local.Check(v.Name, v.Options)
		}
		if err != nil {
			return wire.Errorf(wire.AsError(err).Code, "request", "cannot use %s: %v", cmp.Or(v.Field, "volume "+v.Driver+"/"+v.Name), err)
		}
	}
	return nil
}

// checkPaths checks what takes the whole container: a relative path needs a sandbox, and may be the same place as an absolute one.
func (c *containerRecord) checkPaths() error {
	at := map[string]*entry{}
	for _, e := range c.Volumes {
		if e.Scope == spec.ScopeHost {
			continue
		}
		if strings.HasPrefix(e.ContainerPath, "/") || c.Directory != "" {
			place := c.place(e)
			if other := at[place]; other != nil {
				return wire.Errorf(wire.InvalidRequest, "request", "volumes %s and %s have one container_path: %s", other.volumeID, e.volumeID, place)
			}
			at[place] = e
			continue
		}
		return wire.Errorf(wire.InvalidRequest, "request", "volume %s has the relative container_path %q, and there is no sandbox directory", e.volumeID, e.ContainerPath).
			WithHint("name the container's sandbox on the host with --directory")
	}
	return nil
}

// place is where a container sees a volume.
func (c *containerRecord) place(e *entry) string {
	path := e.ContainerPath
	if !strings.HasPrefix(path, "/") {
		path = c.sandbox() + "/" + path
	}
	p, err := wire.ParsePath(path)
	if err != nil {
		return path // refused elsewhere
	}
	return p.String()
}

func (c *containerRecord) sandbox() string {
	if c.Sandbox == "" {
		return wire.DefaultSandbox
	}
	return c.Sandbox
}

// permitAll applies the rules to each of the volumes, before any driver is asked (T40).
func (iso *Isolator) permitAll(c *containerRecord, entries []*entry) error {
	var denied []Cause
	for _, e := range entries {
		if err := iso.permit(c.use(e)); err != nil {
			denied = append(denied, cause(e.volumeID, time.Time{}, err))
		}
	}
	if len(denied) > 0 {
		return several("use its volumes", denied)
	}
	return nil
}

// family is a container and its parent.
func family(c *containerRecord) []reference {
	refs := []reference{c.ref()}
	if c.Parent != "" {
		refs = append(refs, reference{c.Owner, c.Parent})
	}
	return refs
}

// replace puts c's record in the journal: the intent. It cleans up what an earlier container of that id left, and enters c at its parent. Under the locks
// of c's family.
func (iso *Isolator) replace(ctx context.Context, c *containerRecord) error {
	old, err := iso.readContainer(c.ref())
	if err != nil {
		return err
	}
	if old != nil {
		if !iso.stale(old) {
			return wire.Errorf(wire.Conflict, "record", "there is one already, %s", old.describe()).
				WithHint("if it has ended: bindgate cleanup --owner %s --container %s", c.Owner, c.Container)
		}
		if _, err := iso.clean(ctx, old, cleanHow{}); err != nil && !isCode(err, wire.Pending) {
			return cannot("clean up the earlier container of that id", err)
		}
	}
	if c.Parent != "" {
		parent, err := iso.readContainer(reference{c.Owner, c.Parent})
		switch {
		case err != nil:
			return err
		case parent == nil || parent.Phase == phaseCleaning:
			return wire.Errorf(wire.NotFound, "record", "its parent %s is not there", c.Parent).WithHint("prepare the parent first, even if it has no volumes")
		case !slices.Contains(parent.Children, c.Container):
			// Confirmed by the child's own record; so this one comes first and is forgotten when it is not.
			parent.Children = append(iso.children(parent), c.Container)
			if err := iso.writeContainer(parent); err != nil {
				return err
			}
		}
	}
	if err := iso.writeContainer(c); err != nil {
		_ = iso.dropContainer(c) // it may be there, if not for good
		return err
	}
	return nil
}

// stale reports whether a record is that of a container that cannot come back: its process is gone, it is of an earlier boot, or a crash cut it off (its
// lock is ours, so nobody is at work on it).
func (iso *Isolator) stale(c *containerRecord) bool {
	switch {
	case c.Boot != iso.boot:
		return true
	case c.Process != nil:
		return !iso.alive(c.Process)
	}
	return c.Phase == phasePreparing || c.Phase == phaseCleaning
}

func (c *containerRecord) describe() string {
	if c.Process != nil {
		return fmt.Sprintf("%s as process %d", c.Phase, c.Process.PID)
	}
	return c.Phase + ", without a process yet"
}

// children are the nested containers that still have a record saying so.
func (iso *Isolator) children(c *containerRecord) []string {
	var ids []string
	for _, id := range c.Children {
		child, err := iso.readContainer(reference{c.Owner, id})
		if err != nil || child != nil && child.Parent == c.Container { // one that cannot be read may be nested
			ids = append(ids, id)
		}
	}
	return ids
}

// prepare has the drivers mount the entries, in parallel. If one fails it waits for the others, undoes all of them, and drops the record if the entries were
// all that it has.
func (iso *Isolator) prepare(ctx context.Context, doing string, c *containerRecord, entries []*entry, r Request) (warnings []string, err error) {
	explicit := map[volumeID]bool{}
	for _, v := range r.Job.Volumes {
		explicit[volumeID{v.Driver, v.Name}] = v.ExplicitCreate || r.ExplicitCreate
	}
	errs, began := make([]error, len(entries)), time.Now()
	took := make([]time.Duration, len(entries))
	var wg sync.WaitGroup
	for i, e := range entries {
		wg.Go(func() {
			errs[i] = iso.acquire(ctx, c.ref(), e, explicit[e.volumeID])
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	var causes []Cause
	var good []*entry
	var left []Step
	for i, e := range entries {
		if errs[i] == nil {
			good = append(good, e)
		} else {
			x := cause(e.volumeID, time.Time{}, errs[i])
			x.ElapsedMS = took[i].Milliseconds()
			causes = append(causes, x)
			if x.Code == wire.Timeout && x.Stage == "mount" {
				left = append(left, Step{e.Driver, e.Name, "mount", "the driver has not answered"})
			}
		}
		if e.Created && e.Driver == localDriver {
			warnings = append(warnings, fmt.Sprintf("volume %s did not exist and was created; its owner and mode may not be what the job needs "+
				"(bindgate volume create --driver local --opt mode=... --opt uid=... sets them)", e.volumeID))
		}
	}
	if len(causes) == 0 && ctx.Err() == nil {
		return warnings, nil
	}
	var failed *Error
	if len(causes) > 0 {
		failed = several(doing, causes)
	} else {
		failed = cannot(doing, stopped(ctx, "mount", doing))
	}
	failed.Left = append(left, made(entries)...)
	return nil, iso.undoPrepare(ctx, failed, c, entries, good)
}

// made are the volumes that did not exist before, as what is left of a prepare that is undone.
func made(entries []*entry) (left []Step) {
	for _, e := range entries {
		if e.Created {
			left = append(left, Step{e.Driver, e.Name, "create", "a volume is never removed unasked"})
		}
	}
	return left
}

// undoPrepare gives back what was acquired and drops the entries from the record, and the record with the last.
func (iso *Isolator) undoPrepare(ctx context.Context, failed *Error, c *containerRecord, entries, acquired []*entry) error {
	ctx, cancel := iso.undoing(ctx)
	defer cancel()
	type outcome struct {
		pending *Pending
		err     error
	}
	outcomes := make([]outcome, len(acquired))
	var wg sync.WaitGroup
	for i, e := range acquired {
		wg.Go(func() {
			_, outcomes[i].pending, outcomes[i].err = iso.release(ctx, c.ref(), e.volumeID, manner{})
		})
	}
	wg.Wait()
	kept := map[*entry]bool{} // still referred to
	for i, e := range acquired {
		switch o := outcomes[i]; {
		case o.err != nil:
			kept[e] = true
			failed.Left = append(failed.Left, Step{e.Driver, e.Name, "mount", o.err.Error()})
		case o.pending != nil:
			failed.Left = append(failed.Left, Step{e.Driver, e.Name, "mount", o.pending.Error})
		default:
			failed.Undone = append(failed.Undone, Step{Driver: e.Driver, Name: e.Name, Stage: "mount"})
		}
	}
	c.Volumes = slices.DeleteFunc(c.Volumes, func(e *entry) bool { return slices.Contains(entries, e) && !kept[e] })
	var err error
	if len(c.Volumes) == 0 && c.Process == nil {
		err = iso.dropContainer(c)
	} else {
		err = iso.writeContainer(c)
	}
	if err != nil {
		iso.log.Error("cannot journal what was undone", "container", c.Container, "error", err)
	}
	return failed
}

// agentMounts is what the agent has to mount, with the attributes that the helper would have set.
func agentMounts(c *containerRecord) []AgentMount {
	list := []AgentMount{}
	for _, e := range c.Volumes {
		if e.Scope == spec.ScopeHost {
			continue
		}
		options := []string{"rbind", "rprivate", e.Mode, "nosuid", "nodev"}
		if e.NoExec {
			options = append(options, "noexec")
		}
		list = append(list, AgentMount{e.source(), c.place(e), options})
	}
	return list
}
