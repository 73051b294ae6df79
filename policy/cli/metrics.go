package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// A meter counts what a watch does and writes it to a file, in Prometheus' text format. It is written by hand: the usual library costs each start of the program
// more than a millisecond (docs/adr/0008-watch.md).
type meter struct {
	file, owner string

	mu       sync.Mutex
	watch    lifecycle.WatchState
	calls    map[call]*durations
	failures map[failure]int
	changed  chan struct{} // holds a value when there is something to write
}

// A call is one of a driver or, where that is "", of the helper.
type call struct{ driver, name string }

type failure struct {
	call
	code string
}

// buckets are upper bounds in seconds, from the helper's milliseconds to a driver's minutes.
var buckets = []float64{0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600}

type durations struct {
	upTo  []int // how many took up to the bucket's bound
	count int
	sum   float64
}

func newMeter(owner string) *meter {
	return &meter{owner: owner, calls: map[call]*durations{}, failures: map[failure]int{}, changed: make(chan struct{}, 1)}
}

// call counts a call of a driver or the helper that has ended.
func (m *meter) call(driver, name string, took time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := call{driver, name}
	d := m.calls[c]
	if d == nil {
		d = &durations{upTo: make([]int, len(buckets))}
		m.calls[c] = d
	}
	d.count++
	d.sum += took.Seconds()
	for i, b := range buckets {
		if took.Seconds() <= b {
			d.upTo[i]++
		}
	}
	if err != nil {
		m.failures[failure{c, string(wire.AsError(err).Code)}]++
	}
}

// watching takes over what the watch says of itself.
func (m *meter) watching(s lifecycle.WatchState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watch = s
	select {
	case m.changed <- struct{}{}:
	default: // it is to be written already
	}
}

// keep writes the file whenever something has changed, at most once a second, since each time all records are read; and a last time when ctx ends.
func (m *meter) keep(ctx context.Context, s *session) {
	failed := false
	for {
		select {
		case <-m.changed:
		case <-ctx.Done():
		}
		err := m.write(s.Isolator)
		if err != nil && !failed {
			s.log.Error("the metrics stand still", "error", err)
		}
		failed = err != nil
		if ctx.Err() != nil {
			return
		}
		select {
		case <-time.After(time.Second): // what changes meanwhile is written along
		case <-ctx.Done():
		}
	}
}

// write writes the file: whole, by another name, and then in place of the old one.
func (m *meter) write(iso *lifecycle.Isolator) error {
	status, err := iso.Status(context.Background(), lifecycle.StatusQuery{Owner: m.owner})
	if err != nil {
		return err
	}
	temporary := m.file + ".tmp"
	err = os.WriteFile(temporary, m.text(status), 0o644)
	if err == nil {
		err = os.Rename(temporary, m.file)
	}
	if err != nil {
		os.Remove(temporary)
		return wire.Errorf(wire.System, "metrics", "cannot write the metrics to %s: %v", m.file, err).
			WithHint("the folder must be one that the policy user may write to")
	}
	return nil
}

// text is the file's content; docs/watch.md is its table.
func (m *meter) text(status *lifecycle.Status) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	phases := map[string]int{"preparing": 0, "prepared": 0, "isolating": 0, "isolated": 0, "bound": 0, "cleaning": 0}
	mounts, pending, oldest := 0, 0, time.Time{}
	for _, c := range status.Containers {
		phases[c.Phase]++
		mounts += len(c.Mounts)
	}
	for _, v := range status.Volumes {
		if v.Pending != nil {
			pending++
			if oldest.IsZero() || v.Pending.Since.Before(oldest) {
				oldest = v.Pending.Since
			}
		}
	}
	orphans, w := 0, &m.watch
	if w.Last != nil {
		orphans = len(w.Last.Orphans)
	}

	var t exposition
	t.family("info", "gauge", "The running version, and whose containers are counted.")
	t.sample(1, "version", conf.Version(), "owner", m.owner)
	t.family("containers", "gauge", "Containers that have a record, by how far they came.")
	for _, phase := range slices.Sorted(maps.Keys(phases)) {
		t.sample(float64(phases[phase]), "phase", phase)
	}
	t.one("containers_watched", "gauge", "Containers whose end is waited for.", float64(w.Containers))
	t.one("orphans", "gauge", "Containers without a record that the last recover found attached.", float64(orphans))
	t.one("mounts", "gauge", "Mounts attached to containers, as the records have it.", float64(mounts))
	t.one("volumes", "gauge", "Volumes in use or pending.", float64(len(status.Volumes)))
	t.one("volumes_pending", "gauge", "Volumes that are still to be unmounted.", float64(pending))
	t.one("pending_oldest_timestamp_seconds", "gauge", "Since when the oldest of them is; 0 if there is none.", seconds(oldest))
	t.one("records_untrusted", "gauge", "Records that cannot be trusted or read.", float64(len(status.Warnings)))
	t.one("records_moved_aside_total", "counter", "Records that could not be trusted and were moved aside.", float64(w.Corrupt))
	t.family("cleanups_total", "counter", "Cleanups after a container's end, by their result: ok or the code of the error.")
	t.results(w.Cleaned)
	t.family("recovers_total", "counter", "Recovers, by their result: ok or the code of the error.")
	t.results(w.Recovers)
	t.one("last_recover_timestamp_seconds", "gauge", "When the last recover began; 0 before the first has ended.", seconds(w.LastBegan))
	t.one("last_recover_success_timestamp_seconds", "gauge", "When the last recover without error began; 0 if there was none.", seconds(w.LastGood))
	t.one("last_recover_duration_seconds", "gauge", "How long the last recover took.", w.LastTook.Seconds())
	for _, of := range []struct {
		helper     bool
		name, what string
	}{{false, "driver_call", "Calls of drivers"}, {true, "helper_call", "Calls of the helper"}} {
		calls := slices.SortedFunc(maps.Keys(m.calls), func(a, b call) int { return cmp.Or(cmp.Compare(a.driver, b.driver), cmp.Compare(a.name, b.name)) })
		calls = slices.DeleteFunc(calls, func(c call) bool { return (c.driver == "") != of.helper })
		t.family(of.name+"_duration_seconds", "histogram", of.what+" by the watch, by how long they took.")
		for _, c := range calls {
			d := m.calls[c]
			for i, b := range buckets {
				t.suffixed("_bucket", float64(d.upTo[i]), append(c.labels(), "le", fmt.Sprint(b))...)
			}
			t.suffixed("_bucket", float64(d.count), append(c.labels(), "le", "+Inf")...)
			t.suffixed("_sum", d.sum, c.labels()...)
			t.suffixed("_count", float64(d.count), c.labels()...)
		}
		failures := slices.SortedFunc(maps.Keys(m.failures), func(a, b failure) int {
			return cmp.Or(cmp.Compare(a.driver, b.driver), cmp.Compare(a.name, b.name), cmp.Compare(a.code, b.code))
		})
		t.family(of.name+"_failures_total", "counter", of.what+" by the watch that failed, by the code of the error.")
		for _, f := range failures {
			if (f.driver == "") == of.helper {
				t.sample(float64(m.failures[f]), append(f.labels(), "code", f.code)...)
			}
		}
	}
	return t.Bytes()
}

func (c call) labels() []string {
	if c.driver == "" {
		return []string{"op", c.name}
	}
	return []string{"driver", c.driver, "call", c.name}
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// exposition is Prometheus' text format, version 0.0.4.
type exposition struct {
	bytes.Buffer
	name string
}

func (t *exposition) family(name, kind, help string) {
	t.name = "bindgate_" + name
	fmt.Fprintf(t, "# HELP %s %s\n# TYPE %s %s\n", t.name, help, t.name, kind)
}

func (t *exposition) one(name, kind, help string, value float64) {
	t.family(name, kind, help)
	t.sample(value)
}

// results has a sample for each result; the good one is always there, so that a rate can be made of it.
func (t *exposition) results(counts map[string]int) {
	t.sample(float64(counts["ok"]), "result", "ok")
	for _, r := range slices.Sorted(maps.Keys(counts)) {
		if r != "ok" {
			t.sample(float64(counts[r]), "result", r)
		}
	}
}

func (t *exposition) sample(value float64, labels ...string) { t.suffixed("", value, labels...) }

var escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (t *exposition) suffixed(suffix string, value float64, labels ...string) {
	t.WriteString(t.name + suffix)
	for i := 0; i < len(labels); i += 2 {
		sep := ","
		if i == 0 {
			sep = "{"
		}
		fmt.Fprintf(t, `%s%s="%s"`, sep, labels[i], escapeLabel.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		t.WriteString("}")
	}
	fmt.Fprintf(t, " %v\n", value)
}
