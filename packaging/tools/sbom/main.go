// Command sbom tells what binaries were built from: sbom OUT BINARY... writes for each a bill of materials, OUT/BINARY.cdx.json in CycloneDX's form, and for all together OUT/licences.txt, a list with the full texts.
// What it says comes from the binaries themselves (go version -m), but for the licences, which it finds in the module cache. It is run in the root of the source tree. A module without a known licence is an error.
package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	classifier "github.com/google/licenseclassifier/v2"
	"github.com/google/licenseclassifier/v2/assets"
)

// A licence is that of one module.
type licence struct {
	path, version, id string
	text              []byte
}

// choices are the modules that leave one the choice between several licences.
var choices = map[string]string{"kernel.org/pub/linux/libs/security/libcap/psx": "BSD-3-Clause OR GPL-2.0-only"}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: sbom OUT BINARY")
	}
	out, binaries := args[0], args[1:]
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	known, err := assets.DefaultClassifier()
	if err != nil {
		return err
	}
	all := map[string]*licence{}
	for _, binary := range binaries {
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			return err
		}
		b, err := bom(binary, info, time.Unix(epoch, 0).UTC())
		if err != nil {
			return err
		}
		for i := range *b.Components {
			c := &(*b.Components)[i]
			l := all[c.Name]
			if l == nil {
				if l, err = find(known, c.Name, c.Version); err != nil {
					return err
				}
				all[c.Name] = l
			}
			c.Licenses = &cdx.Licenses{{License: &cdx.License{ID: l.id}}}
			if choices[c.Name] != "" {
				c.Licenses = &cdx.Licenses{{Expression: l.id}}
			}
		}
		var text bytes.Buffer
		if err := cdx.NewBOMEncoder(&text, cdx.BOMFileFormatJSON).SetPretty(true).Encode(b); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, filepath.Base(binary)+".cdx.json"), text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(out, "licences.txt"), list(all), 0o644)
}

// bom is one binary's bill, without licences.
func bom(binary string, info *debug.BuildInfo, made time.Time) (*cdx.BOM, error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	main := module(info.Main.Path, "")
	main.Type, main.Name = cdx.ComponentTypeApplication, filepath.Base(binary)
	main.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}}
	main.Licenses = &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}}
	var properties []cdx.Property
	for _, s := range info.Settings {
		properties = append(properties, cdx.Property{Name: "go:build:" + s.Key, Value: s.Value})
	}
	main.Properties = &properties
	components := []cdx.Component{module("std", info.GoVersion)}
	refs := []string{components[0].BOMRef}
	for _, d := range info.Deps {
		d = cmp.Or(d.Replace, d)
		c := module(d.Path, d.Version)
		if h1, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(d.Sum, "h1:")); err == nil && len(h1) == sha256.Size {
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(h1)}}
		}
		components = append(components, c)
		refs = append(refs, c.BOMRef)
	}
	b := cdx.NewBOM()
	b.Metadata = &cdx.Metadata{Timestamp: made.Format(time.RFC3339), Component: &main}
	b.Components = &components
	b.Dependencies = &[]cdx.Dependency{{Ref: main.BOMRef, Dependencies: &refs}}
	return b, nil
}

func module(path, version string) cdx.Component {
	purl := "pkg:golang/" + path
	if version != "" {
		purl += "@" + version
	}
	return cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl}
}

// find reads a module's licence, or that of Go itself.
func find(known *classifier.Classifier, path, version string) (*licence, error) {
	query := []string{"list", "-m", "-f", "{{.Dir}}", path}
	if path == "std" {
		query = []string{"env", "GOROOT"}
	}
	dir, err := exec.Command("go", query...).Output()
	if err != nil {
		return nil, fmt.Errorf("cannot find the module %s: %w", path, err)
	}
	var files []string
	for _, name := range []string{"LICENSE*", "LICENCE*", "License*", "COPYING*"} {
		found, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), name))
		files = append(files, found...)
	}
	if path == "std" && len(files) == 0 { // Debian's Go has it elsewhere
		files = []string{filepath.Join(strings.TrimSpace(string(dir)), "LICENSE")}
	}
	l := &licence{path: path, version: version}
	ids := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		l.text = append(append(l.text, bytes.TrimSpace(text)...), '\n')
		for _, m := range known.Match(text).Matches {
			if m.MatchType == "License" && m.Confidence > 0.9 {
				ids[m.Name] = true
			}
		}
	}
	if l.id = choices[path]; l.id != "" {
		return l, nil
	}
	if len(ids) != 1 {
		return nil, fmt.Errorf("cannot tell the licence of %s by %v: %v", path, files, slices.Sorted(maps.Keys(ids)))
	}
	l.id = slices.Collect(maps.Keys(ids))[0]
	return l, nil
}

// list is all modules with their licences, and then each licence's text once for those that have the same.
func list(all map[string]*licence) []byte {
	var out bytes.Buffer
	texts := map[string][]string{}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		l := all[path]
		fmt.Fprintf(&out, "%s %s: %s\n", l.path, l.version, l.id)
		texts[string(l.text)] = append(texts[string(l.text)], path)
	}
	for _, text := range slices.SortedFunc(maps.Keys(texts), func(a, b string) int { return cmp.Compare(texts[a][0], texts[b][0]) }) {
		fmt.Fprintf(&out, "\n\n%s\n\n%s", strings.Join(texts[text], ", "), text)
	}
	return out.Bytes()
}
