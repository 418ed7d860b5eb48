"""PyTorch state dicts in, variables out, every mistake named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import InputError, default
from jaxseg.models import UNet, initial_variables, make_model
from jaxseg.models.torch_weights import read_state_dict, unet_from_torch, unet_moves


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(UNet(3, 4).init(jax.random.key(1), jnp.zeros((1, 16, 16, 3))))


@pytest.fixture
def state_dict(variables):
    """The state dict that PyTorch would hold for `variables`: axes moved back by hand-written rules."""
    back = {(2, 3, 1, 0): (3, 2, 0, 1), (2, 3, 0, 1): (2, 3, 0, 1), None: None}
    result = {}
    for move in unet_moves():
        leaf = variables[move.collection]
        for key in move.path:
            leaf = leaf[key]
        result[move.torch_name] = leaf.transpose(back[move.axes]) if move.axes else leaf
    result["encoder1.enc1norm1.num_batches_tracked"] = np.int64(7)
    return result


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_shapes_are_pytorchs(state_dict):
    assert state_dict["encoder2.enc2conv1.weight"].shape == (8, 4, 3, 3)  # out, in, h, w
    assert state_dict["upconv1.weight"].shape == (8, 4, 2, 2)  # in, out, h, w
    assert state_dict["conv.weight"].shape == (3, 4, 1, 1)


def test_round_trip(state_dict, variables):
    assert equal(unet_from_torch(state_dict, target=variables), variables)


def test_leftover_and_missing_tensors_are_named(state_dict):
    state_dict["extra.weight"] = state_dict.pop("decoder2.dec2conv1.weight")
    with pytest.raises(InputError, match=r"missing: decoder2.dec2conv1.weight; left over: extra.weight"):
        unet_from_torch(state_dict)


def test_wrong_shapes_are_named(state_dict, variables):
    state_dict["conv.weight"] = np.zeros((5, 4, 1, 1), np.float32)
    with pytest.raises(
        InputError, match=r"conv.weight: \(1, 1, 4, 5\) \(in our layout\) where the network has \(1, 1, 4, 3\)"
    ):
        unet_from_torch(state_dict, target=variables)
    state_dict["conv.weight"] = np.zeros((3, 4), np.float32)
    with pytest.raises(InputError, match=r"tensor conv.weight has shape \(3, 4\)"):
        unet_from_torch(state_dict)


def test_init_from_a_numpy_archive(state_dict, variables, tmp_path):
    np.savez(tmp_path / "weights.npz", **state_dict)
    config = default()
    config.model.update({"features": 4, "init_from": str(tmp_path / "weights.npz")})
    model = make_model(config.model, num_classes=3, axis_name=None)
    assert equal(initial_variables(model, config.model, seed=0), variables)


def test_safetensors(state_dict, tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    del state_dict["encoder1.enc1norm1.num_batches_tracked"]  # the writer wants arrays
    save_file({k: np.ascontiguousarray(v) for k, v in state_dict.items()}, tmp_path / "weights.safetensors")
    loaded = read_state_dict(tmp_path / "weights.safetensors")
    assert all(np.array_equal(loaded[k], state_dict[k]) for k in state_dict)


def test_released_pth_is_the_mapping(golden, shared):
    pytest.importorskip("torch")
    loaded, drawn = read_state_dict(shared / "golden/unet_f8_c21.pth"), golden("unet_f8_c21")["weights"]
    assert loaded.keys() == drawn.keys()
    assert all(np.array_equal(loaded[k], drawn[k]) for k in drawn)


def test_pickled_code_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"conv.weight": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights.pth: cannot be read"):
        read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.npz", None, "there is no such file"),
        ("weights.onnx", b"x", "expected a file ending in .npz, .safetensors, .pth, .pt"),
        ("weights.npz", b"not a zip", "not a NumPy .npz archive"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_state_dict(tmp_path / name)
    assert name in str(caught.value)
    assert words in str(caught.value)
