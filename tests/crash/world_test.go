//go:build crash

package crash

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/tests/plugins/watched"
)

// A world is the host of one sweep: one container that lives, one plugin that makes real mounts and knows by which ids it was asked for them, and the
// volumes that the container is to have.
type world struct {
	t    *testing.T
	h    *harness.Host
	p    *watched.Plugin
	c    *harness.Container // with a root filesystem of its own
	d    *harness.Container // that shares the host's root, and has ended; nil: none at the moment
	tr   *tracer
	user harness.User // who starts bindgate
	vols []volume
	root []string // what is in the container's root filesystem when nothing is attached

	mu      sync.Mutex
	strange []string // what the plugin was asked and should not have been
}

type volume struct{ driver, name, path string }

// In the container the paths are made: two of them in one folder, so that only an undo in reverse order removes all.
var (
	onePlugin = []volume{{"plugin", "p1", "/srv/one"}}
	oneLocal  = []volume{{"local", "l1", "/srv/one"}}
	three     = []volume{{"plugin", "p1", "/srv/one"}, {"local", "l2", "/srv/two/deep"}, {"plugin", "p3", "/tmp/three"}}
)

var (
	policyUser = harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}
	rootUser   = harness.User{}
)

func newWorld(t *testing.T, h *harness.Host, user harness.User, vols []volume) *world {
	runtime.GOMAXPROCS(4) // although there is one: see pinned
	h.AllowAll()
	w := &world{t: t, h: h, user: user, vols: vols, c: h.Container(harness.ContainerOptions{ID: "c"})}
	// It is lenient, so that recover need not wait for what a call that was cut off may still do; that is TestSlowMount's.
	w.p = &watched.Plugin{Socket: filepath.Join(h.Sockets(), "plugin.sock"), Root: filepath.Join(h.Sources(), "plugin"), Lenient: true, Before: w.asked}
	w.check(w.p.Start(harness.PolicyGID))
	t.Cleanup(func() { w.p.Stop() })
	h.Mkdir(w.sandbox(), 0o755)
	w.root = w.made()
	w.tr = newTracer(t, h)
	t.Cleanup(w.endD)
	// Once without a fault: folders of the journal, the plugin's volumes.
	w.do("prepare")
	w.do("isolate")
	w.do("cleanup")
	w.removeVolumes()
	return w
}

// asked notes calls that do not balance.
func (w *world) asked(c watched.Call) error {
	ids := w.p.Holders()[c.Name]
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case c.Call == "Mount" && slices.Contains(ids, c.ID):
		w.strange = append(w.strange, "the driver was asked twice to mount "+c.Name+" with one id")
	case c.Call == "Unmount" && len(ids) > 0 && !slices.Contains(ids, c.ID):
		w.strange = append(w.strange, "the driver was asked to unmount "+c.Name+" with an id that is none of those that hold it")
	}
	return nil
}

func (w *world) mountFlags(vols []volume) (args []string) {
	for _, v := range vols {
		args = append(args, "--mount", "driver="+v.driver+",name="+v.name+",target="+v.path)
	}
	return args
}

// args is the command line of a verb for the container.
func (w *world) args(verb string) []string {
	args := []string{verb, "-o", "json"}
	if verb != "recover" {
		args = append(args, "--container", "c")
	}
	switch verb {
	case "prepare":
		args = append(args, w.mountFlags(w.vols)...)
	case "isolate":
		args = append(args, "--pid", w.c.PIDString())
	case "attach":
		args = append(append(args, "--pid", w.c.PIDString()), w.mountFlags(w.vols)...)
	case "detach":
		args = append(args, "--all")
	case "cleanup":
		args = append(args, "--force") // the container lives
	}
	return args
}

// do runs a verb undisturbed.
func (w *world) do(verb string) harness.Result {
	w.t.Helper()
	r := w.h.Policy(w.args(verb)...)
	if r.Exit != 0 {
		w.t.Errorf("%s: %v\n%s", verb, r, strings.Join(w.lines(), "\n"))
	}
	return r
}

// base brings the world from nothing to the state in which a verb is called.
func (w *world) base(verb string) {
	w.t.Helper()
	switch verb {
	case "isolate":
		w.do("prepare")
	case "detach":
		w.do("attach")
	case "cleanup":
		w.do("prepare")
		w.do("isolate")
	case "recover":
		w.startD()
		w.do("prepare")
		// The policy process was killed when the helper had attached the volumes and had not said so.
		w.tr.run(command{user: policyUser, args: w.args("isolate"), watch: helper, judge: func(c call) act {
			if c.nr == unix.SYS_WRITE && c.args[0] == 1 { // its reply
				return act{kill: policy}
			}
			return act{}
		}})
		w.quiet()
	}
}

// startD has a second container attach as many volumes, in its sandbox, and end.
func (w *world) startD() {
	w.t.Helper()
	w.endD()
	w.d = w.h.SharedRoot(harness.SharedRootOptions{ID: "d"})
	args := []string{"attach", "-o", "json", "--container", "d", "--directory", w.sandbox(), "--pid", w.d.PIDString()}
	for i, v := range w.vols {
		args = append(args, w.mountFlags([]volume{{v.driver, "d-" + v.name, fmt.Sprintf("in/%d", i)}})...)
	}
	w.h.Policy(args...).OK(w.t)
	w.d.Kill()
}

// sandbox is that of the second container.
func (w *world) sandbox() string { return filepath.Join(w.h.Sandboxes(), "d") }

func (w *world) endD() {
	if w.d != nil {
		w.d.Delete()
		w.d = nil
	}
}

// quiet waits until the plugin has answered all that it was asked: until no connection to it is left.
func (w *world) quiet() {
	w.t.Helper()
	for {
		connected := 0
		for line := range strings.Lines(w.h.ReadFile("/proc/net/unix")) {
			f := strings.Fields(line)
			if len(f) > 7 && f[7] == w.p.Socket && f[5] != "01" { // 01: listening
				connected++
			}
		}
		if connected == 0 {
			return
		}
		yield()
	}
}

// yield lets what is waited for run, on the processor that it shares with us.
func yield() {
	runtime.Gosched()
	unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}

// removeVolumes removes the local driver's volumes, so that each prepare creates them.
func (w *world) removeVolumes() {
	entries, err := os.ReadDir(w.h.Volumes())
	w.check(err)
	for _, e := range entries {
		w.check(os.RemoveAll(filepath.Join(w.h.Volumes(), e.Name())))
	}
}

func (w *world) check(err error) {
	if err != nil {
		w.t.Helper()
		w.t.Fatal(err)
	}
}

// made lists what is in the container's root filesystem where volumes are attached, as the host sees it: without what is mounted there.
func (w *world) made() (list []string) {
	for _, dir := range []string{w.c.Root, filepath.Join(w.c.Root, "tmp"), filepath.Join(w.c.Root, "srv"), w.sandbox()} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				list = append(list, "made "+path)
			}
			if err == nil && d.IsDir() && dir == w.c.Root && path != dir {
				return fs.SkipDir
			}
			return nil
		})
	}
	return list
}

// The records of the journal, as far as they are looked at.
type (
	reference struct{ Owner, Container string }
	hold      struct {
		ID, State, Mountpoint string
		Unsure                bool
		Refs                  []reference
	}
	volumeRecord struct {
		Driver, Name string
		Holds        []hold
	}
	entry struct {
		Driver, Name, Mountpoint, ID string
		ContainerPath                string `json:"container_path"`
		Pending                      bool
		Attached                     *struct {
			Target  string
			MountID uint64 `json:"mount_id"`
		}
	}
	containerRecord struct {
		Container, Phase string
		Process          struct {
			PID          int
			Start, Inode uint64
		}
		Volumes []entry
	}
)

// state is all that is on record, and all that is so.
type state struct {
	containers map[string]containerRecord
	volumes    []volumeRecord
	ledger     []ledgerMount
	mounts     []string            // in the container, beneath the places for volumes
	driver     map[string][]string // by volume: the ids by which the plugin holds it mounted
	onHost     []string            // volumes that the plugin has mounted
	made       []string            // that was not there at the beginning
	strange    []string            // files that no record is
}

type ledgerMount struct {
	container, target, source, mode string // as it was asked for
	path, id                        string
}

func (w *world) state() *state {
	w.t.Helper()
	s := &state{containers: map[string]containerRecord{}}
	records := func(dir string, read func(name string, payload []byte)) {
		entries, err := os.ReadDir(dir)
		w.check(err)
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), ".rec")
			if !ours(e.Name()) {
				continue
			}
			if !ok || strings.HasPrefix(name, ".") {
				read("", []byte(filepath.Join(dir, e.Name())))
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			w.check(err)
			_, payload, _ := bytes.Cut(data, []byte("\n"))
			read(name, payload)
		}
	}
	strange := func(file []byte) { s.strange = append(s.strange, string(file)) }
	records(filepath.Join(w.h.Journal(), "containers"), func(name string, payload []byte) {
		var c containerRecord
		if name == "" {
			strange(payload)
		} else if w.check(json.Unmarshal(payload, &c)); name != "default@"+c.Container {
			strange([]byte(name))
		} else {
			s.containers[c.Container] = c
		}
	})
	records(filepath.Join(w.h.Journal(), "volumes"), func(name string, payload []byte) {
		var v volumeRecord
		if name == "" {
			strange(payload)
		} else {
			w.check(json.Unmarshal(payload, &v))
			s.volumes = append(s.volumes, v)
		}
	})
	index := map[string]string{}
	records(w.h.Ledger(), func(name string, payload []byte) {
		if name != "" {
			var m ledgerMount
			for field := range strings.SplitSeq(string(payload), "\x00") {
				key, value, _ := strings.Cut(field, "=")
				switch key {
				case "mount":
					m = ledgerMount{target: value}
				case "container":
					m.container = value
				case "source":
					m.source = value
				case "mode":
					m.mode = value
				case "id":
					m.id = value
				case "path":
					m.path = value
					s.ledger = append(s.ledger, m)
				}
			}
			return
		}
		if ns, err := os.Readlink(string(payload)); err == nil {
			index[filepath.Base(string(payload))] = ns
			return
		}
		strange(payload)
	})
	for name, ns := range index { // of a container, or of a folder that was made
		id, container := name[strings.LastIndexByte(name, '+')+1:], strings.HasPrefix(name, "by+")
		if !slices.ContainsFunc(s.ledger, func(m ledgerMount) bool { return !container || m.container == id }) {
			s.strange = append(s.strange, "index entry "+name+" -> "+ns)
		}
	}
	for _, line := range strings.Split(w.h.ReadFile("/proc/"+w.c.PIDString()+"/mountinfo"), "\n") {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], "/srv") || strings.HasPrefix(f[4], "/tmp")) {
			s.mounts = append(s.mounts, f[4])
		}
	}
	w.mu.Lock()
	s.strange = append(s.strange, w.strange...)
	w.mu.Unlock()
	s.driver = w.p.Holders()
	for _, line := range w.h.Mountinfo() {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, w.p.Root+"/mnt/") {
			s.onHost = append(s.onHost, filepath.Base(at))
		}
	}
	for _, m := range w.made() {
		if !slices.Contains(w.root, m) {
			s.made = append(s.made, m)
		}
	}
	return s
}

// lines is the state in words, without what differs from run to run.
func (w *world) lines() []string { return w.state().lines() }

func (s *state) lines() (list []string) {
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for _, c := range s.containers {
		add("container %s is %s", c.Container, c.Phase)
		for _, e := range c.Volumes {
			add("container %s has %s/%s at %s, attached %v, pending %v", c.Container, e.Driver, e.Name, e.ContainerPath, e.Attached != nil, e.Pending)
		}
	}
	for _, v := range s.volumes {
		for _, h := range v.Holds {
			refs := ""
			for _, r := range h.Refs {
				refs += " " + r.Container
			}
			add("volume %s/%s is %s, unsure %v, for%s", v.Driver, v.Name, h.State, h.Unsure, refs)
		}
	}
	for _, m := range s.ledger {
		add("ledger has %s of %s", m.path, m.container)
	}
	for _, m := range s.mounts {
		add("mounted in c: %s", m)
	}
	for name, ids := range s.driver {
		add("driver holds %s by %d", name, len(ids))
	}
	for _, name := range s.onHost {
		add("mounted on the host: %s", name)
	}
	list = append(list, s.made...)
	list = append(list, s.strange...)
	slices.Sort(list)
	return list
}

// disagreements says where journal, ledger, kernel and driver do not agree, and what is not as it may stay after a recover.
func (w *world) disagreements() (list []string) {
	w.t.Helper()
	s := w.state()
	bad := func(cond bool, format string, args ...any) {
		if cond {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	for _, x := range s.strange {
		bad(true, "left over: %s", x)
	}
	held := map[string][]hold{} // by volume
	for _, v := range s.volumes {
		bad(len(v.Holds) != 1, "volume %s has %d holds", v.Name, len(v.Holds))
		for _, h := range v.Holds {
			held[v.Name] = append(held[v.Name], h)
			bad(h.State != "mounted" || h.Unsure, "volume %s is %s, unsure %v", v.Name, h.State, h.Unsure)
			bad(len(h.Refs) == 0, "volume %s is on record and nobody refers to it", v.Name)
			for _, r := range h.Refs {
				bad(!slices.ContainsFunc(s.containers[r.Container].Volumes, func(e entry) bool { return e.Name == v.Name }), "volume %s refers to %s, which does not have it", v.Name, r.Container)
			}
			bad(v.Driver == "plugin" && !slices.Equal(s.driver[v.Name], []string{h.ID}), "volume %s is held with the id %s, but the driver has %v", v.Name, h.ID, s.driver[v.Name])
		}
	}
	for name := range s.driver {
		bad(held[name] == nil, "the driver has %s mounted, and no record says so", name)
		bad(!slices.Contains(s.onHost, name), "the driver has %s mounted, and it is not", name)
	}
	for _, name := range s.onHost {
		bad(s.driver[name] == nil, "%s is mounted on the host, and the driver was told to let it go", name)
	}
	attached := 0
	for _, c := range s.containers {
		bad(c.Container != "c", "container %s is on record", c.Container)
		bad(c.Phase != "prepared" && c.Phase != "isolated", "container %s is %s", c.Container, c.Phase)
		for _, e := range c.Volumes {
			bad(e.Pending, "volume %s of %s is pending", e.Name, c.Container)
			bad(len(held[e.Name]) == 0, "container %s has %s, and the volume's record does not say so", c.Container, e.Name)
			bad((e.Attached != nil) != (c.Phase == "isolated"), "container %s is %s, %s attached: %v", c.Container, c.Phase, e.Name, e.Attached != nil)
			if e.Attached == nil {
				continue
			}
			attached++
			bad(!slices.Contains(s.mounts, e.Attached.Target), "container %s has %s attached at %s, where nothing is mounted", c.Container, e.Name, e.Attached.Target)
			bad(!slices.ContainsFunc(s.ledger, func(m ledgerMount) bool { return m.id == fmt.Sprint(e.Attached.MountID) && m.path == e.Attached.Target }),
				"container %s has %s attached, and the ledger does not", c.Container, e.Name)
		}
	}
	bad(len(s.mounts) != attached || len(s.ledger) != attached, "%d are attached by the journal, %d mounted, %d in the ledger", attached, len(s.mounts), len(s.ledger))
	for _, m := range s.made {
		path := strings.TrimPrefix(m, "made "+w.c.Root)
		bad(!slices.ContainsFunc(s.mounts, func(at string) bool { return at == path || strings.HasPrefix(at, path+"/") }), "%s, and nothing is attached there", m)
	}
	return list
}
