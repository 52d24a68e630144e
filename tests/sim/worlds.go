package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"livepatch/server/inprocess"
)

// A maker makes the world of a fleet.
type maker func(ctx context.Context, f *fleet) (world, error)

// ruleOnly makes a world of the rule alone.
func ruleOnly(_ context.Context, f *fleet) (world, error) {
	return inprocess.NewRule(f.clock.Now, f.salt(), f.population())
}

// salt is that of the rollout to a fleet.
func (f *fleet) salt() string { return fmt.Sprint("salt", f.seed) }

// A workshop makes services in a folder. Those of the same fleet begin as copies of one
// in which it has been enrolled.
type workshop struct {
	dir  string
	log  io.Writer
	made int
}

// service makes a world of a whole service.
func (w *workshop) service(ctx context.Context, f *fleet) (world, error) {
	prepared := filepath.Join(w.dir, "fleet-"+f.shape())
	if _, err := os.Stat(prepared); err != nil {
		if err := os.MkdirAll(prepared, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make folder of service: %w", err)
		}
		if err := inprocess.Prepare(ctx, prepared, f.clock.Now(), f.identities); err != nil {
			return nil, err
		}
	}
	w.made++
	dir := filepath.Join(w.dir, fmt.Sprint("service-", w.made))
	if err := copyService(dir, prepared); err != nil {
		return nil, fmt.Errorf("cannot make folder of service: %w", err)
	}
	s, err := inprocess.Open(ctx, inprocess.Config{
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelInfo})), Dir: dir, Now: f.clock.Now, Salt: f.salt(),
		Socket: true,
	})
	if err != nil {
		return nil, err
	}
	if err := s.Publish(ctx, f.Kernels); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return disposable{s, dir}, nil
}

// copyService copies the folder of a service that does not run. CopyFS makes files that
// others can read, and a service does not take such keys.
func copyService(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	keys, err := filepath.Glob(filepath.Join(to, "keys", "*"))
	for _, key := range keys {
		err = errors.Join(err, os.Chmod(key, 0o600))
	}
	return err
}

// shape names what matters of a fleet to those who enrol it.
func (f *fleet) shape() string {
	sum := sha256.Sum256(fmt.Append(nil, f.Machines, f.Kernels, f.Tiers, f.Liar.Share, f.seed, f.clock.start.Unix()))
	return hex.EncodeToString(sum[:8])
}

// A disposable service takes its folder with it.
type disposable struct {
	*inprocess.Service
	dir string
}

// Close implements [world].
func (d disposable) Close() error {
	if err := d.Service.Close(); err != nil {
		return err
	}
	return os.RemoveAll(d.dir)
}
