package spec

import (
	"encoding/csv"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// ParseVolumeFlag reads the value of -v: NAME:CONTAINER_PATH[:ro|rw][,noexec][,idmap][,subpath=P]; the mode is rw unless it says ro. driver is the value of
// --driver, or the policy's default driver.
//
// Colons and commas separate, so neither the name nor a path can hold one here: a:b:/data is refused, not guessed at, since guessing wrong would attach another
// volume. --mount takes such names, and quotes a field with a comma. A name that begins like a path (/, ./, ../, ~) is refused: docker run would take it for a
// directory of the host, which bindgate does not attach.
//
// The volume is checked by itself, as Job.Validate does. Errors have the code invalid_request.
func ParseVolumeFlag(s string, driver string) (Volume, error) {
	flag := "-v " + quote(s)
	fields := strings.Split(s, ",")
	parts := strings.Split(fields[0], ":")
	v := Volume{Driver: driver, Mode: wire.ModeRW, Scope: ScopeContainer, Field: flag}
	const form = "the form is NAME:CONTAINER_PATH[:ro|rw][,noexec][,idmap][,subpath=P]; --mount takes names and paths with a colon or comma"
	switch {
	case len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "":
		return Volume{}, refuse(flag, "it is not NAME:CONTAINER_PATH[:ro|rw]").WithHint(form)
	case len(parts) == 3 && parts[2] != wire.ModeRO && parts[2] != wire.ModeRW:
		return Volume{}, refuse(flag, "%s is not one of ro, rw", quote(parts[2])).WithHint(form)
	case strings.HasPrefix(parts[0], "/") || strings.HasPrefix(parts[0], "./") || strings.HasPrefix(parts[0], "../") || strings.HasPrefix(parts[0], "~"):
		return Volume{}, refuse(flag, "%s is a path of the host, not the name of a volume", quote(parts[0]))
	case driver == "":
		return Volume{}, refuse(flag, "no driver is named").WithHint("name it with --driver")
	}
	v.Name, v.ContainerPath = parts[0], parts[1]
	if len(parts) == 3 {
		v.Mode = parts[2]
	}
	seen := map[string]bool{}
	for _, f := range fields[1:] {
		key, value, has := strings.Cut(f, "=")
		known, err := v.setCommon(flag, key, value, has)
		switch {
		case err != nil:
			return Volume{}, err
		case !known:
			return Volume{}, refuse(flag, "it has no field %s", quote(f)).WithHint(form)
		case seen[key]:
			return Volume{}, refuse(flag, "%s is there twice", key)
		}
		seen[key] = true
	}
	if err := v.check(inFlag(flag)); err != nil {
		return Volume{}, err
	}
	return v, nil
}

// ParseMountFlag reads the value of --mount, and of an annotation: driver=D,name=N,target=PATH[,readonly][,noexec][,idmap][,subpath=P][,opt=K=V]... in any
// order. name and target are required; without driver the policy's default driver is taken, and if there is none it is required too. opt may come more than
// once, and of a repeated key the last wins; everything else comes once. A field with a comma is put into double quotes, as in docker run's --mount (RFC 4180):
// name=v,"opt=o=addr=10.0.0.1,rw",target=/data.
//
// The volume is checked by itself, as Job.Validate does. Errors have the code invalid_request.
func ParseMountFlag(s string, d Defaults) (Volume, error) {
	return parseMount("--mount "+quote(s), s, d)
}

func parseMount(where, s string, d Defaults) (Volume, error) {
	v := Volume{Driver: d.Driver, Mode: wire.ModeRW, Scope: ScopeContainer, Field: where}
	if s == "" {
		return Volume{}, refuse(where, "it is empty")
	}
	// Before encoding/csv sees it, which takes a line end for more than a character.
	if err := checkText(where, s, MaxInput); err != nil {
		return Volume{}, err
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read() // without a line end there is one record
	if err != nil {
		return Volume{}, refuse(where, "a double quote is not where it belongs").WithHint(`quote a whole field: name=v,"opt=k=a,b",target=/data`)
	}
	seen := map[string]bool{}
	for _, f := range fields {
		key, value, has := strings.Cut(f, "=")
		known, err := v.setMount(where, key, value, has)
		switch {
		case err != nil:
			return Volume{}, err
		case !known:
			return Volume{}, refuse(where, "it has no field %s", quote(f)).
				WithHint("the fields are driver=, name=, target=, readonly, noexec, idmap, subpath= and opt=K=V")
		case seen[key] && key != "opt":
			return Volume{}, refuse(where, "%s is there twice", key)
		}
		seen[key] = true
	}
	for _, key := range []string{"name", "target"} {
		if !seen[key] {
			return Volume{}, refuse(where, "%s= is missing", key)
		}
	}
	if v.Driver == "" {
		return Volume{}, refuse(where, "driver= is missing")
	}
	if err := v.check(inFlag(where)); err != nil {
		return Volume{}, err
	}
	return v, nil
}

func (v *Volume) setMount(where, key, value string, has bool) (known bool, err error) {
	set := func(to *string) (bool, error) {
		if value == "" {
			return true, refuse(where, "%s= is empty", key)
		}
		*to = value
		return true, nil
	}
	switch key {
	case "driver":
		return set(&v.Driver)
	case "name":
		return set(&v.Name)
	case "target":
		return set(&v.ContainerPath)
	case "readonly":
		v.Mode = wire.ModeRO
		return true, bare(where, key, has)
	case "opt":
		k, o, err := splitOption(where, value)
		if err != nil {
			return true, err
		}
		if v.Options == nil {
			v.Options = map[string]string{}
		}
		v.Options[k] = o
		return true, nil
	}
	return v.setCommon(where, key, value, has)
}

// setCommon sets what both flags have.
func (v *Volume) setCommon(where, key, value string, has bool) (known bool, err error) {
	switch key {
	case "noexec":
		v.NoExec = true
		return true, bare(where, key, has)
	case "idmap":
		v.IDMap = true
		return true, bare(where, key, has)
	case "subpath":
		if v.Subpath = value; value == "" {
			return true, refuse(where, "subpath= is empty")
		}
		return true, nil
	}
	return false, nil
}

// bare refuses noexec=false and its like: it would read as a refusal of what it turns on.
func bare(where, key string, has bool) error {
	if has {
		return refuse(where, "%s takes no value", key).WithHint("leave it out to have it off")
	}
	return nil
}

// ParseOption reads the value of a flag such as --opt: K=V, cut at the first =, so that a value keeps its own. An option without =, an empty key, control characters are
// invalid_request (dvdcli panics at the first and cuts a value at its second =).
func ParseOption(flag, s string) (key, value string, err error) {
	where := flag + " " + quote(s)
	if key, value, err = splitOption(where, s); err == nil {
		err = checkOption(where, key, value)
	}
	if err != nil {
		return "", "", err
	}
	return key, value, nil
}

func splitOption(where, s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	switch {
	case !ok:
		return "", "", refuse(where, "the option %s is not KEY=VALUE", quote(s))
	case key == "":
		return "", "", refuse(where, "the option %s has an empty key", quote(s))
	}
	return key, value, nil
}
