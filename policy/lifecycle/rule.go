package lifecycle

import (
	"fmt"
	"strings"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// A use is what somebody wants to do with a volume: what the [[rule]]s of policy.toml decide about. Container and Path are empty outside a container.
type use struct {
	volumeID
	Container, Owner, Mode, Path string
}

// use is an entry's, with the clean form of its path: //etc must not get past a rule for /etc.
func (c *containerRecord) use(e *entry) use {
	return use{e.volumeID, c.Container, c.Owner, e.Mode, clean(e.ContainerPath)}
}

// decide returns the number of the rule that decides about u, from 1, and whether it allows; 0 where none matches, which denies.
func decide(rules []config.Rule, u use) (n int, allowed bool) {
	for i, r := range rules {
		if matches(r, u) {
			return i + 1, r.Action == "allow"
		}
	}
	return 0, false
}

func matches(r config.Rule, u use) bool {
	one := func(pattern, s string) bool { return pattern == "" || glob(pattern, s) }
	any := func(patterns []string, s string) bool {
		for _, p := range patterns {
			if glob(p, s) {
				return true
			}
		}
		return len(patterns) == 0
	}
	return one(r.Driver, u.Driver) && one(r.Volume, u.Name) && any(r.Containers, u.Container) && any(r.Owners, u.Owner) &&
		any(r.Modes, u.Mode) && any(r.Paths, u.Path)
}

// glob reports whether s matches the pattern, in which * stands for any characters, none and slashes included. Everything else stands for itself.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, p := range parts[1:last] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[last])
}

// permit returns nil if the rules allow u, else denied with the rule that would.
func (iso *Isolator) permit(u use) error {
	n, ok := decide(iso.policy.Rules, u)
	if ok {
		return nil
	}
	e := wire.Errorf(wire.Denied, "rule", "cannot use volume %s: %s", u.volumeID, why(n, false))
	also := "" // a job's author may have chosen the name for it
	if strings.Contains(u.Name+u.Path, "*") {
		also = " (the * in it stands for any characters, so it allows others, too)"
	}
	if n > 0 {
		return e.WithHint("to allow it, put this%s before rule %d of policy.toml:\n%s", also, n, ruleFor(u))
	}
	return e.WithHint("to allow it, add this%s to policy.toml:\n%s", also, ruleFor(u))
}

// permitLook is permit for looking at a volume, which whoever may use it in any mode may do.
func (iso *Isolator) permitLook(v volumeID) error {
	u := use{volumeID: v, Owner: iso.owner, Mode: wire.ModeRO}
	if iso.permit(u) == nil {
		return nil
	}
	rw := u
	rw.Mode = wire.ModeRW
	if iso.permit(rw) == nil {
		return nil
	}
	return iso.permit(u)
}

func why(n int, allowed bool) string {
	switch {
	case n == 0:
		return "no rule of policy.toml allows it"
	case allowed:
		return fmt.Sprintf("rule %d of policy.toml allows it", n)
	}
	return fmt.Sprintf("rule %d of policy.toml denies it", n)
}

// ruleFor returns the [[rule]] that allows u: this volume in this mode at this place, for this owner, in any container, since the next one has another id.
func ruleFor(u use) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "[[rule]]\ndriver = %s\nvolume = %s\n", tomlString(u.Driver), tomlString(u.Name))
	list := func(key, value string) {
		if value != "" {
			fmt.Fprintf(b, "%s = [%s]\n", key, tomlString(value))
		}
	}
	list("owners", u.Owner)
	list("modes", u.Mode)
	list("paths", u.Path)
	b.WriteString(`action = "allow"`)
	return b.String()
}

// tomlString writes s as a basic string of TOML.
func tomlString(s string) string {
	b := &strings.Builder{}
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
