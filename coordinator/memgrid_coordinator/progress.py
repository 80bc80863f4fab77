"""How far a document is on its way to a cube, as its operator is told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from memgrid.cube.manifest import Quality
from memgrid.units import Reason, ReasonCode

LOSSES_MAX = 200
"""Points of a loss curve: enough to draw one."""


class Stage(StrEnum):
    """What a document of a distillation waits for."""

    STUDY = "study"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`losses` are (step, loss) of training; `note` says why training ended early.

    `ahead_flops` is what hosts will be asked for beyond the units that exist: it makes the time that is left.
    """

    stage: Stage | None = None
    steps: int = 0
    steps_total: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    quality: Quality | None = None
    note: Reason | None = None
    ahead_flops: int = 0

    def to_text(self) -> str:
        """JSON for its column; nothing for a document that has none.

        >>> Progress.from_text(Progress(stage=Stage.TRAIN, steps=3, losses=((0, 2.5),)).to_text()).losses
        ((0, 2.5),)
        """
        return "" if self == NO_PROGRESS else json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Progress:
        if not text:
            return NO_PROGRESS
        value = json.loads(text)
        quality, note = value["quality"], value["note"]
        return Progress(
            stage=None if value["stage"] is None else Stage(value["stage"]),
            steps=value["steps"],
            steps_total=value["steps_total"],
            losses=tuple((int(step), float(loss)) for step, loss in value["losses"]),
            quality=None if quality is None else Quality(**quality),
            note=None if note is None else Reason(code=ReasonCode(note["code"]), text=note["text"]),
            ahead_flops=value.get("ahead_flops", 0),
        )


NO_PROGRESS = Progress()
"""Of a document whose units say everything."""


def thinned(losses: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most LOSSES_MAX points, evenly spread, the last one among them.

    >>> points = thinned([(step, 1.0) for step in range(1000)])
    >>> len(points), points[0][0], points[-1][0]
    (200, 0, 999)
    """
    if len(losses) <= LOSSES_MAX:
        return tuple(losses)
    last = len(losses) - 1
    return tuple(losses[round(point * last / (LOSSES_MAX - 1))] for point in range(LOSSES_MAX))
