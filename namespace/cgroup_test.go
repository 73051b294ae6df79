package namespace

import (
	"slices"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/wire"
)

// What /proc/PID/cgroup says on the three kinds of hosts (cgroups(7)).
func v1(path string) string {
	return "12:pids:" + path + "\n11:cpu,cpuacct:" + path + "\n10:memory:" + path + "\n1:name=systemd:" + path + "\n"
}
func v2(path string) string          { return "0::" + path + "\n" }
func hybrid(path, two string) string { return v1(path) + v2(two) }

// T41: whole components, in every hierarchy where the process is not at the root, and in at least one.
func TestMatchCgroups(t *testing.T) {
	rules := []string{"/docker", "/kubepods.slice/pods", "/mesos"}
	for name, c := range map[string]struct {
		text string
		want bool
	}{
		"v2, the rule itself":                             {v2("/docker"), true},
		"v2, below the rule":                              {v2("/docker/4f"), true},
		"v2, far below":                                   {v2("/kubepods.slice/pods/a/b/c"), true},
		"v2, the last rule":                               {v2("/mesos/x"), true},
		"v2, a name with a colon":                         {v2("/docker/a:b:c"), true},
		"v1, the same path in all":                        {v1("/docker/4f"), true},
		"v1, other paths that match too":                  {"2:pids:/docker/4f\n1:name=systemd:/mesos/4f\n", true},
		"v1, one at the root":                             {v1("/docker/4f") + "2:freezer:/\n", true},
		"v1, the first at the root":                       {"2:freezer:/\n" + v1("/docker/4f"), true},
		"hybrid, both":                                    {hybrid("/docker/4f", "/docker/4f"), true},
		"hybrid, v2 at the root":                          {hybrid("/docker/4f", "/"), true},
		"hybrid, v1 at the root":                          {hybrid("/", "/docker/4f"), true},
		"without a newline at the end":                    {"0::/docker/4f", true},
		"nothing":                                         {"", false},
		"v2, at the root":                                 {v2("/"), false},
		"v1, at the root of all":                          {v1("/"), false},
		"hybrid, at the root of all":                      {hybrid("/", "/"), false},
		"v2, a name that goes on":                         {v2("/dockerx"), false},
		"v2, a name that is shorter":                      {v2("/docke"), false},
		"v2, above the rule":                              {v2("/kubepods.slice"), false},
		"v2, beside it":                                   {v2("/kubepods.slice/other"), false},
		"v2, the rule as a suffix":                        {v2("/user.slice/docker/x"), false},
		"v2, in capitals":                                 {v2("/Docker/x"), false},
		"v2, dot dot out of the rule":                     {v2("/docker/../x"), false},
		"v2, dot dot into the rule":                       {v2("/x/../docker"), false},
		"v2, dot dot within the rule":                     {v2("/docker/a/../b"), false},
		"v2, outside our view":                            {v2("/../docker"), false},
		"v2, an empty path":                               {v2(""), false},
		"v2, a relative path":                             {v2("docker/x"), false},
		"v2, deleted":                                     {v2("/docker/x (deleted)") + v2("/user.slice"), false},
		"v2, two slashes":                                 {v2("//"), false},
		"v2, a dot":                                       {v2("/."), false},
		"v1, a name in one hierarchy only":                {v1("/user.slice") + "2:freezer:/docker/x\n", false},
		"v1, all but one":                                 {v1("/docker/x") + "2:freezer:/user.slice\n", false},
		"v1, all but the first":                           {"13:freezer:/user.slice\n" + v1("/docker/x"), false},
		"v1, one at the root and one elsewhere":           {"3:cpu:/\n2:freezer:/user.slice\n1:pids:/docker/x\n", false},
		"hybrid, v2 elsewhere":                            {hybrid("/docker/x", "/user.slice"), false},
		"hybrid, v1 elsewhere":                            {hybrid("/user.slice", "/docker/x"), false},
		"hybrid, dot dot in v2":                           {hybrid("/docker/x", "/docker/../x"), false},
		"a line without fields":                           {v2("/docker/x") + "\n", false},
		"a line with one field":                           {"/docker/x\n", false},
		"a line with two fields":                          {"0:/docker/x\n", false},
		"a good line after one that is none":              {"nonsense\n" + v2("/docker/x"), false},
		"a NUL in the path":                               {v2("/docker/\x00"), false},
		"a path of 5,000 bytes":                           {v2("/docker" + strings.Repeat("/x", 2500)), false},
		"a path cut short, as a longer file than we read": {v1("/docker/x") + "0::/dock", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := MatchCgroups(c.text, rules); got != c.want {
				t.Errorf("%q: %v", c.text, got)
			}
		})
	}
}

func TestNoRuleMatchesNothing(t *testing.T) {
	for name, rules := range map[string][]string{"none": nil, "an empty one": {""}, "the root": {"/"}, "a dot": {"."}, "dot dot": {"/docker/.."}, "a relative one": {"docker"}, "a glob": {"/dock*"}, "two slashes": {"//"}} {
		for _, text := range []string{v2("/docker/x"), v1("/docker/x"), hybrid("/", "/docker"), v2("/"), ""} {
			if MatchCgroups(text, rules) {
				t.Errorf("%s matches %q", name, text)
			}
		}
	}
}

// FuzzMatchCgroups compares with the rule as it is said in prose: every line has three fields; each path that is not "/" lies under a rule; there is one such.
func FuzzMatchCgroups(f *testing.F) {
	for _, s := range []string{"", v2("/docker/x"), v1("/docker"), hybrid("/docker/x", "/"), v2("/dockerx"), v2("/docker/../x"), "0::\n", "\n", "1:a:b:/docker", "0::/docker//x/.", "0::/docker\r\n"} {
		f.Add(s, "/docker", "/kubepods.slice/pods")
	}
	f.Add(v2("/"), "/", "")
	f.Fuzz(func(t *testing.T, text, one, two string) {
		under := func(path, rule string) bool {
			r, e1 := wire.ParsePath(rule)
			p, e2 := wire.ParsePath(path)
			return e1 == nil && e2 == nil && r.Absolute && p.Absolute && len(r.Components) > 0 && strings.HasPrefix(p.String()+"/", r.String()+"/")
		}
		want, some := true, false
		for line := range strings.Lines(text) {
			f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
			switch {
			case len(f) != 3:
				want = false
			case f[2] != "/":
				some = true
				want = want && (under(f[2], one) || under(f[2], two))
			}
		}
		// A relative rule cannot be in helper.toml: conf refuses it.
		if slices.ContainsFunc([]string{one, two}, func(r string) bool { return !strings.HasPrefix(r, "/") && r != "" }) {
			return
		}
		if got := MatchCgroups(text, []string{one, two}); got != (want && some) {
			t.Errorf("%q, %q, %q: %v", text, one, two, got)
		}
	})
}
