#!/usr/bin/env bash
# Records docs/session.cast: one `tunnel ssh` with a running counter, while the server is killed and started again, UDP is
# banned and allowed again, and the device's network gets another address. Needs root, as the demo behind NAT does, and
# asciinema (`pip install asciinema`); with svg-term (`npm install svg-term-cli`) it draws docs/session.svg too.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ${1:-} == play ]]; then
    # What is recorded: this script again, on a terminal.
    dir=$2
    # shellcheck source=/dev/null
    . "$dir/names"
    say() { printf '\033[1;33m== %s\033[0m\n' "$*"; }
    lab() { "$NETLAB" --lab tunnel-demo "$@"; }
    start_server() {
        lab exec server -- "$SERVER" run --data "$dir/server" >>"$dir/server.log" 2>&1 </dev/null &
        echo $! >>"$dir/pids"
    }
    faults() {
        sleep 3
        say "kill -9 of the server, which is the relay"
        kill -9 "$(head -n 1 "$dir/pids")"
        sleep 1
        say "the server is started again"
        start_server
        sleep 4
        say "the device's network bans UDP"
        lab set site block=udp >/dev/null
        sleep 6
        say "the ban ends"
        lab set site block=none >/dev/null
        sleep 3
        say "the device's network gets another address, all NAT bindings are gone"
        lab rebind site >/dev/null
        sleep 3
        say "the technician's network is cut for three seconds"
        lab cut technician >/dev/null
        sleep 3
        lab mend technician >/dev/null
    }
    # shellcheck disable=SC2016
    count='i=0; while [ $i -lt 120 ]; do i=$((i+1)); printf "%3d  %s\n" $i "$(date +%T.%N | cut -c1-10)"; sleep 0.25; done'
    printf '\033[1;32m$\033[0m tunnel ssh demo-device -- count\n'
    sleep 1
    faults &
    "$dir/tunnel-technician" ssh "$(id -un)@demo-device" -F none -o IdentitiesOnly=yes -i "$dir/ssh/user" -- "$count"
    wait
    say "one session, every number once"
    sleep 2
    exit 0
fi

command -v asciinema >/dev/null || { echo "record: asciinema is missing: pip install asciinema" >&2; exit 1; }
KEEP=1 bash scripts/demo.sh
trap 'bash scripts/demo.sh stop' EXIT
target=${CARGO_TARGET_DIR:-$PWD/target}
dir=$(cat "$target/demo-directory")
[[ -f $dir/netlab ]] || { echo "record: needs root and network namespaces" >&2; exit 1; }
bin=$(dirname "$(cat "$dir/netlab")")
printf 'NETLAB=%q\nSERVER=%q\n' "$bin/netlab" "$bin/tunnel-server" >"$dir/names"
asciinema rec --quiet --overwrite --cols 76 --rows 24 --idle-time-limit 4 --title "one ssh session through everything" \
    --command "bash scripts/record.sh play $dir" docs/session.cast

# What was shown is also checked: every number once, in order.
numbers=$(python3 - docs/session.cast <<'PYTHON'
import json, re, sys
text = "".join(json.loads(line)[2] for line in open(sys.argv[1]).readlines()[1:])
print(*re.findall(r"^\s*(\d+)  \d\d:", text, re.M))
PYTHON
)
[[ $numbers == "$(seq -s ' ' 120)" ]] || { echo "record: numbers are missing or doubled: $numbers" >&2; exit 1; }
if command -v svg-term >/dev/null; then
    svg-term --in docs/session.cast --out docs/session.svg --window
fi
