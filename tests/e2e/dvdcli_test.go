package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// dvdcli runs the installed program by its other name: as root, as Mesos' agent does, with a volume that is named DRIVER/NAME.
func dvdcli(h *harness.Host, verb, volume string, flags ...string) harness.Result {
	return dvdcliAs(h, harness.User{}, verb, volume, flags...)
}

func dvdcliAs(h *harness.Host, user harness.User, verb, volume string, flags ...string) harness.Result {
	driver, name, _ := strings.Cut(volume, "/")
	return h.Do(h.Command(user, h.Path("prefix/bin/dvdcli"), append([]string{verb, "--volumedriver=" + driver, "--volumename=" + name}, flags...)...))
}

// says fails the test unless the command succeeded and stdout is exactly this, with nothing on stderr.
func says(t *testing.T, r harness.Result, want string) {
	t.Helper()
	if r.Exit != 0 || r.Stdout != want || r.Stderr != "" {
		t.Errorf("want %q: %v", want, r)
	}
}

// fails fails the test unless the command exited 1 with one error on stderr that says these words.
func fails(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	if r.Exit != 1 || r.Stdout != "" || !strings.HasPrefix(r.Stderr, "dvdcli: cannot ") {
		t.Errorf("want a failure: %v", r)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("want %q: %v", w, r)
		}
	}
}

// called returns the names of a plugin's calls, but for those that only ask who it is.
func called(p *harness.Plugin) (names []string) {
	for _, c := range p.Calls() {
		if c.Call != "Capabilities" {
			names = append(names, c.Call)
		}
	}
	return names
}

func wantCalls(t *testing.T, p *harness.Plugin, want ...string) {
	t.Helper()
	if got := called(p); !slices.Equal(got, want) {
		t.Errorf("%s was asked %v, want %v", p.Name, got, want)
	}
}

// wantBalance fails the test unless each Mount has its Unmount with the same id, in order, and nothing of the plugin's is mounted.
func wantBalance(t *testing.T, h *harness.Host, p *harness.Plugin, n int) {
	t.Helper()
	mounts, unmounts := p.Calls("Mount"), p.Calls("Unmount")
	ids := func(calls []harness.Call) (list []string) {
		for _, c := range calls {
			list = append(list, c.Name+" "+c.ID)
		}
		slices.Sort(list)
		return list
	}
	if len(mounts) != n || !slices.Equal(ids(mounts), ids(unmounts)) || len(slices.Compact(ids(mounts))) != n {
		t.Errorf("%s: Mount %v, Unmount %v: want %d each, with ids of their own", p.Name, mounts, unmounts, n)
	}
	for _, line := range h.Mountinfo() {
		if strings.Contains(line, p.Root) {
			t.Errorf("still mounted: %s", line)
		}
	}
}

// A Mesos agent mounts a volume for each container that uses it and unmounts it after the last; whatever the plugin counts, it gets one Mount and one
// Unmount.
func TestDvdcliBalance(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		for _, count := range []string{"calls", "ids", "none"} {
			t.Run(count, func(t *testing.T) {
				h := h.For(t)
				p := h.Plugin("by-"+count, "-count", count, "-bind")
				v := p.Name + "/v"
				at := filepath.Join(p.Root, "mnt/v") + "\n"
				says(t, dvdcli(h, "mount", v, "--volumeopts=size=5"), at)
				wantCalls(t, p, "Get", "Create", "Mount")
				says(t, dvdcli(h, "mount", v), at)
				says(t, dvdcliAs(h, harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, "mount", v), at)
				wantCalls(t, p, "Get", "Create", "Mount")
				says(t, dvdcli(h, "path", v), at)
				says(t, dvdcli(h, "unmount", v), "")
				wantBalance(t, h, p, 1)
				says(t, dvdcli(h, "path", v), "")
				// Once more: the volume exists now.
				says(t, dvdcli(h, "mount", v), at)
				says(t, dvdcli(h, "unmount", v), "")
				wantBalance(t, h, p, 2)
				// As the original: Path only where Get tells no mountpoint.
				wantCalls(t, p, "Get", "Create", "Mount", "Get", "Unmount", "Get", "Path", "Get", "Mount", "Unmount")
				// Mesos unmounts what it could not mount, too. There is nothing to do, and the plugin is not asked for what somebody else may have mounted.
				if r := dvdcli(h, "unmount", v).OK(t); r.Stdout != "" || !strings.HasPrefix(r.Stderr, "dvdcli: nothing to do: ") {
					t.Errorf("%v", r)
				}
				wantBalance(t, h, p, 2)
			})
		}
		wantNothingLeft(t, h)
	})
}

// Nobody unmounts under anybody: neither a container's cleanup under dvdcli, nor dvdcli under a container, nor one of two other agents.
func TestDvdcliAndContainers(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		p := h.Plugin("plugin", "-bind")
		const v = "plugin/v"
		at := filepath.Join(p.Root, "mnt/v") + "\n"
		mount := []string{"--mount", "driver=plugin,name=v,target=/data"}

		c1 := h.Container(harness.ContainerOptions{ID: "c1"})
		says(t, dvdcli(h, "mount", v), at)
		attach(t, h, c1, mount...)
		c1.Kill()
		if d := cleanup(t, h, "c1"); len(d.Unmounted) != 0 {
			t.Errorf("a cleanup unmounted what dvdcli mounted: %+v", d)
		}
		says(t, dvdcli(h, "path", v), at)
		says(t, dvdcli(h, "unmount", v), "")
		wantBalance(t, h, p, 1)

		c2 := h.Container(harness.ContainerOptions{ID: "c2"})
		attach(t, h, c2, mount...)
		says(t, dvdcli(h, "mount", v), at)
		c2.Sh("echo here > /data/file").OK(t)
		fails(t, dvdcli(h, "remove", v), "in use by", "c2")
		says(t, dvdcli(h, "unmount", v), "")
		if n := len(p.Calls("Unmount")); n != 1 {
			t.Errorf("dvdcli unmounted under a container")
		}
		c2.Sh("cat /data/file").OK(t)
		if d := status(t, h, "--volume", v); len(d.Volumes) != 1 || !slices.Equal(d.Volumes[0].Containers, []string{"c2"}) {
			t.Errorf("status: %+v", d.Volumes)
		}
		c2.Kill()
		if d := cleanup(t, h, "c2"); len(d.Unmounted) != 1 {
			t.Errorf("cleanup: %+v", d)
		}
		wantBalance(t, h, p, 2)

		// volume mount and dvdcli have each their own.
		says(t, dvdcli(h, "mount", v), at)
		h.Policy("volume", "mount", "--driver", "plugin", "v").OK(t)
		says(t, dvdcli(h, "unmount", v), "")
		if n := len(p.Calls("Unmount")); n != 2 {
			t.Errorf("dvdcli unmount dropped what volume mount left")
		}
		dvdcli(h, "unmount", v).OK(t)
		h.Policy("volume", "unmount", "--driver", "plugin", "v").OK(t)
		wantBalance(t, h, p, 3)
		says(t, dvdcli(h, "remove", v), "")
		fails(t, dvdcli(h, "get", v), "not found")
		wantNothingLeft(t, h)
	})
}

func TestDvdcliCommands(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		// Options of a volume that it makes: several flags, commas, values with =.
		says(t, dvdcli(h, "create", "local/v", "--volumeopts=mode=0750,uid=1000", "--volumeopts", "gid=1001"), "")
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(h.Volumes(), "v"), &st); err != nil || st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o7777 != 0o750 {
			t.Errorf("%v %d:%d %04o", err, st.Uid, st.Gid, st.Mode&0o7777)
		}
		fails(t, dvdcli(h, "create", "local/w", "--volumeopts=mode=0750=x"), `mode is "0750=x"`)
		fails(t, dvdcli(h, "mount", "local/w", "--volumeopts=mode"), `"mode" is not KEY=VALUE`)
		fails(t, dvdcli(h, "mount", "local/w", "--explicitcreate"), "explicitly")
		fails(t, dvdcli(h, "mount", "local/w", "--explicitCreate=true"), "explicitly")
		says(t, dvdcli(h, "mount", "local/w", "--explicitCreate=false", "--volumeopts="), filepath.Join(h.Volumes(), "w")+"\n")
		says(t, dvdcli(h, "mount", "local/v", "--explicitcreate"), filepath.Join(h.Volumes(), "v")+"\n")
		says(t, dvdcli(h, "get", "local/w"), "w\n")
		says(t, dvdcli(h, "list", "local/"), "v\nw\n")
		fails(t, dvdcli(h, "remove", "local/w"), "in use by", "dvdcli")
		says(t, dvdcli(h, "unmount", "local/w"), "")
		says(t, dvdcli(h, "remove", "local/w"), "")
		fails(t, dvdcli(h, "path", "local/w"), "local volume", "w")
		// Some have no path but of what is mounted. A plugin in trouble is another matter.
		h.Plugin("pathless", "-fail", "Path:v=volume v is not mounted", "-fail", "Path:gone=no such volume", "-fail", "Get:down=backend down")
		for _, v := range []string{"v", "gone"} {
			says(t, dvdcli(h, "create", "pathless/"+v), "")
		}
		says(t, dvdcli(h, "path", "pathless/v"), "")
		says(t, dvdcli(h, "path", "pathless/gone"), "")
		fails(t, dvdcli(h, "path", "pathless/down"), "backend down")
		fails(t, dvdcli(h, "path", "pathless/none"), "pathless/none")
		fails(t, dvdcli(h, "mount", "nobody/v"), "nobody")
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		cmd := h.Command(harness.User{}, h.Path("prefix/bin/dvdcli"), "path", "--volumedriver=local", "--volumename=v")
		cmd.Stdout = full
		fails(t, h.Do(cmd), "cannot write the output")
		fails(t, dvdcli(h, "mount", "local/v", "--frobnicate"), "frobnicate")
		for _, args := range [][]string{{"version"}, {"--version"}, {"help"}, {"mount", "--help"}} {
			if r := h.Do(h.Command(harness.User{UID: harness.OutsiderUID}, h.Path("prefix/bin/dvdcli"), args...)).OK(t); !strings.Contains(r.Stdout, "dvdcli") {
				t.Errorf("%v", r)
			}
		}

		// Root is given up, and nobody else gets in.
		for _, line := range h.Tree(h.Journal()) {
			if f := strings.Fields(line); f[2] != "64801:64801" {
				t.Errorf("not the policy user's: %s", line)
			}
		}
		fails(t, dvdcliAs(h, harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID}, "list", "local/"), "policy user")
		says(t, dvdcli(h, "unmount", "local/v"), "")
		wantNothingLeft(t, h)
	})
}

// The rules hold, with dvdcli as owner. The refusal prints the rule; pasted, it allows what was asked and no more.
func TestDvdcliRules(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		p := h.Plugin("plugin")
		r := dvdcli(h, "mount", "plugin/v")
		fails(t, r, "no rule of policy.toml allows it")
		if calls := p.Calls(); len(calls) != 0 {
			t.Errorf("the plugin was asked for what is denied: %v", calls)
		}
		_, rule, _ := strings.Cut(r.Stderr, "policy.toml:\n")
		h.PolicyTOML(harness.DefaultPolicyTOML + rule)
		dvdcli(h, "mount", "plugin/v").OK(t)
		fails(t, dvdcli(h, "mount", "plugin/w"), "[[rule]]")
		h.Policy("volume", "mount", "--driver", "plugin", "v", "-o", "json").Fails(t, wire.Denied)
		says(t, dvdcli(h, "list", "plugin/"), "v\n")
		// What it has, it may give back, whatever the rules say by now.
		h.PolicyTOML(harness.DefaultPolicyTOML)
		dvdcli(h, "unmount", "plugin/v").OK(t)
		fails(t, dvdcli(h, "unmount", "plugin/v"), "[[rule]]")
		wantBalance(t, h, p, 1)
	})
}

// A driver that fails, hangs or is gone, and a caller that gives up: exit status 1 with the driver's words, and no mount too many.
func TestDvdcliInTrouble(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rules := h.ReadFile(h.Path("etc/bindgate/policy.toml"))
		fifo := h.Path("tmp", "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		p := h.Plugin("plugin", "-bind", "-fail", "Mount:broken=no medium", "-hold", "Mount:late="+fifo)
		fails(t, dvdcli(h, "mount", "plugin/broken"), "the driver says: no medium")
		dvdcli(h, "unmount", "plugin/broken").OK(t)
		if n := len(p.Calls("Unmount")); n != 0 {
			t.Errorf("what was refused was unmounted")
		}

		// The driver completes it after its deadline. Whoever wants the volume next has it let go first.
		h.PolicyTOML(rules + "[timeouts]\nmount = \"500ms\"\n")
		fails(t, dvdcli(h, "mount", "plugin/late"), "mount volume plugin/late", "did not answer within")
		h.PolicyTOML(rules)
		late := filepath.Join(p.Root, "mnt/late")
		h.WriteFile(fifo, "go on", 0o600)
		awaitMount(t, h, late)
		h.Sh("rm " + fifo + " && touch " + fifo).OK(t) // it holds no more
		says(t, dvdcli(h, "mount", "plugin/late"), late+"\n")
		says(t, dvdcli(h, "unmount", "plugin/late"), "")
		if err := unix.Unmount(late, 0); err == nil {
			t.Error("it is still mounted")
		}
		wantCalls(t, p, "Get", "Create", "Mount", "Get", "Create", "Mount", "Unmount", "Get", "Mount", "Unmount")

		// The driver refuses to unmount: pending, cancelled by the next mount, tried again by recover.
		stuck := h.Plugin("stuck", "-fail", "Unmount:v=device is busy")
		at := filepath.Join(stuck.Root, "data/v") + "\n"
		says(t, dvdcli(h, "mount", "stuck/v"), at)
		fails(t, dvdcli(h, "unmount", "stuck/v"), "device is busy")
		says(t, dvdcli(h, "mount", "stuck/v"), at)
		wantCalls(t, stuck, "Get", "Create", "Mount", "Unmount")
		stuck.Stop()
		fails(t, dvdcli(h, "unmount", "stuck/v"), "stuck")
		h.Plugin("stuck")
		h.Policy("recover", "--owner", "dvdcli").OK(t)

		// A service manager asks before it kills; Mesos does not.
		slow := h.Plugin("slow", "-bind", "-delay", "Mount:v=2s")
		start := func(n int) *exec.Cmd {
			cmd := h.Command(harness.User{}, h.Path("prefix/bin/dvdcli"), "mount", "--volumedriver=slow", "--volumename=v")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			awaitCall(t, h, slow, "Mount", n)
			return cmd
		}
		cmd := start(1)
		cmd.Process.Signal(syscall.SIGTERM)
		if cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("interrupted: %v", cmd.ProcessState)
		}
		wantBalance(t, h, slow, 1)
		cmd = start(2)
		cmd.Process.Kill()
		cmd.Wait()
		awaitMount(t, h, filepath.Join(slow.Root, "mnt/v"))
		says(t, dvdcli(h, "unmount", "slow/v"), "")
		wantBalance(t, h, slow, 2)
		wantNothingLeft(t, h)
	})
}

// awaitCall waits until a plugin has been asked something for the nth time.
func awaitCall(t *testing.T, h *harness.Host, p *harness.Plugin, call string, n int) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, h.Path("tmp", "plugin-"+p.Name+".log"), unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	for len(p.Calls(call)) < n {
		if !readable(fd, unix.POLLIN) {
			t.Fatalf("%s was not asked to %s: %v", p.Name, call, p.Calls())
		}
		unix.Read(fd, make([]byte, 4096))
	}
}

// awaitMount waits until something is mounted at a path of the host.
func awaitMount(t *testing.T, h *harness.Host, path string) {
	t.Helper()
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0) // os.Open has the runtime poll it, which would take our events
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for !slices.ContainsFunc(h.Mountinfo(), func(line string) bool { return strings.Contains(line, " "+path+" ") }) {
		if !readable(fd, unix.POLLPRI) {
			t.Fatalf("nothing is mounted at %s", path)
		}
	}
}

// readable waits for an event on a descriptor, for at most half a minute.
func readable(fd int, events int16) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 30_000)
		if err != unix.EINTR {
			return n > 0
		}
	}
}
