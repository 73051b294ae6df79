package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/bindgate/bindgate/wire"
)

// An Error is why a verb failed. Its JSON is the "error" of DESIGN section 8.
type Error struct {
	Code    wire.Code `json:"code"`
	Message string    `json:"message"` // cannot <do what> to <what>: <why>
	Hint    string    `json:"hint"`
	Stage   string    `json:"stage"`
	Causes  []Cause   `json:"causes"` // each failure, where there were several volumes
	Undone  []Step    `json:"undone"` // what had been done and was taken back
	Left    []Step    `json:"left"`   // what could not be taken back; Recover and Cleanup try again

	cause error
}

// A Cause is the failure of one volume.
type Cause struct {
	Driver    string    `json:"driver"`
	Name      string    `json:"name"`
	Stage     string    `json:"stage"`
	Code      wire.Code `json:"code"`
	Message   string    `json:"message"`
	Hint      string    `json:"hint,omitempty"`
	ElapsedMS int64     `json:"elapsed_ms"`
}

// A Step is something that was done to a volume: "mount", "create" (the volume did not exist) or "attach".
type Step struct {
	Driver string `json:"driver"`
	Name   string `json:"name"`
	Stage  string `json:"stage"`
	Error  string `json:"error,omitempty"` // why it is left
}

func (e *Error) Error() string { return e.Message }

// MarshalJSON writes lists that are empty as [], as everywhere in the outputs.
func (e *Error) MarshalJSON() ([]byte, error) {
	type plain Error
	p := plain(*e)
	p.Causes, p.Undone, p.Left = append([]Cause{}, p.Causes...), append([]Step{}, p.Undone...), append([]Step{}, p.Left...)
	return json.Marshal((*plain)(&p))
}

// Unwrap returns what errors.Is and errors.As look at: a *wire.Error, mostly.
func (e *Error) Unwrap() error { return e.cause }

// Exit returns the exit status of the error's class.
func (e *Error) Exit() int { return e.Code.Exit() }

// failure makes an *Error of any error. Nil stays nil only if the caller asks first.
func failure(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	w := wire.AsError(err)
	return &Error{Code: w.Code, Message: w.Message, Hint: w.Hint, Stage: w.Stage, cause: err}
}

// cannot is failure with what was being done in front: "cannot prepare container x: " and the reason, without its own "cannot" where that says the same.
// What is named there may not have been checked yet, and must not forge a line (T30).
func cannot(doing string, err error) *Error {
	e := *failure(err)
	doing = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, doing)
	if !strings.HasPrefix(e.Message, "cannot "+doing) {
		e.Message = fmt.Sprintf("cannot %s: %s", doing, e.Message)
	}
	return &e
}

// cause is an error as the failure of one volume.
func cause(v volumeID, began time.Time, err error) Cause {
	w := wire.AsError(err)
	c := Cause{Driver: v.Driver, Name: v.Name, Stage: w.Stage, Code: w.Code, Message: w.Message, Hint: w.Hint}
	if !began.IsZero() {
		c.ElapsedMS = time.Since(began).Milliseconds()
	}
	return c
}

// classes is the order in which the exit class of several failures is chosen: the first that is present.
var classes = []int{70, 78, 77, 65, 71, 69, 75}

// Worst returns the index of the code whose class decides among several failures: the first of the first class of DESIGN section 8 that is present.
func Worst(codes []wire.Code) int {
	for _, class := range classes {
		if i := slices.IndexFunc(codes, func(c wire.Code) bool { return c.Exit() == class }); i >= 0 {
			return i
		}
	}
	return 0
}

// several makes one error of the failures of several volumes.
func several(doing string, causes []Cause) *Error {
	codes := make([]wire.Code, len(causes))
	for i, c := range causes {
		codes[i] = c.Code
	}
	first := causes[Worst(codes)]
	e := &Error{Code: first.Code, Stage: first.Stage, Hint: first.Hint, Causes: causes}
	says := make([]string, len(causes))
	for i, c := range causes {
		says[i] = c.Message
	}
	e.Message = fmt.Sprintf("cannot %s: %s", doing, strings.Join(says, "; "))
	e.cause = &wire.Error{Code: first.Code, Stage: first.Stage, Message: first.Message, Hint: first.Hint}
	return e
}

// plain returns the errno of an error that names its path already.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func isCode(err error, codes ...wire.Code) bool {
	var e *wire.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}
