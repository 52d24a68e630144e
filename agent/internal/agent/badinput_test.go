package agent

import (
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http/httpproxy"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// A net world is a world whose service is a real one, over TLS.
type netWorld struct {
	*world
	tls   *servicetest.Service
	base  string // where the agent looks for it
	ca    []byte
	proxy string
}

func newNetWorld(t *testing.T) *netWorld {
	t.Helper()
	w := &netWorld{world: newWorld(t)}
	w.serve(servicetest.New(w.repo))
	return w
}

// serve makes s the service.
func (w *netWorld) serve(s *servicetest.Service) {
	w.t.Helper()
	w.t.Cleanup(s.Close)
	w.tls, w.base, w.ca = s, s.URL, s.CA
	w.reopen(func(c config.Config) (Service, error) {
		client, err := fetch.New(fetch.Options{Base: w.base, CACerts: w.ca, DialTimeout: 20 * time.Second, UserAgent: "test",
			Proxy: httpproxy.Config{HTTPSProxy: w.proxy}})
		if err != nil {
			return nil, err
		}
		return client, nil
	})
}

// published puts a second patch into the repository, which the agent has not
// seen.
func (w *netWorld) published() {
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
}

// endless answers with a gigabyte, or as much of it as the client takes; packed,
// with 64 megabytes that are 64 kilobytes on the wire.
func endless(w http.ResponseWriter, packed bool) {
	var out io.Writer = w
	if packed {
		w.Header().Set("Content-Encoding", "gzip")
		gz := gzip.NewWriter(w)
		defer gz.Close()
		out = gz
	}
	b := bytes.Repeat([]byte(" "), 64<<10)
	size := 1 << 30
	if packed {
		size = 64 << 20
	}
	for range size / len(b) {
		if _, err := out.Write(b); err != nil {
			return
		}
	}
}

func onPath(part string, f func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		f(w)
		return true
	}
}

// refusingProxy is a proxy that answers every request with a status.
func refusingProxy(t *testing.T, code int) string {
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
	t.Cleanup(p.Close)
	return p.URL
}

// closedPort returns the address of a port where nothing listens.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// What is wrong with the service or on the way to it ends the check with one
// line that says what, and a next step; machine and cache stay as they are, and
// when it is over the next check goes through.
func TestServiceInTrouble(t *testing.T) {
	tests := map[string]struct {
		harm     func(w *netWorld)
		want     string // part of the line
		wantHint string
	}{
		"service down": {func(w *netWorld) { w.base = "https://" + closedPort(w.t) },
			"cannot check in with https://127.0.0.1:PORT: connection to 127.0.0.1:PORT refused", "check that the service runs"},
		"name does not exist": {func(w *netWorld) { w.base = "https://no-such-host.invalid" },
			`cannot find the address of host "no-such-host.invalid"`, "check the name"},
		"certificate for another name": {func(w *netWorld) { w.base = strings.Replace(w.base, "127.0.0.1", "localhost", 1) },
			"certificate of localhost:PORT is for livepatch.test, 127.0.0.1", "use the name that the certificate is for"},
		"certificate of an unknown authority": {func(w *netWorld) { w.ca = nil },
			"from an authority that this machine does not trust", "ca-certs=@stdin"},
		"certificate expired": {func(w *netWorld) {
			s := servicetest.NewValid(w.repo, time.Now().Add(-96*time.Hour), time.Now().Add(-48*time.Hour), "127.0.0.1")
			w.t.Cleanup(s.Close)
			w.base, w.ca = s.URL, s.CA
		}, "and this machine's clock says", "if the clock is wrong, set it"},
		"no TLS": {func(w *netWorld) {
			s := httptest.NewServer(http.NotFoundHandler())
			w.t.Cleanup(s.Close)
			w.base = strings.Replace(s.URL, "http:", "https:", 1)
		}, "does not speak TLS", "check the address"},
		"plain http": {func(w *netWorld) { w.base = strings.Replace(w.base, "https:", "http:", 1) },
			"need https", ""},
		"proxy down": {func(w *netWorld) { w.base, w.proxy = "https://livepatch.test", "http://"+closedPort(w.t) },
			"cannot reach proxy 127.0.0.1:PORT: connection to 127.0.0.1:PORT refused", "check the proxy"},
		"proxy refuses": {func(w *netWorld) { w.base, w.proxy = "https://livepatch.test", refusingProxy(w.t, 403) },
			"refused with status 403 (Forbidden)", "check the proxy"},
		"proxy wants a password": {func(w *netWorld) { w.base, w.proxy = "https://livepatch.test", refusingProxy(w.t, 407) },
			"wants a user name and a password", "USER:PASSWORD@"},
		"socks proxy down": {func(w *netWorld) { w.base, w.proxy = "https://livepatch.test", "socks5://"+closedPort(w.t) },
			"cannot reach proxy", "check the proxy"},
		"token revoked": {func(w *netWorld) {
			w.tls.Override(onPath("check-in", func(w http.ResponseWriter) {
				servicetest.Refuse(w, 401, service.CodeRevokedToken, "revoked")
			}))
		}, "the token has been revoked", "canonical-livepatch enable TOKEN"},
		"token expired": {func(w *netWorld) {
			w.tls.Override(onPath("check-in", func(w http.ResponseWriter) {
				servicetest.Refuse(w, 401, service.CodeExpiredToken, "expired")
			}))
		}, "the token has expired", "canonical-livepatch enable TOKEN"},
		"token unknown": {func(w *netWorld) {
			w.tls.Override(onPath("check-in", func(w http.ResponseWriter) {
				servicetest.Refuse(w, 401, service.CodeUnknownToken, "unknown")
			}))
		}, "the service does not know the token", "canonical-livepatch enable TOKEN"},
		"internal error": {func(w *netWorld) {
			w.tls.Override(onPath("check-in", func(w http.ResponseWriter) {
				servicetest.Refuse(w, 500, service.CodeInternal, "database\nis gone")
			}))
		}, "answered with status 500 (Internal Server Error): database is gone", "tell the operator"},
		"page of a portal": {func(w *netWorld) {
			w.tls.Override(func(w http.ResponseWriter, _ *http.Request) bool {
				_, _ = io.WriteString(w, "<html>Please log in</html>")
				return true
			})
		}, "is not what it should be", "no proxy or portal"},
		"redirect": {func(w *netWorld) {
			w.tls.Override(func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusFound)
				return true
			})
		}, "answered with status 302", "no proxy or portal"},
		"endless answer": {func(w *netWorld) {
			w.tls.Override(onPath("check-in", func(w http.ResponseWriter) { endless(w, false) }))
		}, "longer than 65536 bytes", "no proxy or portal"},
		"clock of this machine 2 days behind": {func(w *netWorld) {
			w.tls.Override(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Date", time.Now().Add(48*time.Hour).UTC().Format(http.TimeFormat))
				return false
			})
		}, "this machine's clock is 2 days behind the service's", "set the clock"},
		"clock of this machine 2 days ahead": {func(w *netWorld) {
			w.tls.Override(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Date", time.Now().Add(-48*time.Hour).UTC().Format(http.TimeFormat))
				return false
			})
		}, "this machine's clock is 2 days ahead of the service's", "set the clock"},

		"metadata expired": {func(w *netWorld) {
			w.repo.SetLifetime(-time.Hour)
			w.repo.Resign()
		}, "signed metadata has expired", "out of date"},
		"metadata expired, says a clock that is ahead": {func(w *netWorld) {
			w.repo.SetLifetime(-time.Hour)
			w.repo.Resign()
			w.tls.Override(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Date", time.Now().Add(-3*time.Hour).UTC().Format(http.TimeFormat))
				return false
			})
		}, "signed metadata has expired: timestamp.json is expired: this machine's clock is 3 hours ahead of the service's", "set the clock"},
		"metadata rolled back": {func(w *netWorld) {
			old := w.repo.State()
			w.repo.Publish()
			if err := w.now(); err != nil {
				w.t.Fatal(err)
			}
			w.repo.Restore(old)
		}, "older than what this machine has already seen", "older files than before"},
		"metadata signed by too few": {func(w *netWorld) {
			w.published()
			w.repo.Edit(w.repo.Current("debian"), servicetest.Vendor, 1, false)
		}, "signature not trusted", "do not trust this service"},
		"metadata signed twice by the same key": {func(w *netWorld) {
			w.published()
			w.repo.Edit(w.repo.Current("debian"), servicetest.Vendor, 1, true)
		}, "signature not trusted", "do not trust this service"},
		"metadata truncated": {func(w *netWorld) {
			w.repo.Publish()
			b := w.repo.Metadata("timestamp.json")
			w.repo.SetMetadata("timestamp.json", b[:len(b)/2])
		}, "signed metadata is malformed", "stays as it is"},
		"metadata cut off by the connection": {func(w *netWorld) {
			w.repo.Resign()
			w.tls.Override(onPath("timestamp.json", func(w http.ResponseWriter) {
				w.Header().Set("Content-Length", "1000")
				_, _ = io.WriteString(w, "{")
				panic(http.ErrAbortHandler)
			}))
		}, "cannot fetch timestamp", "check the network"},
		"metadata 1 GB long": {func(w *netWorld) {
			w.repo.Publish()
			w.tls.Override(onPath("timestamp.json", func(w http.ResponseWriter) { endless(w, false) }))
		}, "timestamp.json is longer than 16384 bytes", "stays as it is"},
		"metadata that unpacks to 64 MB": {func(w *netWorld) {
			w.repo.Publish()
			w.tls.Override(onPath("timestamp.json", func(w http.ResponseWriter) { endless(w, true) }))
		}, "timestamp.json is longer than 16384 bytes", "stays as it is"},
		"bin 1 GB long": {func(w *netWorld) {
			w.published()
			w.tls.Override(onPath(".debian-", func(w http.ResponseWriter) { endless(w, false) }))
		}, "longer than 5242880 bytes", "stays as it is"},
		"metadata withheld": {func(w *netWorld) {
			w.repo.Publish()
			w.repo.SetMetadata(w.repo.Current("snapshot"), nil)
		}, "service does not have", "do not fit together"},
		"module description for another kernel": {func(w *netWorld) {
			m := module2
			m.Release = "6.1.0-99-amd64"
			w.repo.Add(m, contentOf("2.1"), servicetest.Everyone())
			ix := patch.Index{Arch: kernel.Arch, Release: kernel.Release, From: "2020-01-01", Until: "2099-01-01", Patches: []patch.IndexEntry{{
				Target: patch.ModulePath(servicetest.Vendor, m), Name: m.Name, Version: m.Version, Sequence: 2, BuildID: kernel.BuildID}}}
			w.repo.SetIndex(ix)
			w.repo.Publish()
		}, "patch is for kernel 6.1.0-99-amd64, running 6.1.0-53-amd64", "install the kernel package"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newNetWorld(t)
			w.enable()
			if err := w.now(); err != nil {
				t.Fatal(err)
			}
			w.wantPatch(status.Applied, "1.1")
			base, ca := w.base, w.ca
			tc.harm(w)
			before, kernelBefore := w.tree(), w.inKernel()
			w.fake.Made()

			err := w.now()
			wantLine(t, err, tc.want, tc.wantHint)
			s, _ := w.Status(false)
			if s.CheckError != err.Error() || s.CheckHint != Hint(err) || s.Kernels[0].Livepatch.CheckState != status.CheckFailed {
				t.Errorf("status says %q %q %q", s.Kernels[0].Livepatch.CheckState, s.CheckError, s.CheckHint)
			}
			w.wantPatch(status.Applied, "1.1")
			if made := w.fake.Made(); len(made) != 0 {
				t.Errorf("loader was asked for %q", made)
			}
			if diff := cmp.Diff(kernelBefore, w.inKernel()); diff != "" {
				t.Errorf("kernel changed: %s", diff)
			}
			w.sameButMetadata(before)

			// Over: the next check goes through, whatever was left behind.
			w.base, w.ca, w.proxy = base, ca, ""
			w.tls.Override(nil)
			w.repo.SetLifetime(time.Hour)
			w.repo.SetIndex(patch.Index{Arch: kernel.Arch, Release: kernel.Release, From: "2020-01-01", Until: "2099-01-01"})
			w.repo.Publish()
			w.repo.Publish() // above whatever was seen before the rollback
			if err := w.now(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// sameButMetadata compares the files of the agent with those before. Verified
// files may have come in before the trouble was met.
func (w *netWorld) sameButMetadata(before map[string]string) {
	w.t.Helper()
	strip := func(files map[string]string) map[string]string {
		maps.DeleteFunc(files, func(name, _ string) bool {
			_, had := before[name]
			return strings.HasPrefix(name, "cache/metadata/") || name == "cache/refresh.json" || strings.HasPrefix(name, "cache/blobs/") && !had
		})
		return files
	}
	if diff := cmp.Diff(strip(maps.Clone(before)), strip(w.tree())); diff != "" {
		w.t.Errorf("files changed: %s", diff)
	}
}

// wantLine fails the test unless err is one line with the text, and its hint one
// with the other. PORT stands for any port.
func wantLine(t *testing.T, err error, want, hint string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	got := err.Error()
	if strings.Contains(got, "\n") || len(got) > 400 {
		t.Errorf("not one line: %q", got)
	}
	words := slices.DeleteFunc(strings.Split(want, "PORT"), func(s string) bool { return s == "" })
	rest := got
	for _, part := range words {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			t.Errorf("error = %q, want %q", got, want)
			break
		}
		rest = after
	}
	if h := Hint(err); !strings.Contains(h, hint) || hint == "" && h != "" && !strings.Contains(h, "see the values") {
		t.Errorf("hint = %q, want %q", h, hint)
	}
	for _, secret := range []string{servicetest.AuthToken, "Bearer"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q holds a secret", got)
		}
	}
}

// What is wrong with a module or with the kernel ends the applying with one line
// and a next step; the patch in force stays.
func TestPatchInTrouble(t *testing.T) {
	noModule := func(w *netWorld, f func(http.ResponseWriter)) { w.tls.Override(onPath(module2.Name+".", f)) }
	tests := map[string]struct {
		harm      func(w *netWorld)
		want      string
		wantHint  string
		state     status.State
		wantAsked bool // whether the loader was asked to apply
	}{
		"module truncated": {func(w *netWorld) {
			noModule(w, func(w http.ResponseWriter) { _, _ = w.Write(contentOf("2.1")[:1000]) })
		}, "file ends after 1000 of 11000 bytes", "changed on the way", status.ApplyFailed, false},
		"module with one bit changed": {func(w *netWorld) {
			b := contentOf("2.1")
			b[500] ^= 4
			noModule(w, func(w http.ResponseWriter) { _, _ = w.Write(b) })
		}, "hash of file is", "changed on the way", status.ApplyFailed, false},
		"module endless": {func(w *netWorld) {
			noModule(w, func(w http.ResponseWriter) { endless(w, false) })
		}, "longer than the 11000 bytes that were signed", "changed on the way", status.ApplyFailed, false},
		"module gone": {func(w *netWorld) {
			noModule(w, func(w http.ResponseWriter) { servicetest.Refuse(w, 404, service.CodeNotFound, "gone") })
		}, "service does not have", "do not fit together", status.Unapplied, false},
		"connection breaks in the module": {func(w *netWorld) {
			noModule(w, func(w http.ResponseWriter) {
				w.Header().Set("Content-Length", "11000")
				_, _ = w.Write(contentOf("2.1")[:5000])
				panic(http.ErrAbortHandler)
			})
		}, "cannot fetch debian/", "check the network", status.Unapplied, false},
		"kernel without livepatch": {func(w *netWorld) {
			w.fake.Do(func(f *loadertest.Fake) { f.Kernel.LivepatchSupported = false })
		}, "kernel has no livepatch support", "CONFIG_LIVEPATCH", status.ApplyFailed, false},
		"modules disabled": {func(w *netWorld) {
			w.fake.Do(func(f *loadertest.Fake) { f.Kernel.ModulesDisabled = true })
		}, "loading of modules is disabled until reboot", "kernel.modules_disabled", status.ApplyFailed, false},
		"ftrace disabled": {func(w *netWorld) {
			w.fake.Do(func(f *loadertest.Fake) { f.Kernel.FtraceEnabled = false })
		}, "ftrace is disabled", "sysctl kernel.ftrace_enabled=1", status.ApplyFailed, false},
		"transition of another livepatch": {func(w *netWorld) {
			w.fake.Do(func(f *loadertest.Fake) {
				l := f.Livepatches[0]
				l.Name, l.Standing, l.State, l.Sequence = "kpatch_x", "", "disabling", 0
				f.Livepatches = append(f.Livepatches, l)
			})
		}, "another livepatch transition is in progress: kpatch_x", "status --verbose", status.ApplyFailed, false},
		"kernel wants signatures": {func(w *netWorld) {
			w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = patch.ErrModuleSignature })
		}, "kernel does not accept the module's signature", "tell the vendor", status.ApplyFailed, true},
		"loader trusts less": {func(w *netWorld) {
			w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = patch.ErrUntrusted })
		}, "signature not trusted", "do not trust", status.ApplyFailed, true},
		"loader's disk full": {func(w *netWorld) {
			w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = patch.ErrStorage })
		}, "loader cannot write its state", "loader's state", status.ApplyFailed, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newNetWorld(t)
			w.enable()
			if err := w.now(); err != nil {
				t.Fatal(err)
			}
			w.published()
			tc.harm(w)
			w.fake.Made()
			if err := w.now(); err != nil {
				t.Fatalf("check-in itself: %v", err)
			}
			p := w.patch()
			wantLine(t, &PatchError{p.PatchError, p.PatchHint}, "cannot apply patch 2.1: ", "")
			if !strings.Contains(p.PatchError, tc.want) || !strings.Contains(p.PatchHint, tc.wantHint) {
				t.Errorf("status says %q, %q; want %q, %q", p.PatchError, p.PatchHint, tc.want, tc.wantHint)
			}
			if p.State != tc.state || p.CheckState != status.Checked {
				t.Errorf("state = %q, %q; want %q", p.State, p.CheckState, tc.state)
			}
			if asked := slices.ContainsFunc(w.fake.Made(), func(c string) bool { return strings.HasPrefix(c, "apply ") }); asked != tc.wantAsked {
				t.Errorf("loader was asked: %v", asked)
			}
			if l := w.inKernel(); l.Version != "1.1" {
				t.Errorf("patch in the kernel: %+v", l)
			}

			// Over: an operator's refresh brings the patch in.
			w.tls.Override(nil)
			w.fake.Do(func(f *loadertest.Fake) {
				f.ApplyErr, f.Kernel = nil, loadertest.New(kernel).Kernel
				f.Livepatches = f.Livepatches[:1]
			})
			if err := w.check(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			w.wantPatch(status.Applied, "2.1")
			if got := contentOf("2.1"); !bytes.Equal(w.fake.Applied[len(w.fake.Applied)-1].Content, got) {
				t.Error("the module is not the one that was published")
			}
		})
	}
}

// Enabling that fails leaves nothing behind.
func TestEnableInTrouble(t *testing.T) {
	tests := map[string]struct {
		token    string
		harm     func(w *netWorld)
		want     string
		wantHint string
	}{
		"wrong token":   {"wrong", nil, "cannot enable this machine: Unknown Auth-Token: the service does not know the token", "get a token from the service"},
		"no token":      {"", nil, "the token is empty", "see the values"},
		"strange token": {"a\nb", nil, "characters that no token has", "see the values"},
		"expired token": {"t", func(w *netWorld) {
			w.tls.Override(onPath("machines", func(w http.ResponseWriter) {
				servicetest.Refuse(w, 401, service.CodeExpiredToken, "expired")
			}))
		}, "the token has expired", "get a new token"},
		"revoked token": {"t", func(w *netWorld) {
			w.tls.Override(onPath("machines", func(w http.ResponseWriter) {
				servicetest.Refuse(w, 401, service.CodeRevokedToken, "revoked")
			}))
		}, "the token has been revoked", "get a new token"},
		"401 of something else": {"t", func(w *netWorld) {
			w.tls.Override(onPath("machines", func(w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) }))
		}, "answered with status 401 (Unauthorized)", "get a token"},
		"service down": {servicetest.AuthToken, func(w *netWorld) { w.base = "https://" + closedPort(w.t) }, "refused", "check that the service runs"},
		"too many": {servicetest.AuthToken, func(w *netWorld) {
			w.tls.Override(onPath("machines", func(w http.ResponseWriter) {
				servicetest.Refuse(w, 429, service.CodeTooMany, "slow down")
			}))
		}, "429 (Too Many Requests): slow down", "tries again"},
		"answer without a token": {servicetest.AuthToken, func(w *netWorld) {
			w.tls.Override(onPath("machines", func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"machine_token":"../x"}`) }))
		}, "has no machine token", "no proxy or portal"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newNetWorld(t)
			if tc.harm != nil {
				tc.harm(w)
			}
			before := w.tree()
			_, err := w.Enable(t.Context(), tc.token)
			if err == nil {
				t.Fatal("enabled")
			}
			if got := err.Error(); !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
				t.Errorf("error = %q, want %q", got, tc.want)
			}
			if h := Hint(err); !strings.Contains(h, tc.wantHint) && tc.wantHint != "see the values" {
				t.Errorf("hint = %q, want %q", h, tc.wantHint)
			}
			if diff := cmp.Diff(before, w.tree()); diff != "" {
				t.Errorf("files changed: %s", diff)
			}
			if _, enabled := w.Status(false); enabled {
				t.Error("enabled")
			}
		})
	}
}

// A machine whose token was revoked keeps its patch and its token file, and can
// be enabled again without being disabled first.
func TestEnableAgainAfterRevocation(t *testing.T) {
	w := newNetWorld(t)
	w.enable()
	if err := w.now(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Enable(t.Context(), servicetest.AuthToken); err != ErrEnabled {
		t.Errorf("enabled twice: %v", err)
	}
	old := w.token
	w.tls.Override(onPath("check-in", func(w http.ResponseWriter) {
		servicetest.Refuse(w, 401, service.CodeRevokedToken, "revoked")
	}))
	if err := w.now(); err == nil {
		t.Fatal("no error")
	}
	if b, err := os.ReadFile(w.path(tokenFile)); err != nil || strings.TrimSpace(string(b)) != old {
		t.Errorf("token file = %q, %v", b, err)
	}
	w.tls.Override(nil)
	w.enable()
	if w.token == old {
		t.Error("token is the old one")
	}
	if err := w.now(); err != nil {
		t.Errorf("check-in with the new token: %v", err)
	}
	w.wantPatch(status.Applied, "1.1")
}

// With a proxy that lets it through, the agent reaches a service whose name only
// the proxy can resolve.
func TestThroughAProxy(t *testing.T) {
	w := newNetWorld(t)
	target := strings.TrimPrefix(w.base, "https://")
	p := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if user, pass, ok := parseProxyAuth(r); !ok || user != "u" || pass != "p" {
			rw.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		out, err := net.Dial("tcp", target)
		if err != nil {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Close()
		rw.WriteHeader(http.StatusOK)
		in, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer in.Close()
		go func() { _, _ = io.Copy(out, buf); _ = out.(*net.TCPConn).CloseWrite() }()
		_, _ = io.Copy(in, out)
	}))
	t.Cleanup(p.Close)
	w.base = "https://livepatch.test:8443"
	w.proxy = strings.Replace(p.URL, "http://", "http://u:p@", 1)
	w.enable()
	if err := w.now(); err != nil {
		t.Fatal(err)
	}
	w.wantPatch(status.Applied, "1.1")
}

func parseProxyAuth(r *http.Request) (user, pass string, ok bool) {
	h := http.Header{"Authorization": r.Header["Proxy-Authorization"]}
	return (&http.Request{Header: h}).BasicAuth()
}

// An unchanged check-in is one request on the check-in plane and one 304.
func TestUnchangedCheckInCostsTwoRequests(t *testing.T) {
	w := newNetWorld(t)
	w.enable()
	if err := w.now(); err != nil {
		t.Fatal(err)
	}
	w.tls.Requests()
	for range 2 {
		if err := w.now(); err != nil {
			t.Fatal(err)
		}
		want := []string{"POST /v1/machines/self/check-in 200", "GET /tuf/metadata/timestamp.json 304"}
		if got := w.tls.Requests(); !slices.Equal(got, want) {
			t.Errorf("requests = %q", got)
		}
		w.restart() // nor does a restart cost more
	}
}

// The disk of the agent is full: nothing is half done, and with room again the
// next check goes through.
func TestDiskFullWhileCaching(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a small disk; package cache has the same with a writer that fails")
	}
	w := newNetWorld(t)
	blobs := w.path("cache/blobs")
	if err := syscall.Mount("tmpfs", blobs, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("cannot mount a small disk here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(blobs, 0) })
	w.enable()
	w.repo.Add(module2, bytes.Repeat([]byte("x"), 100_000), servicetest.Everyone())
	w.repo.Publish()
	if err := w.now(); err != nil {
		t.Fatal(err)
	}
	p := w.patch()
	wantLine(t, &PatchError{p.PatchError, p.PatchHint}, "no space left on device", "")
	if !strings.Contains(p.PatchHint, "make room") || p.State != status.Unapplied {
		t.Errorf("state %q, hint %q", p.State, p.PatchHint)
	}
	entries, err := os.ReadDir(blobs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
	if err := syscall.Mount("", blobs, "", syscall.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := w.now(); err != nil {
		t.Fatal(err)
	}
	w.wantPatch(status.Applied, "2.1")
}
