package rollout

import (
	"math"
	"testing"

	"livepatch/internal/patch"
)

// ripe is evidence of a stage that went well: 30 machines of 10 000 and their controls.
func ripe() Evidence {
	return Evidence{
		Alpha: 2e-5, SourceAlpha: 2e-5, Controls: 120, Machines: 10_000, Tier: "stable", Auto: true,
		Stage: 1, Age: 7200, Share: 3000, Wanted: 30, Came: 30, Exposed: 30, Treated: Tally{0, 30}, Control: Tally{0, 120},
	}
}

func TestJudge(t *testing.T) {
	tests := map[string]struct {
		change func(*Evidence)
		action Action
		reason Reason
	}{
		"a stage that went well":               {func(*Evidence) {}, Advance, Healthy},
		"no stage yet":                         {func(e *Evidence) { e.Stage, e.Share = 0, 0 }, Advance, FirstStage},
		"another unit goes first":              {func(e *Evidence) { e.Stage, e.Waits = 0, string(WaitsForLead) }, Hold, WaitsForLead},
		"no machines in this tier":             {func(e *Evidence) { e.Machines = 0 }, Promote, NoMachines},
		"no machines, and a person must look":  {func(e *Evidence) { e.Machines, e.Auto = 0, false }, Hold, NeedsPerson},
		"two per cent pending":                 {func(e *Evidence) { e.Exposed, e.Pending = 1000, 20 }, Hold, PendingOutcomes},
		"less than two per cent pending":       {func(e *Evidence) { e.Exposed, e.Pending = 1000, 19 }, Advance, Healthy},
		"half have come":                       {func(e *Evidence) { e.Came = 15 }, Hold, PendingOutcomes},
		"half have come and nobody more will":  {func(e *Evidence) { e.Came, e.Age = 15, 3*3600 }, Advance, Healthy},
		"nobody came":                          {func(e *Evidence) { e.Came, e.Age = 0, 3*3600 }, Hold, NobodyCame},
		"nobody came for a day":                {func(e *Evidence) { e.Came, e.Age = 0, 24*3600 }, Advance, Healthy},
		"all machines are of a few accounts":   {func(e *Evidence) { e.Treated = Tally{} }, Hold, NoEvidence},
		"it does not go in":                    {func(e *Evidence) { e.Soft = 10 }, Hold, SoftFailures},
		"a tenth fails":                        {func(e *Evidence) { e.Treated = Tally{3, 30} }, Advance, Healthy},
		"a sixth fails":                        {func(e *Evidence) { e.Treated = Tally{5, 30} }, Hold, Failing},
		"a sixth fails, of the controls too":   {func(e *Evidence) { e.Treated, e.Control = Tally{5, 30}, Tally{20, 120} }, Advance, Healthy},
		"a sixth fails, there are no others":   {func(e *Evidence) { e.Treated, e.Control = Tally{5, 30}, Tally{} }, Advance, Healthy},
		"a sixth fails, and a person knows":    {func(e *Evidence) { e.Treated, e.Told = Tally{5, 30}, true }, Promote, ByPerson},
		"a sibling is halted":                  {func(e *Evidence) { e.Siblings = 1 }, Hold, SiblingHalted},
		"two siblings are halted":              {func(e *Evidence) { e.Siblings = 2 }, Halt, TestSiblings},
		"everybody has it":                     {func(e *Evidence) { e.Share = patch.Everyone }, Promote, Healthy},
		"everybody of the last tier has it":    {func(e *Evidence) { e.Share, e.Last = patch.Everyone, true }, Complete, Healthy},
		"everybody, and a person must look":    {func(e *Evidence) { e.Share, e.Auto = patch.Everyone, false }, Hold, NeedsPerson},
		"everybody of the last, no person":     {func(e *Evidence) { e.Share, e.Auto, e.Last = patch.Everyone, false, true }, Complete, Healthy},
		"a person will not wait":               {func(e *Evidence) { e.Pending, e.Told = 30, true }, Promote, ByPerson},
		"a person does not outrank a test":     {func(e *Evidence) { e.Told, e.Hits = true, 2 }, Halt, TestCOops},
		"e just below 1/α":                     {func(e *Evidence) { e.E[0] = nats(math.Log(4/2e-5) - 1e-3) }, Advance, Healthy},
		"e just above 1/α":                     {func(e *Evidence) { e.E[0] = nats(math.Log(4/2e-5) + 1e-3) }, Halt, TestA},
		"the source above 1/α":                 {func(e *Evidence) { e.SourceE[3] = nats(math.Log(4/2e-5) + 1e-3) }, Halt, TestASource},
		"three early deaths":                   {func(e *Evidence) { e.Controls, e.Trip = 29, Tally{3, 3} }, Halt, TestB},
		"three early deaths, enough controls":  {func(e *Evidence) { e.Controls, e.Trip = 30, Tally{3, 3} }, Advance, Healthy},
		"three early deaths after a resume":    {func(e *Evidence) { e.Controls, e.Trip, e.TripOff = 0, Tally{3, 3}, true }, Advance, Healthy},
		"one oops":                             {func(e *Evidence) { e.Hits = 1 }, Advance, Healthy},
		"a fifth silent":                       {func(e *Evidence) { e.Silent, e.Seen = Pair{5, 0}, Pair{25, 20} }, Advance, Healthy},
		"one crash, of the only account":       {func(e *Evidence) { e.Crashes, e.Alone, e.Tried = 1, true, 50 }, Halt, TestDCrash},
		"one crash, of more than fifty":        {func(e *Evidence) { e.Crashes, e.Alone, e.Tried = 1, true, 51 }, Advance, Healthy},
		"one crash, of several accounts":       {func(e *Evidence) { e.Crashes, e.Tried = 1, 1 }, Advance, Healthy},
		"two crashes of a thousand":            {func(e *Evidence) { e.Crashes, e.Tried = 2, 1000 }, Halt, TestDCrash},
		"two crashes of more than a thousand":  {func(e *Evidence) { e.Crashes, e.Alone, e.Tried = 2, true, 1001 }, Advance, Healthy},
		"all tiers have it":                    {func(e *Evidence) { e.Done, e.Share = true, patch.Everyone }, Hold, Through},
		"all tiers have it, and it kills":      {func(e *Evidence) { e.Done, e.Controls, e.Trip = true, 0, Tally{3, 3} }, Halt, TestB},
		"nothing is known for a day":           {func(e *Evidence) { e.Treated, e.Age = Tally{}, 24*3600 }, Advance, NoEvidence},
		"more than a fifth silent":             {func(e *Evidence) { e.Silent, e.Seen = Pair{10, 0}, Pair{48, 60} }, Halt, TestCSilence},
		"more than a fifth, perhaps by chance": {func(e *Evidence) { e.Silent, e.Seen = Pair{5, 0}, Pair{24, 20} }, Advance, Healthy},
		"more than a fifth of four":            {func(e *Evidence) { e.Silent, e.Seen = Pair{4, 0}, Pair{4, 20} }, Advance, Healthy},
		"silent, with too few controls":        {func(e *Evidence) { e.Silent, e.Seen = Pair{5, 0}, Pair{5, 19} }, Advance, Healthy},
		"silent, and a twentieth of controls":  {func(e *Evidence) { e.Silent, e.Seen = Pair{5, 1}, Pair{5, 20} }, Advance, Healthy},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			e := ripe()
			tc.change(&e)
			if v := Defaults().Judge(e); v.Action != tc.action || v.Reason != tc.reason {
				t.Errorf("verdict is %s, %s; want %s, %s", v.Action, v.Reason, tc.action, tc.reason)
			}
		})
	}
}

func TestStagesLeaveControls(t *testing.T) {
	tests := map[string]struct {
		machines, share int64
		treated         float64 // healthy so far
		ramp            []int64
		want            int64
	}{
		"thirty of ten thousand":            {10_000, 0, 0, nil, 3000},
		"a third of few":                    {60, 0, 0, nil, 333_334},
		"a third, however much is known":    {1000, 0, 1e6, nil, 333_334},
		"all but the holdback":              {1000, 333_334, 1e6, nil, 950_000},
		"everybody":                         {1000, 950_000, 1e6, nil, patch.Everyone},
		"everybody of very few":             {15, 0, 1e6, nil, patch.Everyone},
		"a ramp":                            {1000, 0, 1e6, []int64{50_000, 250_000}, 50_000},
		"the second step of a ramp":         {1000, 50_000, 1e6, []int64{50_000, 250_000}, 250_000},
		"after a ramp":                      {1000, 250_000, 1e6, []int64{50_000, 250_000}, patch.Everyone},
		"a ramp steeper than the evidence":  {100_000, 0, 0, []int64{50_000}, 300},
		"at least one more, of very many":   {1_000_000_000, 5, 0, nil, 6},
		"a step of a ramp for two machines": {40, 0, 1e6, []int64{50_000, 250_000}, 250_000},
		"all steps for fewer than three":    {11, 0, 1e6, []int64{50_000, 250_000}, patch.Everyone},
		"nobody is held back of fifty":      {50, 333_334, 1e6, nil, patch.Everyone},
		"three are held back of sixty":      {60, 333_334, 1e6, nil, 950_000},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			e := ripe()
			e.Machines, e.Share, e.Ramp, e.Treated.Of = tc.machines, tc.share, tc.ramp, tc.treated
			v := Defaults().Judge(e)
			if tc.treated == 0 {
				e.Stage = 0
				v = Defaults().Judge(e)
			}
			if v.Action != Advance || v.Share != tc.want {
				t.Errorf("%s to %d, want %d", v.Action, v.Share, tc.want)
			}
		})
	}
}

// A late unit has siblings for evidence, and few machines at a time.
func TestALateUnitHasNoFirstThird(t *testing.T) {
	e := ripe()
	e.Late, e.Stage, e.Share, e.Machines, e.Treated = true, 0, 0, 1000, Tally{0, 2000}
	if v := Defaults().Judge(e); v.Share != 950_000 {
		t.Errorf("first stage is %d, want all but the holdback", v.Share)
	}
}

func TestControlsAreFourOfEachTreatedMachine(t *testing.T) {
	tests := map[string]struct {
		machines, from, to int64
		want               float64 // controls
	}{
		"of a small stage": {10_000, 0, 3000, 120},
		"as many as rest":  {1000, 333_334, 950_000, 50},
		"at most so many":  {10_000_000, 0, 100_000, 20_000},
		"none of nobody":   {1000, 950_000, patch.Everyone, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			sham := Defaults().Pace.sham(Evidence{Machines: tc.machines, Share: tc.from}, tc.to)
			got := float64(tc.machines) * float64(patch.Everyone-tc.to) / patch.Everyone * float64(sham) / patch.Everyone
			if math.Abs(got-tc.want) > 1+tc.want/1000 {
				t.Errorf("%.1f controls, want %v", got, tc.want)
			}
		})
	}
}
