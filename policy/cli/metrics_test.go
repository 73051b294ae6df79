package cli

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// metricsOf is what a watch shows that has called a driver and the helper, with and without success.
func metricsOf(driver string) string {
	m := newMeter("o")
	m.call(driver, "unmount", 30*time.Millisecond, nil)
	m.call(driver, "unmount", 3*time.Second, wire.Errorf(wire.DriverError, "unmount", "no"))
	m.call("", "sweep", time.Hour, errors.New("no"))
	m.watch = lifecycle.WatchState{Cleaned: map[string]int{"pending": 2}, LastBegan: time.UnixMilli(1500)}
	return string(m.text(&lifecycle.Status{Volumes: []lifecycle.VolumeStatus{{Pending: &lifecycle.Pending{Since: time.Unix(20, 0)}}, {Pending: &lifecycle.Pending{Since: time.Unix(10, 0)}}}}))
}

func TestMetricsAreThoseOfTheTable(t *testing.T) {
	doc, err := os.ReadFile("../../docs/watch.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(bindgate_[a-z_]+)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(doc), -1) {
		table[row[1]] = row[2]
	}
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(metricsOf("d"), -1) {
		if table[family[1]] != family[2] {
			t.Errorf("%s is a %s, in docs/watch.md a %q", family[1], family[2], table[family[1]])
		}
		delete(table, family[1])
	}
	if len(table) > 0 {
		t.Errorf("docs/watch.md has more: %v", table)
	}
}

func TestMetricsText(t *testing.T) {
	text := metricsOf("a\"b\\c\nd")
	for _, line := range []string{
		`bindgate_driver_call_duration_seconds_bucket{driver="a\"b\\c\nd",call="unmount",le="0.02"} 0`,
		`bindgate_driver_call_duration_seconds_bucket{driver="a\"b\\c\nd",call="unmount",le="0.1"} 1`,
		`bindgate_driver_call_duration_seconds_bucket{driver="a\"b\\c\nd",call="unmount",le="10"} 2`,
		`bindgate_driver_call_duration_seconds_sum{driver="a\"b\\c\nd",call="unmount"} 3.03`,
		`bindgate_driver_call_failures_total{driver="a\"b\\c\nd",call="unmount",code="driver_error"} 1`,
		`bindgate_helper_call_duration_seconds_bucket{op="sweep",le="600"} 0`,
		`bindgate_helper_call_duration_seconds_bucket{op="sweep",le="+Inf"} 1`,
		`bindgate_helper_call_failures_total{op="sweep",code="internal"} 1`,
		`bindgate_cleanups_total{result="ok"} 0`,
		`bindgate_cleanups_total{result="pending"} 2`,
		`bindgate_last_recover_timestamp_seconds 1.5`,
		`bindgate_volumes_pending 2`,
		`bindgate_pending_oldest_timestamp_seconds 10`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("%s is missing from\n%s", line, text)
		}
	}
}

// What examples/monitoring asks for is what the watch writes.
func TestMonitoringAsksForMetricsThatThereAre(t *testing.T) {
	have := map[string]bool{}
	for _, line := range regexp.MustCompile(`(?m)^bindgate_[a-z_]+`).FindAllString(metricsOf("d"), -1) {
		have[line] = true
	}
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(metricsOf("d"), -1) {
		have[family[1]] = true
	}
	for _, file := range []string{"alerts.yml", "alerts_test.yml", "dashboard.json"} {
		data, err := os.ReadFile("../../examples/monitoring/" + file)
		if err != nil {
			t.Fatal(err)
		}
		used := regexp.MustCompile(`bindgate_[a-z_]+`).FindAllString(string(data), -1)
		if len(used) < 7 {
			t.Errorf("%s uses %v", file, used)
		}
		for _, name := range used {
			if !have[name] {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
		if file == "dashboard.json" && !json.Valid(data) {
			t.Errorf("%s is no JSON", file)
		}
	}
}

// The fields of the journal in docs/monitoring.md are those that log calls have.
func TestJournalFieldsAreThoseOfTheTable(t *testing.T) {
	doc, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `BINDGATE_([A-Z]+)` \\|").FindAllStringSubmatch(string(doc), -1) {
		table[strings.ToLower(row[1])] = true
	}
	used := map[string]bool{"code": true, "stage": true} // of errors
	files, _ := filepath.Glob("../*/*.go")
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) || len(call.Args) < 1 {
				return true
			}
			for i := 1; i < len(call.Args); i += 2 {
				if key, ok := call.Args[i].(*ast.BasicLit); ok {
					name, _ := strconv.Unquote(key.Value)
					used[name] = true
				}
			}
			return true
		})
	}
	if !maps.Equal(used, table) || len(used) < 8 {
		t.Errorf("log calls have %v, docs/monitoring.md %v", slices.Sorted(maps.Keys(used)), slices.Sorted(maps.Keys(table)))
	}
}
