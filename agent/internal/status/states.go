package status

import (
	"fmt"
	"strings"
	"time"
)

// soon is how long before the end of coverage people are told the day.
const soon = 30 * 24 * time.Hour

// kernelState says whether the kernel is covered, or nothing if the machine has
// not heard yet. Monitors match these lines: do not change a word.
func kernelState(k Kernel, now time.Time) string {
	until := date(k.UpgradeRequiredDate)
	switch {
	case k.Supported == "":
		return ""
	case k.Supported == Supported && until != "" && k.UpgradeRequiredDate.Before(now.Add(soon)):
		return fmt.Sprintf("✓ kernel %s is covered by Livepatch until %s, please install available kernel updates and reboot before then", k.Version, until)
	case k.Supported == Supported:
		return fmt.Sprintf("✓ kernel series %s is covered by Livepatch", series(k.Version))
	case k.Supported == Unsupported:
		return "✗ kernel is not covered by Livepatch"
	case k.Supported == SupportEndOfLife:
		return "✗ kernel is no longer covered by Livepatch"
	case k.Supported == SupportUpgradeRequired && until == "":
		return "✗ Livepatch coverage has ended; please upgrade the kernel and reboot"
	case k.Supported == SupportUpgradeRequired:
		return fmt.Sprintf("✗ Livepatch coverage ended %s; please upgrade the kernel and reboot", until)
	default:
		return "✗ unable to determine kernel support status; please contact Canonical support"
	}
}

// patchState says what became of the patch, or nothing if the machine does not
// know yet. Monitors match these lines: do not change a word.
func patchState(k Kernel) string {
	switch l := k.Livepatch; l.State {
	case "":
		return ""
	case Unapplied:
		return "⧗ live kernel patches are downloaded, but the kernel module is not yet inserted"
	case Applying:
		return "⧗ patching the kernel"
	case NothingToApply:
		if l.KernelUpgraded {
			return "✓ kernel upgraded after a reboot"
		}
		return fmt.Sprintf("✓ no live kernel patches available for kernel %s", k.Version)
	case Applied:
		return "✓ all applicable live kernel patch modules applied"
	case AppliedWithBug:
		return "✗ Livepatch kernel module inserted but kernel bug detected"
	case ApplyFailed:
		return failure(l.Failure)
	case KernelUpgradeRequired:
		return fmt.Sprintf("✗ kernel %s contains a vulnerability that cannot be remediated with live kernel patching, please upgrade and reboot", k.Version)
	default:
		return "✗ unknown error occurred, please check system logs with " + journal
	}
}

// journal is the command that shows the daemon's log.
const journal = "journalctl -f -u snap.canonical-livepatch.canonical-livepatchd"

func failure(f Failure) string {
	switch f {
	case FailureCrash:
		return "✗ detected a crash last time the Livepatch kernel module was applied, check system logs with " + journal
	case FailureSignature:
		return "✗ failed to verify the signature of the Livepatch kernel module"
	case FailureExtract:
		return "✗ failed to extract information about the Livepatch kernel module"
	case FailureCertificate:
		return "✗ failed to load certificate used to verify the signature of the Livepatch kernel module"
	default:
		// True of every other failure too; the line "patch error" says more.
		return "✗ failed to confirm that the Livepatch kernel module was applied successfully"
	}
}

// series returns the first two numbers of a kernel's version, "6.8".
func series(version string) string {
	n := 0
	end := strings.IndexFunc(version, func(r rune) bool {
		if r == '.' {
			n++
		}
		return n == 2 || r != '.' && (r < '0' || r > '9')
	})
	if end <= 0 {
		return version
	}
	return version[:end]
}
