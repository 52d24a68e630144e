package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	agents "livepatch/agent/inprocess"
	"livepatch/server/inprocess"
)

// Real agents against the real service, all of them in a bubble of fake time: what the
// simulated machines are a model of. Their loaders and kernels are in memory.
func TestRealAgents(t *testing.T) {
	const machines = 12
	tests := map[string]struct {
		deadly  bool
		long    time.Duration
		atLeast int // have had the patch
		atMost  int
	}{
		"a patch that is well comes to all":         {false, 16 * time.Hour, machines, machines},
		"a patch that kills is stopped in the tier": {true, 8 * time.Hour, 2, 6},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				patched, halted := liveWith(t, dir, machines, tc.long, tc.deadly)
				if patched < tc.atLeast || patched > tc.atMost {
					t.Errorf("%d of %d machines have had the patch, want %d to %d", patched, machines, tc.atLeast, tc.atMost)
				}
				if (halted != "") != tc.deadly {
					t.Errorf("the rollout was halted by %q", halted)
				}
			})
		})
	}
}

// liveWith lets a service and its machines live for a time, and returns how many have had
// the patch, and why the rollout was halted.
func liveWith(t *testing.T, dir string, machines int, long time.Duration, deadly bool) (patched int, halted string) {
	t.Helper()
	time.Sleep(time.Until(start)) // bubbles begin in 2000, kernels are supported from 2026
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	s := openAlone(t, dir)
	defer s.Close()
	work.Go(func() { s.Run(ctx) })
	var all []*agents.Machine
	for i := range machines {
		token, err := s.Token(ctx, "stable")
		if err != nil {
			t.Fatal(err)
		}
		m, err := agents.New(ctx, filepath.Join(dir, "machine-"+strconv.Itoa(i)), inprocess.Kernel(1), s.Root(), s.Call, token)
		if err != nil {
			t.Fatal(err)
		}
		if deadly {
			m.Kill()
		}
		all = append(all, m)
		work.Go(func() { m.Run(ctx) })
	}
	time.Sleep(time.Minute)
	if err := s.Publish(ctx, 1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(long)
	for _, m := range all {
		if m.Patched() {
			patched++
		}
	}
	stop()
	work.Wait()
	return patched, string(s.Halted())
}

func openAlone(t *testing.T, dir string) *inprocess.Service {
	t.Helper()
	path := filepath.Join(dir, "service")
	if err := inprocess.Prepare(t.Context(), path, time.Now(), func(func(inprocess.Machine) bool) {}); err != nil {
		t.Fatal(err)
	}
	s, err := inprocess.Open(t.Context(), inprocess.Config{Log: slog.New(slog.DiscardHandler), Dir: path, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
