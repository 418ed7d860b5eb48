"""A study as a file: which networks, data sets, protocols and seeds, and what is asked of them.

In: a TOML file of `configs/study/`. Out: a `Plan` of `Run`s, each of which is one `python -m jaxseg.main` command.

    title, note        what stands above and below the tables
    device             what it is sized for, cpu or h100: the dry run's estimate is for that
    base = "cpu"       another plan, whose fields this one has too and whose runs may be compared and started from
    [[grid]]           models × datasets × protocols × seeds, lists; with `arm` a variation, whose `config` has the fields
                       that differ and `starts_from` the arm (of the base plan, where there is one) whose best weights it
                       begins with
    [config]           fields of every run, as in --config.data.size_px
    [of.NAME]          fields of the runs whose model, data set or protocol is NAME
    [[question]]       ask, of, against: two arms whose runs of the same data set, protocol and seed are compared;
                       `*` in both stands for the same part of their names, and pairs of all arms that fit are pooled
    [network.NAME]     fields of a network: a [[grid]] whose `arm`, or a [[question]] whose `of`, has {network} in it is
                       made once for every NAME, one network after the other
"""

import dataclasses
import tomllib
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.config import all_fields, find_config_file, run_config_file, unknown_field
from jaxseg.config_checks import validate
from jaxseg.errors import InputError
from jaxseg.files import write_json
from jaxseg.models.pretrained import settle_pretrained
from jaxseg.reporting.comparison import MODELS
from jaxseg.studies.estimate import DEVICES

SHORT = {"cityscapes": "cityscapes", "voc2012": "voc", "camvid": "camvid"}  # as experiment files are named
PROTOCOLS = ("text", "report", "released")  # but for the first the variants of experiment files
KEYS = {"title", "note", "device", "base", "grid", "config", "of", "question", "network"}
NETWORK = "{network}"  # in a name: one table stands for one of each network
GRID_KEYS = {"models", "datasets", "protocols", "seeds", "arm", "config", "starts_from"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a plan. `fields`: what is set beyond the experiment file, by dotted path."""

    plan: str
    arm: str
    model: str
    dataset: str
    protocol: str
    seed: int
    fields: dict
    starts_from: str | None = None

    @property
    def cell(self) -> str:
        """What runs that differ in their seed only have in common."""
        return f"{self.dataset}-{self.protocol}-{self.arm}"

    @property
    def name(self) -> str:
        return f"{self.cell}-seed{self.seed}"

    @property
    def config_file(self) -> str:
        if self.dataset == "synthetic":
            return "configs/demo.py" + ("" if self.model == "unet" else f":{self.model}")
        return f"configs/{self.model}_{SHORT[self.dataset]}.py" + (
            "" if self.protocol == "text" else f":{self.protocol}"
        )

    @property
    def workdir(self) -> Path:
        return Path("runs") / "study" / self.plan / self.name

    def flags(self) -> list[str]:
        """What follows `python -m jaxseg.main`."""
        fields = {"seed": self.seed, **self.fields}
        overrides = [f"--config.{path}={value}" for path, value in fields.items()]
        return [f"--config={self.config_file}", f"--workdir={self.workdir}", *overrides]

    def config(self) -> ConfigDict:
        """The config that those flags make. Raises InputError."""
        config = run_config_file(find_config_file(self.config_file))
        for path, value in {"seed": self.seed, **self.fields}.items():
            if path not in all_fields(config):
                raise unknown_field(path, config)
            try:
                config.update_from_flattened_dict({path: value})
            except TypeError as error:
                raise InputError(f"config.{path}={value!r}: {error}") from error
        validate(config)
        settle_pretrained(config, say=lambda sentence: None)  # the run itself says it
        return config


@dataclasses.dataclass(frozen=True)
class Plan:
    """runs: in the order in which they are made, seed by seed, so that a part of them is a smaller study."""

    name: str
    title: str
    note: str
    device: str
    base: str | None
    questions: list[dict]
    runs: list[Run]


def read_plan(path: Path) -> Plan:
    """The plan in `path`, every run's config checked. Raises InputError naming file, table and key."""
    content = read_content(path)
    fields = content["config"]
    of = content["of"]
    base = content.get("base")
    networks = content.get("network", {})
    grids = of_networks(path, content["grid"], "arm", networks)
    runs = [run for grid in grids for run in runs_of(path, grid, fields, of, base)]
    runs.sort(key=lambda run: run.seed)
    for run in runs:
        try:
            run.config()
        except InputError as error:
            raise InputError(f"{path}, run {run.name}: {error}") from error
    if len({run.name for run in runs}) < len(runs):
        twice = next(run.name for run in runs if [r.name for r in runs].count(run.name) > 1)
        raise InputError(f"{path}: {twice} is there twice; give one of its [[grid]] tables another `arm`.")
    for question in (questions := of_networks(path, content.get("question", []), "of", networks)):
        check_keys(path, "[[question]]", question, {"ask", "of", "against"}, needed={"ask", "of", "against"})
    return Plan(path.stem, content["title"], content["note"], content["device"], base, questions, runs)


def read_content(path: Path) -> dict:
    """The file's tables; `config` and `of` flat, over those of the plan it builds on. Raises InputError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        presets = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
        raise InputError(f"{path}: there is no such plan. Presets: {presets or 'none here'}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({error}).") from error
    check_keys(path, "the plan", content, KEYS, needed={"title", "note", "device", "grid"})
    if content["device"] not in DEVICES:
        raise InputError(f"{path}: device={content['device']!r}; expected one of {', '.join(DEVICES)}.")
    base = content.get("base")
    below = read_content(path.with_name(f"{base}.toml")) if base else {"config": {}, "of": {}}
    of = content.get("of", {})
    names = dict.fromkeys([*below["of"], *of])
    content["of"] = {name: below["of"].get(name, {}) | flat(of.get(name, {})) for name in names}
    content["config"] = below["config"] | flat(content.get("config", {}))
    return content


def runs_of(path: Path, grid: dict, fields: dict, of: dict, base: str | None) -> list[Run]:
    """The runs of one [[grid]] table."""
    check_keys(path, "[[grid]]", grid, GRID_KEYS, needed={"models", "datasets", "seeds"})
    protocols = grid.get("protocols", ["text"])
    for key, values, known in (
        ("models", grid["models"], MODELS),
        ("datasets", grid["datasets"], (*SHORT, "synthetic")),
        ("protocols", protocols, PROTOCOLS),
    ):
        for value in values:
            if value not in known:
                raise InputError(f"{path}, [[grid]] {key}: {value!r}; expected some of {', '.join(known)}.")
    if "arm" in grid and len(grid["models"]) > 1:
        raise InputError(f"{path}, [[grid]] arm={grid['arm']!r}: an arm is of one model; got {grid['models']}.")
    if "synthetic" in grid["datasets"] and (beyond := [name for name in protocols if name != "text"]):
        raise InputError(f"{path}, [[grid]]: rendered scenes have no {beyond[0]!r} protocol.")
    runs = []
    for seed in grid["seeds"]:
        for dataset in grid["datasets"]:
            for protocol in protocols:
                for model in grid["models"]:
                    own = dict(fields)
                    for name in (model, dataset, protocol):
                        own |= of.get(name, {})
                    own |= flat(grid.get("config", {}))
                    arm = grid.get("arm", model)
                    start = grid.get("starts_from")
                    if start:
                        own["model.init_from"] = (
                            f"runs/study/{base or path.stem}/{dataset}-{protocol}-{start}-seed{seed}"
                        )
                    runs.append(Run(path.stem, arm, model, dataset, protocol, seed, own, start))
    return runs


def of_networks(path: Path, tables: list[dict], key: str, networks: dict[str, dict]) -> list[dict]:
    """The tables, those with {network} in `key` last and once for every network. Raises InputError where there is none."""
    repeated = [table for table in tables if NETWORK in table.get(key, "")]
    if repeated and not networks:
        raise InputError(f"{path}: {key} = {repeated[0][key]!r}, but there is no [network.NAME].")
    made = [table for table in tables if table not in repeated]
    for name, fields in networks.items():
        for table in repeated:
            named = {k: value.replace(NETWORK, name) if isinstance(value, str) else value for k, value in table.items()}
            made.append(named | ({"config": flat(fields) | flat(table.get("config", {}))} if key == "arm" else {}))
    return made


def flat(table: dict, prefix: str = "") -> dict:
    """{"data": {"size_px": 96}} -> {"data.size_px": 96}."""
    paths = {}
    for key, value in table.items():
        paths |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return paths


def check_keys(path: Path, where: str, table: dict, known: set, *, needed: set) -> None:
    if wrong := (table.keys() - known) | (needed - table.keys()):
        raise InputError(
            f"{path}, {where}: {'unknown' if wrong & table.keys() else 'missing'} {', '.join(sorted(wrong))};"
            f" it has {', '.join(sorted(known))}."
        )


def find_plan(preset: str) -> Path:
    """The plan of that name in configs/study, of the checkout or installed with the package."""
    package = Path(__file__).parents[1]
    folders = [package / "configs" / "study", package.parent / "configs" / "study"]
    return next((f for folder in folders if (f := folder / f"{preset}.toml").is_file()), folders[-1] / f"{preset}.toml")


def shard_of(plan: Plan, index: int, count: int) -> list[Run]:
    """One of `count` parts of about as many runs; those that start from another's weights follow that one."""
    names = {run.name for run in plan.runs}
    chains: dict[str, list[Run]] = {}
    for run in sorted(plan.runs, key=lambda run: bool(run.starts_from)):
        start = Path(run.fields["model.init_from"]).name if run.starts_from else run.name
        chains.setdefault(start if start in names else run.name, []).append(run)
    shards: list[list[Run]] = [[] for _ in range(count)]
    for chain in chains.values():
        min(shards, key=len).extend(chain)
    return shards[index]


def write_plan(plan: Plan, output: Path) -> None:
    """What was planned, beside the results: the report shows what is missing, too."""
    output.mkdir(parents=True, exist_ok=True)
    keys = ("name", "arm", "model", "dataset", "protocol", "seed")
    content = {
        "plan": plan.name,
        "title": plan.title,
        "note": plan.note,
        "base": plan.base,
        "questions": plan.questions,
        "runs": [{key: getattr(run, key) for key in keys} for run in plan.runs],
    }
    write_json(output / "plan.json", content)
