// Package manual makes the manual pages and the shells' completions, at build time. What the code knows, commands, flags and error codes, is taken from it; bindgate-security(7) is SECURITY.md; the rest is
// written in docs/man. Names of the installation, such as @SYSCONFDIR@, stay in the pages for whoever installs them to fill in.
package manual

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/bindgate/bindgate/docs"
	"github.com/bindgate/bindgate/policy/cli"
	"github.com/bindgate/bindgate/wire"
)

// Write makes the folders man and completions in dir, from the source tree at checkout.
func Write(dir, checkout string) error {
	pages, err := Pages(checkout)
	if err != nil {
		return err
	}
	for _, d := range []string{"man", "completions"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for name, page := range pages {
		if err := os.WriteFile(filepath.Join(dir, "man", name), page, 0o644); err != nil {
			return err
		}
	}
	c := cli.Commands()[0]
	at := func(name string) string { return filepath.Join(dir, "completions", name) }
	if err := c.GenBashCompletionFileV2(at("bindgate.bash"), true); err != nil {
		return err
	}
	if err := c.GenZshCompletionFile(at("_bindgate")); err != nil {
		return err
	}
	return c.GenFishCompletionFile(at("bindgate.fish"), true)
}

// Pages returns all manual pages, in troff, by the names of their files.
func Pages(checkout string) (map[string][]byte, error) {
	date, err := date()
	if err != nil {
		return nil, err
	}
	pages := map[string][]byte{}
	for _, c := range cli.Commands() {
		if err := commands(pages, c, date); err != nil {
			return nil, err
		}
	}
	read := func(name string) string {
		data, e := os.ReadFile(filepath.Join(checkout, name))
		if e != nil {
			err = e
		}
		return string(data)
	}
	more := strings.Replace(read("docs/man/bindgate.1.md"), "{{codes}}", codes(), 1)
	before, after, _ := bytes.Cut(pages["bindgate.1"], []byte(".SH SEE ALSO\n"))
	pages["bindgate.1"] = slices.Concat(before, body(more), after)
	for _, name := range []string{"bindgate-helper.8", "helper.toml.5", "policy.toml.5"} {
		title, section := name[:len(name)-2], name[len(name)-1:]
		pages[name] = md2man.Render([]byte(front(title, section, date) + read("docs/man/"+name+".md")))
	}
	pages["bindgate-security.7"] = md2man.Render([]byte(front("bindgate-security", "7", date) + security(read("SECURITY.md"))))
	return pages, err
}

// date is what pages are dated with: SOURCE_DATE_EPOCH, so that they are the same whenever they are made.
func date() (time.Time, error) {
	n, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot date the pages: SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

func front(title, section string, date time.Time) string {
	return fmt.Sprintf("%% %q %q %q \"bindgate\" \"bindgate\"\n", strings.ToUpper(title), section, date.Format("Jan 2006"))
}

// commands makes a page for a command and one for each below it.
func commands(pages map[string][]byte, c *cobra.Command, date time.Time) error {
	c.DisableAutoGenTag = true
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	var page bytes.Buffer
	if err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Date: &date, Source: "bindgate", Manual: "bindgate"}, &page); err != nil {
		return err
	}
	pages[strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"] = page.Bytes()
	for _, sub := range c.Commands() {
		if strings.HasPrefix(sub.Short, "Help about any command") { // cobra's own, which GenMan adds
			continue
		}
		if err := commands(pages, sub, date); err != nil {
			return err
		}
	}
	return nil
}

// body renders sections that are put into a page.
func body(markdown string) []byte {
	page := md2man.Render([]byte(front("x", "1", time.Time{}) + markdown))
	return page[bytes.Index(page, []byte(".SH ")):]
}

// codes makes a list of the error codes and what they mean.
func codes() string {
	var list strings.Builder
	for _, code := range docs.Codes() {
		_, means := docs.Entry(code)
		fmt.Fprintf(&list, "%d, `%s`\n: %s\n\n", wire.Code(code).Exit(), code, means)
	}
	return list.String()
}

// installation changes default paths, as SECURITY.md has them, into the names of those of the installation.
var installation = strings.NewReplacer("/usr/local/", "@PREFIX@/", "/etc/bindgate", "@SYSCONFDIR@/bindgate", "/var/lib/bindgate", "@LOCALSTATEDIR@/lib/bindgate", "/var/log/bindgate", "@LOCALSTATEDIR@/log/bindgate",
	"/run/bindgate", "@RUNDIR@/bindgate", "With the default paths, as root:", "As root:")

// security makes a page of SECURITY.md.
func security(text string) string {
	_, text, _ = strings.Cut(text, "\n")
	text = regexp.MustCompile(`(?m)^#(#+ )`).ReplaceAllString(text, "$1")
	text = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(text, "$1")
	return "# NAME\n\nbindgate-security - what bindgate protects, from whom, and what it promises\n\n# DESCRIPTION\n" + installation.Replace(lists(text)) +
		"\n# SEE ALSO\n\n**bindgate**(1), **bindgate-helper**(8), **helper.toml**(5)\n"
}

// lists makes definition lists of tables, for which a terminal is too narrow: a row's first cell is the term, and the others follow, each after its column's name.
func lists(markdown string) string {
	var out strings.Builder
	var head []string
	for line := range strings.Lines(markdown) {
		if !strings.HasPrefix(line, "|") {
			head = nil
			out.WriteString(line)
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case head == nil:
			head = cells
		case strings.Trim(strings.Join(cells, ""), "-") != "":
			var says []string
			for i, c := range cells[1:] {
				says = append(says, head[i+1]+": "+c)
			}
			fmt.Fprintf(&out, "%s\n: %s\n\n", strings.TrimSpace(head[0]+" "+cells[0]), strings.Join(says, "; "))
		}
	}
	return out.String()
}
