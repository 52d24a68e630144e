package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/server/internal/certs"
	"livepatch/server/internal/servicetest"
)

func makeDev(t *testing.T, dir string, hosts ...string) {
	t.Helper()
	if err := certs.MakeDev(dir, hosts, time.Now()); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, dir string) *certs.Pair {
	t.Helper()
	p, err := certs.Load(slog.New(slog.DiscardHandler), filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func roots(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("ca.crt holds no certificate")
	}
	return pool
}

// handshake connects a client to a server.
func handshake(t *testing.T, p *certs.Pair, client *tls.Config) error {
	t.Helper()
	lis, err := tls.Listen("tcp", "127.0.0.1:0", p.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() {
		conn, err := lis.Accept()
		if err == nil {
			_ = conn.(*tls.Conn).Handshake() // what it says, the client says, too
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", lis.Addr().String(), client)
	if err == nil {
		conn.Close()
	}
	return err
}

func TestClientsTrustTheDevelopmentCA(t *testing.T) {
	dir := t.TempDir()
	makeDev(t, dir, "livepatch.test", "192.0.2.7", "::1")
	p := load(t, dir)
	tests := map[string]struct {
		client *tls.Config
		want   string
	}{
		"by name":               {&tls.Config{RootCAs: roots(t, dir), ServerName: "livepatch.test"}, ""},
		"by address":            {&tls.Config{RootCAs: roots(t, dir), ServerName: "192.0.2.7"}, ""},
		"by another name":       {&tls.Config{RootCAs: roots(t, dir), ServerName: "example.com"}, "not example.com"},
		"by the system's CAs":   {&tls.Config{ServerName: "livepatch.test"}, "unknown authority"},
		"with TLS 1.2 at most":  {&tls.Config{RootCAs: roots(t, dir), ServerName: "livepatch.test", MaxVersion: tls.VersionTLS12}, "protocol version"},
		"with TLS 1.3 at least": {&tls.Config{RootCAs: roots(t, dir), ServerName: "livepatch.test", MinVersion: tls.VersionTLS13}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := handshake(t, p, tc.client)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("handshake: %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDevelopmentCAIsKept(t *testing.T) {
	dir := t.TempDir()
	makeDev(t, dir, "a.test")
	before := roots(t, dir)
	makeDev(t, dir, "b.test")
	if err := handshake(t, load(t, dir), &tls.Config{RootCAs: before, ServerName: "b.test"}); err != nil {
		t.Error(err)
	}
	for file, mode := range map[string]fs.FileMode{"ca.key": 0o600, "server.key": 0o600, "ca.crt": 0o644, "server.crt": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, %v, want %v", file, info.Mode(), err, mode)
		}
	}
	// Machines trust this CA; another one must not take its place unasked.
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if err := certs.MakeDev(dir, []string{"c.test"}, time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the key of the CA: %v", err)
	}
	if !roots(t, dir).Equal(before) {
		t.Error("the CA is another one")
	}
	if err := certs.MakeDev(dir, nil, time.Now()); err == nil {
		t.Error("made a certificate for no host")
	}
}

func TestPairThatCannotBeUsed(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	makeDev(t, a, "a.test")
	makeDev(t, b, "b.test")
	log := slog.New(slog.DiscardHandler)
	if _, err := certs.Load(log, filepath.Join(a, "server.crt"), filepath.Join(b, "server.key")); err == nil {
		t.Error("a certificate goes with another's key")
	}
	if _, err := certs.Load(log, filepath.Join(a, "server.crt"), filepath.Join(a, "none.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load = %v, want %v", err, fs.ErrNotExist)
	}
}

func TestCertificateIsReloaded(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().Round(0)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now))
		makeDev(t, dir, "a.test")
		var log servicetest.Log
		p, err := certs.Load(slog.New(slog.NewTextHandler(&log, nil)), filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		reload := make(chan os.Signal, 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Watch(ctx, reload)
		}()
		first := p.Expires()
		step := func(name string, want bool) {
			t.Helper()
			before := len(log.String())
			time.Sleep(11 * time.Second)
			synctest.Wait()
			if got := strings.Contains(log.String()[before:], `msg="Reloaded`); got != want {
				t.Errorf("%s: reloaded is %t, want %t: %s", name, got, want, log.String()[before:])
			}
		}
		step("nothing has changed", false)
		makeDev(t, dir, "b.test")
		step("new files", true)
		if !p.Expires().After(first) {
			t.Errorf("expires %v, before it was %v", p.Expires(), first)
		}
		if err := os.WriteFile(filepath.Join(dir, "server.crt"), []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
		step("broken file", false)
		if p.Expires().IsZero() || !strings.Contains(log.String(), "Cannot reload certificate") {
			t.Errorf("log: %s", log.String())
		}
		makeDev(t, dir, "b.test")
		step("repaired", true)
		reload <- os.Interrupt
		step("asked to", true)
		cancel()
		<-done
	})
}
