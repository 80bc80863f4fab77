"""Count pulls: a cube is pulled when the last byte of its largest file has been sent."""

from __future__ import annotations

from collections import Counter
from functools import partial

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.repositories import RepositoryKind, kind_of
from memgrid_coordinator.store import pulls
from memgrid_coordinator.store.engine import Store

_WAITING_MAX = 50_000
"""Different files that may wait to be counted; what goes beyond is not: no counter is worth running out of memory."""


class Pulls:
    """Looking at a cube, or asking for its price, is no pull: neither reads its largest file.

    Sending costs one look-up in memory. What was counted since the last `save` is lost with the process.
    """

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._sent: Counter[tuple[str, Digest]] = Counter()

    def note_sent(self, repository: str, digest: Digest) -> None:
        """A file of a repository was sent to its end."""
        key = (repository, digest)
        if kind_of(repository) is RepositoryKind.CUBES and (key in self._sent or len(self._sent) < _WAITING_MAX):
            self._sent[key] += 1

    async def save(self) -> int:
        """Write what was counted; returns how many pulls it came to."""
        sent, self._sent = self._sent, Counter()
        if not sent:
            return 0
        try:
            counted = await self._store.write(partial(pulls.count, sent=sent, day=self._clock.now().date()))
        except BaseException:
            self._sent.update(sent)
            raise
        for pull in counted:
            self._metrics.cube_pulls.labels(pull.kind).inc(pull.pulls)
            self._metrics.pulled_flops.labels(pull.kind).inc(pull.pulls * pull.produced_flops)
        return sum(pull.pulls for pull in counted)
