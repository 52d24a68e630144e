package rollout

import (
	"math"
	"testing"
)

func TestTripwire(t *testing.T) {
	h := Defaults().Halt
	busy := h
	busy.Background = 0.02
	tests := map[string]struct {
		h                HaltParams
		treated, control Tally
		want             bool
	}{
		"nothing":                                    {h, Tally{}, Tally{}, false},
		"two early deaths":                           {h, Tally{2, 2}, Tally{}, false},
		"three early deaths":                         {h, Tally{3, 3}, Tally{}, true},
		"three deaths among a few that live":         {h, Tally{3, 4}, Tally{0, 16}, true},
		"three deaths among forty":                   {h, Tally{3, 40}, Tally{0, 160}, false},
		"three early deaths, controls die as well":   {h, Tally{3, 3}, Tally{4, 10}, false},
		"one control in ten died: background unsure": {h, Tally{3, 3}, Tally{1, 10}, false},
		"three early deaths where many are lost":     {busy, Tally{3, 3}, Tally{}, true},
		"three of thirty where many are lost":        {busy, Tally{3, 30}, Tally{}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			llr, p0 := tc.h.tripwire(tc.treated, tc.control)
			if got := tc.h.tripped(llr); got != tc.want {
				t.Errorf("tripped = %v at log ratio %.2f with p0 = %.4f", got, llr, p0)
			}
		})
	}
}

// The ratio of Wald's test by its definition, at the rates of the design.
func TestTripwireIsWaldsRatio(t *testing.T) {
	llr, p0 := Defaults().Halt.tripwire(Tally{2, 50}, Tally{})
	want := 2*math.Log(0.03/0.003) + 48*math.Log(0.97/0.997)
	if p0 != 0.003 || math.Abs(llr-want) > 1e-12 {
		t.Errorf("log ratio = %v with p0 = %v, want %v", llr, p0, want)
	}
}
