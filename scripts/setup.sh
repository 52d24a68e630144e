#!/usr/bin/env bash
# Installs what this project's tests need and what a fresh Debian 12 with Go and
# git has not. Does nothing, quickly, when nothing is missing.
#
#   scripts/setup.sh          for make check and make demo
#   scripts/setup.sh bench    for make bench as well
#
# Packages are all that it changes on the machine. What is only looked at, such
# as kernels for the tests, is unpacked below .cache and never installed.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
	echo "setup: error: cannot set up this machine: $1" >&2
	echo "setup: hint: $2" >&2
	exit 1
}

packages=(
	ca-certificates # HTTPS to the Go module proxy
	debhelper       # the Debian package
	curl            # the session by hand in the README
	gcc libc6-dev   # the race detector
	git             # the version stamped into binaries
	lintian         # what is wrong with the Debian package
	make
	openssh-client  # an ssh-agent, for keys that lie in one
	softhsm2        # a PKCS #11 token, the same
	squashfs-tools  # the snap is a squashfs
	systemd         # systemd-analyze, which checks the units
)
bench=no
for want in "$@"; do
	case $want in
	bench) bench=yes ;;
	*) die "nothing is called $want" "run it as: scripts/setup.sh [bench]" ;;
	esac
done

command -v go >/dev/null || die "Go is missing" "install Go 1.26 or newer and put it on PATH: https://go.dev/doc/install"
# An older one fetches the toolchain that go.mod names, or says here that it may not.
go version >/dev/null || die "Go cannot build this module" "install the version that go.mod names"
command -v dpkg-query >/dev/null || die "this is not Debian" "install by hand: ${packages[*]}"

# missing prints those of its arguments that are not installed packages.
missing() {
	local p
	for p in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
	done
}

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)

# as_root runs apt-get as root and shows what it said only if it failed.
as_root() {
	local log status=0
	[ "${#sudo[@]}" = 0 ] || command -v sudo >/dev/null || die "apt-get $* needs root" "run as root: apt-get $*"
	log=$(mktemp)
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null || status=$?
	[ "$status" = 0 ] || tail -n 20 "$log" >&2
	rm -f "$log"
	return "$status"
}

mapfile -t need < <(missing "${packages[@]}")
if [ "${#need[@]}" -gt 0 ]; then
	echo "setup: installing ${need[*]}" >&2
	as_root update || die "apt-get update failed" "see the lines above"
	as_root install -y --no-install-recommends "${need[@]}" || die "apt-get install failed" "see the lines above; needed are: ${need[*]}"
fi

# The server that ours is measured against is unpacked, not installed: nobody
# asked for a web server on this machine. Its libraries come with curl and git.
nginx=.cache/bench/nginx
if [ "$bench" = yes ] && ! [ -x "$nginx/usr/sbin/nginx" ]; then
	echo "setup: fetching nginx into $nginx" >&2
	tmp=$(mktemp -d)
	(cd "$tmp" && apt-get -q download nginx >/dev/null 2>&1) || {
		as_root update || die "apt-get update failed" "see the lines above"
		(cd "$tmp" && apt-get -q download nginx >/dev/null) || die "Debian's nginx package cannot be fetched" "see the lines above"
	}
	mkdir -p "$nginx"
	dpkg-deb -x "$tmp"/nginx_*.deb "$nginx"
	rm -rf "$tmp"
fi

# The virtual machines know by themselves what they need.
[ ! -x tests/vm/setup.sh ] || tests/vm/setup.sh
