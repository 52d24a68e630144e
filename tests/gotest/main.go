// Command gotest runs go test with the arguments it is given, prints what
// failed and one line for each package, and exits as go test did.
//
// With CI=true in the environment a test that skipped is a failure, and so is a
// run in which no test ran: what matters is not left out silently there. The
// last lines are go test's own.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// slow is how long a test takes before it is worth a line of its own.
const slow = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv("CI") == "true", os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "gotest: error:", err)
		os.Exit(1)
	}
}

// run runs go test with args. In strict mode a skipped test is an error.
func run(ctx context.Context, args []string, strict bool, stdout, stderr io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	// On interruption go test gets the chance to end what its tests started.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("cannot run go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot run go test: %w", err)
	}
	r := newReport(stdout)
	readErr := r.read(out)
	if err := errors.Join(readErr, cmd.Wait()); err != nil {
		return fmt.Errorf("tests failed: %w", err)
	}
	if strict {
		return r.complete()
	}
	return nil
}

// An event is one line of go test -json; see "go doc test2json".
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

// A report turns events into what a person needs to read.
type report struct {
	w io.Writer
	// output holds what each unfinished test and package has printed. It is
	// written if that test or package fails and dropped otherwise.
	output  map[[2]string][]string
	skipped []string
	ran     int
}

func newReport(w io.Writer) *report {
	return &report{w: w, output: map[[2]string][]string{}}
}

// read handles events until in ends.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read events: %w", err)
		}
	}
}

// line handles one line; what is not an event is passed on as it is.
func (r *report) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil || e.Action == "" {
		fmt.Fprintf(r.w, "%s", line)
		return
	}
	key := [2]string{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.w, e.Output)
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "pass", "fail", "skip":
		r.end(e)
		delete(r.output, key)
	}
}

// end handles the last event of a test or, if it names no test, of a package.
func (r *report) end(e event) {
	printed := r.output[[2]string{e.Package, e.Test}]
	if e.Test == "" {
		r.endPackage(e, printed)
		return
	}
	r.ran++
	took := time.Duration(e.Elapsed * float64(time.Second))
	switch {
	case e.Action == "fail":
		fmt.Fprint(r.w, strings.Join(printed, ""))
	case e.Action == "skip":
		r.ran--
		r.skipped = append(r.skipped, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(printed)))
	case took >= slow && !strings.Contains(e.Test, "/"):
		fmt.Fprintf(r.w, "--- PASS: %s (%.1fs)\n", e.Test, took.Seconds())
	}
}

func (r *report) endPackage(e event, printed []string) {
	if e.Action == "skip" { // no test files
		return
	}
	for _, s := range printed {
		if e.Action == "fail" || strings.HasPrefix(s, "ok ") {
			fmt.Fprint(r.w, s)
		}
	}
}

// reason returns what a test printed before it skipped, on one line.
func reason(printed []string) string {
	var said []string
	for _, s := range printed {
		s = strings.TrimSpace(s)
		if s != "" && !strings.HasPrefix(s, "=== ") && !strings.HasPrefix(s, "--- ") {
			said = append(said, s)
		}
	}
	return strings.Join(said, " ")
}

// complete returns an error if something that should have run did not.
func (r *report) complete() error {
	if len(r.skipped) > 0 {
		slices.Sort(r.skipped)
		return fmt.Errorf("tests skipped where none may:\n  %s", strings.Join(r.skipped, "\n  "))
	}
	if r.ran == 0 {
		return errors.New("no test ran")
	}
	return nil
}
