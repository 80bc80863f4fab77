"""How a run is ended: by a signal, or by whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

from memgrid_volunteer.agent import Agent


class Stopping:
    """The first request is polite, the second insists. Made inside the task that runs."""

    def __init__(self) -> None:
        self._agent: Agent | None = None
        self._asked = False
        self._task = asyncio.current_task()

    def attach(self, agent: Agent) -> None:
        self._agent = agent

    def stop(self) -> None:
        if self._agent is not None and not self._asked:
            self._agent.stop()
        elif self._task is not None:
            self._task.cancel()
        self._asked = True

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM mean `stop`; where a system knows no such handlers, Ctrl-C cancels by itself."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        with contextlib.suppress(NotImplementedError):
            for number in numbers:
                loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            with contextlib.suppress(NotImplementedError):
                for number in numbers:
                    loop.remove_signal_handler(number)
