package request_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/request"
)

func TestDescribe(t *testing.T) {
	id := func(p person) string { return fmt.Sprintf("%s (%s)", p, authority.Short(p.id())) }
	sum := sha256.Sum256([]byte("module"))
	tests := map[string]struct {
		r    func(*fixture) request.Request
		want []string
	}{
		"a target is added": {func(f *fixture) request.Request { return f.patched("b") }, []string{
			"role debian-00, version 2 after 1, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"adds debian/x.ko (6 bytes, sha256 " + hex.EncodeToString(sum[:]) + ")",
			"signatures: 2 of " + id("b") + ", " + id("a") + "; signed by " + id("b"),
		}},
		"a module is added that is signed for kernels": {func(f *fixture) request.Request {
			r := f.patched("b")
			custom := json.RawMessage(`{"arch":"x86_64","release":"6.1.0-53-amd64","build_id":"0011223344556677","flavour":"amd64","name":"x","version":"1.1",` +
				`"sequence":1,"notice":"LSN-1","fixes":["CVE-2026-1"],"signing_key":"0bf1a2c3"}`)
			f.bin.Signed.Targets["debian/x.ko"].Custom = &custom
			r.Change = request.Files{"2.debian-00.json": encode(f.t, f.bin, "b")}
			return r
		}, []string{
			"role debian-00, version 2 after 1, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"adds debian/x.ko (6 bytes, sha256 " + hex.EncodeToString(sum[:]) + ", module x version 1.1 sequence 1 for kernel 6.1.0-53-amd64 x86_64 amd64 " +
				`build-id 0011223344556677, notice "LSN-1", fixes CVE-2026-1, signed for kernels with key 0bf1a2c3)`,
			"signatures: 2 of " + id("b") + ", " + id("a") + "; signed by " + id("b"),
		}},
		"a target is changed": {func(f *fixture) request.Request {
			r := f.patched("b", "a")
			delete(r.InForce, "1.debian-00.json")
			r.InForce["2.debian-00.json"] = r.Change["2.debian-00.json"]
			f.bin.Signed.Version = 3
			f.bin.Signed.Targets["debian/x.ko"].Length = 7
			custom := json.RawMessage(`{"a":1}`)
			f.bin.Signed.Targets["debian/x.ko"].Custom = &custom
			r.Change = request.Files{"3.debian-00.json": encode(f.t, f.bin)}
			return r
		}, []string{
			"role debian-00, version 3 after 2, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"changes debian/x.ko (7 bytes, sha256 " + hex.EncodeToString(sum[:]) + `, custom {"a":1}; before 6 bytes, sha256 ` + hex.EncodeToString(sum[:]) + ")",
			"signatures: 2 of " + id("b") + ", " + id("a") + "; signed by nobody yet",
		}},
		"a target is removed": {func(f *fixture) request.Request {
			r := f.patched("b", "a")
			delete(r.InForce, "1.debian-00.json")
			r.InForce["2.debian-00.json"] = r.Change["2.debian-00.json"]
			f.bin.Signed.Version = 3
			delete(f.bin.Signed.Targets, "debian/x.ko")
			r.Change = request.Files{"3.debian-00.json": encode(f.t, f.bin, "a")}
			return r
		}, []string{
			"role debian-00, version 3 after 2, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"removes debian/x.ko (6 bytes, sha256 " + hex.EncodeToString(sum[:]) + ")",
			"signatures: 2 of " + id("b") + ", " + id("a") + "; signed by " + id("a"),
		}},
		"nothing changes": {func(f *fixture) request.Request {
			f.targets.Signed.Version = 2
			return request.Request{InForce: f.inForce, Change: request.Files{"2.targets.json": encode(f.t, f.targets, "t1")}}
		}, []string{
			"role targets, version 2 after 1, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"nothing changes but version and expiry",
			"signatures: 2 of " + id("t1") + ", " + id("t2") + "; signed by " + id("t1"),
		}},
		"a root key is replaced": {func(f *fixture) request.Request { return f.rotated("r1") }, []string{
			"role root, version 2 after 1, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"role root: no longer trusts " + id("r3"),
			"role root: trusts now " + id("r4"),
			"signatures of the root before: 2 of " + id("r1") + ", " + id("r2") + ", " + id("r3") + "; signed by " + id("r1"),
			"signatures of the new root: 2 of " + id("r1") + ", " + id("r2") + ", " + id("r4") + "; signed by " + id("r1"),
		}},
		"everything about a delegation": {func(f *fixture) request.Request {
			r := &f.targets.Signed.Delegations.Roles[0]
			r.Paths, r.Terminating, r.Threshold, r.KeyIDs = []string{"*/*"}, false, 1, []string{person("b2").id()}
			f.targets.Signed.Delegations.Keys = map[string]*metadata.Key{person("b2").id(): key(f.t, "b2")}
			f.targets.Signed.Delegations.Roles = append([]metadata.DelegatedRole{{Name: "all", Paths: []string{"*"}, KeyIDs: r.KeyIDs, Threshold: 1}}, *r)
			f.targets.Signed.Version = 2
			return request.Request{InForce: f.inForce, Change: request.Files{"2.targets.json": encode(f.t, f.targets, "t1")}}
		}, []string{
			"role targets, version 2 after 1, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"delegation to all is new: responsible for *, others may be asked after it",
			"delegation to all: trusts now " + id("b2"),
			"delegation to all: needs 1 of 1 keys",
			"delegation to debian: no longer trusts " + id("b") + ", " + id("a"),
			"delegation to debian: trusts now " + id("b2"),
			"delegation to debian: needs 1 of 1 keys, before 2 of 2",
			"delegation to debian: responsible for */*, before for debian/*",
			"delegation to debian: terminating is false, was true",
			"signatures: 2 of " + id("t1") + ", " + id("t2") + "; signed by " + id("t1"),
		}},
		"bins": {func(f *fixture) request.Request {
			f.vendor.Signed.Delegations.SuccinctRoles.BitLength = 9
			f.vendor.Signed.Version = 2
			return request.Request{InForce: f.inForce, Change: request.Files{"2.debian.json": encode(f.t, f.vendor, "b")}}
		}, []string{
			"role debian, version 2 after 1, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"bins: 2^9 called debian-…, before 2^8 called debian-…",
			"signatures: 2 of " + id("b") + ", " + id("a") + "; signed by " + id("b"),
		}},
		"bins that stay as they are": {func(f *fixture) request.Request {
			f.bin.Signed.Version = 2
			r := request.Request{InForce: f.inForce, Change: request.Files{"2.debian-00.json": encode(f.t, f.bin, "b")}}
			f.bin.Signed.Version = 1
			r.Change["1.debian-01.json"] = encode(f.t, f.bin, "b")
			return r
		}, []string{
			"2 bins of debian, valid until 2027-02-20T03:00:00Z (90 days from now)",
			"1 of them are new and empty",
			"in 1 of them nothing changes but version and expiry",
			"signatures: 2 of " + id("b") + ", " + id("a") + "; signed by " + id("b"),
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			passages, err := travel(t, tc.r(newFixture(t))).Describe(everybody, now)
			must(t, err)
			var got []string
			for _, p := range passages {
				got = append(append(got, p.Title), p.Lines...)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("Describe =\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}
