package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/policy/spec"
)

// volumeFlags are those of all volume commands.
type volumeFlags struct {
	driver string
	opts   []string
}

// volumeCall is one volume command after its flags were read.
type volumeCall func(ctx context.Context, s *session, driver, name string, opts map[string]string) error

func (a *app) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "create, list, look at, mount and remove volumes",
		Long: `The volume commands ask a volume's driver directly: the built-in driver "local", or any Docker volume plugin. The rules of policy.toml hold for them,
too: a rule for certain containers or paths does not match, since there is none.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError("cannot do anything: no volume command is given").WithHint("bindgate volume --help")
		},
	}
	cmd.AddCommand(a.volumeCreate(), a.volumeList(), a.volumeInspect(), a.volumePath(), a.volumeMount(), a.volumeUnmount(), a.volumeRemove())
	return cmd
}

// one makes a command about one volume.
func (a *app) one(cmd *cobra.Command, hasOpts bool, call volumeCall) *cobra.Command {
	v := &volumeFlags{}
	cmd.Args = cobra.ExactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, s, err := a.start(cmd)
		if err != nil {
			return err
		}
		defer s.Close()
		opts := map[string]string{}
		for _, o := range v.opts {
			key, value, err := spec.ParseOption("--opt", o)
			if err != nil {
				return err
			}
			opts[key] = value
		}
		driver := v.driver
		if driver == "" {
			driver = s.policy.Volume.DefaultDriver
		}
		return call(ctx, s, driver, args[0], opts)
	}
	cmd.Flags().StringVar(&v.driver, "driver", "", "the volume's driver (default: default_driver of policy.toml)")
	if hasOpts {
		cmd.Flags().StringArrayVar(&v.opts, "opt", nil, "an option for the driver, `K=V`")
	}
	return cmd
}

func (a *app) volumeCreate() *cobra.Command {
	return a.one(&cobra.Command{
		Use:   "create [--driver D] [--opt K=V]... NAME",
		Short: "make a volume",
		Long: `Create makes a volume, with options for its driver. Those of the driver local are mode (octal), uid and gid of its folder. A volume that exists stays as
it is, and "created" is false.`,
		Example: `  bindgate volume create myvolume
  bindgate volume create --opt mode=0750 --opt uid=1000 data
  bindgate volume create --driver rexray --opt size=5 db`,
	}, true, func(ctx context.Context, s *session, driver, name string, opts map[string]string) error {
		info, err := s.VolumeCreate(ctx, driver, name, opts)
		return a.emitVolume(info, err)
	})
}

func (a *app) volumeInspect() *cobra.Command {
	return a.one(&cobra.Command{
		Use:     "inspect [--driver D] NAME",
		Short:   "show what a driver says of a volume, and who uses it",
		Long:    `Inspect shows what the driver says of a volume: its mountpoint, options and status, and which containers use it.`,
		Example: `  bindgate volume inspect myvolume`,
	}, false, func(ctx context.Context, s *session, driver, name string, _ map[string]string) error {
		info, err := s.VolumeInspect(ctx, driver, name)
		return a.emitVolume(info, err)
	})
}

func (a *app) volumePath() *cobra.Command {
	return a.one(&cobra.Command{
		Use:     "path [--driver D] NAME",
		Short:   "show where a volume is on the host",
		Long:    `Path shows the mountpoint that the driver tells. It is empty for a volume that is mounted nowhere at present; some drivers never tell.`,
		Example: `  bindgate volume path --driver rexray db`,
	}, false, func(ctx context.Context, s *session, driver, name string, _ map[string]string) error {
		info, err := s.VolumePath(ctx, driver, name)
		if err != nil {
			return err
		}
		return a.emit(info, info.Warnings, func(t *tables) { t.line("%s", info.Mountpoint) })
	})
}

func (a *app) volumeMount() *cobra.Command {
	explicit := false
	cmd := a.one(&cobra.Command{
		Use:   "mount [--driver D] [--opt K=V]... NAME",
		Short: "make a volume available on the host",
		Long: `Mount has the driver mount a volume, creating it if need be, and leaves a reference of its own: no container's cleanup unmounts the volume before
volume unmount. Again it changes nothing.`,
		Example: `  bindgate volume mount --driver rexray db`,
	}, true, func(ctx context.Context, s *session, driver, name string, opts map[string]string) error {
		info, err := s.VolumeMount(ctx, driver, name, opts, explicit)
		if err != nil {
			return err
		}
		return a.emit(info, info.Warnings, func(t *tables) { t.line("%s", info.Mountpoint) })
	})
	cmd.Flags().BoolVar(&explicit, "explicit-create", false, "fail for a volume that does not exist, instead of creating it")
	return cmd
}

func (a *app) volumeUnmount() *cobra.Command {
	return a.one(&cobra.Command{
		Use:   "unmount [--driver D] NAME",
		Short: "drop what volume mount left",
		Long: `Unmount drops the reference that volume mount left, and has the driver unmount the volume if no container uses it. What containers use is theirs to let
go.`,
		Example: `  bindgate volume unmount --driver rexray db`,
	}, false, func(ctx context.Context, s *session, driver, name string, _ map[string]string) error {
		out, err := s.VolumeUnmount(ctx, driver, name)
		return a.emitCleaned(out, err)
	})
}

func (a *app) volumeRemove() *cobra.Command {
	return a.one(&cobra.Command{
		Use:     "rm [--driver D] NAME",
		Aliases: []string{"remove"},
		Short:   "delete a volume and what it holds",
		Long: `Rm has the driver delete a volume and everything in it. It is refused while anybody uses the volume (busy, 75), and always where volume.remove_disable
is set in policy.toml (denied, 77).`,
		Example: `  bindgate volume rm myvolume`,
	}, false, func(ctx context.Context, s *session, driver, name string, _ map[string]string) error {
		info, err := s.VolumeRemove(ctx, driver, name)
		if err != nil {
			return err
		}
		return a.emit(info, info.Warnings, func(t *tables) { t.line("removed %s/%s", info.Driver, info.Name) })
	})
}

func (a *app) volumeList() *cobra.Command {
	var driver string
	var filters []string
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls [--driver D] [--filter K=V]... [--quiet]",
		Aliases: []string{"list"},
		Short:   "list volumes",
		Long: `Ls lists the volumes of one driver, or of all that there are: local, those of policy.toml, and the plugins that are found. A driver that cannot be asked
is a warning. Only volumes that the rules let you use are shown.

The filters are driver=D, name=N (in both, * matches anything), used=true and used=false; a volume must pass all of them.`,
		Example: `  bindgate volume ls
  bindgate volume ls --driver rexray --filter name=db-* --quiet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			var drivers []string
			if driver != "" {
				drivers = []string{driver}
			}
			var pairs [][2]string
			for _, f := range filters {
				key, value, ok := strings.Cut(f, "=")
				if !ok {
					return usageError("cannot use --filter %q: it is K=V", f)
				}
				pairs = append(pairs, [2]string{key, value})
				if err := (&lifecycle.VolumeList{}).Filter(key, value); err != nil {
					return err
				}
			}
			out, err := s.VolumeList(ctx, drivers...)
			if err != nil {
				return err
			}
			for _, p := range pairs {
				if err := out.Filter(p[0], p[1]); err != nil {
					return err
				}
			}
			if quiet && a.output != "json" {
				a.warn(out.Warnings)
				var names []string
				for _, v := range out.Volumes {
					names = append(names, oneLine(v.Name))
				}
				return a.print(names...)
			}
			return a.emit(out, out.Warnings, func(t *tables) {
				var rows [][]any
				for _, v := range out.Volumes {
					rows = append(rows, []any{v.Driver, v.Name, v.Mountpoint, t.list(v.Containers)})
				}
				t.table("", "no volumes", []any{"driver", "volume", "mountpoint", "used by"}, rows)
			})
		},
	}
	cmd.Flags().StringVar(&driver, "driver", "", "only this driver's")
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "only those that match, `K=V`")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only their names, one a line")
	return cmd
}

func (a *app) emitVolume(info *lifecycle.VolumeInfo, err error) error {
	if err != nil {
		return err
	}
	return a.emit(info, info.Warnings, func(t *tables) {
		rows := [][]any{{"driver", info.Driver}, {"name", info.Name}, {"mountpoint", info.Mountpoint}}
		for _, key := range sortedKeys(info.Options) {
			rows = append(rows, []any{"option " + key, info.Options[key]})
		}
		for _, key := range sortedKeys(info.Status) {
			rows = append(rows, []any{"status " + key, info.Status[key]})
		}
		if info.Created != nil {
			rows = append(rows, []any{"created", info.Created})
		}
		if len(info.Containers) > 0 {
			rows = append(rows, []any{"used by", strings.Join(info.Containers, " ")})
		}
		t.table("", "", []any{"what", "value"}, rows)
	})
}
