"""Every format read back by its own program; what is damaged between writing and reading is refused."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg import export
from jaxseg.config import ON_DILATED_RESNET, default, use_mutual_learning
from jaxseg.config_checks import SIZE_MULTIPLE_PX
from jaxseg.errors import InputError, ResourceError
from jaxseg.inference import export_formats
from jaxseg.inference.export_check import logit_differences, sizes_px, write_verified
from jaxseg.inference.export_formats import RefusedError, inference_fn, make_export, symbolic_multiple_px
from jaxseg.models.factory import load_variables, make_model
from jaxseg.models.torch_weights import flatten, load_own_names, shapes_of, unet_to_torch
from jaxseg.models.weights_io import read_state_dict
from jaxseg.training import checkpoint
from jaxseg.training.optimizers import make_optimizer
from jaxseg.training.state import create_peer
from tests.runs import call, run_command

MODELS = {
    "unet": {"features": 2},
    "deeplabv3": {"name": "deeplabv3", "backbone": "resnet14", "stem_features": 4},
    "deeplabv3, stride 16": {
        "name": "deeplabv3",
        "backbone": "resnet14",
        "stem_features": 4,
        "output_stride": 16,
        "auxiliary": True,
        "normalize": "imagenet",
    },
}
ON_RESNET14 = {"backbone": "resnet14", "stem_features": 4}
RESNETS = {
    "deeplabv3plus": ON_RESNET14,
    "fcn": ON_RESNET14 | {"auxiliary": True, "normalize": "imagenet"},
    "fpn": ON_RESNET14,
    "pspnet": ON_RESNET14,
    "resnet_unet": ON_RESNET14,
}
needs_onnx = pytest.mark.skipif(
    not (importlib.util.find_spec("jax2onnx") and importlib.util.find_spec("onnxruntime")),
    reason="jax2onnx and onnxruntime are not installed: jaxseg[onnx]",
)


def config_of(name: str):
    config = default()
    config.data.update({"name": "camvid", "crop_px": 32})
    config.model.update(MODELS[name] if name in MODELS else {"name": name} | RESNETS[name])
    return config


def random_variables(config) -> dict:
    """As after training: every array its own numbers, and variances above 0."""
    fresh, rng = shapes_of(make_model(config.model, num_classes=11, axis_name=None)), np.random.default_rng(0)
    arrays = flatten(fresh)
    for name, array in arrays.items():
        kind = name.rsplit("/", 1)[1]
        if kind in ("scale", "var"):
            drawn = rng.uniform(0.5, 1.5, array.shape)
        else:
            drawn = rng.normal(0, np.sqrt(2 / np.prod(array.shape[:-1])) if kind == "kernel" else 0.1, array.shape)
        arrays[name] = drawn.astype(np.float32)
    return load_own_names(arrays, target=fresh)[0]


@pytest.fixture(scope="module", params=[*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in RESNETS)])
def network(request):
    """(config, variables). Those of RESNETS are slow: each takes programs of its own, of a ResNet at two sizes."""
    config = config_of(request.param)
    return config, random_variables(config)


@pytest.fixture(scope="module", params=MODELS)
def network_in_pytorch(request):
    """(config, variables) of a network that scripts/torch_reference has in PyTorch."""
    config = config_of(request.param)
    return config, random_variables(config)


def step_of(config) -> int:
    """16, or where the network takes no such sizes, the least that it takes."""
    return max(16, symbolic_multiple_px(config.model))


@pytest.fixture(scope="module")
def unet():
    config = config_of("unet")
    return config, random_variables(config)


def made(network, format: str, **options) -> export_formats.Export:
    config, variables = network
    return make_export(config, variables, peer="unet", step=7, format=format, **options)


def image_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random((*shape, 3), np.float32)


def test_stablehlo_takes_every_batch_and_size_on_three_platforms(network, tmp_path):
    """Read by JAX alone; other batches and sizes than the check's own. What it computes is what the network, normalised
    by hand, computes."""
    config, variables = network
    written = write_verified(made(network, "stablehlo"), tmp_path / "net.stablehlo")
    program = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert "f64" not in program.mlir_module()
    assert "custom_call" not in re.sub(r"custom_call @shape_assertion", "", program.mlir_module())
    plain = config.model.copy_and_resolve_references()
    plain.normalize = "none"
    plain = make_model(plain, num_classes=11, axis_name=None)
    mean, std = (np.array(written["normalize"][key], np.float32) for key in ("mean", "std"))
    step = step_of(config)
    for b, h, w in ((1, 2 * step, step), (3, 3 * step, 7 * step)):
        image = image_of(b, h, w)
        logits = np.asarray(program.call(image))
        assert logits.shape == (b, h, w, 11)
        expected = jax.jit(plain.apply)(variables, (image - mean) / std)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * float(np.std(expected)))
    with pytest.raises(ValueError, match="shape"):
        program.call(image_of(1, step + 4, 2 * step))  # a multiple of 4, no more


def test_the_json_says_what_the_file_is(network, tmp_path):
    config, _ = network
    content = write_verified(made(network, "safetensors"), tmp_path / "net.safetensors")
    assert content | {"classes": None} == json.loads((tmp_path / "net.safetensors.json").read_text()) | {
        "classes": None
    }
    stored = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert stored == content
    assert stored["classes"]["0"] == "sky"
    assert stored["classes"]["10"] == "bicyclist"
    assert len(stored["classes"]) == 11
    assert stored["sha256"] == hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    assert (stored["step"], stored["peer"], stored["data"]) == (7, "unet", "camvid")
    assert stored["model"] == config.model.to_dict()
    assert stored["versions"]["jax"] == jax.__version__
    assert stored["normalize"]["mean"] == ([0.485, 0.456, 0.406] if config.model.normalize == "imagenet" else [0, 0, 0])
    assert stored["verified"]["max_difference"] == 0
    step = step_of(config)
    assert stored["verified"]["images"] == [[2, 4 * step, 6 * step, 3], [1, 5 * step, 3 * step, 3]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "net.safetensors.json"]
    header = (tmp_path / "net.safetensors").read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert json.loads(metadata["jaxseg"])["classes"] == stored["classes"]


@pytest.mark.parametrize("name", SIZE_MULTIPLE_PX)
def test_images_of_the_check_are_of_sizes_that_the_network_takes(name):
    for output_stride in (8, 16) if name in ("deeplabv3", "fcn") else (8,):
        config = default()
        config.model.update({"name": name, "output_stride": output_stride})
        sizes = sizes_px(make_export(config, {}, peer="unet", step=None, format="stablehlo"))
        assert sizes == ([(128, 192), (160, 96)] if name in ("fpn", "resnet_unet") else [(64, 96), (80, 48)])
        assert not any(side % symbolic_multiple_px(config.model) for hw in sizes for side in hw)


def test_files_predict_alike(network, tmp_path):
    """The predictor by our names and by PyTorch's, and the StableHLO program, at a size that none of them pads."""
    config, _ = network
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from jaxseg.config import default\n\n\ndef get_config():\n    config = default()\n"
        f"    config.data.name = 'camvid'\n    config.data.crop_px = {2 * step_of(config)}\n"
        f"    config.model.update({config.model.to_dict()!r})\n    return config\n"
    )
    image = np.random.default_rng(2).integers(0, 256, (2 * step_of(config), 3 * step_of(config), 3), np.uint8)
    found = []
    for format, suffix in (("safetensors", ".safetensors"), ("torch", ".npz")):
        write_verified(made(network, format, suffix=suffix), tmp_path / f"net{suffix}")
        predictor = jaxseg.load(tmp_path / f"net{suffix}", config=experiment)
        found.append(predictor.predict(image, resize="none"))
    write_verified(made(network, "stablehlo"), tmp_path / "net.stablehlo")
    program = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    expected = np.asarray(program.call(image[None] / np.float32(255)))[0].argmax(-1)
    assert len(np.unique(expected)) > 1
    assert np.array_equal(*found)
    assert (found[0] == expected).mean() > 0.999  # rounding may decide between two classes that are level


def flip_one_weight(variables):
    """The sign of one number in the first layer."""
    arrays = {name: np.array(array) for name, array in flatten(variables).items()}
    first = next(name for name in ("params/encoder1/conv1/kernel", "params/backbone/stem/kernel") if name in arrays)
    arrays[first][1, 1, 0, 0] *= -1
    return load_own_names(arrays, target=variables)[0]


@pytest.mark.parametrize(
    ("format", "says"),
    [
        ("stablehlo", r"logits differ by up to .* of their standard deviation; rounding explains 2e-03"),
        pytest.param("onnx", r"logits differ by up to .*; rounding explains 2e-03", marks=needs_onnx),
        ("safetensors", r"1 of 100 arrays are not as they were written, params/encoder1/conv1/kernel first"),
        ("torch", r"1 of 100 arrays are not as they were written, params/encoder1/conv1/kernel first"),
    ],
)
def test_one_flipped_weight_is_refused(unet, tmp_path, monkeypatch, format, says):
    """And what was there before stays."""
    right = export_formats.WRITE[format]
    wrong = flip_one_weight(unet[1])
    monkeypatch.setitem(
        export_formats.WRITE, format, lambda self, path: right(dataclasses.replace(self, variables=wrong), path)
    )
    output = tmp_path / "net"
    output.write_text("an earlier file")
    with pytest.raises(RefusedError, match=says):
        write_verified(made(unet, format, size_px=(32, 48) if format == "onnx" else None), output)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert output.read_text() == "an earlier file"


def test_logits_that_are_not_numbers_are_refused(unet, tmp_path):
    """NaN is no agreement, even with NaN."""
    config, variables = unet
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    with pytest.raises(RefusedError, match="logits differ by up to nan"):
        write_verified(made((config, broken), "stablehlo"), tmp_path / "net.stablehlo")
    with pytest.raises(InputError, match="values that are not finite"):
        write_verified(made((config, broken), "safetensors"), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_wrong_pixel_is_found(unet):
    """Differences by hand: 0.5 added to one logit of one pixel, which becomes its largest."""
    exported = made(unet, "stablehlo")
    own = inference_fn(exported.model, exported.variables)

    def predict(image):
        logits = np.array(own(image))
        if len(image) == 1:
            logits[0, 3, 4, 5] = logits[0, 3, 4].max() + 0.5
        return logits

    found = logit_differences(exported, predict)
    pixels = 2 * 64 * 96 + 80 * 48
    image = np.random.default_rng(0)
    images = [image.random((2, 64, 96, 3), np.float32), image.random((1, 80, 48, 3), np.float32)]
    logits = np.asarray(own(images[1]))[0, 3, 4]
    assert logits.argmax() != 5
    assert found["same_class"] == 1 - 1 / pixels
    assert found["max_difference"] == pytest.approx(logits.max() + 0.5 - logits[5], rel=1e-6)
    spread = np.concatenate([np.asarray(own(i)).ravel() for i in images]).std()
    assert found["max_difference_over_std"] == pytest.approx(found["max_difference"] / spread, rel=1e-5)
    with pytest.raises(RefusedError, match=r"logits are float32\[2, 64, 96, 3\], not float32\[2, 64, 96, 11\]"):
        logit_differences(exported, lambda image: image)


def test_bfloat16_is_exported_as_it_computes(unet, tmp_path):
    config = unet[0].copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    verified = write_verified(made((config, unet[1]), "stablehlo"), tmp_path / "net.stablehlo")["verified"]
    assert verified["tolerance_over_std"] == 0.2
    program = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    assert "bf16" in program.mlir_module()


# ---- Weights


@pytest.fixture(scope="module")
def run(unet, tmp_path_factory):
    """A run's folder with one checkpoint, of step 7, without training."""
    config, variables = unet
    workdir = tmp_path_factory.mktemp("run")
    model = make_model(config.model, num_classes=11, axis_name=None)
    peer = create_peer(model, make_optimizer(config.optim, steps=1), variables).replace(step=7)
    (workdir / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    with checkpoint.open_manager(workdir, config.checkpoint) as manager:
        checkpoint.save(manager, 7, jax.device_get({"unet": peer}), None)
        checkpoint.wait(manager)
    return workdir


def test_a_start_from_safetensors_is_the_run_bit_for_bit(unet, run, monkeypatch, capsys):
    """By the command's own main, from a checkpoint to a file to the first variables of another run."""
    config, variables = unet
    assert in_process(monkeypatch, config, workdir=str(run), format="safetensors") == 0
    said = capsys.readouterr().out
    assert f"written: {run}/export/unet-7.safetensors" in said
    assert "logits differ by at most 0.0e+00" in said
    again = config.copy_and_resolve_references()
    again.model.init_from = str(run / "export/unet-7.safetensors")
    started, _ = load_variables(again.model, target=variables)
    assert flatten(started).keys() == flatten(variables).keys()
    for name, array in flatten(variables).items():
        assert np.array_equal(flatten(started)[name], array), name


def in_process(monkeypatch, config, **given) -> int:
    flags = {"workdir": None, "checkpoint": "last", "peer": None, "format": None, "output": None, "size_px": None}
    monkeypatch.setattr(export.flags, "FLAGS", SimpleNamespace(**flags | {"config": config} | given))
    return export.execute()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_pytorch_loads_its_weights_strictly_and_computes_the_same(network_in_pytorch, tmp_path, suffix):
    """In networks written in PyTorch with the original names; an auxiliary head, which they lack, is left out there."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: jaxseg[torch]")
    from safetensors.torch import load_file

    from scripts.torch_reference.deeplabv3 import TorchDeepLabV3
    from scripts.torch_reference.unet import TorchUNet

    config, _ = network_in_pytorch
    exported, output = made(network_in_pytorch, "torch", suffix=suffix), tmp_path / f"net{suffix}"
    content = write_verified(exported, output)
    loaders = {
        ".safetensors": load_file,
        ".npz": lambda path: {k: torch.from_numpy(v) for k, v in np.load(path).items()},
        ".pth": lambda path: torch.load(path, weights_only=True),
    }
    state_dict = loaders[suffix](output)
    if config.model.name == "unet":
        theirs = TorchUNet(11, 2)
    else:
        theirs = TorchDeepLabV3(11, "resnet14", 4, config.model.output_stride)
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith("aux_classifier.")}
    theirs.load_state_dict(state_dict, strict=True)
    theirs.eval()
    image = image_of(2, 48, 64)
    mean, std = (np.array(content["normalize"][key], np.float32) for key in ("mean", "std"))
    with torch.no_grad():
        logits = theirs(torch.from_numpy((image - mean) / std).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    expected = np.asarray(inference_fn(exported.model, exported.variables)(image))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * float(expected.std()))
    assert content["normalize"]["by"] == ("the user" if config.model.normalize == "imagenet" else "the network")


def test_pytorchs_names_without_pytorch(network, tmp_path, monkeypatch):
    """Written and verified where PyTorch is not there; its counters are there for strict loading."""
    monkeypatch.setitem(sys.modules, "torch", None)
    write_verified(made(network, "torch"), tmp_path / "net.safetensors")
    names = read_state_dict(tmp_path / "net.safetensors").keys()
    name = network[0].model.name
    first = "encoder1.enc1norm1" if name == "unet" else "backbone.bn1" if name in ON_DILATED_RESNET else "encoder.bn1"
    assert {f"{first}.{kind}" for kind in ("weight", "bias", "running_mean", "num_batches_tracked")} <= names
    assert any(name.startswith("aux_classifier.") for name in names) == network[0].model.auxiliary


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unet", "UNet(in_channels=3, out_channels=11, init_features=2)"),
        ("deeplabv3", "torchvision builds no DeepLabV3 with backbone=resnet14, stem_features=4:"),
        ("deeplabv3, stride 16", "with backbone=resnet14, stem_features=4, output_stride=16:"),
        ("torchvision's", "deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=11, aux_loss=True)"),
    ],
)
def test_which_network_of_pytorch_takes_the_weights_is_said(monkeypatch, name, says):
    monkeypatch.setitem(MODELS, "torchvision's", {"name": "deeplabv3", "auxiliary": True, "normalize": "imagenet"})
    config = config_of(name)
    network, images = export.hints(make_export(config, {}, peer="unet", step=None, format="torch"), Path("x.npz"))
    assert says in network
    assert ("must be normalised by you: (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]" in images) == (
        config.model.normalize == "imagenet"
    )


# ---- ONNX


@needs_onnx
def test_onnx_runtime_computes_the_same(network, tmp_path):
    """At its one size, at batches that the check does not run."""
    import onnx
    import onnxruntime

    h, w = 2 * step_of(network[0]), 3 * step_of(network[0])
    exported = made(network, "onnx", size_px=(h, w))
    content = write_verified(exported, tmp_path / "net.onnx")
    assert content["verified"]["images"] == [[2, h, w, 3], [1, h, w, 3]]
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(stored["jaxseg"])["classes"]["0"] == "sky"
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [h, w, 3]
    image = image_of(5, h, w)
    logits = session.run(["logits"], {"image": image})[0]
    expected = np.asarray(inference_fn(exported.model, exported.variables)(image))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * float(expected.std()))


def test_onnx_without_its_packages_is_a_sentence(unet, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=r"--format=onnx needs jax2onnx; pip install 'jaxseg\[onnx\]'"):
        export.refuse(unet[0], "unet", "onnx")


def test_onnx_in_bfloat16_is_refused(unet, monkeypatch):
    monkeypatch.setattr(export, "import_onnx", lambda name: None)
    config = unet[0].copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    with pytest.raises(InputError, match=r"config.model.dtype=bfloat16: .* add --config.model.dtype=float32"):
        export.refuse(config, "unet", "onnx")


@pytest.mark.parametrize(
    ("text", "expected"), [(None, (32, 32)), ("64x96", (64, 96)), ("64×96", (64, 96)), ("48x16", (48, 16))]
)
def test_sizes(unet, text, expected):
    assert export.parse_size(text, unet[0], unet[0].model, "onnx") == expected


@pytest.mark.parametrize("text", ["", "64", "64x100", "0x64", "-16x16", "64x96x3"])
def test_sizes_that_cannot_be(unet, text):
    with pytest.raises(InputError, match=f"--size_px={text}: expected HEIGHTxWIDTH in pixels, multiples of 16"):
        export.parse_size(text, unet[0], unet[0].model, "onnx")
    with pytest.raises(InputError, match=f"--size_px={text} is for --format=onnx"):
        export.parse_size(text, unet[0], unet[0].model, "stablehlo")


# ---- Refusals


def test_a_damaged_file_is_refused_with_a_status(unet, run, monkeypatch, capsys):
    config, variables = unet
    wrong = flip_one_weight(variables)
    right = export_formats.write_stablehlo
    replace = dataclasses.replace
    monkeypatch.setitem(
        export_formats.WRITE, "stablehlo", lambda self, path: right(replace(self, variables=wrong), path)
    )
    assert in_process(monkeypatch, config, workdir=str(run), format="stablehlo") == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"refused: {run}/export/unet-7.stablehlo: logits differ by up to")
    assert not said.out
    assert not list((run / "export").glob("*stablehlo*"))


def test_what_cannot_be_asked_for(tmp_path, monkeypatch):
    config = default()
    use_mutual_learning(config)
    cases = {
        "--peer=unet: there is no such network; expected student or teacher": {"peer": "unet", "format": "torch"},
        r"--format=stablehlo\|onnx\|safetensors\|torch is needed": {},
        "without --workdir=RUN, --output=FILE is needed": {"format": "torch"},
        "with --format=stablehlo, expected a file ending in .stablehlo": {"format": "stablehlo", "output": "a.pth"},
        "with --format=torch, expected a file ending in .safetensors or .npz or .pth": {
            "format": "torch",
            "output": "a.onnx",
        },
        "is a folder; expected a file": {"format": "safetensors", "output": str(tmp_path / "folder.safetensors")},
        "config.model.init_from is needed": {"format": "safetensors", "output": str(tmp_path / "a.safetensors")},
    }
    (tmp_path / "folder.safetensors").mkdir()
    for says, given in cases.items():
        with pytest.raises(InputError, match=says):
            in_process(monkeypatch, config, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


def test_a_file_that_cannot_be_written_is_a_sentence(unet, tmp_path, monkeypatch):
    def full(self, path):
        path.write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setitem(export_formats.WRITE, "safetensors", full)
    with pytest.raises(ResourceError, match=r"net.safetensors: cannot be written \(No space left on device\)"):
        write_verified(made(unet, "safetensors"), tmp_path / "net.safetensors")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"net.safetensors: cannot be written \(No such file or directory\)"):
        write_verified(made(unet, "safetensors"), tmp_path / "gone" / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_public_command(unet, tmp_path):
    """From a file of weights, without a run; and its refusal of a folder that cannot be made, with status 2."""
    weights = tmp_path / "weights.npz"
    np.savez(weights, **unet_to_torch(unet[1]))
    output = tmp_path / "out" / "net.safetensors"
    words = ["--config=configs/unet_camvid.py", "--config.model.features=2", "--format=safetensors"]
    words.append(f"--config.model.init_from={weights}")
    done = run_command("jaxseg.export", *words, f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert f"written: {output}" in done.stdout
    arrays = read_state_dict(output)
    assert all(np.array_equal(arrays[name], array) for name, array in flatten(unet[1]).items())
    done = call("jaxseg.export", *words, f"--output={weights}/net.safetensors")
    assert done.returncode == 2
    assert "its folder cannot be made" in done.stderr
