package cli

import (
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

func (a *app) statusCommand() *cobra.Command {
	var q lifecycle.StatusQuery
	cmd := &cobra.Command{
		Use:   "status [--container ID | --volume DRIVER/NAME]",
		Short: "show what is attached where",
		Long: `Status shows the containers, how far each came, and the volumes in use with who uses them. It shows all owners unless --owner names one, and waits for
no lock and no driver.

A container is preparing, prepared (it waits for its process), isolating, isolated, bound (the agent made the mounts) or cleaning.`,
		Example: `  bindgate status
  bindgate status --container web-1 -o json
  bindgate status --volume rexray/db`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			if cmd.Flags().Changed("owner") {
				q.Owner = s.Owner()
			}
			out, err := s.Status(ctx, q)
			if err != nil {
				return err
			}
			return a.emit(out, out.Warnings, func(t *tables) { showStatus(t, out) })
		},
	}
	cmd.Flags().StringVar(&q.Container, "container", "", "only this container")
	cmd.Flags().StringVar(&q.Volume, "volume", "", "only this volume and who uses it, `DRIVER/NAME`")
	cmd.MarkFlagsMutuallyExclusive("container", "volume")
	return cmd
}

func showStatus(t *tables, s *lifecycle.Status) {
	var rows [][]any
	for _, c := range s.Containers {
		pid := ""
		if c.PID != 0 {
			pid = fmt.Sprint(c.PID)
		}
		var volumes []string
		for _, v := range c.Volumes {
			volumes = append(volumes, strings.TrimSuffix(v.Name+":"+v.ContainerPath+":"+v.Mode, ":rw"))
		}
		rows = append(rows, []any{c.Container, c.Owner, cell{value: pid, right: true}, stateOf(c), t.list(volumes)})
	}
	t.table("Containers", "no containers", []any{"container", "owner", "pid", "state", "volumes"}, rows)
	rows = nil
	var pending []lifecycle.Pending
	for _, v := range s.Volumes {
		users := append([]string(nil), v.Containers...)
		if v.Mounted {
			users = append(users, "(volume mount)")
		}
		used := cell{value: t.list(users)}
		if v.Pending != nil {
			pending = append(pending, *v.Pending)
			used = cell{value: strings.TrimSpace(t.list(users) + " (unmount pending)"), color: text.Colors{text.FgYellow}}
		}
		rows = append(rows, []any{v.Driver, v.Name, v.Mountpoint, used})
	}
	t.table("Volumes", "no volumes in use", []any{"driver", "volume", "mountpoint", "used by"}, rows)
	showPending(t, pending)
}

// stateOf is how far a container came, and whether its process still runs.
func stateOf(c lifecycle.ContainerStatus) cell {
	switch {
	case c.PID != 0 && !c.Alive:
		return cell{value: c.Phase + ", dead", color: text.Colors{text.FgRed}}
	case c.Phase == "isolated" || c.Phase == "bound":
		return cell{value: c.Phase, color: text.Colors{text.FgGreen}}
	}
	return cell{value: c.Phase, color: text.Colors{text.FgYellow}}
}

func (a *app) usageCommand() *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use:     "usage --container ID",
		Short:   "show how full a container's volumes are",
		Long:    `Usage shows bytes and inodes of the filesystem that each volume lies on, all of it and what is free. It waits for no lock and no driver.`,
		Example: `  bindgate usage --container web-1`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			out, err := s.Usage(ctx, container)
			if err != nil {
				return err
			}
			return a.emit(out, out.Warnings, func(t *tables) {
				var rows [][]any
				for _, v := range out.Volumes {
					right := func(s string) cell { return cell{value: s, right: true} }
					row := []any{v.Driver, v.Name, v.ContainerPath, right(""), right(""), right(""), right("")}
					if v.Alive {
						row = []any{v.Driver, v.Name, v.ContainerPath, right(size(v.Bytes)), right(size(v.BytesFree)), used(v.Bytes, v.BytesFree),
							used(v.Inodes, v.InodesFree)}
					}
					rows = append(rows, row)
				}
				t.table("", "no volumes", []any{"driver", "volume", "path", "size", "free", "used", "inodes used"}, rows)
			})
		},
	}
	cmd.Flags().StringVar(&container, "container", "", "the container's `ID`")
	required(cmd, "container")
	return cmd
}

// used is how much of a filesystem is not free, in percent; nothing for one that does not count.
func used(all, free uint64) cell {
	if all == 0 {
		return cell{value: "", right: true}
	}
	percent := int(100*(1-float64(min(free, all))/float64(all)) + 0.5)
	c := cell{value: fmt.Sprintf("%d %%", percent), right: true}
	switch {
	case percent >= 95:
		c.color = text.Colors{text.FgRed}
	case percent >= 80:
		c.color = text.Colors{text.FgYellow}
	}
	return c
}
