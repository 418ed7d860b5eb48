"""Rules between fields, checked before anything heavy starts.

In: a config. Out: nothing, or an `InputError` that names the fields and what to change.
"""

import math
import re

from ml_collections import ConfigDict

from jaxseg.config import _did_you_mean, default, default_loss, default_model, get_field, peer_path, peer_sections
from jaxseg.errors import InputError
from jaxseg.labels import LABELS

CHOICES = {
    "data.name": tuple(LABELS),
    "data.resize": ("square", "shorter_side", "none"),
    "model.name": ("unet", "deeplabv3"),
    "model.backbone": ("resnet50", "resnet101", "resnet14"),
    "model.output_stride": (8, 16),
    "model.normalize": ("none", "imagenet"),
    "model.init_parts": ("all", "all_but_head", "backbone"),
    "model.dtype": ("float32", "bfloat16"),
    "loss.name": ("pixel", "pixel_and_rmi"),
    "loss.pixel": ("softmax", "sigmoid"),
    "loss.combine": ("convex", "additive"),
    "loss.pool": ("max", "avg", "interpolate", "none"),
    "optim.name": ("adam", "sgd"),
    "optim.schedule": ("constant", "cosine", "poly"),
    "mutual.pixels": ("valid", "all"),
    "mutual.form": ("kl", "released"),
    "eval.view": ("whole", "center", "random"),
    "checkpoint.best": ("mean_iou", "train_loss"),
}


AT_LEAST = {
    "seed": 0,
    "data.scenes": 6,
    "data.size_px": 1,
    "data.crop_px": 16,
    "data.workers": 0,
    "data.threads": 1,
    "model.features": 1,
    "model.stem_features": 1,
    "loss.auxiliary_weight": 0.0,
    "loss.weight": 0.0,
    "loss.radius": 1,
    "loss.pool_size": 1,
    "optim.learning_rate": 0.0,
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0.0,
    "mutual.weight": 0.0,
    "train.epochs": 1,
    "train.max_steps": 0,
    "train.batch_size": 1,
    "train.accumulate_steps": 1,
    "train.max_skipped_steps": 0,
    "train.log_every_steps": 1,
    "eval.every_epochs": 1,
    "eval.batch_size": 1,
    "eval.passes": 1,
    "eval.figure_images": 1,
    "checkpoint.every_steps": 0,
    "checkpoint.keep_latest": 1,
}


AT_MOST = {"seed": 2**32 - 1}  # JAX's keys are made of 32 bits


UNET_MULTIPLE_PX = 16  # four halvings


OF_ONE_MODEL = {"unet": ("features",), "deeplabv3": ("backbone", "stem_features", "output_stride", "auxiliary")}


OF_RMI = ("weight", "combine", "radius", "pool", "pool_size")


def validate(config: ConfigDict) -> None:
    """Refuses values and combinations that cannot work, before anything heavy starts. Raises InputError."""
    for path, choices in expand_to_peers(CHOICES, config).items():
        if (value := get_field(config, path)) not in choices:
            raise InputError(
                f"config.{path} is {value!r}; expected one of {', '.join(map(str, choices))}.{_did_you_mean(value, choices)}"
            )
    for path, least in expand_to_peers(AT_LEAST, config).items():
        value = get_field(config, path)
        if not least <= value < float("inf"):  # NaN fails too
            finite = "" if math.isfinite(value) else "a finite number, "
            raise InputError(f"config.{path} is {value}; expected {finite}at least {least}.")
    for path, most in AT_MOST.items():
        if get_field(config, path) > most:
            raise InputError(f"config.{path} is {get_field(config, path)}; expected at most {most}.")
    for name in (config.peer, *config.peers):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise InputError(
                f"a peer is named {name!r} (config.peer, config.peers); it names a folder: letters, digits and _ only."
            )
    _validate_data(config)
    for name, section in peer_sections(config).items():
        where = peer_path(config, name)
        _validate_model(section.model, where, crop_px=config.data.crop_px)
        _validate_loss(section, where, crop_px=config.data.crop_px)
    _validate_mutual(config)
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


def expand_to_peers(table: dict, config: ConfigDict) -> dict:
    """`table` of a value per field, the fields of a peer also under every further peer."""
    of_a_peer = {path: value for path, value in table.items() if path.startswith(("model.", "loss.", "optim."))}
    return table | {f"peers.{name}.{path}": value for name in config.peers for path, value in of_a_peer.items()}


def _validate_model(model: ConfigDict, where: str, *, crop_px: int) -> None:
    if model.name == "unet" and crop_px % UNET_MULTIPLE_PX:
        below = crop_px // UNET_MULTIPLE_PX * UNET_MULTIPLE_PX
        raise InputError(
            f"config.data.crop_px={crop_px} does not suit {where}.model.name='unet', which halves the image four"
            f" times; use a multiple of {UNET_MULTIPLE_PX}, for instance {below} or {below + UNET_MULTIPLE_PX}."
        )
    for network, names in OF_ONE_MODEL.items():
        for name in names if network != model.name else ():
            if model[name] != default_model()[name]:
                raise InputError(
                    f"{where}.model.{name}={model[name]} has no effect with {where}.model.name={model.name!r};"
                    f" it is of {network!r}. Drop one of them."
                )
    if model.init_parts != "all" and not model.init_from:
        raise InputError(f"{where}.model.init_parts={model.init_parts!r} needs {where}.model.init_from.")
    if model.init_parts == "backbone" and model.name != "deeplabv3":
        raise InputError(f"{where}.model.init_parts='backbone' is for {where}.model.name='deeplabv3'.")


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
        if not config.peers and value != default().mutual[name]:
            raise InputError(
                f"config.mutual.{name}={value} has no effect: there are no further peers (config.peers is empty);"
                " start from configs/mutual_*.py, or drop it."
            )
    for name in config.peers:
        model, frozen = config.peers[name].model, config.peers[name].frozen
        if frozen and (not model.init_from or model.init_parts != "all"):
            raise InputError(
                f"config.peers.{name}.frozen=True: a teacher that is not trained needs trained weights, all of them;"
                f" give config.peers.{name}.model.init_from, a run's folder or a file of weights, with init_parts='all'."
            )


def _validate_data(config: ConfigDict) -> None:
    data = config.data
    if data.resize != "none" and data.crop_px > data.size_px:
        raise InputError(
            f"config.data.crop_px={data.crop_px} is larger than the resized image (config.data.size_px={data.size_px});"
            " crop at most the size."
        )
    for name in ("download", "trainaug"):
        if data[name] and data.name != "voc2012":
            raise InputError(f"config.data.{name}=True is for config.data.name='voc2012' only; it is {data.name!r}.")
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


def _validate_loss(section: ConfigDict, where: str, *, crop_px: int) -> None:
    loss, standard = section.loss, default_loss()
    if not section.model.auxiliary and loss.auxiliary_weight != standard.auxiliary_weight:
        raise InputError(
            f"{where}.loss.auxiliary_weight={loss.auxiliary_weight} has no effect without {where}.model.auxiliary=True."
        )
    if loss.name == "pixel":
        for name in OF_RMI:
            if loss[name] != standard[name]:
                raise InputError(
                    f"{where}.loss.{name}={loss[name]} has no effect with {where}.loss.name='pixel';"
                    f" add --{where}.loss.name=pixel_and_rmi, or drop it."
                )
        return
    if loss.radius > 10:  # the RMI authors' limit
        raise InputError(f"{where}.loss.radius is {loss.radius}; expected 1 to 10.")
    if loss.combine == "convex" and loss.weight > 1:
        raise InputError(
            f"{where}.loss.weight={loss.weight} with {where}.loss.combine='convex' would weigh RMI by"
            f" {1 - loss.weight:g}; use 0 to 1, or combine=additive."
        )
    left_px = crop_px if loss.pool == "none" else crop_px // loss.pool_size
    if left_px < loss.radius:
        raise InputError(
            f"config.data.crop_px={crop_px} leaves {left_px} pixels after {where}.loss.pool_size={loss.pool_size}, fewer"
            f" than {where}.loss.radius={loss.radius}; use a larger crop, or a smaller radius or pool_size."
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
