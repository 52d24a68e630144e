package catalog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
)

// published returns a service that has published one patch for one kernel, and
// the repository it has.
func published(t *testing.T) (*servicetest.Service, *tuftest.Repo) {
	t.Helper()
	s := servicetest.New(t)
	r := tuftest.New(time.Now())
	servicetest.AddPatch(r, 53, 1)
	s.Publish(t, r)
	return s, r
}

// walk verifies what is served with go-tuf, as a machine would, and returns the
// rollout role.
func walk(t *testing.T, s *servicetest.Service, r *tuftest.Repo) *metadata.Metadata[metadata.TargetsType] {
	t.Helper()
	files := r.Files()
	trusted, err := trustedmetadata.New(files.Roots[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range files.Roots[1:] {
		if _, err := trusted.UpdateRoot(root); err != nil {
			t.Fatal(err)
		}
	}
	ts, err := s.Catalog.Timestamp()
	if err != nil {
		t.Fatal(err)
	}
	timestamp, err := trusted.UpdateTimestamp(ts.Body)
	if err != nil {
		t.Fatal(err)
	}
	get := func(role string, version int64) []byte {
		f, err := s.Catalog.Metadata(t.Context(), fmt.Sprintf("%d.%s.json", version, role))
		if err != nil {
			t.Fatal(err)
		}
		return f.Body
	}
	snapshot, err := trusted.UpdateSnapshot(get("snapshot", timestamp.Signed.Meta["snapshot.json"].Version), false)
	if err != nil {
		t.Fatal(err)
	}
	version := func(role string) int64 { return snapshot.Signed.Meta[role+".json"].Version }
	if _, err := trusted.UpdateTargets(get("targets", version("targets"))); err != nil {
		t.Fatal(err)
	}
	rollout, err := trusted.UpdateDelegatedTargets(get("rollout", version("rollout")), "rollout", "targets")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range trusted.Targets["targets"].Signed.Delegations.Roles[1:] {
		vendor, err := trusted.UpdateDelegatedTargets(get(d.Name, version(d.Name)), d.Name, "targets")
		if err != nil {
			t.Fatal(err)
		}
		for _, bin := range vendor.Signed.Delegations.SuccinctRoles.GetRoles() {
			if _, err := trusted.UpdateDelegatedTargets(get(bin, version(bin)), bin, d.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	return rollout
}

// rolloutState returns what the signed rollout says of a version of debian.
func rolloutState(t *testing.T, s *servicetest.Service, r *tuftest.Repo, version string) patch.Rollout {
	t.Helper()
	target, ok := walk(t, s, r).Signed.Targets[patch.RolloutPath("debian", version)]
	if !ok {
		t.Fatalf("no rollout of version %s", version)
	}
	rollout, err := patch.ParseRollout(*target.Custom)
	if err != nil {
		t.Fatal(err)
	}
	return rollout
}

func TestPublicationIsServedAsMachinesVerifyIt(t *testing.T) {
	s, r := published(t)
	got := rolloutState(t, s, r, "1.1")
	if got.State != patch.Running || got.SoakSeconds != int64(servicetest.Soak/time.Second) {
		t.Errorf("rollout is %+v", got)
	}
	for _, tier := range signer.Tiers {
		if got.Admits(servicetest.Kernel(53), tier, "00112233445566778899aabbccddeeff") {
			t.Errorf("tier %s gets the patch before the rule has let it", tier)
		}
	}
	for path, content := range r.Content {
		f, _, err := s.Catalog.Open(t.Context(), path, sha(content))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(f); err != nil || !bytes.Equal(b.Bytes(), content) {
			t.Errorf("%s: content differs, %v", path, err)
		}
		f.Close()
	}
}

func TestSecondPatchIsPublishedWithTheBinsThatChanged(t *testing.T) {
	s, r := published(t)
	before := s.Catalog.Generation()
	module, index := servicetest.AddPatch(r, 53, 2)
	bins := slices.Compact(slices.Sorted(slices.Values([]string{r.Bin(module), r.Bin(index)})))
	r.Publish(bins...)
	got := s.Publish(t, r, bins...)
	if got.SnapshotVersion != 2 || got.Generation <= before {
		t.Errorf("published as %+v after generation %d", got, before)
	}
	first, second := rolloutState(t, s, r, "1.1"), rolloutState(t, s, r, "2.1")
	if first.Tiers["stable"].Salt == second.Tiers["stable"].Salt {
		t.Error("two rollouts begin with the same machines")
	}
}

func TestProvenanceIsServedBesideItsModule(t *testing.T) {
	s, r := published(t)
	const path, statement = "debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.intoto.json", `{"payloadType":"application/vnd.in-toto+json"}`
	r.AddTarget(path, []byte(statement), nil)
	s.Publish(t, r, bump(r, r.Bin(path))...)
	f, _, err := s.Catalog.Open(t.Context(), path, sha([]byte(statement)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != statement {
		t.Errorf("served %q, %v", b, err)
	}
}

func TestRepeatedPublicationChangesNothing(t *testing.T) {
	s, r := published(t)
	want := s.Publish(t, r)
	if got := s.Publish(t, r); got != want {
		t.Errorf("published as %+v, and then as %+v", want, got)
	}
}

func TestRootRotationIsPublished(t *testing.T) {
	s, r := published(t)
	fresh := []tuftest.Key{tuftest.NewKey("fresh 1"), tuftest.NewKey("fresh 2"), tuftest.NewKey("fresh 3")}
	next := r.AddRoot()
	tuftest.Grant(next, "root", 2, fresh...)
	next.Signers = append(next.Signers, fresh[:2]...)
	s.Publish(t, r, "root")
	if v := s.Catalog.State().RootVersion; v != 2 {
		t.Fatalf("root version = %d, want 2", v)
	}
	walk(t, s, r)
}

func TestPublicationThatSkipsNoRootIsTaken(t *testing.T) {
	s, r := published(t)
	r.AddRoot()
	r.AddRoot()
	p := servicetest.Publication(r)
	if _, err := s.Catalog.Publish(t.Context(), service.Publication{Files: map[string][]byte{
		"2.root.json": p.Files["2.root.json"], "3.root.json": p.Files["3.root.json"],
	}}); err != nil {
		t.Fatal(err)
	}
	walk(t, s, r)
}

// A refusal is a publication that must not become current.
type refusal struct {
	// edit changes the repository that is published already, and returns the
	// roles to publish.
	edit    func(r *tuftest.Repo) []string
	wantErr error
	want    string // in the error
}

// bump raises versions and returns the roles, to publish them.
func bump(r *tuftest.Repo, roles ...string) []string {
	r.Publish(roles...)
	return roles
}

func signedBy(names ...string) []tuftest.Key {
	var keys []tuftest.Key
	for _, n := range names {
		keys = append(keys, tuftest.NewKey(n))
	}
	return keys
}

// set replaces a field of a role's signed part.
func set(r *tuftest.Repo, role string, value any, path ...string) {
	parent := tuftest.Path(path[:len(path)-1]).Get(r.Roles[role].Signed)
	parent.(tuftest.Object)[path[len(path)-1]] = value
}

// delegation returns a delegation of targets by its place: 0 is rollout, 1 debian.
func delegation(r *tuftest.Repo, i string) tuftest.Object {
	return tuftest.Path{"delegations", "roles", i}.Get(r.Roles["targets"].Signed).(tuftest.Object)
}

var refusals = map[string]refusal{
	"bin signed by one key of two": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Signers = signedBy("debian builder")
		return bump(r, "debian-0")
	}, catalog.ErrUntrusted, "not enough signatures"},
	"bin signed by one key twice": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Signers = signedBy("debian builder", "debian builder")
		return bump(r, "debian-0")
	}, catalog.ErrUntrusted, "multiple signatures"},
	"bin signed with the keys of targets": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Signers = signedBy("targets 1", "targets 2")
		return bump(r, "debian-0")
	}, catalog.ErrUntrusted, "not enough signatures"},
	"bin changed after it was signed": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Forge = func(envelope tuftest.Object) any {
			e := tuftest.Copy(envelope).(tuftest.Object)
			e["signed"].(tuftest.Object)["expires"] = "2099-01-01T00:00:00Z"
			return e
		}
		return bump(r, "debian-0")
	}, catalog.ErrUntrusted, "not enough signatures"},
	"expired bin": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Expire(time.Now().Add(-time.Minute))
		return bump(r, "debian-0")
	}, patch.ErrExpired, `"debian-0" ended`},
	"expired targets": {func(r *tuftest.Repo) []string {
		r.Roles["targets"].Expire(time.Now().Add(-time.Minute))
		return bump(r, "targets")
	}, patch.ErrExpired, `"targets" ended`},
	"expired vendor": {func(r *tuftest.Repo) []string {
		r.Roles["debian"].Expire(time.Now().Add(-time.Minute))
		return bump(r, "debian")
	}, patch.ErrExpired, `"debian" ended`},
	"expired root": {func(r *tuftest.Repo) []string {
		r.AddRoot().Expire(time.Now().Add(-time.Minute))
		return []string{"root"}
	}, patch.ErrExpired, `"root" ended`},
	"other bytes for a version that is current": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Expire(time.Now().Add(9 * time.Hour))
		return []string{"debian-0"}
	}, store.ErrConflict, "version 1"},
	"file whose name says another version": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Bump()
		r.Roles["debian-0"].Edit = func(signed tuftest.Object) any {
			s := tuftest.Copy(signed).(tuftest.Object)
			s["version"] = 9
			return s
		}
		return []string{"debian-0"}
	}, catalog.ErrUntrusted, "holds version 9"},
	"root with a key of no length": {func(r *tuftest.Repo) []string {
		for _, key := range r.AddRoot().Signed["keys"].(tuftest.Object) {
			key.(tuftest.Object)["keyval"] = tuftest.Object{"public": ""}
		}
		return []string{"root"}
	}, catalog.ErrUntrusted, "is not 32 bytes"},
	"root that skips a version": {func(r *tuftest.Repo) []string {
		r.AddRoot().Bump()
		return []string{"root"}
	}, patch.ErrRollback, "root version 3 follows version 1"},
	"root not signed by the one before": {func(r *tuftest.Repo) []string {
		fresh := signedBy("other 1", "other 2", "other 3")
		next := r.AddRoot()
		tuftest.Grant(next, "root", 2, fresh...)
		next.Signers = fresh[:2]
		return []string{"root"}
	}, catalog.ErrUntrusted, "not enough signatures"},
	"root not signed by itself": {func(r *tuftest.Repo) []string {
		tuftest.Grant(r.AddRoot(), "root", 2, signedBy("other 1", "other 2", "other 3")...)
		return []string{"root"}
	}, catalog.ErrUntrusted, "not enough signatures"},
	"root that takes the keys of targets away and leaves targets": {func(r *tuftest.Repo) []string {
		tuftest.Grant(r.AddRoot(), "targets", 2, signedBy("other 1", "other 2", "other 3")...)
		return []string{"root"}
	}, catalog.ErrUntrusted, `role "targets"`},
	"root with another key for timestamp": {func(r *tuftest.Repo) []string {
		tuftest.Grant(r.AddRoot(), "timestamp", 1, tuftest.NewKey("other"))
		return []string{"root"}
	}, catalog.ErrUntrusted, `key of "timestamp" is not the one of this server`},
	"root with threshold 0": {func(r *tuftest.Repo) []string {
		tuftest.Grant(r.AddRoot(), "targets", 0, signedBy("targets 1", "targets 2")...)
		return []string{"root"}
	}, catalog.ErrUntrusted, "threshold"},
	"root without consistent snapshots": {func(r *tuftest.Repo) []string {
		r.AddRoot().Signed["consistent_snapshot"] = false
		return []string{"root"}
	}, catalog.ErrUntrusted, "consistent snapshots"},
	"key listed twice": {func(r *tuftest.Repo) []string {
		k := tuftest.NewKey("debian builder")
		set(r, "debian", tuftest.Threshold(2, k, k)["keyids"], "delegations", "succinct_roles", "keyids")
		return bump(r, "debian")
	}, catalog.ErrUntrusted, "twice"},
	"key under another key's ID": {func(r *tuftest.Repo) []string {
		builder, approver := tuftest.NewKey("debian builder"), tuftest.NewKey("debian approver")
		set(r, "debian", builder.Object(), "delegations", "keys", approver.ID)
		return bump(r, "debian")
	}, catalog.ErrUntrusted, "wrong ID"},
	"targets that takes the vendor's keys away and leaves the vendor": {func(r *tuftest.Repo) []string {
		other := signedBy("other 1", "other 2")
		for _, k := range other {
			set(r, "targets", k.Object(), "delegations", "keys", k.ID)
		}
		delegation(r, "1")["keyids"] = tuftest.Threshold(2, other...)["keyids"]
		return bump(r, "targets")
	}, catalog.ErrUntrusted, `role "debian"`},
	"targets with a target": {func(r *tuftest.Repo) []string {
		r.AddTargetTo("targets", "debian/x.ko", []byte("module 1"), nil)
		return bump(r, "targets")
	}, catalog.ErrUntrusted, "targets of its own"},
	"delegation with a wider path": {func(r *tuftest.Repo) []string {
		delegation(r, "1")["paths"] = []any{"*/*"}
		return bump(r, "targets")
	}, catalog.ErrUntrusted, "not for the paths"},
	"delegation that does not terminate": {func(r *tuftest.Repo) []string {
		delegation(r, "1")["terminating"] = false
		return bump(r, "targets")
	}, catalog.ErrUntrusted, "not terminating"},
	"rollout delegated to a key that is not ours": {func(r *tuftest.Repo) []string {
		other := tuftest.NewKey("other")
		set(r, "targets", other.Object(), "delegations", "keys", other.ID)
		delegation(r, "0")["keyids"] = []any{other.ID}
		return bump(r, "targets")
	}, catalog.ErrUntrusted, `key of "rollout" is not the one of this server`},
	"vendor that is a role of ours": {func(r *tuftest.Repo) []string {
		k := tuftest.NewKey("other")
		r.Delegate("targets", tuftest.Delegation("snapshot", tuftest.Threshold(1, k), true, "snapshot/*"), k)
		return bump(r, "targets")
	}, catalog.ErrUntrusted, "cannot be a vendor"},
	"two delegations to one vendor": {func(r *tuftest.Repo) []string {
		keys := signedBy("debian builder", "debian approver")
		r.Delegate("targets", tuftest.Delegation("debian", tuftest.Threshold(2, keys...), true, "debian/*"), keys...)
		return bump(r, "targets")
	}, catalog.ErrUntrusted, "two delegations"},
	"vendor without its metadata": {func(r *tuftest.Repo) []string {
		r.AddVendor("ubuntu", 2)
		return bump(r, "targets")
	}, catalog.ErrUntrusted, `role "ubuntu": it is missing`},
	"vendor without one of its bins": {func(r *tuftest.Repo) []string {
		r.AddVendor("ubuntu", 1)
		return append(bump(r, "targets"), "ubuntu", "ubuntu-0")
	}, catalog.ErrUntrusted, `role "ubuntu-1": it is missing`},
	"vendor whose bins have another name": {func(r *tuftest.Repo) []string {
		set(r, "debian", "ubuntu", "delegations", "succinct_roles", "name_prefix")
		return bump(r, "debian")
	}, catalog.ErrUntrusted, `bins are named "ubuntu"`},
	"vendor with new keys and old bins": {func(r *tuftest.Repo) []string {
		other := signedBy("other 1", "other 2")
		for _, k := range other {
			set(r, "debian", k.Object(), "delegations", "keys", k.ID)
		}
		set(r, "debian", tuftest.Threshold(2, other...)["keyids"], "delegations", "succinct_roles", "keyids")
		return bump(r, "debian")
	}, catalog.ErrUntrusted, "not enough signatures"},
	"role that nobody delegates to": {func(r *tuftest.Repo) []string {
		r.AddRole("stranger", signedBy("debian builder", "debian approver")...)
		return []string{"stranger"}
	}, catalog.ErrUntrusted, "no role delegates to it"},
	"target of another vendor": {func(r *tuftest.Repo) []string {
		r.AddTargetTo("debian-0", "ubuntu/x.ko", []byte("module 1"), nil)
		return bump(r, "debian-0")
	}, catalog.ErrUntrusted, "not a path"},
	"target in another bin": {func(r *tuftest.Repo) []string {
		bin := "debian-0"
		if r.Bin("debian/x.ko") == bin {
			bin = "debian-1"
		}
		r.AddTargetTo(bin, "debian/x.ko", []byte("module 1"), nil)
		return bump(r, bin)
	}, catalog.ErrUntrusted, "belongs to the bin"},
	"module that is not described": {func(r *tuftest.Repo) []string {
		r.AddTarget("debian/x.ko", []byte("module 1"), nil)
		return bump(r, r.Bin("debian/x.ko"))
	}, catalog.ErrUntrusted, "not described"},
	"module that is described as another": {func(r *tuftest.Repo) []string {
		m := patch.Module{Kernel: servicetest.Kernel(1), Flavour: "amd64", Name: "y", Version: "1", Sequence: 1}
		r.AddTarget("debian/x.ko", []byte("module 1"), m)
		return bump(r, r.Bin("debian/x.ko"))
	}, catalog.ErrUntrusted, `described as "debian/y.x86_64.ko"`},
	"module that was not uploaded": {func(r *tuftest.Repo) []string {
		module, index := servicetest.AddPatch(r, 7, 9)
		delete(r.Content, module)
		return bump(r, r.Bin(module), r.Bin(index))
	}, catalog.ErrUntrusted, "was not uploaded"},
	"index that was not uploaded": {func(r *tuftest.Repo) []string {
		module, index := servicetest.AddPatch(r, 7, 9)
		delete(r.Content, index)
		return bump(r, r.Bin(module), r.Bin(index))
	}, catalog.ErrUntrusted, "was not uploaded"},
	"index of another kernel": {func(r *tuftest.Repo) []string {
		_, index := servicetest.AddPatch(r, 7, 9)
		content := r.Content[index]
		r.AddTarget("debian/1.x86_64.index.json", content, nil)
		return bump(r, r.Bin("debian/1.x86_64.index.json"))
	}, catalog.ErrUntrusted, "it describes"},
	"index that is no JSON": {func(r *tuftest.Repo) []string {
		r.AddTarget("debian/1.x86_64.index.json", []byte("{"), nil)
		return bump(r, r.Bin("debian/1.x86_64.index.json"))
	}, catalog.ErrUntrusted, "cannot read kernel index"},
	"truncated file": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Rewrite = func(b []byte) []byte { return b[:len(b)/2] }
		return bump(r, "debian-0")
	}, patch.ErrMalformed, "2.debian-0.json"},
	"file of another type": {func(r *tuftest.Repo) []string {
		set(r, "debian-0", "snapshot", "_type")
		return bump(r, "debian-0")
	}, patch.ErrMalformed, "expected metadata type"},
	"file that two parsers read in two ways": {func(r *tuftest.Repo) []string {
		// go-tuf takes the last of two fields; the loader takes neither.
		r.Roles["debian-0"].Rewrite = func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"signatures":`), []byte(`"signatures":[],"signatures":`), 1)
		}
		return bump(r, "debian-0")
	}, catalog.ErrUntrusted, "loader's verifier refuses"},
	"root that two parsers read in two ways": {func(r *tuftest.Repo) []string {
		r.AddRoot().Rewrite = func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"signatures":`), []byte(`"signatures":[],"signatures":`), 1)
		}
		return []string{"root"}
	}, catalog.ErrUntrusted, "loader's verifier refuses"},
	"file of 6 MB": {func(r *tuftest.Repo) []string {
		r.Roles["debian-0"].Rewrite = func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 6<<20)...) }
		return bump(r, "debian-0")
	}, patch.ErrTooLarge, "at most"},
}

func TestPublicationIsRefused(t *testing.T) {
	for name, tc := range refusals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, good := published(t)
			before, state := s.Catalog.Generation(), s.Catalog.State()

			bad := good.Clone()
			roles := tc.edit(bad)
			s.Upload(t, bad)
			_, err := s.Catalog.Publish(t.Context(), servicetest.Publication(bad, roles...))
			if !errors.Is(err, tc.wantErr) || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("Publish = %v, want %v with %q", err, tc.wantErr, tc.want)
			}
			if err := s.Catalog.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.Catalog.Generation() != before || fmt.Sprint(s.Catalog.State()) != fmt.Sprint(state) {
				t.Errorf("it left its traces: %+v, was %+v", s.Catalog.State(), state)
			}
			walk(t, s, good)
		})
	}
}

func TestOnlineRolesAreNotPublished(t *testing.T) {
	s := servicetest.New(t)
	for _, name := range []string{"1.snapshot.json", "1.timestamp.json", "1.rollout.json", "timestamp.json", "../1.root.json", "01.root.json", ""} {
		_, err := s.Catalog.Publish(t.Context(), service.Publication{Files: map[string][]byte{name: []byte("{}")}})
		if !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("%q: Publish = %v, want %v", name, err, patch.ErrInvalid)
		}
	}
}

func TestFirstPublicationNeedsTheFirstRoot(t *testing.T) {
	s := servicetest.New(t)
	r := tuftest.New(time.Now())
	r.AddRoot()
	p := servicetest.Publication(r)
	delete(p.Files, "1.root.json")
	if _, err := s.Catalog.Publish(t.Context(), p); !errors.Is(err, catalog.ErrUntrusted) {
		t.Errorf("Publish = %v, want %v", err, catalog.ErrUntrusted)
	}
	delete(p.Files, "2.root.json")
	if _, err := s.Catalog.Publish(t.Context(), p); !errors.Is(err, catalog.ErrUntrusted) {
		t.Errorf("Publish = %v, want %v", err, catalog.ErrUntrusted)
	}
	if s.Catalog.State().RootVersion != 0 {
		t.Error("something was published")
	}
}

func TestOfTwoPublicationsAtOnceOneWins(t *testing.T) {
	s, r := published(t)
	rivals := [2]*tuftest.Repo{r.Clone(), r.Clone()}
	var errs [2]error
	var wg sync.WaitGroup
	for i, rival := range rivals {
		module, index := servicetest.AddPatch(rival, 100+i, 2)
		roles := []string{r.Bin(module), r.Bin(index), "debian-0", "debian-1", "debian-2", "debian-3"}
		roles = slices.Compact(slices.Sorted(slices.Values(roles)))
		rival.Publish(roles...)
		s.Upload(t, rival)
		wg.Go(func() { _, errs[i] = s.Catalog.Publish(t.Context(), servicetest.Publication(rival, roles...)) })
	}
	wg.Wait()
	winner := slices.Index(errs[:], nil)
	if winner < 0 || !errors.Is(errs[1-winner], store.ErrConflict) {
		t.Fatalf("errors are %v, want one %v", errs, store.ErrConflict)
	}
	walk(t, s, rivals[winner])
}

// An interrupted database lets somebody else write before the first update.
type interrupted struct {
	catalog.Database
	once sync.Once
	by   func()
}

func (d *interrupted) Update(ctx context.Context, fn func(store.Tx) error) error {
	d.once.Do(d.by)
	return d.Database.Update(ctx, fn)
}

// TestPublicationOfAnotherServerIsNoticed publishes for another vendor between
// the verification of a publication and its commit: no version is in the way,
// but what was verified is no longer what is there.
func TestPublicationOfAnotherServerIsNoticed(t *testing.T) {
	s, r := published(t)
	ours, theirs := r.Clone(), r.Clone()
	ours.Publish("debian-0")
	theirs.Publish("debian-1")
	slow := s.Catalog.On(func(db catalog.Database) catalog.Database {
		return &interrupted{Database: db, by: func() { s.Publish(t, theirs, "debian-1") }}
	})
	_, err := slow.Publish(t.Context(), servicetest.Publication(ours, "debian-0"))
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("Publish = %v, want %v", err, store.ErrConflict)
	}
	if got := s.Catalog.State().Versions; got["debian-0"] != 1 || got["debian-1"] != 2 {
		t.Errorf("versions are %v", got)
	}
	// Repeated, it is verified against what is there now.
	if _, err := slow.Publish(t.Context(), servicetest.Publication(ours, "debian-0")); err != nil {
		t.Error(err)
	}
}

func TestSlowReaderDoesNotTurnBackTime(t *testing.T) {
	s, r := published(t)
	late := s.Catalog.Late()
	r.Publish("debian-0")
	want := s.Publish(t, r, "debian-0").Generation
	late()
	if got := s.Catalog.Generation(); got != want {
		t.Errorf("generation = %d, want %d", got, want)
	}
}

func TestServiceGoesOnAfterRestart(t *testing.T) {
	s, r := published(t)
	want := s.Catalog.State()
	again := servicetest.Open(t, s.Dir)
	if got := again.Catalog.State(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("state = %+v, want %+v", got, want)
	}
	walk(t, again, r)
}

func TestForeignKeysAreNoticedAtTheStart(t *testing.T) {
	s, _ := published(t)
	for _, name := range []string{"snapshot", "timestamp"} {
		if err := os.Remove(filepath.Join(string(s.Dir), "keys", name+".key")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Dir.Create(t.Context()); err != nil { // makes new ones
		t.Fatal(err)
	}
	keys, err := s.Dir.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reopen(t, keys); !errors.Is(err, catalog.ErrForeignKeys) {
		t.Errorf("Open = %v, want %v", err, catalog.ErrForeignKeys)
	}
}

// decision is alice's, about a version of debian.
func decision(version string, s patch.RolloutState) store.Decision {
	return store.Decision{
		Vendor: "debian", Version: version, State: s, At: time.Now(), By: "alice (uid 1000)", Reason: "crashes",
	}
}

func TestDecisionIsSignedByTheServer(t *testing.T) {
	s, r := published(t)
	before := s.Catalog.Generation()
	steps := []struct {
		state   patch.RolloutState
		wantErr error
	}{
		{patch.Halted, nil},
		{patch.Halted, catalog.ErrUnchanged},
		{patch.Running, nil},
		{patch.Revoked, nil},
		{patch.Running, catalog.ErrRevoked},
		{patch.Halted, catalog.ErrRevoked},
	}
	current := patch.Running
	for _, step := range steps {
		epoch, err := catalog.Decide(t.Context(), s.DB, decision("1.1", step.state))
		if !errors.Is(err, step.wantErr) {
			t.Fatalf("from %s to %s: %v, want %v", current, step.state, err, step.wantErr)
		}
		if err == nil {
			current = step.state
		}
		if err := s.Catalog.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := rolloutState(t, s, r, "1.1").State; got != current {
			t.Errorf("signed state = %s, want %s", got, current)
		}
		if state, err := s.DB.Counters(t.Context()); err != nil || state.SignedEpoch < epoch {
			t.Errorf("signed epoch %d, want %d, %v", state.SignedEpoch, epoch, err)
		}
	}
	if got := s.Catalog.Generation(); got != before+3 {
		t.Errorf("generation = %d, want %d", got, before+3)
	}
	if _, err := catalog.Decide(t.Context(), s.DB, decision("9.9", patch.Halted)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown version: %v, want %v", err, store.ErrNotFound)
	}
}

func TestRolesAreSignedAnewBeforeTheyExpire(t *testing.T) {
	s, r := published(t)
	first, err := s.Catalog.Timestamp()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	steps := map[string]struct {
		at   time.Time
		want bool
	}{
		"an hour later":                            {now.Add(time.Hour), false},
		"just before half of the life":             {now.Add(12*time.Hour - time.Minute), false},
		"at half of the life":                      {now.Add(12 * time.Hour), true},
		"when all has expired":                     {now.Add(30 * 24 * time.Hour), true},
		"when the clock turns out to run too fast": {now.Add(-time.Hour), true},
	}
	for name, step := range steps {
		if got := s.Catalog.Due(step.at); got != step.want {
			t.Errorf("%s: due = %t, want %t", name, got, step.want)
		}
	}
	s.Catalog.Age(13 * time.Hour)
	if err := s.Catalog.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, err := s.Catalog.Timestamp()
	if err != nil || second.Version != first.Version+1 || !second.Modified.After(first.Modified) {
		t.Errorf("timestamp is version %d of %v after version %d of %v, %v", second.Version, second.Modified, first.Version, first.Modified, err)
	}
	walk(t, s, r)
}

func TestRunSignsAgainAndRetriesAfterFailure(t *testing.T) {
	s, _ := published(t)
	v, err := s.DB.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Round(0)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now)) // the clock in here begins in 2000
		db := &fakeDB{state: v}
		c := s.Catalog.With(db)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		db.fail = time.Now().Add(5 * time.Minute)
		c.Run(ctx)
		// 2 + 4 + 8 + 16 + 32 s, then a minute each until five are over.
		if got := c.Failures(); got < 8 || got > 10 {
			t.Errorf("%d failures in five minutes, want about 9", got)
		}
		if db.asked < 3000 {
			t.Errorf("looked %d times in an hour, want about once a second", db.asked)
		}
	})
}

// A fakeDB answers Counters, or fails until a time.
type fakeDB struct {
	catalog.Database
	state store.State
	fail  time.Time
	asked int
}

func (f *fakeDB) Counters(context.Context) (store.State, error) {
	f.asked++
	if time.Now().Before(f.fail) {
		return store.State{}, store.ErrUnavailable
	}
	return f.state, nil
}

func TestOldFilesAreForgotten(t *testing.T) {
	s, r := published(t)
	forgotten := []byte("uploaded and never named")
	if err := s.Catalog.Upload(t.Context(), "debian/y.ko", sha(forgotten), bytes.NewReader(forgotten), 100); err != nil {
		t.Fatal(err)
	}
	stray := []byte("cut off before it had a name")
	if _, err := s.Blobs.Put(sha(stray), bytes.NewReader(stray), 100); err != nil {
		t.Fatal(err)
	}
	module, index := servicetest.AddPatch(r, 53, 2)
	bins := slices.Compact(slices.Sorted(slices.Values([]string{r.Bin(module), r.Bin(index)})))
	r.Publish(bins...)
	s.Publish(t, r, bins...)
	r.AddRoot()
	s.Publish(t, r, "root")
	old := "1." + bins[0] + ".json"

	exists := func() (file, upload, blob bool) {
		_, err := s.Catalog.Metadata(t.Context(), old)
		has, errHas := s.Catalog.Has(t.Context(), "debian/y.ko", sha(forgotten))
		if errHas != nil {
			t.Fatal(errHas)
		}
		return err == nil, has, s.Blobs.Has(sha(stray), int64(len(stray)))
	}
	if err := s.Catalog.CleanAt(t.Context(), time.Now().Add(23*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if file, upload, blob := exists(); !file || !upload || !blob {
		t.Errorf("a day is not over: file %t, upload %t, blob %t", file, upload, blob)
	}
	if err := s.Catalog.CleanAt(t.Context(), time.Now().Add(8*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if file, upload, blob := exists(); file || upload || blob {
		t.Errorf("a week is over: file %t, upload %t, blob %t", file, upload, blob)
	}
	if _, err := s.Catalog.Metadata(t.Context(), "1.root.json"); err != nil {
		t.Errorf("the chain of roots is broken: %v", err)
	}
	walk(t, s, r)
	for path, content := range r.Content {
		if path == index {
			continue
		}
		if has, err := s.Catalog.Has(t.Context(), path, sha(content)); !has || err != nil {
			t.Errorf("%s is gone, %v", path, err)
		}
	}
}

func TestSupported(t *testing.T) {
	s := servicetest.New(t)
	r := tuftest.New(time.Now())
	add := func(release, version, from, until string) {
		b, err := json.Marshal(patch.Index{
			Arch: "x86_64", Release: release, Flavour: "amd64", KernelVersion: version, From: from, Until: until,
		})
		if err != nil {
			t.Fatal(err)
		}
		r.AddTarget(patch.IndexPath("debian", release, "x86_64"), b, nil)
	}
	add("6.1.0-9-amd64", "6.1.9-1", "2026-01-01", "2026-06-30")
	add("6.1.0-10-amd64", "6.1.10-1", "2026-05-01", "2026-12-31")
	add("6.1.0-99-amd64", "6.1.99-1", "2027-01-01", "2027-12-31")
	add("5.10.0-3-amd64", "5.10.3-1", "2025-01-01", "2025-12-31")
	s.Publish(t, r)

	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		question catalog.Question
		now      time.Time
		want     catalog.Support
	}{
		"series that is covered":            {catalog.Question{Version: "6.1", Flavour: "amd64", Arch: "amd64"}, now, catalog.Supported},
		"series that is over":               {catalog.Question{Version: "5.10", Flavour: "amd64", Arch: "amd64"}, now, catalog.EndOfLife},
		"series that never was":             {catalog.Question{Version: "4.19", Flavour: "amd64", Arch: "amd64"}, now, catalog.Unsupported},
		"release inside its window":         {catalog.Question{Version: "6.1.0-10-amd64", Flavour: "amd64", Arch: "amd64"}, now, catalog.Supported},
		"release on its last day":           {catalog.Question{Version: "6.1.0-10-amd64", Flavour: "amd64", Arch: "amd64"}, time.Date(2026, 12, 31, 23, 59, 0, 0, time.UTC), catalog.Supported},
		"release the day after":             {catalog.Question{Version: "6.1.0-10-amd64", Flavour: "amd64", Arch: "amd64"}, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), catalog.UpgradeRequired},
		"release before its window":         {catalog.Question{Version: "6.1.0-99-amd64", Flavour: "amd64", Arch: "amd64"}, now, catalog.Unsupported},
		"old release, newer one is covered": {catalog.Question{Version: "6.1.0-9-amd64", Flavour: "amd64", Arch: "amd64"}, now, catalog.UpgradeRequired},
		"old release, all are over":         {catalog.Question{Version: "6.1.0-9-amd64", Flavour: "amd64", Arch: "amd64"}, now.AddDate(9, 0, 0), catalog.EndOfLife},
		"release without its flavour":       {catalog.Question{Version: "6.1.0-10", Flavour: "amd64", Arch: "amd64"}, now, catalog.Supported},
		"version of the package":            {catalog.Question{Version: "6.1.10-1", Flavour: "amd64", Arch: "amd64"}, now, catalog.Supported},
		"architecture as uname names it":    {catalog.Question{Version: "6.1", Flavour: "amd64", Arch: "x86_64"}, now, catalog.Supported},
		"another architecture":              {catalog.Question{Version: "6.1", Flavour: "amd64", Arch: "arm64"}, now, catalog.Unsupported},
		"another flavour":                   {catalog.Question{Version: "6.1", Flavour: "cloud-amd64", Arch: "amd64"}, now, catalog.Unsupported},
		"release that was never covered":    {catalog.Question{Version: "6.1.0-55-amd64", Flavour: "amd64", Arch: "amd64"}, now, catalog.Unsupported},
		"no version":                        {catalog.Question{Flavour: "amd64", Arch: "amd64"}, now, catalog.Unknown},
		"no flavour":                        {catalog.Question{Version: "6.1", Arch: "amd64"}, now, catalog.Unknown},
		"no architecture":                   {catalog.Question{Version: "6.1", Flavour: "amd64"}, now, catalog.Unknown},
		"not a version":                     {catalog.Question{Version: "'; drop table kernels", Flavour: "amd64", Arch: "amd64"}, now, catalog.Unsupported},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := s.Catalog.Supported(t.Context(), tc.question, tc.now)
			if err != nil || got != tc.want {
				t.Errorf("Supported = %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestKernelsFollowTheIndexes(t *testing.T) {
	s, r := published(t)
	ask := func() catalog.Support {
		got, err := s.Catalog.Supported(t.Context(), catalog.Question{Version: "6.1.0-53-amd64", Flavour: "amd64", Arch: "amd64"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := ask(); got != catalog.Supported {
		t.Fatalf("%s, want %s", got, catalog.Supported)
	}
	index := patch.IndexPath("debian", "6.1.0-53-amd64", "x86_64")
	over := bytes.Replace(r.Content[index], []byte("2099-12-31"), []byte("2026-01-02"), 1)
	r.AddTarget(index, over, nil)
	r.Publish(r.Bin(index))
	s.Publish(t, r, r.Bin(index))
	if got := ask(); got != catalog.EndOfLife {
		t.Errorf("after its end: %s, want %s", got, catalog.EndOfLife)
	}
	delete(r.Roles[r.Bin(index)].Signed["targets"].(tuftest.Object), index)
	r.Publish(r.Bin(index))
	s.Publish(t, r, r.Bin(index))
	if got := ask(); got != catalog.Unsupported {
		t.Errorf("after its index is gone: %s, want %s", got, catalog.Unsupported)
	}
}
