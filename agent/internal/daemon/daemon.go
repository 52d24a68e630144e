// Package daemon is how other programs of the system talk to canonical-livepatchd:
// HTTP over its two sockets.
package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"livepatch/agent/internal/status"
)

// The daemon's sockets: anybody may read from the public one, the private one
// answers root.
const (
	Public  = "livepatchd.sock"
	Private = "livepatchd-priv.sock"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 4 << 20

// Conditions that the advice depends on.
var (
	ErrAway       = errors.New("daemon is not running")
	ErrNotEnabled = errors.New("machine is not enabled")
)

// A RefusalError is what the daemon says no with, in its own words.
type RefusalError struct {
	Code          int // HTTP status
	Message, Hint string
}

// Error returns the message.
func (e *RefusalError) Error() string { return e.Message }

// Is makes a refusal for lack of privilege a permission error.
func (e *RefusalError) Is(target error) bool {
	return target == fs.ErrPermission && e.Code == http.StatusForbidden
}

// A NotEnabledError is the answer to a request that needs an enrolment. It matches
// [ErrNotEnabled].
type NotEnabledError struct {
	Text string // what people are told: a sentence that programs know, and perhaps more
	Hint string // the next step, or ""
}

// Error returns the text.
func (e *NotEnabledError) Error() string { return e.Text }

// Unwrap returns [ErrNotEnabled].
func (*NotEnabledError) Unwrap() error { return ErrNotEnabled }

// A SlowError reports that the daemon took too long.
type SlowError struct {
	After   time.Duration
	Changes bool // it was to change something, and may be doing so
}

// Error says how long that was.
func (e *SlowError) Error() string {
	return fmt.Sprintf("the daemon has not answered within %v", e.After)
}

// Deadline returns a context for one request that ends after a while with a
// [SlowError].
func Deadline(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, after, &SlowError{After: after})
}

// A Client talks to the daemon whose sockets lie in a folder.
type Client struct {
	Dir string
}

// Call sends one request to the daemon and returns the answer. What the request
// is for goes into errors: "get status". A body is sent as JSON, unless it is nil.
func (c Client) Call(ctx context.Context, what, socket, method, path string, body any) ([]byte, error) {
	answer, err := c.roundTrip(ctx, socket, method, path, body)
	var slow *SlowError
	switch {
	case err == nil:
		return answer, nil
	case errors.As(err, new(*RefusalError)), errors.Is(err, ErrNotEnabled):
		return nil, err // says itself what could not be done
	case errors.As(context.Cause(ctx), &slow):
		err = &SlowError{After: slow.After, Changes: method != http.MethodGet}
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	return nil, fmt.Errorf("cannot %s: %w", what, err)
}

func (c Client) roundTrip(ctx context.Context, socket, method, path string, body any) ([]byte, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{
		Transport:     c.transport(socket),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, connectError(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the daemon's answer: %w", err)
	}
	if len(answer) > maxAnswer {
		return nil, errors.New("the daemon's answer is too long")
	}
	return answer, refusal(res.StatusCode, string(answer))
}

// transport returns one that reaches the daemon through a socket, whatever the
// URL and the proxy settings of the environment say.
func (c Client) transport(socket string) *http.Transport {
	path := filepath.Join(c.Dir, socket)
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
}

// connectError explains why there was no answer. Monitors know the words
// "Connection to the daemon failed".
func connectError(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return fmt.Errorf("the daemon broke off: %w", errors.Unwrap(err))
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("this user may not talk to the daemon: %w", op)
	}
	failed := fmt.Errorf("Connection to the daemon failed: %w", op) //nolint:staticcheck // ST1005: the words are an interface
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return &awayError{failed}
	}
	return failed
}

// A awayError matches ErrAway and keeps the text of its cause.
type awayError struct {
	error
}

func (e *awayError) Is(target error) bool { return target == ErrAway }

// refusal returns the error that an answer stands for, or nil for a success.
// The first line of a refusal says what is wrong; a line "hint: " follows where
// the daemon knows what to do.
func refusal(code int, body string) error {
	if code >= 200 && code < 300 {
		return nil
	}
	e := &RefusalError{Code: code}
	for l := range strings.Lines(body) {
		l = strings.TrimSpace(l)
		if h, ok := strings.CutPrefix(l, "hint:"); ok && e.Hint == "" {
			e.Hint = strings.TrimSpace(h)
		} else if e.Message == "" {
			e.Message = l
		}
	}
	// Its first words only: the line break in the text is nobody's business.
	sentence, rest, _ := strings.Cut(status.NotEnabled, ".")
	rest, _, _ = strings.Cut(rest, "\n")
	switch {
	case strings.Contains(body, sentence) && (strings.Contains(body, rest) || !strings.HasPrefix(e.Message, sentence+". ")):
		return &NotEnabledError{Text: status.NotEnabled}
	case strings.Contains(body, sentence):
		return &NotEnabledError{Text: e.Message, Hint: e.Hint}
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("the daemon refused with status %d (%s)", code, http.StatusText(code))
	}
	return e
}
