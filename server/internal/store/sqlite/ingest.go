package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"livepatch/internal/service"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite/db"
)

// maxBatch bounds the check-ins of one commit: it takes some tens of milliseconds.
const maxBatch = 512

// A checkIn waits for the commit that it is part of.
type checkIn struct {
	who    store.Identity
	report store.Report
	done   chan error // holds one
}

// CheckIn keeps a machine's report; of its events, those that it has not yet.
// It returns [store.ErrNotFound] if the machine token died meanwhile.
//
// Check-ins that come while a commit is under way share the next one, so that
// the disk is waited for once and not once a machine.
func (d *DB) CheckIn(ctx context.Context, who store.Identity, r store.Report) error {
	c := &checkIn{who: who, report: r, done: make(chan error, 1)}
	select {
	case d.checkIns <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.closing:
		return store.ErrUnavailable
	}
	return <-c.done // soon: it is being written
}

// ingest commits check-ins until the database is closed.
func (d *DB) ingest() {
	defer close(d.drained)
	for {
		select {
		case c := <-d.checkIns:
			d.commit(d.gather(c))
		case <-d.closing:
			return
		}
	}
}

// gather returns a check-in with all others that wait now.
func (d *DB) gather(first *checkIn) []*checkIn {
	batch := []*checkIn{first}
	for len(batch) < maxBatch {
		select {
		case c := <-d.checkIns:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// commit keeps check-ins in one transaction and answers them.
func (d *DB) commit(batch []*checkIn) {
	h := d.lazy
	for _, c := range batch {
		if len(c.report.Events) > 0 || c.report.Sign != nil {
			h = d.durable
		}
	}
	gone := make([]bool, len(batch))
	err := d.write(context.Background(), h, func(q *db.Queries) error {
		var signs []store.Sign
		for i, c := range batch {
			known, err := keep(context.Background(), q, c)
			if gone[i] = errors.Is(err, store.ErrNotFound); gone[i] {
				continue
			}
			if err != nil {
				return err
			}
			if c.report.Sign != nil {
				signs = append(signs, news(*c.report.Sign, known))
			}
		}
		return keepSigns(q, signs)
	})
	for i, c := range batch {
		if err == nil && gone[i] {
			c.done <- store.ErrNotFound
		} else {
			c.done <- err
		}
	}
}

// keep keeps a report and its events, and returns the IDs of those that were known
// before. Heartbeats are for the rule only.
func keep(ctx context.Context, q *db.Queries, c *checkIn) (known []string, err error) {
	if err := touch(ctx, q, c.who, c.report); err != nil {
		return nil, err
	}
	for _, e := range c.report.Events {
		if e.Kind == service.Heartbeat {
			continue
		}
		n, err := q.InsertEvent(ctx, db.InsertEventParams{
			MachineID: c.who.Machine, ID: e.ID, Kind: string(e.Kind), Name: e.Name, Version: e.Version, BootID: e.BootID,
			At: e.At.Unix(), ReceivedAt: c.report.At.Unix(), Reason: e.Reason, Message: e.Message, Signature: e.Signature,
		})
		if err != nil {
			return nil, err
		}
		if n == 0 {
			known = append(known, e.ID)
		}
	}
	return known, nil
}

// news returns a sign without the events that the rule was told of before: a machine
// whose answer was lost reports them again, and what happened once counts once. Who asks
// again wants another answer.
func news(s store.Sign, known []string) store.Sign {
	if len(known) > 0 {
		s.Events = slices.DeleteFunc(slices.Clone(s.Events), func(e store.Event) bool {
			return e.Kind != service.Intent && slices.Contains(known, e.ID)
		})
	}
	return s
}

func keepSigns(q *db.Queries, signs []store.Sign) error {
	if len(signs) == 0 {
		return nil
	}
	body, err := json.Marshal(signs)
	if err != nil {
		return err
	}
	_, err = q.InsertReports(context.Background(), body)
	return err
}
