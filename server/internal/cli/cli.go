// Package cli is what the commands of the server have in common: how options
// are written, and how a failure is told.
package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Main runs a command and returns its exit code. hint says what a user can do
// about an error, or "".
func Main(ctx context.Context, root *cobra.Command, args []string, hint func(error) string) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetArgs(Long(args))
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	tell(root.ErrOrStderr(), root.Name(), err, hint(err))
	return 1
}

// tell writes an error as one line, and the hint as another.
func tell(w io.Writer, name string, err error, hint string) {
	fmt.Fprintf(w, "%s: error: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
	if hint != "" {
		fmt.Fprintf(w, "%s: hint: %s\n", name, hint)
	}
}

// Long doubles the dash of options that are written with one, "-dir" as
// "--dir", so that both are understood. Options of one letter stay.
func Long(args []string) []string {
	long := make([]string, len(args))
	for i, a := range args {
		if a == "--" {
			copy(long[i:], args[i:])
			break
		}
		if len(a) > 2 && a[0] == '-' && 'a' <= a[1] && a[1] <= 'z' && a[2] != '=' {
			a = "-" + a
		}
		long[i] = a
	}
	return long
}
