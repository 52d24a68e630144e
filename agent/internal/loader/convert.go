package loader

import (
	"strings"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
)

func fromStatus(r *loaderv1.StatusResponse) Status {
	k := r.GetKernel()
	s := Status{
		Kernel: Kernel{
			Kernel:             patch.Kernel{Arch: k.GetArch(), Release: k.GetRelease(), BuildID: patch.BuildID(k.GetBuildId())},
			BootID:             k.GetBootId(),
			LivepatchSupported: k.GetLivepatchSupported(),
			FtraceEnabled:      k.GetFtraceEnabled(),
			ModulesDisabled:    k.GetModulesDisabled(),
			SignatureEnforced:  k.GetSignatureEnforced(),
			Lockdown:           k.GetLockdown(),
			ModuleKeys:         k.GetModuleKeys(),
			RevokedKeys:        k.GetRevokedKeys(),
		},
		RootVersion: r.GetRootVersion(),
		CleanBoot:   r.GetCleanBoot(),
	}
	s.Mode, _ = kernel.ParseMode(r.GetMode())
	for _, c := range r.GetComplaints() {
		s.Complaints = append(s.Complaints, Complaint{c.GetName(), c.GetSignature(), c.GetMessage(), c.GetBootId()})
	}
	if k != nil && k.SecureBoot != nil {
		on := k.GetSecureBoot()
		s.Kernel.SecureBoot = &on
	}
	for _, t := range k.GetTaints() {
		s.Kernel.Taints = append(s.Kernel.Taints, Taint{int(t.GetBit()), t.GetLetter(), t.GetMeaning(), t.GetModules()})
	}
	for _, l := range r.GetLivepatches() {
		s.Livepatches = append(s.Livepatches, fromLivepatch(l))
	}
	return s
}

func fromLivepatch(l *loaderv1.Livepatch) Livepatch {
	p := Livepatch{
		Name:         l.GetName(),
		State:        State(enumName(l.GetState().String(), "STATE_")),
		Standing:     Standing(enumName(l.GetStanding().String(), "STANDING_")),
		Version:      l.GetVersion(),
		Sequence:     l.GetSequence(),
		Rollout:      patch.RolloutState(l.GetRollout()),
		BlockerCount: max(int(l.GetBlockerCount()), len(l.GetBlockers())),
	}
	if d := l.GetDigest(); len(d) == len(patch.Digest{}) {
		p.Digest = patch.Digest(d)
	}
	if at := l.GetInserted(); at.IsValid() && at.GetSeconds() > 0 {
		p.Inserted = at.AsTime()
	}
	for _, b := range l.GetBlockers() {
		p.Blockers = append(p.Blockers, Blocker{int(b.GetTid()), b.GetComm(), b.GetState()})
	}
	return p
}

// enumName returns the name of an enum value without its prefix, in lower case;
// the value that is never sent is "".
func enumName(s, prefix string) string {
	s = strings.ToLower(strings.TrimPrefix(s, prefix))
	if s == "unspecified" {
		return ""
	}
	return s
}
