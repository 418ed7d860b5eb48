"""Learning rates by hand; Adam, AdamW and SGD against PyTorch's formulas in float64; what decays, clips and is scaled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.config import default
from jaxseg.config_checks import check_warmup, validate
from jaxseg.errors import InputError
from jaxseg.models import DeepLabV3, UNet
from jaxseg.training.optimizers import make_optimizer, make_schedule
from tests.configs import changed


def optim(**fields):
    config = default().optim
    config.update(fields)
    return config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, [0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [0.1, 0.05, 0.0]),
        ({"schedule": "poly"}, [0.1, 0.1 * 0.5**0.9, 0.0]),
        ({"schedule": "step"}, [0.1, 0.01, 0.001]),
    ],
)
def test_schedules_at_start_middle_end(fields, expected):
    schedule = make_schedule(optim(learning_rate=0.1, **fields), steps=100)
    np.testing.assert_allclose([schedule(0), schedule(50), schedule(100)], expected, atol=1e-8)


def test_warm_up_is_linear_and_comes_before_the_decay():
    """Updates 0 to 9 have 1/10 to 10/10 of the rate; the decay is over the 100 behind them, from its whole rate on."""
    schedule = make_schedule(optim(learning_rate=0.1, schedule="poly", warmup_steps=10), steps=110)
    rates = [float(schedule(step)) for step in (*range(12), 60, 109, 110)]
    ramp = [0.1 * (i + 1) / 10 for i in range(10)]
    poly = [0.1, 0.1 * 0.99**0.9, 0.1 * 0.5**0.9, 0.1 * 0.01**0.9, 0.0]
    np.testing.assert_allclose(rates, ramp + poly, rtol=1e-5, atol=1e-8)


def test_a_warm_up_of_one_step_is_none():
    rates = [
        [float(make_schedule(optim(schedule="cosine", warmup_steps=n), steps=4 + n)(i + n)) for i in range(4)]
        for n in (0, 1)
    ]
    assert rates[0] == rates[1]
    assert make_schedule(optim(schedule="cosine", warmup_steps=1), steps=5)(0) == np.float32(1e-3)


def test_steps_down_at_shares_of_the_schedule():
    """At updates 3 and 6 of 10 behind a warm-up of 2, as MultiStepLR: the update of that number has the new rate."""
    fields = {"schedule": "step", "step_at": "0.3,0.6", "step_factor": 0.5, "warmup_steps": 2}
    schedule = make_schedule(optim(learning_rate=0.8, **fields), steps=12)
    expected = [0.4, 0.8] + 3 * [0.8] + 3 * [0.4] + 4 * [0.2]
    np.testing.assert_allclose([schedule(step) for step in range(12)], expected, rtol=1e-6)
    at_once = make_schedule(optim(learning_rate=0.8, schedule="step", step_factor=0.5), steps=1)
    np.testing.assert_allclose(at_once(2), 0.2, rtol=1e-6)  # both shares of one step are one step


@pytest.mark.parametrize("text", ["", "0.5,", "half", "0,0.5", "1", "nan"])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(InputError, match=r"config\.optim\.step_at="):
        validate(changed(optim__schedule="step", optim__step_at=text))


def test_a_warm_up_as_long_as_the_run_is_refused():
    config = changed(optim__warmup_steps=100)
    check_warmup(config, steps=101)
    with pytest.raises(InputError, match=r"config\.optim\.warmup_steps=100, .*train\.epochs=200\) is 100 steps"):
        check_warmup(config, steps=100)


GRADS = np.random.default_rng(0).normal(size=(5, 7))
ALL = {"learning_rate": 0.01, "weight_decay": 0.1, "decay_on": "all"}


def run(config, grads=GRADS, steps=None):
    tx, params = make_optimizer(config, steps=100), jnp.ones(7)
    state, update = tx.init(params), jax.jit(tx.update)
    for g in np.asarray(grads, np.float32) if steps is None else np.zeros((steps, 7), np.float32):
        updates, state = update(jnp.asarray(g), state, params)
        params = params + updates
    return params


def adam_by_hand(*, coupled: float, decoupled: float):
    """torch.optim.Adam's formula (documentation of PyTorch 2), and AdamW's, whose decay is 1 - rate · decay times w."""
    p, m, v = np.ones(7), np.zeros(7), np.zeros(7)
    for t, grad in enumerate(GRADS, 1):
        g = grad + coupled * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p * (1 - 0.01 * decoupled) - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


def test_adam_is_kingma_ba_with_pytorchs_defaults():
    expected = adam_by_hand(coupled=0.1, decoupled=0.0)
    np.testing.assert_allclose(run(optim(**ALL)), expected, rtol=1e-5)
    assert np.abs(expected - adam_by_hand(coupled=0.0, decoupled=0.1)).max() > 1e-3  # the two are not the same


def test_adamw_decays_beside_the_gradient():
    expected = adam_by_hand(coupled=0.0, decoupled=0.1)
    np.testing.assert_allclose(run(optim(name="adamw", **ALL)), expected, rtol=1e-5)


def test_sgd_has_momentum_0_9():
    p, m = np.ones(7), np.zeros(7)
    for g in GRADS:
        m = 0.9 * m + g
        p = p - 0.01 * m
    np.testing.assert_allclose(run(optim(name="sgd", learning_rate=0.01)), p, rtol=1e-5)


def test_decay_of_sgd_is_coupled():
    """torch.optim.SGD: b = 0.9 b + (g + decay · w), w = w - rate · b."""
    p, m = np.ones(7), np.zeros(7)
    for g in GRADS:
        m = 0.9 * m + (g + 0.1 * p)
        p = p - 0.01 * m
    np.testing.assert_allclose(run(optim(name="sgd", **ALL)), p, rtol=1e-5)


def test_decay_of_sgd_alone_ends_where_pytorchs_does():
    """torch.optim.SGD(lr=0.01, momentum=0.9, weight_decay=5e-4), w = 1, zero gradients, 2000 steps: 0.90520. Decoupled it
    would be (1 - 5e-6)^2000 = 0.99005."""
    end = run(optim(name="sgd", learning_rate=0.01, weight_decay=5e-4, decay_on="all"), steps=2000)
    np.testing.assert_allclose(end, 0.90520, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_formulas_are_those_of_pytorch_itself(name):
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.ones(7, dtype=torch.float64))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = kind([w], lr=0.01, weight_decay=0.1, **momentum)
    for g in GRADS:
        w.grad = torch.tensor(3 * g)
        torch.nn.utils.clip_grad_norm_([w], 2.5)
        optimizer.step()
    found = run(optim(name=name, clip_norm=2.5, **ALL), 3 * GRADS)
    np.testing.assert_allclose(found, w.detach().numpy(), rtol=2e-5)  # PyTorch's factor is 2.5 / (norm + 1e-6)


def params_of(network):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)


def names_that_change(config, params, grads=0.0):
    """Names of the leaves that one update moves, of parameters that are all 1."""
    tx = make_optimizer(config, steps=100)
    gradients = jax.tree.map(lambda x: np.full_like(x, grads), params)
    updates, _ = jax.jit(lambda g, w: tx.update(g, tx.init(w), w))(gradients, params)
    paths = jax.tree.leaves_with_path(updates)
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, x in paths if np.any(x)}


def test_kernels_decay_and_nothing_else():
    """Of a U-Net: 2 convolutions in each of 9 blocks, 4 upconvolutions and the head; with "all" also 36 of BatchNorm, 5
    biases. With zero gradients nothing moves but by decay."""
    params = params_of(UNet(5, 2))
    moved = names_that_change(optim(name="sgd", weight_decay=0.1), params)
    blocks = [f"{side}{level}" for side in ("encoder", "decoder") for level in range(1, 5)] + ["bottleneck"]
    kernels = {f"{block}/conv{i}/kernel" for block in blocks for i in (1, 2)}
    kernels |= {f"upconv{level}/kernel" for level in range(1, 5)} | {"head/kernel"}
    assert moved == kernels
    assert len(names_that_change(optim(name="sgd", weight_decay=0.1, decay_on="all"), params)) == 23 + 36 + 5


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimizer_decays_by_the_mask(name):
    params = {"conv": {"kernel": np.ones((1, 1, 2, 3))}, "norm": {"scale": np.ones(3), "bias": np.ones(3)}}
    assert names_that_change(optim(name=name, weight_decay=0.1), params) == {"conv/kernel"}
    every = {"conv/kernel", "norm/scale", "norm/bias"}
    assert names_that_change(optim(name=name, weight_decay=0.1, decay_on="all"), params) == every
    assert names_that_change(optim(name=name), params) == set()


def test_clipping_is_by_the_norm_of_all_gradients():
    """Gradients 3 and 4 have norm 5. Clipped to 1 they are 0.6 and 0.8; a limit of 6 leaves them, whatever is 0."""
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.full(1, 3.0), "b": jnp.full(1, 4.0)}
    for limit, expected in ((1.0, (-0.6, -0.8)), (6.0, (-3.0, -4.0)), (0.0, (-3.0, -4.0))):
        tx = make_optimizer(optim(name="sgd", learning_rate=1.0, clip_norm=limit), steps=1)
        updates, _ = tx.update(grads, tx.init(params), params)
        np.testing.assert_allclose((updates["a"][0], updates["b"][0]), expected, rtol=1e-6)


def test_clipping_comes_before_decay():
    """As clip_grad_norm_ before the optimizer's step: 1 of the gradient, 0.5 of the decay."""
    tx = make_optimizer(optim(name="sgd", **ALL | {"learning_rate": 1.0, "weight_decay": 0.5}, clip_norm=1.0), steps=1)
    params = jnp.ones(1)
    updates, _ = tx.update(jnp.full(1, 4.0), tx.init(params), params)
    np.testing.assert_allclose(updates, -1.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_parts_have_their_factor_on_the_rate(name):
    """Two parameter groups of PyTorch, of 0.1 and 10 times the rate, decay included, are two optimizers of those rates."""
    params = {"backbone": {"a": np.ones((2, 3)), "b": np.ones(3)}, "head": {"a": np.ones((2, 3)), "b": np.ones(3)}}
    grads = jax.tree.map(lambda x: np.full_like(x, 0.3), params)
    fields = {"name": name, "weight_decay": 0.1, "schedule": "poly"}

    def three_updates(**more):
        tx = make_optimizer(optim(**fields, **more), steps=100)

        def update(carry, _):
            w, state = carry
            updates, state = tx.update(grads, state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.jit(lambda w: jax.lax.scan(update, (w, tx.init(w)), length=3)[0][0])(params)

    found = three_updates(backbone_rate=0.1, head_rate=10.0)
    slow = three_updates(learning_rate=1e-4)
    fast = three_updates(learning_rate=1e-2)
    for part, expected in (("backbone", slow), ("head", fast)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[part], expected[part])


def test_the_backbone_is_what_deeplabv3_calls_so():
    """At a factor of 0 it is held; all other parts move."""
    params = params_of(DeepLabV3(5, "resnet14", 2, auxiliary=True))
    moved = names_that_change(optim(name="sgd", backbone_rate=0.0), params, grads=1.0)
    assert {leaf.split("/")[0] for leaf in moved} == {"auxiliary", "aspp", "conv", "head"}
    assert "backbone" in params


@pytest.mark.parametrize("field", ["backbone_rate", "head_rate"])
def test_a_network_without_backbone_has_no_factors(field):
    with pytest.raises(InputError, match=rf"config\.optim\.{field}=0\.5 has no effect with config\.model\.name='unet'"):
        validate(changed(**{f"optim__{field}": 0.5}))
    validate(changed(**{f"optim__{field}": 0.5, "model__name": "deeplabv3"}))
