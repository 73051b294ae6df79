package cli

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

func TestDvdcli(t *testing.T) {
	s := newShell(t)
	s.name = dvdcliName
	prints := func(want string, args ...string) {
		t.Helper()
		if r := s.ok(nil, args...); r.out != want {
			t.Errorf("%v prints %q, want %q", args, r.out, want)
		}
	}
	v := []string{"--volumedriver=local", "--volumename=v"}
	prints("/vol/v\n", append([]string{"mount", "--volumeopts=size=5,x=a=b", "--volumeopts", `"o=addr=10.0.0.1,rw"`, "--volumeopts=", "--volumeopts=size=6"}, v...)...)
	if want := map[string]string{"size": "6", "x": "a=b", "o": "addr=10.0.0.1,rw"}; !reflect.DeepEqual(s.driver.volumes["v"], want) {
		t.Errorf("options %v", s.driver.volumes["v"])
	}
	prints("/vol/v\n", append([]string{"mount", "--explicitcreate"}, v...)...)
	prints("/vol/v\n", append(slices.Clone(v), "mount", "--explicitCreate=true")...)
	prints("/vol/v\n", append([]string{"path"}, v...)...)
	prints("v\n", append([]string{"get"}, v...)...)
	prints("", "create", "--volumedriver=local", "--volumename=w", "--volumeopts=size=5")
	if out := s.ok(nil, "list", "--volumedriver=local").out; out != "v\nw\n" {
		t.Errorf("list: %q", out)
	}
	prints("", append([]string{"unmount"}, v...)...)
	if r := s.run(append([]string{"unmount"}, v...)...); r.status != 0 || r.out != "" || !strings.HasPrefix(r.err, "dvdcli: nothing to do: ") {
		t.Errorf("unmount again: %+v", r)
	}
	prints("", append([]string{"remove"}, v...)...)
	prints("dvdcli of bindgate dev\n", "version")
	for _, help := range [][]string{{"help"}, {"--help"}, {"help", "mount"}} {
		if r := s.ok(nil, help...); !strings.Contains(r.out, "--volumedriver") {
			t.Errorf("%v: %q", help, r.out)
		}
	}
}

// Whatever goes wrong is exit status 1, nothing on stdout, and one line with a hint at most.
func TestDvdcliFails(t *testing.T) {
	for name, args := range map[string][]string{
		"no command":                 {},
		"no such command":            {"frobnicate"},
		"no such flag":               {"mount", "--frobnicate"},
		"no driver":                  {"mount", "--volumename=v"},
		"no name":                    {"unmount", "--volumedriver=local"},
		"an argument":                {"mount", "--volumedriver=local", "--volumename=v", "w"},
		"an option without =":        {"mount", "--volumedriver=local", "--volumename=v", "--volumeopts=rw"},
		"an option without a key":    {"mount", "--volumedriver=local", "--volumename=v", "--volumeopts==5"},
		"a comma too many":           {"mount", "--volumedriver=local", "--volumename=v", "--volumeopts=size=5,"},
		"half a quote":               {"mount", "--volumedriver=local", "--volumename=v", `--volumeopts="size=5`},
		"a newline in an option":     {"mount", "--volumedriver=local", "--volumename=v", "--volumeopts=size=5\nrw=1"},
		"a newline after an option":  {"mount", "--volumedriver=local", "--volumename=v", "--volumeopts=size=5\n"},
		"a newline in quotes":        {"mount", "--volumedriver=local", "--volumename=v", "--volumeopts=\"size=5\n\""},
		"a volume that must exist":   {"mount", "--volumedriver=local", "--volumename=v", "--explicitcreate"},
		"explicitcreate with a word": {"mount", "--volumedriver=local", "--volumename=v", "--explicitCreate=yes"},
		"a volume that is denied":    {"mount", "--volumedriver=local", "--volumename=secret"},
		"a driver that is a path":    {"mount", "--volumedriver=../x", "--volumename=v"},
		"a volume that is not there": {"get", "--volumedriver=local", "--volumename=v"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShell(t)
			s.name = dvdcliName
			r := s.run(args...)
			first, rest, _ := strings.Cut(r.err, "\n")
			if r.status != 1 || r.out != "" || !strings.HasPrefix(first, "dvdcli: cannot ") || rest != "" && !strings.HasPrefix(rest, "hint: ") {
				t.Errorf("%+v", r)
			}
			if len(s.driver.volumes) > 0 {
				t.Errorf("made %v", s.driver.volumes)
			}
			s.become = func(*config.Policy) error { return wire.Errorf(wire.Denied, "user", "cannot run as uid 1") }
			if r := s.run("version"); r.status != 0 {
				t.Errorf("version for anyone: %+v", r)
			}
			if r := s.run("list", "--volumedriver=local"); r.status != 1 {
				t.Errorf("for anyone: %+v", r)
			}
		})
	}
}

func TestDvdcliRefusalPrintsTheRule(t *testing.T) {
	s := newShell(t)
	s.name, s.policy.Rules = dvdcliName, nil
	r := s.run("mount", "--volumedriver=local", "--volumename=v")
	_, rule, _ := strings.Cut(r.err, "policy.toml:\n")
	for _, line := range []string{"[[rule]]", `driver = "local"`, `volume = "v"`, `owners = ["dvdcli"]`, `modes = ["rw"]`, `action = "allow"`} {
		if !strings.Contains(rule, line+"\n") {
			t.Errorf("%q is not in %q", line, r.err)
		}
	}
}

// FuzzVolumeOpts: whatever a flag holds, options that can be passed on or one printable line.
func FuzzVolumeOpts(f *testing.F) {
	for _, s := range []string{"", "size=5", "size=5,iops=150", `"o=a,b"`, `"`, "=", "a=b=c", "a", ",", "a=\"b\"", "a=b\nc=d", "\xff=1", "k=\x1b"} {
		f.Add(s, "")
		f.Add("size=1", s)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		opts, err := volumeOpts([]string{one, two})
		if err != nil {
			e := wire.AsError(err)
			if e.Code != wire.Usage && e.Code != wire.InvalidRequest || strings.ContainsFunc(e.Message, unicode.IsControl) {
				t.Errorf("%s: %q", e.Code, e.Message)
			}
			return
		}
		for k, v := range opts {
			if k == "" || !utf8.ValidString(k+v) || strings.ContainsFunc(k+v, unicode.IsControl) || !strings.Contains(strings.ReplaceAll(one+two, `"`, ""), strings.ReplaceAll(k+"="+v, `"`, "")) {
				t.Errorf("%q, %q: %q", one, two, opts)
			}
		}
	})
}
