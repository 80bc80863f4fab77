"""The texts that a calibration reads: passages in an order of their own for each chunk, from a seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from memgrid.digest import Digest
from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.calibration.chunks import Chunk

SAMPLE = Path(__file__).with_name("sample.txt")
_PASSAGES_MIN = 8
_TEXT_BYTES_MAX = 16 << 20


def passages(text: Path | None) -> list[str]:
    """The lines of the bundled sample, or of a text of the grid owner's; raises InvalidError."""
    path = text or SAMPLE
    try:
        if path.stat().st_size > _TEXT_BYTES_MAX:
            raise InvalidError(f"--text: {path}: more than {_TEXT_BYTES_MAX >> 20} MiB; a few pages are enough")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"--text: {path}: {error}"[:300]) from None
    if len(lines) < _PASSAGES_MIN:
        raise InvalidError(f"--text: {path}: expected at least {_PASSAGES_MIN} lines of text, found {len(lines)}")
    return lines


def make_chunks(
    tokenizer: Any, lines: list[str], *, model: Digest, count: int, tokens: int, seed: int
) -> tuple[Chunk, ...]:
    """`count` chunks of `tokens` tokens: no two alike, all of the same passages."""
    return tuple(
        Chunk(index=index, ids=tuple(_ids(tokenizer, lines, tokens, f"{seed}/{index}")), model=model)
        for index in range(count)
    )


def _ids(tokenizer: Any, lines: list[str], tokens: int, seed: str) -> list[int]:
    draw = random.Random(seed)
    ids: list[int] = []
    while len(ids) < tokens:
        text = "\n".join(draw.sample(lines, len(lines)))
        more = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not more:
            raise InvalidError("the model's tokenizer makes no tokens of the text")
        ids += more
    return ids[:tokens]
