"""What every loss refuses of its arrays: shapes, types, and labels that are counted from 1.

In: logits [b, h, w, c] and label int [b, h, w], concrete or traced. Out: nothing, or a ValueError with what was got and
what is expected. Values are looked at only where they are concrete: under a caller's `jax.jit` nothing is known of them.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

Function = TypeVar("Function", bound=Callable)


def check_arrays(logits: ArrayLike, label: ArrayLike) -> None:
    """Refuses shapes and types that do not fit. Raises ValueError."""
    shape = jnp.shape(logits)
    dtype = jnp.result_type(label)
    if len(shape) != 4 or jnp.shape(label) != shape[:3]:
        raise ValueError(f"logits {shape} and label {jnp.shape(label)}; expected [b, h, w, c] and [b, h, w].")
    refuse_one_channel(shape)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"label is {dtype}; expected integers, one class a pixel.")


def refuse_one_channel(shape: tuple[int, ...]) -> None:
    """Raises ValueError where logits of that shape have a single channel."""
    if shape[-1] == 1:
        raise ValueError(
            f"logits {shape}: one channel is one class, and a label of 1 is void to it; give two channels, background and"
            " foreground."
        )


def check_label_values(logits: ArrayLike, label: ArrayLike) -> None:
    """Refuses concrete labels that hold c, the number of channels, and no 0: such are counted 1..c, and class c would be
    void without a word. Raises ValueError.

    >>> check_label_values(jnp.zeros((1, 1, 2, 2)), jnp.array([[[1, 2]]]))
    Traceback (most recent call last):
    ValueError: label holds 2 and no 0, and logits have 2 channels, 0..1; labels counted 1..2: subtract 1. Void is 255, or -1.
    """
    if isinstance(label, jax.core.Tracer) or (isinstance(label, jax.Array) and not label.is_fully_addressable):
        return
    channels = jnp.shape(logits)[-1]
    values = np.asarray(label)
    if (values == channels).any() and not (values == 0).any():
        raise ValueError(
            f"label holds {channels} and no 0, and logits have {channels} channels, 0..{channels - 1}; labels counted"
            f" 1..{channels}: subtract 1. Void is 255, or -1."
        )


def loss_of_labels(*static: str) -> Callable[[Function], Function]:
    """Decorates `function(logits, label, …)`: compiled, `static` arguments being constants of the program, and called only
    after `check_arrays` and `check_label_values`; a compiled function sees no values."""

    def decorate(function: Function) -> Function:
        compiled = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def checked(logits: ArrayLike, label: ArrayLike, *args: Any, **options: Any) -> Any:
            check_arrays(logits, label)
            check_label_values(logits, label)
            return compiled(logits, label, *args, **options)

        return cast(Function, checked)

    return decorate
