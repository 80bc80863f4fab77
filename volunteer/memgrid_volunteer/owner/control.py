"""The owner's own word: which devices are paused, and until when; one small file in the home."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memgrid.errors import InvalidError
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.files import Stamp, replace_text, stamp_of
from memgrid_volunteer.owner.signals import Pause

CONTROL_FILE = "control.json"
CONTROL_BYTES_MAX = 64 << 10


class Control:
    """Pauses as they lie on disk: any process may add or lift one, whoever runs reads them a few times a second.

    A device has at most one pause, and so have all devices together. What has expired is not there any more. A pause
    of a device that no longer exists is kept and shown: the device may come back.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CONTROL_FILE
        self._seen: Stamp | None = None
        self._pauses: tuple[Pause, ...] = ()

    def pauses(self, now: datetime) -> tuple[Pause, ...]:
        """Those that hold at `now`. Raises InvalidError when the file is damaged.

        Cheap while the file stays as it is: one look at its size and time.
        """
        seen = stamp_of(self.path)
        if seen is None or seen != self._seen:
            self._pauses, self._seen = _read(self.path), seen
        return tuple(pause for pause in self._pauses if pause.until is None or now < pause.until)

    def pause(
        self,
        now: datetime,
        *,
        device_id: DeviceId | None = None,
        until: datetime | None = None,
        is_until_restart: bool = False,
    ) -> Pause:
        """Pause one device, or all of them; takes the place of an earlier pause of the same."""
        wanted = Pause(device_id=device_id, until=until, is_until_restart=is_until_restart)
        pauses = self._pauses_or_none(now) if device_id is None else self.pauses(now)
        others = [pause for pause in pauses if pause.device_id != device_id]
        self._write((*others, wanted))
        return wanted

    def resume(self, now: datetime, *, device_id: DeviceId | None = None) -> tuple[Pause, ...]:
        """Lift the pause of one device; without one, every pause there is. Returns what was lifted."""
        pauses = self._pauses_or_none(now) if device_id is None else self.pauses(now)
        lifted = tuple(pause for pause in pauses if device_id is None or pause.device_id == device_id)
        self._write(tuple(pause for pause in pauses if pause not in lifted))
        return lifted

    def hold(self, pauses: tuple[Pause, ...]) -> None:
        """Let these hold, and no others: the word of an owner who sits at another machine."""
        self._write(pauses)

    def restarted(self, now: datetime) -> None:
        """The volunteer starts: pauses that were to last until then are over."""
        pauses = self.pauses(now)
        lasting = tuple(pause for pause in pauses if not pause.is_until_restart)
        if lasting != pauses:
            self._write(lasting)

    def _pauses_or_none(self, now: datetime) -> tuple[Pause, ...]:
        """A word about all devices makes good what a damaged file said."""
        try:
            return self.pauses(now)
        except InvalidError:
            return ()

    def _write(self, pauses: tuple[Pause, ...]) -> None:
        replace_text(self.path, json.dumps({"pauses": [_to_json(pause) for pause in pauses]}, indent=1))
        self._seen = None


def _read(path: Path) -> tuple[Pause, ...]:
    try:
        with path.open("rb") as file:
            content = file.read(CONTROL_BYTES_MAX + 1)
    except FileNotFoundError:
        return ()
    try:
        if len(content) > CONTROL_BYTES_MAX:
            raise ValueError("too large")
        value = json.loads(content)
        return tuple(_from_json(item) for item in value["pauses"])
    except (ValueError, KeyError, TypeError, RecursionError):
        # Whoever paused must not find the machine at work because a file was damaged.
        raise InvalidError(f"{path}: damaged; `memgrid volunteer resume` or `pause` writes it anew") from None


def _to_json(pause: Pause) -> dict[str, Any]:
    until = None if pause.until is None else pause.until.astimezone(UTC).isoformat()
    return {"device_id": pause.device_id, "until": until, "is_until_restart": pause.is_until_restart}


def _from_json(value: dict[str, Any]) -> Pause:
    until = None if value["until"] is None else datetime.fromisoformat(value["until"])
    device_id = value["device_id"]
    if (until is not None and until.tzinfo is None) or not isinstance(device_id, str | None):
        raise ValueError("not a pause")
    return Pause(device_id=device_id, until=until, is_until_restart=bool(value["is_until_restart"]))
