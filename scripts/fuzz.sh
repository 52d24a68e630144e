#!/usr/bin/env bash
# Runs every fuzz test in the tree, one after the other, for the time given:
#
#   scripts/fuzz.sh 10m
#
# An input that fails is kept below the package's testdata/fuzz by go test, and
# is from then on a seed of the unit tests once it is committed.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:?usage: scripts/fuzz.sh TIME}
# A test file names its fuzz tests in lines like "func FuzzParse(f *testing.F)".
found=$(grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort)
[ -n "$found" ] || { echo "fuzz: error: cannot find a fuzz test" >&2; exit 1; }

failed=()
while IFS=: read -r file decl; do
	package=$(dirname "$file")
	name=${decl#func }
	echo "== $package $name"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$package" </dev/null || failed+=("$package $name")
done <<<"$found"

if [ "${#failed[@]}" -gt 0 ]; then
	printf 'fuzz: error: failed: %s\n' "${failed[@]}" >&2
	exit 1
fi
