#!/usr/bin/env bash
# Prints the path of a tool that is a module of its own below tools/, and builds
# it first if that has not happened yet for its go.sum and this version of Go:
#
#   scripts/tool.sh vuln govulncheck
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 2 ] && [ -f "tools/$1/go.sum" ] || {
	echo "tool: error: cannot build a tool: usage: scripts/tool.sh MODULE PROGRAM" >&2
	echo "tool: hint: the modules are the folders below tools/ that have a go.sum" >&2
	exit 1
}
sum=$(sha256sum <"tools/$1/go.sum" | cut -c1-12)
dir=$PWD/.cache/tools/$1-$sum-$(go env GOVERSION)
if [ ! -x "$dir/$2" ]; then
	echo "building $2 into ${dir#"$PWD/"}" >&2
	# Whatever is set for the main module does not count here.
	GOBIN=$dir GOWORK=off GOFLAGS=-buildvcs=false CGO_ENABLED=0 go -C "tools/$1" install -trimpath tool
fi
echo "$dir/$2"
