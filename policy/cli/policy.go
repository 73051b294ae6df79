package cli

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "look at who may use what",
		Long:  `The policy commands look at the [[rule]]s of policy.toml, which say who may use which volume, in which mode, where.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError("cannot do anything: no policy command is given").WithHint("bindgate policy --help")
		},
	}
	cmd.AddCommand(a.policyCheck())
	return cmd
}

func (a *app) policyCheck() *cobra.Command {
	j := &jobFlags{}
	cmd := &cobra.Command{
		Use:   "check [VOLUMES] [FILE | -]",
		Short: "tell which rule decides each volume of a job, and why",
		Long: `Check tells for each volume of a job which [[rule]] of policy.toml decides it, without doing anything. The first rule that matches decides; where none
does the volume is denied, and the rule that would allow it is printed. The exit status is 0 if all volumes are allowed, else 77.

Without --container only rules for any container match.
` + jobHelp,
		Example: `  bindgate policy check --container web-1 job.json
  bindgate policy check --container web-1 -v data:/data`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.reads = args
			_, s, err := a.start(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			r, err := a.request(j, args, s.policy)
			if err != nil {
				return err
			}
			out, err := s.PolicyCheck(r)
			if out == nil {
				return err
			}
			werr := a.emit(out, out.Warnings, func(t *tables) {
				var rows [][]any
				for _, d := range out.Volumes {
					rule := ""
					if d.Rule > 0 {
						rule = fmt.Sprint(d.Rule)
					}
					rows = append(rows, []any{d.Driver, d.Name, d.Mode, d.ContainerPath, yes(d.Allowed), rule, d.Why})
				}
				t.table("", "no volumes", []any{"driver", "volume", "mode", "path", "allowed", "rule", "why"}, rows)
			})
			if err != nil {
				return err
			}
			return werr
		},
	}
	j.add(cmd)
	return cmd
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
