package spec

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// A variable is one of a job's environment, and where it stands.
type variable struct{ name, value, path string }

// dvdiDriver is the module's default.
const dvdiDriver = "rexray"

// dvdiKeys are the variables of mesos-module-dvdi behind DVDI_VOLUME_, each with a suffix of none or 1 to 9.
var dvdiKeys = []string{"NAME", "DRIVER", "OPTS", "CONTAINERPATH", "EXPLICITCREATE", "DVDCLI"}

// isDVDI reports whether a variable is the module's, or means to be: a misspelt one must not cost a job its volume.
// Blanks around the name count as a misspelling, and so does "export".
func isDVDI(name string) bool {
	for word := range strings.FieldsSeq(name) {
		if len(word) >= 5 && strings.EqualFold(word[:5], "DVDI_") {
			return true
		}
	}
	return false
}

// parseDVDI reads the environment of a job: lines of NAME=VALUE (empty ones and those that begin with # are skipped), a JSON object of strings, or Mesos'
// Environment. Variables that are not DVDI's are ignored.
func parseDVDI(doc *document) (*Job, error) {
	j := &Job{}
	var vars []variable
	var err error
	switch {
	case doc.json == nil:
		vars, err = linesOf(doc.text)
	case doc.json.kind == object && doc.json.hasList("variables"):
		vars, err = environmentOf(*doc.json)
	default:
		if err = doc.json.need(object); err == nil {
			vars, err = mapOf(*doc.json, true)
		}
	}
	if err == nil {
		j.Volumes, err = dvdiVolumes(vars, false)
	}
	return j, err
}

func (a at) hasList(key string) bool {
	v, _ := a.get(key)
	return v.kind == list
}

func linesOf(s string) (vars []variable, err error) {
	n := 0
	for line := range strings.SplitSeq(s, "\n") {
		n++
		if line == "" || line == "\r" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" {
			return nil, refuse(fmt.Sprintf("line %d", n), "%s is not NAME=VALUE", quote(line))
		}
		vars = append(vars, variable{name, value, child("", name)})
	}
	return vars, nil
}

// mapOf reads an object of variables. strict: every value is a string, or it is no environment.
func mapOf(m at, strict bool) (vars []variable, err error) {
	for _, name := range m.keys {
		v := at{m.members[name], child(m.path, name)}
		if !strict && !isDVDI(name) {
			continue
		}
		if err := v.need(text); err != nil {
			return nil, err
		}
		vars = append(vars, variable{name, v.str, v.path})
	}
	return vars, nil
}

// environmentOf reads a Mesos Environment. One of our variables must have a value that can be read: not a secret.
func environmentOf(e at) (vars []variable, err error) {
	if err := e.only("variables"); err != nil {
		return nil, err
	}
	items, err := e.getList("variables")
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		if err := item.only("name", "value", "type", "secret"); err != nil {
			return nil, err
		}
		name, err := item.needString("name")
		if err != nil {
			return nil, err
		}
		if !isDVDI(name) {
			continue
		}
		v, ok := item.get("value")
		switch {
		case item.has("secret"):
			return nil, refuse(child(item.path, "secret"), "the variable %s cannot be a secret", quote(name))
		case !ok:
			return nil, missing(v)
		}
		if item.has("type") {
			t, err := item.needEnum("type", enum{1: "VALUE", 2: "SECRET"})
			if err != nil {
				return nil, err
			}
			if t != "VALUE" {
				return nil, refuse(child(item.path, "type"), "the variable %s is a VALUE, not %s", quote(name), t)
			}
		}
		if err := v.need(text); err != nil {
			return nil, err
		}
		vars = append(vars, variable{name, v.str, v.path})
	}
	return vars, nil
}

// dvdiVolumes makes volumes of the DVDI variables, in the order of their suffix. needPath: one without a container path is refused (an OCI image's author
// sets its environment, and must not be able to have a volume mounted on the host for all to see).
//
// The rules are the module's (parseEnvVar and prepare in docker_volume_driver_isolator.cpp), among them its prohibited characters: they kept a value from
// being read by a shell; here none reads it, and they hold so that the same jobs pass. docs/formats.md says what differs.
func dvdiVolumes(vars []variable, needPath bool) ([]Volume, error) {
	var set [10]map[string]variable
	for _, v := range vars {
		if !isDVDI(v.name) {
			continue
		}
		key, i, err := dvdiName(v)
		if err != nil {
			return nil, err
		}
		if set[i] == nil {
			set[i] = map[string]variable{}
		}
		if _, twice := set[i][key]; twice {
			return nil, refuse(v.path, "the variable %s is there twice", v.name)
		}
		set[i][key] = v
	}
	var volumes []Volume
	for _, vars := range set {
		if vars == nil {
			continue
		}
		v, err := dvdiVolume(vars, needPath)
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

// dvdiName takes a variable's name apart.
func dvdiName(v variable) (key string, index int, err error) {
	rest, _ := strings.CutPrefix(v.name, "DVDI_VOLUME_")
	for _, key := range dvdiKeys {
		suffix, ok := strings.CutPrefix(rest, key)
		switch {
		case !ok || rest == v.name:
		case suffix == "" || len(suffix) == 1 && suffix[0] >= '1' && suffix[0] <= '9':
			if key == "DVDCLI" {
				return "", 0, refuse(v.path, "a job does not choose the program that mounts its volumes").WithHint("remove %s", v.name)
			}
			index, _ = strconv.Atoi(suffix)
			return key, index, nil
		default:
			return "", 0, refuse(v.path, "%s has the suffix %s", quote(v.name), quote(suffix)).WithHint("a suffix is none, or one of 1 to 9")
		}
	}
	return "", 0, refuse(v.path, "%s is no DVDI variable", quote(v.name)).
		WithHint("they are DVDI_VOLUME_ and %s, in capitals", strings.Join(dvdiKeys[:5], ", "))
}

func dvdiVolume(vars map[string]variable, needPath bool) (Volume, error) {
	name, driver, opts, path, explicit := vars["NAME"], vars["DRIVER"], vars["OPTS"], vars["CONTAINERPATH"], vars["EXPLICITCREATE"]
	if name.value == "" {
		if name.name != "" {
			return Volume{}, refuse(name.path, "it is empty")
		}
		for _, key := range dvdiKeys { // one of them is there
			if v, ok := vars[key]; ok {
				return Volume{}, refuse(v.path, "there is no %s", strings.Replace(v.name, key, "NAME", 1))
			}
		}
	}
	for _, v := range []variable{name, driver, opts} {
		if i := strings.IndexAny(v.value, dvdiProhibited); i >= 0 {
			return Volume{}, refuse(v.path, "%s holds %s", quote(v.value), quote(v.value[i:i+1])).
				WithHint("a name, driver or option of DVDI holds no blank, quote or bracket, and none of %s", `% / : ; < > | $ ? ^ & \`)
		}
	}
	v := Volume{Name: name.value, Driver: cmpOr(driver.value, dvdiDriver), Mode: wire.ModeRW, Scope: ScopeHost, Field: name.path}
	if path.value != "" {
		v.ContainerPath, v.Scope = path.value, ScopeContainer
		if !strings.HasPrefix(v.ContainerPath, "/") {
			return Volume{}, refuse(path.path, "%s is not an absolute path", quote(v.ContainerPath))
		}
	} else if needPath {
		return Volume{}, refuse(name.path, "the volume has no container path").
			WithHint("set %s; without one it would be mounted on the host for all to see", strings.Replace(name.name, "NAME", "CONTAINERPATH", 1))
	}
	if explicit.value != "" {
		b, err := strconv.ParseBool(explicit.value) // dvdcli's flag takes the same words
		if err != nil {
			return Volume{}, refuse(explicit.path, "%s is not true or false", quote(explicit.value))
		}
		v.ExplicitCreate = b
	}
	var err error
	if v.Options, err = dvdiOptions(opts); err != nil {
		return Volume{}, err
	}
	return v, v.check(places{driver: cmpOr(driver.path, name.path), name: name.path, path: path.path, options: opts.path, mode: name.path})
}

// dvdiProhibited are the module's 26 characters but NUL, which is refused with the other control characters.
const dvdiProhibited = "%/:;<>|`$'?^& {\"}[]\n\t\v\b\r\\"

// dvdiOptions takes k=v,k=v apart. Of a repeated key the last wins, as in dvdcli.
func dvdiOptions(opts variable) (map[string]string, error) {
	if opts.value == "" {
		return nil, nil
	}
	options := map[string]string{}
	for o := range strings.SplitSeq(opts.value, ",") {
		key, value, err := splitOption(opts.path, o)
		if err != nil {
			return nil, err
		}
		options[key] = value
	}
	return options, nil
}
