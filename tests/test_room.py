"""What would not fit is refused before it is begun, with what it takes, what there is, and which fields make it less."""

import shutil
from collections import namedtuple

import pytest

from jaxseg import room
from jaxseg.data import pipeline
from jaxseg.errors import ResourceError

MIB = 1 << 20
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:   3000 kB\n"}, 3000 * 1024),
        ({"proc/meminfo": "MemAvailable: 3000 kB\n", "sys/fs/cgroup/memory.max": "1000000\n"}, 1_000_000),
        ({"proc/meminfo": "MemAvailable: 3000 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 3000 * 1024),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "5\n"}, 5),
        ({"proc/meminfo": "\n"}, None),
        ({}, None),
    ],
)
def test_available_memory_is_the_least_of_machine_and_container(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert room.available_memory(tmp_path) == expected


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0.0 bytes"), (1023, "1,023.0 bytes"), (1024, "1.0 KiB"), (3 << 39, "1.5 TiB"), (1 << 60, "1,048,576.0 TiB")],
)
def test_sizes_as_a_person_reads_them(count, said):
    assert room.size(count) == said


def test_batches_that_do_not_fit_into_memory_are_refused_to_the_byte(prepared, tiny, monkeypatch):
    """Of training, 4 · 32 · 32 pixels of 5 bytes, by each of 2 threads; of scoring, 4 · 48 · 48."""
    train, scoring = (2 * 4 * side * side * 5 for side in (32, 48))
    monkeypatch.setattr(room, "available_memory", lambda: scoring)
    pipeline.check_fits(prepared, tiny, multiple_px=16)
    monkeypatch.setattr(room, "available_memory", lambda: scoring - 1)
    with pytest.raises(
        ResourceError, match=r"2 batches .* config.eval.batch_size=4 of 48×48 pixels, config.data.threads=2"
    ):
        pipeline.check_fits(prepared, tiny, multiple_px=16)
    monkeypatch.setattr(room, "available_memory", lambda: train - 1)
    with pytest.raises(ResourceError, match=r"config.train.batch_size=4 of 32×32 pixels"):
        pipeline.check_fits(prepared, tiny, multiple_px=16)


@pytest.mark.parametrize(("workers", "fits"), [(0, True), (3, True), (4, False)])
def test_workers_need_shared_memory(prepared, tiny, monkeypatch, workers, fits):
    """Docker's 64 MiB take three batches of each of 3 workers, of 192 images of 80·80 pixels, but not of 4."""
    tiny.data.update({"workers": workers, "crop_px": 80, "threads": 1})
    tiny.train.batch_size = 192
    tiny.eval.update({"batch_size": 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 * MIB, 0, 64 * MIB))
    assert (workers * 3 * 192 * 80 * 80 * 5 <= 64 * MIB) == fits
    if fits:
        pipeline.check_fits(prepared, tiny, multiple_px=16)
        return
    with pytest.raises(
        ResourceError, match=r"70.3 MiB of /dev/shm, 64.0 MiB are free. .*config.data.workers=4"
    ) as caught:
        pipeline.check_fits(prepared, tiny, multiple_px=16)
    assert caught.value.status == 4
