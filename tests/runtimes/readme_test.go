//go:build runtimes

package runtimes

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
)

// The README's blocks for podman, as they stand there, but for the flags that podman needs on a machine without systemd and network, and the paths of the harness' installation. (tests/docs runs
// all others.)
func TestReadme(t *testing.T) {
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(checkout, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)<!-- run: podman -->\n```sh\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(found) != 2 {
		t.Fatalf("%d blocks of the README are for podman", len(found))
	}
	run(t, func(t *testing.T, h *harness.Host) {
		p := podman(t, h, "runc")
		p.do("tag", "localhost/busybox", "docker.io/library/busybox").OK(t)
		// As shipped, but for the harness' own cgroup and sources.
		shipped := strings.Replace(harness.DefaultHelperTOML, `cgroups = ["`+harness.CgroupRule+`"]`, `# cgroups = ["/docker"]`, 1)
		h.HelperTOML(shipped)
		h.PolicyTOML(harness.DefaultPolicyTOML)
		shims := h.Mkdir(h.Path("shims"), 0o755)
		h.WriteFile(shims+"/sudo", "#!/bin/sh\nexec \"$@\"\n", 0o755)
		h.WriteFile(shims+"/podman", `#!/bin/sh
case $1 in run) shift; set -- run --network=none --pull=never --cgroup-parent=/machine.slice`+h.Cgroup()+` "$@" ;; esac
exec /usr/bin/podman "$@"
`, 0o755)
		t.Cleanup(func() {
			h.Sh("for d in /sys/fs/cgroup /sys/fs/cgroup/*; do [ ! -d $d/machine.slice ] || find $d/machine.slice -depth -type d -exec rmdir {} + 2>/dev/null || true; done")
		})
		text := "set -e\n"
		for _, f := range found {
			text += string(f[1])
		}
		text = strings.ReplaceAll(text, "/etc/bindgate/", h.Path("etc/bindgate")+"/")
		cmd := exec.Command("/bin/sh", "-c", text)
		cmd.Env, cmd.Dir = append(p.env[1:], "PATH="+shims+":"+filepath.Dir(h.Bindgate())+":"+strings.TrimPrefix(path, "PATH=")), "/"
		out, err := os.Create(h.Path("readme.out")) // a file: podman's monitor would keep a pipe open
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd.Stdout, cmd.Stderr = out, out
		r := h.Do(cmd)
		said := h.ReadFile(out.Name())
		r.Stdout = said
		r.OK(t)
		if !regexp.MustCompile(`(?m)^\d+ .* /data rw,nosuid,nodev`).MatchString(said) {
			t.Errorf("the container did not see its volume: %s", said)
		}
		if got := h.ReadFile(h.Volumes() + "/web-data/file"); got != "hello\n" {
			t.Errorf("the volume holds %q", got)
		}
	})
}
