package snapd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A ValueError reports a value in snapd's configuration that is no text: a list,
// or a part with keys of its own.
type ValueError struct {
	Key string
}

// Error names the key.
func (e *ValueError) Error() string {
	return fmt.Sprintf("cannot use the value of %s: it is a list or has parts, need a single value", e.Key)
}

// parseConfig reads a document of "snapctl get -d". What somebody has typed is
// JSON to snapd if it can be, so that 60 is a number there, and text here.
func parseConfig(doc []byte) (map[string]string, error) {
	var raw map[string]json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(doc))
	if err := dec.Decode(&raw); err != nil {
		return nil, errors.New("cannot read the configuration that snapd has: its answer is no JSON object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("cannot read the configuration that snapd has: there is more than one document")
	}
	values := map[string]string{}
	for key, value := range raw {
		text, err := textOf(value)
		if err != nil {
			return nil, &ValueError{key}
		}
		if text != "" {
			values[key] = text
		}
	}
	return values, nil
}

// textOf returns a value as it was typed; null is the empty text.
func textOf(value json.RawMessage) (string, error) {
	switch s := strings.TrimSpace(string(value)); {
	case s == "null":
		return "", nil
	case strings.HasPrefix(s, `"`):
		var text string
		err := json.Unmarshal(value, &text)
		return text, err
	case strings.HasPrefix(s, "{"), strings.HasPrefix(s, "["):
		return "", errors.New("not a single value")
	default:
		return s, nil
	}
}

// assignment returns what "snapctl set" wants for a key: a value in quotes stays
// text whatever it looks like.
func assignment(key, value string) string {
	if value == "" {
		return key + "!"
	}
	var out strings.Builder
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(value) // a string always can be
	return key + "=" + strings.TrimSuffix(out.String(), "\n")
}
