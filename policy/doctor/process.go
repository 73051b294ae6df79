package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// helperCaps are what bindgate-helper starts with; SECURITY.md says for each what for.
var helperCaps = map[string]int{"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE,
	"CAP_SETUID": unix.CAP_SETUID, "CAP_SETGID": unix.CAP_SETGID, "CAP_SETPCAP": unix.CAP_SETPCAP, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE,
	"CAP_CHOWN": unix.CAP_CHOWN, "CAP_FOWNER": unix.CAP_FOWNER, "CAP_FSETID": unix.CAP_FSETID}

// process looks at what this process would pass on to a helper that it starts.
func (d *Doctor) process() {
	if d.policy.Helper.Transport != config.TransportExec {
		d.ok("process.no_new_privs", "the helper is reached over its socket")
		return
	}
	socket := "set transport = \"socket\" in [helper] of policy.toml, and: systemctl enable --now bindgate-helper.socket"
	if nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && nnp == 1 {
		d.add(Check{Check: "process.no_new_privs", State: Failed, Code: wire.Config, Hint: socket,
			Message: "this process has no_new_privs (systemd: NoNewPrivileges=), so the helper's setuid bit has no effect"})
	} else if who := d.withNoNewPrivs(); who != "" {
		d.add(Check{Check: "process.no_new_privs", State: Warning, Hint: socket,
			Message: who + " runs as " + d.policy.User + " with no_new_privs, so the helper's setuid bit has no effect for it"})
	} else {
		d.ok("process.no_new_privs", "not set")
	}
	status, _ := os.ReadFile("/proc/self/status")
	bounding, err := strconv.ParseUint(field(string(status), "CapBnd"), 16, 64)
	var missing []string
	for name, n := range helperCaps {
		if bounding&(1<<n) == 0 {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	if err == nil && len(missing) > 0 {
		d.add(Check{Check: "process.capabilities", State: Failed, Code: wire.Config,
			Message: "the capability bounding set lacks " + strings.Join(missing, ", ") + ", which the helper takes from it",
			Hint:    "run where root has them, such as outside of a container, or add them to CapabilityBoundingSet= of the unit"})
	} else {
		d.ok("process.capabilities", "the bounding set has what the helper needs")
	}
}

// withNoNewPrivs names a process of the policy user's, such as an agent, that has no_new_privs.
func (d *Doctor) withNoNewPrivs() string {
	uid := strconv.Itoa(d.policyUID())
	for _, pid := range pids() {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if uids := strings.Fields(field(string(status), "Uid")); err == nil && len(uids) > 0 && uids[0] == uid && field(string(status), "NoNewPrivs") == "1" &&
			!strings.HasPrefix(field(string(status), "State"), "Z") { // a zombie starts nothing any more
			return "process " + pid + " (" + wire.Printable(field(string(status), "Name")) + ")"
		}
	}
	return ""
}

// field returns the value of a line "Key:\tvalue".
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func pids() (list []string) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, e.Name())
		}
	}
	return list
}

// denial finds what AppArmor and SELinux write about a program that they keep from something.
var denial = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?:apparmor="DENIED"|avc:\s+denied).*\b(?:comm|exe|profile)="[^"]*bindgate`)
})

// lsm looks for denials of security modules in the kernel's log and in that of auditd. The lines stay there whatever is mended, so those count that are younger than what decides.
func (d *Doctor) lsm() {
	modules, err := os.ReadFile("/sys/kernel/security/lsm")
	what := "security modules: " + strings.TrimSpace(string(modules))
	if err != nil {
		what = "no list of security modules"
	}
	since, changed := d.decidedSince()
	var found []string
	read, before := 0, 0
	for path, limit := range map[string]int{"/dev/kmsg": 16 << 20, "/var/log/audit/audit.log": 64 << 20} {
		text, err := tail(path, limit)
		if err == nil {
			read++
		}
		for line := range strings.Lines(text) {
			switch {
			case !denial().MatchString(line):
			case auditedAt(line).Before(since):
				before++
			default:
				if _, text, ok := strings.Cut(line, ";"); ok && path == "/dev/kmsg" {
					line = text
				}
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	switch {
	case len(found) > 0:
		d.add(Check{Check: "lsm", State: Failed, Code: wire.Denied,
			Hint:    "allow it in the profile of bindgate-helper (or in SELinux' policy) and load that; denials from before its last change do not count, so touch its file if this one is as it should be",
			Message: fmt.Sprintf("a security module denied bindgate something, %s since %s, at last: %s", plural(len(found), "time"), changed, wire.Printable(found[len(found)-1]))})
	case read == 0:
		d.unknown("lsm", "%s; neither the kernel's log nor that of auditd can be read", what)
	case before > 0:
		d.ok("lsm", "%s; no denial since %s, %d before", what, changed, before)
	default:
		d.ok("lsm", "%s; no denial since %s", what, changed)
	}
}

// decidedSince is when that was last changed by which security modules decide: the helper, its AppArmor profile, SELinux' policy. It is the boot if that was later.
func (d *Doctor) decidedSince() (since time.Time, what string) {
	what = "the boot"
	if stat, err := os.ReadFile("/proc/stat"); err == nil {
		for l := range strings.Lines(string(stat)) {
			if boot, ok := strings.CutPrefix(l, "btime "); ok {
				n, _ := strconv.ParseInt(strings.TrimSpace(boot), 10, 64)
				since = time.Unix(n, 0)
			}
		}
	}
	profiles := filepath.Join(filepath.Dir(filepath.Dir(conf.HelperTOML())), "apparmor.d")
	selinux, _ := filepath.Glob("/etc/selinux/*/policy/policy.*")
	for _, path := range append(selinux, d.policy.Helper.Path, profiles+"/bindgate-helper", profiles+"/local/bindgate-helper") {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			continue
		}
		if at := time.Unix(st.Ctim.Unix()); at.After(since) { // the time of modification is the archive's, where dpkg put it there
			since, what = at, path+" changed ("+at.UTC().Format(time.RFC3339)+")"
		}
	}
	return since, what
}

// tail reads the last bytes of a log. Of /dev/kmsg each read is one record, and the end is EAGAIN.
func tail(path string, limit int) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if end, err := unix.Seek(fd, 0, 2); err == nil && path != "/dev/kmsg" {
		unix.Seek(fd, max(0, end-int64(limit)), 0)
	} else {
		unix.Seek(fd, 0, 0)
	}
	var all bytes.Buffer
	buf := make([]byte, 16<<10)
	for all.Len() < limit {
		n, err := unix.Read(fd, buf)
		if err == unix.EPIPE || err == unix.EINTR { // records that were overwritten meanwhile
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		all.Write(buf[:n])
	}
	return all.String(), nil
}

var auditTime = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`audit\((\d+)\.(\d{3}):`) })

// auditedAt is the time in a line that the kernel's audit wrote; the end of time if there is none, so that the line counts.
func auditedAt(line string) time.Time {
	m := auditTime().FindStringSubmatch(line)
	if m == nil {
		return time.Unix(1<<40, 0)
	}
	ms, _ := strconv.ParseInt(m[1]+m[2], 10, 64)
	return time.UnixMilli(ms)
}

// cgroups looks at how cgroups are laid out, and that we see them as the host does: target rules are paths as the host sees them.
func (d *Doctor) cgroups() {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || len(text) == 0 {
		d.bad("cgroup.layout", wire.UnsupportedKernel, nil, "the kernel has no cgroups, and target rules are about them")
		return
	}
	v1, v2 := 0, false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "0::") {
			v2 = true
		} else {
			v1++
		}
	}
	switch {
	case v1 == 0:
		d.ok("cgroup.layout", "cgroup v2")
	case !v2:
		d.ok("cgroup.layout", "cgroup v1, %d hierarchies", v1)
	default:
		d.ok("cgroup.layout", "cgroup v1, %d hierarchies, and v2: a rule has to match in each where a container is not at the root", v1)
	}
	own, err1 := os.Stat("/proc/self/ns/cgroup")
	first, err2 := os.Stat("/proc/1/ns/cgroup")
	switch {
	case err1 != nil || err2 != nil:
		d.unknown("cgroup.namespace", "cannot compare our cgroup namespace with the host's")
	case !os.SameFile(own, first):
		d.add(Check{Check: "cgroup.namespace", State: Failed, Code: wire.Config, Message: "this process is in a cgroup namespace of its own, from which the helper cannot judge the cgroups of containers",
			Hint: "run on the host, or with the host's cgroup namespace (--cgroupns=host)"})
	default:
		d.ok("cgroup.namespace", "that of the host")
	}
}

// A running is a container that runs on the host: a process that is the first of a pid namespace and in a mount namespace of its own.
type running struct {
	pid, comm string
	cgroups   []string // but those at the root
}

// containers finds what runs on the host in containers. Only root may see others' namespaces.
func containers() (list []running) {
	own, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		own, _ = os.Readlink("/proc/self/ns/mnt")
	}
	for _, pid := range pids() {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if ids := strings.Fields(field(string(status), "NSpid")); err != nil || len(ids) < 2 || ids[len(ids)-1] != "1" {
			continue
		}
		if ns, err := os.Readlink("/proc/" + pid + "/ns/mnt"); err != nil || ns == own {
			continue
		}
		text, err := os.ReadFile("/proc/" + pid + "/cgroup")
		if err != nil {
			continue
		}
		r := running{pid: pid, comm: wire.Printable(field(string(status), "Name"))}
		for line := range strings.Lines(string(text)) {
			if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[2] != "/" && !slices.Contains(r.cgroups, f[2]) {
				r.cgroups = append(r.cgroups, f[2])
			}
		}
		list = append(list, r)
	}
	return list
}

// matched reports whether target rules match a container, as the helper decides it.
func (r running) matched(rules []string) bool {
	return len(r.cgroups) > 0 && !slices.ContainsFunc(r.cgroups, func(c string) bool {
		path, err := wire.ParsePath(c)
		return err != nil || !slices.ContainsFunc(wire.ParsePaths(rules), func(rule wire.Path) bool { return len(rule.Components) > 0 && rule.Contains(path) })
	})
}

// proposal is the target rule for the containers in a cgroup: its first component, unless the host's own services are in that.
func proposal(cgroup string) (rule string, shared bool) {
	first := "/" + strings.SplitN(strings.TrimPrefix(cgroup, "/"), "/", 2)[0]
	switch first {
	case "/system.slice", "/user.slice", "/init.scope":
		return filepath.Dir(cgroup), true
	}
	return first, false
}

// targets looks at the target rules, and proposes some from what runs on the host.
func (d *Doctor) targets() {
	if d.helper == nil {
		return
	}
	rules := d.helper.Targets.Cgroups
	var propose, unmatched []string
	shared := false
	for _, r := range containers() {
		if r.matched(rules) || len(r.cgroups) == 0 {
			continue
		}
		unmatched = append(unmatched, fmt.Sprintf("%s (%s) in %s", r.pid, r.comm, r.cgroups[0]))
		for _, c := range r.cgroups {
			rule, s := proposal(c)
			shared = shared || s
			if !slices.Contains(propose, rule) && !slices.Contains(rules, rule) {
				propose = append(propose, rule)
			}
		}
	}
	hint := ""
	if len(propose) > 0 {
		slices.Sort(propose)
		list, _ := tomlList(append(slices.Clone(rules), propose...))
		hint = "in [targets] of " + "helper.toml: cgroups = " + list
		if shared {
			hint += "; the host's own services are in there, too: better give the engine a cgroup parent of its own (Docker: \"cgroup-parent\" in daemon.json)"
		}
	}
	switch {
	case len(rules) == 0:
		d.add(Check{Check: "target.cgroups", State: Warning, Message: "helper.toml has no target rule, so nothing can be attached to any container", Hint: hint})
	case len(unmatched) > 0:
		d.add(Check{Check: "target.cgroups", State: Warning, Hint: hint,
			Message: fmt.Sprintf("%s on this host match no target rule, such as %s", plural(len(unmatched), "container"), unmatched[0])})
	default:
		d.ok("target.cgroups", "%s", strings.Join(rules, ", "))
	}
}

func tomlList(items []string) (string, error) {
	for i, s := range items {
		if strings.ContainsAny(s, "\"\\") {
			return "", errors.New("it needs quoting")
		}
		items[i] = `"` + s + `"`
	}
	return "[" + strings.Join(items, ", ") + "]", nil
}

// missing reports whether an error says that something is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
