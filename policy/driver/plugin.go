package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

// A Plugin is a Docker volume plugin, asked by the protocol v1 (FACTS.md, "Docker volume plugin protocol, v1").
//
// It is looked for at each call, so that one which moves is found again, and activated once per address. Where a socket or spec is there and nobody
// answers, connecting is tried again with growing pauses until the context ends: the plugin may be starting. Nothing is tried again once a byte of a
// call was sent.
//
// Errors beside those of Driver: a call that the plugin has no answer for but 404, 405 or 501 is driver_error, except where a method says what it does
// instead.
type Plugin struct {
	name          string
	opts          Options
	roots, closed []wire.Path

	turn      chan struct{} // held by whoever activates
	activated string        // the address that was; guarded by turn

	pause func(ctx context.Context, n int) // waits after failed attempt n at connecting, no longer than ctx
}

var _ Driver = (*Plugin)(nil)

// NewPlugin returns the plugin called name without looking for it. A name that Discover would refuse is invalid_request; an address or a root that
// cannot be used is config.
func NewPlugin(name string, o Options) (*Plugin, error) {
	p := &Plugin{name: name, opts: o, turn: make(chan struct{}, 1), pause: pause}
	if err := checkDriver(name); err != nil {
		return nil, err
	}
	if l := (&Location{Driver: name}); o.Address != "" {
		if l.use(o.Address); l.Err != nil && l.Err.Code == wire.Config {
			return nil, l.Err
		}
	}
	for _, r := range slices.Concat(o.Roots, o.Closed) {
		if path, err := wire.ParsePath(r); err != nil || !path.Absolute {
			return nil, wire.Errorf(wire.Config, "discover", "cannot use driver %q: its root %s is not an absolute path", name, show(r))
		}
	}
	p.roots, p.closed = wire.ParsePaths(o.Roots), wire.ParsePaths(o.Closed)
	return p, nil
}

// A call is one question to the plugin.
type call struct {
	task
	method   string
	ask      question
	optional bool // errUnsupported instead of driver_error
}

// question is the body of every call; each has some of the keys.
type question struct {
	Name string            `json:",omitzero"`
	ID   string            `json:",omitzero"`
	Opts map[string]string `json:",omitzero"`
}

// about makes the call of a stage for one volume, with the name checked.
func (p *Plugin) about(stage, verb, method, name string) (call, error) {
	c := call{task: task{stage, fmt.Sprintf("%s volume %s with driver %q", verb, show(name), p.name)}, method: "VolumeDriver." + method}
	c.ask.Name = name
	return c, c.checkPassed("volume's name", name, maxName)
}

// Create passes name and options on exactly as they are. An empty name or key, one with control characters, and what is not UTF-8 are invalid_request,
// since the plugin would get something else (T39).
func (p *Plugin) Create(ctx context.Context, name string, opts map[string]string) error {
	c, err := p.about("create", "create", "Create", name)
	if err != nil {
		return err
	}
	for k, v := range opts {
		if err := c.checkPassed("key of an option", k, maxName); err != nil {
			return err
		}
		if !utf8.ValidString(v) {
			return c.fail(wire.InvalidRequest, "the value of the option %s is not UTF-8", show(k))
		}
	}
	c.ask.Opts = map[string]string{} // an empty object where there are none
	maps.Copy(c.ask.Opts, opts)
	return p.call(ctx, c, nil)
}

// volume is a Volume as plugins send it.
type volume struct {
	Name, Mountpoint, CreatedAt string
	Status                      map[string]any
}

// Get returns what the plugin says of the volume. A plugin that lacks Get is asked for its list instead. One that lacks that too is asked for the
// path: a volume without one counts as not found, so that it will be created, as Docker did before each use when plugins were of that age.
func (p *Plugin) Get(ctx context.Context, name string) (Volume, error) {
	c, err := p.about("get", "look up", "Get", name)
	if err != nil {
		return Volume{}, err
	}
	var answer struct{ Volume *volume }
	c.optional = true
	err = p.call(ctx, c, &answer)
	if errors.Is(err, errUnsupported) {
		answer.Volume, err = p.find(ctx, c)
	}
	if err != nil {
		return Volume{}, err
	}
	if answer.Volume == nil {
		return Volume{}, c.fail(wire.VolumeNotFound, "the driver knows no such volume")
	}
	answer.Volume.Name = name // the identity is what was asked for, whatever the plugin calls it
	return p.checked(c.task, answer.Volume)
}

// find is Get for a plugin without it; nil if the volume is not there.
func (p *Plugin) find(ctx context.Context, c call) (*volume, error) {
	all, err := p.list(ctx, c.task)
	for _, v := range all {
		if v != nil && v.Name == c.ask.Name {
			return v, nil
		}
	}
	if !errors.Is(err, errUnsupported) {
		return nil, err
	}
	c.method = "VolumeDriver.Path"
	var answer struct{ Mountpoint string }
	err = p.call(ctx, c, &answer)
	switch {
	case errors.Is(err, errUnsupported) || err == nil && answer.Mountpoint == "":
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &volume{Mountpoint: answer.Mountpoint}, nil
}

// List returns the plugin's volumes in its order. A plugin without List is driver_error.
func (p *Plugin) List(ctx context.Context) ([]Volume, error) {
	t := task{"list", fmt.Sprintf("list the volumes of driver %q", p.name)}
	answer, err := p.list(ctx, t)
	if errors.Is(err, errUnsupported) {
		err = t.fail(wire.DriverError, "the driver does not support it")
	}
	if err != nil {
		return nil, err
	}
	all := make([]Volume, 0, len(answer))
	for _, v := range answer {
		if v == nil || t.checkPassed("name", v.Name, maxName) != nil {
			return nil, t.fail(wire.DriverError, "one of them has a name that cannot be used")
		}
		u, err := p.checked(task{t.stage, t.doing + ", of which one is " + show(v.Name)}, v)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

func (p *Plugin) list(ctx context.Context, t task) ([]*volume, error) {
	var answer struct{ Volumes []*volume }
	err := p.call(ctx, call{task: t, method: "VolumeDriver.List", optional: true}, &answer)
	return answer.Volumes, err
}

// checked is what a plugin says of a volume after its path was checked.
func (p *Plugin) checked(t task, v *volume) (Volume, error) {
	u := Volume{Name: v.Name, CreatedAt: clean(v.CreatedAt), Status: v.Status}
	if v.Mountpoint == "" {
		return u, nil
	}
	var err error
	u.Mountpoint, err = t.mountpoint(v.Mountpoint, p.roots, p.closed)
	return u, err
}

// Path returns where the plugin says that the volume is. Some know it only while it is mounted, some never: "".
func (p *Plugin) Path(ctx context.Context, name string) (string, error) {
	c, err := p.about("path", "find the path of", "Path", name)
	if err != nil {
		return "", err
	}
	var answer struct{ Mountpoint string }
	if err := p.call(ctx, c, &answer); err != nil || answer.Mountpoint == "" {
		return "", err
	}
	return c.mountpoint(answer.Mountpoint, p.roots, p.closed)
}

// Mount asks the plugin once. Its mountpoint lies below one of the driver's roots, if it has any, else it is driver_error. Whether it exists is for the
// helper to see: this process may not be allowed to.
func (p *Plugin) Mount(ctx context.Context, name, id string) (string, error) {
	c, err := p.about("mount", "mount", "Mount", name)
	if err == nil {
		err = c.checkPassed("id", id, maxID)
	}
	if err != nil {
		return "", err
	}
	c.ask.ID = id
	var answer struct{ Mountpoint string }
	if err := p.call(ctx, c, &answer); err != nil {
		return "", err
	}
	if answer.Mountpoint == "" {
		return "", c.fail(wire.DriverError, "the driver answered without a mountpoint")
	}
	return c.mountpoint(answer.Mountpoint, p.roots, p.closed)
}

// Unmount asks the plugin once.
func (p *Plugin) Unmount(ctx context.Context, name, id string) error {
	c, err := p.about("unmount", "unmount", "Unmount", name)
	if err == nil {
		err = c.checkPassed("id", id, maxID)
	}
	if err != nil {
		return err
	}
	c.ask.ID = id
	return p.call(ctx, c, nil)
}

// Remove asks the plugin once.
func (p *Plugin) Remove(ctx context.Context, name string) error {
	c, err := p.about("remove", "remove", "Remove", name)
	if err != nil {
		return err
	}
	return p.call(ctx, c, nil)
}

// Capabilities returns the plugin's scope. One that lacks the call, or whose scope is none that is known, is local, as in Docker.
func (p *Plugin) Capabilities(ctx context.Context) (Capabilities, error) {
	c := call{task: task{"capabilities", fmt.Sprintf("ask for the capabilities of driver %q", p.name)}, method: "VolumeDriver.Capabilities", optional: true}
	var answer struct{ Capabilities Capabilities }
	err := p.call(ctx, c, &answer)
	if errors.Is(err, errUnsupported) {
		err = nil
	}
	if s := &answer.Capabilities.Scope; strings.EqualFold(*s, ScopeGlobal) {
		*s = ScopeGlobal
	} else {
		*s = ScopeLocal
	}
	return answer.Capabilities, err
}
