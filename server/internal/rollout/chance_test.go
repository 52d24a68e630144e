package rollout

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// The tea that was tasted for R. A. Fisher (The Design of Experiments, 1935, chapter II), and
// a night as it fell on a canary.
func TestChanceIsFishersExactTest(t *testing.T) {
	for name, tt := range map[string]struct {
		failed, of Pair
		want       float64
	}{
		"all cups right":           {Pair{Treated: 4}, Pair{4, 4}, 1. / 70},
		"three of four":            {Pair{3, 1}, Pair{4, 4}, 17. / 70},
		"nobody failed":            {Pair{}, Pair{10, 10}, 1},
		"only controls":            {Pair{Control: 3}, Pair{10, 10}, 1},
		"no controls":              {Pair{Treated: 3}, Pair{Treated: 10}, 1},
		"five of 20, none of 60":   {Pair{Treated: 5}, Pair{20, 60}, 0.000645},
		"five of 19, two of 51":    {Pair{5, 2}, Pair{19, 51}, 0.0132},
		"30 of 100, three of 1000": {Pair{30, 3}, Pair{100, 1000}, 2.983e-30},
	} {
		if got := chance(tt.failed, tt.of); math.Abs(got-tt.want) > 0.05*tt.want {
			t.Errorf("%s: chance is %v, want %v", name, got, tt.want)
		}
	}
}

func TestChanceFallsWithEachFailure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		of := Pair{rapid.Int64Range(1, 500).Draw(t, "treated"), rapid.Int64Range(0, 500).Draw(t, "controls")}
		failed := Pair{rapid.Int64Range(0, of.Treated-1).Draw(t, "treated failed"), rapid.Int64Range(0, of.Control).Draw(t, "controls failed")}
		p := chance(failed, of)
		more := chance(Pair{failed.Treated + 1, failed.Control}, of)
		if !(p >= 0 && p <= 1) || more > p+1e-9 {
			t.Fatalf("chance is %v, with one more %v", p, more)
		}
	})
}
