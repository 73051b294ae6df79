package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bindgate/bindgate/docs"
	"github.com/bindgate/bindgate/wire"
)

// helpCommand is help, which also knows the error codes: what each means, what to look at, what to do. It needs no file and no user.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND | CODE | codes]",
		Short: "describe a command or an error code",
		Long: `Help describes a command. Of an error code it tells what it means, what to look at and what to do; "codes" is the list of them. It works for everybody,
also where bindgate cannot run.`,
		Example: `  bindgate help prepare
  bindgate help busy
  bindgate help codes`,
		DisableFlagsInUseLine: true,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) (list []string, _ cobra.ShellCompDirective) {
			if len(args) == 0 {
				for _, c := range cmd.Root().Commands() {
					list = append(list, c.Name())
				}
				list = append(append(list, docs.Codes()...), "codes")
			}
			return list, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if args[0] == "codes" {
					for _, code := range docs.Codes() {
						_, means := docs.Entry(code)
						fmt.Fprintf(cmd.OutOrStdout(), "%d  %-19s %s\n", wire.Code(code).Exit(), code, strings.ReplaceAll(means, "\n", " "))
					}
					return nil
				}
				if text, _ := docs.Entry(args[0]); text != "" {
					_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s (exit status %d)\n\n%s", args[0], wire.Code(args[0]).Exit(), text)
					return written(err)
				}
			}
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError("cannot help with %s: it is no command and no error code", strings.Join(args, " ")).WithHint("bindgate help, or bindgate help codes")
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}
