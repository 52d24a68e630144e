// Package gate decides what may enter the kernel.
//
// It is the only producer of [Cleared], and package kmod accepts nothing else,
// so a module cannot reach the kernel by a path that skips a check. Clear reads
// as the list of checks, in the order that they are made.
package gate

import (
	"cmp"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
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
	vendor string
	digest patch.Digest
	image  *Image
}

// Module returns what the vendor signed about the module.
func (c *Cleared) Module() patch.Module { return c.module }

// Vendor returns who signed it.
func (c *Cleared) Vendor() string { return c.vendor }

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

// Metadata is one update of the signed metadata, as an agent hands it in.
// Nothing of it is trusted.
type Metadata struct {
	Roots                                 [][]byte // those after the trusted one, in order
	Timestamp, Snapshot, Targets, Rollout []byte
}

// A Submission is metadata and the module that it is to admit.
type Submission struct {
	Metadata
	Target string // path in the repository
	Vendor []byte // role that the target's folder is named for
	Bin    []byte // hash bin of the vendor that lists the target
	Image  *Image
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

// Update takes newer metadata, and writes into the journal what its rollouts say
// of the patches there.
func (g *Gate) Update(m Metadata) error { return g.update(m, func(*tuf.Set) error { return nil }) }

// update makes one update and reads from it. What it learned stays on disk even
// if it fails, so that nothing older is believed later.
func (g *Gate) update(m Metadata, read func(*tuf.Set) error) error {
	set, err := g.Trusted()
	if err != nil {
		return err
	}
	before := set.Stored()
	for _, root := range m.Roots {
		if err = set.Root(root); err != nil {
			break
		}
	}
	if err == nil {
		err = cmp.Or(set.Timestamp(m.Timestamp), set.Snapshot(m.Snapshot))
	}
	var said map[string]patch.RolloutState
	if err == nil {
		said, err = g.rollouts(set, m)
	}
	if err == nil {
		err = read(set)
	}
	return errors.Join(err, g.Memory.Hear(said), g.remember(before, set.Stored(), err == nil))
}

// rollouts returns what the metadata says of the patches in the journal. What
// was said of one that it does not mention still holds.
func (g *Gate) rollouts(set *tuf.Set, m Metadata) (map[string]patch.RolloutState, error) {
	said := map[string]patch.RolloutState{}
	for _, e := range g.Memory.All() {
		r, err := m.rollout(set, e.Vendor, e.Version)
		if err == nil {
			said[e.Name] = r.ForLoader(e.Kernel, e.ID)
		} else if !errors.Is(err, patch.ErrNotFound) {
			return nil, err
		}
	}
	return said, nil
}

// rollout returns the rollout of a version.
func (m Metadata) rollout(set *tuf.Set, vendor, version string) (patch.Rollout, error) {
	t, err := set.Find(patch.RolloutPath(vendor, version), Submission{Metadata: m}.load)
	if err != nil {
		return patch.Rollout{}, err
	}
	return patch.ParseRollout(t.Custom)
}

// Clear verifies a submission.
func (g *Gate) Clear(s Submission) (*Cleared, error) {
	vendor, err := patch.VendorOf(s.Target)
	if err != nil {
		return nil, err
	}
	c := &Cleared{vendor: vendor, image: s.Image}
	// Floors are on disk before the module goes in, and also if it does not.
	if err := g.update(s.Metadata, func(set *tuf.Set) error { return s.signed(set, c) }); err != nil {
		return nil, err
	}
	if err := c.module.Check(g.Kernel); err != nil {
		return nil, err
	}
	// Nothing older than a patch that was let in before.
	floor := g.Memory.Floor(c.module.BuildID)
	if c.module.Sequence < floor.Sequence || c.module.Sequence == floor.Sequence && c.digest != floor.Digest {
		return nil, fmt.Errorf("%w: sequence number of %s is %d, was %d", patch.ErrRollback, c.module.Name, c.module.Sequence, floor.Sequence)
	}
	return c.inspect()
}

// signed finds what the vendor signed about the target, if the rollout lets it in.
func (s Submission) signed(set *tuf.Set, c *Cleared) error {
	target, err := set.Find(s.Target, s.load)
	if err != nil {
		return err
	}
	if c.module, err = patch.ParseModule(target.Custom); err != nil {
		return err
	}
	c.digest = target.Digest
	if want := patch.ModulePath(c.vendor, c.module); s.Target != want || s.Image.size != target.Length {
		return fmt.Errorf("%w: %q of %d bytes was sent, signed is %q of %d bytes", patch.ErrTampered, s.Target, s.Image.size, want, target.Length)
	}
	r, err := s.rollout(set, c.vendor, c.module.Version)
	return cmp.Or(err, r.For(c.module.Kernel))
}

// load finds the file that was sent for a role below root.
func (s Submission) load(role string, _ int64) ([]byte, error) {
	switch vendor, _ := patch.VendorOf(s.Target); {
	case role == "targets":
		return s.Targets, nil
	case role == patch.RolloutRole:
		return s.Rollout, nil
	case role == vendor:
		return s.Vendor, nil
	case strings.HasPrefix(role, vendor+"-"): // whichever bin the vendor delegates to
		return s.Bin, nil
	}
	return nil, fmt.Errorf("%w: role %q was not sent", patch.ErrInvalid, role)
}

// remember keeps what the update established, if that is more than there was.
func (g *Gate) remember(was, is tuf.Stored, complete bool) error {
	if reflect.DeepEqual(was, is) {
		return nil
	}
	next := journal.Trust{Stored: is, Time: g.Memory.Trust().Time}
	if now := g.Now(); complete && now.After(next.Time) {
		next.Time = now
	}
	return g.Memory.SetTrust(next)
}

// inspect checks the module itself, and with that c is cleared.
func (c *Cleared) inspect() (*Cleared, error) {
	got, err := c.image.seal()
	if err != nil {
		return nil, err
	}
	if got != c.digest {
		return nil, fmt.Errorf("%w: module has SHA-256 %s, signed is %s", patch.ErrTampered, got, c.digest)
	}
	info, err := c.image.modinfo()
	release, _, _ := strings.Cut(info["vermagic"], " ")
	switch {
	case err != nil:
		return nil, err
	case info["livepatch"] != "Y":
		return nil, fmt.Errorf("%w: %s", patch.ErrNotLivepatch, c.module.Name)
	case info["name"] != c.module.Name:
		return nil, fmt.Errorf("%w: module calls itself %q, signed is %q", patch.ErrTampered, info["name"], c.module.Name)
	case release != c.module.Release:
		return nil, fmt.Errorf("%w: module was built for kernel %q, signed is %q", patch.ErrWrongKernel, release, c.module.Release)
	}
	return c, nil
}

// ClearStored clears a patch that was accepted before, from the loader's own
// record of it. Expiry does not matter here, it gates what is new; nor does the
// floor, since a newer patch that became suspect has raised it.
func (g *Gate) ClearStored(e journal.Entry, image *Image) (*Cleared, error) {
	if err := e.Check(g.Kernel); err != nil {
		return nil, err
	}
	if e.Rollout == patch.Revoked {
		return nil, fmt.Errorf("%w: %s", patch.ErrRevoked, e.Name)
	}
	c := &Cleared{module: e.Module, vendor: e.Vendor, digest: e.Digest, image: image}
	return c.inspect()
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
