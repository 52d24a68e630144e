package controller

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"testing"
	"time"

	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// A large state is written while the rule goes on. It has to be that of the step whose
// number it has, for the steps after it are taken again.
func TestAStateThatIsWrittenAsideIsThatOfItsStep(t *testing.T) {
	begin := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	rule, err := rollout.New(rollout.Defaults(), "salt", Tiers())
	if err != nil {
		t.Fatal(err)
	}
	step := func(after time.Duration, events ...rollout.Event) {
		t.Helper()
		if _, err := rule.Step(begin.Add(after), events); err != nil {
			t.Fatal(err)
		}
	}
	step(0, rollout.Event{Kind: rollout.Population, Cell: "k", Tier: "edge", Source: "s", Machines: 2 * many, Accounts: 1})
	begun, alive := make([]rollout.Event, many), make([]rollout.Event, many)
	for i := range begun {
		var m rollout.Machine
		binary.BigEndian.PutUint64(m[:], uint64(i)+1)
		begun[i] = rollout.Event{Kind: rollout.Intent, Machine: m, Cell: "k", Tier: "edge", Account: "a"}
		alive[i] = rollout.Event{Kind: rollout.Alive, Machine: m}
	}
	step(time.Second, begun...)
	want := encode(t, rule)

	p := &process{key: store.Key{Vendor: "v", Version: "1"}, rule: rule, step: 2, events: keepAfter}
	if _, due, err := p.keep(); due || err != nil {
		t.Fatalf("a state of %d machines was written at once, or not at all: %v", many, err)
	}
	step(time.Minute, alive...)
	p.step = 3
	k := <-p.packing
	if k.err != nil || k.Step != 2 || k.Key != p.key {
		t.Fatalf("state of step %d of %v, %v; want that of step 2 of %v", k.Step, k.Key, k.err, p.key)
	}
	again, err := unpack(k.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := encode(t, again); !bytes.Equal(got, want) {
		t.Error("the state is not that of the step whose number it has")
	}
	if bytes.Equal(encode(t, rule), want) {
		t.Error("the step after it changed nothing, so this test saw nothing")
	}
}

// A round does not wait for a state, and keeps it once.
func TestAStateThatWasWrittenAsideIsKeptOnce(t *testing.T) {
	done := make(chan packed, 1)
	p := &process{packing: done, events: keepAfter}
	if _, due, err := p.keep(); due || err != nil {
		t.Errorf("while it is written: due %v, %v", due, err)
	}
	done <- packed{RuleState: store.RuleState{Step: 7}, took: time.Hour}
	if s, due, err := p.keep(); !due || s.Step != 7 || err != nil {
		t.Errorf("when it is written: step %d, due %v, %v", s.Step, due, err)
	}
	if _, due, err := p.keep(); due || err != nil {
		t.Errorf("after that: due %v, %v; want a rest", due, err)
	}
}

func encode(t *testing.T, r *rollout.Rollout) []byte {
	t.Helper()
	b, err := json.Marshal(r.State())
	if err != nil {
		t.Fatal(err)
	}
	return b
}
