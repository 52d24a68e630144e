package denial_test

import (
	"slices"
	"strings"
	"testing"

	"livepatch/tests/snap/denial"
)

// log holds lines as kernel 6.1 with snapd 2.57 has written them.
const log = `[   83.343] audit: type=1400 audit(1795340071.912:17): apparmor="STATUS" operation="profile_load" profile="unconfined" name="snap.canonical-livepatch.loader" pid=500 comm="apparmor_parser"
[   97.999] audit: type=1400 audit(1795340086.568:29): apparmor="DENIED" operation="open" profile="snap.canonical-livepatch.boot" name="/proc/567/mountinfo" pid=567 comm="livepatch-loade" requested_mask="r" denied_mask="r" fsuid=0 ouid=0
[   98.995] audit: type=1326 audit(1795340087.568:30): auid=4294967295 uid=0 gid=0 ses=4294967295 subj=snap.canonical-livepatch.boot pid=567 comm="livepatch-loade" exe="/snap/canonical-livepatch/x1/bin/livepatch-loader" sig=0 arch=c000003e syscall=444 compat=0 ip=0x40aa0e code=0x50000
[  106.943] audit: type=1400 audit(1795340095.512:39): apparmor="DENIED" operation="capable" class="cap" profile="snap.canonical-livepatch.canonical-livepatchd" pid=594 comm="canonical-livep" capability=4  capname="fsetid"
`

func TestDenialsAreFoundInTheKernelsLog(t *testing.T) {
	var got []string
	for _, d := range denial.Parse(log) {
		got = append(got, d.String())
	}
	want := []string{
		"snap.canonical-livepatch.boot: open /proc/567/mountinfo",
		"snap.canonical-livepatch.boot: syscall 444",
		"snap.canonical-livepatch.canonical-livepatchd: capable fsetid",
	}
	if !slices.Equal(got, want) {
		t.Errorf("denials = %q, want %q", got, want)
	}
}

func TestUnexpectedDenialsAreCountedByKind(t *testing.T) {
	again := strings.ReplaceAll(log, "/proc/567/", "/proc/600/")
	list := []denial.Expected{{Operation: "syscall", Name: "444", Why: "test"}}
	got := denial.Unexpected(denial.Parse(log+again), list)
	if len(got) != 2 || !strings.HasPrefix(got[0], "snap.canonical-livepatch.boot: open /proc/PID/mountinfo (2 times") {
		t.Errorf("unexpected = %q, want two kinds, mountinfo twice", got)
	}
}

func TestAnExpectationIsOfTheWholeField(t *testing.T) {
	tests := map[string]struct {
		expected denial.Expected
		matches  bool
	}{
		"all of it":              {denial.Expected{Name: `/proc/\d+/mountinfo`}, true},
		"its beginning":          {denial.Expected{Name: `/proc/\d+`}, false},
		"another profile":        {denial.Expected{Profile: `snap\.other\..*`, Name: `.*`}, false},
		"nothing in particular":  {denial.Expected{}, true},
		"one of two":             {denial.Expected{Operation: "chmod|open"}, true},
		"one of two, its middle": {denial.Expected{Operation: "chmod|pe"}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			d := denial.Parse(log)[:1]
			if got := len(denial.Unexpected(d, []denial.Expected{tc.expected})) == 0; got != tc.matches {
				t.Errorf("expected = %v, want %v", got, tc.matches)
			}
		})
	}
}

func TestALogThatIsNotCompleteSaysSo(t *testing.T) {
	lost := "[   97.9] kauditd_printk_skb: 1 callbacks suppressed\n[ 98.0] audit: audit_lost=3 audit_rate_limit=0 audit_backlog_limit=64\n"
	if got := denial.Lost(log + lost); len(got) != 2 {
		t.Errorf("lost = %q, want two lines", got)
	}
	if got := denial.Lost(log); len(got) != 0 {
		t.Errorf("lost = %q, want none", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(log)
	f.Add(`audit: type=1400 audit(1:2): apparmor="DENIED" name="`)
	f.Add("audit: type=1326 audit(1.2:3): ")
	f.Fuzz(func(t *testing.T, log string) {
		for _, d := range denial.Parse(log) {
			if d.Operation == "syscall" && strings.Contains(d.Profile, " ") {
				t.Errorf("profile = %q, want no mode in it", d.Profile)
			}
			if !strings.Contains(log, d.Line) {
				t.Errorf("line %q is not in the log", d.Line)
			}
		}
	})
}
