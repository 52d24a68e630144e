package push

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
)

// FuzzRefusal reads any answer that is not a success. What a person is shown of
// it is one line that no terminal takes for a command.
func FuzzRefusal(f *testing.F) {
	f.Add(409, []byte(`{"code":"conflict","message":"published by somebody else"}`), "3")
	f.Add(401, []byte(`{"code":"unknown-token","message":"\u001b[2J\u009b31m\n\u202eok"}`), "-5")
	f.Add(503, []byte("<html>"), "Sun, 22 Nov 2099 03:00:00 GMT")
	f.Add(0, []byte(`{"message":5}`), "99999999999999999999")
	f.Add(422, []byte(`{"message":"`+strings.Repeat("é", 400)+`"}`), "")
	f.Fuzz(func(t *testing.T, status int, answer []byte, after string) {
		err := statusError(status, answer)
		var e *StatusError
		if !errors.As(err, &e) || errors.Unwrap(err) == nil {
			t.Fatalf("error is %v", err)
		}
		text := err.Error()
		if len(text) > 500 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("a person is shown %q", text)
		}
		if wait := retryAfter(http.Header{"Retry-After": {after}}); wait < 0 || wait > 200*365*24*time.Hour {
			t.Errorf("%q is a wait of %v", after, wait)
		}
	})
}
