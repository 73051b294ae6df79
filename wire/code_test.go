package wire_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"

	. "github.com/bindgate/bindgate/wire"
)

func TestExitOfEveryCodeIsItsClass(t *testing.T) {
	for class, codes := range map[int][]Code{
		64: {Usage}, 65: {InvalidRequest, DuplicateVolume, TargetMissing, NotFound, Conflict}, 66: {NoInput}, 69: {DriverUnavailable, DriverError, VolumeNotFound},
		70: {Internal, "", "no_such_code", "Denied", "denied "}, 71: {UnsupportedKernel, NamespaceGone, System}, 75: {Timeout, Busy, Pending},
		77: {Denied, SourceForbidden, TargetForbidden, NamespaceHost, PropagationShared, LimitExceeded}, 78: {Config, StateCorrupt},
	} {
		for _, c := range codes {
			if c.Exit() != class {
				t.Errorf("%q exits %d, want %d", c, c.Exit(), class)
			}
		}
	}
}

// The helper's codes are published in docs/wire.md.
func TestPublishedTableAgrees(t *testing.T) {
	doc, err := os.ReadFile("../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		class, err := strconv.Atoi(strings.TrimSpace(cells[0]))
		if err != nil || len(cells) != 2 {
			continue
		}
		rows++
		for c := range strings.SplitSeq(cells[1], ",") {
			if c := Code(strings.Trim(c, " `")); Exits[c] != class {
				t.Errorf("docs/wire.md says that %s exits %d; it is %d", c, class, Exits[c])
			}
		}
	}
	if rows < 8 {
		t.Errorf("only %d rows were found", rows)
	}
}

func TestAsError(t *testing.T) {
	e := Errorf(Busy, "detach", "cannot detach %s", "/a").WithHint("use %s", "--lazy").Because(fs.ErrNotExist)
	switch {
	case AsError(e) != e, AsError(fmt.Errorf("outer: %w", e)) != e:
		t.Error("an *Error is itself, also when wrapped")
	case !errors.Is(e, fs.ErrNotExist) || errors.Is(e, fs.ErrExist):
		t.Error("the cause is what errors.Is looks at")
	case e.Error() != "cannot detach /a" || e.Hint != "use --lazy":
		t.Errorf("%#v", e)
	}
	if got := AsError(fs.ErrClosed); got.Code != Internal || got.Message != fs.ErrClosed.Error() {
		t.Errorf("what has no code is a bug: %#v", got)
	}
}
