"""Pictures as they are to be seen, and files as people have them: turned, transparent, linked, hidden, of another format."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.sources import find_source, read_image, read_sample
from jaxseg.errors import InputError
from jaxseg.files import visible_files
from jaxseg.inference.folder import find_images
from jaxseg.inference.predictor import to_pixels
from tests import raw_data

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def encoded(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(PIXELS), format="PNG", exif=exif)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_a_turned_picture_is_seen_upright_as_a_file_and_as_a_pillow_image(tmp_path, orientation, turns):
    (tmp_path / "a.png").write_bytes(turned(orientation))
    expected = np.rot90(PIXELS, turns)
    assert np.array_equal(to_pixels(tmp_path / "a.png"), expected)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(to_pixels(image), expected)


def test_a_turned_picture_with_a_mask_is_refused(tmp_path):
    folder = raw_data.write_camvid(tmp_path)
    path = folder / "train/train_0.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(path, exif=exif)
    source = find_source("camvid", folder)
    sample = next(sample for sample in source.samples["train"] if sample.id == "train_0")
    with pytest.raises(InputError, match=r"train_0.png: its EXIF orientation is 3"):
        read_sample(source, sample)


def test_what_is_transparent_is_seen_on_white():
    """Red, half of it on white, and nothing: 255 - (255 - 0) / 2 is 127 or 128."""
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 128], [9, 9, 9, 0]]], np.uint8)
    found = read_image(encoded(Image.fromarray(rgba), format="PNG"), "a.png")
    np.testing.assert_allclose(found[0].astype(int), [[255, 0, 0], [255, 127, 127], [255, 255, 255]], atol=1)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    found = read_image(encoded(palette, format="PNG", transparency=0), "a.png")
    assert found[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_another_format_is_not_opened_whatever_it_is_called():
    """EPS would make Pillow start a program."""
    with pytest.raises(InputError, match=r"x.png: not a complete image \(of no known format"):
        read_image(encoded(Image.fromarray(PIXELS), format="EPS"), "x.png")
    with pytest.raises(InputError, match="of no known format"):
        read_image(encoded(Image.fromarray(PIXELS), format="PPM"), "x.png")


def test_links_are_followed_and_hidden_files_left_out(tmp_path):
    folder = tmp_path / "set"
    (folder / "a/.ipynb_checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("set/a/x.png", "set/a/._x.png", "set/a/.ipynb_checkpoints/x.png", "elsewhere/y.png"):
        Image.fromarray(PIXELS).save(tmp_path / path)
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "a/loop").symlink_to(folder)
    found = [path.relative_to(folder).as_posix() for path in visible_files(folder)]
    assert found == ["a/x.png", "b/y.png"]
    assert find_images([str(folder)]) == [folder / "a/x.png", folder / "b/y.png"]


def test_a_linked_city_is_part_of_the_data_set(tmp_path):
    """Of four training images two lie behind a link."""
    folder = raw_data.write_cityscapes(tmp_path / "one", train=2)
    other = raw_data.write_cityscapes(tmp_path / "two", train=2)
    for part in ("leftImg8bit", "gtFine"):
        (folder / part / "train/village").symlink_to(other / part / "train/town")
    assert len(find_source("cityscapes", folder).samples["train"]) == 4


def test_two_masks_of_one_image_are_refused(tmp_path):
    folder = raw_data.write_camvid(tmp_path)
    (folder / "trainannot/old").mkdir()
    (folder / "trainannot/old/train_0.png").write_bytes((folder / "trainannot/train_1.png").read_bytes())
    with pytest.raises(InputError, match=r"old/train_0.png and .*trainannot/train_0.png are masks of one sample"):
        find_source("camvid", folder)


def test_several_images_in_one_file_have_no_one_mask(tmp_path):
    """Predicted, the first is taken and said; beside a mask none is."""
    file = io.BytesIO()
    pages = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"a.tif: 2 images in one file"):
        read_image(file.getvalue(), "a.tif")
    assert read_image(file.getvalue(), "a.tif", upright=True)[0, 0].tolist() == [255, 0, 0]
