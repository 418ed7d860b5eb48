"""The folder of a run: one process at a time, one config, the same on every host.

In: a folder, the config and the prepared data. Out: config.json there, and the lock; `InputError` where another run is
there.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.config import all_fields, get_field, is_frozen, load_config, peer_path, peer_sections
from jaxseg.data.records import Prepared
from jaxseg.errors import InputError
from jaxseg.files import file_lock, read_json, write_json
from jaxseg.labels import LABELS
from jaxseg.models.torch_tensors import LoadReport
from jaxseg.schemas import CONFIG_FILE
from jaxseg.training.distributed import run_on_primary

# Fields that may differ when a run is gone on with: none of them changes what has been computed so far.
MAY_CHANGE = (
    "data.source_dir",
    "data.dir",
    "data.download",
    "data.workers",
    "data.threads",
    "train.max_steps",
    "train.max_skipped_steps",
    "train.log_every_steps",
    "eval.",
    "checkpoint.",
)
FILES = ("config.json", "train.jsonl", "eval.jsonl", "results.json", "predictions.png")
FOLDERS = ("checkpoints", "tensorboard", "damaged")


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Holds `workdir` for this run; a killed process lets go. Raises InputError, on all hosts, where another has it."""

    def refuse() -> None:
        raise InputError(
            f"--workdir={workdir}: another process is training there; wait for it, or use another folder. (Processes that"
            " are to train together need --distributed.)"
        )

    def lock() -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            check_places(workdir)
            held.enter_context(file_lock(workdir / "lock", if_held=refuse))
        except OSError as error:
            raise InputError(
                f"--workdir={workdir}: no folder that can be written ({error.strerror or error}); use another."
            ) from error

    with contextlib.ExitStack() as held:
        run_on_primary(lock)
        yield


def check_places(workdir: Path) -> None:
    """Refuses a folder where a file of the run goes, a file where a folder goes, and what is neither. Raises InputError."""
    for name in (*FILES, *FOLDERS):
        path = workdir / name
        if os.path.lexists(path) and not (path.is_dir() if name in FOLDERS else path.is_file()):
            kind = "not a folder" if name in FOLDERS else "something else than the file that a run writes is there"
            raise InputError(f"{path}: {kind}; move it away.")


def write_or_check_config(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Writes config.json, or checks that the run in `workdir` is this one. Raises InputError showing the difference."""
    path = workdir / "config.json"
    if path.exists():
        stored = load_config(workdir)
        changed = config_differences(stored, config)
        if not any((workdir / "checkpoints").glob("[0-9]*")):  # a start from weights that could not be read
            started_from = ("model.init_from", "model.init_parts", "model.normalize")
            changed = {field: line for field, line in changed.items() if not field.endswith(started_from)}
        lines = list(changed.values()) + computed_otherwise(workdir, config)
        fingerprint = read_json(path, CONFIG_FILE).get("data")
        if fingerprint != prepared.fingerprint:
            lines.append(f"the prepared data: fingerprint {fingerprint} there, {prepared.fingerprint} now")
        if lines:
            raise InputError(
                f"--workdir={workdir} holds a run of another config; use another folder, or go on with its own:\n  "
                + "\n  ".join(lines)
            )
    own = {} if prepared.name in LABELS else {"labels": prepared.labels.as_dict()}
    write_json(path, {"config": config.to_dict(), "data": prepared.fingerprint, **own})


def check_config_matches_primary(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """That this host sees what the first one wrote, and has the same config and data. Raises InputError."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"--workdir={workdir}: the first host's {path.name} is not there; it must be a folder of all hosts."
        )
    if lines := list(config_differences(load_config(workdir), config).values()):
        raise InputError("another config than on the first host:\n  " + "\n  ".join(lines))
    fingerprint = read_json(path, CONFIG_FILE).get("data")
    if fingerprint != prepared.fingerprint:
        raise InputError(f"other data: fingerprint {fingerprint} on the first host, {prepared.fingerprint} here.")


def config_differences(stored: ConfigDict, config: ConfigDict) -> dict[str, str]:
    """Of every field that would make it another run, a line that shows both values."""
    there, now = ({field: repr(get_field(c, field)) for field in all_fields(c)} for c in (stored, config))
    may_change = MAY_CHANGE
    if all(section.optim.schedule == "constant" for section in peer_sections(config).values()):
        may_change += ("train.epochs",)
    return {
        field: f"config.{field}: {there.get(field, 'no such peer')} there, {now.get(field, 'no such peer')} now"
        for field in there | now
        if not field.startswith(may_change) and there.get(field) != now.get(field)
    }


def computed_otherwise(workdir: Path, config: ConfigDict) -> list[str]:
    """What earlier versions computed by the same settings in another way, and the run in `workdir` has done so: a line each.

    Those wrote no `optim.decay_on`. What they called adam with decay is adamw to `load_config`, and goes on as that.
    """
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
    stored = read_json(workdir / "config.json", CONFIG_FILE)["config"]
    lines = []
    for name, section in peer_sections(config).items():
        written = stored if name == config.peer else stored.get("peers", {}).get(name, {})
        if not steps or is_frozen(config, name) or "decay_on" in written.get("optim", {"decay_on": ""}):
            continue
        where = f"{peer_path(config, name)}.optim"
        if section.optim.name == "sgd" and section.optim.weight_decay:
            decay = section.optim.weight_decay
            lines.append(f"{where}.weight_decay={decay}: SGD's decay was decoupled there, it is PyTorch's now")
        if max(steps) < section.optim.warmup_steps:
            warmup = section.optim.warmup_steps
            lines.append(
                f"{where}.warmup_steps={warmup}: update i of n had i/n of the rate there, it has (i + 1)/n now"
            )
    return lines


def write_load_reports(workdir: Path, reports: Mapping[str, LoadReport]) -> list[str]:
    """Writes init_PEER.txt for every peer that starts from other weights; a sentence of each, for the console."""
    sentences = []
    for name, report in reports.items():
        path = workdir / f"init_{name}.txt"
        path.write_text("\n".join(report.lines()) + "\n", encoding="utf-8")
        counts = f"{len(report.loaded)} loaded, {len(report.fresh)} fresh, {len(report.dropped)} dropped"
        sentences.append(f"{name}: starts from other weights, tensors: {'; '.join([counts, *report.note])}; see {path}")
    return sentences
