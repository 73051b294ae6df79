package harness

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A test binary plays three parts: the test as go test runs it (no role), pid 1 of a host (init), and the test inside the host.
const (
	roleVar    = "BINDGATE_HARNESS"
	requestVar = "BINDGATE_HARNESS_REQUEST"
	roleInit   = "init"
	roleInside = "inside"
)

// request is what the outside asks for. It is passed in the environment.
type request struct {
	Test string // its full name
	ID   string
	Bare bool
	Disk bool
	Dir  string // a folder on a disk, if Disk

	Network  bool     // of its own
	Packages string   // a tree to lay over /usr and /etc
	Built    []string // programs that are up to date
}

// exitLeft is how init says that the test passed and left processes.
const exitLeft = 99

var hosts atomic.Int32

// Main is a package's TestMain.
func Main(m *testing.M) {
	switch os.Getenv(roleVar) {
	case roleInit:
		os.Exit(initMain())
	case roleInside:
		unix.CloseOnExec(reportFD)
		os.Exit(m.Run())
	}
	done := holdCgroups()
	code := m.Run()
	done()
	os.Exit(code)
}

// runOutside runs the test r.Test in a host and takes over its outcome.
func runOutside(t *testing.T, r request) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("harness: this test needs root; run: make test")
	}
	if !r.Bare {
		if _, err := build("bindgate", "bindgate-helper"); err != nil {
			t.Fatalf("harness: %v", err)
		}
	}
	r.ID = fmt.Sprintf("%d-%d", os.Getpid(), hosts.Add(1))
	if r.Disk {
		dir, err := os.MkdirTemp("/var/tmp", "bindgate-test-")
		if err != nil {
			t.Fatalf("harness: %v", err)
		}
		defer os.RemoveAll(dir)
		r.Dir = dir
	}
	r.Built = isBuilt()
	mounts := mountinfo(t)
	code, output, rep := startHost(t, r)
	isBuilt(rep.Built...)
	left := removeCgroups(t, r.ID)

	if code != 0 && !testing.Verbose() {
		t.Logf("in its host:\n%s", output)
	}
	switch {
	case code == exitLeft:
		t.Fatalf("harness: %s left processes in its host:\n%s", r.Test, lastLines(output, leftPrefix))
	case code != 0:
		t.Fatalf("harness: %s failed in its host (exit %d)", r.Test, code)
	case !rep.Ran:
		t.Fatalf("harness: %s was not run in its host:\n%s", r.Test, output)
	}
	if len(left) > 0 {
		t.Errorf("harness: %s left cgroups: %s", r.Test, strings.Join(left, " "))
	}
	if d := Diff(mounts, mountinfo(t)); strings.Contains(d, "\n+") || strings.HasPrefix(d, "+") {
		t.Errorf("harness: %s changed the mounts outside its host:\n%s", r.Test, d)
	}
	if _, err := os.Lstat(Root); err == nil {
		t.Errorf("harness: %s left %s outside its host", r.Test, Root)
	}
	if rep.Skipped {
		t.Errorf("harness: %s skipped itself in its host: what it needs is installed, or it fails", r.Test)
	}
}

// startHost runs pid 1 of a host and waits for its end. When this process dies, so does the host.
func startHost(t *testing.T, r request) (code int, output string, rep report) {
	t.Helper()
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	defer reportRead.Close()
	req, _ := json.Marshal(r)

	cmd := exec.Command("/proc/self/exe", childFlags(t)...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVar+"="+roleInit, requestVar+"="+string(req))
	cmd.ExtraFiles = []*os.File{reportWrite}
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if r.Network {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("harness: %v", err)
	}
	cmd.Stderr = cmd.Stdout

	runtime.LockOSThread() // the parent that Pdeathsig means is a thread
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	reportWrite.Close()
	if err != nil {
		t.Fatalf("harness: cannot start a host: %v", err)
	}
	var all bytes.Buffer
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		all.WriteString(line)
		if line != "" && testing.Verbose() {
			// Prefixed, so that nothing that reads our output takes the inner test for an outer one.
			fmt.Printf("    | %s\n", strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			break
		}
	}
	data, _ := io.ReadAll(reportRead)
	json.Unmarshal(data, &rep)
	cmd.Wait()
	return cmd.ProcessState.ExitCode(), all.String(), rep
}

// childFlags are the flags for the test inside: this test alone, with the subtests below it that the user asked for, and a deadline before our own.
func childFlags(t *testing.T) []string {
	var run []string
	for _, part := range strings.Split(t.Name(), "/") {
		run = append(run, "^"+regexp.QuoteMeta(part)+"$")
	}
	if asked := flag.Lookup("test.run"); asked != nil && !strings.Contains(asked.Value.String(), "|") {
		if parts := strings.Split(asked.Value.String(), "/"); len(parts) > len(run) {
			run = append(run, parts[len(run):]...)
		}
	}
	flags := []string{"-test.run=" + strings.Join(run, "/"), "-test.count=1", "-test.paniconexit0"}
	if testing.Verbose() {
		flags = append(flags, "-test.v=true")
	}
	if testing.Short() {
		flags = append(flags, "-test.short=true")
	}
	if deadline, ok := t.Deadline(); ok {
		left := time.Until(deadline)
		flags = append(flags, "-test.timeout="+max(left-5*time.Second, left/2).String())
	}
	return flags
}

// leftPrefix begins a line of init's about a process that outlived the test.
const leftPrefix = "left running: "

// initMain is pid 1 of a host: it furnishes the host, starts the test as its child and reaps what else is orphaned. Were the test itself pid 1, it would have
// to reap too, and would steal the exit statuses that os/exec waits for.
func initMain() int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "harness: init is not pid 1")
		return 1
	}
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, "harness: cannot furnish the host:", err)
		return 1
	}
	os.Setenv(roleVar, roleInside)
	os.Setenv("TMPDIR", filepath.Join(Root, "tmp"))
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Env: os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(reportFD, "report")}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness: cannot start the test:", err)
		return 1
	}
	var ws unix.WaitStatus
	for {
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == nil && pid == child.Pid {
			break
		}
	}
	code := ws.ExitStatus()
	if ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	if code != 0 {
		return code
	}
	left := stillRunning()
	for _, p := range left {
		fmt.Fprintln(os.Stderr, leftPrefix+p)
	}
	if len(left) > 0 {
		return exitLeft
	}
	return 0
}

// stillRunning lists the processes besides init that do not end by themselves now that the test is done. One that was just killed is given the time to.
func stillRunning() (left []string) {
	deadline := time.Now().Add(20 * time.Second) // a machine may be busy, and a container engine cleans up after a container
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if !waitPidfd(fd, time.Until(deadline)) {
			left = append(left, fmt.Sprintf("%d %s", pid, strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")))
		}
		unix.Close(fd)
	}
	return left
}

// waitPidfd waits for a process to end, and returns false if it did not in time.
func waitPidfd(fd int, timeout time.Duration) bool {
	until := time.Now().Add(timeout)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(until).Milliseconds())))
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

// furnish makes the namespaces that init woke up in a host: its own /proc, an empty /run, its own users.
func furnish() error {
	var r request
	if err := json.Unmarshal([]byte(os.Getenv(requestVar)), &r); err != nil {
		return err
	}
	// Cut off from the machine first; then shared again, in a group of the host's own, so that what should not propagate to a host would.
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("propagation: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	unix.Umask(0o022)
	tmp := filepath.Join(Root, "tmp")
	if err := errors.Join(os.MkdirAll(tmp, 0o755), os.Chmod(tmp, 0o1777)); err != nil {
		return err
	}
	if r.Disk {
		state := filepath.Join(Root, "var/lib/bindgate")
		if err := errors.Join(os.Chmod(r.Dir, 0o755), os.MkdirAll(state, 0o755), unix.Mount(r.Dir, state, "", unix.MS_BIND, "")); err != nil {
			return fmt.Errorf("mount %s: %w", state, err)
		}
	}
	if r.Packages != "" {
		for _, dir := range []string{"/usr", "/etc"} {
			if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "lowerdir="+r.Packages+dir+":"+dir); err != nil {
				return fmt.Errorf("mount %s over %s: %w", r.Packages, dir, err)
			}
		}
		if err := unix.Unmount("/sys/fs/cgroup/unified", 0); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount the v2 cgroups of a hybrid tree: %w", err)
		}
	}
	return addUsers()
}

// addUsers puts copies with the host's users over the machine's passwd and group files.
func addUsers() error {
	dir := filepath.Join(Root, "users")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for file, format := range map[string]string{"passwd": "%[1]s:x:%[2]d:%[2]d::/nonexistent:/usr/sbin/nologin\n", "group": "%[1]s:x:%[2]d:\n"} {
		data, err := os.ReadFile("/etc/" + file)
		if err != nil {
			return err
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			data = append(data, '\n')
		}
		data = fmt.Appendf(data, format, PolicyUser, PolicyUID)
		data = fmt.Appendf(data, format, Outsider, OutsiderUID)
		own := filepath.Join(dir, file)
		if err := os.WriteFile(own, data, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(own, "/etc/"+file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount /etc/%s: %w", file, err)
		}
	}
	return nil
}

func lastLines(output, prefix string) string {
	var lines []string
	for line := range strings.Lines(output) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return strings.Join(lines, "\n")
}
