"""Outputs that the grid has ordered, on their way up, one after another."""

from __future__ import annotations

import asyncio

from memgrid.errors import MemgridError
from memgrid.log import get_logger
from memgrid.units import LeaseId, UploadOrder
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.transfers import Transfers

PAUSE_AFTER_FAILURE_S = 2.0

log = get_logger(__name__)


class Deliveries:
    """An order stays until the coordinator has the bytes; it is repeated by every Sync, so failing is no loss."""

    def __init__(self, outbox: Outbox, transfers: Transfers, diary: Diary, news: asyncio.Event) -> None:
        self._outbox = outbox
        self._transfers = transfers
        self._diary = diary
        self._news = news
        self._orders: asyncio.Queue[UploadOrder] = asyncio.Queue()
        self._open: set[tuple[LeaseId, str]] = set()

    @property
    def is_idle(self) -> bool:
        return not self._open

    def put(self, order: UploadOrder) -> bool:
        """Take an order; False when it is being dealt with already, or nothing here fits it."""
        if (order.lease_id, order.name) in self._open or not self._fits(order):
            return False
        self._open.add((order.lease_id, order.name))
        self._orders.put_nowait(order)
        return True

    async def deliver(self) -> None:
        """Loop: upload what has been ordered."""
        while True:
            order = await self._orders.get()
            finished = self._outbox.find(order.lease_id)
            try:
                if finished is not None:
                    await self._transfers.upload(order, finished.folder / order.name)
                    self._diary.uploaded(finished.claim.unit_key, order.size_bytes)
                    # The verdict may be there by the time we ask.
                    self._news.set()
            except (MemgridError, FileNotFoundError) as error:
                # The verdict may have come, and the file gone, in the middle of it.
                log.warning("upload failed", lease_id=order.lease_id, error=str(error))
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
            finally:
                self._open.discard((order.lease_id, order.name))

    def _fits(self, order: UploadOrder) -> bool:
        """Only what was reported, byte for byte, is ever sent: an order can't ask for other files."""
        finished = self._outbox.find(order.lease_id)
        wanted = (order.name, order.digest, order.size_bytes)
        outputs = () if finished is None else finished.claim.outputs
        return wanted in [(output.name, output.digest, output.size_bytes) for output in outputs]
