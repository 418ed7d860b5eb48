"""What PyTorch must move in a step, executing one operation after the other: a floor for its eager mode.

In: a network. Out: bytes by kind of operation. The operations are those that PyTorch has for it, found in the network as
JAX traces it; every operation reads its inputs whole and writes its output whole, once for each pass over them:

- convolution (1×1 and transposed ones are too; bias within): reads input and kernel, writes output; backward the gradient of
  the input (not of the image) and that of the kernel, each reading two of the three and writing the third.
- BatchNorm, GroupNorm: reads its input twice, for the moments and to normalize, writes; backward reads input and gradient
  twice, for the sums and for the gradient of the input, writes that. With running statistics it reads once.
- ReLU, in place: reads, writes; backward reads gradient and output, writes.
- max pooling: reads, writes maxima and places (int64); backward reads gradient and places, writes.
- resizing, averaging, adding, concatenating: read inputs, write output; backward of the first two reads the gradient, writes
  that of the input, of the others is free (views).
- dropout: reads, writes the output and a mask of a byte; backward reads gradient and mask, writes.
- A value that n operations read has n gradients: n - 1 additions, which read two and write one.
- Cross-entropy: log-softmax reads and writes the float32 logits; backward writes a gradient of the log-probabilities, reads
  it and them, writes the logits'. Scoring reads the logits. Adam, fused: reads parameters, gradients and both moments, writes
  all but the gradients.

In bfloat16 activations and kernels have 2 bytes, parameters and moments 4; casts are left out. So are other losses,
logged norms and labels.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var
from ml_collections import ConfigDict

from jaxseg.config import peer_sections
from jaxseg.labels import LABELS
from jaxseg.models.factory import make_model
from jaxseg.studies.estimate import size

INDEX_BYTES = 8  # torch.int64: places of max pooling
CHANNELS = 3  # of the image, which needs no gradient
LOGITS_TRAINED = 6  # times the logits' bytes: cross-entropy, above
ADAM = 7  # times the parameters' bytes, above
# Where a layer's parameters do not say what it is: functions with a derivative of their own, of which the networks have
# these two beside BatchNorm, and primitives on maps. All else is a view, or of numbers per channel.
PRIMITIVES = {
    "custom_jvp_call": "relu", "custom_vjp_call": "max pooling", "reduce_window_max": "max pooling",
    "concatenate": "concatenation", "add": "addition", "dot_general": "resizing", "reduce_sum": "resizing",
    "broadcast_in_dim": "resizing",
}  # fmt: skip


@dataclasses.dataclass
class Operation:
    """One of PyTorch's: its kind, bytes of the values that it reads and writes, and of its kernel."""

    kind: str
    inputs: dict[Var, int] = dataclasses.field(default_factory=dict)
    outputs: dict[Var, int] = dataclasses.field(default_factory=dict)
    kernel: int = 0

    @property
    def elements(self) -> int:
        return sum(value.aval.size for value in self.outputs)


def torch_floor(config: ConfigDict, *, batch_size: int, training: bool) -> int:
    """Bytes of a step of all networks of the config, with cross-entropy and Adam, on one device."""
    num_classes = LABELS[config.data.name].num_classes
    total = 0
    for section in peer_sections(config).values():
        settings = section.model.copy_and_resolve_references()
        settings.remat = False
        model = make_model(settings, num_classes=num_classes, axis_name=None)
        shape = (batch_size, config.data.crop_px, config.data.crop_px)
        total += sum(by_operation(model, shape, training=training).values())
        logits = 4 * batch_size * config.data.crop_px**2 * num_classes
        total += LOGITS_TRAINED * logits if training else logits
    return total


def by_operation(model: nn.Module, shape: tuple[int, int, int], *, training: bool) -> dict[str, int]:
    """Bytes by kind of operation of the network on images [b, h, w, 3]; the optimizer's are "Adam"."""
    variables, operations = trace(model, shape, training=training)
    total = Counter()
    readers = Counter()
    sizes = {}
    for operation in operations:
        forward, backward = rules(operation, training=training)
        total[operation.kind] += forward + training * backward
        readers.update(operation.inputs.keys())
        sizes |= operation.inputs
    if training:
        total["sum of gradients"] = sum(3 * (n - 1) * sizes[value] for value, n in readers.items())
        total["Adam"] = ADAM * size(variables["params"])
    return dict(total)


def rules(operation: Operation, *, training: bool) -> tuple[int, int]:
    """Bytes of an operation forward and backward, by the list above."""
    x, y, w = sum(operation.inputs.values()), sum(operation.outputs.values()), operation.kernel
    if operation.kind == "convolution":
        on_image = any(value.aval.shape[-1] == CHANNELS for value in operation.inputs)
        return x + w + y, (1 if on_image else 2) * (x + w + y)
    if operation.kind == "normalization":
        return (2 if training else 1) * x + y, 2 * x + 2 * y + x
    if operation.kind == "relu":
        return 2 * y, 3 * y
    if operation.kind == "max pooling":
        places = INDEX_BYTES * operation.elements
        return x + y + training * places, y + places + x
    if operation.kind == "dropout":
        mask = operation.elements
        return (x + y + mask, y + mask + x) if training else (0, 0)
    return x + y, x + y if operation.kind == "resizing" else 0


def trace(model: nn.Module, shape: tuple[int, int, int], *, training: bool) -> tuple[dict, list[Operation]]:
    """Shapes of the network's variables, and its operations on images [b, h, w, 3], in their order."""
    image = jax.ShapeDtypeStruct((*shape, CHANNELS), jnp.float32)
    variables = jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image)

    def forward(image, variables):
        options = {"mutable": ["batch_stats", "auxiliary"], "rngs": {"dropout": jax.random.key(0)}} if training else {}
        return model.apply(variables, image, train=training, **options)

    jaxpr = jax.make_jaxpr(forward)(image, variables).jaxpr
    values = {jaxpr.invars[0]: jaxpr.invars[0]}  # what the image reached -> the map that it is a view of
    made: dict[Var, Operation] = {}
    operations: dict[tuple, Operation] = {}
    for number, equation in enumerate(jaxpr.eqns):
        read = [values[x] for x in equation.invars if isinstance(x, Var) and x in values]
        if not read:
            continue  # of parameters alone
        key, kind = identify(equation, variables["params"], number)
        if kind == "view":
            values |= dict.fromkeys(equation.outvars, read[0])
            continue
        operation = operations.setdefault(key, Operation(kind))
        link(operation, read, made)
        if kind == "convolution" and equation.primitive.name in ("conv_general_dilated", "dot_general"):
            operation.kernel += sum(bytes_of(x) for x in equation.invars if x not in values and x.aval.ndim > 1)
        for value in equation.outvars:
            values[value], made[value] = value, operation
    link(Operation("result"), [values[x] for x in jaxpr.outvars if isinstance(x, Var) and x in values], made)
    return variables, list(operations.values())


def link(reader: Operation, read: list[Var], made: dict[Var, Operation]) -> None:
    """Notes that `reader` reads the maps in `read`, which other operations write; of two resizings in a row, such as
    along rows and down columns, one is made."""
    for value in (value for value in read if value.aval.ndim > 2):
        maker = made.get(value)
        if maker is reader:
            continue
        if maker is not None and maker.kind == reader.kind == "resizing":
            reader.inputs |= maker.inputs
            maker.inputs.clear()
            continue
        reader.inputs[value] = bytes_of(value)
        if maker is not None:
            maker.outputs[value] = bytes_of(value)


def bytes_of(value: Var) -> int:
    return value.aval.size * value.aval.dtype.itemsize


def identify(equation: JaxprEqn, params: Mapping, number: int) -> tuple[tuple, str]:
    """Which operation an equation belongs to, a key, and its kind; "view" where it is none.

    By the layer it stands in, where that has parameters of its own, otherwise by what it is.
    """
    primitive = equation.primitive.name
    path = str(equation.source_info.name_stack).split("/")[1:]
    own = params
    for name in path:
        own = own.get(name, {})
    if "scale" in own:
        return tuple(path), "normalization"
    if primitive in ("custom_jvp_call", "custom_vjp_call"):
        return (number,), PRIMITIVES[primitive]
    if path and path[-1].startswith("Dropout"):
        return tuple(path), "dropout"
    if "depthwise" in own and primitive == "conv_general_dilated":
        return (*path, "depthwise"), "convolution"
    if own.keys() & {"kernel", "pointwise"}:
        return tuple(path), "convolution"
    grows = primitive != "broadcast_in_dim" or equation.outvars[0].aval.size > equation.invars[0].aval.size
    is_map = equation.outvars[0].aval.ndim > 2
    return (number,), PRIMITIVES.get(primitive, "view") if is_map and grows else "view"
