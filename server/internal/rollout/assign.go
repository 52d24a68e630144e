package rollout

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"

	"livepatch/internal/patch"
)

// A Machine names a machine to the service. The zero Machine names none.
type Machine [16]byte

// ParseMachine reads an identity written as 32 lower-case hexadecimal digits.
func ParseMachine(s string) (Machine, error) {
	var m Machine
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(m) || hex.EncodeToString(b) != s {
		return m, fmt.Errorf("cannot parse machine %.40q: want 32 lower-case hexadecimal digits", s)
	}
	return Machine(b), nil
}

// String returns the identity as 32 hexadecimal digits.
func (m Machine) String() string { return hex.EncodeToString(m[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (m Machine) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (m *Machine) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMachine(string(b))
	return err
}

// An Arm says what a stage does with a machine.
type Arm uint8

// The arms. The zero Arm is neither treated nor control.
const (
	Outside Arm = iota
	Treated
	Control
)

// String returns the name of the arm.
func (a Arm) String() string {
	return [...]string{"outside", "treated", "control"}[min(a, Control)]
}

// An Assignment deals the machines of one kernel and tier to the arms of a stage.
//
// The zero Assignment leaves every machine outside.
type Assignment struct {
	Salt  string `json:"salt"`  // another for each rollout, so that it is not always the same machines
	Stage int64  `json:"stage"` // deals the controls anew
	Share int64  `json:"share"` // of treated machines, in parts per million of all
	Sham  int64  `json:"sham"`  // of controls, in parts per million of those not treated
}

// Arm returns the arm of a machine. A machine is treated exactly if
// [patch.Rollout.Admits] lets it in: u, the first 64 bits of SHA-256(salt ‖ machine)
// over 2⁶⁴, is below the share. So a machine that was treated stays so while the
// share grows.
//
// Controls are drawn from the rest by a hash of their own in which the stage
// takes part. With the same draw in each stage the controls of a later stage would be those
// who survived an earlier one, and the treated would not.
func (a Assignment) Arm(m Machine) Arm {
	id := m.String()
	if below(sha256.Sum256([]byte(a.Salt+id)), a.Share) {
		return Treated
	}
	if below(sha256.Sum256([]byte(a.Salt+"\x00"+strconv.FormatInt(a.Stage, 10)+"\x00"+id)), a.Sham) {
		return Control
	}
	return Outside
}

// below tells whether the first 64 bits of a hash over 2⁶⁴ are below a share.
func below(sum [sha256.Size]byte, share int64) bool {
	if share >= patch.Everyone {
		return true
	}
	u := float64(binary.BigEndian.Uint64(sum[:8])) / (1 << 64)
	return u < float64(share)/patch.Everyone
}
