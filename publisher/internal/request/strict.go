package request

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// A shape says which fields an object may have. The field "*" stands for any
// name. A nil shape is a value of any form.
type shape map[string]shape

var (
	keysShape  = shape{"*": {"keytype": nil, "scheme": nil, "keyval": {"public": nil}}}
	roleShape  = shape{"keyids": nil, "threshold": nil}
	rootShape  = shape{"_type": nil, "spec_version": nil, "consistent_snapshot": nil, "version": nil, "expires": nil, "keys": keysShape, "roles": {"*": roleShape}}
	bins       = shape{"keyids": nil, "threshold": nil, "bit_length": nil, "name_prefix": nil}
	delegation = shape{"name": nil, "keyids": nil, "threshold": nil, "terminating": nil, "paths": nil}

	targetsShape = shape{
		"_type": nil, "spec_version": nil, "version": nil, "expires": nil,
		"targets":     {"*": {"length": nil, "hashes": nil, "custom": nil}},
		"delegations": {"keys": keysShape, "roles": delegation, "succinct_roles": bins},
	}
)

// onlyKnownFields returns an error if the signed part of a role has a field that
// [Review.Describe] would not tell of: nobody is to sign what is not shown.
func onlyKnownFields(role string, payload []byte) error {
	var v any
	if err := json.Unmarshal(payload, &v); err != nil {
		return fmt.Errorf("%w: role %s: %w", ErrMalformed, role, err)
	}
	s := targetsShape
	if role == metadata.ROOT {
		s = rootShape
	}
	if field := s.unknown(v); field != "" {
		return fmt.Errorf("%w: role %s: field %q is not known", ErrMalformed, role, field)
	}
	return nil
}

// unknown returns the name of a field that the shape does not have, "" if there
// is none. The elements of a list have the shape of the list.
func (s shape) unknown(v any) string {
	if s == nil {
		return ""
	}
	if list, ok := v.([]any); ok {
		for _, e := range list {
			if field := s.unknown(e); field != "" {
				return field
			}
		}
	}
	o, _ := v.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(o)) {
		inner, ok := s[name]
		if !ok {
			if inner, ok = s["*"]; !ok {
				return name
			}
		}
		if field := inner.unknown(o[name]); field != "" {
			return field
		}
	}
	return ""
}
