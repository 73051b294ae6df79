package namespace

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

func TestTryReturnsWhatEndedIt(t *testing.T) {
	for name, c := range map[string]struct {
		f       func()
		code    wire.Code
		message string
	}{
		"nothing":                   {func() {}, "", ""},
		"an error":                  {func() { Pass(wire.Errorf(wire.Denied, "caller", "cannot serve uid 7")) }, wire.Denied, "cannot serve uid 7"},
		"a condition":               {func() { DieIf(true, wire.Busy, "detach", "cannot detach %s", "/a") }, wire.Busy, "cannot detach /a"},
		"a condition that is not":   {func() { Hint("end it").DieIf(false, wire.Busy, "detach", "cannot detach") }, "", ""},
		"a failed call":             {func() { Check(unix.EROFS, wire.System, "stage", "cannot move %s", "100%") }, wire.System, "cannot move 100%: read-only file system"},
		"a call that went well":     {func() { Check(nil, wire.System, "stage", "cannot move") }, "", ""},
		"a failed call for a value": {func() { Must(7, error(unix.EIO))(wire.Config, "host", "cannot open %d", 7) }, wire.Config, "cannot open 7: input/output error"},
		"a bug":                     {func() { _ = []int{}[len(t.Name())] }, wire.Internal, "index out of range"},
		//lint:ignore SA5000 it shall fail
		"a nil map":                {func() { map[string]int(nil)["a"] = 1 }, wire.Internal, "assignment to entry in nil map"},
		"an error of another kind": {func() { panic(unix.EIO) }, wire.Internal, "input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Try(c.f)
			if c.code == "" {
				if err != nil {
					t.Errorf("%v", err)
				}
				return
			}
			var e *wire.Error
			if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Message, c.message) || e.Stage == "" {
				t.Errorf("%#v", err)
			}
		})
	}
}

func TestHintIsTheErrors(t *testing.T) {
	err := Try(func() { Hint("100% of it").DieIf(true, wire.Busy, "detach", "cannot detach %s", "/a") })
	if e := wire.AsError(err); e.Hint != "100% of it" || e.Message != "cannot detach /a" || e.Code != wire.Busy || e.Stage != "detach" {
		t.Errorf("%#v", e)
	}
	if e := wire.AsError(Try(func() { DieIf(true, wire.Busy, "detach", "cannot detach") })); e.Hint != "" {
		t.Errorf("%#v", e)
	}
}

func TestNoStepFollowsOneThatFailed(t *testing.T) {
	var steps []string
	err := Try(func() {
		defer func() { steps = append(steps, "undo") }()
		steps = append(steps, "first")
		Check(unix.ENOSPC, wire.System, "record", "cannot write")
		steps = append(steps, "second")
	})
	if strings.Join(steps, " ") != "first undo" || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%q, %v", steps, err)
	}
}

func TestMustReturnsTheValue(t *testing.T) {
	if Must(7, error(nil))(wire.System, "s", "cannot") != 7 {
		t.Error("Must")
	}
	if Try(func() { Check(error(nil), wire.System, "s", "cannot") }) != nil {
		t.Error("a nil error is none")
	}
}
