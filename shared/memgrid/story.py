"""The story of one thing on the grid, from the event log."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from memgrid.v1 import grid_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryEvent:
    """Something that happened; `reason` is a code, or empty."""

    at: datetime
    name: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What became of a campaign, unit, lease, host or cube, oldest event first."""

    kind: str
    id: str
    summary: str
    events: tuple[StoryEvent, ...]

    def to_json(self) -> dict[str, Any]:
        events = [{**asdict(event), "at": event.at.isoformat(timespec="milliseconds")} for event in self.events]
        return {"kind": self.kind, "id": self.id, "summary": self.summary, "events": events}


def story_from_message(message: pb.Story) -> Story:
    return Story(
        kind=message.kind,
        id=message.id,
        summary=message.summary,
        events=tuple(
            StoryEvent(at=event.at.ToDatetime(UTC), name=event.name, text=event.text, reason=event.reason.code)
            for event in message.events
        ),
    )
