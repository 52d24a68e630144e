package api

import (
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/blob"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/store"
)

var (
	errNoToken = errors.New("no bearer token was given")
	errNoRoute = errors.New("there is nothing at this path for this method")
)

// A tooManyError refuses a client that failed too often.
type tooManyError struct{ retry time.Duration }

func (e *tooManyError) Error() string { return "too many failed attempts from this address" }

// problems says how conditions are answered. The first that matches decides.
var problems = []struct {
	err    error
	status int
	code   service.Code
}{
	{errNoToken, http.StatusUnauthorized, service.CodeUnknownToken},
	{enrolment.ErrUnknownToken, http.StatusUnauthorized, service.CodeUnknownToken},
	{enrolment.ErrExpiredToken, http.StatusUnauthorized, service.CodeExpiredToken},
	{enrolment.ErrRevokedToken, http.StatusUnauthorized, service.CodeRevokedToken},
	{store.ErrUnavailable, http.StatusServiceUnavailable, service.CodeUnavailable},
	{blob.ErrFull, http.StatusServiceUnavailable, service.CodeUnavailable},
	{patch.ErrTooLarge, http.StatusRequestEntityTooLarge, service.CodeTooLarge},
	{store.ErrConflict, http.StatusConflict, service.CodeConflict},
	{catalog.ErrUntrusted, http.StatusUnprocessableEntity, service.CodeUntrusted},
	{blob.ErrMismatch, http.StatusBadRequest, service.CodeInvalid},
	{patch.ErrInvalid, http.StatusBadRequest, service.CodeInvalid},
	{store.ErrNotFound, http.StatusNotFound, service.CodeNotFound},
	{fs.ErrNotExist, http.StatusNotFound, service.CodeNotFound},
	{errNoRoute, http.StatusNotFound, service.CodeNotFound},
}

// problem returns how err is answered. What is not in the table is our fault
// and none of the client's business.
func problem(err error) (status int, body service.Error) {
	var many *tooManyError
	if errors.As(err, &many) {
		return http.StatusTooManyRequests, service.Error{Code: service.CodeTooMany, Message: err.Error()}
	}
	for _, p := range problems {
		if !errors.Is(err, p.err) {
			continue
		}
		body := service.Error{Code: p.code, Message: err.Error()}
		if p.code == service.CodeUnavailable {
			body.Message = p.err.Error() // the rest is for our log
		}
		return p.status, body
	}
	return http.StatusInternalServerError, service.Error{Code: service.CodeInternal, Message: "internal error"}
}

// refuse answers a request with err.
func (a *API) refuse(w *recorder, r *http.Request, route string, err error) {
	status, body := problem(err)
	if status >= http.StatusInternalServerError && r.Context().Err() == nil {
		a.Log.ErrorContext(r.Context(), "Cannot answer request", "method", r.Method, "route", route, "err", err)
	}
	if w.status != 0 {
		// Half of an answer is out. Only the end of the connection tells the
		// client that it is not whole.
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	for _, name := range []string{"Content-Encoding", "Content-Length", "Etag", "Last-Modified", "Vary"} {
		h.Del(name)
	}
	if retry := retryAfter(err, status); retry > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((retry+time.Second-1)/time.Second), 10))
	}
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	_ = answer(w, status, body)
}

// unavailableRetry is after how long a client should try again when the disk is
// full: not soon, and well before its next check-in.
const unavailableRetry = 2 * time.Minute

func retryAfter(err error, status int) time.Duration {
	var many *tooManyError
	switch {
	case errors.As(err, &many):
		return many.retry
	case status == http.StatusServiceUnavailable:
		return unavailableRetry
	}
	return 0
}
