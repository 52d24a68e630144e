package tuf

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"livepatch/internal/patch"
)

func TestParse(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	tests := map[string]struct {
		in   string
		want any // nil is not in the table: see "null"
		ok   bool
	}{
		"null":                       {"null", nil, true},
		"a bool":                     {"true", true, true},
		"an integer":                 {"-12", int64(-12), true},
		"the largest":                {"9007199254740991", int64(maxInt), true},
		"the smallest":               {"-9007199254740991", int64(-maxInt), true},
		"one more":                   {"9007199254740992", nil, false},
		"one less":                   {"-9007199254740992", nil, false},
		"zero":                       {"0", int64(0), true},
		"minus zero":                 {"-0", nil, false},
		"a plus sign":                {"+1", nil, false},
		"a leading zero":             {"01", nil, false},
		"a fraction":                 {"1.0", nil, false},
		"an exponent":                {"1e2", nil, false},
		"hexadecimal":                {"0x1", nil, false},
		"not a number":               {"NaN", nil, false},
		"a string":                   {`"a"`, "a", true},
		"an escape":                  {`"\u003c\u0001\n\/"`, "<\x01\n/", true},
		"an escape that is needless": {`"\u0061"`, nil, false},
		"a pair of surrogates":       {`"\ud83d\ude00"`, "😀", true},
		"a lone surrogate":           {`"\ud83d"`, nil, false},
		"surrogates the wrong way":   {`"\ude00\ud83d"`, nil, false},
		"a replacement character":    {"\"\ufffd\"", nil, false},
		"one by escape":              {`"\ufffd"`, nil, false},
		"invalid UTF-8":              {"\"\xff\"", nil, false},
		"invalid UTF-8 outside":      {"{}\xff", nil, false},
		"a surrogate in UTF-8":       {"\"\xed\xa0\x80\"", nil, false},
		"an unknown escape":          {`"\x41"`, nil, false},
		"a control character":        {"\"\n\"", nil, false},
		"an open string":             {`"a`, nil, false},
		"a list":                     {"[1,[2]]", []any{int64(1), []any{int64(2)}}, true},
		"an empty list":              {" [ ] ", []any{}, true},
		"a comma too many":           {"[1,]", nil, false},
		"a comma in front":           {"[,1]", nil, false},
		"a comma too few":            {"[1 2]", nil, false},
		"a bracket of another kind":  {"[1}", nil, false},
		"an open list":               {"[1", nil, false},
		"an object":                  {`{"a":1}`, object{"a": int64(1)}, true},
		"an empty object":            {"{}", object{}, true},
		"an object, comma too many":  {`{"a":1,}`, nil, false},
		"an object, comma too few":   {`{"a":1 "b":2}`, nil, false},
		"no value":                   {`{"a"}`, nil, false},
		"no colon":                   {`{"a" 1}`, nil, false},
		"a comma for a colon":        {`{"a",1}`, nil, false},
		"no key":                     {`{:1}`, nil, false},
		"a number for a key":         {`{1:1}`, nil, false},
		"null for a key":             {`{null:1}`, nil, false},
		"a list for a key":           {`{[]:1}`, nil, false},
		"an object for a key":        {`{{}:1}`, nil, false},
		"an open object":             {`{"a":1`, nil, false},
		"an object closed as list":   {`{"a":1]`, nil, false},
		"a key twice":                {`{"a":1,"a":1}`, nil, false},
		"a key twice, by escape":     {`{"a":1,"\u0061":1}`, nil, false},
		"a key in two cases":         {`{"a":1,"A":1}`, nil, false},
		"a key and its long s":       {`{"signed":1,"ſigned":1}`, nil, false},
		"a key and its Kelvin":       {`{"keys":1,"` + "\u212a" + `eys":1}`, nil, false},
		"the empty key twice":        {`{"":1,"":2}`, nil, false},
		"a key twice, further in":    {`[{"a":{"b":1,"b":1}}]`, nil, false},
		"a key in two objects":       {`[{"a":1},{"a":1}]`, []any{object{"a": int64(1)}, object{"a": int64(1)}}, true},
		"a replacement in a key":     {`{"\ufffd":1}`, nil, false},
		"nothing":                    {"", nil, false},
		"white space":                {" \n", nil, false},
		"two values":                 {"1 2", nil, false},
		"a bracket behind":           {"{}}", nil, false},
		"as deep as allowed":         {nested(maxDepth + 1), deep(maxDepth + 1), true},
		"too deep":                   {nested(maxDepth + 2), nil, false},
		"very deep":                  {nested(1 << 20), nil, false},
		"very deep, and open":        {strings.Repeat("[", 1<<20), nil, false},
		"very deep objects":          {strings.Repeat(`{"a":`, 1<<18), nil, false},
		"deep scalars are not lists": {strings.Repeat("[", maxDepth) + "1" + strings.Repeat("]", maxDepth), deepWith(maxDepth, int64(1)), true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parse([]byte(tc.in))
			if tc.ok != (err == nil) || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("parse = %v, %v, want %v, %v", got, err, tc.want, tc.ok)
			}
			if err != nil && !errors.Is(err, patch.ErrMalformed) {
				t.Errorf("%v does not match %v", err, patch.ErrMalformed)
			}
		})
	}
}

func deep(n int) any { return deepWith(n-1, []any{}) }

func deepWith(n int, v any) any {
	for range n {
		v = []any{v}
	}
	return v
}

func TestCanonical(t *testing.T) {
	tests := map[string]string{
		` { "b" : [ true , false , null ] , "a" : -1 } `: `{"a":-1,"b":[true,false,null]}`,
		`{"é":1,"z":2,"Z":3}`:                            "", // two cases of one key
		`{"é":1,"z":2,"A":3,"":4}`:                       `{"":4,"A":3,"z":2,"é":1}`,
		`{"\ud83d\ude00":1,"\uffff":2}`:                  "{\"\uffff\":2,\"😀\":1}", // in order of bytes, not of UTF-16
		`"\"\\\/\b\f\n\r\t\u0001\u003c<&>\u2028"`:        "\"\\\"\\\\/\b\f\n\r\t\x01<<&>\u2028\"",
		`{"\"":"\\"}`:                                    `{"\"":"\\"}`,
	}
	for in, want := range tests {
		v, err := parse([]byte(in))
		if want == "" && err != nil {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := canonical(nil, v); string(got) != want {
			t.Errorf("canonical form of %s = %q, want %q", in, got, want)
		}
	}
}

// FuzzParse holds the parser against itself, encoding/json and the canonical
// form of securesystemslib.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"signed":{"_type":"root","version":1},"signatures":[{"keyid":"a","sig":"00"}]}`,
		`{"a":[1,-2,"x",null,true,{}],"b":{"c":"\"\\\u00e9\ud83d\ude00"}}`,
		`[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]`, `{"a":1,"A":2}`, `{"s":1,"ſ":2}`, `"\ud800"`, "\"\xff\"", `1.0`, `-0`, `9007199254740992`,
		`{"a":1}{"a":1}`, `[1,]`, `{"a" 1}`, `{"":""}`, "\"\x7f\u2028<&>\"", ` null `, `{"a":1]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parse(b)
		if err != nil {
			if !errors.Is(err, patch.ErrMalformed) || v != nil {
				t.Fatalf("parse = %v, %v", v, err)
			}
			return
		}
		form := canonical(nil, v)

		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		var theirs any
		if err := dec.Decode(&theirs); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		want, err := cjson.EncodeCanonical(theirs)
		if err != nil {
			t.Fatalf("securesystemslib refuses it: %v", err)
		}
		if !bytes.Equal(form, want) {
			t.Fatalf("canonical form is %q, securesystemslib says %q", form, want)
		}
		// A control character stands in the canonical form as it is, which is
		// not JSON.
		if bytes.ContainsFunc(form, func(r rune) bool { return r < ' ' }) {
			return
		}
		again, err := parse(form)
		if err != nil {
			t.Fatalf("canonical form %q: %v", form, err)
		}
		if second := canonical(nil, again); !bytes.Equal(form, second) {
			t.Fatalf("canonical form is %q, of that %q", form, second)
		}
	})
}
