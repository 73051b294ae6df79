// Package docs holds what the programs themselves can show of the documentation, so that it is there where only the binary is installed.
package docs

import (
	_ "embed"
	"strings"
)

//go:embed troubleshooting.md
var troubleshooting string

// Codes returns the error codes that have an entry, in its order: that of the exit statuses.
func Codes() (codes []string) {
	for line := range strings.Lines(troubleshooting) {
		if code, ok := strings.CutPrefix(line, "## "); ok {
			codes = append(codes, strings.TrimSpace(code))
		}
	}
	return codes
}

// Entry returns what troubleshooting.md says of an error code, for a terminal, and the sentence that says what the code means; "" if nothing.
func Entry(code string) (text, means string) {
	_, rest, found := strings.Cut(troubleshooting, "\n## "+code+"\n")
	if !found {
		return "", ""
	}
	entry, _, _ := strings.Cut(rest, "\n## ")
	var b strings.Builder
	fence := false
	for line := range strings.Lines(strings.TrimSpace(entry) + "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			fence = !fence
		case fence:
			b.WriteString("    " + line)
		case !strings.HasPrefix(line, "<!--"):
			b.WriteString(strings.ReplaceAll(line, "**", ""))
		}
	}
	means, _, _ = strings.Cut(strings.TrimSpace(entry), "\n\n")
	return b.String(), strings.TrimSpace(strings.TrimPrefix(means, "**It means:**"))
}
