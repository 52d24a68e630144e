package tuftest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// An Object is a JSON object.
type Object = map[string]any

// A Literal stands in a file as it is, so that a test can write what no encoder
// would: 1.50, 1e3, a lone surrogate.
type Literal string

// Pairs is an object whose keys are written in the order given, even twice.
type Pairs []Pair

// A Pair is one field of [Pairs].
type Pair struct {
	Key   string
	Value any
}

// Canonical returns the OLPC canonical form of v, which is what gets signed.
func Canonical(v any) []byte {
	return appendJSON(nil, v, func(out []byte, s string) []byte {
		out = append(out, '"')
		for _, c := range []byte(s) {
			if c == '"' || c == '\\' {
				out = append(out, '\\')
			}
			out = append(out, c)
		}
		return append(out, '"')
	})
}

// Encode returns v as it stands in a file: not in canonical form, so that a
// verifier which skips canonicalization is noticed.
func Encode(v any) []byte {
	compact := appendJSON(nil, v, func(out []byte, s string) []byte {
		b, err := json.Marshal(s)
		if err != nil {
			panic(err) // a string can always be marshalled
		}
		return append(out, b...)
	})
	return append(append([]byte(" "), compact...), '\n')
}

func appendJSON(out []byte, v any, quote func([]byte, string) []byte) []byte {
	switch v := v.(type) {
	case nil:
		return append(out, "null"...)
	case Literal:
		return append(out, v...)
	case bool:
		return strconv.AppendBool(out, v)
	case int:
		return strconv.AppendInt(out, int64(v), 10)
	case int64:
		return strconv.AppendInt(out, v, 10)
	case string:
		return quote(out, v)
	case []any:
		out = append(out, '[')
		for i, e := range v {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendJSON(out, e, quote)
		}
		return append(out, ']')
	case Object:
		var pairs Pairs
		for _, k := range slices.Sorted(maps.Keys(v)) {
			pairs = append(pairs, Pair{k, v[k]})
		}
		return appendJSON(out, pairs, quote)
	case Pairs:
		out = append(out, '{')
		for i, p := range v {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(quote(out, p.Key), ':')
			out = appendJSON(out, p.Value, quote)
		}
		return append(out, '}')
	}
	panic(fmt.Sprintf("tuftest cannot encode a %T", v))
}

// Generic returns v, which may be of any type that encoding/json takes, as it
// looks after a trip through JSON: objects, lists, strings, int64.
func Generic(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("tuftest cannot marshal a %T: %v", v, err))
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var out any
	if err := dec.Decode(&out); err != nil {
		panic(err) // it was just marshalled
	}
	return integers(out)
}

// integers replaces json.Number by int64, in place.
func integers(v any) any {
	switch v := v.(type) {
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			return Literal(v)
		}
		return n
	case []any:
		for i := range v {
			v[i] = integers(v[i])
		}
	case Object:
		for k := range v {
			v[k] = integers(v[k])
		}
	}
	return v
}

// Copy returns a deep copy of v.
func Copy(v any) any {
	switch v := v.(type) {
	case Object:
		out := Object{}
		for k, e := range v {
			out[k] = Copy(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = Copy(e)
		}
		return out
	}
	return v
}

// A Path leads to a field: keys of objects and decimal indices of lists.
type Path []string

// Paths lists the fields of v and of what is in them, in a fixed order.
func Paths(v any) []Path {
	var out []Path
	add := func(key string, child any) {
		out = append(out, Path{key})
		for _, p := range Paths(child) {
			out = append(out, append(Path{key}, p...))
		}
	}
	switch v := v.(type) {
	case Object:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			add(k, v[k])
		}
	case []any:
		for i, e := range v {
			add(strconv.Itoa(i), e)
		}
	}
	return out
}

// Get returns the field of v that p leads to, or nil.
func (p Path) Get(v any) any {
	for _, key := range p {
		switch parent := v.(type) {
		case Object:
			v = parent[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(parent) {
				return nil
			}
			v = parent[i]
		default:
			return nil
		}
	}
	return v
}

// Deleted as the result of an edit takes the field away.
var Deleted = &struct{ _ byte }{}

// Edit returns a copy of v in which the field that p leads to is what f makes of
// it. v itself and what f does not touch stay as they are.
func (p Path) Edit(v any, f func(old any) any) any {
	if len(p) == 0 {
		return f(v)
	}
	switch parent := v.(type) {
	case Object:
		out := maps.Clone(parent)
		if out[p[0]] = p[1:].Edit(parent[p[0]], f); out[p[0]] == any(Deleted) {
			delete(out, p[0])
		}
		return out
	case []any:
		i, err := strconv.Atoi(p[0])
		if err != nil || i < 0 || i >= len(parent) {
			return v
		}
		out := slices.Clone(parent)
		if out[i] = p[1:].Edit(parent[i], f); out[i] == any(Deleted) {
			out = slices.Delete(out, i, i+1)
		}
		return out
	}
	return v
}

// Set returns an edit for a [Role] that puts value at the path.
func Set(value any, path ...string) func(Object) any {
	return func(o Object) any {
		return Path(path).Edit(o, func(any) any { return value })
	}
}

// Delete returns an edit for a [Role] that takes away what is at the path.
func Delete(path ...string) func(Object) any { return Set(Deleted, path...) }
