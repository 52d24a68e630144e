#!/usr/bin/env bash
# Writes a software bill of materials (CycloneDX 1.6, JSON) for each program of a
# folder, from what the program itself says it was built of:
#
#   scripts/sbom.sh build/bin build/sbom VERSION
#
# Two runs on the same programs write the same bytes: there is neither a serial
# number nor a date in it.
set -euo pipefail

[ $# = 3 ] || { echo "sbom: error: usage: scripts/sbom.sh PROGRAMS OUTPUT VERSION" >&2; exit 1; }
tool=$("$(dirname "$0")/tool.sh" sbom cyclonedx-gomod)
mkdir -p "$2"
for program in "$1"/*; do
	[ -x "$program" ] || { echo "sbom: error: $1 holds no programs" >&2; echo "sbom: hint: run make build" >&2; exit 1; }
	out=$2/$(basename "$program").cdx.json
	"$tool" bin -json -std -noserial -notimestamp -version "$3" -output "$out.part" "$program"
	mv "$out.part" "$out"
	echo "$out"
done
