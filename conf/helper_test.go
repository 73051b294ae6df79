package conf

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/wire"
)

func refused(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.Config && strings.HasPrefix(e.Message, "cannot ") && !strings.Contains(e.Message, "\n")
}

func TestEmptyHelperAllowsNothing(t *testing.T) {
	h, err := ParseHelper(nil)
	if err != nil || !reflect.DeepEqual(h, DefaultHelper()) {
		t.Fatalf("%+v, %v", h, err)
	}
	switch {
	case len(h.Sources) != 0, len(h.Targets.Cgroups) != 0, len(h.Targets.HostPaths) != 0, len(h.Targets.RootfsRoots) != 0, len(h.Targets.SandboxRoots) != 0:
		t.Error("a source or target is allowed that nobody named")
	case h.Targets.AllowSharedPropagation, h.Mounts.AllowSUID, h.Mounts.AllowDev, h.Mounts.AllowIDMap, h.Mounts.Lock != LockAlways:
		t.Error("something is weaker than it need be")
	case !reflect.DeepEqual(h.Callers.UIDs, []uint32{0}):
		t.Errorf("callers are %v", h.Callers.UIDs)
	}
}

func TestShippedHelperAllowsTheLocalVolumesOnly(t *testing.T) {
	data, err := os.ReadFile("../packaging/conf/helper.toml")
	if err != nil {
		t.Fatal(err)
	}
	h, err := ParseHelper([]byte(strings.ReplaceAll(string(data), "@LOCALSTATEDIR@", "/var")))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultHelper()
	want.Sources = []Source{{Path: "/var/lib/bindgate/volumes"}}
	if !reflect.DeepEqual(h, want) {
		t.Errorf("%+v", h)
	}
	// What is commented out is the default.
	var lines []string
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "# "); ok && strings.Contains(rest, " = ") && !strings.Contains(line, `"/docker"`) && !strings.Contains(line, `["/`+"srv") && !strings.Contains(line, "rootfs_roots") && !strings.Contains(line, "sandbox_roots") &&
			!strings.Contains(line, "require_mountpoint") && !strings.Contains(line, "allow_fuse") && !strings.Contains(line, "rexray") {
			line = rest
		}
		lines = append(lines, line)
	}
	all := strings.ReplaceAll(strings.Join(lines, ""), "@LOCALSTATEDIR@", "/var")
	if !strings.Contains(all, "\nlock = ") || !strings.Contains(all, "\nmounts_per_request = ") || !strings.Contains(all, "\ndeny_under = ") {
		t.Fatalf("the comments were not found:\n%s", all)
	}
	if h, err := ParseHelper([]byte(all)); err != nil || !reflect.DeepEqual(h, want) {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestHelperTakes(t *testing.T) {
	for name, toml := range map[string]string{
		"an empty list of callers": "[callers]\nuids = []",
		"the highest uid":          "[callers]\nuids = [0, 4294967295]",
		"all of a source":          "[[source]]\npath = \"/v\"\nrequire_mountpoint = true\nallow_fuse = true",
		"two sources":              "[[source]]\npath = \"/v\"\n[[source]]\npath = \"/w/x\"",
		"targets":                  "[targets]\ncgroups = [\"/docker\", \"/kubepods.slice\"]\nhost_paths = [\"/srv\"]\nrootfs_roots = [\"/r\"]\nsandbox_roots = [\"/s\"]\ndeny = []\ndeny_under = []\nallow_shared_propagation = true",
		"lock userns":              "[mounts]\nlock = \"userns\"",
		"the limits at their ends": "[limits]\nmounts_per_request = 1024\nmounts_per_namespace = 10000",
		"the limits at the others": "[limits]\nmounts_per_request = 1\nmounts_per_namespace = 1",
		"a comment":                "# nothing",
		"Windows' line ends":       "[mounts]\r\nnoexec = true\r\n",
	} {
		if _, err := ParseHelper([]byte(toml)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHelperRefuses(t *testing.T) {
	cases := map[string]string{
		"an unknown key":                    "nonsense = 1",
		"an unknown table":                  "[caller]\nuids = [0]",
		"a misspelt key":                    "[mounts]\nallow_siud = false",
		"an unknown key of a source":        "[[source]]\npath = \"/v\"\nallow_suid = true",
		"a key of policy.toml":              "user = \"bindgate\"",
		"a key in the wrong table":          "[targets]\nlock = \"always\"",
		"a source that is no array":         "[source]\npath = \"/v\"",
		"a source without a path":           "[[source]]\nallow_fuse = false",
		"callers that are names":            "[callers]\nuids = [\"root\"]",
		"callers that are one number":       "[callers]\nuids = 0",
		"a negative uid":                    "[callers]\nuids = [-1]",
		"a uid over 32 bits, which is root": "[callers]\nuids = [4294967296]",
		"a uid with a fraction":             "[callers]\nuids = [0.5]",
		"a boolean in quotes":               "[mounts]\nallow_suid = \"false\"",
		"a boolean that is a number":        "[mounts]\nallow_dev = 0",
		"another lock":                      "[mounts]\nlock = \"never\"",
		"an empty lock":                     "[mounts]\nlock = \"\"",
		"a lock in capitals":                "[mounts]\nlock = \"Always\"",
		"a lock that is a boolean":          "[mounts]\nlock = true",
		"no mounts for a request":           "[limits]\nmounts_per_request = 0",
		"1025 mounts for a request":         "[limits]\nmounts_per_request = 1025",
		"negative mounts":                   "[limits]\nmounts_per_request = -1",
		"no mounts for a namespace":         "[limits]\nmounts_per_namespace = 0",
		"10001 mounts for a namespace":      "[limits]\nmounts_per_namespace = 10001",
		"a limit over 64 bits":              "[limits]\nmounts_per_namespace = 18446744073709551617",
		"a limit in quotes":                 "[limits]\nmounts_per_namespace = \"256\"",
		"a list that is one path":           "[targets]\ncgroups = \"/docker\"",
		"a table that is a number":          "targets = 5",
		"a table that is a list":            "[[mounts]]\nnoexec = true",
		"a list of numbers":                 "[targets]\ncgroups = [1]",
		"a key twice":                       "[mounts]\nnoexec = false\nnoexec = true",
		"a table twice":                     "[mounts]\nnoexec = false\n[mounts]\nallow_dev = false",
		"a key without a value":             "[mounts]\nnoexec =",
		"JSON":                              `{"mounts":{"noexec":true}}`,
		"a NUL":                             "[mounts]\nnoexec = true\x00",
		"invalid UTF-8":                     "[audit]\nfile = \"/a\xff\"",
		"a value cut short":                 "[audit]\nfile = \"/a",
	}
	for what, path := range map[string]string{
		"empty": "", "the root": "/", "the root twice": "//", "relative": "docker", "dot": ".", "with dot dot": "/docker/../x", "that ends in dot dot": "/docker/..", "with a slash at its end": "/docker/", "with two slashes": "/docker//x",
		"with a dot": "/docker/./x", "with a NUL": "/docker\\u0000", "with a component of 256 bytes": "/" + strings.Repeat("x", 256), "of 4096 bytes": strings.Repeat("/x", 2048),
	} {
		for key, format := range map[string]string{
			"cgroups": "[targets]\ncgroups = [\"/a\", \"%\"]", "host_paths": "[targets]\nhost_paths = [\"%\"]", "rootfs_roots": "[targets]\nrootfs_roots = [\"%\"]", "sandbox_roots": "[targets]\nsandbox_roots = [\"%\"]",
			"deny": "[targets]\ndeny = [\"%\"]", "deny_under": "[targets]\ndeny_under = [\"%\"]", "audit.file": "[audit]\nfile = \"%\"", "source": "[[source]]\npath = \"/a\"\n[[source]]\npath = \"%\"",
		} {
			cases[key+" "+what] = strings.Replace(format, "%", path, 1)
		}
	}
	for name, toml := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseHelper([]byte(toml)); !refused(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestInstalledPathsAreCleanAndApart(t *testing.T) {
	for _, s := range []string{HelperPath(), HelperTOML(), PolicyTOML(), LedgerDir(), HelperSocket(), JournalDir(), VolumesDir(), AuditFile()} {
		if p, err := wire.ParsePath(s); err != nil || !p.Absolute || p.String() != s {
			t.Errorf("%q is not clean", s)
		}
	}
	// A volume must never hold a record, nor the other way round.
	for _, a := range []string{LedgerDir(), JournalDir(), HelperTOML(), AuditFile()} {
		p, v := wire.ParsePaths([]string{a})[0], wire.ParsePaths([]string{VolumesDir()})[0]
		if p.Contains(v) || v.Contains(p) {
			t.Errorf("%s and %s overlap", a, VolumesDir())
		}
	}
	if User() == "" || Version() == "" {
		t.Error("user or version is empty")
	}
}

// FuzzParseHelper: refused as config in one line, or every value is in its range.
func FuzzParseHelper(f *testing.F) {
	for _, s := range []string{"", "[callers]\nuids = [0, 998]", "[[source]]\npath = \"/v\"\nrequire_mountpoint = true\nallow_fuse = true\n[targets]\ncgroups = [\"/docker\"]\ndeny = []\n[mounts]\nlock = \"userns\"\n[limits]\nmounts_per_request = 7\n[audit]\nfile = \"/a/b\"",
		"[mounts]\nlock = 'never'", "a.b.c = {d = [[1]]}", "[limits]\nmounts_per_namespace = 0x7fffffffffffffff", "[callers]\nuids = [4294967296]", "\"\\uD800\" = 1", "[[source]]\npath = '''\n/v'''", "source = [{path = \"/v\"}, {path = \"\"}]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := ParseHelper(data)
		if err != nil {
			if !refused(err) {
				t.Errorf("%#v", err)
			}
			return
		}
		paths := append(append(append(append(append(append([]string{h.Audit.File}, h.Targets.Cgroups...), h.Targets.HostPaths...), h.Targets.RootfsRoots...), h.Targets.SandboxRoots...), h.Targets.Deny...), h.Targets.DenyUnder...)
		for _, s := range h.Sources {
			paths = append(paths, s.Path)
		}
		for _, s := range paths {
			if p, err := wire.ParsePath(s); err != nil || !p.Absolute || len(p.Components) == 0 || p.String() != s {
				t.Errorf("the path %q was taken", s)
			}
		}
		if n, m := h.Limits.MountsPerRequest, h.Limits.MountsPerNamespace; n < 1 || n > wire.MaxBlocks || m < 1 || m > 10000 || h.Mounts.Lock != LockAlways && h.Mounts.Lock != LockUserns {
			t.Errorf("%+v", h)
		}
	})
}
