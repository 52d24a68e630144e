// Package service is the vocabulary of the service's HTTP API: the paths, the
// bodies and the limits that the agent, the publisher and the server agree on.
// The API is described in server/openapi.yaml, which a test holds against the
// handlers.
package service

import (
	"time"

	"livepatch/internal/patch"
)

// Paths of the API.
const (
	// PathMachines takes an EnrolRequest with POST: an auth token is exchanged
	// for a machine token.
	PathMachines = "/v1/machines"
	// PathSelf is the machine that the bearer token names; DELETE ends its
	// enrolment.
	PathSelf = "/v1/machines/self"
	// PathCheckIn takes a CheckIn with POST.
	PathCheckIn = "/v1/machines/self/check-in"
	// PathSupported answers GET with a Supported; it needs no token.
	PathSupported = "/v1/api/kernels/supported"
	// PathMetadata is where TUF metadata lies: timestamp.json, N.root.json, …
	PathMetadata = "/tuf/metadata/"
	// PathTargets is where targets lie: VENDOR/<sha256>.FILE
	PathTargets = "/tuf/targets/"
	// PathPublishState answers GET with a PublishState.
	PathPublishState = "/v1/publish/state"
	// PathPublishTargets takes a target with PUT at VENDOR/<sha256>.FILE.
	PathPublishTargets = "/v1/publish/targets/"
	// PathPublishMetadata takes a Publication with POST.
	PathPublishMetadata = "/v1/publish/metadata"
)

// Limits on bodies, in bytes. Those of signed files are the loader's own.
const (
	MaxRoot      = patch.MaxRoot
	MaxTimestamp = patch.MaxTimestamp
	MaxSnapshot  = patch.MaxSnapshot
	MaxRole      = patch.MaxRole
	MaxModule    = patch.MaxModule
	MaxIndex     = 1 << 20
	MaxJSON      = 64 << 10 // requests of machines and their answers
	// MaxPublication bounds a Publication as JSON. It holds 1024 bins at ten
	// times the size that 5000 kernels need.
	MaxPublication = 192 << 20
)

// An Error is the body of every answer that is not a success.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"` // one line for a person
}

// A Code says what went wrong, for programs.
type Code string

// The codes.
const (
	CodeUnknownToken Code = "unknown-token"  // 401: no such auth or machine token
	CodeExpiredToken Code = "expired-token"  // 401
	CodeRevokedToken Code = "revoked-token"  // 401
	CodeInvalid      Code = "invalid"        // 400
	CodeTooLarge     Code = "too-large"      // 413
	CodeNotFound     Code = "not-found"      // 404
	CodeConflict     Code = "conflict"       // 409: published by somebody else meanwhile
	CodeUntrusted    Code = "untrusted"      // 422: a publication that does not verify
	CodeTooMany      Code = "too-many"       // 429, with Retry-After
	CodeUnavailable  Code = "unavailable"    // 503, with Retry-After
	CodeInternal     Code = "internal-error" // 500
)

// An EnrolRequest asks for a machine token. The auth token travels in the
// header "Authorization: Bearer …".
type EnrolRequest struct {
	// MachineID names the machine to the service: 32 hexadecimal digits, made
	// by the agent for this purpose and not the one of /etc/machine-id.
	MachineID string `json:"machine_id"`
	Hostname  string `json:"hostname,omitempty"`
	Version   string `json:"agent_version"`
	Facts
}

// Facts are what a machine says of itself.
type Facts struct {
	patch.Kernel
	KernelVersion string `json:"kernel_version,omitempty"` // as patch.Index.KernelVersion
	Distribution  string `json:"distribution,omitempty"`   // ID of os-release, "debian"
	BootID        string `json:"boot_id"`
}

// An Enrolment answers an EnrolRequest.
type Enrolment struct {
	MachineToken string `json:"machine_token"` // secret; 32 hexadecimal digits
	Tier         string `json:"tier"`
}

// A CheckIn is the hourly report of a machine.
type CheckIn struct {
	Version string `json:"agent_version"`
	Facts
	// Generation is that of the last CheckInAnswer, 0 at first.
	Generation int64  `json:"generation"`
	Patch      *Patch `json:"patch,omitempty"` // in force now
	// Events since the last check-in that was answered, oldest first.
	Events []Event `json:"events,omitempty"`
}

// A Patch is the state of a livepatch on a machine.
type Patch struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Sequence uint64 `json:"sequence"`
	State    string `json:"state"`    // name of a loader.v1.State in lower case, "enabled"
	Standing string `json:"standing"` // name of a loader.v1.Standing in lower case, "trial"
}

// An Event is something that happened to a patch on a machine.
type Event struct {
	ID      string    `json:"id"`      // made by the agent; the server takes each once
	Kind    Kind      `json:"kind"`    //
	Version string    `json:"version"` // of the patch; "" for Booted
	Name    string    `json:"name"`    // of the module; "" for Booted
	BootID  string    `json:"boot_id"`
	At      time.Time `json:"at"`
	// Reason is, of a Failed, a reason of internal/rpcerr or one that begins with
	// "CONFIG_"; of a Crashed or a Booted, one of those below.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Signature is what makes two oopses of a Crashed the same, if the kernel said
	// enough: "general protection fault/lkp_x/foo_bar".
	Signature string `json:"signature,omitempty"`
}

// A Kind says what happened to a patch.
type Kind string

// The kinds of events.
const (
	// Intent: the machine is about to insert the module. It asks by this whether it
	// may; see [CheckInAnswer.Go].
	Intent  Kind = "intent"
	Applied Kind = "applied" // in force for every task
	// Failed: not brought in; the kernel is as it was. But with the reason STALLED its
	// tasks are still being moved to the patch, and how that ends is reported again.
	Failed    Kind = "failed"
	Removed   Kind = "removed"   // taken out again, by the operator or because it is revoked
	Heartbeat Kind = "heartbeat" // in force and well: 1, 5, 15, 60 minutes after Intent, then hourly
	Crashed   Kind = "crashed"   // harm was done, and this patch is the likely cause
	Booted    Kind = "booted"    // the machine has booted since the last report
)

// Reasons of a [Crashed].
const (
	ReasonOpenJournal = "OPEN_JOURNAL" // the machine went down uncleanly while the patch was on trial
	ReasonOops        = "OOPS"         // an oops, a warning or a record in pstore names the module
)

// Reasons of a [Booted].
const (
	ReasonClean   = "CLEAN"   // after an orderly shutdown
	ReasonUnclean = "UNCLEAN" // after a crash, a reset or a power cut
)

// Reasons of a [Failed] that are the configuration of a machine: its kernel demands
// a signature of its own and does not take that of the module. They begin with
// "CONFIG_", for they say nothing of the patch, and nothing of how it does may be
// concluded from them.
const (
	ReasonUnsigned    = "CONFIG_MODULE_UNSIGNED"  // there is none
	ReasonNotEnrolled = "CONFIG_KEY_NOT_ENROLLED" // the kernel does not know the key
	ReasonKeyRevoked  = "CONFIG_KEY_REVOKED"      // the machine has revoked the key
	ReasonSignature   = "CONFIG_SIGNATURE"        // why is not known
)

// A CheckInAnswer tells a machine what to do next.
type CheckInAnswer struct {
	IntervalSeconds int64  `json:"interval_seconds"` // until the next check-in
	Generation      int64  `json:"generation"`       // changes whenever signed files have changed
	Tier            string `json:"tier"`
	// Go lists the patch versions, of those with an [Intent] in the check-in, that
	// the machine may begin with now. Signed files say how many machines may have a
	// patch; this says how many at a time. One that is not let in says so again with
	// its next check-in.
	Go []string `json:"go,omitempty"`
}

// Supported answers whether a kernel is covered.
type Supported struct {
	// Supported is "supported", "kernel-upgrade-required",
	// "kernel-end-of-life", "unsupported" or "unknown".
	Supported string `json:"Supported"`
}

// A PublishState tells a publisher what the service has.
type PublishState struct {
	// RootVersion is 0 if nothing was published yet.
	RootVersion int64 `json:"root_version"`
	// Versions maps the names of offline roles ("targets", "debian",
	// "debian-3ff") to the versions that the service has.
	Versions map[string]int64 `json:"versions"`
	// OnlineKeys are the server's public keys, by role: "snapshot",
	// "timestamp", "rollout". Each is 32 bytes of ed25519, in hexadecimal.
	OnlineKeys map[string]string `json:"online_keys"`
}

// A Publication is a set of metadata files that become current together, or
// not at all. Their targets must have been uploaded before.
type Publication struct {
	// Files maps file names ("2.root.json", "7.targets.json",
	// "3.debian-3ff.json") to their bytes.
	Files map[string][]byte `json:"files"`
}

// A Published answers a Publication.
type Published struct {
	SnapshotVersion int64 `json:"snapshot_version"`
	Generation      int64 `json:"generation"`
}
