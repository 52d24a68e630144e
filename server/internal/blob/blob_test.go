package blob

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"livepatch/internal/patch"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "blobs")
	if err := Create(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sha(s string) patch.Digest { return sha256.Sum256([]byte(s)) }

// files lists the regular files of a store.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A disk is a file that fails when it is written, synced or closed.
type disk struct {
	*os.File
	write, sync, close error
}

func (d disk) Write(b []byte) (int, error) {
	if d.write != nil {
		n, _ := d.File.Write(b[:len(b)/2])
		return n, d.write
	}
	return d.File.Write(b)
}

func (d disk) Sync() error  { return errors.Join(d.sync, d.File.Sync()) }
func (d disk) Close() error { return errors.Join(d.close, d.File.Close()) }

func TestPut(t *testing.T) {
	broken := errors.New("line broke")
	tests := map[string]struct {
		digest  patch.Digest
		from    io.Reader
		disk    *disk
		wantErr error
	}{
		"what was promised":         {digest: sha("hello"), from: strings.NewReader("hello")},
		"byte by byte":              {digest: sha("hello"), from: iotest.OneByteReader(strings.NewReader("hello"))},
		"exactly the limit":         {digest: sha("0123456789"), from: strings.NewReader("0123456789")},
		"a byte too much":           {digest: sha("0123456789a"), from: strings.NewReader("0123456789a"), wantErr: patch.ErrTooLarge},
		"another content":           {digest: sha("hello"), from: strings.NewReader("hellO"), wantErr: ErrMismatch},
		"cut off":                   {digest: sha("hello"), from: strings.NewReader("hell"), wantErr: ErrMismatch},
		"reader that fails":         {digest: sha("hello"), from: iotest.ErrReader(broken), wantErr: broken},
		"full disk":                 {sha("hello"), strings.NewReader("hello"), &disk{write: syscall.ENOSPC}, ErrFull},
		"quota":                     {sha("hello"), strings.NewReader("hello"), &disk{write: syscall.EDQUOT}, ErrFull},
		"disk that fails to sync":   {sha("hello"), strings.NewReader("hello"), &disk{sync: syscall.EIO}, syscall.EIO},
		"disk full at the last":     {sha("hello"), strings.NewReader("hello"), &disk{close: syscall.ENOSPC}, ErrFull},
		"nothing, as was promised":  {digest: sha(""), from: strings.NewReader("")},
		"nothing, against promises": {digest: sha("hello"), from: strings.NewReader(""), wantErr: ErrMismatch},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			if tc.disk != nil {
				s.create = func(dir string) (file, error) {
					f, err := os.CreateTemp(dir, "put-")
					tc.disk.File = f
					return *tc.disk, err
				}
			}
			n, err := s.Put(tc.digest, tc.from, 10)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("Put = %v, want %v", err, tc.wantErr)
			}
			if tc.wantErr != nil {
				if left := files(t, s); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
				if _, err := s.Open(tc.digest); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Open = %v, want %v", err, fs.ErrNotExist)
				}
				return
			}
			f, err := s.Open(tc.digest)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b, err := io.ReadAll(f)
			if err != nil || sha(string(b)) != tc.digest || !s.Has(tc.digest, n) {
				t.Errorf("kept %q, length %d, %v", b, n, err)
			}
		})
	}
}

func TestInterruptedPutIsForgotten(t *testing.T) {
	s := newStore(t)
	if _, err := s.Put(sha("kept"), strings.NewReader("kept"), 10); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.tmp, "put-1"), []byte("hal"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if left := files(t, again); len(left) != 1 || !again.Has(sha("kept"), 4) {
		t.Errorf("files are %v", left)
	}
}

func TestSameFilePutAtOnce(t *testing.T) {
	s := newStore(t)
	content := strings.Repeat("x", 1<<20)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Put(sha(content), strings.NewReader(content), 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := files(t, s); len(left) != 1 || !s.Has(sha(content), 1<<20) {
		t.Errorf("files are %v", left)
	}
}

func TestOlder(t *testing.T) {
	s := newStore(t)
	for _, content := range []string{"old", "new"} {
		if _, err := s.Put(sha(content), strings.NewReader(content), 10); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(s.path(sha("old")), long, long); err != nil {
		t.Fatal(err)
	}
	var got []patch.Digest
	err := s.Older(time.Now().Add(-time.Minute), func(d patch.Digest) error {
		got = append(got, d)
		return s.Remove(d)
	})
	if err != nil || len(got) != 1 || got[0] != sha("old") || s.Has(sha("old"), 3) || !s.Has(sha("new"), 3) {
		t.Errorf("older are %v, %v", got, err)
	}
	if err := s.Remove(sha("old")); err != nil {
		t.Errorf("second Remove = %v", err)
	}
}

func TestOpenNeedsAStore(t *testing.T) {
	if _, err := Open(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, want %v", err, fs.ErrNotExist)
	}
	s := newStore(t)
	if err := s.Ping(); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(); err == nil {
		t.Error("Ping finds a store that is gone")
	}
	if _, err := s.Put(sha("x"), bytes.NewReader([]byte("x")), 1); err == nil {
		t.Error("Put into a store that is gone")
	}
}
