#!/usr/bin/env bash
# What only a GPU can tell, in pieces, the most valuable first; `--list` names them, `--help` says how they go on.
# Needs jaxseg[cuda,torch] with pytest, pytest-xdist, hypothesis and beartype for $PYTHON (default: .venv/bin/python).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
exec "${PYTHON:-.venv/bin/python}" -m scripts.gpu "$@"
