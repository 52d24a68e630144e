package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/api"
	"livepatch/server/internal/blob"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/store"
)

const machineID = "0123456789abcdef0123456789abcdef"

var facts = service.Facts{
	Kernel: servicetest.Kernel(53), KernelVersion: "6.1.53-1", Distribution: "debian",
	BootID: "5c3e9b1a-7d52-4f6e-9a3e-0b1c2d3e4f50",
}

// A fixture is a service behind TLS with a client that holds it to its contract.
type fixture struct {
	*servicetest.Service
	t        *testing.T
	url      string
	client   *http.Client
	contract *contract
}

func start(t *testing.T, options ...func(*api.Config)) *fixture {
	t.Helper()
	s := servicetest.New(t)
	c := s.API()
	for _, o := range options {
		o(&c)
	}
	srv := s.Listen(t, c)
	f := &fixture{Service: s, t: t, url: srv.URL}
	f.client, f.contract = newContract(t, srv.Client(), srv.URL)
	return f
}

// A call is a request; zero fields are left out.
type call struct {
	method, path, token string
	body                any // JSON unless it is []byte
	header              http.Header
}

// do sends a request, and decodes the answer's body into out unless it is nil.
func (f *fixture) do(c call, out any) *http.Response {
	f.t.Helper()
	body, ok := c.body.([]byte)
	kind := "application/octet-stream"
	if !ok && c.body != nil {
		b, err := json.Marshal(c.body)
		if err != nil {
			f.t.Fatal(err)
		}
		body, kind = b, "application/json"
	}
	if strings.HasPrefix(c.path, "/v1/machines") || c.path == service.PathPublishMetadata {
		kind = "application/json"
	}
	req, err := http.NewRequestWithContext(f.t.Context(), c.method, f.url+c.path, bytes.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	maps.Copy(req.Header, c.header)
	if c.body != nil {
		req.Header.Set("Content-Type", kind)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	b := drain(f.t, &resp.Body)
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			f.t.Fatalf("%s %s answered %d %q: %v", c.method, c.path, resp.StatusCode, b, err)
		}
	}
	return resp
}

// refused sends a request that has to be refused with a status and a code.
func (f *fixture) refused(c call, status int, code service.Code) service.Error {
	f.t.Helper()
	var e service.Error
	resp := f.do(c, &e)
	if resp.StatusCode != status || e.Code != code {
		f.t.Errorf("%s %s answered %d %+v, want %d %s", c.method, c.path, resp.StatusCode, e, status, code)
	}
	if strings.Contains(e.Message, "\n") {
		f.t.Errorf("message %q is longer than a line", e.Message)
	}
	return e
}

func (f *fixture) enrol(auth string) service.Enrolment {
	f.t.Helper()
	var e service.Enrolment
	resp := f.do(call{method: "POST", path: service.PathMachines, token: auth, body: service.EnrolRequest{
		MachineID: machineID, Hostname: "web-1", Version: "1.0", Facts: facts,
	}}, &e)
	if resp.StatusCode != http.StatusCreated {
		f.t.Fatalf("enrolment answered %d", resp.StatusCode)
	}
	return e
}

func checkIn(token string, events ...service.Event) call {
	return call{method: "POST", path: service.PathCheckIn, token: token, body: service.CheckIn{
		Version: "1.0", Facts: facts, Events: events,
		Patch: &service.Patch{Name: "lkp_1", Version: "1.1", Sequence: 1, State: "enabled", Standing: "trial"},
	}}
}

func TestMachineEnrolsReportsAndLeaves(t *testing.T) {
	f := start(t)
	e := f.enrol(f.Token(t, store.Auth))
	if len(e.MachineToken) != 32 || e.Tier != "stable" {
		t.Fatalf("enrolled as %+v", e)
	}
	event := service.Event{ID: "e1", Kind: service.Applied, Version: "1.1", Name: "lkp_1", BootID: "b", At: time.Now(),
		Message: strings.Repeat("é", 2000)}
	for range 2 { // the answer to the first was lost
		var a service.CheckInAnswer
		f.do(checkIn(e.MachineToken, event), &a)
		if a.IntervalSeconds != 3600 || a.Tier != "stable" {
			t.Errorf("answer = %+v", a)
		}
	}
	events, err := f.DB.Events(t.Context(), machineID)
	if err != nil || len(events) != 1 || len(events[0].Message) != 1024 {
		t.Errorf("events are %+v, %v, want one", events, err)
	}
	machines, err := f.DB.Machines(t.Context())
	if err != nil || len(machines) != 1 || machines[0].Patch.Version != "1.1" || machines[0].Hostname != "web-1" ||
		machines[0].Facts != facts || time.Since(machines[0].LastSeen) > time.Minute {
		t.Errorf("machines are %+v, %v", machines, err)
	}
	if resp := f.do(call{method: "DELETE", path: service.PathSelf, token: e.MachineToken}, nil); resp.StatusCode != http.StatusNoContent {
		t.Errorf("leaving answered %d", resp.StatusCode)
	}
	f.refused(checkIn(e.MachineToken), http.StatusUnauthorized, service.CodeUnknownToken)
	f.refused(call{method: "DELETE", path: service.PathSelf, token: e.MachineToken}, http.StatusUnauthorized, service.CodeUnknownToken)
}

func TestSecondEnrolmentEndsTheFirst(t *testing.T) {
	f := start(t)
	auth := f.Token(t, store.Auth)
	first, second := f.enrol(auth), f.enrol(auth)
	f.refused(checkIn(first.MachineToken), http.StatusUnauthorized, service.CodeUnknownToken)
	if resp := f.do(checkIn(second.MachineToken), nil); resp.StatusCode != http.StatusOK {
		t.Errorf("check-in answered %d", resp.StatusCode)
	}
}

func TestTokensThatAreNotInForce(t *testing.T) {
	f := start(t)
	issue := func(kind store.Kind, expires time.Time) (int64, string) {
		id, secret, err := f.Desk.Issue(t.Context(), store.Token{Kind: kind, Tier: "stable", Expires: expires}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return id, secret
	}
	id, revoked := issue(store.Auth, time.Time{})
	machine := f.enrol(revoked)
	if err := f.DB.RevokeToken(t.Context(), store.Auth, id, time.Now()); err != nil {
		t.Fatal(err)
	}
	_, expired := issue(store.Auth, time.Now().Add(-time.Second))
	_, publisher := issue(store.Publisher, time.Time{})
	_, valid := issue(store.Auth, time.Time{})
	enrol := call{method: "POST", path: service.PathMachines, body: service.EnrolRequest{MachineID: machineID, Version: "1", Facts: facts}}
	state := call{method: "GET", path: service.PathPublishState}
	self := call{method: "DELETE", path: service.PathSelf}

	tests := map[string]struct {
		call  call
		token string
		code  service.Code
	}{
		"enrolling without a token":              {enrol, "", service.CodeUnknownToken},
		"enrolling with a token nobody knows":    {enrol, strings.Repeat("0", 32), service.CodeUnknownToken},
		"enrolling with an expired token":        {enrol, expired, service.CodeExpiredToken},
		"enrolling with a revoked token":         {enrol, revoked, service.CodeRevokedToken},
		"enrolling with a publisher token":       {enrol, publisher, service.CodeUnknownToken},
		"enrolling with a machine token":         {enrol, machine.MachineToken, service.CodeUnknownToken},
		"checking in after the auth token is":    {checkIn(""), machine.MachineToken, service.CodeRevokedToken},
		"checking in with an auth token":         {checkIn(""), valid, service.CodeUnknownToken},
		"checking in without a token":            {checkIn(""), "", service.CodeUnknownToken},
		"leaving without a token":                {self, "", service.CodeUnknownToken},
		"publishing with an auth token":          {state, valid, service.CodeUnknownToken},
		"publishing with a very long token":      {state, strings.Repeat("a", 4000), service.CodeUnknownToken},
		"publishing with a machine token":        {state, machine.MachineToken, service.CodeUnknownToken},
		"uploading without a token":              {call{method: "PUT", path: service.PathPublishTargets + "debian/x", body: []byte("x")}, "", service.CodeUnknownToken},
		"publishing metadata without any tokens": {call{method: "POST", path: service.PathPublishMetadata, body: service.Publication{Files: map[string][]byte{}}}, "", service.CodeUnknownToken},
	}
	for name, tc := range tests {
		tc.call.token = tc.token
		f.t.Log(name)
		f.refused(tc.call, http.StatusUnauthorized, tc.code)
		if log := f.Log.String(); tc.token != "" && strings.Contains(log, tc.token) {
			t.Fatalf("token is in the log: %s", log)
		}
		f = f.again(t) // failures count, and are not what is tested here
	}
}

// again serves the same service anew, so that its limiter has seen nothing.
func (f *fixture) again(t *testing.T) *fixture {
	t.Helper()
	srv := f.Listen(t, f.API())
	g := &fixture{Service: f.Service, t: t, url: srv.URL}
	g.client, g.contract = newContract(t, srv.Client(), srv.URL)
	return g
}

func TestFailedEnrolmentsAreSlowedDown(t *testing.T) {
	f := start(t)
	enrol := call{method: "POST", path: service.PathMachines, body: service.EnrolRequest{MachineID: machineID, Version: "1", Facts: facts}}
	enrol.token = strings.Repeat("0", 32)
	for range 10 {
		f.refused(enrol, http.StatusUnauthorized, service.CodeUnknownToken)
	}
	enrol.token = f.Token(t, store.Auth) // even a good one has to wait
	var e service.Error
	resp := f.do(enrol, &e)
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != http.StatusTooManyRequests || err != nil || seconds < 1 || seconds > 6 {
		t.Errorf("answered %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
}

func TestSuccessfulEnrolmentsAreNotSlowedDown(t *testing.T) {
	f := start(t)
	auth := f.Token(t, store.Auth)
	for range 30 {
		f.enrol(auth)
	}
}

func TestRequestsThatAreNotUnderstood(t *testing.T) {
	f := start(t)
	auth := f.Token(t, store.Auth)
	machine := f.enrol(auth).MachineToken
	publisher := f.Token(t, store.Publisher)
	f.contract.wrong = true
	enrol := func(body string) call {
		return call{method: "POST", path: service.PathMachines, token: auth, body: []byte(body)}
	}
	report := func(body string) call {
		return call{method: "POST", path: service.PathCheckIn, token: machine, body: []byte(body)}
	}
	long := strings.Repeat("x", 300)
	tests := map[string]call{
		"no JSON":                       enrol("hello"),
		"empty":                         enrol(""),
		"cut off":                       enrol(`{"machine_id":"`),
		"two values":                    enrol(`{"machine_id":"` + machineID + `"} {}`),
		"a list":                        enrol(`[]`),
		"machine ID of another kind":    enrol(`{"machine_id":"web-1"}`),
		"machine ID in upper case":      enrol(`{"machine_id":"` + strings.ToUpper(machineID) + `"}`),
		"long host name":                enrol(`{"machine_id":"` + machineID + `","hostname":"` + long + `"}`),
		"escape sequence in host name":  enrol(`{"machine_id":"` + machineID + `","hostname":"\u001b[2J"}`),
		"number instead of text":        enrol(`{"machine_id":5}`),
		"report that is no JSON":        report("\x00\x01"),
		"event without ID":              report(`{"events":[{"kind":"intent"}]}`),
		"event of another kind":         report(`{"events":[{"id":"1","kind":"party"}]}`),
		"event with a long name":        report(`{"events":[{"id":"1","kind":"intent","name":"` + long + `"}]}`),
		"257 events":                    report(`{"events":[` + strings.Repeat(`{"id":"1","kind":"intent"},`, 256) + `{"id":"1","kind":"intent"}]}`),
		"sequence that does not fit":    report(`{"patch":{"sequence":18446744073709551615}}`),
		"publication without files":     {method: "POST", path: service.PathPublishMetadata, token: publisher, body: []byte(`{}`)},
		"publication with a bad name":   {method: "POST", path: service.PathPublishMetadata, token: publisher, body: []byte(`{"files":{"../../etc/passwd":""}}`)},
		"publication that is no base64": {method: "POST", path: service.PathPublishMetadata, token: publisher, body: []byte(`{"files":{"1.root.json":"!"}}`)},
		"upload without a hash":         {method: "PUT", path: service.PathPublishTargets + "debian/x.ko", token: publisher, body: []byte("x")},
		"upload with another content":   {method: "PUT", path: service.PathPublishTargets + "debian/" + strings.Repeat("0", 64) + ".x.ko", token: publisher, body: []byte("x")},
		"upload out of its folder":      {method: "PUT", path: service.PathPublishTargets + "debian/" + strings.Repeat("0", 64) + ".%2e%2e%2fx", token: publisher, body: []byte("x")},
		"upload for the rollout role":   {method: "PUT", path: service.PathPublishTargets + "rollout/" + strings.Repeat("0", 64) + ".x", token: publisher, body: []byte("x")},
		"metadata of another name":      {method: "GET", path: service.PathMetadata + "root.json"},
		"target of another name":        {method: "GET", path: service.PathTargets + "debian/x.ko"},
	}
	for name, c := range tests {
		t.Run(name, func(*testing.T) {
			f.refused(c, http.StatusBadRequest, service.CodeInvalid)
		})
	}
	machines, err := f.DB.Machines(t.Context())
	if err != nil || len(machines) != 1 || machines[0].Hostname != "web-1" {
		t.Errorf("something was kept: %+v, %v", machines, err)
	}
}

func TestBodiesThatAreTooLarge(t *testing.T) {
	f := start(t)
	f.contract.wrong = true
	auth, publisher := f.Token(t, store.Auth), f.Token(t, store.Publisher)
	machine := f.enrol(auth).MachineToken
	json64k := append([]byte(`{"machine_id":"`), bytes.Repeat([]byte("0"), service.MaxJSON)...)
	name := strings.Repeat("0", 64)
	tests := map[string]call{
		"enrolment":  {method: "POST", path: service.PathMachines, token: auth, body: json64k},
		"padded":     {method: "POST", path: service.PathMachines, token: auth, body: append([]byte(`{}`), bytes.Repeat([]byte(" "), service.MaxJSON)...)},
		"report":     {method: "POST", path: service.PathCheckIn, token: machine, body: json64k},
		"index":      {method: "PUT", path: service.PathPublishTargets + "debian/" + name + ".x.index.json", token: publisher, body: make([]byte, service.MaxIndex+1)},
		"module":     {method: "PUT", path: service.PathPublishTargets + "debian/" + name + ".x.ko", token: publisher, body: make([]byte, 65<<20)},
		"file of it": {method: "POST", path: service.PathPublishMetadata, token: publisher, body: service.Publication{Files: map[string][]byte{"1.root.json": make([]byte, service.MaxRoot+1)}}},
	}
	for name, c := range tests {
		t.Run(name, func(*testing.T) {
			f.refused(c, http.StatusRequestEntityTooLarge, service.CodeTooLarge)
		})
	}
}

func TestPublisherBringsARepository(t *testing.T) {
	f := start(t)
	token := f.Token(t, store.Publisher)
	r := tuftest.New(time.Now())
	module, index := servicetest.AddPatch(r, 53, 1)

	var state service.PublishState
	f.do(call{method: "GET", path: service.PathPublishState, token: token}, &state)
	if state.RootVersion != 0 || len(state.OnlineKeys) != 3 {
		t.Errorf("state = %+v", state)
	}
	publish := call{method: "POST", path: service.PathPublishMetadata, token: token, body: servicetest.Publication(r)}
	if e := f.refused(publish, http.StatusUnprocessableEntity, service.CodeUntrusted); !strings.Contains(e.Message, "not uploaded") {
		t.Errorf("message = %q", e.Message)
	}
	for _, want := range []int{http.StatusCreated, http.StatusNoContent} {
		for path, content := range r.Content {
			if resp := f.do(upload(token, path, content), nil); resp.StatusCode != want {
				t.Errorf("upload of %s answered %d, want %d", path, resp.StatusCode, want)
			}
		}
	}
	get := call{method: "GET", path: targetURL(service.PathTargets, module, r.Content[module])}
	f.refused(get, http.StatusNotFound, service.CodeNotFound) // nothing signed names it
	f.refused(call{method: "GET", path: service.PathMetadata + "timestamp.json"}, http.StatusNotFound, service.CodeNotFound)

	var published service.Published
	f.do(publish, &published)
	if published.SnapshotVersion != 1 || published.Generation < 1 {
		t.Errorf("published as %+v", published)
	}
	for _, path := range []string{module, index} {
		resp := f.do(call{method: "GET", path: targetURL(service.PathTargets, path, r.Content[path])}, nil)
		if b := drain(t, &resp.Body); !bytes.Equal(b, r.Content[path]) {
			t.Errorf("%s has %d bytes, want %d", path, len(b), len(r.Content[path]))
		}
	}
	f.do(call{method: "GET", path: service.PathPublishState, token: token}, &state)
	if state.RootVersion != 1 || state.Versions["debian-0"] != 1 || len(state.Versions) != 6 {
		t.Errorf("state = %+v", state)
	}
	var answer service.CheckInAnswer
	f.do(checkIn(f.enrol(f.Token(t, store.Auth)).MachineToken), &answer)
	if answer.Generation <= published.Generation {
		t.Errorf("generation = %d, want one after %d: the first machine lets the patch come", answer.Generation, published.Generation)
	}

	r.Roles["debian-0"].Expire(time.Now().Add(time.Hour)) // another version 1
	f.refused(call{method: "POST", path: service.PathPublishMetadata, token: token, body: servicetest.Publication(r, "debian-0")},
		http.StatusConflict, service.CodeConflict)
}

func targetURL(prefix, path string, content []byte) string {
	vendor, file, _ := strings.Cut(path, "/")
	return fmt.Sprintf("%s%s/%x.%s", prefix, vendor, sha256.Sum256(content), file)
}

func upload(token, path string, content []byte) call {
	return call{method: "PUT", path: targetURL(service.PathPublishTargets, path, content), token: token, body: content}
}

func TestFilesAreServedForCaches(t *testing.T) {
	f := start(t)
	r := tuftest.New(time.Now())
	module, _ := servicetest.AddPatch(r, 53, 1)
	f.Publish(t, r)
	const forever, always = "public, max-age=31536000, immutable", "public, no-cache"
	files := map[string]string{
		service.PathMetadata + "timestamp.json":                   always,
		service.PathMetadata + "1.root.json":                      forever,
		service.PathMetadata + "1.snapshot.json":                  forever,
		service.PathMetadata + "1.debian-0.json":                  forever,
		targetURL(service.PathTargets, module, r.Content[module]): forever,
		service.PathMetadata + "1.rollout.json":                   forever,
		service.PathMetadata + "1.debian.json":                    forever,
		service.PathMetadata + "1.targets.json":                   forever,
	}
	identity := http.Header{"Accept-Encoding": {"identity"}}
	for path, cache := range files {
		resp := f.do(call{method: "GET", path: path, header: identity}, nil)
		body, etag := drain(t, &resp.Body), resp.Header.Get("Etag")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != cache || resp.ContentLength != int64(len(body)) {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
		for name, tc := range map[string]struct {
			header http.Header
			status int
			want   []byte
		}{
			"same tag":             {http.Header{"If-None-Match": {etag}}, http.StatusNotModified, nil},
			"another tag":          {http.Header{"If-None-Match": {`"x"`}}, http.StatusOK, body},
			"not modified since":   {http.Header{"If-Modified-Since": {resp.Header.Get("Last-Modified")}}, http.StatusNotModified, nil},
			"first bytes":          {http.Header{"Range": {"bytes=0-3"}}, http.StatusPartialContent, body[:4]},
			"from the middle":      {http.Header{"Range": {"bytes=4-"}}, http.StatusPartialContent, body[4:]},
			"range and same tag":   {http.Header{"Range": {"bytes=2-3"}, "If-Range": {etag}}, http.StatusPartialContent, body[2:4]},
			"range, another tag":   {http.Header{"Range": {"bytes=2-3"}, "If-Range": {`"x"`}}, http.StatusOK, body},
			"range behind its end": {http.Header{"Range": {"bytes=99999999-"}}, http.StatusRequestedRangeNotSatisfiable, nil},
		} {
			tc.header.Set("Accept-Encoding", "identity")
			resp := f.do(call{method: "GET", path: path, header: tc.header}, nil)
			if got := drain(t, &resp.Body); resp.StatusCode != tc.status || tc.want != nil && !bytes.Equal(got, tc.want) {
				t.Errorf("%s, %s: %d with %d bytes", path, name, resp.StatusCode, len(got))
			}
		}
	}
}

func TestMetadataIsCompressedOnce(t *testing.T) {
	f := start(t)
	r := tuftest.New(time.Now())
	servicetest.AddPatch(r, 53, 1)
	f.Publish(t, r)
	path := service.PathMetadata + "1.targets.json"
	plain := f.do(call{method: "GET", path: path, header: http.Header{"Accept-Encoding": {"identity"}}}, nil)
	f.contract.t, f.contract.wrong = t, true
	// The contract describes the file; what is checked here is its envelope.
	raw := &fixture{Service: f.Service, t: t, url: f.url, client: &http.Client{Transport: f.contract.base}}
	packed := raw.do(call{method: "GET", path: path, header: http.Header{"Accept-Encoding": {"gzip"}}}, nil)
	body := drain(t, &packed.Body)
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("%v: %v", packed.Header, err)
	}
	got, err := io.ReadAll(z)
	if want := drain(t, &plain.Body); err != nil || !bytes.Equal(got, want) || len(body) >= len(want) {
		t.Errorf("%d bytes, %d compressed, want %d, %v", len(got), len(body), len(want), err)
	}
	if packed.Header.Get("Vary") != "Accept-Encoding" || plain.Header.Get("Vary") != "Accept-Encoding" {
		t.Error("a cache would give one form to those who want the other")
	}
	if packed.Header.Get("Etag") == plain.Header.Get("Etag") || packed.ContentLength != int64(len(body)) {
		t.Errorf("headers are %v and %v", packed.Header, plain.Header)
	}
	again := raw.do(call{method: "GET", path: path, header: http.Header{
		"Accept-Encoding": {"gzip"}, "If-None-Match": {packed.Header.Get("Etag")},
	}}, nil)
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("the same tag answered %d", again.StatusCode)
	}
	part := raw.do(call{method: "GET", path: path, header: http.Header{"Accept-Encoding": {"gzip"}, "Range": {"bytes=0-9"}}}, nil)
	if b := drain(t, &part.Body); !bytes.Equal(b, got[:10]) || part.Header.Get("Content-Encoding") != "" {
		t.Errorf("part is %q, %v", b, part.Header)
	}
}

func TestAcceptEncoding(t *testing.T) {
	tests := map[string]bool{
		"": false, "gzip": true, "GZIP": true, "br, gzip": true, "gzip;q=0.5": true, "gzip; q=0": false, "gzip;q=0.000": false,
		"identity": false, "gzipped": false, "br;q=1, gzip;q=0, deflate": false, "gzip;q=1": true, "gzip;q=0.01": true,
	}
	for header, want := range tests {
		if got := api.AcceptsGzip([]string{header}); got != want {
			t.Errorf("%q: %t, want %t", header, got, want)
		}
	}
}

func TestFilesThatAreNotThere(t *testing.T) {
	f := start(t)
	r := tuftest.New(time.Now())
	module, _ := servicetest.AddPatch(r, 53, 1)
	f.Publish(t, r)
	other := strings.Repeat("0", 64)
	for _, path := range []string{
		service.PathMetadata + "2.root.json", service.PathMetadata + "9.snapshot.json", service.PathMetadata + "1.timestamp.json",
		service.PathMetadata + "1.nobody.json", service.PathTargets + "debian/" + other + ".x.ko",
		targetURL(service.PathTargets, "debian/another.ko", r.Content[module]),
		targetURL(service.PathTargets, "ubuntu/"+strings.TrimPrefix(module, "debian/"), r.Content[module]),
	} {
		f.refused(call{method: "GET", path: path}, http.StatusNotFound, service.CodeNotFound)
	}
}

// TestNoPathLeadsOut sends paths as no client would: over a bare connection.
func TestNoPathLeadsOut(t *testing.T) {
	f := start(t)
	f.Publish(t, tuftest.New(time.Now()))
	for _, path := range []string{
		"/tuf/metadata/../../keys/snapshot.key", "/tuf/metadata/..%2f..%2fkeys%2fsnapshot.key", "/tuf/targets/../../livepatch.db",
		"/tuf/targets/..%2f../%2e%2e/livepatch.db", "//tuf//metadata//..//..//livepatch.db", "/tuf/metadata/%00", "/tuf/metadata/",
		"/tuf/targets/debian/" + strings.Repeat("0", 64) + ".%2e%2e%2f%2e%2e%2flivepatch.db", "/tuf/metadata/1.root.json%00",
	} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(f.url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path)
		b, err := io.ReadAll(conn)
		if err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(b, []byte("HTTP/1.1 3")) {
			t.Errorf("%s answered %q, %v", path, b, err)
		}
		conn.Close()
	}
}

func TestPrivateFilesNeedAMachineToken(t *testing.T) {
	f := start(t, func(c *api.Config) { c.PrivateFiles = true })
	r := tuftest.New(time.Now())
	module, _ := servicetest.AddPatch(r, 53, 1)
	f.Publish(t, r)
	machine := f.enrol(f.Token(t, store.Auth)).MachineToken
	for _, path := range []string{service.PathMetadata + "timestamp.json", targetURL(service.PathTargets, module, r.Content[module])} {
		f.refused(call{method: "GET", path: path}, http.StatusUnauthorized, service.CodeUnknownToken)
		resp := f.do(call{method: "GET", path: path, token: machine}, nil)
		if cache := resp.Header.Get("Cache-Control"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(cache, "private, ") {
			t.Errorf("%s answered %d, Cache-Control %q", path, resp.StatusCode, cache)
		}
	}
}

func TestSupportedNeedsNoToken(t *testing.T) {
	f := start(t)
	r := tuftest.New(time.Now())
	servicetest.AddPatch(r, 53, 1)
	f.Publish(t, r)
	for query, want := range map[string]string{
		"": "unknown",
		"?kernel-version=6.1&flavour=amd64&architecture=amd64&codename=bookworm&build-date=unknown": "supported",
		"?kernel-version=4.4&flavour=amd64&architecture=amd64":                                      "unsupported",
	} {
		var got service.Supported
		f.do(call{method: "GET", path: service.PathSupported + query}, &got)
		if got.Supported != want {
			t.Errorf("%q answered %q, want %q", query, got.Supported, want)
		}
	}
}

func TestUnknownPathsAreAnsweredInJSON(t *testing.T) {
	f := start(t)
	bare := &http.Client{Transport: f.contract.base}
	for _, c := range []struct{ method, path string }{{"GET", "/"}, {"GET", "/v1/machines"}, {"PATCH", "/v1/machines/self"}, {"POST", "/tuf/metadata/timestamp.json"}} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, f.url+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := bare.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var e service.Error
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != http.StatusNotFound || e.Code != service.CodeNotFound {
			t.Errorf("%s %s answered %d %+v, %v", c.method, c.path, resp.StatusCode, e, err)
		}
		resp.Body.Close()
	}
}

func TestFullDiskIsAnsweredAsUnavailable(t *testing.T) {
	secret := errors.New("write /srv/livepatch/blobs/tmp/put-1: no space left on device")
	for name, err := range map[string]error{
		"database": fmt.Errorf("cannot check in: %w: %w", store.ErrUnavailable, secret),
		"files":    fmt.Errorf("cannot upload: %w: %w", blob.ErrFull, secret),
	} {
		status, body := api.Problem(err)
		if status != http.StatusServiceUnavailable || body.Code != service.CodeUnavailable || strings.Contains(body.Message, "/srv") {
			t.Errorf("%s: %d %+v", name, status, body)
		}
		if api.RetryAfter(err, status) < time.Minute {
			t.Errorf("%s: Retry-After is %v", name, api.RetryAfter(err, status))
		}
	}
}

func TestPanicOfAHandlerIsAnswered(t *testing.T) {
	s := servicetest.New(t)
	c := s.API()
	c.Desk = nil // dereferenced by the first handler that needs it
	srv := s.Listen(t, c)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+service.PathCheckIn, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer x")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e service.Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != http.StatusInternalServerError || e.Message != "internal error" {
		t.Errorf("answered %d %+v, %v", resp.StatusCode, e, err)
	}
	srv.Close()
	if !strings.Contains(s.Log.String(), "panicked") {
		t.Error("the log does not tell")
	}
}

func TestClientThatGoesAwayIsNoError(t *testing.T) {
	f := start(t)
	r := tuftest.New(time.Now())
	r.AddTarget("debian/big.x86_64.ko", bytes.Repeat([]byte("x"), 16<<20), patch.Module{
		Kernel: servicetest.Kernel(1), Flavour: "amd64", Name: "big", Version: "1", Sequence: 1,
	})
	content := r.Content["debian/big.x86_64.ko"]
	if err := f.Catalog.Upload(t.Context(), "debian/big.x86_64.ko", sha256.Sum256(content), bytes.NewReader(content), 64<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Catalog.Publish(t.Context(), servicetest.Publication(r)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+targetURL(service.PathTargets, "debian/big.x86_64.ko", content), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: f.contract.base}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	f.client.CloseIdleConnections()
	if strings.Contains(f.Log.String(), `"level":"ERROR"`) {
		t.Errorf("log: %s", f.Log)
	}
}

func TestContractIsExercised(t *testing.T) {
	// Which answers the tests of this package must have seen, at least: one
	// success of each operation, and each kind of refusal.
	f := start(t)
	r := tuftest.New(time.Now())
	module, _ := servicetest.AddPatch(r, 53, 1)
	publisher := f.Token(t, store.Publisher)
	for path, content := range r.Content {
		f.do(upload(publisher, path, content), nil)
	}
	f.do(call{method: "POST", path: service.PathPublishMetadata, token: publisher, body: servicetest.Publication(r)}, nil)
	f.do(call{method: "GET", path: service.PathPublishState, token: publisher}, nil)
	f.do(call{method: "GET", path: service.PathMetadata + "timestamp.json", header: http.Header{"Accept-Encoding": {"identity"}}}, nil)
	f.do(call{method: "GET", path: targetURL(service.PathTargets, module, r.Content[module])}, nil)
	f.do(call{method: "GET", path: service.PathSupported}, nil)
	machine := f.enrol(f.Token(t, store.Auth)).MachineToken
	f.do(checkIn(machine), nil)
	f.do(call{method: "DELETE", path: service.PathSelf, token: machine}, nil)

	for path, item := range f.contract.doc.Paths.Map() {
		for method := range item.Operations() {
			ok := slices.ContainsFunc(slices.Collect(maps.Keys(f.contract.seen)), func(s string) bool {
				return strings.HasPrefix(s, method+" "+path+" 2")
			})
			if !ok {
				t.Errorf("no success of %s %s was held against the contract", method, path)
			}
		}
	}
}

func TestCheckInsAtOnce(t *testing.T) {
	f := start(t)
	auth := f.Token(t, store.Auth)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			id := fmt.Sprintf("%032x", i)
			e, err := f.Desk.Enrol(t.Context(), auth, service.EnrolRequest{MachineID: id, Version: "1", Facts: facts}, time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			who, err := f.Desk.Identify(t.Context(), e.MachineToken)
			if err != nil {
				t.Error(err)
				return
			}
			for n := range 20 {
				r := service.CheckIn{Version: "1", Facts: facts, Events: []service.Event{{ID: strconv.Itoa(n), Kind: service.Applied, At: time.Now()}}}
				if err := f.Desk.CheckIn(t.Context(), who, store.Report{CheckIn: r, At: time.Now()}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		events, err := f.DB.Events(t.Context(), fmt.Sprintf("%032x", i))
		if err != nil || len(events) != 20 {
			t.Errorf("machine %d has %d events, %v", i, len(events), err)
		}
	}
}

// FuzzBodies sends any body to every route that takes JSON. Whatever it is, the
// answer is one of the contract.
func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"machine_id":"0123456789abcdef0123456789abcdef","agent_version":"1","arch":"x86_64"}`))
	f.Add([]byte(`{"generation":1,"events":[{"id":"a","kind":"intent","at":"2026-11-22T00:00:00Z"}],"patch":{"sequence":1}}`))
	f.Add([]byte(`{"files":{"1.root.json":"e30=","1.debian-0.json":"eyJzaWduZWQiOnt9fQ=="}}`))
	f.Add([]byte(`{"files":{"1.root.json":"eyJzaWduZWQiOnsiX3R5cGUiOiJyb290In19"}}`))
	f.Add([]byte("\xff\xfe"))
	s := servicetest.New(f)
	handler := api.New(s.API()).Handler()
	auth, publisher := s.Token(f, store.Auth), s.Token(f, store.Publisher)
	e, err := s.Desk.Enrol(f.Context(), auth, service.EnrolRequest{MachineID: machineID, Version: "1", Facts: facts}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	who := "fedcba98" + machineID[8:]
	f.Fuzz(func(t *testing.T, body []byte) {
		for path, token := range map[string]string{
			service.PathMachines: auth, service.PathCheckIn: e.MachineToken, service.PathPublishMetadata: publisher,
		} {
			if path == service.PathMachines {
				body = bytes.ReplaceAll(body, []byte(machineID), []byte(who)) // or the machine token dies
			}
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
			r.Header.Set("Authorization", "Bearer "+token)
			handler.ServeHTTP(w, r)
			if w.Code >= 500 || w.Code < 200 {
				t.Errorf("%s answered %d %s", path, w.Code, w.Body)
			}
			if !json.Valid(w.Body.Bytes()) {
				t.Errorf("%s answered %q", path, w.Body)
			}
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	hash := strings.Repeat("0a", 32)
	f.Add("debian", hash+".x.ko")
	f.Add("..", hash+"."+"../x")
	f.Add("rollout", hash+".x")
	f.Add("debian", strings.ToUpper(hash)+".x")
	f.Add("debian", hash)
	f.Fuzz(func(t *testing.T, vendor, file string) {
		path, digest, err := api.ParseTarget(vendor, file)
		if err != nil {
			if !errors.Is(err, patch.ErrInvalid) {
				t.Errorf("%q, %q: %v", vendor, file, err)
			}
			return
		}
		v, name, ok := strings.Cut(path, "/")
		if !ok || v != vendor || digest+"."+name != file || strings.Contains(name, "/") || strings.Contains(path, "..") {
			t.Errorf("%q, %q: path %q, digest %s", vendor, file, path, digest)
		}
	})
}
