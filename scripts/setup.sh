# Sourced by demo.sh and test.sh: makes .venv with the package in it, once, and puts its python in $PYTHON.
# The environment is rebuilt only where pyproject.toml, the extras or the Python version changed.
# Set PYTHON to choose the interpreter that makes the environment (default: python3), JAXSEG_VENV to place it elsewhere.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

setup() {
  local extras="$1" base="${PYTHON:-python3}" venv="${JAXSEG_VENV:-.venv}" stamp want
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $base is $("$base" --version 2>&1); jaxseg needs Python 3.11 or newer. Set PYTHON=/path/to/python3.x" >&2
    exit 2
  fi
  stamp="$venv/jaxseg-setup"
  want="$("$base" -c 'import sys; print(sys.version.split()[0])') $(cksum <pyproject.toml)"
  PYTHON="$PWD/$venv/bin/python"
  [[ "$venv" = /* ]] && PYTHON="$venv/bin/python"
  # The development environment can do all that the plain one can.
  if ! grep -qsxF -e "$want [$extras]" -e "$want [dev]" "$stamp"; then
    echo "setting up $venv (once; downloads about 500 MB) …"
    if ! [[ -x "$PYTHON" && "${want%% *}" = "$("$PYTHON" -c 'import sys; print(sys.version.split()[0])')" ]]; then
      rm -rf "$venv"
      "$base" -m venv "$venv" || {
        echo "error: $base cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
      }
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
    echo "$want [$extras]" >"$stamp"
  fi
}
