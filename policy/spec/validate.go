package spec

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

// places says where the parts of a volume stand in the job, for messages. options is where they stand together.
type places struct{ driver, name, path, mode, options, subpath string }

// inField is the places of a volume of which only the whole's place is known.
func inField(field string) places {
	return places{field + ", driver", field + ", name", field + ", container_path", field + ", mode", field + ", options", field + ", subpath"}
}

// inFlag is the places of a volume that is one string.
func inFlag(flag string) places { return places{flag, flag, flag, flag, flag, flag} }

// Validate checks what holds for the volumes of every format:
//
//   - a driver's name is an id (T38); a volume's name, an option's key are 1 to 1,024 bytes; no text holds a control character, which could forge a line
//     of a log or a field of a record (T30, T39), or U+FFFD, the mark of text that was already damaged;
//   - container_path follows DESIGN section 4 (wire.ParsePath) and is neither the container's root nor the sandbox itself (T19); subpath is relative;
//   - a volume for the host has none of what only an attach can do;
//   - two volumes with the same driver and name are duplicate_volume (DESIGN section 3, as Mesos' docker/volume isolator);
//   - two volumes at the same container_path, once cleaned, are invalid_request.
//
// Parse calls it; a caller that adds volumes from flags calls it again.
func (j *Job) Validate() error {
	if len(j.Volumes) > wire.MaxBlocks {
		return refuse("the job", "it has %d volumes, more than %d", len(j.Volumes), wire.MaxBlocks)
	}
	type identity struct{ driver, name string }
	ids, paths := map[identity]string{}, map[string]string{}
	for i := range j.Volumes {
		v := &j.Volumes[i]
		field := cmpOr(v.Field, "volumes["+strconv.Itoa(i)+"]")
		if err := v.check(inField(field)); err != nil {
			return err
		}
		id := identity{v.Driver, v.Name}
		if first, twice := ids[id]; twice {
			err := refuse(field, "volume %s of driver %s is already at %s", quote(v.Name), quote(v.Driver), first)
			err.Code = wire.DuplicateVolume
			return err
		}
		ids[id] = field
		if v.Scope == ScopeHost {
			continue
		}
		p, err := wire.ParsePath(v.ContainerPath)
		if err != nil {
			return err // v.check did the same: not reached
		}
		if first, twice := paths[p.String()]; twice {
			return refuse(field, "container_path %s is already taken by %s", quote(v.ContainerPath), first)
		}
		paths[p.String()] = field
	}
	return nil
}

// check checks a volume by itself.
func (v *Volume) check(in places) error {
	if err := checkDriver(in.driver, v.Driver); err != nil {
		return err
	}
	if err := checkText(in.name, v.Name, maxText); err != nil {
		return err
	}
	if v.Mode != wire.ModeRO && v.Mode != wire.ModeRW {
		return refuse(in.mode, "%s is not one of ro, rw", quote(v.Mode))
	}
	for _, key := range slices.Sorted(maps.Keys(v.Options)) { // sorted, so that of two mistakes the same one is reported each time
		if err := checkOption(in.options, key, v.Options[key]); err != nil {
			return err
		}
	}
	switch v.Scope {
	case ScopeContainer:
		return v.checkPaths(in)
	case ScopeHost:
		if v.ContainerPath != "" || v.Subpath != "" || v.NoExec || v.IDMap {
			return refuse(in.name, "a volume for the host alone takes no container_path, subpath, noexec or idmap")
		}
		return nil
	}
	return refuse(in.name, "its scope %s is not one of container, host", quote(v.Scope))
}

// checkDriver: the name becomes part of a socket's path (T38).
func checkDriver(where, s string) error {
	if wire.CheckID("driver", s) != nil {
		return refuse(where, "%s is no driver's name: 1 to 128 letters, digits and _.:-, the first a letter or digit", quote(s))
	}
	return nil
}

func (v *Volume) checkPaths(in places) error {
	p, err := checkPath(in.path, v.ContainerPath)
	if err != nil {
		return err
	}
	if len(p.Components) == 0 {
		what := "the sandbox directory itself"
		if p.Absolute {
			what = "the container's root itself"
		}
		return refuse(in.path, "%s is %s", quote(v.ContainerPath), what)
	}
	if v.Subpath == "" {
		return nil
	}
	p, err = checkPath(in.subpath, v.Subpath)
	if err == nil && (p.Absolute || len(p.Components) == 0) {
		return refuse(in.subpath, "subpath %s is not relative, below the volume's root", quote(v.Subpath))
	}
	return err
}

// checkPath applies the path rules of package wire, which are the helper's, and its rule for text.
func checkPath(where, s string) (wire.Path, error) {
	if err := checkText(where, s, 1<<16); err != nil {
		return wire.Path{}, err
	}
	p, err := wire.ParsePath(s)
	if err != nil {
		why := err.Error() // "cannot use the path "...": <why>"; no why holds ": "
		return p, refuse(where, "path %s: %s", quote(s), why[strings.LastIndex(why, ": ")+2:])
	}
	return p, nil
}

// checkOption checks an option for a driver. Its value may be empty.
func checkOption(where, key, value string) error {
	if key == "" {
		return refuse(where, "an option's key is empty")
	}
	if err := checkText(where, key, maxText); err != nil {
		return err
	}
	if value == "" {
		return nil
	}
	return checkText(where, value, MaxInput)
}

// checkText checks a text that leaves this process, for a driver, a record, a log or the helper: it is not empty, of at most max bytes, valid UTF-8, without
// control characters (C0, DEL, C1), as wire demands, and without U+FFFD, to which encoding/json turns half a surrogate pair.
func checkText(where, s string, max int) error {
	switch {
	case s == "":
		return refuse(where, "it is empty")
	case len(s) > max:
		return refuse(where, "%s is over %d bytes", quote(s), max)
	case !utf8.ValidString(s) || strings.ContainsRune(s, utf8.RuneError):
		return refuse(where, "%s is not valid UTF-8", quote(s))
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return refuse(where, "%s holds a control character", quote(s))
		}
	}
	return nil
}
