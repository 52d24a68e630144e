// Package snapdtest is a snapd for tests: the part of it that snaps can reach,
// with answers of the shapes that snapd 2.57 to 2.77 were seen to give.
package snapdtest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Cookie is the one that it knows.
const Cookie = "cookie-of-the-snap"

// A Snapd is made by [New]. Fields are changed through Do.
type Snapd struct {
	Socket string

	mu        sync.Mutex
	Config    map[string]any // as JSON has it
	Connected []string       // plugs
	Plugs     []string       // all there are
	Services  string         // what "snapctl services" prints
	Health    []string       // what it was told, "blocked not-enabled message"
	Old       []string       // commands that it does not know
	Ordinary  bool           // the caller is not root
	Hangs     bool           // does not answer
	Status    int            // answers with this status and no JSON, if not 0
	OnSet     func()         // runs after a change of the configuration, as the hook does
	Commands  []string       // what was asked, "get -d -- token"
}

// New returns a snapd that listens until the test ends.
func New(t *testing.T) *Snapd {
	t.Helper()
	// A socket's path is at most 107 bytes long, and names of tests are long.
	dir, err := os.MkdirTemp("", "sn")
	if err != nil {
		t.Fatal(err)
	}
	s := &Snapd{Socket: filepath.Join(dir, "snapd-snap.socket"), Config: map[string]any{}}
	l, err := net.Listen("unix", s.Socket) //nolint:noctx // returns at once
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/snapctl", func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, gone) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() {
		close(gone)
		_ = server.Close()
		_ = os.RemoveAll(dir)
	})
	return s
}

// Do changes the snapd, or looks at it, while nothing else does.
func (s *Snapd) Do(change func(*Snapd)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// Get returns a value of the configuration as text, "" if there is none.
func (s *Snapd) Get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.Config[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

func (s *Snapd) serve(w http.ResponseWriter, r *http.Request, gone <-chan struct{}) {
	var request struct {
		Cookie string   `json:"context-id"`
		Args   []string `json:"args"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || len(request.Args) == 0 {
		refuse(w, http.StatusBadRequest, "snapctl cannot run without args", "", nil)
		return
	}
	s.mu.Lock()
	hangs, status := s.Hangs, s.Status
	s.Commands = append(s.Commands, strings.Join(request.Args, " "))
	s.mu.Unlock()
	switch {
	case hangs:
		select {
		case <-gone:
		case <-r.Context().Done():
		}
	case status != 0:
		http.Error(w, "<html>", status)
	case request.Cookie != Cookie:
		refuse(w, http.StatusBadRequest, fmt.Sprintf("error running snapctl: cannot invoke snapctl operation commands (here %q) from outside of a snap", request.Args[0]), "", nil)
	default:
		s.run(w, request.Args)
	}
}

func (s *Snapd) run(w http.ResponseWriter, args []string) {
	s.mu.Lock()
	switch command := args[0]; {
	case slices.Contains(s.Old, command):
		refuse(w, http.StatusBadRequest, fmt.Sprintf("error running snapctl: Unknown command `%s'. Please specify one command of: get, set or unset", command), "", nil)
	case s.Ordinary && !slices.Contains([]string{"get", "services", "set-health", "is-connected"}, command):
		refuse(w, http.StatusForbidden, fmt.Sprintf("cannot use %q with uid 584788, try with sudo", command), "", nil)
	case command == "is-connected":
		s.isConnected(w, args[1])
	case command == "get":
		s.get(w, args[1:])
	case command == "set":
		hook := s.set(args[1:])
		s.mu.Unlock()
		if hook != nil {
			hook()
		}
		answer(w, "")
		return
	case command == "services":
		answer(w, s.Services)
	case command == "set-health":
		s.setHealth(w, args[1:])
	default:
		refuse(w, http.StatusBadRequest, "error running snapctl: Unknown command `"+command+"'", "", nil)
	}
	s.mu.Unlock()
}

func (s *Snapd) isConnected(w http.ResponseWriter, plug string) {
	switch {
	case slices.Contains(s.Connected, plug):
		answer(w, "")
	case len(s.Plugs) > 0 && !slices.Contains(s.Plugs, plug):
		refuse(w, http.StatusBadRequest, fmt.Sprintf("error running snapctl: snap %q has no plug or slot named %q", "canonical-livepatch", plug), "", nil)
	default:
		refuse(w, http.StatusOK, "unsuccessful with exit code: 1", "unsuccessful", map[string]any{"stdout": "", "stderr": "", "exit-code": 1})
	}
}

func (s *Snapd) get(w http.ResponseWriter, args []string) {
	found := map[string]any{}
	for _, key := range args {
		if v, ok := s.Config[key]; ok {
			found[key] = v
		}
	}
	b, _ := json.MarshalIndent(found, "", "\t")
	answer(w, string(b)+"\n")
}

// set changes the configuration as snapd does: what can be JSON is.
func (s *Snapd) set(args []string) (hook func()) {
	for _, arg := range args {
		key, text, ok := strings.Cut(arg, "=")
		if !ok {
			delete(s.Config, strings.TrimSuffix(key, "!"))
			continue
		}
		var v any
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if err := dec.Decode(&v); err != nil || dec.More() {
			v = text
		}
		if key != "--" {
			s.Config[key] = v
		}
	}
	delete(s.Config, "--")
	return s.OnSet
}

// setHealth has the rules of snapd's overlord/hookstate/ctlcmd/health.go.
func (s *Snapd) setHealth(w http.ResponseWriter, args []string) {
	code := ""
	var words []string
	for _, arg := range args {
		if c, ok := strings.CutPrefix(arg, "--code="); ok {
			code = c
		} else if arg != "--" {
			words = append(words, arg)
		}
	}
	wrong := ""
	switch {
	case !slices.Contains([]string{"okay", "waiting", "blocked", "error"}, words[0]):
		wrong = "invalid status"
	case words[0] == "okay" && (len(words) > 1 || code != ""):
		wrong = `when status is "okay", message and code must be empty`
	case words[0] != "okay" && (len(words) != 2 || len([]rune(words[1])) < 7):
		wrong = "message must be at least 7 characters long"
	case words[0] != "okay" && len([]rune(words[1])) > 70:
		wrong = "the message would be cut"
	case code != "" && (len(code) < 3 || len(code) > 30):
		wrong = "code must have between 3 and 30 characters"
	}
	if wrong != "" {
		refuse(w, http.StatusBadRequest, "error running snapctl: "+wrong, "", nil)
		return
	}
	s.Health = append(s.Health, strings.TrimSpace(words[0]+" "+code+" "+strings.Join(words[1:], " ")))
	answer(w, "")
}

func answer(w http.ResponseWriter, stdout string) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "sync", "status-code": 200, "status": "OK", "result": map[string]string{"stdout": stdout, "stderr": ""},
	})
}

func refuse(w http.ResponseWriter, status int, message, kind string, value any) {
	result := map[string]any{"message": message}
	if kind != "" {
		result["kind"], result["value"] = kind, value
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "error", "status-code": status, "status": http.StatusText(status), "result": result})
}
