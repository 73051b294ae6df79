package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// emit writes a result to stdout: as JSON, or as the tables that show makes of it, with its warnings on stderr.
func (a *app) emit(result any, warnings []string, show func(*tables)) error {
	if a.output == "json" || a.output == "" && !isTerminal(a.Out) {
		return writeJSON(a.Out, result)
	}
	show(&tables{w: a.Out, terminal: isTerminal(a.Out)})
	for _, w := range warnings {
		fmt.Fprintf(a.Err, "warning: %s\n", oneLine(w))
	}
	return nil
}

// writeJSON writes a document of one line in which every character that is not printable is escaped: JSON lets C1 control characters and the like be, which a
// terminal obeys, and a person reads JSON on one, too (T30).
func writeJSON(w io.Writer, v any) error {
	var doc, out bytes.Buffer
	e := json.NewEncoder(&doc)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return written(err)
	}
	for _, r := range doc.String() {
		if unicode.IsPrint(r) || r == '\n' {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	_, err := out.WriteTo(w)
	return written(err)
}

// written is the error for output that could not be written.
func written(err error) error {
	if err != nil {
		return wire.Errorf(wire.System, "output", "cannot write the output: %v", err)
	}
	return nil
}

// tables writes tables, one after the other.
type tables struct {
	w        io.Writer
	terminal bool
	n        int
}

// table writes one, with its title if there are rows; none says what is written if there are none. On a terminal long cells are cut, and only there.
func (t *tables) table(title, none string, header []any, rows [][]any) {
	if t.n++; t.n > 1 {
		fmt.Fprintln(t.w)
	}
	if len(rows) == 0 {
		fmt.Fprintln(t.w, none)
		return
	}
	tw := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatUpper
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	if t.terminal && os.Getenv("NO_COLOR") == "" {
		text.EnableColors()
		style.Color.Header = text.Colors{text.Bold}
		title = text.Bold.Sprint(title)
	}
	tw.SetStyle(style)
	if title != "" {
		fmt.Fprintln(t.w, title)
	}
	tw.AppendHeader(header)
	for _, r := range rows {
		for i, cell := range r {
			s := oneLine(fmt.Sprint(cell))
			if s == "" {
				s = "-"
			}
			if t.terminal {
				s = text.Snip(s, 44, "…")
			}
			r[i] = s
		}
		tw.AppendRow(r)
	}
	for line := range strings.Lines(tw.Render()) {
		fmt.Fprintln(t.w, strings.TrimRight(line, " \n"))
	}
}

// line writes one line that is no table.
func (t *tables) line(format string, args ...any) {
	t.n++
	fmt.Fprintln(t.w, oneLine(fmt.Sprintf(format, args...)))
}

// oneLine is s fit for a line of a terminal or a log: what others chose may hold escape sequences (T30).
func oneLine(s string) string { return printable(s, false) }

func printable(s string, lines bool) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' && lines || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// size writes bytes as people do.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for ; v >= 1024 && u < len(units)-1; u++ {
		v /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}
