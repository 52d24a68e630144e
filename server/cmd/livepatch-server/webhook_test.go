package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/store"
)

const webhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// webhookArgs are the options of a server that tells url.
func webhookArgs(t *testing.T, url string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(webhookSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-webhook", url, "-webhook-secret-file", file}
}

// A hook is the other side of a webhook. It takes what it can verify.
type hook struct {
	*httptest.Server
	got chan notify.Message
	ids chan string
}

func newHook(t *testing.T, take func() bool) *hook {
	t.Helper()
	verifier, err := webhooks.NewWebhook(webhookSecret)
	if err != nil {
		t.Fatal(err)
	}
	h := &hook{got: make(chan notify.Message, 100), ids: make(chan string, 100)}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var m notify.Message
		if err := errors.Join(err, verifier.Verify(body, r.Header), json.Unmarshal(body, &m)); err != nil {
			t.Errorf("notice %s: %v", body, err)
		}
		if !take() {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		h.got <- m
		h.ids <- r.Header.Get("webhook-id")
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) next(t *testing.T) notify.Message {
	t.Helper()
	select {
	case m := <-h.got:
		return m
	case <-time.After(time.Minute):
		t.Fatal("no notice came")
	}
	return notify.Message{}
}

// TestWebhook: what livepatch-admin decides is told to whom the server was told to
// tell, also if nobody listened at first, and also if it was decided while no server ran.
func TestWebhook(t *testing.T) {
	dir := newDir(t)
	publisher := token(t, dir, store.Publisher)
	refuse := 1
	h := newHook(t, func() bool { refuse--; return refuse < 0 })
	p := start(t, dir, webhookArgs(t, h.URL+"/livepatch")...)
	r := tuftest.New(time.Now())
	if status, err := p.send("POST", service.PathPublishMetadata, publisher, servicetest.Publication(r), nil); err != nil || status != http.StatusOK {
		t.Fatalf("publication: %d, %v", status, err)
	}
	var done service.Published
	if !addPatch(r, 1).send(p, publisher, &done) {
		t.Fatal("patch was not published")
	}
	db, err := dir.Database(t.Context()) // as livepatch-admin does
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	decide := func(s patch.RolloutState) {
		t.Helper()
		if _, err := catalog.Decide(t.Context(), db, store.Decision{
			Vendor: "debian", Version: "1.1", State: s, At: time.Now(), By: "alice (uid 1000)", Reason: "hangs",
		}); err != nil {
			t.Fatal(err)
		}
	}
	decide(patch.Halted)
	if m := h.next(t); m.Type != notify.Halted || m.Data.Version != "1.1" || m.Data.By != "alice (uid 1000)" {
		t.Errorf("told %+v", m)
	}
	if got := p.metric("livepatch_webhook_failures_total"); got < 1 {
		t.Errorf("%v failures, want the one that was refused", got)
	}
	p.kill()
	decide(patch.Revoked)
	p = start(t, dir, webhookArgs(t, h.URL+"/livepatch")...)
	if m := h.next(t); m.Type != notify.Revoked {
		t.Errorf("told %+v", m)
	}
	if a, b := <-h.ids, <-h.ids; a == b {
		t.Errorf("two notices have one ID, %s", a)
	}
	p.kill()
	if strings.Contains(p.log.String(), webhookSecret) || strings.Contains(p.log.String(), h.URL) {
		t.Errorf("the log tells the secret or the address: %s", p.log.String())
	}
}

// TestHaltIsTold: a patch that makes a kernel oops is halted by the rule, and people
// hear of it, with the evidence.
func TestHaltIsTold(t *testing.T) {
	dir := newDir(t)
	publisher, auth := token(t, dir, store.Publisher), token(t, dir, store.Auth)
	h := newHook(t, func() bool { return true })
	p := start(t, dir, webhookArgs(t, h.URL)...)
	r := tuftest.New(time.Now())
	var done service.Published
	if status, err := p.send("POST", service.PathPublishMetadata, publisher, servicetest.Publication(r), nil); err != nil || status != http.StatusOK {
		t.Fatalf("publication: %d, %v", status, err)
	}
	if !addPatch(r, 1).send(p, publisher, &done) {
		t.Fatal("patch was not published")
	}
	var machine service.Enrolment
	if status, err := p.send("POST", service.PathMachines, auth, service.EnrolRequest{MachineID: fmt.Sprintf("%032x", 1), Version: "1", Facts: facts}, &machine); err != nil || status != http.StatusCreated {
		t.Fatalf("enrolment: %d, %v", status, err)
	}
	report := func(id string, kind service.Kind, reason, signature string) (a service.CheckInAnswer) {
		t.Helper()
		status, err := p.send("POST", service.PathCheckIn, machine.MachineToken, service.CheckIn{Version: "1", Facts: facts, Events: []service.Event{
			{ID: id, Kind: kind, Version: "1.1", Name: "lkp_1", BootID: "b", At: time.Now(), Reason: reason, Signature: signature},
		}}, &a)
		if err != nil || status != http.StatusOK {
			t.Fatalf("check-in: %d, %v", status, err)
		}
		return a
	}
	attempt := 0
	wait(t, func() bool {
		attempt++
		return slices.Contains(report(fmt.Sprint("intent ", attempt), service.Intent, "", "").Go, "1.1")
	})
	begin := time.Now()
	report("crash", service.Crashed, service.ReasonOops, "general protection fault/lkp_1/do_it")
	m := h.next(t)
	t.Logf("people heard of it after %v: %s", time.Since(begin), m.Data.Text)
	if m.Type != notify.Halted || m.Data.By != "rule" || m.Data.Decision == nil || m.Data.Decision.Judge() != m.Data.Decision.Verdict {
		t.Errorf("told %+v", m)
	}
}

func TestWebhookThatCannotBe(t *testing.T) {
	dir := newDir(t)
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte(webhookSecret), 0o644); err != nil {
		t.Fatal(err)
	}
	good := webhookArgs(t, "https://hook.example/")[3]
	tests := map[string]struct {
		args []string
		want string
	}{
		"no secret":                {[]string{"-webhook", "https://hook.example/"}, "go together"},
		"no address":               {[]string{"-webhook-secret-file", good}, "go together"},
		"an address without TLS":   {[]string{"-webhook", "http://hook.example/", "-webhook-secret-file", good}, "hint: give an https address"},
		"a secret for everybody":   {[]string{"-webhook", "https://hook.example/", "-webhook-secret-file", open}, "hint: if nobody else has read it: chmod 600 the file"},
		"a file that is no secret": {[]string{"-webhook", "https://hook.example/", "-webhook-secret-file", dir.Cert()}, "error: cannot serve: cannot read secret"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := serverCommand(append([]string{"serve", "-dir", string(dir), "-listen", "127.0.0.1:0", "-ops-listen", ""}, tc.args...)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tc.want) || strings.Contains(string(out), webhookSecret) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// TestKilledWhileItTells kills a server when the other side has a notice and has not
// answered yet. The next server tells it again, under the same ID.
func TestKilledWhileItTells(t *testing.T) {
	dir := newDir(t)
	told, kill := make(chan string, 2), make(chan struct{})
	first := true
	h := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		told <- r.Header.Get("webhook-id")
		if first {
			first = false
			<-kill
		}
	}))
	defer h.Close()
	p := start(t, dir, webhookArgs(t, h.URL)...)
	db, err := dir.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(t.Context(), func(tx store.Tx) error {
		_, err := notify.AddTest(t.Context(), tx, "alice (uid 1000)", time.Now())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	id := <-told
	p.kill()
	close(kill)
	// The next one waits until the first can be sending no more.
	next, err := notify.New(slog.New(slog.DiscardHandler), db, notify.Config{
		URL: h.URL, Secrets: [][]byte{make([]byte, 32)}, Now: func() time.Time { return time.Now().Add(time.Minute) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := <-told; again != id || next.Sent() != 1 {
		t.Errorf("told %s, then %s; %d sent", id, again, next.Sent())
	}
}
