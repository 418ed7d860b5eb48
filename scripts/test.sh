#!/usr/bin/env bash
# The checks that every change passes: style, types, then the tests but those marked slow. As first word --all: all tests.
# Other options are passed on to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup "dev"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
if [[ "${1:-}" = --all ]]; then shift; else set -- -m "not slow" "$@"; fi
exec "$PYTHON" -m pytest -n 2 "$@"
