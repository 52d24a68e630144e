package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"livepatch/internal/service"
)

// callTimeout bounds one call of the service's API, from dialling to the last
// byte of a small answer.
const callTimeout = time.Minute

// Enrol exchanges an auth token for a machine token.
func (c *Client) Enrol(ctx context.Context, authToken string, r service.EnrolRequest) (service.Enrolment, error) {
	var e service.Enrolment
	err := c.call(ctx, http.MethodPost, service.PathMachines, authToken, r, &e)
	return e, err
}

// Forget ends the enrolment of this machine.
func (c *Client) Forget(ctx context.Context, machineToken string) error {
	return c.call(ctx, http.MethodDelete, service.PathSelf, machineToken, nil, nil)
}

// CheckIn reports to the service and learns what to do next.
func (c *Client) CheckIn(ctx context.Context, machineToken string, r service.CheckIn) (service.CheckInAnswer, error) {
	var a service.CheckInAnswer
	err := c.call(ctx, http.MethodPost, service.PathCheckIn, machineToken, r, &a)
	return a, err
}

// call sends in as JSON, if it is not nil, and reads the answer into out, if it
// is not nil.
func (c *Client) call(ctx context.Context, method, path, token string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("cannot write request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(path).String(), body)
	if err != nil {
		return fmt.Errorf("cannot make request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	sent := time.Now()
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // nothing was written
	c.noteDate(res, sent)
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return c.refusal(res)
	}
	return c.decode(req, res, out)
}

// decode reads the answer of a call.
func (c *Client) decode(req *http.Request, res *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, service.MaxJSON+1))
	if err != nil {
		return c.explain(req, err)
	}
	if len(b) > service.MaxJSON {
		return &Error{Kind: ErrAnswer, Status: res.StatusCode, Text: fmt.Sprintf("answer of %s is longer than %d bytes", c.base.Host, service.MaxJSON)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		if errors.Is(req.Context().Err(), context.Canceled) {
			return context.Cause(req.Context()) // the service noticed first
		}
		return &Error{Kind: ErrAnswer, Status: res.StatusCode, Text: fmt.Sprintf("answer of %s is not what it should be: %s", c.base.Host, oneLine(err.Error()))}
	}
	return nil
}

// refusal explains an answer that is not a success.
func (c *Client) refusal(res *http.Response) error {
	e := &Error{Kind: ErrRequest, Status: res.StatusCode, RetryAfter: retryAfter(res.Header, time.Now())}
	var body service.Error
	b, err := io.ReadAll(io.LimitReader(res.Body, service.MaxJSON))
	known := err == nil && json.Unmarshal(b, &body) == nil && body.Code != ""
	status := fmt.Sprintf("%d (%s)", res.StatusCode, http.StatusText(res.StatusCode))
	e.Text = fmt.Sprintf("%s answered with status %s", c.base.Host, status)
	if known && body.Message != "" {
		e.Text += ": " + oneLine(body.Message)
	}
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		e.Text, e.Kind = tokenProblem(body.Code, e.Text)
	case res.StatusCode == http.StatusProxyAuthRequired:
		proxy, _ := c.transport.Proxy(res.Request)
		if proxy != nil {
			return proxyAnswered(res.StatusCode, proxy.Host)
		}
	case res.StatusCode == http.StatusTooManyRequests, res.StatusCode == http.StatusServiceUnavailable:
		e.Kind = ErrOverload
	case res.StatusCode >= 500:
		e.Kind = ErrService
	case res.StatusCode >= 300 && res.StatusCode < 400:
		e.Kind = ErrAnswer
	}
	return e
}

// tokenProblem explains status 401. text is what is said if code is not known.
func tokenProblem(code service.Code, text string) (said string, kind error) {
	switch code {
	case service.CodeUnknownToken:
		return "the service does not know the token", ErrToken
	case service.CodeExpiredToken:
		return "the token has expired", ErrTokenOld
	case service.CodeRevokedToken:
		return "the token has been revoked", ErrTokenGone
	default:
		return text, ErrToken
	}
}
