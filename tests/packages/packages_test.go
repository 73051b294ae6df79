//go:build packages

// Package packages tests the Debian package on a fresh Debian system: one that fetch made, unpacked for each test, in which apt installs, upgrades, removes and purges it. The system is a chroot in the test's host, so that
// pids and containers are the host's. make test-packages builds the package in two versions and runs the tests.
package packages

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// A machine is a fresh Debian system.
type machine struct {
	t    *testing.T
	h    *harness.Host
	root string
}

const helper = "/usr/libexec/bindgate/bindgate-helper"

// run gives f a fresh machine that has the package of versions 1.0.0 and 1.0.1 in /root.
func run(t *testing.T, f func(m *machine)) {
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	harness.Run(t, func(h *harness.Host) {
		m := &machine{t: t, h: h, root: "/run/machine"}
		h.Mkdir(m.root, 0o755)
		h.Mount("machine", m.root, "tmpfs", 0, "mode=755")
		h.Sh("tar -xf " + filepath.Join(checkout, "bin/debian.tar") + " -C " + m.root).OK(t)
		for _, d := range []string{"proc", "sys", "dev"} {
			h.Mount("/"+d, filepath.Join(m.root, d), "", unix.MS_BIND|unix.MS_REC, "")
			if err := unix.Mount("", filepath.Join(m.root, d), "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil { // or the host's own would go with them
				t.Fatal(err)
			}
		}
		h.Mount("run", m.root+"/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
		for _, version := range []string{"1.0.0", "1.0.1"} {
			deb := fmt.Sprintf("bindgate_%s_%s.deb", version, runtime.GOARCH)
			h.Sh("cp " + filepath.Join(checkout, "bin/packages", deb) + " " + m.root + "/root/bindgate-" + version + ".deb").OK(t)
		}
		f(m)
	}, harness.Bare())
}

// sh runs a script on the machine, as root.
func (m *machine) sh(script string) harness.Result {
	m.t.Helper()
	cmd := m.h.Command(harness.User{}, "/usr/sbin/chroot", m.root, "/bin/sh", "-ec", script)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "HOME=/root", "LC_ALL=C.UTF-8"}
	return m.h.Do(cmd)
}

// policy runs a script on the machine as the policy user.
func (m *machine) policy(script string) harness.Result {
	m.t.Helper()
	return m.sh("exec chroot --userspec=bindgate:bindgate / /bin/sh -ec '" + script + "'")
}

func (m *machine) install(version string) harness.Result {
	m.t.Helper()
	return m.sh("apt-get install -qq -y /root/bindgate-" + version + ".deb").OK(m.t)
}

func (m *machine) wants(path, want string) {
	m.t.Helper()
	if got := strings.TrimSpace(m.sh("stat -c '%A %U:%G' " + path).Stdout); got != want {
		m.t.Errorf("%s is %q, want %q", path, got, want)
	}
}

// ofSystem are files that apt, dpkg, man and useradd change for every package, and those that the tests put there.
var ofSystem = regexp.MustCompile(`^/(var/(cache|log/(apt|dpkg\.log|alternatives\.log)|lib/(apt|dpkg))(/|$)|etc/((passwd|group|shadow|gshadow)-|\.pwd\.lock)$|root/)`)

// tree is what is on the machine, in the form of Host.Tree, but for what is of the system, and for the size and times of folders.
func (m *machine) tree() (lines []string) {
	m.t.Helper()
	for _, top := range []string{"etc", "usr", "var", "run", "root", "home", "opt", "srv"} {
		for _, line := range m.h.Tree(filepath.Join(m.root, top)) {
			if line = strings.TrimPrefix(line, m.root); !ofSystem.MatchString(strings.Fields(line)[0]) {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// paths are the paths of what Diff says.
func paths(diff string) (list []string) {
	for line := range strings.Lines(diff) {
		list = append(list, line[:1]+strings.Fields(line[1:])[0])
	}
	return list
}

func TestFromInstallToPurge(t *testing.T) {
	run(t, func(m *machine) {
		before := m.tree()
		m.install("1.0.0")
		for path, want := range map[string]string{
			helper: "-rwsr-x--- root:bindgate", "/usr/bin/bindgate": "-rwxr-xr-x root:root", "/etc/bindgate/helper.toml": "-rw-r--r-- root:root", "/var/lib/bindgate/journal": "drwx------ bindgate:bindgate",
			"/var/lib/bindgate/volumes": "drwx------ root:root", "/run/bindgate/ledger": "drwx------ root:root", "/var/log/bindgate": "drwxr-xr-x root:root",
			"/etc/systemd/system/multi-user.target.wants/bindgate-recover.service": "lrwxrwxrwx root:root",
		} {
			m.wants(path, want)
		}
		m.sh("bindgate doctor").OK(t)
		if r := m.policy("bindgate volume create early"); r.Exit != 77 {
			t.Errorf("as installed, want every volume denied: %v", r)
		}

		// An operator's configuration, and one container.
		m.sh(`sed -i 's|^\[targets\]|&\ncgroups = ["` + harness.CgroupRule + `"]|' /etc/bindgate/helper.toml
printf '[[rule]]\naction = "allow"\n' >>/etc/bindgate/policy.toml; echo mine >/etc/bindgate/notes`).OK(t)
		configured := m.sh("cat /etc/bindgate/*").Stdout
		m.policy("bindgate volume create v").OK(t)
		c := m.h.Container(harness.ContainerOptions{ID: "c"})
		m.policy("bindgate attach --container c --pid " + c.PIDString() + " -v v:/data").OK(t)
		c.Sh("echo kept >/data/file").OK(t)

		// Upgraded while it runs.
		m.install("1.0.1")
		if r := m.sh("bindgate --version; cat /etc/bindgate/*").OK(t); r.Stdout != "bindgate 1.0.1\n"+configured {
			t.Errorf("after the upgrade: %q", r.Stdout)
		}
		m.wants(helper, "-rwsr-x--- root:bindgate")
		if r := m.policy("bindgate status -o json --container c").OK(t); !strings.Contains(r.Stdout, `"phase":"isolated"`) || !strings.Contains(r.Stdout, `"/data"`) {
			t.Errorf("the record after the upgrade: %s", r.Stdout)
		}
		m.policy("bindgate detach --container c --path /data").OK(t)
		c.Sh("! test -e /data/file").OK(t)
		m.policy("bindgate attach --container c --pid " + c.PIDString() + " -v v:/data").OK(t)
		c.Sh("grep kept /data/file").OK(t)

		// Removed: no program is left, but all that the next installation needs to go on.
		if r := m.sh("apt-get remove -qq -y bindgate").OK(t); !strings.Contains(r.Stdout, "volumes are still attached") {
			t.Errorf("the removal does not say that a container has a volume: %v", r)
		}
		m.sh("! test -e /usr/bin/bindgate && ! test -e /usr/libexec/bindgate && test -e /etc/bindgate/helper.toml && test -d /var/lib/bindgate/journal && id bindgate").OK(t)
		m.install("1.0.1")
		m.policy("bindgate detach --container c --path /data").OK(t)
		c.Delete()
		m.policy("bindgate cleanup --container c").OK(t)

		// Purged: what is left is what the operator and jobs wrote.
		if r := m.sh("apt-get purge -qq -y bindgate").OK(t); !strings.Contains(r.Stdout, "left /var/lib/bindgate") {
			t.Errorf("the purge does not say what it left: %v", r)
		}
		want := []string{"+/etc/bindgate", "+/etc/bindgate/notes", "+/var/lib/bindgate", "+/var/lib/bindgate/volumes", "+/var/lib/bindgate/volumes/v", "+/var/lib/bindgate/volumes/v/file"}
		if got := paths(harness.Diff(before, m.tree())); !slices.Equal(got, want) {
			t.Errorf("purge left\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		m.sh("! id bindgate && ! getent group bindgate && ! dpkg-statoverride --list " + helper).OK(t)

		// Again from there, and this time there are no volumes.
		m.sh("rm -r /etc/bindgate /var/lib/bindgate").OK(t)
		m.install("1.0.0")
		m.sh("systemctl --root=/ enable bindgate-watch.service bindgate-plugins.path && bindgate status && apt-get purge -qq -y bindgate").OK(t)
		if d := harness.Diff(before, m.tree()); d != "" {
			t.Errorf("purge left\n%s", d)
		}
	})
}

func TestTheOperatorsStatoverrideHolds(t *testing.T) {
	run(t, func(m *machine) {
		m.sh("dpkg-statoverride --add root root 0700 " + helper).OK(t)
		for _, version := range []string{"1.0.0", "1.0.1"} {
			m.install(version)
			m.wants(helper, "-rwx------ root:root")
		}
		m.sh("apt-get purge -qq -y bindgate").OK(t)
		if r := m.sh("dpkg-statoverride --list"); r.Stdout != "root root 700 "+helper+"\n" && r.Stdout != "root root 0700 "+helper+"\n" {
			t.Errorf("after the purge: %v", r)
		}
	})
}

func TestWhatTheSystemReads(t *testing.T) {
	run(t, func(m *machine) {
		m.install("1.0.0")
		for what, script := range map[string]string{
			"units":        "systemd-analyze verify /usr/lib/systemd/system/bindgate-*",
			"bash":         "bash -n /usr/share/bash-completion/completions/bindgate",
			"zsh":          "zsh -n /usr/share/zsh/vendor-completions/_bindgate",
			"manual pages": "dpkg -L bindgate | grep '^/usr/share/man/.*gz' | while read page; do man --warnings -l $page >/dev/null; done",
			"md5sums":      "dpkg --verify bindgate",
			"hooks":        "grep -h '\"/usr/bin/bindgate\"' /usr/share/bindgate/oci/*/*.json >/dev/null",
			"names":        "! dpkg -L bindgate | grep -v -e share/doc -e /usr/bin/ -e bindgate-helper$ | while read f; do [ -d $f ] || zcat -f $f; done | grep -a '@[A-Z_]*@'",
		} {
			if r := m.sh(script); r.Exit != 0 || r.Stdout+r.Stderr != "" {
				t.Errorf("%s: %v", what, r)
			}
		}
		m.sh("apparmor_parser --skip-kernel-load --skip-cache /etc/apparmor.d/bindgate-helper").OK(t) // it warns where the kernel has no AppArmor
		for what, script := range map[string]string{
			"bash": `bash -c '. /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/bindgate; COMP_WORDS=(bindgate prep); COMP_CWORD=1; COMP_LINE="bindgate prep"; COMP_POINT=13; COMP_TYPE=9; __start_bindgate; echo ${COMPREPLY[@]}'`,
			"fish": `fish -c 'complete -C "bindgate prep"'`,
		} {
			if r := m.sh(script).OK(t); !strings.HasPrefix(r.Stdout, "prepare") {
				t.Errorf("%s completes prep with %v", what, r)
			}
		}

		// The policy user can connect to a plugin's socket when the unit has run, and not before.
		m.h.Mkdir(m.root+"/run/docker", 0o700)
		for _, socket := range []string{"/run/docker/plugins/one.sock", "/run/docker/plugins/two/two.sock"} {
			m.h.Mkdir(filepath.Dir(m.root+socket), 0o755)
			l, err := net.Listen("unix", m.root+socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := os.Chmod(m.root+socket, 0o600); err != nil {
				t.Fatal(err)
			}
			m.policy("! test -w " + socket).OK(t)
		}
		start := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(m.h.ReadFile(m.root + "/usr/lib/systemd/system/bindgate-plugins.service"))
		if start == nil {
			t.Fatal("the unit starts nothing")
		}
		m.sh(start[1]).OK(t)
		m.policy("cd /run/docker/plugins && test -w one.sock && test -w two/two.sock && ! touch new 2>/dev/null && ! touch two/new 2>/dev/null && ! ls .. 2>/dev/null").OK(t)
		m.sh("! chroot --userspec=nobody:nogroup / test -w /run/docker/plugins/one.sock").OK(t)
	})
}
