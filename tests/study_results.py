"""Made-up results of studies, as `python -m scripts.study` writes them."""

import json
from pathlib import Path

NAMES = ("road", "sky", "pole")


def run(name: str, *, iou: float, accuracy: float = 0.9, reported: str = "unet", **where) -> dict:
    """One run's JSON. Class IoUs are `iou`, `iou` + 0.1, and an absent class."""
    dataset, protocol, rest = name.split("-", 2)
    arm, seed = rest.rsplit("-seed", 1)
    study = {"plan": "p", "arm": arm, "model": arm, "dataset": dataset, "protocol": protocol, "seed": int(seed)}
    scores = {"mean_iou": iou, "pixel_accuracy": accuracy, "iou": {"road": iou, "sky": iou + 0.1, "pole": None}}
    scores["confusion"] = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    val = {"step": [1, 2], "mean_iou": [0.1, iou], "pixel_accuracy": [0.5, accuracy]}
    return {
        "study": study | where,
        "resumed": False,
        "curves": {"train": {"step": [1, 2], "loss": [2.0, 1.0], "pixel": [2.0, 1.0]}, "val": val},
        "reported_peer": reported,
        "peers": {reported: scores},
        "command": f"python -m jaxseg.main --workdir=runs/{name}",
        "commit": "0123456789abcdef",
        "versions": {"python": "3.11", "jax": "0.10", "flax": "0.12"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "data": {"name": dataset, "fingerprint": "f00d", "train": 4, "val": 2},
        "wall_time_s": 1800.0,
    }


def write_study(folder: Path, runs: dict[str, dict], *, planned: tuple[str, ...] = (), questions=(), base=None) -> Path:
    """`folder` with plan.json and the runs; `planned`: names of runs that were not made."""
    folder.mkdir(parents=True)
    keys = ("arm", "model", "dataset", "protocol", "seed")
    plan = [{"name": name} | {k: content["study"][k] for k in keys} for name, content in runs.items()]
    plan += [{"name": name} | {k: run(name, iou=0)["study"][k] for k in keys} for name in planned]
    content = {"plan": folder.name, "title": "A study", "note": "A note.", "base": base, "questions": list(questions)}
    (folder / "plan.json").write_text(json.dumps(content | {"runs": plan}))
    for name, result in runs.items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    return folder
