//go:build integration

package integration

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"livepatch/tests/lab"
)

// A hostile service hands out a copy of the real repository that is wrong in one
// place. Each time the user is told, the kernel stays as it is, and the patch in
// force is what status shows; once the service is honest again, the newer patch
// arrives.
func TestRefreshFromAServiceThatWasTakenOver(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	s := lab.NewService(t)
	f := lab.NewHonestFront(t, s)
	m := lab.NewMachine(t, s.Pinned())
	m.Join(s, f.URL)
	m.OK("enable", s.Token())
	m.OK("refresh")
	m.Accepts(one)
	old := f.Recorded()
	s.Publish(two)

	half := lab.Rewrite(func(b []byte) []byte { return b[:len(b)/2] })
	huge := func(res *http.Response) { lab.Inflate(res, 1<<30) }
	oneBit := lab.Rewrite(func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
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
	isBin := func(role string) bool { return strings.HasPrefix(role, lab.Vendor+"-") }
	tests := []struct {
		name, why, next string
		change          func(path string, res *http.Response)
	}{
		{"timestamp has expired", "signed metadata has expired", "out of date", lab.Metadata("timestamp.json", s.Resign("timestamp", expire))},
		{"timestamp is signed by nobody", "signature not trusted", trust, lab.Metadata("timestamp.json", lab.Signatures(none))},
		{"timestamp was changed", "signature not trusted", trust, lab.Metadata("timestamp.json", lab.Edit(func(file *lab.SignedFile) error { file.Signed["version"] = 1 << 30; return nil }))},
		{"timestamp is cut off", "signed metadata is malformed", tell, lab.Metadata("timestamp.json", half)},
		{"timestamp is 1 GB long", "file is larger than allowed", tell, lab.Metadata("timestamp.json", huge)},
		{"timestamp is a page of a portal", "signed metadata is malformed", tell, lab.Metadata("timestamp.json", lab.Rewrite(func([]byte) []byte { return []byte("<html>") }))},
		{"timestamp ends with the connection", "closed the connection before the end", "check the network", lab.Metadata("timestamp.json", func(res *http.Response) { res.Body = io.NopCloser(io.LimitReader(res.Body, 50)) })},
		{"snapshot is cut off", "content differs from what was signed", "changed on the way", lab.Metadata(".snapshot.json", half)},
		{"snapshot is 1 GB long", "file is larger than allowed", tell, lab.Metadata(".snapshot.json", huge)},
		{"the bin of the index is an older version", "older than", older, lab.Replay(old, isBin)},
		{"rollout has expired", "signed metadata has expired", "out of date", lab.Metadata(".rollout.json", s.Resign("rollout", expire))},
		{"rollout is cut off", "signed metadata is malformed", tell, lab.Metadata(".rollout.json", half)},
		{"a bin is signed by one person", "signature not trusted", trust, lab.Bins(lab.Signatures(first))},
		{"a bin is signed by one person twice", "signature not trusted", trust, lab.Bins(lab.Signatures(twice))},
		{"a bin was changed", "signature not trusted", trust, lab.Bins(lab.Rewrite(func(b []byte) []byte {
			return []byte(strings.Replace(string(b), `"length":`, `"length":1`, 1))
		}))},
		{"a bin is cut off", "signed metadata is malformed", tell, lab.Bins(half)},
		{"a bin is 1 GB long", "file is larger than allowed", tell, lab.Bins(huge)},
		{"the module is cut off", "file ends after", "changed on the way", lab.Modules(half)},
		{"the module has one bit changed", "content differs from what was signed", "changed on the way", lab.Modules(oneBit)},
		{"the module is 65 MB long", "is longer than the", "changed on the way", lab.Modules(func(res *http.Response) { lab.Inflate(res, 65<<20) })},
		{"the module is 1 GB long", "is longer than the", "changed on the way", lab.Modules(huge)},
		{"the module is not there", "service does not have", "do not fit together", lab.Modules(func(res *http.Response) { res.StatusCode = http.StatusNotFound })},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f.Set(tc.change)
			defer f.Set(nil)
			f.Sent.Store(0)
			// What comes before the bad file is in order, and kept.
			believed := !strings.HasPrefix(tc.name, "timestamp")
			m.Refuses(t, !believed, tc.why, tc.next, "refresh")
			m.WantInForce(one)
			if got := f.Sent.Load(); got > 16<<20 {
				t.Errorf("the agent read %d MB", got>>20)
			}
		})
	}
	m.OK("refresh")
	m.Accepts(two)

	t.Run("everything is as it was before", func(t *testing.T) {
		f.Set(lab.Replay(old, func(string) bool { return true }))
		defer f.Set(nil)
		m.Refuses(t, true, "older than what this machine has already seen", older, "refresh")
		m.WantInForce(two)
	})
	m.OK("refresh")
}
