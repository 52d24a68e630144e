// Command bench measures, in a virtual machine, how long the loader takes to
// bring a livepatch of 250 KiB into the kernel, beside insmod of the same module,
// and writes the raw numbers as JSON:
//
//	go run ./tests/vm/bench [-n 20] [-out FILE]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"livepatch/tests/vm/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv("LIVEPATCH_CACHE"), os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, cache string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	n := flags.Int("n", 20, "`number` of insertions each way")
	out := flags.String("out", "", "`file` for the raw numbers (default: standard output)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "livepatch-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin, where := filepath.Join(dir, "bin"), filepath.Join(dir, "machine")
	for _, d := range []string{bin, where} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	l, err := lab.New(ctx, cache, bin, func(step string, took time.Duration) {
		fmt.Fprintf(stderr, "%s: %.1f s\n", step, took.Seconds())
	})
	if err != nil {
		return err
	}
	in, err := l.MeasureInsertion(ctx, where, *n)
	if err != nil {
		return err
	}
	summary(stderr, in)
	b, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return err
	}
	if *out != "" {
		return os.WriteFile(*out, append(b, '\n'), 0o644)
	}
	_, err = stdout.Write(append(b, '\n'))
	return err
}

// summary prints the medians.
func summary(w io.Writer, in *lab.Insertion) {
	fmt.Fprintf(w, "module of %d bytes, kernel %s, %s, %d times, medians:\n", in.ModuleBytes, in.Kernel, in.Accel, len(in.Loader))
	fmt.Fprintf(w, "  insmod  %8.2f ms\n", ms(median(in.Insmod)))
	fmt.Fprintf(w, "  loader  %8.2f ms  %.2f times insmod\n", ms(median(in.Loader)), float64(median(in.Loader))/float64(median(in.Insmod)))
	for _, step := range []string{"check", "insert", "settle"} {
		fmt.Fprintf(w, "    %-12s %8.2f ms\n", step, ms(median(in.Steps[step])))
	}
	fmt.Fprintf(w, "  first Apply, which starts the loader, until in force: %.2f ms\n", ms(in.Cold))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// median returns the middle of the times, 0 if there are none.
func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(d))[len(d)/2]
}
