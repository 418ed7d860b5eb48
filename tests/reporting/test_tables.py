"""Tables by hand from made-up runs; and the committed report, made again from the committed JSON."""

import csv
import io
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jaxseg.errors import InputError
from jaxseg.report import load_results, write_report
from jaxseg.reporting.tables import write_tables
from tests import ROOT
from tests.runs import call
from tests.study_results import run, write_study

COMMITTED = ROOT / "results" / "report"
SCORES = {"unet": (0.41, 0.43), "rmi": (0.30, 0.32), "mutual": (0.40, 0.45)}


@pytest.fixture
def results(tmp_path):
    runs = {}
    for arm, values in SCORES.items():
        for seed, value in enumerate(values):
            name = f"cityscapes-text-{arm}-seed{seed}"
            runs[name] = run(
                name, iou=value, accuracy=0.8 + value / 10, reported="student" if arm == "mutual" else "unet"
            )
    write_study(tmp_path / "results" / "p", runs, planned=("voc2012-text-unet-seed0",))
    return tmp_path / "results"


def make_tables(results: Path) -> Path:
    """The folder with the tables alone; figures take longer."""
    folder = results.parent / "out"
    folder.mkdir()
    write_tables(*load_results(results), folder)
    return folder


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_table_1_by_hand(results):
    """Means 0.42, 0.31, 0.425; standard deviations |difference| / √2."""
    out = make_tables(results)
    text = (out / "report.md").read_text()
    ours = (
        "| Cityscapes | here, text | 0.420 ± 0.014 | 0.842 ± 0.001 | 0.310 ± 0.014 | 0.831 ± 0.001 "
        "| **0.425** ± 0.035 | **0.843** ± 0.004 |"
    )
    assert ours in text
    paper = "| Cityscapes | the paper | **0.5931** | **0.9388** | 0.5244 | 0.9345 | 0.5619 | 0.9342 |"
    assert text.index(paper) < text.index(ours)
    assert "| PASCAL VOC 2012 | here, text | | | | | | |" in text.replace("  ", " ")  # not run: empty
    assert "6 of 7 runs done" in text
    assert "3.0 hours" in text
    table = rows(out / "table1.csv")
    mutual = next(r for r in table if r["source"] == "p" and r["dataset"] == "cityscapes" and r["model"] == "mutual")
    assert (mutual["iou"], mutual["iou_sd"], mutual["runs"]) == ("0.425000", "0.035355", "2")
    empty = next(r for r in table if r["source"] == "p" and r["dataset"] == "voc2012" and r["model"] == "unet")
    assert (empty["iou"], empty["runs"]) == ("", "0")


def test_protocols_are_rows_side_by_side(results):
    """Each by its own runs; of the one that was not run, an empty row."""
    runs = {}
    for protocol, iou in (("text", 0.2), ("report", 0.3)):
        for arm in SCORES:
            name = f"voc2012-{protocol}-{arm}-seed0"
            runs[name] = run(name, iou=iou + (arm == "mutual") / 10)
    write_study(results / "protocols", runs, planned=("voc2012-released-unet-seed0",))
    text = (make_tables(results) / "report.md").read_text().partition("Plan `protocols`")[2]
    paper = "| PASCAL VOC 2012 | the paper | 0.1965 | 0.7367 | 0.0607 | 0.6893 | **0.2203** | **0.7539** |\n"
    assert re.sub(r" +", " ", text.partition(paper)[2]).splitlines()[:4] == [
        "| PASCAL VOC 2012 | here, text | 0.200 | **0.900** | 0.200 | 0.900 | **0.300** | 0.900 |",
        "| PASCAL VOC 2012 | here, report | 0.300 | **0.900** | 0.300 | 0.900 | **0.400** | 0.900 |",
        "| PASCAL VOC 2012 | here, released | | | | | | |",
        "",
    ]
    table = rows(results.parent / "out" / "table1.csv")
    ious = {(r["source"], r["protocol"]): r["iou"] for r in table if r["dataset"] == "voc2012" and r["model"] == "rmi"}
    found = [ious["protocols", protocol] for protocol in ("text", "report", "released")]
    assert found == ["0.200000", "0.300000", ""]


def test_differences_and_classes_by_hand(results):
    """Pairs rmi - unet: -0.11 twice, so an interval of no width; mutual - unet: -0.01, +0.02, far too few to tell."""
    out = make_tables(results)
    text = (out / "report.md").read_text()
    assert "| rmi | unet | 2 | -0.110 [-0.110, -0.110] | -0.011 [-0.011, -0.011] | **lower** |" in text
    assert "| mutual | unet | 2 | +0.005 [-0.186, +0.196] |" in text  # 0.005 ± 12.706 · 0.015
    assert "| sky | 0.520 ± 0.014 | 0.410 ± 0.014 | 0.525 ± 0.035 |" in text
    assert "| pole | - | - | - |" in text
    pair = next(r for r in rows(out / "differences.csv") if r["of"] == "mutual" and r["metric"] == "mean_iou")
    assert (pair["difference"], pair["low"], pair["high"]) == ("0.005000", "-0.185593", "0.195593")


def test_information_by_hand(results):
    """10 pixels of each of two classes, H = 1 bit: 8 and 9 of them right, and in one run all."""
    name = "cityscapes-text-unet-seed1"
    other = run(name, iou=0.43)
    other["peers"]["unet"]["confusion"] = [[10, 0, 0], [0, 10, 0], [0, 0, 0]]
    (results / "p" / f"{name}.json").write_text(json.dumps(other))
    p = np.array([[0.4, 0.1], [0.05, 0.45]])
    told = (p * np.log2(p / (0.5 * np.array([0.45, 0.55])))).sum()  # 0.397 bits; and of the other run the whole bit
    half = abs(1 - told) / np.sqrt(2)
    out = make_tables(results)
    text = (out / "report.md").read_text()
    mean = (1 + told) / 2
    assert f"| Cityscapes | text | unet | 1.000 | {mean:.3f} ± {half:.3f} | {mean:.3f} ± {half:.3f} |" in text
    assert f"| Cityscapes | text | rmi | 1.000 | {told:.3f} ± 0.000 | {told:.3f} ± 0.000 |" in text
    assert "(p_information.png)" in text
    # the one run that stands out in information is the second best of six by IoU
    expected = stats.spearmanr([0.41, 0.43, 0.30, 0.32, 0.40, 0.45], [0, 1, 0, 0, 0, 0]).statistic
    assert f"of IoU and I / H: Cityscapes, text {expected:.2f} (6 runs)." in text
    written = {(r["arm"], r["seed"]): (r["truth_bits"], r["mutual_bits"]) for r in rows(out / "runs.csv")}
    assert written["unet", "0"] == ("1.000000", f"{told:.6f}")
    assert written["unet", "1"] == ("1.000000", "1.000000")


def test_latex_is_escaped_and_whole(results):
    out = make_tables(results)
    text = (out / "table1.tex").read_text()
    assert r"\textbf{0.425} $\pm$ 0.035" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert {line.count("&") for line in body.splitlines()[1:]} == {7}  # eight columns in every row
    assert "**" not in text


def test_a_run_that_failed_is_told(results):
    name = "cityscapes-text-rmi-seed1"
    content = {"study": run(name, iou=0)["study"], "failed": "unet/rmi became nan at step 7", "peers": {}}
    (results / "p" / f"{name}.json").write_text(json.dumps(content))
    out = make_tables(results)
    text = (out / "report.md").read_text()
    assert f"- `{name}`: unet/rmi became nan at step 7" in text
    assert "| 0.300 | 0.830 |" in text  # the other seed's score, without a spread


def test_figures_are_there_and_the_same_twice(results, tmp_path):
    first, second = (write_report(results, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    pictures = {path.name for path in first if path.suffix == ".png"}
    assert pictures == {"p_curves.png", "p_confusion.png", "p_differences.png", "p_information.png"}
    linked = (tmp_path / "a" / "report.md").read_text()
    assert all(f"({name})" in linked for name in pictures)


def test_an_output_that_cannot_be_written_is_named(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^--output={tmp_path / 'file' / 'out'}: cannot be written"):
        write_report(results, tmp_path / "file" / "out")


def test_nothing_to_report_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="holds no study"):
        write_report(tmp_path, tmp_path / "out")
    done = call("jaxseg.report", f"--results={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --results={tmp_path}: holds no study")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def rounded(svg: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}", svg)


def test_the_committed_report_comes_from_the_committed_json(tmp_path):
    made = {path.name: path for path in write_report(ROOT / "results", tmp_path)}
    kept = {path.name: path for path in COMMITTED.iterdir() if path.suffix != ".html"}  # --html writes one there
    assert made.keys() == kept.keys()
    with Image.open(COMMITTED / "cpu_curves.png") as picture:
        version = picture.info["Software"]
    drawn_alike = f"version{matplotlib.__version__}," in version
    for name, path in made.items():
        if path.suffix == ".png" and drawn_alike:  # a last digit of log10, by processor, may move an edge
            one, other = pixels(path), pixels(kept[name])
            assert one.shape == other.shape
            assert (one != other).any(-1).mean() < 1e-3, name
        elif path.suffix == ".svg" and drawn_alike:
            assert rounded(path.read_text()) == rounded(kept[name].read_text()), name
        elif path.suffix not in (".png", ".svg"):
            assert path.read_text() == kept[name].read_text(), name
    if not drawn_alike:
        pytest.skip(f"texts are the same; figures were drawn by {version}, this is {matplotlib.__version__}")
