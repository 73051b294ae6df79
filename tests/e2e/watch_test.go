package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// A watcher is a bindgate watch as its unit starts it, and what systemd would hear of it.
type watcher struct {
	t      *testing.T
	h      *harness.Host
	cmd    *exec.Cmd
	stderr bytes.Buffer
	said   chan string // line by line; somebody has to listen, or it waits
	file   string      // its metrics
}

// watch starts the installed unit's command, as root, and waits until it is ready. What the unit says may be said anew by env and args.
func watch(t *testing.T, h *harness.Host, owner string, args ...string) *watcher {
	t.Helper()
	w := &watcher{t: t, h: h, file: h.Path("run/bindgate/metrics", owner+".prom")}
	words := func(key string) []string {
		line := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(h.ReadFile(h.Unit("bindgate-watch.service")))
		if line == nil {
			t.Fatalf("the unit has no %s", key)
		}
		return strings.Fields(strings.ReplaceAll(line[1], "${OWNER}", owner))
	}
	pre := words("ExecStartPre")
	h.Do(exec.Command(pre[0], pre[1:]...)).OK(t)
	socket := filepath.Join(t.TempDir(), "notify")
	os.Chmod(filepath.Dir(socket), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(socket)), 0o755)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { notify.Close() })
	os.Chmod(socket, 0o777)
	w.said = make(chan string, 100000)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := notify.Read(buf)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				w.said <- strings.TrimSuffix(line, "\n")
			}
		}
	}()
	start := append(words("ExecStart"), args...)
	w.cmd = h.Command(harness.User{}, start[0], start[1:]...)
	w.cmd.Env = []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=400000", "OWNER=" + owner}
	w.cmd.Stderr = &w.stderr
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.cmd.Process.Kill(); w.cmd.Wait() })
	w.hears("READY=1")
	return w
}

// hears waits until the watch has said a line that a pattern matches, and forgets all up to it.
func (w *watcher) hears(pattern string) string {
	w.t.Helper()
	re := regexp.MustCompile("^(?:" + pattern + ")$")
	end := time.After(time.Minute)
	for {
		select {
		case line := <-w.said:
			if re.MatchString(line) {
				return line
			}
		case <-end:
			w.kill()
			w.t.Fatalf("the watch does not say %s\nstderr: %s", pattern, w.stderr.String())
		}
	}
}

// stop ends the watch as systemd does, and wants exit status 0.
func (w *watcher) stop() {
	w.t.Helper()
	w.cmd.Process.Signal(unix.SIGTERM)
	w.hears("STOPPING=1")
	if w.cmd.Wait(); w.cmd.ProcessState.ExitCode() != 0 {
		w.t.Errorf("the watch ended with %v: %s", w.cmd.ProcessState, w.stderr.String())
	}
}

// kill ends the watch as nobody should.
func (w *watcher) kill() {
	w.cmd.Process.Kill()
	w.cmd.Wait()
}

// metrics reads the file as Prometheus would, strictly: HELP and TYPE before the samples of a family, no sample twice.
func (w *watcher) metrics() map[string]float64 {
	w.t.Helper()
	line := regexp.MustCompile(`^(bindgate_[a-z_]+)(\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})? (\S+)$`)
	m, family, kind := map[string]float64{}, "", ""
	for l := range strings.Lines(w.h.ReadFile(w.file)) {
		l = strings.TrimSuffix(l, "\n")
		if rest, is := strings.CutPrefix(l, "# HELP "); is {
			family, _, _ = strings.Cut(rest, " ")
			kind = ""
			continue
		}
		if rest, is := strings.CutPrefix(l, "# TYPE "+family+" "); is {
			kind = rest
			continue
		}
		f := line.FindStringSubmatch(l)
		if f == nil || kind == "" {
			w.t.Fatalf("metrics: %q in the family %s", l, family)
		}
		name := f[1]
		if kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				name = strings.TrimSuffix(name, suffix)
			}
		}
		value, err := strconv.ParseFloat(f[3], 64)
		if _, twice := m[f[1]+f[2]]; err != nil || twice || name != family {
			w.t.Fatalf("metrics: %q in the family %s (%v)", l, family, err)
		}
		m[f[1]+f[2]] = value
	}
	return m
}

// awaitMetric waits until a sample has a value.
func (w *watcher) awaitMetric(name string, value float64) map[string]float64 {
	w.t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(w.file), unix.IN_MOVED_TO); err != nil {
		w.t.Fatal(err)
	}
	for {
		m := w.metrics()
		if got, there := m[name]; there && got == value {
			return m
		}
		if !readable(fd, unix.POLLIN) {
			w.t.Fatalf("%s does not become %v: %s\nstderr: %s", name, value, w.h.ReadFile(w.file), w.stderr.String())
		}
		unix.Read(fd, make([]byte, 4096))
	}
}

// awaitNoRecord waits until a container's record is gone.
func awaitNoRecord(t *testing.T, h *harness.Host, key string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	dir := filepath.Join(h.Journal(), "containers")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Lstat(filepath.Join(dir, key+".rec")); err != nil {
			return
		}
		if !readable(fd, unix.POLLIN) {
			t.Fatalf("the record %s stays", key)
		}
		unix.Read(fd, make([]byte, 4096))
	}
}

func TestWatch(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "ids")
		other := h.SharedRoot(harness.SharedRootOptions{ID: "other"})
		attach(t, h, other, "--owner", "other", plugin("plugin", "theirs", h.Mkdir(filepath.Join(h.HostPaths(), "other"), 0o755)))
		dead := h.Container(harness.ContainerOptions{ID: "dead"})
		attach(t, h, dead, plugin("plugin", "old", "/v"))
		dead.Kill()
		early := h.Container(harness.ContainerOptions{ID: "early"})
		attach(t, h, early, plugin("plugin", "shared", "/v"), "-v", "local:/local")

		w := watch(t, h, "default", "--interval", "1h")
		w.hears("STATUS=waiting for the end of 1 containers; recovered .*Z?")
		if calls := p.Calls("Unmount"); len(calls) != 1 || calls[0].Name != "old" {
			t.Errorf("at its start: %v", calls)
		}
		for _, who := range []string{"Uid", "Gid"} { // it is the policy user, in all four
			if want := regexp.MustCompile(fmt.Sprintf(`(?m)^%s:(\t%d){4}$`, who, harness.PolicyUID)); !want.MatchString(h.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))) {
				t.Errorf("%s is not the policy user's", who)
			}
		}
		late := h.SharedRoot(harness.SharedRootOptions{ID: "late"})
		h.Policy("prepare", "--container", "late", plugin("plugin", "shared", h.Mkdir(filepath.Join(h.HostPaths(), "late"), 0o755))).OK(t)
		h.Policy("isolate", "--container", "late", "--pid", late.PIDString()).OK(t)
		w.hears("STATUS=waiting for the end of 2 containers; .*")
		w.hears("WATCHDOG=1")
		w.hears("WATCHDOG=1") // and again, though nothing happens
		w.awaitMetric("bindgate_containers_watched", 2)
		m := w.awaitMetric("bindgate_mounts", 3) // which comes later: it follows a container from before its volumes are attached
		for name, want := range map[string]float64{`bindgate_info{version="test",owner="default"}`: 1, `bindgate_containers{phase="isolated"}`: 2, `bindgate_containers{phase="cleaning"}`: 0,
			"bindgate_containers_watched": 2, "bindgate_volumes": 2, "bindgate_volumes_pending": 0, "bindgate_pending_oldest_timestamp_seconds": 0, "bindgate_orphans": 0,
			"bindgate_records_untrusted": 0, `bindgate_cleanups_total{result="ok"}`: 0, `bindgate_recovers_total{result="ok"}`: 1,
			`bindgate_driver_call_duration_seconds_count{driver="plugin",call="unmount"}`: 1, `bindgate_driver_call_duration_seconds_bucket{driver="plugin",call="unmount",le="+Inf"}`: 1,
			`bindgate_helper_call_duration_seconds_count{op="sweep"}`: 1} {
			if got, there := m[name]; !there || got != want {
				t.Errorf("%s is %v (%v), want %v", name, got, there, want)
			}
		}
		if began := m["bindgate_last_recover_timestamp_seconds"]; began == 0 || began > float64(time.Now().Unix()+1) || began != m["bindgate_last_recover_success_timestamp_seconds"] {
			t.Errorf("last recover: %v", m)
		}

		early.Kill()
		awaitNoRecord(t, h, "default@early")
		if n := len(p.Calls("Unmount")); n != 1 {
			t.Error("the volume was unmounted under the other container")
		}
		other.Kill()
		late.Kill()
		awaitNoRecord(t, h, "default@late")
		m = w.awaitMetric(`bindgate_cleanups_total{result="ok"}`, 2)
		if m["bindgate_volumes"] != 0 || m["bindgate_containers_watched"] != 0 || m["bindgate_mounts"] != 0 {
			t.Errorf("at the end: %v", m)
		}
		w.stop()
		if left, _ := filepath.Glob(filepath.Dir(w.file) + "/*"); !slices.Equal(left, []string{w.file}) {
			t.Errorf("left: %v", left)
		}
		if d := status(t, h); len(d.Containers) != 1 || d.Containers[0].Owner != "other" {
			t.Errorf("another owner's container was touched: %+v", d)
		}
		cleanup(t, h, "other", "--owner", "other")
		wantBalance(t, h, p, 3)
		wantNothingLeft(t, h)

		h.Policy("watch", "-o", "json", "--metrics", h.Path("etc/metrics")).Fails(t, wire.System)
		h.Policy("watch", "-o", "json", "--interval", "0s").Fails(t, wire.Usage)
	})
}

// Killed at any time it loses nothing, and a second one and the agent's own commands are no harm.
func TestWatchIsKilled(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "ids", "-delay", "Unmount:slow=1s")
		w, second := watch(t, h, "default"), watch(t, h, "default")
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		attach(t, h, c, plugin("plugin", "slow", h.Mkdir(filepath.Join(h.HostPaths(), "c"), 0o755)))
		w.kill()
		c.Kill()
		awaitCall(t, h, p, "Unmount", 1)
		second.kill() // with the driver's call under way
		d := h.SharedRoot(harness.SharedRootOptions{ID: "d"})
		attach(t, h, d, plugin("plugin", "other", h.Mkdir(filepath.Join(h.HostPaths(), "d"), 0o755)))
		d.Kill()
		w, second = watch(t, h, "default"), watch(t, h, "default")
		for _, id := range []string{"c", "d"} {
			h.Policy("cleanup", "--container", id).OK(t)
		}
		w.stop()
		second.stop()
		for _, line := range h.Mountinfo() {
			if strings.Contains(line, p.Root) {
				t.Errorf("still mounted: %s", line)
			}
		}
		wantNothingLeft(t, h)

		// SIGTERM with the driver's call under way: it is finished first.
		w = watch(t, h, "default")
		c = h.SharedRoot(harness.SharedRootOptions{ID: "e"})
		attach(t, h, c, plugin("plugin", "slow", h.Mkdir(filepath.Join(h.HostPaths(), "e"), 0o755)))
		w.hears("STATUS=waiting for the end of 1 containers.*")
		n := len(p.Calls("Unmount"))
		c.Kill()
		awaitCall(t, h, p, "Unmount", n+1)
		w.stop()
		wantNothingLeft(t, h)
		if len(p.Calls("Unmount")) != n+1 {
			t.Errorf("Unmount: %v", p.Calls("Unmount"))
		}
	})
}

// Where the helper is reached over a socket the watch is confined to what it needs: the journal, and where its metrics go.
func TestWatchOverTheSocket(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		socket := serveHelper(t, h)
		h.PolicyTOML(harness.DefaultPolicyTOML + "[helper]\ntransport = \"socket\"\nsocket = \"" + socket + "\"\n[[rule]]\naction = \"allow\"\n")
		p := h.Plugin("plugin", "-bind")
		w := watch(t, h, "default", "--interval", "1h")
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		attach(t, h, c, plugin("plugin", "v", h.Mkdir(filepath.Join(h.HostPaths(), "c"), 0o755)))
		w.hears("STATUS=waiting for the end of 1 containers; .*")
		c.Kill()
		awaitNoRecord(t, h, "default@c")
		w.awaitMetric(`bindgate_cleanups_total{result="ok"}`, 1)
		if s := h.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid)); !strings.Contains(s, "NoNewPrivs:\t1\n") {
			t.Errorf("it is not confined: %s", s)
		}
		w.stop()
		wantBalance(t, h, p, 1)
		wantNothingLeft(t, h)
	})
}

// What is pending is tried again, by itself: when a driver is back, and when a process ends that held a mount.
func TestWatchTriesAgain(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		policyTOML(h, "[timeouts]\nunmount = \"1s\"\n")
		p := h.Plugin("plugin", "-bind", "-count", "none") // one that unmounts what it has forgotten, too
		w := watch(t, h, "default", "--interval", "1h")
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		attach(t, h, c, plugin("plugin", "v", at))
		p.Stop()
		c.Kill()
		w.hears("STATUS=.*, [1-9] pending, .*")
		m := w.awaitMetric("bindgate_volumes_pending", 1)
		if m["bindgate_pending_oldest_timestamp_seconds"] == 0 {
			t.Errorf("%v", m)
		}
		p.Start()
		awaitNoRecord(t, h, "default@c")
		w.awaitMetric("bindgate_volumes_pending", 0)

		c = h.SharedRoot(harness.SharedRootOptions{ID: "d"})
		attach(t, h, c, plugin("plugin", "v", at))
		holder := stayIn(t, c, at)
		c.Kill()
		w.hears("STATUS=.*, [1-9] pending, .*")
		w.awaitMetric(`bindgate_cleanups_total{result="busy"}`, 1)
		holder.Process.Kill()
		holder.Wait()
		awaitNoRecord(t, h, "default@d")
		w.stop()
		wantBalance(t, h, p, 2)
		wantNothingLeft(t, h)
	})
}

// stayIn starts a process in a container's mount namespace that outlives the container, with its working directory there.
func stayIn(t *testing.T, c *harness.Container, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("nsenter", "-t", c.PIDString(), "-m", "/bin/sh", "-c", "cd "+dir+" && echo ready && exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if n, err := out.Read(make([]byte, 8)); n == 0 {
		t.Fatalf("nothing stays in %s: %v", c.ID, err)
	}
	return cmd
}

// What no event tells of is found on the timer: here a temporary file that a crash left, which appears after the watch has recovered once.
func TestWatchRecoversOnATimer(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		w := watch(t, h, "default", "--interval", "1s")
		for i := range 2 { // more than the one recover that it begins with
			left := filepath.Join(h.Journal(), "containers", fmt.Sprintf(".default@x.rec%d", i))
			h.WriteFile(left, "torn", 0o600)
			if err := os.Chown(left, harness.PolicyUID, harness.PolicyGID); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Lstat(left); err != nil {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s stays: the watch does not recover by itself", left)
				}
			}
		}
		w.stop()
		wantNothingLeft(t, h)
	})
}
