package spec

import (
	"fmt"
	"strconv"
	"strings"
)

// parseMarathon reads an app: env with DVDI variables, container.volumes[].external with the provider dvdi, container.docker.parameters. All three may be
// there at once. The rules for external are those of Marathon's DVDIProvider: only options that begin with dvdi/ are passed on, without it and trimmed;
// dvdi/driver is required; size is in GiB and overrides dvdi/size.
func parseMarathon(doc *document, d Defaults) (*Job, error) {
	root, err := doc.object(formatMarathon)
	if err != nil {
		return nil, err
	}
	switch {
	case root.has("apps", "groups", "containers", "volumes"):
		return nil, refuse("the job", "it is a group, a pod or no Marathon document").WithHint("give one app")
	case !root.has("id", "env", "container", "cmd", "args"):
		return nil, refuse("the job", "it is no app: it has none of id, env, container, cmd and args")
	}
	if err := root.near("env", "container"); err != nil {
		return nil, err
	}
	j := &Job{}
	env, ok, err := root.getObject("env")
	if err != nil {
		return nil, err
	}
	if ok {
		vars, err := mapOf(env, false) // other variables may be secrets
		if err != nil {
			return nil, err
		}
		if j.Volumes, err = dvdiVolumes(vars, false); err != nil {
			return nil, err
		}
	}
	container, ok, err := root.getObject("container")
	if err != nil || !ok {
		return j, err
	}
	if err := container.near("volumes", "docker", "type"); err != nil {
		return nil, err
	}
	if container.has("type") {
		if _, err := container.needEnum("type", containerTypes); err != nil {
			return nil, err
		}
	}
	items, err := container.getList("volumes")
	if err != nil {
		return nil, err
	}
	for i, item := range items {
		v, skipped, err := j.marathonVolume(item)
		if err != nil {
			return nil, err
		}
		if skipped != "" {
			j.Skipped = append(j.Skipped, Skipped{i, skipped})
			continue
		}
		j.Volumes = append(j.Volumes, v)
	}
	docker, ok, err := container.getObject("docker")
	if err != nil || !ok {
		return j, err
	}
	if err := docker.near("parameters"); err != nil {
		return nil, err
	}
	_, err = j.dockerParameters(docker, "", d)
	return j, err
}

// marathonVolume reads one of an app's volumes, or says of which type it is if that is the agent's.
func (j *Job) marathonVolume(item at) (v Volume, skipped string, err error) {
	kinds := []string{"external", "hostPath", "persistent", "secret"}
	if err := item.only(append([]string{"containerPath", "mode"}, kinds...)...); err != nil {
		return v, "", err
	}
	kind := ""
	for _, k := range kinds {
		switch {
		case !item.has(k):
		case kind != "":
			return v, "", refuse(item.path, "it has both %s and %s", kind, k)
		default:
			kind = k
		}
	}
	switch kind {
	case "":
		return v, "", refuse(item.path, "it has none of %s", strings.Join(kinds, ", "))
	case "external":
	default:
		return v, kind, nil
	}
	external, _, err := item.getObject("external")
	if err != nil {
		return v, "", err
	}
	if err := external.only("name", "provider", "options", "size", "shared"); err != nil {
		return v, "", err
	}
	provider, err := external.needString("provider")
	switch {
	case err != nil:
		return v, "", err
	case provider == "csi":
		return v, "external/csi", nil
	case provider != "dvdi":
		return v, "", refuse(child(external.path, "provider"), "%s is not one of dvdi, csi", quote(provider))
	}
	v = Volume{Scope: ScopeContainer, Field: item.path}
	mode, err := item.needEnum("mode", volumeModes)
	if err != nil {
		return v, "", err
	}
	v.Mode = strings.ToLower(mode)
	if v.ContainerPath, err = item.needString("containerPath"); err != nil {
		return v, "", err
	}
	if v.Name, err = external.needString("name"); err != nil {
		return v, "", err
	}
	if err := j.marathonOptions(external, &v); err != nil {
		return v, "", err
	}
	options := child(external.path, "options")
	return v, "", v.check(places{path: child(item.path, "containerPath"), name: child(external.path, "name"), mode: child(item.path, "mode"),
		driver: child(options, "dvdi/driver"), options: options})
}

// marathonOptions reads external's options and size.
func (j *Job) marathonOptions(external at, v *Volume) error {
	options, _, err := external.getObject("options")
	if err != nil {
		return err
	}
	set := func(key, value string) {
		if v.Options == nil {
			v.Options = map[string]string{}
		}
		v.Options[key] = value
	}
	for _, name := range options.keys {
		o := at{options.members[name], child(options.path, name)}
		if err := o.need(text); err != nil {
			return err
		}
		key, ours := strings.CutPrefix(name, "dvdi/")
		switch {
		case !ours && strings.HasPrefix(strings.ToLower(name), "dvdi/"), ours && key != "driver" && strings.EqualFold(key, "driver"):
			return refuse(options.path, "it has no field %s", quote(name)).WithHint("is dvdi/driver meant, or another dvdi/ option?")
		case !ours:
			j.Warnings = append(j.Warnings, fmt.Sprintf("%s: an option that does not begin with dvdi/ is not passed to the driver", o.path))
		case key == "":
			return refuse(o.path, "the option's key is empty")
		case key == "driver":
			v.Driver = o.str
		default:
			set(key, strings.TrimSpace(o.str))
		}
	}
	if v.Driver == "" {
		return missing(at{path: child(child(external.path, "options"), "dvdi/driver")})
	}
	size, ok := external.get("size")
	if !ok {
		return nil
	}
	if err := size.need(number); err != nil {
		return err
	}
	n, err := strconv.ParseInt(size.str, 10, 64)
	if err != nil || n < 1 {
		return refuse(size.path, "%s is not a whole number of GiB, 1 or more", cut(size.str))
	}
	set("size", strconv.FormatInt(n, 10))
	return nil
}
