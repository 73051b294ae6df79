package spec

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// annotationPrefix is the name of an annotation but for its number.
const annotationPrefix = "io.bindgate.volume."

// parseOCI reads a config.json, or a hook's state, by its annotations.
func parseOCI(doc *document) (*Job, error) {
	root, err := doc.object(formatOCI)
	if err != nil {
		return nil, err
	}
	if !root.has("ociVersion", "annotations", "process") {
		return nil, refuse("the job", "it is no config.json and no state: it has none of ociVersion, annotations and process")
	}
	return fromOCI(root, nil, false)
}

// FromOCI makes a job of an OCI bundle: config is its config.json (none, if empty), annotations are those of the state that a hook gets on stdin.
//
// Annotations io.bindgate.volume.N, N a decimal number of at most six digits without leading zeros, hold a volume each in the form of --mount, with driver
// required; they are applied in the order of N. An annotation that both have must have the same value in both. Another name that begins with io.bindgate. or
// io.bindgate/, in whatever case, is refused.
//
// With dvdiEnv the DVDI variables of process.env are volumes too, after the annotations. An image's author sets its environment, so that is for the operator
// to allow ([hook] dvdi_env), and a container path is required. Without dvdiEnv they are ignored, with a warning.
//
// The Job is valid. Errors have the code invalid_request, or duplicate_volume.
func FromOCI(config []byte, annotations map[string]string, dvdiEnv bool) (*Job, error) {
	root := at{&value{kind: object}, ""}
	if len(config) > 0 {
		doc, err := read(config)
		if err != nil {
			return nil, err
		}
		if root, err = doc.object(formatOCI); err != nil {
			return nil, err
		}
	}
	j, err := fromOCI(root, annotations, dvdiEnv)
	if err != nil {
		return nil, err
	}
	j.Format = formatOCI
	if err := j.Validate(); err != nil {
		return nil, err
	}
	return j, nil
}

func fromOCI(root at, annotations map[string]string, dvdiEnv bool) (*Job, error) {
	found, err := ociAnnotations(root, annotations)
	if err != nil {
		return nil, err
	}
	j := &Job{}
	for _, n := range slices.Sorted(maps.Keys(found)) {
		where := child("annotations", annotationPrefix+strconv.Itoa(n))
		v, err := parseMount(where, found[n], Defaults{})
		if err != nil {
			return nil, err
		}
		j.Volumes = append(j.Volumes, v)
	}
	process, ok, err := root.getObject("process")
	if err != nil || !ok {
		return j, err
	}
	env, err := process.getList("env")
	if err != nil {
		return nil, err
	}
	var vars []variable
	for _, e := range env {
		if err := e.need(text); err != nil {
			return nil, err
		}
		name, value, has := strings.Cut(e.str, "=")
		if !isDVDI(name) {
			continue
		}
		if !dvdiEnv {
			j.Warnings = append(j.Warnings, "process.env: DVDI variables are not read; [hook] dvdi_env = true in policy.toml has them read")
			return j, nil
		}
		if !has {
			return nil, refuse(e.path, "%s is not NAME=VALUE", quote(e.str))
		}
		vars = append(vars, variable{name, value, e.path})
	}
	volumes, err := dvdiVolumes(vars, true)
	if err != nil {
		return nil, err
	}
	j.Volumes = append(j.Volumes, volumes...)
	return j, nil
}

// ociAnnotations gathers our annotations by number, from config.json and from the state.
func ociAnnotations(root at, state map[string]string) (map[int]string, error) {
	found := map[int]string{}
	add := func(name, value string) error {
		if folded := strings.ToLower(name); !strings.HasPrefix(folded, "io.bindgate.") && !strings.HasPrefix(folded, "io.bindgate/") {
			return nil
		}
		where := child("annotations", name)
		digits, ok := strings.CutPrefix(name, annotationPrefix)
		if !ok { // misspelt, it must not cost a container its volume
			return refuse(where, "there is no such annotation").WithHint("the name is %sN, N a number without leading zeros", annotationPrefix)
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || n > 999999 || strconv.FormatUint(n, 10) != digits {
			return refuse(where, "%s is no number of a volume", quote(digits)).WithHint("the name is %sN, N a number without leading zeros", annotationPrefix)
		}
		if other, twice := found[int(n)]; twice && other != value {
			return refuse(where, "the state and config.json differ: %s, %s", quote(value), quote(other))
		}
		found[int(n)] = value
		return nil
	}
	annotations, _, err := root.getObject("annotations")
	if err != nil {
		return nil, err
	}
	for _, name := range annotations.keys {
		v := at{annotations.members[name], child(annotations.path, name)}
		if err := v.need(text); err != nil {
			return nil, err
		}
		if err := add(name, v.str); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(state)) { // sorted, so that of two mistakes the same one is reported each time
		if err := add(name, state[name]); err != nil {
			return nil, err
		}
	}
	return found, nil
}
