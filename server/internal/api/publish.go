package api

import (
	"io"
	"net/http"
	"strings"
	"time"

	"livepatch/internal/service"
)

// publisher lets h serve publishers only.
func (a *API) publisher(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := a.limited(r, func(token string) error {
			return a.Desk.Publisher(r.Context(), token, a.Now())
		}); err != nil {
			return err
		}
		return h(w, r)
	}
}

func (a *API) publishState(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, a.Catalog.State())
}

// publishTarget takes a file and keeps it if its content is what its name says.
func (a *API) publishTarget(w http.ResponseWriter, r *http.Request) error {
	path, d, err := parseTarget(r)
	if err != nil {
		return err
	}
	has, err := a.Catalog.Has(r.Context(), path, d)
	if err != nil {
		return err
	}
	limit := int64(service.MaxIndex)
	if strings.HasSuffix(path, ".ko") {
		limit = service.MaxModule
	}
	if has {
		return alreadyHere(w, r, limit)
	}
	if err := a.Catalog.Upload(r.Context(), path, d, newUpload(w, r, limit), limit); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// alreadyHere answers an upload of what the service has. A client that waits
// for "100 Continue" saves the transfer; another one is heard to the end, for
// many take an answer in the middle of their own words for an error.
func alreadyHere(w http.ResponseWriter, r *http.Request, limit int64) error {
	if !strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		if _, err := io.Copy(io.Discard, newUpload(w, r, limit)); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) publishMetadata(w http.ResponseWriter, r *http.Request) error {
	// How long the one before us takes is not this client's fault.
	control := http.NewResponseController(w)
	_, _ = control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{})
	select {
	case a.publishing <- struct{}{}:
		defer func() { <-a.publishing }()
	case <-r.Context().Done():
		return gone(r.Context().Err())
	}
	var p service.Publication
	if err := decodeFrom(newUpload(w, r, service.MaxPublication), &p); err != nil {
		return err
	}
	// Verifying a whole repository takes as long as it takes.
	_ = control.SetWriteDeadline(time.Time{})
	done, err := a.Catalog.Publish(r.Context(), p)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, done)
}
