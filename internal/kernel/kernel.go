// Package kernel reads what the loader has to know about the running kernel.
package kernel

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"strings"

	"livepatch/internal/patch"
)

// Facts tell which kernel runs and what it lets in.
type Facts struct {
	patch.Kernel
	Maker           string // distribution that built it, "debian"; "" if unknown
	BootID          string
	Random          string   // 122 bits that the kernel has made for this reading
	Livepatch       bool     // has /sys/kernel/livepatch
	Ftrace          bool     // kernel.ftrace_enabled
	ModulesDisabled bool     // kernel.modules_disabled
	SigEnforced     bool     // module.sig_enforce, or lockdown, which implies it
	Lockdown        string   // "none", "integrity", "confidentiality"; "" if unknown
	SecureBoot      *bool    // of the UEFI that started it; nil if unknown
	ModuleKeys      []string // see moduleKeys; nil if unknown
	RevokedKeys     []string
	Taints          []Taint
	Mode            Mode  // what the operator has switched off
	ModeErr         error // why that is not what was meant, if it is not
}

// A Taint is one set bit of /proc/sys/kernel/tainted.
type Taint struct {
	Bit             int
	Letter, Meaning string
	Modules         []string // that set it, as /sys/module/*/taint tells
}

// Ready returns why this kernel takes no livepatch at all, or is to take none, or nil.
func (f Facts) Ready() error {
	switch {
	case f.Mode&NoApply != 0:
		return fmt.Errorf("%w: %w", patch.ErrSwitchedOff, cmp.Or(f.ModeErr, fmt.Errorf("mode is %q", f.Mode)))
	case !f.Livepatch:
		return patch.ErrNoLivepatch
	case f.ModulesDisabled:
		return patch.ErrModulesDisabled
	case !f.Ftrace:
		return patch.ErrFtraceDisabled
	}
	return nil
}

// machines maps Go's names of architectures to those of uname -m.
var machines = map[string]string{"amd64": "x86_64", "arm64": "aarch64", "s390x": "s390x", "ppc64le": "ppc64le"}

// Arch returns the architecture of this program as uname -m prints it, "" for one
// that the project does not know.
func Arch() string { return machines[runtime.GOARCH] }

// Reader returns a function that reads the facts, as they are each time.
func Reader(fsys, state fs.FS) func() (Facts, error) {
	return func() (Facts, error) { return Read(fsys, state) }
}

// Read reads the facts from fsys, normally os.DirFS("/"), and the mode from there and
// from the folder state. Which kernel runs has to be known; what else cannot be read
// stays at its zero value.
func Read(fsys, state fs.FS) (Facts, error) {
	text := func(name string) string {
		b, _ := fs.ReadFile(fsys, name) // "" where this kernel has no such file
		return string(bytes.TrimSpace(b))
	}
	notes, err := fs.ReadFile(fsys, "sys/kernel/notes")
	var id patch.BuildID
	if err == nil {
		id, err = patch.BuildIDFromNotes(notes)
	}
	f := Facts{
		Kernel: patch.Kernel{Arch: Arch(), Release: text("proc/sys/kernel/osrelease"), BuildID: id},
		Maker:  maker(text("proc/version")),
		BootID: text("proc/sys/kernel/random/boot_id"),
		Random: text("proc/sys/kernel/random/uuid"),
		// Absent means that ftrace cannot be switched off.
		Ftrace:          text("proc/sys/kernel/ftrace_enabled") != "0",
		ModulesDisabled: text("proc/sys/kernel/modules_disabled") == "1",
		Lockdown:        parseLockdown(text("sys/kernel/security/lockdown")),
		SecureBoot:      secureBoot(fsys),
		Taints:          taints(fsys, text),
	}
	if err != nil || f.Release == "" || f.BootID == "" {
		return Facts{}, fmt.Errorf("cannot tell which kernel runs: release %q, boot %q: %w", f.Release, f.BootID, cmp.Or(err, fs.ErrNotExist))
	}
	f.SigEnforced = text("sys/module/module/parameters/sig_enforce") == "Y" ||
		f.Lockdown == "integrity" || f.Lockdown == "confidentiality"
	f.ModuleKeys, f.RevokedKeys = moduleKeys(readKeys(fsys))
	f.Mode, f.ModeErr = ReadMode(fsys, state)
	_, err = fs.Stat(fsys, "sys/kernel/livepatch")
	f.Livepatch = err == nil
	return f, nil
}

// parseLockdown returns the word in brackets of "none [integrity] confidentiality".
func parseLockdown(s string) string {
	_, rest, _ := strings.Cut(s, "[")
	word, _, _ := strings.Cut(rest, "]")
	return word
}

// taintBits are those of Documentation/admin-guide/tainted-kernels.rst, in
// order: the letter, then the meaning.
var taintBits = []string{
	"Pproprietary module was loaded", "Fmodule was force loaded", "Skernel running on an out of specification system",
	"Rmodule was force unloaded", "Mprocessor reported a machine check", "Bbad page referenced",
	"Utaint requested by userspace", "Dkernel died recently, there was an oops or BUG", "AACPI table overridden by user",
	"Wkernel issued a warning", "Cstaging driver was loaded", "Iworkaround for a firmware bug applied",
	"Oexternally built module was loaded", "Eunsigned module was loaded", "Lsoft lockup occurred",
	"Kkernel has been live patched", "Xauxiliary taint of the distribution", "Tkernel built with struct randomization",
	"Nin-kernel test was run", "Juserspace used a mutating debug operation",
}

func taints(fsys fs.FS, text func(string) string) (taints []Taint) {
	mask, _ := strconv.ParseUint(text("proc/sys/kernel/tainted"), 10, 64)
	modules := map[string][]string{} // by letter
	files, _ := fs.Glob(fsys, "sys/module/*/taint")
	for _, file := range files {
		for _, letter := range text(file) {
			modules[string(letter)] = append(modules[string(letter)], path.Base(path.Dir(file)))
		}
	}
	for bit := range 64 {
		if mask&(1<<bit) == 0 {
			continue
		}
		t := Taint{Bit: bit, Letter: "?", Meaning: "unknown to this version"}
		if bit < len(taintBits) {
			t.Letter, t.Meaning = taintBits[bit][:1], taintBits[bit][1:]
		}
		t.Modules = modules[t.Letter]
		taints = append(taints, t)
	}
	return taints
}
