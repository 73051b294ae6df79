package wire

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
)

// A Code names a class of failure, for programs. DESIGN's table gives each the exit status of its class (sysexits.h where one fits).
type Code string

// Everything that bindgate and its helper may say no with.
const (
	Usage             Code = "usage"              // 64: the command line is wrong
	InvalidRequest    Code = "invalid_request"    // 65: a request, job or argument is malformed
	DuplicateVolume   Code = "duplicate_volume"   // 65: one (driver, name) twice in a container
	TargetMissing     Code = "target_missing"     // 65: the container_path must exist and does not
	NotFound          Code = "not_found"          // 65: no such record, mount or volume reference
	Conflict          Code = "conflict"           // 65: the id belongs to something else
	NoInput           Code = "no_input"           // 66: an input file is not there
	DriverUnavailable Code = "driver_unavailable" // 69: nobody answers under the driver's name
	DriverError       Code = "driver_error"       // 69: the driver answered with an error, or with nonsense
	VolumeNotFound    Code = "volume_not_found"   // 69: the driver does not know the volume
	Internal          Code = "internal"           // 70: a bug
	UnsupportedKernel Code = "unsupported_kernel" // 71: the kernel lacks a named feature
	NamespaceGone     Code = "namespace_gone"     // 71: the process or its mount namespace has ended
	System            Code = "system"             // 71: a system call failed
	Timeout           Code = "timeout"            // 75: a deadline passed
	Busy              Code = "busy"               // 75: in use
	Pending           Code = "pending"            // 75: part of it is still to be done
	Denied            Code = "denied"             // 77: the caller may not
	SourceForbidden   Code = "source_forbidden"   // 77: the source is not allowed, or cannot be pinned
	TargetForbidden   Code = "target_forbidden"   // 77: the container or the path in it is not allowed
	NamespaceHost     Code = "namespace_host"     // 77: the target is in the host's mount namespace
	PropagationShared Code = "propagation_shared" // 77: the attach would show on the host
	LimitExceeded     Code = "limit_exceeded"     // 77: a limit of helper.toml
	Config            Code = "config"             // 78: a configuration file or the installation is wrong
	StateCorrupt      Code = "state_corrupt"      // 78: a record cannot be trusted
)

var exits = map[Code]int{
	Usage: 64, InvalidRequest: 65, DuplicateVolume: 65, TargetMissing: 65, NotFound: 65, Conflict: 65, NoInput: 66,
	DriverUnavailable: 69, DriverError: 69, VolumeNotFound: 69, Internal: 70, UnsupportedKernel: 71, NamespaceGone: 71, System: 71,
	Timeout: 75, Busy: 75, Pending: 75, Denied: 77, SourceForbidden: 77, TargetForbidden: 77, NamespaceHost: 77, PropagationShared: 77,
	LimitExceeded: 77, Config: 78, StateCorrupt: 78,
}

// Exit returns the exit status of the code's class; 70 for one that is not in the table.
func (c Code) Exit() int { return cmp.Or(exits[c], 70) }

// An Error is a failure with its code, the stage in which it happened (a word such as "source" or "lock"), a message of the form
// "cannot <verb> <object>: <why>", and where one helps a hint: what to do about it.
type Error struct {
	Code    Code
	Stage   string
	Message string
	Hint    string
	Cause   error // what errors.Is looks at, such as an errno; it does not cross the boundary
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error without a hint.
func Errorf(code Code, stage, format string, args ...any) *Error {
	return &Error{Code: code, Stage: stage, Message: Printable(fmt.Sprintf(format, args...))}
}

func invalid(format string, args ...any) *Error {
	return Errorf(InvalidRequest, "request", format, args...)
}

// WithHint adds what the reader can do.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Because adds the cause, for errors.Is.
func (e *Error) Because(err error) *Error { e.Cause = err; return e }

// AsError returns err as an *Error. One that is none has the code internal: every failure that can be expected was given its code where it arose.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: Internal, Stage: "internal", Message: err.Error()}
}

func quote(s string) string { return strconv.QuoteToASCII(s[:min(len(s), 64)]) }
