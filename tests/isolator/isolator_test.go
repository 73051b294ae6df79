// Package isolator runs the example agent of examples/isolator as docs/isolator.md says: unprivileged, with no_new_privs, over the socket transport; and
// kills it before and after each command that it runs.
package isolator

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A site is what the agent works in.
type site struct {
	t     *testing.T
	h     *harness.Host
	agent string
	dir   string // the policy user's
	count string
	jobs  []string
}

func newSite(t *testing.T, h *harness.Host) *site {
	h.AllowAll()
	h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + "[helper]\ntransport = \"socket\"\n")
	h.ServeHelper()
	t.Cleanup(func() { h.RemoveCgroup(h.Cgroup() + "/agent") })
	s := &site{t: t, h: h, dir: h.Path("agent"), count: h.Path("agent/count")}
	// The build folder is the checkout's, which the policy user may not be able to reach.
	data, err := os.ReadFile(h.Program("isolator"))
	must(t, err)
	s.agent = h.Path("prefix/bin/isolator")
	must(t, os.WriteFile(s.agent, data, 0o755))
	h.Mkdir(s.dir, 0o755)
	must(t, os.Chown(s.dir, harness.PolicyUID, harness.PolicyGID))
	for _, program := range []string{h.Bindgate(), "runc"} {
		path, err := exec.LookPath(program)
		must(t, err)
		h.WriteFile(s.wrapper(program), wrapper(s.count, path), 0o755)
	}
	return s
}

func (s *site) wrapper(program string) string { return s.h.Path("tmp", filepath.Base(program)) }

// wrapper is a program that does what another does, and kills the agent, its parent, before or after its Nth call.
func wrapper(count, program string) string {
	return fmt.Sprintf(`#!/bin/sh
n=$(flock %[1]s.lock sh -c 'n=$(($(cat %[1]s) + 1)); echo $n >%[1]s; echo $n')
if [ "$n" = "$KILL_BEFORE" ]; then kill -9 $PPID; exit 1; fi
if [ "$n" = "$KILL_AFTER" ]; then %[2]s "$@"; kill -9 $PPID; exit 1; fi
exec %[2]s "$@"
`, count, program)
}

// add makes a job with a root filesystem of its own.
func (s *site) add(id, script, volumes string) {
	s.t.Helper()
	root := s.h.Path("bundles", id)
	s.h.Rootfs(root, harness.PolicyUID)
	file := filepath.Join(s.dir, id+".json")
	s.h.WriteFile(file, fmt.Sprintf(`{"rootfs":%q,"args":["/bin/sh","-ec",%q],"volumes":%s}`, root, script, volumes), 0o644)
	s.jobs = append(s.jobs, file)
}

// volume is a Mesos ContainerInfo with one volume.
func volume(driver, name, path string) string {
	return fmt.Sprintf(`{"type":"MESOS","volumes":[{"container_path":%q,"mode":"RW","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":%q,"name":%q}}}]}`, path, driver, name)
}

// start starts the agent as the policy user, with no_new_privs, in a cgroup that a target rule names: what it starts stays in it.
func (s *site) start(env ...string) *exec.Cmd {
	s.t.Helper()
	cmd := s.h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, "/bin/sh", append([]string{"-c", `read go; exec setpriv --no-new-privs "$@"`, "sh", s.agent,
		"-state", s.dir + "/state", "-bindgate", s.wrapper(s.h.Bindgate()), "-runc", s.wrapper("runc")}, s.jobs...)...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	must(s.t, err)
	must(s.t, os.WriteFile(s.count, []byte("0"), 0o666))
	must(s.t, os.Chown(s.count, harness.PolicyUID, harness.PolicyGID))
	must(s.t, cmd.Start())
	s.h.EnterCgroup(cmd.Process.Pid, s.h.Cgroup()+"/agent")
	fmt.Fprintln(in, "go")
	in.Close()
	return cmd
}

// end waits for the agent to end, and returns what it said and how it ended.
func (s *site) end(cmd *exec.Cmd) (string, syscall.WaitStatus) {
	s.t.Helper()
	cmd.Wait()
	return cmd.Stdout.(*bytes.Buffer).String(), cmd.ProcessState.Sys().(syscall.WaitStatus)
}

func (s *site) calls() int {
	n, err := strconv.Atoi(strings.TrimSpace(s.h.ReadFile(s.count)))
	must(s.t, err)
	return n
}

// finish runs the agent to its end, which must be a good one.
func (s *site) finish() {
	s.t.Helper()
	if out, ws := s.end(s.start()); ws != 0 {
		log, _ := exec.Command("sh", "-c", "cat "+s.dir+"/state/*.log").CombinedOutput()
		s.t.Fatalf("the agent ends with %v: %s\n%s", ws, out, log)
	}
}

// clean fails the test unless nothing is left of the jobs, but what they wrote.
func (s *site) clean(p *harness.Plugin) {
	s.t.Helper()
	if r := s.h.Policy("status", "-o", "json").OK(s.t); !strings.Contains(r.Stdout, `"containers":[],"volumes":[]`) {
		s.t.Errorf("left: %s", r.Stdout)
	}
	mounts, unmounts := p.Calls("Mount"), p.Calls("Unmount")
	open := map[string]int{}
	for _, m := range mounts {
		open[m.Name+" "+m.ID]++
	}
	for _, m := range unmounts {
		open[m.Name+" "+m.ID]--
	}
	for id, n := range open {
		if n != 0 {
			s.t.Errorf("%s: %d mounts more than unmounts", id, n)
		}
	}
	if strings.Contains(strings.Join(s.h.Mountinfo(), "\n"), p.Root+"/mnt/") {
		s.t.Errorf("still mounted: %v", s.h.Mountinfo())
	}
}

// healthy fails the test if doctor finds anything.
func (s *site) healthy() {
	s.t.Helper()
	if r := s.h.PolicyAs(harness.User{}, "", "doctor", "-o", "json"); r.Exit != 0 || strings.Contains(r.Stdout, `"warning"`) {
		s.t.Errorf("doctor: %v", r)
	}
}

// data is what the jobs wrote into a volume of the plugin's.
func data(h *harness.Host, p *harness.Plugin, name string) string {
	text, _ := os.ReadFile(filepath.Join(p.Root, "data", name, "log"))
	return string(text)
}

func TestIsolatorRunsJobs(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		s := newSite(t, h)
		p := h.Plugin("flock", "-bind")
		// The agent's user is root in its containers: what it may write to is up to the volume.
		s.add("writer", "grep -q 'NoNewPrivs:.1' /proc/self/status; grep ' /data ' /proc/self/mountinfo | grep -q nosuid; echo $(id -u) >>/data/log", volume("flock", "v", "/data"))
		must(t, os.MkdirAll(p.Root+"/data/v", 0o777))
		must(t, os.Chmod(p.Root+"/data/v", 0o777))
		s.finish()
		if got := data(h, p, "v"); got != "0\n" {
			t.Errorf("the volume holds %q", got)
		}
		s.clean(p)
		// A job that is refused is not run, and nothing is left of it.
		h.PolicyTOML(strings.ReplaceAll(h.ReadFile(h.Path("etc/bindgate/policy.toml")), `action = "allow"`, `action = "deny"`))
		s.add("denied", "echo no >>/data/log", volume("flock", "v", "/data"))
		if out, ws := s.end(s.start()); ws.ExitStatus() != 1 || !strings.Contains(out, "job denied: ") || !strings.Contains(out, "(denied)") {
			t.Errorf("%v: %s", ws, out)
		}
		if got := data(h, p, "v"); got != "0\n" {
			t.Errorf("the volume holds %q", got)
		}
		h.PolicyTOML(strings.ReplaceAll(h.ReadFile(h.Path("etc/bindgate/policy.toml")), `action = "deny"`, `action = "allow"`))
		s.clean(p)
	})
}

// The agent is killed before and after each command that it runs, with two containers under way that share a volume, and started again: each job has run
// exactly once, with its volume, and nothing is left.
func TestIsolatorLosesNothing(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		s := newSite(t, h)
		p := h.Plugin("flock", "-bind")
		for _, name := range []string{"BEFORE", "AFTER"} {
			killed := 0
			for n := 1; ; n++ {
				vol := fmt.Sprintf("v-%s-%d", strings.ToLower(name), n)
				must(t, os.MkdirAll(p.Root+"/data/"+vol, 0o777))
				must(t, os.Chmod(p.Root+"/data/"+vol, 0o777))
				must(t, os.RemoveAll(s.dir+"/state"))
				s.jobs = nil
				for _, id := range []string{"a", "b"} {
					s.add(fmt.Sprintf("%s-%s", id, vol), "grep -q ' /data ' /proc/self/mountinfo; echo "+id+" >>/data/log", volume("flock", vol, "/data"))
				}
				_, ws := s.end(s.start(fmt.Sprintf("KILL_%s=%d", name, n)))
				if !ws.Signaled() { // it makes fewer calls
					if s.calls() >= n {
						t.Errorf("%s %d: it was not killed: %v", name, n, ws)
					}
				} else {
					killed++
				}
				s.finish()
				got := data(h, p, vol)
				if got != "a\nb\n" && got != "b\na\n" {
					t.Errorf("killed %s call %d, the volume holds %q", name, n, got)
				}
				s.clean(p)
				if t.Failed() {
					return
				}
				if !ws.Signaled() {
					break
				}
			}
			if killed < 15 { // recover, and for each job prepare, spec, create, isolate, start, state, delete, cleanup
				t.Errorf("killed %d times only", killed)
			}
			s.healthy()
			t.Logf("killed %s each of %d calls", strings.ToLower(name), killed)
		}
	})
}

// Containers go on while no agent is there, and the next one finds them.
func TestIsolatorAdoptsWhatRuns(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		s := newSite(t, h)
		p := h.Plugin("flock", "-bind")
		must(t, os.MkdirAll(p.Root+"/data/v", 0o777))
		must(t, os.Chmod(p.Root+"/data/v", 0o777))
		h.Sh("mkfifo -m 666 " + p.Root + "/data/v/up " + p.Root + "/data/v/go").OK(t)
		s.add("long", "echo up >/data/up; read x </data/go; echo $x >>/data/log", volume("flock", "v", "/data"))
		cmd := s.start()
		h.Sh("cat " + p.Root + "/data/v/up").OK(t) // it runs
		must(t, cmd.Process.Kill())
		s.end(cmd)
		cmd = s.start()
		h.Sh("echo still here >" + p.Root + "/data/v/go").OK(t)
		if out, ws := s.end(cmd); ws != 0 {
			t.Errorf("%v: %s", ws, out)
		}
		if got := data(h, p, "v"); got != "still here\n" {
			t.Errorf("the volume holds %q", got)
		}
		if n := len(p.Calls("Mount")); n != 1 {
			t.Errorf("%d mounts", n)
		}
		s.clean(p)
		s.healthy()
	})
}
