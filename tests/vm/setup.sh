#!/usr/bin/env bash
# Installs what the virtual machines of the tests need: QEMU, a shell for the
# guests, and the compiler that built Debian's kernel. Does nothing, quickly, when
# nothing is missing. Kernels are not installed; package machine unpacks them into
# the cache.
set -euo pipefail
cd "$(dirname "$0")/../.."

die() {
	echo "setup: error: cannot set up virtual machines: $1" >&2
	echo "setup: hint: $2" >&2
	exit 1
}

packages=(
	qemu-system-x86 # the machines
	busybox-static  # their shell
	e2fsprogs       # their disks
	strace          # to record system calls in them
	systemd         # the first process of one of them; it is not started here
	libc-bin        # ldd, to find the libraries of such programs
	make binutils   # their modules; the compiler is added below
	libelf1 libssl3 # of the kernel's own build tools
	mmdebstrap      # whole Debian systems for machines
	squashfs-tools  # and snaps for them
)
command -v apt-cache >/dev/null || die "this is not Debian" "install by hand: ${packages[*]}, and fetch kernels as tests/README.md says"

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

# depends prints the first dependency of a package that matches a pattern.
depends() {
	apt-cache depends --important "$1" 2>/dev/null | sed -n "s/^ *Depends: \($2\)\$/\1/p" | head -n 1
}

missing() {
	local p
	for p in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
	done
}

# The lists of packages must be fresh when something is to be fetched: a security
# archive keeps the newest kernel only.
updated=no
update() {
	[ "$updated" = no ] || return 0
	as_root update || die "apt-get update failed" "see the lines above"
	updated=yes
}

cache=${LIVEPATCH_CACHE:-.cache/vm}
[ -e "$cache/unpacked" ] && [ -n "$(depends linux-headers-amd64 'linux-headers-.*')" ] || update

headers=$(depends linux-headers-amd64 'linux-headers-.*')
[ -n "$headers" ] || die "the package sources have no kernel headers" "add Debian's main archive to the apt sources"
compiler=$(depends "$(depends "$headers" 'linux-compiler-.*')" 'gcc-[0-9]*')
[ -n "$compiler" ] || die "$headers names no compiler" "install the gcc that built it"
packages+=("$compiler")

mapfile -t need < <(missing "${packages[@]}")
if [ "${#need[@]}" -gt 0 ]; then
	echo "setup: installing ${need[*]}" >&2
	update
	as_root install -y --no-install-recommends "${need[@]}" || die "apt-get install failed" "see the lines above; needed are: ${need[*]}"
fi
