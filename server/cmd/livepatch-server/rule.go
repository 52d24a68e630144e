package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"livepatch/server/internal/rollout"
)

// params returns the constants of the rule: the defaults, but for what a file says.
func params(file string) (rollout.Params, error) {
	p := rollout.Defaults()
	if file == "" {
		return p, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return p, fmt.Errorf("-rule: %w", err)
	}
	if err := readParams(b, &p); err != nil {
		return p, fmt.Errorf("-rule: cannot read %s: %w", file, err)
	}
	return p, p.Validate()
}

// readParams changes p where the file says otherwise. Durations are numbers of
// nanoseconds, as a verdict has them, or text such as "1h30m".
func readParams(b []byte, p *rollout.Params) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var said map[string]any
	if err := d.Decode(&said); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows after the constants")
	}
	numbers, err := withoutText(said)
	if err != nil {
		return err
	}
	b, err = json.Marshal(numbers)
	if err != nil {
		return err
	}
	d = json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(p)
}

// withoutText returns v with nanoseconds in place of each text: no constant is
// text but a duration.
func withoutText(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case string:
		d, err := time.ParseDuration(v)
		return int64(d), err
	case map[string]any:
		for key := range v {
			if v[key], err = withoutText(v[key]); err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
		}
	case []any:
		for i := range v {
			if v[i], err = withoutText(v[i]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}
