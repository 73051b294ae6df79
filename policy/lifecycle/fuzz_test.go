package lifecycle

import (
	"context"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// FuzzRule: the rule that a refusal prints is one rule, which allows what was refused and, where there is no *, nothing else, whatever a job calls its volumes.
func FuzzRule(f *testing.F) {
	for _, s := range []string{"v", `"]` + "\n[[rule]]\naction = \"allow\"", `\`, `"""`, "#", "ä\u2028", "*", "a*b", "'", "\u202e"} {
		f.Add("local", s, "/data", "ro")
		f.Add("d", "v", "/"+s, "rw")
	}
	f.Fuzz(func(t *testing.T, driver, name, path, mode string) {
		job := spec.Job{Volumes: []spec.Volume{{Driver: driver, Name: name, Mode: mode, Scope: spec.ScopeContainer, ContainerPath: path, Field: "it"}}}
		if job.Validate() != nil {
			return
		}
		u := use{volumeID{driver, name}, "c", "o", mode, clean(path)}
		iso := &Isolator{policy: config.DefaultPolicy()}
		e := wire.AsError(iso.permit(u))
		_, rule, ok := strings.Cut(e.Hint, "policy.toml:\n")
		if !ok || strings.ContainsFunc(rule, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }) || !utf8.ValidString(rule) {
			t.Fatalf("%q", e.Hint)
		}
		p, err := config.ParsePolicy([]byte(rule))
		if err != nil || len(p.Rules) != 1 {
			t.Fatalf("%v: %+v from %q", err, p, rule)
		}
		iso.policy = p
		if err := iso.permit(u); err != nil {
			t.Errorf("%q does not allow %+v", rule, u)
		}
		if strings.Contains(name+path, "*") {
			if !strings.Contains(e.Hint, "stands for any characters") {
				t.Errorf("nobody is warned of %q", e.Hint)
			}
			return
		}
		for _, other := range []use{{volumeID{driver + "x", name}, "c", "o", mode, u.Path}, {volumeID{driver, name + "x"}, "c", "o", mode, u.Path},
			{u.volumeID, "c", "other", mode, u.Path}, {u.volumeID, "c", "o", "r", u.Path}, {u.volumeID, "c", "o", mode, u.Path + "/x"}} {
			if iso.permit(other) == nil {
				t.Errorf("%q allows %+v, too", rule, other)
			}
		}
	})
}

// FuzzGlob: * matches anything, and everything else itself.
func FuzzGlob(f *testing.F) {
	for _, s := range []string{"", "*", "a*b", "**", "*a*", "ab*b"} {
		f.Add(s, "ab")
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern)+len(s) > 64 {
			return // the plain way takes its time
		}
		if got, want := glob(pattern, s), plainGlob(pattern, s); got != want {
			t.Errorf("glob(%q, %q) = %v", pattern, s, got)
		}
	})
}

// plainGlob is glob by its definition.
func plainGlob(pattern, s string) bool {
	at := map[[2]int]bool{}
	for i := len(pattern); i >= 0; i-- {
		for j := len(s); j >= 0; j-- {
			switch {
			case i == len(pattern):
				at[[2]int{i, j}] = j == len(s)
			case pattern[i] == '*':
				at[[2]int{i, j}] = at[[2]int{i + 1, j}] || j < len(s) && at[[2]int{i, j + 1}]
			default:
				at[[2]int{i, j}] = j < len(s) && pattern[i] == s[j] && at[[2]int{i + 1, j + 1}]
			}
		}
	}
	return at[[2]int{0, 0}]
}

// FuzzJournal: whatever a record with a good checksum says, verbs end with a result or an error.
func FuzzJournal(f *testing.F) {
	for _, s := range []string{"", "null", "{}", "[]", `{"driver":"fake","name":"a","holds":[null]}`, `{"driver":"fake","name":"a","holds":[{"id":"x","state":"mounted","refs":[{"owner":"default","container":"web"}]}]}`,
		`{"driver":"fake","name":"a","holds":[{"id":"","state":"?","owner":"default"}]}`, `{"owner":"default","container":"web","phase":"isolated","volumes":[null]}`,
		`{"owner":"default","container":"web","phase":"cleaning","boot":"boot-1","volumes":[{"driver":"fake","name":"a","container_path":"/a"}],"process":{"pid":1}}`,
		`{"owner":"default","container":"web","parent":"web","children":["web"],"phase":"prepared"}`, `{"owner":"default","container":"web","volumes":[{}],"process":{"pid":-1,"boot":"boot-1"}}`} {
		f.Add([]byte(s), []byte(s))
	}
	f.Fuzz(func(t *testing.T, container, volume []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // nobody else is there to wait for
		defer cancel()
		w := newWorld(t)
		w.create(t, "a")
		iso := w.open(t, "")
		for _, err := range []error{iso.containers.Write(reference{"default", "web"}.key(), container), iso.volumes.Write(volumeID{"fake", "a"}.key(), volume)} {
			if err != nil {
				return
			}
		}
		_, _ = iso.Status(ctx, StatusQuery{})
		_, _ = iso.Usage(ctx, "web")
		_, _ = iso.Cleanup(ctx, "web", CleanupOptions{})
		if _, err := iso.Recover(ctx, RecoverOptions{}); isCode(err, wire.Internal) {
			t.Error(err)
		}
		_, _ = iso.Prepare(ctx, request(t, "web", "a:/a"))
		_, _ = iso.VolumeRemove(ctx, "fake", "a")
		if ctx.Err() != nil {
			t.Error("somebody waits for nobody")
		}
	})
}
