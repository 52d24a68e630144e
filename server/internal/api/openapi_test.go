package api_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"livepatch/server/internal/api"
)

// A contract is openapi.yaml. It is a transport that holds each exchange of a
// test's client against it, and remembers what it has seen.
type contract struct {
	t      testing.TB
	base   http.RoundTripper
	doc    *openapi3.T
	router routers.Router
	seen   map[string]bool // "POST /v1/machines 201"
	// wrong lets requests differ from the file, to see how they are refused.
	wrong bool
}

func loadContract(t testing.TB) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("../../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// newContract returns a client of a server at base.
func newContract(t testing.TB, client *http.Client, base string) (*http.Client, *contract) {
	t.Helper()
	doc := loadContract(t)
	doc.Servers = openapi3.Servers{{URL: base}}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	c := &contract{t: t, base: client.Transport, doc: doc, router: router, seen: map[string]bool{}}
	return &http.Client{Transport: c, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, c
}

func (c *contract) RoundTrip(r *http.Request) (*http.Response, error) {
	body := drain(c.t, &r.Body)
	resp, err := c.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := c.check(r, resp); err != nil {
		c.t.Errorf("%s %s answered %d: %v", r.Method, r.URL.Path, resp.StatusCode, err)
	}
	return resp, nil
}

// drain reads a body, and puts it back for whoever reads next.
func drain(t testing.TB, body *io.ReadCloser) []byte {
	t.Helper()
	if *body == nil {
		return nil
	}
	b, err := io.ReadAll(*body)
	if err != nil {
		t.Fatal(err)
	}
	*body = io.NopCloser(bytes.NewReader(b))
	return b
}

func (c *contract) check(r *http.Request, resp *http.Response) error {
	route, params, err := c.router.FindRoute(r)
	if err != nil {
		return err
	}
	c.seen[fmt.Sprintf("%s %s %d", r.Method, route.Path, resp.StatusCode)] = true
	in := &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			AuthenticationFunc:    openapi3filter.NoopAuthenticationFunc,
			IncludeResponseStatus: true,
			MultiError:            true,
		},
	}
	if !c.wrong {
		if err := openapi3filter.ValidateRequest(context.Background(), in); err != nil {
			return fmt.Errorf("request: %w", err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: in.Options}
	out.SetBodyBytes(drain(c.t, &resp.Body))
	if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil {
		return fmt.Errorf("response: %w", err)
	}
	return nil
}

func TestRoutesAreThoseOfTheContract(t *testing.T) {
	doc := loadContract(t)
	described := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described[method+" "+path] = true
		}
	}
	for _, route := range api.Routes() {
		if !described[route] {
			t.Errorf("%s is not in openapi.yaml", route)
		}
		delete(described, route)
	}
	for route := range described {
		t.Errorf("%s is in openapi.yaml and has no handler", route)
	}
}

func TestEveryStatusOfTheContractHasACode(t *testing.T) {
	// An answer that clients branch on by its status carries the code that
	// belongs to it, everywhere.
	doc := loadContract(t)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			for status, resp := range op.Responses.Map() {
				if status < "400" || status == "416" {
					continue
				}
				if !strings.HasPrefix(resp.Ref, "#/components/responses/") {
					t.Errorf("%s %s: answer %s is described on its own", method, path, status)
				}
			}
		}
	}
}
