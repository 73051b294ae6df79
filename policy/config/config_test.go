package config

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bindgate/bindgate/wire"
)

func refused(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.Config && strings.HasPrefix(e.Message, "cannot ") && !strings.Contains(e.Message, "\n")
}

func TestEmptyPolicyHasTheDefaults(t *testing.T) {
	p, err := ParsePolicy(nil)
	if err != nil || !reflect.DeepEqual(p, DefaultPolicy()) {
		t.Fatalf("%+v, %v", p, err)
	}
	if want := (Timeouts{120 * time.Second, 600 * time.Second, time.Minute, 30 * time.Second}); p.Timeouts != want || p.For("rexray") != (DriverTimeouts{want.Mount, want.Unmount, want.Call}) {
		t.Errorf("%+v", p.Timeouts)
	}
	if len(p.Rules) != 0 || p.Hook.DVDIEnv || p.Volume.DefaultDriver != "local" || p.Helper.Transport != TransportExec {
		t.Errorf("%+v", p)
	}
}

func TestShippedPolicyGivesNobodyAVolume(t *testing.T) {
	data, err := os.ReadFile("../../packaging/conf/policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("@PREFIX@", "/usr/local", "@LOCALSTATEDIR@", "/var", "@RUNDIR@", "/run", "@BINDGATE_USER@", "bindgate").Replace(string(data))
	if p, err := ParsePolicy([]byte(text)); err != nil || !reflect.DeepEqual(p, DefaultPolicy()) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestDriversDeadlinesOverrideTheGeneralOnes(t *testing.T) {
	p, err := ParsePolicy([]byte("[timeouts]\ncall = \"5s\"\n[driver.rexray.timeouts]\nmount = \"1h\"\n[driver.\"vieux/sshfs\"]\ncounting = \"container\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.For("rexray"), (DriverTimeouts{time.Hour, 600 * time.Second, 5 * time.Second}); got != want {
		t.Errorf("%+v", got)
	}
	if got := p.For("other"); got != (DriverTimeouts{p.Timeouts.Mount, p.Timeouts.Unmount, p.Timeouts.Call}) {
		t.Errorf("%+v", got)
	}
}

func TestPolicyTakes(t *testing.T) {
	for name, toml := range map[string]string{
		"the socket":                     "[helper]\ntransport = \"socket\"\nsocket = \"/run/x.sock\"",
		"all of a rule":                  "[[rule]]\ndriver = \"local\"\nvolume = \"db-*\"\ncontainers = [\"a*\"]\nowners = [\"default\"]\nmodes = [\"ro\", \"rw\"]\npaths = [\"/data*\"]\naction = \"allow\"",
		"a rule that denies":             "[[rule]]\naction = \"deny\"",
		"all of a driver":                "[driver.rexray]\naddress = \"unix:///x\"\nexplicit_create = true\noptions = {size = \"5\"}\ncounting = \"volume\"\nroots = [\"/var/lib/rexray\"]\ntimeouts = {mount = \"1s\"}",
		"a driver's deadline of nothing": "[driver.d.timeouts]\nmount = \"0s\"",
		"plugins and the hook":           "[plugins]\nsocket_dirs = []\nspec_dirs = [\"/x\"]\n[hook]\ndvdi_env = true",
	} {
		if _, err := ParsePolicy([]byte(toml)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPolicyRefuses(t *testing.T) {
	for name, toml := range map[string]string{
		"an unknown key":                "nonsense = 1",
		"a misspelt key":                "[volume]\ndefault_diver = \"local\"",
		"a key of helper.toml":          "[[source]]\npath = \"/v\"",
		"an unknown key of a driver":    "[driver.d]\ncount = \"volume\"",
		"an unknown key of a rule":      "[[rule]]\naction = \"allow\"\ncontainer = \"x\"",
		"another transport":             "[helper]\ntransport = \"http\"",
		"an empty transport":            "[helper]\ntransport = \"\"",
		"a relative helper":             "[helper]\npath = \"bindgate-helper\"",
		"a helper with dot dot":         "[helper]\npath = \"/usr/../tmp/helper\"",
		"an empty helper":               "[helper]\npath = \"\"",
		"a relative socket":             "[helper]\nsocket = \"helper.sock\"",
		"a relative state folder":       "[state]\ndir = \"state\"",
		"an empty state folder":         "[state]\ndir = \"\"",
		"a deadline of nothing":         "[timeouts]\nmount = \"0s\"",
		"a negative deadline":           "[timeouts]\ncall = \"-1s\"",
		"a deadline without its unit":   "[timeouts]\ncall = \"60\"",
		"a deadline that is a word":     "[timeouts]\ncall = \"never\"",
		"a driver's negative deadline":  "[driver.d.timeouts]\nunmount = \"-1s\"",
		"a driver's helper deadline":    "[driver.d.timeouts]\nhelper = \"5s\"",
		"another counting":              "[driver.d]\ncounting = \"containers\"",
		"a rule without an action":      "[[rule]]\ndriver = \"local\"",
		"a rule with another action":    "[[rule]]\naction = \"Allow\"",
		"a second rule without one":     "[[rule]]\naction = \"allow\"\n[[rule]]\nvolume = \"v\"",
		"a rule with another mode":      "[[rule]]\naction = \"allow\"\nmodes = [\"rw\", \"RO\"]",
		"a rule whose mode is a string": "[[rule]]\naction = \"allow\"\nmodes = \"ro\"",
		"a rule whose driver is a list": "[[rule]]\naction = \"allow\"\ndriver = [\"local\"]",
		"a rule that is a table":        "[rule]\naction = \"allow\"",
		"options that are numbers":      "[driver.d]\noptions = {size = 5}",
		"a boolean in quotes":           "[hook]\ndvdi_env = \"true\"",
		"invalid UTF-8":                 "user = \"\xff\"",
		"no TOML":                       "user: bindgate",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParsePolicy([]byte(toml)); !refused(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

// FuzzParsePolicy: refused as config in one line, or every value is in its range.
func FuzzParsePolicy(f *testing.F) {
	for _, s := range []string{"", "user = \"u\"\ngroups = [\"g\"]\n[helper]\ntransport = \"socket\"\n[state]\ndir = \"/s\"\n[timeouts]\nmount = \"1h2m\"\n[driver.rexray]\naddress = \"tcp://h:1\"\noptions = {a = \"b\"}\ncounting = \"container\"\nroots = [\"/r\"]\ntimeouts = {call = \"1ms\"}\n[hook]\ndvdi_env = true",
		"[[rule]]\ndriver = \"*\"\nmodes = [\"ro\"]\naction = \"deny\"\n[[rule]]\naction = \"allow\"", "[timeouts]\nmount = 1", "[timeouts]\nmount = \"9223372036854775807ns\"", "[driver.\"\"]\ncounting = \"\"", "driver.a.b = 1", "rule = [{action = \"allow\"}]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy(data)
		if err != nil {
			if !refused(err) {
				t.Errorf("%#v", err)
			}
			return
		}
		for _, s := range []string{p.Helper.Path, p.Helper.Socket, p.State.Dir} {
			if q, err := wire.ParsePath(s); err != nil || !q.Absolute {
				t.Errorf("the path %q was taken", s)
			}
		}
		for name := range p.Drivers {
			if d := p.For(name); d.Mount <= 0 || d.Unmount <= 0 || d.Call <= 0 {
				t.Errorf("%q: %+v", name, d)
			}
		}
		for _, r := range p.Rules {
			if r.Action != "allow" && r.Action != "deny" {
				t.Errorf("%+v", r)
			}
		}
	})
}
