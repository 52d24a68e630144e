package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"livepatch/agent/internal/cli"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/status"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"canonical-livepatch": func() {
			os.Exit(cli.Main(context.Background(), cli.Env{
				Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
				RunDir: os.Getenv("RUN"), Snap: os.Getenv("SNAP") != "",
			}, os.Args[1:]))
		},
	})
}

// TestScripts runs the transcripts of testdata. "daemon MODE" starts a daemon
// that behaves so, or makes the running one do so; "daemon down" stops it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       os.Getenv("UPDATE") != "",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// A short path: the address of a socket has room for 107 bytes.
			run, err := os.MkdirTemp("", "lp") // the paths of t.TempDir are too long for a socket
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(run) })
			env.Vars = append(env.Vars, "RUN="+run)
			d := &fakeDaemon{dir: run, config: config.Default()}
			env.Defer(d.stop)
			env.Values[daemonKey{}] = d
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"daemon": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: daemon MODE")
				}
				ts.Check(ts.Value(daemonKey{}).(*fakeDaemon).become(args[0]))
			},
			// cmprun is cmp with the folder of the sockets written as $RUN.
			"cmprun": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 2 {
					ts.Fatalf("usage: cmprun FILE WANT")
				}
				got := strings.ReplaceAll(ts.ReadFile(args[0]), ts.Getenv("RUN"), "$RUN")
				if want := ts.ReadFile(args[1]); got != want {
					ts.Fatalf("%s is\n%s\nwant\n%s", args[0], got, want)
				}
			},
		},
	})
}

const (
	goodToken    = "0123456789abcdef0123456789abcdef"
	machineToken = "fedcba9876543210fedcba9876543210"
)

// fakeDaemon answers as the real one does. It is enabled, disabled and
// configured by requests, and renders with the real package status.
type fakeDaemon struct {
	dir     string
	servers []*http.Server
	gone    chan struct{} // closed by stop, ends requests that hang

	mu      sync.Mutex
	mode    string
	enabled bool
	config  config.Config
}

// A daemonKey finds the daemon of a script.
type daemonKey struct{}

// become makes the daemon behave as mode says.
func (d *fakeDaemon) become(mode string) error {
	d.mu.Lock()
	d.mode = mode
	if mode == "enabled" || mode == "patched" || mode == "reboot" {
		d.enabled = true
	}
	running := len(d.servers) > 0
	d.mu.Unlock()
	switch {
	case mode == "down":
		d.stop()
		return nil
	case mode == "stale":
		d.stop()
		return stale(filepath.Join(d.dir, "livepatchd.sock"))
	case running:
		return nil
	default:
		return d.start()
	}
}

// stale leaves a socket that nobody listens on.
func stale(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

func (d *fakeDaemon) start() error {
	d.gone = make(chan struct{})
	for socket, handler := range map[string]http.Handler{
		"livepatchd.sock":      d.public(),
		"livepatchd-priv.sock": d.private(),
	} {
		l, err := net.Listen("unix", filepath.Join(d.dir, socket))
		if err != nil {
			return err
		}
		s := &http.Server{Handler: d.misbehave(handler), ReadHeaderTimeout: time.Minute}
		d.servers = append(d.servers, s)
		go s.Serve(l)
	}
	return nil
}

func (d *fakeDaemon) stop() {
	if len(d.servers) == 0 {
		return
	}
	close(d.gone)
	for _, s := range d.servers {
		_ = s.Close()
	}
	d.servers = nil
}

func (d *fakeDaemon) public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", d.whenEnabled(d.status))
	mux.HandleFunc("GET /kernel-upgrade-required", d.whenEnabled(func(w http.ResponseWriter, _ *http.Request) {
		if d.mode != "reboot" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		fmt.Fprintln(w, "*** Livepatch has fixed kernel vulnerabilities. System restart recommended on the closest maintenance window ***")
	}))
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "v1.2.3") })
	return mux
}

func (d *fakeDaemon) private() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", d.whenEnabled(d.status))
	mux.HandleFunc("PUT /enable", d.enable)
	mux.HandleFunc("PUT /disable", d.whenEnabled(func(w http.ResponseWriter, r *http.Request) {
		d.enabled = false
		fmt.Fprintln(w, "Successfully disabled device. Removed machine-token: "+machineToken)
		if r.URL.Query().Get("remove") == "true" {
			fmt.Fprintln(w, "Removed livepatch lkp_1 from the kernel.")
		}
	}))
	mux.HandleFunc("PUT /refresh", d.whenEnabled(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "checking for patches\nnothing to apply\nkernel: 6.1.0-53-amd64\n")
	}))
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(d.config)
	})
	mux.HandleFunc("PUT /config", func(w http.ResponseWriter, r *http.Request) {
		var values map[string]string
		if err := json.NewDecoder(r.Body).Decode(&values); err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		if _, err := d.config.Apply(values); err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
		}
	})
	return mux
}

func (d *fakeDaemon) enable(w http.ResponseWriter, r *http.Request) {
	var body struct {
		AuthToken string `json:"auth_token"`
	}
	switch err := json.NewDecoder(r.Body).Decode(&body); {
	case err != nil:
		refuse(w, http.StatusBadRequest, err.Error())
	case d.enabled:
		refuse(w, http.StatusConflict, "Machine-token already exists! Please use 'disable' to delete existing machine-token.")
	case body.AuthToken != goodToken:
		refuse(w, http.StatusUnauthorized, "cannot enable machine: Unknown Auth-Token", "hint: get a new token and try again")
	default:
		d.enabled = true
		fmt.Fprintln(w, "Successfully enabled device. Using machine-token: "+machineToken)
	}
}

func refuse(w http.ResponseWriter, code int, lines ...string) {
	http.Error(w, strings.Join(lines, "\n"), code)
}

func (d *fakeDaemon) whenEnabled(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !d.enabled {
			refuse(w, http.StatusBadRequest, status.NotEnabled)
			return
		}
		next(w, r)
	}
}

func (d *fakeDaemon) status(w http.ResponseWriter, r *http.Request) {
	req, err := status.ParseRequest(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	s := status.Status{
		ClientVersion: "v1.2.3", MachineID: "00112233445566778899aabbccddeeff", Architecture: "amd64",
		LastCheck: now.Add(-52 * time.Second), Tier: "stable",
		Kernels: []status.Kernel{{
			Version: "6.1.0-53-amd64", Running: true, Supported: status.Supported,
			Livepatch: status.Livepatch{CheckState: status.Checked, State: status.NothingToApply},
		}},
	}
	if d.mode == "patched" {
		s.Kernels[0].Livepatch = status.Livepatch{
			CheckState: status.Checked, State: status.Applied, Version: "1.1",
			Fixes: []status.Fix{{Name: "CVE-2025-1", Patched: true}},
		}
	}
	if r.URL.Query().Get("show-secrets") == "true" {
		s.MachineToken = machineToken
	}
	b, err := req.Render(s, now)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", req.ContentType())
	_, _ = w.Write(b)
}

// misbehave answers instead of next if the mode says so.
func (d *fakeDaemon) misbehave(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		switch d.mode {
		case "hangs":
			d.mu.Unlock()
			select {
			case <-r.Context().Done():
			case <-d.gone:
			}
			d.mu.Lock()
		case "dribbles": // one byte, and then nothing more
			_, _ = io.WriteString(w, "{")
			_ = http.NewResponseController(w).Flush()
			d.mu.Unlock()
			<-r.Context().Done()
			d.mu.Lock()
		case "forbids":
			refuse(w, http.StatusForbidden, "cannot let uid 1000 do this", "hint: run it with sudo")
		case "forbids-silently":
			w.WriteHeader(http.StatusForbidden)
		case "paints":
			_, _ = io.WriteString(w, "evil: \x1b[2J\x1b]0;title\x07 \u202e\xff\r\nnext: line\n")
		case "refuses-with-paint":
			refuse(w, http.StatusInternalServerError, "cannot \x1b[31mdo\r it", "hint: \x1b[5mblink")
		case "talks-without-end":
			chunk := []byte(strings.Repeat("a: b\n", 1000))
			for {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		case "breaks-off":
			panic(http.ErrAbortHandler)
		case "redirects":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "answers-nonsense":
			_, _ = io.WriteString(w, "<html>")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// TestFakeKnowsItsModes guards the transcripts against a slip of the pen: a
// mode that does not exist would be a healthy daemon.
func TestFakeKnowsItsModes(t *testing.T) {
	known := []string{
		"up", "enabled", "patched", "reboot", "down", "stale", "hangs", "dribbles", "forbids", "forbids-silently",
		"paints", "refuses-with-paint", "talks-without-end", "breaks-off", "redirects", "answers-nonsense",
	}
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range scripts {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			mode, ok := strings.CutPrefix(strings.TrimSpace(l), "daemon ")
			if ok && !slices.Contains(known, mode) {
				t.Errorf("%s: there is no mode %q", path, mode)
			}
		}
	}
}

var errBroken = errors.New("no space left on device")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }
