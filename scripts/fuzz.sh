#!/usr/bin/env bash
# Runs every fuzz test in the tree, one after the other, for the time given, or
# lists them:
#
#   scripts/fuzz.sh 10m
#   scripts/fuzz.sh 10m ./internal/tuf    # those of one package
#   scripts/fuzz.sh --list
#
# An input that fails is kept below the package's testdata/fuzz by go test, and
# is from then on a seed of the unit tests once it is committed.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:?usage: scripts/fuzz.sh TIME|--list [PACKAGE]}
only=${2:-.}
# A test file names its fuzz tests in lines like "func FuzzParse(f *testing.F)".
found=$(grep -rHoE --include='*_test.go' --exclude-dir=.cache --exclude-dir=build '^func Fuzz[A-Za-z0-9_]*' "$only" | sort) || true
[ -n "$found" ] || { echo "fuzz: error: cannot find a fuzz test in $only" >&2; exit 1; }

# Tests of what is kept on the disk wait for it most of the time. In memory they
# try a hundred times as much; what go builds stays where it may be executed.
if [ "$time" != --list ] && [ -w /dev/shm ]; then
	memory=$(mktemp -d -p /dev/shm)
	trap 'rm -rf "$memory"' EXIT
	export GOTMPDIR=${TMPDIR:-/tmp} TMPDIR=$memory
fi

failed=()
while IFS=: read -r file decl; do
	package=$(dirname "$file")
	package=./${package#./}
	name=${decl#func }
	if [ "$time" = --list ]; then
		echo "$package $name"
		continue
	fi
	echo "== $package $name"
	# The tags are those behind which this tree has tests. A test that is not
	# compiled is not run, and go test calls that a success. Of a signed file
	# of some KiB go test would look for the shortest that is as interesting,
	# for a minute each, and try nothing else meanwhile.
	log=$(mktemp)
	if ! go test -tags integration,vm,attack -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 100x "$package" </dev/null 2>&1 | tee "$log" || ! grep -q '^fuzz: elapsed' "$log"; then
		failed+=("$package $name")
	fi
	rm -f "$log"
done <<<"$found"

if [ "${#failed[@]}" -gt 0 ]; then
	printf 'fuzz: error: failed, or was not run: %s\n' "${failed[@]}" >&2
	exit 1
fi
