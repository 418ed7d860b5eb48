"""Benchmarks. What is set here must be set before JAX starts and before PyTorch is imported."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads must not spin while it is jaxseg's turn
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share the GPU's memory
