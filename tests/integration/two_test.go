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

	"livepatch/tests/lab"

	"livepatch/internal/patch"
)

func TestASecondAgentDoesNotStart(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	m := lab.NewClient(t, s)
	m.OK("refresh")
	m.Accepts(lab.NewModule(1))
	before := m.Footprint(true)
	r := lab.RunToEnd(t, lab.Program(t.Context(), m.UID, nil, lab.AgentBin, m.AgentArgs()...))
	want := "canonical-livepatchd: error: cannot start with " + m.Path("agent") + ": another agent uses this data folder\n" +
		"canonical-livepatchd: hint: ask it with: canonical-livepatch status\n"
	if r.Code != 1 || r.Stderr != want || r.Stdout != "" {
		t.Errorf("second agent: %v\nwant %s", r, want)
	}
	lab.WantSame(t, before, m.Footprint(true))
	m.OK("refresh") // the first is none the worse for it
}

func TestTheCommandSaysThatTheDaemonIsDown(t *testing.T) {
	t.Parallel()
	m := lab.NewMachine(t, lab.NewRepository(time.Now()).Pinned())
	for _, args := range [][]string{{"status"}, {"refresh"}, {"enable", "token"}, {"disable"}, {"config"}} {
		lab.WantRefusal(t, m.CLI(args...), "Connection to the daemon failed", "start it with")
	}
}

func TestTheAgentDoesNotRunAsRoot(t *testing.T) {
	t.Parallel()
	if !lab.AsRoot {
		t.Skip("needs root to run the agent as root")
	}
	m := lab.NewMachine(t, lab.NewRepository(time.Now()).Pinned())
	r := lab.RunToEnd(t, lab.Program(t.Context(), 0, nil, lab.AgentBin, m.AgentArgs()...))
	if r.Code != 1 || !strings.Contains(r.Stderr, "cannot run as root") || !strings.Contains(r.Stderr, "hint: start it as a user of its own") {
		t.Errorf("agent as root: %v", r)
	}
	if files, err := os.ReadDir(m.Path("agent")); err != nil || len(files) > 0 {
		t.Errorf("agent left %v, %v", files, err)
	}
}

// Two agents that talk to one loader take turns, and one patch gets in once.
func TestTwoAgentsAtOneLoaderInsertAPatchOnce(t *testing.T) {
	t.Parallel()
	one := lab.NewModule(1)
	repo := lab.NewRepository(time.Now(), one)
	m := lab.NewMachine(t, repo.Pinned())
	m.Kernel.Set(lab.Steering{Before: 20 * time.Millisecond, Transition: 20 * time.Millisecond})
	opening := repo.Opening(one)
	var work sync.WaitGroup
	for range 4 { // as many connections as the loader has places for
		c := m.Client()
		work.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
			defer cancel()
			for {
				resp, err := lab.ApplyWith(ctx, c, opening, one.Content)
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
	m.WantInForce(one)
	if got := m.Kernel.Insertions(); len(got) != 1 {
		t.Errorf("insertions = %v, want one", got)
	}
}
