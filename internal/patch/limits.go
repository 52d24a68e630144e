package patch

// Limits on files from outside, in bytes. They bound what is read before a
// signature has been seen.
const (
	MaxRoot      = 512 << 10
	MaxTimestamp = 16 << 10
	MaxSnapshot  = 2 << 20
	MaxRole      = 5 << 20 // targets, vendors, bins, rollout
	MaxModule    = 64 << 20
)
