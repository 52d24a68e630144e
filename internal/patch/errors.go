package patch

import "errors"

// Conditions that callers branch on. Each one survives the trip between
// processes; see package rpcerr. The text is what a person reads first, so it
// says what is wrong and not which check noticed it.
var (
	// What was asked for.
	ErrInvalid  = errors.New("request is not valid")
	ErrTooLarge = errors.New("file is larger than allowed")
	ErrNotFound = errors.New("patch not found")
	ErrNotOurs  = errors.New("livepatch was not inserted by this loader")
	ErrRefused  = errors.New("caller is not allowed to do this")

	// What the signed files say.
	ErrUntrusted = errors.New("signature not trusted")
	ErrExpired   = errors.New("signed metadata has expired")
	ErrRollback  = errors.New("older than what this machine has already seen")
	ErrMalformed = errors.New("signed metadata is malformed")
	ErrTampered  = errors.New("content differs from what was signed")
	ErrHalted    = errors.New("rollout of this patch is halted")
	ErrRevoked   = errors.New("patch has been revoked")

	// How the patch fits this machine.
	ErrWrongKernel  = errors.New("patch is for another kernel")
	ErrNotLivepatch = errors.New("module is not a livepatch")
	ErrNameTaken    = errors.New("another module of that name is loaded")
	ErrSuspect      = errors.New("machine went down while this patch was on trial")

	// What the kernel said or would say.
	ErrNoLivepatch      = errors.New("kernel has no livepatch support")
	ErrSwitchedOff      = errors.New("applying livepatches is switched off on this machine")
	ErrModulesDisabled  = errors.New("loading of modules is disabled until reboot")
	ErrFtraceDisabled   = errors.New("ftrace is disabled")
	ErrFtraceConflict   = errors.New("a function is already traced by a kprobe or BPF program")
	ErrBusy             = errors.New("another livepatch transition is in progress")
	ErrIncompatible     = errors.New("kernel rejected the livepatch as incompatible")
	ErrUnknownSymbol    = errors.New("module needs a symbol that this kernel has not")
	ErrBadFormat        = errors.New("kernel rejected the format of the module")
	ErrModuleSignature  = errors.New("kernel does not accept the module's signature")
	ErrNotPermitted     = errors.New("kernel does not permit loading modules")
	ErrNoMemory         = errors.New("kernel is out of memory")
	ErrKernel           = errors.New("kernel refused the module")
	ErrStalled          = errors.New("transition has not finished")
	ErrTransitionFailed = errors.New("livepatch did not become active")

	// What the loader could not keep.
	ErrStorage = errors.New("loader cannot write its state")
)
