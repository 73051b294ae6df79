// Package driver makes volumes available on the host: through a Docker volume plugin (Plugin) or through the built-in driver local (Local).
//
// NewPlugin and NewLocal return the two drivers; Discover and Survey say where plugins are and which of them cannot be reached, without asking them.
// The package keeps no references and no records, and it never calls a driver twice for one call of ours: who mounts, how often and with which id is
// for policy/lifecycle to say.
//
// A plugin is believed nothing. Its answers are bounded in size, its texts cleaned, its paths checked, its redirects refused (T37). What it mounts is
// checked again by the helper, which does not know plugins at all.
//
// Every error is a *wire.Error. Its stage is the call (create, get, list, path, mount, unmount, remove, capabilities), or discover or activate for
// what comes before it.
package driver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

// A Driver makes volumes available on the host. It may be used by several goroutines at once; calls for one volume must not overlap.
//
// A call lasts as long as its context: give it a deadline. What a failed call may have left behind follows from its error:
//
//   - invalid_request, config, driver_unavailable, and any error of the stages discover and activate: the driver never got the call.
//   - driver_error, volume_not_found: it got the call, and answered with an error, with nonsense, or not to the end.
//   - timeout: it got the call and may still carry it out.
//
// A Mount that failed in one of the last two ways may have mounted: an Unmount with the same id makes sure.
type Driver interface {
	// Create makes a volume; one that exists already is no error for most drivers. Options the driver does not know are for it to refuse.
	Create(ctx context.Context, name string, opts map[string]string) error
	// Get returns one volume, or volume_not_found.
	Get(ctx context.Context, name string) (Volume, error)
	// List returns all volumes that the driver knows.
	List(ctx context.Context) ([]Volume, error)
	// Path returns where the volume is on the host, and "" when it is nowhere at present.
	Path(ctx context.Context, name string) (string, error)
	// Mount makes the volume available on the host and returns where: an absolute, clean path other than /. id says who asks, and is the same in the
	// matching Unmount.
	Mount(ctx context.Context, name, id string) (mountpoint string, err error)
	// Unmount lets the volume go.
	Unmount(ctx context.Context, name, id string) error
	// Remove deletes the volume and what it holds.
	Remove(ctx context.Context, name string) error
	// Capabilities says whether the volumes are the host's own.
	Capabilities(ctx context.Context) (Capabilities, error)
}

// ErrRefused is in the errors, for errors.Is, of a driver that answered in so many words that it did not do what it was asked. One that answered with
// nonsense, or not to the end, may have done it.
var ErrRefused = errors.New("the driver refused")

// A Volume is what a driver says of one. Only Name is always there, and it is the name that was asked for.
type Volume struct {
	Name       string            `json:"name"`
	Mountpoint string            `json:"mountpoint,omitempty"` // absolute and clean
	CreatedAt  string            `json:"created_at,omitempty"` // RFC 3339 where the driver keeps to it
	Status     map[string]any    `json:"status,omitempty"`     // whatever the driver likes to say
	Options    map[string]string `json:"options,omitempty"`    // what the volume was made with; plugins do not tell
}

// Scopes of a driver's volumes.
const (
	ScopeLocal  = "local"  // each host has its own
	ScopeGlobal = "global" // the same on every host
)

// Capabilities is what a driver says of itself.
type Capabilities struct {
	Scope string // ScopeLocal or ScopeGlobal
}

// Limits of what is passed to a plugin and taken from it. A volume's name may be as long as a path, because network plugins take one as name.
const (
	maxName = 4095
	maxID   = 255
	maxText = 512 // bytes of a driver's words in our messages
)

// task is what a call does, for its errors: "cannot <doing>: <why>".
type task struct {
	stage, doing string
}

func (t task) fail(code wire.Code, format string, args ...any) *wire.Error {
	return wire.Errorf(code, t.stage, "cannot %s: %s", t.doing, fmt.Sprintf(format, args...))
}

// checkPassed checks a string that a plugin gets: JSON must be able to carry it exactly (T39).
func (t task) checkPassed(what, s string, max int) error {
	switch {
	case s == "":
		return t.fail(wire.InvalidRequest, "the %s is empty", what)
	case len(s) > max:
		return t.fail(wire.InvalidRequest, "the %s is over %d bytes", what, max)
	case !printable(s):
		return t.fail(wire.InvalidRequest, "the %s %s holds control characters or is not UTF-8", what, show(s))
	}
	return nil
}

// mountpoint checks a path that a driver returned and returns its clean form. It must be absolute, without "..", control characters or invalid UTF-8
// (the helper would refuse them), and not /. It has nothing to do with a closed folder, which others' files are in; with roots it lies below one of them
// (T43); a root itself holds every volume, and is none.
func (t task) mountpoint(s string, roots, closed []wire.Path) (string, error) {
	p, err := wire.ParsePath(s)
	switch {
	case err != nil || !printable(s):
		return "", t.fail(wire.DriverError, "it returned the mountpoint %s, which is not a usable path", show(s))
	case !p.Absolute:
		return "", t.fail(wire.DriverError, "it returned the mountpoint %s, which is not absolute", show(s))
	case len(p.Components) == 0:
		return "", t.fail(wire.DriverError, "it returned the host's root as mountpoint")
	}
	for _, c := range closed {
		if c.Contains(p) || p.Contains(c) {
			return "", t.fail(wire.DriverError, "it returned the mountpoint %s, and its volumes are not in %s", show(s), c)
		}
	}
	if len(roots) == 0 {
		return p.String(), nil
	}
	names := make([]string, len(roots))
	for i, r := range roots {
		if r.Contains(p) && len(p.Components) > len(r.Components) {
			return p.String(), nil
		}
		names[i] = r.String()
	}
	return "", t.fail(wire.DriverError, "it returned the mountpoint %s, which is not below %s", show(s), strings.Join(names, " or ")).
		WithHint("if the driver's volumes do lie there, add the folder to its roots in policy.toml")
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// show quotes a name or path for a message.
func show(s string) string {
	if len(s) > 128 {
		return strconv.Quote(s[:128]) + "..."
	}
	return strconv.Quote(s)
}

// clean makes a driver's words fit for a terminal and a log: one line of printable characters, cut to maxText bytes.
func clean(s string) string {
	if len(s) > 4*maxText {
		s = s[:4*maxText]
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
