package agent

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	facts "livepatch/internal/kernel"
)

// setFile has the file say what is off, and the agent hear of it.
func (w *world) setFile(mode facts.Mode) {
	w.fake.Do(func(f *loadertest.Fake) { f.Mode = mode })
	_ = w.check(w.t.Context(), true)
}

// A switch that is off does not go on by itself when what enforces it fails.
func TestModeOfTheFileHoldsWhileTheLoaderIsAway(t *testing.T) {
	tests := map[string]struct {
		mode  facts.Mode
		again func(*world) // how the agent starts anew
	}{
		"stop, and the agent is started anew":  {facts.Stop, (*world).restart},
		"stop, and the machine is":             {facts.Stop, (*world).reboot},
		"stop, and the machine crashes":        {facts.Stop, (*world).crash},
		"no-refresh, and the machine restarts": {facts.NoRefresh, (*world).reboot},
		"stop, and it is not started anew":     {facts.Stop, func(*world) {}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.longLived()
				w.enable()
				w.setFile(tc.mode)
				w.fake.Do(func(f *loadertest.Fake) { f.Err = loader.ErrAway })
				tc.again(w)
				w.svc.set(func(s *memService) { s.times = nil })
				defer w.run()()
				time.Sleep(5 * time.Hour)
				synctest.Wait()
				if n := w.svc.count(); n > 0 {
					t.Errorf("%d check-ins although the file says %q", n, tc.mode)
				}
			})
		})
	}
}

func TestModeOfTheFileHoldsForAMachineThatIsNotEnabled(t *testing.T) {
	w := newWorld(t)
	w.fake.Do(func(f *loadertest.Fake) { f.Mode = facts.Stop })
	for range 2 {
		if _, err := w.Enable(t.Context(), servicetest.AuthToken); !errors.Is(err, errMode) {
			t.Errorf("Enable = %v", err)
		}
		w.fake.Do(func(f *loadertest.Fake) { f.Err = loader.ErrAway })
		w.restart()
	}
}

func TestModeOfTheFileThatIsOnlyRememberedIsExplained(t *testing.T) {
	w := enabled(t)
	w.setFile(facts.Stop)
	if n := w.notice("switched off by mode"); strings.Contains(n.Message, "before") || strings.Contains(n.Hint, "loader.socket") {
		t.Errorf("notice = %+v, but the loader answers", n)
	}
	w.fake.Do(func(f *loadertest.Fake) { f.Err = loader.ErrAway })
	w.restart()
	_ = w.now()
	n := w.notice(`switched off by mode "stop"`)
	if !strings.Contains(n.Message, "does not answer now") || !strings.Contains(n.Hint, "sudo rm ") || !strings.Contains(n.Hint, "systemctl start livepatch-loader.socket") {
		t.Errorf("notice = %+v", n)
	}
}

// The file may be gone: nobody has to wake up an agent for which only the loader came
// late.
func TestModeOfTheFileEndsWhenTheLoaderIsBack(t *testing.T) {
	for name, gone := range map[string]func(*world){
		"and the machine goes on": func(w *world) { w.restart() },
		"after a reboot":          func(w *world) { w.reboot() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.longLived()
				w.enable()
				w.setFile(facts.Stop)
				w.fake.Do(func(f *loadertest.Fake) { f.Err = loader.ErrAway })
				gone(w)
				defer w.run()()
				time.Sleep(time.Minute)
				w.fake.Do(func(f *loadertest.Fake) { f.Err, f.Mode = nil, facts.Normal })
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				w.wantPatch(status.Applied, "1.1")
				if n := w.notice("switched off"); n.Message != "" {
					t.Errorf("still says %q", n.Message)
				}
				w.restart()
				if w.mode() != facts.Normal {
					t.Errorf("mode %q is still remembered", w.mode())
				}
			})
		})
	}
}

// The loader says what both places add up to; the command line is another one after a
// reboot.
func TestModeOfTheCommandLineIsNotTakenForThatOfTheFile(t *testing.T) {
	cmdline := func(w *world, mode facts.Mode) {
		w.kernel["proc/cmdline"] = &fstest.MapFile{Data: []byte(facts.ModeParameter + "=" + mode.String() + "\n")}
	}
	tests := map[string]struct {
		heard []facts.Mode // of the loader, in boots whose command lines say stop, but for the first
		want  facts.Mode   // in the next boot, whose command line says nothing
	}{
		"the command line alone":        {[]facts.Mode{facts.Normal, facts.Stop}, facts.Normal},
		"the file had said it before":   {[]facts.Mode{facts.Stop, facts.Stop}, facts.Stop},
		"the file had said something":   {[]facts.Mode{facts.NoRefresh, facts.Stop}, facts.NoRefresh},
		"nobody had ever said anything": {nil, facts.Normal},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.enable()
			for i, heard := range tc.heard {
				if i > 0 {
					cmdline(w, facts.Stop)
					w.reboot()
				}
				w.setFile(heard)
			}
			cmdline(w, facts.Normal)
			w.fake.Do(func(f *loadertest.Fake) { f.Err = loader.ErrAway })
			w.reboot()
			if w.mode() != tc.want {
				t.Errorf("mode = %q, want %q", w.mode(), tc.want)
			}
		})
	}
}

func TestModeThatNobodyCanHaveKeptIsNone(t *testing.T) {
	w := enabled(t)
	if err := os.WriteFile(w.path(stateFile), []byte(`{"file_mode":252}`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if w.mode() != facts.Normal {
		t.Errorf("mode = %d", w.mode())
	}
}
