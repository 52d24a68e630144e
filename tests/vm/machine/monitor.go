package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// A monitor speaks QMP, QEMU's control protocol: one JSON object a line, an
// answer to each command, events in between.
type monitor struct {
	mu   sync.Mutex
	conn net.Conn
	dec  *json.Decoder
}

// monitorTime is how long QEMU may take to answer; on a busy host it can be many
// seconds.
const monitorTime = time.Minute

// newMonitor greets QEMU.
func newMonitor(conn net.Conn) (*monitor, error) {
	m := &monitor{conn: conn, dec: json.NewDecoder(conn)}
	if err := conn.SetDeadline(time.Now().Add(monitorTime)); err != nil {
		return nil, err
	}
	var greeting struct{ QMP json.RawMessage }
	if err := m.dec.Decode(&greeting); err != nil {
		return nil, fmt.Errorf("cannot read QEMU's greeting: %w", err)
	}
	return m, m.execute("qmp_capabilities", nil)
}

// execute runs a command and waits for its answer.
func (m *monitor) execute(command string, args map[string]any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.conn.SetDeadline(time.Now().Add(monitorTime)); err != nil {
		return err
	}
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		return fmt.Errorf("cannot ask QEMU to %s: %w", command, err)
	}
	for {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
			Event string `json:"event"`
		}
		if err := m.dec.Decode(&answer); err != nil {
			return fmt.Errorf("cannot read QEMU's answer to %s: %w", command, err)
		}
		switch {
		case answer.Event != "":
		case answer.Error != nil:
			return errors.New("QEMU cannot " + command + ": " + answer.Error.Desc)
		default:
			return nil
		}
	}
}
