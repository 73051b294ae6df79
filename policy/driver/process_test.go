package driver

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bindgate/bindgate/wire"
)

var built string // the folder with the plugin's program, once it was built

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "bgplugin")
	if err != nil {
		return "", err
	}
	built = dir
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "../../tests/plugins/testplugin").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(built) // which does nothing for ""
	os.Exit(code)
}

// process is tests/plugins/testplugin running as a process of its own, in its own mount namespace if there is root for that.
type process struct {
	*Plugin
	dir string
	cmd *exec.Cmd
}

func run(t *testing.T, args ...string) *process {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{dir: folder(t)}
	p.cmd = exec.Command(filepath.Join(bin, "testplugin"), append([]string{"-socket", p.dir + "/d.sock", "-root", p.dir + "/root", "-log", p.dir + "/log"}, args...)...)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		p.cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("testplugin: %v", err)
		}
		if _, err := os.Lstat(p.dir + "/d.sock"); err == nil {
			t.Error("testplugin leaves its socket behind")
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("testplugin says %q, %v", line, err)
	}
	p.Plugin = plugin(t, Options{SocketDirs: []string{p.dir}, Roots: []string{p.dir + "/root"}})
	return p
}

// mounts is the options of each mount that the plugin has below its root.
func (p *process) mounts(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], p.dir) {
			all[strings.TrimPrefix(f[4], p.dir)] = f[5]
		}
	}
	return all
}

func TestRealPlugin(t *testing.T) {
	p, ctx := run(t), t.Context()
	_, err := p.Get(ctx, "v/1")
	wants(t, err, wire.VolumeNotFound, "get", "v/1")
	for range 2 { // again: no error, no change
		if err := p.Create(ctx, "v/1", map[string]string{"size": "5"}); err != nil {
			t.Fatal(err)
		}
	}
	if path, err := p.Path(ctx, "v/1"); err != nil || path != "" {
		t.Errorf("Path before Mount: %q, %v", path, err)
	}
	m, err := p.Mount(ctx, "v/1", "id1")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(m); err != nil || !info.IsDir() {
		t.Errorf("the mountpoint %s: %v", m, err)
	}
	if v, err := p.Get(ctx, "v/1"); err != nil || v.Mountpoint != m || v.CreatedAt == "" {
		t.Errorf("Get: %+v, %v", v, err)
	}
	if all, err := p.List(ctx); err != nil || len(all) != 1 || all[0].Name != "v/1" || all[0].Mountpoint != m {
		t.Errorf("List: %+v, %v", all, err)
	}
	wants(t, p.Remove(ctx, "v/1"), wire.DriverError, "remove", "is mounted")
	if err := p.Unmount(ctx, "v/1", "id1"); err != nil {
		t.Error(err)
	}
	if err := p.Remove(ctx, "v/1"); err != nil {
		t.Error(err)
	}
	wants(t, p.Remove(ctx, "v/1"), wire.VolumeNotFound, "remove", "not found")
	if c, err := p.Capabilities(ctx); err != nil || c.Scope != ScopeLocal {
		t.Errorf("Capabilities: %v, %v", c, err)
	}

	data, err := os.ReadFile(p.dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	for line := range strings.Lines(string(data)) {
		var call struct{ Call, Name, ID string }
		decode(t, line, &call)
		calls = append(calls, strings.TrimSpace(call.Call+" "+call.Name+" "+call.ID))
	}
	want := []string{"Get v/1", "Create v/1", "Create v/1", "Path v/1", "Mount v/1 id1", "Get v/1", "List", "Remove v/1", "Unmount v/1 id1", "Remove v/1", "Remove v/1", "Capabilities"}
	if !slices.Equal(calls, want) {
		t.Errorf("log: %q, want %q", calls, want)
	}
}

// How the three kinds of plugins take the same calls, with real mounts.
func TestRealPluginCounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("bind mounts need root")
	}
	ctx := t.Context()
	for _, c := range []struct {
		count string
		steps string // m1: Mount with id 1, u1: Unmount with id 1, u1!: the same, which fails; and whether it is mounted then
		want  []bool
	}{
		{"calls", "m1 m1 u1 u1 u1!", []bool{true, true, true, false, false}},
		{"calls", "m1 m2 u1 u3", []bool{true, true, true, false}},
		{"ids", "m1 m1 u1 u1!", []bool{true, true, false, false}},
		{"ids", "m1 m2 u3! u1 u2", []bool{true, true, true, true, false}},
		{"none", "m1 m2 u1 u2", []bool{true, true, false, false}},
	} {
		t.Run(c.count+" "+c.steps, func(t *testing.T) {
			p := run(t, "-bind", "-count", c.count)
			if err := p.Create(ctx, "v", nil); err != nil {
				t.Fatal(err)
			}
			for i, step := range strings.Fields(c.steps) {
				id, fails := strings.CutSuffix(step[1:], "!")
				var err error
				if step[0] == 'm' {
					_, err = p.Mount(ctx, "v", id)
				} else {
					err = p.Unmount(ctx, "v", id)
				}
				if (err != nil) != fails {
					t.Fatalf("step %d, %s: %v", i, step, err)
				}
				want := map[string]string{}
				if c.want[i] {
					want["/root/mnt/v"] = "rw,nosuid,nodev"
				}
				got := p.mounts(t)
				for k, v := range got { // relatime and the like come from the filesystem below
					got[k] = strings.Join(strings.Split(v, ",")[:3], ",")
				}
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("after step %d, %s: mounts %v, want %v", i, step, got, want)
				}
			}
		})
	}
}

func TestRealPluginInTrouble(t *testing.T) {
	ctx := t.Context()
	p := run(t, "-fail", "Mount:v=disk = full", "-fail", "Unmount:w=busy", "-delay", "Mount:slow=1h", "-file")
	for _, name := range []string{"v", "w", "slow"} {
		if err := p.Create(ctx, name, nil); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.Mount(ctx, "v", "id1")
	wants(t, err, wire.DriverError, "mount", "disk = full")
	m, err := p.Mount(ctx, "w", "id1")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(m); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the mountpoint %s is no file: %v", m, err)
	}
	wants(t, p.Unmount(ctx, "w", "id1"), wire.DriverError, "unmount", "busy")

	// One slow volume delays neither the others nor the deadline. That the call has arrived shows in the log, which is written before the delay.
	slow := newDeadline(t)
	done := make(chan error)
	go func() {
		_, err := p.Mount(slow, "slow", "id1")
		done <- err
	}()
	for arrived := false; !arrived; {
		if _, err := p.Get(ctx, "w"); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(p.dir + "/log")
		if err != nil {
			t.Fatal(err)
		}
		arrived = strings.Contains(string(data), `{"call":"Mount","name":"slow","id":"id1"}`)
	}
	close(slow.passed)
	wants(t, <-done, wire.Timeout, "mount", `"slow"`)
}

// A plugin takes over a stale socket, and leaves one when it is killed.
func TestRealPluginKilled(t *testing.T) {
	dir := folder(t)
	stale(t, dir+"/d.sock")
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "testplugin"), "-socket", dir+"/d.sock", "-root", dir+"/root")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("testplugin says %q, %v", line, err)
	}
	p := plugin(t, Options{SocketDirs: []string{dir}})
	if err := p.Create(t.Context(), "v", nil); err != nil {
		t.Error(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	ctx := newDeadline(t)
	p.pause = func(context.Context, int) { close(ctx.passed) }
	wants(t, p.Create(ctx, "v", nil), wire.DriverUnavailable, "create", "nobody answers")
}
