"""The table of a run's scores in the terminal.

In: results as written to JSON. Out: text on the console. Imports no JAX: results can be looked at anywhere.
"""

from rich.console import Console
from rich.table import Table

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
    for key, title in MEANS.items():
        if any(key in peer for peer in peers.values()):
            table.add_row(title, *(format_score(peer[key]) for peer in peers.values()), style="bold")
    console.print(table)
    absent = len(peers[reported]["iou"]) - peers[reported]["classes_present"]
    if absent:
        console.print(f"-: in neither truth nor prediction ({absent} classes), out of the mean.", highlight=False)
    console.print(f"{peers[reported]['pixels']:,} pixels scored, void left out.", highlight=False)


def format_score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
