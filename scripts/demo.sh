#!/usr/bin/env bash
# A technician gets a shell on a device behind NAT: the whole path with the real programs and a real sshd.
#   demo.sh         runs and cleans up        KEEP=1 demo.sh    leaves it running       demo.sh stop    ends that
# With root, namespaces and TUN devices the server, the technician and the device are hosts of a small emulated
# network, the device behind a NAT that lets nobody in; elsewhere, and with NAT=no, all three share loopback.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"

readonly KEPT="${CARGO_TARGET_DIR:-$PWD/target}/demo-directory"
readonly LAB=tunnel-demo
readonly PROFILE="${PROFILE:-release}"
readonly MIB=64

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}
millis() { echo $(($(date +%s%N) / 1000000)); }

# --- the end ---------------------------------------------------------------------------------------------------------

end_of() { # DIRECTORY: ends what runs for it and removes it
    local dir=$1 pid pids=()
    if [[ -f $dir/pids ]]; then
        mapfile -t pids <"$dir/pids"
        kill "${pids[@]}" 2>/dev/null || true
        for _ in {1..100}; do
            kill -0 "${pids[@]}" 2>/dev/null || break
            sleep 0.05
        done
        kill -9 "${pids[@]}" 2>/dev/null || true
    fi
    if [[ -f $dir/netlab ]]; then
        "$(cat "$dir/netlab")" --lab "$LAB" down 2>/dev/null || true
    fi
    rm -rf "$dir"
}

finish() {
    local status=$?
    if ((status)); then
        printf '\ndemo: FAILED\n' >&2
        local log
        for log in "$dir"/*.log; do
            [[ -s $log ]] && { echo "--- $log" && tail -n 15 "$log"; } >&2
        done
    fi
    if ((status)) || [[ ! ${KEEP:-} =~ ^(1|yes|true)$ ]]; then
        end_of "$dir"
    fi
    exit "$status"
}

if [[ -f $KEPT ]]; then
    end_of "$(cat "$KEPT")"
    rm -f "$KEPT"
fi
[[ ${1:-} == stop ]] && exit 0

# --- what it needs ---------------------------------------------------------------------------------------------------

say "Programs"
bash scripts/install.sh sshd=openssh-server ssh=openssh-client scp=openssh-client ssh-keygen=openssh-client
case $PROFILE in dev) flags=() && target=debug ;; *) flags=(--profile "$PROFILE") && target=$PROFILE ;; esac
behind_nat=no
if [[ ${NAT:-} != no && $EUID -eq 0 && -e /dev/net/tun ]] && unshare --net true 2>/dev/null \
    && bash scripts/install.sh ip=iproute2 nft=nftables; then
    behind_nat=yes
fi
cargo build "${flags[@]}" --bins -p tunnel-server -p tunnel-agent -p tunnel-cli -p netlab
bin="${CARGO_TARGET_DIR:-$PWD/target}/$target"
ls -l "$bin"/tunnel-server "$bin"/tunnel-agent "$bin"/tunnel | awk '{ printf "%6.1f MB  %s\n", $5 / 1e6, $NF }'

dir=$(mktemp -d -t tunnel-demo.XXXXXX)
trap finish EXIT
trap 'exit 130' INT TERM

# --- the network -----------------------------------------------------------------------------------------------------

say "Network"
if [[ $behind_nat == yes ]]; then
    echo "$bin/netlab" >"$dir/netlab"
    cat >"$dir/$LAB.toml" <<'LAB'
[host.server]
address = "198.51.100.1"
[host.technician]
link = { delay = "5ms" }
[nat.site]
link = { delay = "10ms" }
[host.device]
behind = "site"
LAB
    "$bin/netlab" up "$dir/$LAB.toml" >"$dir/netlab.log"
    enter() { entered=("$bin/netlab" --lab "$LAB" exec "$1" --); }
    server=198.51.100.1:8443 listen=0.0.0.0:8443 sshd_port=22
    echo "server 198.51.100.1, technician 10 ms away from it, demo-device behind NAT and 20 ms away"
else
    enter() { entered=(env); }
    in_use() { cat /proc/net/{tcp,tcp6,udp,udp6} 2>/dev/null | awk '{ print $2 }' | grep -q ":$(printf %04X "$1")$"; }
    free_port() {
        local port
        for _ in {1..100}; do
            port=$((20000 + RANDOM % 10000))
            in_use "$port" || { echo "$port" && return; }
        done
        fail "no port is free"
    }
    port=$(free_port) sshd_port=$(free_port)
    server=127.0.0.1:$port listen=127.0.0.1:$port
    echo "no root or no namespaces here, so everything is on loopback"
fi

on() { # HOST COMMAND...
    enter "$1"
    shift
    "${entered[@]}" "$@"
}

background() { # LOG HOST COMMAND...
    local log=$dir/$1.log
    enter "$2"
    shift 2
    "${entered[@]}" "$@" >"$log" 2>&1 </dev/null &
    echo $! >>"$dir/pids"
    disown
}

until_true() { # WHAT COMMAND...
    local what=$1 end=$(($(millis) + 20000))
    shift
    until "$@" >/dev/null 2>&1; do
        (($(millis) < end)) || fail "waited 20 s for $what"
        sleep 0.05
    done
}

# --- server ----------------------------------------------------------------------------------------------------------

say "Server: init, start"
code() { grep -o 'tnl1_[A-Za-z0-9_-]*' | head -n 1; }
on server "$bin/tunnel-server" init --data "$dir/server" --node demo --trust-domain demo.test \
    --address "$server" --listen "$listen" | tee "$dir/init.out"
admin_code=$(code <"$dir/init.out")
background server server "$bin/tunnel-server" run --data "$dir/server"
until_true "the server" grep -q listening "$dir/server.log"
enrol_code() { on server "$bin/tunnel-server" enrol-code --data "$dir/server" "$@" | code; }

# --- device ----------------------------------------------------------------------------------------------------------

say "Device: sshd, enrol, start"
mkdir -m 700 "$dir/ssh"
for name in host user; do ssh-keygen -q -t ed25519 -N '' -C demo -f "$dir/ssh/$name"; done
cp "$dir/ssh/user.pub" "$dir/ssh/authorized_keys"
cat >"$dir/ssh/sshd_config" <<SSHD
Port $sshd_port
ListenAddress 127.0.0.1
HostKey $dir/ssh/host
AuthorizedKeysFile $dir/ssh/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
SSHD
[[ $EUID -eq 0 ]] && mkdir -p /run/sshd
background sshd device "$(command -v sshd)" -D -e -f "$dir/ssh/sshd_config"
cat >"$dir/agent.toml" <<AGENT
state_dir = "$dir/agent"

[services.ssh]
target = "tcp:127.0.0.1:$sshd_port"

[services.admin]
target = "tcp:127.0.0.1:9"

[ssh]
host_key_files = ["$dir/ssh/host.pub"]
AGENT
device_code=$(enrol_code --device demo-device)
on device "$bin/tunnel-agent" enrol "$device_code" --id demo-device --state "$dir/agent"
background agent device "$bin/tunnel-agent" run --config "$dir/agent.toml"

# --- operators -------------------------------------------------------------------------------------------------------

say "Operators: the first one, and a technician who may use ssh only"
as() { # OPERATOR COMMAND...
    local who=$1
    shift
    on technician env "TUNNEL_HOME=$dir/$who" "HOME=$dir" "PATH=$bin:$PATH" "$@"
}
as admin tunnel login "$admin_code"
technician_code=$(enrol_code --operator technician --group technicians)
as technician tunnel login "$technician_code"
linked() { as technician tunnel --json devices | tr -d ' \n' | grep -q '"carrier":'; }
until_true "the link of demo-device" linked
as technician tunnel devices

# --- what it is for --------------------------------------------------------------------------------------------------

user=$(id -un)
key=(-F none -o IdentitiesOnly=yes -o BatchMode=yes -i "$dir/ssh/user")
times=()
timed() { # NAME COMMAND...
    local name=$1 start
    shift
    start=$(millis)
    "$@"
    times+=("$(printf '%-44s %6d ms' "$name" $(($(millis) - start)))")
}

say "tunnel ssh demo-device -- uname -a"
timed "ssh, from the command to its output" as technician tunnel ssh "$user@demo-device" "${key[@]}" -- uname -a

say "scp of $MIB MiB there and back"
head -c $((MIB * 1048576)) /dev/urandom >"$dir/there"
timed "scp of $MIB MiB to the device" \
    as technician tunnel scp "${key[@]}" "$dir/there" "$user@demo-device:$dir/on-device"
timed "scp of $MIB MiB from the device" \
    as technician tunnel scp "${key[@]}" "$user@demo-device:$dir/on-device" "$dir/back"
sums=$(cd "$dir" && sha256sum there on-device back)
echo "$sums"
[[ $(cut -d ' ' -f 1 <<<"$sums" | sort -u | wc -l) == 1 ]] || fail "the checksums differ"

say "A service that policy does not allow: tunnel connect demo-device admin"
status=0
as technician tunnel connect demo-device admin </dev/null || status=$?
[[ $status == 3 ]] || fail "the exit code is $status and not 3"
echo "refused, exit code $status"

if [[ $behind_nat == yes ]]; then
    say "The device: what listens there, by the kernel's own list, and what comes in from outside"
    on device ss -lntup
    listening=$(on device ss -Hlntu | grep -vc '127\.0\.0\.1:22 ' || true)
    [[ $listening == 0 ]] || fail "something else than the device's own sshd on loopback listens there"
    address=$("$bin/netlab" --lab "$LAB" status | awk '$1 == "site" { print $2 }')
    if on technician timeout 1 bash -c "exec 3<>/dev/tcp/$address/22" 2>/dev/null; then
        fail "the device can be reached from outside"
    fi
    echo "a connection from outside to $address, port 22: no answer"
fi

say "Audit trail"
as admin tunnel audit --after 0
as admin tunnel audit verify

say "Times"
printf '%s\n' "${times[@]}"

if [[ ${KEEP:-} =~ ^(1|yes|true)$ ]]; then
    for who in technician admin; do
        prefix=""
        [[ $behind_nat == yes ]] && prefix="$bin/netlab --lab $LAB exec technician --"
        printf '#!/bin/sh\nexec %s env TUNNEL_HOME=%q HOME=%q PATH=%q:"$PATH" tunnel "$@"\n' \
            "$prefix" "$dir/$who" "$dir" "$bin" >"$dir/tunnel-$who"
        chmod +x "$dir/tunnel-$who"
    done
    echo "$dir" >"$KEPT"
    say "It goes on running. Three commands to try:"
    echo "  $dir/tunnel-technician ssh $user@demo-device -F none -i $dir/ssh/user"
    echo "  $dir/tunnel-technician status"
    echo "  $dir/tunnel-admin audit"
    echo "and 'make demo-stop' to end it"
else
    say "Done: every step worked"
fi
