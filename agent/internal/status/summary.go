package status

import (
	"fmt"
	"strings"
	"time"
)

// Summary writes s in one line, for a prompt or a fleet tool: the running
// kernel, the state of its patch, whether it is covered, and the check-in.
// "6.8.0-1047.50-aws: applied 121.4; supported; checked 52 seconds ago"
func Summary(s Status, now time.Time) string {
	s = s.cleaned()
	var k Kernel
	if len(s.Kernels) > 0 {
		k = s.Kernels[0]
	}
	kernel := k.Version
	if kernel == "" {
		kernel = "kernel"
	}
	patch := strings.TrimSpace(string(k.Livepatch.State.word()) + " " + k.Livepatch.Version)
	check := string(k.Livepatch.CheckState)
	if check == "" {
		check = string(NeedsCheck)
	}
	switch {
	case s.LastCheck.IsZero():
	case k.Livepatch.CheckState == Checked:
		check += " " + age(now.UTC(), s.LastCheck)
	default:
		check += ", last checked " + age(now.UTC(), s.LastCheck)
	}
	coverage := string(k.Supported.word())
	if k.Supported.word() == SupportUnknown {
		coverage = "coverage unknown"
	}
	return fmt.Sprintf("%s: %s; %s; %s\n", kernel, patch, coverage, check)
}
