"""The folder of a run: one process at a time, one config, the same on every host.

In: a folder, the config and the prepared data. Out: config.json there, and the lock; `InputError` where another run is there.
"""

import fcntl
import json
from pathlib import Path
from typing import TextIO

from ml_collections import ConfigDict

from jaxseg.config import all_fields, get_field, load_config, peer_sections
from jaxseg.data.records import Prepared
from jaxseg.errors import InputError
from jaxseg.files import write_json

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


def lock_workdir(workdir: Path) -> TextIO:
    """Takes `workdir` until the file returned is closed; a killed process lets go. Raises InputError for a second one."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("w")
    except OSError as error:
        raise InputError(
            f"--workdir={workdir}: no folder that can be written ({error.strerror}); use another."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"--workdir={workdir}: another process is training there; wait for it, or use another folder. (Processes that"
            " are to train together need --distributed.)"
        ) from error
    return file


def write_or_check_config(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Writes config.json, or checks that the run in `workdir` is this one. Raises InputError showing the difference."""
    path = workdir / "config.json"
    if path.exists():
        stored, data = load_config(workdir), json.loads(path.read_text()).get("data")
        changed = config_differences(stored, config)
        if not any((workdir / "checkpoints").glob("[0-9]*")):  # a start from weights that could not be read
            changed = {
                f: line for f, line in changed.items() if not f.endswith(("model.init_from", "model.init_parts"))
            }
        lines = list(changed.values())
        if data != prepared.fingerprint:
            lines.append(f"the prepared data: fingerprint {data} there, {prepared.fingerprint} now")
        if lines:
            raise InputError(
                f"--workdir={workdir} holds a run of another config; use another folder, or go on with its own:\n  "
                + "\n  ".join(lines)
            )
    write_json(path, {"config": config.to_dict(), "data": prepared.fingerprint})


def check_config_matches_primary(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """That this host sees what the first one wrote, and has the same config and data. Raises InputError."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"--workdir={workdir}: the first host's {path.name} is not there; it must be a folder of all hosts."
        )
    stored = json.loads(path.read_text())
    if lines := list(config_differences(load_config(workdir), config).values()):
        raise InputError("another config than on the first host:\n  " + "\n  ".join(lines))
    if stored["data"] != prepared.fingerprint:
        raise InputError(f"other data: fingerprint {stored['data']} on the first host, {prepared.fingerprint} here.")


def config_differences(stored: ConfigDict, config: ConfigDict) -> dict[str, str]:
    """Of every field that would make it another run, a line that shows both values."""
    there, now = ({f: repr(get_field(c, f)) for f in all_fields(c)} for c in (stored, config))
    may_change = MAY_CHANGE
    if all(section.optim.schedule == "constant" for section in peer_sections(config).values()):
        may_change += ("train.epochs",)
    return {
        f: f"config.{f}: {there.get(f, 'no such peer')} there, {now.get(f, 'no such peer')} now"
        for f in there | now
        if not f.startswith(may_change) and there.get(f) != now.get(f)
    }
