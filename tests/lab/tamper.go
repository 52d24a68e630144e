package lab

import (
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"path"
	"strings"

	"livepatch/internal/tuftest"
)

// Metadata returns what makes a front change the metadata files whose name has a
// suffix: "timestamp.json", ".snapshot.json".
func Metadata(suffix string, change func(res *http.Response)) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if strings.HasPrefix(name, "/tuf/metadata/") && strings.HasSuffix(path.Base(name), suffix) && res.StatusCode == http.StatusOK {
			change(res)
		}
	}
}

// Modules returns what makes a front change the modules that are fetched.
func Modules(change func(res *http.Response)) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if strings.HasPrefix(name, "/tuf/targets/") && strings.HasSuffix(name, ".ko") {
			change(res)
		}
	}
}

// Rewrite changes a body.
func Rewrite(f func(b []byte) []byte) func(res *http.Response) {
	return func(res *http.Response) { Replace(res, f(Body(res))) }
}

// A SignedFile is a metadata file.
type SignedFile struct {
	Signatures []map[string]string `json:"signatures"`
	Signed     map[string]any      `json:"signed"`
}

// Edit changes a signed file.
func Edit(f func(file *SignedFile) error) func(res *http.Response) {
	return Rewrite(func(b []byte) []byte { //nolint:bodyclose // Replace puts another body in its place
		var file SignedFile
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

// Signatures changes who has signed a file.
func Signatures(f func(sigs []map[string]string) []map[string]string) func(res *http.Response) {
	return Edit(func(file *SignedFile) error { //nolint:bodyclose // Replace puts another body in its place
		file.Signatures = f(file.Signatures)
		return nil
	})
}

// Resign changes what a file of an online role says and signs it again, as
// somebody who has taken over the service can.
func (s *Service) Resign(role string, change func(signed map[string]any)) func(res *http.Response) {
	key := s.OnlineKey(role)
	return Edit(func(file *SignedFile) error { //nolint:bodyclose // Replace puts another body in its place
		change(file.Signed)
		sig, err := key.Sign(rand.Reader, tuftest.Canonical(tuftest.Generic(file.Signed)), crypto.Hash(0))
		file.Signatures[0]["sig"] = hex.EncodeToString(sig)
		return err
	})
}

// Bins returns what makes a front change every hash bin.
func Bins(change func(res *http.Response)) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if strings.HasPrefix(name, "/tuf/metadata/") && strings.Contains(name, "."+Vendor+"-") && res.StatusCode == http.StatusOK {
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

// Replay returns what makes a front serve the files of roles that it has seen
// before, whatever the version that is asked for.
func Replay(seen map[string][]byte, only func(role string) bool) func(string, *http.Response) {
	return func(name string, res *http.Response) {
		if b, ok := seen[roleOf(name)]; ok && strings.HasPrefix(name, "/tuf/metadata/") && only(roleOf(name)) {
			Replace(res, b)
		}
	}
}
