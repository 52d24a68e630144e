// Command powercut cuts the power of virtual machines at random moments while the
// loader works in them, boots them again, and compares what is left with what had
// been promised:
//
//	go run ./tests/vm/powercut [-n 200] [-jobs 2] [-seed 1]
//
// A cut loses what the machine's disk was not told to flush, or a random part of
// that; see tests/vm/disk. Promised is what a call has answered and what the
// kernel has logged: that a floor was raised, that the journal knows a patch, that
// an accepted one returns at boot, that nothing older gets in. It exits with 1 if a
// promise was broken.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"livepatch/tests/vm/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv("LIVEPATCH_CACHE"), os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "powercut: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, cache string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("powercut", flag.ContinueOnError)
	n := flags.Int("n", 200, "`number` of cuts")
	jobs := flags.Int("jobs", 2, "`number` of machines at a time")
	seed := flags.Uint64("seed", rand.Uint64(), "`number` that everything random comes from")
	keep := flags.String("keep", "", "keep the machines' disks and logs in this `folder`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "powercut")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return err
	}
	l, err := lab.New(ctx, cache, bin, func(step string, took time.Duration) {
		fmt.Fprintf(stderr, "powercut: %s: %.1f s\n", step, took.Seconds())
	})
	if err != nil {
		return err
	}
	where := dir
	if *keep != "" {
		where = *keep
	}
	r := newReport(stderr)
	fmt.Fprintf(stdout, "kernel %s under %s, %d cuts, seed %d\n", l.Kernel.Release, l.Accel, *n, *seed)
	err = campaign{lab: l, dir: where, cuts: *n, jobs: *jobs, seed: *seed}.run(ctx, r)
	r.print(stdout)
	if err == nil && len(r.violations) > 0 {
		err = fmt.Errorf("%d promises were broken", len(r.violations))
	}
	return err
}

// A campaign is a number of cuts, on several machines at a time.
type campaign struct {
	lab  *lab.Lab
	dir  string
	cuts int
	jobs int
	seed uint64
}

// run makes the machines and cuts their power. Only what keeps a machine from
// going on is an error; broken promises are in the report.
func (c campaign) run(ctx context.Context, r *report) error {
	patches, err := newPatches(ctx, c.lab)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, c.jobs)
	var wg sync.WaitGroup
	for i := range c.jobs {
		wg.Go(func() {
			n := c.cuts / c.jobs
			if i < c.cuts%c.jobs {
				n++
			}
			if errs[i] = c.job(ctx, i, n, patches, r); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// job cuts the power of one machine n times.
func (c campaign) job(ctx context.Context, i, n int, p *patches, r *report) error {
	dir := filepath.Join(c.dir, "machine-"+strconv.Itoa(i))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	v, err := newVictim(ctx, c.lab, dir, p, c.seed+uint64(i), r)
	if err != nil {
		return fmt.Errorf("machine %d: %w", i, err)
	}
	defer v.close()
	if err := v.run(ctx, n); err != nil {
		return fmt.Errorf("machine %d: %w", i, err)
	}
	return nil
}
