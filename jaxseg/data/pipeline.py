"""Batches from prepared records, by grain: which images, which crops, in which order, follows from seed and step alone.

In: a `Prepared` data set and `config`. Out: iterators of this host's share of each global batch,
{"image": uint8 [b, h, w, 3], "label": uint8 [b, h, w], "valid": bool [b, h, w]}, NumPy arrays. A crop is a view of the
record that was read; its pixels are copied once, into the batch.

Images are drawn, cropped and augmented by their position in the endless stream, before that stream is dealt out to hosts; so the
global batch does not depend on hosts, devices, workers or threads, and starting at step n costs nothing. A host's share
is consecutive: laid side by side the shares are the global batch, in its order.
"""

import functools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import connection

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxseg.data.augment import Ranges, augment
from jaxseg.data.records import Prepared
from jaxseg.data.transforms import center_crop, random_crop, to_batch
from jaxseg.errors import InputError
from jaxseg.labels import VOID
from jaxseg.room import check_memory, check_shared_memory

BYTES_PER_PIXEL = 3 + 1 + 1  # of a batch: image, label and valid, a byte each
READY_PER_WORKER = 2  # batches
GRACE_S = 300  # after SIGTERM, which a run's workers may get too, it still needs them: for the step, or the scoring

Pair = tuple[np.ndarray, np.ndarray]  # image uint8 [h, w, 3], label uint8 [h, w]


class RandomCrop(grain.transforms.RandomMap):
    """Record -> pair: a random square crop, not yet copied."""

    def __init__(self, crop_px: int):
        self.crop_px = crop_px

    def random_map(self, record: dict, rng: np.random.Generator) -> Pair:
        return random_crop(record["image"], record["label"], crop_px=self.crop_px, rng=rng)


class Augment(grain.transforms.RandomMap):
    """Record -> pair: a square crop of the scaled and turned image, changed as `augment` does it."""

    def __init__(self, crop_px: int, ranges: Ranges):
        self.crop_px = crop_px
        self.ranges = ranges

    def random_map(self, record: dict, rng: np.random.Generator) -> Pair:
        return augment(record["image"], record["label"], crop_px=self.crop_px, ranges=self.ranges, rng=rng)


class EvalCrop(grain.transforms.RandomMap):
    """Position -> pair: what of a record `config.eval.view` scores; beyond the last one, a black pixel that is void."""

    def __init__(self, records: Sequence, *, positions: int, view: str, crop_px: int):
        self.records = records
        self.positions = positions
        self.view = view
        self.crop_px = crop_px

    def random_map(self, position: int, rng: np.random.Generator) -> Pair:
        if position >= self.positions:
            return np.zeros((1, 1, 3), np.uint8), np.full((1, 1), VOID, np.uint8)
        record = self.records[position % len(self.records)]
        if self.view == "random":
            return random_crop(record["image"], record["label"], crop_px=self.crop_px, rng=rng)
        if self.view == "center":
            return center_crop(record["image"], record["label"], crop_px=self.crop_px)
        return record["image"], record["label"]


class HostShard(grain.MapDataset):
    """Of every `batch_size` consecutive elements, those of host `process` of `processes`: the p-th of equal parts."""

    def __init__(self, parent: grain.MapDataset, *, batch_size: int, process: int, processes: int):
        super().__init__(parent)
        self.parent = parent
        self.batch_size = batch_size
        self.process = process
        self.part = batch_size // processes

    def __len__(self) -> int:
        return len(self.parent) // self.batch_size * self.part

    def __getitem__(self, index: int | slice):
        if isinstance(index, slice):
            return self.slice(index)
        batch, position = divmod(index, self.part)
        return self.parent[batch * self.batch_size + self.process * self.part + position]


def stream(prepared: Prepared, *, seed: int) -> grain.MapDataset:
    """The endless stream of training records: every epoch once through the split, shuffled anew."""
    return grain.MapDataset.source(prepared.records("train")).seed(seed).shuffle().repeat()


def train_pairs(prepared: Prepared, config: ConfigDict) -> grain.MapDataset:
    """(image, label) of that stream, cropped or augmented as `config.augment` says; beyond images that are augmented there
    is void. Raises InputError where a crop does not fit."""
    ranges = config.augment.to_dict()
    crop_px = config.data.crop_px
    if ranges.pop("name") == "usual":
        change = Augment(crop_px, Ranges(**ranges))
    else:
        check_crop(prepared, "train", crop_px)
        change = RandomCrop(crop_px)
    return stream(prepared, seed=config.seed).random_map(change)


def train_batches(
    prepared: Prepared, config: ConfigDict, *, start_step: int = 0, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """This host's share of the global batches, without end; `close()` it when done.

    Args:
      prepared: the data.
      config: seed, batch size, crop, augmentation and threads.
      start_step: the first step whose batch is given; starting anywhere costs nothing.
      process: which host this is.
      processes: how many there are.

    Returns:
      An iterator of {"image", "label", "valid"}, NumPy arrays.

    Raises:
      InputError: where a crop does not fit.
    """
    data = config.data
    hw = (data.crop_px, data.crop_px)
    pairs = train_pairs(prepared, config)
    dataset = host_batches(pairs, hw=hw, batch_size=config.train.batch_size, process=process, processes=processes)
    return to_iterator(dataset[start_step:], workers=data.workers, threads=data.threads)


def image_ids(prepared: Prepared, config: ConfigDict, *, step: int) -> list[str]:
    """Which images the global batch of `step` (from 0) holds."""
    size = config.train.batch_size
    positions = grain.MapDataset.range(prepared.images("train")).seed(config.seed).shuffle().repeat()
    records = prepared.records("train")
    return [records[positions[i]]["id"].decode() for i in range(step * size, (step + 1) * size)]


def eval_batches(
    prepared: Prepared, config: ConfigDict, *, multiple_px: int, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """This host's share of the validation split, every image once a pass, the last batch filled up with void images.

    Args:
      prepared: the data.
      config: what is scored, in `config.eval`. view=whole pads images to the largest height and width of the split.
      multiple_px: what that is rounded up to.
      process: which host this is.
      processes: how many there are; all get equally many batches.

    Returns:
      An iterator of {"image", "label", "valid"}, NumPy arrays.

    Raises:
      InputError: where a crop does not fit.
    """
    hw = padded_hw(prepared, config, multiple_px=multiple_px)
    pairs = eval_crops(prepared, config)
    dataset = host_batches(pairs, hw=hw, batch_size=config.eval.batch_size, process=process, processes=processes)
    return to_iterator(dataset, workers=config.data.workers, threads=config.data.threads)


def eval_crops(prepared: Prepared, config: ConfigDict, *, split: str = "val") -> grain.MapDataset:
    """(image, label) of every position of the split, pass after pass, filled up to whole batches.

    Raises InputError where a crop does not fit.
    """
    evaluation = config.eval
    if evaluation.view != "whole":
        check_crop(prepared, split, config.data.crop_px)
    positions = prepared.images(split) * evaluation.passes
    crop = EvalCrop(prepared.records(split), positions=positions, view=evaluation.view, crop_px=config.data.crop_px)
    filled = math.ceil(positions / evaluation.batch_size) * evaluation.batch_size
    return grain.MapDataset.range(filled).seed(config.seed).random_map(crop)


def host_batches(
    pairs: grain.MapDataset, *, hw: tuple[int, int], batch_size: int, process: int, processes: int
) -> grain.MapDataset:
    """A host's share of every global batch of `batch_size`, padded to height and width `hw`."""
    share = HostShard(pairs, batch_size=batch_size, process=process, processes=processes)
    batch_fn = functools.partial(to_batch, height=hw[0], width=hw[1])
    return share.batch(batch_size // processes, drop_remainder=True, batch_fn=batch_fn)


def padded_hw(prepared: Prepared, config: ConfigDict, *, multiple_px: int, split: str = "val") -> tuple[int, int]:
    """Height and width of every evaluation batch."""
    if config.eval.view != "whole":
        return config.data.crop_px, config.data.crop_px
    summary = prepared.summary[split]
    return tuple(math.ceil(summary[side][1] / multiple_px) * multiple_px for side in ("height_px", "width_px"))


def scored_pixels(prepared: Prepared, config: ConfigDict, *, split: str = "val") -> int | None:
    """How many valid pixels one evaluation must count; None where the crops decide."""
    return prepared.valid_pixels(split) if config.eval.view == "whole" else None


def steps_of_epochs(epochs: float, *, images: int, batch_size: int) -> int:
    """Steps after which the stream has gone `epochs` times through the split."""
    return math.ceil(epochs * images / batch_size)


def check_crop(prepared: Prepared, split: str, crop_px: int) -> None:
    """Raises InputError where the smallest prepared image is smaller than the crop."""
    summary = prepared.summary[split]
    smallest = min(summary["height_px"][0], summary["width_px"][0])
    if smallest < crop_px:
        raise InputError(
            f"config.data.crop_px={crop_px} does not fit the smallest {split} image of {prepared.name} ({smallest} pixels"
            " on one side after config.data.resize); crop less, or resize."
        )


def check_fits(prepared: Prepared, config: ConfigDict, *, multiple_px: int, processes: int = 1) -> None:
    """That the batches that are kept ready will fit: one of each thread in memory; of each worker those that are ready, and
    the one in its hands, in shared memory.

    Args:
      prepared: the data.
      config: of the run.
      multiple_px: as in `eval_batches`.
      processes: how many hosts there are.

    Raises:
      ResourceError: naming the fields.
    """
    workers, threads = config.data.workers, config.data.threads
    train_hw = (config.data.crop_px, config.data.crop_px)
    sizes = {"train": train_hw, "eval": padded_hw(prepared, config, multiple_px=multiple_px)}
    for section, (height, width) in sizes.items():
        batch_size = config[section].batch_size
        batch_bytes = batch_size // processes * height * width * BYTES_PER_PIXEL
        less = (
            f"Now: config.{section}.batch_size={batch_size} of {height}×{width} pixels, config.data.threads={threads},"
            f" config.data.workers={workers}. Make one of them smaller."
        )
        ready = threads * max(workers, 1)
        check_memory(ready * batch_bytes, what=f"{ready:,} batches that are kept ready", less=less)
        if workers:
            ready = workers * (READY_PER_WORKER + 1)
            less += " In a container, give it more (docker run --shm-size=8g); config.data.workers=0 needs none."
            check_shared_memory(ready * batch_bytes, what=f"{ready:,} batches that workers keep ready", less=less)


def to_iterator(dataset: grain.MapDataset, *, workers: int, threads: int) -> grain.DatasetIterator:
    """Reads ahead, by threads or by `workers` processes."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads an absl flag when it starts workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=READY_PER_WORKER)
        iterable = iterable.mp_prefetch(options, worker_init_fn=start_worker)
    return iter(iterable)


def start_worker(worker: int, workers: int) -> None:
    """At the start of a worker process: it ends with the run, however that ends, and not before.

    What a terminal or SLURM sends to a run and all that it has started is the run's to answer: it still needs its workers.
    Where the run was killed, nobody tells them; then the pipe that only the run held is closed.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    run = multiprocessing.parent_process()

    def follow() -> None:
        connection.wait([run.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def closing_iterator(batches: Iterator) -> Generator:
    """Passes batches on and closes a grain iterator at the end, also on an error."""
    try:
        yield from batches
    finally:
        batches.close()  # type: ignore[attr-defined]  # of grain's
