"""Plans of a study: read, checked, split."""

import fnmatch
from pathlib import Path

import pytest

from jaxseg.config import all_fields, get_field
from jaxseg.errors import InputError
from jaxseg.studies.dry_run import planned_steps
from jaxseg.studies.plan import read_plan, shard_of
from jaxseg.study import runs_on
from tests import ROOT

PRESETS = sorted((ROOT / "configs" / "study").glob("*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=[path.stem for path in PRESETS])
def test_presets_are_whole(path):
    """Every run's config is checked by reading; every question is about arms that there are; every seed is complete."""
    read = read_plan(path)
    arms = {run.arm for run in read.runs} | (
        {run.arm for run in read_plan(path.with_stem(read.base)).runs} if read.base else set()
    )
    for question in read.questions:
        start, _, end = question["of"].partition("*")
        asked = fnmatch.filter(arms, question["of"])
        stems = [arm[len(start) : len(arm) - len(end)] for arm in asked]
        assert asked, question
        assert {question["against"].replace("*", stem) for stem in stems} <= arms, question
    assert {path.stem for path in PRESETS} == {
        "demo",
        "cpu",
        "ablation",
        "gpu",
        "recipe",
        "architectures",
        "architectures_gpu",
        "gpu_camvid",
        "information",
        "camvid16",
        "protocols",
    }
    seeds = {run.seed for run in read.runs}
    assert len(seeds) >= 3
    assert all(len({r.seed for r in read.runs if r.cell == run.cell}) == len(seeds) for run in read.runs)


def test_the_gpu_plan_is_the_study():
    """200 epochs; 224 pixel crops; batches and rates of text and released code, as in the study's table of both."""
    configs = {
        (r.model, r.protocol): r.config()
        for r in read_plan(ROOT / "configs/study/gpu.toml").runs
        if r.dataset == "voc2012" and r.arm == r.model
    }
    rows = {
        key: (
            c.train.batch_size,
            c.optim.learning_rate,
            c.data.resize,
            c.loss.pool,
            c.model.features,
            planned_steps(c),
        )
        for key, c in configs.items()
    }
    assert rows == {
        ("unet", "text"): (8, 1e-3, "square", "max", 32, 36_600),
        ("rmi", "text"): (8, 1e-3, "square", "max", 32, 36_600),
        ("mutual", "text"): (8, 1e-3, "square", "max", 32, 36_600),
        ("unet", "released"): (8, 1e-3, "shorter_side", "max", 32, 36_600),
        ("rmi", "released"): (2, 1e-4, "shorter_side", "none", 32, 146_400),
        ("mutual", "released"): (10, 1e-4, "shorter_side", "max", 32, 29_280),
    }
    assert {c.train.epochs for c in configs.values()} == {200}
    assert {c.data.crop_px for c in configs.values()} == {224}


def test_the_gpu_plan_has_the_released_rmi_from_the_baseline_too():
    """It differs from the released RMI in its start alone."""
    runs = {run.name: run for run in read_plan(ROOT / "configs/study/gpu.toml").runs}
    finetuned, released = (runs[f"voc2012-released-{arm}-seed1"].config() for arm in ("rmi_finetuned", "rmi"))
    assert finetuned.model.init_from == "runs/study/gpu/voc2012-released-unet-seed1"
    assert [f for f in all_fields(released) if get_field(released, f) != get_field(finetuned, f)] == ["model.init_from"]


def test_the_report_is_a_protocol(plan):
    """On the data sets that have experiment files with that variant."""
    text = plan.read_text()
    plan.write_text(text.replace('datasets = ["synthetic"]', 'datasets = ["camvid"]\nprotocols = ["text", "report"]'))
    files = {run.protocol: run.config_file for run in read_plan(plan).runs if run.dataset == "camvid"}
    assert files == {"text": "configs/unet_camvid.py", "report": "configs/unet_camvid.py:report"}


def test_the_plan_of_protocols_has_all_three_for_as_many_images():
    """Batches, rates, term and order of each by study.md; 367 images, 17 times: 780 steps of 8, 3,120 of 2, 624 of 10."""
    runs = read_plan(ROOT / "configs/study/protocols.toml").runs
    configs = {(run.protocol, run.arm): run.config() for run in runs}
    rows = {}
    for key, config in configs.items():
        batches = (planned_steps(config), config.train.batch_size, config.optim.learning_rate)
        rows[key] = (*batches, config.data.resize, config.loss.pool, config.mutual.form, config.mutual.updates)
    as_text = ("square", "max", "kl", "together")
    released = {pool: ("shorter_side", pool, "kl", "together") for pool in ("max", "none")}
    assert rows == {
        ("text", "unet"): (780, 8, 1e-3, *as_text),
        ("text", "rmi"): (780, 8, 1e-3, *as_text),
        ("text", "mutual"): (780, 8, 1e-3, *as_text),
        ("report", "unet"): (780, 8, 1e-3, *as_text),
        ("report", "rmi"): (3120, 2, 1e-4, *as_text),
        ("report", "mutual"): (624, 10, 1e-4, *as_text),
        ("released", "unet"): (780, 8, 1e-3, *released["max"]),
        ("released", "rmi"): (3120, 2, 1e-4, *released["none"]),
        ("released", "rmi_finetuned"): (3120, 2, 1e-4, *released["none"]),
        ("released", "mutual"): (624, 10, 1e-4, "shorter_side", "max", "released", "in_turn"),
    }
    assert {len({run.seed for run in runs if (run.protocol, run.arm) == key}) for key in configs} == {3}


def test_fields_come_from_base_grid_and_config():
    runs = {run.name: run for run in read_plan(ROOT / "configs/study/ablation.toml").runs}
    more = runs["camvid-text-rmi_from_unet-seed1"]
    assert more.fields["model.init_from"] == "runs/study/cpu/camvid-text-unet-seed1"
    assert more.fields["data.size_px"] == 96  # the base's
    config = runs["camvid-text-rmi_as_released-seed2"].config()
    assert (config.loss.pool, config.optim.learning_rate, config.train.batch_size, config.seed) == ("none", 1e-4, 2, 2)
    flags = runs["camvid-text-rmi_no_pooling-seed0"].flags()
    assert flags[0] == "--config=configs/rmi_camvid.py"
    assert "--config.loss.pool=none" in flags


NETWORKS = """
[network.small]
model.features = 2
[network.large]
model.features = 4
optim.learning_rate = 0.5

[[grid]]
arm = "{network}_rmi"
models = ["rmi"]
datasets = ["synthetic"]
seeds = [0]
starts_from = "{network}_base"
config.optim.learning_rate = 0.25

[[grid]]
arm = "{network}_base"
models = ["unet"]
datasets = ["synthetic"]
seeds = [0]

[[question]]
ask = "Does RMI help {network}?"
of = "{network}_rmi"
against = "{network}_base"
"""


def test_grids_are_repeated_for_every_network(plan):
    """One network after the other; what the grid sets counts more than what the network does."""
    plan.write_text(plan.read_text() + NETWORKS)
    read = read_plan(plan)
    runs = {run.arm: run for run in read.runs if run.arm.startswith(("small", "large"))}
    assert list(runs) == ["small_rmi", "small_base", "large_rmi", "large_base"]
    fields = {arm: (run.fields["model.features"], run.fields.get("optim.learning_rate")) for arm, run in runs.items()}
    assert fields == {"small_rmi": (2, 0.25), "small_base": (2, None), "large_rmi": (4, 0.25), "large_base": (4, 0.5)}
    assert runs["large_rmi"].starts_from == "large_base"
    assert runs["large_rmi"].fields["model.init_from"] == f"runs/study/{plan.stem}/synthetic-text-large_base-seed0"
    asked = [(q["ask"], q["of"], q["against"]) for q in read.questions[-2:]]
    assert asked == [
        ("Does RMI help small?", "small_rmi", "small_base"),
        ("Does RMI help large?", "large_rmi", "large_base"),
    ]


def test_networks_that_are_not_there_are_a_sentence(plan):
    plan.write_text(plan.read_text() + NETWORKS.replace("[network.", "[of."))
    with pytest.raises(InputError, match=r"arm = '\{network\}_rmi', but there is no \[network.NAME\]"):
        read_plan(plan)


def test_all_networks_are_planned_at_two_sizes():
    """84 runs each, of the same names; at the study's size with ResNet-50 and 32 features, 224 pixels, 200 epochs."""
    small, large = (
        read_plan(ROOT / "configs/study" / f"{name}.toml") for name in ("architectures", "architectures_gpu")
    )
    assert [run.name for run in small.runs] == [run.name for run in large.runs]
    assert len(small.runs) == 7 * 4 * 3
    assert small.runs[5].name == "camvid-text-fcn_rmi-seed0"
    configs = {run.arm: run.config() for run in large.runs if run.seed == 0}
    assert {c.data.crop_px for c in configs.values()} == {224}
    assert {c.model.backbone for arm, c in configs.items() if not arm.startswith("unet")} == {"resnet50"}
    assert {c.model.features for arm, c in configs.items() if arm.startswith("unet")} == {32}
    assert {arm: configs[arm].train.epochs for arm in ("fpn", "fpn_rmi", "fpn_rmi_from_baseline")} == {
        "fpn": 200, "fpn_rmi": 200, "fpn_rmi_from_baseline": 100,
    }  # fmt: skip


def test_runs_of_a_data_set_alone():
    runs = read_plan(ROOT / "configs/study/gpu.toml").runs
    of_voc = runs_on(["voc2012"], runs)
    assert {run.dataset for run in of_voc} == {"voc2012"}
    assert len(of_voc) == len(runs) / 2 == 21
    with pytest.raises(InputError, match=r"--datasets: 'camvid'; the plan has runs on cityscapes, voc2012"):
        runs_on(["camvid"], runs)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_are_the_plan_and_keep_runs_with_what_they_start_from(count, plan):
    for path in (*PRESETS, plan):
        read = read_plan(path)
        shards = [shard_of(read, index, count) for index in range(count)]
        assert sorted(run.name for shard in shards for run in shard) == sorted(run.name for run in read.runs)
        sizes = [len(shard) for shard in shards]
        assert max(sizes) - min(sizes) <= 3  # the longest chain, of the plan architectures
        for shard in shards:
            names = [run.name for run in shard]
            for run in (run for run in shard if run.starts_from and not read.base):
                parent = Path(run.fields["model.init_from"]).name
                assert names.index(parent) < names.index(run.name)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("title", "titel", r"tiny.toml, the plan: unknown titel, title; it has base, config"),
        ('device = "cpu"', 'device = "abacus"', r"device='abacus'; expected one of h100, cpu"),
        ('models = ["unet"]', 'models = ["u-net"]', r"\[\[grid\]\] models: 'u-net'; expected some of unet, rmi, mutual"),
        ("size_px = 36", "size_px = 16", r"run synthetic-text-unet-seed0: config.data.crop_px=32 is larger than"),
        ("model.features", "model.featuers", r"config.model.featuers: there is no such field. Did you mean"),
        ('model.features = 2', 'model.features = "two"', r"config.model.features='two'"),
        ('model.features = 2', 'model.init_from = "torchvision/resnet5O"', r"Did you mean 'torchvision/resnet50'"),
        ('arm = "unet_more"', "", r"synthetic-text-unet-seed0 is there twice"),
        ('datasets = ["synthetic"]', 'datasets = ["synthetic"]\nprotocols = ["released"]', "rendered scenes have no 'released'"),
        ('datasets = ["synthetic"]', 'datasets = ["synthetic"]\nprotocols = ["report"]', "rendered scenes have no 'report'"),
        ("seeds = [0]", "seed = [0]", r"\[\[grid\]\]: unknown seed, seeds"),
        ("[[grid]]", "[[grid", "cannot be read as TOML"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_used_is_a_sentence(plan, old, new, match):
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=match):
        read_plan(plan)
