//go:build integration

package integration

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A machine has a patch in force and the next one waits for it when its network
// or its service fails in one way after the other. Each time the user is told,
// nothing changes, and status says what is in the kernel; at the end the patch
// arrives.
func TestRefreshWhileTheServiceCannotBeUsed(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	s := newService(t)
	m := newClient(t, s)
	m.ok("refresh")
	m.accepts(one)
	s.publish(two)

	otherName := newFront(t, s, "127.0.0.2:0", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	tomorrow := newFront(t, s, host+":0", time.Now().Add(24*time.Hour), time.Now().Add(72*time.Hour))
	yesterday := newFront(t, s, host+":0", time.Now().Add(-72*time.Hour), time.Now().Add(-24*time.Hour))
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	// Each is set in one step, so that no check in between succeeds.
	use := func(url, proxy, ca string) func() {
		return func() {
			m.ok("config", "remote-server="+url, "https-proxy="+proxy, "no-proxy=", "ca-certs="+ca)
			m.cli("refresh") // the change itself has caused a check: when this one is over, that one is
		}
	}
	const nowhere = "https://livepatch.invalid"
	tests := []struct {
		name, why, next string
		begin           func()
	}{
		{"the service is down", "connection to " + s.addr + " refused", "check that the service runs", func() { must(t, s.server.stop(t)) }},
		{"the certificate is for another name", "is for 127.0.0.1", "use the name that the certificate is for", use(otherName.url, "", s.ca())},
		{"the certificate is of another authority", "from an authority that this machine does not trust", "ca-certs=@stdin", func() {
			s.start()
			use(s.url(), "", otherAuthority(t))()
		}},
		{"the certificate is not valid yet", "and this machine's clock says", "set it", use(tomorrow.url, "", s.ca())},
		{"the certificate is no longer valid", "and this machine's clock says", "set it", use(yesterday.url, "", s.ca())},
		{"it is no TLS that answers", "does not speak TLS", "check the address of the service", use(strings.Replace(plain.URL, "http:", "https:", 1), "", s.ca())},
		{"there is no such host", "cannot find the address of host", "can resolve names", use(nowhere, "", s.ca())},
		{"nobody is the proxy", "cannot reach proxy", "check the proxy", use(nowhere, "http://"+freeAddress(t), s.ca())},
		{"the proxy refuses", "refused with status 403 (Forbidden)", "check the proxy", use(nowhere, refusingProxy(t, http.StatusForbidden), s.ca())},
		{"the proxy wants a password", "wants a user name and a password", "https-proxy=http://USER:PASSWORD@HOST:PORT", use(nowhere, refusingProxy(t, http.StatusProxyAuthRequired), s.ca())},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			tc.begin()
			m.refuses(t, true, tc.why, tc.next, "refresh")
			m.wantInForce(one)
			m.wantStatus(one, "check-failed", "applied")
		})
	}
	use(s.url(), "", s.ca())()
	m.ok("refresh")
	m.wantInForce(two)
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
	s := newService(t)
	m := newClient(t, s)
	m.ok("refresh")
	m.accepts(newModule(1))
	m.ok("config", "log-level=info")
	must(t, m.agent.stop(t))
	must(t, s.server.stop(t))
	seen := len(m.log.String())
	m.switchOn()
	eventually(t, "first check has failed", func() bool { return strings.Contains(m.log.String()[seen:], "Cannot check in") })
	if got := m.log.String()[seen:]; !strings.Contains(got, `level=INFO msg="Cannot check in"`) {
		t.Errorf("agent logged:\n%s\nwant nothing above INFO", got)
	}
	m.wantStatus(newModule(1), "needs-check", "applied")
}

// A service that answers and never ends does not hold the agent for ever, and
// does not fill its memory.
func TestAnswersOfNonsense(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := newHonestFront(t, s)
	m := newMachine(t, s.pinned())
	m.join(s, f.url)
	m.ok("enable", s.token())
	m.ok("refresh")
	m.accepts(newModule(1))
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
		"a page of a portal": {func(res *http.Response) { replace(res, []byte("<html>Please log in</html>")) }, "is not what it should be", "no proxy or portal"},
		"an answer of 1 GB":  {func(res *http.Response) { inflate(res, 1<<30) }, "is longer than", "no proxy or portal"},
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
			f.set(checkIn(tc.change))
			defer f.set(nil)
			m.refuses(t, true, tc.why, tc.next, "refresh")
			m.wantInForce(newModule(1))
		})
	}
	if got := f.sent.Load(); got > 64<<20 {
		t.Errorf("the agent read %d MB", got>>20)
	}
	m.ok("refresh")
}
