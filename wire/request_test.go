package wire_test

import (
	"bytes"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/policy/boundary"
	. "github.com/bindgate/bindgate/wire"
)

func ptr(n uint32) *uint32 { return &n }

// requests are good ones, one for each operation and key.
var requests = map[string]*Request{
	"attach": {Op: OpAttach, Owner: "default", Container: "web-1", PID: 4711, Mounts: []Mount{{Path: "/data", Source: "/v/a", Mode: ModeRW}}},
	"attach with all keys": {Op: OpAttach, Owner: "o:1", Container: "c", PID: 1 << 22, Start: 1<<63 - 1, Rootfs: "/r", Directory: "/d", Sandbox: "/mnt/mesos/sandbox",
		Mounts: []Mount{{Path: "a/b", Source: "/v/a b=c", Subpath: "s/t", Mode: ModeRO, NoExec: true, IDMap: true}, {Path: "/ö", Source: "/v/😀", Mode: ModeRW}}},
	"detach":                      {Op: OpDetach, Owner: "o", Container: "c", Mounts: []Mount{}},
	"detach of some":              {Op: OpDetach, Owner: "o", Container: "c", Lazy: true, Mounts: []Mount{{Path: "/a"}, {Path: "b"}}},
	"query":                       {Op: OpQuery, Owner: "o", Mounts: []Mount{}},
	"query of one":                {Op: OpQuery, Owner: "o", Container: "c", Mounts: []Mount{}},
	"create-volume":               {Op: OpCreateVolume, Name: "v", Mounts: []Mount{}},
	"create-volume with all keys": {Op: OpCreateVolume, Name: "v", Mode: ptr(0o3777), UID: ptr(1<<32 - 2), GID: ptr(0), Mounts: []Mount{}},
	"create-volume with mode 0":   {Op: OpCreateVolume, Name: "v", Mode: ptr(0), Mounts: []Mount{}},
	"remove-volume":               {Op: OpRemoveVolume, Name: "v", Mounts: []Mount{}},
	"list-volumes":                {Op: OpListVolumes, Mounts: []Mount{}},
	"list-volumes of one":         {Op: OpListVolumes, Name: "v", Mounts: []Mount{}},
	"sweep":                       {Op: OpSweep, Owner: "o", Mounts: []Mount{}},
}

func TestRequestRoundTrip(t *testing.T) {
	for name, r := range requests {
		t.Run(name, func(t *testing.T) {
			again, err := DecodeRequest(boundary.Encode(r))
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%+v, %v", again, err)
			}
		})
	}
}

func TestRequestTakesKeysInAnyOrder(t *testing.T) {
	data := raw("bindgate=1", "op=attach", "pid=7", "container=c", "owner=o", "mount=/a", "mode=ro", "source=/v", "end=")
	if r, err := DecodeRequest(data); err != nil || r.PID != 7 || r.Mounts[0].Source != "/v" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRequestTakesAMebibyteAnd1024Mounts(t *testing.T) {
	r := &Request{Op: OpAttach, Owner: "o", Container: "c", PID: 1, Mounts: make([]Mount, MaxBlocks)}
	for i := range r.Mounts {
		r.Mounts[i] = Mount{Path: "/m" + strconv.Itoa(i), Source: "/v/" + strings.Repeat("a/", 400) + strconv.Itoa(i), Mode: ModeRO}
	}
	data := boundary.Encode(r)
	pad := MaxRequest - len(data)
	for i := 0; pad > 0; i++ { // the paths fill it up to the last byte
		n := min(pad, 2000)
		r.Mounts[i].Source += strings.Repeat("/", n)
		pad -= n
	}
	if data = boundary.Encode(r); len(data) != MaxRequest {
		t.Fatalf("%d bytes", len(data))
	}
	if again, err := DecodeRequest(data); err != nil || len(again.Mounts) != MaxBlocks {
		t.Errorf("%v", err)
	}
	r.Mounts[0].Source += "/"
	if _, err := DecodeRequest(boundary.Encode(r)); code(err) != InvalidRequest {
		t.Errorf("a byte more: %v", err)
	}
	r.Mounts[0].Source = "/v"
	r.Mounts = append(r.Mounts, Mount{Path: "/x", Source: "/v", Mode: ModeRO})
	if _, err := DecodeRequest(boundary.Encode(r)); code(err) != LimitExceeded {
		t.Errorf("a mount more: %v", err)
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	head := []string{"bindgate=1", "op=attach", "owner=o", "container=c", "pid=1"}
	block := []string{"mount=/a", "source=/v", "mode=ro"}
	attach := func(more ...string) []byte {
		return raw(append(append(append([]string{}, head...), more...), append(block, "end=")...)...)
	}
	mount := func(fields ...string) []byte {
		return raw(append(append(append([]string{}, head...), fields...), "end=")...)
	}
	create := func(more ...string) []byte {
		return raw(append(append([]string{"bindgate=1", "op=create-volume", "name=v"}, more...), "end=")...)
	}
	if _, err := DecodeRequest(attach()); err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"no op":                             raw("bindgate=1", "end="),
		"an empty op":                       raw("bindgate=1", "op=", "end="),
		"an op that is none":                raw("bindgate=1", "op=exec", "end="),
		"an op in capitals":                 raw("bindgate=1", "op=QUERY", "owner=o", "end="),
		"an op with a newline":              raw("bindgate=1", "op=query\n", "owner=o", "end="),
		"an op that is not second":          raw("bindgate=1", "owner=o", "op=query", "end="),
		"an op in a block":                  raw("bindgate=1", "owner=o", "mount=/a", "op=attach", "end="),
		"an unknown key":                    attach("uid=0"),
		"an unknown key in a block":         mount("mount=/a", "source=/v", "mode=ro", "uid=0"),
		"a block's key in the head":         attach("source=/v"),
		"a head's key in a block":           mount("mount=/a", "source=/v", "mode=ro", "pid=1"),
		"another operation's key":           raw("bindgate=1", "op=query", "owner=o", "lazy=1", "end="),
		"another operation's block key":     raw("bindgate=1", "op=detach", "owner=o", "container=c", "mount=/a", "source=/v", "end="),
		"a key of the reply":                attach("status=ok"),
		"a repeated key":                    attach("owner=o"),
		"a repeated key in a block":         mount("mount=/a", "source=/v", "mode=ro", "mode=rw"),
		"no owner":                          raw("bindgate=1", "op=query", "end="),
		"no container":                      raw("bindgate=1", "op=detach", "owner=o", "end="),
		"no pid":                            raw("bindgate=1", "op=attach", "owner=o", "container=c", "mount=/a", "source=/v", "mode=ro", "end="),
		"no name":                           raw("bindgate=1", "op=create-volume", "end="),
		"no source":                         mount("mount=/a", "mode=ro"),
		"no mode":                           mount("mount=/a", "source=/v"),
		"a second block without a mode":     mount("mount=/a", "source=/v", "mode=ro", "mount=/b", "source=/v"),
		"attach without a mount":            mount(),
		"query with a mount":                raw("bindgate=1", "op=query", "owner=o", "mount=/a", "end="),
		"remove-volume with a mount":        raw("bindgate=1", "op=remove-volume", "name=v", "mount=/a", "end="),
		"an empty lazy":                     raw("bindgate=1", "op=detach", "owner=o", "container=c", "lazy=", "end="),
		"lazy=true":                         raw("bindgate=1", "op=detach", "owner=o", "container=c", "lazy=true", "end="),
		"lazy=0":                            raw("bindgate=1", "op=detach", "owner=o", "container=c", "lazy=0", "end="),
		"noexec=yes":                        mount("mount=/a", "source=/v", "mode=ro", "noexec=yes"),
		"an empty owner":                    raw("bindgate=1", "op=query", "owner=", "end="),
		"an owner of 33 bytes":              raw("bindgate=1", "op=query", "owner="+strings.Repeat("o", 33), "end="),
		"an owner that is a path":           raw("bindgate=1", "op=query", "owner=../x", "end="),
		"a container that is a path":        raw("bindgate=1", "op=query", "owner=o", "container=a/b", "end="),
		"an empty container":                raw("bindgate=1", "op=query", "owner=o", "container=", "end="),
		"a container of 129 bytes":          raw("bindgate=1", "op=query", "owner=o", "container="+strings.Repeat("c", 129), "end="),
		"a volume with a colon":             raw("bindgate=1", "op=create-volume", "name=a:b", "end="),
		"a hidden volume":                   raw("bindgate=1", "op=remove-volume", "name=.new-v", "end="),
		"a volume of 249 bytes":             raw("bindgate=1", "op=create-volume", "name="+strings.Repeat("v", 249), "end="),
		"an empty container_path":           mount("mount=", "source=/v", "mode=ro"),
		"dot dot in a container_path":       mount("mount=/a/../b", "source=/v", "mode=ro"),
		"dot dot in a source":               mount("mount=/a", "source=/v/../etc", "mode=ro"),
		"a relative source":                 mount("mount=/a", "source=v", "mode=ro"),
		"an empty source":                   mount("mount=/a", "source=", "mode=ro"),
		"an absolute subpath":               mount("mount=/a", "source=/v", "mode=ro", "subpath=/s"),
		"a subpath that is the volume":      mount("mount=/a", "source=/v", "mode=ro", "subpath=."),
		"an empty subpath":                  mount("mount=/a", "source=/v", "mode=ro", "subpath="),
		"dot dot in a subpath":              mount("mount=/a", "source=/v", "mode=ro", "subpath=s/../../t"),
		"a relative rootfs":                 attach("rootfs=r"),
		"dot dot in a rootfs":               attach("rootfs=/r/.."),
		"a relative directory":              attach("directory=d"),
		"a relative sandbox":                attach("sandbox=s"),
		"a source of 4096 bytes":            mount("mount=/a", "source="+strings.Repeat("/a", 2048), "mode=ro"),
		"a component of 256 bytes":          mount("mount=/"+strings.Repeat("a", 256), "source=/v", "mode=ro"),
		"an empty mode":                     mount("mount=/a", "source=/v", "mode="),
		"mode RW":                           mount("mount=/a", "source=/v", "mode=RW"),
		"mode rw,suid":                      mount("mount=/a", "source=/v", "mode=rw,suid"),
		"mode with a newline":               mount("mount=/a", "source=/v", "mode=rw\n"),
		"a source with a newline":           mount("mount=/a", "source=/v\n", "mode=ro"),
		"a container_path with ESC":         mount("mount=/a\x1b[2J", "source=/v", "mode=ro"),
		"a container_path with C1":          mount("mount=/a\u009b", "source=/v", "mode=ro"),
		"a container_path with DEL":         mount("mount=/a\x7f", "source=/v", "mode=ro"),
		"a source that is no UTF-8":         mount("mount=/a", "source=/v\xff", "mode=ro"),
		"a source with a surrogate half":    mount("mount=/a", "source=/v\xed\xa0\x80", "mode=ro"),
		"a source with an overlong NUL":     mount("mount=/a", "source=/v\xc0\x80", "mode=ro"),
		"a volume's mode over 3777":         create("mode=4755"),
		"a volume's mode that is not octal": create("mode=0o755"),
		"a volume's mode in decimal":        create("mode=789"),
		"a volume's mode with a sign":       create("mode=-1"),
		"uid -1":                            create("uid=-1"),
		"uid 4294967295, which is -1":       create("uid=4294967295"),
		"gid 2^32":                          create("gid=4294967296"),
		"uid root":                          create("uid=root"),
		"an empty uid":                      create("uid="),
		"a uid with a leading zero":         create("uid=00"),
	}
	for name, v := range map[string]string{
		"zero": "0", "negative": "-1", "signed": "+1", "a leading zero": "01", "a leading space": " 1", "a trailing space": "1 ", "hexadecimal": "0x1", "binary": "0b1", "an underscore": "1_0", "empty": "",
		"a fraction": "1.0", "an exponent": "1e3", "a word": "self", "over PID_MAX_LIMIT": "4194305", "2^32+1": "4294967297", "2^63": "9223372036854775808", "2^64": "18446744073709551616", "2^64+1": "18446744073709551617",
		"a thousand digits": strings.Repeat("9", 1000), "Arabic digits": "١", "fullwidth digits": "１", "a newline": "1\n", "a NUL's worth": "1\x01",
	} {
		cases["pid: "+name] = raw("bindgate=1", "op=attach", "owner=o", "container=c", "pid="+v, "mount=/a", "source=/v", "mode=ro", "end=")
		if v != "4194305" && v != "4294967297" {
			cases["start: "+name] = attach("start=" + v)
		}
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := DecodeRequest(data)
			if r != nil || code(err) != InvalidRequest {
				t.Fatalf("%+v, %v", r, err)
			}
			checkLine(t, err)
		})
	}
}

// A request that is cut anywhere, or has any one bit flipped, is refused or asks for something: it never panics and is never taken for the longer one.
func TestTornRequestIsRefused(t *testing.T) {
	for name, r := range requests {
		data := boundary.Encode(r)
		for n := range data {
			if _, err := DecodeRequest(data[:n]); code(err) != InvalidRequest {
				t.Errorf("%s, cut at %d: %v", name, n, err)
			}
		}
		for i := range data {
			for bit := range 8 {
				flipped := bytes.Clone(data)
				flipped[i] ^= 1 << bit
				if again, err := DecodeRequest(flipped); err == nil && reflect.DeepEqual(again, r) {
					t.Errorf("%s, byte %d bit %d: nothing changed", name, i, bit)
				}
			}
		}
	}
}

// FuzzDecodeRequest: one printable line of refusal, or a request whose every value is in range and which is itself when written down again.
func FuzzDecodeRequest(f *testing.F) {
	for _, r := range requests {
		f.Add(boundary.Encode(r))
	}
	for _, s := range []string{"", "bindgate=1\x00end=\x00", "bindgate=1\x00op=attach\x00pid=-1\x00end=\x00", "bindgate=1\x00op=create-volume\x00name=v\x00mode=0000755\x00end=\x00",
		"bindgate=1\x00op=detach\x00owner=o\x00container=c\x00mount=/../x\x00end=\x00", "bindgate=1\x00op=query\x00owner=o\x00end=\x00\x00", "bindgate=1\x00op=sweep\x00owner=\xff\x00end=\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRequest(data)
		if err != nil {
			if c := code(err); r != nil || c != InvalidRequest && c != LimitExceeded {
				t.Errorf("%+v, %v", r, err)
			}
			checkLine(t, err)
			return
		}
		texts := []string{r.Owner, r.Container, r.Rootfs, r.Directory, r.Sandbox, r.Name}
		for _, m := range r.Mounts {
			texts = append(texts, m.Path, m.Source, m.Subpath)
			if p, err := ParsePath(m.Path); err != nil || r.Op == OpAttach && (m.Mode != ModeRO && m.Mode != ModeRW || m.Source[0] != '/') || m.Subpath != "" && m.Subpath[0] == '/' {
				t.Errorf("%+v, %+v, %v", m, p, err)
			}
		}
		for _, s := range texts {
			if Printable(s) != s || strings.Contains(s, "\x00") {
				t.Errorf("%q is not printable", s)
			}
		}
		if r.PID < 0 || r.PID > 1<<22 || r.Start > math.MaxInt64 || len(r.Mounts) > MaxBlocks || (r.Op == OpAttach) != (r.PID != 0) || r.Mode != nil && *r.Mode > 0o3777 {
			t.Errorf("%+v", r)
		}
		if again, err := DecodeRequest(boundary.Encode(r)); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v is %+v the second time, and %v", r, again, err)
		}
	})
}
