package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// The rules of DESIGN section 3 that the other tests do not show, with real plugins and real processes.

// policyTOML adds to policy.toml.
func policyTOML(h *harness.Host, more string) {
	h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + more)
}

// plugin names a volume of a plugin as a flag.
func plugin(driver, name, target string) string {
	return "--mount=driver=" + driver + ",name=" + name + ",target=" + target
}

// failed decodes the error of a command that ran with -o json.
func failed(t *testing.T, r harness.Result, code wire.Code) (e lifecycle.Error) {
	t.Helper()
	r.Fails(t, code)
	var doc struct {
		Schema string          `json:"schema"`
		Error  lifecycle.Error `json:"error"`
	}
	(harness.Result{Command: r.Command, Stdout: r.Stderr}).JSON(t, &doc)
	return doc.Error
}

func recovered(t *testing.T, h *harness.Host, exit int, args ...string) (d lifecycle.Recovered) {
	t.Helper()
	h.Policy(append([]string{"recover", "-o", "json"}, args...)...).Exits(t, exit).JSON(t, &d)
	return d
}

func wantIDs(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if got == nil || !slices.Equal(got, append([]string{}, want...)) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestCountingByContainer(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		policyTOML(h, "[driver.each]\ncounting = \"container\"\n")
		p := h.Plugin("each", "-bind", "-count", "ids")
		for i, id := range []string{"a", "b"} {
			c := h.SharedRoot(harness.SharedRootOptions{ID: id})
			attach(t, h, c, plugin("each", "v", h.Mkdir(filepath.Join(h.HostPaths(), id), 0o755)))
			if n := len(p.Calls("Mount")); n != i+1 {
				t.Errorf("%d Mounts for %d containers", n, i+1)
			}
			defer func() {
				c.Kill()
				cleanup(t, h, id)
				if n := len(p.Calls("Unmount")); n != 2-i { // the last deferred is the first here
					t.Errorf("%d Unmounts after the cleanup of %s", n, id)
				}
				if i == 0 {
					wantBalance(t, h, p, 2)
					wantNothingLeft(t, h)
				}
			}()
		}
	})
}

func TestNestedContainers(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Policy("prepare", "--container", "child", "--parent", "pod", "-v", "v:/v", "-o", "json").Fails(t, wire.NotFound)
		h.PolicyIn("[]", "prepare", "--container", "pod").OK(t)
		h.Policy("prepare", "--container", "child", "--parent", "pod", "-v", "v:/v").OK(t)
		h.Policy("prepare", "--container", "grandchild", "--parent", "child", "-v", "v:/v").OK(t)
		for _, id := range []string{"pod", "child"} {
			if msg := h.Policy("cleanup", "--container", id, "-o", "json").Fails(t, wire.Busy); !strings.Contains(msg, "child") {
				t.Errorf("the nested container is not named: %s", msg)
			}
		}
		// An agent that knows none of them: children first.
		if d := recovered(t, h, 0, "--known", ""); len(d.Cleaned) != 3 {
			t.Errorf("recover: %+v", d)
		}
		wantNothingLeft(t, h)
	})
}

func TestOwnersAreApart(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		for _, owner := range []string{"one", "two"} {
			at := h.Mkdir(filepath.Join(h.HostPaths(), owner), 0o755)
			attach(t, h, c, "--owner", owner, plugin("plugin", "v", at))
		}
		if d := status(t, h); len(d.Containers) != 2 || len(d.Volumes) != 1 {
			t.Errorf("status of all: %+v", d)
		}
		if d := status(t, h, "--owner", "one"); len(d.Containers) != 1 || d.Containers[0].Owner != "one" {
			t.Errorf("status of one: %+v", d)
		}
		c.Kill()
		// Neither recover nor cleanup touches what is another's.
		if d := recovered(t, h, 0); len(d.Cleaned) != 0 {
			t.Errorf("recover of nobody's: %+v", d)
		}
		if d := cleanup(t, h, "c"); d.Known {
			t.Errorf("cleanup of nobody's: %+v", d)
		}
		wantIDs(t, "cleaned", recovered(t, h, 0, "--owner", "one").Cleaned, "c")
		if n := len(p.Calls("Unmount")); n != 0 {
			t.Errorf("unmounted while the other owner's container is there")
		}
		if d := cleanup(t, h, "c", "--owner", "two"); !d.Known || len(d.Unmounted) != 1 {
			t.Errorf("cleanup of two's: %+v", d)
		}
		wantBalance(t, h, p, 1)
		wantNothingLeft(t, h)
	})
}

func TestMountsByAgent(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		var d prepareDoc
		h.Policy("prepare", "-o", "json", "--container", "c", "--mounts-by", "agent", plugin("plugin", "v", "/data")+",readonly,noexec,subpath=sub").OK(t).JSON(t, &d)
		if len(d.Mounts) != 1 || d.Mounts[0].Source != filepath.Join(p.Root, "mnt/v/sub") || d.Mounts[0].Target != "/data" ||
			!slices.Equal(d.Mounts[0].Options, []string{"rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"}) {
			t.Errorf("prepare: %+v", d.Mounts)
		}
		c, other := h.SharedRoot(harness.SharedRootOptions{ID: "c"}), h.SharedRoot(harness.SharedRootOptions{ID: "other"})
		h.Policy("isolate", "-o", "json", "--container", "c", "--pid", c.PIDString()).Fails(t, wire.Conflict)
		h.Policy("bind", "--container", "c", "--pid", c.PIDString()).OK(t)
		h.Policy("bind", "--container", "c", "--pid", c.PIDString()).OK(t)
		h.Policy("bind", "-o", "json", "--container", "c", "--pid", other.PIDString()).Fails(t, wire.Conflict)
		h.Policy("cleanup", "-o", "json", "--container", "c").Fails(t, wire.Busy)
		wantIDs(t, "kept", recovered(t, h, 0).Kept, "c")
		c.Kill()
		wantIDs(t, "cleaned", recovered(t, h, 0).Cleaned, "c")
		wantBalance(t, h, p, 1)

		h.Policy("prepare", "--container", "c", "-v", "v:/data").OK(t)
		h.Policy("bind", "-o", "json", "--container", "c", "--pid", other.PIDString()).Fails(t, wire.Conflict)
		cleanup(t, h, "c")
		wantNothingLeft(t, h)
	})
}

func TestStaleRecord(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		c, other := h.SharedRoot(harness.SharedRootOptions{ID: "c"}), h.SharedRoot(harness.SharedRootOptions{ID: "other"})
		h.Policy("prepare", "--container", "c", plugin("plugin", "old", at)).OK(t)
		h.Policy("prepare", "-o", "json", "--container", "c", plugin("plugin", "new", at)).Fails(t, wire.Conflict)
		h.Policy("isolate", "--container", "c", "--pid", c.PIDString()).OK(t)
		h.Policy("isolate", "-o", "json", "--container", "c", "--pid", other.PIDString()).Fails(t, wire.Conflict)
		h.Policy("prepare", "-o", "json", "--container", "c", plugin("plugin", "new", at)).Fails(t, wire.Conflict)
		c.Kill()
		// Its process is gone: cleaned up first, unasked.
		h.Policy("prepare", "--container", "c", plugin("plugin", "new", at)).OK(t)
		if calls := p.Calls("Unmount"); len(calls) != 1 || calls[0].Name != "old" {
			t.Errorf("Unmount: %v", calls)
		}
		h.Policy("isolate", "--container", "c", "--pid", other.PIDString()).OK(t)
		other.Kill()
		cleanup(t, h, "c")
		wantBalance(t, h, p, 2)
		wantNothingLeft(t, h)
	})
}

// SIGTERM and SIGINT undo what is under way; SIGKILL leaves a record from which recover rolls it back.
func TestInterrupt(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		fifo := h.Path("tmp", "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		p := h.Plugin("plugin", "-bind", "-hold", "Mount:slow="+fifo, "-delay", "Mount:slow=2s") // so that a signal comes before its answer
		n := 0
		prepare := func() *exec.Cmd {
			cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), "prepare", "-o", "json", "--container", "c",
				plugin("plugin", "slow", "/slow"), plugin("plugin", "quick", "/quick"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			n += 2
			awaitCall(t, h, p, "Mount", n)
			return cmd
		}
		for sig, exit := range map[syscall.Signal]int{unix.SIGTERM: 143, unix.SIGINT: 130} {
			cmd := prepare()
			// Status waits for nobody.
			if d := status(t, h); len(d.Containers) != 1 || d.Containers[0].Phase != "preparing" {
				t.Errorf("status: %+v", d)
			}
			cmd.Process.Signal(sig)
			h.WriteFile(fifo, "go on", 0o600)
			if cmd.Wait(); cmd.ProcessState.ExitCode() != exit {
				t.Errorf("%v: %v, want %d", sig, cmd.ProcessState, exit)
			}
			wantBalance(t, h, p, n)
			wantNothingLeft(t, h)
		}
		cmd := prepare()
		cmd.Process.Kill()
		cmd.Wait()
		h.WriteFile(fifo, "go on", 0o600)
		awaitMount(t, h, filepath.Join(p.Root, "mnt/slow"))
		d := recovered(t, h, 0)
		wantIDs(t, "rolled back", d.RolledBack, "c")
		if len(d.Unmounted) == 0 {
			t.Errorf("recover: %+v", d)
		}
		wantBalance(t, h, p, n)
		wantNothingLeft(t, h)
	})
}

// A driver that does not answer in time is given up. What it completes later is unmounted.
func TestDeadlineWithLateMount(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		policyTOML(h, "[driver.plugin.timeouts]\nmount = \"700ms\"\n")
		fifo := h.Path("tmp", "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		p, other := h.Plugin("plugin", "-bind", "-hold", "Mount:late="+fifo), h.Plugin("other", "-bind") // which has the time that it takes
		e := failed(t, h.Policy("prepare", "-o", "json", "--container", "c", plugin("plugin", "late", "/late"), plugin("other", "quick", "/quick")), wire.Timeout)
		if !strings.Contains(e.Message, "mount volume plugin/late") || !strings.Contains(e.Message, "did not answer within") || e.Stage != "mount" ||
			len(e.Causes) != 1 || e.Causes[0].Name != "late" || e.Causes[0].ElapsedMS < 700 ||
			len(e.Undone) != 1 || e.Undone[0].Name != "quick" || !slices.ContainsFunc(e.Left, func(s lifecycle.Step) bool { return s.Name == "late" && s.Stage == "mount" }) {
			t.Errorf("%+v", e)
		}
		if r := h.Policy("status", "-o", "json").OK(t); !strings.Contains(r.Stdout, `"containers":[]`) || !strings.Contains(r.Stdout, `"pending":{`) {
			t.Errorf("%v", r)
		}
		h.WriteFile(fifo, "go on", 0o600)
		awaitMount(t, h, filepath.Join(p.Root, "mnt/late"))
		if d := recovered(t, h, 0); len(d.Unmounted) != 1 || d.Unmounted[0].Name != "late" {
			t.Errorf("recover: %+v", d)
		}
		wantBalance(t, h, p, 1)
		wantBalance(t, h, other, 1)
		wantNothingLeft(t, h)
	})
}

// If one volume fails, the others are waited for and undone, and every failure is told.
func TestAllVolumesOrNone(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-fail", "Mount:bad=no medium", "-fail", "Create:worse=quota exceeded", "-delay", "Mount:slow=500ms")
		e := failed(t, h.Policy("prepare", "-o", "json", "--container", "c", plugin("plugin", "bad", "/1"), plugin("plugin", "worse", "/2"), plugin("plugin", "slow", "/3"),
			plugin("plugin", "good", "/4"), plugin("nobody", "v", "/5")), wire.DriverError)
		var names []string
		for _, c := range e.Causes {
			names = append(names, c.Driver+"/"+c.Name+" "+string(c.Code))
		}
		if want := []string{"plugin/bad driver_error", "plugin/worse driver_error", "nobody/v driver_unavailable"}; !slices.Equal(names, want) {
			t.Errorf("causes %v, want %v", names, want)
		}
		for _, words := range []string{"no medium", "quota exceeded", "nobody"} {
			if !strings.Contains(e.Message, words) {
				t.Errorf("%q is not in %s", words, e.Message)
			}
		}
		if len(e.Undone) != 2 { // the slow one was waited for
			t.Errorf("undone: %+v", e.Undone)
		}
		var mounted []harness.Call
		for _, c := range p.Calls("Mount") {
			if c.Name != "bad" {
				mounted = append(mounted, c)
			}
		}
		if len(mounted) != 2 || len(p.Calls("Unmount")) != 2 {
			t.Errorf("Mount %v, Unmount %v", mounted, p.Calls("Unmount"))
		}
		wantNothingLeft(t, h)

		// Volumes of one container are mounted in parallel, operations on one volume one at a time.
		fifo := func(name string) string { return h.Path("tmp", "fifo-"+name) }
		var holds []string
		for _, name := range []string{"a", "b", "c"} {
			if err := unix.Mkfifo(fifo(name), 0o600); err != nil {
				t.Fatal(err)
			}
			holds = append(holds, "-hold", "Mount:"+name+"="+fifo(name))
		}
		slow := h.Plugin("slow", append(holds, "-bind")...)
		results := make(chan harness.Result)
		for _, id := range []string{"one", "two"} {
			go func() {
				results <- h.Policy("prepare", "--container", id, plugin("slow", "a", "/a"), plugin("slow", "b", "/b"), plugin("slow", "c", "/c"))
			}()
		}
		awaitCall(t, h, slow, "Mount", 3) // all three are under way, though none of them is answered
		for _, name := range []string{"a", "b", "c"} {
			h.WriteFile(fifo(name), "", 0o600)
		}
		(<-results).OK(t)
		(<-results).OK(t)
		cleanup(t, h, "one")
		if n := len(slow.Calls("Unmount")); n != 0 {
			t.Error("unmounted while the other container is there")
		}
		cleanup(t, h, "two")
		wantBalance(t, h, slow, 3)
		wantNothingLeft(t, h)
	})
}

// Many processes want one volume and let it go: the driver sees one at a time, each Mount followed by its Unmount.
func TestOneVolumeOfManyProcesses(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "calls")
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for n := range 3 {
					id := fmt.Sprintf("c%d-%d", i, n)
					for _, args := range [][]string{{"prepare", "--container", id, plugin("plugin", "v", "/v")}, {"cleanup", "--container", id}} {
						if r := h.Policy(args...); r.Exit != 0 {
							t.Error(r)
						}
					}
				}
			})
		}
		all.Wait()
		var open string
		for _, c := range p.Calls("Mount", "Unmount") {
			if open != map[string]string{"Mount": "", "Unmount": c.ID}[c.Call] {
				t.Errorf("%s %s while %q is mounted", c.Call, c.ID, open)
			}
			open = map[string]string{"Mount": c.ID}[c.Call]
		}
		wantBalance(t, h, p, len(p.Calls("Mount")))
		if len(p.Calls("Create")) != 1 {
			t.Errorf("created %d times", len(p.Calls("Create")))
		}
		wantNothingLeft(t, h)
	})
}

// A local volume that a job names and nobody has made is made, with a word about its owner and mode, in both forms of output; not again, and not for one that
// was made on purpose.
func TestLocalVolumeMadeByAJobIsAWarning(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		const words = "did not exist and was created; its owner and mode may not be what the job needs"
		h.Policy("volume", "create", "--opt", "mode=0750", "--opt", "uid=1000", "--opt", "gid=1001", "meant").OK(t)
		if r := h.Sh("stat -c '%a %u %g' " + filepath.Join(h.Volumes(), "meant")); r.Stdout != "750 1000 1001\n" {
			t.Errorf("%v", r)
		}
		var d prepareDoc
		h.Policy("prepare", "-o", "json", "--container", "a", "-v", "v:/v", "-v", "meant:/m").OK(t).JSON(t, &d)
		if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "volume local/v "+words) || !d.Volumes[0].Created || d.Volumes[1].Created {
			t.Errorf("%+v", d)
		}
		if r := h.Policy("prepare", "-o", "table", "--container", "b", "-v", "w:/w").OK(t); !strings.Contains(r.Stderr, "warning: volume local/w "+words) {
			t.Errorf("%v", r)
		}
		d = prepareDoc{}
		h.Policy("prepare", "-o", "json", "--container", "c", "-v", "v:/v").OK(t).JSON(t, &d)
		if len(d.Warnings) != 0 {
			t.Errorf("again: %+v", d.Warnings)
		}
		c := h.Container(harness.ContainerOptions{ID: "d"})
		if r := h.Policy("attach", "-o", "json", "--container", "d", "--pid", c.PIDString(), "-v", "x:/x").OK(t); !strings.Contains(r.Stdout, "volume local/x "+words) {
			t.Errorf("attach: %v", r)
		}
		// Docker's rule for names, in a job and by itself, but that one character is enough. Nobody has to ask the helper to know that a name is none.
		h.Policy("volume", "create", "0").OK(t)
		h.Policy("volume", "create", "A.b_c-"+strings.Repeat("d", 242)).OK(t)
		log := h.ReadFile(h.AuditLog())
		for _, name := range []string{"../v", "a/b", ".v", "-v", "_v", "a b", "", "ä", "a:b", "a,b", strings.Repeat("d", 249)} {
			h.Policy("volume", "create", "-o", "json", "--", name).Fails(t, wire.InvalidRequest)
			h.PolicyIn(containerInfo(mesosVolume("local", name, "/v", "RW")), "prepare", "-o", "json", "--container", "e").Fails(t, wire.InvalidRequest)
		}
		if now := h.ReadFile(h.AuditLog()); now != log {
			t.Errorf("the helper was asked: %s", strings.TrimPrefix(now, log))
		}
	})
}

func TestUnmountPending(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-fail", "Unmount:v=device is busy")
		prepare := func() { t.Helper(); h.Policy("prepare", "--container", "c", plugin("plugin", "v", "/v")).OK(t) }
		pending := func(exit int, words string) {
			t.Helper()
			var d cleanupDoc
			r := h.Policy("cleanup", "-o", "json", "--container", "c").Exits(t, exit).JSON(t, &d)
			if len(d.Pending) != 1 || d.Pending[0].Name != "v" || d.Pending[0].Since == "" || !strings.Contains(d.Pending[0].Error, words) || !strings.Contains(r.Stderr, words) {
				t.Errorf("%+v: %v", d.Pending, r)
			}
		}
		prepare()
		pending(75, "device is busy")
		// It counts as no reference: another container's prepare cancels it, and asks for no second Mount.
		h.Policy("prepare", "--container", "d", plugin("plugin", "v", "/v")).OK(t)
		h.Policy("cleanup", "--container", "c").OK(t)
		if n := len(p.Calls("Mount")); n != 1 {
			t.Errorf("%d Mounts", n)
		}
		if n := len(p.Calls("Unmount")); n != 1 {
			t.Errorf("%d Unmounts", n)
		}
		h.Policy("cleanup", "--container", "d").Exits(t, 75)
		if d := recovered(t, h, 75); len(d.Pending) != 1 {
			t.Errorf("recover: %+v", d)
		}
		n := len(p.Calls("Unmount"))
		if d := recovered(t, h, 75, "--no-drivers"); len(d.Pending) != 1 || len(p.Calls("Unmount")) != n {
			t.Errorf("recover --no-drivers: %+v, %v", d, p.Calls("Unmount"))
		}
		// --forget: the plugin is gone for good. Nobody is asked, and it is told.
		if r := h.Policy("cleanup", "-o", "json", "--container", "d", "--forget").OK(t); !strings.Contains(r.Stderr, "without asking the drivers") || len(p.Calls("Unmount")) != n {
			t.Errorf("cleanup --forget: %v", r)
		}
		log := strings.Split(strings.TrimSpace(h.ReadFile(h.AuditLog())), "\n")
		for _, word := range []string{`"event":"done"`, `"op":"detach"`, `"container":"d"`, `"forget":"1"`} {
			if last := log[len(log)-1]; !strings.Contains(last, word) {
				t.Errorf("cleanup --forget of a container that had nothing attached: the audit log does not say %s: %s", word, last)
			}
		}
		wantNothingLeft(t, h)

		// The next cleanup tries again, and so does recover.
		for _, again := range [][]string{{"cleanup", "--container", "c"}, {"recover"}} {
			p.Stop()
			p = h.Plugin("plugin", "-fail", "Unmount:v=device is busy")
			prepare()
			pending(75, "device is busy")
			p.Stop()
			p = h.Plugin("plugin")
			h.Policy(again...).OK(t)
			wantNothingLeft(t, h)
		}
	})
}

func TestCleanupOfTheLiving(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind", "-count", "ids")
		c := h.Container(harness.ContainerOptions{ID: "c"})
		attach(t, h, c, plugin("plugin", "v", "/v"))
		if msg := h.Policy("cleanup", "-o", "json", "--container", "c").Fails(t, wire.Busy); !strings.Contains(msg, c.PIDString()) {
			t.Errorf("its process is not named: %s", msg)
		}
		if d := cleanup(t, h, "c", "--force"); len(d.Detached) != 1 || len(d.Unmounted) != 1 {
			t.Errorf("cleanup --force: %+v", d)
		}
		wantMounted(t, c, "/v", 0)
		wantBalance(t, h, p, 1)

		// A mount that was lost is asked for again with the same id.
		h.Policy("prepare", "--container", "a", plugin("plugin", "v", "/v")).OK(t)
		at := filepath.Join(p.Root, "mnt/v")
		if err := unix.Unmount(at, 0); err != nil {
			t.Fatal(err)
		}
		h.Policy("prepare", "--container", "b", plugin("plugin", "v", "/v")).OK(t)
		calls := p.Calls("Mount")
		if len(calls) != 3 || calls[1].ID != calls[2].ID || calls[0].ID == calls[1].ID {
			t.Errorf("Mount: %v", calls)
		}
		awaitMount(t, h, at)
		cleanup(t, h, "a")
		if d := cleanup(t, h, "b"); len(d.Unmounted) != 1 {
			t.Errorf("cleanup: %+v", d)
		}

		// The last detach of a container that attach made known drops its record.
		attach(t, h, c, "-v", "x:/x")
		attach(t, h, c, "-v", "y:/y")
		h.Policy("detach", "--container", "c", "--path", "/x").OK(t)
		if d := status(t, h); len(d.Containers) != 1 {
			t.Errorf("status: %+v", d)
		}
		h.Policy("detach", "--container", "c", "--driver", "local", "--name", "y").OK(t)
		wantNothingLeft(t, h)
	})
}

// A process that outlives the container's first holds its mount namespace, and with it the volume.
func TestNoUnmountUnderALiveNamespace(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		attach(t, h, c, plugin("plugin", "v", at))
		left := exec.Command("nsenter", "-t", c.PIDString(), "-m", "/bin/sh", "-c", "cd "+at+" && echo ready && exec sleep 1000")
		out, err := left.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := left.Start(); err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 8))
		c.Kill()
		var d cleanupDoc
		r := h.Policy("cleanup", "-o", "json", "--container", "c").Exits(t, 75).JSON(t, &d)
		if len(d.Pending) != 1 || len(d.Pending[0].Holders) == 0 || d.Pending[0].Holders[0].PID != left.Process.Pid || !strings.Contains(r.Stderr, fmt.Sprint(left.Process.Pid)) {
			t.Errorf("cleanup: %+v, %v", d, r)
		}
		if n := len(p.Calls("Unmount")); n != 0 {
			t.Error("the driver was asked to unmount what is in use")
		}
		if d := recovered(t, h, 75); len(d.Pending) != 1 {
			t.Errorf("recover: %+v", d)
		}
		left.Process.Kill()
		left.Wait()
		cleanup(t, h, "c")
		wantBalance(t, h, p, 1)
		wantNothingLeft(t, h)
	})
}

func TestRecover(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		start := func(id string) *harness.Container {
			t.Helper()
			c := h.SharedRoot(harness.SharedRootOptions{ID: id})
			attach(t, h, c, plugin("plugin", "v", h.Mkdir(filepath.Join(h.HostPaths(), id), 0o755)))
			return c
		}
		start("alive")
		start("dead").Kill()
		h.Policy("prepare", "--container", "waits", plugin("plugin", "v", "/v")).OK(t)

		d := recovered(t, h, 0)
		wantIDs(t, "kept", d.Kept, "alive", "waits")
		wantIDs(t, "cleaned", d.Cleaned, "dead")
		wantIDs(t, "orphans", d.Orphans)

		// With the agent's list: what is in it is kept, even if dead; what is not is cleaned up, unless it is alive.
		start("dead").Kill()
		start("dead2").Kill()
		h.WriteFile(h.Path("known"), "dead\nunheard-of\n", 0o644)
		for _, known := range [][]string{{"--known", "dead,unheard-of"}, {"--known-file", h.Path("known")}} {
			d = recovered(t, h, 0, known...)
			wantIDs(t, "kept", d.Kept, "alive", "dead")
			wantIDs(t, "orphans", d.Orphans, "alive")
			if known[0] == "--known" {
				wantIDs(t, "cleaned", d.Cleaned, "dead2", "waits")
			}
		}
		d = recovered(t, h, 0, "--known", "dead", "--force")
		wantIDs(t, "kept", d.Kept, "dead")
		wantIDs(t, "cleaned", d.Cleaned, "alive")
		if n := len(p.Calls("Unmount")); n != 0 {
			t.Errorf("unmounted while the known one is there")
		}
		wantIDs(t, "cleaned", recovered(t, h, 0, "--known", "").Cleaned, "dead")
		wantBalance(t, h, p, 1)
		wantNothingLeft(t, h)
		h.Policy("recover", "-o", "json", "--known", "../x").Fails(t, wire.InvalidRequest)
	})
}

func TestVolumeRemove(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rules := h.ReadFile(h.Path("etc/bindgate/policy.toml"))
		p := h.Plugin("plugin")
		rm := func() harness.Result { return h.Policy("volume", "rm", "-o", "json", "--driver", "plugin", "v") }
		h.Policy("prepare", "--owner", "other", "--container", "c", plugin("plugin", "v", "/v")).OK(t)
		if msg := rm().Fails(t, wire.Busy); !strings.Contains(msg, "c") {
			t.Errorf("who uses it is not named: %s", msg)
		}
		cleanup(t, h, "c", "--owner", "other")
		h.Policy("volume", "mount", "--driver", "plugin", "v").OK(t)
		rm().Fails(t, wire.Busy)
		h.Policy("volume", "unmount", "--driver", "plugin", "v").OK(t)
		h.PolicyTOML("[volume]\nremove_disable = true\n" + rules)
		rm().Fails(t, wire.Denied)
		fails(t, dvdcli(h, "remove", "plugin/v"), "remove_disable")
		if n := len(p.Calls("Remove")); n != 0 {
			t.Errorf("the driver was asked to remove it %d times", n)
		}
		h.PolicyTOML(rules)
		rm().OK(t)
		rm().Fails(t, wire.VolumeNotFound)

		// A volume that must exist is not created, whoever says so.
		for _, x := range []struct {
			toml string
			args []string
		}{{"", []string{"--explicit-create"}}, {"[volume]\nexplicit_create = true\n", nil}, {"[driver.plugin]\nexplicit_create = true\n", nil}} {
			h.PolicyTOML(x.toml + rules)
			h.Policy(append([]string{"prepare", "-o", "json", "--container", "c", plugin("plugin", "v", "/v")}, x.args...)...).Fails(t, wire.VolumeNotFound)
			if x.args == nil {
				fails(t, dvdcli(h, "mount", "plugin/v"), "explicitly")
			}
		}
		if n := len(p.Calls("Create")); n != 1 {
			t.Errorf("created %d times", n)
		}
		wantNothingLeft(t, h)
	})
}
