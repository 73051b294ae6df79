package lifecycle

import (
	"strconv"
	"time"

	"github.com/bindgate/bindgate/policy/spec"
)

// The results of the verbs. Their JSON is DESIGN section 8's; lists are never null.

// A Volume is one volume of a container.
type Volume struct {
	Driver        string `json:"driver"`
	Name          string `json:"name"`
	Mode          string `json:"mode"`
	ContainerPath string `json:"container_path"`
	Mountpoint    string `json:"mountpoint"`
	Scope         string `json:"scope"`
	Created       bool   `json:"created"` // it did not exist before
}

// A Mount is one volume attached to a container.
type Mount struct {
	Driver        string `json:"driver"`
	Name          string `json:"name"`
	Mode          string `json:"mode"`
	ContainerPath string `json:"container_path"`
	Target        string `json:"target"` // resolved, as a process in the container sees it
	Source        string `json:"source"`
	MountID       uint64 `json:"mount_id"` // unique (STATX_MNT_ID_UNIQUE)
	Created       int    `json:"created"`  // components of the path that were made for it
	Locked        bool   `json:"locked"`
}

// An AgentMount is what an agent that makes the mounts itself has to mount.
type AgentMount struct {
	Source  string   `json:"source"`
	Target  string   `json:"target"`
	Options []string `json:"options"`
}

// Prepared is the result of Prepare.
type Prepared struct {
	Schema    string         `json:"schema"`
	Container string         `json:"container"`
	Owner     string         `json:"owner"`
	Volumes   []Volume       `json:"volumes"`
	Skipped   []spec.Skipped `json:"skipped"`
	Mounts    []AgentMount   `json:"mounts,omitempty"`
	Warnings  []string       `json:"warnings,omitempty"`
}

// Isolated is the result of Isolate, Bind and Attach.
type Isolated struct {
	Schema    string   `json:"schema"`
	Container string   `json:"container"`
	PID       int      `json:"pid"`
	Mounts    []Mount  `json:"mounts"`
	Warnings  []string `json:"warnings,omitempty"`
}

// A VolumeRef names a volume.
type VolumeRef struct {
	Driver string `json:"driver"`
	Name   string `json:"name"`
}

// Detached is a volume that was taken out of a container.
type Detached struct {
	Driver        string `json:"driver"`
	Name          string `json:"name"`
	ContainerPath string `json:"container_path"`
}

// A Holder is a process that uses a mount.
type Holder struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
}

// A Pending is a volume that could not be let go yet.
type Pending struct {
	Driver  string    `json:"driver"`
	Name    string    `json:"name"`
	Since   time.Time `json:"since"`
	Error   string    `json:"error"`
	Holders []Holder  `json:"holders"`
}

// Cleaned is the result of Cleanup and Detach. With something pending it comes together with an error.
type Cleaned struct {
	Schema    string      `json:"schema"`
	Container string      `json:"container"`
	Known     bool        `json:"known"`
	Detached  []Detached  `json:"detached"`
	Unmounted []VolumeRef `json:"unmounted"`
	Pending   []Pending   `json:"pending"`
	Warnings  []string    `json:"warnings,omitempty"`
}

func newCleaned(container string, known bool) *Cleaned {
	return &Cleaned{Schema: Schema, Container: container, Known: known, Detached: []Detached{}, Unmounted: []VolumeRef{}, Pending: []Pending{}}
}

func (c *containerRecord) volumes() []Volume {
	list := []Volume{}
	for _, e := range c.Volumes {
		list = append(list, Volume{e.Driver, e.Name, e.Mode, e.ContainerPath, e.Mountpoint, e.Scope, e.Created})
	}
	return list
}

func mountsOf(entries []*entry) []Mount {
	list := []Mount{}
	for _, e := range entries {
		if a := e.Attached; a != nil {
			list = append(list, Mount{e.Driver, e.Name, e.Mode, e.ContainerPath, a.Target, e.source(), a.MountID, a.Created, a.Locked})
		}
	}
	return list
}

func (h Holder) String() string { return strconv.Itoa(h.PID) + " (" + h.Comm + ")" }
