# Sourced by demo.sh and test.sh: makes .venv with the package in it, once, and puts its python in $PYTHON.
# The environment is rebuilt only where pyproject.toml, the extras or the Python version changed.
# Set PYTHON to choose the interpreter that makes the environment, JAXSEG_VENV to place it elsewhere.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# In November 2026 all dependencies had wheels for 3.14, though no test ran on it; grain and tensorstore had none for 3.15.
PYTHON_NEEDED="Python 3.12, 3.13 or 3.14 with its module ensurepip"

# Prints the version of an interpreter that can make the environment, and fails for any other.
# It is run, because a name may be found and be none: pyenv's shims fail for versions that are not active.
suitable_version() {
  "$1" -c 'import sys, ensurepip
if not (3, 12) <= sys.version_info < (3, 15): sys.exit(1)
print(*sys.version_info[:3], sep=".")' </dev/null 2>/dev/null
}

# Where interpreters may be, best first; not all are there.
python_candidates() {
  printf '%s\n' python3.14 python3.13 python3.12 python3
  printf '%s\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python | sort -rV
  ! command -v uv >/dev/null || uv python find --system '>=3.12,<3.15' 2>/dev/null
}

# Prints the interpreter to make the environment with: $PYTHON, or else the first that is suitable.
find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    suitable_version "$PYTHON" >/dev/null && echo "$PYTHON" && return
    echo "error: PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 || true); expected $PYTHON_NEEDED." \
      "Name another, or unset PYTHON to have one looked for." >&2
    return 2
  fi
  while read -r candidate; do
    suitable_version "$candidate" >/dev/null && echo "$candidate" && return
  done < <(python_candidates)
  cat >&2 <<EOF
error: no $PYTHON_NEEDED was found: not on PATH, nor among the versions of pyenv or uv. Install one, such as
  Debian 13, Ubuntu 24.04:  apt install python3 python3-venv
  pyenv:                    pyenv install 3.12
  uv:                       uv python install 3.12
or name one: PYTHON=/path/to/python3.12
EOF
  return 2
}

setup() {
  local extras="$1" venv="${JAXSEG_VENV:-.venv}" base version stamp want
  base="$(find_python)" || exit 2
  version="$(suitable_version "$base")"
  stamp="$venv/jaxseg-setup"
  want="$version $(cksum <pyproject.toml)"
  PYTHON="$PWD/$venv/bin/python"
  [[ "$venv" = /* ]] && PYTHON="$venv/bin/python"
  # The development environment can do all that the plain one can.
  if ! grep -qsxF -e "$want [$extras]" -e "$want [dev]" "$stamp"; then
    echo "setting up $venv with $base, Python $version (once, some minutes: downloads about 360 MB, takes 1.35 GB of disk) …"
    if [[ "$version" != "$(suitable_version "$PYTHON")" ]]; then
      if [[ -e "$venv" && ! -e "$stamp" ]]; then # made by somebody else: never removed
        echo "error: $venv is there, and this script did not make it. Move it away, or set JAXSEG_VENV=FOLDER." >&2
        exit 2
      fi
      rm -rf "$venv"
      "$base" -m venv "$venv"
      : >"$stamp"
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
    echo "$want [$extras]" >"$stamp"
  fi
}
