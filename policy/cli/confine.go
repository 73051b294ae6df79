package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	access "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/wire"
)

// What the process may read besides what its configuration names: who users and hosts are, authorities for TLS, the time zone, and processes.
var (
	readFiles = []string{"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf", "/etc/localtime"}
	readDirs  = []string{"/proc", "/usr/share/zoneinfo", "/etc/ssl/certs", "/etc/pki", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"}
)

const (
	readFile = landlock.AccessFSSet(access.AccessFSReadFile)
	readDir  = readFile | access.AccessFSReadDir
	write    = readDir | access.AccessFSWriteFile | access.AccessFSTruncate | access.AccessFSMakeReg | access.AccessFSMakeDir | access.AccessFSRemoveFile |
		access.AccessFSRemoveDir | access.AccessFSRefer
)

// confine gives up for good what a policy process has no use for where the helper is reached over a socket: no_new_privs in every thread, and by Landlock all
// files but the journal (to write) and those it reads. reads names more of these, such as the job's file, and writes more folders of those. It starts no
// program and makes no device. What is open stays usable; sockets can be connected to wherever their permissions allow it.
//
// The setuid helper starts with what its caller has: it would have neither a setuid bit nor files. So with that transport nothing is done here.
//
// Errors: unsupported_kernel without Landlock, of which nothing stands in the stead.
func confine(p *config.Policy, reads, writes []string) error {
	if p.Helper.Transport != config.TransportSocket {
		return nil
	}
	fail := func(err error) error {
		return wire.Errorf(wire.UnsupportedKernel, "confine", "cannot confine this process by Landlock: %v", err).
			WithHint("the kernel must have Landlock (CONFIG_SECURITY_LANDLOCK), and landlock in its list of security modules (lsm=)")
	}
	if err := os.MkdirAll(p.State.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrPermission) {
		return wire.Errorf(wire.Config, "state", "cannot make the journal's folder: %v", err)
	}
	files := slices.Concat(readFiles, reads)
	plugins, _ := driver.Survey(driver.Options{SocketDirs: p.Plugins.SocketDirs, SpecDirs: p.Plugins.SpecDirs})
	for _, l := range plugins {
		files = append(files, l.Reads...)
	}
	dirs := slices.Concat(readDirs, reads, p.Plugins.SocketDirs, p.Plugins.SpecDirs, []string{filepath.Dir(conf.PolicyTOML())})
	if resolv, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil && filepath.Dir(resolv) != "/etc" {
		dirs = append(dirs, filepath.Dir(resolv)) // where another takes its place while we run
	}
	if err := landlock.V6.RestrictPaths(
		landlock.PathAccess(readFile, there(files, fs.FileMode.IsRegular)...), // of others, such as pipes, Landlock knows nothing
		landlock.PathAccess(readDir, there(dirs, fs.FileMode.IsDir)...),
		landlock.PathAccess(write, there(append(writes, p.State.Dir), fs.FileMode.IsDir)...),
	); err != nil {
		return fail(err)
	}
	// A restriction that reports success and did nothing must not go unnoticed (T36).
	if nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || nnp != 1 {
		return fail(errors.New("no_new_privs is not set"))
	}
	if f, err := os.Open("/"); !errors.Is(err, fs.ErrPermission) {
		f.Close()
		return fail(errors.New("/ can still be read"))
	}
	return nil
}

// there returns those of the paths that are of a kind, and not behind a folder that is closed to us.
func there(paths []string, kind func(fs.FileMode) bool) []string {
	return slices.DeleteFunc(paths, func(path string) bool {
		info, err := os.Stat(path)
		return err != nil || !kind(info.Mode())
	})
}

// dropCapabilities empties the inheritable, permitted, effective and ambient sets of every thread: a policy user that was started with some (by systemd's
// AmbientCapabilities=) has no use for them. The bounding set stays, since the setuid helper takes its capabilities from it.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets, none [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	if err == nil && sets != none { // an ambient capability would be inheritable and permitted, too
		if _, _, e := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0); e != 0 {
			err = e
		} else {
			err = noCapabilities()
		}
	}
	if err != nil {
		return wire.Errorf(wire.System, "user", "cannot give up this process' capabilities: %v", err)
	}
	return nil
}

// noCapabilities looks whether they are gone: what reports success and did nothing must not go unnoticed (T36).
func noCapabilities() error {
	threads, err := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		status, err := os.ReadFile("/proc/" + t.Name() + "/status") // not below self/task (docs/adr/0016)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		} else if err != nil {
			return err
		}
		for line := range strings.Lines(string(status)) {
			for _, set := range []string{"CapInh:", "CapPrm:", "CapEff:", "CapAmb:"} {
				if v, ok := strings.CutPrefix(line, set); ok && strings.Trim(v, "0 \t\n") != "" {
					return errors.New("some are left (" + strings.TrimSpace(line) + ")")
				}
			}
		}
	}
	return err
}
