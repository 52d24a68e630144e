// Command madvise calls madvise(2) in a test machine, as the workload that a
// livepatch can hang: under the name of its file it is known to the kernel.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "madvise: error:", err)
		os.Exit(1)
	}
}

func run() error {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("cannot get memory: %w", err)
	}
	if err := unix.Madvise(page, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("cannot give advice: %w", err)
	}
	fmt.Println("advised")
	return nil
}
