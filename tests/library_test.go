package tests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// What the package comment of policy/lifecycle promises to a Go agent: it changes no uid, ends no process, writes to nobody's stdout or stderr, and knows no path
// of an installation but by Options. That goes for all of ours that it is made of.
func TestLibraryIsNoCommand(t *testing.T) {
	avoids := regexp.MustCompile(`\b(syscall|unix)\.Set(re|res|fs)?(uid|gid|groups)\b|\bos\.(Exit|Stdin|Stdout|Stderr|Args|Setenv)\b|\bconfig\.(DefaultPolicy|LoadPolicy)\b`)
	seen := 0
	for _, p := range list(t, "-deps", "../policy/lifecycle") {
		if room(p.ImportPath) == "" || p.ImportPath == module+"/conf" { // how files of configuration are read
			continue
		}
		seen++
		if p.ImportPath != module+"/policy/config" && slices.Contains(p.Imports, module+"/conf") { // its paths are compiled in
			t.Errorf("%s imports conf", p.ImportPath)
		}
		for _, f := range p.GoFiles {
			data, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range avoids.FindAll(data, -1) {
				t.Errorf("%s of %s has %s", f, p.ImportPath, found)
			}
		}
	}
	if seen < 6 {
		t.Errorf("%d packages of ours", seen)
	}
}
