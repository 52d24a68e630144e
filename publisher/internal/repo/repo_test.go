package repo_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/publisher/internal/repo"
	"livepatch/publisher/internal/sign"
	"livepatch/publisher/internal/synthetic"
)

// A memKey is a key in memory.
type memKey struct {
	name    string
	private ed25519.PrivateKey
}

func newKey(name string) *memKey {
	seed := sha256.Sum256([]byte(name))
	return &memKey{name: name, private: ed25519.NewKeyFromSeed(seed[:])}
}

func (k *memKey) Name() string              { return k.name }
func (k *memKey) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }
func (k *memKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	return ed25519.Sign(k.private, message), nil
}

// A memRing holds keys by their ID.
type memRing map[string]*memKey

func (r memRing) add(names ...string) []ed25519.PublicKey {
	var public []ed25519.PublicKey
	for _, name := range names {
		k := newKey(name)
		r[keyID(k)] = k
		public = append(public, k.Public())
	}
	return public
}

func keyID(k *memKey) string {
	id, err := sign.KeyID(k.Public())
	if err != nil {
		panic(err) // the key has the right length
	}
	return id
}

func (r memRing) remove(names ...string) {
	for _, name := range names {
		delete(r, keyID(newKey(name)))
	}
}

func (r memRing) Held(_ context.Context, ids []string) ([]string, error) {
	var held []string
	for _, id := range ids {
		if r[id] != nil {
			held = append(held, id)
		}
	}
	return held, nil
}

func (r memRing) Signer(_ context.Context, id string) (sign.Signer, error) { return r[id], nil }

func (r memRing) Name(id string) string {
	if k := r[id]; k != nil {
		return k.name
	}
	return id[:12]
}

var start = time.Now().UTC().Truncate(time.Second)

const release = "6.1.0-53-amd64"

// template is a repository that each test gets a copy of: signing it anew takes
// longer.
var template = sync.OnceValues(func() (fs.FS, error) {
	dir, err := os.MkdirTemp("", "livepatch-repo-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := build(dir, make(memRing)); err != nil {
		return nil, err
	}
	files := make(fstest.MapFS)
	return files, fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		files[name] = &fstest.MapFile{Data: b, Mode: 0o644}
		return err
	})
})

// create makes a repository with one vendor, debian, that has 256 bins.
func create(t *testing.T) (dir string, ring memRing) {
	t.Helper()
	files, err := template()
	if err != nil {
		t.Fatal(err)
	}
	dir, ring = t.TempDir(), make(memRing)
	if err := os.CopyFS(dir, files); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("root-1 root-2 root-3 targets-1 targets-2 targets-3 debian-builder debian-approver") {
		ring.add(name)
	}
	return dir, ring
}

func build(dir string, ring memRing) error {
	ctx := context.Background()
	r, err := repo.Create(ctx, dir, start, repo.Trust{
		Root:      ring.add("root-1", "root-2", "root-3"),
		Targets:   ring.add("targets-1", "targets-2", "targets-3"),
		Threshold: 2,
		Online: repo.OnlineKeys{
			"snapshot": newKey("snapshot").Public(), "timestamp": newKey("timestamp").Public(), "rollout": newKey("rollout").Public(),
		},
	}, ring)
	if err != nil {
		return err
	}
	public := ring.add("debian-builder", "debian-approver")
	return errors.Join(r.AddVendor(ctx, ring, "debian", 8, public[0], public[1]), r.Close())
}

func open(t *testing.T, dir string, now time.Time) *repo.Repo {
	t.Helper()
	r, err := repo.Open(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func closeRepo(t *testing.T, r *repo.Repo) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// livepatch returns patch number n for a kernel.
func livepatch(release string, n uint64) repo.Addition {
	name := fmt.Sprintf("lkp_Debian_%s_%d", strings.NewReplacer(".", "_", "-", "_").Replace(release), n)
	return repo.Addition{
		Module: patch.Module{
			Kernel:  patch.Kernel{Arch: "x86_64", Release: release, BuildID: "00112233445566778899aabbccddeeff00112233"},
			Flavour: "amd64", Name: name, Version: fmt.Sprint(n, ".1"), Sequence: n, Notice: "LSN-0113-1", Fixes: []string{"CVE-2025-68263"},
		},
		Content: []byte("content of " + name),
		Fixes:   []patch.Fix{{Name: "CVE-2025-68263", Priority: patch.High, Summary: "One & only <fix>."}},
		Kernel:  repo.KernelFacts{Version: "6.1.187-1", From: "2026-01-01", Until: "2027-01-01"},
	}
}

func add(t *testing.T, dir string, ring memRing, additions ...repo.Addition) []repo.Added {
	t.Helper()
	r := open(t, dir, start)
	defer closeRepo(t, r)
	added, err := r.Add(t.Context(), ring, "debian", additions)
	if err != nil {
		t.Fatal(err)
	}
	return added
}

// verify fails the test unless the repository verifies, and returns the report.
func verify(t *testing.T, dir string, now time.Time) repo.Report {
	t.Helper()
	r := open(t, dir, now)
	defer closeRepo(t, r)
	rep, err := r.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range rep.Problems {
		t.Errorf("problem: %s", p)
	}
	return rep
}

// serve serves the repository as the service does: with snapshot, timestamp and
// rollout signed by the online keys.
func serve(t *testing.T, dir string, versions map[string]int64) (url string) {
	t.Helper()
	expires := start.Add(24 * time.Hour)
	rollout := metadata.Targets(expires)
	snapshot := metadata.Snapshot(expires)
	for role, v := range versions {
		if role != metadata.ROOT {
			snapshot.Signed.Meta[role+".json"] = metadata.MetaFile(v)
		}
	}
	snapshot.Signed.Meta["rollout.json"] = metadata.MetaFile(1)
	files := map[string][]byte{
		"/metadata/1.rollout.json":  encode(t, rollout, "rollout"),
		"/metadata/1.snapshot.json": encode(t, snapshot, "snapshot"),
		"/metadata/timestamp.json":  encode(t, metadata.Timestamp(expires), "timestamp"),
	}
	disk := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, ok := files[r.URL.Path]; ok {
			_, _ = w.Write(b)
			return
		}
		disk.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func encode[T metadata.Roles](t *testing.T, m *metadata.Metadata[T], key string) []byte {
	t.Helper()
	b, err := sign.Encode(t.Context(), m, []sign.Signer{newKey(key)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// machine returns what a machine uses, with the root it was shipped with.
func machine(t *testing.T, dir string, root []byte) *updater.Updater {
	t.Helper()
	r := open(t, dir, start)
	versions := r.Versions()
	closeRepo(t, r)
	url := serve(t, dir, versions)
	cfg, err := config.New(url+"/metadata", root)
	if err != nil {
		t.Fatal(err)
	}
	cfg.LocalMetadataDir, cfg.LocalTargetsDir = t.TempDir(), t.TempDir()
	cfg.RemoteTargetsURL, cfg.PrefixTargetsWithHash = url+"/targets", true
	u, err := updater.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func firstRoot(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "metadata", "1.root.json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMachineFindsModuleAndIndex(t *testing.T) {
	dir, ring := create(t)
	first, second := livepatch(release, 1), livepatch(release, 2)
	add(t, dir, ring, first)
	add(t, dir, ring, second)
	verify(t, dir, start)

	u := machine(t, dir, firstRoot(t, dir))
	got := download(t, u, "debian/lkp_Debian_6_1_0_53_amd64_2.x86_64.ko")
	if !bytes.Equal(got.content, second.Content) {
		t.Errorf("module = %q, want %q", got.content, second.Content)
	}
	module, err := patch.ParseModule(*got.file.Custom)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(second.Module, module); diff != "" {
		t.Errorf("custom block (-want +got):\n%s", diff)
	}

	ix, err := patch.ParseIndex(download(t, u, "debian/6.1.0-53-amd64.x86_64.index.json").content)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(a repo.Addition) patch.IndexEntry {
		return patch.IndexEntry{
			Target: "debian/" + a.Module.Name + ".x86_64.ko", Name: a.Module.Name, Version: a.Module.Version, Sequence: a.Module.Sequence,
			BuildID: a.Module.BuildID, Notice: a.Module.Notice, Added: start.Format(time.RFC3339), Fixes: a.Fixes,
		}
	}
	want := patch.Index{
		Arch: "x86_64", Release: release, Flavour: "amd64", KernelVersion: "6.1.187-1", From: "2026-01-01", Until: "2027-01-01",
		Patches: []patch.IndexEntry{entry(first), entry(second)},
	}
	if diff := cmp.Diff(want, ix); diff != "" {
		t.Errorf("index (-want +got):\n%s", diff)
	}
	if _, err := u.GetTargetInfo("debian/none.x86_64.ko"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("what is not there: %v, want a signed not found", err)
	}
}

// The loader has a verifier of its own, stricter than go-tuf.
func TestLoaderFindsModule(t *testing.T) {
	dir, ring := create(t)
	shipped := firstRoot(t, dir)
	addition := livepatch(release, 1)
	add(t, dir, ring, addition)
	r := open(t, dir, start)
	if _, err := r.Refresh(t.Context(), ring, func(string, time.Time) bool { return true }); err != nil {
		t.Fatal(err)
	}
	versions := r.Versions()
	closeRepo(t, r)
	url := serve(t, dir, versions)

	set, err := tuf.New(tuf.Stored{Root: shipped}, start)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		file string
		take func([]byte) error
	}{
		{"2.root.json", set.Root}, {"timestamp.json", set.Timestamp}, {"1.snapshot.json", set.Snapshot},
	} {
		if err := step.take(get(t, url+"/metadata/"+step.file)); err != nil {
			t.Fatalf("%s: %v", step.file, err)
		}
	}
	load := func(role string, version int64) ([]byte, error) {
		return get(t, url+"/metadata/"+repo.FileName(role, version)), nil
	}
	found, err := set.Find("debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.ko", load)
	if err != nil {
		t.Fatal(err)
	}
	if err := found.Check(addition.Content); err != nil {
		t.Error(err)
	}
	if _, err := set.Find("debian/none.x86_64.ko", load); !errors.Is(err, patch.ErrNotFound) {
		t.Errorf("what is not there: %v, want ErrNotFound", err)
	}
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", url, resp.Status, err)
	}
	return b
}

type target struct {
	file    *metadata.TargetFiles
	content []byte
}

func download(t *testing.T, u *updater.Updater, path string) target {
	t.Helper()
	file, err := u.GetTargetInfo(path)
	if err != nil {
		t.Fatal(err)
	}
	_, content, err := u.DownloadTarget(file, "", "")
	if err != nil {
		t.Fatal(err)
	}
	return target{file, content}
}

func TestRolesAreAsTheyWereDecided(t *testing.T) {
	dir, ring := create(t)
	add(t, dir, ring, livepatch(release, 1))
	targets := read(t, dir, "2.targets.json")
	var order []string
	for _, d := range targets.Signed.Delegations.Roles {
		order = append(order, fmt.Sprintf("%s %v %d of %d %v", d.Name, d.Paths, d.Threshold, len(d.KeyIDs), d.Terminating))
	}
	if want := []string{"rollout [rollout/*] 1 of 1 true", "debian [debian/*] 2 of 2 true"}; !slices.Equal(order, want) {
		t.Errorf("delegations = %q, want %q", order, want)
	}
	vendor := read(t, dir, "1.debian.json")
	bins := vendor.Signed.Delegations.SuccinctRoles
	if len(vendor.Signed.Targets) != 0 || bins == nil || bins.Threshold != 2 || bins.BitLength != 8 || bins.NamePrefix != "debian" {
		t.Errorf("vendor = %+v", vendor.Signed)
	}
	if !slices.Equal(bins.KeyIDs, targets.Signed.Delegations.Roles[1].KeyIDs) {
		t.Error("bins are signed by other keys than their vendor")
	}
	for file, days := range map[string]int{"2.targets.json": 180, "1.debian.json": 90, "1.debian-00.json": 30} {
		if got, want := read(t, dir, file).Signed.Expires, start.AddDate(0, 0, days); !got.Equal(want) {
			t.Errorf("%s expires %v, want %v", file, got, want)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "metadata", "2.targets.json"))
	if err != nil || bytes.ContainsAny(b, "\n\t") {
		t.Errorf("metadata has white space in it, %v", err)
	}
}

func read(t *testing.T, dir, file string) *metadata.Metadata[metadata.TargetsType] {
	t.Helper()
	m, err := metadata.Targets().FromFile(filepath.Join(dir, "metadata", file))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// snapshotOf returns all files of a repository but its lock, by name.
func snapshotOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == ".lock" {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestAddSignsEachChangedBinOnce(t *testing.T) {
	dir, ring := create(t)
	before := snapshotOf(t, dir)
	add(t, dir, ring, livepatch(release, 1), livepatch(release, 2), livepatch(release, 3))
	var changed []string
	for name := range snapshotOf(t, dir) {
		if _, ok := before[name]; !ok && strings.HasPrefix(name, "metadata/") {
			changed = append(changed, name)
		}
	}
	// Three modules and an index lie in four bins at most.
	if len(changed) == 0 || len(changed) > 4 {
		t.Errorf("new metadata = %q, want at most 4 files", changed)
	}
	for _, name := range changed {
		if !strings.HasPrefix(name, "metadata/2.debian-") {
			t.Errorf("new metadata %q, want version 2 of a bin", name)
		}
	}
}

func TestAddRefuses(t *testing.T) {
	other := livepatch(release, 2)
	tests := map[string]struct {
		change func(a *repo.Addition)
		want   error
	}{
		"the same name with other content":      {func(a *repo.Addition) { a.Module = livepatch(release, 1).Module; a.Content = []byte("other") }, repo.ErrTaken},
		"the same module for something else":    {func(a *repo.Addition) { *a = livepatch(release, 1); a.Fixes = nil }, repo.ErrTaken},
		"the same module in another window":     {func(a *repo.Addition) { *a = livepatch(release, 1); a.Kernel.Until = "2028-01-01" }, repo.ErrTaken},
		"the same version under another name":   {func(a *repo.Addition) { a.Module.Version = "1.1" }, repo.ErrTaken},
		"the sequence number of the last":       {func(a *repo.Addition) { a.Module.Sequence = 1 }, repo.ErrSequence},
		"no sequence number":                    {func(a *repo.Addition) { a.Module.Sequence = 0 }, patch.ErrInvalid},
		"another flavour of the same kernel":    {func(a *repo.Addition) { a.Module.Flavour = "rt" }, patch.ErrInvalid},
		"no build-id":                           {func(a *repo.Addition) { a.Module.BuildID = "" }, patch.ErrInvalid},
		"a name that is a path":                 {func(a *repo.Addition) { a.Module.Name = "../x" }, patch.ErrInvalid},
		"a new kernel without a support window": {func(a *repo.Addition) { *a = livepatch("6.1.0-54-amd64", 1); a.Kernel = repo.KernelFacts{} }, patch.ErrInvalid},
		"a good one together with a bad one":    {nil, repo.ErrSequence},
	}
	dir, ring := create(t)
	add(t, dir, ring, livepatch(release, 1))
	before := snapshotOf(t, dir)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			additions := []repo.Addition{livepatch(release, 2)}
			if tc.change != nil {
				tc.change(&additions[0])
			} else {
				additions = append(additions, livepatch(release, 3), livepatch(release, 3))
				additions[2].Module.Name += "b"
			}
			r := open(t, dir, start)
			defer closeRepo(t, r)
			if _, err := r.Add(t.Context(), ring, "debian", additions); !errors.Is(err, tc.want) {
				t.Errorf("Add = %v, want %v", err, tc.want)
			}
			if !maps.Equal(snapshotOf(t, dir), before) {
				t.Error("repository has changed")
			}
			// What was refused must not be remembered by the open repository.
			if ix, err := r.Index("debian", release, "x86_64"); err != nil || len(ix.Patches) != 1 {
				t.Errorf("index = %+v, %v", ix, err)
			}
		})
	}
	t.Run("an unknown vendor", func(t *testing.T) {
		r := open(t, dir, start)
		defer closeRepo(t, r)
		for _, vendor := range []string{"ubuntu", "rollout", "targets", "root", "debian-00", ""} {
			if _, err := r.Add(t.Context(), ring, vendor, []repo.Addition{other}); !errors.Is(err, repo.ErrVendor) {
				t.Errorf("Add for %q = %v, want ErrVendor", vendor, err)
			}
		}
	})
}

func TestAddingTheSameAgainChangesNothing(t *testing.T) {
	dir, ring := create(t)
	add(t, dir, ring, livepatch(release, 1))
	before := snapshotOf(t, dir)
	if added := add(t, dir, ring, livepatch(release, 1)); !added[0].Unchanged {
		t.Errorf("added = %+v, want unchanged", added)
	}
	if !maps.Equal(snapshotOf(t, dir), before) {
		t.Error("repository has changed")
	}
}

func TestKeysThatAreMissingChangeNothing(t *testing.T) {
	dir, ring := create(t)
	before := snapshotOf(t, dir)
	r := open(t, dir, start)
	defer closeRepo(t, r)
	ring.remove("debian-approver")
	if _, err := r.Add(t.Context(), ring, "debian", []repo.Addition{livepatch(release, 1)}); !errors.Is(err, sign.ErrMissing) {
		t.Errorf("Add = %v, want ErrMissing", err)
	}
	if !maps.Equal(snapshotOf(t, dir), before) {
		t.Error("repository has changed")
	}
}

func TestSetKernel(t *testing.T) {
	dir, ring := create(t)
	add(t, dir, ring, livepatch(release, 1))
	r := open(t, dir, start)
	defer closeRepo(t, r)
	kernel := patch.Kernel{Arch: "x86_64", Release: release}
	facts := repo.KernelFacts{
		From: "2026-01-01", Until: "2028-01-01",
		Unpatchable: []patch.Unpatchable{{Fix: patch.Fix{Name: "CVE-2025-40300", Priority: patch.Medium}, FixedIn: "6.1.0-54-amd64"}},
	}
	for _, want := range []bool{true, false} {
		changed, err := r.SetKernel(t.Context(), ring, "debian", kernel, "amd64", facts)
		if err != nil || changed != want {
			t.Errorf("SetKernel = %v, %v; want %v", changed, err, want)
		}
	}
	ix, err := r.Index("debian", release, "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if len(ix.Patches) != 1 || ix.Until != "2028-01-01" || ix.KernelVersion != "6.1.187-1" || len(ix.Unpatchable) != 1 {
		t.Errorf("index = %+v", ix)
	}
	if _, err := r.SetKernel(t.Context(), ring, "debian", patch.Kernel{Arch: "x86_64", Release: "7.0.0"}, "", facts); !errors.Is(err, patch.ErrInvalid) {
		t.Errorf("new kernel without flavour: %v", err)
	}
	if changed, err := r.SetKernel(t.Context(), ring, "debian", patch.Kernel{Arch: "x86_64", Release: "7.0.0"}, "amd64", facts); err != nil || !changed {
		t.Errorf("new kernel: %v, %v", changed, err)
	}
}

// A countingRing counts signatures.
type countingRing struct {
	memRing
	signatures *int
}

type countingSigner struct {
	sign.Signer
	n *int
}

func (s countingSigner) Sign(ctx context.Context, message []byte) ([]byte, error) {
	*s.n++
	return s.Signer.Sign(ctx, message)
}

func (r countingRing) Signer(ctx context.Context, id string) (sign.Signer, error) {
	s, err := r.memRing.Signer(ctx, id)
	return countingSigner{s, r.signatures}, err
}

// However many modules are added at once, each bin is signed once, by two.
func TestABatchCostsOneSignatureForEachBinAndKey(t *testing.T) {
	dir, ring := create(t)
	additions, err := synthetic.Additions(150, 3)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	r := open(t, dir, start)
	if _, err := r.Add(t.Context(), countingRing{ring, &count}, "debian", additions); err != nil {
		t.Fatal(err)
	}
	closeRepo(t, r)
	if count > 2*256 {
		t.Errorf("%d signatures, want at most %d", count, 2*256)
	}
	if rep := verify(t, dir, start); rep.Modules != 450 || rep.Indexes != 150 {
		t.Errorf("report = %d modules, %d indexes", rep.Modules, rep.Indexes)
	}
}
