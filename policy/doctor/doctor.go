// Package doctor looks whether an installation can do its work: its files, the kernel, the security modules, the cgroups, the drivers, and whether records
// and mounts agree. Each check says what it looked at, and what is wrong has a code, whose class is the exit status, and the commands that mend it.
//
// It has two parts. AsRoot looks at what only root may see, and runs before root is given up: it reads files of root's, procfs and the kernel log, believes
// nothing that others wrote, and asks no driver. AsPolicyUser does the rest, as every other command would: it asks the helper and the drivers.
//
// Fix is for what is safe (docs/adr/0012-doctor.md): it makes folders that are missing, takes permissions away that nobody should have, and drops records
// of mounts that are not there. It gives nobody a permission, and removes nothing that holds data.
package doctor

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// A State is how a check came out.
type State string

const (
	OK      State = "ok"
	Fixed   State = "fixed"   // it was wrong, and is not any more
	Unknown State = "unknown" // only root can see it, or nobody here
	Warning State = "warning" // worth a look; nothing fails for it
	Failed  State = "failed"
)

// A Check is one thing that was looked at.
type Check struct {
	Check   string    `json:"check"` // what, such as helper.mode or driver.rexray
	State   State     `json:"state"`
	Code    wire.Code `json:"code,omitempty"` // of what failed
	Message string    `json:"message"`
	Fix     []string  `json:"fix,omitempty"`  // commands that mend it, in order, for root unless they say otherwise
	Hint    string    `json:"hint,omitempty"` // what to know about them
}

// A Report is the result.
type Report struct {
	Schema string  `json:"schema"`
	Root   bool    `json:"root"` // what only root can see was looked at
	Checks []Check `json:"checks"`
}

// A Doctor is one run.
type Doctor struct {
	policy *config.Policy
	helper *conf.Helper // nil if helper.toml cannot be used
	fix    bool

	mu     sync.Mutex
	report Report

	owners    []string            // of the helper's records
	behind    map[string]bool     // drivers that only root could find
	blocked   map[string][]string // by path: what grants the policy user the way to it
	recorded  map[uint64][]recordedMount
	hasLedger bool
}

// New begins a run. policy is nil, and policyErr why, if policy.toml cannot be used: then the defaults serve.
func New(policy *config.Policy, policyErr error, fix bool) *Doctor {
	d := &Doctor{policy: policy, fix: fix, report: Report{Schema: lifecycle.Schema, Checks: []Check{}}, behind: map[string]bool{}, blocked: map[string][]string{}}
	if policyErr != nil {
		d.policy = config.DefaultPolicy()
		d.failed("config.policy", policyErr)
	} else if len(policy.Rules) == 0 {
		d.add(Check{Check: "config.policy", State: Warning, Message: conf.PolicyTOML() + " has no [[rule]], so every volume is denied",
			Hint: "bindgate policy check prints the rule that would allow a job's volumes"})
	} else {
		d.ok("config.policy", "%s: %s", conf.PolicyTOML(), plural(len(policy.Rules), "rule"))
	}
	helper, err := conf.LoadHelper()
	if err != nil {
		d.failed("config.helper", err)
	} else {
		d.helper = helper
		d.ok("config.helper", "%s: %s", conf.HelperTOML(), plural(len(helper.Sources), "source"))
	}
	return d
}

// Policy returns the configuration that the run works with.
func (d *Doctor) Policy() *config.Policy { return d.policy }

// Report returns the result, and an error with the code of the worst finding, if there is one.
func (d *Doctor) Report() (*Report, error) {
	r := d.report
	slices.SortStableFunc(r.Checks, func(a, b Check) int { return room(a.Check) - room(b.Check) })
	var codes []wire.Code
	var names []string
	for _, c := range r.Checks {
		if c.State == Failed {
			codes, names = append(codes, c.Code), append(names, c.Check)
		}
	}
	if len(codes) == 0 {
		return &r, nil
	}
	worst := codes[lifecycle.Worst(codes)]
	return &r, wire.Errorf(worst, "doctor", "cannot call the installation healthy: %d of %d checks failed: %s", len(codes), len(r.Checks), strings.Join(names, ", "))
}

// rooms is the order of the report.
var rooms = []string{"program", "helper", "group", "config", "folder", "audit", "user", "process", "kernel", "lsm", "cgroup", "target", "source", "driver", "leak"}

func room(check string) int {
	first, _, _ := strings.Cut(check, ".")
	return slices.Index(rooms, first)
}

func (d *Doctor) add(c Check) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.Checks = append(d.report.Checks, c)
}

func (d *Doctor) ok(check, format string, args ...any) {
	d.add(Check{Check: check, State: OK, Message: fmt.Sprintf(format, args...)})
}

func (d *Doctor) unknown(check, format string, args ...any) {
	d.add(Check{Check: check, State: Unknown, Message: fmt.Sprintf(format, args...)})
}

func (d *Doctor) bad(check string, code wire.Code, fix []string, format string, args ...any) {
	d.add(Check{Check: check, State: Failed, Code: code, Message: fmt.Sprintf(format, args...), Fix: fix})
}

func (d *Doctor) warn(check string, fix []string, format string, args ...any) {
	d.add(Check{Check: check, State: Warning, Message: fmt.Sprintf(format, args...), Fix: fix})
}

// failed adds what went wrong with its hint: a command as a fix, anything else as it is.
func (d *Doctor) failed(check string, err error) {
	e := wire.AsError(err)
	c := Check{Check: check, State: Failed, Code: e.Code, Message: e.Message, Fix: commands(e.Hint), Hint: e.Hint}
	if len(c.Fix) > 0 {
		c.Hint = ""
		if strings.HasPrefix(c.Fix[0], "chown ") {
			c.Hint = "somebody else could write there: look at what it holds before you trust it again"
		}
	}
	d.add(c)
}

// commands takes from a hint what is a command of root's.
func commands(hint string) []string {
	hint, _, _ = strings.Cut(hint, ";")
	hint = strings.TrimPrefix(hint, "as root: ")
	for _, begin := range []string{"setfacl ", "chown ", "chmod "} {
		if strings.HasPrefix(hint, begin) {
			return []string{hint}
		}
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
