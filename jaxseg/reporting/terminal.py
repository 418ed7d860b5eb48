"""What a person sees of results: the table in the terminal and the figure of image, truth and prediction.

In: results as written to JSON, and a few uint8 images with their label maps. Out: text on the console, a PNG. Imports
no JAX: results can be looked at anywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxseg.labels import VOID, Labels

VOID_COLOUR = (255, 255, 255)
MEANS = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "boundary_iou": "boundary IoU",
}


def print_results(results: dict, console: Console | None = None) -> None:
    """IoU per class and the means, a column per peer; an absent class is a dash."""
    console = console or Console()
    at_step = "" if results["step"] is None else f" at step {results['step']:,}"
    console.print(f"IoU on {results['data']['name']} (validation){at_step}", style="italic", highlight=False)
    table = Table()
    table.add_column("class")
    peers = results["peers"]
    for name in peers:
        table.add_column(
            name + (" (reported)" if len(peers) > 1 and name == results["reported_peer"] else ""), justify="right"
        )
    for label in results["peers"][results["reported_peer"]]["iou"]:
        values = [peer["iou"][label] for peer in peers.values()]
        table.add_row(label, *("-" if value is None else f"{value:.4f}" for value in values))
    table.add_section()
    for key, title in MEANS.items():
        if not any(key in peer for peer in peers.values()):
            continue
        values = [peer[key] for peer in peers.values()]
        table.add_row(title, *("-" if value is None else f"{value:.4f}" for value in values), style="bold")
    console.print(table)
    some = next(iter(peers.values()))
    absent = len(some["iou"]) - some["classes_present"]
    if absent:
        console.print(f"-: in neither truth nor prediction ({absent} classes), out of the mean.", highlight=False)
    console.print(f"{some['pixels']:,} pixels scored, void left out.", highlight=False)


def colourise(label: np.ndarray, labels: Labels) -> np.ndarray:
    """Label map uint8 [h, w] -> RGB uint8 [h, w, 3]; void is white."""
    palette = labels.palette
    palette[VOID] = VOID_COLOUR
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
    columns = {"image": images} | {name: [colourise(m, labels) for m in of_name] for name, of_name in maps.items()}
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
