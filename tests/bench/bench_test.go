package main

import (
	"strings"
	"testing"
	"time"
)

func TestTargets(t *testing.T) {
	tests := map[string]struct {
		row  row
		want bool
	}{
		"below a limit":                     {row{Measured: 19, Limit: 20}, true},
		"above a limit":                     {row{Measured: 21, Limit: 20}, false},
		"a limit of nothing, kept":          {row{Measured: 0, Limit: 0}, true},
		"a limit of nothing, missed":        {row{Measured: 1, Limit: 0}, false},
		"within the ratio":                  {row{Measured: 15, Peer: 10, Limit: 1.5, Relative: true}, true},
		"beyond the ratio":                  {row{Measured: 16, Peer: 10, Limit: 1.5, Relative: true}, false},
		"a ratio to a peer that is missing": {row{Measured: 1, Limit: 1.5, Relative: true}, false},
		"above a lower limit":               {row{Measured: 6, Peer: 10, Limit: 0.5, Relative: true, AtLeast: true}, true},
		"below a lower limit":               {row{Measured: 4, Peer: 10, Limit: 0.5, Relative: true, AtLeast: true}, false},
		"only told":                         {row{Measured: 1e9, Informative: true}, true},
		"not measured":                      {row{Informative: true, Err: "no nginx"}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tc.row.met(); got != tc.want {
				t.Errorf("met = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestTableSaysWhatWasMissed(t *testing.T) {
	var out strings.Builder
	err := write(&out, []row{
		{What: "RSS", Unit: "MB", Measured: 19.82, Limit: 20},
		{What: "CPU", Unit: "µs", Measured: 963, Peer: 547, PeerName: "nginx", Limit: 1.5, Relative: true},
		{What: "insertion", Err: "no machine\nits log"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"19.8 MB", "≤ 20 MB", "pass", "547 µs", "1.76×", "≤ 1.5×", "MISS: no machine\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestParseStat(t *testing.T) {
	tests := map[string]struct {
		stat string
		want time.Duration
		ok   bool
	}{
		"usual":                           {"7 (nginx) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 1 1 1", 2 * time.Second, true},
		"a name with spaces and brackets": {"7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 0 0 20 0", 30 * time.Millisecond, true},
		"cut off":                         {"7 (nginx) S 1 7", 0, false},
		"empty":                           {"", 0, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseStat([]byte(tc.stat))
			if (err == nil) != tc.ok || got != tc.want {
				t.Errorf("parseStat = %v, %v, want %v", got, err, tc.want)
			}
		})
	}
}

// The names are those of a repository that livepatch-publish generated.
func TestBin(t *testing.T) {
	if got := bin("debian/lkp_Debian_6_1_0_1_amd64_1.x86_64.ko"); got != "debian-36a" {
		t.Errorf("bin = %s, want debian-36a", got)
	}
}

func TestAddressOfTheServer(t *testing.T) {
	tests := map[string]string{
		`time=2026-11-22T04:00:19Z level=INFO msg=Listening addr=127.0.0.1:18443 ops_addr=127.0.0.1:19443`: "127.0.0.1:18443",
		`{"level":"INFO","msg":"Listening","addr":"127.0.0.1:37387","ops_addr":"127.0.0.1:46133"}`:         "127.0.0.1:37387",
		`level=INFO msg=Starting`: "",
	}
	for line, want := range tests {
		p := &process{}
		p.logs.buf.WriteString(line)
		if got := p.addr(); got != want {
			t.Errorf("addr of %q = %q, want %q", line, got, want)
		}
	}
}
