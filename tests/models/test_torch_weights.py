"""PyTorch state dicts in, variables out, every mistake named."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import default
from jaxseg.errors import InputError
from jaxseg.models import UNet
from jaxseg.models.factory import fresh_variables, load_variables, make_model
from jaxseg.models.torch_weights import (
    flatten,
    load_own_names,
    load_unet,
    unet_from_torch,
    unet_tensor_maps,
    unet_to_torch,
)
from jaxseg.models.weights_io import read_state_dict, write_state_dict
from jaxseg.training.workdir import write_load_reports


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(jax.jit(UNet(3, 4).init)(jax.random.key(1), jnp.zeros((1, 16, 16, 3))))


@pytest.fixture
def state_dict(variables):
    """The state dict that PyTorch would hold for `variables`: axes moved back by hand-written rules."""
    back = {(2, 3, 1, 0): (3, 2, 0, 1), (2, 3, 0, 1): (2, 3, 0, 1), None: None}
    result = {}
    for move in unet_tensor_maps():
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


def test_back_to_pytorch_is_the_state_dict(state_dict, variables):
    """Names, shapes and values of the hand-written rules; 18 BatchNorms, each with its counter at 0."""
    made = unet_to_torch(variables)
    counters = {name for name in made if name.endswith("num_batches_tracked")}
    del state_dict["encoder1.enc1norm1.num_batches_tracked"]
    assert made.keys() - counters == state_dict.keys()
    assert all(np.array_equal(made[name], state_dict[name]) for name in state_dict)
    assert len(counters) == 18
    assert all(made[name] == 0 and made[name].dtype == np.int64 and made[name].shape == () for name in counters)
    assert all(
        array.flags["C_CONTIGUOUS"] for array in made.values()
    )  # what .safetensors stores is the memory as it is


@pytest.mark.parametrize("name", ["unet_f8_c21", "unet_f32_c19"])
def test_back_to_pytorch_is_what_pytorch_recorded(golden, name):
    """Every name, shape and value of the original network's own state dict, its counters included."""
    recorded = golden(name)["weights"]
    made = unet_to_torch(unet_from_torch(recorded))
    assert made.keys() == recorded.keys()
    assert all(np.array_equal(made[key], recorded[key]) for key in recorded)


def test_other_variables_do_not_become_the_studys(variables):
    params = {**variables["params"], "more": {"kernel": np.zeros(3)}}
    with pytest.raises(InputError, match="not those of the network in PyTorch: params/more/kernel"):
        unet_to_torch({**variables, "params": params})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
def test_what_is_written_is_read(state_dict, tmp_path, suffix):
    """Also under another name, as half-written files have."""
    if suffix in (".pth", ".pt"):
        pytest.importorskip("torch")
    made = unet_to_torch(unet_from_torch(state_dict))
    write_state_dict(tmp_path / "weights.part", made, suffix=suffix)
    read = read_state_dict(tmp_path / "weights.part", suffix=suffix)
    assert read.keys() == made.keys()
    assert all(np.array_equal(read[key], made[key]) for key in made)
    (tmp_path / "weights.part").rename(tmp_path / f"weights{suffix}")
    assert read_state_dict(tmp_path / f"weights{suffix}").keys() == made.keys()


def test_without_pytorch_its_format_is_a_sentence(state_dict, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"needs it: install jaxseg\[torch\], or write .safetensors or .npz"):
        write_state_dict(tmp_path / "weights.pth", state_dict, suffix=".pth")
    assert not (tmp_path / "weights.pth").exists()


def test_own_names(variables, tmp_path):
    """100 arrays by hand: 18 kernels of 3×3, 4 + 1 with bias, and 18 BatchNorms of four. Back by way of a file."""
    arrays = flatten(variables)
    assert len(arrays) == 18 + 2 * 5 + 18 * 4
    assert arrays["params/encoder2/conv1/kernel"].shape == (3, 3, 4, 8)
    assert arrays["batch_stats/bottleneck/norm2/var"].shape == (64,)
    write_state_dict(tmp_path / "own.safetensors", arrays, suffix=".safetensors")
    config = default()
    config.model.update({"features": 4, "init_from": str(tmp_path / "own.safetensors")})
    found, report = load_variables(config.model, target=variables)
    assert equal(found, variables)
    assert "params/head/bias [3] -> params/head/bias" in report.loaded
    assert (len(report.loaded), report.fresh, report.dropped) == (len(arrays), (), ())


def test_own_names_in_parts_and_their_mistakes(variables):
    other = jax.device_get(jax.jit(UNet(5, 4).init)(jax.random.key(2), jnp.zeros((1, 16, 16, 3))))
    arrays = flatten(variables)
    found = load_own_names(arrays, target=other, parts="all_but_head")[0]
    assert equal(found["params"]["head"], other["params"]["head"])
    assert equal(found["params"]["decoder1"], variables["params"]["decoder1"])
    with pytest.raises(InputError, match=r"params/head/kernel: \(1, 1, 4, 3\) .* where the network has \(1, 1, 4, 5\)"):
        load_own_names(arrays, target=other)
    renamed = arrays | {"params/extra": np.zeros(1)}
    del renamed["params/upconv1/bias"]
    with pytest.raises(
        InputError, match=r"not those of this network: missing: params/upconv1/bias; left over: params/extra"
    ):
        load_own_names(renamed, target=variables)
    with pytest.raises(InputError, match="parts='backbone'; expected all or all_but_head"):
        load_own_names(arrays, target=variables, parts="backbone")


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
    assert equal(load_variables(config.model, target=fresh_variables(model, seed=0))[0], variables)


def test_safetensors(state_dict, tmp_path):
    from safetensors.numpy import save_file

    del state_dict["encoder1.enc1norm1.num_batches_tracked"]  # the writer wants arrays
    save_file({k: np.ascontiguousarray(v) for k, v in state_dict.items()}, tmp_path / "weights.safetensors")
    loaded = read_state_dict(tmp_path / "weights.safetensors")
    assert all(np.array_equal(loaded[k], state_dict[k]) for k in state_dict)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_prefix_of_all_names_is_taken_off_and_told(state_dict, variables, tmp_path, prefix):
    wrapped = {prefix + name: array for name, array in state_dict.items()}
    found, report = load_unet(wrapped, target=variables)
    assert equal(found, variables)
    assert report.note == (f"the prefix {prefix!r} of all names was taken off",)
    assert any(line.startswith("note ") and prefix in line for line in report.lines())
    assert "conv.bias [3] -> params/head/bias" in report.loaded
    (sentence,) = write_load_reports(tmp_path, {"unet": report})
    assert f"the prefix {prefix!r}" in sentence
    assert load_unet(state_dict, target=variables)[1].note == ()
    (sentence,) = write_load_reports(tmp_path, {"unet": load_unet(state_dict, target=variables)[1]})
    assert "note" not in sentence


def test_a_prefix_of_some_names_stays(state_dict, variables):
    del state_dict["encoder1.enc1norm1.num_batches_tracked"]
    state_dict["module.conv.weight"] = state_dict.pop("conv.weight")
    with pytest.raises(InputError, match=r"missing: conv.weight; left over: module.conv.weight"):
        load_unet(state_dict, target=variables)


def test_pickled_code_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"conv.weight": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights.pth: it holds (io|_io|builtins).open"):
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
