"""Folders of one's own: every layout gives the same pairs, and what does not fit is named."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.config import default
from jaxseg.data.own_folder import find_own_folder, split_by_hash
from jaxseg.data.pairs import Sample
from jaxseg.data.prepare import prepare
from jaxseg.data.sources import find_source, read_sample
from jaxseg.errors import InputError
from jaxseg.labels import CAMVID, CAMVID32, VOID
from tests import own_data, raw_data

NAMES = {"train": ["a", "b"], "val": ["c", "d"]}

# layout -> (path of an image, path of its mask)
LAYOUTS = {
    "split below": ("images/{split}/{name}.jpg", "masks/{split}/{name}.png"),
    "split above": ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
    "long names": ("images/{long}/{name}.png", "annotations/{long}/{name}.png"),
    "camvid": ("{split}/{name}.png", "{split}annot/{name}.png"),
    "joined names": ("{split}_images/{name}.png", "{split}_masks/{name}.png"),
    "suffix": ("images/{split}/{name}.jpg", "labels/{split}/{name}_mask.png"),
    "both suffixes": ("img/{split}/{name}_rgb.jpg", "gt/{split}/{name}_labelIds.png"),
    "prefix": ("images/{split}/img_{name}.jpg", "masks/{split}/mask_{name}.png"),
    "one folder": ("{split}/{name}.jpg", "{split}/{name}_mask.png"),
    "one further down": ("mine/images/{split}/{name}.jpg", "mine/masks/{split}/{name}.png"),
    "capitals": ("Images/{split}/{name}.JPG", "Masks/{split}/{name}.PNG"),
    "names like suffixes": ("images/{split}/{name}_rgb.png", "masks/{split}/{name}_rgb.png"),
}


def write(root: Path, image: str, mask: str) -> Path:
    """The pairs of NAMES."""
    for seed, (split, name) in enumerate((split, name) for split, names in NAMES.items() for name in names):
        words = {"split": split, "name": name, "long": {"train": "training", "val": "validation"}[split]}
        picture, ids = raw_data.pair("camvid", seed)
        raw_data.save(picture, root / image.format(**words))
        raw_data.save(ids, root / mask.format(**words))
    return root


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_pairs(tmp_path, layout):
    found = find_own_folder(write(tmp_path, *layout), val_fraction=0.2)
    assert {
        split: [sample.id[-5:].removesuffix("_rgb")[-1] for sample in of] for split, of in found.samples.items()
    } == NAMES
    assert found.notes == ()
    for split, samples in found.samples.items():
        for sample in samples:
            assert Path(sample.image).stem.replace("img_", "")[0] == Path(sample.mask).stem.replace("mask_", "")[0]
            assert split in sample.image


def test_lists_of_pairs_ids_and_a_byte_order_mark(tmp_path):
    write(tmp_path, "photos/{name}.jpg", "masks/{name}.png")
    (tmp_path / "train.txt").write_bytes(
        "\ufeffphotos/a.jpg masks/a.png\r\n/photos/b.jpg\t/masks/b.png\r\n\r\n".encode()
    )
    (tmp_path / "val.txt").write_text("c\nd\n")
    found = find_own_folder(tmp_path, val_fraction=0.2)
    assert [sample.image for sample in found.samples["train"]] == ["photos/a.jpg", "photos/b.jpg"]
    assert found.samples["val"] == [
        Sample("c", "photos/c.jpg", "masks/c.png"),
        Sample("d", "photos/d.jpg", "masks/d.png"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [("a b c", r"train.txt, line 1: 'a b c'; expected"), ("x", r"lists 'x', but an image x is missing")],
)
def test_a_line_of_a_list_that_cannot_be_used(tmp_path, line, message):
    write(tmp_path, "images/{name}.jpg", "masks/{name}.png")
    (tmp_path / "train.txt").write_text(line)
    with pytest.raises(InputError, match=message):
        find_own_folder(tmp_path, val_fraction=0.2)


def test_lists_of_pairs_in_voc(tmp_path):
    root = raw_data.write_voc(tmp_path)
    path = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    ids = path.read_text().split()
    path.write_text("\ufeff" + "\n".join(f"/JPEGImages/{i}.jpg /SegmentationClass/{i}.png" for i in ids))
    samples = find_source("voc2012", root).samples["train"]
    assert [sample.mask for sample in samples] == [f"SegmentationClass/{i}.png" for i in ids]


def test_everything_that_is_alone_is_listed(tmp_path):
    write(tmp_path, *LAYOUTS["split below"])
    (tmp_path / "masks/train/a.png").unlink()
    (tmp_path / "images/train/b.jpg").unlink()
    with pytest.raises(InputError) as caught:
        find_own_folder(tmp_path, val_fraction=0.2)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}/images/train/a.jpg: its mask")
    assert second.startswith(f"{tmp_path}/masks/train/b.png: the image")


def test_test_images_without_masks_are_said(tmp_path):
    write(tmp_path, *LAYOUTS["split below"])
    raw_data.save(raw_data.pair("camvid", 9)[0], tmp_path / "images/test/e.jpg")
    found = find_own_folder(tmp_path, val_fraction=0.2)
    assert set(found.samples) == {"train", "val"}
    assert found.notes == ("test: 1 images without masks are not used.",)
    raw_data.save(raw_data.pair("camvid", 9)[1], tmp_path / "masks/test/e.png")
    assert [sample.id for sample in find_own_folder(tmp_path, val_fraction=0.2).samples["test"]] == ["e"]


def test_split_by_hash_does_not_depend_on_order():
    samples = [Sample(f"{number:03}", "", "") for number in range(100)]
    train, val = split_by_hash(samples, val_fraction=0.2)
    assert (len(train), len(val)) == (80, 20)
    assert {s.id for s in split_by_hash(samples[::-1], val_fraction=0.2)[1]} == {s.id for s in val}
    assert {s.id for s in split_by_hash(samples, val_fraction=0.1)[1]} < {s.id for s in val}
    assert [len(part) for part in split_by_hash(samples[:4], val_fraction=0.0)] == [2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "images/val/c.jpg").rename(root / "images/c.jpg"), "in no split, but other files are"),
        (lambda root: Image.new("L", (48, 40)).save(root / "masks/train/a.jpg"), "a format that changes values"),
        (
            lambda root: Image.new("L", (48, 40)).save(root / "masks/train/a_mask.png"),
            "a.png and .*a_mask.png are masks",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    write(tmp_path, *LAYOUTS["split below"])
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        find_own_folder(tmp_path, val_fraction=0.2)


@pytest.mark.parametrize("count", [0, 3])
def test_fewer_than_two_in_a_split(tmp_path, count):
    own_data.write_binary(tmp_path, count=count)
    split = "val" if count else "train"
    with pytest.raises(InputError, match=rf"{count // 2} {split} images with masks were found; expected at least 2"):
        find_source("folder", tmp_path)


def config_of(name: str, source_dir: Path, tmp_path: Path):
    config = default()
    config.data.update({"name": name, "source_dir": str(source_dir), "dir": str(tmp_path / "data"), "size_px": 36})
    return config.data


def test_records_of_color_masks_are_those_of_camvid(tmp_path):
    """The same data by color and by id: the same bits in the same order, and so the same training."""
    own = own_data.write_as_colors(tmp_path)
    mine = prepare(config_of("folder", own, tmp_path))
    builtin = prepare(config_of("camvid", tmp_path / "camvid", tmp_path))
    assert mine.fingerprint == builtin.fingerprint
    assert mine.labels.names == CAMVID.names
    for split in ("train", "val"):
        for ours, theirs in zip(mine.records(split), builtin.records(split), strict=True):
            assert ours["id"] == theirs["id"]
            assert np.array_equal(ours["image"], theirs["image"])
            assert np.array_equal(ours["label"], theirs["label"])


def test_prepared_classes_are_read_back_without_the_folder(tmp_path):
    data = config_of("folder", own_data.write_as_colors(tmp_path), tmp_path)
    labels = prepare(data).labels
    data.source_dir = ""
    assert prepare(data).labels == labels == own_data.color_labels()


def test_another_table_is_prepared_anew(tmp_path):
    root = own_data.write_as_colors(tmp_path)
    data = config_of("folder", root, tmp_path)
    before = prepare(data)
    (root / "classes.toml").write_text((root / "classes.toml").read_text().replace('"sky"', '"heaven"'))
    after = prepare(data)
    assert after.folder != before.folder
    data.source_dir = ""  # the same pixels, but other classes: which is meant?
    with pytest.raises(InputError, match=r"holds 2 prepared versions"):
        prepare(data)
    assert after.labels.names[0] == "heaven"


@pytest.mark.parametrize("value", [1, 255])
def test_two_values_need_no_table(tmp_path, value):
    source = find_source("folder", own_data.write_binary(tmp_path, value=value))
    assert source.labels.names == ("background", "foreground")
    assert source.notes == ("no split for validation: 2 of 6 images are held back, by a hash of their names.",)
    _, label = read_sample(source, source.samples["train"][0])
    ids = np.array(Image.open(tmp_path / source.samples["train"][0].mask))
    assert np.array_equal(label, ids == value)


def test_more_values_without_a_table_are_refused(tmp_path):
    root = write(tmp_path, *LAYOUTS["split below"])
    with pytest.raises(
        InputError, match=r"classes.toml is missing, and the masks hold 12 values \(0, 1, .*--write_classes"
    ):
        find_source("folder", root)


def test_an_unknown_color_is_named_with_file_and_pixel(tmp_path):
    root = own_data.write_as_colors(tmp_path)
    path = root / "masks/train/train_0_mask.png"
    mask = np.array(Image.open(path))
    mask[7, 9] = (1, 2, 3)
    Image.fromarray(mask).save(path)
    source = find_source("folder", root)
    message = re.escape(f"{path}: color [1, 2, 3] is out of range for folder (1 pixels), the first at x=9, y=7;")
    with pytest.raises(InputError, match=message):
        read_sample(source, source.samples["train"][0])


def test_a_class_that_is_never_seen(tmp_path):
    root = own_data.write_binary(tmp_path)
    labels = find_source("folder", root).labels
    own_data.write_classes(root, labels)
    with (root / "classes.toml").open("a") as file:
        file.write('\n[[classes]]\nname = "unicorn"\nids = [7]\n')
    with pytest.raises(InputError, match="no training mask holds unicorn"):
        prepare(config_of("folder", root, tmp_path))


def test_ade20k_from_folder_and_zip(tmp_path):
    for split, names in (("training", ["ADE_train_1", "ADE_train_2"]), ("validation", ["ADE_val_1"])):
        for number, name in enumerate(names):
            picture, mask = raw_data.pair("ade20k", number)
            raw_data.save(picture, tmp_path / f"ADEChallengeData2016/images/{split}/{name}.jpg")
            raw_data.save(mask, tmp_path / f"ADEChallengeData2016/annotations/{split}/{name}.png")
    folder = find_source("ade20k", tmp_path)
    image, label = read_sample(folder, folder.samples["train"][0])
    ids = np.array(raw_data.pair("ade20k", 0)[1]).astype(int)
    assert np.array_equal(label, np.where(ids == 0, VOID, ids - 1))
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(tmp_path / "zip/ADEChallengeData2016.zip", "w") as archive:
        for path in sorted((tmp_path / "ADEChallengeData2016").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    zipped = find_source("ade20k", tmp_path / "zip")
    assert zipped.samples == folder.samples
    assert np.array_equal(read_sample(zipped, zipped.samples["train"][0])[0], image)


def test_camvid_in_32_colors(tmp_path):
    for number in range(5):
        picture, _ = raw_data.pair("camvid", number)
        rows = [CAMVID32.rows[(number + i) % 32] for i in range(40)]
        mask = np.array([[row.color] * 48 for row in rows], np.uint8)
        raw_data.save(picture, tmp_path / f"701_StillsRaw_full/{number}.png")
        raw_data.save(Image.fromarray(mask), tmp_path / f"LabeledApproved_full/{number}_L.png")
    source = find_source("camvid32", tmp_path)
    sample = source.samples["train"][0]
    _, label = read_sample(source, sample)
    assert label[:, 0].tolist() == [CAMVID32.rows[(int(sample.id) + i) % 32].train_id for i in range(40)]


def test_cityscapes_by_its_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(raw_data.write_cityscapes(tmp_path / "raw")))
    data = config_of("cityscapes", "", tmp_path)
    data.source_dir = ""
    assert prepare(data).provenance | {"fingerprint": ""} == {
        "name": "cityscapes",
        "fingerprint": "",
        "train": 3,
        "val": 2,
    }


def test_the_test_split_of_camvid_is_prepared_where_it_is_there(tmp_path):
    root = raw_data.write_camvid(tmp_path / "raw")
    before = prepare(config_of("camvid", root, tmp_path))
    image, mask = raw_data.pair("camvid", 7)
    raw_data.save(image, root / "test/t.png")
    raw_data.save(mask, root / "testannot/t.png")
    after = prepare(config_of("camvid", root, tmp_path))
    assert (before.fingerprint, list(before.summary)) == (after.fingerprint, ["train", "val"])
    assert after.images("test") == 1
