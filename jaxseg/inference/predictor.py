"""A trained network that is ready to predict images of any size.

In: a run, or weights with their config, and images uint8 [h, w, 3]. Out: probabilities f32 [h, w, c], or label maps
uint8 [h, w], at each image's own height and width.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image
from scipy import special

from jaxseg.config import find_config_file, load_config, peer_sections, run_config_file
from jaxseg.config_checks import SIZE_MULTIPLE_PX, validate
from jaxseg.data.sources import max_pixels, read_image, to_rgb
from jaxseg.data.transforms import copy_padded, resize_image, resized_hw
from jaxseg.errors import InputError
from jaxseg.files import is_other_kind, user_path
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.stripes import cut_rows, resize_rows, stripe_cuts
from jaxseg.inference.tiling import full_image_logits, sliding_window_rows
from jaxseg.labels import Labels
from jaxseg.training import parallel
from jaxseg.training.peers import labels_of_run, restore_peers

# Pixels that the network sees at a time: four pictures of Cityscapes (2048×1024). A U-Net with 32 features needs 0.5 KiB
# for each in its first level, so 4 GiB, and logits of 19 classes 0.6 GiB.
SEEN_PX = 1 << 23
HELD_PX = 1 << 27  # of decoded pictures that make a batch together: 0.4 GiB, eleven of 12 megapixels

AnyImage = np.ndarray | Image.Image | str | Path


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A trained network on all devices. step: of its checkpoint; None for weights of another program."""

    name: str
    step: int | None
    peer: Any  # TrainState, replicated
    forward: Callable  # parallel.compile_predict()
    forward_labels: Callable  # parallel.compile_predict_labels()
    labels: Labels
    data: ConfigDict  # config.data: how its training images were resized
    multiple_px: int  # heights and widths that it takes
    activation: str  # what its logits were trained to be: "softmax", or "sigmoid", each class a question of its own

    def __repr__(self) -> str:
        step = "weights of a file" if self.step is None else f"step {self.step}"
        return f"Predictor({self.name!r}, {step}, {self.labels.num_classes} classes)"

    def predict(self, image: AnyImage, **options) -> UInt8[np.ndarray, "h w"]:
        """The class of every pixel, at the image's own size.

        Args:
          image: uint8 [h, w, 3] or [h, w], a Pillow image, or a file, of several frames the first. The first image of each
            size that the network sees takes a compilation.
          **options: fields of `InferenceOptions`, such as flip=True.

        Returns:
          Numbers of `labels.names`.
        """
        return next(predict_labels(self, [to_pixels(image)], options=InferenceOptions(**options)))

    def probabilities(self, image: AnyImage, **options) -> Float[np.ndarray, "h w c"]:
        """The same as probabilities: softmax, or a sigmoid per class where the network was trained with that."""
        return next(predict_probabilities(self, [to_pixels(image)], options=InferenceOptions(**options)))


def load(
    run: str | Path, *, checkpoint: str | int = "last", peer: str | None = None, config: str | Path | None = None
) -> Predictor:
    """A network that is ready to predict.

    Args:
      run: a folder that `python -m jaxseg.main` trained in; or, with `config`, a file of weights as in
        `config.model.init_from`.
      checkpoint: "last", "best" or a step.
      peer: of a run with several; default: the reported one.
      config: an experiment file, such as "configs/unet_voc.py".

    Returns:
      The network.

    Raises:
      InputError: where run, weights or config cannot be used.
    """
    if config is None:
        folder = user_path(run)
        loaded = load_config(folder)
    else:
        folder = None
        loaded = run_config_file(find_config_file(str(config)))
        loaded.model.init_from = str(run)
    return load_predictors(loaded, folder, str(checkpoint), names=[peer or loaded.peer])[0]


def load_predictors(config: ConfigDict, workdir: Path | None, which: str, *, names: list[str]) -> list[Predictor]:
    """The networks of these names of one checkpoint (`restore_peers`). Raises InputError."""
    validate(config)
    sections = peer_sections(config)
    for name in names:
        if name not in sections:
            raise InputError(f"peer {name!r}: there is none; the peers are {', '.join(sections)}.")
    step, peers = restore_peers(config, workdir, which)
    labels = labels_of_run(config, workdir)
    forward = parallel.compile_predict()
    forward_labels = parallel.compile_predict_labels()
    return [
        Predictor(
            name=name,
            step=step,
            peer=parallel.replicate(peers[name].replace(opt_state=())),
            forward=forward,
            forward_labels=forward_labels,
            labels=labels,
            data=config.data,
            multiple_px=SIZE_MULTIPLE_PX[sections[name].model.name],
            activation=sections[name].loss.pixel,
        )
        for name in names
    ]


def to_pixels(image: AnyImage) -> UInt8[np.ndarray, "h w 3"]:
    """Raises InputError for anything that is no 8-bit image."""
    if isinstance(image, str | Path):
        path = user_path(image)
        try:
            if is_other_kind(path):
                raise InputError(
                    f"{image}: neither a file nor a folder, but a pipe or a device; expected an image's file."
                )
            return read_image(path.read_bytes(), str(image), upright=True)
        except OSError as error:
            raise InputError(f"{str(image)[:300]}: cannot be read ({error.strerror}).") from error
    if isinstance(image, Image.Image):
        return to_rgb(image, "the Pillow image")
    image = np.asarray(image)
    is_gray = image.ndim == 2
    is_color = image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (is_gray or is_color) or not image.size:
        raise InputError(
            f"an image is {image.dtype}{list(image.shape)}; expected uint8 [h, w, 3] (0 to 255) or [h, w]."
        )
    return np.repeat(image[..., None], 3, axis=-1) if is_gray else image


def predict_labels(
    predictor: Predictor, images: Iterable[np.ndarray], *, options: InferenceOptions
) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """The class of every pixel of every image, in order."""
    if options.resize == "none" and options.passes == [(1.0, False)] and not options.window_px:
        for chunk in chunks(predictor, images, options):
            forward = functools.partial(run_batches, predictor, batch=options.batch, labels=True)
            sizes = {"multiple_px": predictor.multiple_px, "pad_to_hw": options.pad_to_hw}
            yield from full_image_logits(forward, chunk, **sizes)
        return
    for stripes in predict_stripes(predictor, images, options=options):
        yield np.concatenate([label_map(scores) for scores in stripes])


def predict_probabilities(
    predictor: Predictor, images: Iterable[np.ndarray], *, options: InferenceOptions
) -> Iterator[Float[np.ndarray, "h w c"]]:
    """The probability of every class at every pixel of every image, in order, averaged over the passes."""
    return predict_scores(predictor, images, options=options, probabilities=True)


def predict_scores(
    predictor: Predictor, images: Iterable[np.ndarray], *, options: InferenceOptions, probabilities: bool = False
) -> Iterator[Float[np.ndarray, "h w c"]]:
    """What `predict_stripes` gives, in one piece."""
    for stripes in predict_stripes(predictor, images, options=options, probabilities=probabilities):
        yield np.concatenate(list(stripes))


def predict_stripes(
    predictor: Predictor, images: Iterable[np.ndarray], *, options: InferenceOptions, probabilities: bool = False
) -> Iterator[Iterator[Float[np.ndarray, "r w c"]]]:
    """Probabilities; or, where only the highest matters and there is one pass, logits.

    Args:
      predictor: the network.
      images: uint8 [h, w, 3].
      options: how it looks at them.
      probabilities: whether they are wanted where there is one pass, too.

    Yields:
      Of every image in order its rows, from top to bottom, some at a time; to be taken before the next image.

    Raises:
      InputError: where the network does not take such windows or sizes.
    """
    check_window(predictor, options)
    activation = None if not probabilities and len(options.passes) == 1 else predictor.activation
    for chunk in chunks(predictor, images, options):
        passes = [pass_rows(predictor, chunk, options, *how) for how in options.passes]
        for image in chunk:
            of_passes = [next(rows) for rows in passes]
            yield mean_stripes(of_passes, image.shape[:2], predictor.labels.num_classes, activation)


def chunks(predictor: Predictor, images: Iterable[np.ndarray], options: InferenceOptions) -> Iterator[list[np.ndarray]]:
    """Images that are looked at together: a batch, of large ones fewer, windows of one image alone."""

    def seen_px(image: np.ndarray) -> int:
        sizes = [resized_input_hw(predictor, image.shape[:2], options.resize, scale) for scale, _ in options.passes]
        return sum(map(math.prod, sizes))

    count = 1 if options.window_px else round_up_to_devices(options.batch)
    some: list[np.ndarray] = []
    for image in images:
        together = [*some, image]
        held_px = sum(math.prod(each.shape[:2]) for each in together)
        if some and (len(some) == count or held_px > HELD_PX or sum(map(seen_px, together)) > SEEN_PX):
            yield some
            together = [image]
        some = together
    if some:
        yield some


def pass_rows(
    predictor: Predictor, images: list[np.ndarray], options: InferenceOptions, scale: float, mirrored: bool
) -> Iterator[tuple[tuple[int, int], Iterator[np.ndarray]]]:
    """Of every image the size that it has in one pass, and its logits there, row after row."""
    forward = functools.partial(run_batches, predictor, batch=options.batch)
    inputs = [resized_input(predictor, image, options.resize, scale, mirrored) for image in images]
    if options.window_px:
        batch = round_up_to_devices(options.batch)
        sizes = {"window_px": options.window_px, "overlap": options.overlap}
        logits = (sliding_window_rows(forward, image, batch=batch, **sizes) for image in inputs)
    else:
        whole = full_image_logits(forward, inputs, multiple_px=predictor.multiple_px, pad_to_hw=options.pad_to_hw)
        logits = (cut_rows(each, image.shape[1]) for each, image in zip(whole, images, strict=True))
    for image, rows in zip(inputs, logits, strict=True):
        yield image.shape[:2], (piece[:, : image.shape[1]][:, :: -1 if mirrored else 1] for piece in rows)


def mean_stripes(
    passes: list[tuple[tuple[int, int], Iterator[np.ndarray]]],
    hw: tuple[int, int],
    classes: int,
    activation: str | None,
) -> Iterator[Float[np.ndarray, "r w c"]]:
    """Stripes of the mean over an image's passes, each brought to `hw`, of probabilities; activation None: of logits."""
    cuts = stripe_cuts(*hw, classes)
    resized = [resize_rows(rows, size=size, to=hw, cuts=cuts) for size, rows in passes]
    for stripes in zip(*resized, strict=True):
        total: Any = np.float32(0)
        for logits in stripes:
            total = total + (logits if activation is None else activated(logits, activation))
        yield total / np.float32(len(passes))


def activated(logits: Float[np.ndarray, "h w c"], activation: str) -> Float[np.ndarray, "h w c"]:
    return special.softmax(logits, axis=-1) if activation == "softmax" else special.expit(logits)


def label_map(scores: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w"]:
    """The highest class."""
    return scores.argmax(-1).astype(np.uint8)


def check_window(predictor: Predictor, options: InferenceOptions) -> None:
    """Raises InputError where the network does not take such windows."""
    if options.window_px % predictor.multiple_px:
        raise InputError(
            f"window_px={options.window_px}: this network takes multiples of {predictor.multiple_px} pixels."
        )


def round_up_to_devices(batch: int) -> int:
    """The batch, rounded up so that every device has as much."""
    return math.ceil(batch / jax.local_device_count()) * jax.local_device_count()


def resized_input_hw(predictor: Predictor, hw: tuple[int, int], resize: str, scale: float = 1.0) -> tuple[int, int]:
    """Height and width of a pass over an image of `hw`."""
    if resize == "run":
        hw = resized_hw(*hw, resize=predictor.data.resize, size_px=predictor.data.size_px)
    return tuple(max(1, round(side * scale)) for side in hw)


def resized_input(predictor: Predictor, image: np.ndarray, resize: str, scale: float, mirrored: bool) -> np.ndarray:
    """The image as one pass sees it, uint8 [h, w, 3]."""
    h, w = resized_input_hw(predictor, image.shape[:2], resize, scale)
    if scale > 1 and h * w > max_pixels():
        raise InputError(
            f"scales: {scale:g} makes {w}×{h} pixels of a picture of {image.shape[1]}×{image.shape[0]}, more than the"
            f" {max_pixels() / 1e6:g} million that are taken (--max_megapixels); give smaller factors."
        )
    image = resize_image(image, (h, w))
    return image[:, ::-1] if mirrored else image


def run_batches(
    predictor: Predictor, images: list[np.ndarray], sizes: list[tuple[int, int]], *, batch: int, labels: bool = False
) -> Iterator[np.ndarray]:
    """The network's logits f32 [h, w, c], or classes uint8 [h, w], of images uint8 [h, w, 3], padded to sizes that it takes.

    Images travel as bytes. Results stay on the devices, which hold them anyway, until each one's turn: on the host is that
    of one image, whatever the batch. Every shape is compiled once: a batch that is not full is filled up. Of large images,
    fewer make a batch.
    """
    forward = predictor.forward_labels if labels else predictor.forward
    computed = {}  # number of the image -> its batch, and its place there
    by_size = {}
    for i, hw in enumerate(sizes):
        by_size.setdefault(hw, []).append(i)
    for hw, places in by_size.items():
        size = round_up_to_devices(max(1, min(batch, SEEN_PX // math.prod(hw))))
        for part in itertools.batched(places, size):
            stacked = np.zeros((size, *hw, 3), np.uint8)
            for row, i in enumerate(part):
                copy_padded(images[i], stacked[row])
            results = forward(predictor.peer, parallel.shard({"image": stacked})["image"])
            computed |= {i: (results, row) for row, i in enumerate(part)}
    del results
    for i in range(len(images)):
        yield parallel.gather_image(*computed.pop(i))
