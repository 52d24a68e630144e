package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"time"
)

// metrics returns what the server says of itself to Prometheus.
func (s *site) metrics(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.opsAddr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return "", fmt.Errorf("cannot read metrics: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("cannot read metrics: %w", err)
	}
	return string(b), nil
}

// sum returns the sum of a metric over all its labels.
func (s *site) sum(ctx context.Context, name string) (float64, error) {
	text, err := s.metrics(ctx)
	if err != nil {
		return 0, err
	}
	total := 0.0
	line := regexp.MustCompile(`(?m)^` + name + `(?:\{.*\})? (\S+)$`)
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, fmt.Errorf("cannot read metric %s: %w", name, err)
		}
		total += v
	}
	return total, nil
}

// buckets returns a histogram without labels: how many observations were at most so large.
func buckets(text, name string) map[float64]float64 {
	have := map[float64]float64{}
	line := regexp.MustCompile(`(?m)^` + name + `\{le="([^"]*)"\} (\S+)$`)
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		limit, err := strconv.ParseFloat(m[1], 64) // "+Inf" is one
		count, bad := strconv.ParseFloat(m[2], 64)
		if err == nil && bad == nil {
			have[limit] = count
		}
	}
	return have
}

// slowest returns the limit of the bucket that holds the largest of the observations that
// were made between two looks at a histogram; 0 if there were none.
func slowest(before, after map[float64]float64) float64 {
	all := after[math.Inf(1)] - before[math.Inf(1)]
	if all <= 0 {
		return 0
	}
	limit := math.Inf(1)
	for l := range after {
		if after[l]-before[l] >= all {
			limit = min(limit, l)
		}
	}
	return limit
}
