"""Run the sweeps on APScheduler: each looks at stored state only, and its next run is its retry."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from memgrid.log import get_logger
from memgrid_coordinator.metrics import Metrics

log = get_logger(__name__)
Sweep = Callable[[], Awaitable[int]]
"""Does what is due, a bounded amount, and says how much it was."""


class Sweeps:
    """The coordinator's timers. Nothing is lost with them: what is due stands in the tables."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._sweeps: dict[str, Sweep] = {}
        self._scheduler = AsyncIOScheduler(timezone="UTC")
        # A sweep that takes longer than its interval skips a run by design; that is nothing to warn of.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)

    def add(self, name: str, sweep: Sweep, every: timedelta) -> None:
        """Run `sweep` so often; a run that takes longer than that delays the next, it never overlaps it."""
        self._sweeps[name] = sweep
        self._metrics.sweep_failures.labels(name)  # nought, so that the first failure shows
        self._scheduler.add_job(
            self._run,
            IntervalTrigger(seconds=every.total_seconds()),
            next_run_time=datetime.now(UTC),  # at once: a restart has something to take up
            args=(name,),
            id=name,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
        )

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        """Start nothing more; what runs finishes."""
        self._scheduler.shutdown(wait=False)

    async def run_now(self, name: str) -> int:
        """One run of a sweep, between its own."""
        return await self._sweeps[name]()

    async def _run(self, name: str) -> None:
        started = time.perf_counter()
        try:
            done = await self._sweeps[name]()
        except Exception:
            self._metrics.sweep_failures.labels(name).inc()
            log.exception("sweep failed; the next run is the retry", sweep=name)
            return
        self._metrics.sweep_s.labels(name).observe(time.perf_counter() - started)
        if done:
            log.debug("sweep", sweep=name, done=done)
