"""Commands as typed: those that train and score once as processes; what they refuse, in this one."""

import json

import pytest

from tests.runs import call, of_training, run_command, tiny_arguments


def test_commands_end_to_end(camvid_dir, tmp_path):
    """Training, then scoring, as typed; the table, the paths and the statuses."""
    done = run_command("jaxseg.main", *tiny_arguments(camvid_dir, tmp_path), f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    for words in ("mean IoU", "bicyclist", "predictions.png", "results.json", "next:"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines()[3:-4])) <= 80
    trained = json.loads((tmp_path / "run/results.json").read_text())
    assert trained["command"].startswith(
        "python -m jaxseg.main --config=configs/unet_camvid.py --config.data.size_px=36"
    )
    scored = run_command("jaxseg.evaluate", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'scored.json'}")
    assert scored.returncode == 0, scored.stderr
    assert of_training(json.loads((tmp_path / "scored.json").read_text())["peers"]) == trained["peers"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config=FILE is needed"),
        (["--config=configs/unet_vok.py"], "Did you mean 'configs/unet_voc.py'"),
        (["--config=configs/unet_voc.py:relaesd"], "unknown variant 'relaesd'"),
        (["--config=configs/demo.py", "--config.train.batchsize=4"], "Did you mean config.train.batch_size"),
        (["--config=configs/demo.py", "--config.train.batch_size=many"], "many"),
        (["--config=configs/demo.py", "--config.train.batch_size=0"], "config.train.batch_size is 0"),
        (["--config=configs/demo.py", "stray"], "'stray' is no flag"),
        (["--config=configs/demo.py", "--workdirr=x"], "workdirr"),
        (
            ["--config=configs/unet_cityscapes.py", "--config.data.source_dir=/nowhere"],
            "log in at www.cityscapes-dataset.com",
        ),
    ],
)
def test_wrong_commands_end_with_a_sentence_and_status_2(arguments, words, tmp_path):
    done = call("jaxseg.main", *arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
