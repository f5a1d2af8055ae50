#!/usr/bin/env bash
# Install (when missing) what the tests of the pages need: Chromium, and axe-core, which looks for what shuts people out.
#
# Chromium is Debian's, for which this needs root; axe-core is npm's, and lies in build/web, which git ignores.
# Prints "chromium ready" and exits 0 once both are there. Running it again changes nothing.
set -euo pipefail

cd "$(dirname "$0")/../.."
axe=4.10.3
log=$(mktemp)
trap 'rm -f "$log"' EXIT

die() {
    echo "start-chromium: $*" >&2
    tail -n 15 "$log" >&2
    exit 1
}

packages=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || packages+=(chromium)
command -v npm >/dev/null || [[ -f build/web/axe.min.js ]] || packages+=(npm)
if ((${#packages[@]})); then
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || die "missing: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get -o DPkg::Lock::Timeout=120 update &&
            apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "${packages[@]}"
    } >"$log" 2>&1 || die "could not install: ${packages[*]}"
fi

if [[ ! -f build/web/axe.min.js ]]; then
    mkdir -p build/web
    (cd build/web && npm pack "axe-core@$axe" && tar -xzf "axe-core-$axe.tgz" && mv package/axe.min.js . &&
        rm -rf package "axe-core-$axe.tgz") >"$log" 2>&1 || die "could not get axe-core from npm"
fi
echo "chromium ready"
