package cli

import (
	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

func (a *app) cleanupCommand() *cobra.Command {
	var container string
	var o lifecycle.CleanupOptions
	cmd := &cobra.Command{
		Use:   "cleanup --container ID",
		Short: "let a container's volumes go, after it has ended",
		Long: `Cleanup detaches what is still attached, drops the container's references, has the driver unmount the volumes that nobody else uses, and drops the
record. A container that is not known has nothing to clean up: "known" is false, and the exit status 0.

It is busy (75) while the container's process is alive, while nested containers are there, or while something holds a mount. If a driver cannot unmount, the
volume is pending (75): the document tells which, since when and why, and the next cleanup or recover tries again.`,
		Example: `  bindgate cleanup --container web-1
  bindgate cleanup --container web-1 --forget    # its plugin is gone for good`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			out, err := s.Cleanup(ctx, container, o)
			return a.emitCleaned(out, err)
		},
	}
	cmd.Flags().StringVar(&container, "container", "", "the container's `ID`")
	cmd.Flags().BoolVar(&o.Force, "force", false, "although its process is alive; detaches lazily")
	cmd.Flags().BoolVar(&o.Forget, "forget", false, "drop the record without asking the drivers")
	required(cmd, "container")
	return cmd
}

// emitCleaned writes a result, which there may be although there is an error, and returns the error.
func (a *app) emitCleaned(out *lifecycle.Cleaned, err error) error {
	if out == nil {
		return err
	}
	werr := a.emit(out, out.Warnings, func(t *tables) {
		switch {
		case !out.Known:
			t.line("%s is not known; there is nothing to do", out.Container)
		case len(out.Detached)+len(out.Unmounted)+len(out.Pending) == 0:
			t.line("nothing was attached or to be unmounted")
		}
		if len(out.Detached) > 0 {
			var rows [][]any
			for _, d := range out.Detached {
				rows = append(rows, []any{d.Driver, d.Name, d.ContainerPath})
			}
			t.table("Detached", "", []any{"driver", "volume", "path"}, rows)
		}
		if len(out.Unmounted) > 0 {
			var rows [][]any
			for _, v := range out.Unmounted {
				rows = append(rows, []any{v.Driver, v.Name})
			}
			t.table("Unmounted", "", []any{"driver", "volume"}, rows)
		}
		showPending(t, out.Pending)
	})
	if err != nil {
		return err
	}
	return werr
}

func showPending(t *tables, pending []lifecycle.Pending) {
	if len(pending) == 0 {
		return
	}
	var rows [][]any
	for _, p := range pending {
		holders := ""
		for i, h := range p.Holders {
			if i > 0 {
				holders += ", "
			}
			holders += h.String()
		}
		rows = append(rows, []any{p.Driver, p.Name, age(p.Since), p.Error, holders})
	}
	t.table("Pending", "", []any{"driver", "volume", "for", "why", "held by"}, rows)
}
