package tuf_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"livepatch/internal/tuftest"
)

// A fieldKind is a way to make a field wrong, or to write it in another way. It
// gets the whole file, and the object or list that holds the field, and returns
// what stands in the place of the latter.
type fieldKind func(m *mutator, file, parent any, key string) any

var fieldKinds = allFieldKinds()

// allFieldKinds joins the mutations that need no choice to those that do.
func allFieldKinds() map[string]fieldKind {
	kinds := map[string]fieldKind{
		"one more or less": value(func(m *mutator, old any) any {
			if n, ok := old.(int); ok {
				return n + []int{1, -1, 2, n, -2 * n}[m.IntN(5)]
			}
			return old
		}),
		"a number": value(func(m *mutator, _ any) any { return tuftest.Literal(numbers[m.IntN(len(numbers))]) }),
		"flipped": value(func(_ *mutator, old any) any {
			if b, ok := old.(bool); ok {
				return !b
			}
			return old
		}),
		"another text": value(func(m *mutator, old any) any {
			if s, ok := old.(string); ok {
				return m.text(s)
			}
			return old
		}),
		"a pattern": value(func(m *mutator, _ any) any { return patterns[m.IntN(len(patterns))] }),
		"a time":    value(func(m *mutator, _ any) any { return times[m.IntN(len(times))] }),
		"list reordered": list(func(m *mutator, l []any) []any {
			m.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] })
			return l
		}),
		"list cut":         list(func(m *mutator, l []any) []any { return l[:m.IntN(len(l))] }),
		"element repeated": list(func(m *mutator, l []any) []any { return append(l, l[m.IntN(len(l))]) }),
		"null in the list": list(func(m *mutator, l []any) []any { return slices.Insert(l, m.IntN(len(l)+1), any(nil)) }),
		"unknown field":    inside(func(m *mutator) any { return []any{1, "x", true, tuftest.Object{"y": 1}, []any{}}[m.IntN(5)] }),
		"unknown null":     inside(func(*mutator) any { return nil }),
		"from this file":   func(m *mutator, file, parent any, key string) any { return m.copied(file, parent, key) },
		"from another role": func(m *mutator, _, parent any, key string) any {
			_, r := m.pick()
			return m.copied(r.Signed, parent, key)
		},
		"escaped": escapeValue,
	}
	for name, f := range mutations {
		kinds[name] = func(_ *mutator, _, parent any, key string) any { return f(parent, key) }
	}
	return kinds
}

// numbers are spellings of numbers that parsers have disagreed on.
var numbers = []string{
	"0", "1", "2", "-1", "-0", "0.0", "1.0", "1.5", "-1.5", "1e0", "1E2", "1e-1", "1e400", "-1e400", "01", "+1", ".5", "1.", "0x1",
	"9007199254740991", "9007199254740992", "9007199254740993", "-9007199254740992", "4294967296", "2147483648",
	"9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616",
	strings.Repeat("9", 400), "0." + strings.Repeat("0", 400) + "1", "NaN", "Infinity", "1_000",
}

// patterns are path patterns that clients have read differently.
var patterns = []string{
	"", "*", "**", "*/*", "debian/*", "debian/**", "/debian/*", "./debian/*", "debian/../debian/*", "debian//*", "debian/", "debian", "?ebian/*",
	"debian/?*", "debian/l*o", "*bian/*.ko", "[d]ebian/*", "debian/[!x]*", "debian/[^x]*", `debian/\*`, `debian/\l*`, "debian/[", "debian/[a-", "debian/*\x00",
	"DEBIAN/*", "debian/{a,l}*", "d\u0435bian/*", "debian/*\u0301", "rollout/*", module, rollout,
}

// times are ways to write a time, of which one is right.
var times = []string{
	"2026-12-22T12:00:00Z", "2027-01-01T00:00:00Z", "2026-11-22T12:00:01Z", "2026-11-21T12:00:00Z", "2026-12-22T12:00:00.5Z", "2026-12-22T12:00:00+00:00",
	"2026-12-22T12:00:00-00:00", "2026-12-22T24:00:00Z", "2026-12-22T23:59:60Z", "2026-12-22 12:00:00Z", "2026-12-22t12:00:00z", "2026-12-22", "20261222T120000Z",
	"10000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-02-29T12:00:00Z", "1798000000", "2026-12-22T12:00:00", "2026-12-22T9:00:00Z",
}

// value returns a kind that puts f(old) in the place of a field.
func value(f func(m *mutator, old any) any) fieldKind {
	return func(m *mutator, _, parent any, key string) any {
		return tuftest.Path{key}.Edit(parent, func(old any) any { return f(m, old) })
	}
}

// list returns a kind for fields that are lists of at least one element.
func list(f func(m *mutator, l []any) []any) fieldKind {
	return value(func(m *mutator, old any) any {
		if l, ok := old.([]any); ok && len(l) > 0 {
			return f(m, slices.Clone(l))
		}
		return old
	})
}

// inside returns a kind that adds a field, which nobody knows, to an object.
func inside(f func(*mutator) any) fieldKind {
	return value(func(m *mutator, old any) any {
		if o, ok := old.(tuftest.Object); ok {
			o = maps.Clone(o)
			o["x"+fmt.Sprint(m.IntN(3))] = f(m)
			return o
		}
		return old
	})
}

// copied puts what stands elsewhere in the place of a field.
func (m *mutator) copied(from, parent any, key string) any {
	all := tuftest.Paths(from)
	q := all[m.IntN(len(all))]
	return put(tuftest.Copy(q.Get(from)))(parent, key)
}

// escapeValue writes the first character of a string as an escape, which means
// the same. See TestDeliberateDifferences for the strings that it leaves alone.
func escapeValue(_ *mutator, _, parent any, key string) any {
	return tuftest.Path{key}.Edit(parent, func(old any) any {
		s, ok := old.(string)
		if !ok || s == "" || s[0] >= 0x80 || slices.Contains([]string{"sig", "sha256", "expires"}, key) {
			return old
		}
		quoted := strings.TrimSpace(string(tuftest.Encode(s[1:])))
		return tuftest.Literal(fmt.Sprintf(`"\u%04x%s`, s[0], quoted[1:]))
	})
}

// text returns something that looks like old.
func (m *mutator) text(old string) any {
	variants := []any{
		strings.ToUpper(old), strings.ToLower(old), old + " ", " " + old, old + "x", "../" + old, old + "/..", old + "\x00", old + "\n", old + old,
		// Composed and not, invisible, from right to left, beyond 16 bits.
		old + "\u00e9", old + "e\u0301", old + "\u200b", "\ufeff" + old, "\u202e" + old, old + "\U0001f600", old + "\u2028", old + "\ufffd", old + "\u007f",
		old + "<&>", old + `\"`, strings.Replace(old, "a", "\u0430", 1), strings.Replace(old, "i", "\u0131", 1),
		// Surrogates alone, the wrong way round, and as one writes a pair.
		tuftest.Literal(`"\ud83d"`), tuftest.Literal(`"\ude00\ud83d"`), tuftest.Literal(`"\ud83d\ude00"`), tuftest.Literal("\"\xed\xa0\xbd\xed\xb8\x80\""),
		strings.TrimSuffix(old, "Z") + ".5Z", strings.TrimSuffix(old, "Z") + "+00:00", strings.Replace(old, "T12", "T9", 1), strings.Replace(old, "2026-1", "2027-1", 1),
		strings.Replace(old, "*", "?*", 1), strings.Replace(old, "*", "[a-z]*", 1), old,
	}
	if len(old) > 1 {
		variants = append(variants, old[:len(old)-1], old[1:])
	}
	return variants[m.IntN(len(variants))]
}

// A repoKind is a way to break more than one field.
type repoKind struct {
	name string
	do   func(m *mutator, name string)
}

var repoKinds = []repoKind{
	{"other signers", (*mutator).changeSigners},
	{"other signers", (*mutator).changeSigners},
	{"another root", (*mutator).addRoot},
	{"another root", (*mutator).addRoot},
	{"another delegation", (*mutator).addDelegation},
	{"another delegation", (*mutator).addDelegation},
	{"another version", (*mutator).moveVersion},
	{"time passes", (*mutator).passTime},
	{"signatures changed", (*mutator).changeSignatures},
	{"one key under two ids", (*mutator).aliasKey},
	{"threshold", (*mutator).changeThreshold},
	{"an older file", (*mutator).serveOld},
	{"a file of another role", (*mutator).serveOther},
	{"bytes of a file", (*mutator).serveDamaged},
	{"roots of a chain", (*mutator).serveOtherRoots},
	{"hashes in the snapshot", func(m *mutator, name string) {
		m.repo.HashBins = !m.repo.HashBins
		m.did(name, "snapshot", "%v", m.repo.HashBins)
	}},
}

func (m *mutator) keys() []tuftest.Key {
	names := []string{
		"root 1", "root 2", "root 3", "targets 1", "targets 2", "targets 3", "snapshot", "timestamp", "rollout",
		"debian builder", "debian approver", "new 1", "new 2",
	}
	m.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return keysOf(names[:1+m.IntN(5)]...)
}

func (m *mutator) changeSigners(kind string) {
	name, r := m.pick()
	switch m.IntN(4) {
	case 0:
		r.Signers = m.keys()
	case 1:
		r.Signers = append(slices.Clip(r.Signers), m.keys()...)
	case 2:
		if len(r.Signers) > 0 {
			i := m.IntN(len(r.Signers))
			r.Signers = slices.Delete(slices.Clone(r.Signers), i, i+1)
		}
	case 3:
		r.Signers = append(slices.Clip(r.Signers), tuftest.NewKey("stranger"))
	}
	slices.SortFunc(r.Signers, func(a, b tuftest.Key) int { return strings.Compare(a.ID, b.ID) })
	if m.IntN(8) > 0 {
		r.Signers = slices.CompactFunc(r.Signers, func(a, b tuftest.Key) bool { return a.ID == b.ID })
	}
	m.did(kind, generalRole(name), "%d of them", len(r.Signers))
}

func (m *mutator) addRoot(kind string) {
	next := m.repo.AddRoot()
	if m.IntN(6) == 0 {
		next.Signed["consistent_snapshot"] = m.IntN(2) == 0
	}
	name := []string{"root", "root", "timestamp", "snapshot", "targets"}[m.IntN(5)]
	keys, n := m.keys(), 1+m.IntN(2)
	switch m.IntN(3) {
	case 0: // nothing but the version changes
		m.did(kind, "root", "that changes no key")
		return
	case 1: // and those that sign know of it
		if name == "root" {
			next.Signers = append(slices.Clip(next.Signers), keys...)
		} else {
			m.repo.Roles[name].Signers = keys
		}
	}
	tuftest.Grant(next, name, n, keys...)
	m.did(kind, "root", "gives %s to %d of %d keys", name, n, len(keys))
}

func (m *mutator) addDelegation(kind string) {
	name := "role-" + fmt.Sprint(m.IntN(3))
	key := tuftest.NewKey("delegate " + fmt.Sprint(m.IntN(2)))
	if m.repo.Roles[name] == nil {
		m.repo.AddRole(name, key)
		if m.IntN(2) == 0 {
			m.repo.AddTargetTo(name, module, []byte(name), nil)
		}
	}
	parents := []string{"targets", name, "role-0", "rollout", "team-0"}
	parent := parents[m.IntN(len(parents))]
	if m.repo.Roles[parent] == nil {
		parent = "targets"
	}
	p, terminating := patterns[m.IntN(len(patterns))], m.IntN(3) == 0
	m.repo.Delegate(parent, tuftest.Delegation(name, tuftest.Threshold(1, key), terminating, p), key)
	if list := m.repo.Roles[parent].Signed["delegations"].(tuftest.Object)["roles"].([]any); m.IntN(2) == 0 {
		slices.Reverse(list)
	}
	m.did(kind, parent, "to %s of %q, terminating %v", name, p, terminating)
}

func (m *mutator) moveVersion(kind string) {
	name, r := m.pick()
	r.Signed["version"] = max(1, r.Version()+[]int{-2, -1, 1, 2, 1 << 40}[m.IntN(5)])
	m.did(kind, generalRole(name), "%d", r.Version())
}

func (m *mutator) passTime(kind string) {
	d := time.Duration(m.IntN(40)) * time.Hour
	m.at = m.at.Add(d)
	m.did(kind, "", "%v", d)
}

func (m *mutator) changeSignatures(kind string) {
	name, r := m.pick()
	how := []string{"reversed", "first repeated", "first under another id", "first of another payload", "first without its last digit"}[m.IntN(5)]
	r.Forge = func(envelope tuftest.Object) any {
		sigs := slices.Clone(envelope["signatures"].([]any))
		if len(sigs) == 0 {
			return envelope
		}
		first := maps.Clone(sigs[0].(tuftest.Object))
		sig := first["sig"].(string)
		switch how {
		case "reversed":
			slices.Reverse(sigs)
		case "first repeated":
			sigs = append(sigs, sigs[0])
		case "first under another id":
			first["keyid"] = tuftest.NewKey("stranger").ID
		case "first of another payload":
			first["sig"] = sig[64:] + sig[:64]
		case "first without its last digit":
			first["sig"] = sig[:len(sig)-1]
		}
		if how != "reversed" {
			sigs[0] = first
		}
		return tuftest.Set(sigs, "signatures")(envelope)
	}
	m.did(kind, generalRole(name), "%s", how)
}

// aliasKey lists a key of a role once more, under another id, and signs under
// both.
func (m *mutator) aliasKey(kind string) {
	key := tuftest.NewKey("debian builder")
	entries := tuftest.Path{"delegations", "roles"}.Get(m.repo.Roles["targets"].Signed).([]any)
	i := slices.IndexFunc(entries, func(e any) bool { return e.(tuftest.Object)["name"] == "debian" })
	if i < 0 {
		return
	}
	note := m.IntN(2) == 0
	alias(m.repo.Roles["targets"], tuftest.Path{"delegations", "roles", fmt.Sprint(i)}, tuftest.Path{"delegations", "keys"}, key,
		func(o tuftest.Object) tuftest.Object {
			if note {
				o["note"] = "makes another key id"
			}
			return o
		})
	m.repo.Roles["debian"].Forge = signTwice(key)
	m.did(kind, "debian", "with a note: %v", note)
}

func (m *mutator) changeThreshold(kind string) {
	name, r := m.pick()
	var found []tuftest.Path
	for _, p := range tuftest.Paths(r.Signed) {
		if p[len(p)-1] == "threshold" {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return
	}
	p, n := found[m.IntN(len(found))], m.IntN(5)
	r.Signed = p.Edit(r.Signed, func(any) any { return n }).(tuftest.Object)
	m.did(kind, generalRole(name), "%s is %d", strings.Join(p, "/"), n)
}

// serveOld has the server show an older file of a role.
func (m *mutator) serveOld(kind string) {
	if len(m.past) == 0 {
		return
	}
	old := m.past[m.IntN(len(m.past))]
	name := m.names()[m.IntN(len(m.repo.Roles))]
	m.serve = append(m.serve, func(f *tuftest.Files) {
		if b, ok := old.Roles[name]; ok {
			f.Roles[name] = b
		}
	})
	m.did(kind, generalRole(name), "")
}

// serveOther has the server show a file under another role's name.
func (m *mutator) serveOther(kind string) {
	names := m.names()[:len(m.repo.Roles)]
	from, to := names[m.IntN(len(names))], names[m.IntN(len(names))]
	m.serve = append(m.serve, func(f *tuftest.Files) { f.Roles[to] = f.Roles[from] })
	m.did(kind, generalRole(to), "is %s", from)
}

// serveDamaged has the server change the bytes of a file.
func (m *mutator) serveDamaged(kind string) {
	names := m.names()[:len(m.repo.Roles)]
	name := names[m.IntN(len(names))]
	how := []string{"cut", "a bit flipped", "white space", "doubled", "nothing", "null", "missing", "NUL behind", "byte order mark", "spread out"}[m.IntN(10)]
	at := m.Uint64()
	m.serve = append(m.serve, func(f *tuftest.Files) {
		if b := damage(f.Roles[name], how, at); b != nil {
			f.Roles[name] = b
		} else {
			delete(f.Roles, name)
		}
	})
	m.did(kind, generalRole(name), "%s", how)
}

func damage(b []byte, how string, at uint64) []byte {
	b = slices.Clone(b)
	switch i := int(at % uint64(max(1, len(b)))); how {
	case "cut":
		return b[:min(i, len(b))]
	case "a bit flipped":
		if len(b) > 0 {
			b[i] ^= 1 << (at >> 32 % 8)
		}
		return b
	case "white space":
		return append([]byte("\r\n\t "), append(b, ' ')...)
	case "doubled":
		return append(b, b...)
	case "nothing":
		return []byte{}
	case "null":
		return []byte("null")
	case "NUL behind":
		return append(b, 0)
	case "byte order mark":
		return append([]byte("\ufeff"), b...)
	case "spread out":
		return bytes.ReplaceAll(b, []byte(`,"`), []byte(",\n \""))
	}
	return nil // missing
}

// serveOtherRoots has the server leave out a root, swap two, show one twice, or
// end the chain early.
func (m *mutator) serveOtherRoots(kind string) {
	how := []string{"left out", "swapped", "twice", "cut"}[m.IntN(4)]
	at := m.Uint64()
	m.serve = append(m.serve, func(f *tuftest.Files) {
		roots := slices.Clone(f.Roots)
		if len(roots) == 0 {
			return // two of these left out the only one
		}
		i := int(at % uint64(len(roots)))
		switch how {
		case "left out":
			roots = slices.Delete(roots, i, i+1)
		case "swapped":
			roots[i], roots[len(roots)-1] = roots[len(roots)-1], roots[i]
		case "twice":
			roots = slices.Insert(roots, i, roots[i])
		case "cut":
			roots = roots[:i+1]
		}
		f.Roots = roots
	})
	m.did(kind, "root", "%s", how)
}
