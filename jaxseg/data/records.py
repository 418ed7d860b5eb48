"""tensorflow-datasets builder that writes raw samples, decoded, checked and resized, as array_record. No TensorFlow.

In: a `Source` of raw files. Out: records {"id": text, "image": uint8 [h, w, 3], "label": uint8 [h, w] of train ids,
255 = void}. Pixels are stored as they are, not compressed, so that training never decodes a PNG, resizes or unpacks
again: it cuts crops out of the bytes that were read.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from jaxseg.data.pairs import SPLITS, Sample
from jaxseg.data.sources import READ_PX, Source, picture_px, read_sample
from jaxseg.data.transforms import resize_pair
from jaxseg.errors import InputError
from jaxseg.files import parallel_map
from jaxseg.labels import LABELS, VOID, Labels

VERSION = "1.0.0"  # raise it when a stored pixel changes


class Segmentation(tfds.core.GeneratorBasedBuilder):
    """One prepared variant of one data set.

    Args: source (the raw files; None to read what is prepared), resize and size_px as in `augment.resize_pair`,
    variant (names the records' folder), data_dir, progress (called with the number of finished samples).
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self, *, source: Source | None, variant: str, data_dir: Path, resize: str, size_px: int, progress=lambda n: None
    ):
        self._source = source
        self._resize = resize
        self._size_px = size_px
        self._progress = progress
        self.summaries = {split: Summary() for split in source.samples} if source else {}
        super().__init__(data_dir=data_dir, config=tfds.core.BuilderConfig(name=variant), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        as_bytes = tfds.features.Encoding.BYTES
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Tensor(shape=(None, None, 3), dtype=np.uint8, encoding=as_bytes),
            "label": tfds.features.Tensor(shape=(None, None), dtype=np.uint8, encoding=as_bytes),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), description=__doc__)

    def _example_writer(self) -> "UncompressedWriter":
        return UncompressedWriter()

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._source.samples}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        samples = self._source.samples[split]
        for sample, (image, label) in zip(samples, self._loaded(samples), strict=True):
            self.summaries[split].add(sample.id, image, label)
            self._progress(1)
            yield sample.id, {"id": sample.id, "image": image, "label": label}

    def _loaded(self, samples: list[Sample]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return parallel_map(self._load, samples, cost=lambda sample: picture_px(self._source, sample), budget=READ_PX)

    def _load(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = read_sample(self._source, sample)
        return resize_pair(image, label, resize=self._resize, size_px=self._size_px)


class UncompressedWriter:
    """In place of tensorflow-datasets' writer, which compresses. Measured once, over CamVid's 367 training records at 234×234:
    reading one took 0.40 ms of CPU time compressed and 0.10 ms as it is; 123 kB of disk and 220."""

    def write(self, path: os.PathLike, examples: Iterable[tuple[object, bytes]]) -> None:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in examples:
            writer.write(example)
        writer.close()


class Summary:
    """What is known of a split once all of it went by: counts for checks, a fingerprint for results."""

    def __init__(self):
        self.images = 0
        self.pixels_of_label = np.zeros(256, np.int64)
        self.pixels_of_images_with_label = np.zeros(256, np.int64)
        self.height_px, self.width_px = [], []
        self._digest = hashlib.sha256()

    def add(self, sample_id: str, image: np.ndarray, label: np.ndarray) -> None:
        self.images += 1
        count = np.bincount(label.ravel(), minlength=256)
        self.pixels_of_label += count
        self.pixels_of_images_with_label += np.where(count > 0, label.size - count[VOID], 0)
        self.height_px.append(label.shape[0])
        self.width_px.append(label.shape[1])
        for part in (sample_id.encode(), np.ascontiguousarray(image), np.ascontiguousarray(label)):
            self._digest.update(part)

    def as_dict(self) -> dict:
        return {
            "images": self.images,
            "height_px": [min(self.height_px), max(self.height_px)],
            "width_px": [min(self.width_px), max(self.width_px)],
            "pixels_of_label": by_label(self.pixels_of_label),
            "pixels_of_images_with_label": by_label(self.pixels_of_images_with_label),
            "sha256": self._digest.hexdigest(),
        }


def by_label(count: np.ndarray) -> dict[str, int]:
    """What there is of each label, as JSON has it; labels without any are left out."""
    return {str(label): int(n) for label, n in enumerate(count) if n}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Prepared records: where they are and what is in them.

    summary: split -> images, sizes, sha256, and counts `pixels_of_label` and `pixels_of_images_with_label`: valid pixels of
    all images that show a label. Records of before the second was counted lack it. labels: the table that they were
    prepared by.
    """

    name: str
    folder: Path
    summary: dict[str, dict]
    labels: Labels

    @property
    def fingerprint(self) -> str:
        """Content of training and validation: the same wherever and whenever it was prepared."""
        digests = "".join(self.summary[split]["sha256"] for split in sorted(SPLITS))
        return hashlib.sha256(digests.encode()).hexdigest()[:16]

    @property
    def provenance(self) -> dict:
        """What results say of their data; its classes, where the package does not know them by name."""
        counts = {split: self.images(split) for split in self.summary}
        own = {} if self.name in LABELS else {"labels": self.labels.as_dict()}
        return {"name": self.name, "fingerprint": self.fingerprint, **counts, **own}

    def images(self, split: str) -> int:
        return self.summary[split]["images"]

    def valid_pixels(self, split: str) -> int:
        """Pixels that are not void, counted when the records were written."""
        return sum(n for label, n in self.summary[split]["pixels_of_label"].items() if int(label) != VOID)

    def class_counts(self, split: str, of: str = "pixels_of_label") -> list[int]:
        """One of the counts of `summary`, by class."""
        count = self.summary[split][of]
        return [count.get(str(train_id), 0) for train_id in range(self.labels.num_classes)]

    def records(self, split: str) -> Sequence:
        """Random access: records[i] -> {"id": bytes, "image": uint8 [h, w, 3], "label": uint8 [h, w]}."""
        return Records(self.folder, split)


class Records(Sequence):
    """The prepared records of one split, by number; what cannot be read is told with its folder."""

    def __init__(self, folder: Path, split: str):
        self.folder = folder
        self.split = split
        try:
            builder = tfds.builder_from_directory(folder)
            as_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
            self.source = builder.as_data_source(split=split, deserialize_method=as_bytes)
        except Exception as error:  # each of its files is read by another parser
            raise self._damaged(f"the {split} records cannot be opened", error) from error

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> dict:  # type: ignore[override]  # no slices
        number = range(len(self))[number]  # IndexError beyond the end
        try:
            return parse_record(self.source[number])
        except (ValueError, KeyError, IndexError, RuntimeError) as error:  # array_record's checksum does not fit
            raise self._damaged(f"{self.split} record {number} is not what was prepared", error) from error

    def _damaged(self, what: str, error: Exception) -> InputError:
        return InputError(
            f"{self.folder}: {what} ({(str(error).splitlines() or [''])[0][:200]})."
            " Remove that folder; the next start with config.data.source_dir prepares it again."
        )


def parse_record(record: bytes) -> dict:
    """id, image and label of a `tf.train.Example`, as `Segmentation` has it written; the arrays are views of `record`.

    tensorflow-datasets' own parser copies all pixels three times. Raises ValueError, KeyError or IndexError for other bytes.
    """
    values = {}
    ((start, end),) = message_fields(record, 0, len(record))  # features
    for entry in message_fields(record, start, end):
        name, feature = message_fields(record, *entry)  # of a map
        ((start, end),) = message_fields(record, *feature)  # a list of bytes or of integers
        (values[record[slice(*name)]],) = message_fields(record, start, end)
    arrays = {}
    for name in ("image", "label"):
        shape = packed_integers(record[slice(*values[f"{name}/shape".encode()])])
        start, end = values[f"{name}/value".encode()]
        arrays[name] = np.frombuffer(record, np.uint8, end - start, start).reshape(shape)
    return {"id": record[slice(*values[b"id"])], **arrays}


def message_fields(record: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the fields of the protobuf message `record[at:end]` begin and end, all of which have a length, and numbers
    below 16 (https://protobuf.dev/programming-guides/encoding)."""
    while at < end:
        if record[at] & 0b10000111 != 2:
            raise ValueError("not a record of this program")
        at += 1
        length, shift = record[at] & 127, 7
        while record[at] > 127:  # seven bits a byte, the lowest first
            at += 1
            length |= (record[at] & 127) << shift
            shift += 7
        yield (start := at + 1), (at := start + length)
    if at != end:
        raise ValueError("a record that was cut off")


def packed_integers(content: bytes) -> list[int]:
    """Of a protobuf message, likewise of seven bits a byte."""
    numbers, number, shift = [], 0, 0
    for byte in content:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    return numbers
