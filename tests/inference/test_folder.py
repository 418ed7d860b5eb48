"""What `python -m jaxseg.predict` writes, read back by Pillow and NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg.errors import InputError
from jaxseg.inference import folder as folder_module
from jaxseg.inference.folder import find_images, output_names, predict_images, write_prediction
from jaxseg.inference.options import InferenceOptions
from jaxseg.labels import LABELS
from jaxseg.models.torch_weights import unet_tensor_maps
from jaxseg.training.parallel import unreplicate
from tests.runs import call, run_command

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def network(tiny_run):
    return jaxseg.load(tiny_run)


def save(path, h, w):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = RNG.integers(0, 256, (h, w, 3), np.uint8)
    Image.fromarray(image).save(path)
    return image


@pytest.fixture
def pictures(tmp_path):
    """Folder with pictures of three sizes, one of them in a folder of its own, a text and a broken picture."""
    folder = tmp_path / "pictures"
    images = {
        name: save(folder / name, *hw)
        for name, hw in (("a.png", (36, 36)), ("b.png", (50, 30)), ("sub/c.png", (8, 70)))
    }
    (folder / "notes.txt").write_text("not a picture")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder, images


def test_folders_patterns_and_files_are_found_once(pictures, tmp_path):
    folder, _ = pictures
    everything = ["a.png", "b.png", "broken.png", "sub/c.png"]
    found = find_images([str(folder)], output=tmp_path / "out")
    assert [str(p.relative_to(folder)) for p in found] == everything
    found = find_images([str(folder / "b.png"), str(folder / "?.png"), str(folder)], output=tmp_path / "out")
    assert [str(p.relative_to(folder)) for p in found] == ["b.png", "a.png", "broken.png", "sub/c.png"]
    found = find_images([str(folder / "**/c.*")], output=tmp_path / "out")
    assert [str(p.relative_to(folder)) for p in found] == ["sub/c.png"]
    # results of an earlier run in a folder below are no pictures
    found = find_images([str(folder)], output=folder / "sub")
    assert [str(p.relative_to(folder)) for p in found] == everything[:3]
    (folder / "sub/predictions.json").write_text('{"pictures": {}, "failed": {}, "step": 0}')
    found = find_images([str(folder)], output=tmp_path / "out")
    assert [str(p.relative_to(folder)) for p in found] == everything[:3]
    assert [p.name for p in find_images([str(folder / "notes.txt")], output=tmp_path / "out")] == ["notes.txt"]


def test_what_names_nothing_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no picture \(.png, .jpg"):
        find_images([str(tmp_path / "empty")], output=tmp_path / "out")
    with pytest.raises(
        InputError, match=r"x\*.png: there is no such file; expected images, folders of them, or a pattern"
    ):
        find_images([str(tmp_path / "x*.png")], output=tmp_path / "out")
    with pytest.raises(InputError, match="no picture was named"):
        find_images([], output=tmp_path / "out")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a.png"], ["a"]),
        (["/x/a.png", "/x/y/a.png", "/x/b.jpg"], ["a", "y/a", "b"]),
        (["/x/a.png", "/x/a.jpg", "/x/b.v1.png"], ["a.png", "a.jpg", "b.v1"]),
        (["/p/one/a.png", "/p/two/a.png"], ["one/a", "two/a"]),
        (["/p/one/../two/a.png", "/p/one/b.png"], ["two/a", "one/b"]),
        (["/x/a.png", "/x/a.jpg", "/x/a.png.bmp"], ["a.png", "a.jpg", "a.png.bmp"]),
    ],
)
def test_no_two_pictures_share_a_name(paths, names):
    assert [str(name) for name in output_names([Path(p) for p in paths])] == names


def test_every_picture_gets_its_files_and_a_broken_one_is_told(network, pictures, tmp_path, capsys):
    folder, images = pictures
    paths = find_images([str(folder)], output=tmp_path / "out")
    options = InferenceOptions(flip=True, batch=4)
    (tmp_path / "out").mkdir()
    done, failed = predict_images(network, paths, tmp_path / "out", {"step": 0}, options=options, probabilities=True)
    assert set(done) == {str(folder / name) for name in images}
    assert list(failed) == [str(folder / "broken.png")]
    assert "broken.png: not a complete image" in capsys.readouterr().err
    for name, image in images.items():
        stem = name.removesuffix(".png")
        expected = network.predict(image, flip=True)
        with Image.open(tmp_path / f"out/masks/{stem}.png") as mask:
            assert mask.mode == "P"
            assert (np.array(mask) == expected).all()
            assert (np.array(mask.convert("RGB")) == LABELS["camvid"].palette[expected]).all()
        probabilities = np.load(tmp_path / f"out/probabilities/{stem}.npy")
        assert probabilities.dtype == np.float16
        np.testing.assert_allclose(probabilities, network.probabilities(image, flip=True), atol=5e-4)  # float16
        with Image.open(tmp_path / f"out/overlays/{stem}.jpg") as overlay:
            assert overlay.size == image.shape[1::-1]
        entry = done[str(folder / name)]
        assert entry["size_px"] == list(image.shape[1::-1])
        assert sum(entry["share_of_pixels"].values()) == pytest.approx(1)
        assert entry["files"] == [f"masks/{stem}.png", f"overlays/{stem}.jpg", f"probabilities/{stem}.npy"]
    assert not list((tmp_path / "out").rglob("*.part"))


def test_what_an_interruption_leaves_is_whole_and_listed(network, pictures, tmp_path, monkeypatch):
    folder, images = pictures
    write = folder_module.write_prediction
    written = []

    def interrupted(*arguments, **options):
        if written:
            raise KeyboardInterrupt
        written.append(write(*arguments, **options))
        return written[-1]

    monkeypatch.setattr(folder_module, "write_prediction", interrupted)
    paths = [folder / name for name in images]
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        predict_images(network, paths, tmp_path / "out", {"step": 0}, options=InferenceOptions(), probabilities=False)
    said = json.loads((tmp_path / "out/predictions.json").read_text())
    assert list(said["pictures"].values()) == written
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("[!.]*.*"))
    assert files == sorted([*written[0]["files"], "predictions.json"])


def test_cityscapes_gets_the_ids_of_its_evaluation_server(tmp_path):
    labels = LABELS["cityscapes"]
    label = np.array([[0, 2], [13, 18]])  # road, building, car, bicycle
    scores = np.eye(19, dtype=np.float32)[label]
    image = np.full((2, 2, 3), 200, np.uint8)
    entry = write_prediction(tmp_path, Path("x"), image, scores, labels, probabilities=False)
    assert entry == {
        "size_px": [2, 2],
        "files": ["masks/x.png", "overlays/x.jpg", "label_ids/x.png"],
        "share_of_pixels": {"road": 0.25, "building": 0.25, "car": 0.25, "bicycle": 0.25},
    }
    with Image.open(tmp_path / "label_ids/x.png") as ids:
        assert ids.mode == "L"
        assert np.array(ids).tolist() == [[7, 11], [26, 33]]  # cityscapesScripts, helpers/labels.py
    with Image.open(tmp_path / "masks/x.png") as mask:
        assert np.array(mask.convert("RGB"))[0, 1].tolist() == [70, 70, 70]


def test_the_overlay_is_half_image_half_color(tmp_path):
    labels = LABELS["cityscapes"]
    image, scores = np.full((16, 16, 3), 200, np.uint8), np.eye(19, dtype=np.float32)[np.full((16, 16), 2)]
    write_prediction(tmp_path, Path("x"), image, scores, labels, probabilities=False)
    with Image.open(tmp_path / "overlays/x.jpg") as overlay:
        assert np.abs(np.array(overlay).astype(int) - 135).max() <= 1  # (200 + 70) / 2, JPEG


def test_the_command(tiny_run, network, pictures, tmp_path):
    folder, images = pictures
    output = tmp_path / "out"
    ended = run_command(
        "jaxseg.predict",
        str(folder / "a.png"),
        "--workdir",
        str(tiny_run),
        "--window_px=16",
        str(folder / "broken.png"),
        f"--output={output}",
    )
    assert ended.returncode == 2
    assert "1 of 2 pictures predicted (resized as in training, windows of 16 pixels, 0.5 overlap)" in ended.stdout
    assert "broken.png: not a complete image" in ended.stderr
    assert "Traceback" not in ended.stderr
    with Image.open(output / "masks/a.png") as mask:
        assert (np.array(mask) == network.predict(images["a.png"], window_px=16)).mean() > 0.999  # one device, not four
    said = json.loads((output / "predictions.json").read_text())
    assert (said["step"], said["peer"], list(said["failed"])) == (0, "unet", [str(folder / "broken.png")])
    assert said["config"]["model"]["features"] == 4


def test_weights_of_another_program(network, tiny_run, tmp_path):
    """A state dict in PyTorch's names in place of a run: config and file."""
    peer = unreplicate(network.peer)
    variables, state_dict = {"params": peer.params, "batch_stats": peer.batch_stats}, {}
    for move in unet_tensor_maps():
        array = variables[move.collection]
        for key in move.path:
            array = array[key]
        state_dict[move.torch_name] = array.transpose(np.argsort(move.axes)) if move.axes else array
    np.savez(tmp_path / "unet.npz", **state_dict)
    image = save(tmp_path / "a.png", 40, 40)
    fields = ["model.features=4", "data.size_px=36", "data.crop_px=32", f"model.init_from={tmp_path / 'unet.npz'}"]
    config = ["--config=configs/unet_camvid.py", *(f"--config.{f}" for f in fields)]
    ended = call("jaxseg.predict", *config, str(tmp_path / "a.png"), f"--output={tmp_path / 'out'}")
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert (np.array(mask) == network.predict(image)).mean() > 0.999
