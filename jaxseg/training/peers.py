"""From the config to peers: network, first variables, optimiser and loss of each, by name.

In: `config` and how many classes and steps there are. Out: `{name: TrainState}` at step 0 or of a checkpoint, and
`{name: loss}`; a frozen peer has no loss and no optimizer state.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from jaxseg.config import (
    all_fields,
    get_field,
    given_class_weights,
    is_frozen,
    load_config,
    peer_path,
    peer_sections,
)
from jaxseg.config_checks import check_class_weights
from jaxseg.data.prepare import prepare
from jaxseg.data.records import Prepared
from jaxseg.errors import InputError
from jaxseg.files import read_json, user_path
from jaxseg.floor import check_jaxlib
from jaxseg.labels import LABELS, Labels, labels_from_dict
from jaxseg.losses.class_weights import inverse_weights, median_frequency_weights
from jaxseg.losses.objective import LossFn, make_loss
from jaxseg.models.factory import fresh_variables, load_variables, make_model
from jaxseg.models.pretrained import is_pretrained_name, pretrained_file, settle_pretrained
from jaxseg.models.torch_tensors import LoadReport
from jaxseg.models.torch_weights import load_own_names
from jaxseg.schemas import CONFIG_FILE
from jaxseg.training import checkpoint
from jaxseg.training.optimizers import make_optimizer
from jaxseg.training.parallel import AXIS
from jaxseg.training.state import Peers, create_peer

MEDIAN_NEEDS = "pixels_of_images_with_label"  # of Prepared.summary


def create_peers(config: ConfigDict, *, num_classes: int, steps: int) -> tuple[Peers, dict[str, LoadReport]]:
    """The peers that the config asks for, at step 0; the reported one starts as in a run without the others.

    Args:
      config: a checked config, settled (`jaxseg.models.pretrained`).
      num_classes: channels of the logits.
      steps: what learning rate schedules are laid out over.

    Returns:
      `{name: TrainState}`, a frozen peer without optimizer state, and of those whose weights come from
      `model.init_from` what became of every tensor.

    Raises:
      InputError: where weights do not fit.
    """
    check_jaxlib()
    peers, reports = {}, {}
    for name, section in peer_sections(config).items():
        model = make_model(section.model, num_classes=num_classes, axis_name=AXIS)
        seed = config.seed if name == config.peer else zlib.crc32(f"{config.seed} {name}".encode())
        variables = fresh_variables(model, seed=seed)
        if section.model.init_from:
            try:
                variables, reports[name] = pretrained_variables(
                    section.model, target=variables, num_classes=num_classes, data_dir=config.data.dir
                )
            except InputError as error:
                where = f"{peer_path(config, name)}.model.init_from={section.model.init_from}"
                raise InputError(f"{where}: {error}") from error
        if is_frozen(config, name):
            peers[name] = create_peer(model, optax.identity(), variables)
            continue
        tx = make_optimizer(section.optim, steps=steps)
        options = {"ema_decay": section.optim.ema_decay, "freeze_batchnorm": section.model.freeze_batchnorm}
        peers[name] = create_peer(model, tx, variables, **options)
    return peers, reports


def trained_sections(config: ConfigDict) -> dict[str, ConfigDict]:
    """Peer -> what holds its loss and optim, of those that are not frozen."""
    return {name: section for name, section in peer_sections(config).items() if not is_frozen(config, name)}


def class_weights(config: ConfigDict, prepared: Prepared) -> dict[str, tuple[float, ...]]:
    """The weights of the classes in every peer's cross-entropy, by name; without those where all weigh the same.

    Raises InputError where there is not one per class, or the records lack the count.
    """
    weights = {}
    for name, section in trained_sections(config).items():
        where = peer_path(config, name)
        check_class_weights(section.loss, where, num_classes=prepared.labels.num_classes)
        if given := given_class_weights(section.loss):
            weights[name] = given
        elif section.loss.class_weights == "inverse":
            weights[name] = inverse_weights(prepared.class_counts("train"))
        elif section.loss.class_weights == "median_frequency":
            if MEDIAN_NEEDS not in prepared.summary["train"]:
                raise InputError(
                    f"{where}.loss.class_weights=median_frequency: the records in {prepared.folder} were prepared by an earlier"
                    " version, which did not count in which images a class is seen. Remove that folder; the next start with"
                    " config.data.source_dir prepares it again. Or use inverse."
                )
            counts = prepared.class_counts("train"), prepared.class_counts("train", MEDIAN_NEEDS)
            weights[name] = median_frequency_weights(*counts)
    return weights


def make_losses(config: ConfigDict, *, weights: Mapping[str, tuple[float, ...]] | None = None) -> dict[str, LossFn]:
    """The loss of every peer that is trained, by name. weights: `class_weights`; without them all classes weigh the same,
    which costs the same."""
    return {
        name: make_loss(section.loss, config.mutual, class_weights=(weights or {}).get(name))
        for name, section in trained_sections(config).items()
    }


def pretrained_variables(
    model: ConfigDict, *, target: dict, num_classes: int, data_dir: str
) -> tuple[dict, LoadReport]:
    """Those of the file `config.model.init_from`, which may be a name, or of the best checkpoint of the run there; of all
    the parts that `config.model.init_parts` names. Raises InputError."""
    if is_pretrained_name(model.init_from):
        file = pretrained_file(model, num_classes=num_classes, data_dir=data_dir)
        variables, report = load_variables(model, target=target, file=file)
        return variables, dataclasses.replace(report, note=(f"{model.init_from} is {file}", *report.note))
    folder = user_path(model.init_from)
    if not folder.is_dir():
        return load_variables(model, target=target)
    run = load_config(folder)
    may_differ = ("init_from", "init_parts", "init_required", "freeze_batchnorm", "dtype", "remat")
    theirs = run.model.to_dict() | {key: model[key] for key in may_differ}
    ours = model.to_dict()
    lines = [f"{key}: {theirs[key]!r} there, {ours[key]!r} here" for key in ours if theirs[key] != ours[key]]
    if lines:
        raise InputError("that run trained another network: " + "; ".join(lines) + ".")
    if model.init_parts == "all":
        try:
            return checkpoint.restore_variables(folder, run, target)
        except InputError as error:
            hint = (
                " For other classes: init_parts=all_but_head takes all but the last layer."
                if "/head" in str(error)
                else ""
            )
            raise InputError(f"{error}{hint}") from error
    return load_own_names(checkpoint.restore_arrays(folder, run), target=target, parts=model.init_parts)


def restore_peers(config: ConfigDict, workdir: Path | None, which: str) -> tuple[int | None, Peers]:
    """Step and peers of one checkpoint of a run: "last", "best" or a number. Without a run: step None, and the weights
    that `config.model.init_from` names. Raises InputError."""
    num_classes = labels_of_run(config, workdir).num_classes
    if workdir is None:
        if not config.model.init_from:
            raise InputError("without --workdir=RUN, config.model.init_from is needed: the weights to use.")
        settle_pretrained(config)
        return None, create_peers(config, num_classes=num_classes, steps=1)[0]
    check_networks_match(config, load_config(workdir))
    with checkpoint.open_manager(workdir, config.checkpoint, read_only=True) as manager:
        step = checkpoint.find_step(manager, which)
        # Shapes are enough: nothing is drawn, and no initialiser compiled.
        peers = jax.eval_shape(lambda: create_peers(without_init(config), num_classes=num_classes, steps=1)[0])
        return step, checkpoint.restore_networks(manager, step, peers)


def labels_of_run(config: ConfigDict, workdir: Path | None) -> Labels:
    """The classes of a data set by name; of a folder of one's own those that the run was trained with.

    Without a run they are those of the folder, which is prepared first. Raises InputError.
    """
    if config.data.name in LABELS:
        return LABELS[config.data.name]
    if workdir is None:
        return prepare(config.data).labels
    stored = read_json(workdir / "config.json", CONFIG_FILE)
    if "labels" not in stored:
        raise InputError(f"{workdir / 'config.json'}: labels are missing, the classes that the run was trained with.")
    return labels_from_dict(stored["labels"])


def check_networks_match(config: ConfigDict, trained: ConfigDict) -> None:
    """That data set and networks are those of the run; dtype and remat may change. Raises InputError."""
    may_change = ("dtype", "remat")
    fields = [f for f in all_fields(trained) if ".model." in f".{f}" and not f.endswith(may_change)] + ["data.name"]
    lines = [
        f"config.{f} is {get_field(trained, f)!r} there, {get_field(config, f)!r} now"
        for f in fields
        if get_field(trained, f) != get_field(config, f)
    ]
    if lines:
        raise InputError(
            f"the run's networks are as they were trained: {'; '.join(lines)}. Drop that, or, for weights of another program,"
            " give --config=FILE in place of --workdir."
        )


def without_init(config: ConfigDict) -> ConfigDict:
    """A copy that starts from fresh weights: where a checkpoint replaces them, their files need not be there any more."""
    config = config.copy_and_resolve_references()
    for section in peer_sections(config).values():
        section.model.init_from = ""
    return config
