"""The owner's wall clock: the machine's time zone, with its summer time, as Python's zones are."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, tzinfo


class LocalZone(tzinfo):
    """Whatever the operating system takes for local, asked anew for every moment.

    `datetime.astimezone()` alone gives a fixed offset, which is wrong for a moment on the other side of a change of
    the clocks.
    """

    def fromutc(self, moment: datetime) -> datetime:
        # Without a zone Python asks the operating system, and marks an hour that is there twice.
        wall = datetime.fromtimestamp(moment.replace(tzinfo=UTC).timestamp())  # noqa: DTZ006
        return wall.replace(tzinfo=self)

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else timedelta(seconds=_local(moment).tm_gmtoff)

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None if moment is None else _local(moment).tm_zone


LOCAL = LocalZone()


def _local(wall: datetime) -> time.struct_time:
    return time.localtime(wall.replace(tzinfo=None).timestamp())
