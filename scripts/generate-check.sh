#!/usr/bin/env bash
# Fails if the .proto files break buf's rules or the generated code beside them
# is not what they generate. Changes nothing.
set -euo pipefail
cd "$(dirname "$0")/../proto"

buf lint
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
buf generate --output "$tmp"
(cd "$tmp" && find . -name '*.pb.go') | sort >"$tmp/generated"
find . -name '*.pb.go' | sort >"$tmp/committed"
status=0
diff -u "$tmp/committed" "$tmp/generated" || status=1
while read -r file; do
	diff -u "$file" "$tmp/$file" || status=1
done < <(comm -12 "$tmp/committed" "$tmp/generated")
if [ "$status" != 0 ]; then
	echo "generate-check: error: generated code is not what proto/ generates" >&2
	echo "generate-check: hint: run make generate and commit the result" >&2
	exit 1
fi
