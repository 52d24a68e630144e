package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/publisher/internal/modsig"
	"livepatch/publisher/internal/repo"
)

// errUnnamed reports a signed module of whose signer machines would not be told.
var errUnnamed = errors.New("module is signed, and nothing says with which key")

// moduleSigner finds out which key has signed a module for kernels, so that
// machines know before they fetch it whether theirs takes it.
func (a *app) moduleSigner(r *repo.Repo, certFile string, addition *repo.Addition) error {
	if certFile == "" {
		_, s, err := modsig.Read(addition.Content)
		if errors.Is(err, modsig.ErrUnsigned) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("%w: it is that of %s", errUnnamed, s.Signer())
		}
		return err
	}
	cert, err := readCertificate(certFile)
	if err != nil {
		return err
	}
	if _, err := verifySignature(addition.Content, cert); err != nil {
		return err
	}
	until, err := r.Expires(metadata.TARGETS)
	if err != nil {
		return err
	}
	a.noteValidity(cert)
	if a.Now().Before(cert.NotAfter) && cert.NotAfter.Before(until) {
		a.note("the certificate expires on %s, before the role targets, on %s",
			cert.NotAfter.UTC().Format(time.DateOnly), until.UTC().Format(time.DateOnly))
	}
	addition.Module.SigningKey = modsig.HexID(cert)
	return nil
}
