"""What a person sees of results: the table in the terminal and the figure of image, truth and prediction.

In: results as written to JSON, and a few uint8 images with their label maps. Out: text on the console, a PNG. Imports
no JAX: results can be looked at anywhere.
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
