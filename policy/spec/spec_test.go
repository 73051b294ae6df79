package spec

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/wire"
)

// wantError checks an error and that its message holds the text.
func wantError(t *testing.T, err error, holds string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", holds)
		return
	}
	if e := checkError(t, err); !strings.Contains(e.Message, holds) {
		t.Errorf("error %q does not hold %q", e.Message, holds)
	}
}

func TestParseVolumeFlag(t *testing.T) {
	for s, want := range map[string]Volume{
		"v:/data":                             {Name: "v", ContainerPath: "/data", Mode: "rw"},
		"v:/data:ro":                          {Name: "v", ContainerPath: "/data", Mode: "ro"},
		"v:/data:rw":                          {Name: "v", ContainerPath: "/data", Mode: "rw"},
		"v:data":                              {Name: "v", ContainerPath: "data", Mode: "rw"},
		"v:/data,noexec":                      {Name: "v", ContainerPath: "/data", Mode: "rw", NoExec: true},
		"v:/data:ro,idmap,noexec,subpath=a/b": {Name: "v", ContainerPath: "/data", Mode: "ro", NoExec: true, IDMap: true, Subpath: "a/b"},
		"v:/data,subpath=a=b":                 {Name: "v", ContainerPath: "/data", Mode: "rw", Subpath: "a=b"},
		"a/b c$(id):/d e":                     {Name: "a/b c$(id)", ContainerPath: "/d e", Mode: "rw"},
		".hidden:/data":                       {Name: ".hidden", ContainerPath: "/data", Mode: "rw"},
		"ro:/data":                            {Name: "ro", ContainerPath: "/data", Mode: "rw"},
	} {
		want.Driver, want.Scope, want.Field = "rexray", ScopeContainer, fmt.Sprintf("-v %q", s)
		if v, err := ParseVolumeFlag(s, "rexray"); err != nil || !reflect.DeepEqual(v, want) {
			t.Errorf("%s: %+v, %v", s, v, err)
		}
	}
}

func TestParseVolumeFlagRefuses(t *testing.T) {
	for s, holds := range map[string]string{
		"":                                   "it is not NAME:CONTAINER_PATH",
		"v":                                  "it is not NAME:CONTAINER_PATH",
		"/data":                              "it is not NAME:CONTAINER_PATH",
		":/data":                             "it is not NAME:CONTAINER_PATH",
		"v:":                                 "it is not NAME:CONTAINER_PATH",
		"v::ro":                              "it is not NAME:CONTAINER_PATH",
		"v:/data:ro:rw":                      "it is not NAME:CONTAINER_PATH",
		"a:b:/data":                          `"/data" is not one of ro, rw`,
		"v:/data:RO":                         `"RO" is not one of ro, rw`,
		"v:/data:":                           `"" is not one of ro, rw`,
		"v:/data:noexec":                     `"noexec" is not one of ro, rw`,
		"v:/data,ro":                         `no field "ro"`,
		"v:/data,":                           `no field ""`,
		"v:/data,b":                          `no field "b"`,
		"v:/data,opt=a=b":                    `no field "opt=a=b"`,
		"v:/data,NOEXEC":                     `no field "NOEXEC"`,
		"v:/data,noexec,noexec":              "noexec is there twice",
		"v:/data,noexec=true":                "noexec takes no value",
		"v:/data,idmap=":                     "idmap takes no value",
		"v:/data,subpath":                    "subpath= is empty",
		"v:/data,subpath=":                   "subpath= is empty",
		"v:/data,subpath=/etc":               "not relative",
		"v:/data,subpath=..":                 `".." is not allowed`,
		"v:/data,subpath=a/../../b":          `".." is not allowed`,
		"v:/data,subpath=.":                  "not relative, below",
		"v:/data,subpath=a,subpath=b":        "subpath is there twice",
		"/srv/data:/data":                    "a path of the host",
		"./data:/data":                       "a path of the host",
		"../data:/data":                      "a path of the host",
		"~/data:/data":                       "a path of the host",
		"v:/":                                "the container's root itself",
		"v:///.//":                           "the container's root itself",
		"v:./":                               "the sandbox directory itself",
		"v:..":                               `".." is not allowed`,
		"v:/a/../../b":                       `".." is not allowed`,
		"v:/a\x00b":                          "control character",
		"v\n:/a":                             "control character",
		"v:/a\x1b[2J":                        "control character",
		"v:/a\u0085":                         "control character",
		"v\xff:/a":                           "not valid UTF-8",
		"v:/" + strings.Repeat("a", 256):     "a component is over 255 bytes",
		"v:/" + strings.Repeat("a/", 2048):   "over 4095 bytes",
		strings.Repeat("v", 1025) + ":/data": "over 1024 bytes",
		"v:/data,subpath=a\tb":               "control character",
		"v:/data,subpath=" + strings.Repeat("b", 256): "a component is over 255 bytes",
	} {
		_, err := ParseVolumeFlag(s, "rexray")
		wantError(t, err, holds)
	}
	_, err := ParseVolumeFlag("v:/data", "")
	wantError(t, err, "no driver is named")
	_, err = ParseVolumeFlag("v:/data", "../x")
	wantError(t, err, `"../x" is no driver's name`)
}

func TestParseMountFlag(t *testing.T) {
	for s, want := range map[string]Volume{
		"name=v,target=/data":                               {Driver: "local", Name: "v", ContainerPath: "/data", Mode: "rw"},
		"target=data,name=v,driver=rexray":                  {Driver: "rexray", Name: "v", ContainerPath: "data", Mode: "rw"},
		"driver=d,name=a:b/c,target=/a:b,readonly":          {Driver: "d", Name: "a:b/c", ContainerPath: "/a:b", Mode: "ro"},
		"name=n=m,target=/a=b,noexec,idmap,subpath=s=t":     {Driver: "local", Name: "n=m", ContainerPath: "/a=b", Mode: "rw", NoExec: true, IDMap: true, Subpath: "s=t"},
		"name=v,target=/d,opt=a=b=c,opt=e=,opt=x=1,opt=x=2": {Driver: "local", Name: "v", ContainerPath: "/d", Mode: "rw", Options: map[string]string{"a": "b=c", "e": "", "x": "2"}},
		`name=v,"opt=o=addr=10.0.0.1,rw","target=/a,""b"""`: {Driver: "local", Name: "v", ContainerPath: `/a,"b"`, Mode: "rw", Options: map[string]string{"o": "addr=10.0.0.1,rw"}},
	} {
		want.Scope, want.Field = ScopeContainer, "--mount "+quote(s)
		if v, err := ParseMountFlag(s, Defaults{Driver: "local"}); err != nil || !reflect.DeepEqual(v, want) {
			t.Errorf("%s: %+v, %v", s, v, err)
		}
	}
}

func TestParseMountFlagRefuses(t *testing.T) {
	const ok = "name=v,target=/data"
	for s, holds := range map[string]string{
		"":                          "it is empty",
		"name=v":                    "target= is missing",
		"target=/data":              "name= is missing",
		"name=,target=/data":        "name= is empty",
		"name=v,target=":            "target= is empty",
		"name,target=/data":         "name= is empty",
		ok + ",driver=":             "driver= is empty",
		ok + ",driver=a/b":          `"a/b" is no driver's name`,
		ok + ",driver=..":           `".." is no driver's name`,
		ok + ",":                    `no field ""`,
		ok + ", noexec":             `no field " noexec"`,
		ok + ",ro":                  `no field "ro"`,
		ok + ",rw":                  `no field "rw"`,
		ok + ",source=x":            `no field "source=x"`,
		ok + ",volume-opt=a=b":      `no field "volume-opt=a=b"`,
		ok + ",type=volume":         `no field "type=volume"`,
		ok + ",Name=w":              `no field "Name=w"`,
		ok + ",name=w":              "name is there twice",
		ok + ",target=/x":           "target is there twice",
		ok + ",readonly,readonly":   "readonly is there twice",
		ok + ",readonly=false":      "readonly takes no value",
		ok + ",noexec=0":            "noexec takes no value",
		ok + ",opt":                 `the option "" is not KEY=VALUE`,
		ok + ",opt=":                `the option "" is not KEY=VALUE`,
		ok + ",opt=size":            `the option "size" is not KEY=VALUE`,
		ok + ",opt==5":              `the option "=5" has an empty key`,
		ok + `,opt="a=b"`:           "a double quote is not where it belongs",
		`"name=v,target=/data`:      "a double quote is not where it belongs",
		`"name=v"x,target=/data`:    "a double quote is not where it belongs",
		"name=v,target=/data\n":     "control character",
		"name=v,target=/data\nname": "control character",
		"name=v\r,target=/data":     "control character",
		ok + ",opt=a=\x07":          "control character",
		ok + ",subpath=../x":        `".." is not allowed`,
		ok + ",subpath=/x":          "not relative",
		"name=v,target=/":           "the container's root itself",
		"name=v,target=.":           "the sandbox directory itself",
		"name=v,target=a/..":        `".." is not allowed`,
		"name=v,target=/\xff":       "not valid UTF-8",
		ok + ",opt=" + strings.Repeat("k", 1025) + "=v": "over 1024 bytes",
	} {
		_, err := ParseMountFlag(s, Defaults{Driver: "local"})
		wantError(t, err, holds)
	}
	_, err := ParseMountFlag(ok, Defaults{})
	wantError(t, err, "driver= is missing")
}

func TestParseOption(t *testing.T) {
	for s, want := range map[string][2]string{
		"size=5":      {"size", "5"},
		"o=a=b,c=d":   {"o", "a=b,c=d"},
		"empty=":      {"empty", ""},
		"k==":         {"k", "="},
		" k = v ":     {" k ", " v "},
		"sh=$(id);\"": {"sh", "$(id);\""},
	} {
		if k, v, err := ParseOption("--opt", s); err != nil || k != want[0] || v != want[1] {
			t.Errorf("%s: %q, %q, %v", s, k, v, err)
		}
	}
	for s, holds := range map[string]string{
		"":                              "is not KEY=VALUE",
		"size":                          "is not KEY=VALUE",
		"=5":                            "has an empty key",
		"=":                             "has an empty key",
		"a\n=b":                         "control character",
		"a=b\nc":                        "control character",
		"a=\x7f":                        "control character",
		"a=\xfe":                        "not valid UTF-8",
		"a=\ufffd":                      "not valid UTF-8",
		strings.Repeat("k", 1025) + "=": "over 1024 bytes",
	} {
		k, v, err := ParseOption("--opt", s)
		wantError(t, err, holds)
		if k != "" || v != "" {
			t.Errorf("%q: %q, %q came with the error", s, k, v)
		}
	}
}

func volume(name, path string) Volume {
	return Volume{Driver: "d", Name: name, ContainerPath: path, Mode: wire.ModeRW, Scope: ScopeContainer}
}

func TestValidate(t *testing.T) {
	host := Volume{Driver: "d", Name: "h", Mode: wire.ModeRW, Scope: ScopeHost}
	host2 := host
	host2.Name = "h2"
	j := &Job{Volumes: []Volume{volume("a", "/a"), volume("b", "/a/b"), volume("c", "a"), host, host2}}
	if err := j.Validate(); err != nil {
		t.Error(err)
	}
	if err := (&Job{}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidateRefuses(t *testing.T) {
	change := func(f func(*Volume)) []Volume {
		v := volume("a", "/a")
		f(&v)
		return []Volume{v}
	}
	host := func(f func(*Volume)) []Volume {
		v := Volume{Driver: "d", Name: "a", Mode: wire.ModeRW, Scope: ScopeHost}
		f(&v)
		return []Volume{v}
	}
	for _, c := range []struct {
		name    string
		volumes []Volume
		code    wire.Code
		holds   string
	}{
		{"same volume", []Volume{volume("a", "/a"), volume("a", "/b")}, wire.DuplicateVolume, `volumes[1]: volume "a" of driver "d" is already at volumes[0]`},
		{"same volume, host", []Volume{volume("a", "/a"), {Driver: "d", Name: "a", Mode: "rw", Scope: ScopeHost, Field: "X"}}, wire.DuplicateVolume, "cannot use X: "},
		{"same path", []Volume{volume("a", "/a"), volume("b", "/a")}, wire.InvalidRequest, `volumes[1]: container_path "/a" is already taken by volumes[0]`},
		{"same path, cleaned", []Volume{volume("a", "a/b"), volume("b", "./a//b/")}, wire.InvalidRequest, "already taken"},
		{"no driver", change(func(v *Volume) { v.Driver = "" }), wire.InvalidRequest, "volumes[0], driver"},
		{"driver with a slash", change(func(v *Volume) { v.Driver = "a/b" }), wire.InvalidRequest, "no driver's name"},
		{"no name", change(func(v *Volume) { v.Name = "" }), wire.InvalidRequest, "volumes[0], name: it is empty"},
		{"no mode", change(func(v *Volume) { v.Mode = "" }), wire.InvalidRequest, "not one of ro, rw"},
		{"mode of Mesos", change(func(v *Volume) { v.Mode = "RW" }), wire.InvalidRequest, `"RW" is not one of ro, rw`},
		{"no scope", change(func(v *Volume) { v.Scope = "" }), wire.InvalidRequest, "its scope"},
		{"no path", change(func(v *Volume) { v.ContainerPath = "" }), wire.InvalidRequest, "container_path: it is empty"},
		{"path up", change(func(v *Volume) { v.ContainerPath = "/a/.." }), wire.InvalidRequest, `".." is not allowed`},
		{"path that holds a colon and a blank", change(func(v *Volume) { v.ContainerPath = `/a": ../..` }), wire.InvalidRequest, `".." is not allowed`},
		{"subpath up", change(func(v *Volume) { v.Subpath = "../b" }), wire.InvalidRequest, `".." is not allowed`},
		{"subpath from the root", change(func(v *Volume) { v.Subpath = "/b" }), wire.InvalidRequest, "not relative"},
		{"option without a key", change(func(v *Volume) { v.Options = map[string]string{"": "x"} }), wire.InvalidRequest, "key is empty"},
		{"option with a line end", change(func(v *Volume) { v.Options = map[string]string{"k": "a\nb"} }), wire.InvalidRequest, "control character"},
		{"host with a path", host(func(v *Volume) { v.ContainerPath = "/a" }), wire.InvalidRequest, "for the host alone"},
		{"host with a subpath", host(func(v *Volume) { v.Subpath = "a" }), wire.InvalidRequest, "for the host alone"},
		{"host with noexec", host(func(v *Volume) { v.NoExec = true }), wire.InvalidRequest, "for the host alone"},
		{"host with idmap", host(func(v *Volume) { v.IDMap = true }), wire.InvalidRequest, "for the host alone"},
		{"too many", make([]Volume, wire.MaxBlocks+1), wire.InvalidRequest, "it has 1025 volumes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := (&Job{Volumes: c.volumes}).Validate()
			wantError(t, err, c.holds)
			if err != nil && wire.AsError(err).Code != c.code {
				t.Errorf("code %s", wire.AsError(err).Code)
			}
		})
	}
}

func TestParseBounds(t *testing.T) {
	for name, c := range map[string]struct{ input, holds string }{
		"size":         {strings.Repeat(" ", MaxInput+1), "it is over 1048576 bytes"},
		"values":       {"[" + strings.Repeat("0,", maxValues) + "0]", "it holds over 65536 values"},
		"depth":        {strings.Repeat(`{"a":`, maxDepth+1) + "0" + strings.Repeat("}", maxDepth+1), "nested deeper than 64 levels"},
		"depth, great": {strings.Repeat("[", MaxInput), "the job: line 1"},
	} {
		_, err := Parse("", []byte(c.input), Defaults{})
		t.Log(err)
		wantError(t, err, c.holds)
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("%s: %d bytes of message", name, len(err.Error()))
		}
	}
	if _, err := Parse("dvdi", bytes.Repeat([]byte("A=b\n"), MaxInput/4), Defaults{}); err != nil {
		t.Error(err)
	}
	_, err := Parse("yaml", nil, Defaults{})
	wantError(t, err, `format "yaml": it is not one of mesos, dvdi, marathon, docker, oci`)
}

// An empty environment has no volumes; an empty file of no format is a mistake.
func TestParseEmpty(t *testing.T) {
	if j, err := Parse("dvdi", nil, Defaults{}); err != nil || len(j.Volumes) != 0 {
		t.Errorf("%+v, %v", j, err)
	}
	for _, format := range []string{"", "mesos", "marathon", "docker", "oci"} {
		_, err := Parse(format, nil, Defaults{})
		wantError(t, err, "the job")
	}
}

// DVDI's characters: each of the 26 is refused in a name, a driver and an option, as in the module; none is in the way of a container path there.
func TestDVDIProhibited(t *testing.T) {
	for _, c := range dvdiProhibited + "\x00" {
		for _, name := range []string{"NAME", "DRIVER", "OPTS"} {
			vars := map[string]string{"NAME": "v", "DRIVER": "d", "OPTS": "k=v"}
			vars[name] += string(c)
			var list []variable
			for k, v := range vars {
				list = append(list, variable{"DVDI_VOLUME_" + k, v, k})
			}
			_, err := dvdiVolumes(list, false)
			wantError(t, err, "cannot use "+name)
		}
	}
	v, err := dvdiVolumes([]variable{{"DVDI_VOLUME_NAME", "v", ""}, {"DVDI_VOLUME_CONTAINERPATH", "/a b;$x", ""}}, false)
	if err != nil || v[0].ContainerPath != "/a b;$x" {
		t.Errorf("%+v, %v", v, err)
	}
	if n := len(dvdiProhibited) + 1; n != 26 {
		t.Errorf("%d characters", n)
	}
}

// Docker parameters and flags without a driver take the policy's; if there is none they are refused.
func TestDefaultDriver(t *testing.T) {
	const job = `{"type":"DOCKER","docker":{"image":"i","parameters":[{"key":"volume","value":"v:/v"}]}}`
	if j, err := Parse("", []byte(job), Defaults{Driver: "convoy"}); err != nil || j.Volumes[0].Driver != "convoy" {
		t.Errorf("%+v, %v", j, err)
	}
	_, err := Parse("", []byte(job), Defaults{})
	wantError(t, err, "no parameter volume-driver names its driver")
}

func TestFromOCI(t *testing.T) {
	config := []byte(`{"ociVersion":"1.2.0","annotations":{"io.bindgate.volume.9":"driver=d,name=nine,target=/9"},
		"process":{"env":["PATH=/bin","odd","DVDI_VOLUME_NAME1=one","DVDI_VOLUME_CONTAINERPATH1=/one"]}}`)
	state := map[string]string{
		"io.bindgate.volume.9":  "driver=d,name=nine,target=/9",
		"io.bindgate.volume.10": "driver=d,name=ten,target=/10,readonly",
		"other":                 "x\ny",
	}
	names := func(j *Job) (s string) {
		for _, v := range j.Volumes {
			s += v.Driver + "/" + v.Name + ":" + v.ContainerPath + ":" + v.Mode + " "
		}
		return s
	}
	j, err := FromOCI(config, state, true)
	if err != nil || j.Format != "oci" || len(j.Warnings) != 0 || names(j) != "d/nine:/9:rw d/ten:/10:ro rexray/one:/one:rw " {
		t.Errorf("%+v, %v", j, err)
	}
	j, err = FromOCI(config, nil, false)
	if err != nil || len(j.Warnings) != 1 || names(j) != "d/nine:/9:rw " {
		t.Errorf("%+v, %v", j, err)
	}
	j, err = FromOCI(nil, state, true)
	if err != nil || len(j.Warnings) != 0 || names(j) != "d/nine:/9:rw d/ten:/10:ro " {
		t.Errorf("%+v, %v", j, err)
	}
	j, err = FromOCI([]byte("{}"), nil, true)
	if err != nil || len(j.Volumes) != 0 {
		t.Errorf("%+v, %v", j, err)
	}
}

func TestFromOCIRefuses(t *testing.T) {
	env := func(s string) string { return `{"process":{"env":[` + s + `]}}` }
	for _, c := range []struct {
		config string
		state  map[string]string
		holds  string
	}{
		{"[]", nil, "it is an array, not an object"},
		{"DVDI_VOLUME_NAME=v", nil, "format oci is JSON"},
		{`{"a":1,"a":2}`, nil, "cannot use a: the key is there twice"},
		{env(`"DVDI_VOLUME_NAME=v"`), nil, "process.env[0]: the volume has no container path"},
		{env(`"A=b","DVDI_VOLUME_NAME=v","DVDI_VOLUME_CONTAINERPATH="`), nil, "process.env[1]: the volume has no container path"},
		{env(`"DVDI_VOLUME_NAME"`), nil, `"DVDI_VOLUME_NAME" is not NAME=VALUE`},
		{env(`"DVDI_VOLUME_DVDCLI=/x"`), nil, "process.env[0]: a job does not choose the program"},
		{env(`"DVDI_VOLUME_NAME=v","DVDI_VOLUME_NAME=w"`), nil, "process.env[1]: the variable DVDI_VOLUME_NAME is there twice"},
		{env(`5`), nil, "process.env[0]: it is a number, not a string"},
		{`{"process":[]}`, nil, "process: it is an array"},
		{`{"annotations":{"io.bindgate.volume.1":"driver=d,name=a,target=/a"}}`, map[string]string{"io.bindgate.volume.1": "driver=d,name=b,target=/a"}, "the state and config.json differ"},
		{"", map[string]string{"io.bindgate.volume.1": "name=a,target=/a"}, "driver= is missing"},
		{"", map[string]string{"io.bindgate.volume.+1": "driver=d,name=a,target=/a"}, `"+1" is no number`},
		{"", map[string]string{"io.bindgate.volume.1000000": "driver=d,name=a,target=/a"}, `"1000000" is no number`},
		{"", map[string]string{"io.bindgate.volume.\n": "x"}, `annotations["io.bindgate.volume.\n"]`},
		{`{"annotations":{"io.bindgate.volume.1":"driver=rexray,name=a,target=/a"},"process":{"env":["DVDI_VOLUME_NAME=a","DVDI_VOLUME_CONTAINERPATH=/b"]}}`, nil, `volume "a" of driver "rexray" is already at`},
	} {
		j, err := FromOCI([]byte(c.config), c.state, true)
		wantError(t, err, c.holds)
		if j != nil {
			t.Errorf("a job came with %v", err)
		}
	}
}

// The largest inputs cost a tenth of a second, whatever they are made of; a fuzzer would not find a square.
func BenchmarkParseLargest(b *testing.B) {
	members := func(key string) string {
		var s strings.Builder
		for i := range 50_000 {
			fmt.Fprintf(&s, `,"%s%d":0`, key, i)
		}
		return s.String()
	}
	for name, c := range map[string]struct{ format, input string }{
		"mesos":    {"mesos", `{"type":"MESOS"` + members("volume") + "}"},
		"marathon": {"marathon", `{"id":"a"` + members("env") + "}"},
		"dvdi":     {"dvdi", strings.Repeat("A=b\n", MaxInput/4)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(c.format, []byte(c.input), Defaults{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
