package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

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
	show(newTables(a.Out))
	a.warn(warnings)
	return nil
}

func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		fmt.Fprintf(a.Err, "warning: %s\n", oneLine(w))
	}
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
	w     io.Writer
	width int  // of the terminal, in columns; 0: none, so nothing is cut or wrapped
	color bool // a terminal that is not asked to do without (no-color.org)
	n     int
}

func newTables(w io.Writer) *tables {
	t := &tables{w: w, width: terminalWidth(w)}
	t.color = t.width > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if t.color {
		text.EnableColors() // whatever the library thinks of the terminal
	}
	return t
}

// A cell says how a value is shown: colored on a terminal, numbers to the right.
type cell struct {
	value any
	color text.Colors
	right bool
}

const gap = 2 // blanks between columns

// table writes one, with its title if there are rows; none says what is written if there are none. On a terminal it is as wide as that at most: words are
// wrapped, and a word that is too long for its column loses its middle, since names and paths differ at the end. Elsewhere nothing is cut.
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
	style.Format.Header = text.FormatDefault // it would change the letters of an escape sequence, too
	style.Box.PaddingLeft, style.Box.PaddingRight = "", strings.Repeat(" ", gap)
	tw.SetStyle(style)
	if title != "" {
		fmt.Fprintln(t.w, t.paint(title, text.Colors{text.Bold}))
	}
	shown := make([][]string, len(rows))
	natural, words := make([]int, len(header)), make([]int, len(header))
	for i, h := range header {
		natural[i] = text.StringWidth(fmt.Sprint(h))
	}
	for n, r := range rows {
		for i, value := range r {
			if c, ok := value.(cell); ok {
				value = c.value
			}
			s := oneLine(fmt.Sprint(value))
			if s == "" {
				s = "-"
			}
			shown[n] = append(shown[n], s)
			natural[i] = max(natural[i], text.StringWidth(s))
			for word := range strings.FieldsSeq(s) {
				words[i] = max(words[i], text.StringWidth(word))
			}
		}
	}
	widths := fit(natural, words, t.width)
	configs := make([]table.ColumnConfig, len(header))
	titles := make(table.Row, len(header))
	for i, h := range header {
		configs[i].Number = i + 1
		titles[i] = t.paint(strings.ToUpper(fmt.Sprint(h)), text.Colors{text.Faint})
	}
	for n, r := range rows {
		row := make(table.Row, len(r))
		for i, s := range shown[n] {
			if widths[i] < natural[i] {
				s = wrap(s, widths[i])
			}
			if c, ok := r[i].(cell); ok {
				s = t.paint(s, c.color)
				if c.right {
					configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
				}
			}
			row[i] = s
		}
		tw.AppendRow(row)
	}
	tw.AppendHeader(titles)
	tw.SetColumnConfigs(configs)
	for line := range strings.Lines(tw.Render()) {
		fmt.Fprintln(t.w, strings.TrimRight(line, " \n"))
	}
}

// paint colors each line of s, on a terminal.
func (t *tables) paint(s string, c text.Colors) string {
	if !t.color || len(c) == 0 {
		return s
	}
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = c.Sprint(line)
	}
	return strings.Join(lines, "\n")
}

// fit returns the widths of a table's columns so that all of it is at most total wide; 0 is no limit. The widest column gives way first: as far as only
// lines are broken between words, then, if that is not enough, down to 10.
func fit(natural, longestWord []int, total int) []int {
	widths := slices.Clone(natural)
	sum := gap * (len(widths) - 1)
	for _, w := range widths {
		sum += w
	}
	for _, floor := range []func(i int) int{
		func(i int) int { return max(longestWord[i], 24) },
		func(int) int { return 10 },
	} {
		for total > 0 && sum > total {
			widest := -1
			for i, w := range widths {
				if w > floor(i) && (widest < 0 || w > widths[widest]) {
					widest = i
				}
			}
			if widest < 0 {
				break
			}
			widths[widest]--
			sum--
		}
	}
	return widths
}

// wrap breaks s between its words into lines of the given width. A word that is longer loses its middle.
func wrap(s string, width int) string {
	var lines []string
	at := 0 // columns used in the last line
	for _, word := range strings.Fields(s) {
		word = middle(word, width)
		w := text.StringWidth(word)
		if at > 0 && at+1+w <= width {
			lines[len(lines)-1] += " " + word
			at += 1 + w
			continue
		}
		lines, at = append(lines, word), w
	}
	return strings.Join(lines, "\n")
}

// middle cuts s to a width by leaving out its middle.
func middle(s string, width int) string {
	if text.StringWidth(s) <= width {
		return s
	}
	runes := []rune(s)
	head, tail := 0, len(runes)
	for used := 1; head < tail; { // the … is one wide
		next := runes[head]
		if back := len(runes) - tail; back <= head { // the end says a little more
			next = runes[tail-1]
		}
		if used += text.RuneWidth(next); used > width {
			break
		}
		if back := len(runes) - tail; back <= head {
			tail--
		} else {
			head++
		}
	}
	return string(runes[:head]) + "…" + string(runes[tail:])
}

// list is a list of names as a cell shows it; on a terminal the first of many.
func (t *tables) list(names []string) string {
	const most = 5
	if n := len(names) - most; t.width > 0 && n > 1 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], " "), n)
	}
	return strings.Join(names, " ")
}

// line writes one line that is no table.
func (t *tables) line(format string, args ...any) {
	t.n++
	fmt.Fprintln(t.w, oneLine(fmt.Sprintf(format, args...)))
}

// oneLine is s fit for a line of a terminal or a log: what others chose may hold escape sequences (T30).
func oneLine(s string) string { return printable(s, false) }

// printable escapes what is not printable as Go and C do, such as \x1b and \u202e.
func printable(s string, lines bool) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\n' && lines || unicode.IsPrint(r) && !(r == utf8.RuneError && size == 1):
			b.WriteString(s[:size])
		case r < utf8.RuneSelf, size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		s = s[size:]
	}
	return b.String()
}

// terminalWidth returns the columns of a terminal, 0 for what is none.
func terminalWidth(stream any) int {
	if !isTerminal(stream) {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(stream.(*os.File).Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80 // one that does not tell, such as a serial line
	}
	return int(size.Col)
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

// age writes how long ago something was, as people do.
func age(since time.Time) string {
	switch d := time.Since(since); {
	case since.IsZero():
		return ""
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(max(d, 0).Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}
