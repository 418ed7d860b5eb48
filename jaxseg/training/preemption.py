"""Being asked to stop: the step is finished, its state saved, and the process leaves; a second request is not waited for.

In: SIGTERM and SIGINT; on several hosts what `jax.distributed` hears of a preemption. Out:
`PreemptionListener.requested(step)`, the same answer on every host.
"""

import signal
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionListener:
    """Listens while it is entered. The first signal is kept in `signal`; the second has its usual effect, at once."""

    def __init__(self):
        self.signal = None
        self.previous_handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self.previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self._restore_handlers()

    def _on_signal(self, number: int, _) -> None:
        self.signal = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to save and leave after `step`. Hosts agree on the step: all of them ask at every one."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None
