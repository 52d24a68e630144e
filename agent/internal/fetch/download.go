package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// A download that brings fewer than minBytes in any window is given up, so that
// a service, or whoever sits in between, cannot hold the agent for ever with a
// byte a minute.
const (
	window   = 30 * time.Second
	minBytes = 16 << 10
)

// A File is what [Client.Metadata] returns.
type File struct {
	Data []byte
	ETag string // "" if the service gave none
	// NotModified tells that the file is still the one that ETag names; Data
	// is nil then.
	NotModified bool
}

// Metadata fetches a file of TUF metadata, "3.targets.json", of at most limit
// bytes after decompression. If etag is not empty and the file is still the one
// it names, the body is not sent again.
func (c *Client) Metadata(ctx context.Context, name string, limit int64, etag string) (File, error) {
	res, err := c.get(ctx, service.PathMetadata+name, etag)
	if err != nil {
		return File{}, err
	}
	defer res.close()
	if res.StatusCode == http.StatusNotModified && etag != "" {
		return File{ETag: etag, NotModified: true}, nil
	}
	if err := res.check(name); err != nil {
		return File{}, err
	}
	data, err := io.ReadAll(io.LimitReader(res, limit+1))
	if err != nil {
		return File{}, res.explain(err)
	}
	if int64(len(data)) > limit {
		return File{}, fmt.Errorf("%s is longer than %d bytes: %w", name, limit, patch.ErrTooLarge)
	}
	return File{Data: data, ETag: res.Header.Get("ETag")}, nil
}

// Target opens the target at path, "debian/<sha256>.<file>". The caller reads
// no more than it expects, and closes it.
func (c *Client) Target(ctx context.Context, path string) (io.ReadCloser, error) {
	res, err := c.get(ctx, service.PathTargets+path, "")
	if err != nil {
		return nil, err
	}
	if err := res.check(path[strings.LastIndexByte(path, '/')+1:]); err != nil {
		res.close()
		return nil, err
	}
	return targetBody{res}, nil
}

// targetBody is a response whose read errors are explained.
type targetBody struct{ *response }

func (b targetBody) Read(p []byte) (int, error) {
	n, err := b.response.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.explain(err)
	}
	return n, err
}

func (b targetBody) Close() error { b.close(); return nil }

// A response is an answer being read, under the watch for too slow transfers.
type response struct {
	*http.Response
	client *Client
	cancel context.CancelCauseFunc
	timer  *time.Timer // ends the request; set back by every minBytes
	fresh  int         // bytes since then
}

// get sends a GET. The body of the answer is watched until it is closed.
func (c *Client) get(ctx context.Context, path, etag string) (*response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base.JoinPath(path).String(), nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("cannot ask for %q: %w", path, err)
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	res, err := c.do(req) //nolint:bodyclose // response.close does it
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return &response{
		Response: res,
		client:   c,
		cancel:   cancel,
		timer: time.AfterFunc(window, func() {
			cancel(fmt.Errorf("%s sent less than %d KiB in %v: %w", c.base.Host, minBytes>>10, window, ErrTooSlow))
		}),
	}, nil
}

func (r *response) Read(b []byte) (int, error) {
	n, err := r.Body.Read(b)
	r.fresh += n
	if r.fresh >= minBytes {
		r.fresh = 0
		r.timer.Reset(window)
	}
	return n, err
}

// close ends the answer, read to its end or not.
func (r *response) close() {
	r.timer.Stop()
	r.cancel(nil)
	_ = r.Body.Close() // nothing was written
}

// check returns an error unless the answer is the whole file.
func (r *response) check(name string) error {
	switch {
	case r.StatusCode == http.StatusOK:
		return nil
	case r.StatusCode == http.StatusNotFound:
		return &Error{Kind: ErrAbsent, Status: r.StatusCode, Text: fmt.Sprintf("service does not have %s", oneLine(name))}
	default:
		return r.client.refusal(r.Response)
	}
}

// explain says why reading the body failed.
func (r *response) explain(err error) error {
	if errors.Is(r.Request.Context().Err(), context.Canceled) {
		return context.Cause(r.Request.Context()) // whoever cancelled knows why
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{Kind: ErrBroken, Text: fmt.Sprintf("%s closed the connection before the end of the file", r.Request.URL.Host)}
	}
	return explain(err, r.Request.URL.Host, nil, time.Now())
}

// retryAfter reads the header Retry-After, in seconds or as a date. At most a
// day is believed.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if sec, err := strconv.ParseUint(v, 10, 31); err == nil {
		return min(time.Duration(sec)*time.Second, 24*time.Hour)
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(at.Sub(now), 0), 24*time.Hour)
	}
	return 0
}
