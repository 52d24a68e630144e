package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"livepatch/internal/durable"
)

// maxFile bounds what is read of a configuration file, in bytes.
const maxFile = 2 * maxValue

// Load reads the configuration file at path. A file that does not exist is
// [Default]. One that cannot be understood is an error matching [ErrCorrupt]
// and never a default: a machine must not fall back to another server, or let
// through patches that were held back, because of a bad byte on a disk.
func Load(path string) (Config, error) {
	b, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("cannot read configuration: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("cannot read configuration %s: %w", path, err)
	}
	return c, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// Parse reads the content of a configuration file. The error matches
// [ErrCorrupt].
func Parse(b []byte) (Config, error) {
	if len(b) > maxFile {
		return Config{}, fmt.Errorf("more than %d bytes: %w", maxFile, ErrCorrupt)
	}
	c := Default()
	pairs, err := parsePairs(b)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	for i := 0; i < len(pairs); i += 2 {
		name, value := pairs[i], pairs[i+1]
		if _, err := lookup(name.Value); err != nil {
			c.unknown = append(c.unknown, name, value)
			continue
		}
		if value.Kind != yaml.ScalarNode {
			return Config{}, fmt.Errorf("%w: line %d: %s has no single value", ErrCorrupt, value.Line, name.Value)
		}
		if value.Value == "" || value.Tag == "!!null" {
			continue
		}
		if err := c.put(name.Value, value.Value); err != nil {
			// In words only: [ErrInvalid] is about what somebody has just typed, and
			// the advice for it would be wrong here.
			return Config{}, fmt.Errorf("%w: line %d: %s", ErrCorrupt, name.Line, err.Error())
		}
	}
	return c, nil
}

// parsePairs returns the keys and values of a YAML mapping, alternating. A
// document without content has none.
func parsePairs(b []byte) ([]*yaml.Node, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, oneLine(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document in it")
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: need lines of the form key: value", root.Line)
	}
	if hasAlias(root) {
		return nil, errors.New("there is a YAML alias in it")
	}
	return root.Content, checkKeys(root.Content)
}

// checkKeys refuses a key that comes twice: which one counts would be a guess.
func checkKeys(pairs []*yaml.Node) error {
	seen := make(map[string]bool)
	for i := 0; i < len(pairs); i += 2 {
		name := pairs[i]
		if name.Kind != yaml.ScalarNode {
			return fmt.Errorf("line %d: a key is not a word", name.Line)
		}
		if seen[name.Value] {
			return fmt.Errorf("line %d: %q is there twice", name.Line, name.Value)
		}
		seen[name.Value] = true
	}
	return nil
}

func hasAlias(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || n.Anchor != "" || slices.ContainsFunc(n.Content, hasAlias)
}

// oneLine joins the lines of a message of the YAML library.
func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " "))
}

// Marshal returns the content of a configuration file: the keys that were set,
// in the order of [Keys], and after them those that this version does not know.
func (c Config) Marshal() ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, k := range keys {
		v, ok := c.set[k.name]
		if !ok {
			continue
		}
		var value yaml.Node
		value.SetString(v)
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: k.name}, &value)
	}
	root.Content = append(root.Content, c.unknown...)
	if len(root.Content) == 0 {
		return nil, nil
	}
	b, err := yaml.Marshal(root)
	if err != nil {
		return nil, fmt.Errorf("cannot write configuration: %w", err)
	}
	return b, nil
}

// Save writes the configuration to path, readable by its owner only because a
// proxy's URL may hold a password. After a crash at any moment the file is
// either the old or the new one.
func (c Config) Save(path string) error {
	b, err := c.Marshal()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("cannot save configuration: %w", err)
	}
	return nil
}
