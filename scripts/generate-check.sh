#!/usr/bin/env bash
# Fails if the .proto files break buf's rules, or if generated code is not what
# they and the server's queries generate. Changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
status=0

(cd proto && buf lint && buf generate --output "$tmp/proto")
(cd proto && find . -name '*.pb.go') | sort >"$tmp/committed"
(cd "$tmp/proto" && find . -name '*.pb.go') | sort >"$tmp/generated"
diff -u "$tmp/committed" "$tmp/generated" || status=1
while read -r file; do
	diff -u "proto/$file" "$tmp/proto/$file" || status=1
done < <(comm -12 "$tmp/committed" "$tmp/generated")

store=server/internal/store/sqlite
mkdir "$tmp/sqlite"
cp -r "$store/migrations" "$store/queries.sql" "$store/sqlc.yaml" "$tmp/sqlite/"
(cd "$tmp/sqlite" && sqlc generate)
diff -ru "$store/db" "$tmp/sqlite/db" || status=1

if [ "$status" != 0 ]; then
	echo "generate-check: error: generated code is not what its sources generate" >&2
	echo "generate-check: hint: run make generate and commit the result" >&2
	exit 1
fi
