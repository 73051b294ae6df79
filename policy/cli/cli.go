// Package cli is the command line of bindgate, and of dvdcli: one file for each group of commands, over package lifecycle. Main is all that a program needs.
//
// What the package promises is DESIGN section 8: stdout carries data only, errors go to stderr in two forms, and the exit status is the class of the
// error's code. Before it reads a job or asks a driver it has become the policy user, or refused.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/config"
	_ "github.com/bindgate/bindgate/policy/early"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// Streams are where a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is one run of the command.
type app struct {
	Streams
	name   string                         // by which it was called
	become func(*config.Policy) error     // give up root, or refuse
	reads  []string                       // files and folders that it reads after that, by their paths
	writes []string                       // folders that it writes to after that
	load   func() (*config.Policy, error) // policy.toml
	seam   func(*lifecycle.Options)       // for tests

	observe func(what, call string, took time.Duration, err error) // is told of the calls of drivers and the helper; nil: nobody is

	owner    string
	timeout  time.Duration
	logLevel string
	output   string
}

// session is what a command works with after root was given up.
type session struct {
	*lifecycle.Isolator
	policy *config.Policy
	log    *slog.Logger
}

// Main runs the command as the program that it was called as, bindgate, dvdcli or bindgate-nomad, and returns its exit status. args begins with that name.
func Main(args []string, s Streams) int {
	a := &app{Streams: s, name: "bindgate", become: become, load: config.LoadPolicy}
	if len(args) > 0 {
		if name := filepath.Base(args[0]); name == dvdcliName || name == nomadName {
			a.name = name
		}
	}
	return a.run(args[min(1, len(args)):])
}

// Commands returns the command lines of the programs that this one is: bindgate, dvdcli and bindgate-nomad. They are to be read, for a manual or completions, not run.
func Commands() []*cobra.Command {
	return []*cobra.Command{(&app{name: "bindgate"}).root(nil), (&app{name: dvdcliName}).dvdcli(), (&app{name: nomadName}).nomad()}
}

func (a *app) run(args []string) int {
	ctx, signalled, stop := interruptible()
	defer stop()
	var root *cobra.Command
	switch a.name {
	case dvdcliName:
		root = a.dvdcli()
	case nomadName:
		root = a.nomad()
	default:
		a.output = wantsJSON(args) // for an error that comes before the flags are read
		root = a.root(args)
	}
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if ended := (*exec.ExitError)(nil); errors.As(err, &ended) { // it was us, and has said why
		return ended.ExitCode()
	}
	status := a.report(err)
	if a.name == dvdcliName {
		return 1
	}
	if s := signalled(); s != nil {
		return 128 + int(s.(syscall.Signal))
	}
	return status
}

// wantsJSON returns "json" if the command line asks for it, even where it cannot be read otherwise.
func wantsJSON(args []string) string {
	for i, arg := range args {
		switch {
		case arg == "--":
			return ""
		case arg == "-ojson", arg == "-o=json", arg == "--output=json", (arg == "-o" || arg == "--output") && i+1 < len(args) && args[i+1] == "json":
			return "json"
		}
	}
	return ""
}

// interruptible returns a context that SIGTERM and SIGINT end, so that what is under way is undone, and which of them it was. A second one kills us: the
// journal knows what is left.
func interruptible() (ctx context.Context, signalled func() os.Signal, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	c := make(chan os.Signal, 1)
	got := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM, unix.SIGINT)
	go func() {
		select {
		case s := <-c:
			got <- s
			signal.Reset(unix.SIGTERM, unix.SIGINT)
			cancel()
		case <-ctx.Done():
		}
	}()
	signalled = func() os.Signal {
		select {
		case s := <-got:
			return s
		default:
			return nil
		}
	}
	return ctx, signalled, func() { signal.Stop(c); cancel() }
}

// usageError is a mistake on the command line.
func usageError(format string, args ...any) *wire.Error {
	return wire.Errorf(wire.Usage, "usage", format, args...)
}

func flagError(cmd *cobra.Command, err error) error {
	return usageError("cannot read the command line: %v", err).WithHint("%s --help", cmd.CommandPath())
}

func (a *app) root(args []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "bindgate",
		Short: "attach storage volumes to containers with kernel mounts, from an unprivileged agent",
		Long: `bindgate attaches storage volumes to containers. A job names volumes; the volume's driver (any Docker volume plugin, or the built-in driver
"local") makes each one available on the host; bindgate-helper, a small setuid program, bind-mounts it into the job's container; when the last
container that uses it ends, the driver lets it go.

The commands are the verbs of the Mesos isolator interface, so that an agent's hook maps onto them one to one: recover when the agent starts,
prepare before a container exists, isolate when its first process is there, cleanup when it has ended.

bindgate runs as the policy user of the installation. Started as root it becomes that user before it reads a job or talks to a driver; started
as anyone else it refuses. Who may use which volume is decided by the [[rule]]s of policy.toml.`,
		Example: `  bindgate volume create myvolume
  bindgate prepare --container web-1 -v myvolume:/data
  bindgate isolate --container web-1 --pid 4711
  bindgate status
  bindgate cleanup --container web-1`,
		Version:       conf.Version(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError("cannot do anything: no command is given").WithHint("bindgate --help")
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true // they are installed
	root.SetVersionTemplate("bindgate {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringVar(&a.owner, "owner", lifecycle.DefaultOwner, "whose records these are: each agent on a host has its own")
	f.DurationVar(&a.timeout, "timeout", 0, "give up after this time, such as 90s (default: each stage has its own, in policy.toml)")
	f.StringVar(&a.logLevel, "log-level", "warn", "what is told on stderr: debug, info, warn or error")
	f.StringVarP(&a.output, "output", "o", a.output, "table or json (default: table on a terminal, else json)")
	fixed := func(values ...string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return values, cobra.ShellCompDirectiveNoFileComp
		}
	}
	root.SetHelpCommand(helpCommand())
	_ = root.RegisterFlagCompletionFunc("output", fixed("table", "json"))
	_ = root.RegisterFlagCompletionFunc("log-level", fixed("debug", "info", "warn", "error"))
	commands := map[string]func() *cobra.Command{"prepare": a.prepareCommand, "isolate": a.isolateCommand, "bind": a.bindCommand, "attach": a.attachCommand,
		"detach": a.detachCommand, "cleanup": a.cleanupCommand, "recover": a.recoverCommand, "watch": a.watchCommand, "doctor": a.doctorCommand,
		"status": a.statusCommand, "usage": a.usageCommand, "volume": a.volumeCommand, "policy": a.policyCommand, "hook": a.hookCommand, "audit": a.auditCommand}
	if len(args) > 0 && commands[args[0]] != nil { // the others would be made at each start for nothing
		root.AddCommand(commands[args[0]]())
		return root
	}
	for _, command := range commands {
		root.AddCommand(command())
	}
	return root
}

// unprivileged looks at the flags that every command has, loads policy.toml, and gives up root and whatever else it can. What the command is to read or write
// besides by then is in a.reads and a.writes.
func (a *app) unprivileged() (*config.Policy, *slog.Logger, error) {
	if a.output != "" && a.output != "table" && a.output != "json" {
		return nil, nil, usageError("cannot write %q: -o is table or json", a.output)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, nil, usageError("cannot use --log-level %q: it is debug, info, warn or error", a.logLevel)
	}
	if a.timeout < 0 {
		return nil, nil, usageError("cannot use --timeout %v: it is negative", a.timeout)
	}
	policy, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	if err := a.become(policy); err != nil {
		return nil, nil, err
	}
	if err := confine(policy, a.reads, a.writes); err != nil {
		return nil, nil, err
	}
	return policy, a.logger(level), nil
}

// start gives up root and opens the journal. Every command that reads a job, a record or a driver's answer calls it first.
func (a *app) start(cmd *cobra.Command) (context.Context, *session, error) {
	policy, log, err := a.unprivileged()
	if err != nil {
		return nil, nil, err
	}
	o := lifecycle.Options{Policy: policy, Owner: a.owner, Logger: log, Observe: a.observe}
	if a.seam != nil {
		a.seam(&o)
	}
	iso, err := lifecycle.Open(o)
	if err != nil {
		return nil, nil, err
	}
	return a.bounded(cmd), &session{iso, policy, log}, nil
}

// bounded is a command's context, with --timeout.
func (a *app) bounded(cmd *cobra.Command) context.Context {
	ctx := cmd.Context()
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		context.AfterFunc(ctx, cancel)
	}
	return ctx
}

// report writes an error to stderr and returns its exit status.
func (a *app) report(err error) int {
	e := a.asError(err)
	if a.output == "json" {
		writeJSON(a.Err, struct {
			Schema string           `json:"schema"`
			Error  *lifecycle.Error `json:"error"`
		}{lifecycle.Schema, e})
		return e.Exit()
	}
	lines := fmt.Sprintf("%s: %s%s%s\n", a.name, oneLine(e.Message), steps("undone", e.Undone), steps("left", e.Left))
	if e.Hint != "" {
		lines += fmt.Sprintf("hint: %s\n", printable(e.Hint, true))
	} else if e.Code != wire.Usage { // where --help says more
		lines += fmt.Sprintf("hint: bindgate help %s\n", e.Code)
	}
	if !a.inJournal() || journalError(e, lines) != nil {
		io.WriteString(a.Err, lines)
	}
	return e.Exit()
}

// steps tells on the line of an error what was undone, and what is left.
func steps(what string, list []lifecycle.Step) string {
	if len(list) == 0 {
		return ""
	}
	var says []string
	for _, s := range list {
		one := s.Stage + " of " + s.Driver + "/" + s.Name
		if s.Error != "" {
			one += " (" + s.Error + ")"
		}
		says = append(says, one)
	}
	return oneLine("; " + what + ": " + strings.Join(says, ", "))
}

// asError makes an error of the contract of any error. What has no code comes from the parser of the command line.
func (a *app) asError(err error) *lifecycle.Error {
	var e *lifecycle.Error
	if errors.As(err, &e) {
		return e
	}
	var w *wire.Error
	if !errors.As(err, &w) {
		why, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n") // what follows are suggestions
		w = usageError("cannot read the command line: %s", why).WithHint("%s --help", a.name)
	}
	return &lifecycle.Error{Code: w.Code, Message: w.Message, Hint: w.Hint, Stage: w.Stage}
}
