package rollout

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// A Trial is a machine under watch. It is all that is kept of a single machine.
type Trial struct {
	Machine Machine
	Unit    int32  // index of [State.Units]
	Account uint32 // index of [State.Accounts]
	Opened  int64  // Unix seconds
	Due     int64  // when the next sign of life is overdue; 0: none is expected
	Batch   uint32 // key of [State.Batches]; 0: none, and no evidence for test A
	Stage   int32
	Tier    uint8
	Arm     Arm
	Passed  uint8 // deadlines
	Flags   flags
}

// flags are what happened to a trial.
type flags uint16

const (
	offered  flags = 1 << iota // told, but has not begun
	matured                    // was well after the soak
	counted                    // is part of the matured evidence
	closed                     // had its trial; kept so that it counts once in a stage
	evidence                   // counts in the tests and for the pace
	missed                     // failed, nobody knows why; kept to learn whether it crashed
	held                       // is missed, and still counts as young
	down                       // is missed, and has been down: what it says now is of another boot
	refused                    // is closed, and part of its lane's soft failures
	departed                   // is closed, and part of those that left its lane
)

// How often a machine has asked again before it began is kept in three flags: see
// [Rollout.reopen].
const (
	asked    flags = 1 << 12
	askedAll flags = 7 * asked
)

const (
	allFlags = offered | matured | counted | closed | evidence | missed | held | down | refused | departed | askedAll
	idle     = offered | closed | missed // kept, but no sign of life is expected
)

func (t *Trial) is(f flags) bool { return t.Flags&f != 0 }

// dealt tells whether the trial counts in test A.
func (t *Trial) dealt() bool { return t.Batch != 0 }

// Trials are written as one string of records, because there may be a million of them.
type Trials []Trial

// record is the size of a trial in bytes.
const record = 16 + 4*4 + 2*8 + 3 + 2

// MarshalJSON implements [json.Marshaler].
func (ts Trials) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, len(ts)*record)
	for i := range ts {
		t, le := &ts[i], binary.LittleEndian
		b = append(b, t.Machine[:]...)
		b = le.AppendUint32(b, uint32(t.Unit))
		b = le.AppendUint32(b, t.Account)
		b = le.AppendUint32(b, t.Batch)
		b = le.AppendUint32(b, uint32(t.Stage))
		b = le.AppendUint64(b, uint64(t.Opened))
		b = le.AppendUint64(b, uint64(t.Due))
		b = append(b, t.Tier, byte(t.Arm), t.Passed)
		b = le.AppendUint16(b, uint16(t.Flags))
	}
	return json.Marshal(b)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (ts *Trials) UnmarshalJSON(in []byte) error {
	var b []byte
	if err := json.Unmarshal(in, &b); err != nil {
		return fmt.Errorf("cannot read trials: %w", err)
	}
	if len(b)%record != 0 {
		return fmt.Errorf("cannot read trials: %d bytes are no number of records", len(b))
	}
	*ts = make(Trials, 0, len(b)/record)
	for ; len(b) > 0; b = b[record:] {
		*ts = append(*ts, readTrial(b))
	}
	return nil
}

func readTrial(b []byte) Trial {
	le := binary.LittleEndian
	return Trial{
		Machine: Machine(b[:16]), Unit: int32(le.Uint32(b[16:])), Account: le.Uint32(b[20:]),
		Batch: le.Uint32(b[24:]), Stage: int32(le.Uint32(b[28:])),
		Opened: int64(le.Uint64(b[32:])), Due: int64(le.Uint64(b[40:])),
		Tier: b[48], Arm: Arm(b[49]), Passed: b[50], Flags: flags(le.Uint16(b[51:])),
	}
}

// deadline returns the age at which the i-th sign of life is expected.
func (p TimeParams) deadline(i int) time.Duration {
	if n := len(p.Heartbeats); i >= n {
		return p.Heartbeats[n-1] + time.Duration(i-n+1)*time.Hour
	}
	return p.Heartbeats[i]
}

// expects tells whether an i-th sign of life is expected: the last one is the
// first that is not before the end of the watch.
func (p TimeParams) expects(i int) bool { return i == 0 || p.deadline(i-1) < p.Watch }

// lived tells whether a trial that has passed n deadlines outlived the early window.
func (p TimeParams) lived(n int) bool { return n > 0 && p.deadline(n-1) >= p.Early }

// fresh tells whether a machine that has passed n deadlines was last heard of before the
// age up to which a crash counts in test D.
func (p TimeParams) fresh(n int) bool { return n == 0 || p.deadline(n-1) < p.Crash }

// overdue returns the age in seconds at which the i-th sign of life is missed. It
// counts from the beginning of the trial and not from the last sign of life, of which a
// treated machine may give more: with every sign that puts off the next deadline,
// the same power cut would be noticed at different times in the two arms.
func (p TimeParams) overdue(i int) int64 {
	age := p.deadline(i)
	if i >= len(p.Heartbeats) {
		return seconds(age + 45*time.Minute)
	}
	return seconds(age + max(p.Grace, time.Duration(p.GraceShare*float64(age))))
}

// satisfied tells whether a sign of life at an age in seconds is the i-th one.
// Clocks and networks let it come a little early, and the hourly ones are any of a
// machine that checks in once an hour.
func (p TimeParams) satisfied(i int, age int64) bool {
	want := p.deadline(i)
	if i >= len(p.Heartbeats) {
		return age >= seconds(want-30*time.Minute)
	}
	return float64(age) >= 0.9*want.Seconds()
}

// A wheel finds the trials that are due. A trial is entered anew when its Due
// changes; entries made before are recognised by a Due that is later.
type wheel struct {
	slots map[int64][]*Trial // by second
	next  int64              // no slot before it
}

func (w *wheel) put(t *Trial) {
	slot := max(t.Due, w.next)
	w.slots[slot] = append(w.slots[slot], t)
}

// overdue tells whether take would return a trial. Entries that it passes by it drops.
func (w *wheel) overdue(now int64) bool {
	due := func(t *Trial) bool { return t.Due != 0 && t.Due <= now }
	if now-w.next > int64(len(w.slots)) { // a long step: fewer slots than seconds
		for slot, trials := range w.slots {
			if slot <= now && slices.ContainsFunc(trials, due) {
				return true
			}
		}
		return false
	}
	for ; w.next <= now; w.next++ {
		if slices.ContainsFunc(w.slots[w.next], due) {
			return true
		}
		delete(w.slots, w.next)
	}
	return false
}

// take removes the trials that are due at now or before, and returns each once.
func (w *wheel) take(now int64) (due []*Trial) {
	collect := func(slot int64) {
		for _, t := range w.slots[slot] {
			if t.Due != 0 && t.Due <= now {
				t.Due = 0
				due = append(due, t)
			}
		}
		delete(w.slots, slot)
	}
	if now-w.next > int64(len(w.slots)) { // a long step: fewer slots than seconds
		for slot := range w.slots {
			if slot <= now {
				collect(slot)
			}
		}
	} else {
		for slot := w.next; slot <= now; slot++ {
			collect(slot)
		}
	}
	w.next = max(w.next, now+1)
	return due
}
