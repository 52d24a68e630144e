package status

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The types of this file are the YAML format, field by field. Monitoring checks
// cut it up with awk: the layout counts, not only the meaning.
type (
	yamlStatus struct {
		ClientVersion string       `yaml:"client-version"`
		MachineID     string       `yaml:"machine-id"`
		MachineToken  string       `yaml:"machine-token,omitempty"`
		Architecture  string       `yaml:"architecture"`
		CPUModel      string       `yaml:"cpu-model"`
		LastCheck     time.Time    `yaml:"last-check"`
		BootTime      time.Time    `yaml:"boot-time"`
		Uptime        string       `yaml:"uptime"` // "19h19m56s"
		Status        []yamlKernel `yaml:"status"`
		Tier          string       `yaml:"tier"`

		CheckError string       `yaml:"check-error,omitempty"`
		CheckHint  string       `yaml:"check-hint,omitempty"`
		Notices    []yamlNotice `yaml:"notices,omitempty"`

		Verbose *yamlVerbose `yaml:",inline"`
	}

	// yamlVerbose is what only --verbose adds.
	yamlVerbose struct {
		BlockingOptions []string      `yaml:"blocking-options"`
		BlockedFixes    []yamlBlocked `yaml:"blocked-fixes"`
		KernelSecurity  *yamlSecurity `yaml:"kernel-security,omitempty"`
		ModuleSigning   *yamlSigning  `yaml:"module-signing,omitempty"`
		Taints          []yamlTaint   `yaml:"taints"`
		Others          []yamlOther   `yaml:"other-livepatches"`
	}

	yamlKernel struct {
		Kernel              string        `yaml:"kernel"`
		Running             bool          `yaml:"running"`
		Livepatch           yamlLivepatch `yaml:"livepatch"`
		Supported           Support       `yaml:"supported"`
		UpgradeRequiredDate string        `yaml:"upgradeRequiredDate,omitempty"`
	}

	yamlLivepatch struct {
		CheckState CheckState `yaml:"checkState"`
		PatchState State      `yaml:"patchState"`
		Version    string     `yaml:"version"`
		Fixes      yaml.Node  `yaml:"fixes"`

		Failure    Failure         `yaml:"failure,omitempty"`
		PatchError string          `yaml:"patchError,omitempty"`
		PatchHint  string          `yaml:"patchHint,omitempty"`
		Transition *yamlTransition `yaml:"transition,omitempty"`

		// With --verbose only.
		Module   string   `yaml:"module,omitempty"`
		Standing Standing `yaml:"standing,omitempty"`
		SoakLeft string   `yaml:"soakLeft,omitempty"` // "59m30s"
	}

	yamlTransition struct {
		Direction    Direction     `yaml:"direction"`
		Since        *time.Time    `yaml:"since,omitempty"`
		BlockerCount int           `yaml:"blockerCount"`
		Blockers     []yamlBlocker `yaml:"blockers"`
	}

	yamlBlocker struct {
		TID   int    `yaml:"tid"`
		Task  string `yaml:"task"`
		State string `yaml:"state,omitempty"`
	}

	yamlBlocked struct {
		CVE       string     `yaml:"cve"`
		Published *time.Time `yaml:"published,omitempty"`
		Notice    string     `yaml:"notice"`
	}

	yamlSecurity struct {
		SecureBoot         string `yaml:"secure-boot"` // "enabled", "disabled", "unknown"
		SignatureEnforced  bool   `yaml:"signature-enforced"`
		Lockdown           string `yaml:"lockdown"`
		ModulesDisabled    bool   `yaml:"modules-disabled"`
		FtraceEnabled      bool   `yaml:"ftrace-enabled"`
		LivepatchSupported bool   `yaml:"livepatch-supported"`
	}

	yamlSigning struct {
		Demanded    bool       `yaml:"demanded"`
		Key         string     `yaml:"key"`
		State       string     `yaml:"state"`
		Certificate string     `yaml:"certificate,omitempty"`
		Subject     string     `yaml:"subject,omitempty"`
		NotBefore   *time.Time `yaml:"not-before,omitempty"`
		NotAfter    *time.Time `yaml:"not-after,omitempty"`
		Message     string     `yaml:"message,omitempty"`
		Hint        string     `yaml:"hint,omitempty"`
	}

	yamlTaint struct {
		Bit     int      `yaml:"bit"`
		Letter  string   `yaml:"letter"`
		Meaning string   `yaml:"meaning"`
		Modules []string `yaml:"modules"`
	}

	yamlOther struct {
		Name  string `yaml:"name"`
		State string `yaml:"state"`
	}

	yamlNotice struct {
		Message string `yaml:"message"`
		Hint    string `yaml:"hint,omitempty"`
	}
)

// YAML writes s for programs, in the shape that the client has had since its
// version 9.
func YAML(s Status, verbose bool) ([]byte, error) {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	enc.CompactSeqIndent()
	if err := enc.Encode(toYAML(s.cleaned(), verbose)); err != nil {
		return nil, fmt.Errorf("cannot write status as YAML: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("cannot write status as YAML: %w", err)
	}
	return out.Bytes(), nil
}

func toYAML(s Status, verbose bool) yamlStatus {
	y := yamlStatus{
		ClientVersion: s.ClientVersion,
		MachineID:     s.MachineID,
		MachineToken:  s.MachineToken,
		Architecture:  s.Architecture,
		CPUModel:      s.CPUModel,
		LastCheck:     s.LastCheck,
		BootTime:      s.BootTime,
		Uptime:        s.Uptime.String(),
		Status:        each(s.Kernels, func(k Kernel) yamlKernel { return toYAMLKernel(k, verbose) }),
		Tier:          s.Tier,
		CheckError:    s.CheckError,
		CheckHint:     s.CheckHint,
		Notices:       each(s.Notices, func(n Notice) yamlNotice { return yamlNotice(n) }),
	}
	if !verbose {
		return y
	}
	y.Verbose = &yamlVerbose{
		BlockingOptions: s.BlockingOptions,
		BlockedFixes: each(s.Blocked, func(b Blocked) yamlBlocked {
			return yamlBlocked{CVE: b.CVE, Published: orNil(b.Published), Notice: b.Notice}
		}),
		Taints: each(s.Taints, func(t Taint) yamlTaint { return yamlTaint(t) }),
		Others: each(s.Others, func(o Other) yamlOther { return yamlOther(o) }),
	}
	if sec := s.Security; sec != nil {
		y.Verbose.KernelSecurity = &yamlSecurity{
			SecureBoot:         sec.SecureBoot.word(),
			SignatureEnforced:  sec.SignatureEnforced,
			Lockdown:           sec.Lockdown,
			ModulesDisabled:    sec.ModulesDisabled,
			FtraceEnabled:      sec.FtraceEnabled,
			LivepatchSupported: sec.LivepatchSupported,
		}
	}
	if m := s.ModuleSigning; m != nil {
		y.Verbose.ModuleSigning = &yamlSigning{
			Demanded: m.Demanded, Key: m.Key, State: m.State, Certificate: m.Certificate, Subject: m.Subject,
			NotBefore: orNil(m.NotBefore), NotAfter: orNil(m.NotAfter), Message: m.Message, Hint: m.Hint,
		}
	}
	return y
}

func toYAMLKernel(k Kernel, verbose bool) yamlKernel {
	l := k.Livepatch
	y := yamlKernel{
		Kernel:              k.Version,
		Running:             k.Running,
		Supported:           k.Supported.word(),
		UpgradeRequiredDate: date(k.UpgradeRequiredDate),
		Livepatch: yamlLivepatch{
			CheckState: l.CheckState,
			PatchState: l.State.word(),
			Version:    l.Version,
			Fixes:      yamlFixes(l.Fixes),
			Failure:    l.Failure,
			PatchError: l.PatchError,
			PatchHint:  l.PatchHint,
		},
	}
	if t := l.Transition; t != nil {
		y.Livepatch.Transition = &yamlTransition{
			Direction:    t.Direction,
			Since:        orNil(t.Since),
			BlockerCount: t.BlockerCount,
			Blockers:     each(t.Blockers, func(b Blocker) yamlBlocker { return yamlBlocker(b) }),
		}
	}
	if verbose {
		y.Livepatch.Module = l.Module
		y.Livepatch.Standing = l.Standing
		if l.SoakLeft > 0 {
			y.Livepatch.SoakLeft = l.SoakLeft.String()
		}
	}
	return y
}

// yamlFixes returns the fixes as a block of lines, "* CVE-2019-0155: LP: #1",
// or as the empty string in quotes. Readers take every line for a fix, so
// there are no descriptions here, with --verbose neither.
func yamlFixes(fixes []Fix) yaml.Node {
	if len(fixes) == 0 {
		return yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle}
	}
	lines := each(fixes, func(f Fix) string {
		text := "* " + strings.ToUpper(f.Name)
		if f.Bug != "" {
			text += ": " + f.Bug
		}
		if !f.Patched {
			text += " (unpatched)"
		}
		return text
	})
	return yaml.Node{Kind: yaml.ScalarNode, Style: yaml.LiteralStyle, Value: strings.Join(lines, "\n")}
}
