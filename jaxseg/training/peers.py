"""From the config to peers: network, first variables, optimiser and loss of each, by name.

In: `config` and how many classes and steps there are. Out: `{name: TrainState}` at step 0 or of a checkpoint, and
`{name: loss}`; a frozen peer has no loss and no optimizer state.
"""

import zlib
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from jaxseg.config import all_fields, get_field, is_frozen, load_config, peer_path, peer_sections
from jaxseg.errors import InputError
from jaxseg.files import user_path
from jaxseg.floor import check_jaxlib
from jaxseg.labels import LABELS
from jaxseg.losses.objective import LossFn, make_loss
from jaxseg.models.factory import fresh_variables, load_variables, make_model
from jaxseg.models.torch_weights import LoadReport, load_own_names
from jaxseg.training import checkpoint
from jaxseg.training.optimizers import make_optimizer
from jaxseg.training.parallel import AXIS
from jaxseg.training.state import Peers, create_peer


def create_peers(config: ConfigDict, *, num_classes: int, steps: int) -> tuple[Peers, dict[str, LoadReport]]:
    """The peers that the config asks for, at step 0; the reported one starts as in a run without the others.

    Args:
      config: a checked config.
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
                variables, reports[name] = pretrained_variables(section.model, target=variables)
            except InputError as error:
                where = f"{peer_path(config, name)}.model.init_from={section.model.init_from}"
                raise InputError(f"{where}: {error}") from error
        tx = optax.identity() if is_frozen(config, name) else make_optimizer(section.optim, steps=steps)
        peers[name] = create_peer(model, tx, variables)
    return peers, reports


def make_losses(config: ConfigDict) -> dict[str, LossFn]:
    """The loss of every peer that is trained, by name."""
    return {
        name: make_loss(section.loss, config.mutual)
        for name, section in peer_sections(config).items()
        if not is_frozen(config, name)
    }


def pretrained_variables(model: ConfigDict, *, target: dict) -> tuple[dict, LoadReport]:
    """Those of the file `config.model.init_from`, or of the best checkpoint of the run there; of both the parts that
    `config.model.init_parts` names. Raises InputError."""
    folder = user_path(model.init_from)
    if not folder.is_dir():
        return load_variables(model, target=target)
    run = load_config(folder)
    theirs = run.model.to_dict() | {"init_from": "", "dtype": model.dtype, "remat": model.remat}
    theirs |= {"init_parts": model.init_parts}  # how that run began
    ours = model.to_dict() | {"init_from": ""}
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
    num_classes = LABELS[config.data.name].num_classes
    if workdir is None:
        if not config.model.init_from:
            raise InputError("without --workdir=RUN, config.model.init_from is needed: the weights to use.")
        return None, create_peers(config, num_classes=num_classes, steps=1)[0]
    check_networks_match(config, load_config(workdir))
    with checkpoint.open_manager(workdir, config.checkpoint, read_only=True) as manager:
        step = checkpoint.find_step(manager, which)
        # Shapes are enough: nothing is drawn, and no initialiser compiled.
        peers = jax.eval_shape(lambda: create_peers(without_init(config), num_classes=num_classes, steps=1)[0])
        return step, checkpoint.restore(manager, step, peers)


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
