package kmsg_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"livepatch/internal/kmsg"
)

func trace(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		file, signature, message string
	}{
		"oops on x86":                     {"null-x86.txt", "NULL pointer dereference/lkp_x/livepatch_cmdline_proc_show", "BUG: kernel NULL pointer dereference, address: … in livepatch_cmdline_proc_show"},
		"hung task":                       {"hung-x86.txt", "hung task/lkp_x/livepatch_sys_madvise", "INFO: task victim:140 blocked for more than 15 seconds. in livepatch_sys_madvise"},
		"panic":                           {"panic-x86.txt", "panic/lkp_x/boom", "Kernel panic - not syncing: lkp_x: as ordered in boom"},
		"panic, as a store has kept it":   {"erst-x86.txt", "panic/lkp_x/livepatch_panic", "Kernel panic - not syncing: test livepatch: the time has come in livepatch_panic"},
		"oops, what a store had room for": {"ramoops-x86.txt", "oops/lkp_x/livepatch_cmdline_proc_show", "Oops: 0002 [#1] PREEMPT SMP NOPTI in livepatch_cmdline_proc_show"},
		"warning, written with thread":    {"warning-x86.txt", "WARNING/lkp_x/livepatch_vfs_read", "WARNING: CPU: 2 PID: 1201 at /build/lkp_x.c:77 livepatch_vfs_read+0x5c/0x90 [lkp_x] in livepatch_vfs_read, livepatch_ksys_read"},
		"protection fault further below":  {"gpf-x86.txt", "general protection fault/lkp_x/livepatch_tcp_ack", "Oops: general protection fault, probably for non-canonical address …: 0000 [#1] PREEMPT SMP NOPTI in livepatch_tcp_ack"},
		"oops on arm64":                   {"null-arm64.txt", "NULL pointer dereference/lkp_x/livepatch_uptime_proc_show", "Unable to handle kernel NULL pointer dereference at virtual address … in livepatch_uptime_proc_show"},
		"oops on powerpc":                 {"oops-ppc64.txt", "page fault/lkp_x/livepatch_meminfo", "BUG: Unable to handle kernel data access at … in livepatch_meminfo"},
		"BUG on s390":                     {"bug-s390x.txt", "BUG/lkp_x/livepatch_show", "kernel BUG at /build/lkp_x.c:41! in livepatch_show"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := kmsg.Parse(trace(t, tc.file), []string{"other", "lkp_x"})
			want := []kmsg.Complaint{{Module: "lkp_x", Signature: tc.signature, Message: tc.message}}
			if !slices.Equal(got, want) {
				t.Errorf("Parse = %+v\n   want %+v", got, want)
			}
			if got := kmsg.Parse(trace(t, tc.file), []string{"lkp", "lkp_x_2", ""}); got != nil {
				t.Errorf("another module is blamed: %+v", got)
			}
		})
	}
}

// A module that is loaded, or whose functions lie forgotten on a stack, is not to blame.
func TestModulesThatAreOnlyThereAreNotBlamed(t *testing.T) {
	if got := kmsg.Parse(trace(t, "innocent.txt"), []string{"lkp_x"}); got != nil {
		t.Errorf("Parse = %+v", got)
	}
}

func TestWhatGoesOnIsOneComplaint(t *testing.T) {
	var log strings.Builder
	for i := range 10 {
		log.WriteString(strings.ReplaceAll(trace(t, "hung-x86.txt"), "more than 15", fmt.Sprint("more than ", 15+5*i)))
	}
	log.WriteString(trace(t, "lockup-x86.txt"))
	var got []string
	for _, c := range kmsg.Parse(log.String(), []string{"lkp_x"}) {
		got = append(got, c.Signature)
	}
	want := []string{"hung task/lkp_x/livepatch_sys_madvise", "soft lockup/lkp_x/livepatch_spin", "RCU stall/lkp_x/livepatch_spin"}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// What programs write into the log, by /dev/kmsg, the kernel marks as theirs.
func TestProgramsAreNotBelieved(t *testing.T) {
	const head, function = "[  100.000001] BUG: kernel NULL pointer dereference, address: 0000000000000000\n", "[  100.000002] RIP: 0010:livepatch_foo+0x30/0x4d [lkp_x]\n"
	tests := map[string]struct {
		log      string
		believed bool
	}{
		"the kernel":                    {"<1>" + head + "<4>" + function, true},
		"a kernel that does not say":    {head + function, true},
		"a program":                     {"<14>" + head + "<14>" + function, false},
		"a program, of what went wrong": {"<9>" + head + "<4>" + function, false},
		"a program, of a function":      {"<1>" + head + "<12>" + function, false},
		"a program between":             {"<1>" + head + "<30>---[ end trace 0000000000000000 ]---\n<4>" + function, true},
		"a facility of many digits":     {"<1>" + head + "<99999999999999999999>" + function, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := kmsg.Parse(tc.log, []string{"lkp_x"}); tc.believed != (len(got) == 1) {
				t.Errorf("Parse = %+v", got)
			}
		})
	}
}

// Some kernels do not mark the end of a trace: on x86 before 5.18, and on arm64.
func TestTraceEndsWhereTheNextBegins(t *testing.T) {
	const hung = `[  484.000001] INFO: task nfsd:99 blocked for more than 120 seconds.
[  484.000002] task:nfsd            state:D stack:    0 pid:   99 ppid:     2 flags:0x00004000
[  484.000003] Call Trace:
[  484.000004]  __schedule+0x282/0x870
`
	tests := map[string]struct {
		next, want string // "" if our function is in no trace that says that something went wrong
	}{
		"which says on which processor it is": {`[  485.000001] CPU: 1 PID: 400 Comm: cat Tainted: G           OE K    5.10.0-30-amd64 #1
[  485.000002] RIP: 0010:livepatch_vfs_read+0x22/0x60 [lkp_x]
[  485.000003] Call Trace:
[  485.000004]  livepatch_ksys_read+0x5f/0xe0 [lkp_x]
`, ""},
		"which does not": {`[  485.000003] Call trace:
[  485.000004]  livepatch_ksys_read+0x5f/0xe0 [lkp_x]
`, ""},
		"long after it": {`[ 9000.000001]  livepatch_ksys_read+0x5f/0xe0 [lkp_x]
`, ""},
		"which says what went wrong": {`[  485.000001] BUG: scheduling while atomic: cat/400/0x00000002
[  485.000002] CPU: 1 PID: 400 Comm: cat Tainted: G           OE K    5.10.0-30-amd64 #1
[  485.000003] Call Trace:
[  485.000004]  livepatch_ksys_read+0x5f/0xe0 [lkp_x]
`, "scheduling while atomic/lkp_x/livepatch_ksys_read"},
		"unless it is the panic that follows": {`[  485.000001] Kernel panic - not syncing: hung_task: blocked tasks
[  485.000002] CPU: 1 UID: 0 PID: 400 Comm: khungtaskd Tainted: G           OE K    6.12.0-1-arm64 #1
[  485.000003] Call trace:
[  485.000004]  livepatch_ksys_read+0x5f/0xe0 [lkp_x]
`, "hung task/lkp_x/livepatch_ksys_read"},
		"and a panic long after it is another": {`[  500.000001] Kernel panic - not syncing: out of memory
[  500.000002] Call trace:
[  500.000003]  livepatch_ksys_read+0x5f/0xe0 [lkp_x]
`, "panic/lkp_x/livepatch_ksys_read"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var got string
			for _, c := range kmsg.Parse(hung+tc.next, []string{"lkp_x"}) {
				got += c.Signature
			}
			if got != tc.want {
				t.Errorf("signatures %q, want %q", got, tc.want)
			}
		})
	}
}

func TestFindTellsBootsApart(t *testing.T) {
	fsys := fstest.MapFS{
		"sys/fs/pstore/dmesg-erst-7711044211469975553": {Data: []byte(trace(t, "erst-x86.txt"))},
		"sys/fs/pstore/dmesg-ramoops-0.enc.z":          {Data: []byte{0x78, 0x9c, 0xff, 0xfe}},
		"sys/fs/pstore/console-ramoops-0":              {Data: []byte(trace(t, "null-x86.txt"))},
	}
	got := kmsg.Find(fsys, func() string { return trace(t, "hung-x86.txt") }, "this boot", []string{"lkp_x"})
	if len(got) != 2 || got[0].Signature != "panic/lkp_x/livepatch_panic" || got[0].BootID != "" ||
		got[1].Signature != "hung task/lkp_x/livepatch_sys_madvise" || got[1].BootID != "this boot" {
		t.Errorf("Find = %+v", got)
	}
	if got := kmsg.Find(fstest.MapFS{}, func() string { return "" }, "this boot", []string{"lkp_x"}); got != nil {
		t.Errorf("found %+v in nothing", got)
	}
}

func TestPartsOfACrashArePutTogether(t *testing.T) {
	early, late := head(trace(t, "panic-x86.txt"), 12), tail(trace(t, "panic-x86.txt"), 12) // in the midst of a trace
	nobodys := "<0>[    9.000000] Kernel panic - not syncing: Fatal exception\n"
	type records []struct {
		name, text string
		at         int64 // when it was written, in seconds
	}
	tests := map[string]struct {
		records records
		want    string // "" if there is nothing to complain of
	}{
		"in one second": {records{
			{"erst-7711044211469975553", "Panic#1 Part1\n" + late, 7}, {"erst-7711044211469975554", "Panic#1 Part2\n" + early, 7},
		}, "panic/lkp_x/boom"},
		"with a number of one more digit": {records{
			{"ramoops-9", "Panic#1 Part1\n" + late, 7}, {"ramoops-10", "Panic#1 Part2\n" + early, 7},
		}, "panic/lkp_x/boom"},
		"in a ring that begins again": {records{
			{"ramoops-7", "Panic#1 Part1\n" + late, 7}, {"ramoops-0", "Panic#1 Part2\n" + early, 8},
		}, "panic/lkp_x/boom"},
		"but not with those of another crash": {records{
			{"efi-170000000901001", "Panic#1 Part1\n" + nobodys, 9}, {"efi-170000000701001", "Panic#1 Part1\n" + late, 7},
		}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for _, r := range tc.records {
				fsys["sys/fs/pstore/dmesg-"+r.name] = &fstest.MapFile{Data: []byte(r.text), ModTime: time.Unix(r.at, 0)}
			}
			var got string
			for _, c := range kmsg.Find(fsys, func() string { return "" }, "this boot", []string{"lkp_x"}) {
				got += c.Signature
			}
			if got != tc.want {
				t.Errorf("signatures %q, want %q", got, tc.want)
			}
		})
	}
}

// With panic_on_oops the kernel writes first the oops and then, into as much room, the
// end of the same and the panic.
func TestWhatACrashIsCalledByBothItsRecordsIsOneComplaint(t *testing.T) {
	for name, records := range map[string][2]string{"the panic is read first": {"0", "2"}, "the oops is read first": {"2", "0"}} {
		t.Run(name, func(t *testing.T) {
			fsys := fstest.MapFS{
				"sys/fs/pstore/dmesg-ramoops-" + records[0]: {Data: []byte("Oops#1 Part1\n" + trace(t, "null-x86.txt"))},
				"sys/fs/pstore/dmesg-ramoops-" + records[1]: {Data: []byte(trace(t, "ramoops-x86.txt"))},
			}
			got := kmsg.Find(fsys, func() string { return "" }, "this boot", []string{"lkp_x"})
			if len(got) != 1 || got[0].Signature != "NULL pointer dereference/lkp_x/livepatch_cmdline_proc_show" {
				t.Errorf("Find = %+v", got)
			}
		})
	}
}

func lines(s string) []string { return strings.SplitAfter(s, "\n") }

func head(s string, n int) string { return strings.Join(lines(s)[:len(lines(s))-n], "") }

func tail(s string, n int) string { return strings.Join(lines(s)[len(lines(s))-n:], "") }

func TestWhatIsFoundIsBounded(t *testing.T) {
	var log, before strings.Builder
	for i := range 100 {
		fmt.Fprintf(&log, "WARNING: %s at f%d+0x1/0x2 [lkp_x]\n%s", strings.Repeat("é", 2000), i, strings.Repeat(" x\n", 300))
		fmt.Fprintf(&before, "WARNING: at g%d%s+0x1/0x2 [lkp_x]\n", i, strings.Repeat("g", 500))
	}
	fsys := fstest.MapFS{"sys/fs/pstore/dmesg-ramoops-0": {Data: []byte(before.String())}}
	got := kmsg.Find(fsys, log.String, "b", []string{"lkp_x"})
	if len(got) != 16 || got[7].BootID != "" || got[8].BootID != "b" {
		t.Errorf("%d complaints", len(got))
	}
	for _, c := range got {
		if len(c.Message) > 1<<10 || len(c.Signature) > 200 || !utf8.ValidString(c.Message) {
			t.Errorf("%d bytes of message, %d of signature", len(c.Message), len(c.Signature))
		}
	}
}

// FuzzParse holds that whatever is in a log, what is found is bounded, printable, about
// the module that was asked for, and the same when it is read again; and that nothing is
// if it is all a program's.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 12 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		f.Add(trace(f, filepath.Base(name)))
	}
	f.Add("WARNING: a\x00\x1b[31m+0x1/0x2 [lkp_x] a+0x1/0x2 [lkp_x]\xff\n")
	f.Fuzz(func(t *testing.T, log string) {
		got := kmsg.Parse(log, []string{"lkp_x"})
		if len(got) > 16 {
			t.Errorf("%d complaints", len(got))
		}
		for _, c := range got {
			if c.Module != "lkp_x" || !strings.Contains(c.Signature, "/lkp_x/") || len(c.Signature) > 200 || len(c.Message) > 1<<10 {
				t.Errorf("%+v", c)
			}
			if strings.ContainsFunc(c.Signature+c.Message, func(r rune) bool { return r < ' ' || r == utf8.RuneError || r == 0x7f }) {
				t.Errorf("not printable: %q", c)
			}
		}
		if !slices.Equal(got, kmsg.Parse(log, []string{"lkp_x"})) {
			t.Error("not the same again")
		}
		if got := kmsg.Parse("<14>"+strings.ReplaceAll(log, "\n", "\n<14>"), []string{"lkp_x"}); got != nil {
			t.Errorf("a program is believed: %+v", got)
		}
	})
}
