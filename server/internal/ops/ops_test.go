package ops_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/server/internal/expiry"
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
	now := time.Now()
	m.Expiring(func() []expiry.Role {
		return []expiry.Role{
			{Name: "debian-*", Bins: 1024, Published: now.Add(-time.Hour), Expires: time.Unix(4102444800, 0)},
			{Name: "targets", Published: now.Add(-2 * time.Hour), Expires: now.Add(-time.Hour)},
		}
	})
	code, body := get(t, ops.Handler(m, nil, nil), "/metrics")
	for _, want := range []string{
		`livepatch_requests_total{code="201",method="POST",route="/v1/machines"} 1`,
		`livepatch_requests_total{code="404",method="other",route="other"} 1`,
		`livepatch_request_duration_seconds_bucket{route="/v1/machines",le="0.005"} 1`,
		`livepatch_enrolments_total{result="granted"} 1`, `livepatch_enrolments_total{result="refused"} 1`,
		"livepatch_check_ins_total 1", "livepatch_events_total 3", "livepatch_generation 7",
		`livepatch_role_expires_timestamp_seconds{role="debian-*"} 4.1024448e+09`,
		`livepatch_role_remaining_life_ratio{role="debian-*"} 0.99`, `livepatch_role_remaining_life_ratio{role="targets"} 0`,
		`livepatch_build_info{version=`,
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
			h := ops.Handler(ops.NewMetrics(), func(context.Context) error { return tc.ready }, func() []expiry.Role { return nil })
			if code, body := get(t, h, tc.path); code != tc.code || !strings.Contains(body, tc.body) {
				t.Errorf("%d %q, want %d %q", code, body, tc.code, tc.body)
			}
		})
	}
}

func TestReadinessListsWhatRunsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		roles := []expiry.Role{
			{Name: "root", Published: now, Expires: now.Add(365 * 24 * time.Hour)},
			{Name: "debian-*", Bins: 8, Published: now.Add(-20 * 24 * time.Hour), Expires: now.Add(10 * 24 * time.Hour)},
		}
		h := ops.Handler(ops.NewMetrics(), func(context.Context) error { return nil }, func() []expiry.Role { return roles })
		want := "ready\n" +
			"notice: role debian-* expires " + now.Add(10*24*time.Hour).Format(time.RFC3339) + "\n" +
			"hint: livepatch-publish --repo R refresh --within 241h, then livepatch-publish --repo R push\n"
		if code, body := get(t, h, "/readyz"); code != http.StatusOK || body != want {
			t.Errorf("%d %q, want 200 %q", code, body, want)
		}
	})
}
