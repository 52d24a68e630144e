package ops_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"livepatch/server/internal/ops"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	return w.Code, w.Body.String()
}

func TestMetrics(t *testing.T) {
	m := ops.NewMetrics()
	m.Request("/v1/machines", "POST", 201, 3*time.Millisecond)
	m.Request("other", "BREW", 404, time.Millisecond)
	m.Enrolment(true)
	m.Enrolment(false)
	m.CheckIn(3)
	m.Gauge("livepatch_generation", "Generation.", func() float64 { return 7 })
	m.Expiries(func() map[string]time.Time { return map[string]time.Time{"snapshot": time.Now().Add(time.Hour)} })
	code, body := get(t, ops.Handler(m, nil), "/metrics")
	for _, want := range []string{
		`livepatch_requests_total{code="201",method="POST",route="/v1/machines"} 1`,
		`livepatch_requests_total{code="404",method="other",route="other"} 1`,
		`livepatch_request_duration_seconds_bucket{route="/v1/machines",le="0.005"} 1`,
		`livepatch_enrolments_total{result="granted"} 1`, `livepatch_enrolments_total{result="refused"} 1`,
		"livepatch_check_ins_total 1", "livepatch_events_total 3", "livepatch_generation 7",
		`livepatch_role_expiry_seconds{role="snapshot"} 3599.`, `livepatch_build_info{version=`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%d: no %s", code, want)
		}
	}
}

func TestHealth(t *testing.T) {
	broken := errors.New("role timestamp: signed metadata has expired")
	tests := map[string]struct {
		path  string
		ready error
		code  int
		body  string
	}{
		"alive":                 {"/healthz", nil, 200, "ok"},
		"alive and not ready":   {"/healthz", broken, 200, "ok"},
		"ready":                 {"/readyz", nil, 200, "ready"},
		"not ready":             {"/readyz", broken, 503, "role timestamp"},
		"path that is not here": {"/v1/machines", nil, 404, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := ops.Handler(ops.NewMetrics(), func(context.Context) error { return tc.ready })
			if code, body := get(t, h, tc.path); code != tc.code || !strings.Contains(body, tc.body) {
				t.Errorf("%d %q, want %d %q", code, body, tc.code, tc.body)
			}
		})
	}
}
