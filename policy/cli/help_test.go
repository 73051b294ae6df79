package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/docs"
	"github.com/bindgate/bindgate/wire"
)

// codes are those that wire/code.go declares.
func codes(t *testing.T) (list []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../wire/code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if kind, ok := v.Type.(*ast.Ident); ok && kind.Name == "Code" {
				for _, value := range v.Values {
					code, _ := strconv.Unquote(value.(*ast.BasicLit).Value)
					list = append(list, code)
				}
			}
		}
		return true
	})
	return list
}

// Whoever is woken by a code has the binary, and nobody to ask.
func TestEveryCodeHasAnEntry(t *testing.T) {
	want := codes(t)
	if got := docs.Codes(); len(want) < 20 || !slices.Equal(got, want) {
		t.Errorf("docs/troubleshooting.md has\n%v\nwire/code.go\n%v", got, want)
	}
	s := newShell(t)
	list := s.run("help", "codes")
	for _, code := range want {
		r := s.run("help", code)
		for _, part := range []string{code + " (exit status " + strconv.Itoa(wire.Code(code).Exit()) + ")", "\nIt means: ", "\nLook at ", "\nDo: "} {
			if r.status != 0 || !strings.Contains(r.out, part) {
				t.Errorf("help %s: %q is not in %+v", code, part, r)
			}
		}
		if strings.Contains(r.out, "```") || strings.Contains(r.out, "**") || strings.Contains(r.out, "\n## ") {
			t.Errorf("help %s: %s", code, r.out)
		}
		if !strings.Contains(list.out, " "+code+" ") {
			t.Errorf("help codes lacks %s", code)
		}
	}
	for _, args := range [][]string{{"help"}, {"help", "prepare"}, {"help", "volume", "create"}} {
		if r := s.run(args...); r.status != 0 || !strings.Contains(r.out, "Usage:") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	s.fails(wire.Usage, "help", "nothing")
}

func TestErrorsLeadToTheirEntry(t *testing.T) {
	s := newShell(t)
	s.driver.fail = wire.Errorf(wire.DriverError, "list", "no")
	if r := s.run("volume", "ls", "--driver", "fake", "-o", "table"); !strings.Contains(r.err, "\nhint: bindgate help "+string(wire.DriverError)+"\n") {
		t.Errorf("%+v", r)
	}
	if r := s.run("nonsense"); strings.Contains(r.err, "bindgate help usage") {
		t.Errorf("%+v", r)
	}
}
