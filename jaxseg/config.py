"""Every setting of a run: declared once here, with unit and source, then locked.

In: an experiment file of `configs/` (which sets only what differs) and `--config.field=value`. Out: a checked, locked
`ml_collections.ConfigDict`. `InputError` is the one exception for input that cannot be used; its message is a sentence.
"""

import difflib
import json
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.errors import InputError


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

    # What the reported network is and learns by; a further peer has the same three sections, below.
    config.model, config.loss, config.optim = default_model(), default_loss(), default_optim()

    config.peers = ConfigDict()  # further networks, by name, that learn together with the reported one: add_peer()
    config.mutual = mutual = ConfigDict()  # of runs with further peers only
    mutual.weight = 1.0  # w in L_i = own loss_i + w · mean over the other peers j of KL(p_j || p_i); study
    mutual.temperature = 1.0  # T: softmax of logits / T, the divergence times T²; study
    mutual.pixels = "valid"  # valid | all: void pixels too (code)
    mutual.form = "kl"  # kl: of the softmax distributions (study) | released: what the released code computes instead

    config.train = train = ConfigDict()
    train.epochs = 200  # code
    train.max_steps = 0  # stop here, with schedules still laid out over `epochs`; 0: when the epochs are done
    train.batch_size = 8  # images a step, over all devices and hosts; code, Model 1
    train.accumulate_steps = 1  # passes that a device's share of the batch is cut into, for batches that do not fit
    train.max_skipped_steps = 0  # updates left out because something was not finite; one more stops the run
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


def default_model() -> ConfigDict:
    """The study's U-Net."""
    model = ConfigDict()
    model.name = "unet"  # unet | deeplabv3
    model.features = 32  # unet: channels of the first level, study
    model.backbone = "resnet50"  # deeplabv3: resnet50 (code) | resnet101 | resnet14, for CPUs
    model.stem_features = 64  # deeplabv3: channels of the backbone's first layer; all others in proportion
    model.output_stride = 8  # deeplabv3: 8 (code) | 16: a quarter of the arithmetic in the last two stages
    model.auxiliary = False  # deeplabv3: a second head on stage 3 while training
    model.normalize = "none"  # what images in [0, 1] become: none (code) | imagenet, as torchvision's weights want it
    model.dtype = "float32"  # of the computation: float32 | bfloat16; parameters and BatchNorm statistics are float32
    model.remat = False  # compute the inside of blocks again in the backward pass: less memory, a forward pass more
    model.init_from = ""  # start from: .pth, .pt, .safetensors or .npz, or the best checkpoint of a run's folder
    model.init_parts = "all"  # of init_from: all | all_but_head | backbone (deeplabv3; also of an ImageNet ResNet)
    return model


def default_loss() -> ConfigDict:
    """Cross-entropy."""
    loss = ConfigDict()
    loss.name = "pixel"  # pixel: that term alone (Model 1) | pixel_and_rmi: with region mutual information (Model 2)
    loss.pixel = "softmax"  # softmax: cross-entropy (code) | sigmoid: binary cross-entropy of every class
    loss.auxiliary_weight = 0.5  # of the auxiliary head's pixel term; torchvision's reference training
    loss.weight = 0.5  # λ, study; of the fields from here on, pixel_and_rmi alone makes use
    loss.combine = "convex"  # convex: λ pixel + (1 - λ) rmi (study) | additive: pixel + λ rmi
    loss.radius = 3  # pixels, side of the square regions, 1 to 10; RMI paper
    loss.pool = "max"  # downsampling before regions are cut: max (RMI paper) | avg | interpolate | none (code)
    loss.pool_size = 3  # pixels, window and stride of it; RMI paper
    return loss


def default_optim() -> ConfigDict:
    """Adam at a constant rate."""
    optim = ConfigDict()
    optim.name = "adam"  # adam: betas 0.9, 0.999, eps 1e-8 (PyTorch's defaults) | sgd: momentum 0.9
    optim.learning_rate = 1e-3  # code, Model 1
    optim.schedule = "constant"  # constant (code) | cosine | poly: (1 - step/steps)^0.9
    optim.warmup_steps = 0  # linear from 0
    optim.weight_decay = 0.0  # decoupled, on every parameter
    return optim


def add_peer(config: ConfigDict, name: str) -> ConfigDict:
    """Adds the section config.peers.NAME: model, loss, optim, and frozen (not trained: a teacher); returns it."""
    with config.unlocked():
        config.peers[name] = peer = ConfigDict()
        peer.model, peer.loss, peer.optim = default_model(), default_loss(), default_optim()
        peer.frozen = False
    return peer


def peer_sections(config: ConfigDict) -> dict[str, ConfigDict]:
    """Peer -> what holds its model, loss and optim; the reported one first."""
    return {config.peer: config} | {name: config.peers[name] for name in config.peers}


def peer_path(config: ConfigDict, name: str) -> str:
    """Where a peer's section is, as a user types it: config or config.peers.NAME."""
    return "config" if name == config.peer else f"config.peers.{name}"


def is_frozen(config: ConfigDict, name: str) -> bool:
    return name != config.peer and config.peers[name].frozen


def follow_released_code(config: ConfigDict) -> None:
    """What every model of the study's released code does otherwise than its text says: data, scoring, checkpoint."""
    config.data.resize = "shorter_side"
    config.eval.view, config.eval.passes = "random", 5
    config.checkpoint.best = "train_loss"


def get_field(config: ConfigDict, path: str):
    """The value at a dotted path."""
    for key in path.split("."):
        config = config[key]
    return config


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


def use_mutual_learning(config: ConfigDict) -> None:
    """The study's Model 3: the U-Net (student, reported) and a DeepLabV3 (teacher) learn together, from scratch.

    Text and DML paper leave batch, rate and initial weights open: those of Model 1, so that the term is what differs.
    """
    config.peer = "student"
    add_peer(config, "teacher").model.name = "deeplabv3"


def follow_released_mutual(config: ConfigDict) -> None:
    """What the released code does for Model 3, where it differs from text and DML paper, but for the teacher's weights:
    those are torchvision's, from a file that the user gives."""
    follow_released_code(config)
    config.mutual.form, config.mutual.pixels = "released", "all"
    config.train.batch_size = 10
    config.optim.learning_rate = config.peers.teacher.optim.learning_rate = 1e-4


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    """Refuses a variant ("configs/x.py:variant") that an experiment file does not have. Raises InputError."""
    if variant and variant not in known:
        raise InputError(
            f"unknown variant {variant!r} after the colon of --config; expected {' or '.join(known)}, or none."
        )


def load_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with. Raises InputError."""
    try:
        stored = json.loads((workdir / "config.json").read_text())
    except FileNotFoundError as error:
        raise InputError(f"{workdir}: no run there (config.json is missing).") from error
    except NotADirectoryError as error:
        raise InputError(
            f"{workdir}: a file, not a run's folder. Weights of another program are given with the config of their network:"
            " --config=configs/unet_voc.py --config.model.init_from=FILE, or in Python load(FILE, config=…)."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{workdir / 'config.json'}: cannot be read as JSON ({error}).") from error
    config = default()
    try:
        for name in stored["config"].get("peers", {}):
            add_peer(config, name)
        config.update(stored["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{workdir / 'config.json'}: does not fit this version of jaxseg ({error}).") from error
    return config


def all_fields(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every dotted path, in order of declaration."""
    paths = []
    for key, value in config.items():
        paths += all_fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return paths


def unknown_field(path: str, config: ConfigDict) -> InputError:
    """The error for `--config.PATH=…` where there is no such field."""
    fields = all_fields(config)
    if path.startswith("peers.") and path.split(".")[1] not in config.peers:
        known = ", ".join(config.peers) or "none"
        return InputError(f"config.{path}: the experiment file has no such peer; config.peers holds {known}.")
    leaf = path.rsplit(".", 1)[-1]
    near = [f for f in fields if f.rsplit(".", 1)[-1] == leaf] or difflib.get_close_matches(path, fields, 3, 0.5)
    near = near or [f for f in fields if difflib.SequenceMatcher(None, leaf, f.rsplit(".", 1)[-1]).ratio() > 0.7]
    hint = f" Did you mean {' or '.join(f'config.{f}' for f in near)}?" if near else ""
    return InputError(f"config.{path}: there is no such field.{hint} All fields: jaxseg/config.py.")


def _did_you_mean(value, choices) -> str:
    near = difflib.get_close_matches(str(value), list(map(str, choices)), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
