#!/usr/bin/env bash
# Makes what a snap for trying things out trusts, in a new folder: a service, a
# repository with its keys, and a key for modules. The service can be run, and
# patches published for that snap; see docs/how-to/build-the-snap.md.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$1
make build
mkdir -p "$dir"
umask 077
head -c 24 /dev/urandom | base64 >"$dir/passphrase"
publish() { build/bin/livepatch-publish --repo "$dir/repository" --passphrase-file "$dir/passphrase" "$@" >&2; }
build/bin/livepatch-server init --dir "$dir/service" >&2
publish init --online-keys "$dir/service/online-keys.json"
publish keys create modules --kmod --common-name "Livepatch modules, for trying out" --cert "$dir/livepatch-kmod.x509"
publish root show --output "$dir/root.json" # last: its presence says that all is there
