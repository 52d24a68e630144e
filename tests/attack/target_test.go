//go:build attack

package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// unitMemory is the MemoryMax of the loader's unit, in KiB.
const unitMemory = 192 << 10

// A target is a loader under attack, on a machine with one patch in force. The
// attacker is the agent's user; that this is somebody who has taken over the agent
// the loader cannot know.
type target struct {
	*lab.Machine
	t    *testing.T
	repo lab.Repository
	one  lab.Module // in force
	c    loaderv1.LoaderServiceClient
	was  lab.Footprint
	pid  int
	fds  int
}

// newTarget starts a loader and has it bring in a patch.
func newTarget(t *testing.T) *target {
	t.Helper()
	one := lab.NewModule(1)
	repo := lab.NewRepository(time.Now(), one)
	l := &target{Machine: lab.NewMachine(t, repo.Pinned()), t: t, repo: repo, one: one}
	l.Idle = time.Hour // it would leave and come back, and what it holds would be gone
	l.c = l.Client()
	lab.MustApply(t, l.c, repo, one, loaderv1.Outcome_OUTCOME_APPLIED)
	lab.MustApply(t, l.c, repo, one, loaderv1.Outcome_OUTCOME_ALREADY_APPLIED) // it notes what the rollout says
	l.was = l.Footprint(true)
	l.pid, l.fds = l.Loader.PID(), l.descriptors()
	return l
}

// conn returns a connection of its own to the loader.
func (l *target) conn(t *testing.T, more ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	more = append(more, grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("unix:"+l.Path("loader.sock"), more...)
	lab.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// survives fails the test unless the loader is none the worse for an attack: it is
// the same process, answers, applies, has changed nothing and holds nothing back.
func (l *target) survives(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	lab.Eventually(t, "loader answers", func() bool {
		_, err := l.c.Status(ctx, &loaderv1.StatusRequest{}, grpc.WaitForReady(true))
		return err == nil
	})
	resp, err := lab.ApplyWith(ctx, l.c, l.repo.Opening(l.one), l.one.Content)
	for errors.Is(err, patch.ErrBusy) && ctx.Err() == nil { // with what the attack has begun
		time.Sleep(time.Millisecond)
		resp, err = lab.ApplyWith(ctx, l.c, l.repo.Opening(l.one), l.one.Content)
	}
	if err != nil || resp.GetOutcome() != loaderv1.Outcome_OUTCOME_ALREADY_APPLIED {
		t.Errorf("apply after the attack: %v, %v", resp, err)
	}
	if l.Loader.PID() != l.pid || l.Loader.Count() != 1 {
		t.Errorf("loader was started %d times, want 1:\n%s", l.Loader.Count(), l.Loader.Log)
	}
	lab.WantSame(t, l.was, l.Footprint(true))
	if peak := l.memory("VmHWM"); peak > unitMemory {
		t.Errorf("loader used %d MiB at its peak, its unit allows %d", peak>>10, unitMemory>>10)
	}
}

// settles fails the test unless the loader gives back the files and connections that
// an attack took.
func (l *target) settles(t *testing.T) {
	t.Helper()
	lab.Eventually(t, "loader closes what the attack opened", func() bool { return l.descriptors() <= l.fds+2 })
}

// memory returns a field of the loader's /proc/PID/status, in KiB.
func (l *target) memory(field string) int {
	l.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.Loader.PID()))
	lab.Must(l.t, err)
	_, rest, _ := strings.Cut(string(b), field+":")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	lab.Must(l.t, err)
	return n
}

// forgetPeak makes VmHWM begin anew, proc(5).
func (l *target) forgetPeak() {
	l.t.Helper()
	lab.Must(l.t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", l.Loader.PID()), []byte("5"), 0))
}

// descriptors counts the open files of the loader.
func (l *target) descriptors() int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", l.Loader.PID()))
	return len(files)
}

// peak is what a row says of the memory that an attack cost.
func (l *target) peak() string {
	return fmt.Sprintf("peak %d of %d MiB", l.memory("VmHWM")>>10, unitMemory>>10)
}

// refusal names the check that refused a call: the reason of package rpcerr, or else
// gRPC's own code and words.
func refusal(err error) string {
	translated := rpcerr.FromStatus(err)
	if reason := rpcerr.Reason(translated); reason != "" {
		return "loader: " + reason
	}
	st := status.Convert(err)
	return fmt.Sprintf("gRPC: %v: %.60s", st.Code(), st.Message())
}

// refused writes the row of an attack that was answered with err, which must be an
// error and match want, if that is one.
func (l *target) refused(t *testing.T, a *report.Attack, err, want error) {
	t.Helper()
	translated := rpcerr.FromStatus(err)
	if err == nil || want != nil && !errors.Is(translated, want) {
		t.Errorf("answer = %v, want %v", err, want)
		return
	}
	a.StoppedBy("%s", refusal(err))
	a.Sees(fmt.Sprintf("loader's log: %.200s", status.Convert(err).Message()))
}

// ends returns what ended a stream.
func ends(stream grpc.ClientStream) error {
	for {
		if err := stream.RecvMsg(&loaderv1.ApplyResponse{}); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}
