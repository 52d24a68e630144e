//go:build integration

package integration

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"livepatch/tests/lab"
)

// A machine has a patch in force and the next one waits for it when its network
// or its service fails in one way after the other. Each time the user is told,
// nothing changes, and status says what is in the kernel; at the end the patch
// arrives.
func TestRefreshWhileTheServiceCannotBeUsed(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	s := lab.NewService(t)
	m := lab.NewClient(t, s)
	m.OK("refresh")
	m.Accepts(one)
	s.Publish(two)

	otherName := lab.NewFront(t, s, "127.0.0.2:0", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	tomorrow := lab.NewFront(t, s, lab.Host+":0", time.Now().Add(24*time.Hour), time.Now().Add(72*time.Hour))
	yesterday := lab.NewFront(t, s, lab.Host+":0", time.Now().Add(-72*time.Hour), time.Now().Add(-24*time.Hour))
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	// Each is set in one step, so that no check in between succeeds.
	use := func(url, proxy, ca string) func() {
		return func() {
			m.OK("config", "remote-server="+url, "https-proxy="+proxy, "no-proxy=", "ca-certs="+ca)
			m.CLI("refresh") // the change itself has caused a check: when this one is over, that one is
		}
	}
	const nowhere = "https://livepatch.invalid"
	tests := []struct {
		name, why, next string
		begin           func()
	}{
		{"the service is down", "connection to " + s.Addr + " refused", "check that the service runs", func() { lab.Must(t, s.Server.Stop(t)) }},
		{"the certificate is for another name", "is for 127.0.0.1", "use the name that the certificate is for", use(otherName.URL, "", s.CA())},
		{"the certificate is of another authority", "from an authority that this machine does not trust", "ca-certs=@stdin", func() {
			s.Start()
			use(s.URL(), "", lab.OtherAuthority(t))()
		}},
		{"the certificate is not valid yet", "and this machine's clock says", "set it", use(tomorrow.URL, "", s.CA())},
		{"the certificate is no longer valid", "and this machine's clock says", "set it", use(yesterday.URL, "", s.CA())},
		{"it is no TLS that answers", "does not speak TLS", "check the address of the service", use(strings.Replace(plain.URL, "http:", "https:", 1), "", s.CA())},
		{"there is no such host", "cannot find the address of host", "can resolve names", use(nowhere, "", s.CA())},
		{"nobody is the proxy", "cannot reach proxy", "check the proxy", use(nowhere, "http://"+lab.FreeAddress(t), s.CA())},
		{"the proxy refuses", "refused with status 403 (Forbidden)", "check the proxy", use(nowhere, refusingProxy(t, http.StatusForbidden), s.CA())},
		{"the proxy wants a password", "wants a user name and a password", "https-proxy=http://USER:PASSWORD@HOST:PORT", use(nowhere, refusingProxy(t, http.StatusProxyAuthRequired), s.CA())},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			tc.begin()
			m.Refuses(t, true, tc.why, tc.next, "refresh")
			m.WantInForce(one)
			m.WantStatus(one, "check-failed", "applied")
		})
	}
	use(s.URL(), "", s.CA())()
	m.OK("refresh")
	m.WantInForce(two)
}

// refusingProxy starts a proxy that answers every request with a status, and
// returns its URL.
func refusingProxy(t *testing.T, status int) string {
	t.Helper()
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	t.Cleanup(p.Close)
	return p.URL
}

// A machine without a network at the start is not in trouble yet.
func TestAMachineThatStartsBeforeItsNetworkDoesNotCryWolf(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	m := lab.NewClient(t, s)
	m.OK("refresh")
	m.Accepts(lab.NewModule(1))
	m.OK("config", "log-level=info")
	lab.Must(t, m.Agent.Stop(t))
	lab.Must(t, s.Server.Stop(t))
	seen := len(m.Log.String())
	m.SwitchOn()
	lab.Eventually(t, "first check has failed", func() bool { return strings.Contains(m.Log.String()[seen:], "Cannot check in") })
	if got := m.Log.String()[seen:]; !strings.Contains(got, `level=INFO msg="Cannot check in"`) {
		t.Errorf("agent logged:\n%s\nwant nothing above INFO", got)
	}
	m.WantStatus(lab.NewModule(1), "needs-check", "applied")
}

// A service that answers and never ends does not hold the agent for ever, and
// does not fill its memory.
func TestAnswersOfNonsense(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	f := lab.NewHonestFront(t, s)
	m := lab.NewMachine(t, s.Pinned())
	m.Join(s, f.URL)
	m.OK("enable", s.Token())
	m.OK("refresh")
	m.Accepts(lab.NewModule(1))
	checkIn := func(change func(res *http.Response)) func(string, *http.Response) {
		return func(path string, res *http.Response) {
			if strings.HasSuffix(path, "/check-in") {
				change(res)
			}
		}
	}
	tests := map[string]struct {
		change    func(res *http.Response)
		why, next string
	}{
		"a page of a portal": {func(res *http.Response) { lab.Replace(res, []byte("<html>Please log in</html>")) }, "is not what it should be", "no proxy or portal"},
		"an answer of 1 GB":  {func(res *http.Response) { lab.Inflate(res, 1<<30) }, "is longer than", "no proxy or portal"},
		"a redirect": {func(res *http.Response) {
			res.StatusCode = http.StatusFound
			res.Header.Set("Location", "https://livepatch.invalid/")
		}, "302", "no proxy or portal"},
		"a failure":                 {func(res *http.Response) { res.StatusCode = http.StatusInternalServerError }, "500", "tell the operator"},
		"too many requests":         {func(res *http.Response) { res.StatusCode = http.StatusTooManyRequests }, "429", "nothing to do"},
		"an answer that is cut off": {func(res *http.Response) { res.Body = io.NopCloser(io.LimitReader(res.Body, 5)) }, "broke", "check the network"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f.Set(checkIn(tc.change))
			defer f.Set(nil)
			m.Refuses(t, true, tc.why, tc.next, "refresh")
			m.WantInForce(lab.NewModule(1))
		})
	}
	if got := f.Sent.Load(); got > 64<<20 {
		t.Errorf("the agent read %d MB", got>>20)
	}
	m.OK("refresh")
}
