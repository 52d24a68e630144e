package api

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"livepatch/internal/service"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/store"
)

// maxToken is far above the length of any token of ours.
const maxToken = 256

// bearer returns the token of a request.
func bearer(r *http.Request) (string, error) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return "", errNoToken
	}
	return token, nil
}

// badToken tells whether err is the fault of a token.
func badToken(err error) bool {
	return errors.Is(err, errNoToken) || errors.Is(err, enrolment.ErrUnknownToken) ||
		errors.Is(err, enrolment.ErrExpiredToken) || errors.Is(err, enrolment.ErrRevokedToken)
}

// limited runs try unless the address of r has failed too often, and counts it
// if a token was the reason.
func (a *API) limited(r *http.Request, try func(token string) error) error {
	from := address(r)
	if err := a.failures.check(from); err != nil {
		return err
	}
	token, err := bearer(r)
	if err == nil {
		err = try(token)
	}
	if badToken(err) {
		a.failures.failed(from)
	}
	return err
}

func (a *API) enrol(w http.ResponseWriter, r *http.Request) error {
	var answered service.Enrolment
	err := a.limited(r, func(token string) error {
		var req service.EnrolRequest
		if err := decode(w, r, service.MaxJSON, &req); err != nil {
			return err
		}
		var err error
		answered, err = a.Desk.Enrol(r.Context(), token, req, a.Now())
		return err
	})
	a.Metrics.Enrolment(err == nil)
	if err != nil {
		return err
	}
	a.Rule.Enrolled(r.Context())
	return answer(w, http.StatusCreated, answered)
}

// machine returns the machine that asks.
func (a *API) machine(r *http.Request) (store.Identity, error) {
	token, err := bearer(r)
	if err != nil {
		return store.Identity{}, err
	}
	return a.Desk.Identify(r.Context(), token)
}

func (a *API) leave(w http.ResponseWriter, r *http.Request) error {
	who, err := a.machine(r)
	if err != nil {
		return err
	}
	if err := a.Desk.Leave(r.Context(), who); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) checkIn(w http.ResponseWriter, r *http.Request) error {
	who, err := a.machine(r)
	if err != nil {
		return err
	}
	var req service.CheckIn
	if err := decode(w, r, service.MaxJSON, &req); err != nil {
		return err
	}
	report, err := enrolment.Report(req, a.Now())
	if err != nil {
		return err
	}
	report.Sign = a.Rule.Sign(who, report)
	if err := a.Desk.CheckIn(r.Context(), who, report); err != nil {
		a.Rule.Forget(report.Sign)
		return err
	}
	a.Metrics.CheckIn(len(req.Events))
	may := a.Rule.Await(r.Context(), report.Sign)
	return answer(w, http.StatusOK, service.CheckInAnswer{
		IntervalSeconds: a.interval(may),
		Generation:      a.Catalog.Generation(),
		Tier:            who.Tier,
		Go:              may.Go,
	})
}

// interval returns after how many seconds a machine is to check in again.
func (a *API) interval(may store.Answer) int64 {
	usual := int64(a.Interval / time.Second)
	if may.Wait > 0 {
		return min(usual, may.Wait)
	}
	return usual
}

// supportedMaxAge is how long an answer about a kernel may be kept, in seconds.
const supportedMaxAge = "max-age=3600"

// supported answers tools that ask for kernels in general. They know neither
// tokens nor our errors, and take "unknown" for an answer.
func (a *API) supported(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	s, err := a.Catalog.Supported(r.Context(), catalog.Question{
		Version: q.Get("kernel-version"), Flavour: q.Get("flavour"), Arch: q.Get("architecture"),
	}, a.Now())
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "public, "+supportedMaxAge)
	return respond(w, http.StatusOK, service.Supported{Supported: string(s)})
}
