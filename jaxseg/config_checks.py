"""The checks of a config: every value by what `jaxseg.config` declares of its field, then the rules between fields.

In: a config. Out: nothing, or an `InputError` that names the fields and what to change, before anything heavy starts.
"""

import math
import re

from ml_collections import ConfigDict

from jaxseg.config import (
    CLASS_WEIGHTS,
    FIELDS,
    ON_RESNET,
    Field,
    all_fields,
    find_field,
    get_field,
    given_class_weights,
    is_frozen,
    peer_path,
    peer_sections,
    step_shares,
)
from jaxseg.errors import InputError, did_you_mean
from jaxseg.labels import LABELS

# Heights and widths that a network takes are multiples of this: by how often it halves them.
SIZE_MULTIPLE_PX = {
    "unet": 16,
    "deeplabv3": 1,
    "deeplabv3plus": 16,
    "fcn": 1,
    "fpn": 32,
    "pspnet": 8,
    "resnet_unet": 32,
}
POOLED = ("deeplabv3", "deeplabv3plus")  # with a branch that leaves one pixel of an image, normalized


def validate(config: ConfigDict) -> None:
    """Refuses values and combinations that cannot work. Raises InputError."""
    declared = [(path, field) for path in all_fields(config) if (field := find_field(path))]
    for path, field in declared:
        _check_value(f"config.{path}", get_field(config, path), field)
    for path, field in declared:
        _check_needs(config, path, field)
    for name in (config.peer, *config.peers):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise InputError(
                f"a peer is named {name!r} (config.peer, config.peers); it names a folder: letters, digits and _ only."
            )
    _validate_data(config)
    _validate_augment(config)
    for name, section in peer_sections(config).items():
        _validate_model(section.model, peer_path(config, name), crop_px=config.data.crop_px)
        _validate_loss(section.loss, peer_path(config, name), crop_px=config.data.crop_px)
        _validate_pixel_term(section, peer_path(config, name))
        if config.data.name in LABELS:
            check_class_weights(section.loss, peer_path(config, name), num_classes=LABELS[config.data.name].num_classes)
        _validate_optim(section.optim, peer_path(config, name))
    _validate_mutual(config)
    _validate_batches(config)


def _check_value(path: str, value: object, field: Field) -> None:
    """Refuses a value that is none of the field's choices, or out of its range."""
    if field.choices and value not in field.choices:
        expected = ", ".join(map(str, field.choices))
        raise InputError(f"{path} is {value!r}; expected one of {expected}.{did_you_mean(value, field.choices)}")
    if field.at_least is not None and not field.at_least <= value < math.inf:  # NaN fails too
        finite = "" if math.isfinite(value) else "a finite number, "
        raise InputError(f"{path} is {value}; expected {finite}at least {field.at_least}.")
    if field.at_most is not None and value > field.at_most:
        raise InputError(f"{path} is {value}; expected at most {field.at_most}.")


def _check_needs(config: ConfigDict, path: str, field: Field) -> None:
    """Refuses a value that another field leaves without effect."""
    if field.needs is None or get_field(config, path) == field.default:
        return
    name = field.needs[0]
    wanted = field.needed_values()
    other = re.match(r"(peers\.[^.]+\.)?", path)[0] + name  # of the same network
    if get_field(config, other) not in wanted:
        raise InputError(
            f"config.{path}={get_field(config, path)} has no effect with config.{other}={get_field(config, other)!r};"
            f" add --config.{other}={' or '.join(map(str, wanted))}, or drop it."
        )


def _validate_model(model: ConfigDict, where: str, *, crop_px: int) -> None:
    multiple = SIZE_MULTIPLE_PX[model.name]
    if crop_px % multiple:
        below = crop_px // multiple * multiple
        raise InputError(
            f"config.data.crop_px={crop_px} does not suit {where}.model.name={model.name!r}, which halves the image"
            f" {multiple.bit_length() - 1} times; use a multiple of {multiple}, for instance"
            f" {' or '.join(str(px) for px in (below, below + multiple) if px)}."
        )
    if model.init_parts != "all" and not model.init_from:
        raise InputError(f"{where}.model.init_parts={model.init_parts!r} needs {where}.model.init_from.")
    if model.init_parts == "backbone" and model.name not in ON_RESNET:
        raise InputError(
            f"{where}.model.init_parts='backbone' is for {where}.model.name={' or '.join(map(repr, ON_RESNET))}."
        )
    if model.freeze_batchnorm and (not model.init_from or model.init_parts == "backbone"):
        raise InputError(
            f"{where}.model.freeze_batchnorm=True with {where}.model.init_from={model.init_from!r} and"
            f" init_parts={model.init_parts!r} would hold statistics that no data were seen for; it needs those of a trained"
            " network, with init_parts 'all' or 'all_but_head'."
        )


def _validate_mutual(config: ConfigDict) -> None:
    if config.peer in config.peers:
        raise InputError(
            f"config.peers.{config.peer} has the name of the reported peer, config.peer; rename one of them."
        )
    if config.mutual.temperature <= 0 or not config.mutual.temperature < float("inf"):
        raise InputError(f"config.mutual.temperature is {config.mutual.temperature}; expected a positive number.")
    if config.mutual.form == "released" and config.mutual.temperature != 1:
        raise InputError("config.mutual.form='released' has no temperature; drop config.mutual.temperature.")
    for name, value in config.mutual.items():
        if not config.peers and value != FIELDS[f"mutual.{name}"].default:
            raise InputError(
                f"config.mutual.{name}={value} has no effect: there are no further peers (config.peers is empty);"
                " start from configs/mutual_*.py, or drop it."
            )
    for name in config.peers:
        model = config.peers[name].model
        frozen = config.peers[name].frozen
        if frozen and (not model.init_from or model.init_parts != "all"):
            raise InputError(
                f"config.peers.{name}.frozen=True: a teacher that is not trained needs trained weights, all of them;"
                f" give config.peers.{name}.model.init_from, a run's folder or a file of weights, with init_parts='all'."
            )


def _validate_data(config: ConfigDict) -> None:
    data = config.data
    pads = config.augment.name == "usual" and config.eval.view == "whole"  # other views are crops of validation images
    if data.resize != "none" and data.crop_px > data.size_px and not pads:
        raise InputError(
            f"config.data.crop_px={data.crop_px} is larger than the resized image (config.data.size_px={data.size_px});"
            " crop at most the size."
        )
    if data.download and data.source_dir:
        raise InputError(
            "config.data.download=True and config.data.source_dir are both set; drop one of them"
            " (a download goes into config.data.dir)."
        )
    if data.download and data.trainaug:
        raise InputError(
            "config.data.trainaug=True needs SegmentationClassAug/, which the official archive that"
            " config.data.download=True fetches does not hold; give config.data.source_dir."
        )
    if data.name == "synthetic" and data.source_dir:
        raise InputError(
            "config.data.source_dir is set, but config.data.name='synthetic' renders its own scenes; drop it."
        )


def _validate_augment(config: ConfigDict) -> None:
    augment = config.augment
    if augment.scale_min > augment.scale_max:
        raise InputError(
            f"config.augment.scale_min={augment.scale_min} is above config.augment.scale_max={augment.scale_max}; exchange"
            " them, or set both."
        )
    largest_px = int(config.data.size_px * augment.scale_max)
    if augment.name == "usual" and config.data.resize != "none" and config.data.crop_px > largest_px:
        raise InputError(
            f"config.data.crop_px={config.data.crop_px} is larger than the image ever is: config.data.size_px="
            f"{config.data.size_px} times config.augment.scale_max={augment.scale_max}; crop at most {largest_px} pixels."
        )


def _validate_loss(loss: ConfigDict, where: str, *, crop_px: int) -> None:
    region = loss.name.removeprefix("pixel_and_")
    if region != loss.name and loss.combine == "convex" and loss.weight > 1:
        raise InputError(
            f"{where}.loss.weight={loss.weight} with {where}.loss.combine='convex' would weigh {region} by"
            f" {1 - loss.weight:g}; use 0 to 1, or combine=additive."
        )
    if region == "tversky" and loss.tversky_alpha == loss.tversky_beta == 0:
        raise InputError(
            f"{where}.loss.tversky_alpha and {where}.loss.tversky_beta are both 0: no pixel would be wrong; raise one."
        )
    left_px = crop_px if loss.pool == "none" else crop_px // loss.pool_size
    if region == "rmi" and left_px < loss.radius:
        raise InputError(
            f"config.data.crop_px={crop_px} leaves {left_px} pixels after {where}.loss.pool_size={loss.pool_size}, fewer"
            f" than {where}.loss.radius={loss.radius}; use a larger crop, or a smaller radius or pool_size."
        )


def _validate_pixel_term(section: ConfigDict, where: str) -> None:
    """Refuses options of a pixel term that there is not; an auxiliary head has one, too."""
    loss = section.loss
    if loss.name.startswith("pixel") or section.model.auxiliary:
        return
    for option in ("class_weights", "label_smoothing", "focal_gamma"):
        if loss[option] != FIELDS[f"loss.{option}"].default:
            raise InputError(
                f"{where}.loss.{option}={loss[option]} has no effect with {where}.loss.name={loss.name!r}, which has no pixel"
                f" term; use {where}.loss.name=pixel_and_{loss.name}, or drop it."
            )


def check_class_weights(loss: ConfigDict, where: str, *, num_classes: int) -> None:
    """Refuses class weights that are no weights, or not one per class. Raises InputError."""
    expected = f"expected {', '.join(CLASS_WEIGHTS)}, or {num_classes} numbers with commas, one per class"
    try:
        weights = given_class_weights(loss)
    except ValueError as error:
        meant = did_you_mean(loss.class_weights, CLASS_WEIGHTS)
        raise InputError(
            f"{where}.loss.class_weights is {loss.class_weights!r}; {expected}, 0 or more and not all 0.{meant}"
        ) from error
    if weights is not None and len(weights) != num_classes:
        raise InputError(f"{where}.loss.class_weights holds {len(weights)} numbers; {expected}.")


def _validate_optim(optim: ConfigDict, where: str) -> None:
    try:
        step_shares(optim)
    except ValueError as error:
        raise InputError(
            f"{where}.optim.step_at={optim.step_at!r}: {error}; expected shares of the schedule, with commas, such as 0.5,0.75."
        ) from error


def check_warmup(config: ConfigDict, *, steps: int) -> None:
    """Refuses a warm-up that leaves nothing of the `steps` that schedules are laid out over. Raises InputError."""
    for name, section in peer_sections(config).items():
        if not is_frozen(config, name) and section.optim.warmup_steps >= steps:
            raise InputError(
                f"{peer_path(config, name)}.optim.warmup_steps={section.optim.warmup_steps}, but the whole run"
                f" (config.train.epochs={config.train.epochs}) is {steps} steps: nothing would be left for the schedule"
                f" {section.optim.schedule!r}. Use fewer warmup_steps, or more epochs."
            )


def _validate_batches(config: ConfigDict) -> None:
    if config.train.batch_size % config.train.accumulate_steps:
        raise InputError(
            f"config.train.batch_size={config.train.batch_size} cannot be cut into"
            f" config.train.accumulate_steps={config.train.accumulate_steps} equal parts; choose a divisor."
        )
    if config.eval.passes > 1 and config.eval.view != "random":
        raise InputError(
            f"config.eval.passes={config.eval.passes} with config.eval.view={config.eval.view!r} would score the same"
            " pixels again; passes go with config.eval.view=random."
        )
    if config.eval.patience and config.checkpoint.best == "train_loss":
        raise InputError(
            f"config.eval.patience={config.eval.patience} is for what validation measures; with"
            " config.checkpoint.best='train_loss' it says nothing. Use config.checkpoint.best=mean_iou, or drop it."
        )


def check_devices(config: ConfigDict, *, devices: int) -> None:
    """Refuses batch sizes that do not divide over `devices` (all hosts together). Raises InputError."""
    step = devices * config.train.accumulate_steps
    if config.train.batch_size % step:
        raise InputError(
            f"config.train.batch_size={config.train.batch_size} does not divide over {devices} devices ×"
            f" config.train.accumulate_steps={config.train.accumulate_steps}; use a multiple of {step}."
        )
    if config.eval.batch_size % devices:
        raise InputError(
            f"config.eval.batch_size={config.eval.batch_size} does not divide over {devices} devices;"
            f" use a multiple of {devices}."
        )


def check_batch_statistics(config: ConfigDict) -> None:
    """Refuses to train where BatchNorm would see one value per channel, whose variance is 0, as PyTorch refuses it.

    So it is with one image per pass in DeepLabV3, whose pooled branch leaves one pixel of it, and in a U-Net of crops of
    16 pixels. Statistics are over all devices. Raises InputError.
    """
    train = config.train
    if train.batch_size > train.accumulate_steps:
        return
    for name, section in peer_sections(config).items():
        if is_frozen(config, name) or section.model.freeze_batchnorm:
            continue
        if least_pixels(section.model, config.data.crop_px) > 1:
            continue
        pooled = section.model.name in POOLED
        where = "its pooled branch" if pooled else "the lowest level of its crops"
        raise InputError(
            f"config.train.batch_size={train.batch_size} with config.train.accumulate_steps={train.accumulate_steps} is one"
            f" image per pass: BatchNorm in {where} of {name} ({peer_path(config, name)}.model.name={section.model.name!r})"
            " would normalize a single value per channel. Use at least 2 images per pass: a larger batch_size, or fewer"
            " accumulate_steps."
        )


def least_pixels(model: ConfigDict, crop_px: int) -> int:
    """Of a crop, how many pixels the smallest map has that BatchNorm sees."""
    if model.name in POOLED:
        return 1
    if model.name == "fcn":
        return math.ceil(crop_px / model.output_stride) ** 2
    return (crop_px // SIZE_MULTIPLE_PX[model.name]) ** 2
