package agent

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
)

const otherServer = "https://other.test"

func (w *world) configure(c config.Change) config.Standing {
	w.t.Helper()
	s, err := w.Configure(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// wantGone fails the test if a file of the agent's is there.
func (w *world) wantGone(name string) {
	w.t.Helper()
	if _, err := os.Stat(filepath.Join(w.dir, name)); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("%s: %v", name, err)
	}
}

func TestConfigureIsAllOrNothing(t *testing.T) {
	tests := map[string]struct {
		change config.Change
		text   string
	}{
		"token that is refused": {config.Change{Config: map[string]string{config.RemoteServer: otherServer}, AuthToken: "wrong"}, "Unknown Auth-Token"},
		"token that is none":    {config.Change{Config: map[string]string{config.RemoteServer: otherServer}, AuthToken: "a b"}, "characters that no token has"},
		"value that is wrong": {config.Change{Config: map[string]string{config.RemoteServer: otherServer, config.DialTimeout: "soon"},
			AuthToken: servicetest.AuthToken}, "dial-timeout"},
		"value that is wrong, and no more": {config.Change{Config: map[string]string{config.DialTimeout: "soon"}, Disable: true}, "dial-timeout"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tc.change.Disable {
				w.enable()
			}
			before := w.tree()
			_, err := w.Configure(t.Context(), tc.change)
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("err = %v, want %q", err, tc.text)
			}
			if w.Config()[config.RemoteServer] == otherServer {
				t.Error("the configuration has changed")
			}
			for name, content := range w.tree() {
				if before[name] != content {
					t.Errorf("%s has changed to %q", name, content)
				}
			}
		})
	}
}

func TestConfigureTakesEverythingAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.configure(config.Change{Config: map[string]string{config.RemoteServer: otherServer + "/"}, AuthToken: servicetest.AuthToken})
	if !s.Enabled || s.Waiting || s.Config[config.RemoteServer] != otherServer || len(s.Config) != 1 {
		t.Errorf("standing = %+v", s)
	}
	if s = w.configure(config.Change{Config: map[string]string{config.RemoteServer: ""}, Disable: true}); s.Enabled || len(s.Config) != 0 {
		t.Errorf("standing = %+v", s)
	}
	if s = w.configure(config.Change{Disable: true}); s.Enabled {
		t.Errorf("disabled twice: %+v", s)
	}
}

func TestTokenThatWasUsedChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.configure(config.Change{AuthToken: servicetest.AuthToken})
	first := w.token
	w.restart()
	if w.configure(config.Change{AuthToken: servicetest.AuthToken}); w.token != first {
		t.Error("the same token has enrolled the machine again")
	}
	w.svc.down()
	if _, err := w.Configure(t.Context(), config.Change{AuthToken: servicetest.AuthToken}); err != nil {
		t.Errorf("the service had to be asked: %v", err)
	}
	w.svc.up()
	// Another service knows nothing of it.
	if w.configure(config.Change{Config: map[string]string{config.RemoteServer: otherServer}, AuthToken: servicetest.AuthToken}); w.token == first {
		t.Error("a token for another service has not been used")
	}
	if w.svc.forgot != 1 {
		t.Errorf("the old service was told %d times", w.svc.forgot)
	}
	second := w.token
	if _, err := w.Configure(t.Context(), config.Change{AuthToken: "another"}); err == nil || w.token != second {
		t.Errorf("a token that is refused: %v; it has replaced the enrolment: %v", err, w.token != second)
	}
}

func TestTokenWaitsForTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.svc.down()
		defer w.run()()
		s := w.configure(config.Change{AuthToken: servicetest.AuthToken})
		if s.Enabled || !s.Waiting || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "refused") {
			t.Errorf("standing = %+v", s)
		}
		if fi, err := os.Stat(filepath.Join(w.dir, waitingFile)); err != nil || fi.Mode() != 0o600 {
			t.Errorf("%v, %v", fi.Mode(), err)
		}
		if why, hint := w.Unfinished(); !strings.HasPrefix(why, "enabling: waiting for the service: ") || hint == "" {
			t.Errorf("status says %q, %q", why, hint)
		}
		time.Sleep(10 * time.Hour)
		if _, enabled := w.Status(false); enabled {
			t.Fatal("enabled without a service")
		}
		w.svc.up()
		time.Sleep(75 * time.Minute)
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1")
		w.wantGone(waitingFile)
		if why, _ := w.Unfinished(); why != "" {
			t.Errorf("still unfinished: %q", why)
		}
	})
}

// It does not get on anybody's nerves meanwhile.
func TestWaitingTokenIsTriedEverLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.svc.down()
		defer w.run()()
		w.configure(config.Change{AuthToken: servicetest.AuthToken})
		time.Sleep(24 * time.Hour)
		tries := strings.Count(w.log.String(), "Cannot enable yet")
		if tries < 20 || tries > 40 {
			t.Errorf("%d tries in a day", tries)
		}
		if n := strings.Count(w.log.String(), "Enrolment waits"); n != 1 {
			t.Errorf("the story says it %d times", n)
		}
	})
}

func TestWaitingTokenSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.svc.down()
		w.configure(config.Change{AuthToken: servicetest.AuthToken})
		w.restart()
		if why, _ := w.Unfinished(); why != "enabling: waiting for the service" {
			t.Errorf("status says %q", why)
		}
		w.svc.up()
		defer w.run()()
		synctest.Wait()
		if _, enabled := w.Status(false); !enabled {
			t.Error("not enabled at once")
		}
	})
}

func TestWaitingTokenThatIsRefusedIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.svc.down()
		stop := w.run()
		w.configure(config.Change{AuthToken: "wrong"})
		w.svc.up()
		time.Sleep(2 * time.Hour)
		stop()
		w.wantGone(waitingFile)
		for range 2 { // also after a restart
			why, hint := w.Unfinished()
			if !strings.Contains(why, "Unknown Auth-Token") || hint == "" {
				t.Errorf("status says %q, %q", why, hint)
			}
			w.restart()
		}
		w.enable()
		if why, _ := w.Unfinished(); why != "" {
			t.Errorf("after it was enabled: %q", why)
		}
	})
}

func TestDisableEndsTheWaiting(t *testing.T) {
	w := newWorld(t)
	w.svc.down()
	w.configure(config.Change{AuthToken: servicetest.AuthToken})
	if token, _, err := w.Disable(t.Context(), false); token != "" || err != nil {
		t.Errorf("Disable = %q, %v", token, err)
	}
	w.wantGone(waitingFile)
	if _, _, err := w.Disable(t.Context(), false); !errors.Is(err, ErrNotEnabled) {
		t.Errorf("Disable = %v", err)
	}
}

// Enable is what it always was: now or not at all.
func TestEnableDoesNotWait(t *testing.T) {
	w := newWorld(t)
	w.svc.down()
	if _, err := w.Enable(t.Context(), servicetest.AuthToken); !errors.Is(err, fetch.ErrConnRefused) {
		t.Errorf("Enable = %v", err)
	}
	w.wantGone(waitingFile)
}

// leave leaves a change for the agent, as the hook does while it does not run.
func (w *world) leave(c config.Change) {
	w.t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.leaveBytes(b)
}

func (w *world) leaveBytes(b []byte) {
	w.t.Helper()
	path := filepath.Join(w.dir, "waiting", changeFile)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
		w.t.Fatal(err)
	}
}

func TestChangeThatWasLeftIsTakenAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.leave(config.Change{Config: map[string]string{config.RemoteServer: otherServer}, AuthToken: servicetest.AuthToken})
		defer w.run()()
		synctest.Wait()
		if _, enabled := w.Status(false); !enabled || w.Config()[config.RemoteServer] != otherServer {
			t.Errorf("enabled: %v, %v", enabled, w.Config())
		}
		w.wantGone("waiting/" + changeFile)
	})
}

func TestChangeThatWasLeftAndIsRefused(t *testing.T) {
	tests := map[string]struct {
		left, text string
		server     string
	}{
		"the token":          {`{"config":{"remote-server":"https://other.test"},"auth_token":"wrong"}`, "Unknown Auth-Token", otherServer},
		"the configuration":  {`{"config":{"remote-server":"http://other.test"},"auth_token":"wrong"}`, "not encrypted", config.DefaultRemoteServer},
		"what is no change":  {`{"x":1}`, "cannot read change", config.DefaultRemoteServer},
		"half a file":        {`{"config":{"remo`, "cannot read change", config.DefaultRemoteServer},
		"both ways at once":  {`{"auth_token":"a","disable":true}`, "both", config.DefaultRemoteServer},
		"an unknown key":     {`{"config":{"colour":"blue"}}`, "colour", config.DefaultRemoteServer},
		"nothing in the end": {``, "cannot read change", config.DefaultRemoteServer},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.leaveBytes([]byte(tc.left))
				defer w.run()()
				synctest.Wait()
				if why, _ := w.Unfinished(); !strings.Contains(why, tc.text) {
					t.Errorf("status says %q, want %q", why, tc.text)
				}
				if got := w.Config()[config.RemoteServer]; got != tc.server {
					t.Errorf("remote-server = %q, want %q", got, tc.server)
				}
				w.wantGone("waiting/" + changeFile)
			})
		})
	}
}

// Whatever happens, nothing secret is in the log.
func TestLogTellsTheStoryAndNoSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const proxy = "http://me:pa55word@proxy.test:3128"
		stop := w.run()
		w.svc.down()
		w.configure(config.Change{Config: map[string]string{config.HTTPSProxy: proxy}, AuthToken: "first-token"})
		w.svc.up()
		time.Sleep(time.Hour)
		w.configure(config.Change{AuthToken: servicetest.AuthToken})
		synctest.Wait()
		machineToken := w.token
		time.Sleep(2 * time.Hour)
		_, _, err := w.Disable(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		stop()
		log := w.log.String()
		rest := log
		for _, line := range []string{"Changed the configuration", "Enrolment waits", "Refused what was waiting", "msg=Enabled", "Fetched file",
			"Applied livepatch", `msg="Patch state"`, "msg=Disabled"} {
			_, after, ok := strings.Cut(rest, line)
			if !ok {
				t.Fatalf("no %q, or not in this order, in\n%s", line, log)
			}
			rest = after
		}
		for _, secret := range []string{"pa55word", "first-token", servicetest.AuthToken, machineToken} {
			if strings.Contains(log, secret) {
				t.Errorf("%q is in the log", secret)
			}
		}
	})
}

func TestUnknownKeysAreNamedInTheLog(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.dir, ConfigFile), []byte("colour: blue\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if log := w.log.String(); !strings.Contains(log, "keys=[colour]") || strings.Contains(log, "blue") {
		t.Errorf("log: %s", log)
	}
}
