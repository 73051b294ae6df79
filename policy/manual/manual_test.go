package manual

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/cli"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// text returns the pages without troff's escapes and fonts, with the names of an installation with default paths.
func text(t *testing.T) map[string]string {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	pages, err := Pages("../..")
	if err != nil {
		t.Fatal(err)
	}
	plain := map[string]string{}
	for name, page := range pages {
		s := regexp.MustCompile(`\\f[A-Z]`).ReplaceAllString(string(page), "")
		plain[name] = fill.Replace(strings.ReplaceAll(s, `\`, ""))
	}
	return plain
}

var fill = strings.NewReplacer("@PREFIX@", "/usr/local", "@SYSCONFDIR@", "/etc", "@LOCALSTATEDIR@", "/var", "@RUNDIR@", "/run", "@BINDGATE_USER@", conf.User(), "@BINDGATE_GROUP@", conf.User())

func TestEveryCommandHasAPageWithItsFlags(t *testing.T) {
	pages := text(t)
	flags := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		page := pages[name]
		if page == "" {
			t.Errorf("%s has no page", c.CommandPath())
		}
		if !strings.Contains(page, c.Short) {
			t.Errorf("%s does not say %q", name, c.Short)
		}
		check := func(f *pflag.Flag) {
			if flags++; !f.Hidden && !regexp.MustCompile(`(?m)^(-., )?--`+f.Name+`(\[|=)`).MatchString(page) {
				t.Errorf("%s lacks --%s", name, f.Name)
			}
		}
		c.NonInheritedFlags().VisitAll(check)
		c.InheritedFlags().VisitAll(check)
		for _, sub := range c.Commands() {
			if !sub.Hidden && !strings.HasPrefix(sub.Short, "Help about any command") {
				walk(sub)
			}
		}
	}
	for _, c := range cli.Commands() {
		walk(c)
	}
	if flags < 100 {
		t.Errorf("only %d flags were looked at", flags)
	}
}

func TestEveryCodeIsThere(t *testing.T) {
	page := text(t)["bindgate.1"]
	file, err := parser.ParseFile(token.NewFileSet(), "../../wire/code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, _ := n.(*ast.ValueSpec)
		if spec == nil {
			return true
		}
		if kind, _ := spec.Type.(*ast.Ident); kind == nil || kind.Name != "Code" {
			return true
		}
		for _, value := range spec.Values {
			code, _ := strconv.Unquote(value.(*ast.BasicLit).Value)
			codes++
			if want := strconv.Itoa(wire.Code(code).Exit()) + ", " + code + "\n"; !strings.Contains(page, want) {
				t.Errorf("bindgate(1) lacks %q", want)
			}
		}
		return true
	})
	if codes < 20 {
		t.Errorf("only %d codes were found", codes)
	}
}

func TestEveryFileIsThere(t *testing.T) {
	pages := text(t)
	for _, file := range append(conf.Own(), conf.HelperPath(), conf.HelperTOML(), conf.PolicyTOML(), conf.LedgerDir(), conf.HelperSocket(), conf.JournalDir(), conf.VolumesDir(), conf.AuditFile()) {
		if !strings.Contains(pages["bindgate.1"], file) {
			t.Errorf("bindgate(1) lacks %s", file)
		}
	}
	for _, file := range []string{conf.HelperTOML(), conf.LedgerDir(), conf.HelperSocket(), conf.VolumesDir(), conf.AuditFile()} {
		if !strings.Contains(pages["bindgate-helper.8"], file) {
			t.Errorf("bindgate-helper(8) lacks %s", file)
		}
	}
}

// keys returns the keys of a configuration, as the pages name them.
func keys(t reflect.Type, prefix string) (all []string) {
	for i := range t.NumField() {
		key, kind := prefix+t.Field(i).Tag.Get("toml"), t.Field(i).Type
		switch {
		case strings.HasSuffix(key, "-"): // not of the file
		case kind.Kind() == reflect.Struct:
			all = append(all, keys(kind, key+".")...)
		case kind.Kind() == reflect.Slice && kind.Elem().Kind() == reflect.Struct:
			all = append(all, keys(kind.Elem(), key+".")...)
		case kind.Kind() == reflect.Map && kind.Elem().Kind() == reflect.Struct:
			all = append(all, keys(kind.Elem(), key+".NAME.")...)
		default:
			all = append(all, key)
		}
	}
	return all
}

func TestEveryKeyIsThereWithItsDefault(t *testing.T) {
	for _, c := range []struct {
		page     string
		defaults any
		parse    func([]byte) (any, error)
	}{
		{"helper.toml.5", conf.DefaultHelper(), func(b []byte) (any, error) { return conf.ParseHelper(b) }},
		{"policy.toml.5", config.DefaultPolicy(), func(b []byte) (any, error) { return config.ParsePolicy(b) }},
	} {
		source, err := os.ReadFile("../../docs/man/" + c.page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		// A definition is a line of keys, then ": " and what it says.
		var have []string
		toml := ""
		for _, m := range regexp.MustCompile("(?m)^(`[^\n]*`)\n: ((?:.+\n)+)").FindAllStringSubmatch(fill.Replace(string(source)), -1) {
			for _, key := range strings.Split(strings.Trim(m[1], "`"), "`, `") {
				have = append(have, key)
				value := regexp.MustCompile("Default:\\s`([^`]*)`").FindStringSubmatch(m[2])
				if table, _, _ := strings.Cut(key, "."); value != nil && !slices.Contains([]string{"source", "driver", "rule"}, table) {
					toml += key + " = " + value[1] + "\n"
				}
			}
		}
		slices.Sort(have)
		want := keys(reflect.TypeOf(c.defaults).Elem(), "")
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%s has the keys\n%q\nwant\n%q", c.page, have, want)
		}
		// The defaults that it tells are those of a file in which each is written down, and without them all that has one is missing.
		got, err := c.parse([]byte(toml))
		if err != nil || !reflect.DeepEqual(got, c.defaults) {
			t.Errorf("%s tells the defaults\n%s(%v)\nwhich are\n%+v", c.page, toml, err, c.defaults)
		}
		for _, key := range want {
			if v := lookup(reflect.ValueOf(c.defaults).Elem(), key); v.IsValid() && !v.IsZero() && !strings.Contains(toml, key+" = ") {
				t.Errorf("%s does not tell the default of %s, %v", c.page, key, v)
			}
		}
	}
}

// lookup returns the value of a key, none for what lies in arrays and maps.
func lookup(v reflect.Value, key string) reflect.Value {
	first, rest, more := strings.Cut(key, ".")
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("toml") != first {
			continue
		}
		if more && v.Field(i).Kind() == reflect.Struct {
			return lookup(v.Field(i), rest)
		}
		if !more {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

func TestSecurityPageIsAllOfSecurityMD(t *testing.T) {
	page := text(t)["bindgate-security.7"]
	source, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	words := regexp.MustCompile(`[A-Za-z0-9_]+`)
	said := map[string]int{}
	for _, w := range words.FindAllString(page, -1) {
		said[strings.ToLower(w)]++
	}
	links := regexp.MustCompile(`\]\([^)]*\)`)
	_, text, _ := strings.Cut(strings.Replace(string(source), "With the default paths, as root", "As root", 1), "\n")
	for _, w := range words.FindAllString(links.ReplaceAllString(text, ""), -1) {
		if said[strings.ToLower(w)]--; said[strings.ToLower(w)] == -1 {
			t.Errorf("bindgate-security(7) lacks the word %q of SECURITY.md", w)
		}
	}
	if regexp.MustCompile(`(?m)^ *\|`).MatchString(page) { // a pipe of a command is none
		t.Error("bindgate-security(7) has a table in it")
	}
}
