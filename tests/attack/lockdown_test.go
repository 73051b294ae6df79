package attack

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// callerOutcome names how a run of the helper ended: exit status and error code.
func callerOutcome(r harness.Result) string {
	o := "exit " + strconv.Itoa(r.Exit)
	if reply, err := boundary.DecodeReply([]byte(r.Stdout)); err == nil && reply.Err != nil {
		o += " " + string(reply.Err.Code)
	}
	return o
}

const callerInfinity = ^uint64(0)

// T04: resource limits are the caller's, and survive exec.
func TestT04_ResourceLimits(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		// A record written in place is cut off by RLIMIT_FSIZE, and stays.
		record := h.Path("etc", "record")
		naive := callerCopy(t, h, "naive", 0o4755)
		r := h.Do(callerCommand(t, h, callerPlan{Path: naive, Argv: []string{"naive-record", record}, Limits: map[int][2]uint64{unix.RLIMIT_FSIZE: {100, 100}}}))
		if r.Exit == 0 || len(h.ReadFile(record)) != 100 {
			t.Fatalf("the naive way is not open to this attack: %v, %d bytes", r, len(h.ReadFile(record)))
		}

		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		cwd := h.Mkdir(h.Path("cwd"), 0o777)
		type limits = map[int][2]uint64
		refused, served := []string{"exit 71 system"}, []string{"exit 0"}
		either := append(served, refused...) // served where root can raise a hard limit (CAP_SYS_RESOURCE)
		// A runtime that gets no memory ends before it does anything.
		starved := append(either, "exit 2", "exit 137", "exit 139", "exit 134", "exit 70 internal", "exit 71 unsupported_kernel", "exit 99")
		const kib, mib = 1 << 10, 1 << 20
		rlimitSigpending, rlimitNproc, rlimitStack := 11, 6, unix.RLIMIT_STACK
		for _, x := range []struct {
			name   string
			limits limits
			want   []string
			plan   callerPlan
		}{
			{"FSIZE 0", limits{unix.RLIMIT_FSIZE: {0, 0}}, either, callerPlan{}},
			{"FSIZE 1", limits{unix.RLIMIT_FSIZE: {1, 1}}, either, callerPlan{}},
			{"FSIZE of a record", limits{unix.RLIMIT_FSIZE: {600, 600}}, either, callerPlan{}},
			{"FSIZE of a disk", limits{unix.RLIMIT_FSIZE: {1 << 40, 1 << 40}}, either, callerPlan{}},
			{"soft FSIZE 0", limits{unix.RLIMIT_FSIZE: {0, callerInfinity}}, served, callerPlan{}},
			{"NOFILE 0", limits{unix.RLIMIT_NOFILE: {0, 0}}, either, callerPlan{}},
			{"NOFILE 4", limits{unix.RLIMIT_NOFILE: {4, 4}}, either, callerPlan{}},
			{"NOFILE 8", limits{unix.RLIMIT_NOFILE: {8, 8}}, either, callerPlan{}},
			{"NOFILE 255", limits{unix.RLIMIT_NOFILE: {255, 255}}, either, callerPlan{}},
			{"soft NOFILE 4", limits{unix.RLIMIT_NOFILE: {4, 4096}}, served, callerPlan{}},
			{"CPU 1", limits{unix.RLIMIT_CPU: {1, 1}}, either, callerPlan{}},
			{"CORE unlimited", limits{unix.RLIMIT_CORE: {callerInfinity, callerInfinity}}, served, callerPlan{}},
			{"MEMLOCK 0", limits{unix.RLIMIT_MEMLOCK: {0, 0}}, served, callerPlan{}},
			{"NPROC 0", limits{rlimitNproc: {0, 0}}, starved, callerPlan{}},
			{"all signals blocked", nil, served, callerPlan{Block: true}},
			{"all signals ignored", nil, served, callerPlan{Ignore: true}},
			// Without a place in the queue the runtime's signal to its other threads is lost, and setresuid on all threads never returns: a helper that did not ask first would spin
			// for good, as root, so that its caller could not even end it. Here the limit of processor time would.
			{"SIGPENDING 0", limits{rlimitSigpending: {0, 0}, unix.RLIMIT_CPU: {1, 1}}, either, callerPlan{}},
			{"queue of signals full", limits{unix.RLIMIT_CPU: {1, 1}}, either, callerPlan{Queue: true}},
			{"STACK 4k", limits{rlimitStack: {4 * kib, 4 * kib}}, starved, callerPlan{}},
			{"STACK 16k", limits{rlimitStack: {16 * kib, 16 * kib}}, starved, callerPlan{}},
			{"STACK 64k", limits{rlimitStack: {64 * kib, 64 * kib}}, starved, callerPlan{}},
			{"DATA 0", limits{unix.RLIMIT_DATA: {0, 0}}, starved, callerPlan{}},
			{"DATA 1M", limits{unix.RLIMIT_DATA: {mib, mib}}, starved, callerPlan{}},
			{"DATA 4M", limits{unix.RLIMIT_DATA: {4 * mib, 4 * mib}}, starved, callerPlan{}},
			{"DATA 40M", limits{unix.RLIMIT_DATA: {40 * mib, 40 * mib}}, starved, callerPlan{}},
			{"AS 1M", limits{unix.RLIMIT_AS: {mib, mib}}, starved, callerPlan{}},
			{"AS 16M", limits{unix.RLIMIT_AS: {16 * mib, 16 * mib}}, starved, callerPlan{}},
			{"AS 128M", limits{unix.RLIMIT_AS: {128 * mib, 128 * mib}}, starved, callerPlan{}},
			{"AS 1G", limits{unix.RLIMIT_AS: {1 << 30, 1 << 30}}, starved, callerPlan{}},
			{"AS 2G", limits{unix.RLIMIT_AS: {2 << 30, 2 << 30}}, starved, callerPlan{}},
		} {
			x.plan.Limits, x.plan.Dir = x.limits, cwd
			r := callerRun(h, callerCommand(t, h, x.plan), boundary.Encode(callerAttach(h, c, "data", at)))
			if x.plan.Queue {
				exec.Command("busybox", "pkill", "-KILL", "-f", "busybox sleep 1000").Run() // what filled it, in a pid namespace of our own
			}
			if o := callerOutcome(r); !slices.Contains(x.want, o) {
				t.Errorf("%s: %s, want one of %q", x.name, o, x.want)
			} else {
				t.Logf("%s: %s", x.name, o)
			}
			callerSettled(t, h, c, at, x.name, r)
			if entries, _ := os.ReadDir(cwd); len(entries) > 0 {
				t.Fatalf("%s: left in the caller's working directory: %v", x.name, entries)
			}
		}
		callerAudited(t, h, "event", "done")

		// Nearly all processor time used up beforehand would have the caller say at which instruction the helper is killed. It does nothing under a limit that it cannot raise.
		spent := callerPlan{Burn: 900 * time.Millisecond, Limits: limits{unix.RLIMIT_CPU: {1, 1}}, Dir: cwd}
		naively := spent
		naively.Path, naively.Argv = "/bin/busybox", []string{"sh", "-c", "while :; do :; done"}
		if r := h.Do(callerCommand(t, h, naively)); r.Exit != 128+int(unix.SIGKILL) && r.Exit != 128+int(unix.SIGXCPU) {
			t.Fatalf("the naive way is not open to this attack: %v", r)
		}
		for i := range 4 {
			spent.Burn = time.Second - time.Duration(i)*2*time.Millisecond
			intents := strings.Count(h.ReadFile(h.AuditLog()), `"event":"intent"`)
			r := callerRun(h, callerCommand(t, h, spent), boundary.Encode(callerAttach(h, c, "data", at)))
			if o := callerOutcome(r); !slices.Contains(append(either, "exit 137", "exit 152"), o) {
				t.Errorf("%s: %v", o, r)
			}
			if r.Exit != 0 && (len(c.Mountinfo(at)) > 0 || len(callerLedger(t, h)) > 0 || strings.Count(h.ReadFile(h.AuditLog()), `"event":"intent"`) != intents) {
				t.Errorf("it was killed while it was at work: %v", r)
			}
			callerSettled(t, h, c, at, "processor time", r)
		}
	})
}

// callerSettled fails the test if mounts, ledger and outcome do not agree, and detaches.
func callerSettled(t *testing.T, h *harness.Host, c *harness.Container, at, name string, r harness.Result) {
	t.Helper()
	mounted, records := len(c.Mountinfo(at)) > 0, callerLedger(t, h)
	if mounted && len(records) == 0 {
		t.Fatalf("%s: mounted, and not on record: %v", name, r)
	}
	if r.Exit == 0 && !mounted || r.Exit >= 64 && r.Exit < 128 && (mounted || len(records) > 0) {
		t.Fatalf("%s: mounted: %v, records: %v: %v", name, mounted, records, r)
	}
	callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(&wire.Request{Op: wire.OpSweep, Owner: "default"})))
	callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(callerDetach(c))))
	if mounted, records := c.Mountinfo(at), callerLedger(t, h); len(mounted) > 0 || len(records) > 0 {
		t.Fatalf("%s: after sweep and detach: %q, records %v", name, mounted, records)
	}
}

// callerPipe makes a pipe; with full, one that takes no more bytes.
func callerPipe(t *testing.T, full bool) (read, write *os.File) {
	t.Helper()
	read, write, err := os.Pipe()
	callerCheck(t, err)
	if full {
		fd := int(write.Fd())
		callerCheck(t, unix.SetNonblock(fd, true))
		for err = nil; err == nil; {
			_, err = unix.Write(fd, make([]byte, 4096))
		}
		callerCheck(t, unix.SetNonblock(fd, false))
	}
	t.Cleanup(func() { read.Close(); write.Close() })
	return read, write
}

// callerWatch watches a file or folder for an event: the function returned waits for the next one.
func callerWatch(t *testing.T, path string, event uint32) (wait func()) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	callerCheck(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	_, err = unix.InotifyAddWatch(fd, path, event)
	callerCheck(t, err)
	return func() {
		t.Helper()
		buf := make([]byte, 4096)
		n, err := unix.Read(fd, buf)
		for err == unix.EINTR {
			n, err = unix.Read(fd, buf)
		}
		if n <= 0 {
			t.Fatal(err)
		}
	}
}

// callerLock takes the helper's lock of a local volume, as root.
func callerLock(t *testing.T, h *harness.Host, volume string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(h.Ledger(), ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	callerCheck(t, err)
	t.Cleanup(func() { f.Close() })
	callerCheck(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(state.Key("volume+"+volume) >> 1), Len: 1}))
	return func() { f.Close() }
}

// callerEnd waits for the end of a command that was started, and returns its exit status and what it wrote to stdout, if that is a buffer.
func callerEnd(t *testing.T, cmd *exec.Cmd) harness.Result {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := harness.Result{Command: cmd.Args[0], Exit: cmd.ProcessState.ExitCode()}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		r.Exit = 128 + int(ws.Signal())
	}
	if b, ok := cmd.Stdout.(*bytes.Buffer); ok {
		r.Stdout = b.String()
	}
	return r
}

func callerZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat[strings.LastIndexByte(string(stat), ')'):]), ") Z ")
}

// callerTerminal is a shell of sorts: it owns a terminal, runs a program in its foreground, and types when it is told to on descriptor 3. On descriptor 4 it
// reports what was typed and what became of the program.
func callerTerminal(arg string) {
	var p callerPlan
	callerDie(json.Unmarshal([]byte(arg), &p), "plan")
	told, report := bufio.NewReader(os.NewFile(3, "control")), os.NewFile(4, "report")
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	_, err := unix.Setsid()
	callerDie(err, "setsid")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	callerDie(err, "ptmx")
	callerDie(unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0), "unlock")
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	callerDie(err, "pty")
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR, 0) // becomes our controlling terminal
	callerDie(err, "pts")
	cmd := exec.Command(p.Path)
	cmd.Args, cmd.Env, cmd.Stdin, cmd.Stdout = p.Argv, []string{}, os.Stdin, os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: int(slave.Fd())}
	callerDie(cmd.Start(), "start")
	os.Stdin.Close()
	ended := make(chan bool)
	go func() {
		for {
			var ws unix.WaitStatus
			if _, err := unix.Wait4(cmd.Process.Pid, &ws, unix.WUNTRACED, nil); err == unix.EINTR {
				continue
			}
			switch {
			case ws.Stopped():
				fmt.Fprintln(report, "stopped by", int(ws.StopSignal()))
				continue
			case ws.Signaled():
				fmt.Fprintln(report, "killed by", int(ws.Signal()))
			default:
				fmt.Fprintln(report, "exit", ws.ExitStatus())
			}
			close(ended)
			return
		}
	}()
	for {
		key, err := told.ReadByte()
		if err != nil {
			break
		}
		callerDie(func() error { _, err := master.Write([]byte{key}); return err }(), "type")
		// The terminal echoes a key when it has sent the signal.
		echo := bufio.NewReader(master)
		for want := byte('@') + key; ; {
			b, err := echo.ReadByte()
			callerDie(err, "echo")
			if b == want {
				break
			}
		}
		fmt.Fprintln(report, "typed", key)
	}
	<-ended
}

const (
	callerKeyC         = 0x03 // SIGINT
	callerKeyZ         = 0x1a // SIGTSTP
	callerKeyBackslash = 0x1c // SIGQUIT
)

// callerAtTerminal starts a program at a terminal of the policy user's.
func callerAtTerminal(t *testing.T, h *harness.Host, path string, argv ...string) (cmd *exec.Cmd, typ func(key byte), report func() string, done func()) {
	t.Helper()
	plan, err := json.Marshal(callerPlan{Path: path, Argv: argv})
	callerCheck(t, err)
	cmd = callerRole(t, h, callerPolicy, "caller-terminal", string(plan))
	controlRead, controlWrite := callerPipe(t, false)
	reportRead, reportWrite := callerPipe(t, false)
	cmd.ExtraFiles = []*os.File{controlRead, reportWrite}
	lines := bufio.NewReader(reportRead)
	typ = func(key byte) {
		t.Helper()
		_, err := controlWrite.Write([]byte{key})
		callerCheck(t, err)
	}
	report = func() string {
		t.Helper()
		line, err := lines.ReadString('\n')
		callerCheck(t, err)
		return strings.TrimSpace(line)
	}
	return cmd, typ, report, func() { controlWrite.Close(); controlRead.Close(); reportWrite.Close() }
}

// T05: signals, timers and pipes are the caller's.
func TestT05_SignalsTimersAndPipes(t *testing.T) {
	t.Parallel() // it waits most of the time
	harness.Run(t, func(h *harness.Host) {
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		at, other := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755), h.Mkdir(filepath.Join(h.HostPaths(), "other"), 0o755)
		naive := callerCopy(t, h, "naive", 0o4755)
		attach, detach := callerAttach(h, c, "data", at), callerDetach(c)

		// These two wait for the deadlines, and are judged last. One sends half a request. The other does not read its reply while its work hangs (here:
		// for a lock that is held), so that the deadline cannot be told to anybody.
		request, stalled := callerPipe(t, false)
		_, err := stalled.Write(boundary.Encode(attach)[:20])
		callerCheck(t, err)
		loris := h.Command(callerPolicy, h.HelperPath())
		loris.Stdin, loris.Stdout = request, new(bytes.Buffer)
		callerCheck(t, loris.Start())
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("first"))) // makes the lock file
		opened := callerWatch(t, filepath.Join(h.Ledger(), ".lock"), unix.IN_OPEN)
		unlock := callerLock(t, h, "stuck")
		opened()
		_, unread := callerPipe(t, true)
		stuck := h.Command(callerPolicy, h.HelperPath())
		stuck.Stdin, stuck.Stdout = bytes.NewReader(callerCreate("stuck")), unread
		callerCheck(t, stuck.Start())
		opened()

		t.Run("terminal", func(t *testing.T) {
			h := h.For(t)
			lock := h.Path("etc", "lock")
			cmd, typ, report, done := callerAtTerminal(t, h, naive, "naive-locked", lock)
			hold, holder := callerPipe(t, false)
			cmd.Stdin = hold
			out, err := cmd.StdoutPipe()
			callerCheck(t, err)
			callerCheck(t, cmd.Start())
			if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
				t.Fatalf("the naive way: %q", line)
			}
			typ(callerKeyZ)
			said := []string{report(), report()} // in either order
			if !slices.Contains(said, "stopped by "+strconv.Itoa(int(unix.SIGTSTP))) {
				t.Fatalf("the naive way is not open to this attack: %q", said)
			}
			f, err := os.Open(lock)
			callerCheck(t, err)
			defer f.Close()
			if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
				t.Fatalf("the naive way does not hold its lock while it is stopped: %v", err)
			}
			typ(callerKeyBackslash) // pending while it is stopped; SIGCONT lets it have that
			report()
			callerCheck(t, unix.Kill(-callerForeground(t, cmd.Process.Pid), unix.SIGCONT))
			if got := report(); got != "exit 2" { // how a Go program ends by SIGQUIT
				t.Fatalf("the naive way is not open to this attack: %s", got)
			}
			holder.Close()
			done()
			callerEnd(t, cmd)

			cmd, typ, report, done = callerAtTerminal(t, h, h.HelperPath(), h.HelperPath())
			cmd.Stdout = new(bytes.Buffer)
			rest := callerHeld(t, h, cmd, callerLong(callerAttach(h, c, "data", at)))
			for _, key := range []byte{callerKeyZ, callerKeyBackslash, callerKeyC, callerKeyZ} {
				typ(key)
				if got := report(); got != "typed "+strconv.Itoa(int(key)) {
					t.Fatalf("key %d had an effect: %s", key, got)
				}
			}
			rest()
			if got := report(); got != "exit 0" {
				t.Errorf("after ^Z, ^\\ and ^C: %s", got)
			}
			done()
			callerSucceeded(t, callerEnd(t, cmd))
			callerAudited(t, h, "event", "done", "op", "attach")
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(detach)))
		})

		t.Run("timer", func(t *testing.T) {
			h := h.For(t)
			const after = 3 * time.Second // longer than a start takes on a machine that is busy; others wait for 25 s meanwhile
			cmd := callerCommand(t, h, callerPlan{Timer: after})
			cmd.Stdout = new(bytes.Buffer)
			rest := callerHeld(t, h, cmd, callerLong(callerAttach(h, c, "data", at)))
			// One that starts later with the same timer is dead by now.
			r := h.Do(callerCommand(t, h, callerPlan{Timer: after, Path: "/bin/busybox", Argv: []string{"sleep", "1000"}}))
			if r.Exit != 128+int(unix.SIGALRM) {
				t.Fatalf("the naive way is not open to this attack: %v", r)
			}
			rest()
			callerSucceeded(t, callerEnd(t, cmd))
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(detach)))

			// A timer that goes off all the time may end it before it began; no signal does after that.
			outcomes := map[string]int{}
			for i := range 20 {
				name := "t" + strconv.Itoa(i)
				r := callerRun(h, callerCommand(t, h, callerPlan{Timer: time.Duration(i+1) * 200 * time.Microsecond}), callerCreate(name))
				outcomes[callerOutcome(r)]++
				if callerHas(h, name) != (r.Exit == 0) {
					t.Errorf("%v", r)
				}
			}
			t.Logf("outcomes: %v", outcomes)
			for o := range outcomes {
				if o != "exit 0" && o != "exit "+strconv.Itoa(128+int(unix.SIGALRM)) {
					t.Errorf("outcomes: %v", outcomes)
				}
			}
		})

		t.Run("closed reply pipe", func(t *testing.T) {
			h := h.For(t)
			record := h.Path("etc", "record")
			cmd := callerNaive(t, h, callerPolicy, "naive-reply", record)
			broken := func(cmd *exec.Cmd, stdin []byte) harness.Result {
				read, write := callerPipe(t, false)
				read.Close()
				cmd.Stdout = write
				return callerRun(h, cmd, stdin)
			}
			if r := broken(cmd, nil); r.Exit != 128+int(unix.SIGPIPE) {
				t.Fatalf("the naive way is not open to this attack: %v", r)
			}
			if _, err := os.Lstat(record); err == nil {
				t.Fatal("the naive way recorded what it did")
			}
			broken(h.Command(callerPolicy, h.HelperPath()), boundary.Encode(attach)).Exits(t, wire.Timeout.Exit()) // nobody asks any more: nothing is begun
			if len(c.Mountinfo(at)) != 0 || len(callerLedger(t, h)) != 0 {
				t.Errorf("mounts %q, records %v", c.Mountinfo(at), callerLedger(t, h))
			}
		})

		t.Run("stalled request", func(t *testing.T) {
			h := h.For(t)
			cmd := h.Command(callerPolicy, h.HelperPath())
			cmd.Stdout = new(bytes.Buffer)
			rest := callerHeld(t, h, cmd, callerLong(callerAttach(h, c, "data", at)))
			// The same container is served meanwhile.
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(callerAttach(h, c, "data", other))))
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(detach)))
			rest()
			callerSucceeded(t, callerEnd(t, cmd))
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(detach)))
		})

		t.Run("unread reply", func(t *testing.T) {
			h := h.For(t)
			read, write := callerPipe(t, true)
			audited := callerWatch(t, h.AuditLog(), unix.IN_MODIFY)
			done := func() (n int) { // whoever waits for his deadline may write a line after it
				for _, line := range callerAudit(t, h) {
					if line["event"] == "done" && line["op"] == "attach" {
						n++
					}
				}
				return n
			}
			before := done()
			cmd := h.Command(callerPolicy, h.HelperPath())
			cmd.Stdin, cmd.Stdout = bytes.NewReader(boundary.Encode(attach)), write
			callerCheck(t, cmd.Start())
			for done() == before {
				audited()
			}
			// What it did stands, and it holds nobody up: it keeps no descriptor of the volume, so the mount is not busy until the reply is read.
			callerSucceeded(t, h.HelperRaw(callerPolicy, boundary.Encode(detach)))
			if callerZombie(cmd.Process.Pid) {
				t.Error("it did not wait for its reader")
			}
			write.Close()
			said, err := io.ReadAll(read)
			callerCheck(t, err)
			r := callerEnd(t, cmd)
			r.Stdout = strings.TrimLeft(string(said), "\x00")
			callerSucceeded(t, r)
		})

		r := callerEnd(t, loris)
		if e := callerRefused(t, r, wire.Timeout); e.Stage != "request" {
			t.Errorf("half a request: %+v", e)
		}
		// The deadline must not wait for good for somebody to read its reply.
		const limit = 25 * time.Second // from the end of the other one; its own deadline is 25 seconds from the start of both
		fd, err := unix.PidfdOpen(stuck.Process.Pid, 0)
		callerCheck(t, err)
		defer unix.Close(fd)
		for begin := time.Now(); ; {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((limit - time.Since(begin)).Milliseconds()))
			if err == unix.EINTR {
				continue
			}
			if n == 0 {
				t.Error("a caller that does not read its reply keeps the helper alive after its deadline")
				stuck.Process.Kill()
			}
			break
		}
		if r := callerEnd(t, stuck); !t.Failed() && r.Exit != wire.Timeout.Exit() && r.Exit != 128+int(unix.SIGALRM) {
			t.Errorf("a reply that is not read: %v", r)
		}
		unlock()
		if callerHas(h, "stuck") {
			t.Error("it went on after its deadline")
		}
		callerLedger(t, h)
	})
}

// callerForeground returns the process group of a shell's only child.
func callerForeground(t *testing.T, shell int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shell, shell))
	callerCheck(t, err)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", shell))
	for _, file := range tasks {
		more, _ := os.ReadFile(file)
		data = append(data, more...)
	}
	f := strings.Fields(string(data))
	if len(f) == 0 {
		t.Fatal("the shell has no child")
	}
	pid, err := strconv.Atoi(f[0])
	callerCheck(t, err)
	return pid
}

// callerTouch tries on a process all that a process can do to another, and prints what the kernel said to each. What kills comes last.
func callerTouch(arg string) {
	runtime.LockOSThread()
	pid, err := strconv.Atoi(arg)
	callerDie(err, "pid")
	said := map[string]string{}
	errno := func(e syscall.Errno) error {
		if e == 0 {
			return nil
		}
		return e
	}
	try := func(what string, err error) {
		var e syscall.Errno
		switch {
		case errors.As(err, &e):
			said[what] = unix.ErrnoName(e)
		case err != nil:
			said[what] = err.Error()
		default:
			said[what] = "done"
		}
	}
	raw := func(what string, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		_, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		try(what, errno(e))
	}
	p := uintptr(pid)
	file := func(name string, flags int, read bool) {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/%s", pid, name), flags, 0)
		if err == nil && read {
			if _, err = f.Read(make([]byte, 64)); err == io.EOF {
				err = nil
			}
		} else if err == nil && name == "timerslack_ns" { // anybody may open it
			_, err = f.WriteString("50000")
		}
		try("open "+name, err)
	}
	for _, name := range []string{"environ", "maps", "smaps", "auxv", "io", "stack", "syscall", "personality", "pagemap", "fd", "fdinfo", "map_files", "exe", "cwd", "root", "ns/mnt", "fd/0", "fd/3",
		"timers", "mem"} {
		file(name, os.O_RDONLY, !slices.Contains([]string{"fd", "fdinfo", "map_files", "exe", "cwd", "root", "ns/mnt", "fd/0", "fd/3", "mem"}, name))
	}
	for _, name := range []string{"mem", "oom_score_adj", "coredump_filter", "clear_refs", "timerslack_ns", "setgroups", "comm"} {
		file(name, os.O_WRONLY, false)
	}
	buf := make([]byte, 64)
	local, remote := unix.Iovec{Base: &buf[0], Len: 64}, [2]uintptr{0x400000, 64}
	raw("process_vm_readv", unix.SYS_PROCESS_VM_READV, p, uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	raw("process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, p, uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	raw("kcmp", unix.SYS_KCMP, p, p, 1, 0, 0) // KCMP_VM
	var size uintptr
	raw("get_robust_list", unix.SYS_GET_ROBUST_LIST, p, uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)))
	pidfd, err := unix.PidfdOpen(pid, 0)
	callerDie(err, "pidfd")
	for fd := range 12 {
		got, _, e := unix.Syscall(unix.SYS_PIDFD_GETFD, uintptr(pidfd), uintptr(fd), 0)
		if e != unix.EBADF {
			try("pidfd_getfd "+strconv.Itoa(fd), errno(e))
		}
		if e == 0 {
			if n, err := unix.Pread(int(got), buf, 0); err == nil && n > 0 && fd > 2 {
				said["stolen"] = string(buf[:n])
			}
		}
	}
	_, err = unix.IoctlRetInt(pidfd, unix.PIDFD_GET_MNT_NAMESPACE)
	try("pidfd mount namespace", err)
	try("prlimit", unix.Prlimit(pid, unix.RLIMIT_CPU, &unix.Rlimit{Cur: 1 << 40, Max: 1 << 40}, nil))
	try("setpriority", unix.Setpriority(unix.PRIO_PROCESS, pid, 19))
	var set unix.CPUSet
	set.Set(0)
	set.Set(1)
	try("sched_setaffinity", unix.SchedSetaffinity(pid, &set))
	param := [1]int32{0}
	raw("sched_setscheduler", unix.SYS_SCHED_SETSCHEDULER, p, 5, uintptr(unsafe.Pointer(&param))) // SCHED_IDLE
	raw("ioprio_set", unix.SYS_IOPRIO_SET, 1, p, 3<<13)
	mask := uint64(1)
	raw("migrate_pages", unix.SYS_MIGRATE_PAGES, p, 64, uintptr(unsafe.Pointer(&mask)), uintptr(unsafe.Pointer(&mask)))
	raw("move_pages", unix.SYS_MOVE_PAGES, p, 1, uintptr(unsafe.Pointer(&remote)), 0, uintptr(unsafe.Pointer(&buf[0])), 0)
	raw("process_madvise", unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&remote)), 1, unix.MADV_COLD, 0)
	const seize, attach, detach = 0x4206, 16, 17
	raw("ptrace attach", unix.SYS_PTRACE, attach, p, 0, 0)
	if said["ptrace attach"] == "done" {
		var ws unix.WaitStatus
		unix.Wait4(pid, &ws, unix.WALL, nil)
		raw("ptrace detach", unix.SYS_PTRACE, detach, p, 0, 0)
	}
	raw("ptrace seize", unix.SYS_PTRACE, seize, p, 0, 0)
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for i, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		if i > 0 {
			raw(fmt.Sprintf("ptrace seize of thread %d", i), unix.SYS_PTRACE, seize, uintptr(tid), 0, 0)
		}
		for _, sig := range []syscall.Signal{unix.SIGURG, 33, unix.SIGSTOP} {
			try(fmt.Sprintf("tgkill %d of thread %d", sig, i), unix.Tgkill(pid, tid, sig))
		}
	}
	for _, sig := range []syscall.Signal{0, unix.SIGSTOP, unix.SIGABRT, unix.SIGSEGV, unix.SIGTERM, unix.SIGKILL} {
		try("kill "+strconv.Itoa(int(sig)), unix.Kill(pid, sig))
		try("pidfd_send_signal "+strconv.Itoa(int(sig)), unix.PidfdSendSignal(pidfd, sig, nil, 0))
	}
	json.NewEncoder(os.Stdout).Encode(said)
}

// callerTouched runs callerTouch as the policy user.
func callerTouched(t *testing.T, h *harness.Host, pid int) (said map[string]string) {
	t.Helper()
	h.Do(callerRole(t, h, callerPolicy, "caller-touch", strconv.Itoa(pid))).OK(t).JSON(t, &said)
	return said
}

// callerUntouchable fails the test if there is anything that the policy user can do to a process.
func callerUntouchable(t *testing.T, h *harness.Host, stage string, pid int) {
	t.Helper()
	said := callerTouched(t, h, pid)
	if len(said) < 50 {
		t.Errorf("%s: only %d attempts", stage, len(said))
	}
	for what, err := range said {
		if err != "EPERM" && err != "EACCES" {
			t.Errorf("%s: %s: %s", stage, what, err)
		}
	}
}

// callerRace starts the helper many times over, and hits it with a signal as soon as it is there, or traces it from before. It prints the outcomes.
func callerRace(arg string) {
	runtime.LockOSThread() // a tracer is a thread
	var p struct {
		Helper string
		Rounds int
		Signal int
	}
	callerDie(json.Unmarshal([]byte(arg), &p), "arg")
	outcomes := map[string]int{}
	for i := range p.Rounds {
		cmd := exec.Command(p.Helper)
		cmd.Env = []string{}
		var out bytes.Buffer
		cmd.Stdout = &out
		cmd.Stdin = bytes.NewReader(callerCreate(fmt.Sprintf("race-%d-%d", p.Signal, i)))
		if p.Signal == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
		}
		callerDie(cmd.Start(), "start")
		pid := cmd.Process.Pid
		if p.Signal == 0 { // it stopped at its execve, and goes on
			var ws unix.WaitStatus
			_, err := unix.Wait4(pid, &ws, 0, nil)
			callerDie(err, "wait")
			callerDie(unix.PtraceDetach(pid), "detach")
		} else {
			outcomes["kill: "+fmt.Sprint(unix.Kill(pid, syscall.Signal(p.Signal)))]++
			if p.Signal == int(unix.SIGSTOP) {
				unix.Kill(pid, unix.SIGCONT)
			}
			const seize = 0x4206
			_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, seize, uintptr(pid), 0, 0, 0, 0)
			outcomes["ptrace: "+unix.ErrnoName(e)]++
		}
		cmd.Wait()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		how := "exit " + strconv.Itoa(ws.ExitStatus())
		if ws.Signaled() {
			how = fmt.Sprintf("%d: killed by %v", i, int(ws.Signal()))
			if ws.CoreDump() {
				outcomes["core"]++
			}
		} else if ws.ExitStatus() == 0 {
			how = fmt.Sprintf("%d: done", i)
		}
		outcomes[how]++
	}
	json.NewEncoder(os.Stdout).Encode(outcomes)
}

// T06: memory, descriptors and control of the helper while it runs.
func TestT06_NoHandOnTheHelper(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		callerSucceeded(t, h.HelperRaw(callerPolicy, callerCreate("data")))
		c := h.SharedRoot(harness.SharedRootOptions{ID: "c"})
		at := h.Mkdir(filepath.Join(h.HostPaths(), "at"), 0o755)
		cwd := h.Mkdir(h.Path("cwd"), 0o777)
		unlimited := map[int][2]uint64{unix.RLIMIT_CORE: {callerInfinity, callerInfinity}}

		// A setuid program that went back to being its caller is its caller's, with what it has open.
		secret := h.Path("etc", "secret")
		h.WriteFile(secret, "the secret", 0o600)
		cmd := callerNaive(t, h, callerPolicy, "naive-secret", secret)
		hold, _ := callerPipe(t, false)
		cmd.Stdin = hold
		out, err := cmd.StdoutPipe()
		callerCheck(t, err)
		callerCheck(t, cmd.Start())
		if line, _ := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "ready") {
			t.Fatalf("the naive way: %q", line)
		}
		said := callerTouched(t, h, cmd.Process.Pid)
		for _, what := range []string{"ptrace attach", "open mem", "process_vm_readv", "process_vm_writev", "kill 0", "kill 19", "kill 9", "open environ", "prlimit", "pidfd mount namespace"} {
			if said[what] != "done" && said[what] != "EFAULT" { // where nothing is mapped at that address
				t.Fatalf("the naive way is not open to this attack: %s: %s", what, said[what])
			}
		}
		if said["stolen"] != "the secret" {
			t.Fatalf("the naive way is not open to this attack: %v", said)
		}
		if r := callerEnd(t, cmd); r.Exit != 128+int(unix.SIGKILL) {
			t.Fatalf("the naive way is not open to this attack: %v", r)
		}
		// And a program that the caller may signal leaves a core, where the machine writes cores to files.
		pattern := h.ReadFile("/proc/sys/kernel/core_pattern")
		cores := !strings.HasPrefix(pattern, "|") && !strings.HasPrefix(pattern, "/")
		cmd = callerCommand(t, h, callerPlan{Path: "/bin/busybox", Argv: []string{"sh", "-c", "kill -SEGV $$"}, Dir: cwd, Limits: unlimited})
		h.Do(cmd).Exits(t, 128+int(unix.SIGSEGV))
		entries, err := os.ReadDir(cwd)
		callerCheck(t, err)
		if cores && len(entries) != 1 {
			t.Fatalf("the naive way is not open to this attack: core_pattern %q, %v", pattern, entries)
		}
		for _, e := range entries {
			callerCheck(t, os.Remove(filepath.Join(cwd, e.Name())))
		}

		// While it waits for its request.
		cmd = callerCommand(t, h, callerPlan{Dir: cwd, Limits: unlimited})
		cmd.Stdout = new(bytes.Buffer)
		rest := callerHeld(t, h, cmd, callerLong(callerAttach(h, c, "data", at)))
		callerUntouchable(t, h, "request", cmd.Process.Pid)
		rest()
		callerSucceeded(t, callerEnd(t, cmd))
		callerAudited(t, h, "event", "done", "op", "attach")

		// While it waits for a lock.
		opened := callerWatch(t, filepath.Join(h.Ledger(), ".lock"), unix.IN_OPEN)
		unlock := callerLock(t, h, "locked")
		opened()
		cmd = callerCommand(t, h, callerPlan{Dir: cwd, Limits: unlimited})
		cmd.Stdin, cmd.Stdout = bytes.NewReader(callerCreate("locked")), new(bytes.Buffer)
		callerCheck(t, cmd.Start())
		opened()
		callerUntouchable(t, h, "lock", cmd.Process.Pid)
		unlock()
		callerSucceeded(t, callerEnd(t, cmd))

		// While nobody reads its reply: it is in the container's mount namespace then.
		read, write := callerPipe(t, true)
		audited := callerWatch(t, h.AuditLog(), unix.IN_MODIFY)
		cmd = callerCommand(t, h, callerPlan{Dir: cwd, Limits: unlimited})
		cmd.Stdin, cmd.Stdout = bytes.NewReader(boundary.Encode(callerDetach(c))), write
		callerCheck(t, cmd.Start())
		audited()
		callerUntouchable(t, h, "reply", cmd.Process.Pid)
		write.Close()
		_, err = io.Copy(io.Discard, read)
		callerCheck(t, err)
		callerEnd(t, cmd).OK(t)

		// What would kill a program with a core, done by root, leaves none.
		for _, sig := range []syscall.Signal{unix.SIGSEGV, unix.SIGABRT, unix.SIGSYS, unix.SIGBUS, unix.SIGTRAP} {
			cmd = callerCommand(t, h, callerPlan{Dir: cwd, Limits: unlimited})
			cmd.Stdout = new(bytes.Buffer)
			callerHeld(t, h, cmd, callerLong(callerAttach(h, c, "data", at)))
			callerCheck(t, cmd.Process.Signal(sig))
			callerEnd(t, cmd)
			if cmd.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
				t.Errorf("signal %d: a core", sig)
			}
		}

		// At every moment between its start and step 2, when its real uid is the caller's still: a signal may end it, and that is all.
		const rounds = 60
		for _, sig := range []int{0, int(unix.SIGSTOP), int(unix.SIGABRT), int(unix.SIGSEGV), int(unix.SIGKILL)} {
			arg, _ := json.Marshal(map[string]any{"Helper": h.HelperPath(), "Rounds": rounds, "Signal": sig})
			cmd := callerRole(t, h, callerPolicy, "caller-race", string(arg))
			cmd.Dir = cwd
			var outcomes map[string]int
			h.Do(cmd).OK(t).JSON(t, &outcomes)
			ends := 0
			for o, n := range outcomes {
				i, how, _ := strings.Cut(o, ": ")
				made := callerHas(h, fmt.Sprintf("race-%d-%s", sig, i))
				switch {
				case how == "done" && sig != 0 && made, strings.HasPrefix(how, "killed by ") && !made, o == "exit 2" && sig != 0:
					ends += n
				case o == "exit "+strconv.Itoa(wire.Config.Exit()) && sig == 0: // traced over its execve, it has no privilege
					ends += n
				case o == "kill: <nil>", o == "kill: "+unix.EPERM.Error(), o == "kill: "+unix.ESRCH.Error(), o == "ptrace: EPERM", o == "ptrace: ESRCH":
				default:
					t.Errorf("signal %d: outcome %q, %d times; the volume was made: %v", sig, o, n, made)
				}
			}
			if ends != rounds {
				t.Errorf("signal %d: %d ends in %d rounds: %v", sig, ends, rounds, outcomes)
			}
		}
		if entries, _ := os.ReadDir(cwd); len(entries) > 0 {
			t.Errorf("left in the caller's working directory: %v", entries)
		}
		if cores, _ := filepath.Glob("/core*"); len(cores) > 0 {
			t.Errorf("left in /: %v", cores)
		}
		callerLedger(t, h)
	})
}

// naiveCapset drops its capabilities, believes what it is told, and says what it has.
func naiveCapset(string) {
	runtime.LockOSThread()
	hdr, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	callerDie(unix.Capset(&hdr, &data[0]), "capset")
	status, err := os.ReadFile("/proc/thread-self/status")
	callerDie(err, "status")
	_, after, _ := strings.Cut(string(status), "CapEff:\t")
	fmt.Print(strings.Fields(after)[0])
}

// T36: a call that gives privilege up reports success and did nothing.
func TestT36_PrivilegeThatWasNotGivenUp(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		capset := []callerFake{{unix.SYS_CAPSET, callerAnyArg}}
		naive := callerCopy(t, h, "naive", 0o4755)
		r := h.Do(callerCommand(t, h, callerPlan{Path: naive, Argv: []string{"naive-capset"}, UID: harness.PolicyUID, Fake: capset})).OK(t)
		if n, err := strconv.ParseUint(r.Stdout, 16, 64); err != nil || n == 0 {
			t.Fatalf("the naive way is not open to this attack: %v", r)
		}

		// A caller cannot do this by itself: without no_new_privs it may not install a filter, and with it the setuid bit has no effect.
		cmd := callerRole(t, h, callerPolicy, "caller-exec", callerJSON(t, callerPlan{Path: h.HelperPath(), Argv: []string{"x"}, Fake: capset}))
		if r := h.Do(cmd); r.Exit != 99 || !strings.Contains(r.Stderr, "filter") {
			t.Errorf("a caller installs a filter: %v", r)
		}

		for _, x := range []struct {
			name string
			fake []callerFake
		}{
			{"capset", capset},
			{"no_new_privs", []callerFake{{unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS}}},
			{"bounding set", []callerFake{{unix.SYS_PRCTL, unix.PR_CAPBSET_DROP}}},
			{"setresuid", []callerFake{{unix.SYS_SETRESUID, callerAnyArg}}},
			{"seccomp", []callerFake{{unix.SYS_SECCOMP, callerAnyArg}}},
			{"all of them", []callerFake{{unix.SYS_CAPSET, callerAnyArg}, {unix.SYS_PRCTL, callerAnyArg}, {unix.SYS_SECCOMP, callerAnyArg}, {unix.SYS_SETRESUID, callerAnyArg}}},
		} {
			t.Run(x.name, func(t *testing.T) {
				h := h.For(t)
				name := strings.ReplaceAll(x.name, " ", "-")
				r := callerRun(h, callerCommand(t, h, callerPlan{UID: harness.PolicyUID, Fake: x.fake}), callerCreate(name))
				callerRefused(t, r, wire.Internal)
				if callerHas(h, name) {
					t.Error("it went on")
				}
				callerAudited(t, h, "event", "failed", "code", "internal")
			})
		}
		// Without anything faked, under such a filter, all is well.
		callerSucceeded(t, callerRun(h, callerCommand(t, h, callerPlan{UID: harness.PolicyUID, Fake: []callerFake{{unix.SYS_REBOOT, callerAnyArg}}}), callerCreate("honest")))

		// What is dropped for the operation asked for (Confine) is read back too. The first capset of each thread is let through, what follows is faked.
		t.Run("the second capset", func(t *testing.T) {
			h := h.For(t)
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			callerCheck(t, err)
			theirs := os.NewFile(uintptr(pair[1]), "theirs")
			cmd := callerCommand(t, h, callerPlan{UID: harness.PolicyUID, Fake: capset, Notify: true})
			cmd.ExtraFiles = []*os.File{theirs}
			cmd.Stdin, cmd.Stdout = bytes.NewReader(callerCreate("second")), new(bytes.Buffer)
			callerCheck(t, cmd.Start())
			theirs.Close()
			oob := make([]byte, unix.CmsgSpace(4))
			_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, 0)
			callerCheck(t, err)
			messages, err := unix.ParseSocketControlMessage(oob[:n])
			callerCheck(t, err)
			fds, err := unix.ParseUnixRights(&messages[0])
			callerCheck(t, err)
			unix.Close(pair[0])
			ended := make(chan [2]int)
			go func() {
				through, faked := callerAnswer(fds[0])
				ended <- [2]int{through, faked}
			}()
			r := callerEnd(t, cmd)
			unix.Close(fds[0])
			counts := <-ended
			t.Logf("capset: %d let through, %d faked", counts[0], counts[1])
			if counts[0] == 0 || counts[1] == 0 {
				t.Fatalf("nothing was faked: %v", counts)
			}
			callerRefused(t, r, wire.Internal)
			if callerHas(h, "second") {
				t.Error("it went on")
			}
		})
		callerLedger(t, h)
	})
}

func callerJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	callerCheck(t, err)
	return string(data)
}

// callerAnswer answers the calls that a filter notifies of: the first of each thread goes on, later ones report success. It ends when the process does.
func callerAnswer(listener int) (through, faked int) {
	type notification struct {
		id         uint64
		pid, flags uint32
		nr         int32
		arch       uint32
		ip         uint64
		args       [6]uint64
	}
	type answer struct {
		id    uint64
		val   int64
		error int32
		flags uint32
	}
	const receive, send, goOn = 0xc0502100, 0xc0182101, 1 // SECCOMP_IOCTL_NOTIF_*, SECCOMP_USER_NOTIF_FLAG_CONTINUE
	seen := map[uint32]bool{}
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return through, faked
		}
		var n notification
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), receive, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue
		}
		a := answer{id: n.id}
		if !seen[n.pid] {
			seen[n.pid], a.flags = true, goOn
			through++
		} else {
			faked++
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(listener), send, uintptr(unsafe.Pointer(&a)))
	}
}
