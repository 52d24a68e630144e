package kernel_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// notes returns a note as /sys/kernel/notes has it.
func notes(name string, kind uint32, desc []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.NativeEndian.AppendUint32(b, kind)
	b = append(b, name...)
	b = append(b, make([]byte, -len(name)&3)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(desc)&3)...)
}

// machine returns a kernel with livepatch support and nothing unusual.
func machine() fstest.MapFS {
	fsys := fstest.MapFS{}
	id := []byte("0123456789abcdefghij")
	for name, content := range map[string]string{
		"proc/sys/kernel/osrelease":                "6.1.0-53-amd64\n",
		"proc/sys/kernel/random/boot_id":           "4a0b\n",
		"proc/sys/kernel/ftrace_enabled":           "1\n",
		"proc/sys/kernel/modules_disabled":         "0\n",
		"proc/sys/kernel/tainted":                  "0\n",
		"sys/kernel/notes":                         string(notes("Xen\x00", 18, []byte("x"))) + string(notes("GNU\x00", 3, id)),
		"sys/kernel/livepatch/x/enabled":           "1\n",
		"sys/kernel/security/lockdown":             "[none] integrity confidentiality\n",
		"sys/module/module/parameters/sig_enforce": "N\n",
	} {
		fsys[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return fsys
}

func TestUsualMachineIsReady(t *testing.T) {
	f, err := kernel.Read(machine(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Ready(); err != nil {
		t.Errorf("Ready = %v", err)
	}
	if f.Release != "6.1.0-53-amd64" || f.BootID != "4a0b" || f.Arch == "" || len(f.BuildID) != 40 {
		t.Errorf("facts = %+v", f)
	}
	if f.SigEnforced || f.Lockdown != "none" || f.Taints != nil {
		t.Errorf("facts = %+v", f)
	}
}

func TestSwitches(t *testing.T) {
	tests := map[string]struct {
		file, content string // "" removes the file
		ready         error
		enforced      bool
	}{
		"no livepatch support":    {file: "sys/kernel/livepatch/x/enabled", ready: patch.ErrNoLivepatch},
		"modules disabled":        {file: "proc/sys/kernel/modules_disabled", content: "1\n", ready: patch.ErrModulesDisabled},
		"ftrace disabled":         {file: "proc/sys/kernel/ftrace_enabled", content: "0\n", ready: patch.ErrFtraceDisabled},
		"no switch for ftrace":    {file: "proc/sys/kernel/ftrace_enabled"},
		"signatures enforced":     {file: "sys/module/module/parameters/sig_enforce", content: "Y\n", enforced: true},
		"lockdown for integrity":  {file: "sys/kernel/security/lockdown", content: "none [integrity] confidentiality\n", enforced: true},
		"lockdown for secrets":    {file: "sys/kernel/security/lockdown", content: "none integrity [confidentiality]\n", enforced: true},
		"kernel without lockdown": {file: "sys/kernel/security/lockdown"},
		"lockdown speaks new":     {file: "sys/kernel/security/lockdown", content: "none\n"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			fsys := machine()
			if tc.content == "" {
				delete(fsys, tc.file)
			} else {
				fsys[tc.file] = &fstest.MapFile{Data: []byte(tc.content)}
			}
			f, err := kernel.Read(fsys, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Ready(); !errors.Is(err, tc.ready) || (err == nil) != (tc.ready == nil) {
				t.Errorf("Ready = %v, want %v", err, tc.ready)
			}
			if f.SigEnforced != tc.enforced {
				t.Errorf("enforced = %v, want %v", f.SigEnforced, tc.enforced)
			}
		})
	}
}

func TestKernelThatCannotBeNamedIsAnError(t *testing.T) {
	for _, file := range []string{"proc/sys/kernel/osrelease", "proc/sys/kernel/random/boot_id", "sys/kernel/notes"} {
		for _, content := range []string{"", "\n"} {
			fsys := machine()
			fsys[file] = &fstest.MapFile{Data: []byte(content)}
			if f, err := kernel.Read(fsys, nil); err == nil {
				t.Errorf("%s holds %q: facts are %+v", file, content, f)
			}
		}
	}
}

func TestTaintsSayWhoAndWhy(t *testing.T) {
	fsys := machine()
	fsys["proc/sys/kernel/tainted"] = &fstest.MapFile{Data: []byte("9223372036854812672\n")} // bits 12, 15 and 63
	fsys["sys/module/zfs/taint"] = &fstest.MapFile{Data: []byte("POE\n")}
	fsys["sys/module/lp/taint"] = &fstest.MapFile{Data: []byte("OK\n")}
	f, err := kernel.Read(fsys, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []kernel.Taint{
		{Bit: 12, Letter: "O", Meaning: "externally built module was loaded", Modules: []string{"lp", "zfs"}},
		{Bit: 15, Letter: "K", Meaning: "kernel has been live patched", Modules: []string{"lp"}},
		{Bit: 63, Letter: "?", Meaning: "unknown to this version"},
	}
	if diff := cmp.Diff(want, f.Taints); diff != "" {
		t.Errorf("taints (-want +got):\n%s", diff)
	}
}
