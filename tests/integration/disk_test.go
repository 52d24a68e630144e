//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
)

// smallDisk puts a disk of a few bytes under a folder, which the test takes away
// again.
func smallDisk(t *testing.T, dir string, size int) {
	t.Helper()
	if !root {
		t.Skip("needs root to mount a small disk")
	}
	info, err := os.Stat(dir)
	must(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	options := fmt.Sprintf("size=%d,mode=%o,uid=%d,gid=%d", size, info.Mode().Perm(), owner.Uid, owner.Gid)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves room for so many bytes on the disk under a folder.
func fill(t *testing.T, dir string, room int64) {
	t.Helper()
	filler := filepath.Join(dir, "filler")
	must(t, os.RemoveAll(filler))
	var s unix.Statfs_t
	must(t, unix.Statfs(dir, &s))
	if free := int64(s.Bavail) * s.Bsize; free > room {
		must(t, os.WriteFile(filler, make([]byte, free-room), 0o600))
	}
}

// empty makes room again.
func empty(t *testing.T, dir string) {
	t.Helper()
	must(t, os.RemoveAll(filepath.Join(dir, "filler")))
}

func TestRefreshWithAFullDiskUnderTheAgent(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	two.content = append(two.content, make([]byte, 64<<10)...)
	s := newService(t)
	m := newMachine(t, s.pinned())
	smallDisk(t, m.path("agent"), 1<<20)
	m.join(s, s.url())
	m.enable(s)
	m.ok("refresh")
	m.accepts(one)
	token, err := os.ReadFile(m.path("agent/machine-token"))
	must(t, err)
	s.publish(two)
	// At first there is no room at all, then for one signed file after the other,
	// at last for all of them and not for the module.
	var told strings.Builder
	for _, room := range []int64{0, 4 << 10, 8 << 10, 16 << 10, 48 << 10} {
		fill(t, m.path("agent"), room)
		r := m.cli("refresh")
		told.WriteString(r.stderr)
		wantRefusal(t, r, "no space left on device", "make room on the disk that holds the agent's data")
		m.wantInForce(one)
		m.agent.kill() // nor is it the end of an agent that starts now
		m.switchOn()
	}
	if got := told.String(); !strings.Contains(got, "/cache/metadata/") || !strings.Contains(got, "cannot keep file in the cache") {
		t.Errorf("the user was told\n%s\nwant both signed files and the module among what there is no room for", got)
	}
	empty(t, m.path("agent"))
	m.ok("refresh")
	m.wantInForce(two)
	if after, err := os.ReadFile(m.path("agent/machine-token")); err != nil || string(after) != string(token) {
		t.Errorf("machine token = %q, %v, want %q", after, err, token)
	}
}

func TestRefreshWithAFullDiskUnderTheLoader(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	s := newService(t)
	m := newMachine(t, s.pinned())
	smallDisk(t, m.path("loader"), 1<<20)
	m.join(s, s.url())
	m.enable(s)
	m.ok("refresh")
	m.accepts(one)
	s.publish(two)
	fill(t, m.path("loader"), 0)
	m.cli("refresh") // it fetches the patch
	m.refuses(t, false, "loader cannot write its state", "make room on the disk that holds the loader's state", "refresh")
	m.wantInForce(one)
	eventually(t, "loader leaves", func() bool { return !m.loader.running() })
	// A loader that starts now cannot even open its journal for writing.
	wantRefusal(t, m.cli("refresh"), "loader cannot write its state", "make room on the disk that holds the loader's state")
	if out := m.ok("status"); !strings.Contains(out, release) {
		t.Errorf("status: %s", out)
	}
	empty(t, m.path("loader"))
	m.ok("refresh")
	m.wantInForce(two)
}

// However little room there is, no module is in the kernel that the journal does
// not know, and no file of the loader is damaged.
func TestNothingIsInsertedThatTheJournalCannotKeep(t *testing.T) {
	t.Parallel()
	first, second := newModule(1), newModule(2)
	repo := newRepository(time.Now(), first)
	m := newMachine(t, repo.pinned())
	smallDisk(t, m.path("loader"), 1<<20)
	c := m.client()
	mustApply(t, c, repo, first, applied)
	repo.add(second)
	refused := 0
	for room := int64(0); room <= 64<<10; room += 2 << 10 {
		fill(t, m.path("loader"), room)
		_, err := apply(t, c, repo.opening(second), second.content)
		if err == nil {
			break
		}
		if !errors.Is(err, patch.ErrStorage) {
			t.Errorf("with room for %d bytes: %v, want %v", room, err, patch.ErrStorage)
		}
		if got := m.inForce(); len(got) != 1 || got[0] != first.Name {
			t.Fatalf("with room for %d bytes: in force = %q", room, got)
		}
		m.wantJournalKnowsKernel()
		refused++
	}
	if refused == 0 {
		t.Error("there was always room")
	}
	m.wantInForce(second)
	m.wantJournalKnowsKernel()
}

// wantJournalKnowsKernel fails the test unless the journal has the modules that
// got in last (it forgets those of long ago), and no floor is below what is or
// was in.
func (m *machine) wantJournalKnowsKernel() {
	m.t.Helper()
	j := m.journal()
	in := m.kernel.insertions()
	var highest uint64
	for i, module := range in {
		known := i < len(in)-20
		for _, e := range j.Entries {
			known = known || e.Name == module.Name && e.Digest.String() == module.SHA256
		}
		if !known {
			m.t.Errorf("journal does not know %s (%s), which got in", module.Name, module.SHA256)
		}
		highest = max(highest, uint64(numberOf(module.Name)))
	}
	if floor := j.Floors[buildID].Sequence; floor < highest {
		m.t.Errorf("floor = %d, below %d, which got in", floor, highest)
	}
}
