package inprocess

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuf"
)

// post checks a machine in, as its agent does.
func (s *Service) post(ctx context.Context, m Machine, c service.CheckIn) (answer service.CheckInAnswer, err error) {
	body, err := json.Marshal(c)
	if err != nil {
		return answer, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+service.PathCheckIn, bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	req.Header.Set("Authorization", "Bearer "+m.Token)
	req.Header.Set("Content-Type", "application/json")
	b, err := s.do(req, service.MaxJSON)
	if err != nil {
		return answer, fmt.Errorf("cannot check in machine %v: %w", m.ID, err)
	}
	return answer, json.Unmarshal(b, &answer)
}

func (s *Service) do(req *http.Request, limit int64) ([]byte, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("service answers %s: %.300s", resp.Status, b)
	}
	return b, err
}

func (s *Service) get(ctx context.Context, file string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+service.PathMetadata+file, http.NoBody)
	if err != nil {
		return nil, err
	}
	return s.do(req, service.MaxRole)
}

// Signed fetches the signed files and verifies them with the loader's verifier, from the
// root that the machines began with, and returns the decision about the patch.
func (s *Service) Signed(ctx context.Context) (patch.Rollout, error) {
	r, err := s.signed(ctx)
	if err != nil {
		return patch.Rollout{}, fmt.Errorf("cannot read signed decision: %w", err)
	}
	return r, nil
}

func (s *Service) signed(ctx context.Context) (r patch.Rollout, err error) {
	set, err := tuf.New(s.stored, s.now())
	if err != nil {
		return r, err
	}
	b, err := s.get(ctx, "timestamp.json")
	if err == nil {
		err = set.Timestamp(b)
	}
	if err != nil {
		return r, err
	}
	b, err = s.get(ctx, strconv.FormatInt(set.SnapshotVersion(), 10)+".snapshot.json")
	if err == nil {
		err = set.Snapshot(b)
	}
	if err != nil {
		return r, err
	}
	target, err := set.Find(patch.RolloutPath(vendor, Version), func(role string, version int64) ([]byte, error) {
		return s.get(ctx, fmt.Sprintf("%d.%s.json", version, role))
	})
	if err != nil {
		return r, err
	}
	s.stored = set.Stored()
	return patch.ParseRollout(target.Custom)
}
