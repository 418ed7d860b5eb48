"""From raw files to prepared records, once: find, check, resize, write, and only then trust.

In: `config.data`. Out: a `Prepared` (records per split and their summary). A prepared folder is trusted only if its
`prepared.json`, written last, is there and every record file has the size noted in it. The folder's name carries data
set, size and a fingerprint of the raw files' names, sizes and times, so changed raw files are prepared anew.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from jaxseg.console import PlainConsole, progress_bar
from jaxseg.data import synthetic
from jaxseg.data.download import ARCHIVES, RemoteFile, download
from jaxseg.data.pairs import SPLITS
from jaxseg.data.records import VERSION, Prepared, Segmentation
from jaxseg.data.sources import WANTED, Source, find_source, read_sample
from jaxseg.data.transforms import resized_hw
from jaxseg.errors import InputError
from jaxseg.files import file_lock, read_json, remove_own_folder, user_path, write_json
from jaxseg.labels import LABELS, labels_of
from jaxseg.room import check_disk
from jaxseg.schemas import PREPARED_FILE

MANIFEST = "prepared.json"
BYTES_PER_PIXEL = 4  # of a record: image and label, not compressed
LEAST_BYTES_PER_SCENE = 50_000  # image and mask; the smallest of the first twelve takes 57,249


def prepare(data: ConfigDict) -> Prepared:
    """The records that `config.data` asks for, prepared first if they are not there yet.

    Args:
      data: `config.data`.

    Returns:
      The records and what is known of them.

    Raises:
      InputError: where raw files are missing or wrong, naming the file.
    """
    prepared = prepare_all_splits(data)
    check_classes_occur(prepared)
    return prepared


def prepare_all_splits(data: ConfigDict) -> Prepared:
    """The records, of any content. Raises InputError."""
    data_dir = existing_dir(data.dir)
    if (source := raw_source(data)) is None:
        return prepared_before(data, data_dir)
    folder = data_dir / "prepared" / "segmentation" / variant_name(data, stamp_of(source)) / VERSION
    if prepared := load(folder):  # also from a folder that nobody may write in
        return prepared
    with one_at_a_time(data_dir):
        if (prepared := load(folder)) is None:
            for note in source.notes:
                PlainConsole().say(f"{data.source_dir}: {note}")
            try:
                build(source, folder, data_dir=data_dir / "prepared", resize=data.resize, size_px=data.size_px)
            except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise InputError(
                    f"{folder}: records cannot be written there ({error}); set config.data.dir."
                ) from error
            prepared = load(folder)
    return prepared


def check_classes_occur(prepared: Prepared) -> None:
    """Refuses a folder of one's own of whose classes one is never seen in training. Raises InputError."""
    counts = prepared.summary["train"]["pixels_of_label"]
    absent = [row.name for row in prepared.labels.classes if not counts.get(str(row.train_id))]
    if prepared.name not in LABELS and absent:
        raise InputError(
            f"classes.toml: no training mask holds {', '.join(absent)}, so that cannot be learned. Drop the class, give it"
            " void = true, or, where its pictures went to validation, choose the splits yourself (train/, val/)."
        )


def raw_source(data: ConfigDict) -> Source | None:
    """The raw files that `config.data` names, rendered or downloaded first where it says so; None where it names none.
    Raises InputError."""
    data_dir = existing_dir(data.dir)
    if data.name == "synthetic":
        source_dir = synthetic.scenes_dir(data_dir, data.scenes)
        if not source_dir.is_dir():
            render(source_dir, data.scenes, data_dir=data_dir)
        return dataclasses.replace(find_source("cityscapes", source_dir), name="synthetic")
    if data.download:
        return find_source(data.name, download_archive(data_dir, ARCHIVES[data.name]))
    if not (source_dir := data.source_dir or named_by_environment(data.name)):
        return None
    return find_source(data.name, source_dir, trainaug=data.trainaug, val_fraction=data.val_fraction)


def named_by_environment(name: str) -> str:
    """Where Cityscapes is by its own scripts' CITYSCAPES_DATASET; "" where that is not set, and of other data sets."""
    return os.environ.get("CITYSCAPES_DATASET", "") if name == "cityscapes" else ""


def variant_name(data: ConfigDict, stamp: str) -> str:
    """Such as "camvid-square234-0a1b2c3d"."""
    size = "" if data.resize == "none" else data.size_px
    return f"{data.name}{'_trainaug' if data.trainaug else ''}-{data.resize}{size}-{stamp}"


def stamp_of(source: Source) -> str:
    """Fingerprint of which raw files there are: names, sizes in bytes, modification times."""
    rows = [f"{split} {sample.id}" for split, samples in sorted(source.samples.items()) for sample in samples]
    rows += [f"{name} {size} {time}" for name, (size, time) in sorted(source.tree.stamps.items())]
    if source.name not in LABELS:
        rows.append(json.dumps(source.labels.as_dict()))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:8]


def prepared_before(data: ConfigDict, data_dir: Path) -> Prepared:
    """Without source_dir: the records of this name and size that were prepared before; of several with the same content
    (copied raw files have other times) the first. Raises InputError where there are none, or different ones."""
    pattern = data_dir / "prepared" / "segmentation" / variant_name(data, "*") / VERSION
    found = [p for p in map(load, sorted(data_dir.glob(str(pattern.relative_to(data_dir))))) if p]
    if found and all((p.summary, p.labels) == (found[0].summary, found[0].labels) for p in found):
        return found[0]
    if not found:
        raise InputError(
            f"config.data.name={data.name!r}: nothing prepared in config.data.dir={data.dir}, and config.data.source_dir is"
            f" not set. What is wanted:\n{WANTED[data.name]}"
        )
    names = ", ".join(p.folder.parent.name for p in found)
    raise InputError(
        f"config.data.dir={data.dir} holds {len(found)} prepared versions of {data.name} ({names}), and"
        " config.data.source_dir is not set, which would say which one; set it, or delete what is no longer wanted in"
        f" {found[0].folder.parents[1]}."
    )


def load(folder: Path) -> Prepared | None:
    """The prepared records in `folder`; None where there are none, or not whole."""
    try:
        manifest = read_json(folder / MANIFEST, PREPARED_FILE)
        whole = all((folder / name).stat().st_size == size for name, size in manifest["bytes"].items())
        whole &= all(any(f"-{split}.array_record" in name for name in manifest["bytes"]) for split in SPLITS)
        prepared = Prepared(manifest["name"], folder, manifest["splits"], labels_of(manifest))
        whole &= len(prepared.labels.names) > 0  # classes that this version knows
    except (OSError, KeyError, InputError):
        return None
    return prepared if whole else None


def build(source: Source, folder: Path, *, data_dir: Path, resize: str, size_px: int) -> None:
    """Writes the records of `source` into `folder`, and the manifest last."""
    why = "where records are prepared (config.data.dir)"
    remove_own_folder(folder, why=why, is_own=holds_records_only)  # what an interrupted preparation left
    for leftover in folder.parent.glob("incomplete.*"):  # tensorflow-datasets' own name
        remove_own_folder(leftover, why=why, is_own=Path.is_dir)
    total = sum(map(len, source.samples.values()))
    check_room(source, total, data_dir=data_dir.parent, resize=resize, size_px=size_px)
    with progress_bar(f"preparing {source.name} ({folder.parent.name})", total) as advance, quiet_tfds():
        builder = Segmentation(
            source=source,
            variant=folder.parent.name,
            data_dir=data_dir,
            resize=resize,
            size_px=size_px,
            progress=advance,
        )
        builder.download_and_prepare()
    own = {} if source.name in LABELS else {"labels": source.labels.as_dict()}
    manifest = {
        "name": source.name,
        **own,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "splits": {split: summary.as_dict() for split, summary in builder.summaries.items()},
    }
    write_json(folder / MANIFEST, manifest)


def check_room(source: Source, images: int, *, data_dir: Path, resize: str, size_px: int) -> None:
    """That the disk has room for the records, if all are as large as the first. Raises ResourceError."""
    _, label = read_sample(source, source.samples["train"][0])
    height, width = resized_hw(*label.shape, resize=resize, size_px=size_px)
    what = f"{images:,} images of {height}×{width} pixels, prepared,"
    less = f"Make room, set config.data.dir, or make config.data.size_px={size_px} smaller."
    check_disk(data_dir, images * height * width * BYTES_PER_PIXEL, what=what, less=less)


def holds_records_only(folder: Path) -> bool:
    """Whether all that is in it has the names that tensorflow-datasets and `build` give."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else {""}
    known = ("dataset_info.json", "features.json", MANIFEST)
    return all(name in known or ".array_record" in name or name.startswith(f".{MANIFEST}") for name in names)


def render(source_dir: Path, scenes: int, *, data_dir: Path) -> None:
    """Renders them, unless another process has done it by now."""
    with one_at_a_time(data_dir):
        if not source_dir.is_dir():
            less = f"Make room, set config.data.dir, or make config.data.scenes={scenes} smaller."
            check_disk(data_dir, scenes * LEAST_BYTES_PER_SCENE, what=f"{scenes:,} rendered scenes", less=less)
            with progress_bar(f"rendering {scenes} scenes", scenes) as advance:
                synthetic.write_scenes(source_dir, scenes, progress=advance)


def download_archive(data_dir: Path, archive: RemoteFile) -> Path:
    """An official archive, fetched into `data_dir` unless it is there; its path."""
    target = data_dir / "downloads" / archive.name
    if target.is_file():
        return target
    with one_at_a_time(data_dir):
        if not target.is_file():
            with progress_bar(f"downloading {archive.name}", archive.size, unit_bytes=True) as advance:
                download(archive, target, progress=advance)
    return target


@contextlib.contextmanager
def one_at_a_time(data_dir: Path) -> Iterator[None]:
    """Processes that prepare into one folder wait for each other; a killed one lets go."""

    def say() -> None:
        PlainConsole(stderr=True).say(f"waiting for another process that prepares data in {data_dir} …")

    path = data_dir / "prepare.lock"
    with contextlib.ExitStack() as held:
        try:
            if not os.access(data_dir, os.W_OK):
                raise PermissionError(errno.EACCES, "the folder is not writable")
            held.enter_context(file_lock(path, if_held=say))
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{path}: cannot be locked ({reason}); move it away, or set config.data.dir.") from error
        yield


def existing_dir(path: str) -> Path:
    """`path` as a folder that is there, made where it is not. Raises InputError."""
    folder = user_path(path, what="config.data.dir=").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"config.data.dir={path}: cannot keep prepared data there ({error}); choose another folder."
        ) from error
    return folder


@contextlib.contextmanager
def quiet_tfds():
    """Our progress bar and sentences instead of tensorflow-datasets' own."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logger.setLevel(level)
