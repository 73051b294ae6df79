package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

// refuse makes the error of this package: path is where in the job, why is what is wrong there.
func refuse(path, why string, args ...any) *wire.Error {
	if len(path) > 200 {
		path = "..." + strings.ToValidUTF8(path[len(path)-200:], "")
	}
	return wire.Errorf(wire.InvalidRequest, "job", "cannot use %s: %s", path, fmt.Sprintf(why, args...))
}

// quote shows a value of the job in a message: in ASCII, on one line, cut (T30).
func quote(s string) string {
	if len(s) > 64 {
		return strconv.QuoteToASCII(strings.ToValidUTF8(s[:64], "")) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// A document is the input, as JSON or as text.
type document struct {
	json *at // nil if the input is not JSON
	text string
}

// read decides what the input is by its first character, since no variable's name begins with a bracket, and bounds it.
func read(data []byte) (*document, error) {
	if len(data) > MaxInput {
		return nil, refuse("the job", "it is over %d bytes", MaxInput)
	}
	// encoding/json would replace what is not UTF-8, and two names could become one (T39).
	if !utf8.Valid(data) {
		return nil, refuse("the job", "it is not UTF-8")
	}
	doc := &document{text: string(data)}
	if s := bytes.TrimLeft(data, " \t\r\n"); len(s) == 0 || s[0] != '{' && s[0] != '[' {
		if bytes.IndexByte(data, 0) >= 0 {
			return nil, refuse("the job", "it holds a NUL byte").WithHint("variables are read as lines: tr '\\0' '\\n' makes lines of /proc/PID/environ")
		}
		return doc, nil
	}
	root, err := parseJSON(data)
	doc.json = &root
	return doc, err
}

// object returns the document's outermost value, which must be a JSON object.
func (d *document) object(format string) (at, error) {
	if d.json == nil {
		return at{}, refuse("the job", "format %s is JSON, and this is not", format)
	}
	return *d.json, d.json.need(object)
}

type kind string

const (
	null    kind = "null"
	boolean kind = "a boolean"
	number  kind = "a number"
	text    kind = "a string"
	list    kind = "an array"
	object  kind = "an object"
)

// A value is a JSON value. Unlike encoding/json's own decoding into structs, it keeps names exact (no matching without regard to case), tells what is
// missing from what is empty, and remembers the order of keys so that the first mistake is the one reported.
type value struct {
	kind    kind
	str     string // of a string; the literal of a number
	items   []*value
	keys    []string
	members map[string]*value
}

// An at is a value and the path that leads to it.
type at struct {
	*value
	path string
}

// parseJSON reads one JSON value with nothing after it. A key that is there twice in one object is refused: readers differ in which of the two they take,
// so a job could show one volume to whoever checks it and another to us.
func parseJSON(data []byte) (at, error) {
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		var syntax *json.SyntaxError
		if !errors.As(err, &syntax) {
			return at{}, refuse("the job", "%s", quote(err.Error()))
		}
		before := data[:min(max(syntax.Offset-1, 0), int64(len(data)))]
		line := bytes.Count(before, []byte("\n"))
		return at{}, refuse("the job", "line %d, column %d: %v", line+1, len(before)-bytes.LastIndexByte(before, '\n'), err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	left := maxValues
	v, f := decode(d, maxDepth, &left)
	if f != nil {
		return at{}, refuse(cmpOr(f.path, "the job"), "%s", f.why)
	}
	return at{v, ""}, nil
}

// A fault gathers its path on the way out.
type fault struct{ path, why string }

func (f *fault) under(path string) *fault {
	if strings.HasPrefix(f.path, "[") || f.path == "" {
		return &fault{path + f.path, f.why}
	}
	return &fault{path + "." + f.path, f.why}
}

func decode(d *json.Decoder, depth int, left *int) (*value, *fault) {
	if *left--; *left < 0 {
		return nil, &fault{"", fmt.Sprintf("it holds over %d values", maxValues)}
	}
	token, err := d.Token()
	if err != nil {
		return nil, &fault{"", quote(err.Error())}
	}
	switch t := token.(type) {
	case nil:
		return &value{kind: null}, nil
	case bool:
		return &value{kind: boolean, str: strconv.FormatBool(t)}, nil
	case json.Number:
		return &value{kind: number, str: t.String()}, nil
	case string:
		return &value{kind: text, str: t}, nil
	}
	if depth == 0 {
		return nil, &fault{"", fmt.Sprintf("it is nested deeper than %d levels", maxDepth)}
	}
	v := &value{kind: list}
	if token == json.Delim('{') {
		v.kind, v.members = object, map[string]*value{}
	}
	for d.More() {
		if v.kind == list {
			item, f := decode(d, depth-1, left)
			if f != nil {
				return nil, f.under(fmt.Sprintf("[%d]", len(v.items)))
			}
			v.items = append(v.items, item)
			continue
		}
		token, err := d.Token()
		key, ok := token.(string)
		if err != nil || !ok {
			return nil, &fault{"", "it holds a key that is no string"} // the syntax was checked: not reached
		}
		if v.members[key] != nil {
			return nil, &fault{child("", key), "the key is there twice"}
		}
		member, f := decode(d, depth-1, left)
		if f != nil {
			return nil, f.under(child("", key))
		}
		v.keys = append(v.keys, key)
		v.members[key] = member
	}
	if _, err := d.Token(); err != nil {
		return nil, &fault{"", quote(err.Error())}
	}
	return v, nil
}

func cmpOr(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// child is the path of a member. A key that is no plain name is quoted, since it is the job's author who chose it.
func child(path, key string) string {
	plain := key != "" && len(key) <= 64 && strings.IndexFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}) < 0
	switch {
	case !plain:
		return path + "[" + quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

func (a at) where() string { return cmpOr(a.path, "the job") }

// need checks the kind of a value.
func (a at) need(k kind) error {
	if a.kind != k {
		return refuse(a.where(), "it is %s, not %s", a.kind, k)
	}
	return nil
}

// get returns a member. null counts as missing, as in protobuf's JSON; a value that is no object has no members. The zero kind marks what is missing.
func (a at) get(key string) (at, bool) {
	if a.value != nil && a.members[key] != nil && a.members[key].kind != null {
		return at{a.members[key], child(a.path, key)}, true
	}
	return at{&value{}, child(a.path, key)}, false
}

// has reports whether one of the members is there.
func (a at) has(keys ...string) bool {
	for _, key := range keys {
		if _, ok := a.get(key); ok {
			return true
		}
	}
	return false
}

func (a at) index(i int) at { return at{a.items[i], fmt.Sprintf("%s[%d]", a.path, i)} }

// getObject returns a member that is an object if it is there.
func (a at) getObject(key string) (at, bool, error) {
	v, ok := a.get(key)
	if !ok {
		return v, false, nil
	}
	return v, true, v.need(object)
}

// getList returns the items of a member that is an array; none if it is missing.
func (a at) getList(key string) ([]at, error) {
	v, ok := a.get(key)
	if !ok {
		return nil, nil
	}
	return v.list()
}

func (a at) list() ([]at, error) {
	if err := a.need(list); err != nil {
		return nil, err
	}
	items := make([]at, len(a.items))
	for i := range items {
		items[i] = a.index(i)
	}
	return items, nil
}

// getString returns a string that may be missing or empty.
func (a at) getString(key string) (string, error) {
	v, ok := a.get(key)
	if !ok {
		return "", nil
	}
	return v.str, v.need(text)
}

// needString returns a string that must be there and not be empty.
func (a at) needString(key string) (string, error) {
	v, ok := a.get(key)
	if !ok {
		return "", missing(v)
	}
	if err := v.need(text); err != nil {
		return "", err
	}
	if v.str == "" {
		return "", refuse(v.path, "it is empty")
	}
	return v.str, nil
}

func missing(a at) *wire.Error { return refuse(a.where(), "it is missing") }

// An enum lists the names of a protobuf enum at their numbers.
type enum map[int]string

// needEnum returns the name of an enum's value, which the job gives by name or by number, as protobuf's JSON allows.
func (a at) needEnum(key string, e enum) (string, error) {
	names := make([]string, 0, len(e))
	for _, n := range e {
		names = append(names, n)
	}
	slices.Sort(names)
	v, ok := a.get(key)
	switch {
	case !ok:
		return "", refuse(v.path, "it is missing; it is one of %s", strings.Join(names, ", "))
	case v.kind == text && slices.Contains(names, v.str):
		return v.str, nil
	case v.kind == number:
		if n, err := strconv.Atoi(v.str); err == nil && e[n] != "" {
			return e[n], nil
		}
		return "", refuse(v.path, "%s is not the number of one of %s", cut(v.str), strings.Join(names, ", "))
	case v.kind == text:
		return "", refuse(v.path, "%s is not one of %s", quote(v.str), strings.Join(names, ", "))
	}
	return "", refuse(v.path, "it is %s, not one of %s", v.kind, strings.Join(names, ", "))
}

func cut(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// only refuses a member that is not listed: in a volume, what we do not know we must not ignore.
func (a at) only(known ...string) error {
	if err := a.need(object); err != nil {
		return err
	}
	for _, key := range a.keys {
		if !slices.Contains(known, key) {
			return refuse(a.where(), "it has no field %s", quote(key)).WithHint("its fields are %s", strings.Join(known, ", "))
		}
	}
	return nil
}

// near refuses a member whose name is one of those listed but for case, underscores, dashes or a plural: in the large messages fields of no concern to us
// are ignored, but a misspelt one would hide the volumes below it.
func (a at) near(read ...string) error {
	drop := strings.NewReplacer("_", "", "-", "")
	fold := func(s string) string { return strings.TrimSuffix(drop.Replace(strings.ToLower(s)), "s") }
	meant := make(map[string]string, len(read))
	for _, name := range read {
		meant[fold(name)] = name
	}
	for _, key := range a.keys {
		if name := meant[fold(key)]; name != "" && !slices.Contains(read, key) {
			return refuse(a.where(), "it has no field %s", quote(key)).WithHint("is %s meant?", name)
		}
	}
	return nil
}
