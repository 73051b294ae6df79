package wire

import (
	"cmp"
	"slices"
	"strings"
)

// A Path is a path taken apart: components that hold no slash and are never "", "." or "..". The zero Path is ".".
type Path struct {
	Absolute   bool
	Components []string
}

// ParsePath takes a path of a job or request apart. Repeated slashes and "." components vanish. An empty path, ".." as a component, a NUL byte, over 4,095 bytes or a component over 255 bytes (PATH_MAX
// without its NUL and NAME_MAX, limits.h) is invalid_request. "/" and "." have no components; whether they may be used is the caller's to say.
func ParsePath(s string) (Path, error) {
	if s == "" || len(s) > 4095 || strings.IndexByte(s, 0) >= 0 {
		return Path{}, invalid("cannot use the path %s: it is empty, over 4095 bytes, or holds a NUL byte", quote(s))
	}
	p := Path{Absolute: s[0] == '/'}
	for c := range strings.SplitSeq(s, "/") {
		if c == ".." || len(c) > 255 {
			return Path{}, invalid("cannot use the path %s: it has \"..\" or over 255 bytes as a component", quote(s))
		} else if c != "" && c != "." {
			p.Components = append(p.Components, c)
		}
	}
	return p, nil
}

// String returns the clean form: one slash between components, none at the end, "/" or "." for a path without any.
func (p Path) String() string {
	s := strings.Join(p.Components, "/")
	if p.Absolute {
		return "/" + s
	}
	return cmp.Or(s, ".")
}

// Contains reports whether q is p or lies below it, by whole components. Of an absolute and a relative path neither contains the other.
func (p Path) Contains(q Path) bool {
	n := len(p.Components)
	return p.Absolute == q.Absolute && n <= len(q.Components) && slices.Equal(p.Components, q.Components[:n])
}

// ParsePaths takes the paths of a configuration apart; those that are none are left out, which nothing matches.
func ParsePaths(list []string) (out []Path) {
	for _, s := range list {
		if p, err := ParsePath(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// CheckID checks an id: [A-Za-z0-9][A-Za-z0-9_.:-]{0,127}, so usable in a file name (T28). what names it in the error, which is invalid_request. A container's is one, an owner is one of at most 32 bytes. A local
// volume's name is Docker's for its local driver ([a-zA-Z0-9][a-zA-Z0-9_.-]*), but that one character is enough, and at most 248 bytes leave room for a prefix in a file name.
func CheckID(what, s string) error   { return checkName(what, s, "_.:-", 128) }
func CheckContainer(s string) error  { return CheckID("container", s) }
func CheckOwner(s string) error      { return checkName("owner", s, "_.:-", 32) }
func CheckVolumeName(s string) error { return checkName("volume name", s, "_.-", 248) }

func checkName(what, s, more string, max int) error {
	const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if s == "" || len(s) > max || strings.Trim(s[:1], alphanumeric) != "" || strings.Trim(s, alphanumeric+more) != "" {
		return invalid("cannot use %s as a %s: it is 1 to %d letters, digits and %s, and begins with a letter or digit", quote(s), what, max, more)
	}
	return nil
}
