"""What is asked of a calibration, and what came of it: rows, what they see and miss, and why a model is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from memgrid.cube.identity import ModelIdentity
from memgrid.kinds.tolerances import BUILT_IN, Tolerances
from memgrid.units import StoreDtype
from memgrid_coordinator.heavy.calibration.evidence import evidence, tolerances_of
from memgrid_coordinator.heavy.calibration.planning import Sizes
from memgrid_coordinator.heavy.calibration.report import ReportOrder, sights_together
from memgrid_coordinator.heavy.calibration.ways import CHEATS, HONEST, Way
from memgrid_coordinator.policy.calibrating import FittedRow, Samples, Sight
from memgrid_coordinator.policy.known_cheats import coarser_of

UNSURE_FROM = 1.5
"""Times the limit: a single honest case out there shows that the honest spread is not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationAsked:
    """What to calibrate and how thoroughly."""

    model_folder: Path
    work_folder: Path
    """Sketches are kept here meanwhile: on Ray, a folder that all machines see."""
    sizes: Sizes = field(default_factory=Sizes)
    text: Path | None = None
    seed: int = 1
    may_miss: frozenset[str] = frozenset()
    """Cheats that the owner gives up to see."""
    stores: tuple[StoreDtype, ...] = tuple(StoreDtype)
    ways: tuple[Way, ...] = HONEST
    """Honest ones; the first has to be the plain one."""
    cheats: tuple[str, ...] = CHEATS
    is_taught: bool = True
    """Whether study, evaluate and train are calibrated, too."""
    audit_store: StoreDtype = StoreDtype.BFLOAT16
    """Replays are of caches that are stored so."""
    at_once: int = 1
    """So many parts are given to the engine at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What came of it; `samples` are all comparisons, `lossless` the cheats that change nothing in this model."""

    asked: CalibrationAsked
    model: ModelIdentity
    rows: dict[str, FittedRow]
    samples: Sequence[Samples] = field(repr=False)
    lossless: tuple[str, ...]
    untaught: str = ""
    """Why study, evaluate and train were left out, if they were."""

    @property
    def overlaps(self) -> dict[str, tuple[str, ...]]:
        """The rows that can't see a cheat which they have to see, by cheat."""
        found: dict[str, list[str]] = {}
        for row in self.rows.values():
            for sight in row.overlaps:
                found.setdefault(sight.cheat, []).append(row.row)
        return {cheat: tuple(rows) for cheat, rows in sorted(found.items())}

    @property
    def rejecting(self) -> tuple[str, ...]:
        """The rows beyond whose limits honest answers lie by far, on texts that they were not fitted to."""
        return tuple(row.row for row in self.rows.values() if row.furthest > UNSURE_FROM)

    @property
    def is_refused(self) -> bool:
        return bool(self.overlaps or self.rejecting)

    @property
    def facts(self) -> dict[str, Any]:
        """What was calibrated, with what, and how thoroughly."""
        return {
            "model": self.model.digest,
            "name": self.model.name,
            "text": "bundled" if self.asked.text is None else self.asked.text.name,
            "seed": self.asked.seed,
            "may_be_missed": sorted(self.asked.may_miss),
            "sizes": asdict(self.asked.sizes),
            "left_out": self.untaught,
            "refused": self.is_refused,
        }

    def refusal(self) -> tuple[str, ...]:
        """Why this model can't be used with these limits, a line each; none when it can."""
        blind = (
            f"{cheat} can't be told from honest answers in {', '.join(rows)}" for cheat, rows in self.overlaps.items()
        )
        unsure = (
            f"{row}: {self.rows[row].rejected} of {self.rows[row].tried_on} honest comparisons of new texts are "
            f"beyond its limits, the furthest {self.rows[row].furthest:.2f} times; calibrate with more chunks"
            for row in self.rejecting
        )
        return (*blind, *unsure)

    @property
    def honest_cases(self) -> int:
        """Comparisons of honest answers, of texts that limits were not fitted to."""
        return sum(row.tried_on for row in self.rows.values())

    @property
    def rejected(self) -> int:
        return sum(row.rejected for row in self.rows.values())

    @property
    def cheat_cases(self) -> int:
        """Comparisons with cheats that have to be seen, or are seen without having to, of such texts."""
        return sum(sight.cases for row in self.rows.values() for sight in row.sights if _is_claimed(sight))

    @property
    def accepted(self) -> int:
        return sum(sight.unseen for row in self.rows.values() for sight in row.sights if _is_claimed(sight))

    def unseen_in_words(self) -> list[str]:
        """What may be missed and is, a line a cheat."""
        return [
            f"{cheat}, in {', '.join(sorted({coarser_of(key) for key, _ in missed}))}"
            for cheat, sights in sights_together(self.rows).items()
            if (missed := [(key, sight) for key, sight in sights if not _is_claimed(sight)])
        ]

    def tolerances(self, now: datetime) -> Tolerances:
        return tolerances_of(self.rows, BUILT_IN, f"calibrated {now:%Y-%m-%d} on {self.model.digest}")


def _is_claimed(sight: Sight) -> bool:
    """Whether the table says that it sees this cheat in this row."""
    return sight.is_seen or not sight.may_be_missed


def report_order(found: Calibrated, folder: Path, now: datetime) -> ReportOrder:
    """What the report of a calibration is to say."""
    asked = found.asked
    facts = {
        "model": f"{found.model.name}, {found.model.digest}",
        "made": f"{now:%Y-%m-%d %H:%M} UTC",
        "texts": f"{asked.sizes.chunks} of {asked.sizes.tokens} tokens, seed {asked.seed}; fitted to the first "
        f"{asked.sizes.fit_chunks}, tried on the others",
        "honest comparisons": f"{found.honest_cases}, rejected {found.rejected}",
        "comparisons with cheats": f"{found.cheat_cases}, passed {found.accepted}",
    }
    return ReportOrder(
        folder=folder,
        title=f"Calibration of {found.model.name}",
        facts=facts,
        refusal=found.refusal(),
        rows=found.rows,
        samples=found.samples,
        lossless=found.lossless,
        tolerances=found.tolerances(now),
        evidence=evidence(facts=found.facts, rows=found.rows, samples=found.samples, lossless=found.lossless),
    )
