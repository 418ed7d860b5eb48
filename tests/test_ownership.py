"""What jaxseg did not make it never removes, empties or replaces: folders and files of the user in the way of outputs."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxseg import evaluate, predict
from jaxseg.data import synthetic
from jaxseg.data.download import RemoteFile, download
from jaxseg.errors import InputError
from jaxseg.files import MARK, atomic_write, file_lock, make_own_folder, remove_own_folder
from jaxseg.training import overfit
from tests import ROOT

MINE = "of the user"


def users_folder(folder):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text(MINE)
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(path)
    return str(path)


def test_only_files_py_removes():
    found = [
        path.name
        for path in (ROOT / "jaxseg").rglob("*.py")
        if re.search(r"rmtree|unlink\(|os\.remove|rmdir\(", path.read_text())
    ]
    assert found == ["files.py"]


def test_a_folder_is_removed_only_with_the_mark(tmp_path):
    mine = users_folder(tmp_path / "mine")
    with pytest.raises(InputError, match=r"mine: a folder that jaxseg did not make"):
        remove_own_folder(mine, why="as a test")
    assert (mine / "notes.txt").read_text() == MINE
    make_own_folder(tmp_path / "own")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "own")
    with pytest.raises(InputError, match=r"link: a link that jaxseg did not make"):
        remove_own_folder(link, why="as a test")
    assert (tmp_path / "own" / MARK).exists()
    remove_own_folder(tmp_path / "own", why="as a test")
    assert not (tmp_path / "own").exists()
    remove_own_folder(tmp_path / "own", why="as a test")  # absent is fine


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(MINE)
    (tmp_path / "x.json.part").write_text(MINE)

    def fail():
        with atomic_write(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.json.part"]
    assert {p.read_text() for p in tmp_path.iterdir()} == {MINE}


def test_a_lock_neither_empties_a_file_nor_follows_a_link(tmp_path):
    (tmp_path / "notes.txt").write_text(MINE)
    with file_lock(tmp_path / "notes.txt", if_held=lambda: None):
        pass
    (tmp_path / "lock").symlink_to("notes.txt")
    with pytest.raises(OSError, match="symbolic links"), file_lock(tmp_path / "lock", if_held=lambda: None):
        pass
    assert (tmp_path / "notes.txt").read_text() == MINE


@pytest.mark.parametrize("name", ["camvid", "camvid.part"])
def test_evaluate_does_not_replace_a_folder_beside_its_output(tiny_run, tmp_path, capsys, name):
    mine = users_folder(tmp_path / name)
    assert evaluate.main([f"--workdir={tiny_run}", f"--output={tmp_path / 'camvid.json'}"]) == 2
    assert f"{mine}: a folder that jaxseg did not make" in capsys.readouterr().err
    assert (mine / "notes.txt").read_text() == MINE
    assert not (tmp_path / "camvid.json").exists()


def test_evaluate_does_not_replace_a_file_that_holds_no_scores(tiny_run, tmp_path, capsys):
    output = tmp_path / "scores.json"
    output.write_text(json.dumps({"mine": MINE}))
    assert evaluate.main([f"--workdir={tiny_run}", f"--output={output}"]) == 2
    assert f"--output={output}: a file that holds no scores" in capsys.readouterr().err
    assert json.loads(output.read_text()) == {"mine": MINE}


def test_evaluate_replaces_its_own_scores(tiny_run, tmp_path):
    output = tmp_path / "scores.json"
    for _ in range(2):
        assert evaluate.main([f"--workdir={tiny_run}", f"--output={output}"]) == 0
    assert "peers" in json.loads(output.read_text())
    pictures = sorted(p.name for p in (tmp_path / "scores").glob("*_unet.png"))
    assert len(pictures) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores", "scores.json"]


def test_predict_does_not_write_into_masks_of_the_user(tiny_run, tmp_path, picture, capsys):
    masks = tmp_path / "set" / "masks"
    masks.mkdir(parents=True)
    (masks / "a.png").write_text(MINE)
    command = [f"--workdir={tiny_run}", picture, f"--output={tmp_path / 'set'}"]
    assert predict.main(command) == 2
    assert f"{masks}: a folder that jaxseg did not make" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    masks.rename(tmp_path / "elsewhere" / "masks")
    masks.symlink_to(tmp_path / "elsewhere" / "masks")
    assert predict.main(command) == 2
    assert f"{masks}: a link that jaxseg did not make" in capsys.readouterr().err
    assert (tmp_path / "elsewhere" / "masks" / "a.png").read_text() == MINE


def test_predict_replaces_its_own_results_and_leaves_another_programs_index(tiny_run, tmp_path, picture, capsys):
    output = tmp_path / "out"
    command = [f"--workdir={tiny_run}", picture, f"--output={output}"]
    assert predict.main(command) == 0
    assert predict.main(command) == 0
    (output / "predictions.json").write_text(json.dumps({"mine": MINE}))
    assert predict.main(command) == 2
    assert f"{output / 'predictions.json'}: is of another program" in capsys.readouterr().err
    assert json.loads((output / "predictions.json").read_text()) == {"mine": MINE}


def test_a_folder_with_another_programs_index_holds_pictures(tiny_run, tmp_path, picture):
    (tmp_path / "photos" / "predictions.json").write_text(json.dumps({"mine": MINE}))
    assert predict.main([f"--workdir={tiny_run}", str(tmp_path / "photos"), f"--output={tmp_path / 'out'}"]) == 0
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert list(said["pictures"]) == [picture]


def test_a_trial_does_not_remove_a_folder_of_the_user(tiny, tmp_path):
    mine = users_folder(tmp_path / "trial")
    with pytest.raises(InputError, match=r"trial: a folder that jaxseg did not make"):
        overfit.overfit(tiny, tmp_path)
    assert (mine / "notes.txt").read_text() == MINE


def test_rendering_does_not_remove_a_folder_of_the_user(tmp_path):
    mine = users_folder(tmp_path / "scenes.part")
    with pytest.raises(InputError, match=r"scenes.part: a folder that jaxseg did not make"):
        synthetic.write_scenes(tmp_path / "scenes", 6)
    assert (mine / "notes.txt").read_text() == MINE


def test_a_download_does_not_remove_a_larger_file(tmp_path):
    (tmp_path / "voc.tar.part").write_text(MINE)
    with pytest.raises(InputError, match=r"voc.tar.part: 11 bytes, but voc.tar has 3"):
        download(RemoteFile("http://127.0.0.1:9/voc.tar", 3, "0" * 64), tmp_path / "voc.tar")
    assert (tmp_path / "voc.tar.part").read_text() == MINE
