package config

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"livepatch/internal/patch"
)

// Limits on values.
const (
	minCheckInterval = time.Hour
	maxCheckInterval = 7 * 24 * time.Hour
	minDialTimeout   = time.Second
	maxDialTimeout   = time.Hour
	maxPatchDelay    = 52 * 7 * 24 * time.Hour
	maxValue         = 1 << 20 // bytes, of the longest: ca-certs
	maxSkipped       = 200     // versions in skip-patches
)

// A key is one thing that can be configured.
type key struct {
	name string
	def  string // the default in canonical form
	// put stores a value in its field and returns it in canonical form. The
	// error says what is wrong with the value and what is needed.
	put func(c *Config, value string) (string, error)
}

// keys are all there are, in the order in which they are listed.
var keys = []key{
	{HTTPProxy, "", proxy(func(c *Config) *string { return &c.HTTPProxy })},
	{HTTPSProxy, "", proxy(func(c *Config) *string { return &c.HTTPSProxy })},
	{NoProxy, "", putNoProxy},
	{RemoteServer, DefaultRemoteServer, putRemoteServer},
	{CACerts, "", putCACerts},
	{DialTimeout, "12s", putDialTimeout},
	{CheckInterval, "60", putCheckInterval},
	{LogLevel, string(DefaultLogLevel), putLogLevel},
	{TLSPatchDownload, "false", putTLSPatchDownload},
	{CutoffDate, "", putCutoffDate},
	{PatchDelay, "0", putPatchDelay},
	{SkipPatches, "", putSkipPatches},
	{PinPatch, "", putPinPatch},
	{Maintenance, "", putMaintenance},
}

func lookup(name string) (key, error) {
	i := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
	if i < 0 {
		return key{}, ErrUnknownKey
	}
	return keys[i], nil
}

// proxy returns a put for a field that holds the URL of a proxy.
func proxy(field func(*Config) *string) func(*Config, string) (string, error) {
	return func(c *Config, v string) (string, error) {
		u, err := parseURL(v, "http", "https", "socks5")
		if err != nil {
			return "", err
		}
		if u.Path != "" && u.Path != "/" {
			return "", fmt.Errorf("%q has a path, need a URL such as http://proxy.example.com:3128", u.Redacted())
		}
		u.Path = ""
		*field(c) = u.String()
		return u.String(), nil
	}
}

func putNoProxy(c *Config, v string) (string, error) {
	var hosts []string
	for host := range strings.SplitSeq(v, ",") {
		host = strings.TrimSpace(host)
		if host == "" {
			continue
		}
		if strings.ContainsFunc(host, notInHost) {
			return "", fmt.Errorf("%q is not a host, need hosts, domains or networks separated by commas, such as localhost,.example.com,10.0.0.0/8", host)
		}
		hosts = append(hosts, host)
	}
	if len(hosts) == 0 {
		return "", fmt.Errorf("%q names no host, need hosts, domains or networks separated by commas", v)
	}
	c.NoProxy = strings.Join(hosts, ",")
	return c.NoProxy, nil
}

// notInHost tells whether a character has no place in a host, domain, address,
// network or port.
func notInHost(r rune) bool {
	return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(".-_*:/[]", r)
}

func putRemoteServer(c *Config, v string) (string, error) {
	if len(v) >= 7 && strings.EqualFold(v[:7], "http://") {
		return "", fmt.Errorf("%q is not encrypted and tokens would travel in clear, need https://", redact(v))
	}
	u, err := parseURL(v, "https")
	if err != nil {
		return "", err
	}
	if u.User != nil {
		return "", fmt.Errorf("%q holds a user name, need https://host[:port][/path]", u.Redacted())
	}
	c.RemoteServer = strings.TrimRight(u.String(), "/")
	return c.RemoteServer, nil
}

// parseURL reads an absolute URL of one of the schemes. Errors do not show the
// password that it may hold.
func parseURL(v string, schemes ...string) (*url.URL, error) {
	need := "need " + orList(schemes) + ", such as " + schemes[0] + "://host.example.com:8080"
	if strings.ContainsFunc(v, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return nil, fmt.Errorf("%q has a space or control character in it, %s", redact(v), need)
	}
	if !strings.Contains(v, "://") {
		return nil, fmt.Errorf("%q has no scheme, %s", redact(v), need)
	}
	u, err := url.Parse(v)
	if err != nil {
		// The text of err would repeat the URL with its password.
		return nil, fmt.Errorf("%q is not a URL, %s", redact(v), need)
	}
	u.Scheme = strings.ToLower(u.Scheme)
	if !slices.Contains(schemes, u.Scheme) {
		return nil, fmt.Errorf("%q has scheme %q, %s", u.Redacted(), u.Scheme, need)
	}
	if err := checkAuthority(u); err != nil {
		return nil, fmt.Errorf("%q %w, %s", u.Redacted(), err, need)
	}
	return u, nil
}

// checkAuthority refuses what a URL of a server or proxy must not have. The
// error continues a sentence that names the URL.
func checkAuthority(u *url.URL) error {
	if u.Hostname() == "" {
		return errors.New("has no host")
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return errors.New("has a query or fragment")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("has port %q", p)
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return errors.New("has an empty port")
	}
	return nil
}

// redact hides what stands before the last @ of a text that should be a URL.
func redact(v string) string {
	at := strings.LastIndex(v, "@")
	if at < 0 {
		return v
	}
	scheme, _, ok := strings.Cut(v[:at], "://")
	if !ok {
		return "xxxxx" + v[at:]
	}
	return scheme + "://xxxxx" + v[at:]
}

// orList joins words as in "http, https or socks5".
func orList(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func putCACerts(c *Config, v string) (string, error) {
	const need = "need certificates in PEM form"
	if len(v) > maxValue {
		return "", fmt.Errorf("%d bytes are too many, need at most %d", len(v), maxValue)
	}
	var out strings.Builder
	for rest := []byte(v); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return "", errors.New("there is a private key in it, need certificates only")
		}
		if block.Type != "CERTIFICATE" {
			return "", fmt.Errorf("there is a %q in it, %s", block.Type, need)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", fmt.Errorf("a certificate cannot be read: %w", err)
		}
		// Written anew, without headers and whatever stood around the blocks.
		if err := pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return "", err
		}
	}
	if out.Len() == 0 {
		return "", errors.New("there is no certificate in it, " + need)
	}
	c.CACerts = out.String()
	return c.CACerts, nil
}

func putDialTimeout(c *Config, v string) (string, error) {
	d, err := time.ParseDuration(v)
	if err != nil {
		return "", fmt.Errorf("%q is not a duration, need a number with s, m or h, such as 12s", v)
	}
	if d < minDialTimeout || d > maxDialTimeout {
		return "", fmt.Errorf("%q is out of range, need 1s to 1h", v)
	}
	c.DialTimeout = d
	return formatDuration(d), nil
}

func putCheckInterval(c *Config, v string) (string, error) {
	minutes, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return "", fmt.Errorf("%q is not a number of minutes, need 60 to 10080, or 0 for no automatic check-ins", v)
	}
	d := time.Duration(minutes) * time.Minute
	if d != 0 && (d < minCheckInterval || d > maxCheckInterval) {
		return "", fmt.Errorf("%q is out of range, need 60 to 10080 minutes, or 0 for no automatic check-ins", v)
	}
	c.CheckInterval = d
	return strconv.FormatUint(minutes, 10), nil
}

func putLogLevel(c *Config, v string) (string, error) {
	switch l := Level(v); l {
	case Debug, Info, Notice, Warning, Error:
		c.LogLevel = l
		return v, nil
	}
	return "", fmt.Errorf("%q is not a level, need debug, info, notice, warning or error", v)
}

func putTLSPatchDownload(c *Config, v string) (string, error) {
	if v != "true" && v != "false" {
		return "", fmt.Errorf("%q is neither true nor false", v)
	}
	c.TLSPatchDownload = v == "true"
	return v, nil
}

func putCutoffDate(c *Config, v string) (string, error) {
	t, err := parseDate(v)
	if err != nil {
		return "", err
	}
	c.CutoffDate = t
	return t.Format(time.RFC3339), nil
}

// parseDate reads a date of RFC 3339 and drops fractions of a second.
func parseDate(v string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, v)
	if err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
		return time.Time{}, fmt.Errorf("%q is not a date, need the form 2024-02-01T00:00:00Z", v)
	}
	return t.UTC().Truncate(time.Second), nil
}

// checkPast refuses a date that is not before now: it would hold back nothing
// today and everything from some day on.
func checkPast(v string, now time.Time) error {
	if t, err := parseDate(v); err == nil && t.After(now) {
		return fmt.Errorf("%q is in the future, need a date in the past", v)
	}
	return nil
}

func putPatchDelay(c *Config, v string) (string, error) {
	d, err := parseDelay(v)
	if err != nil {
		return "", err
	}
	c.PatchDelay = d
	return formatDelay(d), nil
}

// delayUnits are the units of patch-delay, longest first.
var delayUnits = []struct {
	letter byte
	length time.Duration
}{
	{'w', 7 * 24 * time.Hour},
	{'d', 24 * time.Hour},
	{'h', time.Hour},
	{'m', time.Minute},
	{'s', time.Second},
}

// parseDelay reads "0", or whole numbers that each have a unit: "2d", "1w12h".
func parseDelay(v string) (time.Duration, error) {
	if v == "0" {
		return 0, nil
	}
	bad := fmt.Errorf("%q is not a delay, need 0 or numbers with s, m, h, d or w, such as 12h or 1w2d", v)
	var sum time.Duration
	for rest := v; rest != ""; {
		n := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if n < 1 || n > 9 {
			return 0, bad
		}
		count, err := strconv.ParseInt(rest[:n], 10, 64)
		if err != nil {
			return 0, bad
		}
		unit := slices.IndexFunc(delayUnits, func(u struct {
			letter byte
			length time.Duration
		}) bool {
			return u.letter == rest[n]
		})
		if unit < 0 {
			return 0, bad
		}
		if count > int64(maxPatchDelay/delayUnits[unit].length) {
			return 0, fmt.Errorf("%q is too long, need at most 52w", v)
		}
		sum += time.Duration(count) * delayUnits[unit].length
		if sum > maxPatchDelay {
			return 0, fmt.Errorf("%q is too long, need at most 52w", v)
		}
		rest = rest[n+1:]
	}
	return sum, nil
}

// formatDelay writes d so that parseDelay reads it: "1w2d", or "0".
func formatDelay(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	var out strings.Builder
	for _, u := range delayUnits {
		if n := int64(d / u.length); n > 0 {
			fmt.Fprintf(&out, "%d%c", n, u.letter)
			d %= u.length
		}
	}
	return out.String()
}

func putSkipPatches(c *Config, v string) (string, error) {
	var versions []string
	for version := range strings.SplitSeq(v, ",") {
		if version = strings.TrimSpace(version); version == "" {
			continue
		}
		if err := patch.CheckWord("a version", version); err != nil {
			return "", fmt.Errorf("%.40q is not a version, need versions of patches separated by commas, such as 113.1,114.1", version)
		}
		versions = append(versions, version)
	}
	if len(versions) == 0 || len(versions) > maxSkipped {
		return "", fmt.Errorf("%.40q names %d versions, need 1 to %d, such as 113.1,114.1", v, len(versions), maxSkipped)
	}
	c.SkipPatches = versions
	return strings.Join(versions, ","), nil
}

func putPinPatch(c *Config, v string) (string, error) {
	if err := patch.CheckWord("a version", v); err != nil {
		return "", fmt.Errorf("%.40q is not a version, need that of a patch, such as 113.1", v)
	}
	c.PinPatch = v
	return v, nil
}

func putMaintenance(c *Config, v string) (string, error) {
	windows, err := ParseWindows(v)
	if err != nil {
		return "", err
	}
	c.Maintenance = windows
	return windows.String(), nil
}

// formatDuration writes d without parts that are zero: "1h", not "1h0m0s".
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
