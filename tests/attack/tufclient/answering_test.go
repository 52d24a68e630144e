package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"path"
)

// answering is a server without a network, by name of the file.
type answering map[string][]byte

// RoundTrip implements [http.RoundTripper].
func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	b, ok := a[path.Base(r.URL.Path)]
	code := http.StatusOK
	if !ok || len(b) == 0 {
		code = http.StatusNotFound
	}
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Body: io.NopCloser(bytes.NewReader(b)), Request: r}, nil
}

// signedPart returns what is signed in a file, without its layout.
func signedPart(b []byte) []byte {
	var f struct {
		Signed map[string]any `json:"signed"`
	}
	if json.Unmarshal(b, &f) != nil {
		return nil
	}
	out, err := json.Marshal(f.Signed)
	if err != nil {
		return nil
	}
	return out
}
