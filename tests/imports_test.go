package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/bindgate/bindgate"

// core are the packages that run with privilege, and their lines are counted: someone shall be able to read them in an afternoon.
var core = []string{"helper", "helper/inherited", "privops", "namespace", "state", "conf", "wire"}

const coreLines = 3000

// mayImport is DESIGN's table of the rooms: which of our own packages each room may import. A room that is not here may import none.
var mayImport = map[string][]string{
	"helper":    {"helper", "privops", "namespace", "state", "conf", "wire"},
	"privops":   {"namespace", "wire"},
	"namespace": {"wire"},
	"state":     {"wire"},
	"conf":      {"wire"},
	"wire":      {},
	"policy":    {"policy", "state", "conf", "wire", "docs"},
	"docs":      {},
	"cmd":       {"policy"},
}

// helperLinks is all that the privileged program may be built from, besides the standard library and our own core.
var helperLinks = []string{"golang.org/x/sys/unix", "github.com/syndtr/gocapability/capability", "github.com/BurntSushi/toml", "github.com/google/renameio/v2"}

// coreAvoids are parts of the standard library that our own core has no use for: what it does not import cannot be made to run with privilege.
var coreAvoids = []string{"net", "net/http", "os/exec", "encoding/json", "encoding/gob", "encoding/xml", "text/template", "html/template", "plugin", "C"}

type pkg struct {
	ImportPath  string
	Dir         string
	Standard    bool
	GoFiles     []string
	Imports     []string
	TestImports []string
}

func list(t *testing.T, args ...string) (all []pkg) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Standard,GoFiles,Imports,TestImports"}, args...)...)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	d := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// room returns the first folder of one of our own packages; "" for others.
func room(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	for _, p := range list(t, module+"/...") {
		from := room(p.ImportPath)
		if from == "tests" || from == "bench" {
			continue
		}
		for _, i := range p.Imports {
			if to := room(i); to != "" && !slices.Contains(mayImport[from], to) {
				t.Errorf("%s imports %s: %s may import %v", p.ImportPath, i, from, mayImport[from])
			}
		}
		for _, i := range p.TestImports {
			if from == "policy" && slices.Contains([]string{"helper", "privops", "namespace"}, room(i)) {
				t.Errorf("the tests of %s import %s", p.ImportPath, i)
			}
		}
	}
}

// A Go agent that uses the library gets no command line with it, none of what a process does to itself, and no path that was compiled in but the defaults of a
// Policy, which it can set.
func TestLibraryLeavesItsProcessAlone(t *testing.T) {
	for _, p := range list(t, "-deps", module+"/policy/lifecycle") {
		if room(p.ImportPath) == "policy" && slices.Contains(p.Imports, module+"/conf") && p.ImportPath != module+"/policy/config" {
			t.Errorf("%s imports conf", p.ImportPath)
		}
		for _, not := range []string{module + "/policy/cli", module + "/policy/early", "github.com/spf13/", "github.com/landlock-lsm/", "kernel.org/", "os/signal", "flag"} {
			if strings.HasPrefix(p.ImportPath, not) {
				t.Errorf("the library links %s", p.ImportPath)
			}
		}
	}
}

func TestHelperLinksFourModules(t *testing.T) {
	for _, p := range list(t, "-deps", module+"/helper") {
		internal := slices.ContainsFunc(helperLinks, func(l string) bool { return strings.HasPrefix(p.ImportPath, l+"/internal") })
		if !p.Standard && room(p.ImportPath) == "" && !slices.Contains(helperLinks, p.ImportPath) && !internal {
			t.Errorf("bindgate-helper links %s", p.ImportPath)
		}
	}
}

func TestCoreAvoidsWhatItHasNoUseFor(t *testing.T) {
	for _, p := range list(t, "-deps", module+"/helper") {
		for _, i := range p.Imports {
			if room(p.ImportPath) != "" && slices.Contains(coreAvoids, i) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
}

func TestCoreIsSmall(t *testing.T) {
	total, code := 0, 0 // every line; those that are neither blank nor a comment alone
	for _, name := range core {
		files, err := filepath.Glob("../" + name + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatal(name, err)
		}
		for _, f := range files {
			if !strings.HasSuffix(f, "_test.go") {
				c, all := lines(t, f)
				total, code = total+all, code+c
			}
		}
	}
	if total >= coreLines {
		t.Errorf("the privileged core has %d lines, want under %d", total, coreLines)
	}
	t.Logf("%d lines, %d of them code", total, code)
}

// lines counts a file's lines of code, which are neither blank nor a comment alone, and all its lines. The core has no block comments, which would hide code from this.
func lines(t *testing.T, file string) (code, all int) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("/*")) {
		t.Errorf("%s has a block comment", file)
	}
	for line := range strings.Lines(string(data)) {
		all++
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
			code++
		}
	}
	return code, all
}
