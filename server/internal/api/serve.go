package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"livepatch/internal/patch"
)

// stall is how long a client may let a transfer rest. Whoever makes progress is
// not cut off, however slow the line.
const stall = 30 * time.Second

// serve runs h and turns its error into an answer. It logs and counts the
// request under the name of its route: the path itself is the client's choice,
// and headers hold secrets.
func (a *API) serve(name string, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w}
		err := protect(h, rec, r)
		if err != nil && !errors.Is(err, errGone) {
			a.refuse(rec, r, name, err)
		}
		if rec.status == 0 {
			rec.status = http.StatusOK // as net/http answers when a handler says nothing
		}
		took := time.Since(start)
		a.Metrics.Request(name, r.Method, rec.status, took)
		a.Log.DebugContext(r.Context(), "Answered request",
			"method", r.Method, "route", name, "status", rec.status, "bytes", rec.bytes, "took", took, "remote", r.RemoteAddr)
	})
}

// protect turns a panic of h into an error, but for the one that ends a
// connection.
func protect(h handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if v := recover(); v == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
			panic(v)
		} else if v != nil {
			err = fmt.Errorf("handler panicked: %v\n%s", v, debug.Stack())
		}
	}()
	return h(w, r)
}

// errGone means that the client went away while it was answered.
var errGone = errors.New("client is gone")

func gone(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// A recorder remembers what was answered, and lets a transfer go on as long as
// it makes progress.
type recorder struct {
	http.ResponseWriter
	status   int
	bytes    int64
	deadline time.Time // last one that was set
}

// Unwrap is for [http.ResponseController].
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	// The first write is covered by the server's own deadline.
	if now := time.Now(); w.bytes > 0 && now.Add(stall-time.Second).After(w.deadline) {
		w.deadline = now.Add(stall)
		// A connection that knows no deadlines keeps the server's.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(w.deadline)
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// An upload reads a body as long as it makes progress.
type upload struct {
	body     io.Reader
	control  *http.ResponseController
	deadline time.Time
}

func newUpload(w http.ResponseWriter, r *http.Request, limit int64) *upload {
	return &upload{body: http.MaxBytesReader(w, r.Body, limit), control: http.NewResponseController(w)}
}

func (u *upload) Read(b []byte) (int, error) {
	if now := time.Now(); now.Add(stall - time.Second).After(u.deadline) {
		u.deadline = now.Add(stall)
		_ = u.control.SetReadDeadline(u.deadline)
		_ = u.control.SetWriteDeadline(u.deadline.Add(stall)) // the answer comes later
	}
	n, err := u.body.Read(b)
	return n, tooLarge(err)
}

// tooLarge gives the error of a body over its limit our sentinel.
func tooLarge(err error) error {
	var e *http.MaxBytesError
	if errors.As(err, &e) {
		return fmt.Errorf("%w: the body has more than %d bytes", patch.ErrTooLarge, e.Limit)
	}
	return err
}

// decode reads a body of at most limit bytes that is one JSON value. Fields
// that it does not know are ignored, so that a newer agent can say more.
func decode(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	return decodeFrom(http.MaxBytesReader(w, r.Body, limit), v)
}

func decodeFrom(body io.Reader, v any) error {
	dec := json.NewDecoder(body)
	if err := tooLarge(dec.Decode(v)); err != nil {
		return badBody(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if err = tooLarge(err); err == nil {
			err = errors.New("data after its end")
		}
		return badBody(err)
	}
	return nil
}

// badBody tells a body that is wrong from a body that did not arrive.
func badBody(err error) error {
	if errors.Is(err, patch.ErrTooLarge) {
		return err
	}
	return fmt.Errorf("%w: cannot read body as JSON: %w", patch.ErrInvalid, err)
}
