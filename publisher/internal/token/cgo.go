//go:build cgo

package token

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/miekg/pkcs11"

	"livepatch/publisher/internal/sign"
)

// What PKCS #11 3.0 has for ed25519 (sections 2.3.5 and 2.3.14), and the binding
// has not.
const (
	keyTypeEdwards    = 0x00000040 // CKK_EC_EDWARDS
	mechanismEdDSA    = 0x00001057 // CKM_EDDSA
	mechanismGenerate = 0x00001055 // CKM_EC_EDWARDS_KEY_PAIR_GEN, for tests
)

// library holds what was opened so far.
type library struct {
	modules  map[string]*pkcs11.Ctx
	sessions map[string]pkcs11.SessionHandle // by module and slot
	refused  map[string]error                // by module and slot: its PIN was wrong
}

// Open returns the key that an URI names. Errors match [ErrURI], [ErrNoKey],
// [ErrPIN], or [sign.ErrAbsent] if the token or its library is not there.
func (b *Backend) Open(ctx context.Context, name, uri string) (sign.Signer, error) {
	o, err := b.find(ctx, name, uri, keyTypeEdwards)
	if err != nil {
		return nil, err
	}
	got, err := o.attributes(pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	public, err := point(got[0])
	if err != nil {
		return nil, err
	}
	return &signer{name: name, public: public, object: o}, nil
}

// An object is a pair of keys in a token.
type object struct {
	p               *pkcs11.Ctx
	session         pkcs11.SessionHandle
	private, public pkcs11.ObjectHandle
}

// find returns the pair of keys of a kind that an URI names.
func (b *Backend) find(ctx context.Context, name, uri string, kind uint) (object, error) {
	a, err := parse(uri)
	if err != nil {
		return object{}, err
	}
	p, err := b.module(a.module)
	if err != nil {
		return object{}, err
	}
	slot, err := findSlot(p, a)
	if err != nil {
		return object{}, err
	}
	session, err := b.session(ctx, p, slot, name, a)
	if err != nil {
		return object{}, err
	}
	private, err := findObject(p, session, pkcs11.CKO_PRIVATE_KEY, kind, a)
	if err != nil {
		return object{}, err
	}
	public, err := findObject(p, session, pkcs11.CKO_PUBLIC_KEY, kind, a)
	if err != nil {
		return object{}, err
	}
	return object{p, session, private, public}, nil
}

// attributes returns what the token says of the public half.
func (o object) attributes(kinds ...uint) ([][]byte, error) {
	var template []*pkcs11.Attribute
	for _, kind := range kinds {
		template = append(template, pkcs11.NewAttribute(kind, nil))
	}
	got, err := o.p.GetAttributeValue(o.session, o.public, template)
	if err != nil || len(got) != len(kinds) {
		return nil, fmt.Errorf("cannot read public key from token: %w", err)
	}
	var values [][]byte
	for _, attribute := range got {
		values = append(values, attribute.Value)
	}
	return values, nil
}

// sign has the token sign a message.
func (o object) sign(mechanism uint, message []byte) ([]byte, error) {
	if err := o.p.SignInit(o.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, o.private); err != nil {
		return nil, fmt.Errorf("token does not sign: %w", err)
	}
	sig, err := o.p.Sign(o.session, message)
	if err != nil {
		return nil, fmt.Errorf("token does not sign: %w", err)
	}
	return sig, nil
}

// module loads and initializes the library of a token, once.
func (b *Backend) module(path string) (*pkcs11.Ctx, error) {
	if p := b.modules[path]; p != nil {
		return p, nil
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w: %w", sign.ErrAbsent, err)
	}
	p := pkcs11.New(path)
	if p == nil {
		return nil, fmt.Errorf("%w: %s is not a PKCS #11 library", ErrURI, path)
	}
	if err := p.Initialize(); err != nil {
		p.Destroy()
		return nil, fmt.Errorf("cannot use %s: %w", path, err)
	}
	if b.modules == nil {
		b.modules = make(map[string]*pkcs11.Ctx)
		b.sessions = make(map[string]pkcs11.SessionHandle)
		b.refused = make(map[string]error)
	}
	b.modules[path] = p
	return p, nil
}

// findSlot returns the slot that holds the token.
func findSlot(p *pkcs11.Ctx, a address) (uint, error) {
	slots, err := p.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("cannot list tokens: %w", err)
	}
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		if err != nil {
			continue // it was pulled out this moment
		}
		label, serial := strings.TrimRight(info.Label, " \x00"), strings.TrimRight(info.SerialNumber, " \x00")
		if (a.token == "" || a.token == label) && (a.serial == "" || a.serial == serial) {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("%w: no token is called %s%s", sign.ErrAbsent, a.token, a.serial)
}

// session logs in to a token, once.
func (b *Backend) session(ctx context.Context, p *pkcs11.Ctx, slot uint, name string, a address) (pkcs11.SessionHandle, error) {
	place := fmt.Sprint(a.module, " ", slot)
	if s, ok := b.sessions[place]; ok {
		return s, nil
	}
	if err := b.refused[place]; err != nil {
		return 0, err
	}
	pin, err := b.askPIN(ctx, name, a)
	if err != nil {
		return 0, err
	}
	s, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return 0, fmt.Errorf("cannot open token: %w", err)
	}
	if err := p.Login(s, pkcs11.CKU_USER, pin); err != nil && !is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		err = loginError(err)
		if errors.Is(err, ErrPIN) {
			b.refused[place] = err
		}
		return 0, errors.Join(err, p.CloseSession(s))
	}
	b.sessions[place] = s
	return s, nil
}

func loginError(err error) error {
	if is(err, pkcs11.CKR_PIN_INCORRECT) || is(err, pkcs11.CKR_PIN_LEN_RANGE) || is(err, pkcs11.CKR_PIN_LOCKED) || is(err, pkcs11.CKR_PIN_INVALID) {
		return fmt.Errorf("%w: %w", ErrPIN, err)
	}
	return fmt.Errorf("cannot log in to token: %w", err)
}

func is(err error, code pkcs11.Error) bool {
	var e pkcs11.Error
	return errors.As(err, &e) && e == code
}

// findObject returns the one object of a class and kind that the address names.
func findObject(p *pkcs11.Ctx, s pkcs11.SessionHandle, class, kind uint, a address) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind),
	}
	if a.object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, a.object))
	}
	if len(a.id) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, a.id))
	}
	if err := p.FindObjectsInit(s, template); err != nil {
		return 0, fmt.Errorf("cannot look into token: %w", err)
	}
	found, _, err := p.FindObjects(s, 2)
	if err := errors.Join(err, p.FindObjectsFinal(s)); err != nil {
		return 0, fmt.Errorf("cannot look into token: %w", err)
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("%w: %s%x", ErrNoKey, a.object, a.id)
	case 1:
		return found[0], nil
	}
	return 0, fmt.Errorf("%w: more than one is called %s%x", ErrNoKey, a.object, a.id)
}

// point reads CKA_EC_POINT: the 32 bytes of RFC 8032, or (in tokens that follow
// the drafts) the same as a DER OCTET STRING.
func point(b []byte) (ed25519.PublicKey, error) {
	if len(b) == ed25519.PublicKeySize+2 && b[0] == 0x04 && b[1] == ed25519.PublicKeySize {
		b = b[2:]
	}
	if len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: its public half has %d bytes", ErrNoKey, len(b))
	}
	return b, nil
}

// Close logs out of all tokens. Keys that were opened cannot sign any more.
func (b *Backend) Close() error {
	var errs []error
	for _, p := range b.modules {
		errs = append(errs, p.Finalize())
		p.Destroy()
	}
	b.library = library{}
	return errors.Join(errs...)
}

// A signer is an ed25519 key in a token.
type signer struct {
	name   string
	public ed25519.PublicKey
	object
}

// Name implements [sign.Signer].
func (s *signer) Name() string { return s.name }

// Public implements [sign.Signer].
func (s *signer) Public() ed25519.PublicKey { return s.public }

// Sign implements [sign.Signer].
func (s *signer) Sign(ctx context.Context, message []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.sign(mechanismEdDSA, message)
}
