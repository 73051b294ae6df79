// Package peers runs bindgate with volume plugins that others wrote: what they make of the protocol is not what we had in mind when we read it.
//
// Testvol is the plugin that podman's own tests use: folders, on go-plugins-helpers. Rclone serves what it has in a cloud, here in a folder, by FUSE; it has
// an HTTP server, a state file and an idea of ids of its own. Both are built from the Go module proxy at the versions of their go.mod files, and run unmodified:
// testvol always, rclone by make test-peers, since its backends for 70 clouds take a gigabyte of modules and minutes to build. Else rclone's commands and its local
// backend are linked by a main of five lines, and nothing of them is changed.
package peers

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

func TestMain(m *testing.M) { harness.Main(m) }

// A peer is a plugin under test.
type peer struct {
	driver   string
	program  string
	args     []string
	opts     []string // for volumes that are created
	bad      string   // an option that it refuses, "" for one that takes all
	refuses  string   // its words for that
	ready    string   // it says so when it listens, or is about to
	isMount  bool     // its mountpoints are mounts
	mounts   string   // what its log says of each Mount
	unmounts string

	h   *harness.Host
	cmd *exec.Cmd
	log string
}

const plugins = "/run/docker/plugins" // a host's own: its /run is empty

var rcloneProgram = "rclone"

func testvol(h *harness.Host) *peer {
	return &peer{h: h, driver: "testvol", program: "testvol", ready: "for volume path", mounts: "Hit Mount() endpoint", unmounts: "Hit Unmount() endpoint",
		args: []string{"serve", "--log-level", "debug", "--path", h.Mkdir(filepath.Join(h.Sources(), "testvol"), 0o755), "--sock-name", "testvol"}}
}

func rclone(h *harness.Host) *peer {
	return &peer{h: h, driver: "rclone", program: rcloneProgram, ready: "Serving ", isMount: true, mounts: `Mount volume "`, unmounts: `Unmount volume "`,
		opts: []string{"remote=" + h.Mkdir(h.Path("tmp/cloud"), 0o700), "vfs-cache-mode=writes"}, bad: "frobnicate=1", refuses: "unsupported backend option",
		args: []string{"serve", "docker", "-vv", "--config", "", "--cache-dir", h.Path("tmp/rclone"), "--base-dir", filepath.Join(h.Sources(), "rclone"),
			"--dir-cache-time", "0", "--socket-gid", fmt.Sprint(harness.PolicyGID)}}
}

// start starts the plugin with a new log, waits for the line in it which says that it is ready, and returns that.
func (p *peer) start(t *testing.T) (said string) {
	t.Helper()
	p.log = p.h.Path("tmp", p.driver+".log")
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	grows, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err == nil {
		defer unix.Close(grows)
		_, err = unix.InotifyAddWatch(grows, p.log, unix.IN_MODIFY)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(p.h.Program(p.program), p.args...)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.h.Path("tmp")}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	for {
		for line := range strings.Lines(p.h.ReadFile(p.log)) {
			if strings.Contains(line, p.ready) && strings.HasSuffix(line, "\n") {
				return line
			}
		}
		events := []unix.PollFd{{Fd: int32(grows), Events: unix.POLLIN}}
		if n, err := unix.Poll(events, 30_000); n == 0 {
			t.Fatalf("%s does not start:\n%s", p.driver, p.h.ReadFile(p.log))
		} else if err == nil {
			unix.Read(grows, make([]byte, 4096))
		}
	}
}

// open waits until the plugin serves its socket and opens it to the policy user, as an operator would.
func (p *peer) open(t *testing.T) {
	t.Helper()
	socket := filepath.Join(plugins, p.driver+".sock")
	for {
		c, err := net.Dial("unix", socket)
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EACCES) {
			continue // it is about to: it has said that it is ready
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// An answer comes after whatever it does to the socket first.
		fmt.Fprint(c, "POST /Plugin.Activate HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
		if answer, err := io.ReadAll(c); err != nil || !strings.Contains(string(answer), "VolumeDriver") {
			t.Fatalf("%s answers %q (%v)", p.driver, answer, err)
		}
		break
	}
	if err := errors.Join(os.Chown(socket, 0, harness.PolicyGID), os.Chmod(socket, 0o660)); err != nil {
		t.Fatal(err)
	}
}

// stop ends the plugin as a service manager does.
func (p *peer) stop() {
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Signal(syscall.SIGTERM)
		p.cmd.Wait()
	}
}

// wantCalls fails the test unless the plugin was asked so often since it was started, by its own account.
func (p *peer) wantCalls(t *testing.T, mounts, unmounts int) {
	t.Helper()
	log := p.h.ReadFile(p.log)
	if m, u := strings.Count(log, p.mounts), strings.Count(log, p.unmounts); m != mounts || u != unmounts {
		t.Errorf("%s has had %d Mounts and %d Unmounts, want %d and %d", p.driver, m, u, mounts, unmounts)
	}
}

func (p *peer) flags(more ...string) []string {
	flags := []string{"--driver", p.driver}
	for _, o := range p.opts {
		flags = append(flags, "--opt", o)
	}
	return append(flags, more...)
}

// prepareHost opens the host's configuration: drivers where Docker looks for them, and what they mount as sources, rclone's being FUSE.
func prepareHost(h *harness.Host) {
	h.PolicyTOML("[[rule]]\naction = \"allow\"\n[driver.testvol]\nroots = [\"" + h.Sources() + "/testvol\"]\n")
	h.HelperTOML(strings.Replace(harness.DefaultHelperTOML, "path = \""+h.Sources()+"\"", "path = \""+h.Sources()+"/testvol\"\n[[source]]\npath = \""+h.Sources()+
		"/rclone\"\nrequire_mountpoint = true\nallow_fuse = true", 1))
}

func TestPeers(t *testing.T) {
	for name, make := range map[string]func(*harness.Host) *peer{"testvol": testvol, "rclone": rclone} {
		t.Run(name, func(t *testing.T) {
			harness.Run(t, func(h *harness.Host) {
				prepareHost(h)
				p := make(h)
				p.start(t)
				p.open(t)
				p.life(t)
			})
		})
	}
}

// life is all that a volume of the plugin goes through.
func (p *peer) life(t *testing.T) {
	h := p.h
	at := filepath.Join(h.Sources(), p.driver, "v")
	var volume struct {
		Schema, Driver, Name, Mountpoint string
		Options                          map[string]string
		Created                          any
		Status                           map[string]any
		Containers                       []string
		Warnings                         []string
	}
	// Create, and look.
	if p.bad != "" {
		if msg := h.Policy("volume", "create", "-o", "json", "--driver", p.driver, "--opt", p.bad, "v").Fails(t, wire.DriverError); !strings.Contains(msg, p.refuses) {
			t.Errorf("a bad option: %s", msg)
		}
	}
	h.Policy("volume", "inspect", "-o", "json", "--driver", p.driver, "v").Fails(t, wire.VolumeNotFound)
	h.Policy(append([]string{"volume", "create", "-o", "json"}, p.flags("v")...)...).OK(t).JSON(t, &volume)
	if volume.Created != true {
		t.Errorf("create: %+v", volume)
	}
	h.Policy(append([]string{"volume", "create", "-o", "json"}, p.flags("v")...)...).OK(t).JSON(t, &volume)
	if volume.Created != false || (len(volume.Warnings) > 0) != (len(p.opts) > 0) {
		t.Errorf("create again: %+v", volume)
	}
	h.Policy("volume", "inspect", "-o", "json", "--driver", p.driver, "v").OK(t).JSON(t, &volume)
	if volume.Name != "v" || volume.Created == "" {
		t.Errorf("inspect: %+v", volume)
	}
	if r := h.Policy("volume", "ls", "--driver", p.driver, "--quiet").OK(t); r.Stdout != "v\n" {
		t.Errorf("ls: %v", r)
	}
	if r := h.Policy("volume", "path", "-o", "table", "--driver", p.driver, "v").OK(t); r.Stdout != at+"\n" {
		t.Errorf("path: %v", r)
	}

	// Two containers and one Mount.
	one, two := h.Container(harness.ContainerOptions{ID: "one"}), h.Container(harness.ContainerOptions{ID: "two"})
	for _, c := range []*harness.Container{one, two} {
		h.Policy("attach", "--container", c.ID, "--pid", c.PIDString(), "--driver", p.driver, "-v", "v:/data").OK(t)
	}
	one.Sh("echo hello > /data/file").OK(t)
	if r := two.Sh("cat /data/file").OK(t); r.Stdout != "hello\n" {
		t.Errorf("the other container reads %v", r)
	}
	h.Policy("volume", "rm", "-o", "json", "--driver", p.driver, "v").Fails(t, wire.Busy)
	p.wantCalls(t, 1, 0)
	one.Kill()
	one.Wait()
	h.Policy("cleanup", "--container", "one").OK(t)
	p.wantCalls(t, 1, 0)
	two.Sh("echo more >> /data/file").OK(t)
	two.Kill()
	two.Wait()
	h.Policy("cleanup", "--container", "two").OK(t)
	p.wantCalls(t, 1, 1)
	p.wantMounted(t, at, false)

	// As Mesos does, with a container of bindgate's beside it.
	dvdcli := func(verb string) harness.Result {
		t.Helper()
		return h.Do(h.Command(harness.User{}, h.Path("prefix/bin/dvdcli"), verb, "--volumedriver="+p.driver, "--volumename=v")).OK(t)
	}
	if r := dvdcli("mount"); r.Stdout != at+"\n" {
		t.Errorf("dvdcli mount: %v", r)
	}
	p.wantMounted(t, at, p.isMount)
	if data := h.ReadFile(filepath.Join(at, "file")); data != "hello\nmore\n" {
		t.Errorf("the volume has %q", data)
	}
	h.Policy("prepare", "--container", "three", "--driver", p.driver, "-v", "v:/data:ro").OK(t)
	dvdcli("unmount")
	p.wantCalls(t, 2, 1)

	// It is restarted while a container is prepared, and has forgotten what it mounted.
	p.stop()
	p.start(t)
	p.open(t)
	h.Policy("cleanup", "--container", "three").OK(t)
	p.wantCalls(t, 0, 1)
	p.wantMounted(t, at, false)
	if r := h.Policy("status", "-o", "table").OK(t); !strings.Contains(r.Stdout, "no containers") || !strings.Contains(r.Stdout, "no volumes in use") {
		t.Errorf("something is left: %v", r)
	}
	if p.driver == "testvol" { // which knows no more of that volume
		h.Policy("volume", "rm", "-o", "json", "--driver", p.driver, "v").Fails(t, wire.VolumeNotFound)
		return
	}
	h.Policy("volume", "rm", "--driver", p.driver, "v").OK(t)
	h.Policy("volume", "inspect", "-o", "json", "--driver", p.driver, "v").Fails(t, wire.VolumeNotFound)
}

func (p *peer) wantMounted(t *testing.T, path string, want bool) {
	t.Helper()
	got := false
	for _, line := range p.h.Mountinfo() {
		got = got || strings.Contains(line, " "+path+" ")
	}
	if got != want {
		t.Errorf("%s is a mount: %v, want %v", path, got, want)
	}
}

// Rclone on a TCP port, which a spec file names.
func TestRcloneBySpecFile(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		prepareHost(h)
		p := rclone(h)
		p.args = append(p.args, "--socket-addr", "127.0.0.1:0", "--no-spec")
		_, address, _ := strings.Cut(p.start(t), "Serving TCP socket: ")
		specs := h.Mkdir(h.Path("specs/rclone"), 0o755)
		h.WriteFile(filepath.Join(specs, "rclone.spec"), "tcp://"+address, 0o644) // with the line's end
		h.PolicyTOML(harness.DefaultPolicyTOML + "[[rule]]\naction = \"allow\"\n")
		p.brief(t)
	})
}

// brief is the short form of it: a job that creates the volume.
func (p *peer) brief(t *testing.T) {
	h := p.h
	c := h.Container(harness.ContainerOptions{ID: "c"})
	h.Policy(append([]string{"attach", "--container", "c", "--pid", c.PIDString()}, p.flags("-v", "made:/data")...)...).OK(t)
	c.Sh("echo hello > /data/file").OK(t)
	// It is FUSE, and locked like any other mount.
	if r := c.Sh("grep ' /data ' /proc/self/mountinfo").OK(t); !strings.Contains(r.Stdout, "fuse.rclone") || !strings.Contains(r.Stdout, "nosuid,nodev") {
		t.Errorf("%v", r)
	}
	h.Policy("detach", "--container", "c", "--all").OK(t)
	p.wantCalls(t, 1, 1)
	h.Policy("volume", "rm", "--driver", p.driver, "made").OK(t)
}
