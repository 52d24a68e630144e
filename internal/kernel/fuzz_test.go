package kernel_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"livepatch/internal/kernel"
)

// FuzzRead reads a kernel whose files hold anything. Facts are whole or not
// there: what the loader compares is never empty, and a taint never without a
// name.
func FuzzRead(f *testing.F) {
	note := "\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00" + strings.Repeat("\x11", 20)
	f.Add(note, "6.1.0-53-amd64\n", "5c3e9b1a-7d52-4f6e-9a3e-0b1c2d3e4f50\n", "none [integrity] confidentiality\n", "12288\n", "OE\n")
	f.Add(note, "6.1.0-53-amd64\n", "b\n", "[none]", "18446744073709551615\n", "P\x00é\n")
	f.Add(note[:20], "6.1\n", "b\n", "]integrity[", "-1\n", "")
	f.Add("", "", "", "", "x", "")
	f.Add(note, " \n", "b", "[[a]]", "99999999999999999999\n", "\n")
	f.Fuzz(func(t *testing.T, notes, release, boot, lockdown, tainted, letters string) {
		files := fstest.MapFS{}
		for name, content := range map[string]string{
			"sys/kernel/notes": notes, "proc/sys/kernel/osrelease": release, "proc/sys/kernel/random/boot_id": boot,
			"sys/kernel/security/lockdown": lockdown, "proc/sys/kernel/tainted": tainted, "sys/module/m/taint": letters,
			"proc/sys/kernel/ftrace_enabled": lockdown, "sys/module/module/parameters/sig_enforce": letters,
		} {
			files[name] = &fstest.MapFile{Data: []byte(content)}
		}
		facts, err := kernel.Read(files, nil)
		if err != nil {
			if facts.Release != "" || facts.BuildID != "" || strings.Contains(err.Error(), "%!") {
				t.Errorf("%+v, %v", facts, err)
			}
			return
		}
		if facts.Release == "" || facts.BootID == "" || len(facts.BuildID) < 8 {
			t.Errorf("facts are not whole: %+v", facts)
		}
		if len(facts.Taints) > 64 {
			t.Errorf("%d taints", len(facts.Taints))
		}
		for _, taint := range facts.Taints {
			if taint.Letter == "" || taint.Meaning == "" {
				t.Errorf("taint without a name: %+v", taint)
			}
		}
	})
}
