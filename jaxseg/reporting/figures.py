"""Figures of studies: training curves, confusion matrices, paired differences.

In: `Study`s. Out: PNG and SVG files, the same bytes for the same runs and matplotlib. Imports no JAX.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

from jaxseg.labels import VOID, Labels

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxseg.reporting.comparison import DATASETS, MODELS, NAMES, Study, class_scores, paired, questions, score

VERDICT_COLORS = {"higher": "#009E73", "lower": "#D55E00", "open": "#777777"}
COLORS = {"unet": "#0072B2", "rmi": "#D55E00", "mutual": "#009E73"}  # Okabe and Ito: told apart by every eye
STYLE = {"svg.hashsalt": "jaxseg", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def draw(studies: list[Study], output: Path) -> list[Path]:
    """Every figure of every study, as PNG and SVG; returns the paths."""
    paths = []
    for study in studies:
        for kind, function in kinds(study).items():
            with matplotlib.rc_context(STYLE):
                figure = function(study)
                for suffix in ("png", "svg"):
                    paths.append(output / f"{study.plan['plan']}_{kind}.{suffix}")
                    figure.savefig(paths[-1], dpi=110, metadata={"Date": None} if suffix == "svg" else None)
                pyplot.close(figure)
    return paths


def kinds(study: Study) -> dict[str, Callable[[Study], Figure]]:
    """Which figures the runs of a study are enough for."""
    found = {"differences": draw_differences} if questions(study) else {}
    return found | ({"curves": draw_curves, "confusion": draw_confusion} if scored(study) else {})


def scored(study: Study) -> list[tuple[str, str]]:
    """Data sets and protocols with a run of the study's models that did not fail."""
    return [s for s in study.model_settings if any(whole(study, *s, model) for model in MODELS)]


def whole(study: Study, dataset: str, protocol: str, model: str) -> list[dict]:
    return [run for run in study.of(dataset, protocol, model).values() if "failed" not in run]


def draw_curves(study: Study) -> Figure:
    """A row per data set: pixel term of training (with RMI binary cross-entropy, else softmax), validation's mean IoU."""
    settings = scored(study)
    size = {"figsize": (7, 2.2 * len(settings) + 0.3), "squeeze": False, "layout": "constrained"}
    figure, axes = pyplot.subplots(len(settings), 2, **size)
    for setting, (left, right) in zip(settings, axes, strict=True):
        name = f"{DATASETS[setting[0]]}, {setting[1]}"
        for model in MODELS:
            runs = whole(study, *setting, model)
            draw_curve(left, [(run["curves"]["train"]["step"], run["curves"]["train"]["pixel"]) for run in runs], model)
            draw_curve(right, [(run["curves"]["val"]["step"], run["curves"]["val"]["mean_iou"]) for run in runs], model)
        left.set(title=f"{name}: pixel term", yscale="log")
        right.set(title=f"{name}: mean IoU", ylim=(0, None))
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles = [Line2D([], [], color=COLORS[model], label=NAMES[model]) for model in MODELS]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_curve(axis: Axes, lines: list[tuple[list, list]], model: str) -> None:
    """Thin lines are seeds, the thick one their mean."""
    for steps, values in lines:
        axis.plot(steps, np.array(values, float), color=COLORS[model], alpha=0.4, linewidth=0.7)
    if len({tuple(steps) for steps, _ in lines}) == 1:
        mean = np.mean([np.array(values, float) for _, values in lines], axis=0)
        axis.plot(lines[0][0], mean, color=COLORS[model], linewidth=1.6)


def draw_confusion(study: Study) -> Figure:
    """A row per data set, a column per model: of every class's pixels, where they went; seeds added up."""
    settings = scored(study)
    size = {"figsize": (3.2 * len(MODELS), 2.9 * len(settings) + 0.3), "squeeze": False, "layout": "constrained"}
    figure, axes = pyplot.subplots(len(settings), len(MODELS), **size)
    for setting, row in zip(settings, axes, strict=True):
        for model, axis in zip(MODELS, row, strict=True):
            if runs := whole(study, *setting, model):
                draw_matrix(axis, runs, title=f"{DATASETS[setting[0]]}, {setting[1]}: {NAMES[model]}")
            else:
                axis.set_axis_off()
    colors = ScalarMappable(Normalize(0, 1), cmap="viridis")
    figure.colorbar(colors, ax=axes, shrink=0.6, label="share of the class's pixels (rows: truth, columns: prediction)")
    return figure


def draw_matrix(axis: Axes, runs: list[dict], *, title: str) -> None:
    total = sum(np.array(run["peers"][run["reported_peer"]]["confusion"], np.int64) for run in runs)
    truth = total.sum(1, keepdims=True)
    axis.imshow(np.where(truth > 0, total / np.maximum(truth, 1), np.nan), vmin=0, vmax=1, cmap="viridis")
    names = list(class_scores(runs[0]))
    axis.set_title(title, fontsize=7)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    axis.set_yticks(range(len(names)), names, fontsize=5)


def draw_differences(study: Study) -> Figure:
    """Every question: mean difference of mean IoU, its interval, and the single pairs as ticks."""
    rows, many = questions(study), len(study.settings) > 1
    figure, axis = pyplot.subplots(figsize=(7, 0.28 * len(rows) + 0.9), layout="constrained")
    for place, (_, dataset, protocol, of, against) in enumerate(rows):
        ours, theirs = study.of(dataset, protocol, of), study.of(dataset, protocol, against)
        difference = paired(ours, theirs, "mean_iou")
        color = VERDICT_COLORS[difference.verdict]
        if difference.count > 1:
            axis.plot([difference.low, difference.high], [place, place], color=color, linewidth=1.4)
        axis.plot(difference.mean, place, "o", color=color, markersize=4)
        pairs = [score(ours[seed], "mean_iou") - score(theirs[seed], "mean_iou") for seed in ours if seed in theirs]
        axis.plot(pairs, [place] * len(pairs), "|", color=color, markersize=6, alpha=0.8)
    labels = [f"{of} - {against}" + (f" ({DATASETS[dataset]})" if many else "") for _, dataset, _, of, against in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_xlabel("difference of mean IoU: mean, 95 % interval, pairs")
    return figure


VOID_COLOR = (255, 255, 255)


def colorize(label: np.ndarray, labels: Labels) -> np.ndarray:
    """Label map uint8 [h, w] -> RGB uint8 [h, w, 3]; void is white."""
    palette = labels.palette
    palette[VOID] = VOID_COLOR
    return palette[label]


def prediction_figure(
    path: Path,
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray] | None,
    predictions: dict[str, Sequence[np.ndarray]],
    labels: Labels,
) -> None:
    """Rows of image, ground truth (where there is one) and each network's prediction, with a legend of what occurs.

    images: n of uint8 [h, w, 3]; truth and predictions: n of uint8 [h, w]. Void is white in the truth; predictions there
    are shown as they are.
    """
    matplotlib.use("agg")
    from matplotlib import patches, pyplot

    maps = ({} if truth is None else {"ground truth": truth}) | predictions
    columns = {"image": images} | {name: [colorize(m, labels) for m in of_name] for name, of_name in maps.items()}
    aspect = max(image.shape[1] / image.shape[0] for image in images)
    rows, width = len(images), 2.2 * aspect * len(columns)
    figure, axes = pyplot.subplots(
        rows, len(columns), figsize=(width, 2.25 * rows + 0.8), squeeze=False, layout="constrained"
    )
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
    used = np.unique(np.concatenate([m.ravel() for of_name in maps.values() for m in of_name]))
    handles = [
        patches.Patch(facecolor=np.array(labels.palette[i]) / 255, edgecolor="gray", label=labels.names[i])
        for i in used
        if i != VOID
    ]
    if VOID in used:
        handles.append(patches.Patch(facecolor="white", edgecolor="gray", label="void (not scored)"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), max(3, int(width / 1.4))),
        fontsize="small",
        frameon=False,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
