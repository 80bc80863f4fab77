"""The parts of a calibration that run on the engine; torch stays in its processes."""

from __future__ import annotations

from pathlib import Path

from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.calibration.orders import CacheOrder, CachesMade, CompareOrder, LessonOrder
from memgrid_coordinator.heavy.calibration.planning import Begun, Sizes
from memgrid_coordinator.policy.calibrating import Samples


def begin(folder: Path, text: Path | None, sizes: Sizes, seed: int) -> Begun:
    """Read the model's identity and the text; raises InvalidError for what can't be calibrated."""
    from memgrid_coordinator.heavy.calibration.planning import read_model

    return read_model(folder, text, sizes, seed)


def compute_caches(order: CacheOrder) -> CachesMade:
    """Caches of some chunks in one way, kept as sketches."""
    from memgrid_coordinator.heavy.calibration.caches import make_caches

    return make_caches(order)


def prepare_lesson(order: LessonOrder) -> str:
    """What every unit of the lesson reads; returns why a model can't be taught, "" when it can."""
    from memgrid_coordinator.heavy.calibration.courses import prepare_course
    from memgrid_coordinator.heavy.calibration.lessons import prepare

    try:
        prepare(order)
        prepare_course(order)
    except InvalidError as error:
        return str(error)
    return ""


def study_lesson(order: LessonOrder) -> list[Samples]:
    """Conversations in one way, replayed."""
    from memgrid_coordinator.heavy.calibration.lessons import study_and_replay

    return study_and_replay(order)


def score_lesson(order: LessonOrder) -> list[Samples]:
    """Scores in one way, replayed."""
    from memgrid_coordinator.heavy.calibration.lessons import score_and_replay

    return score_and_replay(order)


def train_lesson(order: LessonOrder) -> list[Samples]:
    """A prefix and a LoRA trained in one way, segments replayed."""
    from memgrid_coordinator.heavy.calibration.courses import train_and_replay

    return train_and_replay(order)


def compare_sketches(order: CompareOrder) -> list[Samples]:
    """What the kept sketches of some chunks show."""
    from memgrid_coordinator.heavy.calibration.comparing import compare

    return compare(order)
