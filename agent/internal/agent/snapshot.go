package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/machine"
	"livepatch/agent/internal/status"
)

// Status returns what the agent knows, from memory; false if the machine is not
// enabled. secrets adds the machine token.
func (a *Agent) Status(secrets bool) (status.Status, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.live.facts
	s := status.Status{
		ClientVersion: a.version,
		MachineID:     a.machineID,
		Architecture:  machine.DebianArch(),
		CPUModel:      f.CPUModel,
		LastCheck:     a.rec.LastCheck,
		BootTime:      f.BootTime,
		CheckError:    a.rec.CheckError,
		CheckHint:     a.rec.CheckHint,
		Tier:          a.rec.Tier,
		Kernels:       []status.Kernel{a.kernelStatus()},
		Blocked:       a.rec.Blocked,

		BlockingOptions: a.rec.BlockedBy,
		Notices:         a.notices(),
	}
	if secrets {
		s.MachineToken = a.token
	}
	if t := a.snapTrouble(); errors.Is(a.live.checkErr, fs.ErrPermission) && t.Hint != "" {
		s.CheckHint = t.Hint
	}
	if !f.BootTime.IsZero() {
		s.Uptime = time.Since(f.BootTime)
	}
	a.addKernelFacts(&s)
	return s, a.token != ""
}

// kernelStatus describes the running kernel and its patch. The caller holds
// a.mu.
func (a *Agent) kernelStatus() status.Kernel {
	k := status.Kernel{
		Version:   a.live.facts.DisplayVersion,
		Running:   true,
		Supported: a.rec.Supported,
		Livepatch: status.Livepatch{
			CheckState:     a.rec.CheckState,
			State:          a.rec.State,
			Version:        a.rec.Version,
			KernelUpgraded: a.rec.Upgraded,
			Failure:        a.rec.Failure,
			PatchError:     a.rec.PatchError,
			PatchHint:      a.rec.PatchHint,
		},
	}
	if until, err := time.Parse(time.DateOnly, a.rec.Until); err == nil {
		k.UpgradeRequiredDate = until
	}
	p := &k.Livepatch
	if t := a.snapTrouble(); p.PatchError != "" && t.Hint != "" {
		p.PatchHint = t.Hint
	}
	if p.State == status.NothingToApply {
		p.Version = ""
	}
	l := a.live.current()
	inForce := l != nil && l.Version == p.Version && l.State == loader.Enabled
	for _, f := range a.rec.Fixes {
		p.Fixes = append(p.Fixes, status.Fix{Name: f.Name, Description: f.Summary, Bug: f.Bug, Patched: inForce})
	}
	if len(a.rec.Unpatched) > 0 && (p.State == status.Applied || p.State == status.NothingToApply) {
		p.State = status.KernelUpgradeRequired
	}
	if l = cmp.Or(l, a.live.leaving()); l != nil {
		a.addStanding(p, l)
	}
	if p.State == status.Applied && len(a.complaints(l)) > 0 {
		p.State = status.AppliedWithBug
	}
	return k
}

// addStanding tells how far the patch in the kernel is trusted, and what holds
// it up.
func (a *Agent) addStanding(p *status.Livepatch, l *loader.Livepatch) {
	p.Module, p.Standing = l.Name, status.Standing(l.Standing)
	if soak := a.rec.Soak; l.Standing == loader.Trial && soak != nil && soak.Digest == l.Digest {
		p.SoakLeft = max(soak.For-a.live.age(l), 0)
	}
	t := &status.Transition{Direction: status.Enabling, Since: l.Inserted, BlockerCount: l.BlockerCount}
	switch l.State {
	case loader.Enabling:
	case loader.Disabling:
		t.Direction, t.Since = status.Disabling, time.Time{} // when that began is not known
	default:
		return
	}
	for _, b := range l.Blockers {
		t.Blockers = append(t.Blockers, status.Blocker{TID: b.TID, Task: b.Comm, State: b.State})
	}
	p.Transition = t
}

// addKernelFacts tells what the loader has seen of the kernel.
func (a *Agent) addKernelFacts(s *status.Status) {
	seen := a.live.loader
	if seen == nil {
		return
	}
	k := seen.Kernel
	s.Security = &status.Security{
		SignatureEnforced:  k.SignatureEnforced,
		Lockdown:           k.Lockdown,
		ModulesDisabled:    k.ModulesDisabled,
		FtraceEnabled:      k.FtraceEnabled,
		LivepatchSupported: k.LivepatchSupported,
	}
	if k.SecureBoot != nil {
		s.Security.SecureBoot = tristate(*k.SecureBoot)
	}
	s.ModuleSigning = a.signing()
	for _, t := range k.Taints {
		s.Taints = append(s.Taints, status.Taint{Bit: t.Bit, Letter: t.Letter, Meaning: t.Meaning, Modules: t.Modules})
	}
	for _, l := range seen.Livepatches {
		if !l.Ours() {
			s.Others = append(s.Others, status.Other{Name: l.Name, State: string(l.State)})
		}
	}
}

func tristate(on bool) status.Tristate {
	if on {
		return status.Enabled
	}
	return status.Disabled
}

// notices are what else is worth a person's attention.
func (a *Agent) notices() []status.Notice {
	n := a.snapNotices()
	if a.live.skew != 0 && a.rec.CheckError == "" {
		err := &clockError{a.live.skew}
		n = append(n, status.Notice{Message: err.Error(), Hint: a.hint(err)})
	}
	if err := a.live.trouble; err != nil {
		n = append(n, status.Notice{Message: "not checked in since the start of the agent: " + err.Error(), Hint: a.hint(err)})
	}
	n = append(n, a.modeNotices()...)
	for _, h := range a.rec.Holds {
		n = append(n, status.Notice{Message: h.Message, Hint: h.Hint})
	}
	n = append(n, a.listedNotices()...)
	n = append(n, a.patchNotices()...)
	n = append(n, a.signingNotices()...)
	if len(a.rec.Unpatched) > 0 {
		n = append(n, status.Notice{
			Message: "no livepatch can close " + strings.Join(a.rec.Unpatched, ", "),
			Hint:    fmt.Sprintf("install kernel %s and reboot", a.rec.FixedIn),
		})
	}
	return n
}

// UpgradeRequired returns one line if the machine needs another kernel, else
// "". The error matches [ErrNotEnabled].
func (a *Agent) UpgradeRequired() (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	version := a.live.facts.DisplayVersion
	switch {
	case a.token == "":
		return "", ErrNotEnabled
	case a.rec.Supported == status.SupportUpgradeRequired, a.rec.Supported == status.SupportEndOfLife:
		return fmt.Sprintf("Livepatch coverage of kernel %s ended %s; please upgrade the kernel and reboot.", version, a.rec.Until), nil
	case len(a.rec.Unpatched) > 0:
		return fmt.Sprintf("Kernel %s has vulnerabilities that cannot be livepatched (%s); please upgrade the kernel and reboot.",
			version, strings.Join(a.rec.Unpatched, ", ")), nil
	}
	return "", nil
}

// outcome tells, after a check, what became of the patch: a line each, or an
// error if it should be in the kernel and is not.
func (a *Agent) outcome() ([]string, error) {
	s, _ := a.Status(false)
	k := s.Kernels[0]
	p := k.Livepatch
	if p.PatchError != "" {
		return nil, &PatchError{p.PatchError, p.PatchHint}
	}
	lines := []string{"checking for patches"}
	switch p.State { //nolint:exhaustive // the others have lines of their own below
	case status.NothingToApply:
		lines = append(lines, "nothing to apply")
	case status.Applied:
		lines = append(lines, "patch is applied")
	case status.Applying:
		lines = append(lines, "patch is being applied")
	}
	lines = append(lines, "kernel: "+k.Version, "patch state: "+string(p.State))
	if p.Version != "" {
		lines = append(lines, "patch version: "+p.Version)
	}
	for _, n := range s.Notices {
		lines = append(lines, "note: "+n.Message)
	}
	return lines, nil
}

// A PatchError is why a patch that the machine should have is not in its kernel.
type PatchError struct {
	Message, Hint string
}

// Error returns the message.
func (e *PatchError) Error() string { return e.Message }

// HintFor returns the next step for err, which may carry its own.
func HintFor(err error) string {
	var p *PatchError
	if errors.As(err, &p) {
		return p.Hint
	}
	return Hint(err)
}
