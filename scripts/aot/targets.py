"""What is compiled for: machines by name, what their vendors say they can do, and which packages hold their compilers.

In: "h100", "h100:8", "v5e:2x4". Out: a `Target`, and its devices, which exist only as descriptions.
"""

import dataclasses
import math
import re
from importlib import metadata

from jax.experimental import topologies

from jaxseg.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Machine:
    """One kind of device.

    Args:
      platform: XLA's name of its compiler.
      bandwidth: of its memory, bytes per second.
      flops: dense, per second, by dtype of the computation, as JAX multiplies by default: float32 in TF32 on a GPU, in
        bfloat16 on a TPU.
      memory: bytes.
      source: of these numbers.
    """

    platform: str
    bandwidth: float
    flops: dict[str, float]
    memory: float
    source: str


GOOGLE = "Google Cloud's page on TPU"
MACHINES = {
    "h100": Machine(
        "cuda", 3.35e12, {"float32": 494.7e12, "bfloat16": 989.4e12}, 80e9,
        "NVIDIA H100 SXM5: architecture white paper (dense TF32, bfloat16), data sheet (3.35 TB/s, 80 GB)",
    ),
    "v4": Machine("tpu", 1228e9, dict.fromkeys(("float32", "bfloat16"), 275e12), 32 * 2**30, f"{GOOGLE} v4"),
    "v5e": Machine("tpu", 819e9, dict.fromkeys(("float32", "bfloat16"), 197e12), 16e9, f"{GOOGLE} v5e"),
    "v6e": Machine("tpu", 1638e9, dict.fromkeys(("float32", "bfloat16"), 918e12), 32e9, f"{GOOGLE} v6e"),
}  # fmt: skip

PACKAGES = {
    "cuda": (
        "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cublas", "nvidia-cuda-cupti", "nvidia-cuda-nvcc", "nvidia-cuda-nvrtc",
        "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cufft", "nvidia-cusolver", "nvidia-cusparse", "nvidia-nccl-cu13",
        "nvidia-nvjitlink", "nvidia-nvshmem-cu13", "nvidia-nvvm",
    ),
    "tpu": ("libtpu",),
}  # fmt: skip

# What XLA's GPU compiler has to know of a device that is not there: xla/tools/hlo_opt/gpu_specs/h100_sxm.txtpb of
# openxla/xla, with the version of cuDNN that is installed.
H100 = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {0} minor: {1} patch: {2} }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of devices of one kind: their name, the kind, and how they are arranged."""

    name: str
    machine: Machine
    topology: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        return math.prod(self.topology)


def find_target(name: str) -> Target:
    """
    >>> find_target("v5e:2x4").num_devices, find_target("h100").num_devices
    (8, 1)
    """
    kind, _, arranged = name.partition(":")
    if kind not in MACHINES:
        raise InputError(f"--target={name}: none of {', '.join(MACHINES)}.{did_you_mean(kind, MACHINES)}")
    if not re.fullmatch(r"\d+(x\d+)*", arranged or "1") or (MACHINES[kind].platform == "cuda" and "x" in arranged):
        raise InputError(f"--target={name}: expected h100, h100:8 (devices of a host) or v5e:2x4 (chips as they lie).")
    if MACHINES[kind].platform == "tpu" and not arranged:
        raise InputError(f"--target={name}: how many chips? Expected {kind}:2x2 or the like.")
    return Target(name, MACHINES[kind], tuple(map(int, (arranged or "1").split("x"))))


def missing_packages(platform: str) -> list[str]:
    """Of what the compiler for "cuda" or "tpu" needs, the packages that are not installed."""
    missing = []
    for package in PACKAGES[platform]:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    return missing


def check_packages(target: Target) -> None:
    if missing := missing_packages(target.machine.platform):
        raise InputError(
            f"--target={target.name}: not installed: {', '.join(missing)}. pip install -e '.[aot]' installs them; a GPU or"
            " TPU need not be there."
        )


def versions(target: Target) -> dict[str, str]:
    """Of the packages that compile."""
    return {package: metadata.version(package) for package in PACKAGES[target.machine.platform]}


def described_devices(target: Target) -> tuple:
    """Devices to compile for; none of them is there, and nothing can be run on them."""
    if target.machine.platform == "tpu":
        return tuple(topologies.get_topology_desc(target.name, platform="tpu").devices)
    config = H100.format(*metadata.version("nvidia-cudnn-cu13").split("."))
    arranged = f"1x1x{target.num_devices}"  # slices, hosts, devices of a host
    described = topologies.get_topology_desc(target.name, platform="cuda", topology=arranged, target_config=config)
    return tuple(described.devices)
