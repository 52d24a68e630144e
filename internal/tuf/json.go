package tuf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"livepatch/internal/patch"
)

// maxDepth bounds the nesting of a metadata file. The format itself needs 6;
// the rest is room inside a custom block.
const maxDepth = 16

// maxInt is the largest integer that every JSON library reads alike.
const maxInt = 1<<53 - 1

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", patch.ErrMalformed, fmt.Sprintf(format, args...))
}

// parse reads strict JSON: UTF-8 without replacement characters, no duplicate
// keys, integers only, bounded depth, nothing after the value. Two parsers that
// see different values in one signed file are how signatures get bypassed, so
// what could be read in two ways is refused.
//
// It returns nil, bool, int64, string, []any or object.
func parse(b []byte) (any, error) {
	// The decoder below would turn bad UTF-8 and lone surrogates into U+FFFD.
	if !utf8.Valid(b) {
		return nil, malformed("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	v, err := parseValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("data after the end")
	}
	return v, nil
}

func parseValue(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, malformed("nested deeper than %d", maxDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, malformed("%v", err)
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '{' {
			return parseObject(dec, depth)
		}
		return parseArray(dec, depth)
	case json.Number:
		n, err := t.Int64()
		if err != nil || n > maxInt || n < -maxInt || t == "-0" {
			return nil, malformed("%s is not an integer of at most 53 bits", t)
		}
		return n, nil
	case string:
		return t, checkString(t)
	default: // bool and nil
		return t, nil
	}
}

func checkString(s string) error {
	if strings.ContainsRune(s, utf8.RuneError) {
		return malformed("string holds a replacement character")
	}
	return nil
}

func parseObject(dec *json.Decoder, depth int) (object, error) {
	obj := object{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, malformed("%v", err)
		}
		key, ok := tok.(string)
		if !ok {
			return nil, malformed("key is not a string")
		}
		if err := checkString(key); err != nil {
			return nil, err
		}
		if _, dup := obj[key]; dup {
			return nil, malformed("key %q stands twice", key)
		}
		if obj[key], err = parseValue(dec, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token() // the closing brace
	if err != nil {
		return nil, malformed("%v", err)
	}
	return obj, nil
}

func parseArray(dec *json.Decoder, depth int) ([]any, error) {
	list := []any{}
	for dec.More() {
		v, err := parseValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed("%v", err)
	}
	return list, nil
}

// canonical appends the OLPC canonical form of v, which is what TUF signs: keys
// in byte order, no white space, only quote and backslash escaped.
func canonical(out []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(out, "null"...)
	case bool, int64:
		return fmt.Append(out, v)
	case string:
		out = append(out, '"')
		for i := range len(v) {
			if v[i] == '"' || v[i] == '\\' {
				out = append(out, '\\')
			}
			out = append(out, v[i])
		}
		return append(out, '"')
	case []any:
		out = append(out, '[')
		for i, e := range v {
			if i > 0 {
				out = append(out, ',')
			}
			out = canonical(out, e)
		}
		return append(out, ']')
	case object:
		out = append(out, '{')
		for i, k := range v.keys() {
			if i > 0 {
				out = append(out, ',')
			}
			out = canonical(out, k)
			out = append(out, ':')
			out = canonical(out, v[k])
		}
		return append(out, '}')
	}
	panic(fmt.Sprintf("parse returned a %T", v))
}

// An object is a JSON object. Its getters name the field in their errors.
type object map[string]any

// keys returns the keys in byte order.
func (o object) keys() []string {
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// get returns a field of type T. Keys that differ from the field only in case
// are refused: encoding/json would take them for the field.
func get[T any](o object, field string) (T, error) {
	v, ok := o[field].(T)
	if !ok {
		return v, malformed("%q is missing or of the wrong type", field)
	}
	for k := range o {
		if k != field && strings.EqualFold(k, field) {
			return v, malformed("key %q looks like %q", k, field)
		}
	}
	return v, nil
}

// has tells whether the field, or one that looks like it, is there.
func (o object) has(field string) bool {
	for k := range o {
		if strings.EqualFold(k, field) {
			return true
		}
	}
	return false
}

// positive returns an integer field that must be 1 or more.
func (o object) positive(field string) (int64, error) {
	n, err := get[int64](o, field)
	if err == nil && n < 1 {
		return 0, malformed("%q is %d, want 1 or more", field, n)
	}
	return n, err
}

// strings returns a field that is a list of distinct strings, at least one.
func (o object) strings(field string) ([]string, error) {
	list, err := get[[]any](o, field)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, v := range list {
		s, ok := v.(string)
		if !ok || slices.Contains(out, s) {
			return nil, malformed("%q is not a list of distinct strings", field)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, malformed("%q is empty", field)
	}
	return out, nil
}
