package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

// processFlags say which process is a container's first.
type processFlags struct{ pid int }

func (p *processFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&p.pid, "pid", 0, "the `PID` of the container's first process, as seen from here")
	required(cmd, "pid")
}

func (a *app) isolateCommand() *cobra.Command {
	return a.processCommand(&cobra.Command{
		Use:   "isolate --container ID --pid PID",
		Short: "attach a prepared container's volumes to its first process' mount namespace",
		Long: `Isolate attaches all volumes that prepare made available to the container, with one request to bindgate-helper: all of them or none. The process must
be in a mount namespace of its own, and match a target rule of helper.toml.

A missing container_path is created under the container's own root filesystem. A container that shares the host's root must have the path already
(target_missing, 65).

Again for the same process it changes nothing and prints the same; for another process it is a conflict (65).`,
		Example: `  bindgate isolate --container web-1 --pid 4711`,
	}, (*lifecycle.Isolator).Isolate)
}

func (a *app) bindCommand() *cobra.Command {
	return a.processCommand(&cobra.Command{
		Use:   "bind --container ID --pid PID",
		Short: "tell which process is a container's first, when the agent makes the mounts itself",
		Long: `Bind is for agents that make the mounts themselves, from what prepare --mounts-by agent printed. It only records the process, so that bindgate knows
whether the container is alive and can clean up after it.`,
		Example: `  bindgate prepare --container web-1 --mounts-by agent -v data:/data
  bindgate bind --container web-1 --pid 4711`,
	}, (*lifecycle.Isolator).Bind)
}

func (a *app) processCommand(cmd *cobra.Command, verb func(*lifecycle.Isolator, context.Context, string, int) (*lifecycle.Isolated, error)) *cobra.Command {
	var container string
	p := &processFlags{}
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, s, err := a.start(cmd)
		if err != nil {
			return err
		}
		defer s.Close()
		out, err := verb(s.Isolator, ctx, container, p.pid)
		if err != nil {
			return err
		}
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
