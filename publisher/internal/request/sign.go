package request

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/sign"
)

// A Keyring finds the keys that a role needs.
type Keyring interface {
	// Held returns those of ids that it can sign with, the best first.
	Held(ctx context.Context, ids []string) ([]string, error)
	// Signer opens one of them. The error matches [sign.ErrAbsent] if it is not
	// at hand after all.
	Signer(ctx context.Context, id string) (sign.Signer, error)
	// Name is what people call a key.
	Name(id string) string
}

// Sign adds the signatures that the change needs and the keys can give, and no
// more. It returns the new ones.
func (v *Review) Sign(ctx context.Context, keys Keyring) (Answer, error) {
	a := Answer{ID: v.id}
	c := chooser{keys: keys, absent: make(map[string]bool), chosen: make(map[string][]sign.Signer)}
	for _, f := range v.change {
		demands, err := v.demands(f)
		if err != nil {
			return Answer{}, err
		}
		signers, err := c.choose(ctx, f, demands)
		if err != nil {
			return Answer{}, fmt.Errorf("cannot sign role %s: %w", f.role, err)
		}
		for _, s := range signers {
			signed, err := f.sign(ctx, s)
			if err != nil {
				return Answer{}, fmt.Errorf("cannot sign role %s with key %s: %w", f.role, s.Name(), err)
			}
			a.Signatures = append(a.Signatures, signed)
		}
	}
	for _, f := range v.change {
		if err := v.check(f); err != nil {
			return Answer{}, err
		}
	}
	return a, nil
}

func (f *file) sign(ctx context.Context, s sign.Signer) (Signature, error) {
	id, err := sign.KeyID(s.Public())
	if err != nil {
		return Signature{}, err
	}
	sig, err := sign.Message(ctx, s, f.payload)
	if err != nil {
		return Signature{}, err
	}
	f.signatures = append(slices.Clone(f.signatures), metadata.Signature{KeyID: id, Signature: sig})
	return Signature{Role: f.role, KeyID: id, Sig: sig}, nil
}

// A chooser picks keys, as few as are needed: every further signature would
// travel to every machine.
type chooser struct {
	keys   Keyring
	absent map[string]bool
	chosen map[string][]sign.Signer // by what was asked for: a thousand bins ask alike
}

func (c *chooser) choose(ctx context.Context, f *file, demands []authority.Authority) ([]sign.Signer, error) {
	open := lacks(f, demands)
	var question string
	for _, l := range open {
		question += fmt.Sprint(l.Demand.Threshold, l.Demand.IDs, l.Signed)
	}
	if s, ok := c.chosen[question]; ok {
		return s, nil
	}
	signers, err := c.fill(ctx, open)
	if err == nil {
		c.chosen[question] = signers
	}
	return signers, err
}

// fill takes keys until every demand is met or no key is left; those that help
// with all demands first.
func (c *chooser) fill(ctx context.Context, open []Lack) ([]sign.Signer, error) {
	needs, candidates := needsOf(open)
	held, err := c.keys.Held(ctx, candidates)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(held, func(a, b string) int { return needs.of(b) - needs.of(a) })
	var signers []sign.Signer
	for _, id := range held {
		if c.absent[id] || !needs.open(id) {
			continue
		}
		s, err := c.keys.Signer(ctx, id)
		if errors.Is(err, sign.ErrAbsent) {
			c.absent[id] = true
			continue
		}
		if err != nil {
			return nil, err
		}
		signers = append(signers, s)
		needs.meet(id)
	}
	return signers, nil
}

// A need is how many more of some keys have to sign.
type need struct {
	ids  []string
	left int
}

type needs []*need

// needsOf returns what is lacking, and the keys that could help.
func needsOf(open []Lack) (all needs, candidates []string) {
	for _, l := range open {
		n := &need{left: l.Demand.Threshold - len(l.Signed)}
		for _, id := range l.Demand.IDs {
			if slices.Contains(l.Signed, id) {
				continue
			}
			n.ids = append(n.ids, id)
			if !slices.Contains(candidates, id) {
				candidates = append(candidates, id)
			}
		}
		all = append(all, n)
	}
	return all, candidates
}

// of returns how many needs a key helps with, met or not.
func (all needs) of(id string) (n int) {
	for _, need := range all {
		if slices.Contains(need.ids, id) {
			n++
		}
	}
	return n
}

// open tells whether a key helps with a need that is not met yet.
func (all needs) open(id string) bool {
	return slices.ContainsFunc(all, func(n *need) bool { return n.left > 0 && slices.Contains(n.ids, id) })
}

// meet counts a key that signs.
func (all needs) meet(id string) {
	for _, need := range all {
		if slices.Contains(need.ids, id) {
			need.left--
		}
	}
}
