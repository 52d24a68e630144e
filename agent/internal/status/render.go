package status

import (
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// NotEnabled is what a machine without a token answers, on standard error of
// the command and in the body of the daemon's 400. Programs look for its first
// sentence.
const NotEnabled = "Machine is not enabled. Please run 'sudo canonical-livepatch enable' with the\n" +
	"token obtained from https://ubuntu.com/livepatch."

// A Format is a way to write a status.
type Format string

// The formats.
const (
	FormatHumane Format = "humane"
	FormatJSON   Format = "json"
	FormatYAML   Format = "yaml"
)

// ParseFormat reads the name of a format.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case FormatHumane, FormatJSON, FormatYAML:
		return f, nil
	}
	return "", fmt.Errorf("cannot use %q as a format, need humane, json or yaml", name)
}

// A Request is what a GET of /status asks for.
type Request struct {
	Format  Format
	Verbose bool
	Summary bool // one line, whatever the format
}

// ParseRequest reads the query of a GET of /status. Without a format it means
// YAML, and "verbose" may be written as Python writes it: desktop programs that
// are older than the other formats send "?verbose=True" and parse YAML.
// "verbosity=3" is their older way to ask for all.
func ParseRequest(query url.Values) (Request, error) {
	r := Request{Format: FormatYAML}
	if name := query.Get("format"); name != "" {
		f, err := ParseFormat(name)
		if err != nil {
			return Request{}, err
		}
		r.Format = f
	}
	for name, field := range map[string]*bool{"verbose": &r.Verbose, "summary": &r.Summary} {
		v := query.Get(name)
		if v == "" {
			continue
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			return Request{}, fmt.Errorf("cannot use %q for %s, need true or false", v, name)
		}
		*field = b
	}
	if n, err := strconv.Atoi(query.Get("verbosity")); err == nil && n > 1 {
		r.Verbose = true
	}
	return r, nil
}

// ContentType returns the media type of what [Request.Render] writes.
func (r Request) ContentType() string {
	switch {
	case r.Summary:
		return "text/plain; charset=utf-8"
	case r.Format == FormatJSON:
		return "application/json"
	case r.Format == FormatYAML:
		return "application/yaml"
	default:
		return "text/plain; charset=utf-8"
	}
}

// Render writes s as r asks. Ages are told as of now.
func (r Request) Render(s Status, now time.Time) ([]byte, error) {
	switch {
	case r.Summary:
		return []byte(Summary(s, now)), nil
	case r.Format == FormatJSON:
		return JSON(s, r.Verbose)
	case r.Format == FormatYAML:
		return YAML(s, r.Verbose)
	default:
		return []byte(Humane(s, r.Verbose, now)), nil
	}
}
