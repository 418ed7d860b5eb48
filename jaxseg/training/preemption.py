"""Being asked to stop: the step is finished, its state saved, and the process leaves; a second request is not waited for.

In: SIGTERM and SIGINT, SIGUSR1 (which SLURM sends where it is asked to) and SIGHUP (the terminal is gone); on several
hosts what `jax.distributed` hears of a preemption. Out: `PreemptionListener.requested(step)`, the same answer on every
host.
"""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

REPEATED = (signal.SIGHUP, signal.SIGUSR1)  # which kernel, shell and SLURM may each send once more: no second request
SIGNALS = (signal.SIGTERM, signal.SIGINT, *REPEATED)


class PreemptionListener:
    """Listens while it is entered. The first signal is kept in `signal`; a second SIGTERM or SIGINT has its usual effect, at
    once. What is ignored when it is entered, as SIGHUP below `nohup`, stays so, but for SIGINT: shells start background
    processes without it. On several hosts, where JAX listens for SIGTERM, the other signals are passed on as that one."""

    def __init__(self):
        self.signal = None
        self.previous_handlers = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        alone = jax.process_count() == 1
        for number in SIGNALS if alone else REPEATED:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                handler = self._on_signal if alone else self._pass_on
                self.previous_handlers[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_) -> None:
        self._restore_handlers(SIGNALS)

    def _on_signal(self, number: int, _) -> None:
        self.signal = self.signal or number
        self._restore_handlers([number for number in SIGNALS if number not in REPEATED])
        if number == signal.SIGHUP:
            leave_terminal()

    def _pass_on(self, number: int, _) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        signal.raise_signal(signal.SIGTERM)

    def _restore_handlers(self, numbers) -> None:
        for number in numbers:
            if number in self.previous_handlers:
                signal.signal(number, self.previous_handlers.pop(number))

    def requested(self, step: int) -> bool:
        """Whether to save and leave after `step`. Hosts agree on the step: all of them ask at every one."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None


def leave_terminal() -> None:
    """What would be written to a terminal that is gone is dropped: writing there is an error, and would end the run."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
