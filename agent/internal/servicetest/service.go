package servicetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"livepatch/internal/service"
)

// AuthToken is what a [Service] takes for enrolment.
const AuthToken = "auth-token-for-tests"

// A Service is the service of a [Repo].
type Service struct {
	*httptest.Server
	Repo *Repo
	CA   []byte // PEM

	mu       sync.Mutex
	machines map[string]bool // machine tokens
	requests []string
	checkIns []service.CheckIn
	answer   service.CheckInAnswer
	holds    bool
	override func(http.ResponseWriter, *http.Request) bool
}

// New starts a service on a loopback address, with a certificate from its own
// authority for the host names and addresses given, or else for 127.0.0.1 and
// livepatch.test.
func New(repo *Repo, hosts ...string) *Service {
	if len(hosts) == 0 {
		hosts = []string{"127.0.0.1", "livepatch.test"}
	}
	return NewValid(repo, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), hosts...)
}

// NewValid is New with the time in which the certificate is valid.
func NewValid(repo *Repo, from, until time.Time, hosts ...string) *Service {
	s := &Service{Repo: repo, machines: map[string]bool{}, answer: service.CheckInAnswer{IntervalSeconds: 3600, Tier: "stable"}}
	ca, cert := certificate(from, until, hosts)
	s.CA = ca
	s.Server = httptest.NewUnstartedServer(s)
	s.Server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	s.Server.StartTLS()
	return s
}

// certificate returns an authority and a certificate by it.
func certificate(from, until time.Time, hosts []string) ([]byte, tls.Certificate) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Test"}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Override lets f answer requests first; it returns whether it did. nil ends
// that.
func (s *Service) Override(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.override = f
}

// SetAnswer changes what a check-in is answered, but for the generation.
func (s *Service) SetAnswer(a service.CheckInAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = a
}

// Hold makes the service let no machine begin with a patch, or all.
func (s *Service) Hold(hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds = hold
}

// Go returns the versions that a check-in asks to begin with.
func Go(c service.CheckIn) (versions []string) {
	for _, e := range c.Events {
		if e.Kind == service.Intent {
			versions = append(versions, e.Version)
		}
	}
	return versions
}

// Requests returns the requests so far and forgets them: "POST /v1/machines
// 201".
func (s *Service) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests
	s.requests = nil
	return r
}

// CheckIns returns the check-ins so far.
func (s *Service) CheckIns() []service.CheckIn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.checkIns)
}

// Events returns all events of all check-ins so far, as "kind name reason".
func (s *Service) Events() []string {
	var events []string
	seen := map[string]bool{}
	for _, c := range s.CheckIns() {
		for _, e := range c.Events {
			if !seen[e.ID] {
				events = append(events, strings.Join(strings.Fields(string(e.Kind)+" "+e.Version+" "+e.Reason), " "))
			}
			seen[e.ID] = true
		}
	}
	return events
}

// Machines returns how many machines are enrolled.
func (s *Service) Machines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.machines)
}

// ServeHTTP implements [http.Handler].
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w, note: func(status int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.requests = append(s.requests, fmt.Sprintf("%s %s %d", r.Method, r.URL.Path, status))
	}}
	s.mu.Lock()
	override := s.override
	s.mu.Unlock()
	if override != nil && override(rec, r) {
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, service.PathMetadata):
		s.serveMetadata(rec, r)
	case strings.HasPrefix(r.URL.Path, service.PathTargets):
		if b, ok := s.Repo.Target(strings.TrimPrefix(r.URL.Path, service.PathTargets)); ok {
			_, _ = rec.Write(b)
			return
		}
		Refuse(rec, http.StatusNotFound, service.CodeNotFound, "no such file")
	default:
		s.serveMachines(rec, r)
	}
}

func (s *Service) serveMetadata(w http.ResponseWriter, r *http.Request) {
	b := s.Repo.Metadata(strings.TrimPrefix(r.URL.Path, service.PathMetadata))
	if b == nil {
		Refuse(w, http.StatusNotFound, service.CodeNotFound, "no such file")
		return
	}
	sum := sha256.Sum256(b)
	etag := `"` + hex.EncodeToString(sum[:8]) + `"`
	w.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(b)
}

func (s *Service) serveMachines(w http.ResponseWriter, r *http.Request) {
	status, body := s.machineCall(r)
	w.WriteHeader(status)
	if body != nil {
		_ = json.NewEncoder(w).Encode(body)
	}
}

// machineCall answers a call of the API for machines.
func (s *Service) machineCall(r *http.Request) (status int, body any) {
	generation := s.Repo.Generation()
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(status int, code service.Code, message string) (int, any) {
		return status, service.Error{Code: code, Message: message}
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch r.Method + " " + r.URL.Path {
	case "POST " + service.PathMachines:
		var req service.EnrolRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || len(req.MachineID) != 32 {
			return refuse(http.StatusBadRequest, service.CodeInvalid, "bad request")
		}
		if token != AuthToken {
			return refuse(http.StatusUnauthorized, service.CodeUnknownToken, "unknown auth token")
		}
		b := make([]byte, 16)
		_, _ = rand.Read(b)
		e := service.Enrolment{MachineToken: hex.EncodeToString(b), Tier: s.answer.Tier}
		s.machines[e.MachineToken] = true
		return http.StatusCreated, e
	case "POST " + service.PathCheckIn:
		if !s.machines[token] {
			return refuse(http.StatusUnauthorized, service.CodeUnknownToken, "unknown machine token")
		}
		var c service.CheckIn
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
			return refuse(http.StatusBadRequest, service.CodeInvalid, "bad request")
		}
		s.checkIns = append(s.checkIns, c)
		a := s.answer
		a.Generation = generation
		if !s.holds {
			a.Go = Go(c)
		}
		return http.StatusOK, a
	case "DELETE " + service.PathSelf:
		if !s.machines[token] {
			return refuse(http.StatusUnauthorized, service.CodeUnknownToken, "unknown machine token")
		}
		delete(s.machines, token)
		return http.StatusNoContent, nil
	default:
		return refuse(http.StatusNotFound, service.CodeNotFound, "no such path")
	}
}

// Refuse answers with an error as the service words them.
func Refuse(w http.ResponseWriter, status int, code service.Code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(service.Error{Code: code, Message: message})
}

// recorder notes the status of an answer before the client can have it.
type recorder struct {
	http.ResponseWriter
	note func(status int) // nil once it was called
}

func (r *recorder) WriteHeader(status int) {
	if r.note != nil {
		r.note(status)
		r.note = nil
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.note != nil {
		r.WriteHeader(http.StatusOK)
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap gives http.ResponseController the writer below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
