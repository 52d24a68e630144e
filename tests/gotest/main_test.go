package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	tests := map[string]struct {
		events  []string
		want    string // printed
		wantErr string // of a strict run
	}{
		"a package that passes is one line": {
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
				`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}`,
				`{"Action":"output","Package":"p","Output":"PASS\n"}`,
				`{"Action":"output","Package":"p","Output":"ok  \tp\t0.100s\n"}`,
				`{"Action":"pass","Package":"p","Elapsed":0.1}`,
			},
			want: "ok  \tp\t0.100s\n",
		},
		"a failure shows what the test printed": {
			events: []string{
				`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: state = 1, want 2\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"--- FAIL: TestA (0.00s)\n"}`,
				`{"Action":"fail","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Output":"FAIL\tp\t0.100s\n"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			want: "    a_test.go:3: state = 1, want 2\n--- FAIL: TestA (0.00s)\nFAIL\tp\t0.100s\n",
		},
		"a skip is named with its reason": {
			events: []string{
				`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: no QEMU\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}`,
				`{"Action":"skip","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Output":"ok  \tp\t0.100s\n"}`,
				`{"Action":"pass","Package":"p"}`,
			},
			want:    "ok  \tp\t0.100s\n",
			wantErr: "p TestA: a_test.go:3: no QEMU",
		},
		"a package without tests is not a skip, but nothing ran": {
			events: []string{
				`{"Action":"output","Package":"p","Output":"?   \tp\t[no test files]\n"}`,
				`{"Action":"skip","Package":"p"}`,
			},
			wantErr: "no test ran",
		},
		"a build failure shows the compiler's words": {
			events: []string{
				`{"ImportPath":"p","Action":"build-output","Output":"p/a.go:1:1: expected 'package'\n"}`,
				`{"ImportPath":"p","Action":"build-fail"}`,
				`{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			want:    "p/a.go:1:1: expected 'package'\nFAIL\tp [build failed]\n",
			wantErr: "no test ran",
		},
		"a slow test has its line, its parts have not": {
			events: []string{
				`{"Action":"pass","Package":"p","Test":"TestBoot/first","Elapsed":20}`,
				`{"Action":"pass","Package":"p","Test":"TestBoot","Elapsed":20.5}`,
			},
			want: "--- PASS: TestBoot (20.5s)\n",
		},
		"what is no event is passed on": {
			events: []string{"go: downloading example.com v1.0.0"},
			want:   "go: downloading example.com v1.0.0\n", wantErr: "no test ran",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
			if err := r.read(strings.NewReader(strings.Join(tc.events, "\n") + "\n")); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != tc.want {
				t.Errorf("printed %q, want %q", got, tc.want)
			}
			if strings.HasPrefix(name, "a failure") {
				return // go test itself exits non-zero
			}
			err := r.complete()
			if tc.wantErr == "" && err != nil {
				t.Errorf("complete = %v, want no error", err)
			}
			if tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("complete = %v, want %q", err, tc.wantErr)
			}
		})
	}
}
