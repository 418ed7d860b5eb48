#!/usr/bin/env bash
# What only a GPU can tell, in one command, the most valuable first: the numerics tests on it, RMI's parity, the speed of
# step, RMI, mutual step and prediction beside PyTorch, memory, runs that are killed, the study.
# A piece that fails is named at the end, with status 1, and does not keep the others from running.
# Needs jaxseg[cuda,torch,dev] installed for $PYTHON (default: .venv/bin/python). Results, each a JSON with device and
# versions, go to $1 (default: results).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python="${PYTHON:-.venv/bin/python}"
out="${1:-results}"
tests=( # whose numbers depend on the device
  tests/models tests/losses tests/test_ops.py tests/test_metrics.py tests/test_floor.py tests/training/test_step.py
  tests/training/test_step_of_peers.py tests/training/test_loop.py tests/training/test_failures.py tests/inference
)
failed=()

# piece NAME COMMAND…
piece() {
  local name="$1"
  shift
  echo "== $name"
  "$@" || failed+=("$name: status $?")
}

# measure NAME FOLDER.MODULE OPTION…: a script, whose JSON is NAME_gpu.json
measure() {
  local name="$1" module="$2"
  shift 2
  piece "$name" "$python" -m "scripts.$module" "$@" --output="$out/${name}_gpu.json"
}

export JAX_PLATFORMS=cuda
piece "tests" "$python" -m pytest "${tests[@]}"
measure rmi_parity checks.rmi_parity
measure bench_step bench.step
measure bench_rmi bench.rmi
measure bench_mutual bench.mutual
measure bench_step_b32 bench.step --batch=32
measure memory bench.memory
for network in unet deeplabv3; do
  measure "bench_predict_$network" bench.predict --network="$network" --batch=32 --images=64
done
# Killed and started again, bit for bit; and what the deterministic operations cost that this needs on a GPU.
measure chaos checks.chaos --kills=5
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true" measure bench_step_deterministic bench.step
# The study itself, 200 epochs: hours a run (python -m scripts.study --preset=gpu --dry_run); the same line goes on.
if [[ -n "${STUDY_SOURCES:-}" ]]; then # such as "--source=cityscapes=DIR --source=voc2012=DIR"
  read -ra sources <<<"$STUDY_SOURCES"
  piece study "$python" -m scripts.study --preset=gpu --output="$out/study" "${sources[@]}"
fi

((${#failed[@]})) || exit 0
printf 'failed: %s\n' "${failed[@]}" >&2
exit 1
