"""Made-up folders of runs on CamVid's classes, as training and `python -m jaxseg.evaluate` write them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.labels import LABELS

CAMVID = LABELS["camvid"].names
MAP = np.array([[0, 1, 255, 3], [2, 2, 0, 3]], np.uint8)  # truth of every image


def confusion(**cells: int) -> list[list[int]]:
    """confusion(sky_road=2): two pixels of sky that were called road."""
    counts = np.zeros((len(CAMVID), len(CAMVID)), int)
    for key, count in cells.items():
        truth, called = key.split("_")
        counts[CAMVID.index(truth), CAMVID.index(called)] = count
    return counts.tolist()


def classes(**known: float) -> dict[str, float | None]:
    return {name: known.get(name) for name in CAMVID}


def write_run(
    folder: Path,
    images: dict[str, tuple[float | None, dict[str, float]]],
    *,
    step: int = 100,
    peer: str = "unet",
    prediction: np.ndarray = MAP,
    **result,
) -> Path:
    """images: id -> (mean IoU, class -> IoU); result: what else the JSON of the scores holds, or instead."""
    gallery = folder / f"evaluation-{step}"
    gallery.mkdir(parents=True)
    palette = LABELS["camvid"].palette.tobytes()
    for number in range(len(images)):
        photo = np.full((*MAP.shape, 3), 40 * (number + 1), np.uint8)
        Image.fromarray(photo).save(gallery / f"{number:04d}_image.jpg")
        for what, label in (("truth", MAP), (peer, prediction)):
            picture = Image.fromarray(label)
            picture.putpalette(palette)
            picture.save(gallery / f"{number:04d}_{what}.png")
    scores = {
        "mean_iou": 0.5,
        "pixel_accuracy": 0.8,
        "iou": classes(sky=0.75, road=0.25),
        "confusion": confusion(sky_sky=6, sky_road=2, road_road=1, road_sky=3),
        "images": [{"mean_iou": iou, "pixel_accuracy": 0.5, "iou": classes(**known)} for iou, known in images.values()],
    }
    content = {
        "reported_peer": peer,
        "step": step,
        "protocol": "Whole images, every pixel once.",
        "images": [{"number": number, "id": id} for number, id in enumerate(images)],
        "peers": {peer: scores | result.pop("scores", {})},
        "command": f"python -m jaxseg.evaluate --workdir={folder.name}",
        "commit": "0123456789abcdef",
        "versions": {"python": "3.11"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "data": {"name": "camvid", "fingerprint": "f00d", "train": 4, "val": len(images)},
        "config": {"seed": 0, "optim": {"learning_rate": 0.001}},
    }
    (folder / f"evaluation-{step}.json").write_text(json.dumps(content | result))
    train = [
        {"step": s, f"{peer}/loss": 1 / s, f"{peer}/pixel": 2 / s, f"{peer}/grad_norm": 9.0} for s in range(1, 801)
    ]
    train[4][f"{peer}/loss"] = None
    evals = [{"step": s, f"{peer}/mean_iou": s / 1000, f"{peer}/iou": classes()} for s in (400, 800)]
    for name, lines in (("train", train), ("eval", evals)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


WRONG_MAP = np.array([[0, 2, 1, 3], [2, 1, 0, 0]], np.uint8)  # of MAP: wrong at (0, 1), (1, 1), (1, 3)


FIRST = {"val/a": (0.5, {"car": 0.7}), "val/b": (0.2, {}), "val/c": (0.9, {"car": 0.1}), "val/d": (None, {})}


SECOND = {"val/a": (0.6, {"car": 0.2}), "val/b": (0.8, {"car": 0.4}), "val/c": (0.3, {}), "val/d": (0.1, {})}
