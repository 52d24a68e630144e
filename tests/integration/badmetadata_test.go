//go:build integration

package integration

import (
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

	"livepatch/internal/tuftest"
)

// metadata returns what makes a front change the metadata files whose name has a
// suffix: "timestamp.json", ".snapshot.json".
func metadata(suffix string, change func(res *http.Response)) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if strings.HasPrefix(name, "/tuf/metadata/") && strings.HasSuffix(path.Base(name), suffix) && res.StatusCode == http.StatusOK {
			change(res)
		}
	}
}

// modules returns what makes a front change the modules that are fetched.
func modules(change func(res *http.Response)) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if strings.HasPrefix(name, "/tuf/targets/") && strings.HasSuffix(name, ".ko") {
			change(res)
		}
	}
}

// rewrite changes a body.
func rewrite(f func(b []byte) []byte) func(res *http.Response) {
	return func(res *http.Response) { replace(res, f(body(res))) }
}

// A signedFile is a metadata file.
type signedFile struct {
	Signatures []map[string]string `json:"signatures"`
	Signed     map[string]any      `json:"signed"`
}

// edit changes a signed file.
func edit(f func(file *signedFile) error) func(res *http.Response) {
	return rewrite(func(b []byte) []byte {
		var file signedFile
		err := json.Unmarshal(b, &file)
		if err == nil {
			err = f(&file)
		}
		if err == nil {
			b, err = json.Marshal(file)
		}
		if err != nil {
			return []byte("cannot edit signed file: " + err.Error())
		}
		return b
	})
}

// signatures changes who has signed a file.
func signatures(f func(sigs []map[string]string) []map[string]string) func(res *http.Response) {
	return edit(func(file *signedFile) error {
		file.Signatures = f(file.Signatures)
		return nil
	})
}

// resign changes what a file of an online role says and signs it again, as
// somebody who has taken over the service can.
func (s *service) resign(role string, change func(signed map[string]any)) func(res *http.Response) {
	key := s.onlineKey(role)
	return edit(func(file *signedFile) error {
		change(file.Signed)
		sig, err := key.Sign(rand.Reader, tuftest.Canonical(tuftest.Generic(file.Signed)), crypto.Hash(0))
		file.Signatures[0]["sig"] = hex.EncodeToString(sig)
		return err
	})
}

// A hostile service hands out a copy of the real repository that is wrong in one
// place. Each time the user is told, the kernel stays as it is, and the patch in
// force is what status shows; once the service is honest again, the newer patch
// arrives.
func TestRefreshFromAServiceThatWasTakenOver(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	s := newService(t)
	f := newHonestFront(t, s)
	m := newMachine(t, s.pinned())
	m.join(s, f.url)
	m.ok("enable", s.token())
	m.ok("refresh")
	m.accepts(one)
	old := f.recorded()
	s.publish(two)

	half := rewrite(func(b []byte) []byte { return b[:len(b)/2] })
	huge := func(res *http.Response) { inflate(res, 1<<30) }
	oneBit := rewrite(func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	first := func(sigs []map[string]string) []map[string]string { return sigs[:1] }
	twice := func(sigs []map[string]string) []map[string]string { return []map[string]string{sigs[0], sigs[0]} }
	none := func([]map[string]string) []map[string]string { return []map[string]string{} }
	expire := func(signed map[string]any) {
		signed["expires"] = time.Now().UTC().Add(-time.Minute).Format(time.RFC3339)
	}
	const (
		tell  = "tell the operator of the service"
		older = "the service offers older files than before"
		trust = "do not trust this service"
	)
	isBin := func(role string) bool { return strings.HasPrefix(role, vendor+"-") }
	tests := []struct {
		name, why, next string
		change          func(path string, res *http.Response)
	}{
		{"timestamp has expired", "signed metadata has expired", "out of date", metadata("timestamp.json", s.resign("timestamp", expire))},
		{"timestamp is signed by nobody", "signature not trusted", trust, metadata("timestamp.json", signatures(none))},
		{"timestamp was changed", "signature not trusted", trust, metadata("timestamp.json", edit(func(file *signedFile) error { file.Signed["version"] = 1 << 30; return nil }))},
		{"timestamp is cut off", "signed metadata is malformed", tell, metadata("timestamp.json", half)},
		{"timestamp is 1 GB long", "file is larger than allowed", tell, metadata("timestamp.json", huge)},
		{"timestamp is a page of a portal", "signed metadata is malformed", tell, metadata("timestamp.json", rewrite(func([]byte) []byte { return []byte("<html>") }))},
		{"timestamp ends with the connection", "closed the connection before the end", "check the network", metadata("timestamp.json", func(res *http.Response) { res.Body = io.NopCloser(io.LimitReader(res.Body, 50)) })},
		{"snapshot is cut off", "content differs from what was signed", "changed on the way", metadata(".snapshot.json", half)},
		{"snapshot is 1 GB long", "file is larger than allowed", tell, metadata(".snapshot.json", huge)},
		{"the bin of the index is an older version", "older than", older, replay(old, isBin)},
		{"rollout has expired", "signed metadata has expired", "out of date", metadata(".rollout.json", s.resign("rollout", expire))},
		{"rollout is cut off", "signed metadata is malformed", tell, metadata(".rollout.json", half)},
		{"a bin is signed by one person", "signature not trusted", trust, bins(signatures(first))},
		{"a bin is signed by one person twice", "signature not trusted", trust, bins(signatures(twice))},
		{"a bin was changed", "signature not trusted", trust, bins(rewrite(func(b []byte) []byte {
			return []byte(strings.Replace(string(b), `"length":`, `"length":1`, 1))
		}))},
		{"a bin is cut off", "signed metadata is malformed", tell, bins(half)},
		{"a bin is 1 GB long", "file is larger than allowed", tell, bins(huge)},
		{"the module is cut off", "file ends after", "changed on the way", modules(half)},
		{"the module has one bit changed", "content differs from what was signed", "changed on the way", modules(oneBit)},
		{"the module is 65 MB long", "is longer than the", "changed on the way", modules(func(res *http.Response) { inflate(res, 65<<20) })},
		{"the module is 1 GB long", "is longer than the", "changed on the way", modules(huge)},
		{"the module is not there", "service does not have", "do not fit together", modules(func(res *http.Response) { res.StatusCode = http.StatusNotFound })},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f.set(tc.change)
			defer f.set(nil)
			f.sent.Store(0)
			// What comes before the bad file is in order, and kept.
			believed := !strings.HasPrefix(tc.name, "timestamp")
			m.refuses(t, !believed, tc.why, tc.next, "refresh")
			m.wantInForce(one)
			if got := f.sent.Load(); got > 16<<20 {
				t.Errorf("the agent read %d MB", got>>20)
			}
		})
	}
	m.ok("refresh")
	m.accepts(two)

	t.Run("everything is as it was before", func(t *testing.T) {
		f.set(replay(old, func(string) bool { return true }))
		defer f.set(nil)
		m.refuses(t, true, "older than what this machine has already seen", older, "refresh")
		m.wantInForce(two)
	})
	m.ok("refresh")
}

// bins returns what makes a front change every hash bin.
func bins(change func(res *http.Response)) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if strings.HasPrefix(name, "/tuf/metadata/") && strings.Contains(name, "."+vendor+"-") && res.StatusCode == http.StatusOK {
			change(res)
		}
	}
}

// roleOf returns the role that the metadata file of a request is of.
func roleOf(name string) string {
	role := strings.TrimSuffix(path.Base(name), ".json")
	if _, after, versioned := strings.Cut(role, "."); versioned {
		role = after
	}
	return role
}

// replay returns what makes a front serve the files of roles that it has seen
// before, whatever the version that is asked for.
func replay(seen map[string][]byte, only func(role string) bool) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if b, ok := seen[roleOf(name)]; ok && strings.HasPrefix(name, "/tuf/metadata/") && only(roleOf(name)) {
			replace(res, b)
		}
	}
}
