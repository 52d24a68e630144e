package status

import (
	"slices"
	"strings"
	"time"
	"unicode"
)

// cleaned returns a copy of s as every renderer wants it: the running kernel
// first, because some programs look at no other; times in UTC without fractions
// of a second; values of enumerations that are one of theirs; and every string
// one line without control characters. Names of tasks and texts of servers are
// not ours, and a terminal must not take orders from them.
func (s Status) cleaned() Status {
	cleanAll(&s.ClientVersion, &s.MachineID, &s.MachineToken, &s.Architecture, &s.CPUModel,
		&s.CheckError, &s.CheckHint, &s.Tier, &s.TierNote)
	s.LastCheck, s.BootTime = second(s.LastCheck), second(s.BootTime)
	s.Uptime = max(0, s.Uptime.Truncate(time.Second))
	s.BlockingOptions = each(s.BlockingOptions, line)
	s.Kernels = each(s.Kernels, Kernel.cleaned)
	slices.SortStableFunc(s.Kernels, func(a, b Kernel) int { return rank(a) - rank(b) })
	s.Blocked = each(s.Blocked, func(b Blocked) Blocked {
		return Blocked{CVE: line(b.CVE), Published: second(b.Published), Notice: line(b.Notice)}
	})
	s.Taints = each(s.Taints, func(t Taint) Taint {
		return Taint{Bit: t.Bit, Letter: line(t.Letter), Meaning: line(t.Meaning), Modules: each(t.Modules, line)}
	})
	s.Others = each(s.Others, func(o Other) Other { return Other{Name: line(o.Name), State: line(o.State)} })
	s.Notices = each(s.Notices, func(n Notice) Notice { return Notice{Message: line(n.Message), Hint: line(n.Hint)} })
	s.FixedCVEs = s.FixedCVEs.cleaned()
	s.ModuleSigning = s.ModuleSigning.cleaned()
	if s.Security != nil {
		sec := *s.Security
		sec.Lockdown = line(sec.Lockdown)
		sec.SecureBoot = oneOf(sec.SecureBoot, "", Enabled, Disabled)
		s.Security = &sec
	}
	return s
}

func (m *ModuleSigning) cleaned() *ModuleSigning {
	if m == nil {
		return nil
	}
	c := *m
	c.State = oneOf(c.State, "unknown", "enrolled", "not-enrolled", "revoked")
	cleanAll(&c.Key, &c.Certificate, &c.Subject, &c.Message, &c.Hint)
	c.NotBefore, c.NotAfter = second(c.NotBefore), second(c.NotAfter)
	return &c
}

// rank puts the running kernel before all others.
func rank(k Kernel) int {
	if k.Running {
		return 0
	}
	return 1
}

func (k Kernel) cleaned() Kernel {
	k.Version = line(k.Version)
	if k.Supported != "" {
		k.Supported = oneOf(k.Supported, SupportUnknown, Supported, SupportUpgradeRequired, SupportEndOfLife, Unsupported)
	}
	k.UpgradeRequiredDate = second(k.UpgradeRequiredDate)
	k.Livepatch = k.Livepatch.cleaned()
	return k
}

func (l Livepatch) cleaned() Livepatch {
	l.CheckState = oneOf(l.CheckState, NeedsCheck, CheckFailed, Checked)
	if l.State != "" {
		l.State = oneOf(l.State, Unknown, Unapplied, Applying, Applied, AppliedWithBug, ApplyFailed,
			NothingToApply, KernelUpgradeRequired)
	}
	l.Failure = oneOf(l.Failure, "", FailureCrash, FailureSignature, FailureExtract, FailureCertificate, FailureUnconfirmed)
	l.Standing = oneOf(l.Standing, "", Inserting, Trial, Accepted, Suspect, Quarantined)
	cleanAll(&l.Version, &l.PatchError, &l.PatchHint, &l.Module)
	l.SoakLeft = max(0, l.SoakLeft.Truncate(time.Second))
	l.Fixes = each(l.Fixes, func(f Fix) Fix {
		cleanAll(&f.Name, &f.Description, &f.Bug)
		return f
	})
	if l.Transition != nil {
		t := *l.Transition
		t.Direction = oneOf(t.Direction, Enabling, Disabling)
		t.Since = second(t.Since)
		t.Blockers = each(t.Blockers, func(b Blocker) Blocker {
			cleanAll(&b.Task, &b.State)
			return b
		})
		t.BlockerCount = max(t.BlockerCount, len(t.Blockers))
		l.Transition = &t
	}
	return l
}

func (f *FixedCVEs) cleaned() *FixedCVEs {
	if f == nil {
		return nil
	}
	return &FixedCVEs{
		Timestamp: second(f.Timestamp),
		KernelPackageFixes: each(f.KernelPackageFixes, func(p PackageFixes) PackageFixes {
			return PackageFixes{Package: line(p.Package), CVEs: each(p.CVEs, line)}
		}),
		InstalledKernels: each(f.InstalledKernels, line),
		PatchedCVEs:      each(f.PatchedCVEs, line),
		Digest:           line(f.Digest),
	}
}

// oneOf returns v if it is one of known, else fallback.
func oneOf[T comparable](v, fallback T, known ...T) T {
	if slices.Contains(known, v) {
		return v
	}
	return fallback
}

// each returns f of every element, in a slice that is never nil.
func each[T, U any](list []T, f func(T) U) []U {
	out := make([]U, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}

func cleanAll(fields ...*string) {
	for _, f := range fields {
		*f = line(*f)
	}
}

// second returns t in UTC without a fraction of a second. Years that RFC 3339
// cannot write become the zero time.
func second(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Second)
	if t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

// line returns text as one line: runs of white space become a space, and what
// could move a cursor or turn round the direction of writing becomes U+FFFD.
func line(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "\uFFFD")), " ")
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}
