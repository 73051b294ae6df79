package spec

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

// checkVolume checks what everyone behind this package relies on.
func checkVolume(t *testing.T, v Volume) {
	t.Helper()
	if wire.CheckID("driver", v.Driver) != nil || v.Name == "" || v.Field == "" || v.Mode != wire.ModeRO && v.Mode != wire.ModeRW {
		t.Errorf("%+v", v)
	}
	texts := []string{v.Name, v.ContainerPath, v.Subpath, v.Field}
	for k, o := range v.Options {
		if k == "" {
			t.Errorf("an option without a key: %+v", v)
		}
		texts = append(texts, k, o)
	}
	for _, s := range texts {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) {
			t.Errorf("not printable: %q", s)
		}
	}
	p, err := wire.ParsePath(v.ContainerPath)
	switch v.Scope {
	case ScopeHost:
		if v.ContainerPath != "" {
			t.Errorf("%+v", v)
		}
	case ScopeContainer:
		if err != nil || len(p.Components) == 0 {
			t.Errorf("%+v: %v", v, err)
		}
	default:
		t.Errorf("scope of %+v", v)
	}
	if v.Subpath != "" {
		if p, err := wire.ParsePath(v.Subpath); err != nil || p.Absolute || len(p.Components) == 0 {
			t.Errorf("%+v: %v", v, err)
		}
	}
}

// FuzzParse: whatever the input and the format, a job that keeps the promises or one printable line.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(vectors, "*-*.*"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no vectors: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("", data)
		f.Add(strings.Split(strings.TrimPrefix(filepath.Base(file), "bad-"), "-")[0], data)
	}
	f.Fuzz(func(t *testing.T, format string, data []byte) {
		d := Defaults{Driver: "local"}
		j, err := Parse(format, data, d)
		if err != nil {
			checkError(t, err)
			return
		}
		for _, v := range j.Volumes {
			checkVolume(t, v)
		}
		for k, v := range j.Labels {
			if checkText(k, v, maxText) != nil {
				t.Errorf("label %s=%q", k, v)
			}
		}
		for _, w := range j.Warnings {
			if checkText("warning", w, 400) != nil {
				t.Errorf("warning %q", w)
			}
		}
		if err := j.Validate(); err != nil {
			t.Errorf("what Parse returned is not valid: %v", err)
		}
		if again, err := Parse(j.Format, data, d); err != nil || !reflect.DeepEqual(again, j) {
			t.Errorf("%+v the second time, and %v", again, err)
		}
	})
}

// FuzzParseMountFlag: besides, what was read can be written down and read again.
func FuzzParseMountFlag(f *testing.F) {
	for _, s := range []string{"", "name=v,target=/data", "driver=d,name=n,target=/t,readonly,noexec,idmap,subpath=a/b,opt=k=v,opt=k=w", `name=v,"opt=o=a,b",target=/d`,
		`"`, "name=v\n,target=/d", "name=,target=", "opt==", "target=/../x,name=v", "name=v,target=/d,subpath=/x", "name=v,target=/d,readonly=1", "name=\xff,target=/d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseMountFlag(s, Defaults{Driver: "local"})
		if err != nil {
			checkError(t, err)
			return
		}
		checkVolume(t, v)
		fields := []string{"driver=" + v.Driver, "name=" + v.Name, "target=" + v.ContainerPath}
		if v.Mode == wire.ModeRO {
			fields = append(fields, "readonly")
		}
		if v.NoExec {
			fields = append(fields, "noexec")
		}
		if v.IDMap {
			fields = append(fields, "idmap")
		}
		if v.Subpath != "" {
			fields = append(fields, "subpath="+v.Subpath)
		}
		for k, o := range v.Options {
			fields = append(fields, "opt="+k+"="+o)
		}
		for i, f := range fields {
			fields[i] = `"` + strings.ReplaceAll(f, `"`, `""`) + `"`
		}
		again, err := ParseMountFlag(strings.Join(fields, ","), Defaults{})
		if v.Field, again.Field = "", ""; err != nil || !reflect.DeepEqual(again, v) {
			t.Errorf("%q: %+v, %+v, %v", s, v, again, err)
		}
	})
}

// FuzzParseVolumeFlag: besides, the parts are found in what was given.
func FuzzParseVolumeFlag(f *testing.F) {
	for _, s := range []string{"", "v:/data", "v:/data:ro,noexec,idmap,subpath=a/b", "a:b:/c", "v:/", ":", "::", "v:/a,b", "/a:/b", "~:/b", "v:/a/../b", "v:/a\x00", "v:/d,subpath=..", "v:/d,noexec,noexec"} {
		f.Add(s, "local")
		f.Add(s, "../x")
	}
	f.Fuzz(func(t *testing.T, s, driver string) {
		v, err := ParseVolumeFlag(s, driver)
		if err != nil {
			checkError(t, err)
			return
		}
		checkVolume(t, v)
		if v.Driver != driver || v.Scope != ScopeContainer || !strings.HasPrefix(s, v.Name+":"+v.ContainerPath) || strings.ContainsAny(v.Name, ":,/~") && v.Name[0] == '/' {
			t.Errorf("%q: %+v", s, v)
		}
	})
}

// FuzzFromOCI: besides, no volume comes from the environment unless that is asked for, and what comes from there has a container path.
func FuzzFromOCI(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join(vectors, "*oci-*.json"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "", "", false)
		f.Add(data, "io.bindgate.volume.7", "driver=d,name=n,target=/t", true)
	}
	f.Add([]byte(`{"ociVersion":"1.2.0","process":{"env":["DVDI_VOLUME_NAME=v","DVDI_VOLUME_CONTAINERPATH=/v"]}}`), "", "", true)
	f.Add([]byte(`{"ociVersion":"1.2.0","process":{"env":["DVDI_VOLUME_NAME=v"]}}`), "", "", true)
	f.Fuzz(func(t *testing.T, config []byte, key, value string, env bool) {
		annotations := map[string]string{}
		if key != "" {
			annotations[key] = value
		}
		j, err := FromOCI(config, annotations, env)
		if err != nil {
			checkError(t, err)
			return
		}
		for _, v := range j.Volumes {
			checkVolume(t, v)
			if v.Scope != ScopeContainer || !env && !strings.HasPrefix(v.Field, "annotations") {
				t.Errorf("%+v", v)
			}
		}
		if err := j.Validate(); err != nil {
			t.Errorf("what FromOCI returned is not valid: %v", err)
		}
	})
}
