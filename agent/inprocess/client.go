package inprocess

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"livepatch/agent/internal/fetch"
	"livepatch/internal/service"
)

// A Call answers a request as a service does.
type Call func(*http.Request) (*http.Response, error)

// A client is package fetch without a network: it says the same to the service.
type client struct{ call Call }

func (c client) do(ctx context.Context, method, path, token string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	b, status, err := c.request(ctx, method, path, token, bytes.NewReader(body))
	switch {
	case err != nil:
		return &fetch.Error{Kind: fetch.ErrConnRefused, Text: err.Error()}
	case status < 200 || status > 299:
		return &fetch.Error{Kind: fetch.ErrService, Status: status, Text: string(b)}
	case out == nil:
		return nil
	}
	return json.Unmarshal(b, out)
}

func (c client) request(ctx context.Context, method, path, token string, body io.Reader) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return nil, 0, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.call(req)
	if err != nil {
		return nil, 0, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return b, res.StatusCode, err
}

// Enrol is [fetch.Client.Enrol].
func (c client) Enrol(ctx context.Context, token string, r service.EnrolRequest) (e service.Enrolment, err error) {
	return e, c.do(ctx, http.MethodPost, service.PathMachines, token, r, &e)
}

// Forget is [fetch.Client.Forget].
func (c client) Forget(ctx context.Context, token string) error {
	return c.do(ctx, http.MethodDelete, service.PathSelf, token, nil, nil)
}

// CheckIn is [fetch.Client.CheckIn].
func (c client) CheckIn(ctx context.Context, token string, r service.CheckIn) (a service.CheckInAnswer, err error) {
	return a, c.do(ctx, http.MethodPost, service.PathCheckIn, token, r, &a)
}

// Metadata is [fetch.Client.Metadata].
func (c client) Metadata(ctx context.Context, name string, limit int64, etag string) (fetch.File, error) {
	b, err := c.get(ctx, service.PathMetadata+name)
	if err != nil {
		return fetch.File{}, err
	}
	if int64(len(b)) > limit {
		return fetch.File{}, fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	sum := sha256.Sum256(b)
	tag := hex.EncodeToString(sum[:])
	if tag == etag {
		return fetch.File{ETag: tag, NotModified: true}, nil
	}
	return fetch.File{Data: b, ETag: tag}, nil
}

// Target is [fetch.Client.Target].
func (c client) Target(ctx context.Context, path string) (io.ReadCloser, error) {
	b, err := c.get(ctx, service.PathTargets+path)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (c client) get(ctx context.Context, path string) ([]byte, error) {
	b, status, err := c.request(ctx, http.MethodGet, path, "", http.NoBody)
	switch {
	case err != nil:
		return nil, &fetch.Error{Kind: fetch.ErrConnRefused, Text: err.Error()}
	case status == http.StatusNotFound:
		return nil, &fetch.Error{Kind: fetch.ErrAbsent, Status: status, Text: "service does not have " + path}
	case status != http.StatusOK:
		return nil, &fetch.Error{Kind: fetch.ErrService, Status: status, Text: string(b)}
	}
	return b, nil
}

// Skew is [fetch.Client.Skew]: they have one clock.
func (client) Skew() (time.Duration, bool) { return 0, true }

// Base is [fetch.Client.Base].
func (client) Base() string { return "https://livepatch.test" }

// Close is [fetch.Client.Close].
func (client) Close() {}
