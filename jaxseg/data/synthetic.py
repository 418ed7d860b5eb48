"""Rendered street scenes, written in Cityscapes' folder layout with its label ids, so that its loader reads them.

In: a scene number. Out: image uint8 [128, 256, 3] and label ids uint8 [128, 256]; every pixel follows from the number.
A pin-hole camera looks along a street: ground point (x, z) and height y, in metres, land at column
cx + f x / z and row cy + f (camera height - y) / z. Things are painted from far to near, so near ones occlude. Colors
overlap between classes on purpose (grey cars on grey roads, green cars, white skies and walls), light and tint change
from scene to scene: shape, place and texture tell classes apart, color alone does not.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jaxseg.files import make_own_folder, remove_own_folder
from jaxseg.labels import CITYSCAPES

HEIGHT_PX, WIDTH_PX = 128, 256
OVERSAMPLE = 2  # images are drawn this much larger and averaged down, so that edges are soft
VERSION = 1  # part of the folder's name: raise it when a pixel changes
FAR_M, NEAR_M = 60.0, 3.2  # drawn depths

RAW_ID = {name: raw_id for raw_id, name in CITYSCAPES.raw_names.items()}
# Standard deviation (of 255) and grain (pixels) of each surface's texture.
TEXTURE = {
    "road": (7, 1),
    "sidewalk": (9, 2),
    "building": (8, 5),
    "vegetation": (26, 3),
    "sky": (6, 24),
    "car": (4, 6),
    "person": (8, 2),
}


@dataclasses.dataclass
class Canvas:
    """Image and label of one scene under construction, at the oversampled size, with its camera and its randomness."""

    rng: np.random.Generator
    image: Image.Image
    label: Image.Image
    cx: float
    cy: float
    focal: float
    camera_m: float

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel (column, row) of the point x right, y above ground, z ahead, in metres."""
        return self.cx + self.focal * x / z, self.cy + self.focal * (self.camera_m - y) / z

    def polygon(self, points, color, name: str | None) -> None:
        """Fills a polygon; `name` None paints color only (a detail of what is there already)."""
        ImageDraw.Draw(self.image).polygon(points, fill=tuple(int(np.clip(c, 0, 255)) for c in color))
        if name:
            ImageDraw.Draw(self.label).polygon(points, fill=RAW_ID[name])

    def box(self, x0, x1, y0, y1, z, color, name: str | None) -> None:
        """Fills the rectangle x0..x1, y0..y1 that faces the camera at depth z."""
        (left, bottom), (right, top) = self.point(x0, y0, z), self.point(x1, y1, z)
        self.polygon([(left, bottom), (right, bottom), (right, top), (left, top)], color, name)

    def disc(self, x, y, z, rx, ry, color, name: str | None) -> None:
        """Fills an ellipse with half axes rx, ry around (x, y) at depth z."""
        (left, bottom), (right, top) = self.point(x - rx, y - ry, z), self.point(x + rx, y + ry, z)
        turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ring = zip(
            (left + right) / 2 + (right - left) / 2 * np.cos(turn),
            (top + bottom) / 2 + (bottom - top) / 2 * np.sin(turn),
            strict=True,
        )
        self.polygon(list(ring), color, name)


def render_scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Scene `number`: image uint8 [128, 256, 3], label ids uint8 [128, 256]."""
    rng = np.random.default_rng([VERSION, number])
    width, height = WIDTH_PX * OVERSAMPLE, HEIGHT_PX * OVERSAMPLE
    canvas = Canvas(
        rng,
        Image.new("RGB", (width, height)),
        Image.new("L", (width, height), RAW_ID["sky"]),
        cx=width * rng.uniform(0.4, 0.6),
        cy=height * rng.uniform(0.38, 0.52),
        focal=height * rng.uniform(0.75, 1.0),
        camera_m=rng.uniform(1.3, 1.9),
    )
    road_m = rng.uniform(3.5, 6.0)  # half width of the road
    walk_m = road_m + rng.uniform(1.5, 3.5)  # outer edge of the pavement
    paint_sky(canvas)
    paint_ground(canvas, road_m, walk_m)
    for side in (-1, 1):
        paint_facades(canvas, side, walk_m)
    for z, paint in sorted(place_things(rng, road_m, walk_m), key=lambda thing: -thing[0]):
        paint(canvas, z)
    return finish(canvas)


def paint_sky(canvas: Canvas) -> None:
    """A vertical gradient: blue, overcast, white or evening; low hills of vegetation at the horizon."""
    rng = canvas.rng
    (width, height) = canvas.image.size
    tops = np.array([(90, 140, 210), (150, 155, 165), (215, 215, 220), (180, 140, 130)], float)
    top = tops[rng.integers(4)] + rng.normal(0, 10, 3)
    bottom = top + rng.uniform(10, 60)
    ramp = np.linspace(0, 1, height)[:, None, None]
    sky = np.broadcast_to(top + ramp * (bottom - top), (height, width, 3))
    canvas.image.paste(Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)))
    columns = np.linspace(0, width, 24)
    ridge = canvas.cy - np.abs(rng.normal(0, height * 0.03, 24)) - height * 0.02
    points = [(0, height), *zip(columns, ridge, strict=True), (width, height)]
    canvas.polygon(points, rng.uniform(60, 120, 3), "vegetation")


def paint_ground(canvas: Canvas, road_m: float, walk_m: float) -> None:
    """Pavement, road and lane marks, all grey; kerb and tiles are lines of the pavement."""
    rng = canvas.rng
    grey = rng.uniform(65, 135)
    road = grey + rng.normal(0, 4, 3)
    walk = grey + rng.uniform(-15, 40) + rng.normal(0, 8, 3)

    def strip(x0, x1, z0, z1, color, name):
        canvas.polygon([canvas.point(x, 0, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))], color, name)

    # The painted strips reach further than the camera sees; what lies beyond the pavement is covered by the façades.
    strip(-80, 80, 1.0, FAR_M, walk, "sidewalk")
    for z in np.arange(2.0, 20.0, rng.uniform(0.8, 1.6)):
        strip(-walk_m, walk_m, z, z + 0.05, walk - 18, None)
    strip(-road_m, road_m, 1.0, FAR_M, road, "road")
    for side in (-1, 1):
        strip(side * road_m, side * (road_m + 0.2), 1.0, FAR_M, walk + 25, None)
    if rng.random() < 0.8:
        for z in np.arange(rng.uniform(2, 4), FAR_M, 5.0):
            strip(-0.08, 0.08, z, z + 2.2, road + rng.uniform(60, 110), None)
    if rng.random() < 0.25:  # zebra crossing
        z = rng.uniform(6, 14)
        for x in np.arange(-road_m + 0.3, road_m - 0.5, 1.0):
            strip(x, x + 0.5, z, z + 2.5, road + 90, None)


def paint_facades(canvas: Canvas, side: int, walk_m: float) -> None:
    """A row of houses along one side, with windows, and now and then a gap filled by a hedge."""
    rng = canvas.rng
    edges = [1.0]
    while edges[-1] < FAR_M:
        edges.append(min(edges[-1] + rng.uniform(5, 14), FAR_M))
    for near, far in reversed(list(itertools.pairwise(edges))):
        x = side * (walk_m + rng.uniform(0.0, 0.6))
        if rng.random() < 0.2:
            wall(canvas, x, near, far, rng.uniform(1.2, 3.5), rng.uniform((40, 70, 30), (90, 130, 70)), "vegetation")
            continue
        walls = [(150, 150, 150), (190, 175, 150), (150, 95, 80), (110, 125, 140), (215, 210, 205), (120, 130, 100)]
        color = np.array(walls[rng.integers(len(walls))]) * rng.uniform(0.65, 1.1)
        storeys = rng.integers(1, 6)
        height = 3.2 * storeys + rng.uniform(0.3, 2.0)
        wall(canvas, x, near, far, height, color, "building")
        glass = color * rng.uniform(0.3, 0.6) if rng.random() < 0.7 else color * 1.25
        for storey in range(storeys):
            for z in np.arange(near + 0.8, far - 1.2, rng.uniform(1.8, 2.6)):
                pane = [
                    (z, 3.2 * storey + 1.0),
                    (z + 1.0, 3.2 * storey + 1.0),
                    (z + 1.0, 3.2 * storey + 2.5),
                    (z, 3.2 * storey + 2.5),
                ]
                canvas.polygon([canvas.point(x, y, depth) for depth, y in pane], glass, None)


def wall(canvas: Canvas, x: float, near: float, far: float, height: float, color, name: str) -> None:
    """A wall along the street at x, and its face towards the camera."""
    canvas.polygon(
        [canvas.point(x, y, z) for z, y in ((near, 0), (far, 0), (far, height), (near, height))], color, name
    )
    if near > 1.5:
        outer = x + np.sign(x) * 30
        face = [canvas.point(u, y, near) for u, y in ((x, 0), (outer, 0), (outer, height), (x, height))]
        canvas.polygon(face, np.asarray(color) * 0.8, name)


def place_things(rng: np.random.Generator, road_m: float, walk_m: float) -> list:
    """(depth, painter) of every free-standing thing."""
    things = []

    def depth(nearest=NEAR_M + 1):
        return 1 / rng.uniform(1 / 40.0, 1 / nearest)  # even on the screen, not in the world

    def kerb(inset):
        return rng.choice((-1, 1)) * rng.uniform(road_m + inset, max(walk_m - 0.3, road_m + inset + 0.1))

    for _ in range(rng.integers(2, 7)):
        lane = rng.choice((-1, 1)) * (road_m - rng.uniform(0.9, 1.3) if rng.random() < 0.6 else rng.uniform(1.2, 2.0))
        things.append((depth(5.5), functools.partial(paint_car, lane)))
    for _ in range(rng.integers(1, 7)):
        x = kerb(0.4) if rng.random() < 0.8 else rng.uniform(-road_m, road_m)
        things.append((depth(4.5), functools.partial(paint_person, x)))
    for _ in range(rng.integers(1, 5)):
        things.append((depth(6.0), functools.partial(paint_tree, kerb(0.3))))
    for _ in range(rng.integers(2, 6)):
        things.append((depth(), functools.partial(paint_pole, kerb(0.1))))
    for _ in range(rng.integers(0, 3)):
        things.append((depth(), functools.partial(paint_bin, kerb(0.3))))
    return things


def paint_car(x: float, canvas: Canvas, z: float) -> None:
    rng = canvas.rng
    colors = [
        (200, 200, 205),
        (40, 40, 45),
        (120, 120, 125),
        (160, 40, 40),
        (40, 60, 140),
        (60, 110, 60),
        (200, 180, 150),
    ]
    color = np.array(colors[rng.integers(len(colors))]) * rng.uniform(0.7, 1.2)
    half, tall = rng.uniform(0.8, 0.98), rng.uniform(1.35, 1.8)
    canvas.disc(x, 0.02, z, half * 1.15, 0.12, (25, 25, 28), None)  # shadow on the ground
    for wheel in (-0.75, 0.75):
        canvas.box(x + half * wheel - 0.12, x + half * wheel + 0.12, 0, 0.4, z, (20, 20, 20), "car")
    canvas.box(x - half, x + half, 0.22, tall * 0.58, z, color, "car")
    roof = [
        canvas.point(x + u, y, z)
        for u, y in ((-half * 0.95, tall * 0.57), (half * 0.95, tall * 0.57), (half * 0.7, tall), (-half * 0.7, tall))
    ]
    canvas.polygon(roof, color * 0.95, "car")
    glass = [
        canvas.point(x + u, y, z)
        for u, y in (
            (-half * 0.8, tall * 0.6),
            (half * 0.8, tall * 0.6),
            (half * 0.62, tall * 0.93),
            (-half * 0.62, tall * 0.93),
        )
    ]
    canvas.polygon(glass, (60, 70, 80) if rng.random() < 0.7 else (150, 165, 175), None)
    light = (190, 40, 40) if rng.random() < 0.6 else (235, 235, 215)
    for lamp in (-0.82, 0.82):
        canvas.box(x + half * lamp - 0.12, x + half * lamp + 0.12, tall * 0.42, tall * 0.52, z, light, None)


def paint_person(x: float, canvas: Canvas, z: float) -> None:
    rng = canvas.rng
    tall, coat, legs = rng.uniform(1.45, 1.9), rng.uniform(20, 230, 3), rng.uniform(20, 150, 3)
    stride = rng.uniform(0.05, 0.22)
    for foot in (-stride, stride):
        hip, sole = 0.09, 0.08
        leg = [(x + foot - sole, 0), (x + foot + sole, 0), (x + hip, tall * 0.5), (x - hip, tall * 0.5)]
        canvas.polygon([canvas.point(u, y, z) for u, y in leg], legs, "person")
    canvas.disc(x, tall * 0.64, z, 0.25, tall * 0.2, coat, "person")
    skin = np.array((225, 180, 150)) * rng.uniform(0.4, 1.05)
    canvas.disc(x, tall * 0.91, z, 0.12, tall * 0.085, skin, "person")


def paint_tree(x: float, canvas: Canvas, z: float) -> None:
    rng = canvas.rng
    height, spread = rng.uniform(3.5, 7.5), rng.uniform(0.8, 1.8)
    canvas.box(x - 0.13, x + 0.13, 0, height * 0.6, z, rng.uniform((60, 45, 35), (110, 85, 65)), "vegetation")
    leaf = (
        rng.uniform((40, 75, 25), (115, 135, 75)) if rng.random() < 0.8 else rng.uniform((130, 90, 40), (180, 130, 70))
    )
    for _ in range(14):
        u, y, r = x + rng.normal(0, spread * 0.5), height * rng.uniform(0.5, 1.0), spread * rng.uniform(0.35, 0.6)
        canvas.disc(u, y, z, r, r, leaf * rng.uniform(0.75, 1.2), "vegetation")


def paint_pole(x: float, canvas: Canvas, z: float) -> None:
    """A pole; two in three carry a traffic sign."""
    rng = canvas.rng
    height = rng.uniform(2.3, 3.2)
    sign = rng.random() < 0.67
    canvas.box(
        x - 0.11, x + 0.11, 0, height if sign else height + rng.uniform(1, 3), z, (rng.uniform(70, 170),) * 3, "pole"
    )
    if not sign:
        return
    rim, face = [((200, 30, 40), (240, 240, 240)), ((30, 70, 170), (240, 240, 245)), ((235, 195, 40), (30, 30, 30))][
        rng.integers(3)
    ]
    for scale, color, name in ((1.0, rim, "traffic sign"), (0.62, face, None)):
        r = 0.48 * scale
        if rng.random() < 0.5 and name:
            triangle = [canvas.point(x + u * r, height + y * r, z) for u, y in ((-1.1, -0.8), (1.1, -0.8), (0, 1.1))]
            canvas.polygon(triangle, color, name)
        else:
            canvas.disc(x, height, z, r, r, color, name)


def paint_bin(x: float, canvas: Canvas, z: float) -> None:
    """A litter bin: Cityscapes' "static", which is not scored."""
    canvas.box(x - 0.25, x + 0.25, 0, canvas.rng.uniform(0.7, 1.1), z, canvas.rng.uniform(40, 160, 3), "static")


def finish(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Texture, shadow, light, blur and noise on the image; bonnet and border, both void, on the label."""
    rng = canvas.rng
    image = np.asarray(canvas.image.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BOX)).astype(np.float64)
    label = np.array(canvas.label)[OVERSAMPLE // 2 :: OVERSAMPLE, OVERSAMPLE // 2 :: OVERSAMPLE]
    for name, (strength, grain) in TEXTURE.items():
        image += np.where(label == RAW_ID[name], strength * smooth_noise(rng, grain), 0)[..., None]
    shade = 1 + 0.12 * smooth_noise(rng, 40)[..., None]
    image = image * shade * rng.uniform(0.6, 1.15) * rng.uniform(0.9, 1.1, 3) + rng.uniform(-10, 18)
    blurred = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0.0, 0.6))
    )
    image = np.asarray(blurred) + rng.normal(0, rng.uniform(2, 7), image.shape)
    image = np.clip(image, 0, 255).astype(np.uint8)
    rise = rng.uniform(0.03, 0.1) * HEIGHT_PX * (1 - np.linspace(-1, 1, WIDTH_PX) ** 4)
    bonnet = np.arange(HEIGHT_PX)[:, None] >= HEIGHT_PX - rise
    image[bonnet] = np.clip(np.array(rng.uniform(20, 160, 3)) + rng.normal(0, 4, (int(bonnet.sum()), 3)), 0, 255)
    label[bonnet] = RAW_ID["ego vehicle"]
    label[:2] = label[-2:] = RAW_ID["out of roi"]
    label[:, :2] = label[:, -2:] = RAW_ID["out of roi"]
    return image, label


def smooth_noise(rng: np.random.Generator, grain_px: int) -> np.ndarray:
    """Noise [128, 256] of mean 0 and deviation about 1 that changes over about grain_px pixels."""
    coarse = rng.standard_normal((-(-HEIGHT_PX // grain_px) + 1, -(-WIDTH_PX // grain_px) + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC), np.float64)


def scenes_dir(data_dir: Path, scenes: int) -> Path:
    """Where `write_scenes` puts that many scenes."""
    return data_dir / "raw" / f"synthetic-v{VERSION}-{scenes}"


def write_scenes(folder: Path, scenes: int, *, progress: Callable[[int], None] = lambda count: None) -> None:
    """Renders scenes 0..scenes-1 below `folder` as Cityscapes lays its files out; the last sixth is split "val".

    Written beside and renamed when whole, so that an interrupted rendering is never taken for a data set. `progress`
    is called with the number of scenes just done.
    """
    part = folder.with_name(f"{folder.name}.part")
    remove_own_folder(part, why="where scenes are rendered")
    make_own_folder(part)
    for number in range(scenes):
        split = "val" if number >= scenes - scenes // 6 else "train"
        image, label = render_scene(number)
        stem = f"{split}/scene/scene_{number:06d}_000000"
        for pixels, name in (
            (image, f"leftImg8bit/{stem}_leftImg8bit.png"),
            (label, f"gtFine/{stem}_gtFine_labelIds.png"),
        ):
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        progress(1)
    part.rename(folder)
