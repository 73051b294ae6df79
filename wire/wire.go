// Package wire is the only thing that both sides of the privilege boundary share: the form of a request to bindgate-helper and of its reply, the
// error codes and the limits.
//
// A message is a sequence of key=value fields, each ended by a NUL byte. The first field is bindgate=1, the last is end=, and nothing follows it.
// A path cannot hold a NUL, so nothing is escaped and the parser has no states to get wrong. The key mount= opens a block; the keys after it belong
// to that block. docs/wire.md publishes the form.
//
// The helper's ledger stores its records in the same form, so that the privileged side has one parser.
package wire

import (
	"bytes"
	"unicode/utf8"
)

// Limits of a message. A request beyond them is refused before anything is opened (T07).
const (
	MaxRequest = 1 << 20  // bytes of a request
	MaxReply   = 16 << 20 // bytes of a reply or of a ledger record
	MaxBlocks  = 1024     // mount= blocks in a request; helper.toml may allow fewer
	MaxKey     = 32       // bytes of a key
)

// Version is the value of the field bindgate= that this package speaks.
const Version = "1"

// A Field is one key=value. A value may hold any byte but NUL; in a request it is valid UTF-8 without control characters.
type Field struct{ Key, Value string }

// Fields are the fields of a message's head or of one of its blocks, in order.
type Fields []Field

// Get returns the value of key, or "" if it is not there.
func (f Fields) Get(key string) string {
	v, _ := f.Lookup(key)
	return v
}

// Lookup returns the value of key and whether it is there.
func (f Fields) Lookup(key string) (string, bool) {
	for _, x := range f {
		if x.Key == key {
			return x.Value, true
		}
	}
	return "", false
}

// Pairs makes fields of keys and values in turn.
func Pairs(list ...string) (f Fields) {
	for i := 0; i+1 < len(list); i += 2 {
		f = append(f, Field{list[i], list[i+1]})
	}
	return f
}

// A Message is a decoded request, reply or record: its head (without bindgate= and end=) and its blocks, of which each begins with mount=.
type Message struct {
	Head   Fields
	Blocks []Fields
}

// Encode returns the message in the wire's form. Values must not hold NUL bytes; one that does is cut there, since no caller can mean it.
func (m *Message) Encode() []byte {
	b := make([]byte, 0, 512)
	add := func(key, value string) {
		if i := bytes.IndexByte([]byte(value), 0); i >= 0 {
			value = value[:i]
		}
		b = append(append(append(append(b, key...), '='), value...), 0)
	}
	add("bindgate", Version)
	for _, f := range m.Head {
		add(f.Key, f.Value)
	}
	for _, block := range m.Blocks {
		for _, f := range block {
			add(f.Key, f.Value)
		}
	}
	add("end", "")
	return b
}

// Decode parses a message of at most max bytes and maxBlocks blocks. It checks the form: version first, end last, every key of lower-case letters and
// dashes, no key twice in the head or in one block. What the keys mean is the caller's to check. Errors have the code invalid_request, or
// limit_exceeded for too many blocks.
func Decode(data []byte, max, maxBlocks int) (*Message, error) {
	if len(data) > max {
		return nil, Errorf(InvalidRequest, "request", "cannot read the message: over %d bytes", max)
	}
	m := &Message{}
	current, ended := &m.Head, false
	for n := 0; len(data) > 0; n++ {
		i := bytes.IndexByte(data, 0)
		if i < 0 {
			return nil, Errorf(InvalidRequest, "request", "cannot read field %d: it is not ended by a NUL byte", n)
		}
		field := data[:i]
		data = data[i+1:]
		key, value, ok := bytes.Cut(field, []byte{'='})
		if !ok || !validKey(key) {
			return nil, Errorf(InvalidRequest, "request", "cannot read field %d: it is not key=value", n)
		}
		k, v := string(key), string(value)
		switch {
		case ended:
			return nil, Errorf(InvalidRequest, "request", "cannot read field %d: it follows end=", n)
		case n == 0:
			if k != "bindgate" || v != Version {
				return nil, Errorf(InvalidRequest, "request", "cannot read the message: it does not begin with bindgate=%s", Version)
			}
			continue
		case k == "end":
			if v != "" {
				return nil, Errorf(InvalidRequest, "request", "cannot read field %d: end= has a value", n)
			}
			ended = true
			continue
		case k == "mount":
			if len(m.Blocks) == maxBlocks {
				return nil, Errorf(LimitExceeded, "request", "cannot read the message: over %d mounts", maxBlocks)
			}
			m.Blocks = append(m.Blocks, nil)
			current = &m.Blocks[len(m.Blocks)-1]
		}
		if _, twice := current.Lookup(k); twice || k == "bindgate" {
			return nil, Errorf(InvalidRequest, "request", "cannot read field %d: the key %s is repeated", n, k)
		}
		if len(*current) == 32 {
			return nil, Errorf(InvalidRequest, "request", "cannot read field %d: too many keys", n)
		}
		*current = append(*current, Field{k, v})
	}
	if !ended {
		return nil, Errorf(InvalidRequest, "request", "cannot read the message: it does not end with end=")
	}
	return m, nil
}

func validKey(k []byte) bool {
	if len(k) == 0 || len(k) > MaxKey {
		return false
	}
	for _, c := range k {
		if (c < 'a' || c > 'z') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// printable reports whether s is valid UTF-8 without control characters (C0, DEL, C1).
func printable(s string) bool {
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return false
		}
	}
	return utf8.ValidString(s)
}
