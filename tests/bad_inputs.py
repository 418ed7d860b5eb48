"""Malformed inputs, each given to the real command, and what it says.

    python -m tests.bad_inputs [--output=results/bad_inputs.md] [--json=FILE]

Every case gets its own copy of a small world: raw CamVid, Cityscapes' archives and VOC's tar of random pixels, prepared
records, a trained run, a file of weights. It breaks one thing and runs one command there. Checked: the exit status, words
of the message, no traceback, no file of before changed or gone, nothing new outside the folders that the command may
write in. The command runs in a fork of this process, which has imported everything and computed nothing.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests import raw_data, torch_files

TINY = "data.size_px=36 data.crop_px=32 data.threads=2 data.dir=data model.features=4 train.epochs=1 train.batch_size=2"
TINY = [f"--config.{field}" for field in [*TINY.split(), "eval.batch_size=2", "eval.every_epochs=1"]]
CAMVID, RAW = "--config=configs/unet_camvid.py", "--config.data.source_dir=camvid"
MAIN = ["jaxseg.main", CAMVID, "--workdir=new", *TINY]  # with nothing more: the records that are prepared
MAY_WRITE = ("data/", "new/", "run/lock")  # besides, prepare.lock and what is prepared anew
PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """One broken thing: what `damage` does to the folder, the command's words, and what it must say."""

    group: str
    name: str
    damage: Callable[[Path], None]
    command: list[str]
    says: str
    status: int = 2


CASES: list[Case] = []


def case(group: str, name: str, says: str, *more: str, command: list[str] | None = None):
    """Declares the decorated damage as a case; `more` is added to the command."""

    def declare(damage):
        CASES.append(Case(group, name, damage, [*(MAIN if command is None else command), *more], says))
        return damage

    return declare


def nothing(folder: Path) -> None:
    """The command itself is what is wrong."""


def from_raw(group: str, name: str, says: str):
    return case(group, name, says, RAW)


def write_claim(path: Path) -> None:
    """A PNG of 100 bytes that says it has 40,000 × 40,000 pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in parts]
    path.write_bytes(PNG + b"".join(chunks))


# ---- Images and masks


@from_raw("image", "cut short", "train_1.png: not a complete image")
def _(folder):
    path = folder / "camvid/train/train_1.png"
    path.write_bytes(path.read_bytes()[:-500])


@from_raw("image", "of no bytes", "train_1.png: not a complete image")
def _(folder):
    (folder / "camvid/train/train_1.png").write_bytes(b"")


@from_raw("image", "text", "train_1.png: not a complete image")
def _(folder):
    (folder / "camvid/train/train_1.png").write_text("<html>404 Not Found</html>")


@from_raw("image", "one byte of pixels changed", "train_1.png: not a complete image")
def _(folder):
    path = folder / "camvid/train/train_1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@from_raw("image", "of 16 bits", "train_1.png: image mode I;16; expected 8-bit color or gray")
def _(folder):
    Image.fromarray(np.zeros((40, 48), np.uint16)).save(folder / "camvid/train/train_1.png")


@from_raw("image", "that claims 40,000 × 40,000 pixels", "train_1.png: claims more than 179 million pixels")
def _(folder):
    write_claim(folder / "camvid/train/train_1.png")


@from_raw("image", "without a mask", "its mask trainannot/train_1.png is missing")
def _(folder):
    (folder / "camvid/trainannot/train_1.png").unlink()


@from_raw("image", "twice, as .png and .jpg", "are images of one sample; keep one of them")
def _(folder):
    Image.new("RGB", (48, 40)).save(folder / "camvid/train/train_0.jpg")


@from_raw("image", "a link to nowhere", "the image of this mask is missing")
def _(folder):
    (folder / "camvid/train/train_0.png").unlink()
    (folder / "camvid/train/train_0.png").symlink_to("nowhere.png")


@from_raw("mask", "without an image", "the image of this mask is missing")
def _(folder):
    (folder / "camvid/train/train_1.png").unlink()


@from_raw("mask", "cut short", "trainannot/train_1.png: not a complete image")
def _(folder):
    path = folder / "camvid/trainannot/train_1.png"
    path.write_bytes(path.read_bytes()[:60])


@from_raw("mask", "in color", "the mask is a RGB image; expected one label id per pixel")
def _(folder):
    Image.new("RGB", (48, 40)).save(folder / "camvid/trainannot/train_1.png")


@from_raw("mask", "of 16 bits with an id beyond 8", "label id 300 is out of range")
def _(folder):
    Image.fromarray(np.full((40, 48), 300, np.uint16)).save(folder / "camvid/trainannot/train_1.png")


@from_raw("mask", "of another size", "the mask is 47×40 pixels (width × height), its image")
def _(folder):
    Image.new("L", (47, 40)).save(folder / "camvid/trainannot/train_1.png")


@from_raw("mask", "with an unknown label", "label id 77 is out of range for camvid (1920 pixels)")
def _(folder):
    Image.fromarray(np.full((40, 48), 77, np.uint8)).save(folder / "camvid/trainannot/train_0.png")


@from_raw("folder", "without a split", "does not hold camvid (it holds: train, trainannot, val)")
def _(folder):
    shutil.rmtree(folder / "camvid/valannot")


@from_raw("folder", "with an empty split", "no val images of camvid found")
def _(folder):
    for name in ("val", "valannot"):
        for path in (folder / "camvid" / name).iterdir():
            path.unlink()


@from_raw("folder", "that is a file", "does not hold camvid (it holds: a file)")
def _(folder):
    shutil.rmtree(folder / "camvid")
    (folder / "camvid").write_text("x")


case(
    "folder",
    "that is not there",
    "config.data.source_dir=nowhere: there is no such",
    "--config.data.source_dir=nowhere",
)(nothing)

# ---- Archives

CITY = [MAIN[0], "--config=configs/unet_cityscapes.py", *MAIN[2:], "--config.data.source_dir=zips"]
VOC = [MAIN[0], "--config=configs/unet_voc.py", *MAIN[2:], "--config.data.source_dir=tar"]
GT = "zips/gtFine_trainvaltest.zip"
TAR = "tar/VOCtrainval_11-May-2012.tar"


def archive(name: str, says: str, command: list[str]):
    return case("archive", name, says, command=command)


@archive("zip cut short", "gtFine_trainvaltest.zip: not a complete zip archive", CITY)
def _(folder):
    (folder / GT).write_bytes((folder / GT).read_bytes()[:-100])


@archive("zip that is a page", "gtFine_trainvaltest.zip: not a complete zip archive", CITY)
def _(folder):
    (folder / GT).write_text("<html>please log in</html>")


@archive("zip with ../ in a member's name", "'../../outside.png' leads out of the archive", CITY)
def _(folder):
    with zipfile.ZipFile(folder / GT, "a") as file:
        file.writestr("../../outside.png", "x")


@archive("zip with an absolute member", "'/tmp/outside.png' leads out of the archive", CITY)
def _(folder):
    with zipfile.ZipFile(folder / GT, "a") as file:
        file.writestr("/tmp/outside.png", "x")


@archive("zip with a damaged member", "town_000000_000019_gtFine_labelIds.png: cannot be read (Bad CRC-32", CITY)
def _(folder):
    with zipfile.ZipFile(folder / GT) as file:
        info = file.getinfo("gtFine/train/town/town_000000_000019_gtFine_labelIds.png")
    content = bytearray((folder / GT).read_bytes())
    at = info.header_offset + 30 + len(info.filename) + 40
    content[at] ^= 255
    (folder / GT).write_bytes(content)


@archive("zip with a member that needs a password", "is encrypted, password required for extraction); get it", CITY)
def _(folder):
    content = bytearray((folder / GT).read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(signature, at + 4)
    (folder / GT).write_bytes(content)


@archive("only one of the two zips", "does not hold cityscapes (it holds: leftImg8bit_trainvaltest.zip)", CITY)
def _(folder):
    (folder / GT).unlink()


@archive("tar cut short", "VOCtrainval_11-May-2012.tar", VOC)
def _(folder):
    (folder / TAR).write_bytes((folder / TAR).read_bytes()[:-9000])


@archive("tar that is a page", "VOCtrainval_11-May-2012.tar: not a complete tar archive", VOC)
def _(folder):
    (folder / TAR).write_text("<html>" + 600 * "x")


def add_to_tar(folder: Path, member: tarfile.TarInfo) -> None:
    with tarfile.open(folder / TAR, "a") as file:
        file.addfile(member, io.BytesIO(b"x" * member.size))


@archive("tar with ../ in a member's name", "'VOCdevkit/../../outside.png' leads out of the archive", VOC)
def _(folder):
    member = tarfile.TarInfo("VOCdevkit/../../outside.png")
    member.size = 1
    add_to_tar(folder, member)


@archive("tar with an absolute member", "'/tmp/outside.png' leads out of the archive", VOC)
def _(folder):
    member = tarfile.TarInfo("/tmp/outside.png")
    member.size = 1
    add_to_tar(folder, member)


@archive("tar with a link in place of an image", "but JPEGImages/2007_train0.jpg is missing", VOC)
def _(folder):
    with tarfile.open(folder / TAR) as old, tarfile.open(folder / "new.tar", "w") as new:
        for member in old:
            if member.name.endswith("2007_train0.jpg"):
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    (folder / "new.tar").rename(folder / TAR)


def list_of(folder: Path, content: bytes) -> None:
    """Puts another ImageSets/Segmentation/train.txt into the tar."""
    with tarfile.open(folder / TAR) as old, tarfile.open(folder / "new.tar", "w") as new:
        for member in old:
            file = old.extractfile(member) if member.isfile() else None
            if member.name.endswith("Segmentation/train.txt"):
                member.size, file = len(content), io.BytesIO(content)
            new.addfile(member, file)
    (folder / "new.tar").rename(folder / TAR)


@archive("list of a missing image", "train.txt lists '2007_none', but JPEGImages/2007_none.jpg is missing", VOC)
def _(folder):
    list_of(folder, b"2007_train0\n2007_none\n")


@archive("list with ../ in a name", "train.txt lists '../../../outside', but", VOC)
def _(folder):
    list_of(folder, b"../../../outside\n")


@archive("empty list", "no train images of voc2012 found", VOC)
def _(folder):
    list_of(folder, b"\n")


@archive("list of bytes that are no text", "but JPEGImages/", VOC)
def _(folder):
    list_of(folder, b"\xff\xfe\n")


# ---- A folder of one's own

OWN = ["jaxseg.main", "--config=configs/folder.py:scratch", "--workdir=new", *TINY, "--config.data.source_dir=own"]
OWN += ["--config.data.resize=square"]


def own_folder(name: str, says: str, *more: str):
    """Declares the decorated damage of a sound folder: ids 0 to 11 in masks, all but 11 named."""

    def declare(damage):
        def make(folder: Path) -> None:
            for split in ("train", "val"):
                shutil.copytree(folder / "camvid" / split, folder / "own" / split / "images")
                shutil.copytree(folder / "camvid" / f"{split}annot", folder / "own" / split / "masks")
            rows = [f'[[classes]]\nname = "class {i}"\nids = [{i}]\n' for i in range(11)]
            rows.append('[[classes]]\nname = "void"\nids = [11]\nvoid = true\n')
            (folder / "own/classes.toml").write_text('masks = "ids"\n' + "".join(rows))
            damage(folder / "own")

        case("own folder", name, says, *more, command=OWN)(make)
        return damage

    return declare


def replace_in_classes(root: Path, old: str, new: str) -> None:
    text = (root / "classes.toml").read_text()
    assert old in text
    (root / "classes.toml").write_text(text.replace(old, new))


@own_folder("masks and images that are alone", "train_0.png: its mask")
def _(root):
    (root / "train/masks/train_0.png").unlink()
    (root / "train/images/train_1.png").unlink()


@own_folder("no classes.toml", "--write_classes")
def _(root):
    (root / "classes.toml").unlink()


@own_folder("classes.toml is no TOML", "not a TOML file")
def _(root):
    (root / "classes.toml").write_text("[[classes")


@own_folder("a class without ids", "ids is missing")
def _(root):
    replace_in_classes(root, "ids = [3]", "")


@own_folder("an id of two classes", "id 3 stands 2 times")
def _(root):
    replace_in_classes(root, "ids = [4]", "ids = [3]")


@own_folder("an id that no class has", "label id 11 is out of range")
def _(root):
    replace_in_classes(root, "ids = [11]", "ids = [99]")


@own_folder("a class that is never seen", "no training mask holds unicorn")
def _(root):
    with (root / "classes.toml").open("a") as file:
        file.write('[[classes]]\nname = "unicorn"\nids = [77]\n')


@own_folder("colors for ids", "expected one label id per pixel")
def _(root):
    for path in (root / "train/masks").iterdir():
        with Image.open(path) as mask:
            mask.convert("RGB").save(path)


@own_folder("a mask in JPEG", "a format that changes values")
def _(root):
    path = root / "train/masks/train_0.png"
    with Image.open(path) as mask:
        mask.save(path.with_suffix(".jpg"))
    path.unlink()


@own_folder("one validation image", "1 val images with masks were found")
def _(root):
    for path in [*sorted((root / "val/images").iterdir())[1:], *sorted((root / "val/masks").iterdir())[1:]]:
        path.unlink()


@own_folder("images outside of the splits", "is in no split")
def _(root):
    shutil.copytree(root / "train/images", root / "images")
    shutil.copytree(root / "train/masks", root / "masks")


@own_folder("a list with three words in a line", "line 1")
def _(root):
    (root / "train.txt").write_text("a b c\n")


@own_folder("nothing in it", "0 train images with masks were found")
def _(root):
    shutil.rmtree(root)
    root.mkdir()


# ---- Prepared records, without the raw data


def record_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("data/prepared/segmentation/*/*/*array_record*"))


def manifest(folder: Path) -> Path:
    return next(folder.glob("data/prepared/segmentation/camvid-*/*/prepared.json"))


NOT_PREPARED = "nothing prepared in config.data.dir=data, and config.data.source_dir is not set"


@case("records", "cut short", NOT_PREPARED)
def _(folder):
    for path in record_files(folder):
        path.write_bytes(path.read_bytes()[:-1])


@case("records", "gone", NOT_PREPARED)
def _(folder):
    record_files(folder)[0].unlink()


@case("records", "changed, of the same size", "is not what was prepared")
def _(folder):
    for path in record_files(folder):
        content = bytearray(path.read_bytes())
        for at in range(len(content) // 3, 2 * len(content) // 3):
            content[at] ^= 255
        path.write_bytes(content)


@case("records", "with a manifest that is no JSON", NOT_PREPARED)
def _(folder):
    manifest(folder).write_text('{"name": "camvid", "byt')


@case("records", "with a manifest that is a list", NOT_PREPARED)
def _(folder):
    manifest(folder).write_text("[]")


@case("records", "with a manifest that lacks a split", NOT_PREPARED)
def _(folder):
    content = json.loads(manifest(folder).read_text())
    del content["splits"]["val"]
    manifest(folder).write_text(json.dumps(content))


case("records", "none of this size", NOT_PREPARED, "--config.data.size_px=40")(nothing)


@case("records", "data.dir is a file", "config.data.dir=data")
def _(folder):
    shutil.rmtree(folder / "data")
    (folder / "data").write_text("x")


# ---- The run's own JSON

GO_ON = [MAIN[0], CAMVID, "--workdir=run", *TINY, RAW, "--config.checkpoint.every_steps=1"]
SCORE = ["jaxseg.evaluate", "--workdir=run"]


def in_run(name: str, says: str, *more: str, command: list[str] = GO_ON):
    return case("run", name, says, *more, command=command)


@in_run("config.json is no JSON", "config.json: cannot be read as JSON")
def _(folder):
    (folder / "run/config.json").write_text('{"config": {')


@in_run("config.json is a list", "config.json: does not fit this version of jaxseg")
def _(folder):
    (folder / "run/config.json").write_text("[1, 2]")


@in_run("config.json lacks the config", "config.json: does not fit this version of jaxseg")
def _(folder):
    (folder / "run/config.json").write_text("{}")


def set_field(folder: Path, section: str, name: str, value) -> None:
    path = folder / "run/config.json"
    content = json.loads(path.read_text())
    content["config"][section][name] = value
    path.write_text(json.dumps(content))


@in_run("config.json with a field of another type", "config.json: does not fit this version of jaxseg", command=SCORE)
def _(folder):
    set_field(folder, "model", "features", "many")


@in_run("config.json with an unknown field", "config.json: does not fit this version of jaxseg", command=SCORE)
def _(folder):
    set_field(folder, "model", "depth", 5)


@in_run("config.json with a value out of range", "config.model.features is 0; expected at least 1", command=SCORE)
def _(folder):
    set_field(folder, "model", "features", 0)


@in_run("train.jsonl with a line in its middle that is no JSON", "train.jsonl, line 1: not a line of a run's log")
def _(folder):
    path = folder / "run/train.jsonl"
    path.write_text("\n".join(["garbage", *path.read_text().splitlines()[1:]]) + "\n")
    shutil.rmtree(folder / "run/checkpoints/2")  # so that there is something to go on with


@in_run("train.jsonl with a line of another kind", "train.jsonl, line 1: not a line of a run's log")
def _(folder):
    path = folder / "run/train.jsonl"
    path.write_text("\n".join(["[1, 2]", *path.read_text().splitlines()[1:]]) + "\n")
    shutil.rmtree(folder / "run/checkpoints/2")


in_run(
    "of another learning rate", "config.optim.learning_rate: 0.001 there, 0.5 now", "--config.optim.learning_rate=0.5"
)(nothing)
in_run("of another network", "config.model.features: 4 there, 5 now", "--config.model.features=5")(nothing)
in_run(
    "scored at a step that is not there",
    "no checkpoint '7'; there are 1, 2, last and best",
    "--checkpoint=7",
    command=SCORE,
)(nothing)
in_run(
    "scored where there is none",
    "camvid: no run there (config.json is missing)",
    command=[SCORE[0], "--workdir=camvid"],
)(nothing)

in_run(
    "scored into a file's folder",
    "--output=camvid/train/train_0.png/x.json: its folder cannot be made",
    command=[*SCORE, "--output=camvid/train/train_0.png/x.json"],
)(nothing)

# ---- Checkpoints


def checkpoint(name: str, says: str, *, command: list[str] = GO_ON):
    return case("checkpoint", name, says, command=command)


def biggest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@checkpoint("all cut short", "No other checkpoint can be read either")
def _(folder):
    for step in (1, 2):
        path = biggest(folder / f"run/checkpoints/{step}")
        path.write_bytes(path.read_bytes()[:100])


@checkpoint("one bit changed", "is not what was written", command=[*SCORE, "--checkpoint=2"])
def _(folder):
    path = biggest(folder / "run/checkpoints/2")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@checkpoint("a file gone", "is missing", command=[*SCORE, "--checkpoint=2"])
def _(folder):
    biggest(folder / "run/checkpoints/2").unlink()


@checkpoint("its sums gone", "sha256.json", command=[*SCORE, "--checkpoint=2"])
def _(folder):
    (folder / "run/checkpoints/2/sha256.json").unlink()


@checkpoint("its sums no JSON", "this checkpoint cannot be read", command=[*SCORE, "--checkpoint=2"])
def _(folder):
    (folder / "run/checkpoints/2/sha256.json").write_text("{")


@checkpoint("its sums a list", "this checkpoint cannot be read", command=[*SCORE, "--checkpoint=2"])
def _(folder):
    (folder / "run/checkpoints/2/sha256.json").write_text("[]")


@checkpoint("of another width", "float32[64] there, float32[96] in the config", command=SCORE)
def _(folder):
    set_field(folder, "model", "features", 6)


@checkpoint(
    "of another number of classes",
    "float32[11] there, float32[21] in the config",
    command=[*SCORE, "--config.data.source_dir=tar"],
)
def _(folder):
    set_field(folder, "data", "name", "voc2012")


@checkpoint(
    "of other peers",
    "config.peers.teacher.model.name: no such peer there",
    command=[MAIN[0], "--config=configs/mutual_camvid.py", "--workdir=run", *TINY],
)
def _(folder):
    pass


@checkpoint("that is a file", "run/checkpoints: not a folder; move it away")
def _(folder):
    shutil.rmtree(folder / "run/checkpoints")
    (folder / "run/checkpoints").write_text("x")


# ---- Weights


def weights(name: str, says: str, file: str):
    return case("weights", name, says, f"--config.model.init_from={file}")


def tensors(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "weights.npz") as file:
        return dict(file)


weights("not there", "none.npz: there is no such file", "none.npz")(nothing)


@weights("of an unknown kind", "weights.onnx: expected a file ending in .npz, .safetensors, .pth, .pt", "weights.onnx")
def _(folder):
    (folder / "weights.onnx").write_bytes(b"x")


@weights("npz that is text", "weights.npz: not a NumPy .npz archive", "weights.npz")
def _(folder):
    (folder / "weights.npz").write_text("x")


@weights("npz cut short", "weights.npz: not a NumPy .npz archive", "weights.npz")
def _(folder):
    (folder / "weights.npz").write_bytes((folder / "weights.npz").read_bytes()[:5000])


@weights(
    "npz with a pickled object",
    "weights.npz: cannot be read (ValueError: Object arrays cannot be loaded",
    "weights.npz",
)
def _(folder):
    class Harm:
        def __reduce__(self):
            return os.mkdir, ("harm",)

    np.savez(folder / "weights.npz", **tensors(folder) | {"conv.bias": np.array([Harm()], object)})


@weights("npz without one tensor", "missing: conv.bias", "weights.npz")
def _(folder):
    kept = tensors(folder)
    del kept["conv.bias"]
    np.savez(folder / "weights.npz", **kept)


@weights("npz with one tensor more", "left over: fc.weight", "weights.npz")
def _(folder):
    np.savez(folder / "weights.npz", **tensors(folder) | {"fc.weight": np.zeros(3)})


@weights("npz of another shape", "conv.bias: (12,) (in our layout) where the network has (11,)", "weights.npz")
def _(folder):
    np.savez(folder / "weights.npz", **tensors(folder) | {"conv.bias": np.zeros(12, np.float32)})


@weights("npz of text", "tensor conv.bias is of type <U1; expected numbers", "weights.npz")
def _(folder):
    np.savez(folder / "weights.npz", **tensors(folder) | {"conv.bias": np.array(["x"] * 11)})


@weights("npz with a NaN", "tensor conv.bias holds values that are not finite (1 of 11)", "weights.npz")
def _(folder):
    bias = tensors(folder)["conv.bias"].copy()
    bias[3] = np.nan
    np.savez(folder / "weights.npz", **tensors(folder) | {"conv.bias": bias})


@weights("safetensors that is text", "weights.safetensors: cannot be read", "weights.safetensors")
def _(folder):
    (folder / "weights.safetensors").write_text("not these")


@weights("safetensors with a header longer than the file", "weights.safetensors: cannot be read", "weights.safetensors")
def _(folder):
    (folder / "weights.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


@weights("pth with a pickled call", "weights.pth: it holds os.mkdir; nothing but tensors", "weights.pth")
def _(folder):
    call = torch_files.Call(torch_files.Global("os", "mkdir"), ("harm",))
    (folder / "weights.pth").write_bytes(torch_files.archive({"conv.bias": call}))


@weights("pth cut short", "weights.pth: it is no whole file of torch.save", "weights.pth")
def _(folder):
    whole = torch_files.archive(torch_files.tensors(tensors(folder)))
    (folder / "weights.pth").write_bytes(whole[: len(whole) // 2])


weights("name that is not known", "Did you mean 'torchvision/resnet50'?", "torchvision/resnet5O")(nothing)
weights("name of another network", "or resnet_unet, and it is 'unet'", "torchvision/resnet50")(nothing)


@weights("folder without a run", "camvid: no run there (config.json is missing)", "camvid")
def _(folder):
    pass


# ---- Pictures to predict, and how they are looked at

PREDICT = ["jaxseg.predict", "--workdir=run", "--output=new"]
PICTURE = "camvid/val/val_0.png"


def picture(name: str, says: str, *words: str, command: list[str] = PREDICT):
    return case("picture", name, says, command=[*command, *words])


@picture("cut short", "error: 1 could not be used; predictions.json names them", PICTURE, "camvid/val/val_1.png")
def _(folder):
    path = folder / "camvid/val/val_1.png"
    path.write_bytes(path.read_bytes()[:200])


@picture("that is a text", "val_1.png: not a complete image (of no known format; 5 bytes)", "camvid/val")
def _(folder):
    (folder / "camvid/val/val_1.png").write_text("image")


@picture("of 16 bits", "image mode I;16; expected 8-bit color or gray", PICTURE)
def _(folder):
    Image.fromarray(np.zeros((40, 48), np.uint16)).save(folder / PICTURE)


@picture("folder with none", "zips: holds no picture (.png, .jpg", "zips")
def _(folder):
    pass


picture("that is not there", "nowhere.png: there is no such file", "nowhere.png")(nothing)
picture("pattern without any", "camvid/*.gif: there is no such file", "camvid/*.gif")(nothing)
picture("not named", "no picture was named")(nothing)
picture("without --output", "--output=DIR is needed", PICTURE, command=PREDICT[:2])(nothing)
picture("into a file", f"--output={PICTURE}: no folder that can be written", PICTURE, f"--output={PICTURE}")(nothing)
picture("windows of 17 pixels", "window_px=17: this network takes multiples of 16", PICTURE, "--window_px=17")(nothing)
picture("overlap without windows", "--overlap=0.3 has no effect without --window_px", PICTURE, "--overlap=0.3")(nothing)
picture("windows that overlap wholly", "overlap=1.0; expected a share of", PICTURE, "--window_px=16", "--overlap=1")(
    nothing
)
picture(
    "by another network than the run's",
    "config.model.features is 4 there, 5 now. Drop that",
    PICTURE,
    "--config.model.features=5",
)(nothing)
picture(
    "by a run and weights",
    "config.model.init_from is '' there, 'weights.npz' now",
    PICTURE,
    "--config.model.init_from=weights.npz",
)(nothing)
picture("scales with a word", "--scales=1,big: expected numbers with commas", PICTURE, "--scales=1,big")(nothing)
picture("scale 0", "scales=(0.0,); expected positive numbers", PICTURE, "--scales=0")(nothing)
picture("resized otherwise", "resize='small'; expected run or none", PICTURE, "--resize=small")(nothing)
picture("by a peer that is not there", "peer 'tutor': there is none; the peers are unet", PICTURE, "--peer=tutor")(
    nothing
)
picture(
    "by weights in place of a run",
    "weights.npz: a file, not a run's folder",
    PICTURE,
    command=[PREDICT[0], "--workdir=weights.npz", "--output=new"],
)(nothing)
picture("by nothing", "--workdir=RUN is needed (or --config=FILE", PICTURE, command=[PREDICT[0], "--output=new"])(
    nothing
)
picture(
    "by a config without weights",
    "config.model.init_from is needed: the weights to use",
    PICTURE,
    command=[PREDICT[0], CAMVID, "--output=new"],
)(nothing)


in_run(
    "scored into a file without suffix",
    "--output=new/scores: expected a file ending in .json",
    "--output=new/scores",
    command=SCORE,
)(nothing)


@case(
    "run",
    "scored at full resolution without raw files",
    "camvid",
    "--full_resolution",
    command=SCORE,
)
def _(folder):
    shutil.rmtree(folder / "camvid")


# ---- Names, paths and files of another kind

DEEP = "[" * 100_000 + "]" * 100_000


@picture("that is a pipe", "val_0.png: neither a file nor a folder, but a pipe or a device", PICTURE)
def _(folder):
    (folder / PICTURE).unlink()
    os.mkfifo(folder / PICTURE)


@picture("that claims 40,000 × 40,000 pixels", "val_0.png: claims more than 179 million pixels", PICTURE)
def _(folder):
    write_claim(folder / PICTURE)


@picture("that is a link to itself", "loop.png: there is no such file", "loop.png")
def _(folder):
    (folder / "loop.png").symlink_to("loop.png")


@picture("that a prediction wrote", "out/masks: nothing but results of a prediction", "out/masks")
def _(folder):
    (folder / "out/masks").mkdir(parents=True)
    shutil.copy(folder / PICTURE, folder / "out/masks")
    (folder / "out/predictions.json").write_text('{"pictures": {}, "failed": {}, "step": 2}')


@picture("of which one has a folder in place of its mask", "val_0.png: a folder is where this file is to be", PICTURE)
def _(folder):
    (folder / "new/masks/val_0.png").mkdir(parents=True)
    (folder / "new/masks/.made_by_jaxseg").touch()


@picture("with a file in place of masks/", "new/masks: a file that jaxseg did not make is there", PICTURE)
def _(folder):
    (folder / "new").mkdir()
    (folder / "new/masks").write_text("x")


@picture("with a folder in place of the index", "new/predictions.json: is of another program", PICTURE)
def _(folder):
    (folder / "new/predictions.json").mkdir(parents=True)


@picture("with an index nested 100,000 deep", "new/predictions.json: is of another program", PICTURE)
def _(folder):
    (folder / "new").mkdir()
    (folder / "new/predictions.json").write_text(DEEP)


@picture("into a link to itself", "--output=loop: no folder that can be written", PICTURE, "--output=loop")
def _(folder):
    (folder / "loop").symlink_to("loop")


picture("of a name too long", ": File name too long", "x" * 300)(nothing)
picture("in the home of nobody", "~nobody_here/a.png: no such home folder is known", "~nobody_here/a.png")(nothing)
picture("into the home of nobody", "--output=~nobody_here: no such home", PICTURE, "--output=~nobody_here")(nothing)
picture("into a name too long", "no folder that can be written (File name too", PICTURE, f"--output={'x' * 300}")(
    nothing
)
picture("scales beyond all use", "scales=(1000000000.0,); expected at most 16", PICTURE, "--scales=1e9")(nothing)
picture("windows beyond all memory", "window_px=16000; expected at most 8192", PICTURE, "--window_px=16000")(nothing)
picture("of no megapixels", "--max_megapixels=0.0; expected a positive number", PICTURE, "--max_megapixels=0")(nothing)
picture("by a step of 5,000 digits", "no checkpoint '777777", PICTURE, f"--checkpoint={'7' * 5000}")(nothing)


@in_run(
    "config.json nested 100,000 deep", "config.json: cannot be read as JSON (maximum recursion depth", command=SCORE
)
def _(folder):
    (folder / "run/config.json").write_text(DEEP)


@in_run("config.json is a pipe", "config.json: cannot be read (no regular file)", command=SCORE)
def _(folder):
    (folder / "run/config.json").unlink()
    os.mkfifo(folder / "run/config.json")


in_run(
    "scored on a split that is not there",
    "--split=tset: camvid has no such split; expected train or val",
    "--split=tset",
    "--output=new/x.json",
    command=SCORE,
)(nothing)


@in_run("scored into scores nested 100,000 deep", "maximum recursion depth", "--output=new/x.json", command=SCORE)
def _(folder):
    (folder / "new").mkdir()
    (folder / "new/x.json").write_text(DEEP)


@in_run("scored into a folder of scores", "evaluation-2.json: cannot be read (Is a directory)", command=SCORE)
def _(folder):
    (folder / "run/evaluation-2.json").mkdir()


@in_run(
    "scored beside a folder x.part",
    "new/x.part: a folder that jaxseg did not make",
    "--output=new/x.json",
    command=SCORE,
)
def _(folder):
    (folder / "new/x.part").mkdir(parents=True)


@in_run("scored over the scores of other data", "holds the scores of other data", "--output=new/x.json", command=SCORE)
def _(folder):
    (folder / "new").mkdir()
    content = {"reported_peer": "unet", "split": "val", "data": {"fingerprint": "0123456789abcdef"}}
    (folder / "new/x.json").write_text(json.dumps(content))


REPORT = ["jaxseg.report", "--html", "--output=new/page.html"]
case("page", "of a folder that is not there", "nowhere: no such folder", "nowhere", command=REPORT)(nothing)
case("page", "of a folder without scores", "holds neither evaluation-STEP.json", "camvid", command=REPORT)(nothing)


@case("page", "of damaged scores", "run/results.json", "run", command=REPORT)
def _(folder):
    path = folder / "run/results.json"
    path.write_text(path.read_text()[:500])


# ---- Config values, experiment files, folders

for field, value, says in (
    ("data.crop_px", 40, "config.data.crop_px=40 is larger than the resized image (config.data.size_px=36)"),
    ("data.crop_px", 24, "config.data.crop_px=24 does not suit config.model.name='unet'"),
    ("data.crop_px", 0, "config.data.crop_px is 0; expected at least 16"),
    ("data.name", "camvit", "Did you mean 'camvid'"),
    ("data.threads", 0, "config.data.threads is 0; expected at least 1"),
    ("data.workers", -1, "config.data.workers is -1; expected at least 0"),
    ("data.download", "maybe", "maybe"),
    ("model.features", 0, "config.model.features is 0; expected at least 1"),
    ("model.features", 1.5, "1.5"),
    ("model.dtype", "float16", "config.model.dtype is 'float16'; expected one of float32, bfloat16"),
    ("model.backbone", "resnet101", "config.model.backbone=resnet101 has no effect with config.model.name='unet'"),
    ("loss.radius", 5, "config.loss.radius=5 has no effect with config.loss.name='pixel'"),
    ("optim.learning_rate", -1, "config.optim.learning_rate is -1.0; expected at least 0"),
    ("optim.learning_rate", "nan", "config.optim.learning_rate is nan; expected a finite number, at least 0"),
    ("optim.learning_rate", "inf", "config.optim.learning_rate is inf; expected a finite number, at least 0"),
    ("optim.weight_decay", "inf", "config.optim.weight_decay is inf; expected a finite number, at least 0"),
    ("seed", -1, "config.seed is -1; expected at least 0"),
    ("seed", 2**32, "config.seed is 4294967296; expected at most 4294967295"),
    ("train.epochs", 0, "config.train.epochs is 0; expected at least 1"),
    ("train.batch_size", 0, "config.train.batch_size is 0; expected at least 1"),
    ("train.accumulate_steps", 4, "config.train.batch_size=2 cannot be cut into config.train.accumulate_steps=4 equal parts"),
    ("train.max_skipped_steps", -1, "config.train.max_skipped_steps is -1; expected at least 0"),
    ("eval.passes", 2, "passes go with config.eval.view=random"),
    ("checkpoint.best", "loss", "config.checkpoint.best is 'loss'; expected one of mean_iou, train_loss"),
    ("peers.teacher.frozen", True, "config.peers.teacher.frozen: the experiment file has no such peer"),
    ("model.feature", 3, "Did you mean config.model.features"),
):  # fmt: skip
    case("config", f"{field}={value}", says, f"--config.{field}={value}")(nothing)


def experiment(name: str, says: str, content: str):
    @case("experiment file", name, says, command=[MAIN[0], "--config=mine.py", *MAIN[2:]])
    def _(folder):
        (folder / "mine.py").write_text(content)


experiment("that does not compile", "mine.py: cannot be used as an experiment file (SyntaxError", "def get_config(:")
experiment("without get_config", "mine.py: cannot be used as an experiment file (KeyError", "x = 1")
experiment("that fails", "mine.py: cannot be used as an experiment file (ZeroDivisionError", "def get_config(): 1 / 0")
experiment("that gives a dict", "mine.py: get_config returned a dict; expected", "def get_config(): return {}")
experiment(
    "that lacks sections",
    "mine.py: get_config's result has no field config.augment.blur,",
    "import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'seed': 0})",
)


@case("folder", "--workdir is a file", "--workdir=new: no folder that can be written (File exists)")
def _(folder):
    (folder / "new").write_text("x")


case(
    "folder",
    "--workdir below a file",
    "no folder that can be written (Not a directory)",
    "--workdir=camvid/train/train_0.png/x",
)(nothing)


# ---- What other people's machines and programs leave: odd archives, places taken, values beyond all numbers


def repacked(folder: Path, **options) -> None:
    """The zip of masks, packed in another way."""
    with zipfile.ZipFile(folder / GT) as old:
        content = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(folder / GT, "w", **options) as new:
        for name, data in content.items():
            new.writestr(name, data)


@archive("zip with a member cut in LZMA", "labelIds.png: cannot be read", CITY)
def _(folder):
    repacked(folder, compression=zipfile.ZIP_LZMA)
    with zipfile.ZipFile(folder / GT) as file:
        info = file.getinfo("gtFine/train/town/town_000000_000019_gtFine_labelIds.png")
    content = bytearray((folder / GT).read_bytes())
    start = info.header_offset + 30 + len(info.filename) + 9  # behind LZMA's own header
    content[start : start + info.compress_size - 9] = b"\xff" * (info.compress_size - 9)
    (folder / GT).write_bytes(content)


@archive("zip of version 9.9", "gtFine_trainvaltest.zip: not a complete zip archive (zip file version 9.9)", CITY)
def _(folder):
    content = bytearray((folder / GT).read_bytes())
    at = content.find(b"PK\x01\x02")
    content[at + 6 : at + 8] = struct.pack("<H", 99)
    (folder / GT).write_bytes(content)


@archive("zip with a name that is no UTF-8", "gtFine_trainvaltest.zip: not a complete zip archive ('utf-8' codec", CITY)
def _(folder):
    content = bytearray((folder / GT).read_bytes())
    at = content.find(b"PK\x01\x02")
    content[at + 9] |= 8  # says that the name is UTF-8
    content[at + 46] = 0xFF
    (folder / GT).write_bytes(content)


@archive("tar with a garbled sparse member", "VOCtrainval_11-May-2012.tar: not a complete tar archive", VOC)
def _(folder):
    with tarfile.open(folder / TAR, "a", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("sparse")
        member.pax_headers = {"GNU.sparse.map": "many,few", "GNU.sparse.size": "1"}
        file.addfile(member)


@from_raw("mask", "all of a split void", "every pixel of the val split of camvid (2 images) is void")
def _(folder):
    for path in (folder / "camvid/valannot").iterdir():
        Image.new("L", (48, 40), 11).save(path)


@case("records", "with a manifest of another type", NOT_PREPARED)
def _(folder):
    manifest(folder).write_text(manifest(folder).read_text().replace('"images": 4', '"images": "many"'))


@in_run("config.json with an infinite value", "(config.optim.learning_rate is inf)", command=SCORE)
def _(folder):
    set_field(folder, "optim", "learning_rate", float("inf"))


@in_run("config.json with a number beyond all", "config.json: does not fit this version of jaxseg", command=SCORE)
def _(folder):
    set_field(folder, "optim", "learning_rate", 10**400)


@in_run("config.json a hundred thousand levels deep", "config.json: cannot be read as JSON")
def _(folder):
    (folder / "run/config.json").write_text("[" * 100_000)


@in_run("config.json a pipe", "config.json: something else than the file that a run writes is there")
def _(folder):
    (folder / "run/config.json").unlink()
    os.mkfifo(folder / "run/config.json")


@in_run("config.json a pipe, scored", "run/config.json: cannot be read (no regular file)", command=SCORE)
def _(folder):
    (folder / "run/config.json").unlink()
    os.mkfifo(folder / "run/config.json")


@in_run("train.jsonl that skipped many", "skipped is 'many'; expected a number")
def _(folder):
    path = folder / "run/train.jsonl"
    path.write_text(path.read_text().replace('{"step": 1,', '{"skipped": "many", "step": 1,'))


for name in ("results.json", "predictions.png"):

    @in_run(f"{name} a folder", f"run/{name}: something else than the file that a run writes is there")
    def _(folder, name=name):
        (folder / "run" / name).unlink(missing_ok=True)
        (folder / "run" / name).mkdir()


@in_run("tensorboard a file", "run/tensorboard: not a folder; move it away")
def _(folder):
    shutil.rmtree(folder / "run/tensorboard")
    (folder / "run/tensorboard").write_text("x")


@checkpoint("with metrics that are no JSON", "run/checkpoints/2: cannot be read", command=SCORE)
def _(folder):
    (folder / "run/checkpoints/2/metrics/metrics").write_text("nonsense")


@checkpoint("with metadata that are a list", "run/checkpoints/2: cannot be read", command=SCORE)
def _(folder):
    (folder / "run/checkpoints/2/_CHECKPOINT_METADATA").write_text("[1]")


@case("folder", "that is a link to itself", "config.data.source_dir=camvid: there is no such", RAW)
def _(folder):
    shutil.rmtree(folder / "camvid")
    (folder / "camvid").symlink_to("camvid")


LONG = 300 * "x"
case("folder", "of nobody's home", "config.data.dir=~nobody_here/data: ", "--config.data.dir=~nobody_here/data")(
    nothing
)
case("folder", "--workdir with a name too long", "(File name too long)", f"--workdir={LONG}")(nothing)
case("folder", "data.dir with a name too long", "File name too long", f"--config.data.dir={LONG}")(nothing)
case("config", "log.wandb=True", "config.log.wandb: there is no such field. All fields", "--config.log.wandb=True")(
    nothing
)


# ---- Running them


def build_world(folder: Path) -> None:
    """What every case gets a copy of."""
    raw_data.write_camvid(folder / "camvid", train=4, val=2)
    raw_data.zip_cityscapes(raw_data.write_cityscapes(folder / "city"), folder / "zips")
    raw_data.tar_voc(raw_data.write_voc(folder / "voc"), folder / "tar")
    for name in ("city", "voc"):
        shutil.rmtree(folder / name)
    more = [RAW, "--workdir=run", "--config.checkpoint.every_steps=1"]
    status, said = run_command([*MAIN, *more], folder)
    if status:
        raise RuntimeError(f"the run that cases start from ended with status {status}:\n{said}")


def write_weights(folder: Path) -> None:
    """PyTorch's names and layouts, of a U-Net with 4 features and 11 classes; zeros."""
    from flax import traverse_util

    from jaxseg.models import UNet
    from jaxseg.models.torch_weights import shapes_of, unet_tensor_maps

    shapes, found = traverse_util.flatten_dict(shapes_of(UNet(11, 4))), {}
    for move in unet_tensor_maps():
        shape = shapes[move.collection, *move.path].shape
        axes = move.axes or tuple(range(len(shape)))
        found[move.torch_name] = np.zeros([shape[axes.index(i)] for i in range(len(shape))], np.float32)
    np.savez(folder / "weights.npz", **found)


def start_fork(function: Callable[[], object]) -> int:
    """Runs it in a fork of this process, whose number it returns."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    return child


def in_fork(function: Callable[[], object]) -> int:
    """Runs it in a fork of this process; the exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(start_fork(function), 0)[1])


def run_command(words: list[str], folder: Path) -> tuple[int, str]:
    """Exit status and what it wrote, of `python -m WORDS` in `folder`."""
    with tempfile.TemporaryFile() as output:

        def run():
            os.chdir(folder)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv = list(words)
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)

        status = in_fork(run)
        output.seek(0)
        return status, output.read().decode(errors="replace")


def contents(folder: Path) -> dict[str, str]:
    """Path -> digest of every file and link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path.relative_to(folder).as_posix()] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def try_case(case: Case, world: Path, folder: Path) -> dict:
    """What the command said, and everything that is wrong with it."""
    here = folder / "here" / "here"
    shutil.copytree(world, here, symlinks=True)
    case.damage(here)
    before = contents(folder)
    began = time.monotonic()
    status, said = run_command(case.command, here)
    seconds = time.monotonic() - began
    after, problems = contents(folder), []
    if status != case.status:
        problems.append(f"exit status {status}, not {case.status}")
    if case.says not in " ".join(said.split()):
        problems.append(f"does not say {case.says!r}")
    if "Traceback" in said:
        problems.append("a traceback")
    inside = "here/here/"
    for name, digest in before.items():
        if after.get(name) != digest and not name.endswith("lock"):
            problems.append(f"{name} was {'changed' if name in after else 'removed'}")
    for name in after.keys() - before.keys():
        if not name.startswith(tuple(inside + place for place in MAY_WRITE)):
            problems.append(f"{name} was written")
    said = said.replace(f"{here.resolve()}/", "")
    message = " ".join(said[max(said.find("error:"), 0) :].split())
    return {
        "group": case.group,
        "name": case.name,
        "status": status,
        "message": message,
        "problems": problems,
        "said": said,
        "seconds": seconds,
    }


def try_all(cases: list[Case]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        # Imported before anything is forked, and nothing computed: a fork of running threads could wait for ever.
        for module in ("jaxseg.evaluate", "jaxseg.main", "jaxseg.predict", "jaxseg.report"):
            __import__(module)
        world = Path(folder) / "world"
        world.mkdir()
        build_world(world)
        in_fork(lambda: write_weights(world))  # computes
        processes = os.cpu_count()
        places = [Path(folder) / f"part{i}" for i in range(processes)]
        parts = [start_fork(lambda i=i: try_part(cases[i::processes], world, places[i])) for i in range(processes)]
        for child in parts:
            if status := os.waitpid(child, 0)[1]:
                raise RuntimeError(f"a part of the cases ended with status {status}")
        parts = [json.loads(place.with_suffix(".json").read_text()) for place in places]
        return [parts[number % processes][number // processes] for number in range(len(cases))]


def try_part(cases: list[Case], world: Path, place: Path) -> None:
    """Tries some of the cases, one after the other, and writes what came of them beside `place`."""
    results = []
    for case in cases:
        results.append(try_case(case, world, place))
        shutil.rmtree(place)
    place.with_suffix(".json").write_text(json.dumps(results))


def table(results: list[dict]) -> str:
    """The page of results."""
    lines = ["# Bad inputs, and what is said", ""]
    lines += [
        f"{len(results)} malformed inputs, each given to the real command: `python -m tests.bad_inputs`. All end with"
    ]
    lines += [
        "status 2; no file of before is changed or gone, nothing is written outside the folders of run and data.",
        "",
    ]
    lines += ["| what | message |", "| --- | --- |", *map(row, results)]
    return "\n".join(lines) + "\n"


def row(result: dict) -> str:
    """Its line of the table."""
    message = result["message"].removeprefix("error: ").replace("|", "\\|")
    message = re.sub(r"(camvid-square36-|/d/)[0-9a-f]{8,32}", r"\1…", message)  # by times of files, by chance
    message = re.sub(r"0x[0-9a-f]{16}", "0x…", message)  # tensorflow-datasets' files differ from process to process
    message = re.sub(r"record \d is", "record … is", message)  # whichever thread comes first
    message = re.sub(r"of \d+ files", "of … files", message)  # which Orbax makes more or fewer of
    message = message if len(message) < 400 else message[:400] + " …"
    return f"| {result['group']}: {result['name']} | {message} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases whose group and name contain this")
    parser.add_argument("--names", type=Path, help="JSON list of the cases, as GROUP: NAME")
    options = parser.parse_args()
    cases = {f"{case.group}: {case.name}": case for case in CASES}
    names = json.loads(options.names.read_text()) if options.names else cases
    results = try_all([cases[name] for name in names if options.only in name])
    for row in results:
        if row["problems"]:
            print(f"{row['group']}: {row['name']}: {'; '.join(row['problems'])}\n    {row['message'][:600]}")
    failed = sum(bool(row["problems"]) for row in results)
    print(f"{len(results)} inputs, {failed} of them not as they should be")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.output:
        options.output.write_text(table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
