// Package kmsg finds, in what the kernel has written to its log, oopses, warnings and
// stalls whose trace leads through a livepatch. It only reads text; who may have the
// kernel's log is the caller's business.
//
// The forms are those of the kernel tree, 5.4 to 7.0: arch/*/kernel/{traps,dumpstack}.c,
// lib/bug.c, kernel/{panic,hung_task,watchdog}.c, kernel/rcu/tree_stall.h,
// lib/vsprintf.c and kernel/kallsyms.c (functions), kernel/printk/printk.c (prefix).
package kmsg

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Complaint is a trace that leads through a module.
type Complaint struct {
	Module string
	// Signature is what makes two of them the same, on different machines too: what
	// went wrong, the module, and its topmost function in the trace, without any
	// address: "NULL pointer dereference/lkp_x/foo_bar".
	Signature string
	// Message is the line that the trace begins with, and the functions of the module
	// in it, topmost first. Numbers that may tell where the kernel lies in memory are
	// left out: who reads this need not be root.
	Message string
	// BootID is the boot that it is from, "" for a record of an earlier one.
	BootID string
}

// Limits on what is found.
const (
	maxComplaints = 16
	maxMessage    = 1 << 10 // bytes
	maxSignature  = 200     // bytes; as much as a service takes
	maxTrace      = 150     // lines
	maxFunctions  = 8       // of one trace
	maxPause      = 15      // seconds between two lines of one trace; it waits 10 for other processors
)

// beheaded is what a trace is called that does not say what went wrong, as a rule because a
// store had no room for its first line. Where another one of the same function does, it
// is that one.
const beheaded = "oops"

// kinds are how traces begin, and what that is called; the first that matches counts.
var kinds = []struct {
	name string
	line *regexp.Regexp
}{
	{"hung task", regexp.MustCompile(`^INFO: task .* blocked (in I/O wait )?for more than`)},
	{"soft lockup", regexp.MustCompile(`BUG: soft lockup - CPU`)},
	{"hard lockup", regexp.MustCompile(`[Ww]atchdog.* [Hh]ard LOCKUP`)},
	{"RCU stall", regexp.MustCompile(`self-detected stall on CPU|detected (expedited )?stalls on CPUs`)},
	{"NULL pointer dereference", regexp.MustCompile(`^(BUG: |Unable to handle ).*NULL pointer dereference`)},
	{"general protection fault", regexp.MustCompile(`^(Oops: )?general protection fault`)},
	{"stack overflow", regexp.MustCompile(`kernel stack overflow|stack guard page was hit`)},
	{"page fault", regexp.MustCompile(`^(BUG: )?[Uu]nable to handle `)},
	{"KASAN", regexp.MustCompile(`^BUG: KASAN: `)},
	{"KFENCE", regexp.MustCompile(`^BUG: KFENCE: `)},
	{"UBSAN", regexp.MustCompile(`^UBSAN: `)},
	{"scheduling while atomic", regexp.MustCompile(`^BUG: scheduling while atomic`)},
	{"BUG", regexp.MustCompile(`^(kernel )?BUG(:| at )`)},
	{"WARNING", regexp.MustCompile(`^WARNING: `)},
	{"panic", regexp.MustCompile(`^Kernel panic - not syncing`)},
	{beheaded, regexp.MustCompile(`^Oops: |^Internal error: |^[a-z][a-z ]+: [0-9a-f]{4} .*\[#\d+\]`)},
}

// words are such that a line without any of them is of no kind; most lines have none.
var words = []string{"BUG", "WARNING: ", "INFO: task ", "Oops: ", "LOCKUP", "stall", "UBSAN: ", "panic", "error: ", "able to handle ", "fault", "[#", "overflow", "guard page"}

var (
	// prefix is what stands before a line: facility and level, time, who wrote it.
	prefix = regexp.MustCompile(`^(?:<(\d+)>)?(?:\[ *(\d+)\.\d+\])?(?:\[ *[TC]\d+\])? ?`)
	// function is one of a module in a trace, "foo+0x12/0x30 [lkp_x]"; behind the name
	// of the module its build-id may follow.
	function = regexp.MustCompile(`([A-Za-z_.][\w.$]*)\+0x[0-9a-f]+/0x[0-9a-f]+ \[(\w+)( [0-9a-f]+)?\]`)
	// guess marks a function that the unwinder found on the stack without knowing that
	// it is in use: on x86, on powerpc, on s390.
	guess = regexp.MustCompile(`^ *\? |\(unreliable\)|^ *\(\[<`)
	// begins is the line above the functions of a trace, or one further above it.
	begins = regexp.MustCompile(`^Call [Tt]race:|^CPU: \d+ (UID: \d+ )?PID: `)
	// address is a number that may tell where something lies.
	address = regexp.MustCompile(`\b(0x)?[0-9a-fA-F]{8,}\b`)
)

// Parse returns the complaints about some modules in a kernel's log, oldest first. Of
// those that have one signature it returns the first.
func Parse(log string, modules []string) []Complaint { return parse(nil, log, modules) }

// parse adds those in a log to what was found before.
func parse(found []Complaint, log string, modules []string) []Complaint {
	if !slices.ContainsFunc(modules, func(m string) bool { return m != "" && strings.Contains(log, "["+m) }) {
		return found // as a rule
	}
	var t trace
	for text := range strings.Lines(log) {
		line, at, ok := split(strings.TrimRight(text, "\r\n"))
		if !ok {
			continue
		}
		if at > t.at+maxPause {
			found = t.end(found)
			t = trace{}
		}
		kind := kindOf(line)
		switch {
		case kind != "" && t.goesOn(kind):
			t.listed = false
		case kind != "":
			found = t.end(found)
			t = trace{kind: kind, head: line}
		case isOver(line) || t.listed && begins.MatchString(line):
			found = t.end(found)
			t = trace{}
		}
		t.at = max(t.at, at)
		t.take(line, modules)
	}
	return t.end(found)
}

// split returns a line without what stands before it, and the second in which it was
// written, 0 if it does not say. It is not ok if somebody else than the kernel wrote it:
// what comes through /dev/kmsg is of another facility (kernel/printk/printk.c).
func split(text string) (line string, at int, ok bool) {
	m := prefix.FindStringSubmatch(text)
	if m[1] != "" {
		if n, err := strconv.Atoi(m[1]); err != nil || n >= 8 { // facility times 8, and level
			return "", 0, false
		}
	}
	at, _ = strconv.Atoi(m[2])
	return text[len(m[0]):], at, true
}

// kindOf returns what a line says that has gone wrong, "" for most.
func kindOf(line string) string {
	if !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
		return ""
	}
	for _, k := range kinds {
		if k.line.MatchString(line) {
			return k.name
		}
	}
	return ""
}

// isOver tells whether a line is the end of a trace. What an oops repeats after it adds
// nothing.
func isOver(line string) bool {
	return strings.HasPrefix(strings.TrimLeft(line, " "), "</TASK>") || strings.HasPrefix(line, "---[ end ") || strings.HasPrefix(line, "sysrq: ")
}

// A trace is what the kernel says of one thing that went wrong. The zero trace is
// none.
type trace struct {
	kind, head string
	lines      int
	at         int      // when the last of them was written, in seconds since the boot
	listed     bool     // its functions have begun
	module     string   // that of ours which comes first
	functions  []string // of that module
}

// goesOn tells whether a line of this kind belongs to the trace rather than beginning
// another one: an oops first says what happened and then that it is one.
func (t *trace) goesOn(kind string) bool {
	return t.kind != "" && (kind == beheaded || kind == "panic")
}

// take reads a line of the trace.
func (t *trace) take(line string, modules []string) {
	t.listed = t.listed || strings.EqualFold(line, "Call Trace:")
	if t.lines++; t.kind == "" || t.lines > maxTrace || !strings.Contains(line, "+0x") {
		return
	}
	m := function.FindStringSubmatch(line)
	if m == nil || guess.MatchString(line) || !slices.Contains(modules, m[2]) {
		return
	}
	if t.module == "" {
		t.module = m[2]
	}
	if t.module == m[2] && len(t.functions) < maxFunctions && !slices.Contains(t.functions, m[1]) {
		t.functions = append(t.functions, m[1])
	}
}

// end adds the trace to what was found, if it leads through a module of ours.
func (t *trace) end(found []Complaint) []Complaint {
	if t.module == "" || len(found) >= maxComplaints {
		return found
	}
	where := "/" + t.module + "/" + t.functions[0]
	c := Complaint{
		Module:    t.module,
		Signature: short(t.kind+where, maxSignature),
		Message:   short(printable(address.ReplaceAllString(t.head, "…"))+" in "+strings.Join(t.functions, ", "), maxMessage),
	}
	if slices.ContainsFunc(found, func(f Complaint) bool {
		return f.Signature == c.Signature || t.kind == beheaded && strings.HasSuffix(f.Signature, where)
	}) {
		return found
	}
	if t.kind != beheaded {
		found = slices.DeleteFunc(found, func(f Complaint) bool { return f.Signature == beheaded+where })
	}
	return append(found, c)
}

// printable replaces what has no place in one line of text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// short cuts a text to at most limit bytes.
func short(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "")
}
