"""Weights by name: what they set, where they come from, and every way in which they cannot be had."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from jaxseg.config import add_peer, default
from jaxseg.config_checks import validate
from jaxseg.errors import InputError
from jaxseg.models import pretrained
from jaxseg.models.factory import fresh_variables, make_model
from jaxseg.models.pretrained import PRETRAINED, pretrained_file, settle_pretrained
from jaxseg.models.torch_weights import deeplabv3_to_torch, flatten
from jaxseg.training import loop, overfit, profiling
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.peers import create_peers, restore_peers
from tests.file_server import file_server
from tests.torch_files import archive, tensors

RESNET = "torchvision/resnet50"
WHOLE = "torchvision/deeplabv3_resnet50_coco"


def config_of(init_from: str, **fields):
    config = default()
    config.model.update({"name": "deeplabv3", "init_from": init_from, **fields})
    return config


def settled(config) -> list[str]:
    """The sentences."""
    validate(config)
    sentences = []
    settle_pretrained(config, say=sentences.append)
    return sentences


@pytest.fixture(scope="module")
def torchvision_files():
    """Of a DeepLabV3 of ResNet-14 with 4 channels and 21 classes, as torchvision would name it: (network, its file, the
    file of its ResNet with the classifier of ImageNet)."""
    config = config_of("", backbone="resnet14", stem_features=4, auxiliary=True)
    network = make_model(config.model, num_classes=21, axis_name=None)
    variables = jax.device_get(fresh_variables(network, seed=3))
    arrays = deeplabv3_to_torch(variables)
    resnet = {k.removeprefix("backbone."): v for k, v in arrays.items() if k.startswith("backbone.")}
    resnet |= {"fc.weight": np.zeros((1000, 128), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    return variables, archive(tensors(arrays)), archive(tensors(resnet))


@pytest.fixture
def small(torchvision_files, monkeypatch):
    """Both names stand for those files on a server of this machine: (its behaviour by name, the network's variables)."""
    variables, whole, resnet = torchvision_files
    monkeypatch.setattr(pretrained, "STEM_FEATURES", 4)
    with file_server(whole) as of_whole, file_server(resnet) as of_resnet:
        servers = {WHOLE: of_whole, RESNET: of_resnet}
        for name, server in servers.items():
            remote = server.remote(PRETRAINED[name].remote.name)
            monkeypatch.setitem(
                PRETRAINED, name, dataclasses.replace(PRETRAINED[name], remote=remote, backbone="resnet14")
            )
        yield servers, variables


def small_config(init_from: str, folder, **fields):
    config = config_of(init_from, **{"backbone": "resnet14", "stem_features": 4, **fields})
    config.data.update({"name": "voc2012", "dir": str(folder)})
    return config


def test_table():
    """Names of files carry the first eight digits of their SHA-256, which is what PyTorch's own loader compares."""
    for name, entry in PRETRAINED.items():
        assert name.startswith("torchvision/")
        assert re.fullmatch(r"[0-9a-f]{64}", entry.remote.checksum)
        digits = re.fullmatch(r"https://download\.pytorch\.org/models/(\w+)-([0-9a-f]{8})\.pth", entry.remote.url)
        assert entry.remote.checksum.startswith(digits[2])
        assert digits[1] == f"{entry.network}_{entry.backbone}_coco".removeprefix("_").removesuffix(
            "" if entry.network else "_coco"
        )
        assert entry.normalize == "imagenet"
    assert len({entry.remote.checksum for entry in PRETRAINED.values()}) == len(PRETRAINED)


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [  # torchvision's `_file_size`, in MiB
        ("torchvision/resnet50", 97.781),
        ("torchvision/resnet50_v2", 97.79),
        ("torchvision/deeplabv3_resnet50_coco", 160.515),
        ("torchvision/deeplabv3_resnet101_coco", 233.217),
    ],
)
def test_sizes_are_those_that_torchvision_rounds(name, megabytes):
    assert round(PRETRAINED[name].remote.size / 2**20, 3) == megabytes


def test_a_backbone_sets_normalisation_and_part():
    config = config_of(RESNET)
    (sentence,) = settled(config)
    assert (config.model.normalize, config.model.init_parts) == ("imagenet", "backbone")
    for words in (RESNET, "config.model.normalize=imagenet", "config.model.init_parts=backbone"):
        assert words in sentence
    before = config.to_dict()
    assert settled(config) == []
    assert config.to_dict() == before


@pytest.mark.parametrize("parts", ["all", "all_but_head", "backbone"])
def test_a_whole_network_sets_normalisation_alone(parts):
    config = config_of(WHOLE, init_parts=parts)
    (sentence,) = settled(config)
    assert (config.model.normalize, config.model.init_parts) == ("imagenet", parts)
    assert "init_parts" not in sentence


def test_of_several_networks_the_one_that_is_named():
    config = default()
    add_peer(config, "teacher").model.update({"name": "deeplabv3", "init_from": WHOLE})
    (sentence,) = settled(config)
    assert sentence.startswith(f"config.peers.teacher.model.init_from={WHOLE} sets")
    assert (config.model.normalize, config.peers.teacher.model.normalize) == ("none", "imagenet")


def test_a_frozen_teacher_needs_more_than_a_backbone():
    config = default()
    teacher = add_peer(config, "teacher")
    teacher.frozen = True
    teacher.model.update({"name": "deeplabv3", "init_from": RESNET})
    with pytest.raises(InputError, match=r"config.peers.teacher.frozen=True"):
        settled(config)


def test_paths_stay_as_they_are():
    config = config_of("torchvision/resnet50.pth")
    before = config.to_dict()
    assert settled(config) == []
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("torchvision/resnet_50", {}, ["no weights of that name", "Did you mean 'torchvision/resnet50'?", WHOLE]),
        ("torchvision/resnet152", {}, ["no weights of that name", "torchvision/resnet101_v2"]),
        ("resnet50", {}, ["did you mean torchvision/resnet50?"]),
        ("torchvision/resnet101", {}, ["model.backbone=resnet101", "'resnet50'", "torchvision/resnet50 or"]),
        (RESNET, {"backbone": "resnet14"}, ["model.backbone=resnet50", "it is 'resnet14'; set that."]),
        (RESNET, {"stem_features": 32}, ["model.stem_features=64", "it is 32"]),
        (RESNET, {"init_parts": "all_but_head"}, ["a backbone alone", "drop init_parts='all_but_head'"]),
        (RESNET, {"name": "unet"}, ["model.name=deeplabv3", "it is 'unet'"]),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_fetched(name, fields, words):
    with pytest.raises(InputError) as caught:
        settled(config_of(name, **fields))
    for word in [f"config.model.init_from={name}: ", *words]:
        assert word in str(caught.value)


def test_a_backbone_is_fetched_once_and_loaded(small, tmp_path):
    """From the server to parameters: the backbone is the file's, bit for bit, everything else as drawn."""
    servers, variables = small
    config = small_config(RESNET, tmp_path)
    settled(config)
    for _ in range(2):
        peers, reports = create_peers(config, num_classes=11, steps=1)
    assert servers[RESNET].log == [None]
    params = jax.device_get(peers["unet"].params)
    given = flatten(variables)
    found = flatten({"params": params, "batch_stats": jax.device_get(peers["unet"].batch_stats)})
    in_backbone = [name for name in found if "/backbone/" in name]
    assert len(in_backbone) == 17 * 5  # convolutions with their BatchNorms: the stem, 4 × (3 and a downsample)
    assert all(np.array_equal(found[name], given[name]) for name in in_backbone)
    drawn = jax.device_get(fresh_variables(make_model(config.model, num_classes=11, axis_name=None), seed=0))
    assert np.array_equal(params["head"]["kernel"], drawn["params"]["head"]["kernel"])
    file = tmp_path / "weights/resnet50-0676ba61.pth"
    assert reports["unet"].note == (f"{RESNET} is {file}",)
    assert file.is_file()
    assert not file.with_name(f"{file.name}.part").exists()


def test_a_whole_network_on_its_own_classes_and_on_others(small, tmp_path):
    servers, variables = small
    config = small_config(WHOLE, tmp_path)
    settled(config)
    with pytest.raises(
        InputError, match=rf"init_from={WHOLE}: these weights are of 21 classes, the data has 11; .*but_head"
    ):
        create_peers(config, num_classes=11, steps=1)
    assert servers[WHOLE].log == []  # before anything is fetched
    peers, _ = create_peers(config, num_classes=21, steps=1)
    assert np.array_equal(peers["unet"].params["head"]["kernel"], variables["params"]["head"]["kernel"])
    assert "auxiliary" not in peers["unet"].params  # the file has it
    config.model.update({"init_parts": "all_but_head", "auxiliary": True})
    peers, _ = create_peers(config, num_classes=11, steps=1)
    params = peers["unet"].params
    assert params["head"]["kernel"].shape == (1, 1, 16, 11)
    for block in (("aspp", "project"), ("auxiliary", "conv")):
        found, given = (
            functools.reduce(lambda tree, key: tree[key], block, tree) for tree in (params, variables["params"])
        )
        assert np.array_equal(found["kernel"], given["kernel"])
    assert servers[WHOLE].log == [None]


def test_weights_without_a_run_are_settled(small, tmp_path, capsys):
    """As `python -m jaxseg.evaluate --config=FILE --config.model.init_from=NAME` restores them."""
    config = small_config(WHOLE, tmp_path)
    step, peers = restore_peers(config, None, "last")
    assert step is None
    assert config.model.normalize == "imagenet"
    assert "sets config.model.normalize=imagenet" in capsys.readouterr().err
    assert peers["unet"].apply_fn.__self__.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("start", "module", "next_stage"),
    [
        (train_and_evaluate, loop, "train"),
        (overfit.overfit, overfit, "train"),
        (profiling.profile, profiling, "create_peers"),
    ],
)
def test_every_mode_settles_before_it_writes_or_builds(tiny, tmp_path, monkeypatch, capsys, start, module, next_stage):
    """What the mode does next gets the config that it will write to config.json: stopped there."""
    seen = []

    def stop(config, *_, **__):
        seen.append(config.model.to_dict())
        raise InterruptedError

    monkeypatch.setattr(module, next_stage, stop)
    tiny.model.update({"name": "deeplabv3", "features": 32, "init_from": RESNET})
    with pytest.raises(InterruptedError):
        start(tiny, tmp_path / "run")
    assert (seen[0]["normalize"], seen[0]["init_parts"]) == ("imagenet", "backbone")
    told = capsys.readouterr()
    assert "sets config.model.normalize=imagenet and config.model.init_parts=backbone" in told.out + told.err


def test_weights_are_not_used_with_another_normalisation(small, tmp_path):
    config = small_config(WHOLE, tmp_path)
    with pytest.raises(InputError, match=r"model.normalize='none' does not suit these weights"):
        create_peers(config, num_classes=21, steps=1)


def test_broken_connections_are_resumed(small, tmp_path):
    servers, _ = small
    server = servers[RESNET]
    server.cut = len(server.content) // 3 + 1
    config = small_config(RESNET, tmp_path)
    settled(config)
    path = pretrained_file(config.model, num_classes=11, data_dir=tmp_path)
    assert path.read_bytes() == server.content
    assert [bool(wanted) for wanted in server.log] == [False, True, True]


def test_no_network_says_where_the_file_goes(small, tmp_path):
    servers, _ = small
    servers[RESNET].cut = 0
    config = small_config(RESNET, tmp_path)
    settled(config)
    with pytest.raises(InputError) as caught:
        pretrained_file(config.model, num_classes=11, data_dir=tmp_path)
    assert f"{servers[RESNET].url}/resnet50-0676ba61.pth" in str(caught.value)
    path = tmp_path / "weights/resnet50-0676ba61.pth"
    assert f"fetch the file by other means to {path}" in str(caught.value)
    path.write_bytes(servers[RESNET].content)  # as a user does then
    assert pretrained_file(config.model, num_classes=11, data_dir=tmp_path) == path


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_file_of_something_else_is_not_used(small, tmp_path, by_hand):
    """Put there by hand it stays; fetched it is removed, with the whole file to be fetched by the next command."""
    servers, _ = small
    server = servers[RESNET]
    config = small_config(RESNET, tmp_path)
    settled(config)
    path = tmp_path / "weights/resnet50-0676ba61.pth"
    other = server.content[:-1] + b"x"
    if by_hand:
        path.parent.mkdir()
        path.write_bytes(other)
    else:
        server.content = other
    with pytest.raises(InputError, match=r"SHA-256 [0-9a-f]{64}"):
        pretrained_file(config.model, num_classes=11, data_dir=tmp_path)
    assert path.exists() == by_hand
    assert not path.with_name(f"{path.name}.part").exists()
    assert server.log == ([] if by_hand else [None])


def test_a_folder_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").touch()
    config = small_config(RESNET, tmp_path)
    settled(config)
    with pytest.raises(InputError, match=r"cannot be written .* set config.data.dir"):
        pretrained_file(config.model, num_classes=11, data_dir=tmp_path / "file")


def test_weights_that_are_not_required_may_be_missing(monkeypatch):
    """It is decided when a run begins, and kept: whether the network could be reached later changes nothing."""
    config = default()
    config.model.update({"name": "deeplabv3", "init_from": RESNET, "init_required": False})
    pretrained.settle_pretrained(config, say=lambda sentence: None)
    reached = config.copy_and_resolve_references()
    said = []

    def unreachable(*arguments, **options):
        raise InputError("no network")

    monkeypatch.setattr(pretrained, "pretrained_file", unreachable)
    pretrained.drop_unreachable(config, stored=None, num_classes=19, say=said.append)
    assert (config.model.init_from, config.model.init_parts, config.model.normalize) == ("", "all", "imagenet")
    assert len(said) == 1
    assert "no network" in said[0]
    later = reached.copy_and_resolve_references()
    pretrained.drop_unreachable(later, stored=config, num_classes=19, say=said.append)
    assert later.model.init_from == ""
    pretrained.drop_unreachable(
        later := reached.copy_and_resolve_references(), stored=reached, num_classes=19, say=said.append
    )
    assert later.model.init_from == RESNET
    assert len(said) == 1
