"""Outputs and half-done units that the grid has ordered, on their way up, one after another."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from memgrid.clock import Clock
from memgrid.errors import MemgridError
from memgrid.log import get_logger
from memgrid.units import CHECKPOINT_FILE, LeaseId, UploadOrder
from memgrid_volunteer.grid_diary import GridDiary
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.transfers import Transfers
from memgrid_volunteer.travelling import Travelling

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class _Delivery:
    """An order and how often it has failed; it is not tried again before `due_s`."""

    order: UploadOrder
    failures: int = 0
    due_s: float = 0.0


class Deliveries:
    """An order stays until the coordinator has the bytes. One that fails lets the others go before it."""

    def __init__(
        self,
        outbox: Outbox,
        travelling: Travelling,
        transfers: Transfers,
        diary: GridDiary,
        news: asyncio.Event,
        *,
        clock: Clock,
        rng: random.Random,
        backoff: Backoff,
    ) -> None:
        self._outbox = outbox
        self._travelling = travelling
        self._transfers = transfers
        self._diary = diary
        self._news = news
        self._clock = clock
        self._rng = rng
        self._backoff = backoff
        self._open: dict[tuple[LeaseId, str], _Delivery] = {}
        self._delivered_s: dict[tuple[LeaseId, str], float] = {}
        self._put = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        return not self._open

    def put(self, order: UploadOrder, asked_s: float) -> bool:
        """Take an order that answers what was asked at `asked_s`.

        False when it is being dealt with already, nothing here fits it, or its bytes have gone since then: on a line
        with a delay, an order and its delivery pass each other.
        """
        place = (order.lease_id, order.name)
        if place in self._open or asked_s < self._delivered_s.get(place, -math.inf) or not self._fits(order):
            return False
        self._open[place] = _Delivery(order=order)
        self._put.set()
        return True

    async def deliver(self) -> None:
        """Loop: upload what has been ordered."""
        while True:
            self._put.clear()
            now_s = self._clock.monotonic_s()
            delivery = min(self._open.values(), key=lambda each: self._turn(each, now_s), default=None)
            if delivery is None or delivery.due_s > now_s:
                await self._wait(None if delivery is None else delivery.due_s - now_s)
            elif self._is_left(delivery):
                await self._leave(delivery)
            else:
                await self._deliver(delivery)

    async def leave_now(self, orders: Sequence[UploadOrder]) -> None:
        """Send half-done units that are ordered, and nothing else: this process is about to end."""
        for order in orders:
            if (file := self._travelling.find(order)) is not None:
                await self._transfers.upload(order, file)

    async def _leave(self, delivery: _Delivery) -> None:
        """Send a half-done unit until a result is to be sent, which goes first; it goes on where it was cut."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._send_left(delivery)), group.create_task(self._result_is_due())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _result_is_due(self) -> None:
        while True:
            self._put.clear()
            now_s = self._clock.monotonic_s()
            due_s = min((each.due_s for each in self._open.values() if not self._is_left(each)), default=math.inf)
            if due_s <= now_s:
                return
            await self._wait(None if math.isinf(due_s) else due_s - now_s)

    async def _send_left(self, delivery: _Delivery) -> None:
        """Once, with the patience of one upload: nobody waits for it."""
        order, file = delivery.order, self._travelling.find(delivery.order)
        try:
            if file is not None:
                await self._transfers.upload(order, file)
                self._diary.note(f"{order.size_bytes / 1e6:.1f} MB of a half-done unit left for your other machines")
        except (MemgridError, OSError) as error:
            log.info("half-done unit not left", lease_id=order.lease_id, error=str(error))
        self._forget(delivery)
        self._travelling.end(order.lease_id)

    async def _deliver(self, delivery: _Delivery) -> None:
        finished = self._outbox.find(delivery.order.lease_id)
        if finished is None:
            # The verdict has come without it.
            self._forget(delivery)
            return
        try:
            await self._transfers.upload(delivery.order, finished.folder / delivery.order.name)
        except FileNotFoundError:
            self._forget(delivery)  # the verdict has come, and the file gone, in the middle of it
        except (MemgridError, OSError) as error:
            delivery.failures += 1
            pause_s = self._backoff(delivery.failures, self._rng)
            delivery.due_s = self._clock.monotonic_s() + pause_s
            log.warning(
                "upload failed",
                lease_id=delivery.order.lease_id,
                error=str(error),
                failures=delivery.failures,
                again_in_s=round(pause_s, 1),
            )
        else:
            self._forget(delivery)
            self._remember(delivery)
            self._diary.uploaded(finished.claim.unit_key, delivery.order.size_bytes)
            # The verdict may be there by the time we ask.
            self._news.set()

    def _turn(self, delivery: _Delivery, now_s: float) -> tuple[bool, bool, float]:
        """The least is next: of those that are due, results."""
        return delivery.due_s > now_s, self._is_left(delivery), delivery.due_s

    def _is_left(self, delivery: _Delivery) -> bool:
        """Whether it is a half-done unit."""
        return delivery.order.name == CHECKPOINT_FILE

    async def _wait(self, limit_s: float | None) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._put.wait()
        except TimeoutError:
            return

    def _forget(self, delivery: _Delivery) -> None:
        self._open.pop((delivery.order.lease_id, delivery.order.name), None)

    def _remember(self, delivery: _Delivery) -> None:
        known = self._delivered_s.items()
        self._delivered_s = {place: at_s for place, at_s in known if self._outbox.find(place[0]) is not None}
        self._delivered_s[delivery.order.lease_id, delivery.order.name] = self._clock.monotonic_s()

    def _fits(self, order: UploadOrder) -> bool:
        """Only what was reported or offered, byte for byte, is ever sent: an order can't ask for other files."""
        if order.name == CHECKPOINT_FILE:
            return self._travelling.find(order) is not None
        finished = self._outbox.find(order.lease_id)
        wanted = (order.name, order.digest, order.size_bytes)
        outputs = () if finished is None else finished.claim.outputs
        return wanted in [(output.name, output.digest, output.size_bytes) for output in outputs]
