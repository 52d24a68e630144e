package enrolment

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// Limits on what machines say, in bytes. They are generous: a machine whose
// report is refused is a machine that nobody hears of.
const (
	maxText    = 256
	maxMessage = 1024
	maxEvents  = 256
)

var machineID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// kinds are the kinds of events.
var kinds = map[service.Kind]bool{
	service.Intent: true, service.Applied: true, service.Failed: true, service.Removed: true,
	service.Heartbeat: true, service.Crashed: true, service.Booted: true,
}

func checkEnrol(r service.EnrolRequest) error {
	if !machineID.MatchString(r.MachineID) {
		return fmt.Errorf("%w: machine_id is not 32 hexadecimal digits in lower case", patch.ErrInvalid)
	}
	return checkTexts(append(facts(r.Facts), text{"hostname", r.Hostname}, text{"agent_version", r.Version}))
}

// checkCheckIn checks a report. Messages that are too long are cut, for they
// may hold what a kernel said.
func checkCheckIn(r *service.CheckIn) error {
	texts := append(facts(r.Facts), text{"agent_version", r.Version})
	if p := r.Patch; p != nil {
		texts = append(texts, text{"patch.name", p.Name}, text{"patch.version", p.Version},
			text{"patch.state", p.State}, text{"patch.standing", p.Standing})
		if p.Sequence > 1<<62 {
			return fmt.Errorf("%w: patch.sequence is out of range", patch.ErrInvalid)
		}
	}
	if len(r.Events) > maxEvents {
		return fmt.Errorf("%w: %d events, at most %d are taken at once", patch.ErrInvalid, len(r.Events), maxEvents)
	}
	for i := range r.Events {
		e := &r.Events[i]
		if e.ID == "" || !kinds[e.Kind] {
			return fmt.Errorf("%w: event %d has the ID %q and the kind %q", patch.ErrInvalid, i, e.ID, e.Kind)
		}
		e.Message = cut(e.Message, maxMessage)
		texts = append(texts, text{"event.id", e.ID}, text{"event.name", e.Name}, text{"event.version", e.Version},
			text{"event.boot_id", e.BootID}, text{"event.reason", e.Reason}, text{"event.signature", e.Signature})
	}
	return checkTexts(texts)
}

// A text is a field that is kept as it came.
type text struct{ name, value string }

func facts(f service.Facts) []text {
	return []text{
		{"arch", f.Arch}, {"release", f.Release}, {"build_id", string(f.BuildID)},
		{"kernel_version", f.KernelVersion}, {"distribution", f.Distribution}, {"boot_id", f.BootID},
	}
}

// checkTexts refuses what would garble a terminal or a log, or fill the disk.
func checkTexts(texts []text) error {
	for _, t := range texts {
		if len(t.value) > maxText || strings.ContainsFunc(t.value, unicode.IsControl) {
			return fmt.Errorf("%w: %s is longer than %d bytes or holds control characters", patch.ErrInvalid, t.name, maxText)
		}
	}
	return nil
}

// cut shortens s to at most n bytes, between two characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
