// Package status is what a machine tells about its livepatches, and how that
// is written down for people and for programs.
//
// The formats are an interface that other programs already parse; see
// docs/reference/cli.md. [Status] is the one value behind all of them, and
// [JSON], [YAML], [Humane] and [Summary] are functions of it and of nothing
// else, so that the same status is the same bytes.
package status

import "time"

// A CheckState says how the last check-in with the service went.
type CheckState string

// The check states.
const (
	NeedsCheck  CheckState = "needs-check"  // not yet; nothing is wrong
	CheckFailed CheckState = "check-failed" // see Status.CheckError
	Checked     CheckState = "checked"
)

// A State says what became of the livepatch for a kernel.
type State string

// The states. They are all there are: a program that meets another one takes
// it for unknown.
const (
	Unapplied             State = "unapplied"        // verified and here, not in the kernel
	Applying              State = "applying"         // in transition
	Applied               State = "applied"          // in force for every task
	AppliedWithBug        State = "applied-with-bug" // in force, and the kernel complained
	ApplyFailed           State = "apply-failed"     // see Livepatch.Failure and PatchError
	NothingToApply        State = "nothing-to-apply"
	KernelUpgradeRequired State = "kernel-upgrade-required" // a fix that no livepatch can bring
	Unknown               State = "unknown"
)

// A Failure says why a livepatch is not in force, as far as it has a line of
// its own for people. The zero Failure is any other reason.
type Failure string

// The failures.
const (
	FailureCrash       Failure = "crash"       // the machine went down while it was on trial
	FailureSignature   Failure = "signature"   // a signature did not verify
	FailureExtract     Failure = "extract"     // the module or its metadata cannot be read
	FailureCertificate Failure = "certificate" // the keys to verify with cannot be loaded
	FailureUnconfirmed Failure = "unconfirmed" // inserted, and not seen to be in force
)

// A Support says whether a kernel is covered.
type Support string

// The values of Support. They are those of the service's kernel support API.
const (
	Supported              Support = "supported"
	SupportUpgradeRequired Support = "kernel-upgrade-required"
	SupportEndOfLife       Support = "kernel-end-of-life"
	Unsupported            Support = "unsupported"
	SupportUnknown         Support = "unknown"
)

// A Standing says how far a livepatch is trusted on this machine. The zero
// Standing is that nothing is known: somebody else inserted it.
type Standing string

// The standings; they are those of loader.v1.Standing.
const (
	Inserting   Standing = "inserting"   // insertion begun, its end not seen
	Trial       Standing = "trial"       // in the kernel, not yet proven
	Accepted    Standing = "accepted"    // proven; applied again at boot
	Suspect     Standing = "suspect"     // the machine went down during the trial
	Quarantined Standing = "quarantined" // taken out of service for good
)

// A Status is all that one machine tells.
//
// The zero Status is that of a machine of which nothing is known yet. Strings
// may hold anything, for some come from the kernel and from the service: the
// renderers see to it that no control character reaches a terminal.
type Status struct {
	ClientVersion string // "v1.2.3"
	MachineID     string // 32 hexadecimal digits
	MachineToken  string // secret; set only for root who asked with --show-secrets
	Architecture  string // as Debian names it, "amd64"
	CPUModel      string

	LastCheck time.Time     // of the last check-in that succeeded; zero: never
	BootTime  time.Time     // zero: not known
	Uptime    time.Duration // since BootTime

	// CheckError is why the last check-in failed, in one line without secrets;
	// CheckHint is the next step.
	CheckError, CheckHint string

	// Kernels are the kernels that the machine knows of. The renderers put the
	// running one first, wherever it stands here.
	Kernels []Kernel

	Tier     string // "stable"
	TierNote string // shown to people behind the tier, in brackets

	// FixedCVEs is nil if the machine does not know.
	FixedCVEs *FixedCVEs

	// Blocked are the fixes that the configuration holds back, and
	// BlockingOptions the keys that do so, "cutoff-date", "patch-delay".
	Blocked         []Blocked
	BlockingOptions []string

	Security *Security // what the kernel lets in; nil if not known
	// ModuleSigning is how the kernel stands to the key that signs the vendor's
	// modules; nil if there is nothing to say.
	ModuleSigning *ModuleSigning

	Taints []Taint
	Others []Other // livepatches that somebody else inserted

	// Notices are further things worth a person's attention, each one line.
	Notices []Notice
}

// A Notice is a line for a person, with the next step if there is one.
type Notice struct {
	Message string
	Hint    string
}

// A Kernel is one kernel of the machine and its livepatch.
type Kernel struct {
	// Version is the distribution's full version, "6.8.0-1047.50-aws": field 2
	// of /proc/version_signature where that exists, else the release that
	// uname -r prints.
	Version   string
	Running   bool
	Livepatch Livepatch
	// Supported is "" until the machine has heard; programs are told "unknown".
	Supported Support
	// UpgradeRequiredDate is the day on which coverage ends or has ended. Only
	// year, month and day in UTC count; zero: not known.
	UpgradeRequiredDate time.Time
}

// A Livepatch is the state of the one cumulative patch of a kernel.
type Livepatch struct {
	CheckState CheckState // "": NeedsCheck
	State      State      // "" until the machine knows; programs are told "unknown"
	Version    string     // "121.4"; "" if there is none
	Fixes      []Fix

	// KernelUpgraded tells that the machine has come up with a newer kernel
	// that needs no patch; it counts with NothingToApply.
	KernelUpgraded bool

	Failure Failure
	// PatchError is why the patch is not applied, in one line; PatchHint is the
	// next step.
	PatchError, PatchHint string

	Module   string // name of the module, "lkp_Ubuntu_6_8_0_1047_50_aws_121"
	Standing Standing
	SoakLeft time.Duration // until a patch on trial is accepted; 0: not on trial

	Transition *Transition // nil unless tasks are being moved
}

// A Fix is a vulnerability that a livepatch closes, or would close.
type Fix struct {
	Name        string // "CVE-2025-68263" in any case
	Description string
	Bug         string // "LP: #1852141"
	Patched     bool
}

// A Transition is the kernel moving tasks to the patched functions or back.
type Transition struct {
	Direction    Direction
	Since        time.Time // zero: not known
	Blockers     []Blocker
	BlockerCount int // how many there are, if Blockers is cut short
}

// A Direction says where the tasks of a transition go. The zero Direction
// counts as Enabling.
type Direction string

// The directions.
const (
	Enabling  Direction = "enabling"
	Disabling Direction = "disabling"
)

// A Blocker is a task that holds up a transition.
type Blocker struct {
	TID   int
	Task  string // its name
	State string // "R (running)", as the kernel words it; "" if not known
}

// FixedCVEs is what the kernels on this machine fix, by patch or by package.
type FixedCVEs struct {
	Timestamp          time.Time
	KernelPackageFixes []PackageFixes
	InstalledKernels   []string // names of packages
	PatchedCVEs        []string // names as the vendor writes them, "UBUNTU-CVE-2025-68263"
	Digest             string
}

// PackageFixes is what one kernel package fixes.
type PackageFixes struct {
	Package string
	CVEs    []string
}

// A Blocked is a fix that the configuration holds back.
type Blocked struct {
	CVE       string // "UBUNTU-CVE-2024-26800"
	Published time.Time
	Notice    string // "LSN-0108-1"
}

// Security is what the kernel demands of modules.
type Security struct {
	SecureBoot         Tristate
	SignatureEnforced  bool
	Lockdown           string // "none", "integrity", "confidentiality"; "": not known
	ModulesDisabled    bool   // until reboot
	FtraceEnabled      bool
	LivepatchSupported bool
}

// ModuleSigning says whether the kernel takes the signatures of the vendor's
// modules: of signatures that the kernel checks by itself, as with Secure Boot.
type ModuleSigning struct {
	Demanded bool   // the kernel takes no module without one
	Key      string // that signs patches: subject key identifier; "": not known, or none
	// State is "enrolled", "not-enrolled", "revoked" or "unknown".
	State string

	// About the certificate that was shipped: where it lies, and, if it is of Key,
	// what it says.
	Certificate         string
	Subject             string
	NotBefore, NotAfter time.Time // zero: not known

	// Message is what is wrong, and Hint the next step; "" if all is well.
	Message, Hint string
}

// A Tristate is a fact that a machine may be unable to tell. The zero Tristate
// is unknown.
type Tristate string

// The values of a Tristate.
const (
	Enabled  Tristate = "enabled"
	Disabled Tristate = "disabled"
)

// A Taint is one set bit of /proc/sys/kernel/tainted.
type Taint struct {
	Bit     int
	Letter  string // "K"
	Meaning string // "kernel has been live patched"
	Modules []string
}

// An Other is a livepatch that this system did not insert.
type Other struct {
	Name  string
	State string // name of a loader.v1.State in lower case, "enabled"
}
