// Package power loses the power at every moment of the real programs' work, and lets the real programs find what a disk may hold then.
//
// No kernel is at hand that can cut the writes of a filesystem (dm-flakey, dm-log-writes). So the system calls of bindgate and bindgate-helper on journal and ledger are recorded, and every state that
// POSIX allows after each of them is made: changes that were not synced with fsync(2) may have happened or not, in any order, and data that was not synced may be missing, torn or zero. In each of them the
// real readers must find every record old or new, and recover must come to terms with the driver, which may or may not have outlived the loss of power.
package power

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/tests/plugins/watched"
)

func TestMain(m *testing.M) { harness.Main(m) }

// A world is what the power is lost in.
type world struct {
	t      *testing.T
	h      *harness.Host
	plugin *watched.Plugin
	events []event
	boot   string // file with the boot id that the programs see
	silent bool
}

func newWorld(t *testing.T, h *harness.Host) *world {
	w := &world{t: t, h: h, plugin: &watched.Plugin{Socket: filepath.Join(h.Sockets(), "p.sock"), Root: filepath.Join(h.Sources(), "p")}, boot: h.Path("boot_id")}
	h.AllowAll()
	w.plugin.Before = func(c watched.Call) error {
		holds := maps.Clone(w.plugin.Holders())
		if c.Call == "Mount" {
			holds[c.Name] = append(slices.Clone(holds[c.Name]), c.ID)
		} else if c.Call == "Unmount" {
			delete(holds, c.Name)
		}
		w.driver(asked, holds)
		return nil
	}
	w.plugin.After = func(watched.Call) error {
		w.driver(answered, w.plugin.Holders())
		return nil
	}
	if err := w.plugin.Start(harness.PolicyGID); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.plugin.Stop() })
	h.WriteFile(w.boot, h.ReadFile("/proc/sys/kernel/random/boot_id"), 0o444)
	h.Mount(w.boot, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, "")
	for _, v := range []string{"a", "b", "c"} {
		h.Mkdir(filepath.Join(h.HostPaths(), v), 0o755)
	}
	return w
}

func (w *world) driver(kind string, holds map[string][]string) {
	if !w.silent {
		w.events = append(w.events, event{kind: kind, holds: holds}) // the traced program waits for it
	}
}

// work does all that bindgate does to records, and records it. One volume at a time has its driver asked, so that the order of the driver's calls and the records' writes is certain.
func (w *world) work() {
	tr := &tracer{t: w.t, h: w.h, folders: []string{w.h.Journal(), w.h.Ledger()}, record: func(e event) { w.events = append(w.events, e) }}
	c := w.h.SharedRoot(harness.SharedRootOptions{ID: "c"})
	mount := func(v string) string {
		return fmt.Sprintf("driver=p,name=%s,target=%s", v, filepath.Join(w.h.HostPaths(), v))
	}
	for _, args := range [][]string{
		{"prepare", "--container", "c", "--mount", mount("a")},
		{"isolate", "--container", "c", "--pid", c.PIDString()},
		{"attach", "--container", "c", "--pid", c.PIDString(), "--mount", mount("b")},
		{"volume", "mount", "--driver", "p", "b"},
		{"detach", "--container", "c", "--driver", "p", "--name", "a"},
		{"recover"},
		{"volume", "mount", "--driver", "p", "c"},
		{"cleanup", "--force", "--container", "c"},
		{"volume", "unmount", "--driver", "p", "c"},
		{"volume", "unmount", "--driver", "p", "b"},
	} {
		if exit := tr.run(args...); exit != 0 {
			w.t.Fatalf("%v: exit %d", args, exit)
		}
	}
	w.silent = true
	c.Delete()
	if len(w.events) < 50 {
		w.t.Fatalf("only %d events were recorded: %v", len(w.events), w.events)
	}
}

// replay goes through the events, and through what the power may leave after each of the files that keep names. What was seen before is left out. It ends when visit returns false.
func (w *world) replay(events []event, keep string, visit func(after int, s remains, holds []map[string][]string) bool) (tried int) {
	w.t.Helper()
	d := newDisk(w.h.Journal(), w.h.Ledger())
	seen := map[string]bool{}
	for i := range events {
		if d.apply(events[i]); d.wrong != nil {
			w.t.Fatal(d.wrong)
		}
		stop := false
		d.states(keep, func(s remains) {
			if key := s.key() + fmt.Sprint(d.holds); !stop && !seen[key] {
				seen[key] = true
				tried++
				stop = !visit(i, s, d.holds)
			}
		})
		if stop {
			break
		}
	}
	return tried
}

// untrusted reads every record of a folder as its owner does, and returns those that are neither old nor new.
func (w *world) untrusted(dir string) (bad []string) {
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		s, err := state.Open(path, "another-boot", false)
		if err != nil {
			w.t.Fatal(err)
		}
		defer s.Close()
		list, err := s.List()
		if err != nil {
			w.t.Fatal(err)
		}
		for _, name := range list {
			if _, err := s.Read(name); err != nil {
				bad = append(bad, err.Error())
			}
		}
		return nil
	})
	return bad
}

// records checks that each record of a folder is one that was written, whole.
func (w *world) records(events []event, dir string) (tried int, wrong []string) {
	tried = w.replay(events, dir, func(after int, s remains, _ []map[string][]string) bool {
		if err := s.put(0, dir); err != nil {
			w.t.Fatal(err)
		}
		for _, bad := range w.untrusted(dir) {
			wrong = append(wrong, fmt.Sprintf("after %d (%v): %s", after, events[after], bad))
		}
		return len(wrong) < 5
	})
	return tried, wrong
}

// recovered has the installed bindgate, after a reboot, recover from what is left of a folder, and checks that it and the driver agree. The driver holds what it held, or it has lost all; of the ledger it
// knows nothing.
func (w *world) recovered(events []event, dir string, uid int) (tried int, wrong []string) {
	tried = w.replay(events, dir, func(after int, s remains, holds []map[string][]string) bool {
		if dir == w.h.Ledger() {
			holds = nil
		}
		for _, h := range append(holds, nil) {
			if err := errors.Join(s.put(uid, w.h.Journal(), w.h.Ledger()), w.plugin.Set(h)); err != nil {
				w.t.Fatal(err)
			}
			for _, bad := range w.recover() {
				wrong = append(wrong, fmt.Sprintf("after %d (%v), the driver holding %v: %s\n\t%s", after, events[after], h, bad, strings.Join(s.lines(), "\n\t")))
			}
		}
		return len(wrong) < 5
	})
	return tried, wrong
}

func (w *world) recover() (wrong []string) {
	var d struct{ Kept, Corrupt, Errors, Pending []any }
	r := w.h.Policy("recover", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil || r.Exit != 0 || len(d.Kept)+len(d.Corrupt)+len(d.Errors)+len(d.Pending) > 0 {
		wrong = append(wrong, r.String())
	}
	var status struct {
		Volumes []struct{ Driver, Name string }
	}
	json.Unmarshal([]byte(w.h.Policy("status", "-o", "json").OK(w.t).Stdout), &status)
	for _, v := range status.Volumes { // what volume mount has mounted stays, also over a reboot, until volume unmount
		if r := w.h.Policy("volume", "unmount", "--driver", v.Driver, v.Name); r.Exit != 0 {
			wrong = append(wrong, r.String())
		}
	}
	if left := w.plugin.Holders(); len(left) > 0 {
		wrong = append(wrong, fmt.Sprintf("the driver holds %v still", left))
	}
	for _, dir := range []string{w.h.Journal(), w.h.Ledger()} {
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && e.Name() != ".lock" || e.Name() == "corrupt" {
				wrong = append(wrong, "left: "+path)
			}
			return err
		})
	}
	return wrong
}

func TestPowerLoss(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		w := newWorld(t, h)
		w.work()
		kinds := map[string]int{}
		for _, e := range w.events {
			kinds[e.kind]++
		}
		t.Logf("%d events: %v", len(w.events), kinds)

		for _, dir := range []string{h.Journal(), h.Ledger()} {
			tried, wrong := w.records(w.events, dir)
			t.Logf("%d states of %s read", tried, filepath.Base(dir))
			for _, x := range wrong {
				t.Error(x)
			}
		}
		// A program that does not sync what it writes is found out.
		for _, dir := range []string{h.Journal(), h.Ledger()} {
			if _, wrong := w.records(without(w.events, syncFile), dir); len(wrong) == 0 {
				t.Errorf("that the files of %s are not synced goes unnoticed", dir)
			}
		}

		w.reboot()
		for dir, uid := range map[string]int{h.Journal(): harness.PolicyUID, h.Ledger(): 0} {
			tried, wrong := w.recovered(w.events, dir, uid)
			t.Logf("recovered from %d states of %s", tried, filepath.Base(dir))
			for _, x := range wrong {
				t.Error(x)
			}
		}
		// Nor does one go unnoticed that does not sync the folder before it asks the driver.
		if _, wrong := w.recovered(without(w.events, syncDir), h.Journal(), harness.PolicyUID); len(wrong) == 0 {
			t.Error("that the journal's folders are not synced goes unnoticed")
		}
		if err := errors.Join(remains{}.put(0, h.Journal(), h.Ledger()), w.plugin.Set(nil)); err != nil {
			t.Error(err)
		}
	})
}

// without are the events as a program would make them that leaves out a kind of them.
func without(events []event, kind string) []event {
	return slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.kind == kind })
}

// reboot is another boot, as far as the programs can see.
func (w *world) reboot() {
	w.h.WriteFile(w.boot, "11111111-2222-3333-4444-555555555555\n", 0o444)
}
