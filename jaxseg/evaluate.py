"""Scores a checkpoint, image by image, in the run's own way or another.

    python -m jaxseg.evaluate --workdir=RUN [--checkpoint=last|best|STEP]
        [--output=FILE.json] [--full_resolution] [--resize=run|none]
        [--window_px=224 [--overlap=0.5]] [--scales=0.75,1,1.25] [--flip]
        [--config.field=value]

Without further flags: on the prepared validation images, as the run's own
config says. With --full_resolution on the raw images and labels: predictions
are brought back to the label's size. Windows, scales and mirror image as in
`python -m jaxseg.predict`. Out: a JSON with the scores of all images and of
each, config, versions and device, and beside it a folder of small pictures for
`python -m jaxseg.report --html`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxseg import cli
from jaxseg.errors import InputError
from jaxseg.files import (
    check_folder_is_own,
    is_own_folder,
    make_own_folder,
    make_parent,
    read_json,
    remove_own_file,
    remove_own_folder,
    user_path,
    write_json,
)
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.per_image import worst_images
from jaxseg.reporting.terminal import print_results
from jaxseg.training.failures import failures_as_errors

WORST = 5  # images that the command names


def define_flags() -> None:
    cli.define_run()
    cli.define_inference_flags()
    flags.DEFINE_string("output", None, "JSON to write; default: WORKDIR/evaluation-STEP….json, named after the flags.")
    flags.DEFINE_bool("full_resolution", False, "Score at the size of the raw labels.")


def execute() -> None:
    values = flags.FLAGS
    config = values.config
    workdir = user_path(values.workdir, what="--workdir=") if values.workdir else None
    if workdir is None and not values.output:
        raise InputError("--output=FILE.json is needed where there is no --workdir.")
    beside = user_path(values.output, what="--output=") if values.output else workdir / "evaluation.json"
    if beside.suffix != ".json":
        raise InputError(
            f"--output={beside}: expected a file ending in .json; a folder of the same name goes beside it."
        )
    make_parent(beside)
    full = values.full_resolution
    given = [name for name in cli.INFERENCE_FLAGS if values[name].present]
    options = None
    if given:
        looks = cli.inference_flags(resize="run" if full else "none")
        options = InferenceOptions(**looks, batch=config.eval.batch_size)
    if values.output:
        check_is_own(beside)
    part = beside.with_name(f"{beside.stem}.part")
    remove_own_folder(part, why="where pictures are collected (--output)")
    make_own_folder(part)
    try:
        with failures_as_errors(config, beside.parent, predicting=True):
            results = score_checkpoint(
                config, workdir, values.checkpoint, options=options, full_resolution=full, thumbnails=part
            )
            output = beside if values.output else workdir / default_name(results["step"], full, given)
            write_scores(output, results, part)
    finally:
        remove_own_folder(part, why="where pictures are collected")
    print_results(results)
    for image_id, iou in worst_images(results, WORST):
        print(f"worst: {image_id}, mean IoU {iou:.4f}")
    print(f"written: {output}, {output.with_suffix('')}")


def default_name(step: int, full_resolution: bool, given: list[str]) -> str:
    """evaluation-1200.json, evaluation-1200-full_resolution-flip-scales_1_1.5.json: of each way a file of its own."""
    ways = ["full_resolution"] if full_resolution else []
    for name in given:
        value = str(flags.FLAGS[name].value).replace(",", "_")
        ways.append(name if value == "True" else f"{name}_{value}")
    return "-".join([f"evaluation-{step}", *ways]) + ".json"


def check_is_own(output: Path) -> None:
    """Refuses to replace what this command did not write, the JSON or the folder beside it. Raises InputError."""
    check_folder_is_own(output.with_suffix(""), why="where pictures go (--output)", is_own=is_gallery)
    if (output.exists() or output.is_symlink()) and "reported_peer" not in read_json(output):
        raise InputError(f"--output={output}: a file that holds no scores is there; move it away, or name another.")


def is_gallery(folder: Path) -> bool:
    """Whether the pictures of an evaluation are all that is in it; earlier versions left no mark."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return is_own_folder(folder) or all(re.fullmatch(r"\d{4,}_\w+\.(jpg|png)", path.name) for path in folder.iterdir())


def write_scores(output: Path, results: dict, thumbnails: Path) -> None:
    """Pictures first, so that no JSON is without its own."""
    check_is_own(output)
    remove_own_file(output)
    remove_own_folder(output.with_suffix(""), why="where pictures go (--output)", is_own=is_gallery)
    thumbnails.rename(output.with_suffix(""))
    write_json(output, results)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags)


if __name__ == "__main__":
    sys.exit(main())
