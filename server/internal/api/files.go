package api

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"livepatch/internal/patch"
	"livepatch/server/internal/store"
)

// Files under a versioned or hashed name never change. timestamp.json does, and
// a cache must ask each time; the answer is a 304 nearly always.
const (
	forever = "max-age=31536000, immutable"
	always  = "no-cache"
)

// files lets h serve signed files to everybody, or to machines only.
func (a *API) files(h handler) handler {
	if !a.PrivateFiles {
		return h
	}
	return func(w http.ResponseWriter, r *http.Request) error {
		if _, err := a.machine(r); err != nil {
			return err
		}
		return h(w, r)
	}
}

// cache says who may keep a file, and for how long.
func (a *API) cache(w http.ResponseWriter, age string) {
	who := "public, "
	if a.PrivateFiles {
		who = "private, "
	}
	w.Header().Set("Cache-Control", who+age)
}

func (a *API) metadata(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("file")
	if name == "timestamp.json" {
		f, err := a.Catalog.Timestamp()
		if err != nil {
			return err
		}
		a.cache(w, always)
		serveMetadata(w, r, f)
		return nil
	}
	f, err := a.Catalog.Metadata(r.Context(), name)
	if err != nil {
		return err
	}
	a.cache(w, forever)
	serveMetadata(w, r, f)
	return nil
}

// serveMetadata serves a file as it is or compressed. A part of it is always a
// part of the file as it is.
func serveMetadata(w http.ResponseWriter, r *http.Request, f store.File) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Vary", "Accept-Encoding")
	tag, body := f.Digest.String()[:32], f.Body
	if r.Header.Get("Range") == "" && acceptsGzip(r.Header.Values("Accept-Encoding")) {
		tag, body = tag+"-gzip", f.Gzip
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.Itoa(len(body))) // ServeContent leaves it out when encoded
	}
	h.Set("Etag", `"`+tag+`"`)
	http.ServeContent(w, r, "", f.Modified, bytes.NewReader(body))
}

// acceptsGzip tells whether Accept-Encoding names gzip and does not refuse it.
func acceptsGzip(values []string) bool {
	for _, value := range values {
		for part := range strings.SplitSeq(value, ",") {
			coding, params, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(coding), "gzip") {
				q := strings.TrimRight(strings.ReplaceAll(params, " ", ""), "0")
				return !slices.Contains([]string{"q=", "q=0.", "q=."}, strings.ToLower(q))
			}
		}
	}
	return false
}

// parseTarget reads the vendor and the file of a path, "debian" and
// "<sha256>.lkp_1.x86_64.ko", as a target path and a digest.
func parseTarget(r *http.Request) (string, patch.Digest, error) {
	vendor, file := r.PathValue("vendor"), r.PathValue("file")
	hash, name, _ := strings.Cut(file, ".")
	d, err := patch.ParseDigest(hash)
	if err != nil || d.String() != hash {
		return "", patch.Digest{}, fmt.Errorf("cannot use %q as the name of a target: %w", file, patch.ErrInvalid)
	}
	path := vendor + "/" + name
	if _, err := patch.VendorOf(path); err != nil {
		return "", patch.Digest{}, err
	}
	return path, d, nil
}

func (a *API) target(w http.ResponseWriter, r *http.Request) error {
	path, d, err := parseTarget(r)
	if err != nil {
		return err
	}
	f, t, err := a.Catalog.Open(r.Context(), path, d)
	if err != nil {
		return err
	}
	defer f.Close()
	a.cache(w, forever)
	h := w.Header()
	h.Set("Content-Type", contentType(path))
	h.Set("Etag", `"`+d.String()[:32]+`"`)
	http.ServeContent(w, r, "", t.Uploaded, f)
	return nil
}

func contentType(path string) string {
	if strings.HasSuffix(path, ".json") {
		return "application/json"
	}
	return "application/octet-stream"
}
