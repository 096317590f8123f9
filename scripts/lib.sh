# shellcheck shell=bash
# What quickstart.sh, test.sh, check and install.sh share: a virtual environment with exactly the
# locked packages, and llama.cpp built once. Sourced, never run. Every step is skipped when its
# inputs (locks, Python, build flags) are what they were, so a second run takes a second.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${APPLIANCE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/appliance}
PYTHON_MIN_MINOR=11

# ── Saying what happens ──────────────────────────────────────────────────────────────────────────

is_terminal() { [ -t 2 ]; }

say() { printf '%s\n' "$*" >&2; }

step() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
is_terminal || step() { printf '== %s\n' "$*" >&2; }

fail() { # WHAT [NEXT COMMAND]
    say "error: $1"
    [ $# -lt 2 ] || say "  try: $2"
    exit 1
}

# Shows TEXT on one line that is overwritten; without a terminal only every tenth change is a line.
show_progress() { # PERCENT TEXT
    if is_terminal; then
        printf '\r\033[K   %3d %%  %s' "$1" "$2" >&2
    elif [ "$(($1 / 10))" != "${shown_tenth:-}" ]; then
        shown_tenth=$(($1 / 10))
        say "   $1 %  $2"
    fi
}

end_progress() {
    shown_tenth=
    ! is_terminal || printf '\r\033[K' >&2
}

# Runs a quiet command with the seconds it takes in view; its output is shown only if it fails.
run_quietly() { # WHAT COMMAND...
    local what=$1 log started pid
    shift
    log=$(mktemp)
    started=$SECONDS
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        ! is_terminal || printf '\r\033[K   %s … %d s' "$what" $((SECONDS - started)) >&2
        sleep 0.2
    done
    ! is_terminal || printf '\r\033[K' >&2
    if ! wait "$pid"; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
    say "   $what: done in $((SECONDS - started)) s"
}

# ── The system's packages ────────────────────────────────────────────────────────────────────────

# Installs packages of Debian or Ubuntu when root; otherwise prints the one line that does.
need_packages() { # PACKAGE...
    local line="apt-get install -y --no-install-recommends $*"
    command -v apt-get >/dev/null || fail "this machine lacks: $*" "install them and run this again"
    [ "$(id -u)" = 0 ] || fail "this machine lacks: $*" "sudo $line"
    run_quietly 'apt-get update' apt-get update
    run_quietly "installing $*" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@" ||
        fail "the packages could not be installed" "$line"
}

# Programs that are used where they are there: installed when root, otherwise named.
want_programs() { # PROGRAM=PACKAGE...
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        (need_packages "${missing[@]}") || say "   going on without: ${missing[*]}"
    else
        say "   going on without: ${missing[*]} (sudo apt-get install ${missing[*]})"
    fi
}

# Real MCP servers for the tests: exactly the locked packages of npm, none of their scripts run.
# Without npm, or without a network, the tests that want one say that it is not there.
want_mcp_servers() { # VENV
    local venv=$1 source=$REPOSITORY/tests/fakes/mcp/npm wanted
    if ! command -v npm >/dev/null; then
        say '   going on without: real MCP servers of Node (no npm here)'
        return 0
    fi
    wanted=$(digest "$source/package-lock.json")
    if is_stamped "$venv" mcp-servers "$wanted"; then
        return 0
    fi
    mkdir -p "$venv/mcp-servers"
    cp "$source/package.json" "$source/package-lock.json" "$venv/mcp-servers/"
    if run_quietly 'real MCP servers' npm ci --prefix "$venv/mcp-servers" --ignore-scripts \
        --no-audit --no-fund --silent; then
        stamp "$venv" mcp-servers "$wanted"
    else
        say '   going on without: real MCP servers of Node'
    fi
}

# Prints the newest usable interpreter: 3.11 or later.
find_python() {
    local name
    for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null &&
            "$name" -c "import sys; sys.exit(sys.version_info < (3, $PYTHON_MIN_MINOR))"; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.$PYTHON_MIN_MINOR or later is needed; python3 here is $(python3 -V 2>&1 || true)" \
        "install it and run: PYTHON=/path/to/python3.$PYTHON_MIN_MINOR $0"
}

# ── The virtual environment ──────────────────────────────────────────────────────────────────────

make_venv() { # VENV
    local venv=$1 python version packages
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    step "Virtual environment ($venv, Python $version)"
    rm -rf "$venv"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        run_quietly 'python -m venv' "$python" -m venv "$venv"
    elif "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip "$venv"; then
        # Debian keeps ensurepip in a package of its own; a pip of the system can stand in for it.
        run_quietly 'pip into it' "$python" -m pip --python "$venv/bin/python" install pip
    else
        packages=("python$version-venv")
        command -v c++ >/dev/null || packages+=(g++)
        need_packages "${packages[@]}"
        run_quietly 'python -m venv' "$python" -m venv "$venv"
    fi
}

# Whether STAMP in the environment holds this text; `stamp` writes it, after the work is done.
is_stamped() { [ "$(cat "$1/.stamp-$2" 2>/dev/null)" = "$3" ]; }
stamp() { printf '%s\n' "$3" >"$1/.stamp-$2"; }

digest() { cat "$@" | sha256sum | cut -c1-16; }

install_locked() { # VENV LOCK
    local venv=$1 lock=$2 wanted
    wanted=$(digest "$REPOSITORY/$lock")
    if is_stamped "$venv" "$lock" "$wanted"; then
        return
    fi
    step "Python packages ($(grep -c '^[a-z]' "$REPOSITORY/$lock"), hashes checked)"
    run_quietly 'pip install' "$venv/bin/python" -m pip install --quiet --no-deps --require-hashes \
        -r "$REPOSITORY/$lock" ||
        fail "the packages of $lock could not be installed" "check the network, then run this again"
    stamp "$venv" "$lock" "$wanted"
}

# The package itself, as a link to this checkout (or as a copy, with --copy).
install_package() { # VENV [--copy]
    local venv=$1 how=(-e) wanted
    wanted="$REPOSITORY ${2:-} $(digest "$REPOSITORY/pyproject.toml")"
    if [ "${2:-}" = --copy ]; then
        how=()
    elif is_stamped "$venv" package "$wanted"; then
        return
    fi
    run_quietly 'the appliance itself' "$venv/bin/python" -m pip install --quiet --no-deps \
        --no-build-isolation --force-reinstall "${how[@]}" "$REPOSITORY" ||
        fail 'the package could not be installed'
    stamp "$venv" package "$wanted"
}

# ── llama.cpp, built once ────────────────────────────────────────────────────────────────────────

has_gpu() { compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null; }

build_flags() {
    if [ -n "${CMAKE_ARGS:-}" ]; then
        printf '%s' "$CMAKE_ARGS"
    elif has_gpu && command -v nvcc >/dev/null; then
        printf '%s' '-DGGML_CUDA=on'
    fi
}

# The folder its wheel is kept in: named by all that makes two wheels differ. ggml compiles for the
# very processor it is built on, so the processor's features are part of the name.
wheel_folder() { # PYTHON
    local version features
    version=$(sed -n 's/^llama-cpp-python==\([0-9.]*\).*/\1/p' "$REPOSITORY/requirements-llama.lock")
    features=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo || uname -m)
    printf '%s/wheels/llama-cpp-python-%s-%s-%s-%s' "$CACHE" "$version" \
        "$("$1" -c 'import sys; print(sys.implementation.cache_tag)')" "$(uname -m)" \
        "$(printf '%s|%s' "$(build_flags)" "$features" | sha256sum | cut -c1-12)"
}

install_llama() { # VENV
    local venv=$1 folder
    folder=$(wheel_folder "$venv/bin/python")
    if is_stamped "$venv" llama "$folder"; then
        return
    fi
    if ! compgen -G "$folder/*.whl" >/dev/null; then
        build_llama "$venv" "$folder"
    fi
    run_quietly 'llama-cpp-python' "$venv/bin/python" -m pip install --quiet --no-deps \
        --force-reinstall "$folder"/*.whl
    stamp "$venv" llama "$folder"
}

build_llama() { # VENV FOLDER
    local venv=$1 folder=$2 flags log work started percent rest line
    flags=$(build_flags)
    if ! command -v c++ >/dev/null; then
        step 'A compiler'
        need_packages g++
    fi
    if has_gpu && [ "$flags" != -DGGML_CUDA=on ]; then
        say '   note: there is a GPU but no nvcc, so llama.cpp is built for the CPU alone;'
        say '         install the CUDA toolkit and run this again to use the GPU'
    fi
    step "llama.cpp from source${flags:+ ($flags)}: about 8 minutes on two cores, once"
    mkdir -p "$folder"
    work=$(mktemp -d "$CACHE/build.XXXXXX")
    log=$folder/build.log
    started=$SECONDS
    # ninja's own count, [12/345], is the only honest progress there is.
    if ! CMAKE_ARGS=$flags "$venv/bin/python" -m pip wheel --verbose --no-deps --no-cache-dir \
        --require-hashes -r "$REPOSITORY/requirements-llama.lock" -w "$work" 2>&1 </dev/null |
        tee "$log" | while IFS= read -r line; do
            if [[ $line =~ \[([0-9]+)/([0-9]+)\]\ (.*) ]]; then
                percent=$((100 * BASH_REMATCH[1] / BASH_REMATCH[2]))
                rest=${BASH_REMATCH[3]##*/}
                show_progress "$percent" "$((SECONDS - started)) s  ${rest:0:50}"
            fi
        done; then
        end_progress
        tail -n 30 "$log" >&2
        rm -rf "$work"
        fail "llama-cpp-python could not be built (the whole log: $log)" "$0"
    fi
    end_progress
    mv "$work"/*.whl "$folder/"
    rm -rf "$work"
    say "   built in $((SECONDS - started)) s, kept in $folder"
}

# ── All of it ────────────────────────────────────────────────────────────────────────────────────

# Runs pytest; at most three tests that failed are run once more, alone and after the others: the
# machine may be shared, and what a neighbour takes from a test for a moment is no fault of the tree.
# A test that passes only then is named at the end, and is a defect of its own to mend. A run that
# stops at its first failure has not seen the others, and is not repeated.
test_with_second_try() { # PYTHON PYTEST-ARGUMENTS...
    local python=$1 cache ended=0 failed
    shift
    case " $* " in *' -x '* | *' --exitfirst '* | *' --maxfail'*)
        "$python" -m pytest -q "$@"
        return
        ;;
    esac
    cache=$(mktemp -d)
    "$python" -m pytest -q -o cache_dir="$cache" "$@" || ended=$?
    failed=$("$python" -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' \
        "$cache/v/cache/lastfailed" 2>/dev/null) || failed=
    if [ $ended != 1 ] || [ -z "$failed" ] || [ "$(wc -l <<<"$failed")" -gt 3 ]; then
        rm -rf "$cache"
        return $ended
    fi
    step 'Once more, alone'
    ended=0
    "$python" -m pytest -q -o cache_dir="$cache" --last-failed "$@" || ended=$?
    rm -rf "$cache"
    if [ $ended = 0 ]; then
        sed 's/^/UNSTEADY: /' <<<"$failed"
    fi
    return $ended
}

# Leaves an environment in which the appliance runs; with `requirements-dev.lock`, its tests too.
prepare() { # VENV LOCK
    mkdir -p "$CACHE/wheels"
    make_venv "$1"
    install_locked "$1" "$2"
    install_package "$1"
    install_llama "$1"
}

# The default model in the models folder that this command means, verified.
fetch_default_model() { # APPLIANCE [--home HOME]
    local quiet=()
    is_terminal || quiet=(--json)
    "$@" models fetch smollm2-135m-instruct-q4_1 "${quiet[@]}" >&2
}
