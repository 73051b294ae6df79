package hook

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

func code(err error) wire.Code {
	if err == nil {
		return ""
	}
	return wire.AsError(err).Code
}

func TestStageFollowsFromTheState(t *testing.T) {
	for in, want := range map[string]string{
		`{"ociVersion":"1.0.2-dev","id":"a","status":"creating","pid":7,"bundle":"/b","annotations":{"k":"v"}}`: StageCreateRuntime, // runc 1.1
		`{"ociVersion":"1.0","id":"a","pid":7,"root":"/r","bundle":"/b","status":"created","annotations":{}}`:   StageCreateRuntime, // crun 1.8
		`{"ociVersion":"1.0.2-dev","id":"a","status":"stopped","bundle":"/b"}`:                                  StagePoststop,
		`{"id":"a","status":"running","pid":7}`:                                                                 "",
		`{"id":"a","status":"Creating","pid":7}`:                                                                "",
		`{"id":"a"}`:                                                                                            "",
		`{"ociVersion":"1.0.2","process":{"args":["sh"]},"root":{"path":"rootfs"},"mounts":[]}`:                 "",
		`[]`: "", ``: "", `null`: "", `{"id":7,"status":"created"}`: "", `{"id":"a","status":"created"} x`: "",
	} {
		s, err := ParseState([]byte(in))
		stage := ""
		if err == nil {
			stage, err = s.Stage()
		}
		if stage != want || (want == "") != (code(err) == wire.InvalidRequest) {
			t.Errorf("%s: %q, %v", in, stage, err)
		}
	}
}

func TestPodmanIDIsInTheCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string]string{
		"/libpod_parent/libpod-" + id: id, "/a/b/libpod-" + id: id, "machine.slice:libpod:" + id: id, "/x/libpod-payload-" + id: id, "user.slice:libpod:" + id: id, "/machine.slice/libpod-" + id + ".scope": id,
		"": "", "/docker/" + id: "", "/libpod-" + id[1:]: "", "/libpod-" + id + "0": "", "/libpod-" + id + "/x": "", "/xlibpod-" + id: "", "/libpod-conmon-" + id: "", "/libpod-" + strings.ToUpper(id): "",
	} {
		got, err := podmanID(in)
		if got != want || (want == "") != (code(err) == wire.InvalidRequest) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestSliceOf(t *testing.T) {
	for in, want := range map[string]string{"machine.slice": "/machine.slice", "a-b.slice": "/a.slice/a-b.slice", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice", "-.slice": ""} {
		if got := sliceOf(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestRootfsIsRelativeToTheBundle(t *testing.T) {
	for config, want := range map[string]string{`{"root":{"path":"rootfs"}}`: "/run/b/rootfs", `{"root":{"path":"/var/lib/r/"}}`: "/var/lib/r", `{"root":{"path":"../r"}}`: "/run/r", `{}`: "", `{"root":{"path":""}}`: ""} {
		b, err := readBundle([]byte(config))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := b.rootfs("/run/b"); got != want || (want == "") != (code(err) == wire.InvalidRequest) {
			t.Errorf("%s: %q, %v", config, got, err)
		}
	}
}

func TestHasMountsAsksForEach(t *testing.T) {
	b, _ := readBundle([]byte(`{"mounts":[{"destination":"/a/"},{"destination":"/proc"}]}`))
	at := func(paths ...string) *spec.Job {
		j := &spec.Job{}
		for _, p := range paths {
			j.Volumes = append(j.Volumes, spec.Volume{ContainerPath: p, Scope: spec.ScopeContainer})
		}
		return j
	}
	if !b.hasMounts(at("/a")) || !b.hasMounts(at("/proc", "//a/.")) || b.hasMounts(at("/a", "/b")) || b.hasMounts(at("/a/b")) {
		t.Error("it counts wrongly")
	}
}

// TestInsertChangesNothingElse: every byte of config.json but the new mounts stays, whatever stands around them.
func TestInsertChangesNothingElse(t *testing.T) {
	entry := []byte(`{"destination":"/v"}`)
	for in, want := range map[string]string{
		`{"mounts":[]}`:                                    `{"mounts":[{"destination":"/v"}]}`,
		`{ "mounts" : [ ] , "a":1}`:                        `{ "mounts" : [ {"destination":"/v"}] , "a":1}`,
		`{"a":{"mounts":[1]},"mounts":[{"x":"]"}],"z":[]}`: `{"a":{"mounts":[1]},"mounts":[{"x":"]"},{"destination":"/v"}],"z":[]}`,
		"{\n}\n":              "{\"mounts\":[{\"destination\":\"/v\"}]\n}\n",
		`{"a":"\"mounts\":"}`: `{"mounts":[{"destination":"/v"}],"a":"\"mounts\":"}`,
	} {
		got, err := insert([]byte(in), [][]byte{entry})
		if err != nil || string(got) != want || !json.Valid(got) {
			t.Errorf("%s:\n%s, %v", in, got, err)
		}
		if same, err := insert([]byte(in), nil); err != nil || string(same) != in {
			t.Errorf("without mounts: %s, %v", same, err)
		}
	}
	for _, in := range []string{``, `[]`, `null`, `"mounts"`, `{"mounts":null}`, `{"mounts":{}}`, `{"mounts":7}`, `{"mounts":[],"mounts":[]}`, `{"mounts":[`, `{"a":1`, `{"a" 1}`} {
		if got, err := insert([]byte(in), [][]byte{entry}); code(err) != wire.InvalidRequest {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

func FuzzInsert(f *testing.F) {
	for _, s := range []string{`{"mounts":[]}`, `{"a":1,"mounts":[{"destination":"/x"}]}`, `{}`, `{"mounts":[[[]]],"b":{}}`, `{"mounts":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var before map[string]any
		if json.Unmarshal(data, &before) != nil {
			return
		}
		out, err := insert(data, [][]byte{[]byte(`"new"`)})
		if err != nil {
			return
		}
		var after map[string]any
		if err := json.Unmarshal(out, &after); err != nil {
			t.Fatalf("%s became %s: %v", data, out, err)
		}
		list, _ := before["mounts"].([]any)
		if before == nil {
			t.Fatalf("%s was taken", data)
		}
		before["mounts"] = append(append([]any{}, list...), "new")
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("%s became %s", data, out)
		}
	})
}

func TestSpliceChecksTheContainer(t *testing.T) {
	h := conf.DefaultHelper()
	h.Targets.Cgroups = []string{"/machine.slice", "/podman"}
	config := func(cgroup, caps string) []byte {
		return []byte(`{"process":{"capabilities":{"bounding":[` + caps + `]}},"linux":{"cgroupsPath":"` + cgroup + `"},"mounts":[]}`)
	}
	for cgroup, want := range map[string]bool{"/podman/libpod-1": true, "/podman": true, "machine.slice:libpod:1": true, "machine-a.slice:libpod:1": true, "machinea.slice:libpod:1": false, "-.slice:libpod:1": false, "/podmanx/libpod-1": false, "/podman/../x": false, "podman/libpod-1": false,
		"": false, "/": false, "user.slice:libpod:1": false, "../machine.slice:libpod:1": false, "machine.slice:a:b:c": false} {
		if err := checkContainer(config(cgroup, ""), h); (err == nil) != want {
			t.Errorf("%q: %v", cgroup, err)
		}
	}
	if err := checkContainer(config("/podman/x", `"CAP_CHOWN","CAP_SYS_ADMIN"`), h); code(err) != wire.TargetForbidden {
		t.Errorf("with CAP_SYS_ADMIN: %v", err)
	}
	h.Mounts.Lock = conf.LockUserns
	if err := checkContainer(config("/podman/x", `"CAP_SYS_ADMIN"`), h); err != nil {
		t.Error(err)
	}
	h.Limits.MountsPerRequest = 1
	if _, err := Splice(config("/podman/x", ""), &wire.Request{Mounts: make([]wire.Mount, 2)}, h); code(err) != wire.LimitExceeded {
		t.Errorf("two mounts: %v", err)
	}
}

func TestSpliceChecksTheTarget(t *testing.T) {
	h := conf.DefaultHelper()
	for target, want := range map[string]bool{"/data": true, "/etc/app": true, "/": false, "//": false, "data": false, "/etc": false, "/etc/": false, "/etc/ssh/keys": false, "/proc": false, "/dev/shm": false, "/a/../etc": false, "": false} {
		if err := checkTarget(target, h); (err == nil) != want {
			t.Errorf("%q: %v", target, err)
		}
	}
}

func TestAskRefusesWhatIsNoName(t *testing.T) {
	for _, x := range [][2]string{{"docker", ""}, {"docker", "-x"}, {"docker", "a/b"}, {"docker", "a?all=1"}, {"podman", "--latest"}, {"runc", "-h"}, {"rkt", "a"}, {"", "a"}} {
		if _, err := Ask(t.Context(), x[0], x[1]); code(err) != wire.Usage {
			t.Errorf("%q: %v", x, err)
		}
	}
	t.Setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
	if _, err := Ask(t.Context(), "docker", "a"); code(err) != wire.Usage {
		t.Errorf("another host's engine: %v", err)
	}
	t.Setenv("DOCKER_HOST", "unix:///nonexistent")
	if _, err := Ask(t.Context(), "docker", "a"); code(err) != wire.System {
		t.Errorf("no engine: %v", err)
	}
}

func TestAnswersThatAreNoPid(t *testing.T) {
	for _, a := range []Asked{{runtime: "podman", answer: []byte("0\n")}, {runtime: "runc", answer: []byte(`{"id":"a","pid":0,"status":"stopped"}`)}} {
		if _, _, err := a.Process(t.Context()); code(err) != wire.NotFound {
			t.Errorf("%s %s: %v", a.runtime, a.answer, err)
		}
	}
	for _, a := range []Asked{{runtime: "podman", answer: []byte("x")}, {runtime: "podman"}, {runtime: "runc", answer: []byte("[]")}, {runtime: "runc"}} {
		if _, _, err := a.Process(t.Context()); code(err) != wire.System {
			t.Errorf("%s %s: %v", a.runtime, a.answer, err)
		}
	}
}

func TestWarningsNameTheVolumeAndTheContainer(t *testing.T) {
	mounts := []lifecycle.Mount{{Driver: "d", Name: "a"}, {Driver: "d", Name: "b"}, {Driver: "e", Name: "a"}}
	w := Warnings(mounts, map[Held]string{{"d", "a"}: "web", {"f", "b"}: "x"})
	if len(w) != 1 || !strings.Contains(w[0], "d/a") || !strings.Contains(w[0], "web") {
		t.Errorf("%q", w)
	}
	if w := Warnings(mounts, nil); w != nil {
		t.Errorf("%q", w)
	}
}

func TestConflictIsFoundInBothErrors(t *testing.T) {
	if !isConflict(wire.Errorf(wire.Conflict, "record", "x")) || isConflict(wire.Errorf(wire.Denied, "rule", "x")) || isConflict(nil) || isConflict(errors.New("conflict")) {
		t.Error("it judges wrongly")
	}
}
