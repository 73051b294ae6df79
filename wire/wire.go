// Package wire is all that both sides of the privilege boundary share: the form of a request to bindgate-helper and of its reply, the error codes and the limits.
//
// A message is a sequence of key=value fields, each ended by a NUL byte. The first field is bindgate=1, the last is end=, and nothing follows it. A path cannot hold a NUL, so nothing is escaped and the parser has
// no states to get wrong. The key mount= opens a block of keys. The ledger's records have the same form, so that the privileged side has one parser. docs/wire.md publishes it.
package wire

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// The value of the field bindgate= that this package speaks, and limits of a message. A request beyond them is refused before anything is opened (T07).
const (
	Version    = "1"
	MaxRequest = 1 << 20  // bytes of a request
	MaxReply   = 16 << 20 // bytes of a reply or of a ledger record
	MaxBlocks  = 1024     // mount= blocks in a request; helper.toml may allow fewer
	maxKeys    = 32       // keys in the head or in a block, and bytes of a key
)

// Fields are the fields of a message's head or of one of its blocks, in order. A value may hold any byte but NUL; in a request it is valid UTF-8 without control characters.
type Fields []Field
type Field struct{ Key, Value string }

// Lookup returns the value of key and whether it is there.
func (f Fields) Lookup(key string) (string, bool) {
	i := slices.IndexFunc(f, func(x Field) bool { return x.Key == key })
	if i < 0 {
		return "", false
	}
	return f[i].Value, true
}

// Get is Lookup, with "" for what is not there.
func (f Fields) Get(key string) string {
	v, _ := f.Lookup(key)
	return v
}

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

// Decode parses a message of at most max bytes and maxBlocks blocks. It checks the form: version first, end last, keys of lower-case letters, dashes and underscores, none twice in the head or in one block. Errors:
// invalid_request, or limit_exceeded for too many blocks.
func Decode(data []byte, max, maxBlocks int) (*Message, error) {
	rest, begun := bytes.CutPrefix(data, []byte("bindgate="+Version+"\x00"))
	rest, ended := bytes.CutSuffix(rest, []byte("end=\x00"))
	if !begun || !ended || len(data) > max {
		return nil, invalid("cannot read the message: it does not begin with bindgate=%s, does not end with end=, or is over %d bytes", Version, max)
	}
	m := &Message{}
	for current := &m.Head; len(rest) > 0; {
		field, after, terminated := bytes.Cut(rest, []byte{0})
		key, value, ok := strings.Cut(string(field), "=")
		if rest = after; !terminated || !ok || key == "" || len(key) > maxKeys || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz-_") != "" {
			return nil, invalid("cannot read the field %s: it is not key=value ended by a NUL byte", quote(string(field)))
		}
		if key == "mount" && len(m.Blocks) == maxBlocks {
			return nil, Errorf(LimitExceeded, "request", "cannot read the message: over %d mounts", maxBlocks)
		} else if key == "mount" {
			m.Blocks = append(m.Blocks, nil)
			current = &m.Blocks[len(m.Blocks)-1]
		}
		if _, twice := current.Lookup(key); twice || key == "bindgate" || key == "end" || len(*current) == maxKeys {
			return nil, invalid("cannot read the message: the key %s is repeated, out of place or one too many", key)
		}
		*current = append(*current, Field{key, value})
	}
	return m, nil
}

// Printable replaces every control character (C0, DEL, C1) and every byte that is not UTF-8 by U+FFFD, so that what a container, a plugin or a caller chose cannot speak to a terminal (T30).
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return utf8.RuneError
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
	m := &Message{Head: Pairs("status", "ok"), Blocks: r.Blocks}
	if e := r.Err; e != nil {
		m = &Message{Head: Pairs("status", "error", "code", e.Code, "stage", e.Stage, "message", e.Message, "hint", e.Hint)}
	}
	return m.Encode()
}

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
