// Tufclient drives the loader's verifier, internal/tuf, over HTTP with the
// command line that the public tuf-conformance suite gives to a client under
// test, so that the suite can be pointed at it:
//
//	tufclient --metadata-dir D init ROOT.json
//	tufclient --metadata-dir D --metadata-url U refresh
//	tufclient --metadata-dir D --metadata-url U --target-name N [--target-name N2 ...] \
//		--target-base-url T --target-dir O download
//
// It leaves with 0 if all of it succeeded and with 1 otherwise. D holds what is
// trusted, under names without versions (root.json, timestamp.json, ...), and
// nothing else. A target "a/b" becomes the file O/a%2Fb. The time is what
// "date +%s" prints: a preloaded library that fakes the clock reaches date, but
// not a Go program.
//
// It ships nowhere. README.md says which tests of the suite cannot pass.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stderr)) }

// errUsage is returned for a command line that cannot be understood.
var errUsage = errors.New("command line is not valid")

// run runs one command and returns what to leave with.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	o, err := parse(args)
	if err == nil {
		err = o.do(ctx)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "tufclient: error: %v\n", err)
	if errors.Is(err, errUsage) {
		fmt.Fprintln(stderr, "tufclient: hint: the protocol is that of the tuf-conformance suite: init ROOT.json, refresh, or download")
	}
	return 1
}

// options is a command line.
type options struct {
	metadataDir, metadataURL string
	targetDir, targetURL     string
	targets                  names
	command                  string
	args                     []string
}

// names are the values of a flag that may be given more than once.
type names []string

// String implements [flag.Value].
func (n *names) String() string { return strings.Join(*n, " ") }

// Set implements [flag.Value].
func (n *names) Set(s string) error { *n = append(*n, s); return nil }

// parse reads a command line, in which flags may stand before and after the
// command.
func parse(args []string) (*options, error) {
	o := &options{}
	set := flag.NewFlagSet("tufclient", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&o.metadataDir, "metadata-dir", "", "folder of what is trusted")
	set.StringVar(&o.metadataURL, "metadata-url", "", "where the repository has its metadata")
	set.StringVar(&o.targetDir, "target-dir", "", "folder of what was downloaded")
	set.StringVar(&o.targetURL, "target-base-url", "", "where the repository has its targets")
	set.Var(&o.targets, "target-name", "path of a target; may be given more than once")
	var words []string
	for len(args) > 0 {
		if err := set.Parse(args); err != nil {
			return nil, fmt.Errorf("%w: %w", errUsage, err)
		}
		if args = set.Args(); len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("%w: no command", errUsage)
	}
	o.command, o.args = words[0], words[1:]
	return o, o.check()
}

// check returns an error unless the command has what it needs.
func (o *options) check() error {
	needs := map[string][]string{
		"init":     {o.metadataDir},
		"refresh":  {o.metadataDir, o.metadataURL},
		"download": {o.metadataDir, o.metadataURL, o.targetDir, o.targetURL, o.targets.String()},
	}
	need, ok := needs[o.command]
	if !ok {
		return fmt.Errorf("%w: no command %q", errUsage, o.command)
	}
	for _, value := range need {
		if value == "" {
			return fmt.Errorf("%w: a flag of %s is missing", errUsage, o.command)
		}
	}
	if want := map[string]int{"init": 1}[o.command]; len(o.args) != want {
		return fmt.Errorf("%w: %s takes %d arguments", errUsage, o.command, want)
	}
	return nil
}

func (o *options) do(ctx context.Context) error {
	now, err := clock(ctx)
	if err != nil {
		return err
	}
	if o.command == "init" {
		return initialize(o.metadataDir, o.args[0], now)
	}
	c, err := newClient(o, now)
	if err != nil {
		return err
	}
	if err := c.refresh(ctx); err != nil {
		return fmt.Errorf("cannot refresh: %w", err)
	}
	var failed error
	for _, name := range o.targets {
		if err := c.download(ctx, name); err != nil {
			failed = errors.Join(failed, fmt.Errorf("cannot download %q: %w", name, err))
		}
	}
	return failed
}

// clock asks the program date for the time.
func clock(ctx context.Context) (time.Time, error) {
	out, err := exec.CommandContext(ctx, "date", "+%s").Output()
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot ask date for the time: %w", err)
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot read what date says: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// initialize makes the root in a file the one that is trusted. It asks nobody.
func initialize(dir, file string, now time.Time) error {
	root, err := readFile(file, patch.MaxRoot)
	if err == nil {
		_, err = tuf.New(tuf.Stored{Root: root}, now)
	}
	if err != nil {
		return fmt.Errorf("cannot trust %s: %w", file, err)
	}
	return writeFile(filepath.Join(dir, "root.json"), root)
}
