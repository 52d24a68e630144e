// Package journal is the loader's memory: what it trusts, which patches it
// inserted and how they fared, and the patches that return at boot.
//
// Everything is written before it matters and is either the old or the new
// content after a power cut: a temporary file, fsync, rename, fsync of the
// folder.
package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/internal/durable"
	"livepatch/internal/patch"
	"livepatch/internal/tuf"
)

// A Standing is what the journal says of a patch.
type Standing string

// The standings.
const (
	Inserting   Standing = "inserting"   // begun, and its end has not been seen
	Trial       Standing = "trial"       // in the kernel and not yet proven
	Accepted    Standing = "accepted"    // proven; returns at boot
	Suspect     Standing = "suspect"     // the machine went down uncleanly during its trial
	Quarantined Standing = "quarantined" // out of service: replaced, removed or refused
)

// An Entry is one patch that this loader inserted or tried to.
type Entry struct {
	patch.Module
	Vendor   string       `json:"vendor"`
	Digest   patch.Digest `json:"digest"`
	Standing Standing     `json:"standing"`
	BootID   string       `json:"boot_id"` // of the last insertion
	Inserted time.Time    `json:"inserted"`
	// Proven is set once the patch was accepted, and stays set while it is
	// inserted again at a later boot.
	Proven bool `json:"proven,omitempty"`
	// Cut is set once the power went while a proven patch was inserted again.
	Cut bool `json:"cut,omitempty"`
	// ID is random, and tells nobody: by it the loader draws whether it is one of those
	// that take the patch back first.
	ID string `json:"id,omitempty"`
	// Rollout is the newest signed word about the patch, "" if there was none.
	Rollout patch.RolloutState `json:"rollout,omitempty"`
}

// A Floor is the newest patch that was let in for a kernel.
type Floor struct {
	Sequence uint64       `json:"sequence"`
	Digest   patch.Digest `json:"digest"`
}

// Trust is what a client of the signed metadata keeps, and the latest time at
// which an update was accepted: a clock that is set back does not revive
// expired files.
type Trust struct {
	tuf.Stored
	Time time.Time
}

// record is the content of the journal's file.
type record struct {
	Entries []Entry                 `json:"entries,omitempty"`
	Floors  map[patch.BuildID]Floor `json:"floors,omitempty"`
	// CleanBoot is the boot that ended, or is ending, with a clean shutdown.
	CleanBoot string `json:"clean_boot,omitempty"`
}

// maxEntries bounds the journal. The oldest entries out of service go first; the
// floor that newer ones have raised keeps a forgotten suspect out.
const maxEntries = 32

// A Journal is open in one process at a time.
type Journal struct {
	dir  string
	lock *os.File

	mu sync.Mutex // for what follows
	record
	trust Trust
	saved map[string][]byte // content of the files
}

// Open opens the journal in dir, making it if need be, and waits until no other
// process has it open. The caller has to Close it.
func Open(dir string) (*Journal, error) {
	err := os.MkdirAll(filepath.Join(dir, "store"), 0o700)
	lock, lerr := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err := cmp.Or(err, lerr); err != nil {
		return nil, fmt.Errorf("cannot open journal: %w: %w", patch.ErrStorage, err)
	}
	j := &Journal{dir: dir, lock: lock, saved: map[string][]byte{}}
	err = errors.Join(
		unix.Flock(int(lock.Fd()), unix.LOCK_EX),
		j.read("journal.json", &j.record),
		j.read("trust.json", &j.trust))
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return j, nil
}

// Close lets other processes open the journal.
func (j *Journal) Close() error { return j.lock.Close() }

// read fills v from a file; a file that is not there leaves it alone. A file
// that cannot be read is never replaced by a fresh one, which would forget
// floors: a person has to look.
func (j *Journal) read(name string, v any) error {
	b, err := os.ReadFile(filepath.Join(j.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		b, err = json.Marshal(v) // as good as written
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w: %w", name, patch.ErrStorage, err)
	}
	j.saved[name] = b
	return nil
}

// save makes v the content of a file, durably. Content that is there already is
// not written again: a loader that only reports works on a full disk too.
func (j *Journal) save(name string, v any) error {
	b, err := json.Marshal(v)
	if err == nil && !bytes.Equal(b, j.saved[name]) {
		err = durable.WriteFile(filepath.Join(j.dir, name), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot keep state: %w: %w", patch.ErrStorage, err)
	}
	j.saved[name] = b
	return nil
}

// Trust returns what is trusted; its root is nil before the first update.
func (j *Journal) Trust() Trust {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.trust
}

// SetTrust keeps what is trusted from now on.
func (j *Journal) SetTrust(t Trust) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.save("trust.json", t); err != nil {
		return err
	}
	j.trust = t
	return nil
}

// Floor returns the newest patch that was let in for a kernel; its sequence is
// 0 if there was none.
func (j *Journal) Floor(kernel patch.BuildID) Floor {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.Floors[kernel]
}

// All returns the entries, those inserted first first.
func (j *Journal) All() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.Entries)
}

// Find returns the entry of the patch called name.
func (j *Journal) Find(name string) (Entry, bool) {
	for _, e := range j.All() {
		if e.Name == name {
			return e, true
		}
	}
	return Entry{}, false
}

// Put keeps an entry in place of the one with the same name, and raises the
// floor of its kernel. It is durable when Put returns.
func (j *Journal) Put(e Entry) error {
	return j.update(func(r *record) {
		r.Entries = slices.DeleteFunc(r.Entries, func(old Entry) bool { return old.Name == e.Name })
		r.Entries = append(r.Entries, e)
		for len(r.Entries) > maxEntries {
			i := max(0, slices.IndexFunc(r.Entries, func(e Entry) bool { return e.Standing == Quarantined || e.Standing == Suspect }))
			r.Entries = slices.Delete(r.Entries, i, i+1)
		}
		if e.Sequence > r.Floors[e.BuildID].Sequence {
			r.Floors[e.BuildID] = Floor{Sequence: e.Sequence, Digest: e.Digest}
		}
	})
}

// Mark gives the entry called name another standing.
func (j *Journal) Mark(name string, s Standing) error {
	return j.update(func(r *record) {
		for i := range r.Entries {
			if r.Entries[i].Name == name {
				r.Entries[i].Standing = s
				r.Entries[i].Proven = r.Entries[i].Proven && s != Quarantined
				r.Entries[i].Cut = r.Entries[i].Cut && s != Accepted
			}
		}
	})
}

// Forgive lets a suspect patch be tried again. It still has to be cleared anew.
func (j *Journal) Forgive(name string) error {
	if e, _ := j.Find(name); e.Standing != Suspect {
		return fmt.Errorf("cannot forgive %q: it is not suspect", name)
	}
	return j.Mark(name, Quarantined)
}

// Accept makes an entry the one that returns at boot. Of those accepted for the
// same kernel before, the last stays, to go back to if this one is revoked.
func (j *Journal) Accept(accepted Entry) error {
	return j.update(func(r *record) {
		kept := false
		for i := range slices.Backward(r.Entries) {
			e := &r.Entries[i]
			switch {
			case e.Name == accepted.Name:
				e.Standing, e.Proven = Accepted, true
			case e.Standing != Accepted || e.Kernel != accepted.Kernel:
			case kept || e.Rollout == patch.Revoked:
				e.Standing, e.Proven = Quarantined, false
			default:
				kept = true
			}
		}
	})
}

// Hear keeps what the signed rollouts say, by name of the patch.
func (j *Journal) Hear(said map[string]patch.RolloutState) error {
	return j.update(func(r *record) {
		for i := range r.Entries {
			e := &r.Entries[i]
			e.Rollout = cmp.Or(said[e.Name], e.Rollout)
		}
	})
}

// MarkCleanShutdown records that the boot ends in an orderly way, so that a
// trial cut short by it is not held against the patch.
func (j *Journal) MarkCleanShutdown(bootID string) error {
	return j.update(func(r *record) { r.CleanBoot = bootID })
}

// BeginBoot settles what an earlier boot left open, and returns the names of
// the patches that became suspect: those whose insertion or trial was open when
// a boot ended without a clean shutdown.
func (j *Journal) BeginBoot(bootID string) (suspects []string, err error) {
	err = j.update(func(r *record) {
		if r.CleanBoot == bootID { // the machine did not go down, only the service was stopped
			r.CleanBoot = ""
		}
		for i := range r.Entries {
			e := &r.Entries[i]
			if e.BootID == bootID || e.Standing != Inserting && e.Standing != Trial {
				continue
			}
			switch {
			case e.BootID != r.CleanBoot && e.Proven && !e.Cut: // chance, as a rule; twice in a row it is the patch
				e.Standing, e.Cut = Accepted, true
			case e.BootID != r.CleanBoot:
				e.Standing, e.Proven = Suspect, false
				suspects = append(suspects, e.Name)
			case e.Proven:
				e.Standing = Accepted
			default:
				e.Standing = Quarantined // the agent may bring it again
			}
		}
	})
	return suspects, err
}

// update changes the record on disk first and in memory only if that succeeded.
func (j *Journal) update(change func(*record)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	next := record{slices.Clone(j.Entries), map[patch.BuildID]Floor{}, j.CleanBoot}
	maps.Copy(next.Floors, j.Floors)
	change(&next)
	if err := j.save("journal.json", next); err != nil {
		return err
	}
	j.record = next
	return nil
}

// StoreModule keeps a copy of a module, so that it can return at boot without
// network or agent.
func (j *Journal) StoreModule(d patch.Digest, module io.Reader) error {
	if err := durable.WriteFrom(j.modulePath(d), module, 0o600); err != nil {
		return fmt.Errorf("%w: %w", patch.ErrStorage, err)
	}
	return nil
}

// LoadModule copies the stored module to w. Its content is not to be trusted
// before its hash was checked.
func (j *Journal) LoadModule(d patch.Digest, w io.Writer) error {
	f, err := os.Open(j.modulePath(d))
	if err == nil {
		defer f.Close()
		_, err = io.Copy(w, f)
	}
	if err != nil {
		return fmt.Errorf("cannot read stored module: %w: %w", patch.ErrStorage, err)
	}
	return nil
}

func (j *Journal) modulePath(d patch.Digest) string { return filepath.Join(j.dir, "store", d.String()) }

// Prune removes what no entry needs: modules of patches that are out of
// service, and temporary files of a process that was killed.
func (j *Journal) Prune() error {
	needed := map[string]bool{}
	for _, e := range j.All() {
		needed[e.Digest.String()] = e.Standing != Quarantined && e.Standing != Suspect || needed[e.Digest.String()]
	}
	files, err := os.ReadDir(filepath.Join(j.dir, "store"))
	for _, f := range files {
		if !needed[f.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(j.dir, "store", f.Name())))
		}
	}
	return errors.Join(err, durable.Sweep(j.dir))
}
