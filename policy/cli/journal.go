package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

// A journalHandler logs to systemd's journal with fields of its own, so that journalctl BINDGATE_CONTAINER=web-1 finds what was said of it.
type journalHandler struct {
	level slog.Level
	with  []slog.Attr
}

// inJournal says whether systemd has connected stderr to the journal: then that takes fields, too.
func (a *app) inJournal() bool {
	if a.Err != os.Stderr {
		return false
	}
	is, err := journal.StderrIsJournalStream()
	return is && err == nil && journal.Enabled()
}

// logger writes to stderr, or to the journal if that is stderr.
func (a *app) logger(level slog.Level) *slog.Logger {
	if a.inJournal() {
		return slog.New(&journalHandler{level: level})
	}
	return slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: level}))
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{h.level, append(append([]slog.Attr(nil), h.with...), attrs...)}
}

func (h *journalHandler) WithGroup(string) slog.Handler { return h } // there are none

// Handle sends a record: its attributes are in the message, for people, and fields, for programs.
func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	priority := journal.PriErr
	switch {
	case r.Level < slog.LevelInfo:
		priority = journal.PriDebug
	case r.Level < slog.LevelWarn:
		priority = journal.PriInfo
	case r.Level < slog.LevelError:
		priority = journal.PriWarning
	}
	message, fields := r.Message, map[string]string{}
	add := func(a slog.Attr) bool {
		v := oneLine(a.Value.String())
		fields[a.Key] = v
		message += fmt.Sprintf(" %s=%q", a.Key, v)
		return true
	}
	for _, a := range h.with {
		add(a)
	}
	r.Attrs(add)
	return sendJournal(priority, message, fields)
}

// sendJournal sends one entry, its fields as BINDGATE_NAME.
func sendJournal(priority journal.Priority, message string, fields map[string]string) error {
	vars := map[string]string{"SYSLOG_IDENTIFIER": "bindgate"}
	for k, v := range fields {
		if v != "" {
			vars["BINDGATE_"+strings.ToUpper(k)] = v
		}
	}
	return journal.Send(message, priority, vars)
}

// journalError sends an error as report would write it.
func journalError(e *lifecycle.Error, lines string) error {
	return sendJournal(journal.PriErr, strings.TrimSpace(lines), map[string]string{"code": string(e.Code), "stage": e.Stage})
}
