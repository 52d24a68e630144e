package tuf

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"livepatch/internal/patch"
)

// maxDepth bounds the nesting of a metadata file. The format itself needs 6;
// the rest is room inside a custom block.
const maxDepth = 16

// needless are escapes of ASCII but for those of control characters and, as
// encoding/json writes them, of "<", ">" and "&". Some readers take apart
// hexadecimal and dates before they resolve escapes.
var needless = regexp.MustCompile(`\\u00(2[0-57-9A-Fa-f]|3[0-9ABDFabdf]|[4-6]|7[0-9A-Ea-e])`)

// maxInt is the largest integer that every JSON library reads alike.
const maxInt = 1<<53 - 1

// An object is a JSON object.
type object map[string]any

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", patch.ErrMalformed, fmt.Sprintf(format, args...))
}

// parse reads strict JSON: UTF-8 without replacement characters, no key twice
// (nor in another case: encoding/json takes "Signed" for "signed"), integers
// only, bounded depth, nothing after the value. Two parsers that see different
// values in one signed file are how signatures get bypassed, so what could be
// read in two ways is refused.
//
// It returns nil, bool, int64, string, []any or object.
func parse(b []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	v, err := parseValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) || needless.Match(b) {
		return nil, malformed("data after the end, or an escape for a character that needs none")
	}
	return v, nil
}

func parseValue(dec *json.Decoder, depth int) (any, error) {
	tok, err := dec.Token()
	if err != nil || depth > maxDepth {
		return nil, malformed("not JSON, or nested deeper than %d: %v", maxDepth, err)
	}
	switch t := tok.(type) {
	case json.Delim:
		v, err := parseInside(dec, t, depth+1)
		if _, end := dec.Token(); err == nil && end != nil { // the closing bracket
			return nil, malformed("%v", end)
		}
		return v, err
	case json.Number:
		n, err := t.Int64()
		if err != nil || n > maxInt || n < -maxInt || t == "-0" {
			return nil, malformed("%s is not an integer of at most 53 bits", t)
		}
		return n, nil
	case string:
		// The decoder turns bad UTF-8 and lone surrogates into U+FFFD.
		if strings.ContainsRune(t, utf8.RuneError) {
			return nil, malformed("string holds a replacement character")
		}
	}
	return tok, nil
}

// parseInside reads what stands between brackets.
func parseInside(dec *json.Decoder, bracket json.Delim, depth int) (any, error) {
	list, obj, seen := []any{}, object{}, map[string]bool{}
	for dec.More() {
		v, err := parseValue(dec, depth)
		if err != nil {
			return nil, err
		}
		if bracket == '[' {
			list = append(list, v)
			continue
		}
		key, ok := v.(string) // the decoder takes nothing else for a key
		folded := strings.ToUpper(strings.ToLower(key))
		if seen[folded] || !ok {
			return nil, malformed("key %q stands twice", key)
		}
		seen[folded] = true
		if obj[key], err = parseValue(dec, depth); err != nil {
			return nil, err
		}
	}
	if bracket == '[' {
		return list, nil
	}
	return obj, nil
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// canonical appends the OLPC canonical form of v, which is what TUF signs: keys
// in byte order, no white space, only quote and backslash escaped.
func canonical(out []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(out, "null"...)
	case string:
		return append(append(append(out, '"'), escaper.Replace(v)...), '"')
	case []any:
		out = append(out, '[')
		for i, e := range v {
			out = canonical(append(out, ","[:min(i, 1)]...), e)
		}
		return append(out, ']')
	case object:
		out = append(out, '{')
		for i, k := range slices.Sorted(maps.Keys(v)) {
			out = canonical(append(out, ","[:min(i, 1)]...), k)
			out = canonical(append(out, ':'), v[k])
		}
		return append(out, '}')
	default: // bool and int64
		return fmt.Append(out, v)
	}
}

// A reader takes objects apart. Its first failure stays: what it returns after
// that is worth nothing, so err is looked at once, before anything is used.
type reader struct{ err error }

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = malformed(format, args...)
	}
}

// field returns a field of type T.
func field[T any](r *reader, o object, name string) T {
	v, ok := o[name].(T)
	if !ok {
		r.fail("%q is missing or of the wrong type", name)
	}
	return v
}

// has tells whether an optional field is there. A key that differs from it only
// in case is a failure: encoding/json would take it for the field.
func (r *reader) has(o object, name string) bool {
	for k := range o {
		if k != name && strings.EqualFold(k, name) {
			r.fail("key %q looks like %q", k, name)
		}
	}
	_, ok := o[name]
	return ok
}

// positive returns an integer field that must be 1 or more.
func (r *reader) positive(o object, name string) int64 {
	n := field[int64](r, o, name)
	if n < 1 {
		r.fail("%q is %d, want 1 or more", name, n)
	}
	return n
}

// strings returns a field that is a list of distinct strings, at least one.
func (r *reader) strings(o object, name string) (out []string) {
	for _, v := range field[[]any](r, o, name) {
		s, ok := v.(string)
		if !ok || slices.Contains(out, s) {
			r.fail("%q is not a list of distinct strings", name)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		r.fail("%q is empty", name)
	}
	return out
}

// hex returns the bytes of a hexadecimal field. It has to be in lower case, as
// go-tuf writes it when it computes what was signed.
func (r *reader) hex(o object, name string) []byte {
	s := field[string](r, o, name)
	b, err := hex.DecodeString(s)
	if err != nil || hex.EncodeToString(b) != s {
		r.fail("%q is not lower-case hexadecimal", name)
	}
	return b
}
