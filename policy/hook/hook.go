// Package hook lets container runtimes and engines call bindgate: as an OCI hook, as podman's precreate hook, and by the name that an engine gives a
// container.
//
// CreateRuntime and Poststop are what an OCI hook does (runtime-spec, config.md "POSIX-platform Hooks"): prepare and isolate before the container pivots, clean
// up after it has ended. Precreate is podman's own stage, in which the runtime makes the mounts; Splice is its other half and the only function here that is meant
// for root. Ask finds the process of a running container.
//
// What a state and a config.json hold was chosen by whoever may start a container: the names of volumes, the environment, any annotation. CreateRuntime,
// Poststop and Precreate are for the policy process, after it has given up root.
package hook

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// Owner is whose records the containers of hooks are, unless --owner says otherwise.
const Owner = "oci"

// The stages.
const (
	StageCreateRuntime = "createRuntime"
	StagePoststop      = "poststop"
	StagePrecreate     = "precreate"
)

// A State is what a runtime writes to a hook's stdin (runtime-spec, runtime.md "State"), as far as it is used.
type State struct {
	ID          string            `json:"id"`
	Status      string            `json:"status"`
	PID         int               `json:"pid"`
	Bundle      string            `json:"bundle"`
	Annotations map[string]string `json:"annotations"`
}

// ParseState reads a state. Errors: invalid_request, for a config.json too, which podman writes to a precreate hook.
func ParseState(data []byte) (*State, error) {
	if err := bounded("the state", data); err != nil {
		return nil, err
	}
	s := &State{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, bad("cannot read the state on stdin: %v", err)
	}
	if s.ID == "" || s.Status == "" {
		return nil, bad("cannot read the state on stdin: it has no id or no status").
			WithHint("an OCI runtime writes it there; for the config.json that podman writes name the stage: bindgate hook precreate")
	}
	return s, nil
}

// Stage says which hook a state is for. A runtime calls createRuntime with the status creating (runc) or created (crun), and poststop with stopped. Errors:
// invalid_request for any other, such as running: then it is too late to name a rootfs.
func (s *State) Stage() (string, error) {
	switch s.Status {
	case "creating", "created":
		return StageCreateRuntime, nil
	case "stopped":
		return StagePoststop, nil
	}
	return "", bad("cannot tell the stage of the hook: the status is %q", s.Status).WithHint("call it in the stages createRuntime and poststop")
}

// A bundle is what is used of a config.json besides its volumes. It is read for the policy process; root reads a config.json in splice.go.
type bundle struct {
	Root struct {
		Path string `json:"path"`
	} `json:"root"`
	Mounts []struct {
		Destination string `json:"destination"`
	} `json:"mounts"`
	Linux struct {
		CgroupsPath string `json:"cgroupsPath"`
	} `json:"linux"`
	Annotations map[string]string `json:"annotations"`
}

func readBundle(config []byte) (*bundle, error) {
	b := &bundle{}
	if err := bounded("config.json", config); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(config, b); err != nil {
		return nil, bad("cannot read config.json: %v", err)
	}
	return b, nil
}

// rootfs is the absolute path of the root filesystem: root.path is relative to the bundle if it is not absolute.
func (b *bundle) rootfs(dir string) (string, error) {
	p := b.Root.Path
	if p == "" {
		return "", bad("cannot read config.json: it has no root.path")
	}
	if !strings.HasPrefix(p, "/") {
		p = dir + "/" + p
	}
	return path.Clean(p), nil
}

// hasMounts reports whether config.json has a mount at each of the job's paths.
func (b *bundle) hasMounts(job *spec.Job) bool {
	at := map[string]bool{}
	for _, m := range b.Mounts {
		at[path.Clean(m.Destination)] = true
	}
	for _, v := range job.Volumes {
		if v.Scope == spec.ScopeContainer && !at[path.Clean(v.ContainerPath)] {
			return false
		}
	}
	return true
}

// isSandbox reports whether it is a pod's sandbox, of which CRI-O and containerd say so. It gets the pod's annotations as each container of the pod does, and holds no process of the job's.
func isSandbox(annotations map[string]string) bool {
	return annotations["io.kubernetes.cri-o.ContainerType"] == "sandbox" || annotations["io.kubernetes.cri.container-type"] == "sandbox"
}

// job reads the volumes that a container is to get.
func job(config []byte, annotations map[string]string, dvdiEnv bool) (*spec.Job, error) {
	if isSandbox(annotations) {
		return &spec.Job{}, nil
	}
	return spec.FromOCI(config, annotations, dvdiEnv)
}

func bounded(what string, data []byte) error {
	if len(data) > spec.MaxInput {
		return bad("cannot read %s: it is over %d bytes", what, spec.MaxInput)
	}
	return nil
}

func bad(format string, args ...any) *wire.Error {
	return wire.Errorf(wire.InvalidRequest, "hook", "%s", fmt.Sprintf(format, args...))
}
