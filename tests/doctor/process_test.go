package doctor

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// through runs doctor through another program, as root.
func through(t *testing.T, h *harness.Host, args ...string) (report, harness.Result) {
	t.Helper()
	r := h.Do(h.Command(root, args[0], append(args[1:], h.Bindgate(), "doctor", "-o", "json")...))
	return parse(t, r), r
}

func TestNoNewPrivileges(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rep, r := through(t, h, "/usr/bin/setpriv", "--no-new-privs")
		r.Exits(t, 78)
		rep.only(t, "process.no_new_privs", "helper.answers")
		if c := rep.find("process.no_new_privs"); len(c) != 1 || c[0].Code != "config" || !strings.Contains(c[0].Hint, `transport = "socket"`) {
			t.Errorf("%+v", c)
		}
		// An agent that runs so cannot use it either.
		agent := exec.Command("setpriv", "--no-new-privs", "--reuid", fmt.Sprint(harness.PolicyUID), "--clear-groups", "busybox", "sh", "-c", "echo up; read x")
		in, err := agent.StdinPipe()
		must(t, err)
		out, err := agent.StdoutPipe()
		must(t, err)
		must(t, agent.Start())
		bufio.NewReader(out).ReadString('\n')
		rep, r = doctor(t, h, root)
		r.OK(t)
		if c := rep.find("process.no_new_privs"); len(c) != 1 || c[0].State != "warning" || !strings.Contains(c[0].Message, fmt.Sprintf("process %d (busybox)", agent.Process.Pid)) {
			t.Errorf("%+v", c)
		}
		in.Close()
		must(t, unix.Waitid(unix.P_PID, agent.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
		healthy(t, h) // with a zombie, which keeps its uid and no_new_privs
		agent.Wait()
	})
}

func TestSocketTransport(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + "[helper]\ntransport = \"socket\"\n")
		rep, r := doctor(t, h, root)
		r.Exits(t, 78)
		rep.only(t, "helper.socket", "helper.answers")
		if c := rep.find("helper.socket"); len(c) != 1 || !strings.Contains(strings.Join(c[0].Fix, ""), "systemctl enable --now bindgate-helper.socket") {
			t.Errorf("%+v", c)
		}
		// With the socket, neither no_new_privs nor a missing setuid bit is in the way.
		h.ServeHelper()
		must(t, unix.Chmod(h.HelperPath(), 0o750))
		rep, r = through(t, h, "/usr/bin/setpriv", "--no-new-privs")
		r.OK(t)
		if c := rep.find("kernel.SO_PEERPIDFD"); len(c) != 0 {
			t.Errorf("%+v", c)
		}
		rep, r = through(t, h, filter(t, h), fmt.Sprint(unix.SYS_GETSOCKOPT), fmt.Sprint(int(unix.ENOPROTOOPT)), "1", "--")
		if c := rep.find("kernel.SO_PEERPIDFD"); len(c) != 1 {
			t.Errorf("%v", r)
		}
		// bindgate confines itself there, and goes no further where it cannot.
		rep, r = through(t, h, filter(t, h), fmt.Sprint(unix.SYS_LANDLOCK_CREATE_RULESET), fmt.Sprint(int(unix.ENOSYS)), "--")
		r.Exits(t, 71)
		rep.only(t, "kernel.Landlock")
		if c := rep.find("kernel.Landlock"); len(c) != 1 || c[0].Code != "unsupported_kernel" || !strings.Contains(c[0].Hint, "CONFIG_SECURITY_LANDLOCK") {
			t.Errorf("%v", r)
		}
	})
}

func TestCapabilities(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rep, r := through(t, h, "/usr/bin/setpriv", "--bounding-set", "-sys_admin,-chown")
		r.Exits(t, 78)
		if c := rep.find("process.capabilities"); len(c) != 1 || c[0].Code != "config" || !strings.Contains(c[0].Message, "lacks CAP_CHOWN, CAP_SYS_ADMIN") {
			t.Errorf("%+v", c)
		}
		rep.only(t, "process.capabilities", "helper.answers")
	})
}

func TestCgroupNamespace(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rep, r := through(t, h, "/usr/bin/unshare", "--cgroup")
		r.Exits(t, 78)
		rep.only(t, "cgroup.namespace")
		if c := rep.find("cgroup.namespace"); len(c) != 1 || c[0].Code != "config" || !strings.Contains(c[0].Hint, "--cgroupns=host") {
			t.Errorf("%+v", c)
		}
	})
}

func TestTargetRulesAreProposed(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.HelperTOML(strings.ReplaceAll(harness.DefaultHelperTOML, `cgroups = ["/bindgate-test"]`, `cgroups = ["/other"]`))
		c := h.Container(harness.ContainerOptions{ID: "c"})
		rep, r := doctor(t, h, root)
		r.OK(t)
		found := rep.find("target.cgroups")
		if len(found) != 1 || !strings.Contains(found[0].Message, "1 container") || !strings.Contains(found[0].Message, c.PIDString()+" (") {
			t.Fatalf("%+v", found)
		}
		// What it proposes is a line of helper.toml that works.
		_, line, _ := strings.Cut(found[0].Hint, "helper.toml: ")
		if !strings.Contains(line, `"/other"`) || !strings.Contains(line, `"/bindgate-test"`) {
			t.Errorf("it proposes %q", line)
		}
		h.HelperTOML(strings.ReplaceAll(harness.DefaultHelperTOML, `cgroups = ["/bindgate-test"]`, line))
		h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "-v", "a:/a").OK(t)
		if rep, _ := doctor(t, h, root); len(rep.find("target.cgroups")) != 0 {
			t.Errorf("%+v", rep.find("target.cgroups"))
		}
		h.Policy("detach", "--container", "c", "--all").OK(t)
	})
}

// filter is the path of this program under the name by which it takes a system call away.
func filter(t *testing.T, h *harness.Host) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	path := h.Path("tmp/without")
	if err := os.Symlink(self, path); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return path
}

func TestKernelFeatures(t *testing.T) {
	enosys, enotty := int(unix.ENOSYS), int(unix.ENOTTY)
	for _, x := range []struct {
		feature   string
		nr, errno int
		arg       uint
		also      string
	}{
		{feature: "openat2", nr: unix.SYS_OPENAT2, errno: enosys},
		{feature: "pidfd_open", nr: unix.SYS_PIDFD_OPEN, errno: enosys, also: "kernel.PIDFD_GET_MNT_NAMESPACE"},
		{feature: "PIDFD_GET_MNT_NAMESPACE", nr: unix.SYS_IOCTL, errno: enotty, arg: unix.PIDFD_GET_MNT_NAMESPACE},
		{feature: "NS_GET_MNTNS_ID", nr: unix.SYS_IOCTL, errno: enotty, arg: unix.NS_GET_MNTNS_ID, also: "helper.answers driver.local"}, // asked for as it starts
		{feature: "STATX_MNT_ID_UNIQUE", nr: unix.SYS_STATX, errno: enosys},
		{feature: "statmount", nr: unix.SYS_STATMOUNT, errno: enosys},
		{feature: "listmount", nr: unix.SYS_LISTMOUNT, errno: enosys},
		{feature: "open_tree", nr: unix.SYS_OPEN_TREE, errno: enosys},
		{feature: "mount_setattr", nr: unix.SYS_MOUNT_SETATTR, errno: enosys},
		{feature: "move_mount", nr: unix.SYS_MOVE_MOUNT, errno: enosys},
		{feature: "fsopen", nr: unix.SYS_FSOPEN, errno: enosys},
		{feature: "NS_MNT_GET_NEXT", nr: unix.SYS_IOCTL, errno: enotty, arg: 0x8010b70b},
		{feature: "seccomp", nr: unix.SYS_SECCOMP, errno: enosys, also: "helper.answers driver.local"},
	} {
		t.Run(x.feature, func(t *testing.T) {
			harness.Run(t, func(h *harness.Host) {
				h.AllowAll()
				args := []string{filter(t, h), fmt.Sprint(x.nr), fmt.Sprint(x.errno)}
				if x.arg != 0 {
					args = append(args, fmt.Sprint(x.arg))
				}
				rep, r := through(t, h, append(args, "--")...)
				check := "kernel." + x.feature
				rep.only(t, append(strings.Fields(x.also), check)...)
				if x.also == "" {
					r.Exits(t, 71)
				}
				if c := rep.find(check); len(c) != 1 || c[0].Code != "unsupported_kernel" || !strings.Contains(c[0].Message, x.feature) || !strings.Contains(c[0].Hint, "Linux ") {
					t.Errorf("%+v", c)
				}
			})
		})
	}
}

// Linux 6.12 to 6.17 have no handles of namespaces, and nothing needs them.
func TestKernelWithoutHandles(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		rep, r := through(t, h, filter(t, h), fmt.Sprint(unix.SYS_NAME_TO_HANDLE_AT), fmt.Sprint(int(unix.EOPNOTSUPP)), "--")
		r.OK(t)
		rep.only(t)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
