"""FCN, PSPNet, FPN, DeepLabV3+ and U-Net on ResNets against what PyTorch's libraries recorded."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxseg.errors import InputError
from jaxseg.losses.pixel import cross_entropy
from jaxseg.models import FCN, FPN, DeepLabV3Plus, PSPNet, ResNetUNet
from jaxseg.models.torch_tensors import shapes_of
from jaxseg.models.torch_weights import load_network, torch_network, variables_from_torch, variables_to_torch

# recorded file -> the network without dropout; parameters as recorded by torchvision and segmentation_models_pytorch
NETWORKS = {
    "fcn_r50_c21": (FCN(21, dropout=0.0), 32_957_013),
    "deeplabv3plus_r50_c21": (DeepLabV3Plus(21, dropout=0.0), 26_682_725),
    "pspnet_r50_c21": (PSPNet(21, dropout=0.0), 24_393_173),
    "fpn_r50_c21": (FPN(21, dropout=0.0), 26_118_613),
    "unet_r34_c21": (ResNetUNet(21, backbone="resnet34"), 24_439_269),
    "unet_r50_c21": (ResNetUNet(21), 32_524_005),
}
SMALL = {"num_classes": 3, "backbone": "resnet14", "stem_features": 4}
KINDS = (FCN, DeepLabV3Plus, PSPNet, FPN, ResNetUNet)


@pytest.mark.parametrize(("network", "count"), NETWORKS.values(), ids=NETWORKS)
def test_parameter_count(network, count):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_and_a_training_pass_are_pytorchs(golden, name):
    """Logits within 1e-4 of their deviation, in training 1e-3; the loss within 1e-5, gradient norms within 5e-3 together.

    Slow: a ResNet-50 forward and backward, at the size that was recorded.
    """
    recorded = golden(name)
    network, _ = NETWORKS[name]
    variables = variables_from_torch(network, recorded["weights"])
    image = recorded["image_nchw"].transpose(0, 2, 3, 1)
    label = recorded["labels"].astype(int)
    valid = label != 255
    logits = jax.jit(network.apply)(variables, image)
    expected = recorded["eval_logits_nchw"].transpose(0, 2, 3, 1)
    assert np.abs(logits - expected).max() < 1e-4 * expected.std()

    def loss(params):
        inputs = {"params": params, "batch_stats": variables["batch_stats"]}
        rngs = {"dropout": jax.random.key(0)}
        logits, _ = network.apply(inputs, image, train=True, mutable=["batch_stats"], rngs=rngs)
        return cross_entropy(logits, label, valid).sum() / np.float32(valid.sum()), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    expected = recorded["train_logits_no_dropout_nchw"].transpose(0, 2, 3, 1)
    assert np.abs(logits - expected).max() < 1e-3 * expected.std()
    np.testing.assert_allclose(value, recorded["train_loss"], rtol=1e-5)
    grads = traverse_util.flatten_dict(grads)
    maps = [m for m in torch_network(network).tensor_maps if m.collection == "params"]
    ours = np.array([np.linalg.norm(grads[m.path]) for m in maps])
    theirs = np.array([recorded["grad_norms"].get(m.torch_name) or 0 for m in maps])
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)


def small(kind, **fields):
    network = kind(**SMALL, **fields)
    variables = jax.device_get(jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3))))
    return network, {collection: variables[collection] for collection in ("params", "batch_stats")}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_pytorchs_own(shared, name):
    """As the libraries' `state_dict()` has them, counters of BatchNorm included: `load_state_dict` is strict."""
    spec = json.loads(str(np.load(shared / "golden" / f"{name}.npz")["state_dict_spec"]))
    network, _ = NETWORKS[name]
    variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes_of(network))
    found = {key: list(array.shape) for key, array in variables_to_torch(network, variables).items()}
    assert found == {entry["name"]: entry["shape"] for entry in spec}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_to_pytorch_and_back(kind):
    network, variables = small(kind)
    state_dict = variables_to_torch(network, variables)
    jax.tree.map(np.testing.assert_array_equal, variables_from_torch(network, state_dict), variables)
    state_dict["extra.weight"] = np.zeros(1)
    with pytest.raises(InputError, match=r"extra\.weight"):
        variables_from_torch(network, state_dict)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_resnet_is_taken_as_backbone(kind):
    """As torchvision's ImageNet weights have it: no prefix, and a classifier `fc`."""
    network, variables = small(kind)
    bare = {}
    for name, array in variables_to_torch(network, variables).items():
        if name.startswith(("encoder.", "backbone.")):
            bare[name.split(".", 1)[1]] = np.asarray(array + 1)
    bare["fc.weight"] = np.zeros((1000, 8))
    loaded, report = load_network(network, bare, target=variables, parts="backbone")
    for path, array in traverse_util.flatten_dict(loaded["params"]).items():
        expected = traverse_util.flatten_dict(variables["params"])[path]
        np.testing.assert_array_equal(array, expected + 1 if path[0] == "backbone" else expected)
    assert [line for line in report.dropped if "fc.weight" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_classes_keeps_its_head(kind):
    _, variables = small(kind)
    other = kind(**SMALL | {"num_classes": 5})
    target = jax.device_get(jax.jit(other.init)(jax.random.key(2), jnp.zeros((1, 32, 32, 3))))
    state_dict = variables_to_torch(kind(**SMALL), variables)
    with pytest.raises(InputError, match="all_but_head"):
        variables_from_torch(other, state_dict, target=target)
    loaded = variables_from_torch(other, state_dict, target=target, parts="all_but_head")
    head = loaded["params"]["classifier"]["head"] if kind is FCN else loaded["params"]["head"]
    assert head["bias"].shape == (5,)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_the_size_of_the_image(kind):
    network, variables = small(kind)
    apply = jax.jit(network.apply)
    for hw in ((32, 64), (96, 32)):
        assert apply(variables, jnp.zeros((2, *hw, 3))).shape == (2, *hw, 3)


def test_pspnet_does_not_compute_its_last_stages():
    """They are segmentation_models_pytorch's, and no image reaches them: gradients are 0, statistics stay."""
    network, variables = small(PSPNet)

    def loss(params):
        inputs = {"params": params, "batch_stats": variables["batch_stats"]}
        rngs = {"dropout": jax.random.key(0)}
        logits, updated = network.apply(
            inputs, jnp.ones((2, 32, 32, 3)), train=True, mutable=["batch_stats"], rngs=rngs
        )
        return jnp.square(logits).sum(), updated["batch_stats"]

    grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    blocks = {stage: jax.tree.leaves(grads["backbone"][f"stage{stage}_block1"]) for stage in (2, 3)}
    assert any(np.abs(gradient).max() > 0 for gradient in blocks[2])
    assert all(np.abs(gradient).max() == 0 for gradient in blocks[3])
    before = variables["batch_stats"]["backbone"]["stage4_block1"]
    jax.tree.map(np.testing.assert_array_equal, stats["backbone"]["stage4_block1"], before)


def test_the_auxiliary_head_of_fcn_is_sown_while_training():
    network, variables = small(FCN, auxiliary=True)
    image = jnp.zeros((2, 32, 32, 3))
    collections = ["batch_stats", "auxiliary"]
    sown = jax.eval_shape(
        lambda: network.apply(variables, image, train=True, mutable=collections, rngs={"dropout": jax.random.key(0)})
    )[1]
    assert [logits.shape for logits in sown["auxiliary"]["logits"]] == [(2, 32, 32, 3)]
