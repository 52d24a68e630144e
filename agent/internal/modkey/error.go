package modkey

import (
	"fmt"

	"livepatch/agent/internal/loader"
	"livepatch/internal/patch"
)

// An Error says why a kernel does not take a module, as far as the module's
// signature goes. It matches [patch.ErrModuleSignature].
type Error struct {
	Verdict Verdict
	Cause   error // what the kernel said; nil if it was not asked

	message, hint string
}

// Error says what is wrong.
func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %v", e.message, e.Cause)
	}
	return e.message
}

// Hint is what a person can do about it, in one line.
func (e *Error) Hint() string { return e.hint }

// Unwrap returns the sentinel, and what the kernel said.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{patch.ErrModuleSignature}
	}
	return []error{patch.ErrModuleSignature, e.Cause}
}

// A Place is where a machine's kernel stands and what was shipped to it.
type Place struct {
	Kernel loader.Kernel
	Cert   Certificate
	Update string // how a newer certificate comes, as a hint
}

// Check returns an [Error] if the kernel demands signatures and will not take one
// of key, as far as that can be told. Where it cannot, the kernel is to be asked.
func (p Place) Check(key string) error {
	if !p.Kernel.SignatureEnforced {
		return nil
	}
	switch v := Judge(p.Kernel, key, p.Cert); v {
	case Enrolled, Unknown:
		return nil
	default:
		return p.explain(v, key, nil)
	}
}

// Explain says why a kernel has refused the signature of a module, which cause
// tells no more of than that it has.
func (p Place) Explain(key string, cause error) *Error {
	return p.explain(Judge(p.Kernel, key, p.Cert), key, cause)
}

func (p Place) explain(v Verdict, key string, cause error) *Error {
	e := &Error{Verdict: v, Cause: cause}
	switch v {
	case Unsigned:
		e.message = "this kernel takes signed modules only, and the patch is not signed for kernels"
		e.hint = "tell the vendor of the patch; there is no key that could be enrolled"
	case Revoked:
		e.message = fmt.Sprintf("this machine has revoked the key that signed the patch, %s", key)
		e.hint = "wait for a patch that is signed with another key; " + p.Update
	case Missing:
		e.message = fmt.Sprintf("this kernel takes signed modules only, and does not know the key that signed the patch, %s", key)
		e.hint = p.howToEnrol(key)
	case Enrolled:
		e.message = fmt.Sprintf("this kernel has the key that signed the patch, %s, and does not take its signature", key)
		e.hint = "see why with: sudo dmesg; not every kernel lets keys of the machine's owner sign modules"
	case Unknown:
		e.message = fmt.Sprintf("this kernel does not take the signature of the patch, by key %s", key)
		e.hint = p.howToEnrol(key)
	}
	return e
}

// howToEnrol says how a kernel gets to know a key.
func (p Place) howToEnrol(key string) string {
	off := p.Kernel.SecureBoot != nil && !*p.Kernel.SecureBoot
	switch {
	case p.Cert.Known() && p.Cert.KeyID != key:
		return fmt.Sprintf("the certificate that was shipped is of another key, %s; %s", p.Cert.KeyID, p.Update)
	case off:
		// load_moklist_certs in security/integrity/platform_certs/load_uefi.c.
		return "kernels take keys of the machine's owner with Secure Boot only: switch it on in the firmware and enrol the key, or boot without module.sig_enforce and lockdown"
	case !p.Cert.Known():
		return "get the certificate of this key from the vendor of the patch, and enrol it with: sudo mokutil --import FILE; then reboot"
	}
	return Enrol(p.Cert) + "; then reboot, and confirm it on the console"
}

// Enrol is the command that enrols a certificate.
func Enrol(c Certificate) string { return "enrol it with: sudo mokutil --import " + c.Path }
