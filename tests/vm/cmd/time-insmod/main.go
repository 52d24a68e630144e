// Command time-insmod measures, inside a test machine, how long insmod takes for
// a livepatch, from the start of its process to its end:
//
//	time-insmod N FILE NAME
//
// It inserts the module N times, takes it out again each time, and prints the
// times in nanoseconds, one a line.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "time-insmod: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("need three arguments, N FILE NAME")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for range n {
		start := time.Now()
		if out, err := exec.CommandContext(ctx, "insmod", args[1]).CombinedOutput(); err != nil {
			return fmt.Errorf("insmod: %w: %s", err, out)
		}
		fmt.Println(time.Since(start).Nanoseconds())
		if err := remove(args[2]); err != nil {
			return err
		}
	}
	return nil
}

// remove waits for the transition, disables the livepatch, waits for that
// transition and unloads the module.
func remove(name string) error {
	dir := filepath.Join("/sys/kernel/livepatch", name)
	for {
		b, err := os.ReadFile(filepath.Join(dir, "transition"))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(b)) == "0" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.WriteFile(filepath.Join(dir, "enabled"), []byte("0"), 0o644); err != nil {
		return err
	}
	for {
		// The folder goes when nobody runs the patched functions any more.
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The reference goes a moment after the folder.
	for {
		err := unix.DeleteModule(name, unix.O_NONBLOCK)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
