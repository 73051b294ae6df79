package doctor

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

func TestHealthy(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Plugin("flock", "-bind")
		healthy(t, h)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "-v", "a:/a").OK(t)
		h.Policy("attach", "--container", "c", "--pid", c.PIDString(), "--driver", "flock", "-v", "b:/b").OK(t)
		// A copy that the container makes of what it has, there or in a namespace of its own, is its own business.
		h.Sh("nsenter -t " + c.PIDString() + " -m busybox sh -c 'mkdir -p /copy && mount --bind /a /copy'").OK(t)
		healthy(t, h)
		h.Policy("detach", "--container", "c", "--all", "--lazy").OK(t)
	})
}

func TestOthersAreRefused(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.PolicyAs(harness.User{UID: harness.OutsiderUID, GID: harness.OutsiderGID}, "", "doctor", "-o", "json").Fails(t, wire.Denied)
	})
}

// A breach is one thing that is wrong, and what doctor says of it.
type breach struct {
	name  string
	do    func(t *testing.T, h *harness.Host)
	check string
	state string    // "" is failed
	code  wire.Code // of it, if it failed
	says  string
	fix   string // the commands hold this; "" none
	mends bool   // they can be run, and all is well then
	safe  bool   // --fix does it, too
	also  string // what else fails
	as    []harness.User
}

var (
	rootOnly = []harness.User{root}
	either   = []harness.User{root, policy}
)

func chmod(path string, mode uint32) func(*testing.T, *harness.Host) {
	return func(t *testing.T, h *harness.Host) {
		if err := unix.Chmod(h.Path(path), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func sh(script string) func(*testing.T, *harness.Host) {
	return func(t *testing.T, h *harness.Host) {
		h.Sh("cd " + h.Path() + "; " + script).OK(t)
	}
}

func TestBreaches(t *testing.T) {
	const helper = "prefix/libexec/bindgate/bindgate-helper"
	const later = "9999999999.000" // than anything here
	all := []breach{
		{name: "the program is writable", do: chmod("prefix/bin/bindgate", 0o775), check: "program", code: wire.Config, says: "mode 0775", fix: "make install"},
		{name: "the program is setuid", do: chmod("prefix/bin/bindgate", 0o4755), check: "program", code: wire.Config, says: "only the helper", fix: "chmod u-s,g-s", mends: true, as: rootOnly},
		{name: "no helper", do: sh("mv " + helper + " old"), check: "helper.file", code: wire.Config, says: "is not there", fix: "make install", also: "helper.answers", as: either},
		{name: "the helper is somebody's", do: sh("chown 64802 " + helper), check: "helper.file", code: wire.Config, says: "owned by uid 64802", fix: "make install", also: "helper.answers"},
		{name: "the helper is writable", do: chmod(helper, 0o4770), check: "helper.file", code: wire.Config, says: "mode 4770", fix: "make install"},
		{name: "the helper is not setuid", do: chmod(helper, 0o750), check: "helper.mode", code: wire.Config, says: "setuid bit", fix: "chmod 4750", mends: true, also: "helper.answers"},
		{name: "anyone may start the helper", do: chmod(helper, 0o4755), check: "helper.mode", code: wire.Config, says: "4755", fix: "chmod 4750", mends: true, safe: true},
		{name: "the group may not start the helper", do: chmod(helper, 0o4700), check: "helper.mode", code: wire.Config, says: "cannot start it", fix: "chmod 4750", mends: true, also: "helper.answers"},
		{name: "the helper's group is another", do: sh("chgrp 64802 " + helper + "; chmod 4750 " + helper), check: "helper.group", code: wire.Config, says: "64802", fix: "chown root:bindgate-test", mends: true, also: "helper.answers"},
		{name: "the helper has two names", do: sh("ln " + helper + " old"), check: "helper.links", code: wire.Config, says: "2 names", fix: "-samefile", also: "helper.answers"},
		{name: "the helper has file capabilities", do: sh("/sbin/setcap cap_chown+ep " + helper), check: "helper.capabilities", code: wire.Config, says: "file capabilities", fix: "setcap -r", mends: true, also: "helper.answers"},
		{name: "the helper is mounted nosuid", do: func(t *testing.T, h *harness.Host) {
			h.Mount(h.Path("prefix"), h.Path("prefix"), "", unix.MS_BIND, "")
			h.Sh("mount -o remount,bind,nosuid " + h.Path("prefix")).OK(t)
		}, check: "helper.nosuid", code: wire.Config, says: "nosuid", fix: "mount -o remount,bind,suid /run/bindgate-test/prefix", mends: true, also: "helper.answers"},
		{name: "the helper is another program", do: sh("cat /bin/busybox >" + helper + "; chmod 4750 " + helper), check: "helper.answers", code: wire.Internal, says: "without an answer"},
		{name: "another one in the group", do: sh("sed 's/^bindgate-test:x:64801:$/&bindgate-outsider/' users/group >tmp/group; cat tmp/group >users/group"), check: "group", state: "warning", says: "bindgate-outsider", fix: "gpasswd -d bindgate-outsider bindgate-test"},

		{name: "helper.toml has an unknown key", do: sh("echo 'nonsense = 1' >etc/bindgate/helper.toml"), check: "config.helper", code: wire.Config, says: "nonsense", also: "helper.answers"},
		{name: "helper.toml is writable", do: chmod("etc/bindgate/helper.toml", 0o664), check: "config.helper", code: wire.Config, says: "0664", fix: "chmod go-w", mends: true, also: "helper.answers"},
		{name: "policy.toml has an unknown key", do: sh("echo 'nonsense = 1' >etc/bindgate/policy.toml"), check: "config.policy", code: wire.Config, says: "nonsense"},
		{name: "policy.toml is writable", do: chmod("etc/bindgate/policy.toml", 0o666), check: "config.policy", code: wire.Config, says: "0666", fix: "chmod go-w", mends: true},
		{name: "no rule", do: func(t *testing.T, h *harness.Host) { h.PolicyTOML(harness.DefaultPolicyTOML) }, check: "config.policy", state: "warning", says: "no [[rule]]"},
		{name: "the policy user is nobody", do: func(t *testing.T, h *harness.Host) {
			h.PolicyTOML("user = \"nosuchuser\"\n" + h.ReadFile(h.Path("etc/bindgate/policy.toml")))
		},
			check: "user", code: wire.Config, says: "nosuchuser", also: "folder.journal helper.group", as: rootOnly},

		{name: "volumes can be read", do: chmod("var/lib/bindgate/volumes", 0o755), check: "folder.volumes", code: wire.Config, says: "0755", fix: "chmod 0700", mends: true, safe: true},
		{name: "the ledger can be read", do: chmod("run/bindgate/ledger", 0o755), check: "folder.ledger", code: wire.Config, says: "0755", fix: "chmod 0700", mends: true, safe: true},
		{name: "the journal can be read", do: chmod("var/lib/bindgate/journal", 0o750), check: "folder.journal", code: wire.Config, says: "0750", fix: "chmod 0700", mends: true, safe: true},
		{name: "the log folder is writable", do: chmod("var/log/bindgate", 0o777), check: "folder.log", code: wire.Config, says: "0777", fix: "chmod 0755", mends: true, safe: true, also: "helper.answers"},
		{name: "the run folder is writable", do: chmod("run/bindgate", 0o777), check: "folder.run", code: wire.Config, says: "0777", fix: "chmod 0755", mends: true, safe: true, also: "helper.answers folder.ledger"},
		{name: "no folder for volumes", do: sh("rmdir var/lib/bindgate/volumes"), check: "folder.volumes", code: wire.Config, says: "is not there", fix: "install -d -m 0700", mends: true, safe: true, also: "helper.answers"},
		{name: "no log folder", do: sh("rm -r var/log/bindgate"), check: "folder.log", code: wire.Config, says: "is not there", fix: "install -d -m 0755", mends: true, safe: true, also: "helper.answers"},
		{name: "no journal", do: sh("rm -r var/lib/bindgate/journal"), check: "folder.journal", code: wire.Config, says: "is not there", fix: "install -d -m 0700 -o bindgate-test", mends: true, safe: true, also: "folder.records"},
		{name: "the journal is root's", do: sh("chown 0 var/lib/bindgate/journal"), check: "folder.journal", code: wire.Config, says: "uid 0", fix: "install -d -m 0700 -o bindgate-test", mends: true, also: "folder.records"},
		{name: "the audit log can be read", do: sh("touch var/log/bindgate/audit.jsonl; chmod 0644 var/log/bindgate/audit.jsonl"), check: "audit", code: wire.Config, says: "0644", fix: "chmod 0640", mends: true, safe: true},
		{name: "the audit log is a link", do: sh("rm -f var/log/bindgate/audit.jsonl; ln -s /dev/null var/log/bindgate/audit.jsonl"), check: "audit", code: wire.Config, says: "no regular file", fix: "mv ", mends: true, also: "helper.answers"},

		{name: "no user namespaces", do: func(t *testing.T, h *harness.Host) {
			h.WriteFile(h.Path("tmp/zero"), "0\n", 0o644)
			h.Mount(h.Path("tmp/zero"), "/proc/sys/user/max_user_namespaces", "", unix.MS_BIND, "")
		}, check: "kernel.user_namespaces", code: wire.UnsupportedKernel, says: "user namespaces", fix: "sysctl -w user.max_user_namespaces="},
		{name: "AppArmor denies something", do: func(t *testing.T, h *harness.Host) {
			h.WriteFile(h.Path("tmp/kmsg"), "6,1,2,-;audit: type=1400 audit("+later+":3): apparmor=\"DENIED\" operation=\"mount\" profile=\"x\" name=\"/\" pid=1 comm=\"bindgate-helper\"\n"+
				"6,2,2,-;audit: type=1400 audit("+later+":4): apparmor=\"DENIED\" operation=\"open\" profile=\"x\" pid=1 comm=\"other\"\n", 0o644)
			h.Mount(h.Path("tmp/kmsg"), "/dev/kmsg", "", unix.MS_BIND, "")
		}, check: "lsm", code: wire.Denied, says: "operation=\"mount\""},
		{name: "SELinux denies something", do: func(t *testing.T, h *harness.Host) {
			h.Mount("tmpfs", "/var/log", "tmpfs", 0, "")
			h.Mkdir("/var/log/audit", 0o700)
			line := func(at, what string) string {
				return fmt.Sprintf("type=AVC msg=audit(%s:2): avc:  denied  { %s } for  pid=1 comm=\"bindgate-helper\" scontext=a tcontext=b\n", at, what)
			}
			h.WriteFile("/var/log/audit/audit.log", line("1.000", "before the boot")+line(later, "mounton"), 0o600)
		}, check: "lsm", code: wire.Denied, says: "bindgate-helper changed", as: rootOnly},

		{name: "no target rule", do: func(t *testing.T, h *harness.Host) {
			h.HelperTOML(strings.ReplaceAll(harness.DefaultHelperTOML, `cgroups = ["/bindgate-test"]`, ""))
			h.Container(harness.ContainerOptions{ID: "c"})
		}, check: "target.cgroups", state: "warning", says: "no target rule"},
		{name: "a source is not there", do: sh("rmdir sources"), check: "source", state: "warning", says: "is not there"},
		{name: "a source is not sealed", do: chmod("sources", 0o755), check: "source", state: "warning", says: "not sealed", fix: "chmod go-x", mends: true},
		{name: "a source is below somebody's folder", do: sh(`mkdir -p theirs/v && chmod 700 theirs/v && chown 64802 theirs && printf '[[source]]\npath = "/run/bindgate-test/theirs/v"\n' >>etc/bindgate/helper.toml`),
			check: "source", code: wire.Config, says: "owned by uid 64802", fix: "chown root", mends: true},
		{name: "something is mounted in a source", do: func(t *testing.T, h *harness.Host) {
			h.Mount("tmpfs", h.Mkdir(h.Path("sources/x"), 0o755), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "")
		}, check: "leak.unused", state: "warning", says: "/run/bindgate-test/sources/x is mounted"},
	}
	for _, b := range all {
		t.Run(b.name, func(t *testing.T) {
			harness.Run(t, func(h *harness.Host) {
				h.AllowAll()
				b.do(t, h)
				as := b.as
				if as == nil {
					as = either
				}
				var last check
				for _, user := range as {
					rep, r := doctor(t, h, user)
					if b.state == "" {
						rep.only(t, append(strings.Fields(b.also), b.check)...)
						if b.also == "" {
							r.Exits(t, b.code.Exit())
						}
					} else {
						r.OK(t)
					}
					found := rep.find(b.check)
					if len(found) != 1 {
						t.Fatalf("uid %d: %d findings of %s: %v", user.UID, len(found), b.check, r)
					}
					last = found[0]
					state := b.state
					if state == "" {
						state = "failed"
					}
					if last.State != state || last.Code != string(b.code) || !strings.Contains(last.Message, b.says) || !strings.Contains(strings.Join(last.Fix, "\n"), b.fix) || b.fix == "" && len(last.Fix) > 0 {
						t.Errorf("uid %d: %+v", user.UID, last)
					}
				}
				if b.safe {
					rep, r := doctor(t, h, root, "--fix")
					if f := rep.find(b.check); len(f) != 1 || f[0].State != "fixed" {
						t.Errorf("--fix: %v", r)
					}
					r.OK(t)
				} else {
					before := h.Tree(h.Path())
					doctor(t, h, root, "--fix")
					if d := harness.Diff(before, h.Tree(h.Path())); strings.Contains(d, "\n-") || strings.HasPrefix(d, "-") {
						t.Errorf("--fix changed\n%s", d)
					}
				}
				if b.mends && !b.safe {
					mend(t, h, last)
				}
				if b.mends {
					healthyBut(t, h, "")
				}
			})
		})
	}
}

// healthyBut is healthy, but for warnings of one check.
func healthyBut(t *testing.T, h *harness.Host, name string) {
	t.Helper()
	rep, r := doctor(t, h, root)
	r.OK(t)
	for _, c := range rep.Checks {
		if c.State != "ok" && c.Check != name {
			t.Errorf("still: %+v", c)
		}
	}
}

// A denial that was mended is in the log until the next boot, and fails doctor no more.
func TestMendedDenials(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		stamp := func() string {
			var st unix.Stat_t
			must(t, unix.Stat(h.HelperPath(), &st))
			next := st.Ctim.Nano()/1e6 + 1 // ms
			return fmt.Sprintf("%d.%03d", next/1000, next%1000)
		}
		line := "audit: type=1400 audit(" + stamp() + ":3): apparmor=\"DENIED\" operation=\"mount\" comm=\"bindgate-helper\"\n"
		h.WriteFile(h.Path("tmp/kmsg"), "6,1,2,-;"+line+"6,2,2,-;"+line, 0o644)
		h.Mount(h.Path("tmp/kmsg"), "/dev/kmsg", "", unix.MS_BIND, "")
		lsm := func() (found check) {
			rep, _ := doctor(t, h, root)
			for _, c := range rep.Checks {
				if c.Check == "lsm" {
					found = c
				}
			}
			return found
		}
		if c := lsm(); c.State != "failed" || !strings.Contains(c.Message, "2 times since "+h.HelperPath()+" changed") {
			t.Errorf("as denied: %+v", c)
		}
		profile := h.Path("etc/apparmor.d/bindgate-helper")
		h.Mkdir(filepath.Dir(profile), 0o755)
		h.Sh("set -e; touch " + profile + "; until [ $(date +%s%3N -r " + profile + ") -gt " + strings.ReplaceAll(stamp(), ".", "") + " ]; do touch " + profile + "; done").OK(t)
		if c := lsm(); c.State != "ok" || !strings.Contains(c.Message, "no denial since "+profile+" changed") || !strings.Contains(c.Message, "2 before") {
			t.Errorf("after the profile changed: %+v", c)
		}
	})
}
