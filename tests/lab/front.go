package lab

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livepatch/internal/service"
)

// A Front stands before a service, under an address of its own and with a
// certificate of the same authority, as somebody who has taken over a mirror, or
// the service itself, would. What it changes is up to the test.
type Front struct {
	URL  string
	Sent atomic.Int64 // bytes of bodies

	mu     sync.Mutex
	change func(path string, res *http.Response)
	seen   map[string][]byte // metadata as it came from the service, by role
}

// NewFront starts a front at an address, "127.0.0.1:0", with a certificate that
// is valid at some time.
func NewFront(t *testing.T, s *Service, addr string, notBefore, notAfter time.Time) *Front {
	t.Helper()
	f := &Front{seen: map[string][]byte{}}
	backend := &url.URL{Scheme: "https", Host: s.Addr}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(backend)
			r.Out.Header.Del("Accept-Encoding") // bodies as they are
			if f.changing() {
				r.Out.Header.Del("If-None-Match") // and all of them
			}
		},
		ModifyResponse: func(res *http.Response) error {
			f.mu.Lock()
			change := f.change
			f.mu.Unlock()
			if name := res.Request.URL.Path; change == nil && strings.HasPrefix(name, "/tuf/metadata/") && res.StatusCode == http.StatusOK {
				f.record(name, res)
			}
			if change != nil {
				res.Header.Del("ETag")
				change(res.Request.URL.Path, res)
			}
			res.Body = &counting{res.Body, &f.Sent}
			return nil
		},
		Transport:    s.HTTPClient().Transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	lis, err := net.Listen("tcp", addr)
	Must(t, err)
	srv := &http.Server{Handler: proxy, TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.Certificate(notBefore, notAfter)}}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.ServeTLS(lis, "", "") // ends when it is closed
	}()
	t.Cleanup(func() { srv.Close(); <-ended })
	f.URL = "https://" + lis.Addr().String()
	return f
}

// HTTPClient returns a client that trusts the service.
func (s *Service) HTTPClient() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.CA()))
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true},
		Timeout:   Patience,
	}
}

// NewHonestFront starts a front that changes nothing yet.
func NewHonestFront(t *testing.T, s *Service) *Front {
	t.Helper()
	return NewFront(t, s, Host+":0", time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
}

// Certificate returns a certificate for host that the service's authority has
// signed.
func (s *Service) Certificate(notBefore, notAfter time.Time) tls.Certificate {
	s.t.Helper()
	ca, err := tls.LoadX509KeyPair(s.Path("server/tls/ca.crt"), s.Path("server/tls/ca.key"))
	Must(s.t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Must(s.t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "front"},
		NotBefore: notBefore, NotAfter: notAfter, IPAddresses: []net.IP{net.ParseIP(Host)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	Must(s.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// OtherAuthority returns the certificate of an authority that signs nothing here.
func OtherAuthority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "somebody else's CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	Must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// Set makes the front change answers; nil makes it honest.
func (f *Front) Set(change func(path string, res *http.Response)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change = change
}

// record remembers a metadata file.
func (f *Front) record(name string, res *http.Response) {
	b := Body(res)
	Replace(res, b)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[roleOf(name)] = b
}

// Recorded returns the metadata that was served while the front was honest, the
// last version of each role.
func (f *Front) Recorded() map[string][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.seen)
}

func (f *Front) changing() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.change != nil
}

// Body returns the body of an answer.
func Body(res *http.Response) []byte {
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	return b
}

// Replace gives an answer another body.
func Replace(res *http.Response, b []byte) {
	res.StatusCode = http.StatusOK
	res.Body = io.NopCloser(bytes.NewReader(b))
	res.ContentLength = int64(len(b))
	res.Header.Set("Content-Length", strconv.Itoa(len(b)))
}

// Inflate gives an answer a body that is as long and means nothing.
func Inflate(res *http.Response, length int64) {
	res.Body = io.NopCloser(io.LimitReader(spaces{}, length))
	res.ContentLength = length
	res.Header.Set("Content-Length", strconv.FormatInt(length, 10))
}

type spaces struct{}

func (spaces) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

// counting counts what is read.
type counting struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// OnlineKey reads one of the server's online keys, as somebody who has taken it
// over can.
func (s *Service) OnlineKey(role string) crypto.Signer {
	s.t.Helper()
	b, err := os.ReadFile(s.Path("server/keys/" + role + ".key"))
	Must(s.t, err)
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	Must(s.t, err)
	return key.(crypto.Signer)
}

// Serve makes the front serve the files of a repository in place of those of the
// service: a test can publish there at no cost.
func (f *Front) Serve(r Repository) {
	f.Set(Serving(r)) //nolint:bodyclose // Serving puts another body in its place
}

// letIn lets a machine begin with any of the patches of a test: the service behind the
// front does not know them.
func letIn(b []byte) ([]byte, error) {
	var answer service.CheckInAnswer
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, err
	}
	for n := range 200 {
		answer.Go = append(answer.Go, NewModule(n+1).Version)
	}
	return json.Marshal(answer)
}

// Serving returns what makes a front serve the files of a repository.
func Serving(r Repository) func(path string, res *http.Response) {
	files := r.Files()
	return func(path string, res *http.Response) {
		var b []byte
		var err error
		if name, ok := strings.CutPrefix(path, "/tuf/metadata/"); ok {
			b, err = files.Get(name)
		} else if name, ok := strings.CutPrefix(path, "/tuf/targets/"); ok {
			vendor, file, _ := strings.Cut(name, "/")
			_, file, _ = strings.Cut(file, ".") // the hash comes first
			if b, ok = files.Content[vendor+"/"+file]; !ok {
				err = os.ErrNotExist
			}
		} else if path == service.PathCheckIn && res.StatusCode == http.StatusOK {
			b, err = letIn(Body(res))
		} else {
			return
		}
		Replace(res, b)
		if err != nil {
			res.StatusCode = http.StatusNotFound
		}
	}
}
