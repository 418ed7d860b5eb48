"""The steps of all models and networks as programs for GPUs and TPUs, lowered on a CPU: no float64, nothing that calls the
host."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import default, follow_released_mutual, use_mutual_learning, use_rmi
from jaxseg.studies.estimate import abstract_peers
from jaxseg.training import parallel


def use_released_mutual_learning(config):
    use_mutual_learning(config)
    follow_released_mutual(config)
    config.train.batch_size = 8  # for four devices


def on_resnet14(name: str):
    """`name` by RMI; of 14 layers, as ResNet-50 has the same ones more often."""

    def change(config):
        use_rmi(config)
        config.model.update({"name": name, "backbone": "resnet14"})

    return change


MODELS = {
    "unet": lambda config: None,
    "rmi": use_rmi,
    "mutual": use_mutual_learning,
    "mutual as released, in turn": use_released_mutual_learning,
} | {f"{name} by rmi": on_resnet14(name) for name in ("deeplabv3plus", "fcn", "fpn", "pspnet", "resnet_unet")}


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
    config = default()
    MODELS[request.param](config)
    peers, losses, batch = abstract_peers(config)
    devices = jax.local_device_count()

    def share(x):
        return jax.ShapeDtypeStruct((devices, x.shape[0] // devices, *x.shape[1:]), x.dtype)

    batch = jax.tree.map(share, batch)
    options = {"updates": config.mutual.updates, "skip_nonfinite": True}
    train = parallel.compile_train_step(losses=losses, seed=0, accumulate_steps=1, **options)
    evaluate = parallel.compile_eval_step(num_classes=19)
    return request.param, [(train.func, *train.args, peers, batch), (evaluate, peers, batch)]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_steps_lower_for_accelerators(four_devices, steps, platform):
    """Slow: traces all of them at the study's size, for two platforms."""
    name, functions = steps
    for place, (function, *arguments) in enumerate(functions):
        text, devices = program(function, platform, *arguments)
        assert devices == 4
        assert "stablehlo.all_reduce" in text  # the devices agree
        assert "f64" not in text
        # RMI's Cholesky factors come from cuSOLVER on GPUs; on TPUs XLA expands them itself.
        expected = {"cusolver_potrf_ffi"} if name.endswith("rmi") and (platform, place) == ("cuda", 0) else set()
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
