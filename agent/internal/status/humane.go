package status

import (
	"fmt"
	"strings"
	"time"
)

// width is how many columns a line of text takes before it is wrapped.
const width = 80

// Humane writes s for people. Without verbose every line that is not empty has
// a colon, for there are programs that take it for a list of keys and values.
// It has no colours. Ages are told as of now.
func Humane(s Status, verbose bool, now time.Time) string {
	s = s.cleaned()
	h := humane{now: now.UTC(), verbose: verbose}
	if verbose {
		h.machine(s)
	}
	h.put("last check", age(h.now, s.LastCheck))
	for i, k := range s.Kernels {
		if i > 0 && !verbose {
			break // the kernels that do not run are of no interest at first sight
		}
		h.kernel(s, k, i == 0)
	}
	h.about(s)
	if verbose {
		h.security(s)
	}
	h.blocked(s)
	return h.String()
}

// humane collects lines.
type humane struct {
	strings.Builder
	now     time.Time
	verbose bool
}

// put writes a line, unless there is nothing to say.
func (h *humane) put(key, value string) {
	if value != "" {
		fmt.Fprintf(h, "%s: %s\n", key, value)
	}
}

// item writes one element of a list, wrapped.
func (h *humane) item(text string) {
	for i, l := range wrap(text, width-4) {
		indent := "    "
		if i == 0 {
			indent = "  * "
		}
		fmt.Fprintf(h, "%s%s\n", indent, l)
	}
}

func (h *humane) machine(s Status) {
	h.put("client version", s.ClientVersion)
	h.put("architecture", s.Architecture)
	h.put("cpu model", s.CPUModel)
	if !s.BootTime.IsZero() {
		h.put("boot time", fmt.Sprintf("%s (up %v)", stamp(s.BootTime), s.Uptime))
	}
}

// kernel writes what concerns one kernel. What the machine as a whole did comes
// with the first.
func (h *humane) kernel(s Status, k Kernel, first bool) {
	if first {
		h.put("kernel", k.Version)
		h.put("server check-in", checkIn(s, k.Livepatch.CheckState))
		h.put("check-in hint", s.CheckHint)
	} else {
		h.put("other kernel", k.Version)
	}
	h.put("kernel state", kernelState(k, h.now))
	h.put("patch state", patchState(k))
	h.livepatch(k.Livepatch)
}

func (h *humane) livepatch(l Livepatch) {
	if l.State == Applied || l.State == AppliedWithBug {
		h.put("patch version", l.Version)
	}
	h.put("patch error", l.PatchError)
	h.put("patch hint", l.PatchHint)
	h.transition(l.Transition)
	if !h.verbose {
		return
	}
	h.put("patch module", l.Module)
	h.put("patch standing", standing(l))
	if len(l.Fixes) > 0 {
		h.WriteString("fixes:\n")
	}
	for _, f := range l.Fixes {
		h.item(fix(f))
	}
}

func (h *humane) transition(t *Transition) {
	if t == nil {
		return
	}
	text := progress(t, h.now)
	if !h.verbose && len(t.Blockers) > 0 {
		text += ", " + choose(t.BlockerCount > 1, "among them ", "") + blocker(t.Blockers[0])
	}
	h.put("transition", text)
	if !h.verbose {
		return
	}
	for _, b := range t.Blockers {
		h.item(blocker(b))
	}
	if more := t.BlockerCount - len(t.Blockers); more > 0 && len(t.Blockers) > 0 {
		h.item(fmt.Sprintf("and %d more", more))
	}
	if len(t.Blockers) > 0 {
		h.item(fmt.Sprintf("to see where a task is in the kernel: sudo cat /proc/%d/stack", t.Blockers[0].TID))
	}
}

func (h *humane) about(s Status) {
	tier := s.Tier
	if tier != "" && s.TierNote != "" {
		tier += " (" + s.TierNote + ")"
	}
	h.put("tier", tier)
	h.put("machine id", s.MachineID)
	h.put("machine token", s.MachineToken)
	for _, n := range s.Notices {
		h.put("notice", n.Message)
		h.put("hint", n.Hint)
	}
}

func (h *humane) security(s Status) {
	if sec := s.Security; sec != nil {
		h.put("secure boot", sec.SecureBoot.word())
		h.put("module signatures", choose(sec.SignatureEnforced, "required by the kernel", "not required by the kernel"))
		h.put("lockdown", sec.Lockdown)
		h.put("kernel livepatch support", choose(sec.LivepatchSupported, "yes", "no"))
		h.put("ftrace", choose(sec.FtraceEnabled, "enabled", "disabled; no livepatch works without it"))
		if sec.ModulesDisabled {
			h.put("module loading", "disabled until reboot")
		}
	}
	h.signing(s.ModuleSigning)
	if len(s.Taints) > 0 {
		h.WriteString("taints:\n")
	}
	for _, t := range s.Taints {
		h.item(taint(t))
	}
	if len(s.Others) > 0 {
		h.WriteString("other livepatches:\n")
	}
	for _, o := range s.Others {
		h.item(o.Name + ": " + o.State)
	}
}

// signing tells how the kernel stands to the key of the vendor's modules.
func (h *humane) signing(m *ModuleSigning) {
	if m == nil {
		return
	}
	key := m.Key
	if m.Subject != "" {
		key += " (" + m.Subject + ")"
	}
	if key == "" {
		key = "not known"
	}
	h.put("patch signing key", key)
	switch m.State {
	case "enrolled":
		h.put("signing key in kernel", "✓ enrolled")
	case "not-enrolled":
		h.put("signing key in kernel", choose(m.Demanded, "✗ ", "")+"not enrolled")
	case "revoked":
		h.put("signing key in kernel", "✗ revoked")
	default:
		h.put("signing key in kernel", "not known")
	}
	if !m.NotAfter.IsZero() {
		h.put("signing certificate valid", fmt.Sprintf("%s to %s%s", date(m.NotBefore), date(m.NotAfter), choose(h.now.After(m.NotAfter), ", expired", "")))
	}
	h.put("signing certificate", m.Certificate)
	h.put("signing problem", m.Message)
	h.put("signing hint", m.Hint)
}

// blocked warns of fixes that the configuration holds back. The table is for
// --verbose only: its lines have no colon.
func (h *humane) blocked(s Status) {
	if len(s.Blocked) == 0 {
		return
	}
	options := strings.Join(s.BlockingOptions, " and ")
	if options == "" {
		options = "cutoff-date and patch-delay"
	}
	if !h.verbose {
		h.put("blocked fixes", fmt.Sprintf("%d held back by %s; see: canonical-livepatch status --verbose", distinct(s.Blocked), options))
		return
	}
	fmt.Fprintf(h, "\n[!] KERNEL PATCHES BLOCKED: SECURITY RISK DETECTED\n"+
		"The latest patches for your kernel have been blocked by current configuration.\n")
	if len(s.Kernels) > 0 && s.Kernels[0].Livepatch.State == Applied {
		h.WriteString("An older patch has been installed instead.\n")
	}
	fmt.Fprintf(h, "Run \"canonical-livepatch config\" and review the values for %s to check if they are still relevant.\n"+
		"BLOCKED SECURITY UPDATES:\n", options)
	h.table(s.Blocked)
}

// distinct counts the vulnerabilities; each may come with several notices.
func distinct(blocked []Blocked) int {
	seen := make(map[string]bool)
	for _, b := range blocked {
		seen[b.CVE] = true
	}
	return len(seen)
}

func (h *humane) table(blocked []Blocked) {
	const layout = "%-*s  %-29s  %s\n"
	longest := len("UBUNTU-CVE-2024-26800")
	for _, b := range blocked {
		longest = max(longest, len(b.CVE))
	}
	fmt.Fprintf(h, layout, longest, "CVE ID", "Published", "Related LSN")
	for _, b := range blocked {
		published := "unknown"
		if !b.Published.IsZero() {
			published = b.Published.String() // "2024-12-19 11:12:01 +0000 UTC", as people know it
		}
		fmt.Fprintf(h, layout, longest, b.CVE, published, b.Notice)
	}
}

// checkIn says how the last check-in went.
func checkIn(s Status, state CheckState) string {
	switch state {
	case Checked:
		return "succeeded"
	case CheckFailed:
		if s.CheckError == "" {
			return "failed"
		}
		return "failed: " + s.CheckError
	default:
		return "pending"
	}
}

// progress says how far a transition has come.
func progress(t *Transition, now time.Time) string {
	text := "moving tasks to the patched kernel"
	if t.Direction == Disabling {
		text = "moving tasks back, to take the patch out"
	}
	if !t.Since.IsZero() && !t.Since.After(now) {
		text += " for " + now.Sub(t.Since).Truncate(time.Second).String()
	}
	switch t.BlockerCount {
	case 0:
		return text
	case 1:
		return text + ", waiting for 1 task"
	default:
		return fmt.Sprintf("%s, waiting for %d tasks", text, t.BlockerCount)
	}
}

func blocker(b Blocker) string {
	text := fmt.Sprintf("%s (tid %d)", b.Task, b.TID)
	if b.State != "" {
		text += ", " + b.State
	}
	return text
}

func standing(l Livepatch) string {
	switch l.Standing {
	case Inserting:
		return "being inserted"
	case Trial:
		if l.SoakLeft > 0 {
			return fmt.Sprintf("on trial, accepted in %v if all stays well", l.SoakLeft)
		}
		return "on trial"
	case Accepted:
		return "accepted, applied again at boot"
	case Suspect:
		return "suspect, the machine went down while it was on trial"
	case Quarantined:
		return "out of service"
	default:
		return ""
	}
}

func fix(f Fix) string {
	text := strings.ToLower(f.Name)
	if f.Bug != "" {
		text += " (" + f.Bug + ")"
	}
	if !f.Patched {
		text += " (unpatched)"
	}
	if f.Description != "" {
		text += ": " + f.Description
	}
	return text
}

func taint(t Taint) string {
	text := fmt.Sprintf("%s (bit %d): %s", t.Letter, t.Bit, t.Meaning)
	if len(t.Modules) > 0 {
		text += ", by " + strings.Join(t.Modules, ", ")
	}
	return text
}

// age says how long ago t was.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	switch {
	case d < -time.Minute:
		return stamp(t) + ", which is in the future; is the clock right?"
	case d < time.Second:
		return "just now"
	case d < time.Minute:
		return count(d/time.Second, "second")
	case d < time.Hour:
		return count(d/time.Minute, "minute")
	case d < 48*time.Hour:
		return count(d/time.Hour, "hour")
	default:
		return count(d/(24*time.Hour), "day")
	}
}

func count(n time.Duration, unit string) string {
	if n == 1 {
		return "1 " + unit + " ago"
	}
	return fmt.Sprintf("%d %ss ago", int64(n), unit)
}

func stamp(t time.Time) string { return t.Format("2006-01-02 15:04:05 UTC") }

func choose(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

// wrap breaks text at spaces into lines of at most columns characters; a longer
// word has a line of its own. There is always at least one line.
func wrap(text string, columns int) []string {
	lines := []string{""}
	for word := range strings.FieldsSeq(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len([]rune(*last))+1+len([]rune(word)) <= columns:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}
