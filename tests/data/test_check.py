"""`python -m jaxseg.data.check` prints what is there and what is wrong."""

import numpy as np
from PIL import Image

from tests import raw_data
from tests.runs import call, run_command


def run(*arguments, start=call):
    done = start("jaxseg.data.check", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_sound_data(tmp_path):
    raw_data.write_camvid(tmp_path, train=3, val=1)
    code, out, _ = run("--dataset=camvid", f"--source_dir={tmp_path}", start=run_command)
    assert code == 0
    assert "No problem found." in out
    assert "train: 3 images (the official split has 367); width × height: 48×40 (3)" in out
    mask = np.array(raw_data.pair("camvid", 100)[1])
    row = next(line for line in out.splitlines() if " bicyclist " in line)
    share = 100 * (mask == 10).mean()
    assert (f"{share:.3f}" in row) or share == 0


def test_absent_classes_are_listed(tmp_path):
    raw_data.write_camvid(tmp_path, train=1, val=1)
    Image.fromarray(np.full((40, 48), 5, np.uint8)).save(tmp_path / "valannot/val_0.png")
    code, out, _ = run("--dataset=camvid", f"--source_dir={tmp_path}")
    assert code == 0
    absent = next(line for line in out.splitlines() if line.startswith("val: classes that never occur"))
    assert absent.endswith("sky, building, pole, road, pavement, sign, fence, car, pedestrian, bicyclist")


def test_every_bad_file_is_listed(tmp_path):
    raw_data.write_camvid(tmp_path)
    Image.fromarray(np.full((40, 48), 99, np.uint8)).save(tmp_path / "trainannot/train_0.png")
    (tmp_path / "train/train_1.png").write_bytes(b"not an image")
    Image.new("L", (20, 20)).save(tmp_path / "valannot/val_0.png")
    code, out, _ = run("--dataset=camvid", f"--source_dir={tmp_path}")
    assert code == 1
    assert "trainannot/train_0.png: unknown label id 99" in out
    assert "train/train_1.png: not a complete image" in out
    assert "valannot/val_0.png: the mask is 20×20, its image 48×40" in out
    assert "3 problems found." in out
    assert "UNKNOWN" in out


def test_wrong_calls_have_status_2(tmp_path):
    assert run("--dataset=camvid", f"--source_dir={tmp_path}")[0] == 2
    code, _, err = run("--dataset=pascal", f"--source_dir={tmp_path}")
    assert code == 2
    assert "camvid" in err
    code, _, err = run("--dataset=camvid")
    assert (code, "--source_dir is needed" in err) == (2, True)
