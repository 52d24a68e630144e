package tuf_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// A mirror serves a repository to go-tuf.
type mirror struct{ files tuftest.Files }

// DownloadFile implements go-tuf's fetcher.Fetcher.
func (m mirror) DownloadFile(url string, maxLength int64, _ time.Duration) ([]byte, error) {
	b, err := m.files.Get(path.Base(url))
	if err != nil {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: url}
	}
	if int64(len(b)) > maxLength {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: url}
	}
	return b, nil
}

// An oracle is go-tuf, as the agent uses it: it starts from the newest root that
// is stored and from what else is stored, and has our limits.
type oracle struct{ dir string }

func newOracle(tb testing.TB) oracle {
	tb.Helper()
	return oracle{tb.TempDir()}
}

// A panicError is what go-tuf panicked with.
type panicError struct{ value any }

// Error implements error.
func (e *panicError) Error() string { return fmt.Sprintf("go-tuf panics: %v", e.value) }

// A belief is what go-tuf trusts after an update.
type belief struct {
	target   *metadata.TargetFiles
	versions string // see the function of that name
}

// find makes a whole update and looks for a target.
func (o oracle) find(stored tuf.Stored, files tuftest.Files, at time.Time, target string) (*metadata.TargetFiles, error) {
	b, err := o.update(stored, files, at, target)
	return b.target, err
}

// update makes a whole update and looks for a target.
func (o oracle) update(stored tuf.Stored, files tuftest.Files, at time.Time, target string) (found belief, err error) {
	// A file that holds null where go-tuf wants an object makes it panic.
	defer func() {
		if r := recover(); r != nil {
			found, err = belief{}, &panicError{r}
		}
	}()
	if err := o.store("timestamp.json", stored.Timestamp); err != nil {
		return belief{}, err
	}
	if err := o.store("snapshot.json", stored.Snapshot); err != nil {
		return belief{}, err
	}
	cfg, err := config.New("http://repository", stored.Root)
	if err != nil {
		return belief{}, err
	}
	cfg.Fetcher = mirror{files}
	cfg.DisableLocalCache = true // of writing, that is
	cfg.LocalMetadataDir = o.dir
	cfg.RootMaxLength = patch.MaxRoot
	cfg.TimestampMaxLength = patch.MaxTimestamp
	cfg.SnapshotMaxLength = patch.MaxSnapshot
	cfg.TargetsMaxLength = patch.MaxRole
	up, err := updater.New(cfg)
	if err != nil {
		return belief{}, err
	}
	up.UnsafeSetRefTime(at)
	info, err := up.GetTargetInfo(target)
	if err != nil {
		return belief{}, err
	}
	set := up.GetTrustedMetadataSet()
	return belief{info, fmt.Sprintf("root %d, timestamp %d, snapshot %d",
		set.Root.Signed.Version, set.Timestamp.Signed.Version, set.Snapshot.Signed.Version)}, nil
}

func (o oracle) store(name string, b []byte) error {
	name = filepath.Join(o.dir, name)
	if b == nil {
		return os.RemoveAll(name)
	}
	return os.WriteFile(name, b, 0o600)
}

// differ says how what we found differs from what go-tuf found; "" if it does
// not.
func differ(ours *tuf.Target, theirs *metadata.TargetFiles) string {
	if ours.Path != theirs.Path || ours.Length != theirs.Length {
		return fmt.Sprintf("%q of %d bytes, go-tuf says %q of %d", ours.Path, ours.Length, theirs.Path, theirs.Length)
	}
	if len(theirs.Hashes) != 1 || ours.Digest.String() != theirs.Hashes["sha256"].String() {
		return fmt.Sprintf("sha256 is %v, go-tuf says %v", ours.Digest, theirs.Hashes)
	}
	var a, b any
	if ours.Custom != nil && json.Unmarshal(ours.Custom, &a) != nil {
		return "custom is not JSON"
	}
	if theirs.Custom != nil && json.Unmarshal(*theirs.Custom, &b) != nil {
		return "custom of go-tuf is not JSON"
	}
	if !reflect.DeepEqual(a, b) {
		return fmt.Sprintf("custom is %v, go-tuf says %v", a, b)
	}
	return ""
}

// The oracle has to be right about a good repository before it is asked about
// bad ones.
func TestOracleAcceptsWhatTheBuilderMakes(t *testing.T) {
	r := newRepo()
	files := r.Files()
	for _, target := range []string{module, rollout} {
		stored := tuf.Stored{Root: files.Roots[0]}
		theirs, err := newOracle(t).find(stored, files, start, target)
		if err != nil {
			t.Fatal(err)
		}
		ours, _, err := find(t, stored, files, start, target)
		if err != nil {
			t.Fatal(err)
		}
		if d := differ(ours, theirs); d != "" {
			t.Error(d)
		}
	}
	key := tuftest.NewKey("a")
	theirs := metadata.Key{Type: "ed25519", Scheme: "ed25519"}
	theirs.Value.PublicKey = key.Object()["keyval"].(tuftest.Object)["public"].(string)
	if id, err := theirs.ID(); err != nil || id != key.ID {
		t.Errorf("key id is %s, go-tuf says %s, %v", key.ID, id, err)
	}
	if len(maps.Clone(files.Roles)) != 9 {
		t.Errorf("the repository has %d roles, want 9", len(files.Roles))
	}
}
