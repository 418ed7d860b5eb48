"""Input rate: jaxseg's prepared records against a PyTorch DataLoader on the same raw files, in one run.

    python -m scripts.bench.input --source_dir=FOLDER [--dataset=camvid] [--augment=none|usual] [--batches=100] [--rounds=3]
                                  [--output=FILE.json]

Both give batches of 8 random 224×224 crops of images resized to 234×234: the DataLoader float32 in [0, 1] and int64, as
the study's code has them, jaxseg bytes, of which its step makes floats on the device. The DataLoader does what the
study's code does every epoch: decode image and mask by Pillow, resize, crop. jaxseg did the first two once, at
preparation (its time is printed). Same number of worker processes, in turn, `rounds` times. Needs jaxseg[torch].

With --augment=usual crops are augmented: jaxseg's by `config.augment`, the DataLoader's by torchvision v2 and, in another
one, by albumentations, with the same ranges. A library that is not installed is left out.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console

from jaxseg.config import default
from jaxseg.data import pipeline, transforms
from jaxseg.data.prepare import prepare
from jaxseg.data.sources import find_source, read_sample
from jaxseg.errors import InputError
from scripts.bench.augment import by_albumentations, by_torchvision
from scripts.entry import make_table, result_options_of, run, write_result
from scripts.needs_torch import torch

PACKAGES = ("grain", "numpy", "pillow", "opencv-python-headless", "torch", "torchvision", "albumentations")


class RawFiles(torch.utils.data.Dataset):
    """Decode, resize, and crop or, by a function of `scripts.bench.augment`, augment, at every access."""

    def __init__(self, source, config, *, augment_by=None):
        self.source = source
        self.samples = source.samples["train"]
        self.size_px = config.data.size_px
        self.crop_px = config.data.crop_px
        self.augment_by = augment_by
        self.usual = config.augment
        self.change = None  # made in each worker: it cannot be sent to one

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        image, label = transforms.resize_pair(
            *read_sample(self.source, self.samples[index]), resize="square", size_px=self.size_px
        )
        image, label = self.cropped(image, label)
        return torch.from_numpy(image.copy()).permute(2, 0, 1).float().div(255), torch.from_numpy(label.copy()).long()

    def cropped(self, image, label):
        if self.augment_by is None:
            rng = np.random.default_rng(torch.randint(2**31, (1,)).item())
            return transforms.random_crop(image, label, crop_px=self.crop_px, rng=rng)
        if self.change is None:
            self.change = self.augment_by(self.crop_px, self.usual)
        return self.change(image.copy(), label.copy())


class FromFolder:
    """A `Source` that workers can receive: found again in every process."""

    def __init__(self, dataset: str, source_dir: str):
        self.arguments = (dataset, source_dir)
        self.samples = find_source(*self.arguments).samples
        self.found = None

    def __getstate__(self):
        return self.__dict__ | {"found": None}

    def __getattr__(self, name):
        if name in ("tree", "labels", "name"):
            if self.found is None:
                self.found = find_source(*self.arguments)
            return getattr(self.found, name)
        raise AttributeError(name)


def rate(batches, *, count: int, warm_up: int = 8) -> tuple[float, float]:
    """Images per second, and per second of this process' CPU time, over `count` batches after `warm_up`."""
    for _ in range(warm_up):
        next(batches)
    start, cpu_start = time.perf_counter(), time.process_time()
    images = sum(len(next(batches)[0]) for _ in range(count))
    return images / (time.perf_counter() - start), images / (time.process_time() - cpu_start)


def torch_rate(source, config, *, workers: int, count: int, augment_by=None) -> tuple[float, float]:
    dataset = RawFiles(source, config, augment_by=augment_by)

    def endless():
        loader = torch.utils.data.DataLoader(
            dataset,
            config.train.batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=workers > 0,
        )
        while True:
            yield from loader

    return rate(endless(), count=count)


def jaxseg_rate(prepared, config, *, workers: int, count: int) -> tuple[float, float]:
    config.data.workers = workers
    batches = pipeline.train_batches(prepared, config)
    try:
        return rate(((b["image"], b["label"]) for b in batches), count=count)
    finally:
        batches.close()


def opponents(augment: str, config) -> dict[str, Callable | None]:
    """Name of a DataLoader -> the function that makes what augments in it."""
    if augment == "none":
        return {"PyTorch DataLoader": None}
    makers = {"with torchvision v2": by_torchvision, "with albumentations": by_albumentations}
    installed = {name: maker for name, maker in makers.items() if maker(config.data.crop_px, config.augment)}
    if not installed:
        raise InputError("--augment=usual measures beside torchvision or albumentations; install one of them.")
    return {f"DataLoader {name}": maker for name, maker in installed.items()}


def bytes_of_a_batch(prepared, config) -> int:
    """What goes to the devices in a step."""
    config.data.workers = 0
    batches = pipeline.train_batches(prepared, config)
    batch = next(batches)
    batches.close()
    return sum(x.nbytes for x in batch.values())


def report(options, measured_rates, preparation_s: float, prepared, batch_bytes: int) -> None:
    """Prints the table and writes the JSON."""
    rates = {key: [wall for wall, _ in values] for key, values in measured_rates.items()}
    # Without workers all is in this process: what it does with a core, whatever else the machine is doing.
    per_cpu_s = {name: [cpu for _, cpu in values] for (name, workers), values in measured_rates.items() if not workers}
    cores = os.cpu_count()
    what = "augmented " if options.augment == "usual" else ""
    title = f"{what}input, {options.dataset}, images/s on {cores} cores (median, min to max of {options.rounds} rounds)"
    loaders = list(dict.fromkeys(name for name, _ in rates if name != "jaxseg"))
    table = make_table(title, ("worker processes", *loaders, "jaxseg", "ratio", "jaxseg per core"), left=0)
    rows = []
    for workers in (0, 1, 2):
        theirs, ours = {name: rates[name, workers] for name in loaders}, rates["jaxseg", workers]
        ratios = {name: float(np.median(ours) / np.median(rate)) for name, rate in theirs.items()}
        # With 0 workers jaxseg reads by threads on all cores, the DataLoader in its one process.
        used = min(cores, workers or cores)
        rows.append({"workers": workers, "jaxseg_images_per_s": ours} | in_json(theirs, ratios))
        cells = [f"{np.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in (*theirs.values(), ours)]
        ratio = ", ".join(f"{ratio:.1f}x" for ratio in ratios.values())
        table.add_row(str(workers), *cells, ratio, f"{np.median(ours) / used:.0f}")
    Console(width=130).print(table)
    of_a_core = ", ".join(f"{name} {np.median(values):.0f}" for name, values in per_cpu_s.items())
    print(f"images per second of CPU time, without workers: {of_a_core}; a batch has {batch_bytes:,} bytes")
    images = prepared.images("train") + prepared.images("val")
    print(f"preparation, once: {preparation_s:.1f} s for {images} images ({images / preparation_s:.0f} images/s)")
    measured = {"augment": options.augment, "cpu_cores": cores, "preparation_s": preparation_s, "images": images}
    measured |= {"images_per_cpu_s": per_cpu_s, "bytes_of_a_batch": batch_bytes}
    write_result(options.output, {"benchmark": "input", **measured, "results": rows}, packages=PACKAGES)


def in_json(theirs: dict[str, list[float]], ratios: dict[str, float]) -> dict:
    """Of one DataLoader as ever; of several, by name."""
    if len(theirs) == 1:
        return {"torch_images_per_s": next(iter(theirs.values())), "ratio": next(iter(ratios.values()))}
    return {"torch_images_per_s": theirs, "ratio": ratios}


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    config = default()
    config.augment.name = options.augment
    makers = opponents(options.augment, config)
    with tempfile.TemporaryDirectory() as folder:
        config.data.update({"name": options.dataset, "source_dir": options.source_dir, "dir": folder})
        start = time.perf_counter()
        prepared = prepare(config.data)
        preparation_s = time.perf_counter() - start
        source = FromFolder(options.dataset, options.source_dir)
        rates = {}
        for _ in range(options.rounds):
            for workers in (0, 1, 2):
                torch_count = max(options.batches // 10, 4) * max(workers, 1)
                for name, maker in makers.items():
                    rates.setdefault((name, workers), []).append(
                        torch_rate(source, config, workers=workers, count=torch_count, augment_by=maker)
                    )
                rates.setdefault(("jaxseg", workers), []).append(
                    jaxseg_rate(prepared, config, workers=workers, count=options.batches)
                )
        batch_bytes = bytes_of_a_batch(prepared, config)
    report(options, rates, preparation_s, prepared, batch_bytes)


if __name__ == "__main__":
    parser = result_options_of(__doc__, batches=100, rounds=3)
    parser.add_argument("--dataset", default="camvid")
    parser.add_argument("--source_dir", required=True)
    parser.add_argument("--augment", choices=("none", "usual"), default="none")
    run(main, parser)
