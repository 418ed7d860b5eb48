"""What `python -m jaxseg.predict` writes, read back by Pillow and NumPy."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg.errors import InputError
from jaxseg.files import MARK
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
    found = find_images([str(folder)])
    assert [str(p.relative_to(folder)) for p in found] == everything
    found = find_images([str(folder / "b.png"), str(folder / "?.png"), str(folder)])
    assert [str(p.relative_to(folder)) for p in found] == ["b.png", "a.png", "broken.png", "sub/c.png"]
    found = find_images([str(folder / "**/c.*")])
    assert [str(p.relative_to(folder)) for p in found] == ["sub/c.png"]
    assert [p.name for p in find_images([str(folder / "notes.txt")])] == ["notes.txt"]


@pytest.mark.parametrize("mark", [folder_module.INDEX, f"masks/{MARK}"])
def test_results_of_predictions_are_left_out_and_told_by_their_index_or_mark(pictures, mark):
    """What a prediction wrote beside pictures is no picture; the pictures themselves are, also in its --output."""
    folder, _ = pictures
    save(folder / "sub/masks/c.png", 8, 70)
    save(folder / "masks/a.png", 8, 70)  # of somebody else
    (folder / "predictions.json").write_text('{"pictures": [], "of": "another program"}')
    (folder / "sub" / mark).write_text('{"pictures": {}, "failed": {}, "step": 0}')
    said = []
    found = find_images([str(folder)], say=said.append)
    assert [str(p.relative_to(folder)) for p in found] == ["a.png", "b.png", "broken.png", "masks/a.png", "sub/c.png"]
    (line,) = said
    assert "1 file that a prediction wrote" in line
    assert str(folder / "sub/masks") in line
    with pytest.raises(InputError, match="nothing but results of a prediction"):
        find_images([str(folder / "sub/masks/*.png")], say=said.append)


def test_output_may_be_the_folder_of_the_pictures(tiny_run, pictures, monkeypatch):
    """--output=. once, and again, when its own results lie there."""
    folder, _ = pictures
    (folder / "broken.png").unlink()
    monkeypatch.chdir(folder)
    command = ["jaxseg.predict", f"--workdir={tiny_run}", "--output=."]
    assert call(*command, "a.png").returncode == 0
    again = call(*command, ".")
    assert again.returncode == 0, again.stderr
    assert "3 of 3 pictures predicted" in again.stdout
    assert "left out of .: 2 files that a prediction wrote" in again.stdout
    assert sorted(str(p) for p in Path("masks").rglob("*.png")) == ["masks/a.png", "masks/b.png", "masks/sub/c.png"]


def test_what_names_nothing_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no picture \(.png, .jpg"):
        find_images([str(tmp_path / "empty")])
    with pytest.raises(
        InputError, match=r"x\*.png: there is no such file; expected images, folders of them, or a pattern"
    ):
        find_images([str(tmp_path / "x*.png")])
    with pytest.raises(InputError, match="no picture was named"):
        find_images([])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a.png"], ["a"]),
        (["/x/a.png", "/x/y/a.png", "/x/b.jpg"], ["a", "y/a", "b"]),
        (["/x/a.png", "/x/a.jpg", "/x/b.v1.png"], ["a.png", "a.jpg", "b.v1"]),
        (["/p/one/a.png", "/p/two/a.png"], ["one/a", "two/a"]),
        (["/p/one/../two/a.png", "/p/one/b.png"], ["two/a", "one/b"]),
        # masks/a.png would be a file and a folder
        (["/x/a.jpg", "/x/a.png/b.jpg"], ["a_1", "a.png/b"]),
        (["/x/a.jpg", "/x/a_1.bmp", "/x/a.png/b.jpg", "/x/a.jpg.npy/c.png"], ["a_2", "a_1", "a.png/b", "a.jpg.npy/c"]),
        (["/x/a.png", "/x/a.jpg", "/x/a.png.bmp"], ["a.png", "a.jpg", "a.png.bmp"]),
    ],
)
def test_no_two_pictures_share_a_name(paths, names):
    assert [str(name) for name in output_names([Path(p) for p in paths])] == names


def test_every_picture_gets_its_files_and_a_broken_one_is_told(network, pictures, tmp_path, capsys):
    folder, images = pictures
    paths = find_images([str(folder)])
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
    entry = write_prediction(tmp_path, Path("x"), image, [scores], labels, probabilities=False)
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
    write_prediction(tmp_path, Path("x"), image, [scores], labels, probabilities=False)
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


def test_of_several_frames_the_first_is_predicted_and_that_is_said(network, tmp_path, capsys):
    pages = [RNG.integers(0, 256, (36, 36, 3), np.uint8) for _ in range(3)]
    first, *others = map(Image.fromarray, pages)
    for name in ("pages.tif", "moving.webp", "moving.png"):
        first.save(
            tmp_path / name, save_all=True, append_images=others, **({"lossless": True} if "webp" in name else {})
        )
    save(tmp_path / "one.png", 36, 36)
    paths = [tmp_path / name for name in ("pages.tif", "moving.webp", "moving.png", "one.png")]
    (tmp_path / "out").mkdir()
    done, failed = predict_images(
        network, paths, tmp_path / "out", {"step": 0}, options=InferenceOptions(), probabilities=False
    )
    assert failed == {}
    assert [done[str(path)].get("frames") for path in paths] == [3, 3, 3, None]
    said = capsys.readouterr().err
    assert said.count("only the first of its 3 frames is predicted") == 3
    for path in paths[:3]:
        with Image.open(tmp_path / f"out/masks/{output_names(paths)[paths.index(path)]}.png") as mask:
            assert (np.array(mask) == network.predict(pages[0])).all()


def test_a_pipe_is_refused_not_waited_for(network, tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: neither a file nor a folder, but a pipe"):
        find_images([str(tmp_path / "a.png")])
    with pytest.raises(InputError, match=r"a.png: neither a file nor a folder, but a pipe"):
        network.predict(tmp_path / "a.png")
    with pytest.raises(InputError, match="holds no picture"):
        find_images([str(tmp_path)])
    os.mkfifo(tmp_path / folder_module.INDEX)
    assert not folder_module.is_index(tmp_path / folder_module.INDEX)


def test_an_index_nested_without_end_is_no_index(tmp_path):
    (tmp_path / folder_module.INDEX).write_text("[" * 100_000 + "]" * 100_000)
    assert not folder_module.is_index(tmp_path / folder_module.INDEX)


def test_a_picture_whose_results_cannot_be_written_is_told_and_the_rest_go_on(network, tmp_path, capsys):
    """masks/a.png is a folder, b's name leaves no room for a suffix; c is well."""
    paths = [tmp_path / "pictures" / name for name in ("a.png", "b" * 253 + ".p", "c.png")]  # at most 255 bytes
    save(paths[0], 36, 36)
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    (tmp_path / "out/masks/a.png").mkdir(parents=True)
    (tmp_path / "out/masks" / MARK).touch()
    done, failed = predict_images(
        network, paths, tmp_path / "out", {"step": 0}, options=InferenceOptions(), probabilities=False
    )
    assert list(done) == [str(paths[2])]
    assert list(failed) == [str(path) for path in paths[:2]]
    assert "a.png: a folder is where this file is to be written" in failed[str(paths[0])]
    assert "File name too long" in failed[str(paths[1])]
    assert "its results cannot be written" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/predictions.json").read_text())["failed"] == failed


def test_a_name_that_barely_fits_is_written(network, tmp_path):
    """The part beside it, of a longer name, must not be what fails: 251 bytes and .png are all that a name may have."""
    path = tmp_path / "pictures" / ("é" * 123 + "abcde.p")  # 2 · 123 + 5 bytes without its suffix
    path.parent.mkdir()
    Image.fromarray(RNG.integers(0, 256, (36, 36, 3), np.uint8)).save(path, format="PNG")
    (tmp_path / "out").mkdir()
    done, failed = predict_images(
        network, [path], tmp_path / "out", {"step": 0}, options=InferenceOptions(), probabilities=True
    )
    assert failed == {}
    assert all((tmp_path / "out" / file).is_file() for file in done[str(path)]["files"])


def test_names_that_are_no_utf_8_are_predicted_and_listed(tiny_run, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    save(Path(path), 36, 36)
    ended = run_command("jaxseg.predict", f"--workdir={tiny_run}", path, path + "x", f"--output={tmp_path / 'out'}")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    ended = call("jaxseg.predict", f"--workdir={tiny_run}", path, f"--output={tmp_path / 'out'}")
    assert ended.returncode == 0, ended.stderr
    said = json.loads((tmp_path / "out/predictions.json").read_text())
    assert list(said["pictures"]) == [path]
    assert (tmp_path / "out" / said["pictures"][path]["files"][0]).is_file()
