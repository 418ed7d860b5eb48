"""`scripts/wheels.py` without a network: what is needed, what is there, what is too old, what is too large."""

import pytest
from packaging.requirements import Requirement

from jaxseg.errors import InputError
from scripts import wheels

REQUIREMENTS = ["numpy>=2", "opencv-python-headless>=5", "grain>=0.2.18,<0.3"]


def test_package_and_tests_are_needed_and_no_more():
    names = {Requirement(line).name for line in wheels.needed_requirements()}
    assert {"flax", "grain", "jax", "pytest", "hypothesis", "beartype"} <= names
    assert not {"ruff", "mypy", "torch", "selenium"} & names


def test_what_is_there_but_too_old():
    there = {"numpy": "2.5.2", "opencv-python-headless": "4.12.0.88", "grain": "", "torch": "2.11.0+cu130"}
    assert wheels.too_old(REQUIREMENTS, there) == {"opencv-python-headless"}
    assert wheels.too_old(REQUIREMENTS, {"grain": "0.3.0"}) == {"grain"}


def test_only_what_lacks_is_downloaded(monkeypatch, tmp_path):
    """pip is asked for what is not there and what is too old; it resolves beside the rest."""
    called = []
    resolved = {
        "numpy": "2.5.2",
        "opencv-python-headless": "5.0.0",
        "grain": "0.2.18",
        "promise": "2.3",
        "absl-py": "2.3.0",
    }

    def resolve(requirements, there, *, python, built):
        called.append((there, python, built))
        return resolved

    monkeypatch.setattr(wheels, "needed_requirements", lambda: REQUIREMENTS)
    monkeypatch.setattr(wheels, "resolve", resolve)
    monkeypatch.setattr(wheels, "pip", lambda *words: called.append(words))
    freeze = tmp_path / "freeze.txt"
    freeze.write_text(
        "numpy==2.5.2\nopencv_python_headless==4.12.0.88\ngrain @ file:///src/grain\ntorch==2.11.0+cu130\n"
    )
    parser_options = type("Options", (), {"have": freeze, "output": tmp_path / "out", "python": "3.12", "limit_mb": 64})
    wheels.main(parser_options)
    assert called[0][-1] == "promise"
    assert called[1] == ({"numpy": "2.5.2", "torch": "2.11.0"}, "3.12", tmp_path / "out")
    assert called[2][-2:] == ("opencv-python-headless==5.0.0", "absl-py==2.3.0")
    assert {called[0][0], called[2][0]} == {"wheel", "download"}


def test_more_than_the_limit_is_refused_and_the_largest_named(tmp_path, capsys):
    for name, kib in (("small", 100), ("large", 700)):
        (tmp_path / f"{name}.whl").write_bytes(bytes(kib * 1024))
    wheels.check_size(tmp_path, limit_mb=1)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0.68", "0.10", "0.78"]
    with pytest.raises(
        InputError, match=r"0\.8 MiB are more than --limit_mb=0\.5; the largest is large\.whl, 0\.7 MiB"
    ):
        wheels.check_size(tmp_path, limit_mb=0.5)


def test_a_folder_with_wheels_is_refused(tmp_path):
    (tmp_path / "old.whl").touch()
    with pytest.raises(InputError, match="is not empty"):
        wheels.main(type("Options", (), {"output": tmp_path}))
