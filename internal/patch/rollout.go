package patch

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// A RolloutState is a decision about one version of a patch.
type RolloutState string

// The states of a rollout. Halted and revoked are states, never a share of 0.
const (
	Running RolloutState = "running" // spreads as far as its tiers say
	Halted  RolloutState = "halted"  // no further machine gets it
	Revoked RolloutState = "revoked" // halted, and machines that have it give it up
)

// Everyone is the share of a tier that lets every machine in.
const Everyone = 1_000_000

// A Rollout is the custom block of a rollout target: who gets a version of a
// patch. It is signed by the server's online key, so it can hold back what the
// vendor signed and can add nothing to it.
type Rollout struct {
	State RolloutState `json:"state"`
	// Tiers maps the name of a tier to how far the patch has come there, on
	// kernels that no spread names. A machine of a tier that is missing does not
	// get the patch.
	Tiers map[string]Stage `json:"tiers,omitempty"`
	// Spreads say how far the patch has come on the kernels that they name. No
	// kernel is in two of them.
	Spreads []Spread `json:"spreads,omitempty"`
	// Kernels maps "<release>/<arch>" to the state for machines of that kernel
	// where it differs from State.
	Kernels map[string]RolloutState `json:"kernels,omitempty"`
	// Withdraw, while the patch is halted, is the share of loaders to which it
	// counts as revoked: machines give it up a few at a time. Which ones, their
	// loaders know by an identity of their own.
	Withdraw *Stage `json:"withdraw,omitempty"`
	// SoakSeconds is how long a patch stays on trial after its transition.
	SoakSeconds int64 `json:"soak_seconds"`
}

// A Stage says which share of a tier's machines may have a patch.
type Stage struct {
	Share int64  `json:"share"` // parts per million, [Everyone] for all
	Salt  string `json:"salt"`  // makes each rollout begin with other machines
}

// A Spread is how far a patch has come on some kernels.
type Spread struct {
	Kernels []string `json:"kernels"` // "<release>/<arch>"
	// Shares maps the name of a tier to the share of its machines that may have
	// the patch; the salt is that of the tier. A tier that is missing has none.
	Shares map[string]int64 `json:"shares"`
}

// ParseRollout reads the custom block of a rollout target. A state that it does
// not know is an error: unknown means no.
func ParseRollout(b []byte) (Rollout, error) {
	var r Rollout
	if err := json.Unmarshal(b, &r); err != nil {
		return Rollout{}, fmt.Errorf("cannot read rollout: %w: %w", ErrMalformed, err)
	}
	for _, s := range r.Kernels {
		if err := s.check(); err != nil {
			return Rollout{}, err
		}
	}
	return r, r.State.check()
}

func (s RolloutState) check() error {
	switch s {
	case Running, Halted, Revoked:
		return nil
	}
	return fmt.Errorf("cannot read rollout: state is %.100q: %w", s, ErrMalformed)
}

// At returns the state for machines with kernel k.
func (r Rollout) At(k Kernel) RolloutState {
	state := r.State
	// The exception can only be stricter: a kernel listed as running does not
	// escape a patch that was halted everywhere.
	if s, ok := r.Kernels[k.Cell()]; ok && state == Running || s == Revoked {
		state = s
	}
	return state
}

// For returns nil if machines with kernel k may have the patch, or an error
// matching [ErrHalted] or [ErrRevoked].
func (r Rollout) For(k Kernel) error { return r.At(k).Err() }

// Err returns nil for [Running], or an error matching [ErrHalted] or
// [ErrRevoked].
func (s RolloutState) Err() error {
	switch s {
	case Running:
		return nil
	case Halted:
		return ErrHalted
	default:
		return ErrRevoked
	}
}

// Admits tells whether the patch has come to a machine with kernel k: the stage
// of its tier admits it.
func (r Rollout) Admits(k Kernel, tier, machineID string) bool {
	stage, ok := r.Stage(k, tier)
	return ok && stage.Admits(machineID)
}

// Stage returns how far the patch has come in a tier on kernel k, and whether it
// has come there at all.
func (r Rollout) Stage(k Kernel, tier string) (Stage, bool) {
	stage, ok := r.Tiers[tier]
	for _, s := range r.Spreads {
		if slices.Contains(s.Kernels, k.Cell()) {
			stage.Share = s.Shares[tier]
		}
	}
	return stage, ok && stage.Share > 0
}

// Admits tells whether the stage has reached a machine: u, the first 64 bits of
// SHA-256(salt ‖ machine id) over 2⁶⁴, is below the share.
func (s Stage) Admits(machineID string) bool {
	if s.Share >= Everyone {
		return true
	}
	sum := sha256.Sum256([]byte(s.Salt + machineID))
	u := float64(binary.BigEndian.Uint64(sum[:8])) / (1 << 64)
	return u < float64(s.Share)/Everyone
}

// ForLoader is At on the machine whose loader is called id: to some of those that
// have a halted patch it counts as revoked already.
func (r Rollout) ForLoader(k Kernel, id string) RolloutState {
	state := r.At(k)
	if state == Halted && r.Withdraw != nil && r.Withdraw.Admits(id) {
		return Revoked
	}
	return state
}
