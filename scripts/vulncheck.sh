#!/usr/bin/env bash
# Fails if a program calls code with a known vulnerability. Without arguments it
# looks at all programs that ship; otherwise they are govulncheck's:
#
#   scripts/vulncheck.sh [-C FOLDER] [PACKAGE...]
#
# The database is the Go project's. LIVEPATCH_VULNDB names another: a URL or a
# file:// folder in the layout of https://go.dev/doc/security/vuln/database.
# Without one, and without a network, there is nothing to compare with: that is
# said, and is no failure. A database that somebody named has to be there.
set -euo pipefail
cd "$(dirname "$0")/.."

db=${LIVEPATCH_VULNDB:-https://vuln.go.dev}
if ! said=$(curl -fsS --max-time 20 -o /dev/null "$db/index/db.json" 2>&1); then
	if [ -n "${LIVEPATCH_VULNDB:-}" ]; then
		echo "vulncheck: error: cannot read the vulnerability database $db: $said" >&2
		echo "vulncheck: hint: LIVEPATCH_VULNDB is a URL or file:// folder that holds index/db.json" >&2
		exit 1
	fi
	echo "vulncheck: NOT CHECKED for known vulnerabilities: $db cannot be reached: $said"
	exit 0
fi

arguments=("$@")
if [ $# = 0 ]; then
	arguments=(-tags grpcnotrace)
	for dir in {agent,loader,server,publisher}/cmd/*/; do arguments+=("./$dir"); done
fi
tool=$(scripts/tool.sh vuln govulncheck)
status=0
"$tool" -db "$db" "${arguments[@]}" || status=$?
if [ "$status" != 0 ]; then
	# 3 means findings, everything else that it could not look.
	echo "vulncheck: error: govulncheck left with status $status" >&2
	[ "$status" != 3 ] || echo "vulncheck: hint: raise the version of the module that is named above, or stop calling the function" >&2
	exit 1
fi
echo "vulncheck: nothing that is called has a vulnerability known to $db"
