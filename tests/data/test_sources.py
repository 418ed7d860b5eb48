"""Reading the data sets as their owners lay them out; every damage is an error that names the file."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.sources import find_source, read_sample
from jaxseg.errors import InputError
from jaxseg.labels import CITYSCAPES, VOID
from tests import raw_data


def contents(source):
    return {
        (split, sample.id): [a.tobytes() for a in read_sample(source, sample)]
        for split, samples in source.samples.items()
        for sample in samples
    }


def test_cityscapes_folder_parent_and_zips_are_the_same(tmp_path):
    folder = raw_data.write_cityscapes(tmp_path / "raw" / "cityscapes")
    expected = contents(find_source("cityscapes", folder))
    assert len(expected) == 5
    assert ("train", "train/town/town_000000_000019") in expected
    assert contents(find_source("cityscapes", tmp_path / "raw")) == expected
    zips = raw_data.zip_cityscapes(folder, tmp_path / "zips")
    assert contents(find_source("cityscapes", zips)) == expected
    assert [p.name for p in sorted(zips.iterdir())] == ["gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"]


def test_cityscapes_ids_become_train_ids(tmp_path):
    source = find_source("cityscapes", raw_data.write_cityscapes(tmp_path))
    _, label = read_sample(source, source.samples["train"][0])
    raw = np.array(raw_data.pair("cityscapes", 0)[1])
    by_table = {row.raw_id: row.train_id for row in CITYSCAPES.rows}
    assert np.array_equal(label, np.vectorize(by_table.get)(raw))
    assert VOID in label


def test_cityscapes_takes_jpg_images(tmp_path):
    source = find_source("cityscapes", raw_data.write_cityscapes(tmp_path, suffix="jpg"))
    image, _ = read_sample(source, source.samples["val"][0])
    assert image.shape == (40, 48, 3)


@pytest.mark.parametrize("inner", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_folder_at_any_level(tmp_path, inner):
    raw_data.write_voc(tmp_path)
    source = find_source("voc2012", tmp_path / inner)
    assert [s.id for s in source.samples["val"]] == ["2007_val0", "2007_val1"]
    _, label = read_sample(source, source.samples["train"][1])
    assert np.array_equal(label, np.array(raw_data.pair("voc2012", 1, hw=(44, 48))[1]))  # palette indices, 255 void


def test_voc_tar_is_the_same_as_the_folder(tmp_path):
    folder = raw_data.write_voc(tmp_path / "folder")
    tar = raw_data.tar_voc(folder, tmp_path / "tar")
    expected = contents(find_source("voc2012", folder))
    assert contents(find_source("voc2012", tar)) == expected
    assert contents(find_source("voc2012", tar / "VOCtrainval_11-May-2012.tar")) == expected


def test_voc_trainaug_takes_its_own_list_and_masks(tmp_path):
    voc = raw_data.write_voc(tmp_path) / "VOCdevkit/VOC2012"
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text("2007_train0\n")
    with pytest.raises(InputError, match=r"SegmentationClassAug/2007_train0.png is missing"):
        find_source("voc2012", tmp_path, trainaug=True)
    raw_data.save(Image.fromarray(np.full((40, 48), 9, np.uint8)), voc / "SegmentationClassAug/2007_train0.png")
    source = find_source("voc2012", tmp_path, trainaug=True)
    assert [s.id for s in source.samples["train"]] == ["2007_train0"]
    assert (read_sample(source, source.samples["train"][0])[1] == 9).all()
    assert len(source.samples["val"]) == 2


def test_camvid_void_is_11(tmp_path):
    source = find_source("camvid", raw_data.write_camvid(tmp_path))
    _, label = read_sample(source, source.samples["train"][0])
    raw = np.array(raw_data.pair("camvid", 0)[1])
    assert np.array_equal(label, np.where(raw == 11, 255, raw))


def damage_truncate(root):
    path = root / "train/train_1.png"
    path.write_bytes(path.read_bytes()[:-500])
    return r"train_1\.png: not a complete image"


def damage_empty(root):
    (root / "valannot/val_0.png").write_bytes(b"")
    return r"valannot/val_0\.png: not a complete image.*0 bytes"


def damage_size(root):
    Image.new("L", (48, 39)).save(root / "trainannot/train_2.png")
    return r"trainannot/train_2\.png: the mask is 48×39 pixels.*train/train_2\.png is 48×40"


def damage_id(root):
    Image.fromarray(np.full((40, 48), 77, np.uint8)).save(root / "trainannot/train_0.png")
    return r"trainannot/train_0\.png: label id 77 is out of range for camvid \(1920 pixels\)"


def damage_rgb(root):
    Image.new("RGB", (48, 40)).save(root / "trainannot/train_0.png")
    return r"trainannot/train_0\.png: the mask is a RGB image"


def damage_no_mask(root):
    (root / "trainannot/train_0.png").unlink()
    return r"train/train_0\.png: its mask trainannot/train_0\.png is missing"


def damage_no_image(root):
    (root / "train/train_0.png").unlink()
    return r"trainannot/train_0\.png: the image of this mask is missing"


def damage_twice(root):
    Image.new("RGB", (48, 40)).save(root / "train/train_0.jpg")
    return r"train_0\.jpg and .*train_0\.png are images of one sample"


def damage_no_val(root):
    for path in [*(root / "val").iterdir(), *(root / "valannot").iterdir()]:
        path.unlink()
    return r"no val images of camvid found"


@pytest.mark.parametrize("damage", [v for k, v in sorted(globals().items()) if k.startswith("damage_")])
def test_damage_is_named(tmp_path, damage):
    pattern = damage(raw_data.write_camvid(tmp_path))
    with pytest.raises(InputError) as caught:
        contents(find_source("camvid", tmp_path))
    assert re.search(pattern, str(caught.value)), str(caught.value)


def test_missing_folder_says_what_to_fetch_from_where(tmp_path):
    with pytest.raises(InputError, match=r"there is no such folder(?s:.*)log in at www.cityscapes-dataset.com"):
        find_source("cityscapes", tmp_path / "nowhere")
    (tmp_path / "holiday").mkdir()
    with pytest.raises(InputError, match=r"it holds: holiday(?s:.*)VOCtrainval_11-May-2012.tar"):
        find_source("voc2012", tmp_path)


def test_broken_archives_are_named(tmp_path):
    for part in ("leftImg8bit", "gtFine"):
        (tmp_path / f"{part}_trainvaltest.zip").write_bytes(b"PK half a download")
    with pytest.raises(InputError, match=r"leftImg8bit_trainvaltest.zip: not a complete zip archive"):
        find_source("cityscapes", tmp_path)
    tar = raw_data.tar_voc(raw_data.write_voc(tmp_path / "folder"), tmp_path / "tar") / "VOCtrainval_11-May-2012.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"VOCtrainval_11-May-2012.tar"):
        find_source("voc2012", tar)


def test_voc_list_naming_a_missing_file(tmp_path):
    voc = raw_data.write_voc(tmp_path) / "VOCdevkit/VOC2012"
    (voc / "JPEGImages/2007_val1.jpg").unlink()
    with pytest.raises(InputError, match=r"val.txt lists '2007_val1', but JPEGImages/2007_val1.jpg is missing"):
        find_source("voc2012", tmp_path)
