package cli

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
	publicSocket  = "livepatchd.sock"
	privateSocket = "livepatchd-priv.sock"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 4 << 20

// Conditions that the advice depends on.
var (
	errNoDaemon   = errors.New("daemon is not running")
	errNotEnabled = errors.New("machine is not enabled")
)

// An answerError is a refusal by the daemon, in its own words.
type answerError struct {
	code          int // HTTP status
	message, hint string
}

func (e *answerError) Error() string { return e.message }

// Is makes a refusal for lack of privilege a permission error.
func (e *answerError) Is(target error) bool {
	return target == fs.ErrPermission && e.code == http.StatusForbidden
}

// A slowError reports that the daemon took too long.
type slowError struct {
	after   time.Duration
	changes bool // it was to change something, and may be doing so
}

func (e *slowError) Error() string {
	return fmt.Sprintf("the daemon has not answered within %v", e.after)
}

// call sends one request to the daemon and returns the answer. What the request
// is for goes into errors: "get status". A body is sent as JSON, unless it is nil.
func (a *app) call(ctx context.Context, what, socket, method, path string, body any) ([]byte, error) {
	answer, err := a.roundTrip(ctx, socket, method, path, body)
	var slow *slowError
	switch {
	case err == nil:
		return answer, nil
	case errors.As(err, new(*answerError)), errors.Is(err, errNotEnabled):
		return nil, err // says itself what could not be done
	case errors.As(context.Cause(ctx), &slow):
		err = &slowError{after: slow.after, changes: method != http.MethodGet}
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	return nil, fmt.Errorf("cannot %s: %w", what, err)
}

func (a *app) roundTrip(ctx context.Context, socket, method, path string, body any) ([]byte, error) {
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
		Transport:     a.transport(socket),
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
func (a *app) transport(socket string) *http.Transport {
	path := filepath.Join(a.runDir, socket)
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
		return &noDaemonError{failed}
	}
	return failed
}

// A noDaemonError matches errNoDaemon and keeps the text of its cause.
type noDaemonError struct {
	error
}

func (e *noDaemonError) Is(target error) bool { return target == errNoDaemon }

// refusal returns the error that an answer stands for, or nil for a success.
// The first line of a refusal says what is wrong; a line "hint: " follows where
// the daemon knows what to do.
func refusal(code int, body string) error {
	if code >= 200 && code < 300 {
		return nil
	}
	// Its first words only: the line break in the text is nobody's business.
	sentence, _, _ := strings.Cut(status.NotEnabled, ".")
	if strings.Contains(body, sentence) {
		return errNotEnabled
	}
	e := &answerError{code: code}
	for l := range strings.Lines(body) {
		l = strings.TrimSpace(l)
		if h, ok := strings.CutPrefix(l, "hint:"); ok && e.hint == "" {
			e.hint = strings.TrimSpace(h)
		} else if e.message == "" {
			e.message = l
		}
	}
	if e.message == "" {
		e.message = fmt.Sprintf("the daemon refused with status %d (%s)", code, http.StatusText(code))
	}
	return e
}
