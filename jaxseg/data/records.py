"""tensorflow-datasets builder that writes raw samples, decoded, checked and resized, as array_record. No TensorFlow.

In: a `Source` of raw files. Out: records {"id": text, "image": uint8 [h, w, 3], "label": uint8 [h, w] of train ids,
255 = void}. Pixels are stored as they are (array_record compresses them), so that training never decodes a PNG or
resizes again.
"""

import collections
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.sources import SPLITS, Sample, Source, read_sample
from jaxseg.data.transforms import resize_pair

VERSION = "1.0.0"  # raise it when a stored pixel changes
THREADS = 8  # decoding and resizing release the interpreter lock


class Segmentation(tfds.core.GeneratorBasedBuilder):
    """One prepared variant of one data set.

    Args: source (the raw files; None to read what is prepared), resize and size_px as in `augment.resize_pair`,
    variant (names the records' folder), data_dir, progress (called with the number of finished samples).
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self, *, source: Source | None, variant: str, data_dir: Path, resize: str, size_px: int, progress=lambda n: None
    ):
        self._source, self._resize, self._size_px, self._progress = source, resize, size_px, progress
        self.summaries = {split: Summary() for split in SPLITS}
        super().__init__(data_dir=data_dir, config=tfds.core.BuilderConfig(name=variant), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        as_bytes = tfds.features.Encoding.BYTES
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Tensor(shape=(None, None, 3), dtype=np.uint8, encoding=as_bytes),
            "label": tfds.features.Tensor(shape=(None, None), dtype=np.uint8, encoding=as_bytes),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), description=__doc__)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        samples = self._source.samples[split]
        for sample, (image, label) in zip(samples, ordered_map(self._load, samples), strict=True):
            self.summaries[split].add(sample.id, image, label)
            self._progress(1)
            yield sample.id, {"id": sample.id, "image": image, "label": label}

    def _load(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = read_sample(self._source, sample)
        return resize_pair(image, label, resize=self._resize, size_px=self._size_px)


class Summary:
    """What is known of a split once all of it went by: counts for checks, a fingerprint for results."""

    def __init__(self):
        self.images = 0
        self.pixels_of_label = np.zeros(256, np.int64)
        self.height_px, self.width_px = [], []
        self._digest = hashlib.sha256()

    def add(self, sample_id: str, image: np.ndarray, label: np.ndarray) -> None:
        self.images += 1
        self.pixels_of_label += np.bincount(label.ravel(), minlength=256)
        self.height_px.append(label.shape[0])
        self.width_px.append(label.shape[1])
        for part in (sample_id.encode(), np.ascontiguousarray(image), np.ascontiguousarray(label)):
            self._digest.update(part)

    def as_dict(self) -> dict:
        return {
            "images": self.images,
            "height_px": [min(self.height_px), max(self.height_px)],
            "width_px": [min(self.width_px), max(self.width_px)],
            "pixels_of_label": {str(i): int(n) for i, n in enumerate(self.pixels_of_label) if n},
            "sha256": self._digest.hexdigest(),
        }


def ordered_map(function, items, *, ahead: int = 4 * THREADS) -> Iterator:
    """`map(function, items)` by threads, in order, with a bounded number of results waiting."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
