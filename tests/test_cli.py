"""Commands as functions: flags of one call, help, statuses, and all commands under one name."""

import errno
import importlib
import importlib.util
import os
import subprocess
import sys
import tomllib
import types

import pytest
from absl import flags

from jaxseg import __main__, cli, evaluate, export, main, predict, provenance, report
from jaxseg.config import FIELDS
from jaxseg.data import check
from jaxseg.errors import (
    INTERRUPTED_STATUS,
    HostLostError,
    InputError,
    NonFiniteError,
    ResourceError,
    StoppedError,
)
from tests import ROOT, raw_data

WITH_CONFIG = [main, evaluate, predict, export]
COMMANDS = [*WITH_CONFIG, report, check]


@pytest.fixture(autouse=True)
def unchanged():
    """No command leaves flags or a command line behind."""
    before = set(flags.FLAGS), list(sys.argv)
    yield
    assert (set(flags.FLAGS), list(sys.argv)) == before


def names_of(module):
    return module.__name__.removeprefix("jaxseg.")


# ---- One call


def test_commands_follow_each_other_in_one_process(tmp_path, capsys):
    """Another value, other flags, the same flag again, and a command that failed between them."""
    raw_data.write_camvid(tmp_path / "camvid", train=2, val=1)
    assert check.main(["--dataset=camvid", f"--source_dir={tmp_path / 'camvid'}"]) == 0
    assert report.main(["--html", f"{tmp_path}/nowhere"]) == InputError.status
    assert check.main(["--dataset=camvid", f"--source_dir={tmp_path / 'nowhere'}"]) == InputError.status
    (tmp_path / "camvid/trainannot/train_1.png").unlink()
    assert check.main(["--dataset=camvid", f"--source_dir={tmp_path / 'camvid'}"]) != 0
    assert check.main([]) == InputError.status
    assert "--source_dir is needed" in capsys.readouterr().err


def test_a_config_of_one_call_is_not_the_next_ones(capsys):
    seen = []

    def execute():
        seen.append((flags.FLAGS.config.data.name, flags.FLAGS.config.train.epochs))

    for words in (["--config=configs/unet_voc.py", "--config.train.epochs=3"], ["--config=configs/unet_camvid.py"]):
        assert cli.run(execute, words, usage="", define=cli.define_config_file) == 0
    assert seen == [("voc2012", 3), ("camvid", 200)]


def test_words_that_are_no_flags():
    seen = []
    options = {"usage": "", "define": lambda: flags.DEFINE_bool("loud", False, "")}
    assert (
        cli.run(lambda words: seen.extend([*words, flags.FLAGS.loud]), ["a", "--loud", "b"], **options, words="X") == 0
    )
    assert seen == ["a", "b", True]
    assert cli.run(lambda: None, ["a"], **options) == InputError.status


@pytest.mark.parametrize(
    ("error", "word", "status"),
    [
        (InputError("why"), "error", 2),
        (NonFiniteError("why"), "stopped", 3),
        (ResourceError("why"), "stopped", 4),
        (HostLostError("why"), "stopped", 5),
        (StoppedError("why", 15), "stopped", 143),
    ],
)
def test_expected_errors_are_a_sentence_and_a_status(error, word, status, capsys):
    def execute():
        raise error

    assert cli.run(execute, [], usage="") == status
    assert capsys.readouterr().err == f"{word}: why\n"


def test_interruption_and_crash(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert cli.run(interrupted, [], usage="") == INTERRUPTED_STATUS == 130
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0, [], usage="")


@pytest.mark.parametrize(
    ("error", "at_once"), [("ResourceError", True), ("HostLostError", True), ("InputError", False)]
)
def test_a_process_of_its_own_leaves_at_once_where_libraries_cannot_end(error, at_once):
    program = (
        "import atexit, sys\nfrom jaxseg import cli, errors\natexit.register(print, 'libraries end')\n"
        f"def execute(): raise errors.{error}('why')\nsys.exit(cli.run(execute, usage=''))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ("libraries end" not in done.stdout) == at_once


# ---- Help


@pytest.mark.parametrize("module", COMMANDS, ids=names_of)
def test_help_fits_80_columns_and_says_how_to_list_fields(module, capsys):
    assert module.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert f"python -m {module.__name__}" in said
    assert max(map(len, said.splitlines())) <= 80
    assert ("--help=config" in said) == (module in WITH_CONFIG)


@pytest.mark.parametrize("module", WITH_CONFIG, ids=names_of)
def test_help_lists_the_fields(module, capsys):
    assert module.main(["--help=config"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("--config.") and ":" in line] == [
        f"--config.{path}" for path in FIELDS
    ]


def test_paragraphs_are_filled_and_commands_keep_their_lines():
    text = "short\nlines " + "word " * 30
    assert cli.wrap_paragraph(text).startswith("short lines word")
    assert cli.wrap_paragraph("    a --b\n    c --d") == "    a --b\n    c --d"
    assert cli.wrap(f"  {'x' * 70} {'y' * 70}") == f"  {'x' * 70}\n      {'y' * 70}"


# ---- All commands under one name


def test_the_entry_point_is_the_function():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"jaxseg": f"{__main__.__name__}:{__main__.main.__name__}"}


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_commands_are_listed_a_line_each(words, capsys):
    assert __main__.main(words) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line.startswith("  ")] == list(__main__.COMMANDS)
    assert max(map(len, said.splitlines())) <= 80


def test_an_unknown_command(capsys):
    assert __main__.main(["trian", "--config=x"]) == InputError.status
    said = capsys.readouterr().err
    assert "'trian'" in said
    assert "Did you mean 'train'?" in said


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_every_command_has_a_module_with_main(name, capsys):
    module, _ = __main__.COMMANDS[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there")
    assert __main__.main([name, "--help"]) == 0
    assert f"python -m {module}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        (["/usr/bin/jaxseg", "evaluate", "--workdir=a b"], "jaxseg evaluate '--workdir=a b'"),
        (["/x/jaxseg/__main__.py", "evaluate", "--flip"], "python -m jaxseg evaluate --flip"),
    ],
)
def test_the_command_is_recorded_as_typed(typed, written, monkeypatch):
    recorded = []
    fake = types.SimpleNamespace(main=lambda: recorded.append(provenance.command()) or 3)
    monkeypatch.setitem(sys.modules, "jaxseg.evaluate", fake)
    monkeypatch.setattr(sys, "argv", typed)
    assert __main__.main() == 3
    assert recorded == [written]
    monkeypatch.undo()


def test_a_call_and_a_module_are_recorded_as_typed(monkeypatch):
    recorded = []
    assert cli.run(lambda: recorded.append(provenance.command()), [], usage="") == 0
    assert recorded == [f"python -m {__name__}"]
    for spec, written in (("jaxseg.main", "python -m jaxseg.main --x"), (None, "python x.py --x")):
        fake = types.SimpleNamespace(__spec__=spec and types.SimpleNamespace(name=spec))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "__main__", fake)
            patch.setattr(sys, "argv", ["scripts/x.py", "--x"])
            assert provenance.command() == written


def test_one_process_by_the_short_name():
    done = subprocess.run([sys.executable, "-m", "jaxseg", "check"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == InputError.status
    assert "--source_dir is needed" in done.stderr


# ---- What is light stays light


def test_configs_and_the_command_line_import_no_jax():
    modules = ["config", "config_checks", "cli", "labels", "errors", "files", "__main__"]
    heavy = ("jax", "flax", "optax", "matplotlib")
    program = f"import sys\nfrom jaxseg import {', '.join(modules)}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


# ---- What no closer handler has put into words


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "out/a.png"), 2, "error: out/a.png: Permission denied."),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 999), 2, f"error: {'x' * 300}: File name too long."),
        (OSError(errno.EISDIR, "Is a directory", ".a.part", None, "a.json"), 2, "error: a.json: Is a directory."),
        (OSError("broken data stream"), 2, "error: a file: broken data stream."),
        (OSError(errno.ENOSPC, "No space left on device", "a.npy"), 4, "stopped: a.npy: No space left on device."),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates"), 2, r"error: 'caf\udce9': a name or text"),
    ],
)
def test_errors_of_the_system_are_sentences_with_the_path(capsys, error, status, sentence):
    def execute():
        raise error

    assert cli.guarded(execute, ends_process=False) == status
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_what_a_terminal_cannot_show_is_replaced(environment):
    program = r"from jaxseg import cli; cli.run(lambda: print('256\u00d7128 caf\udce9'), usage='')"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"256\\xd7128 caf\\udce9")


def test_help_of_all_commands_is_shown_in_ascii_too():
    """Its usage has …"""
    done = subprocess.run(
        [sys.executable, "-m", "jaxseg", "--help"], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_a_page_with_a_name_that_is_no_utf_8_is_written(tmp_path):
    report.write_page("<p>caf\udce9 256×128</p>", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "<p>caf\\udce9 256×128</p>"
