package cli

import (
	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

const jobHelp = `
The volumes are named by flags (-v or --mount), by a job in FILE, or by a job on stdin (no FILE, or -). A job is what the system that started the container
wrote: a Mesos ContainerInfo, ContainerConfig, TaskInfo or array of volumes, DVDI variables, a Marathon app, a Docker ContainerInfo, or an OCI
configuration. FILE is read as the policy user.

A relative CONTAINER_PATH lies in the container's sandbox and needs --directory.`

func (a *app) prepareCommand() *cobra.Command {
	j := &jobFlags{}
	cmd := &cobra.Command{
		Use:   "prepare --container ID [VOLUMES] [FILE | -]",
		Short: "make a container's volumes available on the host, before it exists",
		Long: `Prepare validates the job, journals what is to be done, asks each volume's driver to mount it (in parallel), and journals the mountpoints. It is all
or nothing: if one volume fails, it waits for the others, lets them all go again and reports every failure.

A volume that does not exist is created, unless --explicit-create, policy.toml or the job says otherwise. A volume that another container uses already is
not mounted a second time. No volumes: an empty list, and exit status 0.

An id that is in use is a conflict (65), unless its process is gone or it is of an earlier boot: then it is cleaned up first.

With --mounts-by agent the output has "mounts": what the agent has to mount itself; it calls bind instead of isolate then.
` + jobHelp,
		Example: `  bindgate prepare --container web-1 -v data:/data -v logs:/var/log/app:ro
  bindgate prepare --container web-1 --mount driver=rexray,name=db,target=/db,opt=size=5
  bindgate prepare --container web-1 --directory /var/lib/mesos/sandbox/web-1 job.json
  bindgate prepare --container web-1 --format mesos < containerinfo.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.reads = args
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			r, err := a.request(j, args, s.policy)
			if err != nil {
				return err
			}
			p, err := s.Prepare(ctx, r)
			if err != nil {
				return err
			}
			return a.emit(p, p.Warnings, func(t *tables) {
				t.table("", "no volumes", []any{"driver", "volume", "mode", "path", "mountpoint"}, volumeRows(p.Volumes))
			})
		},
	}
	j.add(cmd)
	required(cmd, "container")
	return cmd
}

func volumeRows(volumes []lifecycle.Volume) [][]any {
	var rows [][]any
	for _, v := range volumes {
		rows = append(rows, []any{v.Driver, v.Name, v.Mode, v.ContainerPath, v.Mountpoint})
	}
	return rows
}

// required marks flags that a command cannot do without.
func required(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		if err := cmd.MarkFlagRequired(f); err != nil {
			panic(err) // a flag that does not exist
		}
	}
}
