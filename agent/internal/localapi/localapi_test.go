package localapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"livepatch/agent/internal/agent"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/localapi"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
)

// fakeAgent is an agent that remembers what it was asked.
type fakeAgent struct {
	enabled  bool
	required string
	err      error // of every call that changes something
	asked    []string
	values   map[string]string
	slow     time.Duration // how long Refresh takes
	why      string        // a token was given, and the machine is not enabled yet
	change   config.Change
}

const token = "00112233445566778899aabbccddeeff"

func (f *fakeAgent) Status(secrets bool) (status.Status, bool) {
	s := status.Status{ClientVersion: "v1.2.3", Kernels: []status.Kernel{{Version: "6.1.0-53-amd64", Running: true, Supported: status.Supported,
		Livepatch: status.Livepatch{CheckState: status.Checked, State: status.Applied, Version: "1.1"}}}}
	if secrets {
		s.MachineToken = token
	}
	return s, f.enabled
}

func (f *fakeAgent) UpgradeRequired() (string, error) {
	if !f.enabled {
		return "", agent.ErrNotEnabled
	}
	return f.required, nil
}

func (f *fakeAgent) Enable(_ context.Context, t string) (string, error) {
	f.asked = append(f.asked, "enable "+t)
	return token, f.err
}

func (f *fakeAgent) Disable(_ context.Context, remove bool) (string, []string, error) {
	f.asked = append(f.asked, fmt.Sprint("disable ", remove))
	return token, []string{"Livepatch x stays in the kernel."}, f.err
}

func (f *fakeAgent) Refresh(ctx context.Context) ([]string, error) {
	f.asked = append(f.asked, "refresh")
	select {
	case <-time.After(f.slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return []string{"checking for patches", "nothing to apply"}, f.err
}

func (f *fakeAgent) Config() map[string]string {
	return map[string]string{config.RemoteServer: "https://livepatch.test", config.HTTPProxy: ""}
}

func (f *fakeAgent) SetConfig(_ context.Context, values map[string]string) ([]string, error) {
	f.values = values
	return nil, f.err
}

func (f *fakeAgent) Unfinished() (why, hint string) {
	if f.why == "" {
		return "", ""
	}
	return f.why, "check the network"
}

func (f *fakeAgent) Configure(_ context.Context, c config.Change) (config.Standing, error) {
	f.change = c
	return config.Standing{Config: c.Config, Enabled: f.enabled, Waiting: f.why != ""}, f.err
}

func (f *fakeAgent) Recheck() { f.asked = append(f.asked, "recheck") }

// serve returns a way to call the two sockets of an agent.
func serve(t *testing.T, f *fakeAgent) func(socket, method, path, body string) (int, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := localapi.Listen(dir, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := &localapi.Server{Log: slog.New(slog.DiscardHandler), Agent: f, Version: "v1.2.3", Allow: []uint32{uint32(os.Getuid())}}
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.sock")); len(left) != 0 {
			t.Errorf("sockets left: %q", left)
		}
	})
	return func(socket, method, path, body string) (int, string) {
		t.Helper()
		c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, socket))
			}}}
		req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
}

const (
	public  = localapi.PublicSocket
	private = localapi.PrivateSocket
)

func TestAnswers(t *testing.T) {
	down := fmt.Errorf("cannot check in: %w", &fetch.Error{Kind: fetch.ErrConnRefused, Text: "connection to x refused"})
	on := fakeAgent{enabled: true}
	tests := map[string]struct {
		agent                      fakeAgent
		socket, method, path, body string
		code                       int
		want                       string // the whole body; "…" at the end allows more
	}{
		"version":                         {on, public, "GET", "/version", "", 200, "v1.2.3\n"},
		"status of a machine without":     {fakeAgent{}, public, "GET", "/status", "", 400, status.NotEnabled + "\n"},
		"status in a format that is none": {on, public, "GET", "/status?format=xml", "", 400, `cannot use "xml" as a format, need humane, json or yaml` + "\n"},
		"status as JSON":                  {on, public, "GET", "/status?format=json", "", 200, "{\n  \"Client-Version\": \"v1.2.3\"…"},
		"upgrade required":                {fakeAgent{enabled: true, required: "Please reboot."}, public, "GET", "/kernel-upgrade-required", "", 200, "Please reboot.\n"},
		"upgrade not required":            {on, public, "GET", "/kernel-upgrade-required", "", 204, ""},
		"upgrade of a machine without":    {fakeAgent{}, public, "GET", "/kernel-upgrade-required", "", 400, status.NotEnabled + "\n"},
		"enable":                          {fakeAgent{}, private, "PUT", "/enable", `{"auth_token":"t"}`, 200, "Successfully enabled device. Using machine-token: " + token + "\n"},
		"enable as it was":                {fakeAgent{}, private, "PUT", "/enable?auth-token=t", "", 200, "Successfully enabled device. Using machine-token: " + token + "\n"},
		"enable twice": {fakeAgent{err: agent.ErrEnabled}, private, "PUT", "/enable?auth-token=t", "", 409,
			"Machine-token already exists! Please use 'disable' to delete existing machine-token.\n"},
		"enable with nonsense":         {fakeAgent{}, private, "PUT", "/enable", `x`, 400, "cannot enable this machine: request is not valid: need a JSON object\n"},
		"enable with too much":         {fakeAgent{}, private, "PUT", "/enable", strings.Repeat("x", 2<<20), 413, "cannot enable this machine: request is longer than 1048576 bytes…"},
		"enable while service is down": {fakeAgent{err: down}, private, "PUT", "/enable?auth-token=t", "", 502, "cannot check in: connection to x refused\nhint: check that the service runs…"},
		"disable": {on, private, "PUT", "/disable", "", 200,
			"Successfully disabled device. Removed machine-token: " + token + "\nLivepatch x stays in the kernel.\n"},
		"refresh":               {on, private, "PUT", "/refresh", "", 200, "checking for patches\nnothing to apply\n"},
		"refresh that fails":    {fakeAgent{err: errors.New("a\nb")}, private, "PUT", "/refresh", "", 500, "a b\n"},
		"refresh, not applied":  {fakeAgent{err: &agent.PatchError{Message: "m", Hint: "h"}}, private, "PUT", "/refresh", "", 502, "m\nhint: h\n"},
		"refresh, not enabled":  {fakeAgent{err: agent.ErrNotEnabled}, private, "PUT", "/refresh", "", 400, status.NotEnabled + "\n"},
		"config":                {on, private, "GET", "/config", "", 200, `{"http-proxy":"","remote-server":"https://livepatch.test"}` + "\n"},
		"config change":         {on, private, "PUT", "/config", `{"http-proxy":""}`, 204, ""},
		"config, unknown key":   {fakeAgent{err: config.ErrUnknownKey}, private, "PUT", "/config", `{"x":"y"}`, 400, config.ErrUnknownKey.Error() + "…"},
		"config, no object":     {on, private, "PUT", "/config", `[]`, 400, "cannot change the configuration: request is not valid: need a JSON object\n"},
		"refused by the loader": {fakeAgent{err: patch.ErrFtraceDisabled}, private, "PUT", "/refresh", "", 500, "ftrace is disabled\nhint: switch it on with…"},
		"not enabled yet": {fakeAgent{why: "enabling: waiting for the service"}, public, "GET", "/status", "", 400,
			"Machine is not enabled. enabling: waiting for the service\nhint: check the network\n"},
		"configure": {on, private, "PUT", "/configure", `{"config":{"log-level":"info"},"auth_token":"t"}`, 200,
			`{"config":{"log-level":"info"},"enabled":true,"waiting":false}` + "\n"},
		"configure and be told to wait": {fakeAgent{why: "x"}, private, "PUT", "/configure", `{}`, 200, `{"config":null,"enabled":false,"waiting":true}` + "\n"},
		"configure both ways":           {on, private, "PUT", "/configure", `{"auth_token":"t","disable":true}`, 400, "request is not valid: cannot read change: …"},
		"configure what is unknown":     {on, private, "PUT", "/configure", `{"x":1}`, 400, "request is not valid: cannot read change: …"},
		"configure, refused":            {fakeAgent{err: down}, private, "PUT", "/configure", `{}`, 502, "cannot check in: connection to x refused\nhint: …"},
		"recheck":                       {on, private, "PUT", "/recheck", "", 204, ""},
		"recheck in public":             {on, public, "PUT", "/recheck", "", 404, "404 page not found\n"},
		"changing in public":            {on, public, "PUT", "/disable", "", 404, "404 page not found\n"},
		"config in public":              {on, public, "GET", "/config", "", 404, "404 page not found\n"},
		"reading with the wrong":        {on, private, "GET", "/refresh", "", 405, "Method Not Allowed\n"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			call := serve(t, &tc.agent)
			code, got := call(tc.socket, tc.method, tc.path, tc.body)
			want, more := strings.CutSuffix(tc.want, "…")
			if code != tc.code || got != want && (!more || !strings.HasPrefix(got, want)) {
				t.Errorf("got %d %q, want %d %q", code, got, tc.code, tc.want)
			}
		})
	}
}

// Desktop programs older than the other formats ask without one and parse YAML
// with lower-case keys.
func TestStatusWithoutFormatIsYAML(t *testing.T) {
	call := serve(t, &fakeAgent{enabled: true})
	for _, query := range []string{"", "?verbose=True", "?verbose=true", "?verbose=1", "?verbosity=3"} {
		_, got := call(public, "GET", "/status"+query, "")
		var doc struct {
			Status []struct {
				Running   bool `yaml:"running"`
				Livepatch struct {
					PatchState string `yaml:"patchState"`
				} `yaml:"livepatch"`
			} `yaml:"status"`
		}
		if err := yaml.Unmarshal([]byte(got), &doc); err != nil || len(doc.Status) != 1 || doc.Status[0].Livepatch.PatchState != "applied" || json.Valid([]byte(got)) {
			t.Errorf("%q: %v in %q", query, err, got)
		}
	}
}

func TestSecretsAreForThePrivateSocket(t *testing.T) {
	call := serve(t, &fakeAgent{enabled: true})
	for socket, want := range map[string]bool{public: false, private: true} {
		_, got := call(socket, "GET", "/status?format=json&verbose=true&show-secrets=true", "")
		if strings.Contains(got, token) != want {
			t.Errorf("%s: %q", socket, got)
		}
	}
	if _, got := call(private, "GET", "/status?format=json&verbose=true", ""); strings.Contains(got, token) {
		t.Errorf("not asked for: %q", got)
	}
}

// A check takes longer than a header may.
func TestSlowRefreshIsWaitedFor(t *testing.T) {
	call := serve(t, &fakeAgent{enabled: true, slow: 7 * time.Second})
	if code, got := call(private, "PUT", "/refresh", ""); code != 200 {
		t.Errorf("got %d %q", code, got)
	}
}

func TestSocketsOfAnAgentBefore(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{public, private} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(filepath.Join(dir, private)) > 107 {
		t.Chdir(dir)
		dir = "."
	}
	l, err := localapi.Listen(dir, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{public: 0o666, private: 0o600} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode() != mode|os.ModeSocket {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&localapi.Server{Log: slog.New(slog.DiscardHandler), Agent: &fakeAgent{}}).Serve(ctx, l); err != nil {
		t.Error(err)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add("/enable", "auth-token=x", []byte(`{"auth_token":"t"}`))
	f.Add("/config", "", []byte(`{"a":"b"}`))
	f.Add("/status", "format=json&verbose=True", []byte(nil))
	f.Fuzz(func(t *testing.T, path, query string, body []byte) {
		for _, method := range []string{http.MethodGet, http.MethodPut} {
			req, err := http.NewRequest(method, "http://localhost/", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Path, req.URL.RawQuery = "/"+strings.TrimLeft(path, "/"), query
			s := &localapi.Server{Log: slog.New(slog.DiscardHandler), Agent: &fakeAgent{enabled: true}}
			w := &answer{header: http.Header{}}
			s.Private().ServeHTTP(w, req) // nobody: refused
			if w.code != http.StatusForbidden {
				t.Errorf("%s %s = %d without a peer", method, path, w.code)
			}
			s.Public().ServeHTTP(&answer{header: http.Header{}}, req)
		}
	})
}

// answer is a response writer that keeps the status.
type answer struct {
	header http.Header
	code   int
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(code int) { a.code = code }

func (a *answer) Write(b []byte) (int, error) { return len(b), nil }
