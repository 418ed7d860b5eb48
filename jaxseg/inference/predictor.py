"""From images of any size to classes at that size: whole or by windows, mirrored too, at several scales.

In: a run, or weights with their config, and images uint8 [h, w, 3]. Out: logits or probabilities f32 [h, w, c], or label
maps uint8 [h, w], at each image's own height and width.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from scipy import special

from jaxseg.cli import try_config_file
from jaxseg.config import find_config_file, load_config, peer_sections
from jaxseg.config_checks import validate
from jaxseg.data.sources import read_image, to_rgb
from jaxseg.data.transforms import resize_image, resized_hw
from jaxseg.errors import InputError
from jaxseg.labels import LABELS, Labels
from jaxseg.models.factory import SIZE_MULTIPLE_PX
from jaxseg.models.layers import bilinear_weights
from jaxseg.training import parallel
from jaxseg.training.peers import restored_peers

# What a network's logits were trained to be: the classes of a pixel exclude each other, or each is a question of its own.
ACTIVATIONS = {"softmax": lambda logits: special.softmax(logits, axis=-1), "sigmoid": special.expit}
RESIZES = ("run", "none")


@dataclasses.dataclass(frozen=True)
class View:
    """How a network looks at an image; the passes' probabilities are averaged.

    resize: "run", to the size that images had in its training (config.data.resize), or "none", at their own pixels.
    window_px: 0, the image in one piece; else in square windows of that side, which overlap by at least the share
    `overlap` of it and are blended, each pixel most by the windows it lies deep in. scales: factors on the size. flip: also
    the mirror image. batch: images or windows that go through the network together, over all devices.
    Raises InputError for values that cannot be.
    """

    resize: str = "run"
    window_px: int = 0
    overlap: float = 0.5
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 1

    def __post_init__(self):
        if self.resize not in RESIZES:
            raise InputError(f"resize={self.resize!r}; expected {' or '.join(RESIZES)}.")
        if isinstance(self.scales, int | float):
            object.__setattr__(self, "scales", (float(self.scales),))
        numbers = {"window_px": self.window_px, "overlap": self.overlap, "batch": self.batch}
        numbers |= {f"scales[{i}]": scale for i, scale in enumerate(self.scales)}
        for name, value in numbers.items():
            if not isinstance(value, int | float):
                raise InputError(f"{name}={value!r}; expected a number.")
        if self.window_px < 0:
            raise InputError(f"window_px={self.window_px}; expected a side in pixels, or 0 for the image in one piece.")
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap={self.overlap}; expected a share of the window from 0 to below 1.")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"scales={self.scales}; expected positive numbers.")
        if self.batch < 1:
            raise InputError(f"batch={self.batch}; expected at least 1.")

    @property
    def passes(self) -> list[tuple[float, bool]]:
        """(scale, mirrored)."""
        return list(itertools.product(self.scales, (False, True) if self.flip else (False,)))

    def __str__(self) -> str:
        size = "resized as in training" if self.resize == "run" else "at their own pixels"
        how = f"windows of {self.window_px} pixels, {self.overlap:g} overlap" if self.window_px else "in one piece"
        scales = "" if self.scales == (1.0,) else f", scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        return f"{size}, {how}{scales}{', and mirrored' if self.flip else ''}"


@dataclasses.dataclass(frozen=True, repr=False)
class Network:
    """A trained network on all devices. step: of its checkpoint; None for weights of another program."""

    name: str
    step: int | None
    peer: Any  # TrainState, replicated
    forward: Callable  # parallel.compile_predict()
    labels: Labels
    data: ConfigDict  # config.data: how its training images were resized
    multiple_px: int  # heights and widths that it takes
    activation: str  # of ACTIVATIONS

    def __repr__(self) -> str:
        step = "weights of a file" if self.step is None else f"step {self.step}"
        return f"Network({self.name!r}, {step}, {self.labels.num_classes} classes)"

    def predict(self, image: np.ndarray | Image.Image | str | Path, **view) -> np.ndarray:
        """The class of every pixel, uint8 [h, w], at the image's own size: numbers of `labels.names`.

        image: uint8 [h, w, 3] or [h, w], a Pillow image, or a file. view: fields of `View`, such as flip=True. The first
        image of each size that the network sees takes a compilation.
        """
        return label_map(next(scored(self, [to_pixels(image)], view=View(**view))))

    def probabilities(self, image: np.ndarray | Image.Image | str | Path, **view) -> np.ndarray:
        """The same as f32 [h, w, c]: softmax, or a sigmoid per class where the network was trained with that."""
        return next(scored(self, [to_pixels(image)], view=View(**view), probabilities=True))


def load(
    run: str | Path, *, checkpoint: str | int = "last", peer: str | None = None, config: str | Path | None = None
) -> Network:
    """A network that is ready to predict.

    run: a folder that `python -m jaxseg.main` trained in; or, with config (such as "configs/unet_voc.py"), a file of
    weights as in `config.model.init_from`. checkpoint: "last", "best" or a step. peer: of a run with several; default: the
    reported one. Raises InputError.
    """
    if config is None:
        folder = Path(run).expanduser()
        loaded = load_config(folder)
        return restored(loaded, folder, str(checkpoint), names=[peer or loaded.peer])[0]
    loaded = try_config_file(find_config_file(str(config)))
    loaded.model.init_from = str(run)
    return restored(loaded, None, str(checkpoint), names=[peer or loaded.peer])[0]


def restored(config: ConfigDict, workdir: Path | None, which: str, *, names: list[str]) -> list[Network]:
    """The networks of these names of one checkpoint (`peers.restored_peers`). Raises InputError."""
    validate(config)
    sections = peer_sections(config)
    for name in names:
        if name not in sections:
            raise InputError(f"peer {name!r}: there is none; the peers are {', '.join(sections)}.")
    step, peers = restored_peers(config, workdir, which)
    forward = parallel.compile_predict()
    return [
        Network(
            name,
            step,
            parallel.replicate(peers[name].replace(opt_state=())),
            forward,
            LABELS[config.data.name],
            config.data,
            SIZE_MULTIPLE_PX[sections[name].model.name],
            sections[name].loss.pixel,
        )
        for name in names
    ]


def to_pixels(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """uint8 [h, w, 3]. Raises InputError for anything that is no 8-bit image."""
    if isinstance(image, str | Path):
        try:
            return read_image(Path(image).expanduser().read_bytes(), str(image), upright=True)
        except OSError as error:
            raise InputError(f"{image}: cannot be read ({error.strerror}).") from error
    if isinstance(image, Image.Image):
        return to_rgb(image, "the Pillow image")
    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] != 3)
        or not image.size
    ):
        raise InputError(
            f"an image is {image.dtype}{list(image.shape)}; expected uint8 [h, w, 3] (0 to 255) or [h, w]."
        )
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def label_map(scores: np.ndarray) -> np.ndarray:
    """f32 [h, w, c] -> uint8 [h, w]: the highest."""
    return scores.argmax(-1).astype(np.uint8)


def scored(
    network: Network, images: Iterable[np.ndarray], *, view: View, probabilities: bool = False
) -> Iterator[np.ndarray]:
    """Of every image, in order, f32 [h, w, c]: its probabilities; or, where only the highest matters and there is one pass,
    its logits."""
    check_window(network, view)
    activate = ACTIVATIONS[network.activation] if probabilities or len(view.passes) > 1 else np.asarray
    images = iter(images)
    while chunk := list(itertools.islice(images, 1 if view.window_px else on_devices(view.batch))):
        total = [np.float32(0)] * len(chunk)
        for scale, mirrored in view.passes:
            pictures = [seen(network, image, view.resize, scale, mirrored) for image in chunk]
            for i, logits in enumerate(
                by_windows(network, pictures, view) if view.window_px else whole(network, pictures, view)
            ):
                logits = logits[:, ::-1] if mirrored else logits
                total[i] = total[i] + activate(resize_scores(logits, chunk[i].shape[:2]))
        yield from (scores / np.float32(len(view.passes)) for scores in total)


def check_window(network: Network, view: View) -> None:
    if view.window_px % network.multiple_px:
        raise InputError(f"window_px={view.window_px}: this network takes multiples of {network.multiple_px} pixels.")


def on_devices(batch: int) -> int:
    """The batch, rounded up so that every device has as much."""
    return math.ceil(batch / jax.local_device_count()) * jax.local_device_count()


def seen_hw(network: Network, hw: tuple[int, int], resize: str, scale: float = 1.0) -> tuple[int, int]:
    """Height and width of a pass over an image of `hw`."""
    if resize == "run":
        hw = resized_hw(*hw, resize=network.data.resize, size_px=network.data.size_px)
    return tuple(max(1, round(side * scale)) for side in hw)


def seen(network: Network, image: np.ndarray, resize: str, scale: float, mirrored: bool) -> np.ndarray:
    """The image as one pass sees it, uint8 [h, w, 3]."""
    image = resize_image(image, seen_hw(network, image.shape[:2], resize, scale))
    return image[:, ::-1] if mirrored else image


def whole(network: Network, images: list[np.ndarray], view: View) -> Iterator[np.ndarray]:
    """Logits [h, w, c] of every image in one piece, padded by its edge to what the network takes."""
    multiple = network.multiple_px
    padded = [pad(image, *(math.ceil(side / multiple) * multiple for side in image.shape[:2])) for image in images]
    for image, logits in zip(images, run(network, padded, batch=view.batch), strict=True):
        yield logits[: image.shape[0], : image.shape[1]]


def by_windows(network: Network, images: list[np.ndarray], view: View) -> Iterator[np.ndarray]:
    """Logits [h, w, c] of every image: the windows' weighted mean."""
    side = view.window_px
    ramp = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)).astype(np.float32) / side
    weight = (ramp[:, None] * ramp)[..., None]
    for image in images:
        padded = pad(image, *(max(length, side) for length in image.shape[:2]))
        tops, lefts = (window_starts(length, side, view.overlap) for length in padded.shape[:2])
        places = itertools.product(tops, lefts)
        total, weights = np.float32(0), np.zeros((*padded.shape[:2], 1), np.float32)
        while some := list(itertools.islice(places, on_devices(view.batch))):
            windows = [padded[top : top + side, left : left + side] for top, left in some]
            for (top, left), logits in zip(some, run(network, windows, batch=view.batch), strict=True):
                if not np.ndim(total):
                    total = np.zeros((*padded.shape[:2], logits.shape[-1]), np.float32)
                total[top : top + side, left : left + side] += weight * logits
                weights[top : top + side, left : left + side] += weight
        yield (total / weights)[: image.shape[0], : image.shape[1]]


def window_starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin along one axis: evenly spread, the first at 0, the last up to the end."""
    stride = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / stride) + 1
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Below and to the right by the edge, as at scoring."""
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")


def run(network: Network, images: list[np.ndarray], *, batch: int) -> list[np.ndarray]:
    """Logits f32 [h, w, c] of images uint8 [h, w, 3] that the network takes; every shape is compiled once."""
    size, results, by_shape = on_devices(batch), [None] * len(images), {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    for shape, places in by_shape.items():
        for start in range(0, len(places), size):
            part = places[start : start + size]
            stacked = np.zeros((size, *shape), np.float32)  # the last batch is filled up, so that no other shape arises
            for row, i in enumerate(part):
                np.divide(images[i], np.float32(255), out=stacked[row])
            logits = parallel.gather(network.forward(network.peer, parallel.shard({"image": stacked})["image"]))
            for row, i in enumerate(part):
                results[i] = logits[row]
    return results


def resize_scores(scores: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """f32 [h, w, c] to another height and width: bilinear, half-pixel centres (`models.blocks.upsample`, on the host)."""
    (h, w, c), (rows, columns) = scores.shape, hw
    if (h, w) == (rows, columns):
        return scores
    down, along = (bilinear_weights(*n).astype(np.float32) for n in ((h, rows), (w, columns)))
    return along @ (down @ scores.reshape(h, w * c)).reshape(rows, w, c)


def define_view() -> None:
    """The flags of a `View`."""
    flags.DEFINE_string("resize", None, "run: to the size of the run's images; none: at their own pixels.")
    flags.DEFINE_integer("window_px", 0, "Side of sliding windows; 0: the image in one piece.")
    flags.DEFINE_float("overlap", 0.5, "Share of a window that the next one covers too.")
    flags.DEFINE_string("scales", "1", "Factors on the size, with commas; their probabilities are averaged.")
    flags.DEFINE_bool("flip", False, "Also the mirror image.")


def given_view(config: ConfigDict, *, resize: str) -> View:
    """What these flags ask for; `resize` where they do not say. Raises InputError."""
    values = flags.FLAGS
    try:
        scales = tuple(float(scale) for scale in values.scales.split(","))
    except ValueError as error:
        raise InputError(f"--scales={values.scales}: expected numbers with commas, such as 0.75,1,1.25.") from error
    if values["overlap"].present and not values.window_px:
        raise InputError(f"--overlap={values.overlap} has no effect without --window_px; add it, or drop this.")
    options = {"window_px": values.window_px, "overlap": values.overlap, "scales": scales, "flip": values.flip}
    return View(values.resize or resize, **options, batch=config.eval.batch_size)
