"""Files: what is written can be read by whoever keeps to JSON, and locks where there are some."""

import errno
import fcntl
import json

import pytest

from jaxseg.files import file_lock, write_json, write_json_lines


def test_what_is_not_finite_is_written_as_null(tmp_path):
    content = {"a": float("nan"), "b": [1.5, float("-inf"), {"c": (float("inf"), 2)}], "d": "NaN", "e": None, "f": True}
    expected = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None, "f": True}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == expected
    write_json_lines(tmp_path / "x.jsonl", [content, {}])
    first, second = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(first, parse_constant=pytest.fail) == expected
    assert second == "{}"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(tmp_path / "lock", if_held=pytest.fail) as file:
        assert not file.closed
    assert f"{tmp_path / 'lock'}: this file system has no locks (not here)" in capsys.readouterr().err


def test_another_error_of_a_lock_is_raised(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="broken"), file_lock(tmp_path / "lock", if_held=pytest.fail):
        pass
