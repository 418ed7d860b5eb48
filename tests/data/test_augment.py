"""Augmentation by hand-counted values and by the definition of each map; image and label stay together to the pixel."""

import math

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from jaxseg.config import default
from jaxseg.data.augment import FILL, Ranges, View, augment, blur, change_colors, cut, draw_view
from jaxseg.labels import VOID

NOTHING = {"flip": 0.0, "scale_min": 1.0, "scale_max": 1.0, "rotate_degrees": 0.0} | dict.fromkeys(
    ("brightness", "contrast", "saturation", "hue", "blur"), 0.0
)
USUAL = {name: value for name, value in default().augment.items() if name != "name"}


def ranges(**changed) -> Ranges:
    """No change but those."""
    return Ranges(**(NOTHING | {"blur_sigma": 2.0} | changed))


def noise(h: int = 40, w: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """As records are: not to be written to. Labels 0 to 199, none void."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    label = rng.integers(0, 200, (h, w), dtype=np.uint8)
    image.flags.writeable = label.flags.writeable = False
    return image, label


def read_at(view: View, crop_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every pixel of the crop, (y, x) in the image in float64, step by step: mirror, turn, shift, scale."""
    y, x = np.mgrid[:crop_px, :crop_px].astype(float)
    x = crop_px - 1 - x if view.is_mirrored else x
    middle = (crop_px - 1) / 2
    angle = math.radians(view.degrees)
    to_right = x - middle
    down = y - middle
    x = math.cos(angle) * to_right - math.sin(angle) * down + middle + view.left
    y = math.sin(angle) * to_right + math.cos(angle) * down + middle + view.top
    return (y + 0.5) / view.scale - 0.5, (x + 0.5) / view.scale - 0.5


def nearest(label: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    padded = np.pad(label, 1, constant_values=VOID)
    rows = np.clip(np.floor(y + 0.5).astype(int), -1, label.shape[0]) + 1
    columns = np.clip(np.floor(x + 0.5).astype(int), -1, label.shape[1]) + 1
    return padded[rows, columns]


def bilinear(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    h, w, _ = image.shape
    padded = np.empty((h + 4, w + 4, 3))
    padded[:] = FILL
    padded[2:-2, 2:-2] = image
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top)[..., None], (x - left)[..., None]

    def at(rows, columns):
        return padded[np.clip(rows + 2, 0, h + 3), np.clip(columns + 2, 0, w + 3)]

    above = (1 - right) * at(top, left) + right * at(top, left + 1)
    below = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return (1 - down) * above + down * below


VIEWS = {
    "shift": (View(top=3, left=7), lambda a: a[3:35, 7:39]),
    "mirror": (View(top=3, left=7, is_mirrored=True), lambda a: a[3:35, 7:39][:, ::-1]),
    "quarter": (View(top=3, left=7, degrees=90), lambda a: np.rot90(a[3:35, 7:39])),  # rot90: counterclockwise
    "mirrored quarter": (
        View(top=3, left=7, degrees=-90, is_mirrored=True),
        lambda a: np.rot90(a[3:35, 7:39], -1)[:, ::-1],
    ),
}


@pytest.mark.parametrize(("view", "expected"), VIEWS.values(), ids=list(VIEWS))
def test_what_needs_no_resampling_is_exact(view, expected):
    image, label = noise()
    cut_image, cut_label = cut(image, label, view, crop_px=32)
    assert np.array_equal(cut_image, expected(image))
    assert np.array_equal(cut_label, expected(label))


def test_beyond_the_image_is_void_and_the_mean_color():
    image, label = noise()
    cut_image, cut_label = cut(image, label, View(top=-5, left=-6), crop_px=64)
    assert np.array_equal(cut_label[5:45, 6:56], label)
    assert np.array_equal(cut_image[5:45, 6:56], image)
    assert (cut_label == VOID).sum() == 64 * 64 - 40 * 50
    assert (cut_image[cut_label == VOID] == FILL).all()


def test_twice_the_size_repeats_labels():
    """Every pixel of a checkerboard becomes 2×2 of them."""
    label = (np.indices((8, 8)).sum(0) % 2 * 7).astype(np.uint8)
    _, doubled = cut(np.zeros((8, 8, 3), np.uint8), label, View(top=0, left=0, scale=2.0), crop_px=16)
    assert np.array_equal(doubled, np.kron(label, np.ones((2, 2), np.uint8)))


def test_half_the_size_averages_the_image():
    """Two halves, 0 and 200, at a whole number of pixels: away from the border between them nothing is mixed."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    label = image[..., 0].copy()
    halved, label = cut(image, label, View(top=0, left=0, scale=0.5), crop_px=16)
    assert np.array_equal(label, np.repeat([[0] * 8 + [200] * 8], 16, axis=0))
    assert (halved[1:-1, 1:7] == 0).all()
    assert (halved[1:-1, 9:-1] == 200).all()


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_a_smaller_image_has_no_moire(scale):
    """Stripes of one pixel have no place at a smaller scale: what is left is their mean, 127.5. A bilinear map alone
    keeps stripes of 0 to 255 at 0.45 of the size."""
    image = np.zeros((160, 160, 3), np.uint8)
    image[:, ::2] = 255
    view = View(top=0, left=0, scale=0.9 * scale)
    small, label = cut(image, image[..., 0], view, crop_px=32)
    inner = small[2:-2, 2:-2].astype(float)
    assert np.abs(inner - 127.5).max() < (64 if scale == 0.5 else 8)
    y, x = read_at(view, 32)
    assert bilinear(image, y, x)[2:-2, 2:-2].std() > 2 * inner.std()
    assert set(np.unique(label)) == {0, 255}


@pytest.mark.parametrize("seed", range(20))
def test_image_and_label_are_read_at_the_same_places(seed):
    """Against float64: labels by nearest, up to rounding; the image bilinearly, within half a level (1 or more: no blur)."""
    image, label = noise()
    rng = np.random.default_rng(seed)
    options = ranges(flip=0.5, scale_min=1.0, scale_max=2.0, rotate_degrees=180.0)
    view = draw_view(label.shape, crop_px=48, ranges=options, rng=rng)
    cut_image, cut_label = cut(image, label, view, crop_px=48)
    y, x = read_at(view, 48)
    assert (cut_label != nearest(label, y, x)).mean() < 1e-3
    assert np.abs(cut_image - bilinear(image, y, x)).max() < 0.51


@pytest.mark.parametrize("degrees", [0.0, 33.0])
def test_smoothing_only_what_a_crop_reads_is_smoothing_the_image(degrees):
    image, label = noise(90, 120)
    view = View(top=5, left=9, scale=0.4, degrees=degrees)
    seen, _ = cut(image, label, view, crop_px=16)
    smooth = blur(image, (1 / 0.4 - 1) / 2)
    y, x = read_at(view, 16)
    assert np.abs(seen - bilinear(smooth, y, x)).max() < 0.51


@pytest.mark.parametrize("seed", range(20))
def test_colors_that_encode_the_label_decode_to_it(seed):
    """Geometry alone, by the usual ranges: two pixels from other classes, void and the edge, where the image's next pixel
    may be mixed in, the image's color is the label's."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 10, (8, 9), dtype=np.uint8), np.ones((20, 20), np.uint8))
    image = np.stack([label * 20, 255 - label * 20, label * 5], -1)
    geometry = {name: USUAL[name] for name in ("flip", "scale_min", "scale_max", "rotate_degrees")}
    image, label = augment(image, label, crop_px=128, ranges=ranges(**geometry), rng=rng)
    around = sliding_window_view(np.pad(label, 2, constant_values=100), (5, 5)).reshape(128, 128, 25)
    is_inner = around.min(-1) == around.max(-1)
    expected = np.stack([label * 20, 255 - label * 20, label * 5], -1)
    expected[label == VOID] = FILL
    assert is_inner.mean() > 0.3
    assert (np.abs(image[is_inner].astype(int) - expected[is_inner]) <= 1).all()


def test_labels_are_those_of_the_record_or_void():
    rng = np.random.default_rng(0)
    label = np.kron(np.array([[3, 200], [7, 9]], np.uint8), np.ones((40, 40), np.uint8))
    image = np.stack([label] * 3, -1)
    seen = set()
    for _ in range(50):
        _, changed = augment(image, label, crop_px=64, ranges=Ranges(**USUAL), rng=rng)
        seen |= set(np.unique(changed).tolist())
    assert seen == {3, 7, 9, 200, VOID}


def test_a_crop_lies_in_the_image_wherever_it_fits():
    """Without rotation, and an image that is larger than the crop at every scale: no void, every corner reached."""
    image, label = noise(40, 50)
    rng = np.random.default_rng(0)
    options = ranges(scale_min=0.8, scale_max=2.0)  # 32×40 at least
    for _ in range(300):
        assert (augment(image, label, crop_px=32, ranges=options, rng=rng)[1] != VOID).all()
    corners = {(v.top, v.left) for v in (draw_view((5, 6), crop_px=4, ranges=ranges(), rng=rng) for _ in range(300))}
    assert corners == {(top, left) for top in (0, 1) for left in (0, 1, 2)}


def test_a_smaller_image_lies_anywhere_in_the_crop_and_whole():
    rng = np.random.default_rng(0)
    image, label = noise(3, 4)
    corners = set()
    for _ in range(300):
        _, changed = augment(image, label, crop_px=5, ranges=ranges(), rng=rng)
        assert (changed != VOID).sum() == 12
        corners.add(tuple(np.argwhere(changed != VOID)[0].tolist()))
    assert corners == {(top, left) for top in (0, 1, 2) for left in (0, 1)}


def test_nothing_to_change_is_a_random_crop():
    image, label = noise()
    changed, changed_label = augment(image, label, crop_px=40, ranges=ranges(), rng=np.random.default_rng(0))
    left = next(i for i in range(11) if np.array_equal(label[:, i : i + 40], changed_label))
    assert np.array_equal(changed, image[:, left : left + 40])


@pytest.mark.parametrize("view", [View(top=0, left=0, degrees=45.0, scale=0.9), View(top=90, left=90, scale=0.9)])
def test_a_crop_that_misses_the_image_is_void(view):
    """4×4 pixels in the corner of a crop of 64, turned about its middle; and a crop far from them."""
    image, label = noise(4, 4)
    changed, label = cut(image, label, view, crop_px=64)
    assert (label == VOID).all()
    assert (changed == FILL).all()


# ---- Colors


def colored(image, **factors):
    return change_colors(image, **({"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | factors))


def one(*color: int) -> np.ndarray:
    return np.full((3, 3, 3), color, np.uint8)


@pytest.mark.parametrize(
    ("color", "factors", "expected"),
    [
        ((100, 60, 20), {"brightness": 1.5}, (150, 90, 30)),
        ((100, 60, 20), {"brightness": 0.5}, (50, 30, 10)),
        ((200, 60, 20), {"brightness": 2.0}, (255, 120, 40)),  # clipped
        ((100, 100, 100), {"contrast": 0.6}, (100, 100, 100)),  # its mean gray
        ((200, 100, 50), {"saturation": 0.0}, (124, 124, 124)),  # 0.299·200 + 0.587·100 + 0.114·50 = 124.2
        ((200, 100, 50), {"saturation": 0.5}, (162, 112, 87)),  # half way from there
        ((255, 0, 0), {"hue": 1 / 3}, (0, 255, 0)),
        ((255, 0, 0), {"hue": -1 / 3}, (0, 0, 255)),
        ((90, 90, 90), {"hue": 0.1}, (90, 90, 90)),
        ((13, 77, 254), {}, (13, 77, 254)),
    ],
)
def test_colors_by_hand(color, factors, expected):
    changed = colored(one(*color), **factors)
    assert np.abs(changed.astype(int) - expected).max() <= 1  # OpenCV's fixed point
    if not factors or "brightness" in factors:
        assert (changed == expected).all()


def test_contrast_spreads_about_the_mean_gray():
    """Half 50, half 150: about 100, twice as far is 0 and 200."""
    image = np.repeat(np.array([[[50]], [[150]]], np.uint8), 3, axis=2)
    assert colored(image, contrast=2.0)[:, 0, 0].tolist() == [0, 200]
    assert colored(image, contrast=0.0)[:, 0, 0].tolist() == [100, 100]


def test_colors_are_torchvisions_steps_after_each_other():
    """Brightness, contrast and saturation as torchvision's `_blend` has them, in float64, on colors that none clips."""
    image = np.random.default_rng(0).integers(90, 160, (20, 20, 3), dtype=np.uint8)
    luma = [0.299, 0.587, 0.114]
    expected = 1.2 * image.astype(float)
    expected = 0.8 * expected + 0.2 * (expected @ luma).mean()
    expected = 1.3 * expected - 0.3 * (expected @ luma)[..., None]
    changed = colored(image, brightness=1.2, contrast=0.8, saturation=1.3)
    assert np.abs(changed - expected).max() <= 1.01


# ---- Blur


def test_blur_is_a_gaussian_and_keeps_a_constant():
    assert (blur(one(77, 5, 250), 1.7) == (77, 5, 250)).all()
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    blurred = blur(point, 1.0)
    assert abs(blurred[20, 20, 0] - 255 / (2 * math.pi)) < 1  # the density at 0, deviation 1: 40.6
    assert blurred[20, 19, 0] == blurred[21, 20, 0]
    assert abs(blurred[20, 19, 0] - 255 / (2 * math.pi) * math.exp(-0.5)) < 1  # 24.6


def test_blur_is_drawn_by_its_probability():
    image, label = noise(32, 32)
    rng = np.random.default_rng(0)
    options = ranges(blur=0.25, blur_sigma=2.0)
    drawn = [augment(image, label, crop_px=32, ranges=options, rng=rng) for _ in range(400)]
    blurred = np.mean([np.array_equal(i, image) for i, _ in drawn])
    assert abs(1 - blurred - 0.25) < 0.08  # 400 draws: deviation 0.022; least blurs, below 0.2 pixels, change nothing
    assert all(np.array_equal(changed_label, label) for _, changed_label in drawn)


def test_what_is_drawn_follows_from_the_generator_alone():
    image, label = noise()
    draws = [augment(image, label, crop_px=48, ranges=Ranges(**USUAL), rng=np.random.default_rng(s)) for s in (1, 1, 2)]
    assert np.array_equal(draws[0][0], draws[1][0])
    assert np.array_equal(draws[0][1], draws[1][1])
    assert not np.array_equal(draws[0][0], draws[2][0])
