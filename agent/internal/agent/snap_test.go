package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/snapd"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
)

// memSnapd is a snapd without a socket, for bubbles of fake time.
type memSnapd struct {
	mu       sync.Mutex
	missing  []string
	services []snapd.Service
	err      error // of every call
	told     []snapd.Health
	calls    int
}

func (s *memSnapd) set(change func(*memSnapd)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *memSnapd) Connected(_ context.Context, plug string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	return !slices.Contains(s.missing, plug), s.err
}

func (s *memSnapd) Services(context.Context) ([]snapd.Service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	return s.services, s.err
}

func (s *memSnapd) SetHealth(_ context.Context, h snapd.Health) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.err == nil {
		s.told = append(s.told, h)
	}
	return s.err
}

// codes returns the codes of what snapd was told, "okay" for none.
func (s *memSnapd) codes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var codes []string
	for _, h := range s.told {
		if codes = append(codes, h.Code); h.Code == "" {
			codes[len(codes)-1] = string(h.Status)
		}
	}
	return codes
}

// newSnapWorld returns a world inside a snap.
func newSnapWorld(t *testing.T) (*world, *memSnapd) {
	t.Helper()
	s := &memSnapd{services: []snapd.Service{{Name: "loader", Enabled: true, Socket: true}}}
	w := newWorld(t)
	w.repo.SetLifetime(300 * 24 * time.Hour)
	w.repo.Publish()
	w.snapd = s
	return w, s
}

func TestSnapdIsToldOfChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newSnapWorld(t)
		defer w.run()()
		time.Sleep(5 * time.Hour)
		w.enable()
		time.Sleep(20 * time.Hour)
		w.svc.down()
		time.Sleep(20 * time.Hour)
		w.svc.up()
		time.Sleep(20 * time.Hour)
		want := []string{"not-enabled", "okay", "service-unreachable", "okay"}
		if got := s.codes(); !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

func TestHealth(t *testing.T) {
	refused := &fetch.Error{Kind: fetch.ErrToken, Status: 401, Text: "the service does not know the token"}
	down := &fetch.Error{Kind: fetch.ErrConnRefused, Text: "refused"}
	on := func(a *Agent) { a.token = "t" }
	failed := func(err error) func(*Agent) {
		return func(a *Agent) {
			a.token, a.live.patchErr = "t", err
			a.rec.State, a.rec.PatchError, a.rec.Failure = status.ApplyFailed, err.Error(), failureOf(err)
		}
	}
	unchecked := func(err error) func(*Agent) {
		return func(a *Agent) { a.token, a.rec.CheckState, a.live.checkErr = "t", status.CheckFailed, err }
	}
	tests := map[string]struct {
		change func(*Agent)
		status snapd.HealthStatus
		code   string
	}{
		"all is well":           {on, snapd.Okay, ""},
		"not enabled":           {func(*Agent) {}, snapd.Blocked, codeNotEnabled},
		"waiting":               {func(a *Agent) { a.waiting = &waiting{err: down} }, snapd.Waiting, codeWaiting},
		"a token was dropped":   {func(a *Agent) { a.rec.Dropped = &problem{"m", "h"} }, snapd.Blocked, codeRefused},
		"the token was revoked": {func(a *Agent) { a.token, a.rec.TokenProblem = "t", "gone" }, snapd.Blocked, codeRefused},
		"a plug is missing": {func(a *Agent) { a.live.snap.missing = []string{"kernel-module-control", "kernel-livepatch"} },
			snapd.Blocked, codeNotConnected},
		"the loader is disabled":  {func(a *Agent) { a.live.snap.stopped = []string{"canonical-livepatch.loader"} }, snapd.Blocked, codeServiceOff},
		"the service is down":     {unchecked(down), snapd.Waiting, codeUnreachable},
		"the service is busy":     {unchecked(&fetch.Error{Kind: fetch.ErrOverload, Text: "503"}), snapd.Waiting, codeUnreachable},
		"the clock is wrong":      {unchecked(&clockError{time.Hour}), snapd.Blocked, codeClock},
		"signed files are bad":    {unchecked(patch.ErrUntrusted), snapd.Broken, codeCheckFailed},
		"check-in refused":        {unchecked(refused), snapd.Broken, codeCheckFailed},
		"the key is not enrolled": {failed(patch.ErrModuleSignature), snapd.Blocked, codeSignature},
		"the loader is away":      {failed(loader.ErrAway), snapd.Broken, codeLoader},
		"the patch is suspect":    {failed(patch.ErrSuspect), snapd.Broken, codeSuspect},
		"the kernel refuses":      {failed(patch.ErrKernel), snapd.Broken, codePatchFailed},
		"the patch is not signed": {failed(patch.ErrTampered), snapd.Broken, codePatchFailed},
		"the kernel is not ours":  {func(a *Agent) { a.token, a.rec.Supported = "t", status.Unsupported }, snapd.Blocked, codeNotCovered},
		"the kernel is too old":   {func(a *Agent) { a.token, a.rec.Unpatched = "t", []string{"CVE-1"} }, snapd.Blocked, codeKernelUpgrade},
	}
	seen := map[string]bool{CodeCannotStart: true}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w, _ := newSnapWorld(t)
			tc.change(w.Agent)
			h := w.health()
			seen[h.Code] = true
			if h.Status != tc.status || h.Code != tc.code {
				t.Errorf("health = %+v, want %s %s", h, tc.status, tc.code)
			}
			if n := len([]rune(h.Message)); n > 70 || h.Status != snapd.Okay && n < 7 {
				t.Errorf("message %q has %d characters", h.Message, n)
			}
		})
	}
	page, err := os.ReadFile("../../../docs/reference/snap.md")
	if err != nil {
		t.Fatal(err)
	}
	for code := range seen {
		if !strings.Contains(string(page), "| `"+code+"` |") && code != "" {
			t.Errorf("snap.md does not explain the code %q", code)
		}
	}
}

// The loader may do nothing before the plugs are connected; two of them have no
// hook that would tell.
func TestPlugsThatAreConnectedLate(t *testing.T) {
	for name, hook := range map[string]bool{"with a hook": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := newSnapWorld(t)
				s.missing = []string{"kernel-module-control", "kernel-livepatch"}
				w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = fmt.Errorf("cannot insert: %w", patch.ErrNotPermitted) })
				defer w.run()()
				w.enable()
				time.Sleep(30 * time.Minute)
				p := w.patch()
				if p.State != status.ApplyFailed || p.PatchHint != "run: sudo snap connect canonical-livepatch:kernel-module-control && sudo snap connect canonical-livepatch:kernel-livepatch" {
					t.Errorf("patch = %q, hint %q", p.State, p.PatchHint)
				}
				if st, _ := w.Status(false); len(st.Notices) == 0 || !strings.Contains(st.Notices[0].Message, "plugs kernel-module-control, kernel-livepatch are not connected") {
					t.Errorf("notices = %+v", st.Notices)
				}
				s.set(func(s *memSnapd) { s.missing = nil })
				w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = nil })
				if hook {
					w.Recheck()
				} else {
					time.Sleep(askSoon)
				}
				synctest.Wait()
				w.wantPatch(status.Applied, "1.1")
				if codes := s.codes(); codes[0] != codeNotConnected || codes[len(codes)-1] != "okay" {
					t.Errorf("snapd was told %q", codes)
				}
			})
		})
	}
}

// Somebody connects a plug, or snapd does: nobody has asked for a patch in working hours.
func TestPlugThatIsConnectedDoesNotOpenTheWindow(t *testing.T) {
	for name, again := range map[string]func(*world, *memSnapd){
		"the hook has run":       func(w *world, _ *memSnapd) { w.Recheck() },
		"snapd was asked itself": func(_ *world, s *memSnapd) { s.set(func(s *memSnapd) { s.missing = nil }); time.Sleep(askSoon) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := newSnapWorld(t)
				s.missing = []string{"kernel-livepatch"}
				w.enable()
				w.set(config.Maintenance, closedNow())
				defer w.run()()
				synctest.Wait()
				before := w.svc.count()
				again(w, s)
				synctest.Wait()
				if w.svc.count() == before {
					t.Error("no check was made")
				}
				w.wantPatch(status.Unapplied, "1.1")
				if made := w.fake.Made(); len(made) > 0 {
					t.Errorf("the loader was asked for %q", made)
				}
			})
		})
	}
}

// The hook for a disconnection runs before it: the answer changes a while later.
func TestPlugThatIsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newSnapWorld(t)
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.Recheck()
		synctest.Wait()
		s.set(func(s *memSnapd) { s.missing = []string{"kernel-module-control"} })
		time.Sleep(settling)
		synctest.Wait()
		if codes := s.codes(); codes[len(codes)-1] != codeNotConnected {
			t.Errorf("snapd was told %q", codes)
		}
	})
}

// Which kernel it is, a machine need not know to be enabled: a token that is wrong is
// refused at once, and one that is right is used.
func TestEnabledBeforeThePlugsAreConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newSnapWorld(t)
		s.missing = []string{"kernel-identity"}
		notes := w.kernel["sys/kernel/notes"]
		delete(w.kernel, "sys/kernel/notes")
		w.Agent.kernel = forbidden{w.kernel}
		defer w.run()()
		if _, err := w.Configure(t.Context(), config.Change{AuthToken: "wrong"}); !errors.Is(err, fetch.ErrToken) {
			t.Errorf("a wrong token: %v", err)
		}
		if st := w.configure(config.Change{AuthToken: servicetest.AuthToken}); !st.Enabled {
			t.Fatalf("standing = %+v", st)
		}
		time.Sleep(10 * time.Minute)
		st, _ := w.Status(false)
		if !strings.Contains(st.CheckError, "permission denied") || st.CheckHint != "run: sudo snap connect canonical-livepatch:kernel-identity" {
			t.Errorf("check error %q, hint %q", st.CheckError, st.CheckHint)
		}
		w.kernel["sys/kernel/notes"] = notes
		s.set(func(s *memSnapd) { s.missing = nil })
		time.Sleep(askSoon)
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1")
	})
}

// forbidden is a kernel whose missing files are there and may not be read.
type forbidden struct {
	fs.FS
}

func (f forbidden) Open(name string) (fs.File, error) {
	file, err := f.FS.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return file, err
}

// A day in trouble of any kind is a quiet one.
func TestQuietInTrouble(t *testing.T) {
	tests := map[string]func(*world, *memSnapd){
		"snapd is masked": func(_ *world, s *memSnapd) {
			s.err = fmt.Errorf("cannot ask: %w: no such file", snapd.ErrAway)
		},
		"snapd is too old": func(_ *world, s *memSnapd) { s.err = fmt.Errorf("cannot ask: %w", snapd.ErrTooOld) },
		"the loader is away": func(w *world, _ *memSnapd) {
			w.fake.Do(func(f *loadertest.Fake) { f.Err = fmt.Errorf("%w: refused", loader.ErrAway) })
		},
		"the loader is not permitted": func(w *world, _ *memSnapd) {
			w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = patch.ErrNotPermitted })
		},
		"the service is away": func(w *world, _ *memSnapd) { w.svc.down() },
		"plugs are missing":   func(_ *world, s *memSnapd) { s.missing = plugs },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := newSnapWorld(t)
				w.enable()
				change(w, s)
				defer w.run()()
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				warnings := strings.Count(w.log.String(), "level=WARN") + strings.Count(w.log.String(), "level=ERROR")
				if warnings > 40 {
					t.Errorf("%d warnings in a day", warnings)
				}
				if n := w.svc.count(); n > 100 {
					t.Errorf("%d check-ins in a day", n)
				}
				if s.calls > 24*60*5 {
					t.Errorf("snapd was asked %d times in a day", s.calls)
				}
			})
		})
	}
}

func TestSnapdInTroubleIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newSnapWorld(t)
		s.err = fmt.Errorf("cannot ask whether x is connected: %w", snapd.ErrTooOld)
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1") // it does without
		st, _ := w.Status(false)
		if len(st.Notices) != 1 || !strings.Contains(st.Notices[0].Message, snapd.ErrTooOld.Error()) || !strings.Contains(st.Notices[0].Hint, "snap install snapd") {
			t.Errorf("notices = %+v", st.Notices)
		}
		s.set(func(s *memSnapd) { s.err = nil })
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if st, _ := w.Status(false); len(st.Notices) != 0 {
			t.Errorf("notices = %+v", st.Notices)
		}
		if got := s.codes(); !slices.Equal(got, []string{"okay"}) {
			t.Errorf("told %q", got)
		}
	})
}

func TestAdviceInASnapNamesNoUnits(t *testing.T) {
	for _, row := range advice {
		hint := HintInSnap(row.err)
		for _, word := range []string{"systemctl start", "journalctl -u", "-agent-uid"} {
			if strings.Contains(hint, word) {
				t.Errorf("%v: %q", row.err, hint)
			}
		}
	}
	w, _ := newSnapWorld(t)
	if h := w.hint(fmt.Errorf("x: %w", loader.ErrAway)); !strings.Contains(h, "snap logs canonical-livepatch.loader") {
		t.Errorf("hint = %q", h)
	}
	if h := HintInSnap(&PatchError{Message: "m", Hint: "h"}); h != "h" {
		t.Errorf("hint = %q", h)
	}
	if h := HintInSnap(errors.New("x")); h != "" {
		t.Errorf("hint = %q", h)
	}
}
