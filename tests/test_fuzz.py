"""Files that jaxseg reads back, changed by chance: what is raised is a sentence, never anything else, and nothing hangs.

Every change follows from the file and a number. What once was found is a row of `FOUND`, which is tried again in the fast
tier; a failure names the row to add.
"""

import contextlib
import copy
import functools
import json
import random
import shutil
import signal
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from jaxseg.config import load_config
from jaxseg.config_checks import validate
from jaxseg.data.prepare import MANIFEST, prepare
from jaxseg.data.sources import find_source, read_sample
from jaxseg.errors import InputError, ResourceError
from jaxseg.files import read_json_lines
from jaxseg.report import load_results
from jaxseg.reporting.html import gallery
from jaxseg.reporting.html.page import runs_page
from jaxseg.reporting.html.runs import load_runs
from jaxseg.reporting.tables import write_tables
from jaxseg.training import checkpoint
from tests import raw_data
from tests.configs import tiny_config
from tests.made_runs import FIRST, write_run
from tests.study_results import run as study_run
from tests.study_results import write_study

VALUES = [None, True, -1, 0, 0.5, 10**400, float("inf"), float("nan"), "", "many", "\0", "../..", [], [1], {}, {"a": 1}]
LIMIT_S = 20


def places(content, path=()):
    """The path of everything inside."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def change_json(text: bytes, rng: random.Random) -> bytes:
    """Another value, a key less, a key renamed, or an item twice, somewhere."""
    content = json.loads(text)
    *sections, key = rng.choice(list(places(content)))
    inner = functools.reduce(lambda value, step: value[step], sections, content)
    what = rng.randrange(10)
    if what < 7:
        inner[key] = copy.deepcopy(rng.choice(VALUES))
    elif what == 7:
        del inner[key]
    elif isinstance(inner, dict):
        inner[rng.choice(["x", "a.b", "\ud800", "9" * 300])] = inner.pop(key)
    else:
        inner.append(inner[key])
    return json.dumps(content).encode()


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, overwritten, with something put in, with a part twice, or deep."""
    start = rng.randrange(max(len(content), 1))
    size = rng.choice([1, 2, 8, 64, 600])
    junk = rng.choice([rng.randbytes(size), b"\0" * size, b"\xff" * size, b"9" * size])
    return [
        content[:start],
        content[:start] + junk + content[start + size :],
        content[:start] + junk + content[start:],
        content[:start] + content[start : start + size] * 2 + content[start + size :],
        b"[" * 100_000 + content,
        b"",
    ][rng.randrange(6)]


def change_lines(text: bytes, rng: random.Random) -> bytes:
    lines = text.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = change_json(lines[number], rng)
    return b"\n".join(lines) + b"\n"


CHANGES = {".json": [change_json, change_bytes], ".jsonl": [change_lines, change_bytes]}


# ---- What is read, by name: how it is made once, the files that may be changed, and how it is read


def make_run_folder(folder: Path) -> None:
    write_run(folder / "first", FIRST)


def read_run_folder(folder: Path) -> None:
    runs = load_runs([str(folder / "first")])
    runs_page(runs, gallery.load_gallery(runs, max_examples=2))


def make_study(folder: Path) -> None:
    runs = {f"camvid-text-{arm}-seed{seed}": 0 for arm in ("unet", "rmi") for seed in (0, 1)}
    runs = {name: study_run(name, iou=0.4 + number / 100) for number, name in enumerate(runs)}
    asked = [{"ask": "Does it help?", "of": "rmi", "against": "unet"}]
    write_study(folder / "results/p", runs, questions=asked)
    alone = {key: value for key, value in study_run("camvid-text-unet-seed0", iou=0.5).items() if key != "study"}
    (folder / "results/alone.json").write_text(json.dumps(alone))


def read_study(folder: Path) -> None:
    (folder / "out").mkdir()
    write_tables(*load_results(folder / "results"), folder / "out")


def read_trained(folder: Path) -> None:
    config = load_config(folder)
    validate(config)
    read_json_lines(folder / "train.jsonl")
    read_json_lines(folder / "eval.jsonl")
    with checkpoint.open_manager(folder, config.checkpoint, read_only=True) as manager:
        for which in ("last", "best"):
            checkpoint._check_sums(manager, checkpoint.find_step(manager, which), "peers")


def make_prepared(folder: Path) -> None:
    raw_data.write_camvid(folder / "raw", train=2, val=1)
    prepare(tiny_config(folder / "raw", folder / "data").data)


def read_prepared(folder: Path) -> None:
    data = tiny_config(folder / "raw", folder / "data").data
    data.source_dir = ""
    prepared = prepare(data)
    for split in ("train", "val"):
        list(prepared.records(split))


def make_zips(folder: Path) -> None:
    raw_data.zip_cityscapes(raw_data.write_cityscapes(folder / "city", train=1, val=1), folder / "zips")
    path = folder / "zips/gtFine_trainvaltest.zip"
    with zipfile.ZipFile(path) as old:
        content = {info.filename: old.read(info) for info in old.infolist()}
    ways = [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED]
    with zipfile.ZipFile(path, "w") as new:
        for number, (name, data) in enumerate(content.items()):
            new.writestr(name, data, compress_type=ways[number % 4])
    shutil.rmtree(folder / "city")


def make_tar(folder: Path) -> None:
    raw_data.tar_voc(raw_data.write_voc(folder / "voc", train=1, val=1), folder / "tar")
    path = next((folder / "tar").iterdir())
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("sparse")
        member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1", "GNU.sparse.name": "sparse"}
        archive.addfile(member)
    shutil.rmtree(folder / "voc")


def read_source(folder: Path, *, name: str, place: str) -> None:
    source = find_source(name, folder / place)
    for samples in source.samples.values():
        for sample in samples:
            read_sample(source, sample)


NOTES = [f"checkpoints/*/{name}" for name in ("_*", "*.json", "metrics/m*")]
RECORDS = [f"data/prepared/segmentation/*/*/{name}" for name in (MANIFEST, "*.json", "*array_record*")]
READ = {
    "page": (make_run_folder, ["first/*.json", "first/*.jsonl"], read_run_folder),
    "study": (make_study, ["results/p/*.json", "results/*.json"], read_study),
    "trained": (None, ["*.json", "*.jsonl", *NOTES], read_trained),
    "prepared": (make_prepared, RECORDS, read_prepared),
    "zip": (make_zips, ["zips/*"], functools.partial(read_source, name="cityscapes", place="zips")),
    "tar": (make_tar, ["tar/*"], functools.partial(read_source, name="voc2012", place="tar")),
}


@pytest.fixture
def world(made_once, trained_run, tmp_path):
    """world(kind): the files of that kind, to be changed."""

    def copied(kind: str) -> Path:
        make = READ[kind][0]
        shutil.copytree(made_once(f"fuzzed_{kind}", make) if make else trained_run, tmp_path / "here", symlinks=True)
        return tmp_path / "here"

    return copied


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise TimeoutError(f"not read within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_change(kind: str, number: int, here: Path) -> str:
    """Changes one file, reads, and puts the file back; what was said, "" where the change did no harm."""
    rng = random.Random(f"{kind} {number}")
    _, patterns, read = READ[kind]
    path = rng.choice([path for pattern in patterns for path in sorted(here.glob(pattern)) if path.is_file()])
    before = path.read_bytes()
    change = rng.choice(CHANGES.get(path.suffix, [change_bytes]))
    path.write_bytes(change(before, rng))
    try:
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(here)
        return ""
    except (InputError, ResourceError) as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f'("{kind}", {number}): {type(error).__name__} by {path.name}; add it to FOUND') from error
    finally:
        path.write_bytes(before)
        shutil.rmtree(here / "out", ignore_errors=True)


FOUND = [
    ("page", 306),
    ("prepared", 11),
    ("prepared", 16),
    ("prepared", 43),
    ("study", 12),
    ("study", 152),
    ("study", 517),
]
ROUNDS = {"page": 150, "study": 600, "trained": 300, "prepared": 300, "zip": 600, "tar": 600}


@pytest.mark.parametrize(("kind", "number"), FOUND)
def test_what_was_found_is_a_sentence(world, kind, number):
    try_change(kind, number, world(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", READ)
def test_a_change_by_chance_is_a_sentence(world, kind):
    """Slow: hundreds of changes of every kind of file."""
    here = world(kind)
    said = [try_change(kind, number, here) for number in range(ROUNDS[kind])]
    assert sum(map(bool, said)) > len(said) / 10  # the changes do harm
