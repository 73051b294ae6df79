package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/lifecycle"
)

func (a *app) recoverCommand() *cobra.Command {
	var known, file string
	var o lifecycle.RecoverOptions
	cmd := &cobra.Command{
		Use:   "recover [--known ID,ID,... | --known-file FILE]",
		Short: "after a restart, bring records, kernel and drivers together again",
		Long: `Recover finishes or undoes what a crash left half done, cleans up the containers that are gone, nested ones first, tries again what is pending, and
moves records aside that cannot be trusted. Only records of --owner are touched.

With --known the agent says which containers it has. They are kept, even if they are dead: the agent will clean them up. Unlisted dead ones are cleaned up;
unlisted live ones are kept and reported as orphans, unless --force. Without --known the identity of their processes decides.

Exit status 0: all is consistent; what was cleaned or corrupt is data. 75: something is pending. --no-drivers and --timeout keep an agent's start from
hanging on a dead plugin.`,
		Example: `  bindgate recover
  bindgate recover --known web-1,web-2 --timeout 30s
  bindgate recover --known-file /var/lib/agent/containers --no-drivers`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.reads = []string{file}
			ctx, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			o.HasKnown = cmd.Flags().Changed("known") || cmd.Flags().Changed("known-file")
			if cmd.Flags().Changed("known-file") {
				data, err := a.readJob([]string{file})
				if err != nil {
					return err
				}
				known = string(data)
			}
			o.Known = strings.FieldsFunc(known, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })
			out, err := s.Recover(ctx, o)
			if out == nil {
				return err
			}
			if werr := a.emit(out, out.Errors, func(t *tables) { showRecovered(t, out) }); err == nil {
				err = werr
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&known, "known", "", "the containers that the agent has, `ID,ID,...`; may be empty")
	f.StringVar(&file, "known-file", "", "a `FILE` with them, separated by commas or white space; - is stdin")
	f.BoolVar(&o.Force, "force", false, "clean up containers that are alive and not known")
	f.BoolVar(&o.NoDrivers, "no-drivers", false, "ask no driver; what takes one stays pending")
	cmd.MarkFlagsMutuallyExclusive("known", "known-file")
	return cmd
}

func showRecovered(t *tables, out *lifecycle.Recovered) {
	var rows [][]any
	for _, x := range []struct {
		what string
		list []string
	}{{"kept", out.Kept}, {"orphan", out.Orphans}, {"cleaned", out.Cleaned}, {"rolled back", out.RolledBack}, {"corrupt", out.Corrupt}} {
		for _, id := range x.list {
			rows = append(rows, []any{x.what, id})
		}
	}
	for _, v := range out.Unmounted {
		rows = append(rows, []any{"unmounted", v.Driver + "/" + v.Name})
	}
	t.table("", "nothing to recover", []any{"what", "which"}, rows)
	showPending(t, out.Pending)
}
