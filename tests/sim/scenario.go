package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// A scenario is a fleet, a patch, and what befalls the two. It is a file of
// folder scenarios.
type scenario struct {
	Name     string `yaml:"-"`     // of the file, without its ending
	Order    int    `yaml:"order"` // in the report
	About    string `yaml:"about"` // one line for a person
	Machines int    `yaml:"machines"`
	Kernels  int    `yaml:"kernels"` // of equal size
	Tiers    []tier `yaml:"tiers"`
	// Loss is the share of the machines that go away in an hour, patch or not: one
	// half crashes and is back within minutes, the other is off for some hours.
	Loss  float64       `yaml:"loss"`
	Limit time.Duration `yaml:"limit"` // when to stop looking
	Patch harm          `yaml:"patch"`

	Night     absence `yaml:"night"`     // machines are shut down, in order
	Outage    absence `yaml:"outage"`    // the service does not run; Share has no meaning
	Partition absence `yaml:"partition"` // machines cannot reach the service
	Liar      liar    `yaml:"liar"`
	// Expect is what is a fault if it is not so, apart from halts of patches that are
	// well and of patches that are not.
	Expect bounds `yaml:"expect"`
}

// bounds are limits on the machines harmed; 0 is none.
type bounds struct {
	Person     bool    `yaml:"person"` // a person may have to let the patch go on
	Harmed     int     `yaml:"harmed"`
	OfBaseline float64 `yaml:"of_baseline"` // share of the baseline's
}

// A tier is a part of the fleet.
type tier struct {
	Name     string  `yaml:"name"`
	Share    float64 `yaml:"share"`
	Accounts int     `yaml:"accounts"` // that share its machines
}

// A harm is what the patch does to a machine. The zero harm is a patch that is well.
type harm struct {
	Kills  float64       `yaml:"kills"`  // share of the machines below that it harms
	After  time.Duration `yaml:"after"`  // from insertion to harm
	Within time.Duration `yaml:"within"` // mean of a further wait, exponential
	How    how           `yaml:"how"`
	// Kernels is how many kernels it harms, 0 for all; Hardware the share of
	// machines of the class that it harms, 0 for all.
	Kernels  int     `yaml:"kernels"`
	Hardware float64 `yaml:"hardware"`
	// Stalls is the share of machines on which its transition never ends.
	Stalls float64 `yaml:"stalls"`
}

// A how says in which way a machine is harmed.
type how string

const (
	silent how = "silent" // it hangs, or panics and stays down
	reboot how = "reboot" // it panics, and is back in some minutes
	oops   how = "oops"   // the kernel complains, and goes on
	hang   how = "hang"   // some of its work hangs until somebody resets it
)

// An absence is a time at which some machines cannot report.
type absence struct {
	At    time.Duration `yaml:"at"`
	For   time.Duration `yaml:"for"` // 0: there is none
	Share float64       `yaml:"share"`
}

// A liar is an account whose machines say what it likes.
type liar struct {
	Share float64 `yaml:"share"` // of the machines of each tier
	Says  lie     `yaml:"says"`
}

type lie string

const (
	saysFailed lie = "failed" // that the patch has killed it
	saysWell   lie = "well"   // that it is well, whatever others see
)

var errScenario = errors.New("malformed scenario")

// parseScenario reads a file. A field that is not known is an error.
func parseScenario(name string, b []byte) (scenario, error) {
	s := scenario{Name: name}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		return scenario{}, fmt.Errorf("cannot read scenario %q: %w: %w", name, errScenario, err)
	}
	if err := s.check(); err != nil {
		return scenario{}, fmt.Errorf("cannot read scenario %q: %w", name, err)
	}
	return s, nil
}

// loadScenarios reads all files of a folder, in the order of the report.
func loadScenarios(fsys fs.FS, dir string) ([]scenario, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var all []scenario
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("cannot read scenarios: %w", err)
		}
		base := path.Base(name)
		s, err := parseScenario(base[:len(base)-len(".yaml")], b)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b scenario) int { return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name)) })
	return all, nil
}

// Limits on scenarios. They keep a typing error from filling the memory.
const (
	maxMachines = 10_000_000
	maxKernels  = 200
	maxHours    = 24 * 30
)

func (s scenario) check() error {
	checks := []struct {
		name string
		ok   bool
	}{
		{"about", s.About != ""},
		{"machines", s.Machines > 0 && s.Machines <= maxMachines},
		{"kernels", s.Kernels > 0 && s.Kernels <= min(maxKernels, s.Machines)},
		{"loss", share(s.Loss)},
		{"limit", s.Limit >= time.Minute && s.Limit <= maxHours*time.Hour},
		{"patch.kills", share(s.Patch.Kills)}, {"patch.hardware", share(s.Patch.Hardware)}, {"patch.stalls", share(s.Patch.Stalls)},
		{"patch.kernels", s.Patch.Kernels >= 0 && s.Patch.Kernels <= s.Kernels},
		{"patch.after", s.Patch.After >= 0 && s.Patch.Within >= 0},
		{"patch.how", (s.Patch.How == "") == (s.Patch.Kills == 0) && slices.Contains([]how{"", silent, reboot, oops, hang}, s.Patch.How)},
		{"night", s.Night.ok()}, {"outage", s.Outage.ok()}, {"partition", s.Partition.ok()},
		{"expect", s.Expect.Harmed >= 0 && share(s.Expect.OfBaseline)},
		{"liar", share(s.Liar.Share) && slices.Contains([]lie{"", saysFailed, saysWell}, s.Liar.Says)},
	}
	for _, c := range checks {
		if !c.ok {
			return fmt.Errorf("%w: %s is out of range", errScenario, c.name)
		}
	}
	return checkTiers(s.Tiers)
}

func checkTiers(tiers []tier) error {
	sum := 0.
	for _, t := range tiers {
		sum += t.Share
		if t.Name == "" || !share(t.Share) || t.Accounts < 1 || t.Accounts > 1<<20 {
			return fmt.Errorf("%w: tier %q is out of range", errScenario, t.Name)
		}
	}
	if sum < 0.999 || sum > 1.001 {
		return fmt.Errorf("%w: the tiers share %v of the machines", errScenario, sum)
	}
	return nil
}

func share(f float64) bool { return f >= 0 && f <= 1 }

func (a absence) ok() bool { return share(a.Share) && a.At >= 0 && a.For >= 0 }

// during tells whether a second of the simulation is in the absence.
func (a absence) during(now int64) bool {
	from := int64(a.At / time.Second)
	return now >= from && now < from+int64(a.For/time.Second)
}

// healthy tells whether the patch harms nobody, so that a halt is a false one.
func (s scenario) healthy() bool { return s.Patch.Kills == 0 }
