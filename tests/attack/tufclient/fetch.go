package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// errNotThere is what a server says that has no such file.
var errNotThere = errors.New("server has no such file")

// A fetcher gets files below a URL.
type fetcher struct {
	base   string // ends in a slash
	client *http.Client
}

// newHTTPClient returns a client that gives up after a minute, and to which a
// file is the bytes that were sent: it asks for no compression, so that a small
// answer cannot become a huge one.
func newHTTPClient() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableCompression: true}}
}

// get returns a file of at most limit bytes.
func (f fetcher) get(ctx context.Context, name string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+name, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusForbidden: // which of them depends on the server
		return nil, fmt.Errorf("cannot fetch %s: %w", name, errNotThere)
	default:
		return nil, fmt.Errorf("cannot fetch %s: server says %s", name, resp.Status)
	}
	b, err := readAll(resp.Body, limit)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", name, err)
	}
	return b, nil
}

func withSlash(s string) string { return strings.TrimSuffix(s, "/") + "/" }
