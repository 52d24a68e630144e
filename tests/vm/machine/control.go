package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"livepatch/tests/vm/guest"
)

// errGone answers requests whose machine went away before it could answer.
var errGone = errors.New("machine went down")

// A control is the harness's end of the control port. It outlives reboots of the
// machine, but not the QEMU process.
type control struct {
	conn net.Conn

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan guest.Response // buffered, one response each
	boots   chan string                    // boot-ids, one for each start
	err     error                          // why there will be no more responses
}

// newControl serves conn until it is closed.
func newControl(conn net.Conn) *control {
	c := &control{conn: conn, waiting: make(map[uint64]chan guest.Response), boots: make(chan string, 16)}
	go c.read()
	return c
}

// read hands responses to those who wait for them.
func (c *control) read() {
	lines := bufio.NewReader(c.conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			c.drop(errGone)
			close(c.boots)
			return
		}
		var resp guest.Response
		if json.Unmarshal(line, &resp) != nil {
			continue // cut off by a reset; the machine's next line is whole
		}
		if resp.ID == 0 {
			c.drop(nil)
			c.boots <- resp.Boot
			continue
		}
		c.mu.Lock()
		if w, ok := c.waiting[resp.ID]; ok {
			delete(c.waiting, resp.ID)
			w <- resp
		}
		c.mu.Unlock()
	}
}

// drop gives up all requests under way. A non-nil err makes it final.
func (c *control) drop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for id, w := range c.waiting {
		delete(c.waiting, id)
		w <- guest.Response{Error: errGone.Error()}
	}
}

// call sends a request and waits for its response.
func (c *control) call(ctx context.Context, req guest.Request) (guest.Response, error) {
	w, err := c.send(req)
	if err != nil {
		return guest.Response{}, err
	}
	select {
	case resp := <-w:
		if resp.Error != "" {
			return resp, errors.New(resp.Error)
		}
		return resp, nil
	case <-ctx.Done():
		return guest.Response{}, context.Cause(ctx)
	}
}

func (c *control) send(req guest.Request) (<-chan guest.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	c.next++
	req.ID = c.next
	w := make(chan guest.Response, 1)
	c.waiting[req.ID] = w
	b, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		delete(c.waiting, req.ID)
		return nil, fmt.Errorf("cannot send to machine: %w", err)
	}
	return w, nil
}

// waitBoot waits until the machine says that it has started and returns its
// boot-id.
func (c *control) waitBoot(ctx context.Context) (string, error) {
	select {
	case boot, ok := <-c.boots:
		if !ok {
			return "", errGone
		}
		return boot, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
