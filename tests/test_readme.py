"""What the README points at exists: files, presets, fields, modules."""

import importlib.util
import re
from pathlib import Path

import pytest

from jaxseg.config import all_fields, default

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def found(pattern):
    return sorted(set(re.findall(pattern, TEXT)))


@pytest.mark.parametrize("target", found(r"\]\(((?!https?://|#)[^)]+)\)"))
def test_links_lead_somewhere(target):
    assert (ROOT / target.split("#")[0]).exists()


@pytest.mark.parametrize("path", found(r"(?:scripts|configs|tests|jaxseg)/[\w/]+\.(?:py|sh)"))
def test_files_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", found(r"config\.([a-z_]+(?:\.[a-z_]+)?)\b(?!\.py|\.json|\.field)"))
def test_fields_exist(name):
    fields = all_fields(default())
    assert name in {"field", "py", "json"} or name in fields or any(f.startswith(f"{name}.") for f in fields)


@pytest.mark.parametrize("module", found(r"python -m (jaxseg[\w.]*)"))
def test_modules_exist(module):
    assert importlib.util.find_spec(module)


def test_no_placeholder_is_left():
    assert "@@" not in TEXT
