"""Predicts pictures of any size: a mask of class numbers and an overlay for each.

    python -m jaxseg.predict --workdir=RUN IMAGE|FOLDER|GLOB … --output=DIR
        [--checkpoint=last|best|STEP] [--peer=NAME] [--resize=run|none]
        [--window_px=224 [--overlap=0.5]] [--scales=0.75,1,1.25] [--flip]
        [--probabilities]
    python -m jaxseg.predict --config=configs/unet_voc.py
        --config.model.init_from=FILE.pth IMAGE … --output=DIR

Out, each under the picture's own name: masks/ (PNG of class numbers with the
data set's colors), overlays/ (JPEG), for Cityscapes label_ids/ (PNG of raw ids,
as its evaluation server takes them), with --probabilities probabilities/ (.npy,
float16 [h, w, c]), and predictions.json. A file that is no image is told and
the rest go on; the exit status is then 2.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxseg import cli
from jaxseg.errors import InputError
from jaxseg.files import user_path
from jaxseg.inference.folder import find_images, predict_images
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.predictor import check_window, load_predictors
from jaxseg.provenance import provenance
from jaxseg.training.failures import failures_as_errors


def define_flags() -> None:
    cli.define_run()
    cli.define_inference_flags()
    flags.DEFINE_string("peer", None, "Of a run with several networks; default: the reported one.")
    flags.DEFINE_string("output", None, "Folder for the results.")
    flags.DEFINE_bool("probabilities", False, "Also the probability of every class, float16.")


def execute(arguments: list[str]) -> int:
    values = flags.FLAGS
    config = values.config
    if values.output is None:
        raise InputError("--output=DIR is needed: the folder for the results.")
    output = user_path(values.output, what="--output=")
    options = InferenceOptions(**cli.inference_flags(resize="run"), batch=config.eval.batch_size)
    paths = find_images(arguments, output=output)
    make_folder(output)
    workdir = user_path(values.workdir, what="--workdir=") if values.workdir else None
    with failures_as_errors(config, output, predicting=True):
        (predictor,) = load_predictors(config, workdir, values.checkpoint, names=[values.peer or config.peer])
        check_window(predictor, options)
        about = {"workdir": values.workdir, "step": predictor.step, "peer": predictor.name, "view": str(options)}
        about |= provenance(config)
        done, failed = predict_images(
            predictor, paths, output, about, options=options, probabilities=values.probabilities
        )
    print(f"{len(done)} of {len(paths)} picture{'s' * (len(paths) != 1)} predicted ({options}); see {output}")
    if failed:
        print(f"error: {len(failed)} could not be used; predictions.json names them", file=sys.stderr)
    return InputError.status if failed else 0


def make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={output}: no folder that can be written ({error.strerror}).") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags, words="IMAGE")


if __name__ == "__main__":
    sys.exit(main())
