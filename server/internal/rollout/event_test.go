package rollout

import (
	"errors"
	"testing"
	"time"
)

func TestRefusesMalformedEvents(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 1000))
	m := id(1)
	long := string(make([]byte, maxName+1))
	tests := map[string]Event{
		"no kind":                        {},
		"unknown kind":                   {Kind: "exploded"},
		"intent of no machine":           {Kind: Intent, Cell: "k", Tier: "stable"},
		"intent of no cell":              {Kind: Intent, Machine: m, Tier: "stable"},
		"intent of an unknown tier":      {Kind: Intent, Machine: m, Cell: "k", Tier: "gold"},
		"sham of an unknown tier":        {Kind: Sham, Machine: m, Cell: "k"},
		"sign of life of no machine":     {Kind: Alive},
		"failure of an unknown kind":     {Kind: Failed, Machine: m, Failure: "sad"},
		"failure of no machine":          {Kind: Failed, Failure: Oops},
		"signature that is too long":     {Kind: Failed, Machine: m, Failure: Oops, Signature: long},
		"account that is too long":       {Kind: Intent, Machine: m, Cell: "k", Tier: "stable", Account: long},
		"population of no cell":          {Kind: Population, Source: "src", Tier: "stable"},
		"population of no source":        {Kind: Population, Cell: "k", Tier: "stable"},
		"population of another source":   {Kind: Population, Cell: "k", Source: "src2", Tier: "stable"},
		"fewer than no machines":         {Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: -1},
		"more accounts than machines":    {Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: 1, Accounts: 2},
		"promotion of an unknown unit":   {Kind: Promoted, Unit: "q", By: []string{"ann"}},
		"promotion by nobody":            {Kind: Promoted, Unit: "k"},
		"release by a very long person":  {Kind: Released, Unit: "k", By: []string{long}},
		"resume by one person":           {Kind: Resumed, Unit: "k", By: []string{"ann"}},
		"population of very many":        {Kind: Population, Cell: "k", Source: "src", Tier: "stable", Machines: maxMachines + 1},
		"population of a tier we lack":   {Kind: Population, Cell: "k", Source: "src", Tier: "gold"},
		"offer of an unknown tier":       {Kind: Offered, Machine: m, Cell: "k"},
		"departure of no machine":        {Kind: Left},
		"soft failure of no machine":     {Kind: Soft},
		"failure that was only silence":  {Kind: Failed, Machine: m, Failure: "silent"},
		"resume of an unknown unit":      {Kind: Resumed, Unit: "", By: []string{"ann", "bob"}},
		"release of an unknown unit":     {Kind: Released, Unit: "small", By: []string{"ann"}},
		"a tier with a very long name":   {Kind: Intent, Machine: m, Cell: "k", Tier: long},
		"a cell with a very long name":   {Kind: Intent, Machine: m, Cell: long, Tier: "stable"},
		"a source with a very long name": {Kind: Population, Cell: "k", Source: long, Tier: "stable"},
	}
	for name, e := range tests {
		t.Run(name, func(t *testing.T) {
			before := dump(b.r.State())
			good := b.of(1, Treated, "k", "stable")[0]
			if _, err := b.r.Step(b.now.Add(time.Hour), []Event{good, e}); !errors.Is(err, errEvent) {
				t.Errorf("Step = %v, want a refusal", err)
			}
			if err := b.r.Check(e); !errors.Is(err, errEvent) {
				t.Errorf("Check = %v, want a refusal", err)
			}
			if err := b.r.Check(good); err != nil {
				t.Errorf("Check of a good one: %v", err)
			}
			if after := dump(b.r.State()); after != before {
				t.Errorf("a refused batch had an effect:\n%s\n%s", before, after)
			}
		})
	}
}

func TestRefusesThePast(t *testing.T) {
	b := newBed(t, nil)
	b.step(population("k", "stable", 1000))
	if _, err := b.r.Step(b.now.Add(-time.Second), nil); !errors.Is(err, ErrPast) {
		t.Errorf("Step = %v, want ErrPast", err)
	}
}
