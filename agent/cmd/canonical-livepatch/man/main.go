// Man writes the manual pages of canonical-livepatch into a folder. Packaging
// runs it with "go run"; it is not shipped.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra/doc"

	"livepatch/agent/internal/cli"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("cannot write manual pages: need one folder, got %d arguments", len(args))
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return fmt.Errorf("cannot write manual pages: %w", err)
	}
	root := cli.New(cli.Env{RunDir: "/run/canonical-livepatch"})
	root.DisableAutoGenTag = true                                            // it is the date of the build
	header := &doc.GenManHeader{Section: "1", Source: "canonical-livepatch"} // dated by SOURCE_DATE_EPOCH
	if err := doc.GenManTree(root, header, args[0]); err != nil {
		return fmt.Errorf("cannot write manual pages: %w", err)
	}
	return nil
}
