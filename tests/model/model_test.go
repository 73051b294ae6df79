// Package model lets random sequences of verbs run against the installed programs and against a model of them in a few lines, and compares after each step what was answered, what status says, what the
// kernel has mounted and what the drivers hold. A sequence that differs is made as short as it goes and printed.
//
// MODELCHECKS says how many sequences (default 8), MODELSEED which (default always the same ones): a failure comes back with its seed.
package model

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/tests/plugins/watched"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestModel(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		seed := cmp.Or(os.Getenv("MODELSEED"), "1")
		for name, value := range map[string]string{"seed": seed, "checks": cmp.Or(os.Getenv("MODELCHECKS"), "8"), "steps": "50", "nofailfile": "true", "shrinktime": "60s"} {
			if err := flag.Set("rapid."+name, value); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("MODELSEED=%s", seed)
		w := newWorld(t, h)
		defer func() {
			if t.Failed() { // the shortest that was found is above; if it did not go wrong again when it was tried, this is what there is
				t.Logf("the first sequence that failed: %s", w.first)
			}
		}()
		rapid.Check(t, func(t *rapid.T) {
			w.reset()
			m := &model{T: t, w: w, containers: map[string]*container{}, volumes: map[string]*volume{}, down: map[string]bool{}}
			t.Repeat(map[string]func(*rapid.T){
				"prepare": m.prepare, "isolate": m.isolate, "attach": m.attach, "detach": m.detach, "cleanup": m.cleanup, "recover": m.recover, "volume": m.volume,
				"die": m.die, "driver": m.driver, "": m.compare,
			})
			m.end()
		})
		t.Logf("%d steps", w.steps)
	})
}

// The world.

// ids are the containers, names the volumes. The container last in the list is nested in the first.
var (
	ids   = []string{"a", "b", "nested"}
	names = []string{"p/v", "q/v", "local/l"}
)

const parent = "a"

// A world is what the programs work with.
type world struct {
	t       *testing.T
	h       *harness.Host
	plugins map[string]*watched.Plugin
	refuse  map[string]bool               // "Mount p/v": calls that the driver refuses
	procs   map[string]*harness.Container // the living process of each container
	started int
	steps   int
	first   string // failure
}

func newWorld(t *testing.T, h *harness.Host) *world {
	h.AllowAll()
	w := &world{t: t, h: h, plugins: map[string]*watched.Plugin{}, refuse: map[string]bool{}, procs: map[string]*harness.Container{}}
	for _, n := range names {
		h.Mkdir(w.path(n), 0o755)
	}
	for _, d := range []string{"p", "q"} {
		p := &watched.Plugin{Socket: filepath.Join(h.Sockets(), d+".sock"), Root: filepath.Join(h.Sources(), d)}
		p.Before = func(c watched.Call) error {
			if w.refuse[c.Call+" "+d+"/"+c.Name] {
				return errors.New("told to fail")
			}
			return nil
		}
		if err := p.Start(harness.PolicyGID); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop() })
		w.plugins[d] = p
	}
	return w
}

// path is where a volume is attached. The containers share the host's root, so it is there already.
func (w *world) path(name string) string {
	return filepath.Join(w.h.HostPaths(), strings.ReplaceAll(name, "/", "-"))
}

// reset makes the world new, whatever a failed sequence left.
func (w *world) reset() {
	for id := range w.procs {
		w.kill(id)
	}
	clear(w.refuse)
	for _, p := range w.plugins {
		p.Stop()
		if err := errors.Join(p.Set(nil), p.Start(harness.PolicyGID)); err != nil {
			w.t.Fatal(err)
		}
		os.RemoveAll(filepath.Join(p.Root, "data"))
		os.MkdirAll(filepath.Join(p.Root, "data"), 0o755)
	}
	for _, dir := range []string{w.h.Journal(), w.h.Ledger(), w.h.Volumes()} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// process is the living process of a container, started if need be.
func (w *world) process(id string) *harness.Container {
	if w.procs[id] == nil {
		w.started++
		w.procs[id] = w.h.SharedRoot(harness.SharedRootOptions{ID: fmt.Sprintf("%s-%d", id, w.started)})
	}
	return w.procs[id]
}

func (w *world) kill(id string) {
	w.procs[id].Delete()
	delete(w.procs, id)
}

// mounted are the volumes in the mount namespace of a process, by what is mounted there.
func (w *world) mounted(pid int) (list []string) {
	for line := range strings.Lines(w.h.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))) {
		if f := strings.Fields(line); filepath.Dir(f[4]) == w.h.HostPaths() {
			_, v, ok := strings.Cut(f[3], "/sources/")
			v = strings.Replace(v, "/data/", "/", 1)
			if !ok {
				v = "local/" + filepath.Base(f[3])
			}
			list = append(list, v)
		}
	}
	slices.Sort(list)
	return list
}

// The model.

type container struct {
	phase    string
	pid      int    // 0: none yet
	parent   string //
	byAgent  bool
	implicit bool
	volumes  []*entry
}

type entry struct {
	name     string
	attached bool
}

func (c *container) find(name string) *entry {
	for _, e := range c.volumes {
		if e.name == name {
			return e
		}
	}
	return nil
}

// A volume is one that the journal knows.
type volume struct {
	users   map[string]bool // containers, and "volume mount OWNER"
	mounted bool            // by the driver, for all that the journal knows
	lost    bool            // but the driver was restarted since
	pending bool
	owner   string // who has to see to it while it is pending
	leaked  int    // Mounts that a --forget left with the driver
	exists  bool
}

type model struct {
	*rapid.T
	w          *world
	containers map[string]*container
	volumes    map[string]*volume
	down       map[string]bool // drivers that do not listen
	log        []string
}

func (m *model) vol(name string) *volume {
	if m.volumes[name] == nil {
		m.volumes[name] = &volume{users: map[string]bool{}}
	}
	return m.volumes[name]
}

func driverOf(name string) string { d, _, _ := strings.Cut(name, "/"); return d }

func (m *model) alive(id string) bool {
	c := m.containers[id]
	return c != nil && c.pid != 0 && m.w.procs[id] != nil && m.w.procs[id].Pid() == c.pid
}

// run runs a command, which must exit with what the model expects.
func (m *model) run(want int, args ...string) { m.judge(want, m.exec(args...), args) }

func (m *model) exec(args ...string) harness.Result {
	m.w.steps++
	r := m.w.h.Policy(append(args, "-o", "json")...)
	m.log = append(m.log, fmt.Sprintf("bindgate %s: %d", strings.Join(args, " "), r.Exit))
	return r
}

func (m *model) judge(want int, r harness.Result, args []string) {
	if r.Exit != want {
		m.note("%v", r)
		m.fail("%s: want exit %d, have %d", args[0], want, r.Exit)
	}
}

func (m *model) note(format string, args ...any) { m.log = append(m.log, fmt.Sprintf(format, args...)) }

// fail fails with a message that is the same whenever this goes wrong, so that a shorter sequence is known to go wrong in the same way.
func (m *model) fail(format string, args ...any) {
	m.Logf("the sequence:\n  %s", strings.Join(m.log, "\n  "))
	if m.w.first == "" {
		m.w.first = fmt.Sprintf(format, args...) + "\n  " + strings.Join(m.log, "\n  ")
	}
	m.Fatalf(format, args...)
}

// there says whether the driver has a volume mounted for us.
func (v *volume) there() bool { return v.mounted && !v.lost }

// acquire is a new user of a volume. It returns the exit status of a failure.
func (m *model) acquire(name, user, owner string) int {
	v, d := m.vol(name), driverOf(name)
	switch {
	case v.there():
	case m.down[d]:
		return 69
	case m.w.refuse["Mount "+name]:
		v.exists = true
		return 69
	}
	v.mounted, v.lost, v.pending, v.exists = true, false, false, true
	v.users[user], v.owner = true, owner
	return 0
}

// release takes a user away, and lets the volume go with the last. It returns false if that is pending.
func (m *model) release(name, user, owner string) bool {
	v := m.vol(name)
	delete(v.users, user)
	if len(v.users) > 0 {
		return true
	}
	v.owner = owner
	return m.unmount(name)
}

// unmount lets a volume go that nobody uses.
func (m *model) unmount(name string) bool {
	v, d := m.vol(name), driverOf(name)
	switch {
	case !v.mounted:
		return true
	case m.down[d], m.w.refuse["Unmount "+name] && v.there():
		v.pending = true
		return false
	}
	v.mounted, v.lost, v.pending, v.owner = false, false, false, ""
	return true
}

// clean cleans a container up. It returns false if something is pending.
func (m *model) clean(id string, forget bool) bool {
	c := m.containers[id]
	c.phase = "cleaning"
	var left []*entry
	for _, e := range c.volumes {
		e.attached = false
		if forget {
			v := m.vol(e.name)
			if delete(v.users, id); len(v.users) == 0 && v.mounted {
				if driverOf(e.name) != "local" && v.there() {
					v.leaked++
				}
				v.mounted, v.lost, v.pending = false, false, false
			}
		} else if !m.release(e.name, id, "default") {
			left = append(left, e)
		}
	}
	if c.volumes = left; len(left) > 0 {
		return false
	}
	delete(m.containers, id)
	return true
}

// nested says whether a container must wait for the one that is nested in it.
func (m *model) nested(id string) bool {
	c := m.containers["nested"]
	return id == parent && c != nil && c.parent == parent
}

// stale says whether a record is that of a container that cannot come back.
func (m *model) stale(id string) bool {
	c := m.containers[id]
	if c.pid != 0 {
		return !m.alive(id)
	}
	return c.phase == "cleaning"
}

// again has what a driver lost mounted again, before it is attached. It returns the exit status of a failure.
func (m *model) again(id string) int {
	for _, e := range m.containers[id].volumes {
		if exit := m.acquire(e.name, id, "default"); exit != 0 && !m.vol(e.name).there() {
			return exit
		}
	}
	return 0
}

// replace is what prepare and attach do first. It returns the exit status of a refusal.
func (m *model) replace(id string) int {
	if m.containers[id] != nil {
		if !m.stale(id) {
			return 65
		}
		if m.nested(id) {
			return 75
		}
		m.clean(id, false)
		delete(m.containers, id)
	}
	return 0
}

// some draws one or two volumes.
func (m *model) some() []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 2, rapid.ID).Draw(m.T, "volumes")
}

func (m *model) mounts(names []string) (args []string) {
	for _, n := range names {
		driver, name, _ := strings.Cut(n, "/")
		args = append(args, "--mount", fmt.Sprintf("driver=%s,name=%s,target=%s", driver, name, m.w.path(n)))
	}
	return args
}

func (m *model) prepare(t *rapid.T) {
	id, vols := rapid.SampledFrom(ids).Draw(t, "container"), m.some()
	c := &container{phase: "prepared", byAgent: rapid.IntRange(0, 4).Draw(t, "by agent") == 0}
	args := append([]string{"prepare", "--container", id}, m.mounts(vols)...)
	if c.byAgent {
		args = append(args, "--mounts-by", "agent")
	}
	if id == "nested" && rapid.Bool().Draw(t, "nested") {
		c.parent = parent
		args = append(args, "--parent", parent)
	}
	want := m.replace(id)
	if p := m.containers[parent]; want == 0 && c.parent != "" && (p == nil || p.phase == "cleaning") {
		want = 65
	}
	if want == 0 {
		want = m.acquireAll(id, c, vols)
	}
	if want == 0 {
		m.containers[id] = c
	}
	m.run(want, args...)
}

// acquireAll gives a container volumes, all or none.
func (m *model) acquireAll(id string, c *container, vols []string) (failed int) {
	var good []string
	for _, n := range vols {
		if exit := m.acquire(n, id, "default"); exit != 0 {
			failed = exit
		} else {
			good = append(good, n)
		}
	}
	for _, n := range good {
		if failed != 0 {
			m.release(n, id, "default")
		} else {
			c.volumes = append(c.volumes, &entry{name: n})
		}
	}
	return failed
}

// target draws the process that a command names: the container's, or one that has ended.
func (m *model) target(id string) (pid int, gone bool) {
	if rapid.IntRange(0, 9).Draw(m.T, "process") == 0 {
		p := m.w.h.SharedRoot(harness.SharedRootOptions{ID: "gone"})
		p.Delete()
		return p.Pid(), true
	}
	return m.w.process(id).Pid(), false
}

func (m *model) isolate(t *rapid.T) {
	id, verb := rapid.SampledFrom(ids).Draw(t, "container"), "isolate"
	c := m.containers[id]
	if rapid.IntRange(0, 3).Draw(t, "bind") == 0 {
		verb = "bind"
	}
	pid, gone := m.target(id)
	want := 0
	switch {
	case c == nil:
		want = 65
	case gone:
		want = 71
	case c.phase == "cleaning", c.pid != 0 && c.pid != pid:
		want = 65
	case c.byAgent && verb == "isolate", !c.byAgent && verb == "bind" && len(c.volumes) > 0:
		want = 65
	case c.phase == "prepared" && verb == "isolate" && m.again(id) != 0:
		want = 69
	case c.phase == "prepared":
		c.pid, c.phase = pid, map[string]string{"isolate": "isolated", "bind": "bound"}[verb]
		for _, e := range c.volumes {
			e.attached = verb == "isolate"
		}
	}
	m.run(want, verb, "--container", id, "--pid", strconv.Itoa(pid))
}

func (m *model) attach(t *rapid.T) {
	id, vols := rapid.SampledFrom(ids).Draw(t, "container"), m.some()
	pid, gone := m.target(id)
	c, want, fresh := m.containers[id], 0, false
	switch {
	case gone:
		want = 71
	case c == nil || m.stale(id):
		want = m.replace(id)
		c, fresh = &container{phase: "isolated", pid: pid, implicit: true}, true
	case c.pid != pid, c.phase == "cleaning", slices.ContainsFunc(vols, func(n string) bool { return c.find(n) != nil }):
		want = 65
	}
	if want == 0 {
		was := len(c.volumes)
		want = m.acquireAll(id, c, vols)
		for _, e := range c.volumes[was:] {
			e.attached = true
		}
		if fresh && want == 0 {
			m.containers[id] = c
		} else if c.implicit && len(c.volumes) == 0 {
			delete(m.containers, id)
		}
	}
	m.run(want, append([]string{"attach", "--container", id, "--pid", strconv.Itoa(pid)}, m.mounts(vols)...)...)
}

func (m *model) detach(t *rapid.T) {
	id := rapid.SampledFrom(ids).Draw(t, "container")
	name := rapid.SampledFrom(append([]string{"all"}, names...)).Draw(t, "volume")
	args := []string{"detach", "--container", id, "--all"}
	if name != "all" {
		driver, n, _ := strings.Cut(name, "/")
		args = []string{"detach", "--container", id, "--driver", driver, "--name", n}
	}
	c, want := m.containers[id], 0
	if c == nil || name != "all" && c.find(name) == nil {
		if name != "all" {
			want = 65
		}
		m.run(want, args...)
		return
	}
	c.volumes = slices.DeleteFunc(c.volumes, func(e *entry) bool {
		if name != "all" && e.name != name {
			return false
		}
		if !m.release(e.name, id, "default") {
			want = 75
		}
		return true
	})
	if c.implicit && len(c.volumes) == 0 && !m.nested(id) {
		delete(m.containers, id)
	}
	m.run(want, args...)
}

func (m *model) cleanup(t *rapid.T) {
	id := rapid.SampledFrom(ids).Draw(t, "container")
	force, forget := rapid.IntRange(0, 3).Draw(t, "force") == 0, rapid.IntRange(0, 7).Draw(t, "forget") == 0
	args := []string{"cleanup", "--container", id}
	if force {
		args = append(args, "--force")
	}
	if forget {
		args = append(args, "--forget")
	}
	want := 0
	switch {
	case m.containers[id] == nil:
	case m.alive(id) && !force, m.nested(id), !m.clean(id, forget):
		want = 75
	}
	m.run(want, args...)
}

func (m *model) recover(t *rapid.T) {
	args, known := []string{"recover"}, []string(nil)
	hasKnown, force := rapid.IntRange(0, 2).Draw(t, "known") == 0, rapid.IntRange(0, 3).Draw(t, "force") == 0
	if hasKnown {
		known = rapid.SliceOfDistinct(rapid.SampledFrom(ids), rapid.ID).Draw(t, "which")
		args = append(args, "--known="+strings.Join(known, ","))
	}
	if force {
		args = append(args, "--force")
	}
	m.recovered(hasKnown, force, known, args)
}

func (m *model) recovered(hasKnown, force bool, known, args []string) {
	r, want := m.exec(args...), 0
	// The nested one is first. Those side by side are cleaned up at the same time: which of two that share a volume is the last, and has it pending, is not said.
	order := slices.SortedFunc(slices.Values(ids), func(x, y string) int {
		return cmp.Or(-cmp.Compare(m.depth(x), m.depth(y)), cmp.Compare(m.left(x), m.left(y)), cmp.Compare(m.tried(x), m.tried(y)))
	})
	for _, id := range order {
		c := m.containers[id]
		if c == nil {
			continue
		}
		waits := c.pid == 0
		switch {
		case c.phase == "cleaning":
		case slices.Contains(known, id):
			continue
		case m.alive(id) && (!hasKnown || !force), waits && !hasKnown:
			continue
		}
		if m.nested(id) || !m.clean(id, false) {
			want = 75
		}
	}
	for _, n := range names {
		if v := m.vol(n); v.pending && v.owner == "default" && !m.unmount(n) {
			want = 75
		}
	}
	m.judge(want, r, args)
}

func (m *model) depth(id string) int {
	if c := m.containers[id]; c != nil && c.parent != "" {
		return 1
	}
	return 0
}

// tried is 1 for a container of which only what is pending is left.
func (m *model) tried(id string) int {
	if c := m.containers[id]; c != nil && c.phase == "cleaning" {
		return 1
	}
	return 0
}

// left is 1 for a container that has a record still.
func (m *model) left(id string) int {
	if _, err := os.Stat(filepath.Join(m.w.h.Journal(), "containers", "default@"+id+".rec")); err != nil {
		return 0
	}
	return 1
}

func (m *model) volume(t *rapid.T) {
	name := rapid.SampledFrom(names).Draw(t, "volume")
	verb := rapid.SampledFrom([]string{"mount", "unmount", "rm", "dvdcli mount", "dvdcli unmount"}).Draw(t, "verb")
	driver, n, _ := strings.Cut(name, "/")
	v, want := m.vol(name), 0
	owner := "default"
	if strings.HasPrefix(verb, "dvdcli") {
		owner = "dvdcli"
	}
	user := "volume mount " + owner
	switch {
	case strings.HasSuffix(verb, "unmount"):
		if mine := v.users[user] || v.pending && v.owner == owner; !mine {
			want = 65
		} else if v.users[user] && !m.release(name, user, owner) || !v.users[user] && v.pending && v.owner == owner && !m.unmount(name) {
			want = 75
		}
	case strings.HasSuffix(verb, "mount"):
		want = m.acquire(name, user, owner)
	case len(v.users) > 0:
		want = 75
	default:
		switch gone := m.unmount(name); {
		case !gone:
			want = 75
		case m.down[driver], !v.exists:
			want = 69
		case v.leaked > 0:
			want = 69 // the driver says that it is mounted
		default:
			v.exists = false
		}
	}
	if owner == "default" {
		m.run(want, "volume", verb, "--driver", driver, n)
		return
	}
	m.w.steps++
	r := m.w.h.Do(m.w.h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, m.w.h.Path("prefix/bin/dvdcli"), strings.Fields(verb)[1], "--volumedriver="+driver, "--volumename="+n))
	m.note("%s %s: %d", verb, name, r.Exit)
	if want == 65 { // nothing to do
		want = 0
	}
	if r.Exit != min(want, 1) {
		m.note("%v", r)
		m.fail("%s: want exit %d, have %d", verb, min(want, 1), r.Exit)
	}
}

func (m *model) die(t *rapid.T) {
	id := rapid.SampledFrom(ids).Draw(t, "container")
	if m.w.procs[id] == nil {
		t.Skip()
	}
	m.w.kill(id)
	m.note("the process of %s ends", id)
	if c := m.containers[id]; c != nil {
		for _, e := range c.volumes {
			e.attached = e.attached && c.pid != 0 // its record says so still
		}
	}
}

// driver makes a driver refuse a call, or take it again, or end, or start again.
func (m *model) driver(t *rapid.T) {
	d := rapid.SampledFrom([]string{"p", "q"}).Draw(t, "driver")
	p := m.w.plugins[d]
	switch what := rapid.SampledFrom([]string{"down", "Mount", "Unmount", "restart"}).Draw(t, "what"); {
	case m.down[d]:
		if err := p.Start(harness.PolicyGID); err != nil {
			t.Fatal(err)
		}
		m.down[d] = false
		m.note("driver %s is there again", d)
	case what == "down":
		p.Stop()
		m.down[d] = true
		m.note("driver %s ends", d)
	case what == "restart": // without a memory, and with its mounts gone
		for _, n := range names {
			if driverOf(n) == d {
				if err := p.Lose(filepath.Base(n)); err != nil {
					t.Fatal(err)
				}
				v := m.vol(n)
				v.leaked, v.lost = 0, v.mounted
			}
		}
		m.note("driver %s is restarted, and has lost its mounts", d)
	default:
		name := rapid.SampledFrom(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return driverOf(n) != d })).Draw(t, "volume")
		m.w.refuse[what+" "+name] = !m.w.refuse[what+" "+name]
		m.note("driver refuses %s %s: %v", what, name, m.w.refuse[what+" "+name])
	}
}

// compare compares what there is with what the model says.
func (m *model) compare(*rapid.T) {
	var d struct {
		Containers []struct {
			Container, Phase string
			PID              int
			Alive            bool
			Volumes          []struct{ Driver, Name string }
			Mounts           []struct{ Driver, Name string }
		}
		Volumes []struct {
			Driver, Name string
			Containers   []string
			Mounted      bool
			Pending      any
		}
		Warnings []string
	}
	r := m.w.h.Policy("status", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil || r.Exit != 0 || len(d.Warnings) > 0 {
		m.note("%v", r)
		m.fail("status fails")
	}
	var have, want []string
	for _, c := range d.Containers {
		var volumes, mounts []string
		for _, v := range c.Volumes {
			volumes = append(volumes, v.Driver+"/"+v.Name)
		}
		for _, v := range c.Mounts {
			mounts = append(mounts, v.Driver+"/"+v.Name)
		}
		have = append(have, describe(c.Container, c.Phase, c.PID, c.Alive, volumes, mounts))
	}
	for _, v := range d.Volumes {
		slices.Sort(v.Containers)
		have = append(have, fmt.Sprintf("volume %s/%s: used by %v, mounted %v, pending %v", v.Driver, v.Name, v.Containers, v.Mounted, v.Pending != nil))
	}
	for id, c := range m.containers {
		var volumes, mounts []string
		for _, e := range c.volumes {
			volumes = append(volumes, e.name)
			if e.attached {
				mounts = append(mounts, e.name)
			}
		}
		want = append(want, describe(id, c.phase, c.pid, m.alive(id), volumes, mounts))
		if p := m.w.procs[id]; m.alive(id) {
			slices.Sort(mounts)
			if there := m.w.mounted(p.Pid()); !slices.Equal(there, mounts) {
				m.note("in %s is mounted %v, want %v", id, there, mounts)
				m.fail("the kernel differs")
			}
		}
	}
	for name, v := range m.volumes {
		users := []string{}
		host := false
		for u := range v.users {
			if strings.Contains(u, " ") {
				host = true
			} else {
				users = append(users, u)
			}
		}
		slices.Sort(users)
		if len(v.users) > 0 || v.pending {
			want = append(want, fmt.Sprintf("volume %s: used by %v, mounted %v, pending %v", name, users, host, v.pending))
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if diff := harness.Diff(want, have); diff != "" {
		m.note("- want, + have:\n%s", diff)
		m.fail("status differs")
	}
	for _, name := range names {
		p, v := m.w.plugins[driverOf(name)], m.vol(name)
		if p == nil {
			continue
		}
		want := v.leaked
		if v.there() {
			want++
		}
		if ids := p.Holders()[filepath.Base(name)]; len(ids) != want {
			m.note("the driver has %s mounted by %d ids, want %d", name, len(ids), want)
			m.fail("the driver differs")
		}
	}
}

func describe(id, phase string, pid int, alive bool, volumes, mounts []string) string {
	slices.Sort(volumes)
	slices.Sort(mounts)
	return fmt.Sprintf("container %s: %s, process %d, alive %v, volumes %v, attached %v", id, phase, pid, alive, volumes, mounts)
}

// end ends everything: afterwards nothing is left.
func (m *model) end() {
	clear(m.w.refuse)
	for d := range m.down {
		if m.down[d] {
			if err := m.w.plugins[d].Start(harness.PolicyGID); err != nil {
				m.Fatal(err)
			}
			m.down[d] = false
		}
	}
	m.note("everything is ended, and the drivers refuse nothing")
	for id := range m.w.procs {
		m.w.kill(id)
	}
	for _, name := range names {
		for _, owner := range []string{"default", "dvdcli"} {
			if v := m.vol(name); v.users["volume mount "+owner] {
				m.release(name, "volume mount "+owner, owner)
				driver, n, _ := strings.Cut(name, "/")
				m.run(0, "volume", "unmount", "--owner", owner, "--driver", driver, n)
			}
		}
	}
	m.recovered(true, true, nil, []string{"recover", "--known=", "--force"})
	m.run(0, "recover", "--owner", "dvdcli")
	for _, v := range m.volumes {
		if v.owner == "dvdcli" {
			v.mounted, v.lost, v.pending = false, false, false
		}
	}
	m.compare(nil)
	if len(m.containers) > 0 {
		m.fail("left: %v", slices.Sorted(maps.Keys(m.containers)))
	}
	for _, dir := range []string{m.w.h.Journal(), m.w.h.Ledger()} {
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if n := d.Name(); err == nil && !d.IsDir() && n != ".lock" && !strings.HasPrefix(n, "refused+") {
				m.fail("left: %s", path)
			}
			return err
		})
	}
}
