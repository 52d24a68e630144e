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

	"livepatch/tests/lab"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
)

// smallDisk puts a disk of a few bytes under a folder, which the test takes away
// again.
func smallDisk(t *testing.T, dir string, size int) {
	t.Helper()
	if !lab.AsRoot {
		t.Skip("needs root to mount a small disk")
	}
	info, err := os.Stat(dir)
	lab.Must(t, err)
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
	lab.Must(t, os.RemoveAll(filler))
	var s unix.Statfs_t
	lab.Must(t, unix.Statfs(dir, &s))
	if free := int64(s.Bavail) * s.Bsize; free > room {
		lab.Must(t, os.WriteFile(filler, make([]byte, free-room), 0o600))
	}
}

// empty makes room again.
func empty(t *testing.T, dir string) {
	t.Helper()
	lab.Must(t, os.RemoveAll(filepath.Join(dir, "filler")))
}

func TestRefreshWithAFullDiskUnderTheAgent(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	two.Content = append(two.Content, make([]byte, 64<<10)...)
	s := lab.NewService(t)
	m := lab.NewMachine(t, s.Pinned())
	smallDisk(t, m.Path("agent"), 1<<20)
	m.Join(s, s.URL())
	m.Enable(s)
	m.OK("refresh")
	m.Accepts(one)
	token, err := os.ReadFile(m.Path("agent/machine-token"))
	lab.Must(t, err)
	s.Publish(two)
	// At first there is no room at all, then for one signed file after the other,
	// at last for all of them and not for the module.
	var told strings.Builder
	for _, room := range []int64{0, 4 << 10, 8 << 10, 16 << 10, 48 << 10} {
		fill(t, m.Path("agent"), room)
		r := m.CLI("refresh")
		told.WriteString(r.Stderr)
		lab.WantRefusal(t, r, "no space left on device", "make room on the disk that holds the agent's data")
		m.WantInForce(one)
		m.Agent.Kill() // nor is it the end of an agent that starts now
		m.SwitchOn()
	}
	if got := told.String(); !strings.Contains(got, "/cache/metadata/") || !strings.Contains(got, "cannot keep file in the cache") {
		t.Errorf("the user was told\n%s\nwant both signed files and the module among what there is no room for", got)
	}
	empty(t, m.Path("agent"))
	m.OK("refresh")
	m.WantInForce(two)
	if after, err := os.ReadFile(m.Path("agent/machine-token")); err != nil || string(after) != string(token) {
		t.Errorf("machine token = %q, %v, want %q", after, err, token)
	}
}

func TestRefreshWithAFullDiskUnderTheLoader(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	s := lab.NewService(t)
	m := lab.NewMachine(t, s.Pinned())
	smallDisk(t, m.Path("loader"), 1<<20)
	m.Join(s, s.URL())
	m.Enable(s)
	m.OK("refresh")
	m.Accepts(one)
	s.Publish(two)
	fill(t, m.Path("loader"), 0)
	m.CLI("refresh") // it fetches the patch
	m.Refuses(t, false, "loader cannot write its state", "make room on the disk that holds the loader's state", "refresh")
	m.WantInForce(one)
	lab.Eventually(t, "loader leaves", func() bool { return !m.Loader.Running() })
	// A loader that starts now cannot even open its journal for writing.
	lab.WantRefusal(t, m.CLI("refresh"), "loader cannot write its state", "make room on the disk that holds the loader's state")
	if out := m.OK("status"); !strings.Contains(out, lab.Release) {
		t.Errorf("status: %s", out)
	}
	empty(t, m.Path("loader"))
	m.OK("refresh")
	m.WantInForce(two)
}

// However little room there is, no module is in the kernel that the journal does
// not know, and no file of the loader is damaged.
func TestNothingIsInsertedThatTheJournalCannotKeep(t *testing.T) {
	t.Parallel()
	first, second := lab.NewModule(1), lab.NewModule(2)
	repo := lab.NewRepository(time.Now(), first)
	m := lab.NewMachine(t, repo.Pinned())
	smallDisk(t, m.Path("loader"), 1<<20)
	c := m.Client()
	lab.MustApply(t, c, repo, first, applied)
	repo.Add(second)
	refused := 0
	for room := int64(0); room <= 64<<10; room += 2 << 10 {
		fill(t, m.Path("loader"), room)
		_, err := lab.Apply(t, c, repo.Opening(second), second.Content)
		if err == nil {
			break
		}
		if !errors.Is(err, patch.ErrStorage) {
			t.Errorf("with room for %d bytes: %v, want %v", room, err, patch.ErrStorage)
		}
		if got := m.InForce(); len(got) != 1 || got[0] != first.Name {
			t.Fatalf("with room for %d bytes: in force = %q", room, got)
		}
		wantJournalKnowsKernel(t, m)
		refused++
	}
	if refused == 0 {
		t.Error("there was always room")
	}
	m.WantInForce(second)
	wantJournalKnowsKernel(t, m)
}

// wantJournalKnowsKernel fails the test unless the journal has the modules that
// got in last (it forgets those of long ago), and no floor is below what is or
// was in.
func wantJournalKnowsKernel(t *testing.T, m *lab.Machine) {
	t.Helper()
	j := m.Journal()
	in := m.Kernel.Insertions()
	var highest uint64
	for i, module := range in {
		known := i < len(in)-20
		for _, e := range j.Entries {
			known = known || e.Name == module.Name && e.Digest.String() == module.SHA256
		}
		if !known {
			t.Errorf("journal does not know %s (%s), which got in", module.Name, module.SHA256)
		}
		highest = max(highest, uint64(numberOf(module.Name)))
	}
	if floor := j.Floors[lab.BuildID].Sequence; floor < highest {
		t.Errorf("floor = %d, below %d, which got in", floor, highest)
	}
}
