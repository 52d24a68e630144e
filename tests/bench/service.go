package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// A site is one service with a repository, in a folder that goes away.
type site struct {
	dir     string // of everything
	bin     string // of the programs
	roots   *x509.CertPool
	server  *process
	addr    string // of the server
	opsAddr string
	tookUp  time.Duration // from exec to listening, with the repository
	options []string      // of the server, beside those that every site has
}

// passphrase protects keys that live as long as the benchmark.
const passphrase = "correct horse battery staple"

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// tool runs one of our programs to its end.
func (s *site) tool(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Env = append(os.Environ(), "LIVEPATCH_PASSPHRASE="+passphrase)
	return output(cmd)
}

// newSite makes a service and publishes a made-up repository to it.
func newSite(ctx context.Context, dir, bin string, kernels, patches int, options ...string) (*site, error) {
	s := &site{dir: dir, bin: bin, options: options}
	if _, err := s.tool(ctx, "livepatch-server", "init", "--dir", s.path("server")); err != nil {
		return nil, err
	}
	if _, err := s.tool(ctx, "livepatch-server", "dev-ca", "--dir", s.path("server"), "--host", "localhost,127.0.0.1"); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(s.path("server/tls/ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("cannot read CA: %w", err)
	}
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(pem)
	if err := s.serve(ctx); err != nil {
		return nil, err
	}
	if err := s.publish(ctx, kernels, patches); err != nil {
		s.server.stop()
		return nil, err
	}
	// What counts is the start of a server that has the repository.
	s.server.stop()
	return s, s.serve(ctx)
}

// giveUp is when a server that does not listen yet, or does not answer any more, is taken
// for broken.
const giveUp = 10 * time.Minute

// serve starts the server and measures how long that takes.
func (s *site) serve(ctx context.Context) error {
	args := append([]string{"serve", "--dir", s.path("server"),
		"--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log-format", "text"}, s.options...)
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "livepatch-server"), args...)
	begin := time.Now()
	p, err := start(cmd)
	if err != nil {
		return err
	}
	s.server = p
	if err := p.until(ctx, "listening", giveUp, func() bool { return p.addr() != "" && answers(p.addr()) }); err != nil {
		p.stop()
		return err
	}
	s.tookUp = time.Since(begin)
	s.addr = p.addr()
	if m := regexp.MustCompile(`ops_addr=(\S+)`).FindStringSubmatch(p.logs.String()); m != nil {
		s.opsAddr = m[1]
	}
	return nil
}

func (s *site) publish(ctx context.Context, kernels, patches int) error {
	token, err := s.tool(ctx, "livepatch-admin", "--dir", s.path("server"), "publisher-token", "create")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path("publisher-token"), []byte(token), 0o600); err != nil {
		return fmt.Errorf("cannot keep token: %w", err)
	}
	to := []string{"--server", "https://" + s.addr, "--ca", s.path("server/tls/ca.crt"), "--token-file", s.path("publisher-token")}
	for _, args := range [][]string{
		append([]string{"init"}, to...),
		{"vendor", "add", vendor},
		{"generate", "--vendor", vendor, "--kernels", strconv.Itoa(kernels), "--patches", strconv.Itoa(patches)},
		append([]string{"push"}, to...),
	} {
		if _, err := s.tool(ctx, "livepatch-publish", append([]string{"--repo", s.path("repository")}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

const vendor = "debian"

// client returns an HTTP client that trusts the site's CA. It takes answers as
// they are on the wire.
func (s *site) client() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig:    &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13},
		DisableCompression: true,
	}}
}

// fetch returns the body of a file as it travels, compressed, and as it is.
func (s *site) fetch(ctx context.Context, path string) (onWire int, body []byte, err error) {
	for _, encoding := range []string{"gzip", "identity"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.addr+path, nil)
		if err != nil {
			return 0, nil, err
		}
		req.Header.Set("Accept-Encoding", encoding)
		resp, err := s.client().Do(req)
		if err != nil {
			return 0, nil, fmt.Errorf("cannot fetch %s: %w", path, err)
		}
		defer resp.Body.Close()
		if body, err = io.ReadAll(resp.Body); err != nil {
			return 0, nil, fmt.Errorf("cannot fetch %s: %w", path, err)
		}
		if resp.StatusCode != http.StatusOK {
			return 0, nil, fmt.Errorf("cannot fetch %s: %s", path, resp.Status)
		}
		if encoding == "gzip" {
			onWire = len(body)
		}
	}
	return onWire, body, nil
}

// etag returns the validator of a file, as a client gets it that asks as load
// does, without compression.
func (s *site) etag(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := s.client().Do(req)
	if err != nil {
		return "", fmt.Errorf("cannot read validator: %w", err)
	}
	return resp.Header.Get("Etag"), resp.Body.Close()
}

// authToken returns a token that enrols machines.
func (s *site) authToken(ctx context.Context) (string, error) {
	return s.tool(ctx, "livepatch-admin", "--dir", s.path("server"), "token", "create")
}

// machine returns what the n-th made-up machine says of itself.
func machine(n int) service.Facts {
	return service.Facts{
		Kernel: patch.Kernel{
			Arch: "x86_64", Release: "6.1.0-53-amd64",
			BuildID: "a0b1c2d3e4f5a6b7c8d9a0b1c2d3e4f5a6b7c8d9",
		},
		KernelVersion: "6.1.187-1", Distribution: vendor,
		BootID: fmt.Sprintf("0b5f7f3c-6a0e-4c5e-9d53-%012x", n),
	}
}

// enrol enrols n machines and returns their tokens.
func (s *site) enrol(ctx context.Context, n int) ([]string, error) {
	auth, err := s.authToken(ctx)
	if err != nil {
		return nil, err
	}
	var tokens []string
	for i := range n {
		body, err := json.Marshal(service.EnrolRequest{
			MachineID: fmt.Sprintf("%032x", i+1), Hostname: "bench", Version: "v1.0.0", Facts: machine(i),
		})
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.addr+service.PathMachines, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+auth)
		req.Header.Set("Content-Type", "application/json")
		resp, err := s.client().Do(req)
		if err != nil {
			return nil, fmt.Errorf("cannot enrol: %w", err)
		}
		var e service.Enrolment
		err = json.NewDecoder(resp.Body).Decode(&e)
		resp.Body.Close()
		if err != nil || e.MachineToken == "" {
			return nil, fmt.Errorf("cannot enrol: %s: %w", resp.Status, err)
		}
		tokens = append(tokens, e.MachineToken)
	}
	return tokens, nil
}

// requests returns how many requests the server has answered, by route.
func (s *site) requests(ctx context.Context) (map[string]int, error) {
	text, err := s.metrics(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	line := regexp.MustCompile(`(?m)^livepatch_request_duration_seconds_count\{.*?route="([^"]*)".*?\} (\d+)`)
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return nil, fmt.Errorf("cannot read metrics: %w", err)
		}
		counts[strings.TrimPrefix(m[1], "https://")] += n
	}
	return counts, nil
}
