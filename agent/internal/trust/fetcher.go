package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/agent/internal/fetch"
	"livepatch/internal/patch"
)

// baseURL stands for the service in the URLs that go-tuf builds; the fetcher
// takes it off again.
const baseURL = "tuf:/"

// A fetcher answers go-tuf's requests for one refresh. It implements go-tuf's
// fetcher.Fetcher.
type fetcher struct {
	ctx       context.Context //nolint:containedctx // one refresh long; go-tuf's interface has none
	src       Source          // nil: offline
	timestamp []byte          // fetched before
	skipRoots bool            // say that there is no newer root

	roots map[int64][]byte // those that were fetched
}

// DownloadFile implements go-tuf's Fetcher.
func (f *fetcher) DownloadFile(url string, limit int64, _ time.Duration) ([]byte, error) {
	name := strings.TrimPrefix(url, baseURL)
	if name == metadata.TIMESTAMP+".json" {
		return f.timestamp, nil
	}
	version, isRoot := rootVersion(name)
	if isRoot && f.skipRoots {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: name}
	}
	if f.src == nil {
		return nil, fmt.Errorf("%s: %w", name, ErrOffline)
	}
	got, err := f.src.Metadata(f.ctx, name, limit, "")
	if errors.Is(err, fetch.ErrAbsent) && isRoot {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: name}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", name, err)
	}
	if isRoot {
		f.roots[version] = got.Data
	}
	return got.Data, nil
}

// rootVersion returns N for "N.root.json".
func rootVersion(name string) (int64, bool) {
	n, ok := strings.CutSuffix(name, "."+metadata.ROOT+".json")
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseInt(n, 10, 64)
	return v, err == nil
}

// translate makes an error of go-tuf match one of package patch. Others, from
// the network or the disk, are returned as they are.
func translate(err error) error {
	var syntax *json.SyntaxError
	var field *json.UnmarshalTypeError
	var value *metadata.ErrValue
	as := func(sentinel error) error { return fmt.Errorf("%w: %s", sentinel, clean(err)) }
	switch {
	case errors.Is(err, &metadata.ErrUnsignedMetadata{}):
		return as(patch.ErrUntrusted)
	case errors.Is(err, &metadata.ErrExpiredMetadata{}):
		return as(patch.ErrExpired)
	case errors.Is(err, &metadata.ErrBadVersionNumber{}):
		return as(patch.ErrRollback)
	case errors.Is(err, &metadata.ErrLengthOrHashMismatch{}):
		return as(patch.ErrTampered)
	case errors.Is(err, &metadata.ErrRepository{}) && strings.Contains(err.Error(), "missing info"):
		// An entry that was there is gone: the file it was about would lose its
		// floor.
		return as(patch.ErrRollback)
	case errors.As(err, &value) && saysTrust(value.Msg):
		return as(patch.ErrUntrusted)
	case errors.Is(err, &metadata.ErrRepository{}), errors.As(err, &value), errors.As(err, &syntax), errors.As(err, &field),
		strings.Contains(err.Error(), "unexpected end of JSON input"):
		return as(patch.ErrMalformed)
	}
	return err
}

// saysTrust tells whether the text of a go-tuf ErrValue is about who signed,
// and not about what a file looks like.
func saysTrust(msg string) bool {
	for _, s := range []string{"multiple signatures", "threshold", "delegation", "key with ID"} {
		if strings.Contains(msg, s) {
			return true
		}
	}
	return false
}

// clean takes go-tuf's own category off the text of an error, which the sentinel
// in front of it says better.
func clean(err error) string {
	s := err.Error()
	if category, rest, ok := strings.Cut(s, ": "); ok && strings.HasSuffix(category, " error") {
		return rest
	}
	return s
}
