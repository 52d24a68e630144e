package inprocess

import (
	"context"
	"net/http"
	"net/http/httptest"
	"time"

	"livepatch/internal/tuftest"
	"livepatch/server/internal/controller"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// This file lets a service run by itself, for agents that do so too.

// look is how often a service that runs by itself does what is due. A real one looks each
// second, which in days of fake time is most of the work.
const look = time.Minute

// Run does what a server does beside its handlers, until ctx is done.
func (s *Service) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if _, err := s.Round(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "Cannot do what is due", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(look):
		}
	}
}

// prompt makes a round of the rule for every report that waits for its word.
type prompt struct{ *controller.Controller }

// Await is [controller.Controller.Await].
func (p prompt) Await(ctx context.Context, s *store.Sign) store.Answer {
	if s != nil && s.ID != "" {
		if err := p.Round(ctx); err != nil {
			p.Log.ErrorContext(ctx, "Cannot run the rule", "err", err)
		}
	}
	return p.Controller.Await(ctx, s)
}

// Call answers a request without a socket.
func (s *Service) Call(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	s.handler.ServeHTTP(rec, req)
	return rec.Result(), nil
}

// Token makes an auth token of a tier.
func (s *Service) Token(ctx context.Context, tier string) (string, error) {
	_, secret, err := enrolment.New(s.db).Issue(ctx, store.Token{Kind: store.Auth, Tier: tier}, s.now())
	return secret, err
}

// Root is the root that agents of the service begin with.
func (s *Service) Root() []byte { return tuftest.New(s.now()).Files().Roots[0] }

// Halted returns the reason of the first halt that a [Service.Round] has seen, or "".
func (s *Service) Halted() rollout.Reason { return s.halted }
