package controller_test

import (
	"testing"
	"time"

	"livepatch/internal/service"
)

// A server is started again, and its clock is behind that of the last step.
func TestAClockThatIsBehindTheLastStepHoldsUpNothing(t *testing.T) {
	b := newBed(t)
	b.enrol(1)
	b.now = b.now.Add(-10 * time.Minute)
	b.restart()
	b.round(time.Second)
	if !b.asks(0) {
		t.Error("the only machine may not begin")
	}
}

// A machine that gives every sign of life in time is not silent, whatever becomes of the
// server's clock.
func TestAClockThatIsSetBackMakesNobodySilent(t *testing.T) {
	tests := map[string]struct {
		by      time.Duration
		restart bool
	}{
		"not at all":              {},
		"by a minute":             {by: time.Minute},
		"by an hour":              {by: time.Hour},
		"by a day":                {by: 24 * time.Hour},
		"by an hour at a restart": {by: time.Hour, restart: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.enrol(1)
			if !b.asks(0) {
				t.Fatal("machine may not begin")
			}
			b.round(time.Second)
			b.now = b.now.Add(-tc.by)
			if tc.restart {
				b.restart()
			}
			b.round(time.Second) // as each second
			b.beats(0)
			treated := 0.0
			for _, s := range b.Stages() {
				treated += s.Treated.Of
			}
			if b.lost() != 0 || treated != 1 {
				t.Errorf("%v of %v machines are lost, want 0 of 1", b.lost(), treated)
			}
		})
	}
}

// beats has a machine give the signs of life of its first two hours.
func (b *bed) beats(i int) {
	b.Helper()
	age := time.Duration(0)
	for _, due := range []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 2 * time.Hour} {
		for ; age < due; age += 10 * time.Second {
			b.round(10 * time.Second)
		}
		b.checkIn(i, event(service.Heartbeat, ""))
	}
}
