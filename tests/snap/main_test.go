//go:build snap

// Package snap holds the tests of the snap: real snapd, in machines with a whole
// Debian, with the commands that people use. See tests/README.md.
package snap

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"livepatch/tests/vm/debian"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

var suiteName = flag.String("suite", string(debian.Bookworm), "run on this `suite` of Debian")

// What is the same for all tests of a run; TestMain makes it.
var (
	here  *lab.Lab      // with the kernel of the suite
	disk  *debian.Image // with snapd, and without our snap
	saved string        // folder of what machines printed
)

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	remove, err := prepare(ctx)
	stop() // a signal ends the tests, and with them their machines
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, "snap tests: error:", err)
	}
	remove()
	os.Exit(code)
}

// note tells what takes so long.
func note(step string, took time.Duration) {
	fmt.Fprintf(os.Stderr, "snap tests: %s: %.1fs\n", step, took.Seconds())
}

// prepare makes what all tests have in common. remove is to be called in any case.
func prepare(ctx context.Context) (remove func(), err error) {
	bin, err := os.MkdirTemp("", "livepatch-bin")
	remove = func() { _ = os.RemoveAll(bin) }
	if err != nil {
		return remove, err
	}
	suite, err := debian.ParseSuite(*suiteName)
	if err != nil {
		return remove, err
	}
	host, err := lab.New(ctx, os.Getenv("LIVEPATCH_CACHE"), bin, note)
	if err != nil {
		return remove, err
	}
	start := time.Now()
	cache := debian.NewCache(host.Cache)
	disk, err = makeDisk(ctx, cache, suite, machine.Options{
		Tools: host.Tools(), Accel: host.Accel, MemoryMB: memoryMB, CPUs: cpus(suite),
	})
	if err != nil {
		return remove, err
	}
	if err := cache.AddToolchain(ctx, disk); err != nil {
		return remove, err
	}
	note("make or find the disk of "+string(suite), time.Since(start))
	here = host.On(disk.Kernel)
	saved = filepath.Join(host.Tree(), "build", "snap", string(suite))
	if err := errors.Join(os.RemoveAll(saved), os.MkdirAll(saved, 0o755)); err != nil {
		return remove, err
	}
	fmt.Fprintf(os.Stderr, "snap tests: snapd %s, kernel %s, under %s; output goes to %s\n",
		disk.Versions["snapd"], disk.Kernel.Release, here.Accel, saved)
	return remove, nil
}

// memoryMB is what snapd and the compiler of AppArmor's profiles need.
const memoryMB = 1536

// cpus returns how many processors a machine gets. From 6.4 on kernels change their
// code in two more places at a livepatch's transition, and with two processors
// QEMU's translator may run what was there before: the kernel then panics ("Oops:
// int3" in irqentry_exit), in one transition of three.
func cpus(s debian.Suite) int {
	if s == debian.Bookworm {
		return 2
	}
	return 1
}
