// Command manual writes the manual pages and the shells' completions into a folder: manual DIR, in the root of the source tree. It is a tool of the build, and is not installed.
package main

import (
	"fmt"
	"os"

	"github.com/bindgate/bindgate/policy/manual"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manual DIR")
		os.Exit(64)
	}
	if err := manual.Write(os.Args[1], "."); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}
