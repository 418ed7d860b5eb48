"""Runs of one config in one process share their traced and compiled programs.

A run makes its optimizer, losses and steps anew; to JAX they are then other functions, and a network of fifty layers is
traced and lowered again, which takes longer than the few steps that tests train for.
"""

import contextlib
import functools

import jax
import pytest

from jaxseg.training import loop, parallel, peers


def by_config(function, *sections: str):
    """`function` of a config, once for all with the same text in `sections` (all where none is named)."""
    made = {}

    @functools.wraps(function)
    def once(config, **options):
        parts = [config[section] for section in sections] or [config]
        key = (*(str(part) for part in parts), *sorted((name, str(value)) for name, value in options.items()))
        if key not in made:
            made[key] = function(config, **options)
        return made[key]

    once.forget = made.clear
    return once


def by_losses(compile_train_step):
    """`parallel.compile_train_step`, once for the same losses (which `by_config` makes once) and options."""
    made = {}

    @functools.wraps(compile_train_step)
    def once(*, losses, **options):
        key = (*sorted((name, id(loss)) for name, loss in losses.items()), *sorted(options.items()))
        if key not in made:
            made[key] = compile_train_step(losses=losses, **options), losses  # kept, so that no other has its id
        return made[key][0]

    once.forget = made.clear
    return once


def by_network(fresh_variables):
    """`factory.fresh_variables`, drawn once for the same network and seed; those without values are not kept."""
    made = {}

    @functools.wraps(fresh_variables)
    def once(network, *, seed):
        if (network, seed) in made:
            return made[network, seed]
        variables = fresh_variables(network, seed=seed)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(variables)):
            made[network, seed] = variables
        return variables

    once.forget = made.clear
    return once


class CompiledOnce(contextlib.AbstractContextManager):
    """Replaces what makes them; `forget()` lets go of all programs."""

    def __init__(self):
        self.patch = pytest.MonkeyPatch()
        self.replaced = []

    def __enter__(self):
        self.replace(peers, "make_optimizer", by_config(peers.make_optimizer))
        self.replace(loop, "make_losses", by_config(loop.make_losses, "peer", "loss", "mutual", "peers"))
        self.replace(parallel, "compile_train_step", by_losses(parallel.compile_train_step))
        for name in ("compile_eval_step", "compile_predict", "compile_predict_labels"):
            self.replace(parallel, name, functools.cache(getattr(parallel, name)))
        self.replace(peers, "fresh_variables", by_network(peers.fresh_variables))
        return self

    def replace(self, module, name: str, function) -> None:
        self.patch.setattr(module, name, function)
        self.replaced.append(function)

    def forget(self) -> None:
        for function in self.replaced:
            (function.forget if hasattr(function, "forget") else function.cache_clear)()

    def __exit__(self, *_):
        self.patch.undo()
