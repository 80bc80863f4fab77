"""What a calibration computes: which chunks, in which ways, with which cheats, in tasks of a few chunks each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.calibration.chunks import Chunk
from memgrid_coordinator.heavy.calibration.texts import make_chunks, passages
from memgrid_coordinator.heavy.calibration.ways import (
    ALSO_IN_HALF,
    BASE,
    CHEATS,
    HALF,
    HONEST,
    TF32,
    TOKEN_CHEATS,
    WEIGHT_CHEATS,
    Way,
)
from memgrid_coordinator.heavy.plan import load_tokenizer, longest_context

SLICE_CHUNKS = 16
"""So many chunks a task: their caches are in memory at once, and each task starts a process and loads the model."""
TRAINED_ON = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is computed. `cheat_stride`: every so many-th chunk is also computed in all wrong ways."""

    chunks: int = 24
    tokens: int = 256
    cheat_stride: int = 3
    fit_share: float = 0.5
    """Of the chunks, the first, which limits are fitted to; they are tried on the others."""
    conversations: int = 16
    text_tokens: int = 192
    train_row_tokens: int = 128

    @property
    def fit_chunks(self) -> int:
        return round(self.fit_share * self.chunks)


QUICK = Sizes(chunks=16, tokens=128, cheat_stride=4, conversations=8, text_tokens=96, train_row_tokens=96)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A model that can be calibrated, and the chunks it will read."""

    model: ModelIdentity
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTask:
    """One way, honest or not, over some chunks."""

    way: Way
    cheat: str
    chunks: tuple[Chunk, ...]


def read_model(folder: Path, text: Path | None, sizes: Sizes, seed: int) -> Begun:
    """Read the model's identity and the text; raises InvalidError for what can't be calibrated."""
    model = identity_of_folder(folder)
    longest = longest_context(model)
    if longest is not None and sizes.tokens > longest:
        raise InvalidError(f"--tokens: {sizes.tokens}, but {folder} reads at most {longest}")
    tokenizer = load_tokenizer(folder)
    lines = passages(text)
    chunks = make_chunks(tokenizer, lines, model=model.digest, count=sizes.chunks, tokens=sizes.tokens, seed=seed)
    return Begun(model=model, chunks=chunks)


def cache_tasks(
    chunks: Sequence[Chunk], sizes: Sizes, ways: Sequence[Way] = HONEST, cheats: Collection[str] = CHEATS
) -> Iterator[CacheTask]:
    """Every task, or those of some ways and cheats; what is made of finished caches comes with the plain way."""
    for way in (*ways, TF32):
        stride = sizes.cheat_stride if way == TF32 else round(1 / way.share)
        for chosen in _slices(chunks, stride):
            yield CacheTask(way=way, cheat="", chunks=chosen)
    wrong = [(BASE, cheat) for cheat in (*WEIGHT_CHEATS, *TOKEN_CHEATS)]
    for way, cheat in [*wrong, *((HALF, cheat) for cheat in ALSO_IN_HALF)]:
        if cheat in cheats:
            for chosen in _slices(chunks, sizes.cheat_stride):
                yield CacheTask(way=way, cheat=cheat, chunks=chosen)


def trained_on(chunks: Sequence[Chunk]) -> tuple[tuple[int, ...], ...]:
    """What a cheat's fine-tuning reads."""
    return tuple(chunk.ids for chunk in chunks[:TRAINED_ON])


def _slices(chunks: Sequence[Chunk], stride: int) -> Iterator[tuple[Chunk, ...]]:
    chosen = chunks[::stride]
    for start in range(0, len(chosen), SLICE_CHUNKS):
        yield tuple(chosen[start : start + SLICE_CHUNKS])
