"""The table of a run's scores in the terminal.

In: results as written to JSON. Out: text on the console. Imports no JAX: results can be looked at anywhere.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

MEANS = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "micro_iou": "micro IoU",
    "one_vs_rest_accuracy": "one-vs-rest accuracy",
    "boundary_iou": "boundary IoU",
}
INFORMATION = "I(truth; prediction), bits"


def print_results(results: dict, console: Console | None = None) -> None:
    """IoU per class and the means, a column per peer; an absent class is a dash."""
    console = console or Console()
    peers = results["peers"]
    reported = results["reported_peer"]
    at_step = "" if results["step"] is None else f" at step {results['step']:,}"
    console.print(f"IoU on {results['data']['name']} (validation){at_step}", style="italic", highlight=False)
    table = Table("class")
    for name in peers:
        table.add_column(name + (" (reported)" if len(peers) > 1 and name == reported else ""), justify="right")
    for label in peers[reported]["iou"]:
        table.add_row(label, *(format_score(peer["iou"][label]) for peer in peers.values()))
    table.add_section()
    for title, values in mean_rows(list(peers.values())).items():
        table.add_row(title, *map(format_score, values), style="bold")
    console.print(table)
    absent = len(peers[reported]["iou"]) - peers[reported]["classes_present"]
    if absent:
        console.print(f"-: in neither truth nor prediction ({absent} classes), out of the mean.", highlight=False)
    console.print(f"{peers[reported]['pixels']:,} pixels scored, void left out.", highlight=False)
    if (truth := information(peers[reported], "truth")) is not None:
        console.print(f"H(truth) is {truth:.4f} bits a pixel.", highlight=False)


def mean_rows(scores: Sequence[dict]) -> dict[str, list[float | None]]:
    """Title of a score of all classes -> its value per network, None where a file lacks it; what none has is left out."""
    rows = {title: [one.get(key) for one in scores] for key, title in MEANS.items()}
    rows[INFORMATION] = [information(one, "mutual") for one in scores]
    return {title: values for title, values in rows.items() if any(value is not None for value in values)}


def information(scores: dict, key: str) -> float | None:
    """Bits of "truth", "mutual" or "left" of all classes; None in files of before these were measured."""
    return scores.get("information", {}).get(key)


def format_score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
