// Package certs holds the server's TLS certificate: it reads it again when the
// file changes, and it can make a development CA.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// look is how often the files are looked at. A renewal is in use after that.
const look = 10 * time.Second

// A Pair is a certificate and its key in two files. It is safe for concurrent
// use.
type Pair struct {
	log               *slog.Logger
	certFile, keyFile string
	current           atomic.Pointer[tls.Certificate]
	seen              stamp // only Watch uses it once it runs
}

// A stamp tells whether the files are still those that were read.
type stamp struct{ cert, key fileStamp }

type fileStamp struct {
	modified time.Time
	size     int64
}

// Load reads a certificate chain and its key, both PEM. If a file is missing,
// the error matches [fs.ErrNotExist].
func Load(log *slog.Logger, certFile, keyFile string) (*Pair, error) {
	p := &Pair{log: log, certFile: certFile, keyFile: keyFile}
	if err := p.load(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Pair) load() error {
	now, err := p.stamp()
	if err != nil {
		return fmt.Errorf("cannot read certificate: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
	if err != nil {
		return fmt.Errorf("cannot read certificate %q: %w", p.certFile, err)
	}
	p.seen = now
	p.current.Store(&cert)
	return nil
}

func (p *Pair) stamp() (stamp, error) {
	cert, errCert := stampOf(p.certFile)
	key, errKey := stampOf(p.keyFile)
	return stamp{cert, key}, errors.Join(errCert, errKey)
}

func stampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, err
	}
	return fileStamp{info.ModTime(), info.Size()}, nil
}

// Config returns a server's TLS configuration. TLS 1.3 is the oldest version.
func (p *Pair) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.current.Load(), nil
		},
	}
}

// Expires returns when the certificate in use expires.
func (p *Pair) Expires() time.Time {
	if leaf := p.current.Load().Leaf; leaf != nil {
		return leaf.NotAfter
	}
	return time.Time{}
}

// Watch reads the files again when they change or reload yields, until ctx is
// done. Files that cannot be used are logged, and the old ones stay in use: a
// renewal that went wrong must not stop the service before it has to.
func (p *Pair) Watch(ctx context.Context, reload <-chan os.Signal) {
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-reload:
			asked = true
		case <-time.After(look):
		}
		now, err := p.stamp()
		if err == nil && now == p.seen && !asked {
			continue
		}
		if err := p.load(); err != nil {
			p.log.ErrorContext(ctx, "Cannot reload certificate", "err", err)
			continue
		}
		p.log.InfoContext(ctx, "Reloaded certificate", "expires", p.Expires())
	}
}
