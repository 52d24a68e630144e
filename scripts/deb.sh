#!/usr/bin/env bash
# Makes the Debian package for machines that have no snapd: scripts/deb.sh ARCH TRUST
# FOLDER. The programs and units are those of the snap and of packaging/systemd.
# Called by make; TRUST is as for scripts/snap.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=$1 trust=$2 out=$3

case $arch in
amd64 | arm64 | s390x) goarch=$arch ;;
ppc64el) goarch=ppc64le ;;
*)
	echo "deb: error: cannot make the package: nobody knows the architecture $arch" >&2
	echo "deb: hint: use amd64, arm64, ppc64el or s390x" >&2
	exit 1
	;;
esac
if [ -z "$trust" ]; then
	trust=.cache/trust
	[ -e "$trust/root.json" ] || scripts/development-trust.sh "$trust"
	echo "deb: the package trusts the keys in $trust only, which were made here for trying things out" >&2
fi

mkdir -p "$out"
dir=$(mktemp -d "$out/.deb-XXXXXX")
trap 'rm -rf "$dir"' EXIT
src=$dir/src
mkdir -p "$src/bin" "$src/trust"
GOARCH=$goarch CGO_ENABLED=0 go build -trimpath -tags "$TAGS" -ldflags "$LDFLAGS" -o "$src/bin/" ./agent/cmd/canonical-livepatch ./agent/cmd/canonical-livepatchd ./loader/cmd/livepatch-loader
cp "$trust/root.json" "$trust/livepatch-kmod.x509" "$src/trust/"
cp -r packaging/debian "$src/debian"
cp -r packaging/systemd README.md SECURITY.md "$src/"
mkdir "$src/sysusers" "$src/man"
mv "$src/systemd/livepatch.sysusers.conf" "$src/sysusers/livepatch.conf"
go run ./agent/cmd/canonical-livepatch/man "$src/man"

# A version that sorts: "0~" before any release, then the time of the commit.
date=$(git log -1 --format=%ct)
version=$(git describe --tags 2>/dev/null | sed -E 's/^v//; s/-([0-9]+)-g/+git\1./' || true)
[ -n "$version" ] || version=0~$(date -u -d "@$date" +%Y%m%d%H%M%S)+git.$(git rev-parse --short HEAD)
cat >"$src/debian/changelog" <<END
livepatch (${DEB_VERSION:-$version}) unstable; urgency=medium

  * Built from the tree; see its history.

 -- The livepatch maintainers <livepatch@example.com>  $(date -u -R -d "@$date")
END
# Times and modes of the files do not depend on who builds, and when.
chmod -R u=rwX,go=rX "$src"
find "$src" -exec touch -h -d "@$date" {} +

log=$dir/log
(cd "$src" && SOURCE_DATE_EPOCH=$date DEB_BUILD_OPTIONS=nocheck dpkg-buildpackage -b -us -uc -d "-a$arch" >"../log" 2>&1) || {
	tail -n 30 "$log" >&2
	echo "deb: error: cannot make the package: dpkg-buildpackage failed" >&2
	exit 1
}
deb=$(ls "$dir"/*.deb)
mv "$deb" "$out/livepatch-client_$arch.deb"
echo "$out/livepatch-client_$arch.deb: $(stat -c %s "$out/livepatch-client_$arch.deb") bytes, version ${DEB_VERSION:-$version}"
