// Command bindgate is the unprivileged side of bindgate: it parses jobs, talks to volume drivers, keeps the references and the journal, and asks
// bindgate-helper to attach. Started as root it becomes the policy user first. Called as dvdcli or as
// bindgate-nomad, it is that. See `bindgate help`, `dvdcli help` and `bindgate-nomad help`.
package main

import (
	"os"

	"github.com/bindgate/bindgate/policy/cli"
)

func main() {
	os.Exit(cli.Main(os.Args, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
