"""From the config to peers: network, first variables, optimiser and loss of each, by name.

In: `config` and how many classes and steps there are. Out: `{name: TrainState}` at step 0 and `{name: loss}`.
"""

from ml_collections import ConfigDict

from jaxseg.losses import LossFn, make_loss
from jaxseg.models import initial_variables, make_model
from jaxseg.optim import make_optimizer
from jaxseg.parallel import AXIS
from jaxseg.step import Peers, create_peer


def create_peers(config: ConfigDict, *, num_classes: int, steps: int) -> tuple[Peers, dict[str, LossFn]]:
    """The peers that the config asks for; `steps` is what learning rate schedules are laid out over."""
    model = make_model(config.model, num_classes=num_classes, axis_name=AXIS)
    variables = initial_variables(model, config.model, seed=config.seed)
    peers = {config.peer: create_peer(model, make_optimizer(config.optim, steps=steps), variables)}
    return peers, {config.peer: make_loss(config.loss)}
