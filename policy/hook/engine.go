package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// Runtimes are the values of --runtime.
var Runtimes = []string{"docker", "podman", "runc"}

// askTime bounds how long an engine is waited for.
const askTime = 30 * time.Second

// maxAnswer bounds what an engine's answer may hold.
const maxAnswer = 16 << 20

// An Asked is the connection to an engine, or its answer, that was had with the rights of whoever called. What is in it is read by Process, when root was given up.
type Asked struct {
	runtime, name string
	docker        net.Conn
	answer        []byte
}

// Ask asks a runtime for the container of a name. podman and runc are started as programs; a Docker engine is reached over its unix socket, which DOCKER_HOST names.
// Close the result.
//
// Errors: usage for another runtime or a name that is none; not_found if the runtime does not know the container; system if it cannot be asked.
func Ask(ctx context.Context, runtime, name string) (*Asked, error) {
	a := &Asked{runtime: runtime, name: name}
	if name == "" || name[0] == '-' || strings.ContainsAny(name, "/?#\x00") {
		return nil, wire.Errorf(wire.Usage, "usage", "cannot look for the container %q: that is no name of one", name)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var err error
	switch runtime {
	case "docker":
		err = a.dial(ctx)
	case "podman":
		err = a.run(ctx, "podman", "container", "inspect", "--format", "{{.State.Pid}}", name)
	case "runc":
		err = a.run(ctx, "runc", "state", name)
	default:
		err = wire.Errorf(wire.Usage, "usage", "cannot ask the runtime %q: it is one of %s", runtime, strings.Join(Runtimes, ", "))
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Close ends the connection.
func (a *Asked) Close() {
	if a.docker != nil {
		a.docker.Close()
	}
}

func (a *Asked) run(ctx context.Context, program string, args ...string) error {
	var out, says bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &out, &says
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && ctx.Err() == nil:
		return wire.Errorf(wire.NotFound, "runtime", "cannot find the container %s: %s: %s", a.name, program, strings.TrimSpace(says.String()))
	case err != nil:
		return wire.Errorf(wire.System, "runtime", "cannot ask %s for the container %s: %v", program, a.name, err)
	}
	a.answer = out.Bytes()
	return nil
}

func (a *Asked) dial(ctx context.Context) error {
	socket := "/var/run/docker.sock"
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		path, ok := strings.CutPrefix(host, "unix://")
		if !ok {
			return wire.Errorf(wire.Usage, "usage", "cannot ask the Docker engine at DOCKER_HOST=%q: only one on this host, unix://PATH, can have containers here", host)
		}
		socket = path
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return wire.Errorf(wire.System, "runtime", "cannot ask the Docker engine: %v", err).WithHint("bindgate asks with your own rights: run it as somebody who may use the engine; DOCKER_HOST names another socket")
	}
	a.docker = c
	return nil
}

// A Held is a volume that a container of the engine has through the engine itself.
type Held struct{ Driver, Name string }

// Process returns the pid of the container's first process, and which volumes the engine holds, with the name of a container that has each. Errors: not_found, for a container that does not run
// too; system for an answer that cannot be understood.
func (a *Asked) Process(ctx context.Context) (pid int, held map[Held]string, err error) {
	switch a.runtime {
	case "docker":
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		pid, held, err = a.inspect(ctx)
	case "podman":
		pid, err = strconv.Atoi(strings.TrimSpace(string(a.answer)))
	case "runc":
		var s State
		err = json.Unmarshal(a.answer, &s)
		pid = s.PID
	}
	var e *wire.Error
	switch {
	case errors.As(err, &e):
		return 0, nil, err
	case err != nil:
		return 0, nil, wire.Errorf(wire.System, "runtime", "cannot understand what %s says of the container %s: %v", a.runtime, a.name, err)
	case pid <= 0:
		return 0, nil, wire.Errorf(wire.NotFound, "runtime", "cannot use the container %s of %s: it does not run", a.name, a.runtime)
	}
	return pid, held, nil
}

// inspect asks a Docker engine (Engine API: GET /containers/{id}/json, /containers/json). A container that Mesos' Docker containerizer started is found by Mesos' id too.
func (a *Asked) inspect(ctx context.Context) (pid int, held map[Held]string, err error) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		c := a.docker
		if a.docker = nil; c == nil {
			return nil, errors.New("it closed the connection")
		}
		return c, nil
	}}}
	defer client.CloseIdleConnections()
	get := func(path string, v any) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
		switch {
		case err != nil:
			return err
		case answer.StatusCode == http.StatusNotFound:
			return wire.Errorf(wire.NotFound, "runtime", "cannot find the container %s: the Docker engine has none of that name or id, and no mesos-%s", a.name, a.name)
		case answer.StatusCode != http.StatusOK:
			return fmt.Errorf("status %s", answer.Status)
		}
		return json.Unmarshal(data, v)
	}
	var c struct{ State struct{ Pid int } }
	err = get("/containers/"+url.PathEscape(a.name)+"/json", &c)
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		err = get("/containers/"+url.PathEscape("mesos-"+a.name)+"/json", &c)
	}
	if err != nil {
		return 0, nil, err
	}
	var running []struct {
		ID     string `json:"Id"`
		Names  []string
		Mounts []struct{ Type, Name, Driver string }
	}
	if err := get("/containers/json", &running); err != nil {
		return 0, nil, err
	}
	held = map[Held]string{}
	for _, r := range running {
		name := r.ID
		if len(r.Names) > 0 {
			name = strings.TrimPrefix(r.Names[0], "/")
		}
		for _, m := range r.Mounts {
			if m.Type == "volume" && m.Driver != "local" { // the engine's local driver is not ours
				held[Held{m.Driver, m.Name}] = name
			}
		}
	}
	return c.State.Pid, held, nil
}

// Warnings says which of the mounts are of volumes that the engine holds through the same plugin. Engine and bindgate count for themselves: a plugin that does not count ids lets a volume go when the
// first of them says so.
func Warnings(mounts []lifecycle.Mount, held map[Held]string) (list []string) {
	for _, m := range mounts {
		if by := held[Held{m.Driver, m.Name}]; by != "" {
			list = append(list, fmt.Sprintf("volume %s/%s is held by the Docker engine too, for its container %s: the two count their references separately, and a plugin that does not tell their ids apart "+
				"lets the volume go for both when one of them unmounts it", m.Driver, m.Name, by))
		}
	}
	return list
}
