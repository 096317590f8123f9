#!/usr/bin/env bash
# From a clone to an agent's answer on a local model: sets up, asks, explains, and stops again.
#
#   scripts/quickstart.sh ["A QUESTION"]
#
# Everything stays in this folder (.venv, .appliance), but for the built llama.cpp, which is kept in
# ~/.cache/appliance (APPLIANCE_CACHE moves it). The second run takes seconds.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$REPOSITORY"

question=${1:-"In one sentence: why is the sky blue?"}
home=$REPOSITORY/.appliance
appliance=("$REPOSITORY/.venv/bin/appliance" --home "$home")
daemon_start_s=60
turn_file=$(mktemp)
daemon=

stop() {
    if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
        kill -TERM "$daemon"
        wait "$daemon" 2>/dev/null || true
    fi
    rm -f "$turn_file"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_daemon() {
    if "${appliance[@]}" status --json >/dev/null 2>&1; then
        say '   a daemon serves this folder already; it is asked, and left running'
        return
    fi
    local log=$home/quickstart.log waited_ms=0
    "${appliance[@]}" serve >"$log" 2>&1 </dev/null &
    daemon=$!
    until "${appliance[@]}" status --json >/dev/null 2>&1; do
        if ! kill -0 "$daemon" 2>/dev/null || [ $waited_ms -ge $((daemon_start_s * 1000)) ]; then
            tail -n 20 "$log" >&2
            fail 'the daemon does not come up' "${appliance[*]} serve"
        fi
        sleep 0.2
        waited_ms=$((waited_ms + 200))
    done
}

prepare .venv requirements.lock
step 'Default model (SmolLM2 135M, 98 MB)'
fetch_default_model "${appliance[@]}"

step 'Daemon'
start_daemon
say "   ready on $home/run/appliance.sock"

step "assistant: $question"
"${appliance[@]}" ask assistant "$question" --json |
    .venv/bin/python scripts/show_answer.py "$turn_file"

step 'What happened, and why'
"${appliance[@]}" explain "$(cat "$turn_file")"

step 'How to go on'
cat >&2 <<TEXT
   This model is tiny, so that it runs anywhere; the answer may be wrong, the machinery is not.

   .venv/bin/appliance --home .appliance serve               the daemon, in a terminal of its own
   .venv/bin/appliance --home .appliance chat assistant      a conversation
   .venv/bin/appliance --home .appliance ask backend "…"     an agent with tools
   .appliance/config.toml                                    models and agents: edit, save, done
   .appliance/models                                         put a GGUF here and name it there
   export ANTHROPIC_API_KEY=…                                before serve: Claude for what is too hard
   sudo scripts/install.sh                                   as a service of this machine
TEXT
