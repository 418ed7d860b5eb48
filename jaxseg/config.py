"""Every setting of a run, declared once: default, meaning, what it may be, unit and source.

In: an experiment file of `configs/` (which sets only what differs) and `--config.field=value`. Out: a locked
`ml_collections.ConfigDict`, made from `SECTIONS`. The checks of values (`jaxseg.config_checks`), `--help=config` and the
tables of `configs/README.md`, which `python -m jaxseg.config` prints, are made from it too.
"""

import dataclasses
import difflib
import math
import os
import re
import runpy
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.errors import InputError, did_you_mean
from jaxseg.files import read_json
from jaxseg.labels import LABELS, OWN
from jaxseg.schemas import CONFIG_FILE, shown


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    Args:
      default: its value where nothing else is said, and so its type.
      doc: what it is.
      choices: the values it may have, each with its meaning; {}: any value of the type.
      at_least: the least number.
      at_most: the largest. Where `doc` names no limit, it is far above what is of use, and catches slips of a digit.
      needs: a field and its value, or several, without one of which this one has no effect and keeps its default.
      unit: of the number.
      source: where the default is from: the study's text ("study"), its authors' longer report ("report"), the code
        released with it ("code"), or other work by name.
    """

    default: bool | int | float | str
    doc: str
    _: dataclasses.KW_ONLY
    choices: dict[int | str, str] = dataclasses.field(default_factory=dict)
    at_least: float | None = None
    at_most: float | None = None
    needs: tuple[str, bool | str | tuple[str, ...]] | None = None
    unit: str = ""
    source: str = ""

    def explain(self) -> str:
        """What it is and what it may be."""
        parts = [self.doc]
        if self.choices:
            values = [f"{value} ({meaning})".removesuffix(" ()") for value, meaning in self.choices.items()]
            parts.append(f"One of {', '.join(values)}.")
        if self.at_least is not None:
            most = "or more" if self.at_most is None else f"to {self.at_most:,}"
            parts.append(f"{self.at_least:g} {most}.")
        if self.needs:
            parts.append(f"Only with {self.needs[0]}={' or '.join(map(str, self.needed_values()))}.")
        return " ".join(parts)

    def needed_values(self) -> tuple:
        """Those of the field in `needs`."""
        if self.needs is None:
            return ()
        return self.needs[1] if isinstance(self.needs[1], tuple) else (self.needs[1],)

    def written_default(self) -> str:
        return f"{self.default} {self.unit}".strip() or '""'


MAX_STEPS = 2**31 - 1  # the optimizer counts its steps in an int32
MAX_EPOCHS = 1_000_000
MAX_BATCH = 65_536
MAX_PX = 16_384

UNET = ("model.name", "unet")
ON_RESNET = ("deeplabv3", "deeplabv3plus", "fcn", "fpn", "pspnet", "resnet_unet")  # networks with a backbone
RESNET = ("model.name", ON_RESNET)
ON_DILATED_RESNET = ("deeplabv3", "fcn")  # of them torchvision's, with a choice of output stride and an auxiliary head
DILATED = ("model.name", ON_DILATED_RESNET)
RMI = ("loss.name", ("pixel_and_rmi", "rmi"))
TVERSKY = ("loss.name", ("pixel_and_tversky", "tversky"))
TWO_TERMS = ("loss.name", ("pixel_and_rmi", "pixel_and_dice", "pixel_and_tversky", "pixel_and_lovasz"))
CLASS_WEIGHTS = ("none", "inverse", "median_frequency")
SOFTMAX = ("loss.pixel", "softmax")
VOC2012 = ("data.name", "voc2012")
PUBLIC_ARCHIVE = ("data.name", ("voc2012", "ade20k"))
UNSPLIT = ("data.name", (OWN, "camvid32"))
USUAL = ("augment.name", "usual")

SOURCES = "Sources: study, its text; report, its authors' longer one; code, what was released with it."

# fmt: off
# Of each section, what it is about and its fields. The defaults are the study's Model 1 on Cityscapes, by its text.
SECTIONS = {
    "": ("The run", {
        "seed": Field(0, "Of weights, data order, crops, augmentation and dropout; JAX's keys take 32 bits.",
                      at_least=0, at_most=2**32 - 1),
        "peer": Field("unet", "Name of the reported network in logs, checkpoints and results."),
    }),
    "data": ("images and labels, and how they are read", {
        "name": Field("cityscapes", "The data set.", source="study", choices=dict.fromkeys(LABELS, "") | {
            OWN: "of your own: pairs of images and masks, classes.toml"}),
        "source_dir": Field("", 'Raw data: a folder, or the official archives in it. "": what was prepared before in data.dir;'
                            " of cityscapes, what the environment variable CITYSCAPES_DATASET names."),
        "val_fraction": Field(0.2, "Of the images, held back for validation where the folder has no such split; by a hash of"
                              " their names.", at_least=0.0, at_most=0.9, needs=UNSPLIT),
        "dir": Field("~/.cache/jaxseg", "Prepared records and downloads go here."),
        "download": Field(False, "Fetch the official archive (2.0 GB; ADE20K 0.9 GB) into data.dir.", needs=PUBLIC_ARCHIVE),
        "trainaug": Field(False, "Train on ImageSets/Segmentation/trainaug.txt and SegmentationClassAug/.", needs=VOC2012),
        "scenes": Field(480, "Of synthetic: rendered scenes, the last sixth for validation; numbered in six digits.",
                        at_least=6, at_most=1_000_000),
        "resize": Field("square", "How images and labels are resized.", source="study", choices={
            "square": "to size_px × size_px", "shorter_side": "the shorter side to size_px; code", "none": "not at all"}),
        "size_px": Field(234, "Side of the resized image.", at_least=1, at_most=MAX_PX, unit="pixels", source="study"),
        "crop_px": Field(224, "Side of the random square crop.", at_least=16, at_most=MAX_PX, unit="pixels", source="study"),
        "workers": Field(0, "Processes that read and crop; 0: threads of the main process.", at_least=0, at_most=1_024),
        "threads": Field(8, "Reading threads in each process; each keeps one batch ready ahead of the step.",
                         at_least=1, at_most=1_024),
    }),
    "augment": ("how training images are changed, each time they are drawn; validation's never are", {
        "name": Field("none", "The switch.", source="study", choices={
            "none": "random crops alone", "usual": "as the other fields say; beyond the image is void"}),
        "flip": Field(0.5, "Probability of mirroring left and right.", at_least=0.0, at_most=1.0, needs=USUAL,
                      source="DeepLabV3 and PSPNet papers"),
        "scale_min": Field(0.5, "Least factor on both sides of the image.", at_least=0.1, at_most=10.0, needs=USUAL,
                           source="DeepLabV3 and PSPNet papers"),
        "scale_max": Field(2.0, "Largest; uniform between.", at_least=0.1, at_most=10.0, needs=USUAL,
                           source="DeepLabV3 and PSPNet papers"),
        "rotate_degrees": Field(10.0, "Largest angle to either side.", at_least=0.0, at_most=180.0, needs=USUAL,
                                source="PSPNet paper"),
        "brightness": Field(0.4, "x: the factor is uniform in 1 - x to 1 + x.", at_least=0.0, at_most=1.0, needs=USUAL,
                            source="MoCo v2's code"),
        "contrast": Field(0.4, "Likewise, about the crop's mean gray.", at_least=0.0, at_most=1.0, needs=USUAL,
                          source="MoCo v2's code"),
        "saturation": Field(0.4, "Likewise, about each pixel's gray.", at_least=0.0, at_most=1.0, needs=USUAL,
                            source="MoCo v2's code"),
        "hue": Field(0.1, "Largest turn of the colors to either side, as a part of the circle.", at_least=0.0, at_most=0.5,
                     needs=USUAL, source="MoCo v2's code"),
        "blur": Field(0.5, "Probability of a Gaussian blur.", at_least=0.0, at_most=1.0, needs=USUAL,
                      source="MoCo v2's code"),
        "blur_sigma": Field(2.0, "Its largest deviation; uniform from 0.1.", at_least=0.1, at_most=100.0, needs=USUAL,
                            unit="pixels", source="MoCo v2's code"),
    }),
    # This section and the next two are of one network: a further peer has its own.
    "model": ("what the network is", {
        "name": Field("unet", "The network.", source="study", choices={
            "unet": "", "deeplabv3": "", "deeplabv3plus": "", "fcn": "", "fpn": "", "pspnet": "",
            "resnet_unet": "U-Net with a ResNet as encoder"}),
        "features": Field(32, "Channels of the first level.", at_least=1, at_most=4_096, needs=UNET, source="code"),
        "backbone": Field("resnet50", "What feeds the head.", needs=RESNET, source="code", choices={
            "resnet50": "", "resnet101": "", "resnet34": "of basic blocks", "resnet14": "for CPUs"}),
        "stem_features": Field(64, "Channels of the backbone's first layer; all others are in proportion.",
                               at_least=1, at_most=4_096, needs=RESNET),
        "output_stride": Field(8, "Image pixels per pixel of the backbone's output.", needs=DILATED, source="code", choices={
            8: "", 16: "a quarter of the arithmetic in the last two stages"}),
        "auxiliary": Field(False, "A second head on stage 3 while training.", needs=DILATED),
        "normalize": Field("none", "What is done to images in [0, 1].", source="code", choices={
            "none": "nothing", "imagenet": "as torchvision's weights want it; their names in init_from set it"}),
        "dtype": Field("float32", "Of the computation; parameters and BatchNorm statistics are float32.", choices={
            "float32": "", "bfloat16": ""}),
        "remat": Field(False, "Compute the inside of blocks again in the backward pass: less memory, a forward pass more."),
        "init_from": Field("", "Weights to start from: .pth, .pt, .safetensors or .npz, or a run's folder for its best"
                           " checkpoint, or a name such as torchvision/resnet50 (jaxseg/models/README.md), whose file is"
                           ' fetched once into data.dir. "": fresh ones.'),
        "init_parts": Field("all", "What is taken of init_from; the name of an ImageNet ResNet sets backbone.", choices={
            "all": "", "all_but_head": "", "backbone": "of all but unet, also from an ImageNet ResNet"}),
        "init_required": Field(True, "Whether a run that cannot fetch weights by name is refused; else it says so, and begins"
                               " with fresh ones."),
        "freeze_batchnorm": Field(False, "Train with the running statistics of init_from, unchanged; scale and bias learn."),
    }),
    "loss": ("what the network learns by", {
        "name": Field("pixel", "The terms: a pixel term, a region term, or both.", choices={
            "pixel": "that term alone: Model 1", "pixel_and_rmi": "with region mutual information: Model 2",
            "pixel_and_dice": "", "pixel_and_tversky": "", "pixel_and_lovasz": "",
            "rmi": "", "dice": "", "tversky": "", "lovasz": "Lovász-Softmax, image by image"}),
        "pixel": Field("softmax", "The pixel term.", source="report, code", choices={
            "softmax": "cross-entropy", "sigmoid": "binary cross-entropy of every class", "focal": "(1 - p)^γ cross-entropy",
            "focal_sigmoid": "the same of every class by itself"}),
        "class_weights": Field("none", 'Of the cross-entropy: "none", "inverse", "median_frequency" (both from the pixels of'
                               " the training images), or numbers with commas, one per class.", needs=SOFTMAX),
        "label_smoothing": Field(0.0, "ε: the share of the truth that is spread over all classes.", at_least=0.0, at_most=1.0,
                                 needs=SOFTMAX, source="Szegedy et al., arXiv 1512.00567"),
        "focal_gamma": Field(2.0, "γ.", at_least=0.0, needs=("loss.pixel", ("focal", "focal_sigmoid")),
                             source="Lin et al., arXiv 1708.02002"),
        "auxiliary_weight": Field(0.5, "Of the auxiliary head's pixel term.", at_least=0.0, needs=("model.auxiliary", True),
                                  source="torchvision's reference training"),
        "weight": Field(0.5, "λ; with convex at most 1.", at_least=0.0, needs=TWO_TERMS, source="study"),
        "combine": Field("convex", "The sum of both terms.", needs=TWO_TERMS, source="study", choices={
            "convex": "λ pixel + (1 - λ) region", "additive": "pixel + λ region"}),
        "start_steps": Field(0, "Before this many steps the pixel term is alone.", at_least=0, at_most=MAX_STEPS,
                             needs=TWO_TERMS, unit="steps"),
        "ramp_steps": Field(0, "From there on, steps over which r goes from 0 to 1 in (1 - r) pixel + r (the sum of both).",
                            at_least=0, at_most=MAX_STEPS, needs=TWO_TERMS, unit="steps"),
        "radius": Field(3, "Side of the square regions; the RMI authors' code takes 10 at most.", at_least=1, at_most=10,
                        needs=RMI, unit="pixels", source="RMI paper"),
        "pool": Field("max", "Downsampling before regions are cut.", needs=RMI, source="RMI paper", choices={
            "max": "", "avg": "", "interpolate": "", "none": "code"}),
        "pool_size": Field(3, "Its window and stride.", at_least=1, at_most=MAX_PX, needs=RMI, unit="pixels",
                           source="RMI paper"),
        "tversky_alpha": Field(0.3, "Weight of false positives.", at_least=0.0, needs=TVERSKY,
                               source="Salehi et al., arXiv 1706.05721"),
        "tversky_beta": Field(0.7, "Weight of false negatives.", at_least=0.0, needs=TVERSKY,
                              source="Salehi et al., arXiv 1706.05721"),
        "smooth": Field(0.0, "Added to the overlap of Dice and Tversky and to what it is divided by.", at_least=0.0,
                        needs=("loss.name", ("pixel_and_dice", "dice", *TVERSKY[1])), unit="pixels",
                        source="segmentation_models_pytorch"),
    }),
    "optim": ("how the network's parameters are updated", {
        "name": Field("adam", "The optimizer, by PyTorch's names and defaults.", source="report, code", choices={
            "adam": "betas 0.9, 0.999, eps 1e-8", "adamw": "the same, its decay decoupled", "sgd": "momentum 0.9"}),
        "learning_rate": Field(1e-3, "Where the schedule is highest.", at_least=0.0, source="report, code"),
        "schedule": Field("constant", "Of the learning rate, behind the warm-up.", source="code", choices={
            "constant": "", "cosine": "to 0", "poly": "(1 - step/steps)^0.9", "step": "in steps"}),
        "step_at": Field("0.5,0.75", "Where the rate steps down: shares of the schedule, with commas.",
                         needs=("optim.schedule", "step"), source="He et al., arXiv 1512.03385, section 4.2"),
        "step_factor": Field(0.1, "Of the rate at each of them.", at_least=0.0, at_most=1.0,
                             needs=("optim.schedule", "step"), source="the same"),
        "warmup_steps": Field(0, "Ahead of the schedule, update i of n has (i + 1)/n of the rate.", at_least=0,
                              at_most=MAX_STEPS, unit="steps"),
        "weight_decay": Field(0.0, "Added, times the parameter, to the gradient (adam, sgd), or to the update (adamw).",
                              at_least=0.0),
        "decay_on": Field("weights", "What decays.", choices={
            "weights": "kernels: neither biases nor BatchNorm", "all": "every parameter"}),
        "clip_norm": Field(0.0, "Gradients of a larger global norm are scaled down to it; 0: not.", at_least=0.0),
        "backbone_rate": Field(1.0, "Factor on the learning rate of the backbone.", at_least=0.0, needs=RESNET),
        "head_rate": Field(1.0, "Factor on that of everything else.", at_least=0.0, needs=RESNET),
        "ema_decay": Field(0.0, "Of a moving average of the network's state, which is then what is scored, predicts and is"
                           " exported; 0: none.", at_least=0.0, at_most=0.99999),
    }),
    "peers": ("further networks, by name; each has the sections model, loss and optim too", {
        "NAME.frozen": Field(False, "Not trained: a teacher, with weights by model.init_from."),
    }),
    "mutual": ("with further networks, L_i = own loss_i + w · mean over the other peers j of KL(p_j || p_i)", {
        "weight": Field(1.0, "w; with 0 the divergence is measured but not learnt from.", at_least=0.0, source="report"),
        "temperature": Field(1.0, "T > 0: softmax of logits / T, the divergence times T².", source="DML paper"),
        "pixels": Field("valid", "Where the divergence is taken.", choices={"all": "void ones too; code", "valid": ""}),
        "form": Field("kl", "The divergence.", source="report, DML paper", choices={
            "kl": "of the softmax distributions", "released": "what the released code computes instead"}),
        "updates": Field("together", "When the networks of a step are updated.", choices={
            "together": "all at once, from the same predictions",
            "in_turn": "the further peers first, in their order, the reported one last, each from new predictions; DML paper,"
                       " code"}),
    }),
    "train": ("how long is trained, and in what portions", {
        "epochs": Field(200, "Times through the training images.", at_least=1, at_most=MAX_EPOCHS, source="report, code"),
        "max_steps": Field(0, "Stop here, with schedules still laid out over epochs; 0: when these are done.",
                           at_least=0, at_most=MAX_STEPS, unit="steps"),
        "batch_size": Field(8, "Of a step, over all devices and hosts.", at_least=1, at_most=MAX_BATCH, unit="images",
                            source="report, code"),
        "accumulate_steps": Field(1, "Passes that a device's share of the batch is cut into, for batches that do not fit.",
                                  at_least=1, at_most=MAX_BATCH),
        "max_skipped_steps": Field(0, "Updates left out because something was not finite; one more stops the run.",
                                   at_least=0, at_most=MAX_STEPS),
        "log_every_steps": Field(20, "Between writes of the log; it has a line for every step.", at_least=1, at_most=MAX_STEPS,
                                 unit="steps"),
    }),
    "eval": ("how the networks are scored", {
        "every_epochs": Field(5, "Between evaluations; the last step has one.", at_least=1, at_most=MAX_EPOCHS, unit="epochs"),
        "patience": Field(0, "End after so many evaluations in a row without a better checkpoint.best of the reported"
                          " network; 0: do not.", at_least=0, at_most=MAX_EPOCHS, unit="evaluations"),
        "batch_size": Field(8, "Over all devices and hosts.", at_least=1, at_most=MAX_BATCH, unit="images"),
        "view": Field("whole", "What is scored of an image.", choices={
            "whole": "every pixel once", "center": "the central crop_px", "random": "random crop_px; code"}),
        "passes": Field(1, "Times through the validation split; more than one only with view=random (code: 5).",
                        at_least=1, at_most=1_000),
        "figure_images": Field(4, "Rows in the figure of image, truth and prediction; 0: no figure.", at_least=0, at_most=1_000),
    }),
    "checkpoint": ("what is saved, and kept", {
        "every_steps": Field(0, "Also between evaluations; 0: not.", at_least=0, at_most=MAX_STEPS, unit="steps"),
        "keep_latest": Field(2, "How many of the latest.", at_least=1, at_most=1_000_000, unit="checkpoints"),
        "best": Field("mean_iou", "The best is kept too, by this.", choices={
            "mean_iou": "of validation, higher", "train_loss": "lower; study, report, code"}),
    }),
}
# fmt: on
FIELDS = {
    f"{name}.{leaf}".removeprefix("."): field
    for name, (_, fields) in SECTIONS.items()
    for leaf, field in fields.items()
}


def find_field(path: str) -> Field | None:
    """What is declared of a dotted path, of a further peer's too; None where nothing is."""
    of_any_network = re.sub(r"^peers\.[^.]+\.", "", path)
    return FIELDS.get(of_any_network) or FIELDS.get(re.sub(r"^peers\.[^.]+", "peers.NAME", path))


def choices_of(path: str) -> tuple:
    """The values that a field may have.

    >>> choices_of("model.output_stride")
    (8, 16)
    """
    return tuple(FIELDS[path].choices)


def default() -> ConfigDict:
    """The study's Model 1 on Cityscapes, by its text."""
    config = _section("")
    for name in SECTIONS:
        if name:
            config[name] = ConfigDict() if name == "peers" else _section(name)
    return config.lock()


def _section(name: str) -> ConfigDict:
    return ConfigDict({leaf: field.default for leaf, field in SECTIONS[name][1].items()})


def add_peer(config: ConfigDict, name: str) -> ConfigDict:
    """Adds the section config.peers.NAME: model, loss, optim, and frozen (not trained: a teacher); returns it."""
    peer = ConfigDict({section: _section(section) for section in ("model", "loss", "optim")})
    peer.frozen = FIELDS["peers.NAME.frozen"].default
    with config.unlocked():
        config.peers[name] = peer
    return config.peers[name]


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
    config.eval.view = "random"
    config.eval.passes = 5
    config.checkpoint.best = "train_loss"


def follow_report(config: ConfigDict) -> None:
    """What every model of the study's longer report does otherwise than the default: the best by training loss. Its Model 1
    is that of the default: 200 epochs, batches of 8, Adam at 1e-3, cross-entropy."""
    config.checkpoint.best = "train_loss"


def given_class_weights(loss: ConfigDict) -> tuple[float, ...] | None:
    """The numbers in `config.loss.class_weights`; None where it holds a word. Raises ValueError for what is neither.

    >>> loss = default().loss
    >>> loss.class_weights = "1,0.5"
    >>> given_class_weights(loss)
    (1.0, 0.5)
    """
    if loss.class_weights in CLASS_WEIGHTS:
        return None
    weights = tuple(float(weight) for weight in loss.class_weights.split(","))
    if not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
        raise ValueError(f"{weights} are not all finite and 0 or more, or are all 0")
    return weights


def step_shares(optim: ConfigDict) -> list[float]:
    """The numbers in `config.optim.step_at`. Raises ValueError where they are none between 0 and 1.

    >>> step_shares(default().optim)
    [0.5, 0.75]
    """
    shares = [float(share) for share in optim.step_at.split(",")]
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"{shares} are not all between 0 and 1")
    return shares


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
        f"--config={path}: no such file, here or among the presets.{did_you_mean(name, presets)} Presets: {', '.join(presets)}."
    )


def use_rmi(config: ConfigDict) -> None:
    """The study's Model 2: λ BCE + (1 - λ) RMI. What it leaves open is as in the RMI paper: max pooling 3, radius 3."""
    config.loss.name = "pixel_and_rmi"
    config.loss.pixel = "sigmoid"


def follow_released_rmi(config: ConfigDict) -> None:
    """What the released code does for Model 2, where it differs from text and RMI paper."""
    follow_released_code(config)
    config.loss.pool = "none"
    config.optim.learning_rate = 1e-4
    config.train.batch_size = 2


def follow_report_rmi(config: ConfigDict) -> None:
    """What the study's longer report says of Model 2. Pooling and radius it leaves open: as in the RMI paper."""
    follow_report(config)
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
    config.mutual.form = "released"
    config.mutual.pixels = "all"
    config.mutual.updates = "in_turn"
    config.train.batch_size = 10
    config.optim.learning_rate = config.peers.teacher.optim.learning_rate = 1e-4


def follow_report_mutual(config: ConfigDict) -> None:
    """What the study's longer report says of Model 3: the KL divergence, as in the text, and batch and rate of its own."""
    follow_report(config)
    config.train.batch_size = 10
    config.optim.learning_rate = config.peers.teacher.optim.learning_rate = 1e-4


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    """Refuses a variant ("configs/x.py:variant") that an experiment file does not have. Raises InputError."""
    if variant and variant not in known:
        raise InputError(
            f"unknown variant {variant!r} after the colon of --config; expected {' or '.join(known)}, or none."
        )


def load_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with, every value of its field's type. Raises InputError."""
    path = workdir / "config.json"
    if os.path.isfile(workdir):
        raise InputError(
            f"{workdir}: a file, not a run's folder. Weights of another program are given with the config of their network:"
            " --config=configs/unet_voc.py --config.model.init_from=FILE, or in Python load(FILE, config=…)."
        )
    if not os.path.lexists(path):
        raise InputError(f"{workdir}: no run there (config.json is missing).")
    stored = read_json(path, CONFIG_FILE)["config"]
    config = default()
    try:
        for name in stored.get("peers", {}):
            add_peer(config, name)
        config.update(stored)
        for name, section in peer_sections(config).items():
            written = stored if name == config.peer else stored["peers"][name]
            _rename_decoupled_adam(section.optim, written["optim"])
        wrong = [path for path in all_fields(config) if not _is_of_its_type(path, get_field(config, path))]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: does not fit this version of jaxseg ({str(error)[:300]}).") from error
    if wrong:
        value = shown(get_field(config, wrong[0]))
        raise InputError(f"{path}: does not fit this version of jaxseg (config.{wrong[0]} is {value}).")
    return config


def _rename_decoupled_adam(optim: ConfigDict, written: dict) -> None:
    """Before there was `decay_on`, the decay of adam was decoupled and on every parameter: what is now called adamw."""
    if "decay_on" not in written and optim.name == "adam" and optim.weight_decay:
        optim.update({"name": "adamw", "decay_on": "all"})


def _is_of_its_type(path: str, value: object) -> bool:
    field = find_field(path)
    return (
        field is not None and type(value) is type(field.default) and (type(value) is not float or math.isfinite(value))
    )


def all_fields(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every dotted path, in alphabetical order."""
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
    near = [f for f in fields if f.rsplit(".", 1)[-1] == leaf] or difflib.get_close_matches(path, fields, 3, 0.75)
    near = near or [f for f in fields if difflib.SequenceMatcher(None, leaf, f.rsplit(".", 1)[-1]).ratio() > 0.7]
    hint = f" Did you mean {' or '.join(f'config.{f}' for f in near)}?" if near else ""
    return InputError(f"config.{path}: there is no such field.{hint} All fields: python -m jaxseg.main --help=config.")


def fields_help() -> list[str]:
    """A line for every field, section by section, for `--help=config`."""
    lines = [SOURCES]
    for name, (about, fields) in SECTIONS.items():
        lines += ["", f"{name}: {about}".removeprefix(": ")]
        for leaf, field in fields.items():
            path = f"config.{name}.{leaf}".replace("..", ".")
            source = f" ({field.source})" if field.source else ""
            lines.append(f"--{path}: {field.explain()} Default: {field.written_default()}{source}.")
    return lines


def fields_table() -> str:
    """The same in Markdown."""
    lines = [SOURCES]
    for name, (about, fields) in SECTIONS.items():
        lines += ["", f"### {name}: {about}".replace(" : ", " "), ""]
        lines += ["| field | default | source | what it is, what it may be |", "|---|---|---|---|"]
        for leaf, field in fields.items():
            path = f"{name}.{leaf}".removeprefix(".")
            lines.append(f"| `{path}` | `{field.written_default()}` | {field.source} | {field.explain()} |")
    return "\n".join(lines)


def run_config_file(path: str) -> ConfigDict:
    """Runs an experiment file ahead of absl, which would bury its errors. Raises InputError."""
    name, colon, variant = path.partition(":")
    try:
        config = runpy.run_path(name)["get_config"](*([variant] if colon else []))
    except InputError:
        raise
    except Exception as error:  # whatever a user's file raises
        raise InputError(f"{name}: cannot be used as an experiment file ({type(error).__name__}: {error}).") from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{name}: get_config returned a {type(config).__name__}; expected an ml_collections ConfigDict."
        )
    if missing := [f"config.{path}" for path in all_fields(default()) if path not in all_fields(config)]:
        raise InputError(
            f"{name}: get_config's result has no field {', '.join(missing[:3])}{' …' if missing[3:] else ''}; let it start"
            " from jaxseg.config.default()."
        )
    return config


if __name__ == "__main__":
    print(fields_table())
