"""Every setting of a run: declared once here, with unit and source, then locked.

In: an experiment file of `configs/` (which sets only what differs) and `--config.field=value`. Out: a checked, locked
`ml_collections.ConfigDict`. `InputError` is the one exception for input that cannot be used; its message is a sentence.
"""

import difflib
import re
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.labels import LABELS


class InputError(ValueError):
    """What the user gave cannot be used. The message says what was got, where, what was expected, what to do."""


def default() -> ConfigDict:
    """The study's Model 1 on Cityscapes, following the study's text ("code": taken from its released code)."""
    config = ConfigDict()
    config.seed = 0  # of weights, data order, crops and dropout
    config.peer = "unet"  # name of the reported network in logs, checkpoints and results

    config.data = data = ConfigDict()
    data.name = "cityscapes"  # cityscapes | voc2012 | camvid | synthetic
    data.source_dir = ""  # raw data: a folder, or the official archives in it; "": what was prepared before in data.dir
    data.dir = "~/.cache/jaxseg"  # prepared records and downloads go here
    data.download = False  # voc2012 only: fetch the official archive into data.dir (2.0 GB)
    data.trainaug = False  # voc2012 only: train on ImageSets/Segmentation/trainaug.txt and SegmentationClassAug/
    data.scenes = 480  # synthetic only: number of rendered scenes; the last sixth is for validation
    data.resize = "square"  # square: to size_px × size_px (study) | shorter_side: to size_px (code) | none
    data.size_px = 234  # pixels, study
    data.crop_px = 224  # pixels, random square crop of the resized image, study
    data.workers = 0  # processes that read and crop; 0: threads of the main process
    data.threads = 8  # reading threads in each process; each keeps one batch ready ahead of the step

    config.model = model = ConfigDict()
    model.name = "unet"
    model.features = 32  # channels of the first level, study
    model.dtype = "float32"  # of the computation: float32 | bfloat16; parameters and BatchNorm statistics are float32
    model.init_from = ""  # PyTorch state dict (.pth, .pt, .safetensors) or NumPy archive (.npz) to start from

    config.loss = loss = ConfigDict()
    loss.name = "pixel"  # pixel: that term alone (Model 1) | pixel_and_rmi: with region mutual information (Model 2)
    loss.pixel = "softmax"  # softmax: cross-entropy (code) | sigmoid: binary cross-entropy of every class
    loss.weight = 0.5  # λ, study; of the fields from here on, pixel_and_rmi alone makes use
    loss.combine = "convex"  # convex: λ pixel + (1 - λ) rmi (study) | additive: pixel + λ rmi
    loss.radius = 3  # pixels, side of the square regions, 1 to 10; RMI paper
    loss.pool = "max"  # downsampling before regions are cut: max (RMI paper) | avg | interpolate | none (code)
    loss.pool_size = 3  # pixels, window and stride of it; RMI paper

    config.optim = optim = ConfigDict()
    optim.name = "adam"  # adam: betas 0.9, 0.999, eps 1e-8 (PyTorch's defaults) | sgd: momentum 0.9
    optim.learning_rate = 1e-3  # code, Model 1
    optim.schedule = "constant"  # constant (code) | cosine | poly: (1 - step/steps)^0.9
    optim.warmup_steps = 0  # linear from 0
    optim.weight_decay = 0.0  # decoupled, on every parameter

    config.train = train = ConfigDict()
    train.epochs = 200  # code
    train.max_steps = 0  # stop here, with schedules still laid out over `epochs`; 0: when the epochs are done
    train.batch_size = 8  # images a step, over all devices and hosts; code, Model 1
    train.accumulate_steps = 1  # passes that a device's share of the batch is cut into, for batches that do not fit
    train.log_every_steps = 20

    config.eval = evaluation = ConfigDict()
    evaluation.every_epochs = 5
    evaluation.batch_size = 8  # images, over all devices and hosts
    evaluation.view = "whole"  # whole: every pixel once | center: central crop_px | random: random crop_px (code)
    evaluation.passes = 1  # times the validation split is gone through; more than one only with view=random (code: 5)
    evaluation.figure_images = 4  # rows in the figure of image, truth and prediction

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 0  # also between evaluations; 0: at evaluations only
    checkpoint.keep_latest = 2  # checkpoints
    checkpoint.best = "mean_iou"  # the best is kept too, by: mean_iou (validation, higher) | train_loss (lower; code)
    return config.lock()


def follow_released_code(config: ConfigDict) -> None:
    """What every model of the study's released code does otherwise than its text says: data, scoring, checkpoint."""
    config.data.resize = "shorter_side"
    config.eval.view, config.eval.passes = "random", 5
    config.checkpoint.best = "train_loss"


CHOICES = {
    "data.name": tuple(LABELS),
    "data.resize": ("square", "shorter_side", "none"),
    "model.name": ("unet",),
    "model.dtype": ("float32", "bfloat16"),
    "loss.name": ("pixel", "pixel_and_rmi"),
    "loss.pixel": ("softmax", "sigmoid"),
    "loss.combine": ("convex", "additive"),
    "loss.pool": ("max", "avg", "interpolate", "none"),
    "optim.name": ("adam", "sgd"),
    "optim.schedule": ("constant", "cosine", "poly"),
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
    "loss.weight": 0.0,
    "loss.radius": 1,
    "loss.pool_size": 1,
    "optim.learning_rate": 0.0,
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0.0,
    "train.epochs": 1,
    "train.max_steps": 0,
    "train.batch_size": 1,
    "train.accumulate_steps": 1,
    "train.log_every_steps": 1,
    "eval.every_epochs": 1,
    "eval.batch_size": 1,
    "eval.passes": 1,
    "eval.figure_images": 1,
    "checkpoint.every_steps": 0,
    "checkpoint.keep_latest": 1,
}
UNET_MULTIPLE_PX = 16  # four halvings


def field(config: ConfigDict, path: str):
    """The value at a dotted path."""
    for key in path.split("."):
        config = config[key]
    return config


def validate(config: ConfigDict) -> None:
    """Refuses values and combinations that cannot work, before anything heavy starts. Raises InputError."""
    for path, choices in CHOICES.items():
        if (value := field(config, path)) not in choices:
            raise InputError(
                f"config.{path} is {value!r}; expected one of {', '.join(choices)}.{_did_you_mean(value, choices)}"
            )
    for path, least in AT_LEAST.items():
        value = field(config, path)
        if not least <= value < float("inf"):  # NaN fails too
            raise InputError(f"config.{path} is {value}; expected at least {least}.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", config.peer):
        raise InputError(f"config.peer is {config.peer!r}; it names a folder: letters, digits and _ only.")
    _validate_sizes(config)
    _validate_data(config)
    _validate_loss(config)
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


def _validate_sizes(config: ConfigDict) -> None:
    data = config.data
    if data.resize != "none" and data.crop_px > data.size_px:
        raise InputError(
            f"config.data.crop_px={data.crop_px} is larger than the resized image (config.data.size_px={data.size_px});"
            " crop at most the size."
        )
    if config.model.name == "unet" and data.crop_px % UNET_MULTIPLE_PX:
        below = data.crop_px // UNET_MULTIPLE_PX * UNET_MULTIPLE_PX
        raise InputError(
            f"config.data.crop_px={data.crop_px} does not suit config.model.name='unet', which halves the image four"
            f" times; use a multiple of {UNET_MULTIPLE_PX}, for instance {below} or {below + UNET_MULTIPLE_PX}."
        )


def _validate_data(config: ConfigDict) -> None:
    data = config.data
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


def _validate_loss(config: ConfigDict) -> None:
    loss, crop_px = config.loss, config.data.crop_px
    if loss.name == "pixel":
        for name in ("weight", "combine", "radius", "pool", "pool_size"):
            if loss[name] != default().loss[name]:
                raise InputError(
                    f"config.loss.{name}={loss[name]} has no effect with config.loss.name='pixel';"
                    " add --config.loss.name=pixel_and_rmi, or drop it."
                )
        return
    if loss.radius > 10:  # the RMI authors' limit
        raise InputError(f"config.loss.radius is {loss.radius}; expected 1 to 10.")
    if loss.combine == "convex" and loss.weight > 1:
        raise InputError(
            f"config.loss.weight={loss.weight} with config.loss.combine='convex' would weigh RMI by {1 - loss.weight:g};"
            " use 0 to 1, or combine=additive."
        )
    left_px = crop_px if loss.pool == "none" else crop_px // loss.pool_size
    if left_px < loss.radius:
        raise InputError(
            f"config.data.crop_px={crop_px} leaves {left_px} pixels after config.loss.pool_size={loss.pool_size}, fewer"
            f" than config.loss.radius={loss.radius}; use a larger crop, or a smaller radius or pool_size."
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


def find_config_file(path: str) -> str:
    """The experiment file `path`, from here or, failing that, from the presets installed with the package.

    "configs/unet_voc.py:released" keeps its variant. Raises InputError with the nearest names.
    """
    name, colon, variant = path.partition(":")
    if Path(name).is_file():
        return path
    package = Path(__file__).parent
    folders = [package / "configs", package.parent / "configs"]  # of a wheel; of a checkout
    for folder in folders:
        if Path(name).parent.name in ("", "configs") and (folder / Path(name).name).is_file():
            return f"{folder / Path(name).name}{colon}{variant}"
    presets = sorted({f"configs/{file.name}" for folder in folders for file in folder.glob("[!_]*.py")})
    raise InputError(
        f"--config={path}: no such file, here or among the presets.{_did_you_mean(name, presets)} Presets: {', '.join(presets)}."
    )


def use_rmi(config: ConfigDict) -> None:
    """The study's Model 2: λ BCE + (1 - λ) RMI. What it leaves open is as in the RMI paper: max pooling 3, radius 3."""
    config.loss.name, config.loss.pixel = "pixel_and_rmi", "sigmoid"


def follow_released_rmi(config: ConfigDict) -> None:
    """What the released code does for Model 2, where it differs from text and RMI paper."""
    follow_released_code(config)
    config.loss.pool = "none"
    config.optim.learning_rate = 1e-4
    config.train.batch_size = 2


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    """Refuses a variant ("configs/x.py:variant") that an experiment file does not have. Raises InputError."""
    if variant and variant not in known:
        raise InputError(
            f"unknown variant {variant!r} after the colon of --config; expected {' or '.join(known)}, or none."
        )


def all_fields(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every dotted path, in order of declaration."""
    paths = []
    for key, value in config.items():
        paths += all_fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return paths


def unknown_field(path: str, config: ConfigDict) -> InputError:
    """The error for `--config.PATH=…` where there is no such field."""
    fields = all_fields(config)
    leaf = path.rsplit(".", 1)[-1]
    near = [f for f in fields if f.rsplit(".", 1)[-1] == leaf] or difflib.get_close_matches(path, fields, 3, 0.5)
    near = near or [f for f in fields if difflib.SequenceMatcher(None, leaf, f.rsplit(".", 1)[-1]).ratio() > 0.7]
    hint = f" Did you mean {' or '.join(f'config.{f}' for f in near)}?" if near else ""
    return InputError(f"config.{path}: there is no such field.{hint} All fields: jaxseg/config.py.")


def _did_you_mean(value, choices) -> str:
    near = difflib.get_close_matches(str(value), choices, 1)
    return f" Did you mean {near[0]!r}?" if near else ""
