"""The table in the terminal: of files of today and of before."""

import io
import json

import numpy as np
from rich.console import Console

from jaxseg.metrics import summarize_confusion
from jaxseg.reporting.terminal import mean_rows, print_results
from tests import ROOT


def printed(results: dict) -> str:
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=120))
    return stream.getvalue()


def row(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {title} ")]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_scores_of_before_are_shown_as_they_are():
    """The committed demo was scored before information was measured."""
    results = json.loads((ROOT / "results/demo/results.json").read_text())
    text = printed(results)
    assert row(text, "mean IoU") == [f"{results['peers']['unet']['mean_iou']:.4f}"]
    assert not [word for word in ("I(truth", "H(truth", "micro IoU", "one-vs-rest") if word in text]


def test_one_network_of_two_has_the_newer_scores():
    """Truth of 1 bit: "student" is right in 8 and 8 of 10 pixels, I = 1 - H(0.2) = 0.2781 bits."""
    new = summarize_confusion(np.array([[8, 2], [2, 8]]), ("a", "b"))
    old = {key: new[key] for key in ("mean_iou", "pixel_accuracy", "classes_present", "pixels", "iou", "confusion")}
    results = {
        "reported_peer": "student",
        "step": 3,
        "data": {"name": "own"},
        "peers": {"student": new, "teacher": old},
    }
    text = printed(results)
    assert row(text, "accuracy") == ["0.8000", "0.8000"]
    assert row(text, "micro IoU") == ["0.6667", "-"]
    assert row(text, "one-vs-rest accuracy") == ["0.8000", "-"]
    assert row(text, "I(truth; prediction), bits") == ["0.2781", "-"]
    assert "H(truth) is 1.0000 bits a pixel." in text
    assert mean_rows([old]).keys() == {"mean IoU", "accuracy"}
