package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bindgate/bindgate/conf"
	plugin "github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// dvdcliName is the program's other name, and the owner of what it mounts: a reference of its own, which no other agent's unmount drops.
const dvdcliName = "dvdcli"

// dvdcliCall is one command of dvdcli after its flags were read.
type dvdcliCall func(ctx context.Context, s *session, opts map[string]string) error

// dvdcli is the command line of the program that the Mesos agent and mesos-module-dvdi call for each volume: 0 or 1, the mountpoint alone on stdout, what
// went wrong on stderr. Its callers count who uses a volume, so it does not: mounting again changes nothing, and unmounting once is enough.
func (a *app) dvdcli() *cobra.Command {
	a.owner, a.logLevel, a.output = dvdcliName, "warn", "table"
	root := &cobra.Command{
		Use:   dvdcliName,
		Short: "mount and unmount volumes through their drivers, for Mesos agents and scripts",
		Long: `dvdcli asks a Docker volume plugin, or the built-in driver "local", for one volume. It takes the commands and flags of the dvdcli that Mesos' docker/volume
isolator and mesos-module-dvdi call, so they use bindgate without any other change.

What mount leaves is a reference of its own: no container's cleanup unmounts the volume before dvdcli unmount, and dvdcli unmount does not unmount it under a
container. Mounting again changes nothing. Callers count who uses a volume; dvdcli does not.

It runs as the policy user of the installation (started as root it becomes that user). The rules of policy.toml hold; the owner in them is "dvdcli".`,
		Example: `  dvdcli mount --volumedriver=rexray --volumename=db --volumeopts=size=5 --volumeopts=iops=150
  dvdcli unmount --volumedriver=rexray --volumename=db`,
		Version:       conf.Version(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			return usageError("cannot do anything: no command is given").WithHint("dvdcli --help")
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("dvdcli of bindgate {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	var driver, name string
	var options []string
	explicit := false
	f := root.PersistentFlags()
	f.StringVar(&driver, "volumedriver", "", "the volume's `DRIVER`")
	f.StringVar(&name, "volumename", "", "the volume's `NAME`")
	// mesos-module-dvdi spells it in its own way.
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, flag string) pflag.NormalizedName {
		if flag == "explicitCreate" {
			flag = "explicitcreate"
		}
		return pflag.NormalizedName(flag)
	})
	add := func(use, short string, call dvdcliCall) *cobra.Command {
		cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case driver == "":
				return usageError("cannot %s: --volumedriver is missing", use).WithHint("%s --help", cmd.CommandPath())
			case name == "" && use != "list":
				return usageError("cannot %s: --volumename is missing", use).WithHint("%s --help", cmd.CommandPath())
			}
			opts, err := volumeOpts(options)
			if err != nil {
				return err
			}
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			return call(ctx, s, opts)
		}}
		root.AddCommand(cmd)
		return cmd
	}
	create := add("create", "make a volume", func(ctx context.Context, s *session, opts map[string]string) error {
		_, err := s.VolumeCreate(ctx, driver, name, opts)
		return err
	})
	add("remove", "delete a volume and what it holds", func(ctx context.Context, s *session, _ map[string]string) error {
		_, err := s.VolumeRemove(ctx, driver, name)
		return err
	})
	mount := add("mount", "mount a volume, made if it does not exist, and print where", func(ctx context.Context, s *session, opts map[string]string) error {
		info, err := s.VolumeMount(ctx, driver, name, opts, explicit)
		if err != nil {
			return err
		}
		return a.print(info.Mountpoint)
	})
	add("unmount", "unmount a volume that was mounted with mount", func(ctx context.Context, s *session, _ map[string]string) error {
		_, err := s.VolumeUnmount(ctx, driver, name)
		var e *wire.Error
		if errors.As(err, &e) && e.Code == wire.NotFound { // as its caller wants it: Mesos unmounts what it could not mount, too, and keeps the container if that fails
			fmt.Fprintf(a.Err, "%s: nothing to do: %s\n", a.name, oneLine(err.Error()))
			return nil
		}
		return err
	})
	add("path", "print where a volume is mounted, nothing if it is not", func(ctx context.Context, s *session, _ map[string]string) error {
		info, err := s.VolumeInspect(ctx, driver, name)
		if err == nil && info.Mountpoint == "" {
			info, err = s.VolumePath(ctx, driver, name)
			if errors.Is(err, plugin.ErrRefused) { // it exists; some have no path but of what is mounted
				return nil
			}
		}
		if err != nil || info.Mountpoint == "" {
			return err
		}
		return a.print(info.Mountpoint)
	})
	add("get", "print a volume's name, if it exists", func(ctx context.Context, s *session, _ map[string]string) error {
		info, err := s.VolumeInspect(ctx, driver, name)
		if err != nil {
			return err
		}
		return a.print(info.Name)
	})
	add("list", "print the names of a driver's volumes", func(ctx context.Context, s *session, _ map[string]string) error {
		list, err := s.VolumeList(ctx, driver)
		if err != nil {
			return err
		}
		var names []string
		for _, v := range list.Volumes {
			names = append(names, v.Name)
		}
		return a.print(names...)
	})
	for _, cmd := range []*cobra.Command{create, mount} {
		cmd.Flags().StringArrayVar(&options, "volumeopts", nil, "options for a volume that does not exist yet, `K=V[,K=V]...`")
	}
	mount.Flags().BoolVar(&explicit, "explicitcreate", false, "fail for a volume that does not exist, instead of making it")
	root.AddCommand(&cobra.Command{Use: "version", Short: "print the version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		return a.print("dvdcli of bindgate " + conf.Version())
	}})
	return root
}

// print writes lines to stdout, as they are: no driver's path or name holds a control character. A caller that does not get the mountpoint must not take
// the exit status for success.
func (a *app) print(lines ...string) error {
	for _, line := range lines {
		if _, err := fmt.Fprintln(a.Out, line); err != nil {
			return written(err)
		}
	}
	return nil
}

// volumeOpts reads --volumeopts: each is K=V, or several with commas between them (a K=V with a comma goes into double quotes), or empty: mesos-module-dvdi
// writes that for a volume without options. Of a repeated key the last wins.
func volumeOpts(flags []string) (map[string]string, error) {
	opts := map[string]string{}
	for _, f := range flags {
		records, err := csv.NewReader(strings.NewReader(f)).ReadAll()
		if err != nil || strings.ContainsAny(f, "\r\n") { // which would end the record, and be lost
			return nil, usageError("cannot use --volumeopts %q: it is K=V, or several with commas between them", f)
		}
		for _, r := range records {
			for _, o := range r {
				key, value, err := spec.ParseOption("--volumeopts", o)
				if err != nil {
					return nil, err
				}
				opts[key] = value
			}
		}
	}
	return opts, nil
}
