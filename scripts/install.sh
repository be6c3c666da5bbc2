#!/usr/bin/env bash
# Makes sure that programs are there: `install.sh PROGRAM=DEBIAN-PACKAGE...`. As root on Debian it installs what is
# missing, without starting any service; elsewhere it says what to install, and fails.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

packages=()
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
done
((${#packages[@]})) || exit 0
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "missing: ${packages[*]} (names of Debian packages); install them and try again" >&2
    exit 1
fi

echo "installing ${packages[*]}" >&2
# Programs are wanted, not services: an sshd for all the world is not what was asked for.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >&2; }
install || { apt-get update -qq >&2 && install; }
