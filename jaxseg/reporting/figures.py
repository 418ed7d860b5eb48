"""Everything that is drawn: figures of studies, curves of single runs, pictures beside their predictions.

In: `Study`s, points of curves, or label maps. Out: matplotlib figures, and PNG and SVG files of them, the same bytes for
the same input and matplotlib. Imports no JAX.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

from jaxseg.labels import VOID, WHITE, Labels, dataset_title
from jaxseg.reporting.comparison import (
    MODEL_NAMES,
    MODELS,
    Study,
    bits,
    class_ious,
    pair_differences,
    paired_difference,
    score,
)

# Okabe and Ito's colors, told apart by every eye, some darker; a page in the dark has lighter ones (html/page.css).
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#b4558f", "#c98a00", "#3d9bd1", "#7a5c3e", "#6b7075")
MODEL_COLORS = dict(zip(MODELS, RUN_COLORS, strict=False))
ARM_MARKERS = ("o", "s", "^", "D")  # one after the other where an arm's color has come before
VERDICT_COLORS = {"higher": "#009e73", "lower": "#d55e00", "open": "#777777"}
STYLE = {"svg.hashsalt": "jaxseg", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
GRID_COLOR = (0, 0, 0, 0.16)
DPI = 110
MAX_POINTS = 400  # of a run's line: about one per unit of the chart's width
LOG_RATIO = 30  # a loss that falls by more than this factor is drawn on a logarithmic axis

Points = Sequence[tuple[float, float]]
Color = tuple[int, int, int]  # RGB


# ---- Studies


def save_study_figures(studies: list[Study], output: Path) -> list[Path]:
    """Every figure of every study, as PNG and SVG into the folder `output`; returns the paths."""
    paths = []
    for study in studies:
        for name, figure in study_figures(study).items():
            paths += [output / f"{name}.png", output / f"{name}.svg"]
            with matplotlib.rc_context(STYLE):
                figure.savefig(paths[-2], dpi=DPI)
            paths[-1].write_text(to_svg(figure), encoding="utf-8", errors="backslashreplace")
    return paths


def to_svg(figure: Figure, *, fonttype: str = "path") -> str:
    """fonttype: "path" draws every letter, "none" writes text in the reader's fonts."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": fonttype}):
        figure.savefig(stream, format="svg", dpi=DPI, metadata={"Date": None})
    return stream.getvalue()


def study_figures(study: Study) -> dict[str, Figure]:
    """PLAN_KIND -> figure, of the kinds that the study's runs are enough for."""
    kinds = {"differences": plot_differences} if study.questions else {}
    if study.settings_with_runs:
        kinds["information"] = plot_information
    if study.finished_settings:
        kinds |= {"curves": plot_curves, "confusion": plot_confusions}
    with matplotlib.rc_context(STYLE):
        return {f"{study.plan['plan']}_{kind}": plot(study) for kind, plot in kinds.items()}


def plot_curves(study: Study) -> Figure:
    """A row per data set: pixel term of training (with RMI binary cross-entropy, else softmax), validation's mean IoU."""
    settings = study.finished_settings
    figure = Figure(figsize=(7, 2.2 * len(settings) + 0.3), layout="constrained")
    axes = figure.subplots(len(settings), 2, squeeze=False)
    for setting, (left, right) in zip(settings, axes, strict=True):
        for model in MODELS:
            curves = [run["curves"] for run in study.finished_runs(*setting, model)]
            plot_seeds(left, [(c["train"]["step"], c["train"]["pixel"]) for c in curves], MODEL_COLORS[model])
            plot_seeds(right, [(c["val"]["step"], c["val"]["mean_iou"]) for c in curves], MODEL_COLORS[model])
        left.set(title=f"{_name(setting)}: pixel term", yscale="log")
        right.set(title=f"{_name(setting)}: mean IoU", ylim=(0, None))
    for axis in axes[-1]:
        axis.set_xlabel("step")
    models = models_run(study, settings)
    handles = [Line2D([], [], color=MODEL_COLORS[model], label=MODEL_NAMES[model]) for model in models]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def models_run(study: Study, settings: list[tuple[str, str]]) -> list[str]:
    """Those of `MODELS` of which a run is finished."""
    return [model for model in MODELS if any(study.finished_runs(*setting, model) for setting in settings)]


def _name(setting: tuple[str, str]) -> str:
    return f"{dataset_title(setting[0])}, {setting[1]}"


def plot_seeds(axis: Axes, lines: list[tuple[list, list]], color: str) -> None:
    """Thin lines are seeds, the thick one their mean."""
    for steps, values in lines:
        axis.plot(steps, np.array(values, float), color=color, alpha=0.4, linewidth=0.7)
    if len({tuple(steps) for steps, _ in lines}) == 1:
        mean = np.mean([np.array(values, float) for _, values in lines], axis=0)
        axis.plot(lines[0][0], mean, color=color, linewidth=1.6)


def plot_confusions(study: Study) -> Figure:
    """A row per data set, a column per model: of every class's pixels, where they went; seeds added up."""
    settings = study.finished_settings
    models = models_run(study, settings)
    figure = Figure(figsize=(3.2 * len(models), 2.9 * len(settings) + 0.3), layout="constrained")
    axes = figure.subplots(len(settings), len(models), squeeze=False)
    for setting, row in zip(settings, axes, strict=True):
        for model, axis in zip(models, row, strict=True):
            if runs := study.finished_runs(*setting, model):
                plot_confusion(axis, runs)
                axis.set_title(f"{_name(setting)}: {MODEL_NAMES[model]}", fontsize=7)
            else:
                axis.set_axis_off()
    colors = ScalarMappable(Normalize(0, 1), cmap="viridis")
    bar = figure.colorbar(colors, ax=axes, shrink=0.6)
    bar.set_label("share of the class's pixels\n(rows: truth, columns: prediction)", fontsize=7)
    return figure


def plot_confusion(axis: Axes, runs: list[dict]) -> None:
    confusion = sum(np.array(run["peers"][run["reported_peer"]]["confusion"], np.int64) for run in runs)
    truth = confusion.sum(1, keepdims=True)
    axis.imshow(np.where(truth > 0, confusion / np.maximum(truth, 1), np.nan), vmin=0, vmax=1, cmap="viridis")
    names = list(class_ious(runs[0]))
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    axis.set_yticks(range(len(names)), names, fontsize=5)


def plot_differences(study: Study) -> Figure:
    """Every question: mean difference of mean IoU, its interval, and the single pairs as ticks."""
    questions = study.questions
    figure = Figure(figsize=(7, 0.28 * len(questions) + 0.9), layout="constrained")
    axis = figure.subplots()
    labels = []
    for place, question in enumerate(questions):
        runs = study.runs_compared(question)
        difference = paired_difference(*runs, "mean_iou")
        color = VERDICT_COLORS[difference.verdict]
        if difference.count > 1:
            axis.plot([difference.low, difference.high], [place, place], color=color, linewidth=1.4)
        axis.plot(difference.mean, place, "o", color=color, markersize=4)
        pairs = pair_differences(*runs, "mean_iou")
        axis.plot(pairs, [place] * len(pairs), "|", color=color, markersize=6, alpha=0.8)
        where = f" ({_name((question.dataset, question.protocol))})" if len(study.settings) > 1 else ""
        labels.append(f"{question.of} - {question.against}{where}")
    axis.set_yticks(range(len(questions)), labels)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_xlabel("difference of mean IoU: mean, 95 % interval, pairs")
    return figure


def plot_information(study: Study) -> Figure:
    """A panel per data set, a point per run: mean IoU over the share of the truth's information that predictions tell."""
    settings = study.settings_with_runs
    arms = list(dict.fromkeys(arm for setting in settings for arm in study.arms_run(*setting)))
    styles = {arm: arm_style(place) for place, arm in enumerate(dict.fromkeys([*MODELS, *arms]))}
    columns = min(3, len(settings))
    rows = math.ceil(len(settings) / columns)
    legend_beside = columns == 1 or len(arms) > len(MODELS)
    width = (2.3 * columns if columns > 1 else 3.2) + (2.1 if legend_beside else 0)
    height = max(2.5 * rows + 0.4, 0.2 * len(arms) + 0.6 if legend_beside else 0)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for setting, axis in zip(settings, panels, strict=False):
        for arm in study.arms_run(*setting):
            points = [(bits(run).share, score(run, "mean_iou")) for run in study.finished_runs(*setting, arm)]
            axis.plot(*zip(*points, strict=True), **styles[arm], markersize=4.5, alpha=0.8)
        axis.set(title=_name(setting), xlabel="I(T; P) / H(T)", ylabel="mean IoU")
    for axis in panels[len(settings) :]:
        axis.set_axis_off()
    handles = [Line2D([], [], **styles[arm], label=MODEL_NAMES.get(arm, arm)) for arm in arms]
    where = "outside right center" if legend_beside else "outside lower center"
    figure.legend(handles=handles, loc=where, ncols=1 if legend_beside else len(arms), frameon=False)
    return figure


def arm_style(place: int) -> dict[str, str]:
    """Color and marker, different for each of 32 places."""
    marker = ARM_MARKERS[place // len(RUN_COLORS) % len(ARM_MARKERS)]
    return {"color": RUN_COLORS[place % len(RUN_COLORS)], "marker": marker, "linestyle": "none"}


# ---- Single runs


def plot_runs(lines: Sequence[Points], *, log: bool = False) -> Figure:
    """One line per run over the steps, with a dot at its end; a single point is the dot alone.

    Args:
      lines: a run's (step, value) each, thinned where they are many; a run without points keeps its color.
      log: whether the values are drawn on a logarithmic axis.

    Returns:
      A figure of 4 × 2.4 inches; the line of the run number i has the gid "run-i".
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4, 2.4))
        axis = figure.add_axes((0.12, 0.17, 0.86, 0.79))
        for index, points in enumerate(lines):
            if points:
                dashes = "--" if index >= len(RUN_COLORS) else "-"
                options = {"color": RUN_COLORS[index % len(RUN_COLORS)], "linestyle": dashes, "linewidth": 1.3}
                axis.plot(*zip(*thin(points), strict=True), **options, marker=".", markevery=[-1], gid=f"run-{index}")
        axis.set_xlim(left=0)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=(1, 2, 5, 10), integer=True))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 12k
        axis.spines["bottom"].set_color(GRID_COLOR)
        axis.tick_params(axis="x", color=GRID_COLOR)
        style_value_axis(axis, log=log)
    return figure


def style_value_axis(axis: Axes, *, log: bool) -> None:
    """Horizontal lines instead of a spine, and numbers without needless zeros; from 0 where no value is negative."""
    if log:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 1e4 else (1, 2, 5)))
        axis.minorticks_off()
    else:
        axis.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 5, 10)))
        values = np.concatenate([line.get_ydata() for line in axis.lines])
        if values.min() >= 0:
            axis.set_ylim(0, 1.05 * values.max() or 1)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(axis="y", color=GRID_COLOR)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)


def thin(points: Points) -> list[tuple[float, float]]:
    """At most MAX_POINTS, each the mean of as many successive points: thinned and smoothed at once.

    >>> thin([(1, 2.0), (2, 4.0)])
    [(1.0, 2.0), (2.0, 4.0)]
    """
    size = points_per_mean(points)
    return [tuple(np.mean(points[i : i + size], axis=0).tolist()) for i in range(0, len(points), size)]


def points_per_mean(points: Points) -> int:
    return max(1, math.ceil(len(points) / MAX_POINTS))


def needs_log_axis(lines: Sequence[Points]) -> bool:
    """Whether the values drawn are positive and span more than LOG_RATIO."""
    values = [value for points in lines for _, value in thin(points)]
    return min(values) > 0 and max(values) > LOG_RATIO * min(values)


# ---- Pictures


def colorize(label: np.ndarray, labels: Labels, *, void: Color) -> np.ndarray:
    """Label map uint8 [h, w] -> RGB uint8 [h, w, 3]; void: its color."""
    palette = labels.palette
    palette[VOID] = void
    return palette[label]


def prediction_figure(
    path: Path,
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray] | None,
    predictions: dict[str, Sequence[np.ndarray]],
    labels: Labels,
) -> None:
    """Rows of image, ground truth (where there is one) and each network's prediction, with a legend of what occurs.

    Args:
      path: the PNG to write.
      images: n of uint8 [h, w, 3].
      truth: n of uint8 [h, w], void in the data set's own color; None where it is not known.
      predictions: network -> n of uint8 [h, w], shown as they are where the truth is void.
      labels: names and colors of the classes.
    """
    maps = ({} if truth is None else {"ground truth": truth}) | predictions
    void = labels.void_color
    pictures = {name: [colorize(m, labels, void=void) for m in of_name] for name, of_name in maps.items()}
    used = np.unique(np.concatenate([m.ravel() for of_name in maps.values() for m in of_name]))
    save_pictures(path, {"image": images} | pictures, legend_handles(used, labels, void=void))


def augmentation_figure(
    path: Path,
    prepared: Sequence[tuple[np.ndarray, np.ndarray]],
    augmented: Sequence[tuple[np.ndarray, np.ndarray]],
    labels: Labels,
) -> None:
    """Rows of a prepared image and what a step of training gets of it, each alone and with its label map over it.

    Args:
      path: the PNG to write.
      prepared: n pairs of uint8 [h, w, 3] and uint8 [h, w].
      augmented: n of them, in the same order.
      labels: names and colors of the classes.
    """
    columns = {}
    for title, pairs in (("image", prepared), ("augmented", augmented)):
        columns[title] = [image for image, _ in pairs]
        columns[f"{title} and mask"] = [overlay(image, label, labels) for image, label in pairs]
    used = np.unique(np.concatenate([label.ravel() for _, label in [*prepared, *augmented]]))
    save_pictures(path, columns, legend_handles(used, labels, void=WHITE))


def overlay(image: np.ndarray, label: np.ndarray, labels: Labels) -> np.ndarray:
    """Image uint8 [h, w, 3] under the colors of its label map uint8 [h, w], half of each; void is whitened."""
    return ((image.astype(np.uint16) + colorize(label, labels, void=WHITE)) // 2).astype(np.uint8)


def save_pictures(path: Path, columns: dict[str, Sequence[np.ndarray]], handles: list[Patch]) -> None:
    """A PNG with a column of pictures, uint8 [h, w, 3], below each title, and a legend of `handles`."""
    rows = len(next(iter(columns.values())))
    aspects = [max(picture.shape[1] / picture.shape[0] for picture in pictures) for pictures in columns.values()]
    width = 2.2 * sum(aspects)
    figure = Figure(figsize=(width, 2.25 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False, width_ratios=aspects)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for axis, picture in zip(axes[:, column], pictures, strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), max(3, int(width / 1.4))),
        fontsize="small",
        frameon=False,
    )
    figure.savefig(path, dpi=DPI)


def legend_handles(used: np.ndarray, labels: Labels, *, void: Color) -> list[Patch]:
    """A patch for each train id of `used`, void last, in the color `void`."""
    classes = [row for row in labels.classes if row.train_id in used]
    handles = [Patch(facecolor=np.array(row.color) / 255, edgecolor="gray", label=row.name) for row in classes]
    if VOID in used:
        handles.append(Patch(facecolor=np.array(void) / 255, edgecolor="gray", label="void (not scored)"))
    return handles
