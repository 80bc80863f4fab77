"""Calibrate a model: honest answers and cheats from the engine, part by part, and limits fitted to them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from memgrid.digest import Digest
from memgrid.kinds.prefill import ModelGeometry
from memgrid_coordinator.heavy.calibrate import (
    begin,
    compare_sketches,
    compute_caches,
    prepare_lesson,
    score_lesson,
    study_lesson,
    train_lesson,
)
from memgrid_coordinator.heavy.calibration.chunks import Chunk
from memgrid_coordinator.heavy.calibration.orders import CacheOrder, CompareOrder, Kept, LessonOrder
from memgrid_coordinator.heavy.calibration.planning import SLICE_CHUNKS, CacheTask, cache_tasks, trained_on
from memgrid_coordinator.heavy.calibration.probing import in_effect
from memgrid_coordinator.heavy.calibration.ways import (
    BASE,
    COURSE_CHEATS,
    LESSON_WAYS,
    SCORE_CHEATS,
    STUDY_CHEATS,
)
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.policy.calibrating import HONEST as HONEST_ANSWERS
from memgrid_coordinator.policy.calibrating import FittedRow, Samples, fit
from memgrid_coordinator.policy.known_cheats import floors, may_miss
from memgrid_coordinator.services.calibrated import Calibrated, CalibrationAsked

LOSSLESS = 1e-6
"""A cheat that moves the weights by less is none: such weights stand on its grid already."""

Progress = Callable[[int, int, str], None]
"""Parts done, parts in all, and which was done last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caches:
    kept: list[Kept]
    replayed: list[Samples]
    lossless: tuple[str, ...]


class Calibrating:
    """Gives the parts to an engine, a few at a time; to cancel the task that runs it leaves nothing behind."""

    def __init__(self, engine: Engine, progress: Progress = lambda done, parts, what: None) -> None:
        self._engine = engine
        self._progress = progress

    async def run(self, asked: CalibrationAsked) -> Calibrated:
        """Raises InvalidError when the model or the text can't be calibrated."""
        begun = await self._engine.run(begin, asked.model_folder, asked.text, asked.sizes, asked.seed)
        with tempfile.TemporaryDirectory(
            dir=asked.work_folder, prefix="calibrate-", ignore_cleanup_errors=True
        ) as folder:
            made = await self._caches(asked, begun.chunks, Path(folder))
            samples = await self._compared(asked, begun.chunks, made.kept, begun.model.geometry)
            samples += made.replayed
            taught, untaught = await self._lessons(asked, begun.model.digest, Path(folder), made.lossless)
            samples += taught
        rows = await asyncio.to_thread(_fitted, samples, asked, begun.model.geometry)
        return Calibrated(
            asked=asked, model=begun.model, rows=rows, samples=samples, lossless=made.lossless, untaught=untaught
        )

    async def _caches(self, asked: CalibrationAsked, chunks: Sequence[Chunk], folder: Path) -> _Caches:
        kept: list[Kept] = []
        samples: list[Samples] = []
        lossless: set[str] = set()

        async def make(task: CacheTask) -> None:
            order = CacheOrder(
                model_folder=asked.model_folder,
                way=task.way,
                cheat=task.cheat,
                chunks=task.chunks,
                texts=trained_on(chunks),
                stores=asked.stores,
                audited=frozenset(range(0, asked.sizes.chunks, asked.sizes.cheat_stride)),
                audit_store=asked.audit_store,
                folder=folder,
            )
            made = await self._engine.run(compute_caches, order)
            if made.moved < LOSSLESS:
                lossless.add(task.cheat)
            wanted = {HONEST_ANSWERS, *asked.cheats}
            samples.extend(each for each in made.samples if each.cheat in wanted)
            indices = frozenset(chunk.index for chunk in task.chunks)
            for cheat in made.files.keys() & wanted:
                kept.append(Kept(file=made.files[cheat], way=task.way, cheat=cheat, indices=indices))

        tasks = list(cache_tasks(chunks, asked.sizes, asked.ways, asked.cheats))
        parts = [(f"{task.way.name}{': ' * bool(task.cheat)}{task.cheat}", partial(make, task)) for task in tasks]
        await self._all(parts, asked.at_once)
        return _Caches(
            kept=[each for each in kept if each.cheat not in lossless],
            replayed=[each for each in samples if each.cheat not in lossless],
            lossless=tuple(sorted(lossless)),
        )

    async def _lessons(
        self, asked: CalibrationAsked, model: Digest, folder: Path, lossless: Sequence[str]
    ) -> tuple[list[Samples], str]:
        """Samples of study, evaluate and train; or none, and why."""
        first = LessonOrder(
            model_folder=asked.model_folder,
            model=model,
            folder=folder,
            text=asked.text,
            seed=asked.seed,
            sizes=asked.sizes,
            way=BASE,
            cheat="",
            number=0,
        )
        if not asked.is_taught:
            return [], "not asked for"
        if untaught := await self._engine.run(prepare_lesson, first):
            return [], untaught
        samples: list[Samples] = []

        async def teach(lesson: Callable[[LessonOrder], list[Samples]], order: LessonOrder) -> None:
            samples.extend(await self._engine.run(lesson, order))

        wrong = set(asked.cheats) - set(lossless)
        parts: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        for name, lesson, cheats in (
            ("study", study_lesson, STUDY_CHEATS),
            ("evaluate", score_lesson, SCORE_CHEATS),
            ("train", train_lesson, COURSE_CHEATS),
        ):
            ways = [(way, "") for way in LESSON_WAYS if way in asked.ways]
            for way, cheat in [*ways, *((BASE, cheat) for cheat in cheats if cheat in wrong)]:
                order = replace(first, way=way, cheat=cheat, number=len(parts))
                parts.append((f"{name}: {cheat or way.name}", partial(teach, lesson, order)))
        await self._all(parts, asked.at_once)
        return samples, ""

    async def _compared(
        self, asked: CalibrationAsked, chunks: Sequence[Chunk], kept: Sequence[Kept], geometry: ModelGeometry
    ) -> list[Samples]:
        samples: list[Samples] = []

        async def compare(some: tuple[Chunk, ...]) -> None:
            indices = {chunk.index for chunk in some}
            near = tuple(each for each in kept if each.indices & indices)
            order = CompareOrder(kept=near, chunks=some, stores=asked.stores, geometry=geometry)
            samples.extend(await self._engine.run(compare_sketches, order))

        slices = [tuple(chunks[start : start + SLICE_CHUNKS]) for start in range(0, len(chunks), SLICE_CHUNKS)]
        await self._all([("compare sketches", partial(compare, some)) for some in slices], asked.at_once)
        return samples

    async def _all(self, parts: Iterable[tuple[str, Callable[[], Awaitable[None]]]], at_once: int) -> None:
        """Every part, so many at a time; the first that fails ends the others."""
        listed = list(parts)
        room = asyncio.Semaphore(at_once)
        done = 0

        async def one(name: str, part: Callable[[], Awaitable[None]]) -> None:
            nonlocal done
            async with room:
                await part()
            done += 1
            self._progress(done, len(listed), name)

        tasks = [asyncio.ensure_future(one(name, part)) for name, part in listed]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


def _fitted(samples: Sequence[Samples], asked: CalibrationAsked, geometry: ModelGeometry) -> dict[str, FittedRow]:
    return fit(
        samples,
        fit_pieces=asked.sizes.fit_chunks,
        may_miss=partial(may_miss, also=asked.may_miss),
        floors=floors,
        settle=lambda row, limits: in_effect(row, limits, geometry, asked.sizes.tokens),
    )
