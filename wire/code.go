package wire

import (
	"cmp"
	"errors"
	"fmt"
)

// A Code names a class of failure, for programs. Everything that bindgate and its helper may say no with is here; docs/troubleshooting.md says what each means and what to do.
type Code string

const ( // each line is a class of them, with an exit status of its own
	Usage                                                                                     Code = "usage"
	InvalidRequest, DuplicateVolume, TargetMissing, NotFound, Conflict                        Code = "invalid_request", "duplicate_volume", "target_missing", "not_found", "conflict"
	NoInput                                                                                   Code = "no_input"
	DriverUnavailable, DriverError, VolumeNotFound                                            Code = "driver_unavailable", "driver_error", "volume_not_found"
	Internal                                                                                  Code = "internal"
	UnsupportedKernel, NamespaceGone, System                                                  Code = "unsupported_kernel", "namespace_gone", "system"
	Timeout, Busy, Pending                                                                    Code = "timeout", "busy", "pending"
	Denied, SourceForbidden, TargetForbidden, NamespaceHost, PropagationShared, LimitExceeded Code = "denied", "source_forbidden", "target_forbidden", "namespace_host", "propagation_shared", "limit_exceeded"
	Config, StateCorrupt                                                                      Code = "config", "state_corrupt"
)

// Exit returns the exit status of the code's class (sysexits.h where one fits); 70 for one that is not in the table.
func (c Code) Exit() int { return cmp.Or(exits[c], 70) }

var exits = map[Code]int{Usage: 64, InvalidRequest: 65, DuplicateVolume: 65, TargetMissing: 65, NotFound: 65, Conflict: 65, NoInput: 66, DriverUnavailable: 69, DriverError: 69, VolumeNotFound: 69,
	Internal: 70, UnsupportedKernel: 71, NamespaceGone: 71, System: 71, Timeout: 75, Busy: 75, Pending: 75, Denied: 77, SourceForbidden: 77, TargetForbidden: 77, NamespaceHost: 77,
	PropagationShared: 77, LimitExceeded: 77, Config: 78, StateCorrupt: 78}

// An Error is a failure with its code, the stage in which it happened (a word such as "source" or "lock"), a message of the form "cannot <verb> <object>: <why>", and where one helps a hint: what to do.
type Error struct {
	Code                 Code
	Stage, Message, Hint string
	Cause                error // what errors.Is looks at, such as an errno; it does not cross the boundary
}

func (e *Error) Error() string            { return e.Message }
func (e *Error) Unwrap() error            { return e.Cause }
func (e *Error) Because(err error) *Error { e.Cause = err; return e }
func quote(s string) string               { return fmt.Sprintf("%+q", s[:min(len(s), 64)]) } // for a message, in ASCII

// Errorf makes an Error; WithHint adds what the reader can do, Because the cause.
func Errorf(code Code, stage, format string, args ...any) *Error {
	return &Error{Code: code, Stage: stage, Message: Printable(fmt.Sprintf(format, args...))}
}

func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// AsError returns err as an *Error. One that is none has the code internal: every failure that can be expected was given its code where it arose.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: Internal, Stage: "internal", Message: err.Error()}
}
