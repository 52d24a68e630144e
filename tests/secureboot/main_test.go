//go:build secureboot

// Package secureboot holds the tests that start a machine with UEFI and Secure
// Boot. See tests/README.md.
package secureboot

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// here is the lab of this run, and unpacked the folder with the packages below;
// TestMain makes them once.
var (
	here     *lab.Lab
	unpacked string
)

// packages hold what a machine with Secure Boot is made of. They are not installed.
var packages = []string{
	"ovmf",                      // the firmware, with Microsoft's keys and without
	"shim-signed",               // the boot chain, as Microsoft and Debian have signed it
	"shim-helpers-amd64-signed", // MokManager
	"grub-efi-amd64-signed",
	"mokutil", "libefivar1", "libkeyutils1", // mokutil, for the machine
	"sbsigntool", // to sign a kernel
}

// keep is where the logs of machines go that were in a failed test.
var keep = flag.String("keep", "", "keep the logs of machines in failed tests in this `folder`")

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := runTests(ctx, m)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "secureboot tests: error:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(ctx context.Context, m *testing.M) (code int, err error) {
	bin, err := os.MkdirTemp("", "livepatch-bin")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(bin)
	note := func(step string, took time.Duration) {
		fmt.Fprintf(os.Stderr, "secureboot tests: %s: %.1fs\n", step, took.Seconds())
	}
	if here, err = lab.New(ctx, os.Getenv("LIVEPATCH_CACHE"), bin, note); err != nil {
		return 1, err
	}
	start := time.Now()
	if unpacked, err = machine.Unpack(ctx, here.Cache, packages...); err != nil {
		return 1, err
	}
	note("fetch firmware and boot loaders", time.Since(start))
	fmt.Fprintf(os.Stderr, "secureboot tests: kernel %s under %s\n", here.Kernel.Release, here.Accel)
	return m.Run(), nil
}
