package harness

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// programs are what build can build: their packages, and the folder of the module that names them. The last three are plugins that others wrote.
var programs = map[string]struct{ module, pkg string }{
	"bindgate":        {".", "./cmd/bindgate"},
	"bindgate-helper": {".", "./helper"},
	"testplugin":      {".", "./tests/plugins/testplugin"},
	"isolator":        {".", "./examples/isolator"},
	"cri":             {"tests/peers/cri", "."},
	"manual":          {".", "./cmd/manual"},
	"testvol":         {"tests/peers/podman", "github.com/containers/podman/v4/test/testvol"},
	"rclone":          {"tests/peers/rclone", "."},
	"rclone-whole":    {"tests/peers/whole", "github.com/rclone/rclone"},
}

// Checkout returns the root of the source tree that the test runs in.
func Checkout() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			return dir, nil
		}
		if dir == "/" {
			err = errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

var (
	buildLock sync.Mutex
	built     = map[string]bool{}
)

// build builds programs for Root into bin/test of the checkout, as the checkout's owner, and returns that folder. What is up to date is not linked
// again, and nothing is looked at twice by one process and its hosts; that is why, unlike in the Makefile, the build id stays.
func build(names ...string) (string, error) {
	checkout, err := Checkout()
	if err != nil {
		return "", err
	}
	info, err := os.Stat(checkout)
	if err != nil {
		return "", err
	}
	owner := info.Sys().(*syscall.Stat_t)
	dir := filepath.Join(checkout, "bin", "test")
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Mkdir(d, 0o755); err == nil {
			os.Chown(d, int(owner.Uid), int(owner.Gid))
		} else if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	// One at a time: test binaries of several packages run at once.
	lock, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(lock)
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(lock, unix.LOCK_EX)
	}
	if err != nil {
		return "", err
	}
	buildLock.Lock()
	defer buildLock.Unlock()
	flags := "-s -w"
	for _, v := range []string{"prefix=" + Root + "/prefix", "sysconfdir=" + Root + "/etc", "localstatedir=" + Root + "/var", "rundir=" + Root + "/run",
		"user=" + PolicyUser, "version=test"} {
		flags += " -X github.com/bindgate/bindgate/conf." + v
	}
	for _, name := range names {
		if built[name] {
			continue
		}
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", filepath.Join(dir, name), programs[name].pkg)
		cmd.Dir = filepath.Join(checkout, programs[name].module)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "TMPDIR=/tmp")
		if int(owner.Uid) != os.Getuid() {
			home := "/nonexistent"
			if u, err := user.LookupId(strconv.Itoa(int(owner.Uid))); err == nil {
				home = u.HomeDir
			}
			cmd.Env = append(cmd.Env, "HOME="+home)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("cannot build %s: %w\n%s", name, err, out)
		}
		built[name] = true
	}
	return dir, nil
}

// isBuilt notes that programs are up to date, and returns all that are.
func isBuilt(names ...string) []string {
	buildLock.Lock()
	defer buildLock.Unlock()
	for _, name := range names {
		built[name] = true
	}
	return slices.Sorted(maps.Keys(built))
}

// Program builds one of programs and returns its path.
func (h *Host) Program(name string) string {
	h.t.Helper()
	dir, err := build(name)
	h.check(err)
	return filepath.Join(dir, name)
}

// install makes the tree of DESIGN section 10 as make install does (a test compares the two), and the configuration that a test starts from.
func (h *Host) install() {
	h.t.Helper()
	checkout, err := Checkout()
	h.check(err)
	built := filepath.Join(checkout, "bin", "test")
	for _, d := range []struct {
		path     string
		mode     os.FileMode
		uid, gid int
	}{
		{"prefix/bin", 0o755, 0, 0}, {"prefix/libexec/bindgate", 0o755, 0, 0}, {"etc/bindgate", 0o755, 0, 0}, {"prefix/lib/systemd/system", 0o755, 0, 0},
		{"var/lib/bindgate", 0o755, 0, 0}, {"var/lib/bindgate/journal", 0o700, PolicyUID, PolicyGID}, {"var/lib/bindgate/volumes", 0o700, 0, 0},
		{"run/bindgate", 0o755, 0, 0}, {"run/bindgate/ledger", 0o700, 0, 0}, {"var/log/bindgate", 0o755, 0, 0},
		{"sources", 0o700, 0, 0}, {"host", 0o755, 0, 0}, {"sandboxes", 0o755, 0, 0}, {"bundles", 0o755, 0, 0}, {"plugins", 0o755, 0, 0}, {"specs", 0o755, 0, 0},
	} {
		h.Mkdir(h.Path(d.path), d.mode)
		h.check(os.Chown(h.Path(d.path), d.uid, d.gid))
	}
	h.copyFile(filepath.Join(built, "bindgate"), h.Bindgate(), 0, 0, 0o755)
	h.copyFile(filepath.Join(built, "bindgate-helper"), h.HelperPath(), 0, PolicyGID, 0o4750)
	h.check(os.Symlink("bindgate", h.Path("prefix/bin/dvdcli")))
	units, err := filepath.Glob(filepath.Join(checkout, "packaging/systemd/*"))
	h.check(err)
	names := strings.NewReplacer("@PREFIX@", h.Path("prefix"), "@RUNDIR@", h.Path("run"), "@BINDGATE_USER@", PolicyUser, "@BINDGATE_GROUP@", PolicyUser)
	for _, u := range units {
		h.WriteFile(h.Unit(filepath.Base(u)), names.Replace(h.ReadFile(u)), 0o644)
	}
	h.HelperTOML(DefaultHelperTOML)
	h.PolicyTOML(DefaultPolicyTOML)
}

func (h *Host) copyFile(from, to string, uid, gid int, mode uint32) {
	h.t.Helper()
	h.CopyFile(from, to, mode)
	h.check(os.Chown(to, uid, gid))
	h.check(unix.Chmod(to, mode)) // chown takes the setuid bit away
}

// CopyFile copies a file, whose copy is root's, with exactly this mode, in pieces: the first touch of the memory for a whole program costs more than the copy.
func (h *Host) CopyFile(from, to string, mode uint32) {
	h.t.Helper()
	syscall.ForkLock.RLock() // a child that is started meanwhile would have it open for writing until its execve, and nobody could run it (ETXTBSY)
	defer syscall.ForkLock.RUnlock()
	in, err := os.Open(from)
	h.check(err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	h.check(err)
	_, err = io.Copy(out, in)
	h.check(errors.Join(err, out.Close()))
	h.check(unix.Chmod(to, mode)) // os.Chmod has the setuid bit elsewhere
}

// DefaultHelperTOML is the helper.toml of a host: the local source, one for plugins, and the cgroup, host path, sandbox root and rootfs root of the tree.
const DefaultHelperTOML = `
[[source]]
path = "` + Root + `/var/lib/bindgate/volumes"
[[source]]
path = "` + Root + `/sources"
[targets]
cgroups = ["` + CgroupRule + `"]
host_paths = ["` + Root + `/host"]
sandbox_roots = ["` + Root + `/sandboxes"]
rootfs_roots = ["` + Root + `/bundles"]
`

// DefaultPolicyTOML is the policy.toml of a host: where plugins are, and no rule, so every volume is denied.
const DefaultPolicyTOML = `
[plugins]
socket_dirs = ["` + Root + `/plugins"]
spec_dirs = ["` + Root + `/specs"]
`

// Rule for AllowAll.
const allowAll = `
[[rule]]
action = "allow"
`

// HelperTOML writes helper.toml.
func (h *Host) HelperTOML(content string) {
	h.t.Helper()
	h.WriteFile(h.Path("etc/bindgate/helper.toml"), content, 0o644)
}

// PolicyTOML writes policy.toml.
func (h *Host) PolicyTOML(content string) {
	h.t.Helper()
	h.WriteFile(h.Path("etc/bindgate/policy.toml"), content, 0o644)
}

// AllowAll adds a rule to policy.toml that allows every volume to everyone.
func (h *Host) AllowAll() {
	h.t.Helper()
	h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + allowAll)
}
