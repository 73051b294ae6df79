package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

func TestPrintableEscapes(t *testing.T) {
	for in, want := range map[string]string{
		"plain ÅÄÖ 漢字":             "plain ÅÄÖ 漢字",
		"\x1b[31mred\x07":          `\x1b[31mred\x07`,
		"a\nb\tc\r":                `a\x0ab\x09c\x0d`,
		"right\u202eleft":          `right\u202eleft`,
		"bad \xff\xfe utf8 \ufffd": `bad \xff\xfe utf8 ` + "\ufffd",
		"c1 \u009b31m":             `c1 \u009b31m`,
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := printable("a\nb\x00", true); got != "a\nb\\x00" {
		t.Errorf("%q", got)
	}
}

func TestMiddleKeepsTheEnds(t *testing.T) {
	for _, x := range []struct {
		s     string
		width int
		want  string
	}{
		{"short", 10, "short"}, {"exactly10!", 10, "exactly10!"}, {"/var/lib/bindgate/volumes/data", 11, "/var/…/data"}, {"漢字漢字漢字", 7, "漢…漢字"}, {"abc", 1, "…"},
	} {
		if got := middle(x.s, x.width); got != x.want {
			t.Errorf("%q in %d: %q, want %q", x.s, x.width, got, x.want)
		}
	}
}

// A table is as wide as the terminal at most, whatever is in it, and elsewhere nothing is cut.
func TestTablesFitTheTerminal(t *testing.T) {
	long := strings.Repeat("a-name-that-is-long-", 5)
	s := &lifecycle.Status{
		Containers: []lifecycle.ContainerStatus{
			{Container: "web-" + long + "1", Owner: "default", PID: 4711, Alive: true, Phase: "isolated", Volumes: []lifecycle.Volume{{Name: long, ContainerPath: "/var/lib/" + long, Mode: "ro"}}},
			{Container: "漢字漢字漢字漢字漢字漢字\x1b[2J", Owner: "k8s", PID: 4712, Phase: "isolated"}},
		Volumes: []lifecycle.VolumeStatus{{Driver: "rexray", Name: long, Mountpoint: "/var/lib/rexray/volumes/" + long, Containers: strings.Fields(strings.Repeat(long+" ", 20)),
			Pending: &lifecycle.Pending{Driver: "rexray", Name: long, Since: time.Now().Add(-3*time.Hour - time.Minute), Error: "cannot unmount it: " + strings.Repeat("the array does not answer ", 10),
				Holders: []lifecycle.Holder{{PID: 1, Comm: "sh\x1b[31m"}}}}},
	}
	show := func(width int, color bool) string {
		var out bytes.Buffer
		showStatus(&tables{w: &out, width: width, color: color}, s)
		return out.String()
	}
	for _, width := range []int{60, 80, 100, 200, 1000} {
		for _, color := range []bool{false, true} {
			text.EnableColors()
			out := show(width, color)
			for line := range strings.Lines(out) {
				if w := text.StringWidthWithoutEscSequences(strings.TrimSuffix(line, "\n")); w > width {
					t.Errorf("%d wide instead of %d: %q", w, width, line)
				}
			}
			if has := strings.Contains(out, "\x1b[31m"); has != color { // of the dead one, not of a name
				t.Errorf("color %v, width %d: %q", color, width, out)
			}
			for _, want := range []string{"3 h", "and 15 more", "CONTAINER", "isolated, dead"} {
				if !strings.Contains(out, want) {
					t.Errorf("width %d: no %q in\n%s", width, want, out)
				}
			}
		}
	}
	out := show(0, false)
	if strings.Contains(out, "…") || strings.Contains(out, "more") || strings.Contains(out, "\x1b") || !strings.Contains(out, `\x1b[2J`) || strings.Count(out, long) < 24 {
		t.Errorf("not on a terminal: %s", out)
	}
}
