package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"livepatch/agent/internal/config"
)

// certificate returns a certificate in PEM form.
func certificate(tb testing.TB, name string) string {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// The table of keys says each default twice, in words and as a field: a value
// that is set to the words must give the field.
func TestDefaultsAreWhatTheListShows(t *testing.T) {
	c := config.Default()
	for _, e := range config.Default().List() {
		if err := c.Set(e.Key, e.Value); err != nil {
			t.Errorf("default of %s: %v", e.Key, err)
		}
	}
	c.CheckIntervalSet = false
	if diff := cmp.Diff(config.Default(), c, cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
		t.Errorf("defaults differ (-field +words):\n%s", diff)
	}
}

func TestListIsInTheDocumentedOrder(t *testing.T) {
	want := []config.Entry{
		{Key: "http-proxy", Value: ""},
		{Key: "https-proxy", Value: ""},
		{Key: "no-proxy", Value: ""},
		{Key: "remote-server", Value: "https://livepatch.canonical.com"},
		{Key: "ca-certs", Value: ""},
		{Key: "dial-timeout", Value: "12s"},
		{Key: "check-interval", Value: "60"},
		{Key: "log-level", Value: "warning"},
		{Key: "tls-patch-download", Value: "false"},
		{Key: "cutoff-date", Value: ""},
		{Key: "patch-delay", Value: "0"},
		{Key: "skip-patches", Value: ""},
		{Key: "pin-patch", Value: ""},
		{Key: "maintenance-window", Value: ""},
	}
	if diff := cmp.Diff(want, config.Default().List()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

func TestSet(t *testing.T) {
	tests := map[string]struct {
		key, value string
		want       string // as Get returns it
		wantErr    string
	}{
		"http proxy":                        {"http-proxy", "http://proxy.example.com:3128", "http://proxy.example.com:3128", ""},
		"proxy with a slash":                {"https-proxy", "HTTP://proxy.example.com:3128/", "http://proxy.example.com:3128", ""},
		"proxy with a password":             {"https-proxy", "https://me:secret@proxy.example.com", "https://me:secret@proxy.example.com", ""},
		"socks5 proxy":                      {"http-proxy", "socks5://127.0.0.1:1080", "socks5://127.0.0.1:1080", ""},
		"proxy with a slip of the scheme":   {"https-proxy", "htp://x", "", `cannot set https-proxy: "htp://x" has scheme "htp", need http, https or socks5, such as http://host.example.com:8080`},
		"proxy without a scheme":            {"http-proxy", "proxy.example.com:3128", "", `cannot set http-proxy: "proxy.example.com:3128" has no scheme, need http, https or socks5, such as http://host.example.com:8080`},
		"proxy without a host":              {"http-proxy", "http://:3128", "", `cannot set http-proxy: "http://:3128" has no host, need http, https or socks5, such as http://host.example.com:8080`},
		"proxy with a path":                 {"http-proxy", "http://proxy.example.com/pac", "", `cannot set http-proxy: "http://proxy.example.com/pac" has a path, need a URL such as http://proxy.example.com:3128`},
		"proxy on a port too high":          {"http-proxy", "http://proxy.example.com:65536", "", `cannot set http-proxy: "http://proxy.example.com:65536" has port "65536", need http, https or socks5, such as http://host.example.com:8080`},
		"proxy with a line break":           {"http-proxy", "http://a\nb", "", `cannot set http-proxy: "http://a\nb" has a space or control character in it, need http, https or socks5, such as http://host.example.com:8080`},
		"bad proxy keeps its password":      {"https-proxy", "htp://me:secret@proxy.example.com", "", `cannot set https-proxy: "htp://me:xxxxx@proxy.example.com" has scheme "htp", need http, https or socks5, such as http://host.example.com:8080`},
		"not even a URL keeps its password": {"https-proxy", "http://me:%zz@proxy", "", `cannot set https-proxy: "http://xxxxx@proxy" is not a URL, need http, https or socks5, such as http://host.example.com:8080`},

		"no proxy":                {"no-proxy", "localhost, .example.com,10.0.0.0/8,[::1]:80", "localhost,.example.com,10.0.0.0/8,[::1]:80", ""},
		"no proxy for nobody":     {"no-proxy", " , ", "", `cannot set no-proxy: " , " names no host, need hosts, domains or networks separated by commas`},
		"no proxy with semicolon": {"no-proxy", "a;b", "", `cannot set no-proxy: "a;b" is not a host, need hosts, domains or networks separated by commas, such as localhost,.example.com,10.0.0.0/8`},

		"server":                        {"remote-server", "https://livepatch.example.com:8443/lp", "https://livepatch.example.com:8443/lp", ""},
		"server with slashes at end":    {"remote-server", "https://livepatch.example.com//", "https://livepatch.example.com", ""},
		"server over plain HTTP":        {"remote-server", "http://livepatch.example.com", "", `cannot set remote-server: "http://livepatch.example.com" is not encrypted and tokens would travel in clear, need https://`},
		"server over plain Http":        {"remote-server", "Http://livepatch.example.com", "", `cannot set remote-server: "Http://livepatch.example.com" is not encrypted and tokens would travel in clear, need https://`},
		"server with a user":            {"remote-server", "https://me:secret@livepatch.example.com", "", `cannot set remote-server: "https://me:xxxxx@livepatch.example.com" holds a user name, need https://host[:port][/path]`},
		"server with a query":           {"remote-server", "https://livepatch.example.com?x=1", "", `cannot set remote-server: "https://livepatch.example.com?x=1" has a query or fragment, need https, such as https://host.example.com:8080`},
		"server with an empty fragment": {"remote-server", "https://livepatch.example.com/#", "https://livepatch.example.com", ""},
		"server with an empty port":     {"remote-server", "https://livepatch.example.com:", "", `cannot set remote-server: "https://livepatch.example.com:" has an empty port, need https, such as https://host.example.com:8080`},

		"dial timeout":                {"dial-timeout", "90s", "1m30s", ""},
		"dial timeout of an hour":     {"dial-timeout", "60m", "1h", ""},
		"dial timeout without a unit": {"dial-timeout", "12", "", `cannot set dial-timeout: "12" is not a duration, need a number with s, m or h, such as 12s`},
		"dial timeout too short":      {"dial-timeout", "1ms", "", `cannot set dial-timeout: "1ms" is out of range, need 1s to 1h`},

		"check interval":          {"check-interval", "090", "90", ""},
		"no check-ins":            {"check-interval", "0", "0", ""},
		"check interval short":    {"check-interval", "59", "", `cannot set check-interval: "59" is out of range, need 60 to 10080 minutes, or 0 for no automatic check-ins`},
		"check interval long":     {"check-interval", "10081", "", `cannot set check-interval: "10081" is out of range, need 60 to 10080 minutes, or 0 for no automatic check-ins`},
		"check interval, a word":  {"check-interval", "1h", "", `cannot set check-interval: "1h" is not a number of minutes, need 60 to 10080, or 0 for no automatic check-ins`},
		"check interval negative": {"check-interval", "-60", "", `cannot set check-interval: "-60" is not a number of minutes, need 60 to 10080, or 0 for no automatic check-ins`},

		"log level":           {"log-level", "debug", "debug", ""},
		"log level of others": {"log-level", "trace", "", `cannot set log-level: "trace" is not a level, need debug, info, notice, warning or error`},
		"tls":                 {"tls-patch-download", "true", "true", ""},
		"tls perhaps":         {"tls-patch-download", "yes", "", `cannot set tls-patch-download: "yes" is neither true nor false`},

		"cutoff date":               {"cutoff-date", "2024-02-01T02:00:00.5+02:00", "2024-02-01T00:00:00Z", ""},
		"cutoff date without time":  {"cutoff-date", "2024-02-01", "", `cannot set cutoff-date: "2024-02-01" is not a date, need the form 2024-02-01T00:00:00Z`},
		"cutoff date in the future": {"cutoff-date", "9999-01-01T00:00:00Z", "", `cannot set cutoff-date: "9999-01-01T00:00:00Z" is in the future, need a date in the past`},

		"patch delay":                {"patch-delay", "36h", "1d12h", ""},
		"patch delay of weeks":       {"patch-delay", "1w2d", "1w2d", ""},
		"no patch delay":             {"patch-delay", "0s", "0", ""},
		"patch delay without a unit": {"patch-delay", "5", "", `cannot set patch-delay: "5" is not a delay, need 0 or numbers with s, m, h, d or w, such as 12h or 1w2d`},
		"patch delay in years":       {"patch-delay", "1y", "", `cannot set patch-delay: "1y" is not a delay, need 0 or numbers with s, m, h, d or w, such as 12h or 1w2d`},
		"patch delay too long":       {"patch-delay", "53w", "", `cannot set patch-delay: "53w" is too long, need at most 52w`},
		"patch delay far too long":   {"patch-delay", "999999999w", "", `cannot set patch-delay: "999999999w" is too long, need at most 52w`},
		"patch delay adds up":        {"patch-delay", "52w1s", "", `cannot set patch-delay: "52w1s" is too long, need at most 52w`},

		"certificates that are text": {"ca-certs", "hello", "", "cannot set ca-certs: there is no certificate in it, need certificates in PEM form"},
		"a key among certificates":   {"ca-certs", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "", "cannot set ca-certs: there is a private key in it, need certificates only"},
		"a request for one":          {"ca-certs", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "", `cannot set ca-certs: there is a "CERTIFICATE REQUEST" in it, need certificates in PEM form`},
		"too many certificates":      {"ca-certs", strings.Repeat("x", 1<<20+1), "", "cannot set ca-certs: 1048577 bytes are too many, need at most 1048576"},

		"versions to skip":          {"skip-patches", " 113.1, 114.1,", "113.1,114.1", ""},
		"a name among them":         {"skip-patches", "113.1,the bad one", "", `cannot set skip-patches: "the bad one" is not a version, need versions of patches separated by commas, such as 113.1,114.1`},
		"no version among them":     {"skip-patches", ",", "", `cannot set skip-patches: "," names 0 versions, need 1 to 200, such as 113.1,114.1`},
		"a version to stay at":      {"pin-patch", "113.1", "113.1", ""},
		"two of them":               {"pin-patch", "113.1,114.1", "", `cannot set pin-patch: "113.1,114.1" is not a version, need that of a patch, such as 113.1`},
		"a maintenance window":      {"maintenance-window", "SUN 02:00-04:00,daily 22:00-06:00", "Sun 02:00-04:00, daily 22:00-06:00", ""},
		"no maintenance window":     {"maintenance-window", "at night", "", `cannot set maintenance-window: "at night" is not a window, need a day and two times, such as Sun 02:00-04:00 or daily 22:00-06:00`},
		"a key that does not exist": {"interval", "30", "", `cannot set "interval": there is no such key`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c := config.Default()
			err := c.Set(tc.key, tc.value)
			if text := errText(err); text != tc.wantErr {
				t.Fatalf("error = %q,\n         want %q", text, tc.wantErr)
			}
			if err != nil {
				if !errors.Is(err, config.ErrInvalid) && !errors.Is(err, config.ErrUnknownKey) {
					t.Errorf("%v matches no sentinel", err)
				}
				if diff := cmp.Diff(config.Default().List(), c.List()); diff != "" {
					t.Errorf("a refused value left a trace:\n%s", diff)
				}
				return
			}
			if got, err := c.Get(tc.key); err != nil || got != tc.want {
				t.Errorf("value = %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestBadCertificateSaysSo(t *testing.T) {
	c := config.Default()
	err := c.Set("ca-certs", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	if !errors.Is(err, config.ErrInvalid) || !strings.HasPrefix(err.Error(), "cannot set ca-certs: a certificate cannot be read: ") {
		t.Errorf("error = %v", err)
	}
}

func TestCertificatesLoseWhatStandsAroundThem(t *testing.T) {
	one, two := certificate(t, "one"), certificate(t, "two")
	c := config.Default()
	if err := c.Set("ca-certs", "# our own\n"+one+"\nand\n"+two); err != nil {
		t.Fatal(err)
	}
	if c.CACerts != one+two {
		t.Errorf("ca-certs = %q", c.CACerts)
	}
}

func TestSetFillsTheFields(t *testing.T) {
	ca := certificate(t, "ca")
	c := config.Default()
	for key, value := range map[string]string{
		"http-proxy": "http://a:1", "https-proxy": "http://b:2", "no-proxy": "c", "remote-server": "https://d/",
		"ca-certs": ca, "dial-timeout": "3s", "check-interval": "120", "log-level": "info",
		"tls-patch-download": "true", "cutoff-date": "2024-02-01T00:00:00Z", "patch-delay": "1d",
		"skip-patches": "1.1,2.1", "pin-patch": "3.1", "maintenance-window": "Sun 02:00-04:00",
	} {
		if err := c.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	want := config.Config{
		HTTPProxy: "http://a:1", HTTPSProxy: "http://b:2", NoProxy: "c", RemoteServer: "https://d",
		CACerts: ca, DialTimeout: 3 * time.Second, CheckInterval: 2 * time.Hour, CheckIntervalSet: true,
		LogLevel: config.Info, TLSPatchDownload: true,
		CutoffDate: time.Date(2024, 2, 1, 0, 0, 0, 0, time.UTC), PatchDelay: 24 * time.Hour,
		SkipPatches: []string{"1.1", "2.1"}, PinPatch: "3.1",
		Maintenance: config.Windows{{Days: []time.Weekday{time.Sunday}, From: 2 * time.Hour, To: 4 * time.Hour}},
	}
	if diff := cmp.Diff(want, c, cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

func TestUnsetGivesTheDefaultAgain(t *testing.T) {
	for _, unset := range []func(*config.Config, string) error{
		(*config.Config).Unset,
		func(c *config.Config, key string) error { return c.Set(key, "") },
	} {
		c := config.Default()
		for key, value := range map[string]string{"check-interval": "0", "log-level": "debug"} {
			if err := c.Set(key, value); err != nil {
				t.Fatal(err)
			}
		}
		if err := unset(&c, "check-interval"); err != nil {
			t.Fatal(err)
		}
		if c.CheckInterval != time.Hour || c.CheckIntervalSet || c.LogLevel != config.Debug {
			t.Errorf("config = %+v", c)
		}
		if err := unset(&c, "interval"); !errors.Is(err, config.ErrUnknownKey) {
			t.Errorf("error = %v, want that there is no such key", err)
		}
	}
}

func TestCopiesAreApart(t *testing.T) {
	a := config.Default()
	if err := a.Set("log-level", "info"); err != nil {
		t.Fatal(err)
	}
	b := a
	if err := b.Set("log-level", "error"); err != nil {
		t.Fatal(err)
	}
	if got, _ := a.Get("log-level"); got != "info" || a.LogLevel != config.Info {
		t.Errorf("a = %s, %s", got, a.LogLevel)
	}
}

func TestOrderPutsCertificatesBeforeTheServer(t *testing.T) {
	got := config.Order([]string{"remote-server", "nonsense", "ca-certs", "https-proxy", "dial-timeout"})
	want := []string{"https-proxy", "ca-certs", "dial-timeout", "remote-server", "nonsense"}
	if !slices.Equal(got, want) {
		t.Errorf("order = %q, want %q", got, want)
	}
	all := config.Order(config.Keys())
	if all[len(all)-1] != "remote-server" {
		t.Errorf("order = %q, want remote-server last", all)
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(config.Keys())), slices.Sorted(slices.Values(all))); diff != "" {
		t.Errorf("keys are lost or made up:\n%s", diff)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	c := config.Default()
	if _, err := c.Apply(map[string]string{"log-level": "debug", "remote-server": "http://x"}); !errors.Is(err, config.ErrInvalid) {
		t.Errorf("error = %v", err)
	}
	if diff := cmp.Diff(config.Default().List(), c.List()); diff != "" {
		t.Errorf("half of it was applied:\n%s", diff)
	}
	changed, err := c.Apply(map[string]string{"remote-server": "https://x/", "log-level": "warning", "patch-delay": "", "https-proxy": "http://p"})
	if err != nil {
		t.Fatal(err)
	}
	// The level is the default, but from now on it is the operator's choice.
	if want := []string{"log-level", "https-proxy", "remote-server"}; !slices.Equal(changed, want) {
		t.Errorf("changed = %q, want %q", changed, want)
	}
}

func TestJSONHasAllKeysAsStrings(t *testing.T) {
	c := config.Default()
	if err := c.Set("check-interval", "90"); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got["check-interval"] != "90" || got["remote-server"] != config.DefaultRemoteServer || len(got) != len(config.Keys()) {
		t.Errorf("JSON = %s", b)
	}
}

// The date is compared with the clock when it is set, and only then.
func TestCutoffDateBecomesPossibleWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config.Default()
		tomorrow := time.Now().Add(24 * time.Hour).Format(time.RFC3339)
		if err := c.Set("cutoff-date", tomorrow); !errors.Is(err, config.ErrInvalid) {
			t.Errorf("error = %v", err)
		}
		time.Sleep(25 * time.Hour)
		if err := c.Set("cutoff-date", tomorrow); err != nil {
			t.Error(err)
		}
	})
}

// FuzzSet holds that a value that is accepted is accepted in its canonical form
// too, and that a refusal is one line.
func FuzzSet(f *testing.F) {
	values := map[string][]string{
		"http-proxy": {"http://a:1", "socks5://u:p@[::1]:1080/"}, "no-proxy": {"a, b"}, "remote-server": {"https://a//"},
		"dial-timeout": {"1h0m0s", "1.5s"}, "check-interval": {"0060"}, "cutoff-date": {"2024-02-01T00:00:00+14:00"},
		"patch-delay": {"1d1d", "0w"}, "ca-certs": {certificate(f, "x")},
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		for _, v := range values[key] {
			f.Add(key, v)
		}
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		c := config.Default()
		if err := c.Set(key, value); err != nil {
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error = %q", err)
			}
			return
		}
		canonical, err := c.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		again := config.Default()
		if err := again.Set(key, canonical); err != nil {
			t.Fatalf("%q became %q: %v", value, canonical, err)
		}
		if diff := cmp.Diff(c, again, cmpopts.IgnoreUnexported(config.Config{})); diff != "" && value != "" {
			t.Errorf("%q became %q:\n%s", value, canonical, diff)
		}
	})
}
