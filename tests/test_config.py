"""Every refusal names the field; every preset is a valid experiment."""

import functools
import importlib.util
import json
import math
import operator
from pathlib import Path

import pytest

from jaxseg import cli
from jaxseg.config import (
    FIELDS,
    add_peer,
    all_fields,
    choices_of,
    default,
    fields_help,
    fields_table,
    find_config_file,
    find_field,
    get_field,
    load_config,
    unknown_field,
    use_mutual_learning,
)
from jaxseg.config_checks import SIZE_MULTIPLE_PX, check_devices, validate
from jaxseg.errors import InputError
from jaxseg.models.factory import NORMALIZE
from jaxseg.models.resnet import DEPTHS
from jaxseg.models.unet import LEVELS
from jaxseg.training.checkpoint import HIGHER_IS_BETTER
from tests import ROOT
from tests.configs import changed

CONFIGS = ROOT / "configs"
PRESETS = sorted(CONFIGS.glob("[!_]*.py"))
NETWORK = {
    "model": {
        "name": "unet",
        "features": 32,
        "backbone": "resnet50",
        "stem_features": 64,
        "output_stride": 8,
        "auxiliary": False,
        "normalize": "none",
        "dtype": "float32",
        "remat": False,
        "init_from": "",
        "init_parts": "all",
        "init_required": True,
        "freeze_batchnorm": False,
    },
    "loss": {
        "name": "pixel",
        "pixel": "softmax",
        "class_weights": "none",
        "label_smoothing": 0.0,
        "focal_gamma": 2.0,
        "auxiliary_weight": 0.5,
        "weight": 0.5,
        "combine": "convex",
        "start_steps": 0,
        "ramp_steps": 0,
        "radius": 3,
        "pool": "max",
        "pool_size": 3,
        "tversky_alpha": 0.3,
        "tversky_beta": 0.7,
        "smooth": 0.0,
    },
    "optim": {
        "name": "adam",
        "learning_rate": 0.001,
        "schedule": "constant",
        "step_at": "0.5,0.75",
        "step_factor": 0.1,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "decay_on": "weights",
        "clip_norm": 0.0,
        "backbone_rate": 1.0,
        "head_rate": 1.0,
        "ema_decay": 0.0,
    },
}
DEFAULT = {
    "seed": 0,
    "peer": "unet",
    "data": {
        "name": "cityscapes",
        "source_dir": "",
        "val_fraction": 0.2,
        "dir": "~/.cache/jaxseg",
        "download": False,
        "trainaug": False,
        "scenes": 480,
        "resize": "square",
        "size_px": 234,
        "crop_px": 224,
        "workers": 0,
        "threads": 8,
    },
    "augment": {
        "name": "none",
        "flip": 0.5,
        "scale_min": 0.5,
        "scale_max": 2.0,
        "rotate_degrees": 10.0,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "blur": 0.5,
        "blur_sigma": 2.0,
    },
    **NETWORK,
    "peers": {},
    "mutual": {"weight": 1.0, "temperature": 1.0, "pixels": "valid", "form": "kl", "updates": "together"},
    "train": {
        "epochs": 200,
        "max_steps": 0,
        "batch_size": 8,
        "accumulate_steps": 1,
        "max_skipped_steps": 0,
        "log_every_steps": 20,
    },
    "eval": {"every_epochs": 5, "patience": 0, "batch_size": 8, "view": "whole", "passes": 1, "figure_images": 4},
    "checkpoint": {"every_steps": 0, "keep_latest": 2, "best": "mean_iou"},
}


def load_preset(path: Path, variant: str = ""):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config(variant)


def with_types(content):
    """Values and their types: 1, 1.0 and True are equal to ==."""
    if isinstance(content, dict):
        return {key: with_types(value) for key, value in content.items()}
    return type(content), content


def test_default_config_has_these_values_and_types():
    config = default()
    assert with_types(config.to_dict()) == with_types(DEFAULT)
    assert config.is_locked
    assert config.model.is_locked
    peer = add_peer(config, "teacher")
    assert peer is config.peers.teacher
    assert peer.is_locked
    assert with_types(peer.to_dict()) == with_types({**NETWORK, "frozen": False})


def test_default_is_the_studys_model_1():
    config = default()
    validate(config)
    assert (config.data.size_px, config.data.crop_px, config.model.features) == (234, 224, 32)
    assert (config.train.epochs, config.train.batch_size, config.optim.learning_rate) == (200, 8, 1e-3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__name": "cityscape"}, ["config.data.name", "'cityscape'", "Did you mean 'cityscapes'"]),
        ({"data__resize": "squared"}, ["config.data.resize", "Did you mean 'square'"]),
        ({"data__crop_px": 256}, ["config.data.crop_px=256", "config.data.size_px=234"]),
        ({"data__crop_px": 200}, ["config.data.crop_px=200", "192 or 208"]),
        ({"augment__name": "usuall"}, ["config.augment.name", "Did you mean 'usual'"]),
        ({"augment__flip": 0.0}, ["config.augment.flip=0.0 has no effect", "config.augment.name=usual"]),
        (
            {"augment__name": "usual", "augment__scale_min": 1.5, "augment__scale_max": 1.0},
            ["config.augment.scale_min=1.5", "config.augment.scale_max=1.0"],
        ),
        ({"augment__name": "usual", "augment__hue": math.nan}, ["config.augment.hue is nan"]),
        ({"augment__name": "usual", "data__crop_px": 480}, ["config.data.crop_px=480", "scale_max=2.0", "468"]),
        (
            {"augment__name": "usual", "data__crop_px": 256, "eval__view": "center"},
            ["config.data.crop_px=256", "config.data.size_px=234"],
        ),
        ({"model__dtype": "float16"}, ["config.model.dtype", "bfloat16"]),
        ({"optim__learning_rate": -1.0}, ["config.optim.learning_rate is -1.0", "at least 0"]),
        ({"optim__learning_rate": math.nan}, ["config.optim.learning_rate is nan"]),
        ({"train__batch_size": 0}, ["config.train.batch_size is 0", "at least 1"]),
        ({"train__batch_size": 6, "train__accumulate_steps": 4}, ["config.train.accumulate_steps=4", "divisor"]),
        ({"eval__passes": 5}, ["config.eval.passes=5", "config.eval.view"]),
        ({"data__download": True}, ["config.data.download", "voc2012"]),
        ({"data__name": "camvid", "data__trainaug": True}, ["config.data.trainaug", "voc2012"]),
        (
            {"data__name": "voc2012", "data__download": True, "data__source_dir": "x"},
            ["config.data.download", "config.data.source_dir"],
        ),
        ({"data__name": "synthetic", "data__source_dir": "x"}, ["config.data.source_dir", "synthetic"]),
        ({"peer": "../x"}, ["config.peer", "'../x'"]),
        ({"loss__radius": 5}, ["config.loss.radius=5", "no effect", "config.loss.name=pixel_and_rmi"]),
        ({"loss__name": "pixel_and_rmi", "loss__radius": 11}, ["config.loss.radius is 11", "at most 10"]),
        ({"loss__name": "pixel_and_rmi", "loss__weight": 1.5}, ["config.loss.weight=1.5", "-0.5", "additive"]),
        (
            {"loss__name": "pixel_and_rmi", "loss__pool_size": 100},
            ["config.data.crop_px=224", "config.loss.pool_size=100", "config.loss.radius=3"],
        ),
        ({"loss__name": "pixel_rmi"}, ["config.loss.name", "'pixel_rmi'", "pixel_and_rmi"]),
        ({"loss__name": "rmi", "loss__weight": 0.4}, ["config.loss.weight=0.4", "config.loss.name=pixel_and_rmi"]),
        ({"loss__name": "pixel_and_dice", "loss__weight": 1.5}, ["config.loss.weight=1.5", "dice by -0.5"]),
        ({"loss__name": "dice", "loss__radius": 5}, ["config.loss.radius=5", "no effect", "'dice'"]),
        ({"loss__name": "dice", "loss__label_smoothing": 0.1}, ["config.loss.label_smoothing=0.1", "pixel_and_dice"]),
        ({"loss__ramp_steps": 5}, ["config.loss.ramp_steps=5", "no effect", "config.loss.name=pixel_and_rmi"]),
        ({"loss__focal_gamma": 1.0}, ["config.loss.focal_gamma=1.0", "config.loss.pixel=focal"]),
        ({"loss__pixel": "focal", "loss__class_weights": "inverse"}, ["config.loss.class_weights=inverse", "softmax"]),
        (
            {"loss__class_weights": "invers"},
            ["config.loss.class_weights is 'invers'", "19 numbers", "Did you mean 'inverse'"],
        ),
        ({"loss__class_weights": "1,2"}, ["config.loss.class_weights holds 2 numbers", "19 numbers", "one per class"]),
        ({"loss__class_weights": "1,-1"}, ["config.loss.class_weights is '1,-1'", "0 or more"]),
        ({"loss__class_weights": "0" + 18 * ",0"}, ["config.loss.class_weights is", "not all 0"]),
        ({"loss__class_weights": ",nan,"}, ["config.loss.class_weights is ',nan,'"]),
        (
            {"loss__name": "tversky", "loss__tversky_alpha": 0.0, "loss__tversky_beta": 0.0},
            ["config.loss.tversky_alpha and config.loss.tversky_beta are both 0"],
        ),
    ],
)
def test_refusals_name_field_and_value(fields, words):
    with pytest.raises(InputError) as caught:
        validate(changed(**fields))
    for word in words:
        assert word in str(caught.value)


def test_augmented_crops_may_be_larger_than_images():
    validate(changed(augment__name="usual", data__crop_px=464))  # 2 · 234 = 468 at most, a multiple of 16


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peers__teacher__model__name": "deeplab"}, ["config.peers.teacher.model.name is 'deeplab'", "deeplabv3"]),
        ({"peers__teacher__model__output_stride": 4}, ["config.peers.teacher.model.output_stride is 4", "8, 16"]),
        (
            {"peers__teacher__model__features": 8},
            ["config.peers.teacher.model.features=8", "no effect", "config.peers.teacher.model.name=unet"],
        ),
        ({"model__backbone": "resnet101"}, ["config.model.backbone=resnet101", "no effect", "'unet'"]),
        ({"peers__teacher__optim__learning_rate": -1.0}, ["config.peers.teacher.optim.learning_rate is -1.0"]),
        (
            {"peers__teacher__loss__pool": "none"},
            ["config.peers.teacher.loss.pool=none", "config.peers.teacher.loss.name"],
        ),
        ({"peers__teacher__loss__auxiliary_weight": 0.4}, ["config.peers.teacher.model.auxiliary=True"]),
        ({"peers__teacher__frozen": True}, ["config.peers.teacher.frozen", "config.peers.teacher.model.init_from"]),
        ({"peers__teacher__model__init_parts": "backbone"}, ["needs config.peers.teacher.model.init_from"]),
        ({"model__init_parts": "backbone", "model__init_from": "x.pth"}, ["'backbone'", "'deeplabv3'"]),
        ({"peer": "teacher"}, ["config.peers.teacher has the name of the reported peer"]),
        ({"mutual__temperature": 0.0}, ["config.mutual.temperature is 0.0", "positive"]),
        ({"mutual__form": "released", "mutual__temperature": 2.0}, ["config.mutual.temperature"]),
        ({"mutual__form": "js"}, ["config.mutual.form is 'js'", "kl, released"]),
        ({"mutual__updates": "at_once"}, ["config.mutual.updates is 'at_once'", "together, in_turn"]),
        ({"mutual__weight": -0.5}, ["config.mutual.weight is -0.5"]),
    ],
)
def test_refusals_of_peers_name_field_and_value(fields, words):
    config = default()
    use_mutual_learning(config)
    with pytest.raises(InputError) as caught:
        validate(changed(config, **fields))
    for word in words:
        assert word in str(caught.value)


def test_mutual_fields_without_peers_are_refused():
    with pytest.raises(InputError, match=r"config.mutual.weight=0.5 has no effect: there are no further peers"):
        validate(changed(mutual__weight=0.5))
    with pytest.raises(InputError, match=r"config.mutual.updates=in_turn has no effect: there are no further peers"):
        validate(changed(mutual__updates="in_turn"))


def test_fields_of_peers_are_known_from_the_experiment_file():
    config = default()
    use_mutual_learning(config)
    assert "Did you mean" in str(unknown_field("peers.teacher.optim.learning_rat", config))
    message = str(unknown_field("peers.teecher.optim.learning_rate", config))
    assert "no such peer; config.peers holds teacher" in message
    with pytest.raises(InputError, match=r"config.peers.teacher.frozzen: there is no such field"):
        cli.parse_flags(["main", "--config=configs/mutual_voc.py", "--config.peers.teacher.frozzen=True"])


def test_a_stored_config_comes_back_with_its_peers(tmp_path):
    config = default()
    use_mutual_learning(config)
    config.peers.teacher.optim.learning_rate = 0.5
    (tmp_path / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    assert load_config(tmp_path) == config


def test_devices_must_divide_the_batch():
    with pytest.raises(InputError, match=r"config.train.batch_size=8 does not divide over 3 devices.*multiple of 3"):
        check_devices(default(), devices=3)
    config = changed(eval__batch_size=6)
    with pytest.raises(InputError, match=r"config.eval.batch_size=6 does not divide over 4"):
        check_devices(config, devices=4)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optim.learning_rat", "config.optim.learning_rate"),
        ("learning_rate", "config.optim.learning_rate"),
        ("train.batchsize", "config.train.batch_size"),
        ("data.source", "config.data.source_dir"),
    ],
)
def test_mistyped_field_gets_a_suggestion(typed, meant):
    assert f"Did you mean {meant}" in str(unknown_field(typed, default()))


@pytest.mark.parametrize("typed", ["log.wandb", "wandb", "optim.momentum", "train.amp", "data.root"])
def test_a_field_that_is_far_from_all_gets_none(typed):
    assert "Did you mean" not in str(unknown_field(typed, default()))


STORED = [
    ("model.features", "many", "features"),
    ("model.features", 4.5, "features"),
    ("model.features", True, "config.model.features is True"),
    ("model.remat", 1, "remat"),
    ("optim.learning_rate", float("inf"), "config.optim.learning_rate is inf"),
    ("optim.learning_rate", float("nan"), "config.optim.learning_rate is nan"),
    ("optim.learning_rate", 10**400, "int too large"),
    ("model", 5, "model"),
    ("model.name", {"a": 1}, "name"),
    ("peers", [1], "peers"),
    ("peers", {"a.b": {}}, "a.b"),
    ("peers", {"teacher": 5}, "teacher"),
    ("peers", {"teacher": {"model": {"layers": 3}}}, "layers"),
    ("seed", None, "seed"),
]


@pytest.mark.parametrize(("path", "value", "says"), STORED)
def test_a_stored_value_that_does_not_fit_is_named(tmp_path, path, value, says):
    config = default().to_dict()
    *sections, field = path.split(".")
    functools.reduce(operator.getitem, sections, config)[field] = value
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(InputError, match=r"config.json: does not fit this version of jaxseg") as caught:
        load_config(tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_lab_notes(path):
    module, config = load_preset(path)
    validate(config)
    assert config.is_locked
    assert f"configs/{path.name}" in module.__doc__, "the docstring holds the command"
    own = [f for f in all_fields(config) if not f.startswith("peers.")]
    assert own == all_fields(default())
    of_a_peer = [f for f in own if f.startswith(("model.", "loss.", "optim."))]
    for name in config.peers:
        assert sorted(all_fields(config.peers[name])) == sorted([*of_a_peer, "frozen"])


@pytest.mark.parametrize("path", [p for p in PRESETS if p.stem.startswith("rmi")], ids=lambda path: path.stem)
def test_rmi_presets_follow_study_and_rmi_paper(path):
    """λ = 0.5, convex (study); binary cross-entropy, max pooling 3, radius 3 (RMI paper); all else as Model 1."""
    loss = load_preset(path)[1].loss
    assert (loss.name, loss.pixel, loss.weight, loss.combine) == ("pixel_and_rmi", "sigmoid", 0.5, "convex")
    assert (loss.radius, loss.pool, loss.pool_size) == (3, "max", 3)
    model_1 = load_preset(path.with_name(path.name.replace("rmi", "unet")))[1]
    model_2 = load_preset(path)[1]
    differing = [f for f in all_fields(default()) if get_field(model_1, f) != get_field(model_2, f)]
    assert differing == ["loss.name", "loss.pixel"]


@pytest.mark.parametrize("path", [p for p in PRESETS if p.stem.startswith("mutual")], ids=lambda path: path.stem)
def test_mutual_presets_are_model_1_with_a_teacher(path):
    """Study, Model 3: L = CE + KL for both; the student, a U-Net, is reported. All else as Model 1."""
    config = load_preset(path)[1]
    assert (config.peer, list(config.peers)) == ("student", ["teacher"])
    assert config.mutual.to_dict() == {
        "weight": 1.0,
        "temperature": 1.0,
        "pixels": "valid",
        "form": "kl",
        "updates": "together",
    }
    teacher = config.peers.teacher
    assert (teacher.model.name, teacher.model.backbone, teacher.frozen) == ("deeplabv3", "resnet50", False)
    model_1 = load_preset(path.with_name(path.name.replace("mutual", "unet")))[1]
    assert [f for f in all_fields(default()) if get_field(model_1, f) != get_field(config, f)] == ["peer"]


@pytest.mark.parametrize("path", [p for p in PRESETS if p.stem not in ("demo", "folder")], ids=lambda path: path.stem)
def test_released_variant_follows_the_code(path):
    """study.md, table "The text and the released code differ"."""
    _, config = load_preset(path, "released")
    validate(config)
    if path.stem.startswith("rmi"):
        assert (config.loss.pool, config.loss.radius, config.loss.weight) == ("none", 3, 0.5)
        assert (config.train.batch_size, config.optim.name, config.optim.learning_rate) == (2, "adam", 1e-4)
    assert config.data.resize == "shorter_side"
    if path.stem.startswith("mutual"):
        assert (config.mutual.form, config.mutual.pixels, config.mutual.weight) == ("released", "all", 1.0)
        assert config.mutual.updates == "in_turn"  # forward, teacher's update, forward again, student's update
        assert (config.train.batch_size, config.optim.learning_rate) == (10, 1e-4)
        assert config.peers.teacher.optim.learning_rate == 1e-4
        teacher = config.peers.teacher.model
        assert (teacher.name, teacher.backbone, teacher.output_stride, teacher.auxiliary) == (
            "deeplabv3",
            "resnet50",
            8,
            False,
        )
    assert (config.eval.view, config.eval.passes, config.checkpoint.best) == ("random", 5, "train_loss")
    with pytest.raises(InputError, match="unknown variant 'relased'"):
        load_preset(path, "relased")


@pytest.mark.parametrize("path", [p for p in PRESETS if "_" in p.stem], ids=lambda path: path.stem)
def test_report_variant_follows_the_report(path):
    """study.md, section "The authors' longer report"; all that it does not say is as in the default."""
    _, config = load_preset(path, "report")
    validate(config)
    model = path.stem.split("_")[0]
    expected = {"unet": (8, 1e-3), "rmi": (2, 1e-4), "mutual": (10, 1e-4)}[model]
    assert (config.train.batch_size, config.optim.learning_rate) == expected
    assert all(peer.optim.learning_rate == 1e-4 for peer in config.peers.values())
    assert (config.train.epochs, config.optim.name, config.checkpoint.best) == (200, "adam", "train_loss")
    assert (config.mutual.form, config.loss.weight) == ("kl", 0.5)
    text = load_preset(path)[1]
    said = ["train.batch_size", "checkpoint.best"] + [f for f in all_fields(text) if f.endswith("optim.learning_rate")]
    assert {f for f in all_fields(text) if get_field(text, f) != get_field(config, f)} <= set(said)


def test_presets_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_config_file("configs/unet_voc.py:released")
    assert found.endswith("configs/unet_voc.py:released")
    assert Path(found.split(":")[0]).is_file()
    with pytest.raises(InputError, match=r"Did you mean 'configs/unet_voc.py'"):
        find_config_file("configs/unet_vok.py")
    (tmp_path / "mine.py").write_text("")
    assert find_config_file("mine.py") == "mine.py"


def test_declarations_agree_with_themselves():
    for path, field in FIELDS.items():
        assert field.doc.endswith("."), path
        assert not field.choices or field.default in field.choices, path
        assert field.at_most is None or field.at_least <= field.default <= field.at_most, path
        if field.needs:
            name = field.needs[0]
            for value in field.needed_values():
                assert type(FIELDS[name].default) is type(value)
                assert not FIELDS[name].choices or value in FIELDS[name].choices
    assert sorted([*all_fields(default()), "peers.NAME.frozen"]) == sorted(FIELDS)


def test_every_number_has_bounds_that_are_checked():
    numbers = [path for path, field in FIELDS.items() if type(field.default) in (int, float) and not field.choices]
    assert [path for path in numbers if FIELDS[path].at_least is None] == ["mutual.temperature"]  # above 0, a rule
    for path in numbers:
        at_least, at_most = FIELDS[path].at_least, FIELDS[path].at_most
        assert at_most is not None or isinstance(FIELDS[path].default, float)
        for value in [] if at_least is None else [at_least - 1, *([] if at_most is None else [at_most + 1])]:
            with pytest.raises(InputError, match=f"config.{path} is {value}; expected at "):
                validate(changed(**{path.replace(".", "__"): value}))


def test_fields_of_further_peers_are_those_of_the_reported_one():
    assert find_field("peers.teacher.loss.radius") is FIELDS["loss.radius"]
    assert find_field("peers.teacher.frozen") is FIELDS["peers.NAME.frozen"]
    assert find_field("frozen") is find_field("loss.lambda") is find_field("peers") is None


def test_choices_are_what_the_code_knows():
    assert set(choices_of("model.backbone")) == set(DEPTHS)
    assert set(choices_of("model.name")) == set(SIZE_MULTIPLE_PX)
    assert set(choices_of("model.normalize")) == set(NORMALIZE)
    assert set(choices_of("checkpoint.best")) == set(HIGHER_IS_BETTER)
    assert SIZE_MULTIPLE_PX["unet"] == 2**LEVELS


def test_the_readme_of_configs_has_the_table_of_fields():
    text = (CONFIGS / "README.md").read_text()
    before, _, rest = text.partition("<!-- fields: python -m jaxseg.config -->\n")
    table, end, _ = rest.partition("\n<!-- end of fields -->\n")
    assert before
    assert end
    assert table == fields_table()


def test_the_readmes_experiment_file_is_one():
    scope = {}
    exec((CONFIGS / "README.md").read_text().split("```python\n")[1].split("```")[0], scope)
    config = scope["get_config"]("wide")
    validate(config)
    assert (config.data.name, config.loss.name, config.model.features) == ("camvid", "pixel_and_rmi", 64)


def test_help_and_table_name_every_field():
    lines = "\n".join(fields_help())
    for path, field in FIELDS.items():
        assert f"--config.{path}: {field.explain()} Default: {field.written_default()}" in lines
        assert f"| `{path}` | `{field.written_default()}` | {field.source} | {field.explain()} |" in fields_table()
    assert FIELDS["loss.radius"].written_default() == "3 pixels"
    assert FIELDS["data.source_dir"].written_default() == '""'
    assert FIELDS["loss.radius"].explain().endswith("1 to 10. Only with loss.name=pixel_and_rmi or rmi.")
    assert FIELDS["model.features"].explain().endswith("Only with model.name=unet.")
    assert (
        FIELDS["loss.combine"].explain().startswith("The sum of both terms. One of convex (λ pixel + (1 - λ) region),")
    )


def test_override_of_unknown_field_is_refused_before_parsing():
    with pytest.raises(InputError, match=r"config.optim.lr: there is no such field"):
        cli.parse_flags(["main", "--config=configs/demo.py", "--config.optim.lr=1"])
