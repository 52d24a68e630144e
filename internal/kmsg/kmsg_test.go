package kmsg_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
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
		"oops on x86":                    {"null-x86.txt", "NULL pointer dereference/lkp_x/livepatch_cmdline_proc_show", "BUG: kernel NULL pointer dereference, address: … in livepatch_cmdline_proc_show"},
		"hung task":                      {"hung-x86.txt", "hung task/lkp_x/livepatch_sys_madvise", "INFO: task victim:140 blocked for more than 15 seconds. in livepatch_sys_madvise"},
		"panic":                          {"panic-x86.txt", "panic/lkp_x/boom", "Kernel panic - not syncing: lkp_x: as ordered in boom"},
		"warning, written with thread":   {"warning-x86.txt", "WARNING/lkp_x/livepatch_vfs_read", "WARNING: CPU: 2 PID: 1201 at /build/lkp_x.c:77 livepatch_vfs_read+0x5c/0x90 [lkp_x] in livepatch_vfs_read, livepatch_ksys_read"},
		"protection fault further below": {"gpf-x86.txt", "general protection fault/lkp_x/livepatch_tcp_ack", "Oops: general protection fault, probably for non-canonical address …: 0000 [#1] PREEMPT SMP NOPTI in livepatch_tcp_ack"},
		"oops on arm64":                  {"null-arm64.txt", "NULL pointer dereference/lkp_x/livepatch_uptime_proc_show", "Unable to handle kernel NULL pointer dereference at virtual address … in livepatch_uptime_proc_show"},
		"oops on powerpc":                {"oops-ppc64.txt", "page fault/lkp_x/livepatch_meminfo", "BUG: Unable to handle kernel data access at … in livepatch_meminfo"},
		"BUG on s390":                    {"bug-s390x.txt", "BUG/lkp_x/livepatch_show", "kernel BUG at /build/lkp_x.c:41! in livepatch_show"},
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

func TestFindTellsBootsApart(t *testing.T) {
	fsys := fstest.MapFS{
		// Of one crash: the newest part first, and it is the end.
		"sys/fs/pstore/dmesg-efi_pstore-170000000001001": {Data: []byte("Panic#1 Part1\n" + tail(trace(t, "panic-x86.txt"), 12))},
		"sys/fs/pstore/dmesg-efi_pstore-170000000002001": {Data: []byte("Panic#1 Part2\n" + head(trace(t, "panic-x86.txt"), 12))},
		"sys/fs/pstore/dmesg-ramoops-0.enc.z":            {Data: []byte{0x78, 0x9c, 0xff, 0xfe}},
		"sys/fs/pstore/console-ramoops-0":                {Data: []byte(trace(t, "null-x86.txt"))},
	}
	got := kmsg.Find(fsys, func() string { return trace(t, "hung-x86.txt") }, "this boot", []string{"lkp_x"})
	if len(got) != 2 || got[0].Signature != "panic/lkp_x/boom" || got[0].BootID != "" ||
		got[1].Signature != "hung task/lkp_x/livepatch_sys_madvise" || got[1].BootID != "this boot" {
		t.Errorf("Find = %+v", got)
	}
	if got := kmsg.Find(fstest.MapFS{}, func() string { return "" }, "this boot", []string{"lkp_x"}); got != nil {
		t.Errorf("found %+v in nothing", got)
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
// the module that was asked for, and the same when it is read again.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 9 {
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
	})
}
