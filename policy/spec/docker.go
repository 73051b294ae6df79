package spec

import (
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// parseDocker reads a Mesos ContainerInfo of type DOCKER, by itself or inside the messages that parseMesos takes. Its volumes are what Mesos' Docker
// containerizer would have passed to docker run: DockerInfo.parameters volume-driver and volume, and the list volumes with a source, or with a relative
// host_path where docker.volume_driver is set (that is how Marathon writes them).
func parseDocker(doc *document, d Defaults) (*Job, error) {
	root, err := doc.object(formatDocker)
	if err != nil {
		return nil, err
	}
	j := &Job{}
	info, ok, err := j.containerInfo(root)
	if err != nil || !ok {
		return j, err
	}
	if info.has("type") {
		t, err := info.needEnum("type", containerTypes)
		if err != nil {
			return nil, err
		}
		if t != "DOCKER" {
			return nil, refuse(child(info.path, "type"), "it is %s; format docker is for DOCKER", t).WithHint("--format mesos reads it")
		}
	}
	docker, ok, err := info.getObject("docker")
	if err != nil {
		return nil, err
	}
	if !ok && !info.has("volumes") {
		return nil, missing(docker)
	}
	if err := docker.near("parameters", "volume_driver"); err != nil {
		return nil, err
	}
	hostDriver, err := docker.getString("volume_driver")
	if err != nil {
		return nil, err
	}
	if hostDriver != "" {
		if err := checkDriver(child(docker.path, "volume_driver"), hostDriver); err != nil {
			return nil, err
		}
	}
	driver, err := j.dockerParameters(docker, hostDriver, d)
	if err != nil {
		return nil, err
	}
	if volumes, ok := info.get("volumes"); ok {
		return j, j.mesosVolumes(volumes, driver, hostDriver)
	}
	return j, nil
}

// dockerParameters reads the parameters of a DockerInfo, Mesos' or Marathon's, and returns the driver that they name. The volumes come from named, which
// is what else names a driver, from the parameter volume-driver, or from the policy's default driver, in which Docker's own default has its place.
func (j *Job) dockerParameters(docker at, named string, d Defaults) (driver string, err error) {
	items, err := docker.getList("parameters")
	if err != nil {
		return "", err
	}
	driver = named
	in := places{driver: child(docker.path, "volume_driver")}
	for _, item := range items {
		key, value, err := parameter(item)
		if err != nil {
			return "", err
		}
		where := child(item.path, "value")
		switch {
		case key == "volume-driver" && value == "":
			return "", refuse(where, "it is empty")
		case key == "volume-driver" && driver != "" && driver != value:
			return "", refuse(where, "%s is a second volume driver beside %s", quote(value), quote(driver)).
				WithHint("a container that docker run starts has one volume driver")
		case key == "volume-driver":
			driver, in.driver = value, where
		case key == "volume", key == "mount":
		case key == "v", strings.EqualFold(strings.ReplaceAll(key, "_", "-"), "volume-driver"), strings.EqualFold(strings.TrimSuffix(key, "s"), "volume"):
			return "", refuse(child(item.path, "key"), "docker run has no option --%s", strings.Trim(quote(key), `"`)).
				WithHint("the keys are volume and volume-driver")
		}
	}
	for i, item := range items {
		key, value, _ := parameter(item)
		in.name = child(item.path, "value")
		in.path, in.options, in.mode = in.name, in.name, in.name
		switch key {
		case "mount":
			if isVolumeMount(value) {
				return "", refuse(in.name, "a mount of type volume is not read from a parameter").WithHint("give it as the parameter volume")
			}
			j.Skipped = append(j.Skipped, Skipped{i, "mount"})
		case "volume":
			v, bind, err := dockerVolumeFlag(in.name, value)
			if err != nil {
				return "", err
			}
			if bind {
				j.Skipped = append(j.Skipped, Skipped{i, "HOST_PATH"})
				continue
			}
			v.Field = item.path
			if v.Driver = cmpOr(driver, d.Driver); v.Driver == "" {
				return "", refuse(in.name, "no parameter volume-driver names its driver")
			}
			if err := v.check(in); err != nil {
				return "", err
			}
			j.Volumes = append(j.Volumes, v)
		}
	}
	return driver, nil
}

// isVolumeMount reports whether the value of docker run's --mount is of type volume, which is also its default.
func isVolumeMount(value string) bool {
	for f := range strings.SplitSeq(value, ",") {
		if t, ok := strings.CutPrefix(f, "type="); ok {
			return t == "volume"
		}
	}
	return true
}

// dockerVolumeFlag reads the value of docker run's --volume: NAME:PATH[:OPTIONS]. bind is true for a path of the host, which is Docker's own to mount.
// Of the options, those that ask for what is not done here (z and Z, which relabel, and propagation) are refused by name; nocopy asks for what is always so.
func dockerVolumeFlag(where, s string) (v Volume, bind bool, err error) {
	parts := strings.Split(s, ":")
	switch {
	case strings.HasPrefix(s, "/") && len(parts) > 1, strings.HasPrefix(s, "./"), strings.HasPrefix(s, "../"):
		return v, true, nil
	case len(parts) == 1:
		return v, false, refuse(where, "%s names no volume", quote(s)).WithHint("an anonymous volume is Docker's own; the form is NAME:PATH[:ro|rw]")
	case len(parts) > 3 || parts[0] == "" || parts[1] == "" || s[0] == '~':
		return v, false, refuse(where, "%s is not NAME:PATH[:ro|rw]", quote(s))
	case !strings.HasPrefix(parts[1], "/"):
		return v, false, refuse(where, "the path %s is not absolute", quote(parts[1]))
	}
	v = Volume{Name: parts[0], ContainerPath: parts[1], Mode: wire.ModeRW, Scope: ScopeContainer}
	if len(parts) == 2 {
		return v, false, nil
	}
	mode := ""
	for o := range strings.SplitSeq(parts[2], ",") {
		switch {
		case o == "nocopy":
		case (o == wire.ModeRO || o == wire.ModeRW) && mode == "":
			mode = o
		default:
			return v, false, refuse(where, "the option %s is not supported here", quote(o)).WithHint("the options are ro, rw and nocopy, each once")
		}
	}
	v.Mode = cmpOr(mode, wire.ModeRW)
	return v, false, nil
}
