"""The figure of augmented pairs: which images it shows, and that its command draws it."""

import numpy as np
from PIL import Image

from jaxseg.data import pipeline
from scripts.figures.augmented import before_and_after
from tests.runs import call


def test_pairs_are_those_of_the_first_batch(prepared, tiny):
    tiny.augment.name = "usual"
    before, after = before_and_after(prepared, tiny, images=4)
    batches = pipeline.train_batches(prepared, tiny)
    first = next(batches)
    batches.close()
    assert np.array_equal(np.stack([image for image, _ in after]), first["image"])
    assert np.array_equal(np.stack([label for _, label in after]), first["label"])
    records = {record["id"].decode(): record for record in prepared.records("train")}
    for (image, label), name in zip(before, pipeline.image_ids(prepared, tiny, step=0), strict=True):
        assert np.array_equal(image, records[name]["image"])
        assert np.array_equal(label, records[name]["label"])


def test_one_command_draws_them(camvid_dir, prepared_camvid, tmp_path):
    fields = {"source_dir": camvid_dir, "dir": prepared_camvid, "size_px": 36, "crop_px": 32}
    words = [f"--config.data.{name}={value}" for name, value in fields.items()]
    output = tmp_path / "figures" / "pairs.png"
    done = call(
        "scripts.figures.augmented", "--config=configs/unet_camvid.py", *words, "--images=2", f"--output={output}"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"written: {output}\n"
    with Image.open(output) as figure:
        width, height = figure.size
    assert width > height  # four pictures in a row, two rows
    refused = call("scripts.figures.augmented", "--config.augment.flip=2", f"--output={output}")
    assert refused.returncode == 2
    assert "config.augment.flip is 2.0" in refused.stderr
