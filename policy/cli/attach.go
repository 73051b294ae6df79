package cli

import (
	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/hook"
	"github.com/bindgate/bindgate/policy/lifecycle"
)

func (a *app) attachCommand() *cobra.Command {
	j, p := &jobFlags{}, &processFlags{}
	cmd := &cobra.Command{
		Use:   "attach --container ID (--pid PID | --runtime R --name NAME) [VOLUMES] [FILE | -]",
		Short: "give a running container more volumes",
		Long: `Attach is prepare and isolate in one, for the volumes that it names: all of them or none. A container that bindgate does not know gets a record, which
the detach of its last volume drops.
` + jobHelp + "\n" + processHelp,
		Example: `  bindgate attach --container web-1 --pid 4711 -v scratch:/scratch
  bindgate attach --container web-1 --pid 4711 --mount driver=rexray,name=db,target=/db,readonly
  bindgate attach --container web-1 --runtime docker --name web-1 -v scratch:/scratch`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.reads = args
			ctx, s, held, err := a.startFor(cmd, p)
			if err != nil {
				return err
			}
			defer s.Close()
			r, err := a.request(j, args, s.policy)
			if err != nil {
				return err
			}
			out, err := s.Attach(ctx, r, p.pid)
			if err != nil {
				return err
			}
			out.Warnings = append(out.Warnings, hook.Warnings(out.Mounts, held)...)
			return a.emitIsolated(out)
		},
	}
	j.add(cmd)
	p.add(cmd)
	required(cmd, "container")
	return cmd
}

func (a *app) detachCommand() *cobra.Command {
	var container string
	var which lifecycle.Which
	var lazy bool
	cmd := &cobra.Command{
		Use:   "detach --container ID (--path CONTAINER_PATH | --driver D --name N | --all)",
		Short: "take volumes out of a running container",
		Long: `Detach unmounts volumes in the container and lets them go, as cleanup does when the container has ended. Only mounts that bindgate made are touched.

If somebody uses a mount, or has mounted something on it, it is busy (75), with the processes named; --lazy does it all the same.`,
		Example: `  bindgate detach --container web-1 --path /scratch
  bindgate detach --container web-1 --driver rexray --name db
  bindgate detach --container web-1 --all --lazy`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (which.Driver == "") != (which.Name == "") {
				return usageError("cannot detach: a volume is named by --driver and --name together")
			}
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			out, err := s.Detach(ctx, container, which, lazy)
			return a.emitCleaned(out, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&container, "container", "", "the container's `ID`")
	f.StringVar(&which.Path, "path", "", "the volume at this container `PATH`")
	f.StringVar(&which.Driver, "driver", "", "the volume's driver")
	f.StringVar(&which.Name, "name", "", "the volume's name")
	f.BoolVar(&which.All, "all", false, "all volumes")
	f.BoolVar(&lazy, "lazy", false, "although somebody uses it")
	required(cmd, "container")
	cmd.MarkFlagsOneRequired("path", "name", "all")
	for _, other := range []string{"driver", "name"} {
		cmd.MarkFlagsMutuallyExclusive("path", other)
		cmd.MarkFlagsMutuallyExclusive("all", other)
	}
	cmd.MarkFlagsMutuallyExclusive("path", "all")
	return cmd
}
