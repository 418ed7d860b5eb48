"""Input rate: jaxseg's prepared records against a PyTorch DataLoader on the same raw files, in one run.

    python -m scripts.bench.input --source_dir=FOLDER [--dataset=camvid] [--batches=100] [--rounds=3] [--output=FILE.json]

Both give batches of 8 random 224×224 crops of images resized to 234×234, as float32 in [0, 1]. The DataLoader does
what the study's code does every epoch: decode image and mask by Pillow, resize, crop. jaxseg did the first two once,
at preparation (its time is printed). Same number of worker processes, in turn, `rounds` times. Needs jaxseg[torch].
"""

import argparse
import os
import tempfile
import time

import numpy as np
from rich.console import Console

from jaxseg.config import default
from jaxseg.data import pipeline, transforms
from jaxseg.data.prepare import prepare
from jaxseg.data.sources import find_source, read_sample
from scripts.entry import make_table, result_options_of, run, write_result
from scripts.needs_torch import torch


class RawFiles(torch.utils.data.Dataset):
    """Decode, resize, crop, at every access."""

    def __init__(self, source, *, size_px: int, crop_px: int):
        self.source = source
        self.samples = source.samples["train"]
        self.size_px = size_px
        self.crop_px = crop_px

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        image, label = transforms.resize_pair(
            *read_sample(self.source, self.samples[index]), resize="square", size_px=self.size_px
        )
        rng = np.random.default_rng(torch.randint(2**31, (1,)).item())
        image, label = transforms.random_crop(image, label, crop_px=self.crop_px, rng=rng)
        return torch.from_numpy(image.copy()).permute(2, 0, 1).float().div(255), torch.from_numpy(label.copy()).long()


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


def rate(batches, *, count: int, warm_up: int = 8) -> float:
    """Images per second over `count` batches after `warm_up`."""
    for _ in range(warm_up):
        next(batches)
    start = time.perf_counter()
    images = sum(len(next(batches)[0]) for _ in range(count))
    return images / (time.perf_counter() - start)


def torch_rate(source, config, *, workers: int, count: int) -> float:
    dataset = RawFiles(source, size_px=config.data.size_px, crop_px=config.data.crop_px)

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


def jaxseg_rate(prepared, config, *, workers: int, count: int) -> float:
    config.data.workers = workers
    batches = pipeline.train_batches(prepared, config)
    try:
        return rate(((b["image"], b["label"]) for b in batches), count=count)
    finally:
        batches.close()


def report(options, rates, preparation_s: float, prepared) -> None:
    """Prints the table and writes the JSON."""
    cores = os.cpu_count()
    title = f"input, {options.dataset}, images/s on {cores} cores (median, min to max of {options.rounds} rounds)"
    columns = ("worker processes", "PyTorch DataLoader", "jaxseg", "ratio", "jaxseg per core")
    table = make_table(title, columns, left=0)
    rows = []
    for workers in (0, 1, 2):
        theirs, ours = rates["PyTorch", workers], rates["jaxseg", workers]
        ratio = np.median(ours) / np.median(theirs)
        # With 0 workers jaxseg reads by threads on all cores, the DataLoader in its one process.
        used = min(cores, workers or cores)
        rows.append(
            {"workers": workers, "torch_images_per_s": theirs, "jaxseg_images_per_s": ours, "ratio": float(ratio)}
        )
        cells = [f"{np.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in (theirs, ours)]
        table.add_row(str(workers), *cells, f"{ratio:.1f}x", f"{np.median(ours) / used:.0f}")
    Console(width=110).print(table)
    images = prepared.images("train") + prepared.images("val")
    print(f"preparation, once: {preparation_s:.1f} s for {images} images ({images / preparation_s:.0f} images/s)")
    measured = {"cpu_cores": cores, "preparation_s": preparation_s, "images": images, "results": rows}
    write_result(options.output, {"benchmark": "input", **measured}, packages=["grain", "numpy", "pillow", "torch"])


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    config = default()
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
                rates.setdefault(("PyTorch", workers), []).append(
                    torch_rate(source, config, workers=workers, count=torch_count)
                )
                rates.setdefault(("jaxseg", workers), []).append(
                    jaxseg_rate(prepared, config, workers=workers, count=options.batches)
                )
    report(options, rates, preparation_s, prepared)


if __name__ == "__main__":
    parser = result_options_of(__doc__, batches=100, rounds=3)
    parser.add_argument("--dataset", default="camvid")
    parser.add_argument("--source_dir", required=True)
    run(main, parser)
