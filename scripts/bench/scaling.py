"""What more devices cost: step time over simulated ones, bytes that are all-reduced, and a model of real ones.

    python -m scripts.bench.scaling [--devices=1,2,4,8] [--steps=20] [--output=results/scaling_cpu]

Writes OUTPUT.json and OUTPUT.md. Measured: STEPS training steps of the three models, small, at one global batch, over
1, 2, 4, 8 simulated devices which share this machine's cores, so that what grows is the cost of dividing; and what the
compiled program of the networks at the study's size all-reduces. Modelled, with assumptions printed: efficiency on 8
H100 and on 64 TPU v5e chips, and what the input must deliver there. Nothing has run on either.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from jaxseg.config import default, use_mutual_learning, use_rmi
from jaxseg.data.pipeline import BYTES_PER_PIXEL
from jaxseg.files import read_json
from jaxseg.provenance import command
from jaxseg.studies.estimate import Device, abstract_peers, estimate
from jaxseg.training import parallel
from scripts.bench.timing import jaxseg_step, random_batch, take_turns
from scripts.entry import options_of, run, write_result

RESULTS = Path(__file__).parents[2] / "results"
MODELS = ("unet", "rmi", "mutual")
CLASSES = 19
SMALL = {"features": 8, "stem_features": 8, "backbone": "resnet14", "crop_px": 64, "batch_size": 8}
# Bytes do not depend on the image: a small one compiles sooner.
STUDY = {"features": 32, "stem_features": 64, "backbone": "resnet50", "crop_px": 32, "batch_size": 8}
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "s64": 8, "f64": 8}
CROP_PX = 224  # of the study


@dataclasses.dataclass(frozen=True)
class Machine:
    """n devices. Rates are assumptions: a tenth of peak arithmetic, a third of memory, half of a link; latency a guess."""

    name: str
    devices: int
    per_host: int
    flops: float  # per second and device
    memory: float  # bytes per second and device
    link: float  # bytes per second out of a device
    latency_s: float  # of one small all-reduce over all devices
    source: str


MACHINES = (
    Machine(
        "8 × H100", 8, 8, 50e12, 1.1e12, 225e9, 20e-6,
        "NVIDIA's data sheet of the SXM: 495 TFLOP/s TF32, 3.35 TB/s, NVLink 450 GB/s each way",
    ),
    Machine(
        "TPU v5e-64", 64, 8, 20e12, 0.27e12, 100e9, 20e-6,
        "Google's page on v5e: 197 TFLOP/s bf16, 819 GB/s, 400 GB/s both ways together, 8 chips a host",
    ),
)  # fmt: skip


def small_config(model: str, sizes: dict, *, batch_size: int | None = None):
    """The config of one of the models at these sizes."""
    config = default()
    if model == "rmi":
        use_rmi(config)
    elif model == "mutual":
        use_mutual_learning(config)
    config.model.features, config.data.crop_px = sizes["features"], sizes["crop_px"]
    config.train.batch_size = batch_size or sizes["batch_size"]
    for peer in config.peers.values():
        peer.model.update({key: sizes[key] for key in ("stem_features", "backbone")})
    return config


def compiled_step(config, *, devices: int):
    """The training step over so many devices, compiled and not run."""
    peers, losses, batch = abstract_peers(config)
    step = parallel.compile_train_step(losses=losses, seed=0, accumulate_steps=1)
    share = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, x.shape[0] // devices, *x.shape[1:]), x.dtype), batch)
    return step.func.lower(*step.args, peers, share).compile()


def all_reduces(program: str) -> list[int]:
    """Bytes of the result of every all-reduce and all-gather of a compiled program, as its text lists them:
    `(f32[3], f32[]) all-reduce(`."""
    found = []
    for shapes in re.findall(r"= (\([^)]*\)|\S+) all-(?:reduce|gather)(?:-start)?\(", program):
        sizes = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        found.append(sum(BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in sizes))
    return found


def measured_here(model: str, steps: int) -> dict:
    """Seconds of a step over all devices of this process, and what is all-reduced."""
    config = small_config(model, SMALL)
    compiled = compiled_step(config, devices=jax.local_device_count())
    bytes_ = all_reduces(compiled.as_text())
    batch = random_batch(config.train.batch_size, config.data.crop_px, classes=CLASSES)
    step = jaxseg_step(config, batch, classes=CLASSES)
    seconds = take_turns({"step": step}, rounds=steps)["step"]
    return {"seconds": sorted(seconds), "all_reduces": len(bytes_), "bytes": sum(bytes_)}


def counted_here(model: str) -> dict:
    """What one network or pair at the study's size all-reduces in a step."""
    config = small_config(model, STUDY)
    bytes_ = all_reduces(compiled_step(config, devices=jax.local_device_count()).as_text())
    params = sum(x.size for peer in abstract_peers(config)[0].values() for x in jax.tree.leaves(peer.params))
    return {"parameters": params, "all_reduces": len(bytes_), "bytes": sum(bytes_)}


def child(devices: int, what: str, model: str, steps: int) -> dict:
    """`measured_here` or `counted_here` in a process of so many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "scripts.bench.scaling", f"--child={what}", f"--model={model}", f"--steps={steps}"]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def images_per_core(benchmark: str) -> float:
    """Images that jaxseg reads and crops in a second of CPU time, as `scripts.bench.input` measured it on CamVid."""
    return float(np.median(read_json(RESULTS / f"{benchmark}.json")["images_per_cpu_s"]["jaxseg"]))


def input_need(images_per_s: float) -> dict:
    """What the input of a host must deliver for so many images: bytes to its devices, and the cores that it takes."""
    return {
        "host_images_per_s": images_per_s,
        "host_bytes_per_s": images_per_s * CROP_PX**2 * BYTES_PER_PIXEL,
        "host_cores": math.ceil(images_per_s / images_per_core("bench_input_camvid")),
        "host_cores_augmented": math.ceil(images_per_s / images_per_core("bench_input_augmented_camvid")),
    }


def modelled(model: str, counted: dict, machine: Machine, images: int) -> dict:
    """A step of `images` a device: computation, then all-reduces, nothing overlapped (XLA overlaps some).

    Bytes go around a ring: each device sends 2 (n - 1) / n of them. Every all-reduce waits `latency_s`.
    """
    study = STUDY | {"crop_px": CROP_PX}
    cost = estimate(small_config(model, study, batch_size=images))
    compute_s = cost.seconds(Device(machine.name, machine.flops, machine.memory))
    n = machine.devices
    bytes_s = 2 * (n - 1) / n * counted["bytes"] / machine.link
    latency_s = counted["all_reduces"] * machine.latency_s
    total_s = compute_s + bytes_s + latency_s
    images_per_s = machine.per_host * images / total_s
    return {
        "machine": machine.name,
        "images": images,
        "compute_ms": 1e3 * compute_s,
        "bytes_ms": 1e3 * bytes_s,
        "latency_ms": 1e3 * latency_s,
        "efficiency": compute_s / total_s,
        **input_need(images_per_s),
    }


def document(results: dict) -> str:
    """The page: tables of what was measured and modelled, and what follows."""
    parts = [
        "# More devices",
        f"Made by `{command()}`; numbers in the JSON beside it.",
        *measured_part(results),
        *counted_part(results["counted"]),
        *modelled_part(results["modelled"]),
        WHERE_IT_BREAKS,
    ]
    return "\n\n".join(parts)


def markdown_table(columns: list[str], rows: list[list[str]], *, left: int = 1) -> str:
    """The first `left` columns are words, the others numbers."""
    lines = [columns, ["---"] * left + ["--:"] * (len(columns) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def measured_part(results: dict) -> list[str]:
    measured = results["measured"]
    devices = sorted({int(d) for row in measured.values() for d in row})
    rows = []
    for model, row in measured.items():
        cells = []
        for d in devices:
            milliseconds = [1e3 * s for s in row[str(d)]["seconds"]]
            middle = milliseconds[len(milliseconds) // 2]
            cells.append(f"{middle:.0f} ({milliseconds[0]:.0f} to {milliseconds[-1]:.0f})")
        rows.append([model, *cells])
    return [
        "## Measured: the cost of dividing",
        f"One step of {SMALL['batch_size']} images of {SMALL['crop_px']} pixels, {SMALL['features']} features, over simulated"
        f" devices that share {results['cores']} cores: median ms of {results['steps']} (fastest to slowest). A row that does not"
        " grow would be ideal; what grows is threads that take turns on the cores and wait for each other at every all-reduce.",
        markdown_table(["", *(f"{d} device{'s' * (d > 1)}" for d in devices)], rows),
    ]


def counted_part(counted: dict) -> list[str]:
    rows = [
        [
            model,
            f"{row['parameters']:,}",
            f"{4e-6 * row['parameters']:.2f} MB",
            f"{1e-6 * row['bytes']:.2f} MB",
            str(row["all_reduces"]),
        ]
        for model, row in counted.items()
    ]
    return [
        "## Counted: what is all-reduced in a step",
        "From the program that XLA compiles for 8 CPU devices, at the study's size. Gradients are 4 bytes a parameter; the rest"
        " is BatchNorm's sums over the whole batch, forward and backward, and the logged scalars. It does not depend on image or"
        " batch.",
        markdown_table(["", "parameters", "4 bytes each", "all-reduced", "all-reduces"], rows),
    ]


def modelled_part(modelled: dict) -> list[str]:
    sources = "; ".join(f"{m.name}: {m.source}" for m in MACHINES)
    model_columns = "machine | images a device | computation | bytes | latency | efficiency"
    input_columns = "images/s a host | MB/s to its devices | cores | cores, augmented"
    rows = [
        [
            model,
            row["machine"],
            str(row["images"]),
            f"{row['compute_ms']:.1f} ms",
            f"{row['bytes_ms']:.2f} ms",
            f"{row['latency_ms']:.1f} ms",
            f"{row['efficiency']:.2f}",
            f"{row['host_images_per_s']:,.0f}",
            f"{1e-6 * row['host_bytes_per_s']:,.0f}",
            str(row["host_cores"]),
            str(row["host_cores_augmented"]),
        ]
        for model, rows_of_model in modelled.items()
        for row in rows_of_model
    ]
    return [
        "## Modelled: two machines",
        "efficiency = computation / (computation + bytes + latency), nothing overlapped. Assumed, not measured: a tenth of peak"
        " arithmetic and a third of the memory's rate (as the plan of a study estimates), half of a link, and"
        f" {1e6 * MACHINES[0].latency_s:.0f} µs an all-reduce. Peaks: {sources}. Input: {BYTES_PER_PIXEL} bytes a pixel, and the"
        f" cores at {images_per_core('bench_input_camvid'):,.0f} images/s of each, augmented"
        f" {images_per_core('bench_input_augmented_camvid'):,.0f}, measured on CamVid.",
        markdown_table(["", *f"{model_columns} | {input_columns}".split(" | ")], rows, left=2),
    ]


WHERE_IT_BREAKS = """## Where it breaks

- **Latency, not bytes.** Gradients cross in a fraction of a millisecond; BatchNorm over the whole batch is one small
  all-reduce after the other, in the middle of the network, and cannot be overlapped. With one image a device it is the
  largest part after the computation. It is the price of statistics that do not depend on the number of devices.
- **The study's batch of 8** occupies 8 devices with an image each and no more: `config.train.batch_size` must be a multiple of
  all devices. 64 chips need 64 images, which is another experiment: rate and schedule are to be chosen anew.
- **Input.** A host must deliver the images of the last columns; cores are its rate over that of one core in CPU time, so a
  bound from below: how one process's threads share more than two cores was not measured (`config.data.workers` are
  processes). Records are not compressed: an image of 234×234 is read as 219 kB. The rate is of records that were in
  memory: on a shared disk, copy `config.data.dir` to each host.
- **Scoring** pads the last batch to `config.eval.batch_size`: with 64 devices, 500 images in batches of 64 waste 2 %.
- **Checkpoints** are written by the first host alone, from one copy: 12 bytes a parameter. Every host reads all of it at a start.
- **Memory does not divide**: parameters and optimiser states are whole on every device.
- **One host that is gone ends all** within 30 seconds; the run goes on from the last checkpoint, with any number of hosts that
  divides the batch. `config.checkpoint.every_steps` says how much is lost.
"""


def main(options: argparse.Namespace) -> None:
    if options.child:
        measure = options.child == "measure"
        found = measured_here(options.model, options.steps) if measure else counted_here(options.model)
        print(json.dumps(found))
        return
    measured = {}
    counted = {}
    expected = {}
    for model in MODELS:
        measured[model] = {d: child(int(d), "measure", model, options.steps) for d in options.devices.split(",")}
        counted[model] = child(8, "count", model, options.steps)
        expected[model] = [modelled(model, counted[model], m, images) for m in MACHINES for images in (1, 8)]
        print(model, json.dumps(counted[model]), flush=True)
    results = {"cores": os.cpu_count(), "steps": options.steps}
    results |= {"measured": measured, "counted": counted, "modelled": expected}
    write_result(options.output.with_suffix(".json"), results)
    options.output.with_suffix(".md").write_text(document(results))
    print(f"written: {options.output}.json, {options.output}.md")


if __name__ == "__main__":
    parser = options_of(__doc__, steps=20)
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--output", type=Path, default=Path("results/scaling_cpu"))
    parser.add_argument("--child", choices=("measure", "count"), help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    run(main, parser)
