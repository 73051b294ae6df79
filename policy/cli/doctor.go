package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/doctor"
	"github.com/bindgate/bindgate/wire"
)

func (a *app) doctorCommand() *cobra.Command {
	var fix, all bool
	cmd := &cobra.Command{
		Use:   "doctor [--fix]",
		Short: "look whether the installation can do its work, and tell what mends it",
		Long: `Doctor looks at the binaries, configuration and folders, the process' privileges, the kernel's features one by one, denials of security modules, the
cgroups, each driver, and at leaks: records without mounts, mounts without records, volumes that nobody uses. What is wrong comes with the commands that
mend it. As root it sees more; the drivers are always asked as the policy user.

With --fix it mends what is safe: it makes folders of bindgate's that are missing, takes permissions away that nobody should have (the helper's for others,
those of bindgate's folders and of the audit log), and drops records of mounts that are not there. It gives nobody a permission, trusts nothing that
somebody else could have written, and touches nothing that holds data.

The exit status is 0, or the class of the worst finding; warnings do not count.`,
		Example: `  sudo bindgate doctor
  bindgate doctor -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			policy, policyErr := a.load()
			d := doctor.New(policy, policyErr, fix)
			load := a.load
			a.load = func() (*config.Policy, error) { return d.Policy(), nil }
			defer func() { a.load = load }()
			become := a.become
			a.become = func(p *config.Policy) error { // what needs root comes before it is given up
				if os.Geteuid() == 0 {
					d.AsRoot()
				}
				return become(p)
			}
			ctx, s, err := a.start(cmd)
			var refused *wire.Error
			switch {
			case err == nil:
				defer s.Close()
				d.AsPolicyUser(ctx, s.Isolator)
			case errors.As(err, &refused) && (refused.Code == wire.Denied || refused.Code == wire.Usage):
				return err // somebody else, or a flag
			default:
				d.Stopped(err)
			}
			r, verdict := d.Report()
			if err := a.emit(r, nil, func(t *tables) { showReport(t, r, all) }); err != nil {
				return err
			}
			return verdict
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what is safe")
	cmd.Flags().BoolVar(&all, "all", false, "in a table, also show each check that is ok")
	return cmd
}

var stateColors = map[doctor.State]text.Colors{doctor.OK: {text.FgGreen}, doctor.Fixed: {text.FgGreen, text.Bold}, doctor.Unknown: {text.Faint},
	doctor.Warning: {text.FgYellow}, doctor.Failed: {text.FgRed, text.Bold}}

// showReport shows what was found, what is ok in one line for each group, and then the commands, which are not cut, to be copied.
func showReport(t *tables, r *doctor.Report, all bool) {
	var rows [][]any
	var mend []doctor.Check
	for i := 0; i < len(r.Checks); i++ {
		c := r.Checks[i]
		check, says := c.Check, c.Message
		if group, _, _ := strings.Cut(check, "."); !all && c.State == doctor.OK {
			n := 1
			for i+n < len(r.Checks) && r.Checks[i+n].State == doctor.OK && strings.HasPrefix(r.Checks[i+n].Check+".", group+".") {
				n++
			}
			if n > 1 {
				check, says = group, fmt.Sprintf("%d checks", n)
				i += n - 1
			}
		}
		rows = append(rows, []any{check, cell{value: c.State, color: stateColors[c.State]}, says})
		if c.State != doctor.OK && len(c.Fix)+len(c.Hint) > 0 {
			mend = append(mend, c)
		}
	}
	t.table("", "nothing was looked at", []any{"check", "state", "what"}, rows)
	for _, c := range mend {
		fmt.Fprintf(t.w, "\n%s\n", t.paint(oneLine(c.Check), stateColors[c.State]))
		for _, line := range c.Fix {
			fmt.Fprintf(t.w, "  %s\n", oneLine(line))
		}
		if c.Hint != "" {
			for line := range strings.Lines(printable(c.Hint, true)) {
				fmt.Fprintf(t.w, "  %s\n", t.paint("# "+strings.TrimSuffix(line, "\n"), text.Colors{text.Faint}))
			}
		}
	}
	if !r.Root {
		fmt.Fprintf(t.w, "\n%s\n", t.paint("As root bindgate doctor sees more.", text.Colors{text.Faint}))
	}
}
