// Package wire is all that both sides of the privilege boundary share: the form of a request to bindgate-helper and of its reply, the error codes and the limits.
// docs/wire.md publishes the form, which the ledger's records have too: one parser. Its fields end with a NUL byte, which no path can hold: nothing is escaped, the parser has no states to get wrong.
package wire

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// The value of the field bindgate= that this package speaks, and limits of a message. A request beyond them is refused before anything is opened (T07).
const (
	Version              = "1"
	MaxRequest, MaxReply = 1 << 20, 16 << 20 // bytes of a request; of a reply or of a ledger record
	MaxBlocks, maxKeys   = 1024, 32          // mount= blocks in a request, of which helper.toml may allow fewer; keys in the head or in a block, and bytes of a key
)

// Fields are the fields of a message's head or of one of its blocks, in order. A value may hold any byte but NUL; in a request it is valid UTF-8 without control characters.
type Fields []Field
type Field struct{ Key, Value string }

// Lookup returns the value of key and whether it is there; Get the value, "" if it is not there.
func (f Fields) Lookup(key string) (string, bool) {
	i := slices.IndexFunc(f, func(x Field) bool { return x.Key == key })
	if i < 0 {
		return "", false
	}
	return f[i].Value, true
}

func (f Fields) Get(key string) string { v, _ := f.Lookup(key); return v }

// Pairs makes fields of keys and values in turn. Numbers are written in decimal, true as 1 and false as 0.
func Pairs(list ...any) (f Fields) {
	for i := 0; i+1 < len(list); i += 2 {
		value := fmt.Sprint(list[i+1])
		if flag, ok := list[i+1].(bool); ok {
			value = map[bool]string{true: "1", false: "0"}[flag]
		}
		f = append(f, Field{list[i].(string), value})
	}
	return f
}

// A Message is a decoded request, reply or record: its head (without bindgate= and end=) and its blocks, of which each begins with mount=.
type Message struct {
	Head   Fields
	Blocks []Fields
}

// Encode returns the message in the wire's form. Values must not hold NUL bytes; one that does is cut there, since no caller can mean it.
func (m *Message) Encode() (b []byte) {
	for _, f := range slices.Concat(Pairs("bindgate", Version), m.Head, slices.Concat(m.Blocks...), Pairs("end", "")) {
		value, _, _ := strings.Cut(f.Value, "\x00")
		b = append(append(append(append(b, f.Key...), '='), value...), 0)
	}
	return b
}

// Decode parses a message of at most max bytes and maxBlocks blocks: version first, end last, no key twice in the head or in one block. Errors: invalid_request, or limit_exceeded for too many blocks.
func Decode(data []byte, max, maxBlocks int) (*Message, error) {
	rest, begun := bytes.CutPrefix(data, []byte("bindgate="+Version+"\x00"))
	rest, ended := bytes.CutSuffix(rest, []byte("end=\x00"))
	if !begun || !ended || len(data) > max {
		return nil, Errorf(InvalidRequest, "request", "cannot read the message: it does not begin with bindgate=%s, does not end with end=, or is over %d bytes", Version, max)
	}
	m := &Message{}
	for current := &m.Head; len(rest) > 0; {
		field, after, terminated := bytes.Cut(rest, []byte{0})
		key, value, ok := strings.Cut(string(field), "=")
		if rest = after; !terminated || !ok || key == "" || len(key) > maxKeys || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz-_") != "" {
			return nil, Errorf(InvalidRequest, "request", "cannot read the field %s: it is not key=value ended by a NUL byte", quote(string(field)))
		}
		if key == "mount" && len(m.Blocks) == maxBlocks {
			return nil, Errorf(LimitExceeded, "request", "cannot read the message: over %d mounts", maxBlocks)
		} else if key == "mount" {
			m.Blocks = append(m.Blocks, nil)
			current = &m.Blocks[len(m.Blocks)-1]
		}
		if _, twice := current.Lookup(key); twice || key == "bindgate" || key == "end" || len(*current) == maxKeys {
			return nil, Errorf(InvalidRequest, "request", "cannot read the message: the key %s is repeated, out of place or one too many", key)
		}
		*current = append(*current, Field{key, value})
	}
	return m, nil
}

// Printable replaces every control character (C0, DEL, C1) and every byte that is not UTF-8 by U+FFFD, so that what a container, a plugin or a caller chose cannot speak to a terminal (T30).
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}

// A Reply is what the helper answers: an error, or the blocks of the operation (docs/wire.md lists their keys).
type Reply struct {
	Err    *Error
	Blocks []Fields
}

func (r *Reply) Encode() []byte {
	if e := r.Err; e != nil {
		return (&Message{Head: Pairs("status", "error", "code", e.Code, "stage", e.Stage, "message", e.Message, "hint", e.Hint)}).Encode()
	}
	return (&Message{Pairs("status", "ok"), r.Blocks}).Encode()
}

// A Path is a path taken apart: components that hold no slash and are never "", "." or "..". The zero Path is ".".
type Path struct {
	Absolute   bool
	Components []string
}

// ParsePath takes a path apart, or says invalid_request. Repeated slashes and "." vanish; whether "/" or "." may be used is the caller's to say. The limits are PATH_MAX without its NUL and NAME_MAX.
func ParsePath(s string) (Path, error) {
	if s == "" || strings.IndexByte(s, 0) >= 0 {
		return Path{}, Errorf(InvalidRequest, "request", "cannot use the path %s: it is empty or holds a NUL byte", quote(s))
	} else if len(s) > 4095 {
		return Path{}, Errorf(InvalidRequest, "request", "cannot use the path %s: over 4095 bytes", quote(s))
	}
	parts := strings.Split(s, "/")
	if slices.Contains(parts, "..") {
		return Path{}, Errorf(InvalidRequest, "request", `cannot use the path %s: ".." is not allowed`, quote(s))
	} else if slices.ContainsFunc(parts, func(c string) bool { return len(c) > 255 }) {
		return Path{}, Errorf(InvalidRequest, "request", "cannot use the path %s: a component is over 255 bytes", quote(s))
	}
	return Path{s[0] == '/', slices.DeleteFunc(parts, func(c string) bool { return c == "" || c == "." })}, nil
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
	return p.Absolute == q.Absolute && slices.Equal(p.Components, q.Components[:min(len(p.Components), len(q.Components))])
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

// CheckID checks an id: [A-Za-z0-9][A-Za-z0-9_.:-]{0,127}, so usable in a file name (T28). what names it in the error, which is invalid_request.
func CheckID(what, s string) error   { return checkName(what, s, "_.:-", 128) }
func CheckContainer(s string) error  { return CheckID("container", s) }
func CheckOwner(s string) error      { return checkName("owner", s, "_.:-", 32) }
func CheckVolumeName(s string) error { return checkName("volume name", s, "_.-", 248) } // Docker's for its local driver, but one character is enough; 248 leave room for a prefix in a file name

func checkName(what, s, more string, max int) error {
	const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if s == "" || len(s) > max || strings.Trim(s[:1], alphanumeric) != "" || strings.Trim(s, alphanumeric+more) != "" {
		return Errorf(InvalidRequest, "request", "cannot use %s as a %s: it is 1 to %d letters, digits and %s, and begins with a letter or digit", quote(s), what, max, more)
	}
	return nil
}
