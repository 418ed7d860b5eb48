"""Scores of a checkpoint, image by image, in the run's own way or another.

In: a run's config and checkpoint, and how its networks look at images. Out: per peer the confusion matrix and the
metrics of all images and of each, ready for JSON, and thumbnails.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.config import peer_sections
from jaxseg.config_checks import check_devices, validate
from jaxseg.console import progress_bar
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare, raw_source
from jaxseg.data.records import Prepared
from jaxseg.data.sources import READ_PX, picture_px, read_sample
from jaxseg.errors import InputError
from jaxseg.files import parallel_map
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.per_image import LabeledImage, PerImageScores
from jaxseg.inference.predictor import HELD_PX, Predictor, load_predictors, predict_labels
from jaxseg.provenance import provenance
from jaxseg.training.validation import check_pixel_count, size_multiple_px


def score_checkpoint(
    config: ConfigDict,
    workdir: Path | None,
    which: str,
    *,
    options: InferenceOptions | None = None,
    full_resolution: bool = False,
    split: str = "val",
    thumbnails: Path | None = None,
) -> dict:
    """The results of one checkpoint of a run, ready for JSON: scores of all peers, together and image by image.

    Args:
      config: the run's, or that of `config.model.init_from`.
      workdir: the run; None for weights of another program.
      which: "last", "best" or a step.
      options: how the networks look at an image; None: as `config.eval` says.
      full_resolution: at the size of the raw labels.
      split: which images.
      thumbnails: the folder for small pictures.

    Returns:
      The scores, and where they come from.

    Raises:
      InputError: where run, data or options do not fit.
    """
    validate(config)
    check_devices(config, devices=jax.device_count())
    prepared = prepare(config.data)
    check_split(split, prepared.name, prepared.summary)
    predictors = load_predictors(config, workdir, which, names=list(peer_sections(config)))
    if prepared.labels.names != predictors[0].labels.names:
        raise InputError(
            f"config.data: the classes there ({', '.join(prepared.labels.names)}) are not those that the run was trained"
            f" with ({', '.join(predictors[0].labels.names)})."
        )
    if options is None and not full_resolution:
        samples = crop_samples(prepared, config, split)
        hw = pipeline.padded_hw(prepared, config, multiple_px=size_multiple_px(config), split=split)
        options = InferenceOptions(resize="none", pad_to_hw=hw, batch=config.eval.batch_size)
        protocol = training_protocol(config)
    else:
        samples = raw_samples(config, split) if full_resolution else record_samples(prepared, split)
        options = options or InferenceOptions(batch=config.eval.batch_size)
        sizes = "raw labels" if full_resolution else "prepared labels"
        protocol = f"{sizes}, every pixel once; images {options}"
    protocol += "" if split == "val" else f"; split {split}"
    scores = PerImageScores(prepared.labels, [predictor.name for predictor in predictors], thumbnails=thumbnails)
    with progress_bar(f"scoring the split {split}", prepared.images(split)) as advance:
        for sample, predictions in predicted_samples(predictors, samples, options):
            scores.update(sample, predictions)
            advance(1)
    results = {
        "reported_peer": config.peer,
        "step": predictors[0].step,
        "split": split,
        "protocol": protocol,
        **scores.results(),
    }
    if not full_resolution:
        for name, summary in results["peers"].items():
            check_pixel_count(
                name, np.array(summary["confusion"]), pipeline.scored_pixels(prepared, config, split=split)
            )
    return results | provenance(config, prepared.provenance)


def check_split(split: str, name: str, known: Iterable[str]) -> None:
    """Raises InputError where the data set has no such split."""
    if split not in known:
        raise InputError(f"--split={split}: {name} has no such split; expected {' or '.join(known)}.")


def training_protocol(config: ConfigDict) -> str:
    """How the run scores itself, in words."""
    size = {"square": "square, side", "shorter_side": "shorter side", "none": "as they are"}[config.data.resize]
    size += "" if config.data.resize == "none" else f" {config.data.size_px} pixels"
    crop = f"{config.data.crop_px} pixels"
    views = {
        "whole": "every pixel once",
        "center": f"central {crop}",
        "random": f"random {crop}, {config.eval.passes} passes",
    }
    return f"prepared images and labels ({size}), {views[config.eval.view]}"


def predicted_samples(
    predictors: list[Predictor], samples: Iterable[LabeledImage], options: InferenceOptions
) -> Iterator[tuple[LabeledImage, dict[str, np.ndarray]]]:
    """Every sample with what each network predicts, uint8 [h, w], at the label's size."""
    for chunk in batched_by_pixels(samples, options.batch):
        images = [sample.image for sample in chunk]
        labels = {predictor.name: predict_labels(predictor, images, options=options) for predictor in predictors}
        for sample in chunk:
            yield sample, {name: next(predicted) for name, predicted in labels.items()}


def batched_by_pixels(samples: Iterable[LabeledImage], count: int) -> Iterator[list[LabeledImage]]:
    """At most `count` together, of large images fewer: as many as have `HELD_PX` pixels, or one."""
    some: list[LabeledImage] = []
    for sample in samples:
        if some and (len(some) == count or sum(each.label.size for each in [*some, sample]) > HELD_PX):
            yield some
            some = []
        some.append(sample)
    if some:
        yield some


def crop_samples(prepared: Prepared, config: ConfigDict, split: str) -> Iterator[LabeledImage]:
    """What the run's own scoring sees: the records through `config.eval.view`, pass after pass."""
    ids = [record["id"].decode() for record in prepared.records(split)]
    numbers = alphabetical_places(ids)
    crops = pipeline.eval_crops(prepared, config, split=split)
    several = config.eval.passes > 1
    for position in range(len(ids) * config.eval.passes):
        crop, i = divmod(position, len(ids))
        image, label = crops[position]
        yield LabeledImage(
            numbers[i] + crop * len(ids), ids[i] + (f", crop {crop + 1}" if several else ""), image, label
        )


def record_samples(prepared: Prepared, split: str) -> Iterator[LabeledImage]:
    """The prepared records, whole."""
    records = prepared.records(split)
    ids = [record["id"].decode() for record in records]
    for number, name, record in zip(alphabetical_places(ids), ids, records, strict=True):
        yield LabeledImage(number, name, record["image"], record["label"])


def raw_samples(config: ConfigDict, split: str) -> Iterator[LabeledImage]:
    """A split as it is in the files. Raises InputError where the config does not say where they are."""
    if (source := raw_source(config.data)) is None:
        raise InputError(
            "--full_resolution reads the raw labels, and config.data.source_dir does not say where they are; give"
            " --config.data.source_dir=DIR."
        )
    check_split(split, source.name, source.samples)
    samples = source.samples[split]
    numbers = alphabetical_places([sample.id for sample in samples])
    pairs = parallel_map(
        lambda sample: read_sample(source, sample),
        samples,
        cost=lambda sample: picture_px(source, sample),
        budget=READ_PX,
    )
    for number, sample, (image, label) in zip(numbers, samples, pairs, strict=True):
        yield LabeledImage(number, sample.id, image, label)


def alphabetical_places(ids: list[str]) -> list[int]:
    """Place of each in alphabetical order: the same in the raw files and in the shuffled records.

    >>> alphabetical_places(["c", "a", "b"])
    [2, 0, 1]
    """
    place = {name: number for number, name in enumerate(sorted(ids))}
    return [place[name] for name in ids]
