"""A jaxlib that computes wrong is refused; and more than 32,768 pixels, where one did, against float64."""

import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import floor
from jaxseg.errors import InputError
from jaxseg.floor import check_jaxlib
from jaxseg.losses.pixel import cross_entropy
from jaxseg.losses.rmi import rmi_loss
from jaxseg.models import UNet
from tests import ROOT, rmi_oracle

ROWS = 2**15  # jaxlib 0.10.2 computes those beyond wrong


@pytest.mark.parametrize(("version", "fault"), [("0.10.2", "silently wrong"), ("0.11.0", "crash or hang")])
def test_a_jaxlib_that_computes_wrong_is_refused(version, fault):
    with pytest.raises(InputError, match=f"jaxlib {version} is installed.*{fault}.*pip install") as refused:
        check_jaxlib(version)
    assert floor.REQUIREMENT in str(refused.value)


@pytest.mark.parametrize("version", ["0.10.1", "0.11.1", "0.12.0.1", None])
def test_others_pass(version):
    check_jaxlib(version)


def test_the_installed_one_is_looked_up(monkeypatch):
    monkeypatch.setattr(floor.metadata, "version", {"jaxlib": "0.10.2"}.get)
    with pytest.raises(InputError, match=r"jaxlib 0\.10\.2 is"):
        check_jaxlib()


def test_requirement_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert floor.REQUIREMENT in project["dependencies"]


@pytest.mark.parametrize("rows", [ROWS, ROWS + 1, ROWS + 233])
def test_matrix_products_that_are_summed(rows):
    """jax-ml/jax#39103: with jaxlib 0.10.2 the rows from number 32,768 on are wrong."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3, 3))
    vectors = rng.standard_normal((rows, 3))

    @jax.jit
    def squared_norms(matrix, vectors):
        return jax.vmap(lambda vector: jnp.sum((matrix @ vector) ** 2))(vectors)

    actual = squared_norms(matrix.astype(np.float32), vectors.astype(np.float32))
    np.testing.assert_allclose(actual, ((vectors @ matrix.T) ** 2).sum(1), rtol=1e-4, atol=1e-5)


def relative_norm(actual, expected):
    """|actual - expected| / |expected| of all leaves as one vector."""
    actual, expected = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (actual, expected)
    )
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_unet_on_many_pixels():
    """39,424 pixels; logits, loss and gradient against the network in float64."""
    rng = np.random.default_rng(0)
    image = rng.random((2, 176, 112, 3), np.float32)
    label = rng.integers(0, 3, image.shape[:3]).astype(np.int32)
    valid = rng.random(label.shape) < 0.9
    assert label.size > ROWS
    model = UNet(num_classes=3, features=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)  # drawing them as `init` does takes 9 s to compile
    variables = jax.tree.map(lambda x: rng.uniform(-0.5, 0.5, x.shape).astype(np.float32), shapes)

    def computed(dtype):
        network = model.clone(dtype=jnp.dtype(dtype))

        def loss(params):
            inputs = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, _ = network.apply(inputs, image.astype(dtype), train=True, mutable=["batch_stats"])
            return cross_entropy(logits, label, valid).sum() / valid.sum(), logits

        params = jax.tree.map(lambda x: x.astype(dtype), variables["params"])
        return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))

    (value, logits), gradient = computed("float32")
    with jax.enable_x64(True):
        (expected_value, expected_logits), expected_gradient = computed("float64")
    assert expected_logits.dtype == np.float64
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    assert np.abs(logits - expected_logits).max() < 1e-4 * expected_logits.std()
    assert relative_norm(gradient, expected_gradient) < 1e-5


def test_rmi_on_many_pixels():
    """185 × 179 = 33,115 regions; value and gradient against the definition in float64 NumPy."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (1, 187, 181)).astype(np.int32)
    logits = (2 * (label[..., None] == np.arange(2)) - 1 + rng.standard_normal((1, 187, 181, 2))).astype(np.float32)
    label[rng.random(label.shape) < 0.05] = 255
    value, gradient = jax.jit(jax.value_and_grad(lambda x: rmi_loss(x, label, pool="none")))(logits)
    np.testing.assert_allclose(value, rmi_oracle.lower_bound(logits, label, pool="none").sum(), rtol=2e-6)
    expected = np.stack([rmi_gradient(logits[0, ..., k], label[0], k) for k in range(2)], -1)[None]
    assert relative_norm(gradient, expected) < 2e-5


def rmi_gradient(logits, label, k, *, radius=3):
    """∂(½ log det(M + αI) / d)/∂logits of class k [h, w], by the chain rule, as `rmi_oracle` writes M.

    With A = Σpp + αI and W = Σyp A⁻¹: ∂/∂P = -(1/d) Wᵀ (M + αI)⁻¹ (Y - W P); every pixel sums over its regions.
    """
    valid = label != 255
    truth = ((label == k) & valid).astype(np.float64)
    sigmoid = rmi_oracle.sigmoid(logits)
    prob = sigmoid * valid + rmi_oracle.LEAST_PROB
    yy, yp, pp = rmi_oracle.covariances(truth, prob, radius)
    y, p = rmi_oracle.points(truth, radius), rmi_oracle.points(prob, radius)
    ridge = rmi_oracle.ALPHA * np.eye(radius**2)
    weights = yp @ np.linalg.inv(pp + ridge)
    of_points = -weights.T @ np.linalg.inv(yy - weights @ yp.T + ridge) @ (y - weights @ p) / radius**2
    h, w = (size - radius + 1 for size in prob.shape)
    of_prob = np.zeros(prob.shape)
    for number, row in enumerate(of_points):
        i, j = divmod(number, radius)
        of_prob[i : i + h, j : j + w] += row.reshape(h, w)
    return of_prob * valid * sigmoid * (1 - sigmoid)
