#!/usr/bin/env bash
# What only a GPU can tell, in one command: the numerics tests on it, RMI's parity, the speed of
# step, RMI, mutual step and prediction beside PyTorch, memory, runs that are killed.
# Needs jaxseg[cuda,torch,dev] installed for $PYTHON (default: .venv). Results go to $1 (default: results).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-.venv/bin/python}" out="${1:-results}"
export JAX_PLATFORMS=cuda
"$python" -m pytest tests/test_models.py tests/test_deeplabv3.py tests/test_losses.py tests/test_mutual.py tests/test_pooling.py tests/test_rmi.py tests/test_metrics.py \
  tests/test_step.py tests/test_train.py tests/test_limits.py tests/test_infer.py tests/test_evaluate.py tests/test_export.py
mkdir -p "$out"
"$python" scripts/check_rmi_parity.py --output="$out/rmi_parity_gpu.json"
"$python" scripts/bench_rmi.py --output="$out/bench_rmi_gpu.json"
"$python" scripts/bench_step.py --output="$out/bench_step_gpu.json"
"$python" scripts/bench_step.py --batch=32 --output="$out/bench_step_gpu_b32.json"
"$python" scripts/bench_mutual.py --output="$out/bench_mutual_gpu.json"
"$python" scripts/bench_predict.py --batch=32 --images=64 --output="$out/bench_predict_unet_gpu.json"
"$python" scripts/bench_predict.py --network=deeplabv3 --batch=32 --images=64 --output="$out/bench_predict_deeplabv3_gpu.json"
"$python" scripts/memory.py --output="$out/memory_gpu.json"
# Killed and started again, bit for bit; and what the deterministic operations cost that this needs on a GPU.
"$python" -m scripts.chaos --kills=5 --output="$out/chaos_gpu.json"
XLA_FLAGS=--xla_gpu_deterministic_ops=true "$python" scripts/bench_step.py --output="$out/bench_step_gpu_deterministic.json"
# The study itself, 200 epochs: hours a run (python -m scripts.study --preset=gpu --dry_run); the same line goes on.
if [[ -n "${STUDY_SOURCES:-}" ]]; then # such as "--source=cityscapes=DIR --source=voc2012=DIR"
  read -ra sources <<<"$STUDY_SOURCES"
  "$python" -m scripts.study --preset=gpu --output="$out/study" "${sources[@]}"
fi
