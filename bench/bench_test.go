//go:build bench

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

func TestMain(m *testing.M) { harness.Main(m) }

var policyUser = harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}

// world is where everything is measured: a host with a plugin that makes real mounts, as plugins do.
type world struct {
	t      *testing.T
	h      *harness.Host
	out    string // bench/out
	plugin *harness.Plugin
	input  *os.File // of each command: a file, so that none waits for a goroutine that feeds it
	output *os.File
	rusage *syscall.Rusage // of the last one
}

func TestBench(t *testing.T) {
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(checkout, "bench", "out")
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		w := &world{t: t, h: h, out: out, plugin: h.Plugin("disk", "-bind")}
		for _, f := range []**os.File{&w.input, &w.output} {
			fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
			w.check(err)
			*f = os.NewFile(uintptr(fd), "memfd")
		}
		r := &Results{Machine: machine()}
		for i, measure := range []func(*Results){w.helper, w.batch, w.attach, w.crowded, w.parallel, w.recover} {
			if only := os.Getenv("BENCH_ONLY"); only != "" && !strings.Contains(only, strconv.Itoa(i)) { // for whoever works on one
				continue
			}
			measure(r)
			w.tell(r)
		}
		info, err := os.Stat(filepath.Join(checkout, "bin/test/bindgate-helper"))
		w.check(err)
		r.Rows = append(r.Rows, Row{What: "helper: binary", Value: float64(info.Size()) / (1 << 20), Must: 4, Unit: "MiB"})
		w.tell(r)
		fmt.Printf("\n%s\n\n%-42s %9s %9s %9s %6s\n", r.Machine, "microseconds", "quartile", "median", "quartile", "rounds")
		for _, c := range r.Costs {
			fmt.Println(c)
		}
		fmt.Println()
		for _, row := range r.Rows {
			fmt.Println(row)
		}
	})
}

// tell writes what is known so far to results.json, as the one whose folder it is.
func (w *world) tell(r *Results) {
	data, err := json.MarshalIndent(r, "", "\t")
	w.check(err)
	file := filepath.Join(w.out, "results.json")
	w.check(os.WriteFile(file, append(data, '\n'), 0o644))
	var st unix.Stat_t
	w.check(unix.Stat(w.out, &st))
	w.check(os.Chown(file, int(st.Uid), int(st.Gid)))
}

func machine() string {
	var u unix.Utsname
	unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	_, model, _ := strings.Cut(string(cpuinfo), "model name\t: ")
	model, _, _ = strings.Cut(model, "\n")
	return fmt.Sprintf("%d x %s, Linux %s, %s, load %.14s", runtime.NumCPU(), model, unix.ByteSliceToString(u.Release[:]), runtime.Version(), load)
}

func (w *world) check(err error) {
	if err != nil {
		w.t.Helper()
		w.t.Fatal(err)
	}
}

// run runs a command to its end and returns the microseconds that it took, from its start to when its end was known.
func (w *world) run(cmd *exec.Cmd, stdin ...byte) float64 {
	w.t.Helper()
	w.check(w.input.Truncate(0))
	_, err := w.input.WriteAt(stdin, 0)
	w.check(err)
	_, err = w.input.Seek(0, 0)
	w.check(err)
	w.check(w.output.Truncate(0))
	_, err = w.output.Seek(0, 0)
	w.check(err)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = w.input, w.output, w.output
	began := time.Now()
	err = cmd.Run()
	took := time.Since(began)
	if err != nil {
		said := make([]byte, 4096)
		n, _ := w.output.ReadAt(said, 0)
		w.t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, said[:n])
	}
	w.rusage = cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return float64(took.Nanoseconds()) / 1000
}

func (w *world) bindgate(args ...string) *exec.Cmd {
	return w.h.Command(policyUser, w.h.Bindgate(), args...)
}
func (w *world) dvdcli(args ...string) *exec.Cmd {
	return w.h.Command(policyUser, w.h.Path("prefix/bin/dvdcli"), args...)
}
func (w *world) ask(r *wire.Request) float64 {
	return w.run(w.h.Command(policyUser, w.h.HelperPath()), boundary.Encode(r)...)
}
func (w *world) nsenter(pid int, args ...string) float64 {
	return w.run(exec.Command("nsenter", append([]string{"-t", strconv.Itoa(pid), "-m", "--"}, args...)...))
}
func (w *world) attachArgs(id string, pid int, volumes ...string) []string {
	args := []string{"attach", "--container", id, "--pid", strconv.Itoa(pid), "--driver", "disk"}
	for i, v := range volumes {
		args = append(args, "-v", fmt.Sprintf("%s:/m%d", v, i))
	}
	return args
}

// A step is one thing that is measured, and what takes it back, which is not.
type step struct {
	name string
	do   func() float64
	undo func()
}

// inTurns does all steps in turns, warm-up rounds first, and returns what each of the rounds took.
func (w *world) inTurns(rounds int, steps ...step) (took [][]float64, costs []Cost) {
	took = make([][]float64, len(steps))
	faults, cpu := make([][]float64, len(steps)), make([][]float64, len(steps))
	for n := range rounds + rounds/10 + 2 {
		for i, s := range steps {
			us := s.do()
			if n >= rounds/10+2 {
				took[i] = append(took[i], us)
				faults[i] = append(faults[i], float64(w.rusage.Minflt))
				cpu[i] = append(cpu[i], float64(w.rusage.Utime.Nano()+w.rusage.Stime.Nano())/1000)
			}
			if s.undo != nil {
				s.undo()
			}
		}
	}
	for i, s := range steps {
		c := cost(s.name, took[i])
		c.PageFaults, c.CPUs = quantile(faults[i], .5), quantile(cpu[i], .5)
		costs = append(costs, c)
	}
	return took, costs
}

// containers starts n processes, each in a mount namespace of its own in one container, in which the folders m0 to m63 are. They end when the container is deleted.
func (w *world) containers(id string, n int) (*harness.Container, []int) {
	w.t.Helper()
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do unshare -m /bin/sleep 2147483647 & i=$((i+1)); done; wait", n)
	c := w.h.Container(harness.ContainerOptions{ID: id, Privileged: true, Command: []string{"/bin/sh", "-c", script}, Prepare: func(root string) {
		for i := range 64 {
			w.check(os.Mkdir(fmt.Sprintf("%s/m%d", root, i), 0o755))
		}
	}})
	own, err := os.Readlink("/proc/" + c.PIDString() + "/ns/mnt")
	w.check(err)
	for deadline := time.Now().Add(2 * time.Minute); ; runtime.Gosched() {
		var pids []int
		children, err := os.ReadFile(fmt.Sprintf("/proc/%s/task/%s/children", c.PIDString(), c.PIDString()))
		w.check(err)
		for f := range strings.FieldsSeq(string(children)) {
			comm, _ := os.ReadFile("/proc/" + f + "/comm")
			if ns, err := os.Readlink("/proc/" + f + "/ns/mnt"); err == nil && ns != own && string(comm) == "sleep\n" {
				pid, _ := strconv.Atoi(f)
				pids = append(pids, pid)
			}
		}
		if len(pids) == n {
			return c, pids
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("only %d of %d processes came", len(pids), n)
		}
	}
}

func (w *world) helper(r *Results) {
	c, pids := w.containers("helper", 1)
	pid, src := pids[0], w.h.Mkdir(w.h.Path("sources/v"), 0o755)
	attach := &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c", PID: pid, Mounts: []wire.Mount{{Path: "/m0", Source: src, Mode: "rw"}}}
	detach := &wire.Request{Op: wire.OpDetach, Owner: "default", Container: "c"}
	umount := func() { w.nsenter(pid, "umount", "/m0") }
	floorLedger := w.h.Mkdir(w.h.Path("run/floor"), 0o700)
	took, costs := w.inTurns(300,
		step{"floor: the same system calls in C", func() float64 {
			return w.run(exec.Command(w.out+"/floor", strconv.Itoa(pid), src, "/m0", floorLedger, w.h.Path("var/log/bindgate/floor")), boundary.Encode(attach)...)
		}, umount},
		step{"an empty Go program", func() float64 { return w.run(exec.Command(w.out + "/empty")) }, nil},
		step{"nsenter -t PID -m -- mount --bind", func() float64 { return w.nsenter(pid, "mount", "--bind", "/proc", "/m0") }, umount},
		step{"bindgate-helper, one attach", func() float64 { return w.ask(attach) }, func() { w.ask(detach) }},
	)
	r.Costs = append(r.Costs, costs...)
	r.BatchBaseline = costs[2].Median
	r.Rows = append(r.Rows, Row{What: "helper: one attach / nsenter ... mount --bind", Value: costs[3].Median / costs[2].Median, Must: 1.8, Unit: "x",
		Note: fmt.Sprintf("quartile to quartile %.2f", quantile(took[3], .25)/quantile(took[2], .25))})
	c.Delete()
}

func (w *world) batch(r *Results) {
	c, pids := w.containers("batch", 1)
	detach := &wire.Request{Op: wire.OpDetach, Owner: "default", Container: "c"}
	sizes := []int{1, 2, 4, 8, 16, 32, 64}
	var steps []step
	for _, n := range sizes {
		attach := &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c", PID: pids[0]}
		for i := range n {
			attach.Mounts = append(attach.Mounts, wire.Mount{Path: fmt.Sprintf("/m%d", i), Source: w.h.Mkdir(w.h.Path(fmt.Sprintf("sources/v%d", i)), 0o755), Mode: "rw"})
		}
		steps = append(steps, step{fmt.Sprintf("bindgate-helper, %d mounts in a request", n), func() float64 { return w.ask(attach) }, func() { w.ask(detach) }})
	}
	steps = append(steps, step{"nsenter", func() float64 { return w.nsenter(pids[0], "mount", "--bind", "/proc", "/m0") }, func() { w.nsenter(pids[0], "umount", "/m0") }})
	_, costs := w.inTurns(30, steps...)
	all := &wire.Request{Op: wire.OpAttach, Owner: "default", Container: "c", PID: pids[0]}
	for i := range 64 {
		all.Mounts = append(all.Mounts, wire.Mount{Path: fmt.Sprintf("/m%d", i), Source: w.h.Path(fmt.Sprintf("sources/v%d", i)), Mode: "rw"})
	}
	w.run(exec.Command(w.out+"/floor", "peak", strconv.Itoa(harness.PolicyUID), w.h.HelperPath()), boundary.Encode(all)...)
	said := make([]byte, 1<<20)
	size, _ := w.output.ReadAt(said, 0)
	lines := strings.Fields(string(said[bytes.LastIndexByte(said[:size], 0)+1 : size]))
	peak, err := strconv.Atoi(lines[len(lines)-1])
	w.check(err)
	w.ask(detach)
	for i, n := range sizes {
		r.Batch = append(r.Batch, Point{float64(n), costs[i].Median / float64(n), costs[i].Q1 / float64(n), costs[i].Q3 / float64(n)})
	}
	r.Costs = append(r.Costs, costs[len(sizes)-1])
	r.Rows = append(r.Rows, Row{What: "helper: 64 mounts in a request, each / nsenter", Value: costs[len(sizes)-1].Median / 64 / costs[len(sizes)].Median, Must: 0.1, Unit: "x"},
		Row{What: "helper: peak memory, 64 mounts", Value: float64(peak) / 1024, Must: 12, Unit: "MiB"})
	c.Delete()
}

func (w *world) attach(r *Results) {
	c, pids := w.containers("attach", 1)
	_, costs := w.inTurns(100,
		step{"bindgate attach, one plugin volume", func() float64 { return w.run(w.bindgate(w.attachArgs("c", pids[0], "one")...)) },
			func() { w.run(w.bindgate("detach", "--container", "c", "--all")) }},
		step{"dvdcli mount", func() float64 { return w.run(w.dvdcli("mount", "--volumedriver=disk", "--volumename=two")) },
			func() { w.run(w.dvdcli("unmount", "--volumedriver=disk", "--volumename=two")) }},
		step{"nsenter -t PID -m -- mount --bind, again", func() float64 { return w.nsenter(pids[0], "mount", "--bind", "/proc", "/m0") }, func() { w.nsenter(pids[0], "umount", "/m0") }},
		step{"bindgate --version", func() float64 { return w.run(w.bindgate("--version")) }, nil},
		step{"an empty Go program, again", func() float64 { return w.run(exec.Command(w.out + "/empty")) }, nil},
	)
	r.Costs = append(r.Costs, costs...)
	baseline := costs[1].Median + costs[2].Median
	r.Rows = append(r.Rows, Row{What: "attach, one plugin volume / (dvdcli mount + nsenter)", Value: costs[0].Median / baseline, Must: 1, Unit: "x",
		Note: fmt.Sprintf("quartile to quartile %.2f; (dvdcli mount + an empty Go program) / the same: %.2f", costs[0].Q1/(costs[1].Q1+costs[2].Q1), (costs[1].Median+costs[4].Median)/baseline)})
	c.Delete()
}

// crowded measures attach with many records and many mounts on the host. Without any it is measured before and after each.
func (w *world) crowded(r *Results) {
	const rounds = 30
	c, pids := w.containers("crowded", 2)
	one := func(name string) Cost {
		_, costs := w.inTurns(rounds, step{name, func() float64 { return w.run(w.bindgate(w.attachArgs("c", pids[0], "one")...)) },
			func() { w.run(w.bindgate("detach", "--container", "c", "--all")) }})
		return costs[0]
	}
	point := func(x int, c Cost) Point { return Point{float64(x), c.Median, c.Q1, c.Q3} }
	before := one("attach, an empty host")
	for _, n := range []int{0, 1250, 2500, 5000} {
		undo := w.mounts(n)
		r.Mounts = append(r.Mounts, point(n, one("")))
		undo()
	}
	for _, n := range []int{0, 2500, 5000, 10000} {
		undo := w.records(pids[1], n)
		r.Records = append(r.Records, point(n, one("")))
		undo()
	}
	undoMounts, undoRecords := w.mounts(5000), w.records(pids[1], 10000)
	full := one("attach, 10,000 records and 5,000 mounts")
	undoRecords()
	undoMounts()
	after := one("attach, an empty host again")
	r.Costs = append(r.Costs, before, full, after)
	r.Rows = append(r.Rows, Row{What: "attach, 10,000 records and 5,000 mounts / none", Value: full.Median / ((before.Median + after.Median) / 2), Must: 1.2, Unit: "x",
		Note: fmt.Sprintf("quartile to quartile %.2f", full.Q1/((before.Q1+after.Q1)/2))})
	c.Delete()
}

// mounts makes n more mounts on the host, and returns what takes them away.
func (w *world) mounts(n int) func() {
	if n == 0 {
		return func() {}
	}
	top := w.h.Mkdir(w.h.Path("many"), 0o755)
	w.check(unix.Mount("tmpfs", top, "tmpfs", 0, ""))
	for i := range n - 1 {
		dir := fmt.Sprintf("%s/%d", top, i)
		w.check(os.Mkdir(dir, 0o755))
		w.check(unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	}
	return func() { w.check(unix.Unmount(top, unix.MNT_DETACH)) }
}

// records makes n more records, of containers and their volumes in the journal and of their namespaces in the ledger: copies of those of a real one.
func (w *world) records(pid, n int) func() {
	if n == 0 {
		return func() {}
	}
	w.run(w.bindgate(w.attachArgs("model", pid, "model")...))
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	w.check(err)
	payload := func(dir, name string) []byte {
		data, err := os.ReadFile(w.h.Journal() + "/" + dir + "/" + name + ".rec")
		w.check(err)
		_, payload, _ := bytes.Cut(data, []byte{'\n'})
		return payload
	}
	volume := "" // the only one in use
	files, err := os.ReadDir(w.h.Journal() + "/volumes")
	w.check(err)
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".rec"); ok {
			volume = name
		}
	}
	containerRecord, volumeRecord := payload("containers", "default@model"), payload("volumes", volume)
	var written []string
	write := func(dir, name string, payload []byte, uid int) {
		s, err := state.Open(dir, strings.TrimSpace(string(boot)), false)
		w.check(err)
		defer s.Close()
		w.check(s.Write(name, payload))
		file := dir + "/" + name + ".rec"
		w.check(os.Chown(file, uid, uid))
		written = append(written, file)
	}
	ledger, err := state.Open(w.h.Ledger(), strings.TrimSpace(string(boot)), false)
	w.check(err)
	defer ledger.Close()
	l := &state.Ledger{Store: ledger}
	ns, ok, err := l.Find(state.Whose{UID: harness.PolicyUID, Owner: "default", Container: "model"})
	w.check(err)
	if !ok {
		w.t.Fatal("the ledger does not know the model")
	}
	record, err := l.ReadNS(ns)
	w.check(err)
	for i := range n {
		name := fmt.Sprintf("model%d", i)
		as := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"model"`), []byte(`"`+name+`"`)) }
		write(w.h.Journal()+"/containers", "default@"+name, as(containerRecord), harness.PolicyUID)
		write(w.h.Journal()+"/volumes", fmt.Sprintf("%064x", i), as(volumeRecord), harness.PolicyUID)
		copied := *record
		copied.NS, copied.Mounts = 1<<40+uint64(i), slices.Clone(record.Mounts)
		for j := range copied.Mounts {
			copied.Mounts[j].Container = name
		}
		w.check(l.WriteNS(&copied))
		w.check(l.Enter(state.Whose{UID: harness.PolicyUID, Owner: "default", Container: name}, copied.NS))
		written = append(written, fmt.Sprintf("%s/%d.rec", w.h.Ledger(), copied.NS), fmt.Sprintf("%s/by+%d+default+%s", w.h.Ledger(), harness.PolicyUID, name))
	}
	return func() {
		for _, f := range written {
			w.check(os.Remove(f))
		}
		w.run(w.bindgate("detach", "--container", "model", "--all"))
	}
}

// parallel attaches 64 times, to 64 containers, 8 volumes, with more and more at once.
func (w *world) parallel(r *Results) {
	const n, volumes = 64, 8
	c, pids := w.containers("parallel", n)
	all := func(at int, command func(i int) *exec.Cmd) float64 {
		next := make(chan int)
		var wg sync.WaitGroup
		began := time.Now()
		for range at {
			wg.Go(func() {
				for i := range next {
					cmd := command(i)
					if out, err := cmd.CombinedOutput(); err != nil {
						w.t.Errorf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
					}
				}
			})
		}
		for i := range n {
			next <- i
		}
		close(next)
		wg.Wait()
		if w.t.Failed() {
			w.t.FailNow()
		}
		return time.Since(began).Seconds()
	}
	lost := 0
	round := func(at int) float64 {
		took := all(at, func(i int) *exec.Cmd {
			return w.bindgate(w.attachArgs(fmt.Sprintf("p%d", i), pids[i], fmt.Sprintf("v%d", i%volumes))...)
		})
		var status struct {
			Containers []json.RawMessage
			Volumes    []struct{ Containers []string }
		}
		out, err := w.bindgate("status", "-o", "json").Output()
		w.check(err)
		w.check(json.Unmarshal(out, &status))
		references := 0
		for _, v := range status.Volumes {
			references += len(v.Containers)
		}
		lost += n - len(status.Containers) + n - references
		all(2, func(i int) *exec.Cmd { return w.bindgate("detach", "--container", fmt.Sprintf("p%d", i), "--all") })
		return n / took
	}
	enter := func(at int, args ...string) float64 {
		return n / all(at, func(i int) *exec.Cmd {
			return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(pids[i]), "-m", "--"}, args...)...)
		})
	}
	at := []int{1, 2, 4, 8, 16, 32, 64}
	rates, entered := make([][]float64, len(at)), map[int][]float64{}
	for n := range 6 {
		for i, p := range at {
			if rate := round(p); n > 0 {
				rates[i] = append(rates[i], rate)
			}
		}
		for _, p := range []int{1, 64} { // what the machine makes of programs that have nothing in common but its kernel
			if rate := enter(p, "mount", "--bind", "/proc", "/m0"); n > 0 {
				entered[p] = append(entered[p], rate)
			}
			enter(2, "umount", "/m0")
		}
	}
	for i, p := range at {
		r.Parallel = append(r.Parallel, Point{float64(p), quantile(rates[i], .5), quantile(rates[i], .25), quantile(rates[i], .75)})
	}
	last := len(at) - 1
	r.Rows = append(r.Rows, Row{What: "64 attaches at once: lost references", Value: float64(lost), Must: 0},
		Row{What: "64 attaches at once: throughput / (one at a time x cores)", Value: r.Parallel[last].Y / (r.Parallel[0].Y * float64(runtime.NumCPU())), Must: 0.9, Least: true, Unit: "x",
			Note: fmt.Sprintf("%.0f a second, one at a time %.0f; nsenter ... mount --bind reaches %.2f", r.Parallel[last].Y, r.Parallel[0].Y, quantile(entered[64], .5)/(quantile(entered[1], .5)*float64(runtime.NumCPU())))})
	c.Delete()
}

// recover recovers dead containers, of two volumes each. What the calls of the driver alone take is measured with the same calls, made as many at once as recover makes them.
func (w *world) recover(r *Results) {
	each := map[int]float64{} // milliseconds of one container, beyond the driver's calls
	for _, n := range []int{125, 250, 500, 1000} {
		var rounds, calls []float64
		for range map[bool]int{true: 1, false: 3}[n == 250 || n == 500] {
			took, driver := w.recoverOnce(n)
			rounds, calls = append(rounds, took), append(calls, driver)
		}
		ms := func(rounds []float64) Point {
			return Point{float64(n), quantile(rounds, .5) / 1000, quantile(rounds, .25) / 1000, quantile(rounds, .75) / 1000}
		}
		r.Recover, r.RecoverDrivers = append(r.Recover, ms(rounds)), append(r.RecoverDrivers, ms(calls))
		each[n] = (ms(rounds).Y - ms(calls).Y) / float64(n)
	}
	r.Rows = append(r.Rows, Row{What: "recover, 1,000 dead containers: each, beyond the driver's calls", Value: each[1000], Must: 1, Unit: "ms",
		Note: fmt.Sprintf("%.0f ms in all, the driver's calls alone %.0f", r.Recover[3].Y, r.RecoverDrivers[3].Y)},
		Row{What: "recover, beyond the driver's calls: each of 1,000 / each of 125", Value: each[1000] / each[125], Must: 1.2, Unit: "x",
			Note: fmt.Sprintf("%.0f ms of 125 in all, the driver's calls alone %.0f", r.Recover[0].Y, r.RecoverDrivers[0].Y)})
}

func (w *world) recoverOnce(n int) (took, calls float64) {
	c, pids := w.containers("recover", n)
	next := make(chan int)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range next {
				if out, err := w.bindgate(w.attachArgs(fmt.Sprintf("r%d", i), pids[i], fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i))...).CombinedOutput(); err != nil {
					w.t.Errorf("%v: %s", err, out)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	c.Delete()
	took = w.run(w.bindgate("recover", "-o", "json"))
	var found struct{ Cleaned, Unmounted []json.RawMessage }
	data := make([]byte, 16<<20)
	size, _ := w.output.ReadAt(data, 0)
	w.check(json.Unmarshal(data[:size], &found))
	if len(found.Cleaned) != n || len(found.Unmounted) != 2*n {
		w.t.Fatalf("of %d containers %d were cleaned up, and %d volumes unmounted", n, len(found.Cleaned), len(found.Unmounted))
	}

	p, err := driver.NewPlugin("disk", driver.Options{SocketDirs: []string{w.h.Sockets()}, SpecDirs: []string{w.h.Specs()}})
	w.check(err)
	ctx := context.Background()
	each := func(do func(name string) error) {
		names := make(chan string)
		var wg sync.WaitGroup
		for range 16 { // recover works on 8 containers at once, and on a container's volumes
			wg.Go(func() {
				for name := range names {
					if err := do(name); err != nil {
						w.t.Error(err)
					}
				}
			})
		}
		for i := range n {
			names <- fmt.Sprintf("a%d", i)
			names <- fmt.Sprintf("b%d", i)
		}
		close(names)
		wg.Wait()
	}
	each(func(name string) error { _, err := p.Mount(ctx, name, "bench"); return err })
	began := time.Now()
	each(func(name string) error { return p.Unmount(ctx, name, "bench") })
	calls = float64(time.Since(began).Microseconds())
	return took, calls
}
