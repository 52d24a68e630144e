package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// Rollout returns what the signed files say of a patch at this moment. Their
// signatures are not looked at: that is for those who are told.
func (s *Service) Rollout(ctx context.Context, vendor, version string) (patch.Rollout, error) {
	r, err := s.rollout(ctx, patch.RolloutPath(vendor, version))
	if err != nil {
		return patch.Rollout{}, fmt.Errorf("cannot read rollout of %s %s: %w", vendor, version, err)
	}
	return r, nil
}

func (s *Service) rollout(ctx context.Context, target string) (patch.Rollout, error) {
	client, err := s.client()
	if err != nil {
		return patch.Rollout{}, err
	}
	defer client.CloseIdleConnections()
	file := "timestamp.json"
	for _, next := range []string{"snapshot.json", "rollout.json"} {
		meta, err := s.metadata(ctx, client, file)
		if err != nil {
			return patch.Rollout{}, err
		}
		file = fmt.Sprintf("%d.%s", meta.Signed.Meta[next].Version, next)
	}
	meta, err := s.metadata(ctx, client, file)
	if err != nil {
		return patch.Rollout{}, err
	}
	return patch.ParseRollout(meta.Signed.Targets[target].Custom)
}

// metadata is as much of a file of the repository as leads from the timestamp to a
// rollout.
type metadata struct {
	Signed struct {
		Meta    map[string]struct{ Version int64 }
		Targets map[string]struct{ Custom json.RawMessage }
	}
}

func (s *Service) metadata(ctx context.Context, client *http.Client, file string) (m metadata, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.Address+service.PathMetadata+file, nil)
	if err != nil {
		return m, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return m, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return m, fmt.Errorf("%s: %s", file, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, service.MaxPublication))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}

// client returns one that knows the service's authority.
func (s *Service) client() (*http.Client, error) {
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the service's authority has no certificate")
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}, nil
}
