// Package gate decides what may enter the kernel.
//
// It is the only producer of [Cleared], and package kmod accepts nothing else,
// so a module cannot reach the kernel by a path that skips a check. Clear reads
// as the list of checks, in the order that they are made.
package gate

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/loader/internal/journal"
)

// Cleared is a module that passed every check and has not changed since. Its
// fields are private: holding one is the permission to load it.
type Cleared struct {
	module patch.Module
	digest patch.Digest
	image  *Image
}

// Module returns what the vendor signed about the module.
func (c *Cleared) Module() patch.Module { return c.module }

// Digest returns the hash of the module.
func (c *Cleared) Digest() patch.Digest { return c.digest }

// File returns the sealed bytes. A zero Cleared, which any package can write,
// has none.
func (c *Cleared) File() *os.File {
	if c == nil || c.image == nil {
		return nil
	}
	return c.image.file
}

// Reader returns a reader of the sealed bytes.
func (c *Cleared) Reader() io.Reader { return io.NewSectionReader(c.image.file, 0, c.image.size) }

// A Submission is what an agent hands in. Nothing of it is trusted.
type Submission struct {
	Target    string   // path in the repository
	Roots     [][]byte // those after the trusted one, in order
	Timestamp []byte
	Snapshot  []byte
	Targets   []byte
	Vendor    []byte // role that the target's folder is named for
	Bin       []byte // hash bin of the vendor that lists the target
	Rollout   []byte
	Image     *Image
}

// A Gate knows the running kernel and what was trusted before.
type Gate struct {
	Kernel patch.Kernel
	Memory *journal.Journal
	// PinnedRoot is the root that came with the program. It counts only until
	// the first update.
	PinnedRoot []byte
	// Now is the clock, and NotBefore the time that it cannot be earlier than:
	// when the program was built.
	Now       func() time.Time
	NotBefore time.Time
}

// Trusted returns what the next update starts from.
func (g *Gate) Trusted() (*tuf.Set, error) {
	trust := g.Memory.Trust()
	now := slices.MaxFunc([]time.Time{g.Now(), g.NotBefore, trust.Time}, time.Time.Compare)
	if trust.Root == nil {
		trust.Root = g.PinnedRoot
	}
	return tuf.New(trust.Stored, now)
}

// Clear verifies a submission. What it learned about the signed metadata stays
// on disk even if the patch is refused, so that nothing older is believed later.
func (g *Gate) Clear(s Submission) (*Cleared, error) {
	set, err := g.Trusted()
	if err != nil {
		return nil, err
	}
	module, digest, err := signed(set, s)
	// Floors are on disk before the module goes in, and also if it does not.
	if err := errors.Join(err, g.remember(set, err == nil)); err != nil {
		return nil, err
	}
	if err := module.Check(g.Kernel); err != nil {
		return nil, err
	}
	// Nothing older than a patch that was let in before.
	floor := g.Memory.Floor(module.BuildID)
	if module.Sequence < floor.Sequence || module.Sequence == floor.Sequence && digest != floor.Digest {
		return nil, fmt.Errorf("%w: sequence number of %s is %d, was %d", patch.ErrRollback, module.Name, module.Sequence, floor.Sequence)
	}
	return clearImage(module, digest, s.Image)
}

// signed makes one update and returns what the vendor signed about the target,
// if the rollout lets it in.
func signed(set *tuf.Set, s Submission) (m patch.Module, d patch.Digest, err error) {
	vendor, err := patch.VendorOf(s.Target)
	if err != nil {
		return m, d, err
	}
	for _, root := range s.Roots {
		if err := set.Root(root); err != nil {
			return m, d, err
		}
	}
	if err := cmp.Or(set.Timestamp(s.Timestamp), set.Snapshot(s.Snapshot)); err != nil {
		return m, d, err
	}
	target, err := set.Find(s.Target, s.load(vendor))
	if err != nil {
		return m, d, err
	}
	if m, err = patch.ParseModule(target.Custom); err != nil {
		return m, d, err
	}
	d = target.Digest
	if want := patch.ModulePath(vendor, m); s.Target != want || s.Image.size != target.Length {
		return m, d, fmt.Errorf("%w: %q of %d bytes was sent, signed is %q of %d bytes", patch.ErrTampered, s.Target, s.Image.size, want, target.Length)
	}
	rollout, err := set.Find(patch.RolloutPath(vendor, m.Version), s.load(vendor))
	if err != nil {
		return m, d, err
	}
	r, err := patch.ParseRollout(rollout.Custom)
	if err != nil {
		return m, d, err
	}
	return m, d, r.For(m.Kernel)
}

// load finds the file that was sent for a role. The bin is whichever the vendor
// delegates to.
func (s Submission) load(vendor string) tuf.Loader {
	files := map[string][]byte{"targets": s.Targets, vendor: s.Vendor, patch.RolloutRole: s.Rollout}
	return func(role string, _ int64) ([]byte, error) {
		if b, ok := files[role]; ok {
			return b, nil
		}
		if strings.HasPrefix(role, vendor+"-") {
			return s.Bin, nil
		}
		return nil, fmt.Errorf("%w: role %q was not sent", patch.ErrInvalid, role)
	}
}

// remember keeps what the update established.
func (g *Gate) remember(set *tuf.Set, complete bool) error {
	was, is := g.Memory.Trust(), set.Stored()
	if bytes.Equal(was.Root, is.Root) && bytes.Equal(was.Timestamp, is.Timestamp) && bytes.Equal(was.Snapshot, is.Snapshot) {
		return nil
	}
	next := journal.Trust{Stored: is, Time: was.Time}
	if now := g.Now(); complete && now.After(was.Time) {
		next.Time = now
	}
	return g.Memory.SetTrust(next)
}

// clearImage checks the module itself and gives the permission to load it.
func clearImage(m patch.Module, signed patch.Digest, image *Image) (*Cleared, error) {
	got, err := image.seal()
	if err != nil {
		return nil, err
	}
	if got != signed {
		return nil, fmt.Errorf("%w: module has SHA-256 %s, signed is %s", patch.ErrTampered, got, signed)
	}
	info, err := image.modinfo()
	release, _, _ := strings.Cut(info["vermagic"], " ")
	switch {
	case err != nil:
		return nil, err
	case info["livepatch"] != "Y":
		return nil, fmt.Errorf("%w: %s", patch.ErrNotLivepatch, m.Name)
	case info["name"] != m.Name:
		return nil, fmt.Errorf("%w: module calls itself %q, signed is %q", patch.ErrTampered, info["name"], m.Name)
	case release != m.Release:
		return nil, fmt.Errorf("%w: module was built for kernel %q, signed is %q", patch.ErrWrongKernel, release, m.Release)
	}
	return &Cleared{module: m, digest: got, image: image}, nil
}

// ClearStored clears a patch that was accepted before, from the loader's own
// record of it. Expiry does not matter here, it gates what is new; nor does the
// floor, since a newer patch that became suspect has raised it.
func (g *Gate) ClearStored(e journal.Entry, image *Image) (*Cleared, error) {
	if err := e.Check(g.Kernel); err != nil {
		return nil, err
	}
	return clearImage(e.Module, e.Digest, image)
}

// An Image holds the bytes of a module in memory that nobody can change once it
// is sealed: what is verified is what the kernel gets.
type Image struct {
	file *os.File // a memfd
	size int64
}

// NewImage returns an empty image. The caller has to Close it.
func NewImage() (*Image, error) {
	fd, err := unix.MemfdCreate("livepatch", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("cannot make memory for module: %w", err)
	}
	return &Image{file: os.NewFile(uintptr(fd), "module")}, nil
}

// Write appends to the image. It writes nothing past [patch.MaxModule].
func (m *Image) Write(b []byte) (int, error) {
	if m.size+int64(len(b)) > patch.MaxModule {
		return 0, fmt.Errorf("cannot take module: %w: more than %d bytes", patch.ErrTooLarge, patch.MaxModule)
	}
	n, err := m.file.Write(b)
	m.size += int64(n)
	return n, err
}

// seal makes the content final and returns its hash.
func (m *Image) seal() (patch.Digest, error) {
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(m.file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return patch.Digest{}, fmt.Errorf("cannot seal module: %w", err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(m.file, 0, m.size)); err != nil {
		return patch.Digest{}, fmt.Errorf("cannot read module: %w", err)
	}
	return patch.Digest(h.Sum(nil)), nil
}

// Close frees the memory.
func (m *Image) Close() error { return m.file.Close() }

// maxModinfo bounds the section that holds a module's description of itself; a
// few hundred bytes are usual.
const maxModinfo = 64 << 10

// modinfo returns the fields of section .modinfo: "name=value" strings, each
// ended by a NUL (include/linux/module.h, MODULE_INFO).
func (m *Image) modinfo() (map[string]string, error) {
	f, err := elf.NewFile(io.NewSectionReader(m.file, 0, m.size))
	if err != nil {
		return nil, fmt.Errorf("cannot read module: %w: %w", patch.ErrBadFormat, err)
	}
	s := f.Section(".modinfo")
	// A compressed section could unfold to any size; kbuild makes none.
	if s == nil || s.Type != elf.SHT_PROGBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.FileSize > maxModinfo {
		return nil, fmt.Errorf("cannot read module: %w: no usable .modinfo", patch.ErrBadFormat)
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("cannot read module: %w: %w", patch.ErrBadFormat, err)
	}
	fields := map[string]string{}
	for field := range strings.SplitSeq(string(b), "\x00") {
		name, value, _ := strings.Cut(field, "=")
		if old, dup := fields[name]; dup && old != value && (name == "livepatch" || name == "vermagic" || name == "name") {
			return nil, fmt.Errorf("cannot read module: %w: two values of %s", patch.ErrBadFormat, name)
		}
		fields[name] = value
	}
	return fields, nil
}
