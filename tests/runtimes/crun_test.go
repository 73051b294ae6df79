//go:build runtimes

package runtimes

import (
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// TestCrunHook is what tests/e2e does with runc, by crun alone.
func TestCrunHook(t *testing.T) {
	run(t, func(t *testing.T, h *harness.Host) {
		timeout := 120 // as in docs/hooks.md: crun waits otherwise then
		call := []specs.Hook{{Path: h.Bindgate(), Args: []string{"bindgate", "hook"}, Timeout: &timeout}}
		o := harness.ContainerOptions{ID: "c", Runtime: "crun", Hooks: &specs.Hooks{CreateRuntime: call, Poststop: call}, Mapping: &harness.Mapping{HostID: 300000, Size: 65536}, Privileged: true,
			Annotations: map[string]string{"io.bindgate.volume.0": "driver=local,name=v,target=/new/v,idmap"}}
		// crun 1.8 cannot always join a user namespace that it made (setns: EPERM), so nothing is executed in the container later.
		o.Command = []string{"/bin/sh", "-c", "touch /new/v/file && chown 1000:1000 /new/v/file; mount -o remount,bind,suid /new/v 2> /new/v/remount"}
		o.CreateOnly = true
		c := h.Container(o)
		c.Start()
		c.Wait()
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(h.Volumes(), "v/file"), &st); err != nil || st.Uid != 1000 {
			t.Errorf("the file is %d's: %v", st.Uid, err)
		}
		if says := h.ReadFile(filepath.Join(h.Volumes(), "v/remount")); !strings.Contains(says, "ermission denied") {
			t.Errorf("remounting it says %q", says)
		}
		c.Delete()
		wantNothingLeft(t, h)

		says := h.Path("says")
		o.ID, o.Annotations = "refused", map[string]string{"io.bindgate.volume.0": "driver=local,name=v,target=/proc/v", "run.oci.hooks.stderr": says}
		if _, r := h.TryContainer(o); r.Exit == 0 || !strings.Contains(r.Stderr, "exit code: 77") || !strings.Contains(h.ReadFile(says), "bindgate: cannot ") {
			t.Errorf("%v\n%s", r, h.ReadFile(says))
		}
		wantNothingLeft(t, h)
	})
}
