package spec

import (
	"fmt"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// The enums of mesos.proto, by number; v0 and v1 are the same. UNKNOWN (0) is left out: it stands for what could not be read.
var (
	volumeModes    = enum{1: "RW", 2: "RO"}
	containerTypes = enum{1: "DOCKER", 2: "MESOS"}
	sourceTypes    = enum{1: "DOCKER_VOLUME", 2: "SANDBOX_PATH", 3: "SECRET", 4: "HOST_PATH", 5: "CSI_VOLUME"}
)

// The fields by which the messages are told apart.
var (
	configKeys  = []string{"container_info", "task_info", "executor_info", "command_info"} // ContainerConfig (mesos/slave/containerizer.proto)
	ownTaskKeys = []string{"task_id", "executor", "executor_id", "slave_id", "agent_id"}   // TaskInfo and ExecutorInfo, but no Marathon app
	taskKeys    = append([]string{"container", "command"}, ownTaskKeys...)
	infoKeys    = []string{"type", "volumes", "docker", "mesos", "hostname", "network_infos", // ContainerInfo
		"linux_info", "rlimit_info", "tty_info"}
)

// parseMesos reads a ContainerInfo, a ContainerConfig, a TaskInfo (or ExecutorInfo), or an array of Volume.
//
// The rules are those of mesos.proto and of the docker/volume isolator's prepare: mode and container_path are required, the driver too, of a repeated
// option key the last wins. Unlike there, a source without a type is an error, and so is a field of a volume that is not in mesos.proto.
func parseMesos(doc *document) (*Job, error) {
	j := &Job{}
	if doc.json != nil && doc.json.kind == list {
		return j, j.mesosVolumes(*doc.json, "", "")
	}
	root, err := doc.object(formatMesos)
	if err != nil {
		return nil, err
	}
	info, ok, err := j.containerInfo(root)
	if err != nil || !ok {
		return j, err
	}
	if info.has("type") {
		t, err := info.needEnum("type", containerTypes)
		if err != nil {
			return nil, err
		}
		if t != "MESOS" {
			return nil, refuse(child(info.path, "type"), "it is %s; format mesos is for MESOS", t).WithHint("--format docker reads it")
		}
	} else if info.has("docker") {
		return nil, refuse(child(info.path, "type"), "it is missing").WithHint("with docker it is DOCKER, and the format is docker")
	}
	if volumes, ok := info.get("volumes"); ok {
		return j, j.mesosVolumes(volumes, "", "")
	}
	return j, nil
}

// containerInfo finds the ContainerInfo in the message that the job is, and takes over the task's labels on the way.
func (j *Job) containerInfo(root at) (at, bool, error) {
	if err := root.near(append(append(append([]string{}, configKeys...), taskKeys...), infoKeys...)...); err != nil {
		return at{}, false, err
	}
	config, task, info := root.has(configKeys...), root.has(taskKeys...), root.has("volumes")
	switch {
	case config && task || config && info || task && info:
		return at{}, false, refuse("the job", "it has fields of more than one of ContainerInfo, ContainerConfig and TaskInfo")
	case config:
		return j.containerConfig(root)
	case task:
		return j.taskContainer(root)
	case root.has("container_path"):
		return at{}, false, refuse("the job", "it is a single Volume").WithHint("put it into an array: [{...}]")
	case !root.has(infoKeys...):
		return at{}, false, refuse("the job", "it is no ContainerInfo, ContainerConfig, TaskInfo or array of Volume")
	}
	return root, true, nil
}

// containerConfig: where there is a task_info or an executor_info, container_info is a copy of what they hold, so it comes first.
func (j *Job) containerConfig(root at) (at, bool, error) {
	j.warnEnvironment(root, "command_info")
	task, hasTask, err := root.getObject("task_info")
	if err != nil {
		return at{}, false, err
	}
	var ofTask at
	inTask := false
	if hasTask {
		if ofTask, inTask, err = j.taskContainer(task); err != nil {
			return at{}, false, err
		}
	}
	if info, ok, err := root.getObject("container_info"); ok || err != nil {
		return info, ok, j.checkInfo(info, err)
	}
	if inTask {
		return ofTask, true, nil
	}
	executor, ok, err := root.getObject("executor_info")
	if err != nil || !ok {
		return at{}, false, err
	}
	j.warnEnvironment(executor, "command")
	if err := executor.near("container"); err != nil {
		return at{}, false, err
	}
	info, ok, err := executor.getObject("container")
	return info, ok, j.checkInfo(info, err)
}

// taskContainer finds the container of a TaskInfo: its own or its executor's. If both ask for volumes, it is not ours to guess whose container is
// being prepared.
func (j *Job) taskContainer(task at) (at, bool, error) {
	if err := task.near(append([]string{"name"}, taskKeys...)...); err != nil {
		return at{}, false, err
	}
	if err := j.labels(task); err != nil {
		return at{}, false, err
	}
	j.warnEnvironment(task, "command")
	own, hasOwn, err := task.getObject("container")
	if err = j.checkInfo(own, err); err != nil {
		return at{}, false, err
	}
	executor, ok, err := task.getObject("executor")
	if err != nil || !ok {
		return own, hasOwn, err
	}
	j.warnEnvironment(executor, "command")
	if err := executor.near("container"); err != nil {
		return at{}, false, err
	}
	its, hasIts, err := executor.getObject("container")
	if err = j.checkInfo(its, err); err != nil {
		return at{}, false, err
	}
	switch {
	case !hasOwn:
		return its, hasIts, nil
	case hasIts && own.has("volumes") && its.has("volumes"):
		return at{}, false, refuse(its.path, "the task has a container with volumes of its own").
			WithHint("give the ContainerInfo of the container that is to be prepared")
	case hasIts && its.has("volumes"):
		return its, true, nil
	}
	return own, true, nil
}

func (j *Job) checkInfo(info at, err error) error {
	if err != nil {
		return err
	}
	return info.near(infoKeys...)
}

// labels takes task_id.value and name over.
func (j *Job) labels(task at) error {
	id, ok, err := task.getObject("task_id")
	if err != nil {
		return err
	}
	labels := map[string]string{}
	if ok {
		if labels["task_id"], err = id.needString("value"); err != nil {
			return err
		}
		if err := checkText(child(id.path, "value"), labels["task_id"], maxText); err != nil {
			return err
		}
	}
	name, err := task.getString("name")
	if err != nil {
		return err
	}
	if name != "" {
		if err := checkText(child(task.path, "name"), name, maxText); err != nil {
			return err
		}
		labels["name"] = name
	}
	if len(labels) > 0 {
		j.Labels = labels
	}
	return nil
}

// warnEnvironment: the DVDI module took its volumes from a task's environment, the docker/volume isolator does not. An agent that hands over the whole
// message is told rather than refused, since the variables may be meant for the task.
func (j *Job) warnEnvironment(of at, command string) {
	c, _ := of.get(command)
	e, _ := c.get("environment")
	variables, _ := e.get("variables")
	for i := range variables.items {
		if name, _ := variables.index(i).get("name"); name.kind == text && isDVDI(name.str) {
			j.Warnings = append(j.Warnings, fmt.Sprintf("%s: DVDI variables are not read in this format; hand the environment over with --format dvdi",
				variables.path))
			return
		}
	}
}

// mesosVolumes reads a list of Volume. driver is for those that name none; hostDriver is the one whose volumes host_path names (parseDocker).
func (j *Job) mesosVolumes(volumes at, driver, hostDriver string) error {
	items, err := volumes.list()
	if err != nil {
		return err
	}
	for i, item := range items {
		v, skipped, err := mesosVolume(item, driver, hostDriver)
		if err != nil {
			return err
		}
		if skipped != "" {
			j.Skipped = append(j.Skipped, Skipped{i, skipped})
			continue
		}
		j.Volumes = append(j.Volumes, v)
	}
	return nil
}

// mesosVolume reads one Volume, or says of which type it is if that is the agent's.
func mesosVolume(item at, driver, hostDriver string) (v Volume, skipped string, err error) {
	if err := item.only("container_path", "mode", "source", "host_path", "image"); err != nil {
		return v, "", err
	}
	mode, err := item.needEnum("mode", volumeModes)
	if err != nil {
		return v, "", err
	}
	v = Volume{Mode: strings.ToLower(mode), Scope: ScopeContainer, Field: item.path}
	if v.ContainerPath, err = item.needString("container_path"); err != nil {
		return v, "", err
	}
	in := places{path: child(item.path, "container_path"), mode: child(item.path, "mode")}
	source, hasSource, err := item.getObject("source")
	if err != nil {
		return v, "", err
	}
	hostPath, err := item.getString("host_path")
	if err != nil {
		return v, "", err
	}
	switch {
	case hasSource && item.has("host_path", "image") || item.has("host_path") && item.has("image"):
		return v, "", refuse(item.path, "it has more than one of source, host_path and image")
	case item.has("image"):
		return v, "IMAGE", nil
	case item.has("host_path") && (hostDriver == "" || strings.HasPrefix(hostPath, "/")):
		return v, "HOST_PATH", nil
	case item.has("host_path"):
		v.Driver, v.Name = hostDriver, hostPath
		in.name, in.driver = child(item.path, "host_path"), "docker.volume_driver"
		return v, "", v.check(in)
	case !hasSource:
		return v, "none", nil
	}
	volume, skipped, err := dockerVolume(source)
	if err != nil || skipped != "" {
		return v, skipped, err
	}
	if v.Name, err = volume.needString("name"); err != nil {
		return v, "", err
	}
	v.Driver = driver
	if volume.has("driver") || driver == "" {
		if v.Driver, err = volume.needString("driver"); err != nil {
			return v, "", wire.AsError(err).WithHint("as for Mesos' docker/volume isolator, a volume must name its driver")
		}
	}
	if v.Options, err = driverOptions(volume); err != nil {
		return v, "", err
	}
	in.driver, in.name, in.options = child(volume.path, "driver"), child(volume.path, "name"), child(volume.path, "driver_options")
	return v, "", v.check(in)
}

// dockerVolume returns Volume.Source's docker_volume, or the type of a source that is the agent's.
func dockerVolume(source at) (volume at, skipped string, err error) {
	if err := source.only("type", "docker_volume", "host_path", "sandbox_path", "secret", "csi_volume"); err != nil {
		return at{}, "", err
	}
	t, err := source.needEnum("type", sourceTypes)
	if err != nil {
		if source.has("docker_volume") && !source.has("type") {
			return at{}, "", wire.AsError(err).WithHint("with docker_volume it is DOCKER_VOLUME; Mesos itself ignores a source without a type")
		}
		return at{}, "", err
	}
	// "At most one of the following should be set."
	own := strings.ToLower(t)
	for _, key := range source.keys {
		if key != "type" && key != own && source.has(key) {
			return at{}, "", refuse(child(source.path, key), "the source's type is %s", t)
		}
	}
	if t != "DOCKER_VOLUME" {
		return at{}, t, nil
	}
	volume, ok, err := source.getObject("docker_volume")
	if err != nil {
		return at{}, "", err
	}
	if !ok {
		return at{}, "", missing(volume)
	}
	return volume, "", volume.only("driver", "name", "driver_options")
}

// driverOptions reads the Parameters of a docker_volume. Of a repeated key the last wins, as in the isolator.
func driverOptions(volume at) (map[string]string, error) {
	parameters, ok, err := volume.getObject("driver_options")
	if err != nil || !ok {
		return nil, err
	}
	if err := parameters.only("parameter"); err != nil {
		return nil, err
	}
	items, err := parameters.getList("parameter")
	if err != nil {
		return nil, err
	}
	var options map[string]string
	for _, item := range items {
		key, value, err := parameter(item)
		if err != nil {
			return nil, err
		}
		if options == nil {
			options = map[string]string{}
		}
		options[key] = value
	}
	return options, nil
}

// parameter reads a Parameter, whose two fields are required. The value may be empty.
func parameter(item at) (key, value string, err error) {
	if err := item.only("key", "value"); err != nil {
		return "", "", err
	}
	if key, err = item.needString("key"); err != nil {
		return "", "", err
	}
	if v, ok := item.get("value"); !ok {
		return "", "", missing(v)
	}
	value, err = item.getString("value")
	return key, value, err
}
