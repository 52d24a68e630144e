// Package disk is a disk for test machines that forgets what was not flushed.
//
// QEMU keeps what a machine writes in the memory of the host, so killing QEMU
// loses nothing of it, and a program that never flushes passes every test. A
// [Disk] behaves as a drive with a volatile cache does: a write is seen by later
// reads at once and is durable only after a flush. When the power goes, each
// sector that was written since then is the old or the new one, as the caller
// decides; the caller also decides when the power goes, down to one request.
//
// QEMU reaches it over the protocol of network block devices; see server.go.
package disk

import (
	"fmt"
	"slices"
	"sync"
)

// Sector is the size in bytes of what a drive writes as a whole, as drives are
// made since 2011. ext4 itself would not survive a smaller one: its superblock
// has 1024 bytes and a checksum, and is written in place.
const Sector = 4096

// A Disk lies in memory. Its methods may be used by several goroutines.
type Disk struct {
	// IgnoreFlush makes a disk that lies: it answers flushes and keeps nothing. It
	// shows that a test would notice. Set it before the disk is used.
	IgnoreFlush bool

	mu      sync.Mutex
	content []byte           // what the machine reads
	old     map[int64][]byte // durable content of the sectors that differ, by number
	changes int              // writes and flushes since the power came on
	cutAt   int              // the power goes before the change of this number; 0: it does not
	off     chan struct{}    // closed when the power goes
	isOff   bool
}

// New returns a disk with the given durable content, whose length must be a
// multiple of [Sector]. The power is on.
func New(content []byte) (*Disk, error) {
	if len(content) == 0 || len(content)%Sector != 0 {
		return nil, fmt.Errorf("cannot make a disk of %d bytes: not a multiple of %d", len(content), Sector)
	}
	return &Disk{content: content, old: map[int64][]byte{}, off: make(chan struct{})}, nil
}

// Changes returns how many writes and flushes there were since the power came on.
func (d *Disk) Changes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changes
}

// CutAfter lets n more writes and flushes through. The next one finds the power
// gone. What was asked for before is forgotten.
func (d *Disk) CutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt = d.changes + n + 1
}

// Cut takes the power away now. Requests under way are not answered any more.
func (d *Disk) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut()
}

// cut is Cut for a caller that holds the lock.
func (d *Disk) cut() {
	if !d.isOff {
		d.isOff = true
		close(d.off)
	}
}

// Off is closed when the power goes, until the next PowerOn.
func (d *Disk) Off() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off
}

// PowerOn brings the power back. Of the sectors that were written and not flushed
// those stay for which keep returns true; it is asked in ascending order. The
// numbers are of sectors.
func (d *Disk) PowerOn(keep func() bool) (kept, lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	numbers := make([]int64, 0, len(d.old))
	for n := range d.old {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		if keep() {
			kept++
			continue
		}
		lost++
		copy(d.content[n*Sector:], d.old[n])
	}
	d.old, d.changes, d.cutAt = map[int64][]byte{}, 0, 0
	d.off, d.isOff = make(chan struct{}), false
	return kept, lost
}

// size returns the size in bytes.
func (d *Disk) size() int64 { return int64(len(d.content)) }

// read fills b. It returns false if the power is off.
func (d *Disk) read(b []byte, offset int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(b, d.content[offset:])
	return !d.isOff
}

// change counts a write or a flush and tells whether it still takes place. The
// caller holds the lock.
func (d *Disk) change() bool {
	if d.changes+1 == d.cutAt {
		d.cut()
	}
	if d.isOff {
		return false
	}
	d.changes++
	return true
}

// write changes what lies at offset. It returns false if the power is off.
func (d *Disk) write(b []byte, offset int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.change() {
		return false
	}
	for n := offset / Sector; n*Sector < offset+int64(len(b)); n++ {
		if d.old[n] == nil {
			d.old[n] = slices.Clone(d.content[n*Sector : (n+1)*Sector])
		}
	}
	copy(d.content[offset:], b)
	return true
}

// flush makes durable what was written. It returns false if the power is off.
func (d *Disk) flush() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.change() {
		return false
	}
	if !d.IgnoreFlush {
		clear(d.old)
	}
	return true
}
