package rollout

import "time"

// A Trial is a machine under watch. It is all that is kept of a single machine.
type Trial struct {
	Machine Machine `json:"machine"`
	Unit    int32   `json:"unit"`    // index of [State.Units]
	Account uint32  `json:"account"` // index of [State.Accounts]
	Opened  int64   `json:"opened"`  // Unix seconds
	Due     int64   `json:"due"`     // when the next sign of life is overdue; 0: none is expected
	Batch   uint32  `json:"batch"`   // key of [State.Batches]; 0: no evidence
	Stage   int32   `json:"stage"`
	Tier    uint8   `json:"tier"`
	Arm     Arm     `json:"arm"`
	Passed  uint8   `json:"passed"` // deadlines
	Flags   flags   `json:"flags"`
}

// flags are what happened to a trial.
type flags uint8

const (
	offered flags = 1 << iota // told, but has not begun
	matured                   // was well after the soak
	counted                   // is part of the matured evidence
	closed                    // a control that had its trial; kept so that it has one a stage
)

const allFlags = offered | matured | counted | closed

func (t *Trial) is(f flags) bool { return t.Flags&f != 0 }

// evidence tells whether the trial counts in the tests.
func (t *Trial) evidence() bool { return t.Batch != 0 }

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
