"""Pages of made-up runs: numbers and pixels known by hand, and what a browser makes of them."""

import base64
import dataclasses
import functools
import io
import json
import operator
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from jaxseg.errors import InputError
from jaxseg.labels import LABELS
from jaxseg.report import load_results, write_page
from jaxseg.reporting.figures import RUN_COLORS, plot_runs
from jaxseg.reporting.html import gallery
from jaxseg.reporting.html.page import results_page, runs_page
from jaxseg.reporting.html.runs import load_runs
from jaxseg.reporting.html.svg import inline_svg
from tests import ROOT
from tests.made_runs import CAMVID, FIRST, MAP, SECOND, WRONG_MAP, classes, write_run
from tests.runs import call
from tests.study_results import run as study_run
from tests.study_results import write_study

EMPTY_TAGS = {"meta", "link", "img", "br", "input", "path", "circle", "use", "image"}


def page(*words, max_examples: int = 60) -> str:
    runs = load_runs([str(word) for word in words])
    return runs_page(runs, gallery.load_gallery(runs, max_examples=max_examples))


def results_html(results: Path) -> str:
    return results_page(*load_results(results))


def table_rows(text: str, label: str) -> list[list[str]]:
    """The cells of one table, without marks except <strong>."""
    table = re.search(rf'aria-label="{label}".*?</table>', text, re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"</?(?!strong)\w+[^>]*>", "", cell).strip() for cell in row] for row in cells]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


class Checker(HTMLParser):
    """Collects ids and what refers to them; fails where a tag is not closed in its place."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.refers = [], [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [v for k, v in attrs if k == "id"]
        self.refers += [v[1:] for k, v in attrs if k in ("href", "xlink:href") and v.startswith("#")]
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY_TAGS:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in EMPTY_TAGS:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def check_document(text: str) -> None:
    """Every tag closed, every id once, every reference to one that is there, and nothing that would be loaded."""
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert set(checker.refers) <= set(checker.ids)
    assert text.startswith("<!DOCTYPE html>")
    assert re.findall(r'\b(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert re.findall(r"url\((?!['\"]?(?:data:|#))(?!\"\$\{photo\})[^)]*\)|@import", text) == []
    assert "http:" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "https:" not in text


def test_scores_side_by_side(first, second):
    text = page(f"Model A={first}", second)
    check_document(text)
    assert table_rows(text, "Scores") == [
        ["", "Model A", "second"],
        ["mean IoU", "0.500", "<strong>0.550</strong>"],
        ["accuracy", "<strong>0.800</strong>", "0.700"],
        ["mean accuracy", "–", "0.600"],  # one alone is not the best of anything
        ["boundary IoU", "–", "0.125"],  # and no row for what neither has
    ]
    assert "2 runs on CamVid" in text
    assert "12 pixels" in text
    assert table_rows(text, "Settings that differ")[1] == ["config.optim.learning_rate", "0.001", "0.5"]
    assert "config.seed" not in [row[0] for row in table_rows(text, "Settings that differ")]
    assert "<dt>commit</dt><dd><code>0123456789abcdef</code></dd>" in text


def test_information_where_it_was_measured(first, tmp_path):
    """Of one run of two: the other was scored before, and has a dash."""
    bits = {"truth": 2.5, "mutual": 1.25, "left": 1.25}
    told = {"unit": "bits", **bits, "by_class": dict.fromkeys(CAMVID, bits)}
    scores = {"information": told, "micro_iou": 0.667, "one_vs_rest_accuracy": 0.96}
    newer = write_run(tmp_path / "newer", SECOND, scores=scores)
    alike = {"information": told | {"truth": 2.5 + 1e-15}}  # by another run's rounding
    assert "H(truth): 2.500 bits" in page(newer, write_run(tmp_path / "alike", SECOND, scores=alike))
    text = page(first, newer)
    check_document(text)
    rows = {row[0]: row[1:] for row in table_rows(text, "Scores")}
    assert rows["I(truth; prediction), bits"] == ["–", "1.250"]
    assert rows["micro IoU"] == ["–", "0.667"]
    assert rows["one-vs-rest accuracy"] == ["–", "0.960"]
    assert "12 pixels. H(truth): 2.500 bits a pixel." in text
    header, sky, *_ = table_rows(text, "Scores per class")
    assert header[-2:] == ["firstinformation (bits)", "newerinformation (bits)"]
    assert sky[-2:] == ["–", "1.250"]
    assert not {"H(truth)", "information (bits)"} & set(re.findall(r"H\(truth\)|information \(bits\)", page(first)))


def test_classes_and_confusion_by_hand(first):
    """8 pixels of sky, 2 of them called road; 4 of road, 3 of them called sky: 5 wrong in all."""
    text = page(first)
    check_document(text)
    rows = table_rows(text, "IoU per class")
    assert rows[1] == ["sky", "67 %", "0.750"]
    assert rows[4] == ["road", "33 %", "0.250"]
    assert rows[2] == ["building", "–", "absent"]
    assert "--v:0.7500" in text
    assert (
        "neither truth nor prediction: building, pole, pavement, tree, sign, fence, car, pedestrian, bicyclist." in text
    )
    matrix = [["truth ↓ prediction →", "sky", "road"], ["sky", "75", "25"], ["road", "75", "25"]]
    assert table_rows(text, "Confusion matrix of first") == matrix
    assert 'title="sky called road: 25.0 % (2 of 8 pixels)"' in text
    assert "Most of the wrong pixels: road called sky (60 %), sky called road (40 %)." in text


def test_error_map_by_hand(first):
    """Void lies at (0, 2), where 0 + 2 is between two lines of the hatching; at (0, 0) there is a line."""
    R, W, V = gallery.RIGHT, gallery.WRONG, gallery.HATCH_GAP
    assert gallery.error_map(MAP, WRONG_MAP).tolist() == [[R, W, V, R], [R, W, R, W]]
    assert gallery.error_map(np.array([[255]]), np.array([[0]])).tolist() == [[gallery.HATCH]]
    example = gallery.load_gallery(load_runs([str(first)]), max_examples=9).examples[0]
    error = np.asarray(decoded(example.errors[0].uri).convert("RGBA"))
    assert error[0, 1].tolist() == [220, 38, 38, 255]
    assert error[0, 2].tolist() == [190, 190, 190, 255]
    assert error[..., 3].tolist() == [[0, 255, 255, 0], [0, 255, 0, 255]]  # what is right shows the photo below
    truth = np.asarray(decoded(example.truth.uri).convert("RGBA"))
    assert truth[0, 1].tolist() == [*LABELS["camvid"].classes[1].color, 255]
    assert truth[0, 2, 3] == 0
    assert (example.truth.width, example.truth.height) == (4, 2)
    assert example.image.uri.endswith(base64.b64encode((first / "evaluation-100/0001_image.jpg").read_bytes()).decode())


def test_which_images_and_in_which_order(first, second):
    """By the first run's mean IoU: b 0.2, a 0.5, c 0.9, and d, which has none."""
    ids = re.findall(r'data-id="([^"]*)"', page(first, second))
    assert ids == ["val/b", "val/a", "val/c", "val/d"]
    assert gallery.choose_examples(10, 4) == [0, 1, 5, 9]  # the two worst; of the other eight the fourth and the last
    assert gallery.choose_examples(10, 5) == [0, 1, 2, 5, 9]
    assert gallery.choose_examples(3, 4) == [0, 1, 2]
    text = page(first, max_examples=2)
    assert re.findall(r'data-id="([^"]*)"', text) == ["val/b", "val/d"]
    assert "2 of 4 images: the 1 worst by the IoU of first, the others evenly spread" in text


def test_images_of_one_run_alone_are_left_out_with_a_count(first, tmp_path):
    other = write_run(tmp_path / "other", {"val/a": (0.1, {}), "val/x": (0.2, {})})
    text = page(first, other)
    assert re.findall(r'data-id="([^"]*)"', text) == ["val/a"]
    assert "4 images that only some of the runs have are left out" in text  # b, c, d; x
    check_document(text)
    for number in (1, 2):
        (first / "evaluation-100" / f"000{number}_image.jpg").unlink()
    assert "2 of 4 images. Of 2 no picture was kept." in page(first)


def test_what_is_written_is_escaped(tmp_path, monkeypatch):
    name, id = 'a<b>&"c', 'val/<i>&"x'
    rows = [dataclasses.replace(row, name=name if row.train_id == 0 else row.name) for row in LABELS["camvid"].rows]
    monkeypatch.setitem(LABELS, "camvid", dataclasses.replace(LABELS["camvid"], rows=tuple(rows)))
    iou = {name if key == "sky" else key: value for key, value in classes(sky=0.5).items()}
    folder = write_run(tmp_path / "run", {id: (0.5, {})}, scores={"iou": iou}, protocol="1 < 2 & 3")
    text = page(f"<b>={folder}")
    check_document(text)
    data = re.search(r'id="gallery-data">(.*?)</script>', text)[1]
    assert name in json.loads(data)["colors"].values()
    assert "<" not in data
    assert name not in text.replace(data, "")
    assert id not in text
    assert "<b>" not in text
    assert all(str(escape(words)) in text for words in (name, id, "<b>", "1 < 2 & 3"))


def test_same_bytes_and_no_needless_ones(first, second):
    text = page(first, second)
    assert text == page(first, second)
    pictures = sum(len(match) for match in re.findall(r"data:image[^\"]*", text))
    assert len(text) < pictures + 120_000
    assert pictures < 30_000  # 24 pictures of eight pixels


def test_without_evaluation_or_logs(tmp_path):
    """results.json, as training writes it, has no images, and a score of every metric of whole data sets."""
    folder = tmp_path / "demo"
    shutil.copytree(ROOT / "results" / "demo", folder)
    text = page(folder)
    check_document(text)
    scores = ["", "mean IoU", "accuracy", "mean accuracy", "frequency-weighted IoU"]
    assert [row[0] for row in table_rows(text, "Scores")] == scores
    assert f"<code>python -m jaxseg.evaluate --workdir={folder}</code>" in text
    assert "no curves" in text


def test_the_highest_step_is_shown(first):
    write_run(first.parent / "later", FIRST, step=1000)
    for path in (first.parent / "later").glob("evaluation*"):
        shutil.move(path, first / path.name)
    old = (first / "evaluation-100.json").stat().st_mtime - 100
    os.utime(first / "evaluation-1000.json", (old, old))
    assert load_runs([str(first)])[0].file == first / "evaluation-1000.json"
    shutil.copy(first / "evaluation-1000.json", first / "evaluation-1000-again.json")  # of the same step: the newest
    assert load_runs([str(first)])[0].file == first / "evaluation-1000-again.json"


def test_a_figure_in_a_page(first):
    """Ids of its own, the page's colors, a title per run, and every run with its last point as a dot."""
    svg = inline_svg(plot_runs([[(0, 0), (10, 1)], [(5, 0.5)]]), name="x", label='a & "b"', titles=["one", "<two>"])
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-label"), root.get("class")) == ("img", 'a & "b"', "plot")
    assert all(element.get("id").startswith("x-") for element in root.iter() if element.get("id"))
    for number, name in enumerate(["one", "<two>"]):
        line = root.find(f".//g[@id='x-run-{number}']")
        assert line.find("title").text == name
        assert f"stroke: var(--run-{number})" in line.find("path").get("style")
        assert len(line.findall(".//use")) == 1
    style = (Path(gallery.__file__).parent / "page.css").read_text()
    assert re.findall(r"--run-\d: (#\w+);", style)[: len(RUN_COLORS)] == list(RUN_COLORS)
    charts = "".join(re.findall(r"<svg.*?</svg>", page(first), re.DOTALL))
    assert charts.count("<svg") == 3
    assert not re.findall(r"#[0-9a-f]{6}\b", charts)


def test_curves_of_two_peers(first, second):
    """The reported peer of each run, whatever its name; norms and rates are no losses."""
    text = page(first, second)
    titles = re.findall(r"<figcaption>((?:training|validation)[^<]*)", text)
    assert [title.strip() for title in titles] == ["validation: mean IoU", "training: loss", "training: pixel"]
    assert "validation: mean IoU, last: first 0.8, second 0.8" in text
    assert "Each point of a long line is the mean of up to 2 successive steps." in text


def break_folder(folder, kind: str) -> str:
    """Damages a run in one way; returns what the message must name."""
    scores, pictures = folder / "evaluation-100.json", folder / "evaluation-100"
    if kind == "no folder":
        shutil.rmtree(folder)
        return f"{folder}: no such folder"
    if kind == "no scores":
        scores.unlink()
        return f"{folder}: holds neither evaluation-STEP.json nor results.json"
    if kind == "no JSON":
        scores.write_text(scores.read_text()[:-20])
        return f"{scores}: cannot be read as JSON"
    if kind == "other JSON":
        scores.write_text('{"peers": {}}')
        return f"{scores}: not the scores of a run"
    if kind == "matrix":
        content = json.loads(scores.read_text())
        content["peers"]["unet"]["confusion"].pop()
        scores.write_text(json.dumps(content))
        return f"{scores}: the confusion matrix is not 11 × 11"
    if kind == "log":
        (folder / "train.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3')
        return f"{folder / 'train.jsonl'}, line 2"
    name = {"photo": "0001_image.jpg", "no prediction": "0001_unet.png"}.get(kind, "0001_truth.png")
    if kind == "no prediction":
        (pictures / name).unlink()
    elif kind == "class number":
        Image.fromarray(np.full((2, 4), 11, np.uint8)).save(pictures / name)
    elif kind == "size":
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(pictures / name)
    else:
        (pictures / name).write_bytes((pictures / name).read_bytes()[:60])
    return f"{pictures / name}: cannot be shown"


DAMAGE = ["no folder", "no scores", "no JSON", "other JSON", "matrix", "log"]
DAMAGE += ["photo", "map", "no prediction", "class number", "size"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_a_sentence_naming_the_file(first, kind):
    named = break_folder(first, kind)
    with pytest.raises(InputError, match=f"^{re.escape(named)}"):
        page(first)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("step", None, "step is None; expected an integer"),
        ("data.train", "4", "data.train is '4'; expected an integer"),
        ("peers.unet.mean_iou", "high", "peers.unet.mean_iou is 'high'; expected a number or null"),
        ("peers.unet.iou.sky", [1], r"peers.unet.iou.sky is \[1\]; expected a number or null"),
        ("peers.unet.confusion.3.1", 0.5, "peers.unet.confusion.3.1 is 0.5; expected an integer"),
        ("peers.unet.images.2", 7, "peers.unet.images.2 is 7; expected an object"),
        ("images.0.id", None, "images.0.id is None; expected a text"),
        ("reported_peer", "teacher", "peers.teacher is missing; expected an object"),
    ],
)
def test_a_field_that_does_not_fit_is_named(first, path, value, says):
    file = first / "evaluation-100.json"
    content = json.loads(file.read_text())
    *sections, field = [int(part) if part.isdecimal() else part for part in path.split(".")]
    section = functools.reduce(operator.getitem, sections, content)
    section[field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"^{file}: not the scores of a run \\({says}\\)"):
        load_runs([str(first)])


def test_a_log_cut_short_by_a_kill_is_read(first):
    with (first / "train.jsonl").open("a") as file:
        file.write('{"step": 801, "unet/lo')
    assert len(load_runs([str(first)])[0].train) == 800


def test_what_cannot_be_compared(first, tmp_path):
    shutil.copytree(ROOT / "results" / "demo", tmp_path / "demo")
    with pytest.raises(InputError, match=r"knows the classes of synthetic, .* those of camvid"):
        page(first, tmp_path / "demo")
    with pytest.raises(InputError, match="is called 'first' too; give NAME=RUN"):
        page(first, first)


def test_runs_scored_otherwise_are_shown_without_a_best_one(first, second):
    file = (
        second / "evaluation-100.json" if (second / "evaluation-100.json").exists() else next(second.glob("eval*.json"))
    )
    content = json.loads(file.read_text())
    for change in ({"protocol": "Windows."}, {"data": content["data"] | {"fingerprint": "beef"}}):
        file.write_text(json.dumps(content | change))
        text = page(first, second)
        assert "other ways: their numbers cannot be compared" in text
        assert table_rows(text, "Scores")[1] == ["mean IoU", "0.500", "0.550"]
    file.write_text(json.dumps(content))
    assert "cannot be compared" not in page(first, second)


def test_a_folder_of_runs_is_no_run(first):
    (first / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no run, but a folder of runs: first. Name those to be shown"):
        page(first.parent)


def command(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    line = [sys.executable, "-m", "jaxseg.report", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_command(first, second, tmp_path):
    done = command("--html", "first", "B=second", "--gallery=1", cwd=tmp_path)
    assert done.stdout.startswith("written: report.html"), done.stderr
    assert (tmp_path / "report.html").read_text().count('class="example"') == 1
    assert not list(tmp_path.rglob("*.part"))
    done = call("jaxseg.report", "first")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'first' is no flag")


def test_a_page_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "page.html", tmp_path):
        with pytest.raises(InputError, match=f"^--output={output}: cannot be written"):
            write_page("", output)


def test_page_of_a_results_folder(tmp_path):
    """Means of (0.41, 0.43), (0.30, 0.32), (0.40, 0.45)."""
    arms = {"unet": (0.41, 0.43), "rmi": (0.30, 0.32), "mutual": (0.40, 0.45)}
    names = {f"cityscapes-text-{arm}-seed{seed}": iou for arm, pair in arms.items() for seed, iou in enumerate(pair)}
    write_study(tmp_path / "results" / "p", {name: study_run(name, iou=iou) for name, iou in names.items()})
    text = results_html(tmp_path / "results")
    check_document(text)
    assert text == results_html(tmp_path / "results")
    assert table_rows(text, "Table")[2][2::2] == ["0.420 ± 0.014", "0.310 ± 0.014", "<strong>0.425</strong> ± 0.035"]
    assert "-0.110 [-0.110, -0.110]" in text
    assert "Commit 0123456789ab;" in text
    assert text.count('class="plot"') == 4  # curves, confusion, differences, information
    assert "#ffffff" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)  # figures follow dark mode
    assert "**" not in re.sub(r"<script>.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)


def test_a_results_page_escapes_what_a_plan_says(tmp_path):
    names = [f"camvid-text-{model}-seed0" for model in ("unet", "rmi")]
    folder = write_study(tmp_path / "p", {name: study_run(name, iou=0.5) for name in names})
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"title": 'A <b>"study"</b>', "note": "1 < 2 <script>"}))
    text = results_html(tmp_path)
    check_document(text)
    assert not re.search(r"<b>|<script>(?!\n//)", text)
    assert text.count("A &lt;b&gt;&#34;study&#34;&lt;/b&gt;: paired differences") == 2  # region and caption
