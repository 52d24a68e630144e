package synthetic_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"livepatch/publisher/internal/module"
	"livepatch/publisher/internal/synthetic"
)

func TestAdditionsAreWhatTheRealOnesAre(t *testing.T) {
	all, err := synthetic.Additions(3, 2)
	if err != nil || len(all) != 6 {
		t.Fatalf("%d additions, %v; want 6", len(all), err)
	}
	for _, a := range all {
		m := a.Module
		if err := m.Validate(); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
		n := module.Naming{
			Vendor: "debian", Release: m.Release, KernelVersion: a.Kernel.Version,
			Flavour: m.Flavour, Version: m.Version, Sequence: m.Sequence,
		}
		if err := n.Check(m.Name); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	again, err := synthetic.Additions(3, 2)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, again); diff != "" {
		t.Errorf("a second time (-first +second):\n%s", diff)
	}
}
