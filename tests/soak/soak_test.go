// Package soak lets 64 processes at once do everything that bindgate can, to the same few containers and volumes, and kills them at random.
//
// SOAKTIME says for how long (default 20s), SOAKSEED with which choices; the seed is printed. The choices are the seed's, what they meet is the scheduler's: a failure comes back with its seed, but maybe
// not at once. make soak SOAKTIME=3m SOAKSEED=7 repeats one.
package soak

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/tests/plugins/watched"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	workers = 64               // processes at once
	round   = 5 * time.Second  // of disorder, then everything is looked at
	slots   = 8                // containers
	parent  = "c0"             // of the container c1
	refused = "not mounted by" // how the plugin says that there was nothing to unmount
)

// volumes are what the containers share. Those of the driver local come into being at the first use.
var volumes = []string{"p/v0", "p/v1", "p/v2", "p/v3", "q/v0", "q/v1", "local/l0", "local/l1"}

// owner says whose record a container's is: two agents share the host and its volumes.
func owner(slot int) string {
	if slot >= slots-2 {
		return "other"
	}
	return "default"
}

var owners = []string{"default", "other", "dvdcli"} // the last one's are dvdcli's own references

func TestSoak(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		length, err := time.ParseDuration(cmp.Or(os.Getenv("SOAKTIME"), "20s"))
		if err != nil {
			t.Fatal(err)
		}
		seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SOAKSEED"), strconv.FormatInt(time.Now().UnixNano()%1e6, 10)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("SOAKTIME=%v SOAKSEED=%d", length, seed)
		s := newSoak(t, h, seed)
		for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); {
			s.disorder(min(round, time.Until(end)))
			s.settle()
		}
		s.end()
		t.Log(s.tally())
		if t.Failed() {
			t.Logf("to repeat: make soak SOAKTIME=%v SOAKSEED=%d", length, seed)
		}
	})
}

// A soak is one run.
type soak struct {
	t         *testing.T
	h         *harness.Host
	seed      uint64
	rounds    uint64
	ended     []*harness.Container // whose root filesystems are there until they were cleaned up, as agents have it
	sandboxes map[string]uint64    // the mount namespaces of the containers that have, or had, them
	drivers   map[string]*watched.Plugin

	mu         sync.Mutex
	running    [slots]*harness.Container
	generation [slots]int
	linger     map[int]*exec.Cmd // by pid: processes that stay in a container's namespaces when its first process is gone
	lingers    map[int]int       // by pid: 1 + the slot
	counts     map[string]int    // by verb and exit status
	started    int               // containers
	wrong      []string          // what live checks found
	history    []string          // the commands that ended last

	killed atomic.Int64 // processes
}

func newSoak(t *testing.T, h *harness.Host, seed uint64) *soak {
	s := &soak{t: t, h: h, seed: seed, drivers: map[string]*watched.Plugin{}, sandboxes: map[string]uint64{}, linger: map[int]*exec.Cmd{}, lingers: map[int]int{}, counts: map[string]int{}}
	h.AllowAll()
	for _, name := range []string{"p", "q"} {
		p := &watched.Plugin{Socket: filepath.Join(h.Sockets(), name+".sock"), Root: filepath.Join(h.Sources(), name), Lenient: true} // else a recover had to wait for what a call that was cut off may still do
		p.Before = func(c watched.Call) error {
			if c.Call == "Unmount" {
				s.unused(p, c)
			}
			return nil
		}
		if err := p.Start(harness.PolicyGID); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop() })
		s.drivers[name] = p
	}
	for slot := range slots {
		h.Mkdir(s.sandbox(slot), 0o755)
	}
	return s
}

// sandbox is the folder on the host of the container that is, or will be the next, in a slot.
func (s *soak) sandbox(slot int) string {
	return s.h.Path("sandboxes", fmt.Sprintf("%d-%d", slot, s.generation[slot]))
}

// unused is the invariant that holds at every moment: what the driver is told to unmount is in no living container.
func (s *soak) unused(p *watched.Plugin, c watched.Call) {
	if len(p.Holders()[c.Name]) == 0 {
		return // nothing is unmounted
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pid := range s.pids() {
		for _, m := range s.mounts(pid) {
			if m.volume == filepath.Base(p.Root)+"/"+c.Name {
				s.wrong = append(s.wrong, fmt.Sprintf("%v: the driver was told %q while the process %d has the volume at %s; before that:\n%s", now(), c, pid, m.path, s.recent(pid)))
			}
		}
	}
}

func now() string { return time.Now().Format("15:04:05.000") }

// recent are the last commands for the container that a process belongs to.
func (s *soak) recent(pid int) string {
	var list []string
	for slot, c := range s.running {
		if l := s.lingers[pid]; l != slot+1 && (c == nil || c.Pid() != pid) {
			continue
		}
		for _, line := range slices.Backward(s.history) {
			if len(list) < 30 && (strings.Contains(line, fmt.Sprintf("c%d ", slot)) || strings.Contains(line, "recover")) {
				list = append(list, line)
			}
		}
	}
	slices.Reverse(list)
	return strings.Join(list, "\n")
}

// pids are the living processes, one for each mount namespace that a volume may be in.
func (s *soak) pids() []int {
	pids := slices.Sorted(maps.Keys(s.linger))
	for _, c := range s.running {
		if c != nil {
			pids = append(pids, c.Pid())
		}
	}
	return pids
}

// A mount is a volume in a container, as the kernel says.
type mount struct{ volume, path string }

func (s *soak) mounts(pid int) (list []mount) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)) // a process that has ended has none
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		root := f[3]
		if _, v, ok := strings.Cut(root, "/sources/"); ok {
			list = append(list, mount{strings.Replace(v, "/data/", "/", 1), f[4]})
		} else if _, v, ok := strings.Cut(root, "/var/lib/bindgate/volumes/"); ok {
			list = append(list, mount{"local/" + v, f[4]})
		}
	}
	slices.SortFunc(list, func(a, b mount) int { return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.volume, b.volume)) })
	return list
}

// disorder runs the processes for a while.
func (s *soak) disorder(length time.Duration) {
	s.rounds++
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(s.seed, s.rounds<<16|uint64(w)))
			for time.Now().Before(end) {
				s.one(r)
			}
		})
	}
	wg.Go(func() { s.killHelpers(rand.New(rand.NewPCG(s.seed, s.rounds<<16|workers)), end) })
	wg.Go(func() { s.watches(rand.New(rand.NewPCG(s.seed, s.rounds<<16|workers+2)), end) })
	r := rand.New(rand.NewPCG(s.seed, s.rounds<<16|workers+1))
	for time.Now().Before(end) && !s.t.Failed() { // containers are the test's own goroutine's, which alone may fail
		s.turnover(r)
	}
	wg.Wait()
	for wait := true; wait; { // what was orphaned ends by itself
		wait = false
		for _, pid := range processes("bindgate") {
			wait = true
			s.awaitEnd(pid)
		}
	}
}

// awaitEnd waits for the end of a process that ends by itself: longer than the helper's own deadline is an error.
func (s *soak) awaitEnd(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for err = unix.EINTR; err == unix.EINTR; {
		var n int
		if n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000); err == nil && n == 0 {
			s.t.Fatalf("process %d does not end", pid)
		}
	}
}

// processes are those whose command begins so.
func processes(comm string) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if data, _ := os.ReadFile("/proc/" + e.Name() + "/comm"); strings.HasPrefix(string(data), comm) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killHelpers kills a helper now and then.
func (s *soak) killHelpers(r *rand.Rand, end time.Time) {
	for time.Now().Before(end) {
		time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
		if pids := processes("bindgate-helper"); len(pids) > 0 {
			if unix.Kill(pids[r.IntN(len(pids))], unix.SIGKILL) == nil {
				s.killed.Add(1)
			}
		}
	}
}

// watches has one watch after the other clean up what ends, each of them killed at some time.
func (s *soak) watches(r *rand.Rand, end time.Time) {
	for time.Now().Before(end) {
		cmd := s.h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, s.h.Bindgate(), "watch", "--owner", owner(r.IntN(slots)), "--interval", "1s")
		if err := cmd.Start(); err != nil {
			s.complain("cannot start %v: %v", cmd.Args, err)
			return
		}
		time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			s.killed.Add(1)
		} else {
			s.complain("a watch ended by itself, with %d", ws.ExitStatus())
		}
	}
}

// turnover ends a container or starts one.
func (s *soak) turnover(r *rand.Rand) {
	i := r.IntN(slots)
	c := s.running[i]
	if c == nil {
		s.started++
		c = s.h.Container(harness.ContainerOptions{ID: fmt.Sprintf("r%d-%d", i, s.started), Sandbox: s.sandbox(i)})
		s.mu.Lock()
		s.running[i] = c
		s.sandboxes[s.sandbox(i)], _ = mountNamespace(c.Pid())
		s.mu.Unlock()
		return
	}
	if r.IntN(4) == 0 && len(s.linger) < 3 {
		// Its first process ends, and another one stays in its mount namespace: that is no longer a living container, but a place where the volumes are mounted.
		cmd := exec.Command("nsenter", "--target", c.PIDString(), "--mount", "--", "/bin/sleep", "2147483647")
		if err := cmd.Start(); err != nil {
			s.t.Error(err)
		}
		s.awaitNamespace(cmd.Process.Pid, c.Pid())
		s.mu.Lock()
		s.linger[cmd.Process.Pid], s.lingers[cmd.Process.Pid] = cmd, i+1
		s.mu.Unlock()
	} else if len(s.linger) > 0 && r.IntN(2) == 0 {
		s.endLinger()
	}
	s.stop(i)
}

// stop ends the container in a slot. The next one has a sandbox of its own.
func (s *soak) stop(slot int) {
	s.mu.Lock()
	c := s.running[slot]
	s.running[slot] = nil
	s.generation[slot]++
	s.h.Mkdir(s.sandbox(slot), 0o755)
	s.mu.Unlock()
	if c != nil {
		c.Kill()
		s.ended = append(s.ended, c)
	}
}

// awaitNamespace waits until a process has entered the mount namespace of another: nsenter does so before it runs what it was told.
func (s *soak) awaitNamespace(pid, other int) {
	want, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", other))
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); ns == want {
			return
		}
	}
	s.t.Error("nsenter does not enter")
}

func (s *soak) endLinger() {
	s.mu.Lock()
	all := maps.Clone(s.linger)
	s.mu.Unlock()
	for pid, cmd := range all {
		cmd.Process.Kill()
		cmd.Wait()
		s.mu.Lock()
		delete(s.linger, pid)
		s.mu.Unlock()
	}
}

// one runs one command, and maybe kills it.
func (s *soak) one(r *rand.Rand) {
	args := s.choose(r)
	program, argv := s.h.Bindgate(), args
	if args[0] == "dvdcli" {
		program, argv = s.h.Path("prefix/bin/dvdcli"), args[1:]
	}
	cmd := s.h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, program, argv...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		s.complain("cannot start %v: %v", cmd.Args, err)
		return
	}
	if r.IntN(5) == 0 {
		after := time.Duration(r.ExpFloat64() * float64(80*time.Millisecond))
		timer := time.AfterFunc(after, func() {
			if cmd.Process.Kill() == nil {
				s.killed.Add(1)
			}
		})
		defer timer.Stop()
	}
	began := now()
	err := cmd.Wait()
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	exit := ws.ExitStatus()
	if ws.Signaled() {
		exit = 128 + int(ws.Signal())
	}
	s.mu.Lock()
	s.counts[fmt.Sprintf("%s=%d", args[0], exit)]++
	s.history = append(s.history[max(0, len(s.history)-500):], fmt.Sprintf("%s to %s %s: %d %s", began, now(), strings.Join(args, " "), exit, strings.TrimSpace(stderr.String())))
	s.mu.Unlock()
	switch said := stderr.String(); {
	case exit == 0 || exit == 128+int(unix.SIGKILL) || exit == 65 || exit == 71 || exit == 75:
	case exit == 77 && strings.Contains(said, "is not the directory that was named"): // prepared for an earlier container of that name
	case exit == 77 && strings.Contains(said, "no such file or directory"): // another one was removing what it had made there
	case exit == 70 && strings.Contains(said, "signal: killed"): // its helper was
	case args[0] == "dvdcli" && exit == 1:
	default:
		s.complain("%v (%v): %s", cmd.Args, err, said)
	}
}

func (s *soak) complain(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

// choose says what the next process does.
func (s *soak) choose(r *rand.Rand) []string {
	slot := r.IntN(slots)
	id := func(verb string, more ...string) []string {
		return append([]string{verb, "--owner", owner(slot), "--container", "c" + strconv.Itoa(slot)}, more...)
	}
	pid := func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		if c := s.running[slot]; c != nil {
			return c.PIDString()
		}
		return strconv.Itoa(os.Getpid() + 1<<21) // nobody's
	}
	some := func() (args []string) {
		for _, i := range r.Perm(len(volumes))[:1+r.IntN(3)] {
			driver, name, _ := strings.Cut(volumes[i], "/")
			at := fmt.Sprintf("/made/by/%s-%s", driver, name)
			if i == 0 {
				at = "in-sandbox"
			}
			args = append(args, "--mount", fmt.Sprintf("driver=%s,name=%s,target=%s", driver, name, at))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return append(args, "--directory", s.sandbox(slot))
	}
	volume := func() (driver, name string) {
		driver, name, _ = strings.Cut(volumes[r.IntN(len(volumes))], "/")
		return driver, name
	}
	switch n := r.IntN(100); {
	case n < 20:
		more := some()
		if slot == 1 {
			more = append(more, "--parent", parent)
		}
		if r.IntN(8) == 0 {
			more = append(more, "--mounts-by", "agent")
		}
		return id("prepare", more...)
	case n < 40:
		return id("isolate", "--pid", pid())
	case n < 43:
		return id("bind", "--pid", pid())
	case n < 56:
		return id("attach", append(some(), "--pid", pid())...)
	case n < 61:
		return id("detach", "--all")
	case n < 67:
		driver, name := volume()
		return id("detach", "--driver", driver, "--name", name)
	case n < 77:
		return id("cleanup")
	case n < 82:
		return id("cleanup", "--force")
	case n < 86:
		return []string{"recover", "--owner", owner(slot)}
	case n < 87:
		return []string{"recover", "--owner", owner(slot), "--known", "c0,c1,c2,c6"}
	case n < 91:
		driver, name := volume()
		return []string{"volume", "mount", "--owner", owner(slot), "--driver", driver, name}
	case n < 95:
		driver, name := volume()
		return []string{"volume", "unmount", "--owner", owner(slot), "--driver", driver, name}
	case n < 96:
		driver, name := volume()
		return []string{"dvdcli", "mount", "--volumedriver=" + driver, "--volumename=" + name}
	case n < 97:
		driver, name := volume()
		return []string{"dvdcli", "unmount", "--volumedriver=" + driver, "--volumename=" + name}
	}
	return []string{"status"}
}

// run runs a command in peace.
func (s *soak) run(args ...string) harness.Result { return s.h.Policy(append(args, "-o", "json")...) }

type statusDoc struct {
	Containers []struct {
		Container, Owner, Phase string
		PID                     int
		Alive                   bool
		Volumes                 []struct{ Driver, Name string }
		Mounts                  []struct {
			Driver, Name, Target string
		}
	}
	Volumes []struct {
		Driver, Name string
		Containers   []string
		Mounted      bool
		Pending      any
	}
	Warnings []string
}

func (s *soak) status() (d statusDoc) {
	if err := json.Unmarshal([]byte(s.run("status").OK(s.t).Stdout), &d); err != nil {
		s.t.Fatal(err)
	}
	return d
}

// recover brings everything together again. Nothing that fails is left, so it must succeed; the second time it must find nothing to do.
func (s *soak) recover() {
	for _, o := range owners {
		r := s.run("recover", "--owner", o)
		if r.Exit == 75 && strings.Contains(r.Stderr, "nested containers are to be cleaned up first: c1") {
			s.run("cleanup", "--force", "--container", "c1").OK(s.t) // its parent is gone
			r = s.run("recover", "--owner", o)
		}
		r.OK(s.t)
	}
	for _, o := range owners {
		r := s.run("recover", "--owner", o).OK(s.t)
		var d map[string][]any
		var doc struct{ Cleaned, RolledBack, Unmounted, Pending, Corrupt []any }
		json.Unmarshal([]byte(r.Stdout), &doc)
		json.Unmarshal([]byte(r.Stdout), &d)
		if len(doc.Cleaned)+len(d["rolled_back"])+len(doc.Unmounted)+len(doc.Pending)+len(doc.Corrupt) > 0 {
			s.t.Errorf("a second recover found something to do: %v", r)
		}
	}
}

// audit are the last lines of the audit log that are about a mount namespace.
func (s *soak) audit(ns uint64) string {
	var list []string
	for line := range strings.Lines(s.h.ReadFile(s.h.AuditLog())) {
		if strings.Contains(line, fmt.Sprintf(`"mount_namespace":"%d"`, ns)) {
			list = append(list, line)
		}
	}
	return strings.Join(list[max(0, len(list)-30):], "")
}

// mountNamespace is the 64-bit id of a process' mount namespace.
func mountNamespace(pid int) (id uint64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&id))); e != 0 {
		return 0, e
	}
	return id, nil
}

// settle recovers and checks that journal, ledger, kernel and drivers agree.
func (s *soak) settle() {
	s.recover()
	for _, c := range s.ended {
		c.Delete()
	}
	s.ended = nil
	d := s.status()
	t := s.t
	for _, w := range append(d.Warnings, s.wrong...) {
		t.Error(w)
	}
	s.wrong = nil
	slot := map[int]int{} // by pid
	for i, c := range s.running {
		if c != nil {
			slot[c.Pid()] = i
		}
	}
	want, recorded := map[int][]mount{}, map[string][]string{}
	for _, c := range d.Containers {
		id := c.Owner + "@" + c.Container
		if i, ok := slot[c.PID]; c.Alive && (!ok || "c"+strconv.Itoa(i) != c.Container) {
			t.Errorf("%s has process %d, which is no container of its own", id, c.PID)
		}
		switch {
		case c.Phase == "prepared" && c.PID == 0, c.Alive && (c.Phase == "isolated" || c.Phase == "bound"):
		default:
			t.Errorf("%s is %s, process %d, alive %v, after recover", id, c.Phase, c.PID, c.Alive)
		}
		for _, m := range c.Mounts {
			want[c.PID] = append(want[c.PID], mount{m.Driver + "/" + m.Name, m.Target})
		}
		if c.Phase == "isolated" && len(c.Mounts) != len(c.Volumes) {
			t.Errorf("%s is isolated, and has %d volumes and %d mounts", id, len(c.Volumes), len(c.Mounts))
		}
		for _, v := range c.Volumes {
			recorded[v.Driver+"/"+v.Name] = append(recorded[v.Driver+"/"+v.Name], c.Container)
		}
	}
	for _, pid := range s.pids() {
		slices.SortFunc(want[pid], func(a, b mount) int { return cmp.Compare(a.path, b.path) })
		if have := s.mounts(pid); !slices.Equal(have, want[pid]) {
			t.Errorf("process %d (c%d) has %v mounted, and its record says %v", pid, slot[pid], have, want[pid])
		}
		for _, path := range []string{"/made", "/mnt/mesos/sandbox/in-sandbox"} {
			if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s", pid, path)); err == nil && len(want[pid]) == 0 {
				ns, _ := mountNamespace(pid)
				t.Errorf("left: %s in process %d (c%d), which has no volume; before that:\n%s", path, pid, slot[pid], s.audit(ns))
			}
		}
		delete(want, pid)
	}
	for pid, mounts := range want {
		t.Errorf("records say that process %d has %v", pid, mounts)
	}
	used := map[string]bool{}
	for _, v := range d.Volumes {
		id := v.Driver + "/" + v.Name
		slices.Sort(recorded[id])
		slices.Sort(v.Containers)
		if !slices.Equal(recorded[id], v.Containers) {
			t.Errorf("the volume %s is used by %v, and %v have it", id, v.Containers, recorded[id])
		}
		if used[id] = true; len(v.Containers) == 0 && !v.Mounted || v.Pending != nil {
			t.Errorf("after recover: %+v", v)
		}
		delete(recorded, id)
	}
	for id, who := range recorded {
		t.Errorf("%v have the volume %s, which is not in use", who, id)
	}
	for name, p := range s.drivers {
		for v, ids := range p.Holders() {
			if len(ids) != 1 || !used[name+"/"+v] {
				t.Errorf("the driver %s has %s mounted by %d ids, and in use is %v", name, v, len(ids), used[name+"/"+v])
			}
			delete(used, name+"/"+v)
		}
	}
	for id := range used {
		if !strings.HasPrefix(id, "local/") {
			t.Errorf("%s is in use, and the driver has it not mounted", id)
		}
	}
	s.noTemporary()
}

// noTemporary checks that no temporary and no corrupt file is left.
func (s *soak) noTemporary() {
	for _, dir := range []string{s.h.Journal(), s.h.Ledger()} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if name := d.Name(); err == nil && (strings.HasPrefix(name, ".") && name != ".lock" || name == "corrupt") {
				s.t.Errorf("left: %s", path)
			}
			return err
		})
	}
}

// end cleans up everything, and checks that nothing is left and everything works.
func (s *soak) end() {
	t := s.t
	for slot := range slots {
		s.run("cleanup", "--force", "--owner", owner(slot), "--container", "c"+strconv.Itoa((slot+1)%slots)) // c1 before its parent
		s.run("cleanup", "--force", "--owner", owner((slot+1)%slots), "--container", "c"+strconv.Itoa((slot+1)%slots)).OK(t)
	}
	for _, o := range owners {
		for _, v := range volumes {
			driver, name, _ := strings.Cut(v, "/")
			if r := s.run("volume", "unmount", "--owner", o, "--driver", driver, name); r.Exit != 65 {
				r.OK(t)
			}
		}
	}
	s.settle()
	if d := s.status(); len(d.Containers)+len(d.Volumes) > 0 {
		t.Errorf("everything was cleaned up, and there is %+v", d)
	}
	for _, dir := range []string{s.h.Journal(), s.h.Ledger()} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if name := d.Name(); err == nil && !d.IsDir() && name != ".lock" && !strings.HasPrefix(name, "refused+") {
				t.Errorf("left: %s", path)
			}
			return err
		})
	}
	for i, c := range s.running { // the containers live still
		if c == nil {
			continue
		}
		for _, path := range []string{"/made", "/mnt/mesos/sandbox/in-sandbox"} {
			if _, err := os.Lstat(c.Path(path)); err == nil {
				t.Errorf("left: %s in c%d", path, i)
			}
		}
	}
	left, _ := filepath.Glob(s.h.Path("sandboxes/*/*"))
	for _, path := range left {
		t.Errorf("left: %s; before that:\n%s", path, s.audit(s.sandboxes[filepath.Dir(path)]))
	}
	for name, p := range s.drivers {
		last := map[string]watched.Call{} // by id
		open := map[string]int{}
		for _, c := range p.Calls() {
			switch key := c.Name + " " + c.ID; {
			case c.Call == "Mount" && c.Err == nil:
				open[key]++
				last[key] = c
			case c.Call == "Unmount" && c.Err == nil:
				open[key]--
				last[key] = c
			case c.Call == "Unmount" && open[key] > 0:
				t.Errorf("the driver %s refused: %v", name, c)
			case c.Call == "Mount":
				t.Errorf("the driver %s refused: %v", name, c)
			}
		}
		for key, n := range open {
			if n != 0 {
				t.Errorf("the driver %s was told %d more Mounts than Unmounts of %s", name, n, key)
			}
		}
	}
	// Everything works as on the first day.
	var args []string
	for _, v := range volumes {
		driver, name, _ := strings.Cut(v, "/")
		args = append(args, "--mount", fmt.Sprintf("driver=%s,name=%s,target=/made/%s/%s", driver, name, driver, name))
	}
	c := s.h.Container(harness.ContainerOptions{ID: "last"})
	s.run(append([]string{"prepare", "--container", "last"}, args...)...).OK(t)
	s.run("isolate", "--container", "last", "--pid", c.PIDString()).OK(t)
	if have := s.mounts(c.Pid()); len(have) != len(volumes) {
		t.Errorf("the last container has %v", have)
	}
	c.Kill()
	s.run("cleanup", "--container", "last").OK(t)
	for name, p := range s.drivers {
		if left := p.Holders(); len(left) > 0 {
			t.Errorf("the driver %s has mounted still: %v", name, left)
		}
	}
	s.endLinger()
}

// tally says what was done.
func (s *soak) tally() string {
	n := 0
	var list []string
	for _, key := range slices.Sorted(maps.Keys(s.counts)) {
		n += s.counts[key]
		list = append(list, fmt.Sprintf("%s: %d", key, s.counts[key]))
	}
	calls := 0
	for _, p := range s.drivers {
		calls += len(p.Calls())
	}
	return fmt.Sprintf("%d rounds, %d commands, %d processes killed, %d containers, %d calls of drivers\n%s", s.rounds, n, s.killed.Load(), s.started, calls, strings.Join(list, "  "))
}
