"""Four simulated devices, a compilation cache that outlives the session, and the fixtures that several tests share."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Also of the processes that tests start. Many tests compile the same small networks: once is enough.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # programs of the cache are of this machine: XLA need not say so

import json
import shutil

import jax
import numpy as np
import pytest

from jaxseg.config import use_mutual_learning
from jaxseg.data.prepare import prepare
from jaxseg.files import file_lock
from jaxseg.training.loop import train_and_evaluate
from tests import raw_data
from tests.compiled_once import CompiledOnce
from tests.configs import tiny_config
from tests.runs import save_untrained

# GPUs multiply float32 in TF32 unless told otherwise: recorded float32 results need float32.
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")  # a rank that grows by itself is an error
STRICT = ("tests/losses", "tests/models", "tests/test_metrics.py", "tests/test_ops.py")
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """In this process, training and scoring by one config is traced and compiled once a module, not once a run."""
    with CompiledOnce() as programs:
        yield programs


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped(compiled_once):
    """After every module: each holds memory maps, of which a process may have 65,530 (vm.max_map_count). In one process
    all tests once ran out of something, and a compilation aborted; since then they have not."""
    yield
    compiled_once.forget()
    jax.clear_caches()


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """Where losses, metrics and networks are computed, a dtype that changes by itself is an error; in optimizers it is
    not: optax divides float32 by powers of an int32 count."""
    strict = request.path.relative_to(ROOT).as_posix().startswith(STRICT)
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


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


# ---- Data and runs that many tests read. They are made once, also where several processes share the tests
# (pytest-xdist); a test that damages one takes a copy.


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make): a folder that `make(folder)` fills, by whichever process comes first."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make) -> Path:
        folder = base / "made_once" / name
        folder.parent.mkdir(exist_ok=True)
        with file_lock(folder.with_suffix(".lock"), if_held=lambda: None):
            if not folder.with_suffix(".whole").exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                folder.with_suffix(".whole").touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def camvid_dir(made_once) -> Path:
    """A raw CamVid of 10 training and 5 validation images, 40×48 pixels."""
    return made_once("camvid", lambda folder: raw_data.write_camvid(folder, train=10, val=5))


@pytest.fixture(scope="session")
def prepared_camvid(camvid_dir, made_once) -> Path:
    """config.data.dir with its records as `tiny` has them. A test that prepares other ones sets a dir of its own."""
    folder = made_once("data", lambda folder: prepare(tiny_config(camvid_dir, folder).data))
    yield folder
    assert len(list((folder / "prepared/segmentation").iterdir())) == 1, "a test has prepared other records there"


@pytest.fixture
def tiny(camvid_dir, prepared_camvid):
    """A config that trains in seconds: CamVid of 40×48 pixels, resized to 36, cropped to 32; 4 features."""
    return tiny_config(camvid_dir, prepared_camvid)


def add_tiny_teacher(config):
    """`config` with a small DeepLabV3 as teacher."""
    use_mutual_learning(config)
    config.peers.teacher.model.update({"backbone": "resnet14", "stem_features": 4})
    return config


@pytest.fixture
def tiny_mutual(tiny):
    """`tiny` with a small DeepLabV3 as teacher."""
    return add_tiny_teacher(tiny)


@pytest.fixture
def prepared(tiny):
    return prepare(tiny.data)


@pytest.fixture(scope="session")
def tiny_run(camvid_dir, prepared_camvid, made_once):
    """The folder of a run of `tiny` that was saved at step 0; to be read only."""
    return made_once("untrained", lambda folder: save_untrained(tiny_config(camvid_dir, prepared_camvid), folder))


@pytest.fixture(scope="session")
def trained_run(camvid_dir, prepared_camvid, made_once, compiled_once):
    """The folder of a run of `tiny`, whole: 5 steps, scored at 3 and 5; to be read only."""
    config = tiny_config(camvid_dir, prepared_camvid)
    return made_once("trained", lambda folder: train_and_evaluate(config, folder))


@pytest.fixture(scope="session")
def trained_mutual_run(camvid_dir, prepared_camvid, made_once, compiled_once):
    """The folder of a run of `tiny_mutual` that was trained for 4 steps; to be read only."""
    config = add_tiny_teacher(tiny_config(camvid_dir, prepared_camvid))
    config.train.max_steps = 4
    return made_once("trained_mutual", lambda folder: train_and_evaluate(config, folder))


@pytest.fixture
def copy_of(tmp_path):
    """copy_of(folder): a copy of it that the test may damage."""
    return lambda folder: shutil.copytree(folder, tmp_path / "run", symlinks=True)
