//go:build snap

package snap

import "livepatch/tests/snap/denial"

// ours are the profiles of the snap.
const ours = `snap\.canonical-livepatch\..*`

// expected are the denials that are no fault of ours, each with the reason.
var expected = []denial.Expected{
	{
		Profile: ours, Operation: "open", Name: `/proc/\d+/mountinfo`,
		Why: "Go's runtime looks for the limits of its control group when a process starts, and does without; snapd allows it from 2.77 on",
	},
	{
		Profile: ours, Operation: "syscall", Name: "444",
		Why: "landlock_create_ruleset: the sandboxes of agent and loader use Landlock where they can; snapd allows it from 2.77 on",
	},
	{
		Profile: `snap\.canonical-livepatch\.hook\.remove`, Operation: "syscall", Name: "424|434|247",
		Why: "pidfd_send_signal, pidfd_open, waitid: Go's library tries them when it starts a process, and does without",
	},
	{
		Profile: `snap\.canonical-livepatch\.(boot|loader)`, Operation: "open",
		Name: `/sys/kernel/(notes|livepatch/|security/lockdown)|/proc/sys/kernel/(ftrace_enabled|modules_disabled|tainted)|/proc/keys|/sys/module/|/sys/firmware/efi/efivars/SecureBoot-.*`,
		Why:  "the loader looks before the interfaces are connected; afterwards these succeed, or nothing would be patched",
	},
	{
		Profile: `snap\.canonical-livepatch\.canonical-livepatchd`, Operation: "open", Name: "/sys/kernel/notes",
		Why: "the agent looks before kernel-identity is connected; afterwards this succeeds, or it could not choose a patch",
	},
	{
		Profile: `(/snap/snapd/x\d+)?/usr/lib/snapd/snap-confine`, Operation: "capable", Name: "net_admin|perfmon",
		Why: "snap-confine's own: the kernel asks for these where it would do without, when a BPF program or a socket's buffer is at stake",
	},
}
