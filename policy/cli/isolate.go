package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/hook"
	"github.com/bindgate/bindgate/policy/lifecycle"
)

// processFlags say which process is a container's first.
type processFlags struct {
	pid           int
	runtime, name string
}

const processHelp = `
The process is named by its --pid, or by --runtime and the --name that docker, podman or runc knows the container by: they are asked with your own rights, before
root is given up. A container of Mesos' Docker containerizer is found by Mesos' id too.`

func (p *processFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&p.pid, "pid", 0, "the `PID` of the container's first process, as seen from here")
	f.StringVar(&p.runtime, "runtime", "", "ask this runtime for the process instead: "+strings.Join(hook.Runtimes, ", "))
	f.StringVar(&p.name, "name", "", "the container's `NAME` or id there")
	cmd.MarkFlagsOneRequired("pid", "runtime")
	cmd.MarkFlagsMutuallyExclusive("pid", "runtime")
	cmd.MarkFlagsRequiredTogether("runtime", "name")
	_ = cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(hook.Runtimes, cobra.ShellCompDirectiveNoFileComp))
}

// startFor is start for a command about a process. It asks the runtime first, with the caller's rights, and reads the answer when root was given up. held are the
// volumes that the runtime's engine holds itself.
func (a *app) startFor(cmd *cobra.Command, p *processFlags) (ctx context.Context, s *session, held map[hook.Held]string, err error) {
	var asked *hook.Asked
	if p.runtime != "" {
		if asked, err = hook.Ask(cmd.Context(), p.runtime, p.name); err != nil {
			return nil, nil, nil, err
		}
		defer asked.Close()
	}
	if ctx, s, err = a.start(cmd); err == nil && asked != nil {
		if p.pid, held, err = asked.Process(ctx); err != nil {
			s.Close()
		}
	}
	return ctx, s, held, err
}

func (a *app) isolateCommand() *cobra.Command {
	return a.processCommand(&cobra.Command{
		Use:   "isolate --container ID (--pid PID | --runtime R --name NAME)",
		Short: "attach a prepared container's volumes to its first process' mount namespace",
		Long: `Isolate attaches all volumes that prepare made available to the container, with one request to bindgate-helper: all of them or none. The process must
be in a mount namespace of its own, and match a target rule of helper.toml.

A missing container_path is created under the container's own root filesystem. A container that shares the host's root must have the path already
(target_missing, 65).

Again for the same process it changes nothing and prints the same; for another process it is a conflict (65).
` + processHelp,
		Example: `  bindgate isolate --container web-1 --pid 4711`,
	}, (*lifecycle.Isolator).Isolate)
}

func (a *app) bindCommand() *cobra.Command {
	return a.processCommand(&cobra.Command{
		Use:   "bind --container ID (--pid PID | --runtime R --name NAME)",
		Short: "tell which process is a container's first, when the agent makes the mounts itself",
		Long: `Bind is for agents that make the mounts themselves, from what prepare --mounts-by agent printed. It only records the process, so that bindgate knows
whether the container is alive and can clean up after it.
` + processHelp,
		Example: `  bindgate prepare --container web-1 --mounts-by agent -v data:/data
  bindgate bind --container web-1 --pid 4711`,
	}, (*lifecycle.Isolator).Bind)
}

func (a *app) processCommand(cmd *cobra.Command, verb func(*lifecycle.Isolator, context.Context, string, int) (*lifecycle.Isolated, error)) *cobra.Command {
	var container string
	p := &processFlags{}
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, s, held, err := a.startFor(cmd, p)
		if err != nil {
			return err
		}
		defer s.Close()
		out, err := verb(s.Isolator, ctx, container, p.pid)
		if err != nil {
			return err
		}
		out.Warnings = append(out.Warnings, hook.Warnings(out.Mounts, held)...)
		return a.emitIsolated(out)
	}
	cmd.Flags().StringVar(&container, "container", "", "the container's `ID`")
	p.add(cmd)
	required(cmd, "container")
	return cmd
}

func (a *app) emitIsolated(out *lifecycle.Isolated) error {
	return a.emit(out, out.Warnings, func(t *tables) {
		t.table("", "no mounts", []any{"driver", "volume", "mode", "path", "target", "mount id", "locked"}, mountRows(out.Mounts))
	})
}

func mountRows(mounts []lifecycle.Mount) [][]any {
	var rows [][]any
	for _, m := range mounts {
		rows = append(rows, []any{m.Driver, m.Name, m.Mode, m.ContainerPath, m.Target, m.MountID, yes(m.Locked)})
	}
	return rows
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
