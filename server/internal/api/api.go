// Package api is the service's HTTP interface, which server/openapi.yaml
// describes. Handlers parse, refuse, call plain Go, and answer.
package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"livepatch/internal/service"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/ops"
	"livepatch/server/internal/store"
)

// Config is what the interface is made of. All fields but PrivateFiles are
// needed.
type Config struct {
	Log     *slog.Logger
	Catalog *catalog.Catalog
	Desk    *enrolment.Desk
	Metrics *ops.Metrics
	Rule    Rule
	Now     func() time.Time
	// Interval is how long machines wait between two check-ins.
	Interval time.Duration
	// PrivateFiles makes the signed files, too, need a machine token. They are
	// for everybody by default, so that mirrors and caches can carry them.
	PrivateFiles bool
}

// A Rule decides which machines may have a patch; [controller.Controller] is one.
type Rule interface {
	// Sign returns what it has to know of a check-in, nil for nothing.
	Sign(who store.Identity, r store.Report) *store.Sign
	// Await returns its answer once that is kept; Forget says that it was not kept.
	Await(ctx context.Context, s *store.Sign) store.Answer
	Forget(s *store.Sign)
	// Enrolled says that a machine has enrolled or left, and waits until that is known.
	Enrolled(ctx context.Context)
}

// An API answers requests. It is safe for concurrent use.
type API struct {
	Config
	failures *limiter
	// publishing holds a token while a publication is verified: one may take
	// hundreds of megabytes.
	publishing chan struct{}
}

// New returns the API.
func New(c Config) *API {
	return &API{Config: c, failures: newLimiter(), publishing: make(chan struct{}, 1)}
}

// A handler answers one request. What it returns becomes the answer if it is an
// error; see problem.
type handler func(w http.ResponseWriter, r *http.Request) error

// A route is one operation of openapi.yaml.
type route struct {
	method, path string
	handle       handler
}

func (a *API) routes() []route {
	return []route{
		{"POST", service.PathMachines, a.enrol},
		{"DELETE", service.PathSelf, a.leave},
		{"POST", service.PathCheckIn, a.checkIn},
		{"GET", service.PathSupported, a.supported},
		{"GET", service.PathMetadata + "{file}", a.files(a.metadata)},
		{"GET", service.PathTargets + "{vendor}/{file}", a.files(a.target)},
		{"GET", service.PathPublishState, a.publisher(a.publishState)},
		{"PUT", service.PathPublishTargets + "{vendor}/{file}", a.publisher(a.publishTarget)},
		{"POST", service.PathPublishMetadata, a.publisher(a.publishMetadata)},
	}
}

// Handler returns the handler of all routes.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range a.routes() {
		mux.Handle(r.method+" "+r.path, a.serve(r.path, r.handle))
	}
	mux.Handle("/", a.serve("other", func(http.ResponseWriter, *http.Request) error { return errNoRoute }))
	return mux
}

// answer writes v as JSON. Answers of the API are for one client and one moment.
func answer(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Cache-Control", "no-store")
	return respond(w, status, v)
}

func respond(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(b, '\n'))
	return gone(err)
}
