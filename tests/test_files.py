"""Paths as users write them, whole files, JSON of any depth, and reading ahead within bounds."""

import errno
import os
import shutil
import threading

import pytest

from jaxseg import files
from jaxseg.errors import InputError
from jaxseg.files import atomic_write, make_own_folder, parallel_map, read_json, remove_own_folder, user_path


def test_homes_that_are_not_known_are_told(monkeypatch):
    """A user id without an entry in passwd, and without HOME, as in some containers: pathlib raises RuntimeError."""
    with pytest.raises(InputError, match=r"--output=~nobody_of_that_name/x: no such home folder is known"):
        user_path("~nobody_of_that_name/x", what="--output=")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # KeyError, as pwd raises
    with pytest.raises(InputError, match="no such home folder is known"):
        user_path("~/runs")
    assert str(user_path("runs/~")) == "runs/~"


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127])  # bytes of a name, at most
def test_a_file_of_the_longest_name_is_written(tmp_path, name):
    with atomic_write(tmp_path / name) as part:
        part.write_text("x", encoding="utf-8")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "1" * 5000])
def test_json_without_end_is_told(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x.json: cannot be read as JSON"):
        read_json(tmp_path / "x.json")


def test_a_pipe_is_no_json(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(InputError, match="no regular file"):
        read_json(tmp_path / "x.json")


def test_no_more_is_read_ahead_than_the_budget_allows():
    """Forty pictures of 80 megapixels: two at a time within 160; one that is larger than all goes alone."""
    held, most, lock = 0, 0, threading.Lock()
    costs = [80] * 38 + [500, 80]

    def read(number):
        nonlocal held, most
        with lock:
            held += costs[number]
            most = max(most, held if costs[number] < 500 else held - 500)
        return number

    for number, found in enumerate(parallel_map(read, range(40), cost=costs.__getitem__, budget=160)):
        assert found == number
        with lock:
            held -= costs[number]
    assert most == 160


def test_threads_are_as_many_as_before():
    assert list(parallel_map(lambda x: x * x, range(100))) == [x * x for x in range(100)]
    assert files.THREADS == 8


def test_a_folder_that_another_thread_still_writes_into_is_removed(tmp_path, monkeypatch):
    """As orbax's may, after it has told that a disk is full; any other error, and one that stays, is raised."""
    folder = tmp_path / "part"
    make_own_folder(folder)
    errors = [OSError(errno.ENOTEMPTY, "not empty"), OSError(errno.EACCES, "no permission")]
    remove = shutil.rmtree

    def rmtree(path):
        if errors:
            raise errors.pop(0)
        remove(path)

    monkeypatch.setattr(files.shutil, "rmtree", rmtree)
    monkeypatch.setattr(files, "REMOVE_WAIT_S", 0)
    with pytest.raises(PermissionError):
        remove_own_folder(folder, why="in a test")
    assert folder.exists()
    errors[:] = [OSError(errno.ENOTEMPTY, "not empty")] * 2
    remove_own_folder(folder, why="in a test")
    assert not folder.exists()
    make_own_folder(folder)
    errors[:] = [OSError(errno.ENOTEMPTY, "not empty")] * files.REMOVE_ATTEMPTS
    with pytest.raises(OSError, match="not empty"):
        remove_own_folder(folder, why="in a test")
