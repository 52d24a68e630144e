#!/usr/bin/env bash
# Packs the snap for one architecture: scripts/snap.sh ARCH TRUST FILE, or lays out
# its tree for snapcraft: scripts/snap.sh ARCH TRUST --tree FOLDER. Called by make.
#
# TRUST is the folder with what the snap trusts: root.json, livepatch-kmod.x509 and,
# if there are any, recent TUF files in metadata. If it is empty, keys for trying
# things out are made on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=$1 trust=$2 out=$3 tree=${4:-}

die() {
	echo "snap: error: cannot make the snap: $1" >&2
	echo "snap: hint: $2" >&2
	exit 1
}

case $arch in
amd64 | arm64 | s390x) goarch=$arch ;;
ppc64el) goarch=ppc64le ;;
*) die "nobody knows the architecture $arch" "use amd64, arm64, ppc64el or s390x" ;;
esac

bin=build/snap/bin-$arch
mkdir -p "$bin"
GOARCH=$goarch CGO_ENABLED=0 go build -trimpath -tags "$TAGS" -ldflags "$LDFLAGS" -o "$bin/" ./agent/cmd/canonical-livepatch ./agent/cmd/canonical-livepatchd ./loader/cmd/livepatch-loader

if [ -z "$trust" ]; then
	trust=.cache/trust
	[ -e "$trust/root.json" ] || scripts/development-trust.sh "$trust"
	echo "snap: the snap trusts the keys in $trust only, which were made here for trying things out" >&2
fi
[ -d "$trust" ] || die "there is no folder $trust" "name the one with your root.json and livepatch-kmod.x509: make snap TRUST=FOLDER"

# As snapcraft does for "version: git".
version=$(git describe --tags --dirty 2>/dev/null | sed -E 's/^v//; s/-([0-9]+)-g/+git\1./' || true)
[ -n "$version" ] || version=0+git.$(git describe --always --dirty)
date=$(git log -1 --format=%ct)

args=(-arch "$arch" -bin "$bin" -trust "$trust" -version "${SNAP_VERSION:-$version}" -date "$date" -system-user "${SYSTEM_USER:-snap_daemon}")
if [ "$out" = --tree ]; then
	exec go run ./packaging/snap "${args[@]}" -tree "$tree"
fi
mkdir -p "$(dirname "$out")"
go run ./packaging/snap "${args[@]}" -out "$out"
echo "$out: $(stat -c %s "$out") bytes, version ${SNAP_VERSION:-$version}"
