"""DeepLabV3's weights, tensor by tensor: from PyTorch and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import default
from jaxseg.errors import InputError
from jaxseg.models import DeepLabV3
from jaxseg.models.factory import fresh_variables, load_variables, make_model
from jaxseg.models.torch_weights import (
    deeplabv3_from_torch,
    deeplabv3_tensor_maps,
    deeplabv3_to_torch,
    flatten,
    load_deeplabv3,
    load_own_names,
    unet_from_torch,
)
from jaxseg.models.weights_io import read_state_dict
from tests.models.test_deeplabv3 import SMALL, small_variables


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(small_variables(auxiliary=True))


@pytest.fixture
def state_dict(variables):
    """The state dict that PyTorch would hold for `variables`: convolutions back to [out, in, h, w]."""
    result = {}
    for move in deeplabv3_tensor_maps((1, 1, 1, 1), auxiliary=True):
        leaf = functools.reduce(lambda tree, key: tree[key], move.path, variables[move.collection])
        result[move.torch_name] = leaf.transpose(3, 2, 0, 1) if move.axes else leaf
    result["backbone.bn1.num_batches_tracked"] = np.int64(3)
    return result


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def without_auxiliary(variables):
    return {key: {k: v for k, v in tree.items() if k != "auxiliary"} for key, tree in variables.items()}


def trained(variables):
    return {key: variables[key] for key in ("params", "batch_stats")}


def test_round_trip(state_dict, variables):
    assert equal(deeplabv3_from_torch(state_dict, auxiliary=True), trained(variables))
    assert equal(deeplabv3_from_torch(state_dict), without_auxiliary(trained(variables)))


def test_back_to_pytorch_is_the_state_dict(state_dict, variables):
    """With and without the auxiliary head; a counter at 0 for every BatchNorm."""
    del state_dict["backbone.bn1.num_batches_tracked"]
    for auxiliary, given in ((True, variables), (False, without_auxiliary(trained(variables)))):
        made = deeplabv3_to_torch(given)
        counters = {name for name in made if name.endswith("num_batches_tracked")}
        wanted = {name for name in state_dict if auxiliary or not name.startswith("aux_classifier.")}
        assert made.keys() - counters == wanted
        assert all(np.array_equal(made[name], state_dict[name]) for name in wanted)
        assert counters == {
            name.replace("running_var", "num_batches_tracked") for name in wanted if name.endswith("running_var")
        }


@pytest.mark.slow
def test_back_to_pytorch_is_what_torchvision_recorded(recorded):
    """All 370 names, shapes and values of torchvision's deeplabv3_resnet50.

    Slow: draws the 42 million weights of a DeepLabV3.
    """
    weights = recorded["weights"]
    made = deeplabv3_to_torch(deeplabv3_from_torch(weights, auxiliary=True))
    assert made.keys() == weights.keys()
    assert len(made) == 370
    assert all(np.array_equal(made[name], weights[name]) for name in weights)


def test_own_names_in_parts(variables):
    """Of a file with an auxiliary head into a network without one, and the backbone alone."""
    arrays, plain = flatten(variables), without_auxiliary(trained(variables))
    other = jax.tree.map(np.zeros_like, plain)
    assert equal(load_own_names(arrays, target=other)[0], plain)
    found = load_own_names(arrays, target=other, parts="backbone")[0]
    assert equal(found["params"]["backbone"], variables["params"]["backbone"])
    assert equal(found["batch_stats"]["backbone"], variables["batch_stats"]["backbone"])
    assert equal(found["params"]["aspp"], other["params"]["aspp"])
    assert equal(found["params"]["head"], other["params"]["head"])
    with pytest.raises(InputError, match=r"missing: batch_stats/auxiliary/conv/norm/mean"):
        load_own_names(flatten(plain), target=trained(variables))


def test_names_and_shapes_are_torchvisions(state_dict):
    assert state_dict["backbone.layer1.0.downsample.0.weight"].shape == (16, 4, 1, 1)  # out, in, h, w
    assert state_dict["classifier.0.convs.4.1.weight"].shape == (16, 128, 1, 1)
    assert state_dict["classifier.4.weight"].shape == (3, 16, 1, 1)
    assert state_dict["aux_classifier.4.weight"].shape == (3, 16, 1, 1)


def test_a_fresh_head_for_other_classes(state_dict, variables):
    target = trained(
        jax.device_get(
            jax.jit(DeepLabV3(**SMALL | {"num_classes": 7}).init)(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))
        )
    )
    found, report = load_deeplabv3(state_dict, target=target, parts="all_but_head")
    assert equal(found["params"]["head"], target["params"]["head"])
    assert equal(found["params"]["backbone"], variables["params"]["backbone"])
    assert equal(found["params"]["conv"], variables["params"]["conv"])
    assert report.fresh == ("params/head/kernel", "params/head/bias")
    assert "backbone.conv1.weight [4, 3, 7, 7] -> params/backbone/stem/kernel" in report.loaded
    assert "classifier.4.weight [3, 16, 1, 1]" in report.dropped
    assert "aux_classifier.0.weight [16, 64, 3, 3]" in report.dropped
    assert len(report.lines()) == len(state_dict) + 2
    with pytest.raises(
        InputError,
        match=r"classifier.4.weight: \(1, 1, 16, 3\) .* where the network has \(1, 1, 16, 7\).*init_parts='all_but_head'",
    ):
        deeplabv3_from_torch(state_dict, target=target)


def test_a_backbone_of_an_imagenet_resnet(state_dict, variables):
    """Bare names and its classifier `fc`, as torchvision's resnet50 has them; everything else is the target's."""
    resnet = {k.removeprefix("backbone."): v for k, v in state_dict.items() if k.startswith("backbone.")}
    resnet |= {"fc.weight": np.zeros((1000, 128), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    target = trained(jax.device_get(jax.jit(DeepLabV3(**SMALL).init)(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))))
    found = deeplabv3_from_torch(resnet, target=target, parts="backbone")
    assert equal(found["params"]["backbone"], variables["params"]["backbone"])
    assert equal(found["batch_stats"]["backbone"], variables["batch_stats"]["backbone"])
    assert equal(found["params"]["aspp"], target["params"]["aspp"])
    whole = deeplabv3_from_torch(state_dict, target=target, parts="backbone")  # or of a DeepLabV3's file
    assert equal(whole, found)
    wrapped = {f"module.{name}": array for name, array in resnet.items()}
    assert equal(deeplabv3_from_torch(wrapped, target=target, parts="backbone"), found)


def test_every_mistake_is_named(state_dict, variables):
    target = without_auxiliary(trained(variables))
    renamed = dict(state_dict)
    renamed["extra.weight"] = renamed.pop("backbone.layer2.0.conv2.weight")
    with pytest.raises(InputError, match=r"missing: backbone.layer2.0.conv2.weight; left over: extra.weight"):
        deeplabv3_from_torch(renamed)
    wrong = state_dict | {"backbone.bn1.weight": np.zeros(5, np.float32)}
    with pytest.raises(InputError, match=r"backbone.bn1.weight: \(5,\) .* where the network has \(4,\)"):
        deeplabv3_from_torch(wrong)
    with pytest.raises(InputError, match="these weights are not those of a torchvision DeepLabV3: missing: "):
        deeplabv3_from_torch({"conv.weight": np.zeros((3, 4, 1, 1))}, target=target)
    with pytest.raises(InputError, match="these weights are not those of the study's U-Net: missing: "):
        unet_from_torch(state_dict)
    with pytest.raises(InputError, match="parts='head'; expected all or all_but_head or backbone"):
        deeplabv3_from_torch(state_dict, parts="head")
    for from_torch in (deeplabv3_from_torch, unet_from_torch):
        with pytest.raises(InputError, match="parts='all_but_head' leaves tensors to be taken from target"):
            from_torch(state_dict, parts="all_but_head")


def test_another_depth_is_named(state_dict):
    """ResNet-14's file for a ResNet-50 and back."""
    target = jax.eval_shape(DeepLabV3(3, "resnet50", 4).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match=r"missing: backbone.layer1.1.bn1.bias"):
        deeplabv3_from_torch(state_dict, target=target)


def test_safetensors_in_training(state_dict, variables, tmp_path):
    from safetensors.numpy import save_file

    arrays = {k: np.ascontiguousarray(v) for k, v in state_dict.items() if np.ndim(v)}
    save_file(arrays, tmp_path / "deeplabv3.safetensors")
    assert read_state_dict(tmp_path / "deeplabv3.safetensors").keys() == arrays.keys()
    config = default()
    config.model.update({"name": "deeplabv3", "backbone": "resnet14", "stem_features": 4})
    config.model.init_from = str(tmp_path / "deeplabv3.safetensors")
    model = make_model(config.model, num_classes=3, axis_name=None)
    assert equal(
        load_variables(config.model, target=fresh_variables(model, seed=0))[0], without_auxiliary(trained(variables))
    )
