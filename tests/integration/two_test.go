//go:build integration

package integration

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
)

func TestASecondAgentDoesNotStart(t *testing.T) {
	t.Parallel()
	s := newService(t)
	m := newClient(t, s)
	m.ok("refresh")
	m.accepts(newModule(1))
	before := m.footprint(true)
	r := runToEnd(t, program(t.Context(), m.uid, nil, agentBin, m.agentArgs()...))
	want := "canonical-livepatchd: error: cannot start with " + m.path("agent") + ": another agent uses this data folder\n" +
		"canonical-livepatchd: hint: ask it with: canonical-livepatch status\n"
	if r.code != 1 || r.stderr != want || r.stdout != "" {
		t.Errorf("second agent: %v\nwant %s", r, want)
	}
	wantSame(t, before, m.footprint(true))
	m.ok("refresh") // the first is none the worse for it
}

func TestTheCommandSaysThatTheDaemonIsDown(t *testing.T) {
	t.Parallel()
	m := newMachine(t, newRepository(time.Now()).pinned())
	for _, args := range [][]string{{"status"}, {"refresh"}, {"enable", "token"}, {"disable"}, {"config"}} {
		wantRefusal(t, m.cli(args...), "Connection to the daemon failed", "start it with")
	}
}

func TestTheAgentDoesNotRunAsRoot(t *testing.T) {
	t.Parallel()
	if !root {
		t.Skip("needs root to run the agent as root")
	}
	m := newMachine(t, newRepository(time.Now()).pinned())
	r := runToEnd(t, program(t.Context(), 0, nil, agentBin, m.agentArgs()...))
	if r.code != 1 || !strings.Contains(r.stderr, "cannot run as root") || !strings.Contains(r.stderr, "hint: start it as a user of its own") {
		t.Errorf("agent as root: %v", r)
	}
	if files, err := os.ReadDir(m.path("agent")); err != nil || len(files) > 0 {
		t.Errorf("agent left %v, %v", files, err)
	}
}

// Two agents that talk to one loader take turns, and one patch gets in once.
func TestTwoAgentsAtOneLoaderInsertAPatchOnce(t *testing.T) {
	t.Parallel()
	one := newModule(1)
	repo := newRepository(time.Now(), one)
	m := newMachine(t, repo.pinned())
	m.kernel.set(steering{before: 20 * time.Millisecond, transition: 20 * time.Millisecond})
	opening := repo.opening(one)
	var work sync.WaitGroup
	for range 8 {
		c := m.client()
		work.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for {
				resp, err := applyWith(ctx, c, opening, one.content)
				switch {
				case errors.Is(err, patch.ErrBusy):
					time.Sleep(time.Millisecond)
					continue
				case err != nil:
					t.Errorf("apply = %v", err)
				case resp.GetOutcome() != applied && resp.GetOutcome() != already:
					t.Errorf("outcome = %v", resp.GetOutcome())
				}
				return
			}
		})
	}
	work.Wait()
	m.wantInForce(one)
	if got := m.kernel.insertions(); len(got) != 1 {
		t.Errorf("insertions = %v, want one", got)
	}
}
