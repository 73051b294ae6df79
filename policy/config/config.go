// Package config is policy.toml: what the unprivileged side decides. It is no part of the boundary, so it lives outside the rooms whose lines a security team counts; how the file is read, and who may own
// it, is conf's.
package config

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/wire"
)

// Policy is policy.toml: what the unprivileged side decides. It is read by the policy process only, and is no part of the boundary.
type Policy struct {
	User   string   `toml:"user"`   // whom bindgate becomes when root starts it
	Groups []string `toml:"groups"` // supplementary groups for plugin sockets
	Helper struct {
		Transport string `toml:"transport"` // TransportExec or TransportSocket
		Path      string `toml:"path"`
		Socket    string `toml:"socket"`
	} `toml:"helper"`
	State struct {
		Dir string `toml:"dir"` // the journal's folder
	} `toml:"state"`
	VolumesDir string `toml:"-"` // where the helper has the volumes of the driver local; no other driver's are there
	Volume     struct {
		DefaultDriver  string `toml:"default_driver"`
		ExplicitCreate bool   `toml:"explicit_create"` // a volume that a job names must exist
		RemoveDisable  bool   `toml:"remove_disable"`  // refuse every volume rm (REX-Ray's remove.disable)
	} `toml:"volume"`
	Timeouts Timeouts          `toml:"timeouts"`
	Drivers  map[string]Driver `toml:"driver"`
	Plugins  struct {
		SocketDirs []string `toml:"socket_dirs"`
		SpecDirs   []string `toml:"spec_dirs"`
	} `toml:"plugins"`
	Hook struct {
		DVDIEnv bool `toml:"dvdi_env"` // believe DVDI variables in a container's process.env
	} `toml:"hook"`
	Rules []Rule `toml:"rule"`
}

// DriverTimeouts are the deadlines of the calls of one driver. Zero means the general one.
type DriverTimeouts struct {
	Mount   time.Duration `toml:"mount"`
	Unmount time.Duration `toml:"unmount"`
	Call    time.Duration `toml:"call"`
}

// Timeouts are the deadlines of the stages.
type Timeouts struct {
	Mount   time.Duration `toml:"mount"`
	Unmount time.Duration `toml:"unmount"`
	Call    time.Duration `toml:"call"`
	Helper  time.Duration `toml:"helper"`
}

// A Driver is what policy.toml says of one volume driver.
type Driver struct {
	Address        string            `toml:"address"` // instead of discovery: unix://, tcp://, http://, https://
	Timeouts       DriverTimeouts    `toml:"timeouts"`
	ExplicitCreate bool              `toml:"explicit_create"`
	Options        map[string]string `toml:"options"` // added to a volume's options where the job does not name them
	Counting       string            `toml:"counting"`
	Roots          []string          `toml:"roots"` // every mountpoint of the driver lies beneath one of these (T43)
}

// Values of a driver's counting: one Mount and Unmount per volume and host, or one per container.
const (
	CountVolume    = "volume"
	CountContainer = "container"
)

// Values of helper.transport.
const (
	TransportExec   = "exec"
	TransportSocket = "socket"
)

// A Rule says who may use which volume, in which mode, where. Its strings are globs in which * matches anything; an empty one or an empty list matches
// all. The first rule that matches decides; where none does the volume is denied.
type Rule struct {
	Driver     string   `toml:"driver"`
	Volume     string   `toml:"volume"`
	Containers []string `toml:"containers"`
	Owners     []string `toml:"owners"`
	Modes      []string `toml:"modes"`
	Paths      []string `toml:"paths"`
	Action     string   `toml:"action"` // "allow" or "deny"
}

// DefaultPolicy returns the configuration of an empty policy.toml.
func DefaultPolicy() *Policy {
	p := &Policy{User: conf.User()}
	p.Helper.Transport, p.Helper.Path, p.Helper.Socket = TransportExec, conf.HelperPath(), conf.HelperSocket()
	p.State.Dir = conf.JournalDir()
	p.VolumesDir = conf.VolumesDir()
	p.Volume.DefaultDriver = "local"
	p.Timeouts = Timeouts{Mount: 120 * time.Second, Unmount: 600 * time.Second, Call: 60 * time.Second, Helper: 30 * time.Second}
	p.Plugins.SocketDirs = []string{"/run/docker/plugins"}
	p.Plugins.SpecDirs = []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"}
	return p
}

// LoadPolicy reads and validates the policy.toml of the installation, under the same rules for its owner as helper.toml. Errors have the code config.
func LoadPolicy() (*Policy, error) {
	p := DefaultPolicy()
	if err := conf.Load(conf.PolicyTOML(), p); err != nil {
		return nil, err
	}
	return p, p.validate()
}

// ParsePolicy is LoadPolicy without the file.
func ParsePolicy(data []byte) (*Policy, error) {
	p := DefaultPolicy()
	if err := conf.Parse("policy.toml", data, p); err != nil {
		return nil, err
	}
	return p, p.validate()
}

func (p *Policy) validate() error {
	if t := p.Helper.Transport; t != TransportExec && t != TransportSocket {
		return conf.Bad("helper.transport", t, "exec or socket")
	}
	for _, path := range []string{p.Helper.Path, p.Helper.Socket, p.State.Dir} {
		if q, err := wire.ParsePath(path); err != nil || !q.Absolute {
			return conf.Bad("a path", path, "absolute")
		}
	}
	t := p.Timeouts
	timeouts := map[string][]time.Duration{"timeouts": {t.Mount, t.Unmount, t.Call, t.Helper}}
	for name, d := range p.Drivers {
		if d.Counting != "" && d.Counting != CountVolume && d.Counting != CountContainer {
			return conf.Bad("driver."+name+".counting", d.Counting, "volume or container")
		}
		timeouts["driver."+name+".timeouts"] = []time.Duration{d.Timeouts.Mount, d.Timeouts.Unmount, d.Timeouts.Call}
	}
	for where, s := range timeouts {
		if slices.Min(s) < 0 || where == "timeouts" && slices.Min(s) == 0 {
			return conf.Bad(where, slices.Min(s), "positive durations such as \"120s\"")
		}
	}
	for i, r := range p.Rules {
		if r.Action != "allow" && r.Action != "deny" {
			return conf.Bad(fmt.Sprintf("the action of rule %d", i+1), r.Action, "allow or deny")
		}
		if slices.ContainsFunc(r.Modes, func(m string) bool { return m != wire.ModeRO && m != wire.ModeRW }) {
			return conf.Bad(fmt.Sprintf("modes of rule %d", i+1), r.Modes, "ro or rw")
		}
	}
	return nil
}

// For returns the deadlines for one driver: its own where it has them.
func (p *Policy) For(driver string) DriverTimeouts {
	all, own := p.Timeouts, p.Drivers[driver].Timeouts
	return DriverTimeouts{cmp.Or(own.Mount, all.Mount), cmp.Or(own.Unmount, all.Unmount), cmp.Or(own.Call, all.Call)}
}
