"""Networks as a config asks for them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.config import default
from jaxseg.models.factory import NORMALIZE, make_model


def test_normalisation_is_of_the_model():
    """torchvision's mean and std for its weights; the batch stays in [0, 1]."""
    image = jnp.asarray(np.random.default_rng(0).random((1, 32, 32, 3)), jnp.float32)
    mean, std = NORMALIZE["imagenet"]
    assert (mean, std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    config = default()
    for network in ("unet", "deeplabv3"):
        config.model.update(
            {"name": network, "normalize": "imagenet", "backbone": "resnet14", "stem_features": 4, "features": 4}
        )
        model = make_model(config.model, num_classes=3, axis_name=None)
        config.model.normalize = "none"
        plain = make_model(config.model, num_classes=3, axis_name=None)
        variables = jax.jit(plain.init)(jax.random.key(0), image)
        expected = jax.jit(plain.apply)(
            variables, (np.asarray(image) - np.array(mean, np.float32)) / np.array(std, np.float32)
        )
        np.testing.assert_allclose(jax.jit(model.apply)(variables, image), expected, rtol=1e-4, atol=1e-5)
