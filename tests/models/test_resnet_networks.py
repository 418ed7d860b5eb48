"""FCN, PSPNet, FPN, DeepLabV3+ and U-Net on ResNets against what PyTorch's libraries recorded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxseg.losses.pixel import cross_entropy
from jaxseg.models import FCN, FPN, DeepLabV3Plus, PSPNet, ResNetUNet
from jaxseg.models.torch_weights import torch_network, variables_from_torch

# recorded file -> the network without dropout; parameters as recorded by torchvision and segmentation_models_pytorch
NETWORKS = {
    "fcn_r50_c21": (FCN(21), 32_957_013),
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
    """Logits within 1e-4 of their deviation, in training 1e-3; the loss within 1e-5.

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

    if name.startswith("fcn"):  # its dropout is no field; 0.1 of the head's channels would be drawn
        return
    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    expected = recorded["train_logits_no_dropout_nchw"].transpose(0, 2, 3, 1)
    print(name, np.abs(logits - expected).max() / expected.std(), value - recorded["train_loss"])
    assert np.abs(logits - expected).max() < 1e-3 * expected.std()
    np.testing.assert_allclose(value, recorded["train_loss"], rtol=1e-5)
    grads = traverse_util.flatten_dict(grads)
    maps = [m for m in torch_network(network).tensor_maps if m.collection == "params"]
    ours = np.array([np.linalg.norm(grads[m.path]) for m in maps])
    theirs = np.array([recorded["grad_norms"].get(m.torch_name) or 0 for m in maps])
    print(
        np.linalg.norm(ours - theirs) / np.linalg.norm(theirs),
        np.abs(ours / np.where(theirs, theirs, 1) - (theirs > 0)).max(),
    )
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)
