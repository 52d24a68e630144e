package cli_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/cli"
	"livepatch/agent/internal/config"
)

// The reference pages name every command, flag and key.
func TestReferenceIsComplete(t *testing.T) {
	page := readDoc(t, "cli.md")
	walk(cli.New(cli.Env{}), func(c *cobra.Command) {
		if !strings.Contains(page, "`"+c.Name()) && !strings.Contains(page, c.CommandPath()) {
			t.Errorf("cli.md does not name the command %q", c.Name())
		}
		for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(c.Flags().FlagUsages(), -1) {
			if !strings.Contains(page, flag) {
				t.Errorf("cli.md does not name the flag %s of %q", flag, c.Name())
			}
		}
	})
	page = readDoc(t, "config.md")
	for _, e := range config.Default().List() {
		row := "| `" + e.Key + "` |"
		_, rest, ok := strings.Cut(page, row)
		if !ok {
			t.Errorf("config.md has no row %q", row)
			continue
		}
		rest, _, _ = strings.Cut(rest, "\n")
		if e.Value != "" && !strings.Contains(rest, "| `"+e.Value+"` |") {
			t.Errorf("config.md does not give %q as the default of %s", e.Value, e.Key)
		}
	}
}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../../docs/reference/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
