package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/moby/sys/mountinfo"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// AsRoot looks at what only root may see, and mends what needs root, before root is given up.
func (d *Doctor) AsRoot() {
	d.report.Root = true
	d.install()
	d.lsm()
	d.cgroups()
	d.targets()
	d.ledger()
	d.strangers()
	d.sockets()
}

func (d *Doctor) install() {
	d.programs()
	d.folders()
	d.audit()
	d.sources()
}

// AsPolicyUser looks at all else, as every other command would.
func (d *Doctor) AsPolicyUser(ctx context.Context, iso *lifecycle.Isolator) {
	d.anyone()
	d.ok("user", "runs as %s", d.policy.User)
	d.process()
	d.kernel()
	if d.answers(ctx) {
		if d.fix {
			d.sweep(ctx, iso)
		}
		d.leaks(ctx, iso)
	}
	d.drivers(ctx, iso)
}

// Stopped looks at what can be seen without becoming the policy user, or without its journal, because of err.
func (d *Doctor) Stopped(err error) {
	d.failed(cmp.Or(map[string]string{"user": "user", "confine": "kernel.Landlock"}[wire.AsError(err).Stage], "folder.records"), err)
	d.anyone()
	d.kernel()
}

// anyone looks at what everybody may see, if root has not.
func (d *Doctor) anyone() {
	if d.report.Root {
		return
	}
	d.install()
	d.lsm()
	d.cgroups()
	d.targets()
	d.unknown("leak.ledger", "only root can look into the helper's records")
	d.unknown("leak.mounts", "only root can look into other mount namespaces")
}

// answers asks the helper something harmless, which takes it through all of its start.
func (d *Doctor) answers(ctx context.Context) bool {
	reply, err := boundary.New(d.policy).Call(ctx, &wire.Request{Op: wire.OpListVolumes})
	if err != nil {
		d.failed("helper.answers", err)
		return false
	}
	d.ok("helper.answers", "by %s", d.policy.Helper.Transport)
	d.ok("driver.local", "%s in %s", plural(len(reply.Blocks), "volume"), conf.VolumesDir())
	return true
}

// sweep has the helper drop what it has on record of mounts that are not there.
func (d *Doctor) sweep(ctx context.Context, iso *lifecycle.Isolator) {
	leaks, err := iso.Leaks(ctx, d.owners...)
	if err != nil {
		return // said by leaks
	}
	swept := map[string]bool{}
	for _, l := range leaks {
		if l.What != lifecycle.LeakMount || swept[l.Owner] {
			continue
		}
		swept[l.Owner] = true
		if reply, err := boundary.New(d.policy).Call(ctx, &wire.Request{Op: wire.OpSweep, Owner: l.Owner}); err == nil && len(reply.Blocks) > 0 {
			d.add(Check{Check: "leak.mount", State: Fixed, Message: fmt.Sprintf("%s of owner %s: of mounts that are not there", plural(len(reply.Blocks), "record"), l.Owner)})
		}
	}
}

// leaks compares records, mounts and drivers.
func (d *Doctor) leaks(ctx context.Context, iso *lifecycle.Isolator) {
	leaks, err := iso.Leaks(ctx, d.owners...)
	if err != nil {
		d.failed("leak.records", err)
		return
	}
	for _, l := range leaks {
		c := Check{Check: "leak." + l.What, State: Failed, Code: l.Code, Message: l.Message, Fix: []string{"bindgate recover --owner " + quote(l.Owner)}}
		switch l.What {
		case lifecycle.LeakContainer: // its agent may be about to
			c.State, c.Code = Warning, ""
		case lifecycle.LeakTaken: // which is harmless
			c.State, c.Code, c.Fix = Warning, "", nil
			c.Hint = "the container unmounted it; bindgate detach and attach bring it back"
		case lifecycle.LeakAttached:
			c.Hint = "recover reports it as an orphan while the container lives; --force detaches it"
		}
		d.add(c)
	}
	if len(leaks) == 0 {
		d.ok("leak.records", "the journal, the helper's records and the mounts agree")
	}
	d.unused(ctx, iso)
}

// unused looks for what is mounted in a source of a plugin's, and is nobody's on record.
func (d *Doctor) unused(ctx context.Context, iso *lifecycle.Isolator) {
	if d.helper == nil {
		return
	}
	s, err := iso.Status(ctx, lifecycle.StatusQuery{})
	host, err2 := mountinfo.GetMounts(nil)
	if errors.Join(err, err2) != nil {
		return
	}
	for _, m := range host {
		for _, source := range d.helper.Sources {
			if m.Mountpoint == source.Path || !under(m.Mountpoint, source.Path) {
				continue
			}
			known := false
			for _, v := range s.Volumes {
				known = known || v.Mountpoint != "" && (under(m.Mountpoint, v.Mountpoint) || under(v.Mountpoint, m.Mountpoint))
			}
			if !known {
				d.warn("leak.unused", nil, "%s is mounted, and no volume on record is there; another program may use it, such as a Docker engine with the same driver", m.Mountpoint)
			}
		}
	}
}
