"""classes.toml: a proposal is read back as it was written, and a mistake is told with file and field."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.classes import classes_toml, proposed_labels, read_classes
from jaxseg.data.sources import find_source, read_mask
from jaxseg.errors import InputError
from jaxseg.labels import CAMVID, CAMVID32, VOC2012, VOID, Label, Labels
from tests import own_data, raw_data
from tests.runs import call

GOOD = """masks = "ids"
[[classes]]
name = "road"
ids = [7, 300]
[[classes]]
name = "rest"
ids = [0]
display_color = [1, 2, 3]
[[classes]]
name = "unknown"
ids = [255]
void = true
"""


def read(tmp_path, text):
    path = tmp_path / "classes.toml"
    path.write_text(text)
    return read_classes(path)


def test_several_ids_of_a_class_void_and_colors(tmp_path):
    labels = read(tmp_path, "\ufeff" + GOOD)
    assert labels.names == ("road", "rest")
    assert labels.train_ids(np.array([7, 300, 0, 255, 8], np.uint16)).tolist() == [0, 0, 1, VOID, -1]
    assert labels.palette[:2].tolist() == [[0, 0, 0], [1, 2, 3]]


@pytest.mark.parametrize(
    "labels",
    [CAMVID32, own_data.color_labels(), Labels((Label("a", 0, 0, (0, 0, 0)), Label("b", 9, 1, (1, 1, 1))), "folder")],
)
def test_what_is_written_is_read_back(tmp_path, labels):
    assert read(tmp_path, classes_toml(labels, shares={})) == labels


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"ids"', '"id"', "masks: "),
        ("ids = [7, 300]", "", r"classes\[0\] \(road\): ids is missing"),
        ("[7, 300]", "[7, 70000]", r"classes\[0\].ids\[1\]: .*70000"),
        ("[7, 300]", '["7"]', r"classes\[0\].ids\[0\]: "),
        ("[7, 300]", "[7, 0]", r"id 0 stands 2 times \(road, rest\)"),
        ('"rest"', '"road"', "name road stands 2 times"),
        ("[1, 2, 3]", "[0, 0, 0]", "display_color .* stands 2 times"),
        ("[1, 2, 3]", "[1, 2]", r"classes\[1\].display_color: "),
        ("display_color", "colour", r"classes\[1\].colour: "),
        ("[1, 2, 3]", "[1, 2, 3]\nvoid = true", "1 classes that are not void"),
        ("display_color", "colors = [[1, 2, 3]]\n#", r"classes\[1\] \(rest\): colors with masks = 'ids'"),
        ('masks = "ids"', "masks = ids", "not a TOML file"),
    ],
)
def test_a_mistake_is_told_with_file_and_field(tmp_path, old, new, field):
    assert old in GOOD
    with pytest.raises(InputError, match=rf"classes\.toml: {field}"):
        read(tmp_path, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("values", "names", "void"),
    [
        ([0, 255], ["background", "foreground"], []),
        ([0, 1], ["background", "foreground"], []),
        ([0, 1, 255], ["class_0", "class_1"], [255]),
        ([1, 2], ["class_1", "class_2"], []),
        ([0, 1000, 2000], ["class_0", "class_1000", "class_2000"], []),
    ],
)
def test_proposals(values, names, void):
    labels = proposed_labels(values, masks="ids", colors={})
    assert list(labels.names) == names
    assert [row.raw_id for row in labels.rows if row.train_id == VOID] == void


def as_bytes(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


TABLE = Labels(tuple(Label(f"c{i}", i, n, (n, 0, 0)) for n, i in enumerate([0, 1, 40_000])), "folder")


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)),
        Image.fromarray(np.array([[0, 1], [1, 0]], bool)),
        Image.fromarray(np.array([[0, 1], [1, 0]], np.uint16)),
        Image.merge("LA", (Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)), Image.new("L", (2, 2), 255))),
    ],
    ids=["8 bits", "1 bit", "16 bits", "opaque alpha"],
)
def test_masks_of_any_depth(image):
    assert read_mask(as_bytes(image), "m.png", TABLE).tolist() == [[0, 1], [1, 0]]


def test_masks_of_16_bits_keep_large_ids():
    raw = read_mask(as_bytes(Image.fromarray(np.array([[0, 40_000]], np.uint16))), "m.png", TABLE)
    assert TABLE.train_ids(raw).tolist() == [[0, 2]]


def test_transparent_masks_are_refused():
    gray = Image.fromarray(np.array([[0, 1]], np.uint8))
    with pytest.raises(InputError, match="LA image"):
        read_mask(as_bytes(Image.merge("LA", (gray, gray))), "m.png", TABLE)


def palette_image(ids, colors):
    image = Image.fromarray(np.array([ids], np.uint8), "P")
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return as_bytes(image)


def test_a_palette_that_contradicts_the_table_is_refused():
    """Sky, road and car in CamVid's colors at 0, 1, 2, where its ids are sky, building and pole."""
    colors = [CAMVID.classes[i].color for i in (0, 3, 8)]
    with pytest.raises(
        InputError, match=r"value 1 in the color \[128, 64, 128\], .* of 'road' \(3\), not of 'building'"
    ):
        read_mask(palette_image([0, 1, 2], colors), "m.png", CAMVID)


@pytest.mark.parametrize("labels", [CAMVID, VOC2012])
def test_palettes_that_tell_nothing_are_read_by_index(labels):
    """Of VOC's colors on CamVid's ids, of a ramp, of none, and the data set's own."""
    for colors in (VOC2012.palette, np.repeat(np.arange(256)[:, None], 3, 1), np.zeros((256, 3)), labels.palette):
        assert read_mask(palette_image([0, 1, 2, 10], colors), "m.png", labels).tolist() == [[0, 1, 2, 10]]


def test_palette_masks_by_color():
    """The same picture by color, whatever the indices."""
    colors = [CAMVID.classes[i].color for i in (0, 3, 8)]
    raw = read_mask(palette_image([0, 1, 2], colors), "m.png", own_data.color_labels())
    assert own_data.color_labels().train_ids(raw).tolist() == [[0, 3, 8]]


def test_color_of_16_bits_is_refused():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match="16 bits per color"):
        read_mask(png, "m.png", own_data.color_labels())


def test_write_classes_proposes_and_shows(tmp_path):
    root = own_data.write_as_colors(tmp_path)
    (root / "classes.toml").unlink()
    done = call("jaxseg.data.check", f"--source_dir={root}", "--write_classes")
    assert done.returncode == 0, done.stderr
    labels = read_classes(root / "classes.toml")
    assert {row.raw_id for row in labels.rows} == {row.raw_id for row in own_data.color_labels().rows}
    with Image.open(root / "classes.png") as picture:
        assert picture.size[0] == 3 * 288  # three of 48×40 at a height of 240
    assert find_source("folder", root).labels == labels
    again = call("jaxseg.data.check", f"--source_dir={root}", "--write_classes")
    assert (again.returncode, "classes.toml is there" in again.stderr) == (2, True)


def test_palettes_that_differ_are_taken_by_color(tmp_path):
    """The same colors at other indices in every file, as programs that save few colors leave them."""
    for number, order in enumerate([[0, 3, 8], [8, 0, 3], [3, 8, 0], [0, 8, 3]]):
        colors = [CAMVID.classes[i].color for i in order]
        raw_data.save(raw_data.pair("camvid", number, hw=(1, 3))[0], tmp_path / f"images/{number}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / f"masks/{number}.png").write_bytes(palette_image([0, 1, 2], colors))
    assert call("jaxseg.data.check", f"--source_dir={tmp_path}", "--write_classes").returncode == 0
    labels = read_classes(tmp_path / "classes.toml")
    assert labels.masks == "colors"
    assert {row.color for row in labels.rows} == {CAMVID.classes[i].color for i in (0, 3, 8)}


def test_masks_of_too_many_values_are_refused(tmp_path):
    for number in range(4):
        raw_data.save(raw_data.pair("camvid", number)[0], tmp_path / f"images/{number}.png")
        noise = np.random.default_rng(number).integers(0, 60_000, (40, 48)).astype(np.uint16)
        raw_data.save(Image.fromarray(noise), tmp_path / f"masks/{number}.png")
    done = call("jaxseg.data.check", f"--source_dir={tmp_path}", "--write_classes")
    assert done.returncode == 2
    assert "values, more than 256" in done.stderr
    assert not (tmp_path / "classes.toml").exists()
