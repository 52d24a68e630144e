package cli_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/spf13/cobra"

	"livepatch/server/internal/cli"
)

func TestOptionsWithOneDash(t *testing.T) {
	tests := map[string]struct{ args, want []string }{
		"one dash":         {[]string{"-dir", "D", "token"}, []string{"--dir", "D", "token"}},
		"with its value":   {[]string{"-dir=D"}, []string{"--dir=D"}},
		"two dashes":       {[]string{"--dir", "D"}, []string{"--dir", "D"}},
		"one letter":       {[]string{"-h"}, []string{"-h"}},
		"a lone dash":      {[]string{"-"}, []string{"-"}},
		"after two dashes": {[]string{"x", "--", "-dir"}, []string{"x", "--", "-dir"}},
		"one letter and =": {[]string{"-n=5"}, []string{"-n=5"}},
		"negative value":   {[]string{"-expires", "-1h"}, []string{"--expires", "-1h"}},
		"none":             {nil, []string{}},
	}
	for name, tc := range tests {
		if got := cli.Long(tc.args); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestFailureIsTwoLines(t *testing.T) {
	broken := errors.Join(errors.New("cannot do it: a"), errors.New("b"))
	var stdout, stderr bytes.Buffer
	cmd := &cobra.Command{Use: "tool", RunE: func(*cobra.Command, []string) error { return broken }}
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	code := cli.Main(t.Context(), cmd, nil, func(err error) string {
		if errors.Is(err, broken) {
			return "do it otherwise"
		}
		return ""
	})
	if want := "tool: error: cannot do it: a; b\ntool: hint: do it otherwise\n"; code != 1 || stderr.String() != want || stdout.Len() > 0 {
		t.Errorf("exit %d, stdout %q, stderr %q, want %q", code, stdout.String(), stderr.String(), want)
	}
}
