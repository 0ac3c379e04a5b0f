#!/usr/bin/env bash
# A Ray cluster on this machine (Linux): a head that does no work and some worker nodes, for trying out what a real
# cluster would do. Every node has its own loopback address; dashboard and client server listen on 127.0.0.1 and every
# request needs a token.
#
#   cluster/local.sh start [WORKERS] [CPUS_PER_WORKER]   default: 2 workers that share the cores
#   cluster/local.sh status
#   cluster/local.sh stop                                ends what `start` started, and nothing else
#
# Environment, all optional:
#   BEATRAY_CLUSTER_STATE    folder for the token, logs and process ids  (~/.local/state/beatray-cluster)
#   BEATRAY_PORT, BEATRAY_DASHBOARD_PORT, BEATRAY_CLIENT_PORT            (6379, 8265, 10001)
#   BEATRAY_DASHBOARD_HOST   another address than 127.0.0.1 needs token mode
#   BEATRAY_HEAD_CPUS        CPUs of the head that may do work           (0)
#   BEATRAY_OBJECT_STORE_MB  object store of every node                  (512)
#   BEATRAY_STOP_SECONDS     how long `ray job stop` waits for a run's last checkpoint  (120)
#   RAY_AUTH_MODE            token or disabled                           (token)
#   RAY_AUTH_TOKEN_PATH      an own token file; made if it is missing    (in the state folder)
set -euo pipefail

STATE=${BEATRAY_CLUSTER_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/beatray-cluster}
PORT=${BEATRAY_PORT:-6379}
DASHBOARD_PORT=${BEATRAY_DASHBOARD_PORT:-8265}
CLIENT_PORT=${BEATRAY_CLIENT_PORT:-10001}
DASHBOARD_HOST=${BEATRAY_DASHBOARD_HOST:-127.0.0.1}
HEAD_CPUS=${BEATRAY_HEAD_CPUS:-0}
OBJECT_STORE_MB=${BEATRAY_OBJECT_STORE_MB:-512}
STOP_SECONDS=${BEATRAY_STOP_SECONDS:-120}
MODE=${RAY_AUTH_MODE:-token}
HEAD_IP=127.0.0.2 # Ray replaces 127.0.0.1 by the address of the network card; the rest of 127.0.0.0/8 it leaves
READY="Ray runtime started"
DRAIN_SECONDS=10

die() {
    printf 'cluster/local.sh: %s\n' "$*" >&2
    exit 1
}

# The processes of this cluster: all inherit a mark that names the state folder, and nothing else has it.
processes() {
    local found
    found=$(grep -lszxF "BEATRAY_CLUSTER=$STATE" /proc/[0-9]*/environ || true)
    found=${found//\/proc\//}
    printf '%s' "${found//\/environ/}"
}

whole_number() {
    [[ $2 =~ ^[0-9]+$ ]] || die "$1 must be a whole number, not '$2'"
    ((10#$2 >= $3)) || die "$1 must be at least $3, not $2"
}

check_port() {
    whole_number "$1" "$2" 1
    if (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then
        die "port $2 is in use; choose another one with $1"
    fi
}

is_loopback() {
    [[ $1 == localhost || $1 == ::1 || $1 =~ ^127\.[0-9]+\.[0-9]+\.[0-9]+$ ]]
}

# A token of 256 random bits that only this user can read.
make_token() {
    if [[ ! -e $TOKEN ]]; then
        mkdir -p "$(dirname "$TOKEN")"
        (umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$TOKEN")
    fi
    [[ -s $TOKEN ]] || die "the token file $TOKEN is empty; remove it, and start again"
    case $(stat -L -c %a "$TOKEN") in
    600 | 400) ;;
    *) die "others may read the token: chmod 600 $TOKEN" ;;
    esac
}

# node NAME ARGUMENTS: one Ray node in a session of its own, so that it outlives this terminal.
node() {
    local name=$1
    shift
    BEATRAY_CLUSTER=$STATE setsid ray start --block --disable-usage-stats --temp-dir="$TEMPORARY/$name" \
        --object-store-memory="$((OBJECT_STORE_MB * 1024 * 1024))" --min-worker-port=0 --max-worker-port=0 \
        --dashboard-agent-listen-port=0 --metrics-export-port=0 "$@" \
        </dev/null >"$STATE/logs/$name.log" 2>&1 &
    NODES+=("$name $!")
}

wait_ready() {
    local entry name pid
    for entry in "${NODES[@]}"; do
        read -r name pid <<<"$entry"
        until grep -q "$READY" "$STATE/logs/$name.log"; do
            if ((SECONDS > 180)) || ! kill -0 "$pid" 2>/dev/null; then
                tail -n 20 "$STATE/logs/$name.log" >&2
                stop >&2
                die "the $name did not start"
            fi
            sleep 0.2
        done
    done
}

start() {
    local workers=${1:-2} cpus=${2:-} number
    [[ $(uname -s) == Linux ]] || die "several Ray nodes on one machine work on Linux only"
    whole_number WORKERS "$workers" 1
    ((workers <= 250)) || die "WORKERS must be at most 250, not $workers"
    cpus=${cpus:-$(($(nproc) / workers > 1 ? $(nproc) / workers : 1))}
    whole_number CPUS_PER_WORKER "$cpus" 1
    whole_number BEATRAY_HEAD_CPUS "$HEAD_CPUS" 0
    whole_number BEATRAY_OBJECT_STORE_MB "$OBJECT_STORE_MB" 80
    whole_number BEATRAY_STOP_SECONDS "$STOP_SECONDS" 1
    [[ $MODE == token || $MODE == disabled ]] || die "RAY_AUTH_MODE must be token or disabled, not '$MODE'"
    if [[ $MODE == disabled ]] && ! is_loopback "$DASHBOARD_HOST"; then
        die "a dashboard on $DASHBOARD_HOST without a token lets anyone who reaches it run commands here; unset" \
            "RAY_AUTH_MODE or BEATRAY_DASHBOARD_HOST"
    fi
    command -v ray >/dev/null || die "there is no 'ray' on the PATH: activate the environment that beatray is in"
    [[ -z $(processes) ]] || die "a cluster runs already ($STATE); cluster/local.sh stop ends it"
    check_port BEATRAY_PORT "$PORT"
    check_port BEATRAY_DASHBOARD_PORT "$DASHBOARD_PORT"
    check_port BEATRAY_CLIENT_PORT "$CLIENT_PORT"

    chmod 700 "$STATE"
    mkdir -p "$STATE/logs"
    rm -f "$STATE"/logs/*.log
    export RAY_AUTH_MODE=$MODE RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=$STOP_SECONDS
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=$DRAIN_SECONDS
    unset RAY_AUTH_TOKEN RAY_ADDRESS
    if [[ $MODE == token ]]; then
        export RAY_AUTH_TOKEN_PATH=$TOKEN
        make_token
    fi
    TEMPORARY=$(mktemp -d /tmp/br.XXXXXX) # short: the sockets in it may have 107 characters at most
    printf '%s\n' "$TEMPORARY" >"$STATE/temporary"

    NODES=()
    node head --head --num-cpus="$HEAD_CPUS" --num-gpus=0 --node-ip-address="$HEAD_IP" --port="$PORT" \
        --dashboard-host="$DASHBOARD_HOST" --dashboard-port="$DASHBOARD_PORT" --ray-client-server-port="$CLIENT_PORT"
    wait_ready
    for ((number = 1; number <= workers; number++)); do
        local gpus=(--num-gpus=0) # all nodes see the same GPUs: the first one has them
        ((number > 1)) || gpus=()
        node "worker-$number" --address="$HEAD_IP:$PORT" --node-ip-address="127.0.0.$((number + 2))" \
            --num-cpus="$cpus" "${gpus[@]}"
    done
    wait_ready

    {
        printf 'unset RAY_AUTH_TOKEN\n' # it would win over the file
        printf 'export RAY_AUTH_MODE=%s\n' "$MODE"
        [[ $MODE != token ]] || printf 'export RAY_AUTH_TOKEN_PATH=%q\n' "$TOKEN"
        printf 'export RAY_ADDRESS=%s\n' "$HEAD_IP:$PORT"
        printf 'export RAY_API_SERVER_ADDRESS=http://%s:%s\n' "${DASHBOARD_HOST/#0.0.0.0/127.0.0.1}" "$DASHBOARD_PORT"
    } >"$STATE/environment"
    printf 'A head and %s workers of %s CPUs run; logs in %s/logs\n' "$workers" "$cpus" "$STATE"
    printf 'For every shell that uses it (or: source %q):\n\n' "$STATE/environment"
    cat "$STATE/environment"
    printf '\nray job submit --working-dir . -- python jobs/pretrain.py corpus=/ABSOLUTE/corpus out=/ABSOLUTE/runs '
    printf 'run=first train.workers=%s\n' "$workers"
}

# True if the process is the `ray start` of a node; with a second argument, if it was given that one.
is_node() {
    local arguments
    arguments=$(tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline") || return 1
    grep -qxF -- --block <<<"$arguments" && { (($# == 1)) || grep -qxF -- "$2" <<<"$arguments"; }
} 2>/dev/null

# end SECONDS PID...: asks the processes to end and waits for them.
end() {
    local deadline=$((SECONDS + $1)) pid
    shift
    for pid in "$@"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "$@"; do
        while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1; done
    done
}

# A node drains and ends its own children when its `ray start` gets a signal; what outlives that is killed.
stop() {
    local pid heads=() workers=()
    for pid in $(processes); do
        if is_node "$pid" --head; then heads+=("$pid"); elif is_node "$pid"; then workers+=("$pid"); fi
    done
    end $((DRAIN_SECONDS + 20)) "${workers[@]}"
    end $((DRAIN_SECONDS + 20)) "${heads[@]}"
    for pid in $(processes); do kill -KILL "$pid" 2>/dev/null || true; done
    if [[ -f $STATE/temporary ]]; then
        TEMPORARY=$(<"$STATE/temporary")
        if [[ $TEMPORARY == /tmp/br.?????? ]]; then rm -rf -- "$TEMPORARY"; fi
        rm -f "$STATE/temporary" "$STATE/environment"
    fi
    printf 'stopped %s nodes\n' $((${#heads[@]} + ${#workers[@]}))
}

status() {
    if [[ -z $(processes) || ! -f $STATE/environment ]]; then
        printf 'no cluster runs (%s)\n' "$STATE"
        return 3
    fi
    # shellcheck source=/dev/null
    source "$STATE/environment"
    ray list nodes --address "$RAY_API_SERVER_ADDRESS"
}

(umask 077 && mkdir -p "$STATE")
STATE=$(cd "$STATE" && pwd -P)
TOKEN=${RAY_AUTH_TOKEN_PATH:-$STATE/token}
case ${1:-} in
start) shift && start "$@" ;;
stop) stop ;;
status) status ;;
*)
    sed -n '2,/^set -euo/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
