package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"livepatch/internal/service"
)

const (
	rounds   = 3   // of each measurement, ours and the peer's in turn
	workers  = 4   // connections at a time
	machines = 200 // that check in
)

// A contender is one way of answering a small request.
type contender struct {
	load load
	pids func() ([]int, error)

	cpu  []float64 // µs for each request, one sample a round
	wire []float64 // bytes for each request, both ways
}

// round sends the load once and takes the samples.
func (c *contender) round(ctx context.Context) error {
	pids, err := c.pids()
	if err != nil {
		return err
	}
	before, err := cpu(pids...)
	if err != nil {
		return err
	}
	cost, err := c.load.run(ctx)
	if err != nil {
		return err
	}
	after, err := cpu(pids...)
	if err != nil {
		return err
	}
	c.cpu = append(c.cpu, float64((after-before)/time.Microsecond)/float64(cost.requests))
	c.wire = append(c.wire, float64(cost.sent+cost.received)/float64(cost.requests))
	return nil
}

// checkIns measures an unchanged check-in and an unchanged timestamp.json
// against nginx answering a static 304: the same key and certificate, the same
// client, a new connection with a full handshake for each request.
func checkIns(ctx context.Context, s *site, requests int) ([]row, error) {
	tokens, err := s.enrol(ctx, machines)
	if err != nil {
		return nil, err
	}
	_, timestamp, err := s.fetch(ctx, service.PathMetadata+"timestamp.json")
	if err != nil {
		return nil, err
	}
	peer, err := startNginx(ctx, s.path("nginx"), s.path("server/tls/server.crt"), s.path("server/tls/server.key"), timestamp)
	if err != nil {
		return nil, err
	}
	defer peer.stop()
	checkIn := s.contender(requests, checkInRequest(s.addr, tokens), http.StatusOK)
	etag, err := s.etag(ctx, "https://"+s.addr+service.PathMetadata+"timestamp.json")
	if err != nil {
		return nil, err
	}
	unchanged := s.contender(requests, get(s.addr, service.PathMetadata+"timestamp.json", etag), http.StatusNotModified)
	if etag, err = s.etag(ctx, "https://"+peer.at+nginxFile); err != nil {
		return nil, err
	}
	static := s.contender(requests, get(peer.at, nginxFile, etag), http.StatusNotModified)
	static.load.addr, static.pids = peer.at, peer.processes
	for range rounds {
		for _, c := range []*contender{checkIn, unchanged, static} {
			if err := c.round(ctx); err != nil {
				return nil, err
			}
		}
	}
	return checkInRows(checkIn, unchanged, static), nil
}

// contender returns one that sends requests to the server.
func (s *site) contender(n int, request func() *http.Request, want int) *contender {
	return &contender{
		load: load{addr: s.addr, name: "localhost", roots: s.roots, request: request, want: want, n: n, workers: workers},
		pids: func() ([]int, error) { return []int{s.server.pid()}, nil },
	}
}

// checkInRequest makes check-ins of one machine after the other.
func checkInRequest(host string, tokens []string) func() *http.Request {
	var next atomic.Int64
	return func() *http.Request {
		i := int(next.Add(1)) % len(tokens)
		body, err := json.Marshal(service.CheckIn{
			Version: "v1.0.0", Facts: machine(i), Generation: 1,
			Patch: &service.Patch{Name: "lkp_Debian_6_1_0_53_amd64_1", Version: "1.1", Sequence: 1, State: "enabled", Standing: "accepted"},
		})
		if err != nil {
			panic(err) // the value is a constant of this program
		}
		req, err := http.NewRequest(http.MethodPost, "https://"+host+service.PathCheckIn, bytes.NewReader(body))
		if err != nil {
			panic(err)
		}
		req.Header.Set("User-Agent", "canonical-livepatch/bench")
		req.Header.Set("Authorization", "Bearer "+tokens[i])
		req.Header.Set("Content-Type", "application/json")
		return req
	}
}

// The targets against nginx are ours: a check-in reads and writes a database, so
// it may cost twice a file that is not even sent, and half as many bytes again.
const (
	cpuLimit  = 2.0
	wireLimit = 1.5
)

func checkInRows(checkIn, unchanged, static *contender) []row {
	const peer = "nginx, static 304"
	rows := []row{
		{What: "check-in: server CPU", Unit: "µs", Limit: cpuLimit, Relative: true},
		{What: "check-in: bytes on the wire", Unit: "B", Limit: wireLimit, Relative: true},
		{What: "TUF 304: server CPU", Unit: "µs", Limit: cpuLimit, Relative: true},
		{What: "TUF 304: bytes on the wire", Unit: "B", Limit: wireLimit, Relative: true},
	}
	for i := range rows {
		c, ours, theirs := checkIn, &checkIn.cpu, &static.cpu
		if i >= 2 {
			c, ours = unchanged, &unchanged.cpu
		}
		if i%2 == 1 {
			ours, theirs = &c.wire, &static.wire
		}
		rows[i].Measured, rows[i].Samples = median(*ours), *ours
		rows[i].Peer, rows[i].PeerSamples, rows[i].PeerName = median(*theirs), *theirs, peer
		rows[i].Note = fmt.Sprintf("%d requests a round, median of %d rounds, TLS 1.3 with ECDSA P-256, full handshakes", c.load.n, rounds)
	}
	return rows
}
