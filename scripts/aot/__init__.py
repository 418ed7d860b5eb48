"""Programs of XLA's GPU and TPU compilers, made and read without a device. What is set here must be set before JAX starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs; the compilers are asked for by name
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the plugin would refuse libraries without a driver
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a cloud's metadata server which chips are here
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
