package namespace

import "github.com/bindgate/bindgate/wire"

// Pass ends the operation with err if it is not nil, as die() does in setuid programs in C: no step is ever made after one that failed, and the code reads as the list of its steps. Here it unwinds, so
// that what was deferred is undone, and only main recovers it. Nothing outside the privileged binary uses this package. docs/adr/0003 tells why.
func Pass(err error) {
	if err != nil {
		panic(wire.AsError(err))
	}
}

// A Hint is what to do about an error; "" is none. DieIf, the method or without a hint the function, ends the operation if cond holds; only then is anything formatted, as most do not.
type Hint string

func (h Hint) DieIf(cond bool, code wire.Code, stage, format string, args ...any) {
	if cond {
		panic(wire.Errorf(code, stage, format, args...).WithHint("%s", h))
	}
}
func DieIf(cond bool, code wire.Code, stage, format string, args ...any) {
	Hint("").DieIf(cond, code, stage, format, args...)
}

// Check ends the operation if err is not nil; the error is added to the message.
func Check(err error, code wire.Code, stage, format string, args ...any) {
	if err != nil { // before anything is formatted: this is on the way of every system call
		panic(wire.Errorf(code, stage, format+": %v", append(args, err)...).Because(err))
	}
}

// Must is Check for a call that also returns a value: Must(call)(code, stage, format, args...).
func Must[T any](v T, err error) func(code wire.Code, stage, format string, args ...any) T {
	return func(code wire.Code, stage, format string, args ...any) T {
		Check(err, code, stage, format, args...)
		return v
	}
}

// Try runs f and returns the error that ended it.
func Try(f func()) (err error) {
	defer func() {
		r := recover()
		if e, ok := r.(error); ok {
			err = wire.AsError(e)
		} else if r != nil {
			err = wire.Errorf(wire.Internal, "internal", "cannot go on: %v", r)
		}
	}()
	f()
	return nil
}
