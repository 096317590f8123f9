#!/usr/bin/env bash
# Runs the whole test suite; sets up everything it needs first.
#
#   scripts/test.sh [--slow] [--vllm] [PYTEST ARGUMENTS]
#
#   --slow   also the tests that take minutes
#   --vllm   also those against a real vLLM on the CPU (a second environment of 3 GB, .venv-vllm)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$REPOSITORY"

prepare .venv requirements-dev.lock
want_programs bwrap=bubblewrap rg=ripgrep cc=gcc curl=curl
fetch_default_model .venv/bin/appliance --home .appliance
case " $* " in *' --vllm '*) scripts/vllm-env ;; esac
step 'Tests'
exec .venv/bin/python -m pytest -q "$@"
