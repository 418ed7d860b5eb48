"""Pretrained weights by name: torchvision's official files, fetched once and verified.

In: a config whose `model.init_from` is such a name, "torchvision/resnet50". Out: the same config with the images'
normalisation, and for an ImageNet ResNet the part, that these weights ask for; and the file in `config.data.dir`.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.config import ON_RESNET, peer_path, peer_sections
from jaxseg.config_checks import validate
from jaxseg.console import PlainConsole, progress_bar
from jaxseg.data.download import RemoteFile, checksum_of, download, with_size
from jaxseg.errors import InputError, did_you_mean
from jaxseg.files import file_lock

PREFIX = "torchvision/"
HOST = "https://download.pytorch.org/models/"
STEM_FEATURES = 64  # of every ResNet of torchvision


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One official file.

    Args:
      remote: where it is.
      backbone: the value of `model.backbone` whose tensors it holds.
      network: the value of `model.name`; "": the file is of an ImageNet ResNet, and gives a backbone alone.
      classes: of its head.
      normalize: the value of `model.normalize` that it was trained with.
    """

    remote: RemoteFile
    backbone: str
    network: str = ""
    classes: int = 0
    normalize: str = "imagenet"


def official(name: str, size: int | None, sha256: str) -> RemoteFile:
    return RemoteFile(HOST + name, size, sha256)


# Addresses: torchvision/models/resnet.py and segmentation/deeplabv3.py. A file's name has the first eight digits of its
# SHA-256, which is all that PyTorch publishes of it. The other digits, and the sizes in bytes, are what public projects
# recorded that had fetched the files: at least two for each digest, one for those of DeepLabV3 with ResNet-101 and of FCN.
# The sizes agree with torchvision's own `_file_size`.
# Of the names of an ImageNet ResNet, the bare one is the default of torchvision's segmentation networks
# (weights_backbone=IMAGENET1K_V1).
PRETRAINED = {
    "torchvision/resnet50": Pretrained(
        official(
            "resnet50-0676ba61.pth", 102_530_333, "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
        ),
        backbone="resnet50",
    ),
    "torchvision/resnet50_v2": Pretrained(
        official(
            "resnet50-11ad3fa6.pth", 102_540_417, "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca"
        ),
        backbone="resnet50",
    ),
    "torchvision/resnet34": Pretrained(
        official(
            "resnet34-b627a593.pth", 87_319_819, "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"
        ),
        backbone="resnet34",
    ),
    "torchvision/resnet101": Pretrained(
        official("resnet101-63fe2227.pth", None, "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a"),
        backbone="resnet101",
    ),
    "torchvision/resnet101_v2": Pretrained(
        official("resnet101-cd907fc2.pth", None, "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e"),
        backbone="resnet101",
    ),
    "torchvision/deeplabv3_resnet50_coco": Pretrained(
        official(
            "deeplabv3_resnet50_coco-cd0a2569.pth",
            168_312_152,
            "cd0a25694c4a0f7106b38f4938bf90a874f2f241cc410b8f63c7024399538f06",
        ),
        backbone="resnet50",
        network="deeplabv3",
        classes=21,
    ),
    "torchvision/deeplabv3_resnet101_coco": Pretrained(
        official(
            "deeplabv3_resnet101_coco-586e9e4e.pth",
            244_545_539,
            "586e9e4e203fcbf17e1ad45533d8d33ab133fc762bf03101c5dd743995c08c0d",
        ),
        backbone="resnet101",
        network="deeplabv3",
        classes=21,
    ),
    "torchvision/fcn_resnet50_coco": Pretrained(
        official(
            "fcn_resnet50_coco-1167a1af.pth",
            141_567_418,
            "1167a1affa42e1e62858f8d3fac12d109e0108327ffc91c5855a324b11683c36",
        ),
        backbone="resnet50",
        network="fcn",
        classes=21,
    ),
    "torchvision/fcn_resnet101_coco": Pretrained(
        official(
            "fcn_resnet101_coco-7ecb50ca.pth",
            217_800_805,
            "7ecb50ca17844860a70d5ed0c748d997cf8adb62932abaa0233430c68594d749",
        ),
        backbone="resnet101",
        network="fcn",
        classes=21,
    ),
}


def is_pretrained_name(init_from: str) -> bool:
    """Whether it is a name, not a path: "torchvision/resnet50" is, "torchvision/resnet50.pth" and "./torchvision/…" not.

    >>> is_pretrained_name("torchvision/resnet50"), is_pretrained_name("resnet50-0676ba61.pth")
    (True, False)
    """
    return init_from.startswith(PREFIX) and not Path(init_from).suffix


def find_pretrained(name: str) -> Pretrained:
    """The file of that name. Raises InputError with the nearest one and all."""
    if name not in PRETRAINED:
        raise InputError(
            f"there are no weights of that name.{did_you_mean(name, PRETRAINED)} Known are {', '.join(PRETRAINED)}; a"
            " file is given by its path, with .pth, .pt, .safetensors or .npz at the end."
        )
    return PRETRAINED[name]


def settle_pretrained(config: ConfigDict, *, say: Callable[[str], None] | None = None) -> None:
    """Sets what weights by name ask for, before the config is used or written: `model.normalize`, and for an ImageNet
    ResNet `model.init_parts`. A second time it changes nothing.

    Args:
      config: checked by `jaxseg.config_checks.validate`; is changed.
      say: takes a sentence for every peer that is changed; default: to standard error.

    Raises:
      InputError: where there is no such name, or the peer's network is another one.
    """
    say = say or PlainConsole(stderr=True).say
    for name, section in peer_sections(config).items():
        model = section.model
        where = f"{peer_path(config, name)}.model"
        if PREFIX + model.init_from in PRETRAINED and not Path(model.init_from).exists():
            raise InputError(
                f"{where}.init_from={model.init_from}: no such file; did you mean {PREFIX}{model.init_from}?"
            )
        if not is_pretrained_name(model.init_from):
            continue
        try:
            asked = fields_asked_for(model)
        except InputError as error:
            raise InputError(f"{where}.init_from={model.init_from}: {error}") from error
        if changed := {field: value for field, value in asked.items() if model[field] != value}:
            model.update(changed)
            fields = " and ".join(f"{where}.{field}={value}" for field, value in changed.items())
            say(f"{where}.init_from={model.init_from} sets {fields}")
    validate(config)


def fields_asked_for(model: ConfigDict) -> dict[str, str]:
    """By name, the values of `config.model` that the weights of its `init_from` ask for. Raises InputError where they are
    not of that network."""
    pretrained = find_pretrained(model.init_from)
    networks = (pretrained.network,) if pretrained.network else ON_RESNET
    wanted = {"name": networks, "backbone": (pretrained.backbone,), "stem_features": (STEM_FEATURES,)}
    for field, values in wanted.items():
        if model[field] not in values:
            like = [name for name, other in PRETRAINED.items() if other.backbone == model.backbone]
            others = f", or use {' or '.join(like)}" if field == "backbone" and like else ""
            raise InputError(
                f"these weights are for model.{field}={' or '.join(map(str, values))}, and it is {model[field]!r}; set"
                f" that{others}."
            )
    if pretrained.network:
        return {"normalize": pretrained.normalize}
    if model.init_parts == "all_but_head":
        raise InputError("these weights are of a backbone alone, without a head; drop init_parts='all_but_head'.")
    return {"normalize": pretrained.normalize, "init_parts": "backbone"}


def pretrained_file(model: ConfigDict, *, num_classes: int, data_dir: str | Path) -> Path:
    """The file that `model.init_from` names, fetched unless it is there, and verified either way.

    Args:
      model: `config.model`, after `settle_pretrained`.
      num_classes: of the network.
      data_dir: `config.data.dir`; the file is in its folder weights.

    Returns:
      Its path.

    Raises:
      InputError: where it cannot be had, or is not what its name says.
    """
    pretrained = find_pretrained(model.init_from)
    if changed := [field for field, value in fields_asked_for(model).items() if model[field] != value]:
        raise InputError(f"model.{changed[0]}={model[changed[0]]!r} does not suit these weights (settle_pretrained).")
    if pretrained.network and model.init_parts == "all" and pretrained.classes != num_classes:
        raise InputError(
            f"these weights are of {pretrained.classes} classes, the data has {num_classes}; with"
            " init_parts='all_but_head' all the rest is taken."
        )
    folder = Path(data_dir).expanduser() / "weights"
    path = folder / pretrained.remote.name
    waiting = f"waiting for another process that fetches weights into {folder} …"
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = file_lock(folder / "fetch.lock", if_held=lambda: PlainConsole(stderr=True).say(waiting))
            held.enter_context(lock)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); set config.data.dir.") from error
        _fetch_or_verify(pretrained.remote, path)
    return path


def drop_unreachable(
    config: ConfigDict, *, stored: ConfigDict | None, num_classes: int, say: Callable[[str], None]
) -> None:
    """Of peers whose weights by name are not required and cannot be had, sets `model.init_from` to fresh ones.

    Args:
      config: settled; is changed.
      stored: of the run that is gone on with, which decided when it began; None: it begins now.
      num_classes: of the networks.
      say: takes a sentence for every peer that begins with fresh weights.
    """
    for name, section in peer_sections(config).items():
        model = section.model
        if model.init_required or not is_pretrained_name(model.init_from):
            continue
        if stored is not None:
            if not peer_sections(stored)[name].model.init_from:
                model.update({"init_from": "", "init_parts": "all"})
            continue
        try:
            pretrained_file(model, num_classes=num_classes, data_dir=config.data.dir)
        except InputError as error:
            say(f"{name}: begins with fresh weights, since {model.init_from} cannot be had: {error}")
            model.update({"init_from": "", "init_parts": "all"})


def _fetch_or_verify(remote: RemoteFile, path: Path) -> None:
    if not path.is_file():
        remote = with_size(remote, path)
        with progress_bar(f"downloading {remote.name}", remote.size, unit_bytes=True) as advance:
            download(remote, path, progress=advance)
    elif (digest := checksum_of(path)) != remote.checksum:
        raise InputError(
            f"{path}: has SHA-256 {digest}, the official file {remote.checksum}. Move it away, and it is fetched anew; or give"
            " weights of your own by their path."
        )
