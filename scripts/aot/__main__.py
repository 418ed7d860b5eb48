"""Training and evaluation steps compiled by XLA's GPU or TPU compiler, without a device, and what the programs do.

    python -m scripts.aot --target=h100|h100:8|v5e:2x4|… [--config=configs/X.py [--config.FIELD=VALUE …]]
        [--only=GLOB,…] [--batch=32] [--again] [--output=results/aot_h100.json]

Without --config: every network and loss of the study's recipe, float32 and bfloat16, training and evaluation, by names
such as unet+rmi/bfloat16/train; --only takes those that match, --list prints them. Of every program, of one device in one
step: peak memory, bytes moved by kind of instruction, arithmetic, collectives, kernels, copies of large maps, and how long
memory and arithmetic take at the vendor's peak; beside it what PyTorch must move, operation by operation, for the same
network (scripts/aot/floor.py). How bytes are counted: scripts/aot/hlo.py. Nothing is measured: no kernel has run, no
autotuner has chosen one (it needs the device), and no cache is modelled.

A program is written to OUTPUT as soon as it is compiled, and is not compiled again while what JAX lowers for it and the
compiler's packages are the same; --again compiles it all the same. The table of all that is in OUTPUT goes to OUTPUT.md.
Fields of the config follow as for jaxseg.main. Needs jaxseg[aot], in an environment of its own:
jaxseg[cuda] is enough for h100, jaxseg[tpu] for TPUs.
"""

import argparse
import fnmatch
import hashlib
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxseg.config import find_config_file
from jaxseg.config_checks import validate
from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.provenance import command, commit
from scripts.aot.floor import torch_floor
from scripts.aot.programs import Step, every_step, lower, steps_of
from scripts.aot.report import compile_and_read, table
from scripts.aot.targets import Target, check_packages, described_devices, find_target, versions
from scripts.entry import options_of, run, write_result

OF_CONFIG = "--config."


def read_config(path: str, settings: list[str]) -> ConfigDict:
    """The config of an experiment file with --config.FIELD=VALUE, as `jaxseg.main` reads them. Raises InputError."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        values(["aot", f"--config={find_config_file(path)}", *settings])
    except (flags.Error, AttributeError, KeyError) as error:
        raise InputError(f"{' '.join(settings)}: {error}") from error
    validate(values.config)
    return values.config


def chosen_steps(options: argparse.Namespace) -> list[Step]:
    """Those that the options ask for. Raises InputError where there is none."""
    settings = [word for word in sys.argv if word.startswith(OF_CONFIG)]
    if settings and not options.config:
        raise InputError(f"{settings[0]}: of which experiment file? --config=configs/….py")
    steps = every_step()
    if options.config:
        fields = [word.removeprefix(OF_CONFIG) for word in settings]
        steps = steps_of(" ".join([options.config, *fields]), read_config(options.config, settings))
    patterns = options.only.split(",")
    chosen = [step for step in steps if any(fnmatch.fnmatchcase(step.name, pattern) for pattern in patterns)]
    if not chosen:
        raise InputError(f"--only={options.only}: matches none of {', '.join(step.name for step in steps)}.")
    return chosen


def fingerprint(text: str, target: Target) -> str:
    """Of a lowered program and of what compiles it: where it is the same, so is what is compiled."""
    packages = " ".join(f"{name} {version}" for name, version in versions(target).items())
    return hashlib.sha256(f"{target.name} {packages} {text}".encode()).hexdigest()


def compile_all(steps: list[Step], target: Target, options: argparse.Namespace, output: Path) -> None:
    """One after the other; each is in `output` before the next one begins."""
    devices = described_devices(target)
    for step in steps:
        done = read_json(output)["programs"] if output.is_file() else {}
        print(f"{step.name}: ", end="", flush=True)
        lowered = lower(step, batch_size=options.batch, devices=devices)
        mark = fingerprint(lowered.as_text(), target)
        if not options.again and done.get(step.name, {}).get("fingerprint") == mark:
            print("as before")
            continue
        dtype = step.config.model.dtype
        about = {"fingerprint": mark, "commit": commit(), "command": command(), "batch_size": options.batch}
        row = about | compile_and_read(lowered, target, dtype)
        row["torch_floor_bytes"] = torch_floor(step.config, batch_size=options.batch, training=step.training)
        print(f"compiled in {row['compile_s']:.0f} s, {row['bytes'] / 1e9:.2f} GB moved, {row['memory_ms']:.2f} ms")
        machine = target.machine
        content = {
            "target": target.name,
            "devices": target.num_devices,
            "peaks": machine.source,
            "compilers": versions(target),
        }
        write_result(output, content | {"programs": done | {step.name: row}})


def main(options: argparse.Namespace) -> None:
    steps = chosen_steps(options)
    if options.list:
        print("\n".join(step.name for step in steps))
        return
    target = find_target(options.target)
    check_packages(target)
    output = options.output or Path("results") / f"aot_{target.name.replace(':', '_')}.json"
    compile_all(steps, target, options, output)
    text = table(read_json(output)["programs"])
    output.with_suffix(".md").write_text(text + "\n")
    print(text)
    print(f"written: {output}, {output.with_suffix('.md')}")


if __name__ == "__main__":
    parser = options_of(__doc__, batch=32)
    parser.add_argument("--target", default="h100", metavar="NAME", help="h100, h100:8, v5e:2x4, … default: h100")
    parser.add_argument("--config", metavar="FILE.py", help="an experiment file; default: all networks and losses")
    parser.add_argument("--only", default="*", metavar="GLOB,…", help="names of programs")
    parser.add_argument("--list", action="store_true", help="print the names of the programs and end")
    parser.add_argument("--again", action="store_true", help="compile what has been compiled before")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: results/aot_TARGET.json")
    run(main, parser, [word for word in sys.argv[1:] if not word.startswith(OF_CONFIG)])
