"""What augmenting a crop costs one core by OpenCV, as jaxseg does it, and by other libraries, in one run.

    python -m scripts.bench.augment [--crops=100] [--rounds=5] [--output=FILE.json]

Each gets image and mask in memory, as a record holds them, and makes of them a crop by the usual ranges of
`config.augment`. Pillow does the same arithmetic; albumentations and torchvision v2 what their documentation has for it,
with one affine map, too. What is not installed is left out. Milliseconds of CPU time, so that others on the machine
matter little; one thread.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageFilter, ImageStat
from rich.console import Console

from jaxseg.config import default
from jaxseg.data import augment
from jaxseg.data.synthetic import render_scene
from jaxseg.data.transforms import resize_image
from jaxseg.labels import VOID
from scripts.entry import make_table, result_options_of, run, write_result

Pair = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray], Pair]
SIZES = {"234×234, crop 224": ((234, 234), 224), "512×1024, crop 512": ((512, 1024), 512)}
PACKAGES = ("opencv-python-headless", "pillow", "albumentations", "torch", "torchvision", "numpy")


def ranges_of(usual: ConfigDict) -> augment.Ranges:
    return augment.Ranges(**{name: value for name, value in usual.items() if name != "name"})


def by_opencv(crop_px: int, usual: ConfigDict) -> Change:
    rng = np.random.default_rng(0)
    ranges = ranges_of(usual)
    return lambda image, label: augment.augment(image, label, crop_px=crop_px, ranges=ranges, rng=rng)


def by_pillow(crop_px: int, usual: ConfigDict) -> Change:
    """`augment.augment`, with Pillow's operations."""
    rng = np.random.default_rng(0)
    ranges = ranges_of(usual)

    def warp(picture, matrix, resampling, fill):
        middle = 0.5 - 0.5 * matrix[:, :2].sum(axis=1)  # Pillow counts from a pixel's corner
        data = (*matrix[0, :2], matrix[0, 2] + middle[0], *matrix[1, :2], matrix[1, 2] + middle[1])
        return picture.transform((crop_px, crop_px), Image.Transform.AFFINE, data, resampling, fillcolor=fill)

    def change(image, label):
        view = augment.draw_view(label.shape, crop_px=crop_px, ranges=ranges, rng=rng)
        matrix = augment.crop_to_image(view, crop_px=crop_px)
        label = warp(Image.fromarray(label), matrix, Image.Resampling.NEAREST, VOID)
        if view.scale < 1:
            sigma = (1 / view.scale - 1) / 2
            window, (left, top) = augment.seen_window(matrix, image.shape[:2], crop_px=crop_px, margin_px=4 * sigma + 2)
            picture = Image.fromarray(image[window]).filter(ImageFilter.GaussianBlur(sigma))
            matrix = matrix - [[0, 0, left], [0, 0, top]]
        else:
            picture = Image.fromarray(image)
        picture = warp(picture, matrix, Image.Resampling.BILINEAR, augment.FILL)
        factors = {
            name: rng.uniform(1 - usual[name], 1 + usual[name]) for name in ("brightness", "contrast", "saturation")
        }
        colors = augment.color_matrix(
            **factors, hue=rng.uniform(-usual.hue, usual.hue), mean_gray=ImageStat.Stat(picture.convert("L")).mean[0]
        )
        picture = picture.convert("RGB", tuple(colors.ravel().tolist()))
        if rng.random() < usual.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(augment.LEAST_BLUR, usual.blur_sigma)))
        return np.asarray(picture), np.asarray(label)

    return change


def by_albumentations(crop_px: int, usual: ConfigDict) -> Change | None:
    try:
        import albumentations
    except ImportError:
        return None
    change = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=usual.flip),
            albumentations.Affine(
                scale=(usual.scale_min, usual.scale_max),
                rotate=(-usual.rotate_degrees, usual.rotate_degrees),
                fill=augment.FILL,
                fill_mask=VOID,
                p=1,
            ),
            albumentations.RandomCrop(crop_px, crop_px),
            albumentations.ColorJitter(usual.brightness, usual.contrast, usual.saturation, usual.hue, p=1),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(augment.LEAST_BLUR, usual.blur_sigma), p=usual.blur),
        ],
        seed=0,
    )

    def changed(image, label):
        result = change(image=image, mask=label)
        return result["image"], result["mask"]

    return changed


def by_torchvision(crop_px: int, usual: ConfigDict) -> Change | None:
    """On tensors, which its documentation recommends."""
    try:
        import torch
        from torchvision import tv_tensors
        from torchvision.transforms import v2
    except ImportError:
        return None
    torch.set_num_threads(1)
    kernel_px = 2 * round(3 * usual.blur_sigma) + 1  # three deviations to either side, as OpenCV has it
    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(usual.flip),
            v2.RandomAffine(
                usual.rotate_degrees,
                scale=(usual.scale_min, usual.scale_max),
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Image: augment.FILL, tv_tensors.Mask: VOID},
            ),
            v2.RandomCrop(crop_px),
            v2.ColorJitter(usual.brightness, usual.contrast, usual.saturation, usual.hue),
            v2.RandomApply([v2.GaussianBlur(kernel_px, (augment.LEAST_BLUR, usual.blur_sigma))], usual.blur),
        ]
    )

    def changed(image, label):
        image = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        image, label = change(image, tv_tensors.Mask(torch.from_numpy(label)))
        return image.permute(1, 2, 0).numpy(), label.numpy()

    return changed


MAKERS = {
    "OpenCV (jaxseg)": by_opencv,
    "Pillow": by_pillow,
    "albumentations": by_albumentations,
    "torchvision v2": by_torchvision,
}


def scene(hw: tuple[int, int]) -> Pair:
    """A rendered scene of that size, and a mask."""
    image = resize_image(render_scene(0)[0], hw)
    return image.copy(), (image[..., 0] // 16).copy()


def measure(hw: tuple[int, int], crop_px: int, *, crops: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a crop, by library and round."""
    image, label = scene(hw)
    usual = default().augment
    made = {name: maker(crop_px, usual) for name, maker in MAKERS.items()}
    contestants = {name: change for name, change in made.items() if change is not None}
    milliseconds = {name: [] for name in contestants}
    for number in range(rounds + 1):  # the first warms up
        for name, change in contestants.items():
            start = time.process_time()
            for _ in range(crops):
                change(image, label)
            if number:
                milliseconds[name].append((time.process_time() - start) / crops * 1e3)
    return milliseconds


def main(options: argparse.Namespace) -> None:
    results = {}
    for title, (hw, crop_px) in SIZES.items():
        results[title] = measure(hw, crop_px, crops=options.crops, rounds=options.rounds)
        table = make_table(f"augmentation, {title}: CPU milliseconds", ["", "median", "min", "max", "times jaxseg's"])
        ours = np.median(results[title]["OpenCV (jaxseg)"])
        for name, values in results[title].items():
            cells = [f"{value:.3f}" for value in (np.median(values), min(values), max(values))]
            table.add_row(name, *cells, f"{np.median(values) / ours:.1f}")
        Console(width=110).print(table)
    content = {"benchmark": "augment", "crops": options.crops, "rounds": options.rounds, "cpu_ms": results}
    write_result(options.output, content, packages=PACKAGES)


if __name__ == "__main__":
    run(main, result_options_of(__doc__, crops=100, rounds=5))
