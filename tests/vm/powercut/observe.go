package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// unpatched is the beginning of what a kernel without a patch answers.
const unpatched = "console=ttyS0"

// An observation is the state of a machine, as the kernel, the files and the
// loader tell it.
type observation struct {
	answer    string            // of /proc/cmdline
	loaded    []string          // livepatches in the kernel
	standings map[string]string // of the journal's file, by name
	revoked   map[string]bool   // as the journal's file says
	cleanBoot string            // of the journal's file
	floor     int               // sequence number
	meta      int               // version of the timestamp that is trusted
	clock     time.Time
}

// stateDir is where the loader keeps its state.
const stateDir = "/var/lib/livepatch-loader/"

// observe looks at a machine. The loader is asked too: what it says must agree
// with its files.
func observe(ctx context.Context, m *machine.Machine) (*observation, error) {
	res, err := m.Run(ctx, "cat /proc/cmdline; grep -o '^lkp_[^ ]*' /proc/modules | sort")
	if err != nil {
		return nil, err
	}
	answer, loaded, _ := strings.Cut(res.Stdout, "\n")
	o := &observation{answer: answer, loaded: strings.Fields(loaded)}
	journal, err := readState(ctx, m, "journal.json")
	if err != nil {
		return nil, err
	}
	trust, err := readState(ctx, m, "trust.json")
	if err != nil {
		return nil, err
	}
	if err := o.parse(journal, trust); err != nil {
		return nil, err
	}
	return o, o.agree(ctx, m)
}

// readState reads a file of the loader's state. One that is not there is empty.
func readState(ctx context.Context, m *machine.Machine, name string) ([]byte, error) {
	res, err := m.Run(ctx, "cd "+stateDir+" && if [ -e "+name+" ]; then cat "+name+"; else echo {}; fi")
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("cannot read %s: %s", name, res.Stderr)
	}
	return []byte(res.Stdout), err
}

// parse reads the loader's files.
func (o *observation) parse(journal, trust []byte) error {
	var j struct {
		Entries []struct{ Name, Standing, Rollout string }
		Floors  map[string]struct{ Sequence int }
		Clean   string `json:"clean_boot"`
	}
	if err := json.Unmarshal(journal, &j); err != nil {
		return fmt.Errorf("cannot read journal %.100q: %w", journal, err)
	}
	o.standings, o.revoked, o.cleanBoot = map[string]string{}, map[string]bool{}, j.Clean
	for _, e := range j.Entries {
		o.standings[e.Name], o.revoked[e.Name] = e.Standing, e.Rollout == "revoked"
	}
	for _, f := range j.Floors { // there is one kernel
		o.floor = f.Sequence
	}
	var t struct {
		Timestamp []byte
		Time      time.Time
	}
	if err := json.Unmarshal(trust, &t); err != nil {
		return fmt.Errorf("cannot read trust %.100q: %w", trust, err)
	}
	o.clock = t.Time
	if len(t.Timestamp) == 0 {
		return nil
	}
	var timestamp struct{ Signed struct{ Version int } }
	if err := json.Unmarshal(t.Timestamp, &timestamp); err != nil {
		return fmt.Errorf("cannot read trusted timestamp: %w", err)
	}
	o.meta = timestamp.Signed.Version
	return nil
}

// agree returns an error unless the loader says what the files say.
func (o *observation) agree(ctx context.Context, m *machine.Machine) error {
	st, err := lab.AgentOf(m).Status(ctx)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, lp := range st.GetLivepatches() {
		seen[lp.GetName()] = true
		said := strings.ToLower(strings.TrimPrefix(lp.GetStanding().String(), "STANDING_"))
		in := slices.Contains(o.loaded, lp.GetName())
		if said != o.standings[lp.GetName()] || in != (lp.GetState().String() == "STATE_ENABLED") {
			return fmt.Errorf("status says %v, the journal %q, loaded: %t", lp, o.standings[lp.GetName()], in)
		}
	}
	for name := range o.standings {
		if !seen[name] {
			return fmt.Errorf("status does not know %s, which stands in the journal", name)
		}
	}
	return nil
}

// A version that is six digits long can be written over another one.
const (
	firstVersion = 100000
	sample       = "100000"
)

// patches makes versions of a livepatch out of one that was built.
type patches struct {
	sample lab.Module
}

// newPatches builds the one.
func newPatches(ctx context.Context, l *lab.Lab) (*patches, error) {
	mod, err := l.Build(ctx, lab.Patch{Source: "answer", Version: sample, Answer: "patch-" + sample})
	if err != nil {
		return nil, err
	}
	// Its name as modinfo and as struct module have it; and what it answers.
	for text, n := range map[string]int{mod.Name + "\x00": 2, "patch-" + sample: 1} {
		if bytes.Count(mod.Content, []byte(text)) < n {
			return nil, fmt.Errorf("cannot rename module: it does not say %q %d times", text, n)
		}
	}
	return &patches{mod}, nil
}

// get returns the version with a sequence number. Only names differ, and they
// have one length, so the module is as if it had been built like this.
func (p *patches) get(sequence uint64) *patch {
	version := strconv.FormatUint(firstVersion+sequence, 10)
	return &patch{
		Module: lab.Module{
			Name:    strings.Replace(p.sample.Name, sample, version, 1),
			Content: bytes.ReplaceAll(p.sample.Content, []byte(sample), []byte(version)),
		},
		version: version, sequence: sequence, answer: "patch-" + version,
	}
}

// enabling is what the kernel logs when a livepatch is there and its transition
// begins.
var enabling = regexp.MustCompile(`livepatch: enabling patch '([^']*)'`)

// entered returns the names of the livepatches that the kernel says it has
// enabled, in a part of its log.
func entered(console []byte) (names []string) {
	for _, m := range enabling.FindAllSubmatch(console, -1) {
		names = append(names, string(m[1]))
	}
	return names
}
