"""One compiled step as numbers, and many of them as a table.

In: what JAX lowered, compiled for a target. Out: a dict for JSON; rows for people.
"""

import time
from collections import Counter

import jax
from jax._src.lib import _jax  # private: see `arithmetic`

from scripts.aot import hlo
from scripts.aot.targets import Target
from scripts.bench.scaling import markdown_table

MOST_SHOWN = 20  # of the instructions that move most


def compile_and_read(lowered: jax.stages.Lowered, target: Target, dtype: str) -> dict:
    """Compiles for the target and says what the program does in one run, of one device."""
    start = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - start
    program = hlo.read_program(compiled.as_text())
    numbers = read_memory(compiled) | read_arithmetic(lowered, compiled) | read_bytes(program)
    bound = {
        "memory_ms": 1e3 * numbers["bytes"] / target.machine.bandwidth,
        "arithmetic_ms": 1e3 * numbers["flops"] / target.machine.flops[dtype],
    }
    return {"compile_s": round(seconds, 1)} | numbers | bound


def read_memory(compiled: jax.stages.Compiled) -> dict:
    """By the compiler's account: peak, with arguments and what is donated counted once, and of it temporaries."""
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {"peak_bytes": total - memory.alias_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes}


def read_arithmetic(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> dict:
    """Floating point operations of the program before it is optimized, as XLA counts them; what XLA's TPU compiler says of
    the optimized one beside it. Its GPU compiler says nothing.

    `Lowered.cost_analysis` refuses devices that are not there; this is what it calls, with a CPU's client. Library calls
    (on a GPU the Cholesky factors) count as nothing.
    """
    client = jax.devices("cpu")[0].client
    counted = {"flops": _jax.hlo_module_cost_analysis(client, lowered.compiler_ir("hlo").as_hlo_module())["flops"]}
    if cost := compiled.cost_analysis():
        counted["xla"] = {"flops": cost.get("flops"), "bytes": cost.get("bytes accessed")}
    return counted


def read_bytes(program: hlo.Program) -> dict:
    """Bytes moved, and by what; and what a step should not have."""
    moved = hlo.read_moved(program)
    by_kind = hlo.sum_by_kind(moved)
    # Kernels are turned for the libraries; what moves more than a copy of the largest argument is a map.
    large = hlo.copies(moved, above_bytes=2 * hlo.largest_argument(program))
    of_norm = sum(one.bytes for one in moved if one.kind == "reduction" and "/norm" in one.source)
    most = sorted(moved, key=lambda one: -one.bytes)[:MOST_SHOWN]
    return {
        "bytes": sum(by_kind.values()),
        "bytes_by_kind": by_kind,
        "normalization_reduction_bytes": of_norm,
        "kernels": sum(one.times for one in moved if one.starts),
        "kernels_by_kind": Counter(one.kind for one in moved if one.starts for _ in range(one.times)),
        "collectives": hlo.collectives(program),
        "large_copies": [shown(one) for one in large],
        "loops": hlo.loops(program),
        "host_calls": hlo.leaves_device(program),
        "float64": "f64" in hlo.dtypes(program),
        "largest": [shown(one) for one in most],
    }


def shown(one: hlo.Moved) -> dict:
    return {"instruction": one.name, "kind": one.kind, "bytes": one.bytes, "times": one.times, "source": one.source}


COLUMNS = (
    "step", "peak GB", "GB moved", *hlo.KINDS[:5], "other", "large copies", "kernels", "collectives", "TFLOP", "ms by memory",
    "ms by arithmetic", "PyTorch's floor GB",
)  # fmt: skip


def table(programs: dict[str, dict]) -> str:
    """In Markdown, a row a program."""
    rows = []
    for name, row in programs.items():
        kinds = [row["bytes_by_kind"].get(kind, 0) for kind in hlo.KINDS[:5]]
        shares = [f"{gb(value)}" for value in (*kinds, row["bytes"] - sum(kinds))]
        reduced = row["collectives"]
        counts = f"{sum(one['count'] for one in reduced.values())} ({sum(one['bytes'] for one in reduced.values()) / 1e6:.1f} MB)"
        copies = f"{len(row['large_copies'])} ({gb(sum(one['bytes'] for one in row['large_copies']))} GB)"
        bounds = f"{row['flops'] / 1e12:.2f}", f"{row['memory_ms']:.1f}", f"{row['arithmetic_ms']:.1f}"
        floor = gb(row["torch_floor_bytes"]) if row.get("torch_floor_bytes") else ""
        rows.append(
            [
                name,
                gb(row["peak_bytes"]),
                gb(row["bytes"]),
                *shares,
                copies,
                str(row["kernels"]),
                counts,
                *bounds,
                floor,
            ]
        )
    return markdown_table(list(COLUMNS), rows)


def gb(count: float) -> str:
    return f"{count / 1e9:.2f}"
