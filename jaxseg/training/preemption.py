"""Being asked to stop: the step is finished, its state saved, and the process leaves; a second request is not waited for.

In: SIGTERM and SIGINT; on several hosts what `jax.distributed` hears of a preemption. Out: `Stop.asked(step)`, the same
answer on every host; the status to leave with is 128 + the signal's number, as shells report it.
"""

import signal
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Listens while it is entered. The first signal is kept in `signal`; the second has its usual effect, at once."""

    def __init__(self):
        self.signal = None

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self.before = {number: signal.signal(number, self.hear) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self.restore()

    def hear(self, number: int, _) -> None:
        self.signal = number
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> bool:
        """Whether to save and leave after `step`. Hosts agree on the step: all of them ask at every one."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None
