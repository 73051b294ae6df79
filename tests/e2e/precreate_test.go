package e2e

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/hook"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

const podmanID = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// podmanConfig is a config.json as podman has it, as far as it matters.
func podmanConfig(t *testing.T, h *harness.Host, annotations map[string]string, caps ...string) string {
	data, err := json.Marshal(specs.Spec{Version: "1.0.2", Root: &specs.Root{Path: "/r"}, Annotations: annotations,
		Process: &specs.Process{Args: []string{"sh"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{Bounding: caps}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:   &specs.Linux{CgroupsPath: h.Cgroup() + "/libpod-" + podmanID}})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// precreate runs the hook as a root runtime does.
func precreate(h *harness.Host, config string) harness.Result {
	return h.PolicyAs(harness.User{}, config, "hook", "precreate", "-o", "json")
}

func TestPrecreateEditsConfigJSON(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		for _, same := range []string{podmanConfig(t, h, nil), podmanConfig(t, h, map[string]string{"a": "b"}, "CAP_SYS_ADMIN"), `{ "ociVersion":"1.0.2" }` + "\n"} {
			if got := precreate(h, same).OK(t).Stdout; got != same {
				t.Errorf("without volumes it became %s", got)
			}
		}
		wantNothingLeft(t, h)

		in := podmanConfig(t, h, volumes("driver=local,name=v,target=/data/", "driver=local,name=w,target=/w,readonly,noexec"))
		out := precreate(h, in).OK(t).Stdout
		v, w := filepath.Join(h.Volumes(), "v"), filepath.Join(h.Volumes(), "w")
		added := `,{"destination":"/data","type":"bind","source":"` + v + `","options":["bind","rprivate","rw","nosuid","nodev"]}` +
			`,{"destination":"/w","type":"bind","source":"` + w + `","options":["bind","rprivate","ro","nosuid","nodev","noexec"]}`
		if strings.Replace(out, added, "", 1) != in || !strings.Contains(out, added) {
			t.Errorf("it became %s", out)
		}
		d := status(t, h)
		if len(d.Containers) != 1 || d.Containers[0].Container != podmanID || d.Containers[0].Owner != "oci" || d.Containers[0].Phase != "prepared" {
			t.Errorf("status: %+v", d)
		}
		// What a start left that went no further is replaced by the next one; and cleaned up where podman knows the container no more.
		if again := precreate(h, in).OK(t).Stdout; again != out {
			t.Errorf("again it became %s", again)
		}
		h.Policy("recover", "--owner", "oci", "--known", "").OK(t)
		wantNothingLeft(t, h)
	})
}

func TestPrecreateThatFailsLeavesNothing(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + "[[rule]]\nvolume = \"v*\"\naction = \"allow\"\n")
		p := h.Plugin("plug")
		h.HelperTOML(strings.Replace(harness.DefaultHelperTOML, harness.Root+"/sources", p.Root+"/data", 1))
		for name, x := range map[string]struct {
			config string
			code   wire.Code
		}{
			"no rule":                   {podmanConfig(t, h, volumes("driver=plug,name=other,target=/data")), wire.Denied},
			"a path that is denied":     {podmanConfig(t, h, volumes("driver=plug,name=v,target=/etc")), wire.TargetForbidden},
			"one of two that is denied": {podmanConfig(t, h, volumes("driver=plug,name=v,target=/data", "driver=plug,name=v2,target=/dev/v")), wire.TargetForbidden},
			"CAP_SYS_ADMIN":             {podmanConfig(t, h, volumes("driver=plug,name=v,target=/data"), "CAP_SYS_ADMIN"), wire.TargetForbidden},
			"a subpath":                 {podmanConfig(t, h, volumes("driver=plug,name=v,target=/data,subpath=x")), wire.InvalidRequest},
			"an idmap":                  {podmanConfig(t, h, volumes("driver=plug,name=v,target=/data,idmap")), wire.InvalidRequest},
			"not podman's":              {strings.ReplaceAll(podmanConfig(t, h, volumes("driver=plug,name=v,target=/data")), "libpod-", ""), wire.InvalidRequest},
			"another cgroup":            {strings.ReplaceAll(podmanConfig(t, h, volumes("driver=plug,name=v,target=/data")), h.Cgroup(), "/elsewhere"), wire.TargetForbidden},
			"mounts that are no list":   {strings.Replace(podmanConfig(t, h, volumes("driver=plug,name=v,target=/data")), `"mounts":[`, `"mounts":{"x":[`, 1), wire.InvalidRequest},
			"no JSON":                   {"x", wire.InvalidRequest},
			"over a mebibyte":           {podmanConfig(t, h, nil) + strings.Repeat(" ", 1<<20), wire.InvalidRequest},
		} {
			t.Run(name, func(t *testing.T) {
				h := h.For(t)
				r := precreate(h, x.config)
				r.Fails(t, x.code)
				if r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 {
					t.Errorf("want nothing on stdout and one line on stderr: %v", r)
				}
				wantNothingLeft(t, h)
			})
		}
		if m, u := len(p.Calls("Mount")), len(p.Calls("Unmount")); m != u || m == 0 {
			t.Errorf("%d mounts and %d unmounts", m, u)
		}
	})
}

// TestSpliceTakesNoSourceOnTrust: the list comes from a policy process that lies.
func TestSpliceTakesNoSourceOnTrust(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		config := []byte(podmanConfig(t, h, nil))
		helper, err := conf.ParseHelper([]byte(harness.DefaultHelperTOML + "[[source]]\npath = \"" + h.Path("open") + "\"\n[[source]]\npath = \"" + h.Path("mounted") + "\"\nrequire_mountpoint = true\n[[source]]\npath = \"" + h.Path("run") + "\"\n"))
		if err != nil {
			t.Fatal(err)
		}
		splice := func(m wire.Mount) error {
			m.Path, m.Mode = "/data", "rw"
			_, err := hook.Splice(config, &wire.Request{Mounts: []wire.Mount{m}}, helper)
			return err
		}
		good := h.Mkdir(filepath.Join(h.Sources(), "good"), 0o777)
		h.WriteFile(filepath.Join(good, "in"), "", 0o644)
		h.WriteFile(filepath.Join(h.Sources(), "file"), "", 0o644)
		h.WriteFile(filepath.Join(h.Sources(), "linked"), "", 0o644)
		h.Mkdir(filepath.Join(h.Sources(), "covered/in"), 0o755)
		h.Mount("tmpfs", filepath.Join(h.Sources(), "covered/in"), "tmpfs", 0, "")
		h.Mkdir(filepath.Join(h.Sources(), "users/v"), 0o755)
		h.Mkdir(h.Path("open/v"), 0o755)
		h.Mkdir(h.Path("mounted/v"), 0o755)
		for _, err := range []error{os.Chown(filepath.Join(h.Sources(), "users"), harness.PolicyUID, 0), os.Link(filepath.Join(h.Sources(), "linked"), filepath.Join(h.Sources(), "linked2")),
			os.Symlink("good", filepath.Join(h.Sources(), "link")), os.Symlink(".", filepath.Join(h.Sources(), "dir")), unix.Mkfifo(filepath.Join(h.Sources(), "fifo"), 0o600)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, source := range []string{good, filepath.Join(h.Sources(), "file")} {
			if err := splice(wire.Mount{Source: source}); err != nil {
				t.Errorf("%s: %v", source, err)
			}
		}
		for name, source := range map[string]string{
			"outside the sources": "/etc", "the host's root": "/", "a source itself": h.Sources(), "above one": harness.Root, "the ledger": h.Ledger(), "the journal": h.Journal(), "the configuration": h.Path("etc/bindgate"),
			"a symlink": filepath.Join(h.Sources(), "link"), "beneath a symlink": filepath.Join(h.Sources(), "dir/good"), "what is not there": filepath.Join(h.Sources(), "none"),
			"a FIFO": filepath.Join(h.Sources(), "fifo"), "a file with two names": filepath.Join(h.Sources(), "linked"), "a tree with a mount in it": filepath.Join(h.Sources(), "covered"),
			"beneath a folder that is not root's": filepath.Join(h.Sources(), "users/v"), "beneath one that others can write to": filepath.Join(good, "in"), "what is not sealed": h.Path("open/v"),
			"what should be a mountpoint": h.Path("mounted/v"), "dot dot": h.Sources() + "/../sources/good", "relative": "good", "nothing": "",
		} {
			if err := splice(wire.Mount{Source: source}); err == nil || wire.AsError(err).Code != wire.SourceForbidden && wire.AsError(err).Code != wire.InvalidRequest {
				t.Errorf("%s: %v", name, err)
			}
		}
		if splice(wire.Mount{Source: good, Subpath: "in"}) == nil || splice(wire.Mount{Source: good, IDMap: true}) == nil {
			t.Error("a subpath or an idmap is taken")
		}
	})
}

// TestHookTellsSyslogWhyItFailed: crun and podman's precreate throw away what a hook writes to stderr.
func TestHookTellsSyslogWhyItFailed(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		dev := h.Mkdir(h.Path("dev"), 0o755)
		log, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dev + "/log", Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		os.Chmod(dev+"/log", 0o666)
		config := h.Path("config.json")
		for name, x := range map[string]struct{ hook, stdin, why string }{
			"createRuntime": {"hook", `{"id":"c","status":"running"}`, `"running"`},
			"precreate":     {"hook precreate", podmanConfig(t, h, volumes("driver=local,name=v,target=/data")), "no rule of policy.toml"},
			"splice":        {"hook precreate", "{", "JSON"},
		} {
			h.WriteFile(config, x.stdin, 0o644)
			h.Sh("! unshare -m sh -c 'mount --bind " + dev + " /dev && exec " + h.Bindgate() + " " + x.hook + " < " + config + "'").OK(t)
			line := make([]byte, 4096)
			log.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := log.Read(line)
			if got := string(line[:n]); err != nil || !strings.Contains(got, "bindgate") || !strings.Contains(got, "hook: cannot ") || !strings.Contains(got, x.why) {
				t.Errorf("%s: syslog got %q, %v", name, got, err)
			}
		}
	})
}
