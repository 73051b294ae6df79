// Package bench measures what bindgate costs beside its baselines: the table of DESIGN section 11, in one run of make bench. What is measured is the installed
// program, run as the policy user runs it, on a host of its own with real containers and a real plugin; results.json in bench/out is what bench/plot draws.
//
// What is compared is measured in turns, round after round, so that whatever else the machine does meanwhile is in both. A cost is the median of its rounds, and its spread the quartiles.
package bench

import (
	"fmt"
	"slices"
	"strings"
)

// A Cost is what the rounds of one thing took, in microseconds.
type Cost struct {
	Name             string
	Q1, Median, Q3   float64
	Min              float64
	Rounds           int
	PageFaults, CPUs float64 `json:",omitempty"` // medians, of the process itself: page faults, and microseconds of processor time
}

// cost sums up the rounds.
func cost(name string, rounds []float64) Cost {
	at := func(q float64) float64 { return quantile(rounds, q) }
	return Cost{Name: name, Min: at(0), Q1: at(.25), Median: at(.5), Q3: at(.75), Rounds: len(rounds)}
}

// quantile interpolates between the two nearest of the rounds.
func quantile(rounds []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(rounds))
	if len(s) == 0 {
		return 0
	}
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 == len(s) {
		return s[i]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

func (c Cost) String() string {
	return fmt.Sprintf("%-42s %9.0f %9.0f %9.0f %6d", c.Name, c.Q1, c.Median, c.Q3, c.Rounds)
}

// A Row is a row of the table: what was reached, and what must be.
type Row struct {
	What  string
	Value float64
	Must  float64
	Least bool // Must is the least; else the most
	Unit  string
	Note  string `json:",omitempty"`
}

// Pass says whether the row reached what it must.
func (r Row) Pass() bool { return r.Least && r.Value >= r.Must || !r.Least && r.Value <= r.Must }

func (r Row) String() string {
	pass, sign := "pass", "<="
	if !r.Pass() {
		pass = "NOT"
	}
	if r.Least {
		sign = ">="
	}
	return strings.TrimRight(fmt.Sprintf("%-4s %-62s %8.2f %-3s %s %-6g %s", pass, r.What, r.Value, r.Unit, sign, r.Must, r.Note), " ")
}

// A Point is one point of a plot: a cost at some size, with its quartiles.
type Point struct{ X, Y, Low, High float64 }

// Results is what a run found.
type Results struct {
	Machine string
	Rows    []Row
	Costs   []Cost // of one attach, and its baselines

	Mounts, Records []Point // microseconds of bindgate attach, with as many mounts and records on the host
	Batch           []Point // microseconds per mount, in a request of as many
	BatchBaseline   float64 // of one nsenter ... mount --bind
	Parallel        []Point // attaches a second, as many at once
	Recover         []Point // milliseconds, of as many dead containers
	RecoverDrivers  []Point // of them, what the calls of the driver alone take
}
