package tests

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the list of docs/audit.md anew")

const auditDoc = "../docs/audit.md"

// functions calls each with the functions of a source file.
func functions(t *testing.T, path string, each func(*ast.FuncDecl)) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Error(err)
		return
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			each(f)
		}
	}
}

// What docs/audit.md sends the reader to is there, and every file of the core is in its order.
func TestAuditNamesWhatThereIs(t *testing.T) {
	doc, err := os.ReadFile(auditDoc)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{} // tests
	var all []string
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "../*/*_test.go"} {
		files, _ := filepath.Glob(pattern)
		all = append(all, files...)
	}
	for _, file := range all {
		functions(t, file, func(f *ast.FuncDecl) { have[f.Name.Name] = true })
	}
	tests := regexp.MustCompile("`(Test[A-Za-z0-9_]+)`").FindAllStringSubmatch(string(doc), -1)
	if len(tests) < 20 {
		t.Errorf("only %d tests are named", len(tests))
	}
	for _, m := range tests {
		if !have[m[1]] {
			t.Errorf("there is no test %s", m[1])
		}
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z]+(?:/[a-z_]+)+\\.(?:go|list))(?::([A-Za-z]+))?`").FindAllStringSubmatch(string(doc), -1) {
		named[m[1]] = true
		found := m[2] == ""
		if !found {
			functions(t, "../"+m[1], func(f *ast.FuncDecl) { found = found || f.Name.Name == m[2] })
		}
		if _, err := os.Stat("../" + m[1]); err != nil || !found {
			t.Errorf("%s: %v, found %v", m[0], err, found)
		}
	}
	for _, room := range core {
		files, _ := filepath.Glob("../" + room + "/*.go")
		for _, f := range files {
			f = strings.TrimPrefix(f, "../")
			if !strings.HasSuffix(f, "_test.go") && !strings.Contains(f, "seccomp_") && !named[f] {
				t.Errorf("docs/audit.md does not tell when to read %s", f)
			}
		}
	}
}

// The list of privileged calls by function is that of the code.
func TestAuditCalls(t *testing.T) {
	calls := map[string]map[string]bool{}
	for _, room := range core {
		files, _ := filepath.Glob("../" + room + "/*.go")
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			functions(t, path, func(f *ast.FuncDecl) {
				ast.Inspect(f, func(n ast.Node) bool {
					s, ok := n.(*ast.SelectorExpr)
					if !ok {
						return true
					}
					if x, ok := s.X.(*ast.Ident); !ok || x.Name != "unix" && x.Name != "syscall" {
						return true
					}
					name, is := privileged[s.Sel.Name]
					if number, ok := strings.CutPrefix(s.Sel.Name, "SYS_"); ok {
						name = strings.ToLower(number)
						is = slices.Contains(privilegedByNumber, name)
					}
					if is {
						if calls[name] == nil {
							calls[name] = map[string]bool{}
						}
						calls[name][strings.TrimPrefix(path, "../")+":"+f.Name.Name] = true
					}
					return true
				})
			})
		}
	}
	var table strings.Builder
	table.WriteString("| system call | made in |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		fmt.Fprintf(&table, "| `%s` | `%s` |\n", name, strings.Join(slices.Sorted(maps.Keys(calls[name])), "`, `"))
	}
	if len(calls) < 25 {
		t.Fatalf("only %d calls were found", len(calls))
	}
	doc, err := os.ReadFile(auditDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), "<!-- calls -->\n")
	old, after, ok2 := strings.Cut(rest, "<!-- end of calls -->\n")
	if !ok || !ok2 {
		t.Fatal("docs/audit.md has no place for the list")
	}
	if *update {
		if err := os.WriteFile(auditDoc, []byte(before+"<!-- calls -->\n"+table.String()+"<!-- end of calls -->\n"+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if old != table.String() {
		t.Errorf("docs/audit.md has\n%s\nthe code\n%s\nrun: go test ./tests -run TestAuditCalls -update", old, table.String())
	}
}
