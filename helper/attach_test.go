package main

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/wire"
)

func TestAttributesAreAtLeastNosuidAndNodev(t *testing.T) {
	const ro, nosuid, nodev, noexec = unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_NOSUID, unix.MOUNT_ATTR_NODEV, unix.MOUNT_ATTR_NOEXEC
	for name, c := range map[string]struct {
		toml string
		m    wire.Mount
		want uint64
	}{
		"rw":                          {"", wire.Mount{Mode: "rw"}, nosuid | nodev},
		"ro":                          {"", wire.Mount{Mode: "ro"}, ro | nosuid | nodev},
		"noexec as asked":             {"", wire.Mount{Mode: "rw", NoExec: true}, nosuid | nodev | noexec},
		"noexec as configured":        {"[mounts]\nnoexec = true", wire.Mount{Mode: "ro"}, ro | nosuid | nodev | noexec},
		"an idmap changes nothing":    {"", wire.Mount{Mode: "rw", IDMap: true}, nosuid | nodev},
		"suid is root's to allow":     {"[mounts]\nallow_suid = true", wire.Mount{Mode: "rw"}, nodev},
		"devices are root's to allow": {"[mounts]\nallow_dev = true", wire.Mount{Mode: "ro"}, ro | nosuid},
	} {
		config, err := conf.ParseHelper([]byte(c.toml))
		if err != nil {
			t.Fatal(err)
		}
		if got := (&session{config: config}).attributes(&c.m); got != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
}

// T10, T31: what is not in an allowed source is refused without being looked at, with one message for what is there and what is not.
func TestSourceOutsideIsRefusedUnseen(t *testing.T) {
	config, err := conf.ParseHelper([]byte("[[source]]\npath = \"" + conf.VolumesDir() + "\"\n[[source]]\npath = \"/run\"\n[[source]]\npath = \"/var\"\n[audit]\nfile = \"/var/log/a/audit.jsonl\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := &session{config: config}
	var first string
	for _, source := range []string{"/etc/shadow", "/etc/no-such-file", "/", "/proc/1/root", "/runx", "/varx/lib", "/home/../etc", "/root/.ssh/id_rsa",
		conf.LedgerDir(), conf.LedgerDir() + "/7.rec", conf.RunDir(), conf.JournalDir(), conf.JournalDir() + "/x", "/var/log/a/audit.jsonl", "/var/log/a", "/run", "/var", conf.HelperTOML()} {
		err := namespace.Try(func() { s.source(&wire.Mount{Path: "/a", Source: source, Mode: "ro"}) })
		e := wire.AsError(err)
		if err == nil || e.Code != wire.SourceForbidden || e.Hint != "" {
			t.Errorf("%s: %v", source, err)
			continue
		}
		text := strings.Replace(e.Message, source, "PATH", 1)
		if first == "" {
			first = text
		}
		if text != first {
			t.Errorf("%s: %q, but %q for others", source, text, first)
		}
	}
}

func TestIDMapIsRefusedUnlessAllowed(t *testing.T) {
	config, err := conf.ParseHelper([]byte("[[source]]\npath = \"/opt/v\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	err = namespace.Try(func() {
		(&session{config: config}).source(&wire.Mount{Path: "/a", Source: "/opt/v/x", Mode: "ro", IDMap: true})
	})
	if e := wire.AsError(err); err == nil || e.Code != wire.Denied {
		t.Errorf("%v", err)
	}
}

func TestOnHostIsStrictlyBelowARoot(t *testing.T) {
	roots := []string{"/run/no-such-containers", "/srv/no-such"} // so what is in them fails later
	for path, in := range map[string]bool{
		"/run/no-such-containers/x": true, "/srv/no-such/b/c": true, "/run/no-such-containers": false, "/run": false, "/": false, "/run/no-such-containersx/y": false, "/srv/b": false, "/srv": false, "/etc": false,
	} {
		e := wire.AsError(namespace.Try(func() { onHost(parse(path), roots, "rootfs", "rootfs_roots") }))
		if refused := strings.Contains(e.Message, "not under targets.rootfs_roots"); refused == in || refused != (e.Code == wire.TargetForbidden) {
			t.Errorf("%s: %v", path, e)
		}
	}
}
