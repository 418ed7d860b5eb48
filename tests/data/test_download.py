"""Downloads against a server on this machine: resumed, verified, never half trusted."""

import dataclasses
import hashlib

import numpy as np
import pytest

from jaxseg.config import default
from jaxseg.data import prepare
from jaxseg.data.download import VOC2012_TAR, RemoteFile, download
from jaxseg.errors import InputError
from tests import raw_data
from tests.file_server import file_server

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def server():
    with file_server(CONTENT) as behaviour:
        behaviour.archive = behaviour.remote("archive.tar")
        yield behaviour


def test_official_archive_is_the_one_tfds_records():
    """tensorflow-datasets, url_checksums/voc.txt."""
    assert VOC2012_TAR.name == "VOCtrainval_11-May-2012.tar"
    assert VOC2012_TAR.size == 1_999_639_040
    assert VOC2012_TAR.checksum == "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"


def test_whole_file(server, tmp_path):
    seen = []
    download(server.archive, tmp_path / "a.tar", progress=seen.append)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert sum(seen) == len(CONTENT)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_broken_connections_are_resumed(server, tmp_path):
    server.cut = 1_100_000
    seen = []
    download(server.archive, tmp_path / "a.tar", progress=seen.append)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.log[0] is None
    assert [int(r.removeprefix("bytes=").rstrip("-")) > 0 for r in server.log[1:]] == [True] * (len(server.log) - 1)
    assert sum(seen) == len(CONTENT)


def test_an_earlier_part_is_gone_on_with(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:1_000_000])
    download(server.archive, tmp_path / "a.tar")
    assert server.log == ["bytes=1000000-"]
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.tar.part").write_bytes(b"x" * 1_000_000)
    download(server.archive, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_wrong_bytes_are_removed_and_said(server, tmp_path):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(InputError, match=r"SHA-256 [0-9a-f]{64}, expected"):
        download(server.archive, tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


def test_dead_server_is_given_up_and_the_part_kept(server, tmp_path):
    server.cut = 0
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:5])
    with pytest.raises(InputError, match=r"5 of 3,000,000 bytes came, then 5 attempts .*same command again"):
        download(server.archive, tmp_path / "a.tar")
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:5]
    assert not (tmp_path / "a.tar").exists()


def test_full_disk_is_said_before_anything_is_fetched(server, tmp_path):
    huge = dataclasses.replace(server.archive, size=1 << 60)
    with pytest.raises(InputError, match=r"needs 1,152,921,504,606,846,976 bytes, .* are free; set config.data.dir"):
        download(huge, tmp_path / "a.tar")
    assert server.log == []


def test_a_size_that_nobody_recorded_is_asked_for(server, tmp_path):
    server.cut = 2_000_000
    download(dataclasses.replace(server.archive, size=None), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.log == ["HEAD", None, "bytes=2000000-"]


def test_a_server_that_does_not_answer(tmp_path):
    """A port that was free a moment ago; also where the size must be asked for first."""
    with file_server(CONTENT) as gone:
        remote = gone.remote("archive.tar")
    for size in (None, len(CONTENT)):
        with pytest.raises(InputError) as caught:
            download(dataclasses.replace(remote, size=size), tmp_path / "a.tar")
        assert remote.url in str(caught.value)
        assert str(tmp_path / "a.tar") in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_voc_on_request_is_fetched_once_prepared_and_found(server, tmp_path, monkeypatch):
    """config.data.download=True from nothing to records, with a small archive in the official one's place."""
    tar = raw_data.tar_voc(raw_data.write_voc(tmp_path / "raw"), tmp_path / "tar") / VOC2012_TAR.name
    server.content = tar.read_bytes()
    checksum = hashlib.sha256(server.content).hexdigest()
    url = server.archive.url.replace("archive.tar", VOC2012_TAR.name)
    monkeypatch.setattr(prepare, "ARCHIVES", {"voc2012": RemoteFile(url, len(server.content), checksum)})
    data = default().data
    data.update({"name": "voc2012", "download": True, "dir": str(tmp_path / "data"), "size_px": 36})
    prepared = prepare.prepare(data)
    assert (prepared.images("train"), prepared.images("val")) == (3, 2)
    assert prepare.prepare(data).folder == prepared.folder
    assert len(server.log) == 1
