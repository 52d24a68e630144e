package hooks_test

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"livepatch/agent/internal/config"
)

// A daemon is one that takes changes as the real one does.
type daemon struct {
	dir    string
	server *http.Server

	mu       sync.Mutex
	cfg      config.Config
	token    string // "" if the machine is not enabled
	away     bool   // the service, so that tokens wait
	broken   bool   // refuses everything
	waits    bool
	changes  []config.Change
	rechecks int
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(d.dir, "livepatchd-priv.sock"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /configure", d.configure)
	mux.HandleFunc("PUT /recheck", func(w http.ResponseWriter, _ *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.rechecks++
		w.WriteHeader(http.StatusNoContent)
	})
	d.server = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = d.server.Serve(l) }()
}

func (d *daemon) stop() {
	if d.server != nil {
		_ = d.server.Close()
		d.server = nil
	}
}

func (d *daemon) configure(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c config.Change
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if d.broken {
		http.Error(w, "cannot read configuration: it is damaged\nhint: repair it", http.StatusServiceUnavailable)
		return
	}
	next := d.cfg
	if _, err := next.Apply(c.Config); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if c.AuthToken != "" && c.AuthToken != goodToken && !d.away {
		http.Error(w, "cannot enable this machine: Unknown Auth-Token\nhint: get another", http.StatusBadGateway)
		return
	}
	if len(c.Config) > 0 || c.AuthToken != "" || c.Disable {
		d.changes = append(d.changes, c)
	}
	d.cfg = next
	switch {
	case c.AuthToken != "" && d.away:
		d.waits = true
	case c.AuthToken != "":
		d.token = c.AuthToken
	case c.Disable:
		d.token, d.waits = "", false
	}
	s := config.Standing{Config: d.cfg.Chosen(), Enabled: d.token != "", Waiting: d.waits}
	if d.waits {
		s.Notes = []string{"the token waits"}
	}
	_ = json.NewEncoder(w).Encode(s)
}
