#!/usr/bin/env bash
# Runs the whole test suite; sets up everything it needs first.
#
#   scripts/test.sh [--air-gap] [--slow] [--vllm] [PYTEST ARGUMENTS]
#
#   --air-gap   (first) in a network namespace that has loopback alone, tells where else connect() went
#   --slow      also the tests that take minutes
#   --vllm      also those against a real vLLM on the CPU (a second environment of 3 GB, .venv-vllm)
#
# At most three tests that failed are run once more, alone, because the machine may be shared; one that
# passes only then is named in a line `UNSTEADY: ...` at the end. It is a defect to mend.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$REPOSITORY"

prepare .venv requirements-dev.lock
want_programs bwrap=bubblewrap rg=ripgrep cc=gcc curl=curl
want_mcp_servers .venv
fetch_default_model .venv/bin/appliance --home .appliance
case " $* " in *' --vllm '*) scripts/vllm-env ;; esac
if [ "${1:-}" = --air-gap ]; then
  shift
  want_programs unshare=util-linux ip=iproute2 strace=strace
  exec scripts/air-gap .venv/bin/python -m pytest -q "$@"
fi
step 'Tests'
test_with_second_try .venv/bin/python "$@"
