package wire_test

import (
	"bytes"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bindgate/bindgate/policy/boundary"
	. "github.com/bindgate/bindgate/wire"
)

// raw ends each field with a NUL, as the wire does.
func raw(fields ...string) []byte {
	return []byte(strings.Join(fields, "\x00") + "\x00")
}

// code returns the code of an error, "" for none.
func code(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	if err != nil {
		return "not a wire.Error"
	}
	return ""
}

// checkLine checks what every error promises: a known code, one printable line that says what cannot be done, of bounded length.
func checkLine(t *testing.T, err error) {
	t.Helper()
	e := AsError(err)
	if _, known := Exits[e.Code]; !known || e.Stage == "" || !strings.HasPrefix(e.Message, "cannot ") || Printable(e.Message) != e.Message || len(e.Message) > 700 {
		t.Errorf("not a good error: %#v", e)
	}
}

func TestDecodeRefuses(t *testing.T) {
	many, blocks := []string{"bindgate=1"}, []string(nil)
	for n := range MaxKeys {
		many = append(many, strings.Repeat("k", n+1)+"=")
	}
	if _, err := Decode(raw(append(many, "end=")...), 1000, 4); err != nil {
		t.Fatalf("as many keys as are allowed: %v", err)
	}
	many = append(many, "z=")
	for range 5 {
		blocks = append(blocks, "mount=")
	}
	for name, c := range map[string]struct {
		data []byte
		want Code
	}{
		"nothing":                                 {nil, InvalidRequest},
		"a lone NUL":                              {raw(""), InvalidRequest},
		"no version":                              {raw("op=query", "end="), InvalidRequest},
		"another version":                         {raw("bindgate=2", "end="), InvalidRequest},
		"a version with a leading zero":           {raw("bindgate=01", "end="), InvalidRequest},
		"a version with a space":                  {raw("bindgate=1 ", "end="), InvalidRequest},
		"an empty version":                        {raw("bindgate=", "end="), InvalidRequest},
		"end before the version":                  {raw("end=", "bindgate=1"), InvalidRequest},
		"the version twice":                       {raw("bindgate=1", "bindgate=1", "end="), InvalidRequest},
		"the version again in a block":            {raw("bindgate=1", "mount=/a", "bindgate=1", "end="), InvalidRequest},
		"no end":                                  {raw("bindgate=1", "op=query"), InvalidRequest},
		"an end with a value":                     {raw("bindgate=1", "end=1"), InvalidRequest},
		"an end without its NUL":                  {[]byte("bindgate=1\x00end="), InvalidRequest},
		"an end without its equals sign":          {raw("bindgate=1", "end"), InvalidRequest},
		"a field after the end":                   {raw("bindgate=1", "end=", "op=query"), InvalidRequest},
		"an end after the end":                    {raw("bindgate=1", "end=", "end="), InvalidRequest},
		"a NUL after the end":                     {raw("bindgate=1", "end=", ""), InvalidRequest},
		"a byte after the end":                    {append(raw("bindgate=1", "end="), 'x'), InvalidRequest},
		"newlines instead of NULs":                {[]byte("bindgate=1\nend=\n"), InvalidRequest},
		"a last field without its NUL":            {[]byte("bindgate=1\x00op=query"), InvalidRequest},
		"a field without an equals sign":          {raw("bindgate=1", "op", "end="), InvalidRequest},
		"an empty field":                          {raw("bindgate=1", "", "end="), InvalidRequest},
		"an empty key":                            {raw("bindgate=1", "=x", "end="), InvalidRequest},
		"a key in capitals":                       {raw("bindgate=1", "Op=query", "end="), InvalidRequest},
		"a key with a digit":                      {raw("bindgate=1", "op1=query", "end="), InvalidRequest},
		"a key with a space":                      {raw("bindgate=1", "op =query", "end="), InvalidRequest},
		"a key with a newline":                    {raw("bindgate=1", "\nop=query", "end="), InvalidRequest},
		"a key with ESC":                          {raw("bindgate=1", "\x1b[2Jop=query", "end="), InvalidRequest},
		"a key that is not ASCII":                 {raw("bindgate=1", "ö=", "end="), InvalidRequest},
		"a key of invalid UTF-8":                  {raw("bindgate=1", "\xff=", "end="), InvalidRequest},
		"a key of 33 bytes":                       {raw("bindgate=1", strings.Repeat("k", 33)+"=", "end="), InvalidRequest},
		"a key twice in the head":                 {raw("bindgate=1", "op=query", "op=query", "end="), InvalidRequest},
		"a key twice in a block":                  {raw("bindgate=1", "mount=/a", "mode=ro", "mode=rw", "end="), InvalidRequest},
		"one key too many in the head":            {raw(append(many, "end=")...), InvalidRequest},
		"one block too many":                      {raw(append([]string{"bindgate=1"}, append(blocks, "end=")...)...), LimitExceeded},
		"one byte too many":                       {raw("bindgate=1", "k="+strings.Repeat("v", 1000), "end="), InvalidRequest},
		"a byte-order mark":                       {append([]byte("\xef\xbb\xbf"), raw("bindgate=1", "end=")...), InvalidRequest},
		"a field that is one mebibyte of garbage": {bytes.Repeat([]byte("x"), 1<<20), InvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			max := 1000
			if m, err := Decode(c.data, max, 4); m != nil || code(err) != c.want {
				t.Errorf("%+v, %v, want %s", m, err, c.want)
			} else {
				checkLine(t, err)
			}
		})
	}
}

func TestDecodeTakes(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		want Message
	}{
		"an empty message":                     {raw("bindgate=1", "end="), Message{}},
		"equals signs and newlines in values":  {raw("bindgate=1", "k=a=b\nc", "end="), Message{Head: Pairs("k", "a=b\nc")}},
		"an empty value":                       {raw("bindgate=1", "k=", "end="), Message{Head: Pairs("k", "")}},
		"a key of 32 bytes":                    {raw("bindgate=1", strings.Repeat("k", 32)+"=v", "end="), Message{Head: Pairs(strings.Repeat("k", 32), "v")}},
		"dashes and underscores in keys":       {raw("bindgate=1", "a-b_c=v", "end="), Message{Head: Pairs("a-b_c", "v")}},
		"the same key in the head and a block": {raw("bindgate=1", "mode=1", "mount=/a", "mode=2", "mount=/a", "mode=3", "end="), Message{Pairs("mode", "1"), []Fields{Pairs("mount", "/a", "mode", "2"), Pairs("mount", "/a", "mode", "3")}}},
		"as many blocks as are allowed":        {raw("bindgate=1", "mount=", "mount=", "mount=", "mount=", "end="), Message{Blocks: []Fields{Pairs("mount", ""), Pairs("mount", ""), Pairs("mount", ""), Pairs("mount", "")}}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Decode(c.data, len(c.data), 4)
			if err != nil || !reflect.DeepEqual(*m, c.want) {
				t.Fatalf("%+v, %v", m, err)
			}
			if !bytes.Equal(m.Encode(), c.data) {
				t.Errorf("encoded again it is %q", m.Encode())
			}
		})
	}
}

// T07: whatever is sent, memory stays bounded and the refusal comes at once.
func TestDecodeOfFloodsStaysSmall(t *testing.T) {
	for name, data := range map[string][]byte{
		"a million mounts":            append(raw("bindgate=1", "op=attach"), bytes.Repeat([]byte("mount=/a\x00"), 1e6)...),
		"a mebibyte of mounts":        append(raw("bindgate=1", "op=attach"), bytes.Repeat([]byte("mount=\x00"), (MaxRequest-30)/7)...),
		"a mebibyte of NULs":          bytes.Repeat([]byte{0}, MaxRequest),
		"a mebibyte and a byte":       append(raw("bindgate=1"), bytes.Repeat([]byte("v"), MaxRequest)...),
		"16 MiB without a NUL":        bytes.Repeat([]byte("a"), 16<<20),
		"one field of a mebibyte":     append(raw("bindgate=1"), append(append([]byte("op="), bytes.Repeat([]byte("v"), MaxRequest-40)...), raw("", "end=")...)...),
		"a mebibyte of one-byte keys": append(raw("bindgate=1"), bytes.Repeat([]byte("k=\x00"), MaxRequest/3-10)...),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := DecodeRequest(data)
			runtime.ReadMemStats(&after)
			if c := code(err); c != InvalidRequest && c != LimitExceeded {
				t.Errorf("%v", err)
			}
			checkLine(t, err)
			if n := after.TotalAlloc - before.TotalAlloc; n > 4*MaxRequest {
				t.Errorf("it took %d bytes", n)
			}
		})
	}
}

func TestEncodeCutsAValueAtANUL(t *testing.T) {
	data := (&Message{Head: Pairs("k", "a\x00end=\x00x=y")}).Encode()
	if want := raw("bindgate=1", "k=a", "end="); !bytes.Equal(data, want) {
		t.Errorf("%q, want %q", data, want)
	}
}

func TestLookupTellsEmptyFromMissing(t *testing.T) {
	f := Pairs("a", "", "b", "x", "left over")
	if len(f) != 2 {
		t.Errorf("%v", f)
	}
	if v, ok := f.Lookup("a"); v != "" || !ok {
		t.Error("a is there")
	}
	if v, ok := f.Lookup("c"); v != "" || ok {
		t.Error("c is not there")
	}
	if f.Get("b") != "x" || f.Get("c") != "" {
		t.Error("Get")
	}
}

func TestReplyRoundTrip(t *testing.T) {
	for name, r := range map[string]*Reply{
		"ok":               {},
		"ok with blocks":   {Blocks: []Fields{Pairs("mount", "/a", "id", "7"), Pairs("mount", "/b\n\x1b", "holders", "1 (sh)\n2 (cat)")}},
		"an error":         {Err: &Error{Code: Busy, Stage: "detach", Message: "cannot detach /a: it is in use", Hint: "end it"}},
		"an empty message": {Err: &Error{Code: Internal}},
	} {
		t.Run(name, func(t *testing.T) {
			again, err := boundary.DecodeReply(r.Encode())
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%+v, %v", again, err)
			}
		})
	}
}

func TestReplyThatIsNoneIsInternal(t *testing.T) {
	for name, data := range map[string][]byte{
		"nothing":             nil,
		"text":                []byte("bindgate-helper: command not found\n"),
		"half a reply":        (&Reply{Blocks: []Fields{Pairs("mount", "/a")}}).Encode()[:20],
		"two replies":         append((&Reply{}).Encode(), (&Reply{}).Encode()...),
		"over the limit":      append(raw("bindgate=1", "status=ok"), bytes.Repeat([]byte("x"), MaxReply)...),
		"a repeated status":   raw("bindgate=1", "status=ok", "status=ok", "end="),
		"a later version":     raw("bindgate=2", "status=ok", "end="),
		"a stack trace":       []byte("panic: runtime error\n\ngoroutine 1 [running]:\n"),
		"a field with no NUL": []byte("bindgate=1\x00status=ok\x00end="),
	} {
		t.Run(name, func(t *testing.T) {
			if r, err := boundary.DecodeReply(data); r != nil || code(err) != Internal {
				t.Errorf("%+v, %v", r, err)
			} else {
				checkLine(t, err)
			}
		})
	}
}

func TestReplyWithoutAStatusIsNoSuccess(t *testing.T) {
	for name, data := range map[string][]byte{
		"none":              raw("bindgate=1", "end="),
		"an empty one":      raw("bindgate=1", "status=", "end="),
		"another one":       raw("bindgate=1", "status=OK", "end="),
		"one in a block":    raw("bindgate=1", "mount=/a", "status=ok", "end="),
		"an error's blocks": raw("bindgate=1", "status=error", "code=busy", "mount=/a", "end="),
	} {
		t.Run(name, func(t *testing.T) {
			if r, err := boundary.DecodeReply(data); err != nil || r.Err == nil || r.Err.Code.Exit() == 0 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]bool{
		"": true, "a b~": true, "ö€😀\u00a0": true, "\ufffd": true,
		"\x00": false, "\n": false, "\t": false, "\x1b[1m": false, "\x1f": false, "\x7f": false, "\u0080": false, "\u009b1m": false, "\u009f": false,
		"\xff": false, "a\xc3": false, "\xed\xa0\x80": false, "\xc0\x80": false, "\xf4\x90\x80\x80": false,
	} {
		if Printable(s) == s != want {
			t.Errorf("printable(%q) is not %v", s, want)
		}
	}
}

func TestQuoteIsShortASCII(t *testing.T) {
	for _, s := range []string{strings.Repeat("x", 1<<20), strings.Repeat("\x1b", 1000), strings.Repeat("é", 33), "\xff\n\u0085"} {
		if q := Quote(s); len(q) > 64*4+2 || !utf8.ValidString(q) || strings.ContainsFunc(q, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
			t.Errorf("%q", q)
		}
	}
}

// FuzzDecodeReply: whatever is answered, an internal error or a reply that says the same when written down again.
func FuzzDecodeReply(f *testing.F) {
	for _, r := range []*Reply{{}, {Blocks: []Fields{Pairs("mount", "/data", "target", "/data", "id", "4294967299", "locked", "1")}}, {Err: Errorf(Denied, "caller", "cannot serve uid 7")}} {
		f.Add(r.Encode())
	}
	for _, s := range []string{"", "\x00", "status=ok", "bindgate=1\x00end=\x00", "bindgate=1\x00status=error\x00code=\x00end=\x00", "bindgate=1\x00mount=\x00mount=\x00end=\x00x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := boundary.DecodeReply(data)
		if err != nil {
			if r != nil || code(err) != Internal {
				t.Errorf("%+v, %v", r, err)
			}
			checkLine(t, err)
			return
		}
		again, err := boundary.DecodeReply(r.Encode())
		if err != nil || !reflect.DeepEqual(again.Err, r.Err) || r.Err == nil && !reflect.DeepEqual(again, r) {
			t.Errorf("%+v is %+v the second time, and %v", r, again, err)
		}
	})
}
