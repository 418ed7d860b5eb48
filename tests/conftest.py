"""Four simulated devices for every test, and the fixtures that several tests share."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests compile the same small network: once is enough.
CACHE = tempfile.mkdtemp(prefix="jaxseg-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import atexit
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxseg.config import use_mutual_learning
from jaxseg.data.prepare import prepare
from tests import raw_data
from tests.configs import tiny_config
from tests.runs import save_untrained

# GPUs multiply float32 in TF32 unless told otherwise: recorded float32 results need float32.
jax.config.update("jax_default_matmul_precision", "highest")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped():
    """After every module: each holds memory maps, of which a process may have 65,530 (vm.max_map_count). In one process
    all tests once ran out of something, and a compilation aborted; since then they have not."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with recorded PyTorch results and real images, where it lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: no recorded PyTorch results and no real images to test against")
    return SHARED


@pytest.fixture(scope="session")
def four_devices():
    """Four local devices: simulated on a CPU; on other hardware only where they are there."""
    if jax.local_device_count() != 4:
        pytest.skip(f"{jax.local_device_count()} {jax.default_backend()} device(s) here; this test needs four")


@pytest.fixture(scope="session")
def golden(shared):
    """name -> arrays of a recorded file; "weights" are drawn anew as the file's state_dict_spec says."""

    def load(name: str) -> dict:
        arrays = dict(np.load(shared / "golden" / f"{name}.npz"))
        arrays |= {k: json.loads(str(arrays[k])) for k in ("meta", "grad_norms", "state_dict_spec") if k in arrays}
        if "state_dict_spec" in arrays:
            seed = arrays["meta"]["seed"]
            arrays["weights"] = {e["name"]: draw(e, [seed, e["index"]]) for e in arrays["state_dict_spec"]}
        return arrays

    return load


def draw(entry: dict, seed: list[int]) -> np.ndarray:
    """One tensor by its rule."""
    rng, shape = np.random.default_rng(seed), entry["shape"]
    if entry["rule"] == "zero":
        return np.zeros(shape, np.float32)
    if entry["rule"] == "uniform_0.5_1.5":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = 0.1 if entry["rule"] == "normal_0.1" else np.sqrt(2 / np.prod(shape[1:]))
    return (scale * rng.standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="session")
def camvid_dir(tmp_path_factory) -> Path:
    """A raw CamVid of 10 training and 5 validation images, 40×48 pixels."""
    return raw_data.write_camvid(tmp_path_factory.mktemp("camvid"), train=10, val=5)


@pytest.fixture
def tiny(camvid_dir, tmp_path):
    """A config that trains in seconds: CamVid of 40×48 pixels, resized to 36, cropped to 32; 4 features."""
    return tiny_config(camvid_dir, tmp_path / "data")


@pytest.fixture
def tiny_mutual(tiny):
    """`tiny` with a small DeepLabV3 as teacher."""
    use_mutual_learning(tiny)
    tiny.peers.teacher.model.update({"backbone": "resnet14", "stem_features": 4})
    return tiny


@pytest.fixture
def prepared(tiny):
    return prepare(tiny.data)


@pytest.fixture(scope="session")
def tiny_run(camvid_dir, tmp_path_factory):
    """The folder of a run of `tiny` that was saved at step 0; to be read only."""
    folder = tmp_path_factory.mktemp("tiny")
    return save_untrained(tiny_config(camvid_dir, folder / "data"), folder / "run")
