package debian

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"livepatch/tests/vm/machine"
)

// A Change is what is done to a running system before its disk is kept.
type Change struct {
	// Name is part of the name of the disk, and ID of its hash: it is to change
	// whenever Do does something else.
	Name, ID string
	// Machine says how the system is run: Tools, Accel, MemoryMB, CPUs. The rest is
	// chosen here.
	Machine machine.Options
	Do      func(context.Context, *machine.Machine) error
}

// Derive returns the disk of a system to which something was done, which it does
// if the cache does not have it: the system is started, changed, and shut down.
func (c *Cache) Derive(ctx context.Context, from *Image, change Change) (*Image, error) {
	parts := []string{from.hash, change.Name, change.ID}
	dir, hash, err := c.entry(ctx, string(from.Suite)+"-"+change.Name, parts, func(ctx context.Context, dir string) error {
		return from.derive(ctx, dir, change)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make disk %s of Debian %s: %w", change.Name, from.Suite, err)
	}
	return &Image{Suite: from.Suite, Disk: filepath.Join(dir, "disk.img"), Kernel: from.Kernel, Versions: from.Versions, hash: hash}, nil
}

// derive changes a copy of the disk.
func (i *Image) derive(ctx context.Context, dir string, change Change) error {
	opts := change.Machine
	opts.Dir, opts.Kernel = dir, i.Kernel
	opts.Root = &machine.Root{Disk: filepath.Join(dir, "disk.img"), Keep: true}
	if _, err := command(ctx, "", nil, "cp", "--sparse=always", i.Disk, opts.Root.Disk); err != nil {
		return err
	}
	m, err := machine.Boot(ctx, opts)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := change.Do(ctx, m); err != nil {
		return err
	}
	return m.ShutDown(ctx)
}

// Steps returns a [Change].Do that runs commands one after the other. note is told
// of each.
func Steps(note func(command string, took time.Duration), commands ...string) func(context.Context, *machine.Machine) error {
	return func(ctx context.Context, m *machine.Machine) error {
		for _, c := range commands {
			start := time.Now()
			res, err := m.Run(ctx, c)
			if err != nil {
				return err
			}
			if res.Code != 0 {
				return fmt.Errorf("cannot run %q: exit status %d: %s%s", c, res.Code, res.Stdout, res.Stderr)
			}
			note(c, time.Since(start))
		}
		return nil
	}
}
