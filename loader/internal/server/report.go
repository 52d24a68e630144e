package server

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"livepatch/loader/internal/journal"
	loaderv1 "livepatch/proto/loader/v1"
)

// maxBlockers bounds how many tasks a report names.
const maxBlockers = 16

// standing turns the journal's word into the contract's.
func standing(s journal.Standing) loaderv1.Standing {
	return loaderv1.Standing(loaderv1.Standing_value["STANDING_"+strings.ToUpper(string(s))])
}

// report tells what Status answers.
func (s *Server) report() (*loaderv1.StatusResponse, error) {
	f, err := s.Facts()
	trusted, terr := s.Gate.Trusted()
	if err := cmp.Or(err, terr); err != nil {
		return nil, err
	}
	names := s.Klp.List()
	for _, e := range s.Journal.All() {
		if !slices.Contains(names, e.Name) {
			names = append(names, e.Name)
		}
	}
	resp := &loaderv1.StatusResponse{RootVersion: trusted.RootVersion(), Kernel: &loaderv1.Kernel{
		Arch: f.Arch, Release: f.Release, BuildId: string(f.BuildID), BootId: f.BootID,
		LivepatchSupported: f.Livepatch, FtraceEnabled: f.Ftrace, ModulesDisabled: f.ModulesDisabled,
		SignatureEnforced: f.SigEnforced, Lockdown: f.Lockdown,
	}}
	for _, t := range f.Taints {
		resp.Kernel.Taints = append(resp.Kernel.Taints, &loaderv1.Taint{Bit: int32(t.Bit), Letter: t.Letter, Meaning: t.Meaning, Modules: t.Modules})
	}
	for _, name := range names {
		lp, err := s.livepatch(name)
		if err != nil {
			return nil, err
		}
		resp.Livepatches = append(resp.Livepatches, lp)
	}
	return resp, nil
}

// livepatch reports one livepatch.
func (s *Server) livepatch(name string) (*loaderv1.Livepatch, error) {
	state, err := s.Klp.State(name)
	if err != nil {
		return nil, err
	}
	lp := &loaderv1.Livepatch{Name: name, State: loaderv1.State(state)}
	blockers, count := s.Klp.Blockers(state, maxBlockers)
	for _, b := range blockers {
		lp.Blockers = append(lp.Blockers, &loaderv1.Blocker{Tid: int32(b.TID), Comm: b.Comm, Function: b.Function})
	}
	lp.BlockerCount = int32(count)
	if e, known := s.Journal.Find(name); known {
		lp.Standing = standing(e.Standing)
		lp.Version, lp.Sequence, lp.Digest = e.Version, e.Sequence, e.Digest[:]
		lp.Inserted = timestamppb.New(e.Inserted)
	}
	return lp, nil
}

// steps measures the parts of an Apply.
type steps struct {
	last time.Time
	list []*loaderv1.Step
}

func newSteps() *steps { return &steps{last: time.Now()} }

// done ends the part called name; the next one begins.
func (s *steps) done(name string) {
	now := time.Now()
	s.list = append(s.list, &loaderv1.Step{Name: name, Took: durationpb.New(now.Sub(s.last))})
	s.last = now
}
