"""The steps of all three models as programs for GPUs and TPUs, lowered on a CPU: no float64, nothing that calls the host."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scripts.aot.programs import recipes, shaped_step, steps_of

MODELS = ("unet", "unet+rmi", "mutual")


def program(function, platform, *arguments) -> tuple[str, int]:
    """StableHLO of a compiled step for `platform`, and for how many devices it is."""
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    return exported.mlir_module(), exported.nr_devices


def leaves_device(text: str) -> set[str]:
    """What a program calls that is neither its own nor XLA's: host callbacks, foreign functions, infeeds."""
    calls = set(re.findall(r"custom_call @([\w.]+)", text))
    return calls | set(re.findall(r"stablehlo\.(infeed|outfeed|send|recv)\b", text))


@pytest.fixture(scope="module", params=MODELS)
def steps(request):
    """(name, [training step, evaluation step] with their arguments) at the study's size: 32 features, 224 pixels."""
    config = recipes()[request.param]()
    config.train.max_skipped_steps = 1  # so that the program also leaves out what is not finite
    each = config.train.batch_size // jax.local_device_count()
    training, evaluation = (step for step in steps_of(request.param, config) if "/float32/" in step.name)
    return request.param, [shaped_step(step, batch_size=each) for step in (training, evaluation)]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_steps_lower_for_accelerators(four_devices, steps, platform):
    """Slow: traces all three models at the study's size, for two platforms."""
    name, functions = steps
    for place, (function, arguments) in enumerate(functions):
        text, devices = program(function, platform, *arguments)
        assert devices == 4
        assert "stablehlo.all_reduce" in text  # the devices agree
        assert "f64" not in text
        # RMI's Cholesky factors come from cuSOLVER on GPUs; on TPUs XLA expands them itself.
        expected = {"cusolver_potrf_ffi"} if (name, platform, place) == ("unet+rmi", "cuda", 0) else set()
        assert leaves_device(text) == expected


def test_a_callback_and_float64_would_be_found():
    def calls_host(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)

    # JAX itself refuses to export a call to the host: here by name, for another platform for want of its client.
    for platform, why, says in (
        ("cpu", RuntimeError, "host_callbacks"),
        ("cuda", ValueError, "lowering platform cuda"),
    ):
        with pytest.raises(why, match=says):
            program(calls_host, platform, jnp.float32(1))
    with jax.enable_x64(True):
        text, _ = program(lambda x: x + 1, "tpu", np.float64(1))
    assert "f64" in text
