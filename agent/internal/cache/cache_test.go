package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"livepatch/internal/durable"
	"livepatch/internal/patch"
)

var content = bytes.Repeat([]byte("livepatch "), 10_000)

func open(t *testing.T, maxSize int64) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "blobs"), maxSize)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files returns the names in the store.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestPutOpen(t *testing.T) {
	s := open(t, 1<<20)
	d := patch.Digest(sha256.Sum256(content))
	if _, err := s.Open(d); !errors.Is(err, ErrMissing) {
		t.Errorf("before: %v", err)
	}
	if err := s.Put(d, int64(len(content)), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

func TestPutRefusesAndKeepsNothing(t *testing.T) {
	broken := errors.New("connection reset")
	flipped := bytes.Clone(content)
	flipped[77] ^= 1
	d := patch.Digest(sha256.Sum256(content))
	tests := map[string]struct {
		src     io.Reader
		want    error
		wantErr string
	}{
		"one bit changed": {bytes.NewReader(flipped), patch.ErrTampered, "hash of file"},
		"truncated":       {bytes.NewReader(content[:100]), patch.ErrTampered, "ends after 100 of 100000 bytes"},
		"empty":           {bytes.NewReader(nil), patch.ErrTampered, "ends after 0"},
		"one byte longer": {io.MultiReader(bytes.NewReader(content), strings.NewReader("x")), patch.ErrTampered, "longer than"},
		"endless":         {io.MultiReader(bytes.NewReader(content), zeros{}), patch.ErrTampered, "longer than"},
		"broken off":      {iotest.TimeoutReader(bytes.NewReader(content)), iotest.ErrTimeout, "timeout"},
		"broken at once":  {iotest.ErrReader(broken), broken, "reset"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, 1<<20)
			err := s.Put(d, int64(len(content)), tc.src)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("Put = %v, want %v with %q", err, tc.want, tc.wantErr)
			}
			if left := files(t, s); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// fullDisk takes n bytes and no more.
type fullDisk struct {
	*durable.File
	n int
}

func (f *fullDisk) Write(b []byte) (int, error) {
	if len(b) > f.n {
		return 0, syscall.ENOSPC
	}
	f.n -= len(b)
	return f.File.Write(b)
}

func TestDiskFull(t *testing.T) {
	s := open(t, 1<<20)
	create := s.create
	s.create = func(dir string) (file, error) {
		f, err := durable.Create(dir, 0o600)
		return &fullDisk{f, 40_000}, err
	}
	d := patch.Digest(sha256.Sum256(content))
	err := s.Put(d, int64(len(content)), bytes.NewReader(content))
	if !errors.Is(err, syscall.ENOSPC) || !strings.HasPrefix(err.Error(), "cannot keep file in the cache") {
		t.Errorf("Put = %v", err)
	}
	if left := files(t, s); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	s.create = create // somebody made room
	if err := s.Put(d, int64(len(content)), bytes.NewReader(content)); err != nil {
		t.Errorf("with room: %v", err)
	}
}

func TestOpenHealsDamage(t *testing.T) {
	tests := map[string]func(path string) error{
		"one bit changed": func(path string) error {
			b := bytes.Clone(content)
			b[0] ^= 1
			return os.WriteFile(path, b, 0o600)
		},
		"truncated": func(path string) error { return os.Truncate(path, 10) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, 1<<20)
			d := patch.Digest(sha256.Sum256(content))
			if err := s.Put(d, int64(len(content)), bytes.NewReader(content)); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(s.dir, d.String())); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Open(d); !errors.Is(err, ErrMissing) {
				t.Errorf("Open = %v, want %v", err, ErrMissing)
			}
			if left := files(t, s); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestCollectKeepsWhatIsUsed(t *testing.T) {
	s := open(t, 250)
	var digests []patch.Digest
	for i := range 4 {
		b := bytes.Repeat([]byte{byte(i)}, 100)
		d := patch.Digest(sha256.Sum256(b))
		if err := s.Put(d, 100, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(filepath.Join(s.dir, d.String()), at, at); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	if err := s.Collect(digests[0]); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false, true} {
		f, err := s.Open(digests[i])
		if (err == nil) != want {
			t.Errorf("file %d: %v, want kept %v", i, err, want)
		}
		if err == nil {
			_ = f.Close()
		}
	}
}

func TestOpenSweepsLeftovers(t *testing.T) {
	s := open(t, 1<<20)
	f, err := durable.Create(s.dir, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := Open(s.dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	if left := files(t, s); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
