package gate

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"livepatch/internal/elftest"
	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
	"livepatch/loader/internal/journal"
)

var (
	start   = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	running = patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildID: "00112233445566778899aabbccddeeff00112233"}
)

const (
	name   = "lkp_Debian_6_1_0_53_amd64_1"
	target = "debian/" + name + ".x86_64.ko"
)

// described returns what the vendor signs about a patch for the running kernel.
func described() patch.Module {
	return patch.Module{
		Kernel: running, Flavour: "amd64", Name: name, Version: "1.1", Sequence: 5,
		Notice: "LSN-0001-1", Fixes: []string{"CVE-2026-0001"},
	}
}

// A world is a repository with one patch, and a gate on a machine of its own.
type world struct {
	repo    *tuftest.Repo
	gate    *Gate
	journal *journal.Journal
	now     time.Time
	module  []byte // what is sent
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{repo: tuftest.New(start), now: start.Add(time.Minute), module: elftest.Livepatch(name, running.Release)}
	w.add(described(), w.module)
	j, err := journal.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	w.journal = j
	w.gate = &Gate{Kernel: running, Memory: j, PinnedRoot: w.repo.Files().Roots[0], Now: func() time.Time { return w.now }}
	return w
}

// add puts a module and its rollout into the repository.
func (w *world) add(m patch.Module, content []byte) {
	w.repo.AddTarget(target, content, m)
	w.rollout(m.Version, patch.Rollout{State: patch.Running, SoakSeconds: 3600})
}

func (w *world) rollout(version string, r patch.Rollout) {
	w.repo.AddTarget(patch.RolloutPath("debian", version), nil, r)
}

// submission returns what an honest agent would send.
func (w *world) submission(t *testing.T) Submission {
	t.Helper()
	f := w.repo.Files()
	image, err := NewImage()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = image.Close() })
	if _, err := image.Write(w.module); err != nil {
		t.Fatal(err)
	}
	return Submission{
		Metadata: Metadata{
			Roots: f.Roots[1:], Timestamp: f.Roles["timestamp"], Snapshot: f.Roles["snapshot"],
			Targets: f.Roles["targets"], Rollout: f.Roles["rollout"],
		},
		Target: target, Vendor: f.Roles["debian"], Bin: f.Roles[w.repo.Bin(target)], Image: image,
	}
}

func TestHonestSubmissionIsCleared(t *testing.T) {
	w := newWorld(t)
	c, err := w.gate.Clear(w.submission(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c.Reader()); err != nil || !bytes.Equal(got, w.module) {
		t.Errorf("cleared bytes differ from those that were sent: %v", err)
	}
	if c.Module().Name != name {
		t.Errorf("cleared %+v", c.Module())
	}
}

func TestClearedBytesCannotBeChanged(t *testing.T) {
	w := newWorld(t)
	s := w.submission(t)
	c, err := w.gate.Clear(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image.Write([]byte("x")); err == nil {
		t.Error("a sealed image took more bytes")
	}
	if _, err := c.File().WriteAt([]byte("x"), 0); err == nil {
		t.Error("a sealed image was overwritten")
	}
	if err := c.File().Truncate(0); err == nil {
		t.Error("a sealed image was cut short")
	}
}

func TestWhatIsNotForThisKernelStaysOut(t *testing.T) {
	tests := map[string]struct {
		change func(*patch.Module)
		want   error
	}{
		"another architecture":              {func(m *patch.Module) { m.Arch = "s390x" }, patch.ErrTampered}, // the path says so already
		"another release":                   {func(m *patch.Module) { m.Release = "6.1.0-54-amd64" }, patch.ErrWrongKernel},
		"another build of the same release": {func(m *patch.Module) { m.BuildID = "ffffffffffffffffffffffffffffffffffffffff" }, patch.ErrWrongKernel},
		"another name than the path":        {func(m *patch.Module) { m.Name = "lkp_other" }, patch.ErrTampered},
		"no sequence number":                {func(m *patch.Module) { m.Sequence = 0 }, patch.ErrInvalid},
		"no build-id":                       {func(m *patch.Module) { m.BuildID = "" }, patch.ErrInvalid},
		"a version without a rollout":       {func(m *patch.Module) { m.Version = "9.9" }, patch.ErrNotFound},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := described()
			tc.change(&m)
			w.repo.AddTarget(target, w.module, m)
			if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, tc.want) {
				t.Errorf("verdict = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestModuleItselfIsChecked(t *testing.T) {
	modinfo := func(fields ...string) []byte {
		return elftest.File{Type: elf.ET_REL, Sections: []elftest.Section{elftest.Modinfo(fields...)}}.Bytes()
	}
	vermagic := "vermagic=" + running.Release + " SMP mod_unload "
	big := elftest.Section{Name: ".modinfo", Type: elf.SHT_PROGBITS, Data: make([]byte, maxModinfo+1)}
	tests := map[string]struct {
		module []byte
		want   error
	}{
		"not ELF":                       {[]byte("#!/bin/sh"), patch.ErrBadFormat},
		"empty":                         {nil, patch.ErrBadFormat},
		"half an ELF header":            {elftest.Livepatch(name, running.Release)[:40], patch.ErrBadFormat},
		"no .modinfo":                   {elftest.File{Type: elf.ET_REL}.Bytes(), patch.ErrBadFormat},
		"a .modinfo of 64 KiB and more": {elftest.File{Type: elf.ET_REL, Sections: []elftest.Section{big}}.Bytes(), patch.ErrBadFormat},
		"an ordinary module":            {modinfo("name="+name, vermagic), patch.ErrNotLivepatch},
		"livepatch=N":                   {modinfo("livepatch=N", "name="+name, vermagic), patch.ErrNotLivepatch},
		"another name":                  {modinfo("livepatch=Y", "name=other", vermagic), patch.ErrTampered},
		"two names":                     {modinfo("livepatch=Y", "name="+name, "name=other", vermagic), patch.ErrBadFormat},
		"another release":               {elftest.Livepatch(name, "6.1.0-54-amd64"), patch.ErrWrongKernel},
		"a release that only begins so": {elftest.Livepatch(name, running.Release+"x"), patch.ErrWrongKernel},
		"no vermagic":                   {modinfo("livepatch=Y", "name="+name), patch.ErrWrongKernel},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.module = tc.module
			w.add(described(), tc.module)
			if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, tc.want) {
				t.Errorf("verdict = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestSentBytesMustBeTheSignedOnes(t *testing.T) {
	tests := map[string]func([]byte) []byte{
		"one bit changed": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut short":       func(b []byte) []byte { return b[:len(b)-1] },
		"one byte longer": func(b []byte) []byte { return append(b, 0) },
		"nothing":         func([]byte) []byte { return nil },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.module = change(bytes.Clone(w.module))
			if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, patch.ErrTampered) {
				t.Errorf("verdict = %v, want %v", err, patch.ErrTampered)
			}
		})
	}
}

func TestImageHasALimit(t *testing.T) {
	image, err := NewImage()
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	piece := make([]byte, 1<<20)
	for range patch.MaxModule >> 20 {
		if _, err := image.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := image.Write([]byte{1}); !errors.Is(err, patch.ErrTooLarge) {
		t.Errorf("byte %d: %v, want %v", patch.MaxModule+1, err, patch.ErrTooLarge)
	}
}

func TestRolloutCanHoldBack(t *testing.T) {
	here := running.Release + "/" + running.Arch
	tests := map[string]struct {
		rollout patch.Rollout
		want    error
	}{
		"running":                       {patch.Rollout{State: patch.Running}, nil},
		"halted":                        {patch.Rollout{State: patch.Halted}, patch.ErrHalted},
		"revoked":                       {patch.Rollout{State: patch.Revoked}, patch.ErrRevoked},
		"halted for this kernel":        {patch.Rollout{State: patch.Running, Kernels: map[string]patch.RolloutState{here: patch.Halted}}, patch.ErrHalted},
		"revoked for this kernel":       {patch.Rollout{State: patch.Halted, Kernels: map[string]patch.RolloutState{here: patch.Revoked}}, patch.ErrRevoked},
		"halted but for this kernel":    {patch.Rollout{State: patch.Halted, Kernels: map[string]patch.RolloutState{here: patch.Running}}, patch.ErrHalted},
		"halted for another kernel":     {patch.Rollout{State: patch.Running, Kernels: map[string]patch.RolloutState{"5.10/x86_64": patch.Halted}}, nil},
		"a state of a later version":    {patch.Rollout{State: "paused"}, patch.ErrMalformed},
		"no state":                      {patch.Rollout{}, patch.ErrMalformed},
		"an unknown state for a kernel": {patch.Rollout{State: patch.Running, Kernels: map[string]patch.RolloutState{"5.10/x86_64": "x"}}, patch.ErrMalformed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.rollout(described().Version, tc.rollout)
			if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("verdict = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestOlderPatchStaysOut(t *testing.T) {
	w := newWorld(t)
	other := patch.Digest{1}
	tests := map[string]struct {
		floor  uint64
		digest patch.Digest // of what was let in with that number
		want   error
	}{
		"a newer one was let in":              {6, other, patch.ErrRollback},
		"another one with the same number":    {5, other, patch.ErrRollback},
		"the same one":                        {5, patch.Digest{}, nil}, // filled in below
		"only older ones":                     {4, other, nil},
		"the largest possible one was let in": {1<<64 - 1, other, patch.ErrRollback},
	}
	c, err := w.gate.Clear(w.submission(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := described()
			m.Sequence = tc.floor
			if tc.digest == (patch.Digest{}) {
				tc.digest = c.Digest()
			}
			if err := w.journal.Put(journal.Entry{Module: m, Digest: tc.digest, Standing: journal.Quarantined}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("verdict = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestFloorsAreKeptEvenIfThePatchIsRefused(t *testing.T) {
	w := newWorld(t)
	old := w.submission(t)
	w.rollout(described().Version, patch.Rollout{State: patch.Revoked})
	w.repo.Publish("rollout")
	if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, patch.ErrRevoked) {
		t.Fatalf("verdict = %v, want %v", err, patch.ErrRevoked)
	}
	// Withholding the revocation does not help any more, after a restart too.
	if _, err := w.gate.Clear(old); !errors.Is(err, patch.ErrRollback) {
		t.Errorf("older metadata: %v, want %v", err, patch.ErrRollback)
	}
}

func TestClockThatIsSetBackDoesNotReviveExpiredMetadata(t *testing.T) {
	w := newWorld(t)
	if _, err := w.gate.Clear(w.submission(t)); err != nil {
		t.Fatal(err)
	}
	// An update a day later, which expires a day after that.
	w.now = start.Add(23 * time.Hour)
	for _, role := range []string{"timestamp", "snapshot", "rollout"} {
		w.repo.Roles[role].Expire(w.now.Add(time.Hour))
	}
	w.repo.Publish("rollout")
	if _, err := w.gate.Clear(w.submission(t)); err != nil {
		t.Fatal(err)
	}
	w.now = start.Add(-48 * time.Hour)
	w.repo.Roles["timestamp"].Expire(start.Add(22 * time.Hour))
	w.repo.Publish()
	if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, patch.ErrExpired) {
		t.Errorf("timestamp that had expired when an update was accepted: %v, want %v", err, patch.ErrExpired)
	}
}

func TestProgramIsNotOlderThanTime(t *testing.T) {
	w := newWorld(t)
	w.gate.NotBefore = start.AddDate(0, 0, 2)
	w.now = start.AddDate(-10, 0, 0)
	if _, err := w.gate.Clear(w.submission(t)); !errors.Is(err, patch.ErrExpired) {
		t.Errorf("metadata that expired before the program was built: %v, want %v", err, patch.ErrExpired)
	}
}

func TestTargetPathIsNeverAPath(t *testing.T) {
	for _, bad := range []string{
		"", "debian", "debian/", "/etc/passwd", "../debian/x", "debian/../../x", "debian/a/b", "rollout/debian_1.1",
		"debian/" + name + ".x86_64.ko\x00", "debian/.hidden", "*/x", "debian/*",
	} {
		w := newWorld(t)
		s := w.submission(t)
		s.Target = bad
		if _, err := w.gate.Clear(s); !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("target %q: %v, want %v", bad, err, patch.ErrInvalid)
		}
	}
}

func TestFilesOfOneRoleDoNotPassForAnother(t *testing.T) {
	w := newWorld(t)
	w.repo.HashBins = true // vendor and bin have the same keys; only their hashes differ
	s := w.submission(t)
	s.Vendor, s.Bin = s.Bin, s.Vendor
	if _, err := w.gate.Clear(s); !errors.Is(err, patch.ErrTampered) {
		t.Errorf("a bin as vendor: %v, want %v", err, patch.ErrTampered)
	}
	w = newWorld(t)
	s = w.submission(t)
	s.Rollout = s.Bin // signed by other keys
	if _, err := w.gate.Clear(s); !errors.Is(err, patch.ErrUntrusted) {
		t.Errorf("a bin as rollout: %v, want %v", err, patch.ErrUntrusted)
	}
}

func TestStoredPatchIsCheckedAgain(t *testing.T) {
	w := newWorld(t)
	c, err := w.gate.Clear(w.submission(t))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		entry  func(*journal.Entry)
		module func([]byte) []byte
		want   error
	}{
		"as it was":                   {want: nil},
		"changed on the disk":         {module: func(b []byte) []byte { b[99] ^= 1; return b }, want: patch.ErrTampered},
		"torn by a power cut":         {module: func(b []byte) []byte { return b[:10] }, want: patch.ErrTampered},
		"the kernel was upgraded":     {entry: func(e *journal.Entry) { e.Release = "6.1.0-54-amd64" }, want: patch.ErrWrongKernel},
		"the kernel was built again":  {entry: func(e *journal.Entry) { e.BuildID = "ffffffffffffffff" }, want: patch.ErrWrongKernel},
		"metadata long since expired": {entry: func(*journal.Entry) { w.now = start.AddDate(5, 0, 0) }, want: nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			e, b := journal.Entry{Module: c.Module(), Digest: c.Digest()}, bytes.Clone(w.module)
			if tc.entry != nil {
				tc.entry(&e)
			}
			if tc.module != nil {
				b = tc.module(b)
			}
			image, err := NewImage()
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			if _, err := image.Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := w.gate.ClearStored(e, image); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("verdict = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestZeroClearedHasNoBytes(t *testing.T) {
	for _, c := range []*Cleared{nil, {}} {
		if f := c.File(); f != nil {
			t.Errorf("a Cleared that nobody cleared has %v", f)
		}
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(elftest.Livepatch(name, running.Release))
	f.Add([]byte(elf.ELFMAG))
	f.Add(elftest.File{Type: elf.ET_REL}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		image, err := NewImage()
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if _, err := image.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := (&Cleared{module: described(), image: image}).inspect(); err == nil {
			t.Error("an image whose hash is not the signed one was cleared")
		}
		if _, err := image.modinfo(); err != nil && !errors.Is(err, patch.ErrBadFormat) {
			t.Errorf("modinfo: %v", err)
		}
	})
}
