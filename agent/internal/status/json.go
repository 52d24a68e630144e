package status

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The types of this file are the JSON format, field by field. Those up to
// Fixed-CVEs are the ones that other programs know; what is ours comes behind
// and is left out where it says nothing.
type (
	jsonStatus struct {
		ClientVersion string       `json:"Client-Version"`
		MachineID     string       `json:"Machine-Id"`
		MachineToken  string       `json:"Machine-Token,omitempty"`
		Architecture  string       `json:"Architecture"`
		CPUModel      string       `json:"CPU-Model"`
		LastCheck     time.Time    `json:"Last-Check"`
		BootTime      time.Time    `json:"Boot-Time"`
		Uptime        string       `json:"Uptime"` // seconds
		Status        []jsonKernel `json:"Status"`
		Tier          string       `json:"tier"`
		FixedCVEs     *jsonFixed   `json:"Fixed-CVEs,omitempty"`

		CheckError string       `json:"Check-Error,omitempty"`
		CheckHint  string       `json:"Check-Hint,omitempty"`
		Notices    []jsonNotice `json:"Notices,omitempty"`

		*jsonVerbose
	}

	// jsonVerbose is what only --verbose adds.
	jsonVerbose struct {
		ExcludedLSNs    []string      `json:"Excluded-LSNs"`
		BlockingOptions []string      `json:"Blocking-Options"`
		UsingCutoffDate bool          `json:"Using-Cutoff-Date"`
		BlockedFixes    []jsonBlocked `json:"Blocked-Fixes"`
		KernelSecurity  *jsonSecurity `json:"Kernel-Security,omitempty"`
		ModuleSigning   *jsonSigning  `json:"Module-Signing,omitempty"`
		Taints          []jsonTaint   `json:"Taints"`
		Others          []jsonOther   `json:"Other-Livepatches"`
	}

	jsonKernel struct {
		Kernel              string        `json:"Kernel"`
		Running             bool          `json:"Running"`
		Livepatch           jsonLivepatch `json:"Livepatch"`
		Supported           Support       `json:"Supported"`
		UpgradeRequiredDate string        `json:"UpgradeRequiredDate,omitempty"`
	}

	jsonLivepatch struct {
		CheckState CheckState `json:"CheckState"`
		State      State      `json:"State"`
		Version    string     `json:"Version"`
		Fixes      []jsonFix  `json:"Fixes,omitempty"`

		Failure    Failure         `json:"Failure,omitempty"`
		PatchError string          `json:"PatchError,omitempty"`
		PatchHint  string          `json:"PatchHint,omitempty"`
		Transition *jsonTransition `json:"Transition,omitempty"`

		// With --verbose only.
		Module          string   `json:"Module,omitempty"`
		Standing        Standing `json:"Standing,omitempty"`
		SoakLeftSeconds int64    `json:"SoakLeftSeconds,omitempty"`
	}

	jsonFix struct {
		Name        string `json:"Name"` // lower case
		Description string `json:"Description"`
		Bug         string `json:"Bug"`
		Patched     bool   `json:"Patched"`
	}

	jsonTransition struct {
		Direction    Direction     `json:"Direction"`
		Since        *time.Time    `json:"Since,omitempty"`
		BlockerCount int           `json:"BlockerCount"`
		Blockers     []jsonBlocker `json:"Blockers"`
	}

	jsonBlocker struct {
		TID   int    `json:"TID"`
		Task  string `json:"Task"`
		State string `json:"State,omitempty"`
	}

	jsonFixed struct {
		Timestamp          time.Time     `json:"Timestamp"`
		KernelPackageFixes []jsonPackage `json:"Kernel-Package-Fixes"`
		InstalledKernels   []string      `json:"Installed-Kernels"`
		PatchedCVEs        []string      `json:"Patched-CVEs"`
		Digest             string        `json:"Digest"`
	}

	jsonPackage struct {
		Package string   `json:"Package"`
		CVEs    []string `json:"Fixed-CVEs"`
	}

	jsonBlocked struct {
		CVE       string     `json:"CVE"`
		Published *time.Time `json:"Published,omitempty"`
		Notice    string     `json:"Notice"`
	}

	jsonSecurity struct {
		SecureBoot         string `json:"Secure-Boot"` // "enabled", "disabled", "unknown"
		SignatureEnforced  bool   `json:"Signature-Enforced"`
		Lockdown           string `json:"Lockdown"` // "" if not known
		ModulesDisabled    bool   `json:"Modules-Disabled"`
		FtraceEnabled      bool   `json:"Ftrace-Enabled"`
		LivepatchSupported bool   `json:"Livepatch-Supported"`
	}

	jsonSigning struct {
		Demanded    bool       `json:"Demanded"`
		Key         string     `json:"Key"`   // subject key identifier; "" if not known, or none
		State       string     `json:"State"` // "enrolled", "not-enrolled", "revoked", "unknown"
		Certificate string     `json:"Certificate,omitempty"`
		Subject     string     `json:"Subject,omitempty"`
		NotBefore   *time.Time `json:"Not-Before,omitempty"`
		NotAfter    *time.Time `json:"Not-After,omitempty"`
		Message     string     `json:"Message,omitempty"`
		Hint        string     `json:"Hint,omitempty"`
	}

	jsonTaint struct {
		Bit     int      `json:"Bit"`
		Letter  string   `json:"Letter"`
		Meaning string   `json:"Meaning"`
		Modules []string `json:"Modules"`
	}

	jsonOther struct {
		Name  string `json:"Name"`
		State string `json:"State"`
	}

	jsonNotice struct {
		Message string `json:"Message"`
		Hint    string `json:"Hint,omitempty"`
	}
)

// JSON writes s for programs, as one JSON object and a newline.
func JSON(s Status, verbose bool) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(toJSON(s.cleaned(), verbose)); err != nil {
		return nil, fmt.Errorf("cannot write status as JSON: %w", err)
	}
	return out.Bytes(), nil
}

func toJSON(s Status, verbose bool) jsonStatus {
	j := jsonStatus{
		ClientVersion: s.ClientVersion,
		MachineID:     s.MachineID,
		MachineToken:  s.MachineToken,
		Architecture:  s.Architecture,
		CPUModel:      s.CPUModel,
		LastCheck:     s.LastCheck,
		BootTime:      s.BootTime,
		Uptime:        strconv.FormatInt(int64(s.Uptime/time.Second), 10),
		Status:        each(s.Kernels, func(k Kernel) jsonKernel { return toJSONKernel(k, verbose) }),
		Tier:          s.Tier,
		CheckError:    s.CheckError,
		CheckHint:     s.CheckHint,
		Notices:       each(s.Notices, func(n Notice) jsonNotice { return jsonNotice(n) }),
	}
	if f := s.FixedCVEs; f != nil {
		j.FixedCVEs = &jsonFixed{
			Timestamp:          f.Timestamp,
			KernelPackageFixes: each(f.KernelPackageFixes, func(p PackageFixes) jsonPackage { return jsonPackage(p) }),
			InstalledKernels:   f.InstalledKernels,
			PatchedCVEs:        f.PatchedCVEs,
			Digest:             f.Digest,
		}
	}
	if verbose {
		j.jsonVerbose = toJSONVerbose(s)
	}
	return j
}

func toJSONVerbose(s Status) *jsonVerbose {
	v := &jsonVerbose{
		ExcludedLSNs:    notices(s.Blocked),
		BlockingOptions: s.BlockingOptions,
		BlockedFixes: each(s.Blocked, func(b Blocked) jsonBlocked {
			return jsonBlocked{CVE: b.CVE, Published: orNil(b.Published), Notice: b.Notice}
		}),
		Taints: each(s.Taints, func(t Taint) jsonTaint { return jsonTaint(t) }),
		Others: each(s.Others, func(o Other) jsonOther { return jsonOther(o) }),
	}
	for _, o := range s.BlockingOptions {
		v.UsingCutoffDate = v.UsingCutoffDate || o == "cutoff-date"
	}
	if sec := s.Security; sec != nil {
		v.KernelSecurity = &jsonSecurity{
			SecureBoot:         sec.SecureBoot.word(),
			SignatureEnforced:  sec.SignatureEnforced,
			Lockdown:           sec.Lockdown,
			ModulesDisabled:    sec.ModulesDisabled,
			FtraceEnabled:      sec.FtraceEnabled,
			LivepatchSupported: sec.LivepatchSupported,
		}
	}
	if m := s.ModuleSigning; m != nil {
		v.ModuleSigning = &jsonSigning{
			Demanded: m.Demanded, Key: m.Key, State: m.State, Certificate: m.Certificate, Subject: m.Subject,
			NotBefore: orNil(m.NotBefore), NotAfter: orNil(m.NotAfter), Message: m.Message, Hint: m.Hint,
		}
	}
	return v
}

// notices returns the security notices of the blocked fixes, each once.
func notices(blocked []Blocked) []string {
	seen := map[string]bool{"": true}
	list := []string{}
	for _, b := range blocked {
		if !seen[b.Notice] {
			seen[b.Notice] = true
			list = append(list, b.Notice)
		}
	}
	return list
}

func toJSONKernel(k Kernel, verbose bool) jsonKernel {
	l := k.Livepatch
	j := jsonKernel{
		Kernel:              k.Version,
		Running:             k.Running,
		Supported:           k.Supported.word(),
		UpgradeRequiredDate: date(k.UpgradeRequiredDate),
		Livepatch: jsonLivepatch{
			CheckState: l.CheckState,
			State:      l.State.word(),
			Version:    l.Version,
			Fixes: each(l.Fixes, func(f Fix) jsonFix {
				return jsonFix{Name: strings.ToLower(f.Name), Description: f.Description, Bug: f.Bug, Patched: f.Patched}
			}),
			Failure:    l.Failure,
			PatchError: l.PatchError,
			PatchHint:  l.PatchHint,
		},
	}
	if t := l.Transition; t != nil {
		j.Livepatch.Transition = &jsonTransition{
			Direction:    t.Direction,
			Since:        orNil(t.Since),
			BlockerCount: t.BlockerCount,
			Blockers:     each(t.Blockers, func(b Blocker) jsonBlocker { return jsonBlocker(b) }),
		}
	}
	if verbose {
		j.Livepatch.Module = l.Module
		j.Livepatch.Standing = l.Standing
		j.Livepatch.SoakLeftSeconds = int64(l.SoakLeft / time.Second)
	}
	return j
}

// word returns what programs are told; they know no empty value.
func (s Support) word() Support {
	if s == "" {
		return SupportUnknown
	}
	return s
}

// word returns what programs are told; they know no empty value.
func (s State) word() State {
	if s == "" {
		return Unknown
	}
	return s
}

// word returns the value in a word.
func (t Tristate) word() string {
	if t == "" {
		return "unknown"
	}
	return string(t)
}

// date returns the day of t, or "" for the zero time.
func date(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.DateOnly)
}

func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
