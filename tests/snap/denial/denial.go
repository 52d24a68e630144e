// Package denial reads what the kernel's log says that AppArmor and seccomp have
// refused, and tells what was to be expected from what was not.
package denial

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Denial is something that a process was not allowed to do.
type Denial struct {
	// Profile is the AppArmor profile of the process.
	Profile string
	// Operation is what AppArmor calls it ("open", "chmod", "capable"); it is
	// "syscall" if it was seccomp.
	Operation string
	// Name is the file, the capability, or the number of the system call.
	Name string
	// Line is the line of the log.
	Line string
}

// String returns the denial as short as a person wants it.
func (d Denial) String() string { return fmt.Sprintf("%s: %s %s", d.Profile, d.Operation, d.Name) }

// Types of audit records (linux/audit.h).
const (
	typeAVC     = "1400" // of a security module
	typeSeccomp = "1326"
)

// record matches an audit record in the kernel's log; field one field of it.
var (
	record = regexp.MustCompile(`audit: type=(\d+) audit\([0-9.:]+\): (.*)`)
	field  = regexp.MustCompile(`(\w+)=("[^"]*"|\S+)`)
)

// Parse returns the denials in a log of the kernel, in its order.
func Parse(log string) []Denial {
	var found []Denial
	for line := range strings.Lines(log) {
		m := record.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		fields := make(map[string]string)
		for _, f := range field.FindAllStringSubmatch(m[2], -1) {
			fields[f[1]] = strings.Trim(f[2], `"`)
		}
		switch {
		case m[1] == typeAVC && fields["apparmor"] == "DENIED":
			found = append(found, Denial{fields["profile"], fields["operation"], object(fields), m[0]})
		case m[1] == typeSeccomp:
			found = append(found, Denial{label(fields["subj"]), "syscall", fields["syscall"], m[0]})
		}
	}
	return found
}

// object returns what an operation was to be done to. A name that the kernel has
// written in hexadecimal, because of a space in it, is left so.
func object(fields map[string]string) string {
	for _, key := range []string{"capname", "name", "family", "peer", "signal"} {
		if v := fields[key]; v != "" {
			return v
		}
	}
	return ""
}

// label returns the profile in a label of a process, "snap.x.y (enforce)".
func label(s string) string {
	profile, _, _ := strings.Cut(s, " ")
	return profile
}

// Lost tells how many records of the log were not written: it is not complete
// then. The kernel says so in two ways.
func Lost(log string) []string {
	var lines []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, "audit_lost=") || regexp.MustCompile(`kauditd_printk_skb: \d+ callbacks suppressed`).MatchString(line) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// An Expected is a kind of denial that is known, and why it is harmless. Each of
// Profile, Operation and Name is a pattern for the whole of the field, and an empty
// one matches all.
type Expected struct {
	Profile, Operation, Name string
	Why                      string
}

// matches tells whether d is of the kind.
func (e Expected) matches(d Denial) bool {
	return whole(e.Profile, d.Profile) && whole(e.Operation, d.Operation) && whole(e.Name, d.Name)
}

func whole(pattern, s string) bool {
	return pattern == "" || regexp.MustCompile(`^(?:`+pattern+`)$`).MatchString(s)
}

// Unexpected returns the denials that are not on the list, one of each kind with
// how many there were of it. Numbers in a name, such as those of processes, make no
// kind of their own.
func Unexpected(all []Denial, list []Expected) []string {
	count, line := make(map[string]int), make(map[string]string)
	for _, d := range all {
		if slices.ContainsFunc(list, func(e Expected) bool { return e.matches(d) }) {
			continue
		}
		kind := process.ReplaceAllString(d.String(), "/proc/PID")
		count[kind]++
		line[kind] = d.Line
	}
	var kinds []string
	for kind, n := range count {
		kinds = append(kinds, kind+" ("+strconv.Itoa(n)+" times; the last: "+line[kind]+")")
	}
	slices.Sort(kinds)
	return kinds
}

// process matches a process in a path.
var process = regexp.MustCompile(`/proc/\d+`)
