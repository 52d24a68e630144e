// Command table prints what the attack programs found, from build/attack.jsonl,
// and fails if an attack got through, or if docs/threat-model.md does not name the
// test of one.
//
//	go run ./tests/attack/table [-v] [-begin]
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"livepatch/tests/attack/report"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "table: error:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("table", flag.ContinueOnError)
	flags.SetOutput(stderr)
	begin := flags.Bool("begin", false, "forget the rows of earlier runs and leave")
	verbose := flags.Bool("v", false, "show what the user sees")
	if err := flags.Parse(args); err != nil {
		return err
	}
	name, err := report.File()
	if err != nil {
		return err
	}
	if *begin {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("cannot read rows: %w", err)
	}
	defer f.Close()
	rows, err := report.Read(f)
	if err != nil {
		return err
	}
	return errors.Join(report.Print(stdout, rows, *verbose), listed(name, rows))
}

// listed fails unless the threat model, which lies beside the folder of the rows,
// names the test of each row.
func listed(name string, rows []report.Row) error {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(name), "..", "docs", "threat-model.md"))
	if err != nil {
		return fmt.Errorf("cannot read the threat model: %w", err)
	}
	if missing := report.Unlisted(rows, string(b)); len(missing) > 0 {
		return fmt.Errorf("docs/threat-model.md has no row for %s", strings.Join(missing, ", "))
	}
	return nil
}
