package api

import "net/http"

// Routes lists methods and paths.
func Routes() []string {
	var all []string
	for _, r := range (&API{}).routes() {
		all = append(all, r.method+" "+r.path)
	}
	return all
}

// AcceptsGzip reads a header.
var AcceptsGzip = acceptsGzip

// ParseTarget reads the target that a request names.
func ParseTarget(vendor, file string) (path, digest string, err error) {
	r := &http.Request{}
	r.SetPathValue("vendor", vendor)
	r.SetPathValue("file", file)
	p, d, err := parseTarget(r)
	return p, d.String(), err
}

// Problem says how an error is answered.
var Problem = problem

// RetryAfter says when to try again.
var RetryAfter = retryAfter
