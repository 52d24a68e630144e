package tuf_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// A mutation makes a field wrong. It gets the object or list that holds the
// field and returns another.
type mutation func(parent any, key string) any

// put returns a mutation that gives the field another value.
func put(value any) mutation {
	return func(parent any, key string) any {
		return tuftest.Path{key}.Edit(parent, func(any) any { return value })
	}
}

// pairs writes an object in order, with one pair more. It leaves a list alone.
func withPair(parent any, key string, value any) any {
	o, ok := parent.(tuftest.Object)
	if !ok {
		return parent
	}
	out := tuftest.Pairs{}
	for _, k := range slices.Sorted(maps.Keys(o)) {
		out = append(out, tuftest.Pair{Key: k, Value: o[k]})
	}
	return append(out, tuftest.Pair{Key: key, Value: value})
}

// field returns the value of a field.
func field(parent any, key string) any { return tuftest.Path{key}.Get(parent) }

var mutations = map[string]mutation{
	"deleted":       put(tuftest.Deleted),
	"null":          put(nil),
	"true":          put(true),
	"zero":          put(0),
	"minus one":     put(-1),
	"huge":          put(tuftest.Literal("9007199254740992")),
	"beyond 64 bit": put(tuftest.Literal("18446744073709551616")),
	"float":         put(tuftest.Literal("1.0")),
	"exponent":      put(tuftest.Literal("1e0")),
	"minus zero":    put(tuftest.Literal("-0")),
	"leading zero":  put(tuftest.Literal("01")),
	"empty string":  put(""),
	"other string":  put("other"),
	"empty list":    put([]any{}),
	"list of null":  put([]any{nil}),
	"empty object":  put(tuftest.Object{}),
	"object":        put(tuftest.Object{"x": nil}),
	"not a value":   put(tuftest.Literal("nil")),
	"invalid UTF-8": put(tuftest.Literal("\"\xff\"")),
	"overlong":      put(tuftest.Literal("\"\xc0\xaf\"")),
	"surrogate":     put(tuftest.Literal(`"\ud800"`)),
	"replacement":   put("\ufffd"),
	"twice, same":   func(p any, key string) any { return withPair(p, key, field(p, key)) },
	"twice, other":  func(p any, key string) any { return withPair(p, key, "other") },
	"twice, by escape": func(p any, key string) any {
		o, ok := p.(tuftest.Object)
		if !ok || key == "" {
			return p
		}
		text := string(tuftest.Encode(o))
		return tuftest.Literal(fmt.Sprintf(`%s,"\u%04x%s":null}`, strings.TrimSuffix(strings.TrimSpace(text), "}"), key[0], key[1:]))
	},
	"twice, in capitals":     func(p any, key string) any { return withPair(p, strings.ToUpper(key), field(p, key)) },
	"twice, with long s":     func(p any, key string) any { return withPair(p, strings.Replace(key, "s", "ſ", 1), field(p, key)) },
	"twice, with Kelvin":     func(p any, key string) any { return withPair(p, strings.Replace(key, "k", "\u212a", 1), field(p, key)) },
	"in capitals instead":    func(p any, key string) any { return renamed(p, key, strings.ToUpper(key)) },
	"with long s instead":    func(p any, key string) any { return renamed(p, key, strings.Replace(key, "s", "ſ", 1)) },
	"with Kelvin instead":    func(p any, key string) any { return renamed(p, key, strings.Replace(key, "k", "\u212a", 1)) },
	"replacement in its key": func(p any, key string) any { return withPair(p, key+"\ufffd", nil) },
	"deep":                   put(tuftest.Literal(strings.Repeat("[", 20) + strings.Repeat("]", 20))),
}

func renamed(parent any, key, other string) any {
	o, ok := parent.(tuftest.Object)
	if !ok || key == other {
		return parent
	}
	o = maps.Clone(o)
	o[other] = o[key]
	delete(o, key)
	return o
}

// general writes a path without what is particular to a repository: ids of keys,
// paths of targets, and names of bins that are not the given one.
func general(p tuftest.Path, bin string) string {
	out := slices.Clone(p)
	for i, key := range out {
		switch {
		case len(key) == 64:
			out[i] = "ID"
		case strings.Contains(key, "/"):
			out[i] = "PATH"
		case strings.HasPrefix(key, "debian-") && key != bin+".json":
			out[i] = "other"
		}
	}
	return strings.Join(out, ".")
}

// An exception is a mutation that leaves a file well-formed. What it is then
// depends on what the field is for.
type exception struct {
	role, field string // as written by general; a "*" stands for any one key
	mutations   []string
	want        error
}

var (
	// renames and removals leave an object without the key.
	gone = []string{"deleted", "in capitals instead", "with long s instead", "with Kelvin instead"}
	// These are JSON, and so may stand in a custom block.
	values = append([]string{
		"null", "true", "zero", "minus one", "empty string", "other string", "empty list", "list of null", "empty object", "object",
	}, gone...)
)

var exceptions = []exception{
	// One key of three may go, if it is not one that signed.
	{"root", "roles.root.keyids.0", gone, patch.ErrUntrusted},
	{"root", "roles.root.keyids.1", gone, patch.ErrUntrusted},
	{"root", "roles.root.keyids.2", gone, nil},
	{"root", "roles.targets.keyids.0", gone, patch.ErrUntrusted},
	{"root", "roles.targets.keyids.1", gone, patch.ErrUntrusted},
	{"root", "roles.targets.keyids.2", gone, nil},
	{"targets", "delegations.roles.1.keyids.*", gone, patch.ErrUntrusted},
	{"debian", "delegations.succinct_roles.keyids.*", gone, patch.ErrUntrusted},

	// Length and hash of the snapshot are optional.
	{"timestamp", "meta.snapshot.json.hashes", []string{"deleted"}, nil},
	{"timestamp", "meta.snapshot.json.length", []string{"deleted"}, nil},
	// What nobody asks for need not be listed.
	{"snapshot", "meta.other", gone, nil},
	{"snapshot", "meta.rollout.json", gone, nil},

	// The first delegation is the rollout's, which the module does not need.
	{"targets", "delegations.roles.0", gone, nil},
	{"targets", "delegations.roles.0.name", []string{"other string"}, nil},
	{"targets", "delegations.roles.0.paths.0", []string{"other string", "empty string"}, nil},
	{"targets", "delegations.roles.1", gone, patch.ErrNotFound},
	{"targets", "delegations.roles.1.paths.0", []string{"other string", "empty string"}, patch.ErrNotFound},
	{"targets", "delegations", []string{"deleted"}, patch.ErrNotFound},
	{"debian", "delegations", []string{"deleted"}, patch.ErrNotFound},

	{"bin", "targets", []string{"empty object"}, patch.ErrNotFound},
	{"bin", "targets.PATH", gone, patch.ErrNotFound},
	{"bin", "targets.PATH.length", []string{"zero"}, nil},
	{"bin", "targets.PATH.custom", []string{"deleted", "empty object", "object"}, nil},
	{"bin", "targets.PATH.custom.*", values, nil},
	{"rollout", "targets", []string{"empty object"}, patch.ErrNotFound},
	{"rollout", "targets.PATH", gone, patch.ErrNotFound},
	{"rollout", "targets.PATH.custom", []string{"deleted", "empty object", "object"}, nil},
	{"rollout", "targets.PATH.custom.*", values, nil},
}

// expected returns the verdict on a mutation: malformed, unless it is listed.
func expected(role, field, mutation string) error {
	for _, e := range exceptions {
		prefix, anyKey := strings.CutSuffix(e.field, "*")
		match := field == e.field
		if anyKey {
			rest, ok := strings.CutPrefix(field, prefix)
			match = ok && !strings.Contains(rest, ".")
		}
		if match && role == e.role && slices.Contains(e.mutations, mutation) {
			return e.want
		}
	}
	return patch.ErrMalformed
}

// TestMutations makes every field of every role wrong in every way, before it is
// signed, so that it is the field that is looked at and not the signature.
func TestMutations(t *testing.T) {
	for _, name := range []string{"root", "timestamp", "snapshot", "targets", "debian", "bin", "rollout"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := newRepo()
			base.Files() // fills in what snapshot and timestamp list
			tried, n := 0, 0
			for _, p := range tuftest.Paths(role(base, name).Signed) {
				for _, what := range slices.Sorted(maps.Keys(mutations)) {
					if n++; n%thin == 0 {
						tried += tryMutation(t, base.Clone(), name, p, what)
					}
				}
			}
			t.Logf("%d mutations", tried)
			if tried < 200/thin {
				t.Errorf("only %d mutations were tried", tried)
			}
		})
	}
}

// tryMutation returns 1, or 0 if the mutation does nothing to the field.
func tryMutation(t *testing.T, r *tuftest.Repo, name string, p tuftest.Path, what string) int {
	t.Helper()
	above, key := p[:len(p)-1], p[len(p)-1]
	parent := above.Get(role(r, name).Signed)
	wrong := mutations[what](parent, key)
	if string(tuftest.Canonical(wrong)) == string(tuftest.Canonical(parent)) {
		return 0
	}
	role(r, name).Edit = func(signed tuftest.Object) any {
		return above.Edit(signed, func(parent any) any { return mutations[what](parent, key) })
	}
	files := r.Files()
	target := module
	if name == "rollout" {
		target = rollout
	}
	_, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, target)
	if want := expected(name, general(p, r.Bin(module)), what); verdict(err) != want {
		t.Errorf("%s %s: verdict = %v, want %v", general(p, r.Bin(module)), what, err, want)
	}
	return 1
}
