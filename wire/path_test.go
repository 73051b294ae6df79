package wire_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	. "github.com/bindgate/bindgate/wire"
)

func TestParsePathRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"an empty path":                   "",
		"dot dot":                         "..",
		"an absolute dot dot":             "/..",
		"dot dot at the beginning":        "../a",
		"dot dot in the middle":           "/a/../b",
		"dot dot at the end":              "/a/..",
		"dot dot before a slash":          "/a/../",
		"dot dot behind many slashes":     "//../../abc",
		"dot dot that stays inside":       "a/b/../c",
		"a NUL":                           "/a\x00b",
		"a NUL at the end":                "/a\x00",
		"a NUL alone":                     "\x00",
		"4096 bytes":                      "/" + strings.Repeat("a/", 2047) + "a",
		"a mebibyte":                      strings.Repeat("/a", 1<<19),
		"4096 slashes":                    strings.Repeat("/", 4096),
		"a component of 256 bytes":        "/a/" + strings.Repeat("b", 256) + "/c",
		"a relative one of 256 bytes":     strings.Repeat("b", 256),
		"256 bytes in 128 letters":        strings.Repeat("ö", 128),
		"dot dot behind a long component": "/" + strings.Repeat("b", 255) + "/..",
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePath(s)
			if code(err) != InvalidRequest || p.Absolute || p.Components != nil {
				t.Fatalf("%+v, %v", p, err)
			}
			checkLine(t, err)
		})
	}
}

func TestParsePathTakes(t *testing.T) {
	long := strings.Repeat("b", 255)
	for s, want := range map[string]string{
		"/": "/", "//": "/", "/.": "/", ".": ".", "./": ".", "././.": ".", "a": "a", "./a": "a", "a/": "a", "/a//b/./c/": "/a/b/c", "/...": "/...", "..a": "..a", "a..": "a..", "/..a/b..": "/..a/b..",
		" ": " ", "/a b": "/a b", "/\n": "/\n", "/\xff": "/\xff", "~": "~", "-rf": "-rf", "/" + long: "/" + long,
		strings.Repeat("/", 4095): "/", strings.Repeat("a/", 2047) + "a": strings.Repeat("a/", 2047) + "a",
	} {
		p, err := ParsePath(s)
		if err != nil || p.String() != want || p.Absolute != (s[0] == '/') {
			t.Errorf("%.40q is %+.40q, %v", s, p, err)
		}
	}
}

func TestZeroPathIsTheWorkingDirectory(t *testing.T) {
	if (Path{}).String() != "." || (Path{Absolute: true}).String() != "/" {
		t.Error("Path{} is \".\"")
	}
}

func TestContainsIsByWholeComponents(t *testing.T) {
	for _, c := range []struct {
		p, q string
		want bool
	}{
		{"/a", "/a", true}, {"/a", "/a/b", true}, {"/", "/a", true}, {"/", "/", true}, {"a", "a/b", true}, {".", "a", true}, {"/a/b", "/a/b/c/d", true},
		{"/docker", "/dockerx", false}, {"/docker", "/docke", false}, {"/a/b", "/a", false}, {"/a", "/b/a", false}, {"/a/b", "/a/bc", false}, {"/a", "a", false}, {"a", "/a", false}, {"/", "a", false},
		{".", "/a", false}, {"/a", "/A", false}, {"/a/b", "/a/c/b", false},
	} {
		p, e1 := ParsePath(c.p)
		q, e2 := ParsePath(c.q)
		if e1 != nil || e2 != nil || p.Contains(q) != c.want {
			t.Errorf("%s contains %s: not %v", c.p, c.q, c.want)
		}
	}
}

func TestParsePathsLeavesOutWhatIsNone(t *testing.T) {
	var got []string
	for _, p := range ParsePaths([]string{"/a", "", "/b/../c", "/d//e", "/\x00"}) {
		got = append(got, p.String())
	}
	if !slices.Equal(got, []string{"/a", "/d/e"}) || ParsePaths(nil) != nil {
		t.Errorf("%q", got)
	}
}

func TestIDs(t *testing.T) {
	bad := map[string]string{
		"empty": "", "a path above": "../x", "a slash": "a/b", "a newline": "a\nb", "a newline at the end": "a\n", "a NUL": "a\x00", "a space": "a b", "a leading dot": ".hidden", "a leading dash": "-rf",
		"a leading colon": ":a", "a leading underscore": "_a", "a plus, which separates parts of file names": "a+b", "a percent sign": "a%2fb", "a backslash": `a\b`, "a letter that is not ASCII": "é",
		"a fullwidth letter": "ａ", "invalid UTF-8": "a\xff", "ESC": "a\x1b[2J", "an asterisk": "a*", "a quote": `a"`, "300 bytes": strings.Repeat("a", 300), "dot": ".", "dot dot": "..",
	}
	for name, check := range map[string]struct {
		f    func(string) error
		max  int
		good []string
		bad  []string
	}{
		"container": {CheckContainer, 128, []string{"a", "0", "web-1", "a.b_c:d-e", "A..b"}, nil},
		"owner":     {CheckOwner, 32, []string{"default", "oci", "a:b"}, nil},
		"volume":    {CheckVolumeName, 248, []string{"v", "my.volume_1-x"}, []string{"a:b"}},
		"id":        {func(s string) error { return CheckID("driver", s) }, 128, []string{"rexray", "vieux.sshfs:latest"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range append(check.good, strings.Repeat("x", check.max)) {
				if err := check.f(s); err != nil {
					t.Errorf("%q: %v", s, err)
				}
			}
			for what, s := range bad {
				if err := check.f(s); code(err) != InvalidRequest {
					t.Errorf("%s is taken: %v", what, err)
				} else {
					checkLine(t, err)
				}
			}
			for _, s := range append(check.bad, strings.Repeat("x", check.max+1)) {
				if err := check.f(s); code(err) != InvalidRequest {
					t.Errorf("%q is taken", s)
				}
			}
		})
	}
}

// FuzzParsePath: a path that is taken is clean, has no way out, and is itself when parsed again.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"", "/", ".", "..", "/../../abc", "//a/./b/", "a/../../b", "/a\x00", "/proc/self/fd/3", strings.Repeat("a/", 2048), strings.Repeat("x", 256), "/\xff/\u2028", "/..a/...", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			checkLine(t, err)
			return
		}
		for _, c := range p.Components {
			if c == "" || c == "." || c == ".." || len(c) > 255 || strings.ContainsAny(c, "/\x00") {
				t.Errorf("%q has the component %q", s, c)
			}
		}
		if clean := p.String(); clean != path.Clean(s) || len(clean) > len(s) || len(s) > 4095 {
			t.Errorf("%q is %q, path.Clean says %q", s, clean, path.Clean(s))
		}
		again, err := ParsePath(p.String())
		if err != nil || again.Absolute != p.Absolute || !slices.Equal(again.Components, p.Components) || !p.Contains(again) || !again.Contains(p) {
			t.Errorf("%q is %+v the second time, and %v", s, again, err)
		}
	})
}
