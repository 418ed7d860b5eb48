"""Lines and axes of figures, by hand."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.information import share_told
from jaxseg.labels import CITYSCAPES, VOC2012, VOID
from jaxseg.reporting.comparison import Study
from jaxseg.reporting.figures import (
    RUN_COLORS,
    needs_log_axis,
    plot_confusions,
    plot_curves,
    plot_differences,
    plot_information,
    plot_runs,
    prediction_figure,
    thin,
)
from tests.study_results import run


def test_lines_of_runs_by_hand():
    """A long line in means of three, a run without points that keeps its color, a single point."""
    points = [(step, step % 2) for step in range(801)]
    figure = plot_runs([points, [], [(5, 0.5)]])
    (axis,) = figure.axes
    line, single = axis.lines
    assert line.get_xydata().tolist() == [list(point) for point in thin(points)]
    assert len(line.get_xdata()) == 267
    assert line.get_xydata()[:2].tolist() == [[1, pytest.approx(1 / 3)], [4, pytest.approx(2 / 3)]]
    assert single.get_xydata().tolist() == [[5, 0.5]]
    assert [line.get_color(), single.get_color()] == [RUN_COLORS[0], RUN_COLORS[2]]
    assert (axis.get_xlim()[0], axis.get_ylim()[0], axis.get_yscale()) == (0, 0, "linear")
    assert plot_runs([[(1, -24.0), (2, -13.0)]]).axes[0].get_ylim()[0] < -24
    (few,) = plot_runs([[(1, 0.0), (4, 0.0)]]).axes
    assert few.get_ylim() == (0, 1)
    assert few.get_xticks().tolist() == [0, 1, 2, 3, 4, 5]
    nine = plot_runs([[(1, 1.0), (2, 2.0)]] * 9).axes[0].lines
    assert [(line.get_color(), line.get_linestyle()) for line in (nine[0], nine[8])] == [
        (RUN_COLORS[0], "-"), (RUN_COLORS[0], "--"),
    ]  # fmt: skip


def test_ticks_of_a_logarithmic_axis():
    def labels(low, high):
        axis = plot_runs([[(0, high), (12_000, low)]], log=True).axes[0]
        axis.figure.draw_without_rendering()
        assert axis.get_xticklabels()[-2].get_text() == "12k"
        low, high = axis.get_ylim()
        return [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]

    assert labels(0.3, 12) == ["0.5", "1", "2", "5", "10"]
    assert labels(1e-5, 5) == ["1e−05", "0.0001", "0.001", "0.01", "0.1", "1"]
    assert needs_log_axis([[(1, 31.0), (2, 1.0)]])
    assert not needs_log_axis([[(1, 31.0), (2, 1.1)]])
    assert not needs_log_axis([[(1, 31.0), (2, -1.0)]])


def test_confusions_and_curves_show_the_models_that_are_run():
    """Two of three: two panels and their bar's, in shares of the rows 8 + 2 and 1 + 9; two lines in the legend."""
    names = ["camvid-text-unet-seed0", "camvid-text-rmi-seed0"]
    runs = {name: run(name, iou=0.1) for name in names}
    study = Study({"plan": "p", "questions": [], "runs": [one["study"] for one in runs.values()]}, runs)
    *panels, _bar = plot_confusions(study).axes
    assert [panel.get_title() for panel in panels] == ["CamVid, text: U-Net", "CamVid, text: U-Net with RMI"]
    assert panels[1].images[0].get_array()[:2].tolist() == [[0.8, 0.2, 0], [0.1, 0.9, 0]]
    (legend,) = plot_curves(study).legends
    assert [text.get_text() for text in legend.get_texts()] == ["U-Net", "U-Net with RMI"]


def test_differences_name_data_set_and_protocol():
    """Where a plan has several of them: the same two arms differ by each."""
    names = [f"camvid-{protocol}-{arm}-seed0" for protocol in ("text", "report") for arm in ("unet", "rmi")]
    runs = {name: run(name, iou=0.1) for name in names}
    asked = [{"ask": "?", "of": "rmi", "against": "unet"}]
    figure = plot_differences(
        Study({"plan": "p", "questions": asked, "runs": [r["study"] for r in runs.values()]}, runs)
    )
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(labels) == ["rmi - unet (CamVid, report)", "rmi - unet (CamVid, text)"]


def test_information_figure_by_hand():
    """A panel per data set with runs, IoU over I / H; arms of one color have other markers; failed runs are left out."""
    names = [f"camvid-text-{arm}-seed0" for arm in ("unet", "z", *(f"arm{i}" for i in range(7)))]
    runs = {name: run(name, iou=0.1 * place) for place, name in enumerate(names)}
    runs["camvid-text-z-seed0"]["peers"]["unet"]["confusion"] = [[5, 0, 0], [0, 15, 0], [0, 0, 0]]
    failed = "voc2012-text-unet-seed0"
    runs[failed] = {"study": run(failed, iou=0)["study"], "failed": "nan"}
    study = Study({"plan": "p", "questions": [], "runs": [one["study"] for one in runs.values()]}, runs)
    figure = plot_information(study)
    (axis,) = figure.axes
    points = [line.get_xydata()[0].tolist() for line in axis.lines]
    usual = share_told(np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]))
    assert points == [[pytest.approx(1 if i == 1 else usual, rel=1e-12), pytest.approx(0.1 * i)] for i in range(9)]
    looks = [(line.get_color(), line.get_marker()) for line in axis.lines]
    assert len(set(looks)) == 9
    assert looks[0] == (RUN_COLORS[0], "o")
    assert looks[1] == (RUN_COLORS[3], "o")  # after the study's three models, which keep their colors
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["U-Net", "z", *(f"arm{i}" for i in range(7))]


@pytest.mark.parametrize(("labels", "void"), [(VOC2012, (224, 224, 192)), (CITYSCAPES, (0, 0, 0))])
def test_void_is_drawn_in_the_data_sets_color(labels, void, tmp_path):
    """Half of the truth is void; the prediction there keeps its class's color. The colors are those of pixels drawn."""
    truth = np.full((40, 40), 1, np.uint8)
    truth[:, 20:] = VOID
    gray = np.full((40, 40, 3), 77, np.uint8)
    prediction_figure(tmp_path / "figure.png", [gray], [truth], {"net": [np.full((40, 40), 1, np.uint8)]}, labels)
    with Image.open(tmp_path / "figure.png") as picture:
        drawn = np.asarray(picture.convert("RGB"))
    row = drawn[drawn.shape[0] // 3]
    shares = {color: (row == color).all(-1).sum() for color in (void, tuple(labels.classes[1].color), (77, 77, 77))}
    image = shares[77, 77, 77]
    assert image > 100
    assert shares[void] == pytest.approx(image / 2, abs=2)
    assert shares[tuple(labels.classes[1].color)] == pytest.approx(1.5 * image, abs=3)
