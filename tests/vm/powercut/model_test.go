package main

import (
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
)

func version(sequence uint64) *patch {
	name := "p" + string(rune('0'+sequence))
	return &patch{Module: lab.Module{Name: name}, version: name, sequence: sequence, answer: "answer of " + name}
}

// seen makes an observation of standings, "p1 accepted p2 suspect", with a floor
// and a version of the metadata. In force is what inForce names.
func seen(standings string, floor, meta int, inForce string) *observation {
	o := &observation{
		answer: unpatched, standings: map[string]string{}, revoked: map[string]bool{},
		floor: floor, meta: meta, clock: time.Unix(int64(meta), 0),
	}
	words := strings.Fields(standings)
	for i := 0; i+1 < len(words); i += 2 {
		name := strings.TrimSuffix(words[i], "!") // revoked
		o.standings[name], o.revoked[name] = words[i+1], name != words[i]
	}
	if inForce != "" {
		o.loaded, o.answer = []string{inForce}, "answer of "+inForce
	}
	return o
}

// The patches of the test below.
var one, two, three = version(1), version(2), version(3)

// accepted1 is a machine whose patch 1 was accepted, with metadata 1.
func accepted1(m *model) {
	m.applying(one, 1)
	m.applied(one)
	m.accepting(one)
	m.acceptedNow(one)
}

func TestModelKnowsWhatWasPromised(t *testing.T) {
	tests := map[string]struct {
		story  func(m *model)
		right  []*observation
		broken []*observation
	}{
		"a patch was sent": {
			func(m *model) { m.applying(one, 1) },
			[]*observation{seen("", 0, 0, ""), seen("", 0, 1, ""), seen("p1 suspect", 1, 1, "")},
			[]*observation{seen("", 2, 1, ""), seen("", 0, 2, ""), seen("p1 trial", 1, 1, "p1"), seen("p1 suspect", 1, 1, "p1"), seen("p3 suspect", 1, 1, "")},
		},
		"the kernel had a patch": {
			func(m *model) { m.applying(one, 1); m.entered(one) },
			[]*observation{seen("p1 suspect", 1, 1, "")},
			[]*observation{seen("", 1, 1, ""), seen("p1 suspect", 0, 1, ""), seen("p1 suspect", 1, 0, ""), seen("p1 quarantined", 1, 1, "")},
		},
		"a patch was applied": {
			func(m *model) { m.applying(one, 1); m.applied(one) },
			[]*observation{seen("p1 suspect", 1, 1, "")},
			[]*observation{seen("p1 accepted", 1, 1, "p1"), seen("", 0, 0, "")},
		},
		"a patch was applied and the machine shut down": {
			func(m *model) { m.applying(one, 1); m.applied(one); m.goneDown(quarantined) },
			[]*observation{seen("p1 quarantined", 1, 1, "")},
			[]*observation{seen("p1 suspect", 1, 1, "")},
		},
		"the first patch was to be accepted": {
			func(m *model) { m.applying(one, 1); m.applied(one); m.accepting(one) },
			[]*observation{seen("p1 suspect", 1, 1, ""), seen("p1 accepted", 1, 1, "p1")},
			[]*observation{seen("p1 accepted", 1, 1, ""), seen("p1 suspect", 1, 1, "p1")},
		},
		"a patch was accepted": {
			accepted1,
			[]*observation{seen("p1 accepted", 1, 1, "p1")},
			[]*observation{seen("p1 accepted", 1, 1, ""), seen("p1 suspect", 1, 1, ""), seen("p1 quarantined", 1, 1, "")},
		},
		"a newer one was applied": {
			func(m *model) { accepted1(m); m.applying(two, 2); m.applied(two) },
			[]*observation{seen("p1 accepted p2 suspect", 2, 2, "p1")},
			[]*observation{seen("p1 accepted p2 suspect", 2, 2, "p2"), seen("p1 accepted p2 suspect", 1, 2, "p1"), seen("p1 quarantined p2 suspect", 2, 2, "")},
		},
		"a newer one was to be accepted": {
			func(m *model) { accepted1(m); m.applying(two, 2); m.applied(two); m.accepting(two) },
			[]*observation{seen("p1 accepted p2 suspect", 2, 2, "p1"), seen("p1 accepted p2 accepted", 2, 2, "p2")},
			[]*observation{seen("p1 accepted p2 accepted", 2, 2, "p1")},
		},
		"a newer one was accepted and revoked": {
			func(m *model) {
				accepted1(m)
				m.applying(two, 2)
				m.applied(two)
				m.accepting(two)
				m.acceptedNow(two)
				m.learning(3, two)
				m.learnt(two)
			},
			[]*observation{seen("p1 accepted p2! quarantined", 2, 3, "p1")},
			[]*observation{seen("p1 accepted p2 quarantined", 2, 3, "p1"), seen("p1 accepted p2! accepted", 2, 3, "p1"), seen("p1 accepted p2! quarantined", 2, 2, "p1")},
		},
		"a third one was accepted after that": {
			func(m *model) {
				accepted1(m)
				m.applying(two, 2)
				m.applied(two)
				m.accepting(two)
				m.acceptedNow(two)
				m.fate(two.Name).revoked = true // and the power went before it was taken out
				m.applying(three, 3)
				m.applied(three)
				m.accepting(three)
				m.acceptedNow(three)
			},
			[]*observation{seen("p1 accepted p2! quarantined p3 accepted", 3, 3, "p3")},
			[]*observation{seen("p1 quarantined p2! accepted p3 accepted", 3, 3, "p3"), seen("p1 accepted p2! quarantined p3 accepted", 3, 3, "p1")},
		},
		"it was to be revoked": {
			func(m *model) { accepted1(m); m.learning(2, one) },
			[]*observation{seen("p1 accepted", 1, 1, "p1"), seen("p1 accepted", 1, 2, "p1"), seen("p1! accepted", 1, 2, ""), seen("p1! quarantined", 1, 2, "")},
			[]*observation{seen("p1! accepted", 1, 2, "p1"), seen("p1 suspect", 1, 2, "")},
		},
		"it was removed": {
			func(m *model) { accepted1(m); m.removing(one); m.removed(one) },
			[]*observation{seen("p1 quarantined", 1, 1, "")},
			[]*observation{seen("p1 accepted", 1, 1, "p1")},
		},
		"a boot was cut": {
			func(m *model) { accepted1(m); m.bootCut() },
			[]*observation{seen("p1 accepted", 1, 1, "p1")},
			[]*observation{seen("p1 suspect", 1, 1, "")},
		},
		"two boots were": {
			func(m *model) { accepted1(m); m.bootCut(); m.bootCut() },
			[]*observation{seen("p1 accepted", 1, 1, "p1"), seen("p1 suspect", 1, 1, "")},
			[]*observation{seen("p1 quarantined", 1, 1, "")},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			check := func(o *observation) []string {
				m := new(model)
				tc.story(m)
				m.goneDown(suspect)
				return m.check(o)
			}
			for _, o := range tc.right {
				if violations := check(o); len(violations) > 0 {
					t.Errorf("%+v: %q", o, violations)
				}
			}
			for _, o := range tc.broken {
				if violations := check(o); len(violations) == 0 {
					t.Errorf("%+v is no violation", o)
				}
			}
		})
	}
}

func TestWhatWasSeenIsPromised(t *testing.T) {
	m := new(model)
	m.applying(one, 1)
	m.goneDown(suspect)
	if violations := m.check(seen("p1 suspect", 1, 1, "")); len(violations) > 0 {
		t.Fatal(violations)
	}
	for name, o := range map[string]*observation{
		"an entry is gone":       seen("", 1, 1, ""),
		"the floor is gone":      seen("p1 suspect", 0, 1, ""),
		"the metadata went back": seen("p1 suspect", 1, 0, ""),
	} {
		again := *m
		again.fates = []*fate{{patch: one, may: []string{suspect}}}
		if violations := again.check(o); len(violations) == 0 {
			t.Errorf("%s: no violation", name)
		}
	}
}

func TestJournalMayForgetTheOldest(t *testing.T) {
	m := new(model)
	var rest strings.Builder
	for i := range uint64(remembered + 2) {
		p := version(i + 1)
		m.applying(p, int(i)+1)
		m.entered(p)
		if i >= 2 {
			rest.WriteString(p.Name + " suspect ")
		}
	}
	m.goneDown(suspect)
	if violations := m.check(seen(rest.String(), remembered+2, remembered+2, "")); len(violations) > 0 {
		t.Error(violations)
	}
	if violations := m.check(seen("", remembered+2, remembered+2, "")); len(violations) != remembered {
		t.Errorf("%d violations, want %d", len(violations), remembered)
	}
}

func TestStateIsRead(t *testing.T) {
	o := new(observation)
	journal := `{"entries":[{"name":"a","standing":"trial"},{"name":"b","standing":"accepted","rollout":"revoked"}],"floors":{"00ff":{"sequence":7,"digest":""}},"clean_boot":"b1"}`
	trust := `{"Root":"e30=","Timestamp":"eyJzaWduZWQiOnsidmVyc2lvbiI6NX19","Time":"2026-01-02T03:04:05Z"}`
	if err := o.parse([]byte(journal), []byte(trust)); err != nil {
		t.Fatal(err)
	}
	if o.standings["a"] != trial || o.standings["b"] != accepted || o.revoked["a"] || !o.revoked["b"] ||
		o.floor != 7 || o.meta != 5 || o.cleanBoot != "b1" || o.clock.Year() != 2026 {
		t.Errorf("observation = %+v", o)
	}
	for name, files := range map[string][2]string{
		"a torn journal":   {journal[:40], trust},
		"an empty journal": {"", trust},
		"a torn trust":     {journal, trust[:40]},
		"a torn timestamp": {journal, `{"Timestamp":"eyJz"}`},
	} {
		if err := new(observation).parse([]byte(files[0]), []byte(files[1])); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
}

func TestKernelsLogTellsWhatWentIn(t *testing.T) {
	log := "[ 1.0] livepatch: enabling patch 'lkp_a_1'\nnoise [ 2.0] livepatch: 'lkp_a_1': patching complete\n[ 3.0] livepatch: enabling patch 'lkp_a_2'\n[ 4.0] livepatch: enabling pat"
	if got := strings.Join(entered([]byte(log)), " "); got != "lkp_a_1 lkp_a_2" {
		t.Errorf("entered = %s", got)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"entries":[{"name":"a","standing":"trial"}],"floors":{"00":{"sequence":7}}}`), []byte(`{"Timestamp":"eyJzaWduZWQiOnsidmVyc2lvbiI6NX19"}`))
	f.Add([]byte("{}"), []byte("{}"))
	f.Fuzz(func(t *testing.T, journal, trust []byte) {
		o := new(observation)
		if o.parse(journal, trust) == nil && o.standings == nil {
			t.Error("a state without standings was read")
		}
	})
}
