package lifecycle

import (
	"github.com/bindgate/bindgate/wire"
)

// PolicyCheck is which rule decides each volume of a job, and why.
type PolicyCheck struct {
	Schema   string     `json:"schema"`
	Allowed  bool       `json:"allowed"` // all of them
	Volumes  []Decision `json:"volumes"`
	Warnings []string   `json:"warnings,omitempty"`
}

// A Decision is one volume's.
type Decision struct {
	Driver        string `json:"driver"`
	Name          string `json:"name"`
	Mode          string `json:"mode"`
	ContainerPath string `json:"container_path"`
	Allowed       bool   `json:"allowed"`
	Rule          int    `json:"rule"` // its number in policy.toml, from 1; 0: none matches
	Why           string `json:"why"`
	Hint          string `json:"hint,omitempty"` // the rule that would allow it
}

// PolicyCheck says what the rules say of a request. It does nothing and asks nobody. Without a container's id only rules for any container match.
//
// A job that is refused is a result with Allowed false, and the error denied.
func (iso *Isolator) PolicyCheck(r Request) (*PolicyCheck, error) {
	if r.Job == nil {
		return nil, failure(wire.Errorf(wire.InvalidRequest, "request", "cannot check the rules: there is no job"))
	}
	err := iso.checkJob(r.Job)
	if err == nil && r.Container != "" {
		err = wire.CheckID("container", r.Container)
	}
	if err != nil {
		return nil, failure(err)
	}
	out := &PolicyCheck{Schema: Schema, Allowed: true, Volumes: []Decision{}, Warnings: r.Job.Warnings}
	c := &containerRecord{Owner: iso.owner, Container: r.Container}
	for _, v := range r.Job.Volumes {
		e := entryOf(v)
		c.Volumes = append(c.Volumes, e)
		u := c.use(e)
		n, ok := decide(iso.policy.Rules, u)
		d := Decision{Driver: e.Driver, Name: e.Name, Mode: e.Mode, ContainerPath: e.ContainerPath, Allowed: ok, Rule: n, Why: why(n, ok)}
		if err := iso.permit(u); err != nil {
			d.Hint = wire.AsError(err).Hint
			out.Allowed = false
		}
		out.Volumes = append(out.Volumes, d)
	}
	if err := iso.permitAll(c, c.Volumes); err != nil {
		return out, cannot("allow the job", err)
	}
	return out, nil
}
