package agent

import (
	"errors"
	"fmt"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/modkey"
	"livepatch/agent/internal/status"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/service"
)

// What brings a newer certificate of the vendor's key.
const (
	updateSnap    = "update it with: sudo snap refresh " + SnapName
	updatePackage = "update the package that brought canonical-livepatchd"
)

// place is what the keys of modules are judged by. The caller has a status of the
// loader.
func (a *Agent) place(k *loader.Status) modkey.Place {
	p := modkey.Place{Kernel: k.Kernel, Cert: a.kmodCert, Update: updatePackage}
	if a.snapd != nil {
		p.Update = updateSnap
	}
	return p
}

// signingKey returns the key that signed a module for kernels, as its metadata
// says; "" if it says nothing.
func signingKey(t trust.Target) string {
	m, err := patch.ParseModule(t.Custom)
	if err != nil {
		return "" // a chosen target has been read before
	}
	return m.SigningKey
}

// checkSignature returns why the kernel would refuse a patch for its signature,
// as far as that can be known before it is fetched.
func (r *round) checkSignature(got choice) error {
	return r.place(r.kernel).Check(signingKey(got.target))
}

// explain says more of a refusal than the kernel does, if it was for the
// signature. A kernel that demands signatures only because it is locked down says
// EPERM, as it does for want of a privilege. One that demands none finds fault with
// the signature itself, and that is the patch's.
func (r *round) explain(got choice, err error) error {
	if r.kernel == nil || !r.kernel.Kernel.SignatureEnforced {
		return err
	}
	lockdown := r.kernel.Kernel.Lockdown
	locked := lockdown == "integrity" || lockdown == "confidentiality"
	if errors.Is(err, patch.ErrModuleSignature) || locked && errors.Is(err, patch.ErrNotPermitted) && !r.lacksPlug() {
		return r.place(r.kernel).Explain(signingKey(got.target), err)
	}
	return err
}

// lacksPlug tells whether the loader is kept by snapd from what it needs.
func (a *Agent) lacksPlug() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.live.snap.missing) > 0
}

// reason returns the name of a failure for the service. A signature that a kernel
// does not take is the machine's configuration, and no fault of the patch.
func reason(err error) string {
	var s *modkey.Error
	if !errors.As(err, &s) {
		return rpcerr.Reason(err)
	}
	switch s.Verdict {
	case modkey.Unsigned:
		return service.ReasonUnsigned
	case modkey.Missing:
		return service.ReasonNotEnrolled
	case modkey.Revoked:
		return service.ReasonKeyRevoked
	default:
		return service.ReasonSignature
	}
}

// refused tells the service, once for each patch and reason, of one that the
// kernel was not asked to take.
func (r *round) refused(got choice, err error) {
	var s *modkey.Error
	if !errors.As(err, &s) || s.Cause != nil {
		return
	}
	what := fmt.Sprintf("%s %s", got.target.Digest, s.Verdict)
	if r.rec.Refused == what {
		return
	}
	r.rec.Refused = what
	e := r.event(eventFailed, got.entry)
	e.Reason, e.Message = reason(err), err.Error()
	r.note(e)
}

// signing describes how the kernel stands to the key of the vendor's modules; nil
// where nothing is known that would be worth a word.
func (a *Agent) signing() *status.ModuleSigning {
	seen := a.live.loader
	key := a.rec.SigningKey
	if key == "" {
		key = a.kmodCert.KeyID
	}
	if seen == nil || key == "" && !seen.Kernel.SignatureEnforced && a.kmodCert.Path == "" {
		return nil
	}
	s := &status.ModuleSigning{Demanded: seen.Kernel.SignatureEnforced, Key: key, Certificate: a.kmodCert.Path}
	if key != "" {
		s.State = string(modkey.Judge(seen.Kernel, key, a.kmodCert))
	}
	if a.kmodCert.Known() && a.kmodCert.KeyID == key {
		s.Subject, s.NotBefore, s.NotAfter = a.kmodCert.Subject, a.kmodCert.NotBefore, a.kmodCert.NotAfter
	}
	if n, ok := a.signingTrouble(key); ok {
		s.Message, s.Hint = n.Message, n.Hint
	}
	return s
}

// signingTrouble says what is wrong with the key of the vendor's modules, on this
// machine. The caller knows that the loader has answered.
func (a *Agent) signingTrouble(key string) (status.Notice, bool) {
	seen := a.live.loader
	var refusal *modkey.Error
	if key != "" && errors.As(a.place(seen).Check(key), &refusal) {
		return status.Notice{Message: refusal.Error(), Hint: refusal.Hint()}, true
	}
	c := a.kmodCert
	switch {
	case c.Problem != "":
		return status.Notice{Message: c.Problem, Hint: a.place(seen).Update}, true
	case seen.Kernel.SignatureEnforced && c.KeyID == key && c.Expired(time.Now()):
		return status.Notice{
			Message: fmt.Sprintf("the certificate of the key that signs patches has expired on %s; the kernel does not look at the date", c.NotAfter.Format(time.DateOnly)),
			Hint:    a.place(seen).Update,
		}, true
	}
	return status.Notice{}, false
}

// signingNotices tell of a key that will be in the way, before a patch is refused
// for it.
func (a *Agent) signingNotices() []status.Notice {
	if a.live.loader == nil || a.rec.Failure == status.FailureSignature {
		return nil // status says it already
	}
	s := a.signing()
	if s == nil || !s.Demanded || s.Message == "" {
		return nil
	}
	return []status.Notice{{Message: s.Message, Hint: s.Hint}}
}
