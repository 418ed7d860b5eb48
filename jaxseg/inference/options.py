"""How a network looks at an image: resized or not, whole or in windows, mirrored too, at several scales.

In: numbers from flags or from Python. Out: a checked `InferenceOptions`.
"""

import dataclasses
import itertools
import math

from jaxseg.errors import InputError

RESIZES = ("run", "none")
MAX_WINDOW_PX = 8192  # 67 million pixels in one pass
MAX_SCALE = 16  # 256 pixels of each


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """How a network looks at an image; the passes' probabilities are averaged.

    Args:
      resize: "run", to the size that images had in its training (config.data.resize), or "none", at their own pixels.
      window_px: 0, the image in one piece; else in square windows of that side.
      overlap: share of a window that the next one covers too; windows are blended, each pixel most by those it lies deep
        in.
      scales: factors on the size.
      flip: also the mirror image.
      batch: images or windows that go through the network together, over all devices.
      pad_to_hw: height and width that images in one piece are padded to; None: to the next that the network takes.

    Raises:
      InputError: for values that cannot be.
    """

    resize: str = "run"
    window_px: int = 0
    overlap: float = 0.5
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 1
    pad_to_hw: tuple[int, int] | None = None

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
        if self.window_px > MAX_WINDOW_PX:
            raise InputError(
                f"window_px={self.window_px}; expected at most {MAX_WINDOW_PX}, which no memory would hold."
            )
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap={self.overlap}; expected a share of the window from 0 to below 1.")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"scales={self.scales}; expected positive numbers.")
        if max(self.scales) > MAX_SCALE:
            raise InputError(
                f"scales={self.scales}; expected at most {MAX_SCALE}: an enlarged picture shows nothing new."
            )
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
