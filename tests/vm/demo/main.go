// Command demo shows the whole system at work, from nothing: it makes keys, a
// service and two signed patches, starts a virtual machine, and is a user of that
// machine. After each step it asks the kernel itself. It fails if the kernel
// disagrees.
//
//	go run ./tests/vm/demo
//
// Nothing is loaded into the kernel of this machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv("LIVEPATCH_CACHE"), os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: error:", err)
		os.Exit(1)
	}
}

// Times that nothing in the demonstration should exceed.
const (
	soak    = 5 * time.Second // of a patch, before it is accepted
	patient = 90 * time.Second
)

// A demo is the state of the demonstration.
type demo struct {
	out   io.Writer
	began time.Time
	dir   string
	lab   *lab.Lab

	service   *lab.Service
	publisher *lab.Publisher
	first     lab.Module
	second    lab.Module
	token     string
	machine   *machine.Machine
}

// What the kernel answers in /proc/cmdline: its own command line, or what the
// patches say.
const (
	answerFirst  = "the kernel runs livepatch 1"
	answerSecond = "the kernel runs livepatch 2"
)

func run(ctx context.Context, args []string, cache string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	logs := flags.String("logs", "", "keep the machine's logs in this `folder`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "livepatch-demo")
	if err != nil {
		return err
	}
	d := &demo{out: out, began: time.Now(), dir: dir}
	defer func() { err = errors.Join(err, d.cleanUp(*logs, err != nil)) }()
	for _, part := range []func(context.Context) error{
		func(ctx context.Context) error { return d.setUp(ctx, cache) },
		d.enable, d.replace, d.reboot, d.remove,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	d.printf("\nThe kernel agreed at every step. All of it took %.0f s.\n", time.Since(d.began).Seconds())
	return nil
}

// cleanUp ends what runs and removes what was made. The machine's log is shown
// after a failure.
func (d *demo) cleanUp(logs string, failed bool) error {
	var errs []error
	if d.machine != nil {
		if console, err := d.machine.Console(); err == nil && failed {
			d.printf("\nEnd of the machine's log:\n%s\n", lastLines(string(console), 40))
		}
		errs = append(errs, d.machine.Close())
	}
	if d.service != nil {
		errs = append(errs, d.service.Stop())
		if failed {
			d.printf("\nEnd of the service's log:\n%s\n", lastLines(d.service.Log(), 20))
		}
	}
	if logs != "" {
		errs = append(errs, copyLogs(logs, filepath.Join(d.dir, "machine")))
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func copyLogs(to, from string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"console.log", "qemu.log"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

// width is where the time stands beside a step.
const width = 88

// timed prints what was done with the time it took at the right.
func (d *demo) timed(what string, took time.Duration) {
	d.printf("%-*s %6.1f s\n", width, what, took.Seconds())
}

// heading begins a part of the session.
func (d *demo) heading(text string) {
	d.printf("\n── %s %s\n", text, strings.Repeat("─", max(0, width+4-len([]rune(text)))))
}

// do runs a step of which only the time is worth showing.
func (d *demo) do(what string, step func() error) error {
	start := time.Now()
	if err := step(); err != nil {
		return err
	}
	d.timed("   "+what, time.Since(start))
	return nil
}

// user shows a command that the user of the machine types, and what it prints. A
// command that fails ends the demonstration.
func (d *demo) user(ctx context.Context, command string) (string, error) {
	start := time.Now()
	res, err := d.machine.Run(ctx, command)
	if err != nil {
		return "", err
	}
	d.timed("$ "+command, time.Since(start))
	d.printf("%s%s", res.Stdout, res.Stderr)
	if res.Code != 0 {
		return "", fmt.Errorf("%q ended with exit status %d", command, res.Code)
	}
	return strings.TrimSpace(res.Stdout), nil
}

// kernel asks the kernel and fails unless it answers as it should.
func (d *demo) kernel(ctx context.Context, want func(answer string) bool) error {
	answer, err := d.user(ctx, "cat /proc/cmdline")
	if err != nil {
		return err
	}
	if !want(answer) {
		return fmt.Errorf("the kernel disagrees: it answers %q", answer)
	}
	return nil
}

func is(want string) func(string) bool { return func(answer string) bool { return answer == want } }

// own tells whether the answer is an unpatched kernel's.
func own(answer string) bool { return strings.HasPrefix(answer, "console=ttyS0") }

// until waits for something in the machine and shows how long it took.
func (d *demo) until(ctx context.Context, what, command, want string) error {
	start := time.Now()
	for {
		res, err := d.machine.Run(ctx, command)
		if err != nil {
			return err
		}
		if strings.Contains(res.Stdout, want) {
			d.timed("   "+what, time.Since(start))
			return nil
		}
		if time.Since(start) > patient {
			return fmt.Errorf("waited %v in vain: %s; %s says\n%s%s", patient, what, command, res.Stdout, res.Stderr)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// expect returns an error unless the kernel said what it should.
func expect(got, want string) error {
	if got != want {
		return fmt.Errorf("the kernel disagrees: it says %q, want %q", got, want)
	}
	return nil
}
