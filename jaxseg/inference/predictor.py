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
from jaxseg.data.sources import read_image, to_rgb
from jaxseg.data.transforms import resize_image, resized_hw
from jaxseg.errors import InputError
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.tiling import full_image_logits, sliding_window_logits
from jaxseg.labels import Labels
from jaxseg.ops import resize_bilinear
from jaxseg.training import parallel
from jaxseg.training.peers import labels_of_run, restore_peers

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
          image: uint8 [h, w, 3] or [h, w], a Pillow image, or a file. The first image of each size that the network
            sees takes a compilation.
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
        folder = Path(run).expanduser()
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
    forward = parallel.compile_predict()
    forward_labels = parallel.compile_predict_labels()
    return [
        Predictor(
            name=name,
            step=step,
            peer=parallel.replicate(peers[name].replace(opt_state=())),
            forward=forward,
            forward_labels=forward_labels,
            labels=labels_of_run(config, workdir),
            data=config.data,
            multiple_px=SIZE_MULTIPLE_PX[sections[name].model.name],
            activation=sections[name].loss.pixel,
        )
        for name in names
    ]


def to_pixels(image: AnyImage) -> UInt8[np.ndarray, "h w 3"]:
    """Raises InputError for anything that is no 8-bit image."""
    if isinstance(image, str | Path):
        try:
            return read_image(Path(image).expanduser().read_bytes(), str(image), upright=True)
        except OSError as error:
            raise InputError(f"{image}: cannot be read ({error.strerror}).") from error
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
        for chunk in itertools.batched(images, round_up_to_devices(options.batch)):
            forward = functools.partial(run_batches, predictor, batch=options.batch, labels=True)
            sizes = {"multiple_px": predictor.multiple_px, "pad_to_hw": options.pad_to_hw}
            yield from full_image_logits(forward, chunk, **sizes)
        return
    for scores in predict_scores(predictor, images, options=options):
        yield label_map(scores)


def predict_probabilities(
    predictor: Predictor, images: Iterable[np.ndarray], *, options: InferenceOptions
) -> Iterator[Float[np.ndarray, "h w c"]]:
    """The probability of every class at every pixel of every image, in order, averaged over the passes."""
    return predict_scores(predictor, images, options=options, probabilities=True)


def predict_scores(
    predictor: Predictor, images: Iterable[np.ndarray], *, options: InferenceOptions, probabilities: bool = False
) -> Iterator[Float[np.ndarray, "h w c"]]:
    """Probabilities; or, where only the highest matters and there is one pass, logits. Raises InputError."""
    check_window(predictor, options)
    as_logits = not probabilities and len(options.passes) == 1
    at_once = 1 if options.window_px else round_up_to_devices(options.batch)
    for chunk in itertools.batched(images, at_once):
        total: list[Any] = [np.float32(0)] * len(chunk)
        for scale, mirrored in options.passes:
            inputs = [resized_input(predictor, image, options.resize, scale, mirrored) for image in chunk]
            for i, logits in enumerate(pass_logits(predictor, inputs, options)):
                logits = logits[:, ::-1] if mirrored else logits
                logits = resize_bilinear(logits, chunk[i].shape[:2])
                total[i] = total[i] + (logits if as_logits else activated(logits, predictor.activation))
        yield from (scores / np.float32(len(options.passes)) for scores in total)


def pass_logits(predictor: Predictor, images: list[np.ndarray], options: InferenceOptions) -> Iterator[np.ndarray]:
    """Logits of one pass over the images, at the sizes that they have in it."""
    forward = functools.partial(run_batches, predictor, batch=options.batch)
    if options.window_px:
        batch = round_up_to_devices(options.batch)
        sizes = {"window_px": options.window_px, "overlap": options.overlap}
        return sliding_window_logits(forward, images, batch=batch, **sizes)
    return full_image_logits(forward, images, multiple_px=predictor.multiple_px, pad_to_hw=options.pad_to_hw)


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
    image = resize_image(image, resized_input_hw(predictor, image.shape[:2], resize, scale))
    return image[:, ::-1] if mirrored else image


def run_batches(
    predictor: Predictor, images: list[np.ndarray], *, batch: int, labels: bool = False
) -> list[np.ndarray]:
    """The network's logits f32 [h, w, c], or classes uint8 [h, w], of images uint8 [h, w, 3] of sizes that it takes.

    Every shape is compiled once: a batch that is not full is filled up.
    """
    forward = predictor.forward_labels if labels else predictor.forward
    size = round_up_to_devices(batch)
    results = [None] * len(images)
    by_shape = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    for shape, places in by_shape.items():
        for part in itertools.batched(places, size):
            stacked = np.zeros((size, *shape), np.float32)
            for row, i in enumerate(part):
                np.divide(images[i], np.float32(255), out=stacked[row])
            computed = parallel.gather(forward(predictor.peer, parallel.shard({"image": stacked})["image"]))
            for row, i in enumerate(part):
                results[i] = computed[row]
    return results
