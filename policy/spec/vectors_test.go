package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

var update = flag.Bool("update", false, "write tests/formats/want.json anew, to be read before it is committed")

const vectors = "../../tests/formats"

// A result is what want.json says of a vector: a job or an error.
type result struct {
	Volumes  []wantVolume      `json:"volumes,omitempty"`
	Skipped  []Skipped         `json:"skipped,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`
	Code     wire.Code         `json:"code,omitempty"`
	Message  string            `json:"message,omitempty"`
	Hint     string            `json:"hint,omitempty"`
}

// A wantVolume is a Volume, with names and without what is zero.
type wantVolume struct {
	Driver         string            `json:"driver"`
	Name           string            `json:"name"`
	ContainerPath  string            `json:"container_path,omitempty"`
	Mode           string            `json:"mode"`
	Options        map[string]string `json:"options,omitempty"`
	Subpath        string            `json:"subpath,omitempty"`
	NoExec         bool              `json:"noexec,omitempty"`
	IDMap          bool              `json:"idmap,omitempty"`
	Scope          string            `json:"scope"`
	ExplicitCreate bool              `json:"explicit_create,omitempty"`
	Field          string            `json:"field"`
}

func resultOf(t *testing.T, j *Job, err error) result {
	t.Helper()
	if err != nil {
		if j != nil {
			t.Errorf("a job came with the error %v", err)
		}
		e := checkError(t, err)
		return result{Code: e.Code, Message: e.Message, Hint: e.Hint}
	}
	r := result{Skipped: j.Skipped, Labels: j.Labels, Warnings: j.Warnings}
	for _, v := range j.Volumes {
		r.Volumes = append(r.Volumes, wantVolume(v))
	}
	return r
}

// checkError checks what holds for every error of this package.
func checkError(t testing.TB, err error) *wire.Error {
	t.Helper()
	var e *wire.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is not a *wire.Error", err)
	}
	if e.Code != wire.InvalidRequest && e.Code != wire.DuplicateVolume {
		t.Errorf("code %s of %v", e.Code, err)
	}
	for _, s := range []string{e.Message, e.Hint} {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) || len(s) > 600 {
			t.Errorf("not one short printable line: %q", s)
		}
	}
	if !strings.HasPrefix(e.Message, "cannot use ") || e.Stage != "job" {
		t.Errorf("stage %q, message %q", e.Stage, e.Message)
	}
	return e
}

var vectorName = regexp.MustCompile(`^(bad-)?(any|mesos|dvdi|marathon|docker|oci)-[a-z0-9-]+\.(json|env|txt)$`)

// TestVectors parses every file of tests/formats and compares with want.json there. The name says what to do with a file: what begins with bad- must be
// refused, read in the format that it names; the others must pass, and be recognised besides.
func TestVectors(t *testing.T) {
	golden := filepath.Join(vectors, "want.json")
	want, got := map[string]result{}, map[string]result{}
	if data, err := os.ReadFile(golden); err == nil {
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(vectors)
	if err != nil {
		t.Fatal(err)
	}
	good, bad := 0, 0
	for _, entry := range entries {
		name := entry.Name()
		m := vectorName.FindStringSubmatch(name)
		if m == nil {
			if name != "want.json" && name != "README.md" {
				t.Errorf("%s is not named as a vector", name)
			}
			continue
		}
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(vectors, name))
			if err != nil {
				t.Fatal(err)
			}
			format, d := m[2], Defaults{Driver: "local"}
			if format == "any" {
				format = ""
			}
			j, err := Parse(format, data, d)
			r := resultOf(t, j, err)
			got[name] = r
			if m[1] != "" {
				bad++
				if err == nil {
					t.Fatalf("it was accepted: %+v", j)
				}
			} else {
				good++
				if err != nil {
					t.Fatal(err)
				}
				if j.Format != format {
					t.Errorf("format %s", j.Format)
				}
				if again, err := Parse("", data, d); err != nil && format != formatDVDI || err == nil && !reflect.DeepEqual(again, j) {
					t.Errorf("recognised: %+v, %v", again, err)
				}
			}
			if w, ok := want[name]; !*update && (!ok || !reflect.DeepEqual(r, w)) {
				t.Errorf("got  %+v\nwant %+v", r, w)
			}
		})
	}
	for name := range want {
		if _, ok := got[name]; !ok && !*update {
			t.Errorf("want.json has %s, which is not there", name)
		}
	}
	if bad <= good {
		t.Errorf("%d vectors that must fail, %d that must pass: there should be more of the first", bad, good)
	}
	if *update {
		data, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		data = []byte(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(data)))
		if err := os.WriteFile(golden, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDocs parses the examples of docs/formats.md: a fence with a format behind its language must pass, one with "FORMAT refused" must not.
func TestDocs(t *testing.T) {
	data, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	fences := regexp.MustCompile("(?ms)^```[a-z]+ ([a-z]+)( refused)?\n(.*?)^```$").FindAllStringSubmatch(string(data), -1)
	seen := map[string]bool{}
	for _, f := range fences {
		j, err := Parse(f[1], []byte(f[3]), Defaults{Driver: "local"})
		if (err != nil) != (f[2] != "") {
			t.Errorf("%s%s: %v\n%s", f[1], f[2], err, f[3])
		}
		if err == nil && len(j.Volumes) == 0 {
			t.Errorf("no volume in\n%s", f[3])
		}
		seen[f[1]] = true
	}
	for _, format := range Formats() {
		if !seen[format] {
			t.Errorf("docs/formats.md has no example of %s", format)
		}
	}
	flags := regexp.MustCompile("(?m)^(-v|--mount) +'?([^'\n]+)'?$").FindAllStringSubmatch(string(data), -1)
	if len(flags) < 4 {
		t.Errorf("docs/formats.md has %d examples of flags", len(flags))
	}
	for _, f := range flags {
		err := error(nil)
		if f[1] == "-v" {
			_, err = ParseVolumeFlag(f[2], "local")
		} else {
			_, err = ParseMountFlag(f[2], Defaults{Driver: "local"})
		}
		if err != nil {
			t.Errorf("%s: %v", f[0], err)
		}
	}
}

func TestFormats(t *testing.T) {
	for _, f := range Formats() {
		if parsers[f] == nil {
			t.Errorf("no parser for %s", f)
		}
	}
	if len(parsers) != len(Formats()) || !slices.Contains(Formats(), "mesos") {
		t.Errorf("formats %v", Formats())
	}
}
