//go:build attack

package attack

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// files returns what makes a front change the files whose name has a suffix:
// "timestamp.json", ".rollout.json", ".ko".
func files(suffix string, change func(res *http.Response)) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if strings.HasPrefix(name, "/tuf/") && strings.HasSuffix(path.Base(name), suffix) && res.StatusCode == http.StatusOK {
			change(res)
		}
	}
}

// endless gives an answer a body without a length and without an end.
func endless(res *http.Response) {
	lab.Inflate(res, 1<<40)
	res.ContentLength = -1
	res.Header.Del("Content-Length")
}

// bomb is 64 MiB of spaces, compressed.
func bomb(res *http.Response) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(bytes.Repeat([]byte(" "), 64<<20))
	w.Close()
	lab.Replace(res, b.Bytes())
	res.Header.Set("Content-Encoding", "gzip")
}

// Files without an end, and small ones that unfold to large ones.
func TestHostileMirrorEndlessData(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	bin := ".debian-"
	for name, of := range map[string]string{
		"timestamp": "timestamp.json", "snapshot": ".snapshot.json", "rollout": ".rollout.json", "bin": bin, "module": ".ko", "root": "2.root.json",
	} {
		for kind, body := range map[string]func(*http.Response){
			"of 1 TB": func(res *http.Response) { lab.Inflate(res, 1<<40) }, "without an end": endless, "that is a gzip bomb": bomb,
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				a := report.Begin(t, report.Mirror, "endless data: "+name+" "+kind)
				v := newVictim(t, s)
				forged := lab.Repository{Repo: v.repo.Clone()}
				adds(evil)(forged)
				forged.AddRoot()
				change := files(of, body)
				if of == bin {
					change = lab.Bins(body)
				}
				v.serve(forged, change)
				v.f.Sent.Store(0)
				v.refresh(t, a, patch.ErrTooLarge, patch.ErrTampered)
				if got := v.f.Sent.Load(); got > 32<<20 {
					t.Errorf("the agent read %d MiB", got>>20)
				}
				if kib := v.agentMemory(t); kib > 128<<10 {
					t.Errorf("the agent uses %d MiB", kib>>10)
				}
				a.StoppedBy("cap on the bytes of a file: %d KiB went over the network", v.f.Sent.Load()>>10)
			})
		}
	}
}

// agentMemory returns the most memory that the agent has used, in KiB.
func (v *victim) agentMemory(t *testing.T) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.Agent.PID()))
	lab.Must(t, err)
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	_, err = fmt.Sscan(rest, &kib)
	lab.Must(t, err)
	return kib
}

// drip sends a byte every now and then.
type drip struct {
	every time.Duration
	from  io.Reader
}

func (d drip) Read(b []byte) (int, error) {
	time.Sleep(d.every)
	return d.from.Read(b[:1])
}

// Close implements [io.Closer].
func (d drip) Close() error { return nil }

// Files and answers that come so slowly that the agent would never be done.
func TestHostileMirrorSlowRetrieval(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	slow := func(res *http.Response) { res.Body = drip{time.Second, res.Body} }
	for name, change := range map[string]func(string, *http.Response){
		"timestamp, a byte at a time": files("timestamp.json", slow),
		"module, a byte at a time":    files(".ko", slow),
		"check-in, a byte at a time": func(p string, res *http.Response) {
			if strings.HasSuffix(p, "/check-in") {
				slow(res)
			}
		},
		"no answer at all": func(string, *http.Response) { time.Sleep(45 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := report.Begin(t, report.Mirror, "slow retrieval: "+name)
			v := newVictim(t, s)
			forged := lab.Repository{Repo: v.repo.Clone()}
			adds(lab.NewModule(2))(forged)
			v.serve(forged, change)
			begin := time.Now()
			r := v.refresh(t, a)
			if r.Code != 1 {
				t.Errorf("refresh = %v, want a refusal", r)
			}
			a.StoppedBy("limit on time, after %v", time.Since(begin).Round(time.Second))
			v.serve(forged)
			v.OK("refresh")
			v.WantInForce(lab.NewModule(2))
		})
	}
}

// Requests that are dropped, and answers that are none: the machine stays as it is and
// says so.
func TestHostileMirrorDeniesUpdates(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	status := func(code int, header ...string) func(string, *http.Response) {
		return func(_ string, res *http.Response) {
			lab.Replace(res, []byte("no"))
			res.StatusCode = code
			for i := 0; i+1 < len(header); i += 2 {
				res.Header.Set(header[i], header[i+1])
			}
		}
	}
	v := newVictim(t, s)
	for name, change := range map[string]func(string, *http.Response){
		"connection closed in the middle":                   func(_ string, res *http.Response) { res.Body = io.NopCloser(io.LimitReader(res.Body, 10)) },
		"nothing is found":                                  status(http.StatusNotFound),
		"service unavailable, come back in a billion years": status(http.StatusServiceUnavailable, "Retry-After", "31556952000000000"),
		"service unavailable, come back yesterday":          status(http.StatusServiceUnavailable, "Retry-After", "-86400"),
		"status 200 for everything, and a web page":         status(http.StatusOK, "Content-Type", "text/html"),
		"no content":                             status(http.StatusNoContent),
		"teapot":                                 status(http.StatusTeapot),
		"status 999":                             status(999),
		"not modified, though nothing was there": status(http.StatusNotModified),
	} {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Mirror, "deny updates: "+name)
			v.serve(v.repo, change)
			r := v.refresh(t, a)
			if r.Code != 1 {
				t.Errorf("refresh = %v, want a refusal", r)
			}
			a.Bounded("the machine stays as it is and says so; what the mirror may still serve runs out after a day")
			v.WantStatus(v.one, "check-failed", "applied")
			v.serve(v.repo)
			v.OK("refresh")
		})
	}
}

// A trap is a host that nobody should send anything to.
type trap struct {
	url      string
	requests atomic.Int64
	tokens   atomic.Int64
}

// newTrap starts a trap with a good certificate, or for http.
func newTrap(t *testing.T, s *lab.Service, plain bool) *trap {
	t.Helper()
	tr := &trap{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.requests.Add(1)
		if r.Header.Get("Authorization") != "" {
			tr.tokens.Add(1)
		}
		fmt.Fprint(w, "{}")
	}))
	if plain {
		srv.Start()
	} else {
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{s.Certificate(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))}}
		srv.StartTLS()
	}
	t.Cleanup(srv.Close)
	tr.url = srv.URL
	return tr
}

// Whoever answers with a redirect gets neither the token nor a request.
func TestHostileMirrorRedirects(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	for where, plain := range map[string]bool{"another host": false, "plain http": true} {
		for what, match := range map[string]string{"check-in": "/check-in", "signed files": "/tuf/"} {
			for _, code := range []int{http.StatusMovedPermanently, http.StatusTemporaryRedirect} {
				t.Run(fmt.Sprintf("%s to %s with %d", what, where, code), func(t *testing.T) {
					t.Parallel()
					a := report.Begin(t, report.Mirror, fmt.Sprintf("redirect of %s to %s with %d", what, where, code))
					v, tr := newVictim(t, s), newTrap(t, s, plain)
					v.serve(v.repo, func(p string, res *http.Response) {
						if strings.Contains(p, match) {
							res.StatusCode = code
							res.Header.Set("Location", tr.url+p)
						}
					})
					r := v.refresh(t, a)
					if r.Code != 1 || tr.requests.Load() > 0 {
						t.Errorf("refresh = %v; %d requests went to the other host, %d with a token", r, tr.requests.Load(), tr.tokens.Load())
					}
					a.StoppedBy("agent follows no redirect: %d requests, %d tokens", tr.requests.Load(), tr.tokens.Load())
				})
			}
		}
	}
}

// The token goes to the service's own API, and with no request for a file, which a
// mirror may answer.
func TestHostileMirrorSeesNoToken(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Mirror, "token theft: reads what is sent along with requests for files")
	v := newVictim(t, s)
	adds(lab.NewModule(2))(v.repo)
	v.serve(v.repo)
	v.OK("refresh")
	token, err := os.ReadFile(v.Path("agent/machine-token"))
	lab.Must(t, err)
	secret := strings.TrimSpace(string(token))
	asked := 0
	for _, r := range v.seen.list() {
		if !strings.HasPrefix(r.URL.Path, "/tuf/") {
			continue
		}
		asked++
		if all := fmt.Sprint(r.URL, r.Header); strings.Contains(all, secret) || r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			t.Errorf("request for %s carries the token", r.URL.Path)
		}
	}
	if asked < 5 {
		t.Fatalf("agent asked for %d files only", asked)
	}
	if strings.Contains(v.Log.String(), secret) {
		t.Error("the token stands in the agent's log")
	}
	if out := v.OK("status", "--verbose") + v.OK("status", "--format", "json"); strings.Contains(out, secret) {
		t.Error("the token stands in status")
	}
	a.StoppedBy("agent sends it to %s only: %d requests for files, 0 with it", "/v1/", asked)
}

// Answers that are no HTTP, or a strange one, over good TLS.
func TestHostileMirrorMalformedHTTP(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	answers := map[string]string{
		"no status line":                 "hello\r\n\r\n",
		"status that is no number":       "HTTP/1.1 abc OK\r\n\r\n",
		"version of the future":          "HTTP/9.9 200 OK\r\n\r\n",
		"two lengths":                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"length below zero":              "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
		"chunk of a negative size":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
		"chunk of 16 EB":                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n",
		"header without an end":          "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"a million headers":              "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1e6) + "\r\n",
		"continue for ever":              strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1e5),
		"hints for ever":                 strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 1e5),
		"switch to another protocol":     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
		"header with a NUL":              "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
		"answer to a question not asked": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
	}
	v := newVictim(t, s)
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Mirror, "malformed HTTP: "+name)
			url := says(t, s, answer)
			v.OK("config", "remote-server="+url)
			v.CLI("refresh") // the change has caused a check of its own
			r := v.refresh(t, a)
			if r.Code != 1 {
				t.Errorf("refresh = %v, want a refusal", r)
			}
			if kib := v.agentMemory(t); kib > 128<<10 {
				t.Errorf("the agent uses %d MiB", kib>>10)
			}
		})
	}
	v.OK("config", "remote-server="+v.f.URL)
	v.CLI("refresh")
	v.recovers(t)
}

// says starts a server that answers every request with the same bytes.
func says(t *testing.T, s *lab.Service, answer string) (url string) {
	t.Helper()
	lis, err := tls.Listen("tcp", lab.Host+":0", &tls.Config{
		Certificates: []tls.Certificate{s.Certificate(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))},
	})
	lab.Must(t, err)
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) {
				defer conn.Close()
				if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
					_, _ = io.WriteString(conn, answer)
				}
			}(conn)
		}
	}()
	return "https://" + lis.Addr().String()
}

// TLS that is not what it should be.
func TestHostileMirrorTLS(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	now := time.Now()
	good := s.Certificate(now.Add(-time.Hour), now.Add(time.Hour))
	self := httptest.NewUnstartedServer(nil)
	self.StartTLS()
	stranger := self.TLS.Certificates[0]
	self.Close()
	v := newVictim(t, s)
	for name, config := range map[string]*tls.Config{
		"certificate of nobody":        {Certificates: []tls.Certificate{stranger}},
		"certificate that has run out": {Certificates: []tls.Certificate{s.Certificate(now.Add(-2*time.Hour), now.Add(-time.Hour))}},
		"certificate of tomorrow":      {Certificates: []tls.Certificate{s.Certificate(now.Add(24*time.Hour), now.Add(48*time.Hour))}},
		"TLS 1.0":                      {Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
		"TLS 1.1":                      {Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"cipher with RC4":              {Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA}},
	} {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Mirror, "TLS: "+name)
			var reached atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reached.Add(1); fmt.Fprint(w, "{}") }))
			srv.TLS = config
			srv.StartTLS()
			defer srv.Close()
			v.OK("config", "remote-server="+srv.URL)
			v.CLI("refresh")
			if r := v.refresh(t, a); r.Code != 1 || reached.Load() > 0 {
				t.Errorf("refresh = %v; %d requests arrived", r, reached.Load())
			}
		})
	}
	t.Run("plain http", func(t *testing.T) {
		a := report.Begin(t, report.Mirror, "TLS: none at all")
		r := v.CLI("config", "remote-server=http://"+lab.Host+":1")
		if r.Code == 0 {
			t.Errorf("config = %v, want a refusal", r)
		}
		a.StoppedBy("agent: takes no http address, exit %d", r.Code)
		a.Sees(r.Stderr)
	})
}
