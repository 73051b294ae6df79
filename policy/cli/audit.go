package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/audit"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/lifecycle"
)

// auditQuery says which lines are wanted.
type auditQuery struct {
	refused          bool
	container, owner string
	follow           bool
	lines            int // the last of them; negative: all
}

func (q *auditQuery) wants(e *audit.Entry) bool {
	return (!q.refused || e.Event == audit.Refused) && (q.container == "" || e.Container == q.container) && (q.owner == "" || e.Owner == q.owner)
}

func (a *app) auditCommand() *cobra.Command {
	var q auditQuery
	cmd := &cobra.Command{
		Use:   "audit [--follow] [--refused] [--container ID] [FILE | -]",
		Short: "show the helper's audit log: who asked for what, and what was refused",
		Long: `Audit shows what the helper wrote down: every attach before it was visible and when it was done, every other change, and every failure. In a table what was
refused comes first, then what failed, then what was begun and never ended (a helper that was killed), then what was done. A document (-o json) has the
lines as they are in the log, in its order.

It is for root, who opens the log; what is in it is read as the policy user. It shows all owners unless --owner names one. Without FILE it is the log that
helper.toml names; FILE is an older one, and - is stdin, as in zcat audit.jsonl.2.gz | bindgate audit -.

With --follow it shows the last 10 lines and then each one as it is written, a document a line with -o json, until SIGINT, SIGTERM or --timeout. A log that
is rotated or emptied is followed on.`,
		Example: `  sudo bindgate audit
  sudo bindgate audit --refused --lines 20
  sudo bindgate audit --follow --container web-1`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("lines") {
				q.lines = map[bool]int{true: 10, false: -1}[q.follow]
			} else if q.lines < 0 {
				return usageError("cannot show %d lines", q.lines)
			}
			if cmd.Flags().Changed("owner") {
				q.owner = a.owner
			}
			file := ""
			if len(args) > 0 {
				file = args[0]
			}
			log, err := a.openAudit(file, q.follow)
			if err != nil {
				return err
			}
			defer log.Close()
			return a.audit(a.bounded(cmd), log, &q)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&q.follow, "follow", false, "stay, and show each line as it is written")
	f.BoolVar(&q.refused, "refused", false, "only what was refused")
	f.StringVar(&q.container, "container", "", "only requests for this container, by its `ID`")
	f.IntVar(&q.lines, "lines", 0, "only the last `N` of them (default: all, or 10 with --follow)")
	return cmd
}

// openAudit opens the log as root, then gives up root: what is in it was chosen by callers. The group that may read the log is kept, because the one that
// takes its place is opened afterwards.
func (a *app) openAudit(file string, follow bool) (*audit.Log, error) {
	var log *audit.Log
	switch {
	case file == "-" && follow:
		return nil, usageError("cannot follow stdin")
	case file == "-":
		log = audit.Stream(a.In)
	default:
		if file == "" {
			helper, err := conf.LoadHelper()
			if err != nil {
				return nil, err
			}
			file = helper.Audit.File
		}
		file, err := filepath.Abs(file)
		if err != nil {
			return nil, usageError("cannot find %s: %v", file, err)
		}
		if log, err = audit.Open(file, follow); err != nil {
			return nil, err
		}
		if follow {
			a.reads = []string{filepath.Dir(file)}
		}
	}
	load := a.load
	defer func() { a.load = load }()
	a.load = func() (*config.Policy, error) {
		p, err := load()
		if gid, ok := log.Group(groupID("adm")); err == nil && follow && ok {
			q := *p
			q.Groups = append(slices.Clone(q.Groups), strconv.Itoa(gid))
			p = &q
		}
		return p, err
	}
	if _, _, err := a.unprivileged(); err != nil {
		log.Close()
		return nil, err
	}
	return log, nil
}

func groupID(name string) int {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0
	}
	id, _ := strconv.Atoi(g.Gid)
	return id
}

// auditDocument is what a document of the log holds.
type auditDocument struct {
	Schema   string            `json:"schema"`
	Entries  []json.RawMessage `json:"entries"`
	Warnings []string          `json:"warnings,omitempty"`
}

func (a *app) audit(ctx context.Context, log *audit.Log, q *auditQuery) error {
	var last []*audit.Entry
	if err := log.Read(func(e *audit.Entry) error {
		if q.wants(e) {
			last = append(last, e)
			if q.lines >= 0 && len(last) > 2*q.lines+1000 { // not all of a long log
				last = slices.Clone(last[len(last)-q.lines:])
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if q.lines >= 0 {
		last = last[max(0, len(last)-q.lines):]
	}
	if !q.follow {
		doc := auditDocument{Schema: lifecycle.Schema, Entries: []json.RawMessage{}, Warnings: auditWarnings(log.Torn, last)}
		for _, e := range last {
			doc.Entries = append(doc.Entries, e.Raw)
		}
		return a.emit(doc, doc.Warnings, func(t *tables) { showAudit(t, last, q) })
	}
	show := a.auditLine()
	for _, e := range last {
		if err := show(e); err != nil {
			return err
		}
	}
	for torn := log.Torn; ; {
		if err := log.Wait(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		if err := log.Read(func(e *audit.Entry) error {
			if !q.wants(e) {
				return nil
			}
			return show(e)
		}); err != nil {
			return err
		}
		if log.Torn > torn {
			fmt.Fprintf(a.Err, "warning: a line of the log is torn\n")
			torn = log.Torn
		}
	}
}

// auditWarnings say what the log does not.
func auditWarnings(torn int, entries []*audit.Entry) (list []string) {
	omitted := 0
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Omitted)
		omitted += n
	}
	if omitted > 0 {
		list = append(list, fmt.Sprintf("%d more failures were not written down: the helper writes at most 20 in 10 seconds for each caller", omitted))
	}
	if torn > 0 {
		list = append(list, fmt.Sprintf("%d lines could not be read: a full disk or a crash tears lines", torn))
	}
	return list
}

// auditLine returns what shows one line while the log is followed.
func (a *app) auditLine() func(*audit.Entry) error {
	if a.output == "json" || a.output == "" && !isTerminal(a.Out) {
		return func(e *audit.Entry) error {
			return writeJSON(a.Out, struct {
				Schema string          `json:"schema"`
				Entry  json.RawMessage `json:"entry"`
			}{lifecycle.Schema, e.Raw})
		}
	}
	t := newTables(a.Out)
	return func(e *audit.Entry) error {
		what := auditWhat(e, nil)
		if e.Code != "" {
			what = e.Code + ": " + e.Reason
		}
		_, err := io.WriteString(a.Out, strings.TrimRight(fmt.Sprintf("%s  %s  %s  %s  %s", e.Time.Local().Format("2006-01-02 15:04:05"),
			t.paint(oneLine(fmt.Sprintf("%-7s", e.Event)), auditColors[e.Event]), oneLine(fmt.Sprintf("%-6s", e.Op)), oneLine(cmp.Or(auditOf(e), "-")), oneLine(what)), " ")+"\n")
		return written(err)
	}
}

var auditColors = map[string]text.Colors{audit.Refused: {text.FgRed, text.Bold}, audit.Failed: {text.FgYellow}, audit.Done: {text.FgGreen}, audit.Intent: {text.Faint}}

// showAudit shows the refused, the failed, the unfinished and the rest. An intent is shown with its outcome.
func showAudit(t *tables, entries []*audit.Entry, q *auditQuery) {
	rows := map[string][][]any{}
	open := map[string]*audit.Entry{} // intents, by who asked for what
	ended := map[*audit.Entry]*audit.Entry{}
	for _, e := range entries {
		key := strings.Join([]string{e.Boot, e.UID, e.PID, e.Op, e.Owner, e.Container, e.Volume}, "\x00")
		if e.Event == audit.Intent {
			open[key] = e
		} else if i := open[key]; i != nil {
			ended[e], ended[i] = i, e
			delete(open, key)
		}
	}
	for _, e := range entries {
		when, caller := e.Time.Local().Format("2006-01-02 15:04:05"), auditCaller(e)
		switch {
		case e.Code != "":
			rows[e.Event] = append(rows[e.Event], []any{when, caller, e.Op, auditOf(e), cell{value: e.Code, color: auditColors[e.Event]}, e.Reason})
		case e.Event == audit.Intent && ended[e] != nil:
		default:
			rows[e.Event] = append(rows[e.Event], []any{when, caller, e.Op, auditOf(e), auditWhat(e, ended[e])})
		}
	}
	failure := []any{"time", "caller", "request", "of", "code", "why"}
	t.table("Refused", "nothing was refused", failure, rows[audit.Refused])
	if q.refused {
		return
	}
	change := []any{"time", "caller", "request", "of", "what"}
	if len(rows[audit.Failed]) > 0 {
		t.table("Failed", "", failure, rows[audit.Failed])
	}
	if len(rows[audit.Intent]) > 0 {
		t.table("Begun, and no end written down", "", change, rows[audit.Intent])
	}
	t.table("Done", "nothing was done", change, rows[audit.Done])
}

// auditCaller is who asked: uid, pid and program.
func auditCaller(e *audit.Entry) string {
	s := "uid " + e.UID
	if e.PID != "" {
		s += " pid " + e.PID
	}
	if e.Exe != "" {
		s += " " + filepath.Base(e.Exe)
	}
	return s
}

// auditOf is what a request was about: a container or a local volume.
func auditOf(e *audit.Entry) string {
	return cmp.Or(strings.Trim(e.Owner+"/"+e.Container, "/"), e.Volume)
}

// auditWhat tells a change's mounts, with what its intent said of them.
func auditWhat(e, intent *audit.Entry) string {
	var list []string
	for _, m := range e.Mounts {
		if intent != nil {
			if i := slices.IndexFunc(intent.Mounts, func(x audit.Mount) bool { return x.MountID == m.MountID }); i >= 0 {
				m.Source, m.Mode = intent.Mounts[i].Source, intent.Mounts[i].Mode
			}
		}
		s := cmp.Or(m.Target, m.ContainerPath)
		if m.Source != "" {
			s = m.Source + " at " + s + " " + m.Mode
		}
		list = append(list, s)
	}
	if e.Forget != "" {
		list = append(list, "forgotten: no driver was asked")
	}
	return strings.Join(list, ", ")
}
