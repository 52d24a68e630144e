package snapd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/snapcore/snapd/client"
)

// A HealthStatus is how a snap says it is.
type HealthStatus string

// The statuses that snapd knows.
const (
	Okay    HealthStatus = "okay"
	Waiting HealthStatus = "waiting" // for something that comes by itself
	Blocked HealthStatus = "blocked" // until somebody does something
	Broken  HealthStatus = "error"
)

// A Health is what "snap info" and "snap list" show of a snap. That of a snap
// that is okay has no message and no code.
type Health struct {
	Status  HealthStatus
	Message string // is cut to 70 characters
	Code    string // 3 to 30 of a-z, 0-9 and single dashes
}

// Bounds that snapd has on a message, in characters (overlord/hookstate/ctlcmd/health.go).
const (
	minMessage = 7
	maxMessage = 70
)

// args returns the command of snapctl.
func (h Health) args() []string {
	if h.Status == Okay {
		return []string{"set-health", string(Okay)}
	}
	message := oneLine(h.Message)
	if utf8.RuneCountInString(message) < minMessage {
		message = "canonical-livepatch: " + message
	}
	if r := []rune(message); len(r) > maxMessage {
		message = strings.TrimSpace(string(r[:maxMessage-1])) + "…"
	}
	args := []string{"set-health"}
	if h.Code != "" {
		args = append(args, "--code="+h.Code)
	}
	return append(args, "--", string(h.Status), message)
}

// SetHealth tells snapd how the snap is.
func (c *Client) SetHealth(ctx context.Context, h Health) error {
	_, err := c.run(ctx, usual, h.args()...)
	if err == nil {
		return nil
	}
	var no *client.Error
	if errors.As(err, &no) {
		err = errors.New("snapd says: " + oneLine(no.Message))
	}
	return fmt.Errorf("cannot set the health of the snap: %w", err)
}
