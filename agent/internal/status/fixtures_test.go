package status_test

import (
	"time"

	"livepatch/agent/internal/status"
)

// now is the moment at which the fixtures are told.
var now = time.Date(2026, 9, 26, 18, 54, 19, 0, time.UTC)

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return t
}

// fixtures returns the statuses of the golden files, by the name of the file. A
// function, so that no test can spoil them for another.
func fixtures() map[string]status.Status {
	return map[string]status.Status{
		"applied":         applied(),
		"just-enabled":    justEnabled(),
		"nothing":         nothingToApply(),
		"transition":      inTransition(),
		"failed":          failed(),
		"suspect":         suspect(),
		"blocked":         blocked(),
		"coverage-ending": coverageEnding(),
		"not-enrolled":    notEnrolled(),
		"key-expired":     keyExpired(),
		"zero":            {},
	}
}

// applied is the machine of the sample that third parties test with.
func applied() status.Status {
	return status.Status{
		ClientVersion: "v11.0.2",
		MachineID:     "0000000000000000000000000000000",
		Architecture:  "amd64",
		CPUModel:      "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz",
		LastCheck:     at("2026-09-26T18:53:27Z"),
		BootTime:      at("2026-09-26T18:52:51Z"),
		Uptime:        46 * time.Second,
		Tier:          "stable",
		Kernels: []status.Kernel{{
			Version: "6.8.0-1047.50-aws", Running: true,
			Supported: status.Supported, UpgradeRequiredDate: at("2027-03-19T00:00:00Z"),
			Livepatch: status.Livepatch{
				CheckState: status.Checked, State: status.Applied, Version: "121.4",
				Fixes:  []status.Fix{{Name: "CVE-2025-68263", Patched: true}},
				Module: "lkp_Ubuntu_6_8_0_1047_50_aws_121", Standing: status.Accepted,
			},
		}},
		FixedCVEs: &status.FixedCVEs{
			Timestamp:          at("2026-09-26T18:53:06Z"),
			KernelPackageFixes: []status.PackageFixes{{Package: "linux-image-6.8.0-1047-aws"}},
			InstalledKernels:   []string{"linux-image-6.8.0-1047-aws", "linux-image-6.8.0-1060-aws"},
			PatchedCVEs:        []string{"UBUNTU-CVE-2025-68263"},
			Digest:             "redacted",
		},
		Security: &status.Security{
			SecureBoot: status.Enabled, SignatureEnforced: true, Lockdown: "integrity",
			FtraceEnabled: true, LivepatchSupported: true,
		},
		Taints: []status.Taint{{Bit: 15, Letter: "K", Meaning: "kernel has been live patched"}},
	}
}

func justEnabled() status.Status {
	s := applied()
	s.LastCheck, s.Tier, s.FixedCVEs, s.Security, s.Taints = time.Time{}, "", nil, nil, nil
	s.MachineID = ""
	s.Kernels[0].Supported = ""
	s.Kernels[0].UpgradeRequiredDate = time.Time{}
	s.Kernels[0].Livepatch = status.Livepatch{CheckState: status.NeedsCheck}
	return s
}

func nothingToApply() status.Status {
	s := applied()
	s.TierNote = "Free usage; This machine beta tests new patches."
	s.Kernels[0].Livepatch = status.Livepatch{CheckState: status.Checked, State: status.NothingToApply}
	// The running kernel comes first wherever it stands.
	s.Kernels = append([]status.Kernel{{
		Version: "6.8.0-1060.63-aws", Supported: status.Supported,
		Livepatch: status.Livepatch{CheckState: status.NeedsCheck},
	}}, s.Kernels...)
	return s
}

func inTransition() status.Status {
	s := applied()
	l := &s.Kernels[0].Livepatch
	l.State, l.Standing, l.SoakLeft = status.Applying, status.Trial, 59*time.Minute+30*time.Second
	l.Transition = &status.Transition{
		Since: at("2026-09-26T18:53:40Z"),
		Blockers: []status.Blocker{
			{TID: 812, Task: "vhost-812", State: "S (sleeping)"},
			{TID: 41, Task: "kworker/3:1"},
		},
		BlockerCount: 17,
	}
	l.Fixes[0].Patched = false
	return s
}

func failed() status.Status {
	s := applied()
	s.CheckError = "cannot reach https://livepatch.example.com: connection refused"
	s.CheckHint = "check the network, or the proxy with: sudo canonical-livepatch config"
	s.LastCheck = at("2026-09-24T10:00:00Z")
	k := &s.Kernels[0]
	k.Supported = status.SupportUpgradeRequired
	k.UpgradeRequiredDate = at("2026-09-01T00:00:00Z")
	k.Livepatch = status.Livepatch{
		CheckState: status.CheckFailed, State: status.ApplyFailed, Failure: status.FailureSignature,
		PatchError: "kernel does not accept the module's signature",
		PatchHint:  "enrol the vendor's key with: sudo mokutil --import livepatch-kmod.x509",
		Fixes: []status.Fix{
			{Name: "CVE-2024-1086", Bug: "LP: #1852141", Description: "A use after free in netfilter lets a local user become root; " +
				"unprivileged user namespaces make it reachable for everybody on this machine."},
			{Name: "cve-2025-68263"},
		},
	}
	s.Notices = []status.Notice{{Message: "a module that is not signed taints the kernel", Hint: "unload nvidia"}}
	s.Others = []status.Other{{Name: "kpatch_4_18_0_1", State: "enabled"}}
	s.Taints = append(s.Taints, status.Taint{
		Bit: 12, Letter: "O", Meaning: "module from outside the kernel tree was loaded", Modules: []string{"nvidia", "zfs"},
	})
	return s
}

// notEnrolled is a machine whose kernel does not know the vendor's key.
func notEnrolled() status.Status {
	s := applied()
	l := &s.Kernels[0].Livepatch
	l.State, l.Failure, l.Standing, l.Module = status.ApplyFailed, status.FailureSignature, "", ""
	l.Fixes[0].Patched = false
	message := "this kernel takes signed modules only, and does not know the key that signed the patch, 0bf1a2c3d4e5f60718293a4b5c6d7e8f90a1b2c3"
	hint := "enrol it with: sudo mokutil --import /snap/canonical-livepatch/current/keys/livepatch-kmod.x509; then reboot, and confirm it on the console"
	l.PatchError, l.PatchHint = "cannot apply patch 121.4: "+message, hint
	s.ModuleSigning = &status.ModuleSigning{
		Demanded: true, Key: "0bf1a2c3d4e5f60718293a4b5c6d7e8f90a1b2c3", State: "not-enrolled",
		Certificate: "/snap/canonical-livepatch/current/keys/livepatch-kmod.x509", Subject: "CN=Livepatch modules",
		NotBefore: at("2026-01-01T00:00:00Z"), NotAfter: at("2035-12-30T00:00:00Z"), Message: message, Hint: hint,
	}
	return s
}

// keyExpired is a machine that is in order, and whose vendor's key is not.
func keyExpired() status.Status {
	s := applied()
	m := *notEnrolled().ModuleSigning
	m.State, m.NotAfter = "enrolled", at("2026-09-01T00:00:00Z")
	m.Message, m.Hint = "the certificate of the key that signs patches has expired on 2026-09-01; the kernel does not look at the date", "update it with: sudo snap refresh canonical-livepatch"
	s.ModuleSigning = &m
	s.Notices = []status.Notice{{Message: m.Message, Hint: m.Hint}}
	return s
}

func suspect() status.Status {
	s := applied()
	l := &s.Kernels[0].Livepatch
	l.State, l.Failure, l.Standing, l.Version = status.ApplyFailed, status.FailureCrash, status.Suspect, ""
	l.Fixes = nil
	l.PatchError = "machine went down while patch 121.4 was on trial"
	l.PatchHint = "wait for a newer patch"
	return s
}

func blocked() status.Status {
	s := applied()
	s.BlockingOptions = []string{"cutoff-date"}
	s.Blocked = []status.Blocked{
		{CVE: "UBUNTU-CVE-2024-26800", Published: at("2024-12-19T11:12:01Z"), Notice: "LSN-0108-1"},
		{CVE: "UBUNTU-CVE-2024-26921", Published: at("2025-01-13T09:00:00Z"), Notice: "LSN-0109-1"},
		{CVE: "UBUNTU-CVE-2024-26800", Notice: "LSN-0109-1"},
	}
	return s
}

func coverageEnding() status.Status {
	s := applied()
	s.Kernels[0].UpgradeRequiredDate = at("2026-10-10T00:00:00Z")
	return s
}

// hostile has in every text what a terminal or a parser might trip over.
func hostile() status.Status {
	const evil = "a\x1b[2Jb\r\nc: d\u202e\u2028\xff\x9b"
	return status.Status{
		ClientVersion: evil, MachineID: evil, MachineToken: evil, Architecture: evil, CPUModel: evil,
		CheckError: evil, CheckHint: evil, Tier: evil, TierNote: evil,
		LastCheck: time.Unix(1<<40, 0), BootTime: now.Add(time.Hour), Uptime: -time.Second,
		Kernels: []status.Kernel{{
			Version: evil, Running: true, Supported: status.Support(evil),
			Livepatch: status.Livepatch{
				CheckState: status.CheckState(evil), State: status.State(evil), Version: evil,
				Failure: status.Failure(evil), PatchError: evil, PatchHint: evil, Module: evil,
				Standing: status.Standing(evil), SoakLeft: -1,
				Fixes:      []status.Fix{{Name: evil, Description: evil, Bug: evil}},
				Transition: &status.Transition{Direction: status.Direction(evil), Blockers: []status.Blocker{{Task: evil, State: evil}}},
			},
		}},
		BlockingOptions: []string{evil},
		Blocked:         []status.Blocked{{CVE: evil, Notice: evil}},
		Security:        &status.Security{SecureBoot: status.Tristate(evil), Lockdown: evil, ModulesDisabled: true},
		ModuleSigning: &status.ModuleSigning{
			Key: evil, State: evil, Certificate: evil, Subject: evil, NotAfter: time.Unix(1<<40, 0), Message: evil, Hint: evil,
		},
		Taints:  []status.Taint{{Letter: evil, Meaning: evil, Modules: []string{evil}}},
		Others:  []status.Other{{Name: evil, State: evil}},
		Notices: []status.Notice{{Message: evil, Hint: evil}},
		FixedCVEs: &status.FixedCVEs{
			InstalledKernels: []string{evil}, PatchedCVEs: []string{evil}, Digest: evil,
			KernelPackageFixes: []status.PackageFixes{{Package: evil, CVEs: []string{evil}}},
		},
	}
}
