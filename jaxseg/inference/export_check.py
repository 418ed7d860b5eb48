"""That a file computes what the network computes, before it gets its name.

In: an `Export`. Out: the file and its JSON, or `RefusedError`, and then nothing new is left. Verification is on one CPU, in
full float32.
"""

import hashlib
from pathlib import Path

import numpy as np

from jaxseg.errors import InputError, ResourceError
from jaxseg.files import atomic_write, write_json
from jaxseg.inference.export_formats import (
    READ,
    WRITE,
    Export,
    PredictFn,
    RefusedError,
    inference_fn,
    on_cpu,
    symbolic_multiple_px,
)
from jaxseg.training.failures import is_full_disk

# Largest difference of logits over their standard deviation, above what rounding was measured to do to the deepest network,
# DeepLabV3 of ResNet-50. In float32: four times the 5e-4 that it is from itself in float64 (scripts/checks/exports.py):
# fifty layers hand on and amplify what 2^-24 began. In bfloat16: three times the 7e-2 between its programs for one size
# and for all sizes, which XLA fuses otherwise and so rounds elsewhere. That is coarse: it is 3 from itself in float32.
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.2}

BATCHES = (2, 1)
# Of the images that are run, in steps of the network, or of 16 pixels where these are smaller: not square, the second odd.
SIDES = ((4, 6), (5, 3))
LEAST_STEP_PX = 16


def sizes_px(export: Export) -> list[tuple[int, int]]:
    """Heights and widths of the images that are run: the file's one size, or two that the network takes."""
    if export.size_px is not None:
        return [export.size_px] * len(BATCHES)
    step = max(symbolic_multiple_px(export.section), LEAST_STEP_PX)
    return [(rows * step, columns * step) for rows, columns in SIDES]


def logit_differences(export: Export, predict: PredictFn) -> dict:
    """Random images through the network and through `predict`: how far their logits are apart."""
    rng = np.random.default_rng(0)
    own = inference_fn(export.model, export.variables)
    images = [rng.random((b, *hw, 3), np.float32) for b, hw in zip(BATCHES, sizes_px(export), strict=True)]
    largest = 0.0
    logits = []
    same = []
    for image in images:
        expected, found = np.asarray(own(image)), np.asarray(predict(image))
        if found.shape != expected.shape or found.dtype != np.float32:
            raise RefusedError(f"its logits are {found.dtype}{list(found.shape)}, not float32{list(expected.shape)}")
        largest = np.maximum(largest, np.abs(found - expected).max())  # NaN stays
        logits.append(expected.ravel())
        same.append((found.argmax(-1) == expected.argmax(-1)).ravel())
    spread = float(np.concatenate(logits).std())
    return {
        "images": [list(image.shape) for image in images],
        "max_difference": float(largest),
        "logits_std": spread,
        "max_difference_over_std": float(largest) / spread if spread else float(largest > 0),
        "tolerance_over_std": TOLERANCE[export.section.dtype],
        "same_class": float(np.concatenate(same).mean()),
    }


def verify(export: Export, path: Path) -> dict:
    """`logit_differences` of the file at `path`. Raises RefusedError where they are beyond `TOLERANCE`, or not finite."""
    measured = logit_differences(export, READ[export.format](export, path))
    if not measured["max_difference_over_std"] <= measured["tolerance_over_std"]:
        raise RefusedError(
            f"logits differ by up to {measured['max_difference']:.2g}, {measured['max_difference_over_std']:.2g} of their"
            f" standard deviation; rounding explains {measured['tolerance_over_std']:.0e}"
        )
    return measured


def write_verified(export: Export, output: Path) -> dict:
    """Writes and verifies `output` and its JSON.

    Args:
      export: the network.
      output: the file.

    Returns:
      What the JSON says.

    Raises:
      RefusedError: where the file does not compute what the network computes; this and all errors leave nothing new
        behind, and a file that was there before stays.
      InputError: where it cannot be written.
      ResourceError: where the disk is full.
    """
    try:
        with on_cpu(), atomic_write(output) as part:
            WRITE[export.format](export, part)
            measured = verify(export, part)
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            content = {"file": output.name, "sha256": digest, **export.about, "verified": measured}
            write_json(sidecar(output), content)
    except OSError as error:
        kind = ResourceError if is_full_disk(error) else InputError
        raise kind(f"{output}: cannot be written ({error.strerror or error}).") from error
    return content


def sidecar(output: Path) -> Path:
    """unet-1200.onnx.json"""
    return output.with_name(f"{output.name}.json")
