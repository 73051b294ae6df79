// Package lifecycle has the verbs of the isolator interface: it makes volumes available on the host through their drivers, attaches them to containers
// through bindgate-helper, remembers who uses what, and lets the volumes go again. A Go agent can use it without the command line.
//
// Open gives an Isolator. Prepare a container's volumes before it exists, Isolate them into it once its first process is there, Cleanup when it has
// ended, Recover when the agent starts. Attach and Detach change the volumes of a running container; Status and Usage look.
//
// What it promises: all volumes of a container or none; the intent is on disk before a driver is asked, so that Recover can finish or undo whatever a
// crash interrupted; one Mount of the driver for each volume and host, and one Unmount with the same id when nobody uses the volume any more; operations
// on one volume one at a time, on different volumes in parallel, across processes too.
//
// What it leaves out: it holds no privilege, changes no uid, writes nothing to stdout or stderr, starts no process but the helper, and reads no path
// that Options does not set. Whoever uses it runs as the policy user.
package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// Schema is the value of "schema" in every result.
const Schema = "bindgate/v1"

// DefaultOwner is whose records they are when Options names nobody.
const DefaultOwner = "default"

// Options says what an Isolator works with. Policy is required; everything else has a default.
type Options struct {
	Policy *config.Policy // rules, timeouts, drivers, the journal's folder, the way to the helper
	Owner  string         // the agent whose records these are; "": DefaultOwner
	Logger *slog.Logger   // nil: nothing is logged

	Helper func(context.Context, *wire.Request) (*wire.Reply, error) // how the helper is asked; nil: as Policy says
	Driver func(name string) (driver.Driver, error)                  // how drivers are found; nil: local and Docker volume plugins, as Policy says
	BootID string                                                    // of the running kernel; "": asked from it
	Grace  time.Duration                                             // how long a driver's answer is waited for after an interrupt; 0: 10 s

	// Observe is told of each call of a driver (what is its name) or the helper (what is "") that has ended, by any goroutine; nil: nobody is.
	Observe func(what, call string, took time.Duration, err error)
}

// An Isolator does the verbs for one owner. It may be used by several goroutines at once; several Isolators, in several processes, may share a journal.
type Isolator struct {
	policy     *config.Policy
	owner      string
	log        *slog.Logger
	helper     func(context.Context, *wire.Request) (*wire.Reply, error)
	ready      func(context.Context) (context.Context, func()) // starts the helper for an attach that is about to be asked for
	boot       string
	grace      time.Duration
	observe    func(what, call string, took time.Duration, err error)
	containers *state.Store
	volumes    *state.Store
	held       sync.Map // the locks that we hold, by the name of the record: *state.Lock

	findDriver func(string) (driver.Driver, error)
	mu         sync.Mutex
	drivers    map[string]driver.Driver // a plugin is activated once
}

// Open opens the journal, making its folders if need be. Errors: invalid_request for the owner, config, system.
func Open(o Options) (*Isolator, error) {
	if o.Policy == nil {
		return nil, failure(wire.Errorf(wire.Config, "config", "cannot open the isolator: Options has no Policy"))
	}
	if o.Owner == "" {
		o.Owner = DefaultOwner
	}
	if err := wire.CheckOwner(o.Owner); err != nil {
		return nil, failure(err)
	}
	iso := &Isolator{policy: o.Policy, owner: o.Owner, log: o.Logger, helper: o.Helper, boot: o.BootID, grace: o.Grace, observe: o.Observe,
		findDriver: o.Driver, drivers: map[string]driver.Driver{}}
	if iso.log == nil {
		iso.log = slog.New(slog.DiscardHandler)
	}
	if iso.helper == nil {
		h := boundary.New(o.Policy)
		iso.helper, iso.ready = h.Call, h.Ready
	}
	if iso.ready == nil {
		iso.ready = func(ctx context.Context) (context.Context, func()) { return ctx, func() {} }
	}
	if iso.findDriver == nil {
		iso.findDriver = iso.standardDriver
	}
	if iso.grace == 0 {
		iso.grace = 10 * time.Second
	}
	if iso.boot == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, failure(wire.Errorf(wire.System, "state", "cannot read the boot id: %v", err))
		}
		iso.boot = strings.TrimSpace(string(id))
	}
	var err error
	if iso.containers, err = iso.open(containersDir); err == nil {
		iso.volumes, err = iso.open("volumes")
	}
	if err != nil {
		iso.Close()
		return nil, failure(err)
	}
	return iso, nil
}

func (iso *Isolator) open(name string) (*state.Store, error) {
	dir := iso.policy.State.Dir + "/" + name
	if _, err := os.Lstat(dir + "/.lock"); err != nil { // nobody has worked in it: that it is there must be on disk before what is in it is
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = syncFolder(iso.policy.State.Dir)
		}
		if err != nil {
			return nil, wire.Errorf(wire.Config, "state", "cannot make the journal's folder %s: %v", dir, plain(err)).
				WithHint("%s must be a folder of the policy user, 0700", iso.policy.State.Dir)
		}
	}
	return state.Open(dir, iso.boot, true)
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Close closes the journal. Calls under way fail; a driver's answer that is still outstanding is no longer acted upon, but is in the journal for Recover.
func (iso *Isolator) Close() error {
	var errs []error
	for _, s := range []*state.Store{iso.containers, iso.volumes} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// Owner returns whose records the Isolator works on.
func (iso *Isolator) Owner() string { return iso.owner }

// driver returns the driver of a name, the same value each time.
func (iso *Isolator) driver(name string) (driver.Driver, error) {
	iso.mu.Lock()
	defer iso.mu.Unlock()
	if d := iso.drivers[name]; d != nil {
		return d, nil
	}
	d, err := iso.findDriver(name)
	if err != nil {
		return nil, err
	}
	if iso.observe != nil {
		d = observed{d, name, iso.observe}
	}
	iso.drivers[name] = d
	return d, nil
}

// localDriver is the name of the built-in driver.
const localDriver = "local"

func (iso *Isolator) standardDriver(name string) (driver.Driver, error) {
	if name == localDriver {
		return driver.NewLocal(iso.ask), nil
	}
	return driver.NewPlugin(name, driver.Options{
		SocketDirs: iso.policy.Plugins.SocketDirs,
		SpecDirs:   iso.policy.Plugins.SpecDirs,
		Address:    iso.policy.Drivers[name].Address,
		Roots:      iso.policy.Drivers[name].Roots,
		Closed:     slices.DeleteFunc([]string{iso.policy.VolumesDir, iso.policy.State.Dir}, func(s string) bool { return s == "" }),
	})
}

// ask sends one request to the helper, under its deadline and that of ctx. An interrupt does not abandon a request that was sent: the helper would do it
// all the same, and we would not know. An error of the helper is returned as the error.
func (iso *Isolator) ask(ctx context.Context, r *wire.Request) (*wire.Reply, error) {
	if err := ctx.Err(); err != nil {
		return nil, stopped(ctx, "helper", "ask the helper to "+r.Op)
	}
	limit := iso.policy.Timeouts.Helper
	if end, ok := ctx.Deadline(); ok && r.Op != wire.OpAttach { // what was attached after that could not be undone: the helper would do so later still
		limit = min(limit, time.Until(end))
	}
	hctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	began := time.Now()
	reply, err := iso.helper(iso.holding(hctx, r), r)
	iso.log.Debug("helper", "op", r.Op, "container", r.Container, "mounts", len(r.Mounts), "took", time.Since(began), "error", err)
	if err == nil && reply != nil && reply.Err != nil {
		err = reply.Err
	}
	if iso.observe != nil {
		iso.observe("", r.Op, time.Since(began), err)
	}
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// stopped is the error for a context that ended before something was done.
func stopped(ctx context.Context, stage, doing string) *wire.Error {
	why := "the time given with --timeout is over"
	if errors.Is(ctx.Err(), context.Canceled) {
		why = "interrupted"
	}
	return wire.Errorf(wire.Timeout, stage, "cannot %s: %s", doing, why).Because(ctx.Err())
}
