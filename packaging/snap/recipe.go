package main

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// What becomes of the keys at the top of snapcraft.yaml. Those that snapd reads
// are copied as they stand, the others are for the build. A key that is in
// neither list stops the packing: it would have been lost without a word.
var (
	copied = []string{
		"name", "title", "summary", "description", "license", "type", "base", "confinement", "grade", "epoch", "assumes",
		"environment", "layout", "plugs", "slots", "apps", "hooks", "system-usernames",
	}
	forTheBuild = []string{"version", "platforms", "build-base", "parts"}
	// Keys of an app that snapd reads under the same name.
	appKeys = []string{
		"command", "stop-command", "post-stop-command", "reload-command", "command-chain", "daemon", "daemon-scope", "after", "before",
		"restart-condition", "restart-delay", "stop-timeout", "start-timeout", "stop-mode", "refresh-mode", "install-mode", "sockets",
		"environment", "plugs", "slots", "autostart", "completer",
	}
)

// versions are what snapd takes (snap/validate.go of its source says 32 characters).
var versions = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9:.+~-]{0,30}[a-zA-Z0-9+~])?$`)

// The two names of the shared system user, each with the id that snapd gives it
// (osutil/user and snap/naming of its source). snapd before 2.61 knows only the
// first, which is the recipe's.
var systemUsers = map[string]struct{ id, assumes string }{
	"snap_daemon": {"584788", ""},
	"_daemon_":    {"584792", "assumes: [snapd2.61]\n"},
}

// withUser returns the recipe for another name of the system user.
func withUser(recipe []byte, name string) ([]byte, error) {
	user, known := systemUsers[name]
	if !known {
		return nil, fmt.Errorf("cannot use system user %q: snapd has snap_daemon and _daemon_", name)
	}
	was := systemUsers["snap_daemon"].id
	r := strings.NewReplacer("\n  snap_daemon: shared", "\n  "+name+": shared", "-user "+was, "-user "+user.id, "-agent-uid "+was, "-agent-uid "+user.id)
	return []byte(user.assumes + r.Replace(string(recipe))), nil
}

// derive returns meta/snap.yaml for a recipe, as snapcraft would write it for one
// architecture, and the names of the hooks.
func derive(recipe []byte, version, arch string) (meta []byte, hooks []string, err error) {
	top, err := parse(recipe)
	if err != nil {
		return nil, nil, err
	}
	for key := range pairs(top) {
		if !slices.Contains(copied, key) && !slices.Contains(forTheBuild, key) {
			return nil, nil, fmt.Errorf("cannot derive snap.yaml: nobody knows what becomes of %q", key)
		}
	}
	if err := checkBuild(top, version, arch); err != nil {
		return nil, nil, fmt.Errorf("cannot derive snap.yaml: %w", err)
	}
	out := &yaml.Node{Kind: yaml.MappingNode}
	for key, value := range pairs(top) {
		switch {
		case key == "version":
			add(out, key, &yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Value: version})
			add(out, "architectures", &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: arch}}})
		case slices.Contains(copied, key):
			add(out, key, value)
		}
	}
	for key := range pairs(get(top, "hooks")) {
		hooks = append(hooks, key)
	}
	uncomment(out)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(out), e.Close()); err != nil {
		return nil, nil, err
	}
	return b.Bytes(), hooks, nil
}

// parse returns the mapping at the top of a recipe.
func parse(recipe []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(recipe, &doc); err != nil {
		return nil, fmt.Errorf("cannot read recipe: %w", err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("cannot read recipe: it is no mapping")
	}
	return doc.Content[0], nil
}

// checkBuild refuses what snapcraft would, as far as this recipe uses it.
func checkBuild(top *yaml.Node, version, arch string) error {
	if v := get(top, "version"); v == nil || v.Value != "git" {
		return errors.New(`version is not "git"`)
	}
	if !versions.MatchString(version) {
		return fmt.Errorf("%q is no version, need at most 32 letters, digits and :.+~-", version)
	}
	if get(get(top, "platforms"), arch) == nil {
		return fmt.Errorf("the recipe has no platform %s", arch)
	}
	for name, app := range pairs(get(top, "apps")) {
		if get(app, "command") == nil {
			return fmt.Errorf("app %s has no command", name)
		}
		for key := range pairs(app) {
			if !slices.Contains(appKeys, key) {
				return fmt.Errorf("nobody knows what becomes of %q of app %s", key, name)
			}
		}
	}
	return nil
}

// pairs yields the keys and values of a mapping; nothing is an empty one.
func pairs(m *yaml.Node) func(yield func(string, *yaml.Node) bool) {
	return func(yield func(string, *yaml.Node) bool) {
		for i := 0; m != nil && i+1 < len(m.Content); i += 2 {
			if !yield(m.Content[i].Value, m.Content[i+1]) {
				return
			}
		}
	}
}

// get returns the value of a key of a mapping, nil if it is not there.
func get(m *yaml.Node, name string) *yaml.Node {
	for key, value := range pairs(m) {
		if key == name {
			return value
		}
	}
	return nil
}

func add(m *yaml.Node, key string, value *yaml.Node) {
	m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
}

// uncomment removes comments: they are for readers of the recipe.
func uncomment(n *yaml.Node) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	for _, c := range n.Content {
		uncomment(c)
	}
}
